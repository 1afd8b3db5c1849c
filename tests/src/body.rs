//! Keyed bodies: every byte follows from a seed and an offset, so that both ends can check without sharing memory, a
//! byte of another body never fits, and a fault is named by its offset.

use std::io::{self, Read};

use aws_lc_rs::digest;

/// Bytes that one step of a transfer handles; bodies of any length pass through buffers of this size.
pub const STEP_BYTES: usize = 64 * 1024;

/// The mixing function of SplitMix64: neighbouring indices give unrelated words.
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed
        .wrapping_mul(0xD6E8_FEB8_6659_FD93)
        .wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Writes the bytes of body `seed` from `offset` on.
pub fn fill(seed: u64, offset: u64, out: &mut [u8]) {
    let mut at = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let bytes = word(seed, at / 8).to_le_bytes();
        let skip = (at % 8) as usize;
        let n = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(n);
        now.copy_from_slice(&bytes[skip..skip + n]);
        rest = later;
        at += n as u64;
    }
}

/// The whole body, for small ones.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    fill(seed, 0, &mut out);
    out
}

/// SHA-256 of a body, lower-case hex, in constant memory.
pub fn sha256(seed: u64, length: u64) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut step = vec![0; STEP_BYTES];
    let mut at = 0;
    while at < length {
        let n = (length - at).min(STEP_BYTES as u64) as usize;
        fill(seed, at, &mut step[..n]);
        hash.update(&step[..n]);
        at += n as u64;
    }
    hex(hash.finish().as_ref())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Compares what arrives, in pieces of any size, with body `seed`.
pub struct Check {
    seed: u64,
    offset: u64,
    expected: Vec<u8>,
}

impl Check {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            offset: 0,
            expected: vec![0; STEP_BYTES],
        }
    }

    /// Bytes seen so far, all of them right.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next piece; the error names the offset of the first wrong byte.
    pub fn update(&mut self, piece: &[u8]) -> io::Result<()> {
        for part in piece.chunks(STEP_BYTES) {
            let expected = &mut self.expected[..part.len()];
            fill(self.seed, self.offset, expected);
            if let Some(at) = part.iter().zip(expected.iter()).position(|(a, b)| a != b) {
                let text = format!("body {:#x} is wrong at offset {}", self.seed, self.offset + at as u64);
                return Err(io::Error::other(text));
            }
            self.offset += part.len() as u64;
        }
        Ok(())
    }
}

/// Reads body `seed` up to its length.
pub struct Source {
    seed: u64,
    offset: u64,
    length: u64,
}

impl Source {
    pub fn new(seed: u64, length: u64) -> Self {
        Self {
            seed,
            offset: 0,
            length,
        }
    }
}

impl Read for Source {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = (self.length - self.offset).min(out.len() as u64) as usize;
        fill(self.seed, self.offset, &mut out[..n]);
        self.offset += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_the_same_however_it_is_split() {
        let whole = bytes(7, 100_003);
        let mut pieces = vec![0; whole.len()];
        let mut at = 0;
        for n in [1, 7, 8, 9, 63, 4_096, 50_000].into_iter().cycle() {
            let end = (at + n).min(whole.len());
            fill(7, at as u64, &mut pieces[at..end]);
            at = end;
            if at == whole.len() {
                break;
            }
        }
        assert!(whole == pieces);
        assert_eq!(
            sha256(7, whole.len() as u64),
            hex(digest::digest(&digest::SHA256, &whole).as_ref())
        );
    }

    #[test]
    fn a_wrong_byte_is_named_by_its_offset() {
        let mut whole = bytes(7, 200_000);
        whole[150_001] ^= 1;
        let mut check = Check::new(7);
        check.update(&whole[..100_000]).unwrap();
        let error = check.update(&whole[100_000..]).unwrap_err();
        assert_eq!(error.to_string(), "body 0x7 is wrong at offset 150001");
    }

    #[test]
    fn bodies_share_no_long_run() {
        let (a, b) = (bytes(1, 4_096), bytes(2, 4_096));
        assert!(a.windows(8).all(|run| !b.windows(8).any(|other| run == other)));
    }
}
