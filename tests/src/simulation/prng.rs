//! Randomness and payload bytes, both from a seed.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Prng(u64);

impl Prng {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(GOLDEN)))
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// 0 … n − 1; 0 for n = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.draw() % n }
    }

    /// from … to, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn key(&mut self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.draw().to_be_bytes());
        out[8..].copy_from_slice(&self.draw().to_be_bytes());
        out
    }
}

fn word(key: u64, index: u64) -> [u8; 8] {
    mix(key.wrapping_add(index.wrapping_mul(GOLDEN))).to_le_bytes()
}

/// Bytes of the keyed content from `offset` on.
pub fn fill(key: u64, offset: u64, out: &mut [u8]) {
    let mut done = 0;
    while done < out.len() {
        let at = offset + done as u64;
        let from = (at % 8) as usize;
        let n = (8 - from).min(out.len() - done);
        out[done..done + n].copy_from_slice(&word(key, at / 8)[from..from + n]);
        done += n;
    }
}

/// Whether `bytes` are the keyed content from `offset` on.
pub fn matches(key: u64, offset: u64, bytes: &[u8]) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        let from = (at % 8) as usize;
        let n = (8 - from).min(bytes.len() - done);
        if bytes[done..done + n] != word(key, at / 8)[from..from + n] {
            return false;
        }
        done += n;
    }
    true
}

/// Digest of a frame, for comparing replays.
pub fn digest(bytes: &[u8]) -> u64 {
    let mut sum = bytes.len() as u64;
    let mut words = bytes.chunks_exact(8);
    for w in &mut words {
        sum = (sum ^ u64::from_le_bytes(w.try_into().unwrap_or_default())).wrapping_mul(GOLDEN);
        sum ^= sum >> 29;
    }
    for b in words.remainder() {
        sum = (sum ^ u64::from(*b)).wrapping_mul(GOLDEN);
    }
    mix(sum)
}
