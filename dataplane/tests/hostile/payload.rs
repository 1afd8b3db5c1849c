//! Payloads of the peer: as right as their length allows, and what the layout says of that length.

use bytes::{BufMut, Bytes, BytesMut};
use dataplane::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, FRAME_TEXT_BYTES_MAX};
use dataplane::mux::frame::kind;

use super::shard::FIRST_CREDIT;

/// How long a payload of one type may be.
pub enum Layout {
    Exact(usize),
    /// Empty, or exactly so long.
    EmptyOr(usize),
    /// Fixed fields, then text for people.
    Text(usize),
    /// Fixed fields, then bytes up to the end of the frame.
    Bytes(usize),
    /// Fixed fields, then TLVs, of which the shortest has three bytes.
    Tlvs(usize),
    /// A name and a list of names, each with its length before it.
    Names,
    /// Skipped, whatever it is.
    Any,
    /// No such type.
    None,
}

/// The column *payload* of the table of frames.
pub fn layout(kind: u8) -> Layout {
    match kind {
        kind::HELLO => Layout::Tlvs(76),
        kind::OPEN => Layout::Tlvs(13),
        kind::DATA => Layout::Bytes(1),
        kind::FIN => Layout::EmptyOr(16),
        kind::RESET => Layout::Text(2),
        kind::CREDIT | kind::ACK | kind::PING | kind::PONG | kind::RECALL | kind::RETURN => Layout::Exact(8),
        kind::SETTINGS => Layout::Bytes(8),
        kind::SETTINGS_ACK => Layout::Text(5),
        kind::GOAWAY => Layout::Text(10),
        kind::OPENED => Layout::Exact(27),
        kind::START_TLS => Layout::Names,
        kind::TLS_REPORT => Layout::Tlvs(33),
        0x80.. => Layout::Any,
        _ => Layout::None,
    }
}

impl Layout {
    /// 0, 1, the largest that a header may name, and both sides of each bound of this layout.
    pub fn boundaries(&self) -> Vec<usize> {
        let mut out = vec![0, 1, FRAME_PAYLOAD_BYTES_MAX];
        let mut around = |n: usize| out.extend([n.saturating_sub(1), n, n + 1]);
        match self {
            Self::Exact(n) | Self::EmptyOr(n) => around(*n),
            Self::Text(n) => {
                around(*n);
                around(n + FRAME_TEXT_BYTES_MAX);
            }
            Self::Bytes(n) => around(*n),
            Self::Tlvs(n) => {
                around(*n);
                around(n + 3);
            }
            Self::Names => around(1),
            Self::Any | Self::None => {}
        }
        out.sort_unstable();
        out.dedup();
        out
    }

    /// Whether a payload of so many bytes can have this layout.
    pub fn allows(&self, length: usize) -> bool {
        match self {
            Self::Exact(n) => length == *n,
            Self::EmptyOr(n) => length == 0 || length == *n,
            Self::Text(n) => (*n..=n + FRAME_TEXT_BYTES_MAX).contains(&length),
            Self::Bytes(n) => length >= *n,
            Self::Tlvs(n) => length == *n || length >= n + 3,
            Self::Names => length >= 1,
            Self::Any => true,
            Self::None => false,
        }
    }
}

/// What an honest peer would name in this place.
pub struct Known {
    /// Kind of the streams that it opens.
    pub open: u8,
    /// A boundary of frames up to which it may acknowledge.
    pub acked: u64,
    /// Bytes that it has sent on the stream in question.
    pub sent: u64,
    /// The fields of its HELLO.
    pub hello: Bytes,
}

/// The fixed fields, as an honest peer could write them here.
fn fields(kind: u8, known: &Known) -> BytesMut {
    let mut out = BytesMut::new();
    match kind {
        kind::HELLO => out.put_slice(&known.hello),
        kind::OPEN => {
            out.put_slice(&[known.open, 0]);
            out.put_u32(1);
            out.put_u32(65_536);
            out.put_slice(&[0; 3]);
        }
        kind::RESET => out.put_u16(6),
        kind::CREDIT => out.put_u64(FIRST_CREDIT + 100_000_000),
        kind::ACK => out.put_u64(known.acked),
        kind::SETTINGS => out.put_slice(&[0, 0, 0, 2, 0, 0, 0, 1]),
        kind::SETTINGS_ACK => out.put_slice(&[0, 0, 0, 1, 0]),
        kind::GOAWAY => out.put_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        kind::OPENED => out.put_bytes(4, 27),
        kind::TLS_REPORT => out.put_bytes(0, 33),
        kind::RECALL => out.put_u64(0),
        kind::RETURN => out.put_u64(known.sent),
        _ => {}
    }
    out
}

/// A payload of exactly `length` bytes.
pub fn payload(kind: u8, length: usize, known: &Known) -> Bytes {
    let mut out = fields(kind, known);
    match layout(kind) {
        Layout::Tlvs(n) if length >= n + 3 => {
            out.put_u8(1);
            out.put_u16((length - n - 3) as u16);
        }
        Layout::Names if length > 0 => put_names(&mut out, length),
        _ => {}
    }
    out.resize(length, b'x');
    out.freeze()
}

fn put_names(out: &mut BytesMut, length: usize) {
    let rest = |first: usize| length - 1 - first;
    let mut first = (length - 1).min(255);
    // A list of one byte would be an empty name.
    first -= usize::from(rest(first) == 1);
    out.put_u8(first as u8);
    out.put_bytes(b'n', first);
    let mut left = rest(first);
    while left > 0 {
        let name = (left - 1).min(255);
        let name = if left - 1 - name == 1 { name - 1 } else { name };
        out.put_u8(name as u8);
        out.put_bytes(b'n', name);
        left -= 1 + name;
    }
}

/// A header and as much of the payload as follows it.
pub fn frame(length: usize, kind: u8, reserved: u8, stream: u64, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(FRAME_HEADER_BYTES + payload.len());
    out.put_u16(length as u16);
    out.put_slice(&[kind, reserved]);
    out.put_u64(stream);
    out.put_slice(payload);
    out.freeze()
}
