//! Where a head ends.

use std::sync::LazyLock;

use memchr::{memchr, memmem};

use super::facts::{Side, has_bare_lf};
use super::head::Bad;
use super::is_token_byte;
use crate::limits::{HEAD_BYTES_MAX, HEAD_GROWTH_BYTES_MAX, METHOD_BYTES_MAX, TARGET_BYTES_MAX};

/// The end of a line and an empty one.
const END: &[u8] = b"\r\n\r\n";
static END_FINDER: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(END));

/// Finds the end of a head in a growing buffer, scanning no byte again but the last three.
#[derive(Clone, Debug)]
pub struct Finder {
    side: Side,
    bytes_max: usize,
    scanned: usize,
}

impl Finder {
    /// For what browsers send.
    pub const fn request() -> Self {
        Self::new(Side::Request, HEAD_BYTES_MAX)
    }

    /// For requests that `rewrite::request` wrote: they may have grown by a Host field.
    pub const fn forwarded() -> Self {
        Self::new(Side::Request, HEAD_BYTES_MAX + HEAD_GROWTH_BYTES_MAX)
    }

    /// For what sites send.
    pub const fn response() -> Self {
        Self::new(Side::Response, HEAD_BYTES_MAX)
    }

    const fn new(side: Side, bytes_max: usize) -> Self {
        Self {
            side,
            bytes_max,
            scanned: 0,
        }
    }

    /// Length of the head at the start of `buf` with its empty line, or `None` if more bytes are needed. `buf` begins
    /// at the same byte on each call until a head was found; then the finder is ready for the next one. What cannot
    /// become a head (no token or `HTTP/1.` at its start, a bare LF, too long) is refused without waiting for its end.
    pub fn find(&mut self, buf: &[u8]) -> Result<Option<usize>, Bad> {
        self.search(buf).map_err(|bad| match self.side {
            Side::Request => bad,
            Side::Response => bad.of_site(),
        })
    }

    fn search(&mut self, buf: &[u8]) -> Result<Option<usize>, Bad> {
        self.check_start(buf)?;
        let end = buf.len().min(self.bytes_max);
        let from = self.scanned.min(end);
        // Its first bytes may be there already.
        let around = from.saturating_sub(END.len() - 1);
        let found = END_FINDER.find(&buf[around..end]).map(|at| around + at + END.len());
        // A start line does not begin with LF.
        if has_bare_lf(&buf[from.saturating_sub(1)..found.unwrap_or(end)]) {
            return Err(Bad::request("a line of the head ends in LF without CR"));
        }
        if found.is_some() {
            *self = Self::new(self.side, self.bytes_max);
            return Ok(found);
        }
        self.scanned = end;
        let long = end > TARGET_BYTES_MAX + METHOD_BYTES_MAX + 16;
        if long && self.side == Side::Request && memchr(b'\n', &buf[..end]).is_none() {
            return Err(Bad {
                status: 414,
                reason: "the request target is too long",
            });
        }
        if end == self.bytes_max {
            return Err(Bad {
                status: 431,
                reason: "the head is too large",
            });
        }
        Ok(None)
    }

    fn check_start(&self, buf: &[u8]) -> Result<(), Bad> {
        let good = match (self.side, buf) {
            (_, []) => true,
            (Side::Request, [first, ..]) => is_token_byte(*first),
            (Side::Response, _) => buf.iter().zip(b"HTTP/1.").all(|(a, b)| a == b),
        };
        if good {
            Ok(())
        } else {
            Err(Bad::request("the message does not begin with a start line of HTTP/1"))
        }
    }
}
