//! What the cache did, for the browser to see: the Cache-Status field (RFC 9211).

use std::io::Write;

/// Why a request was sent on (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Stale,
    Request,
}

impl Forward {
    const fn name(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

/// Of an answer that the site gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub(super) forward: Forward,
    pub(super) stored: bool,
}

impl Status {
    /// Value of a Cache-Status field to add to the answer.
    pub const fn value(self) -> &'static [u8] {
        match (self.forward, self.stored) {
            (Forward::Bypass, _) => b"culvert; fwd=bypass",
            (Forward::Method, _) => b"culvert; fwd=method",
            (Forward::UriMiss, false) => b"culvert; fwd=uri-miss",
            (Forward::UriMiss, true) => b"culvert; fwd=uri-miss; stored",
            (Forward::VaryMiss, false) => b"culvert; fwd=vary-miss",
            (Forward::VaryMiss, true) => b"culvert; fwd=vary-miss; stored",
            (Forward::Stale, false) => b"culvert; fwd=stale",
            (Forward::Stale, true) => b"culvert; fwd=stale; stored",
            (Forward::Request, false) => b"culvert; fwd=request",
            (Forward::Request, true) => b"culvert; fwd=request; stored",
        }
    }
}

/// How a stored answer came to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Without asking the site.
    Stored,
    /// Another request fetched it meanwhile.
    Collapsed,
    /// The site said 304.
    Confirmed(Forward),
    /// The site failed with this status.
    Failed(Forward, u16),
    /// The site could not be reached.
    Unreachable(Forward),
}

impl How {
    /// Appends the field line.
    pub fn line(self, ttl: i64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"Cache-Status: culvert; ");
        let written = match self {
            Self::Stored => write!(out, "hit; ttl={ttl}"),
            Self::Collapsed => write!(out, "fwd=uri-miss; collapsed; ttl={ttl}"),
            Self::Confirmed(forward) => write!(out, "fwd={}; fwd-status=304; ttl={ttl}", forward.name()),
            Self::Failed(forward, status) => write!(out, "fwd={}; fwd-status={status}; ttl={ttl}", forward.name()),
            Self::Unreachable(forward) => write!(out, "fwd={}; ttl={ttl}; detail=unreachable", forward.name()),
        };
        debug_assert!(written.is_ok(), "a Vec takes everything");
        out.extend_from_slice(b"\r\n");
    }
}
