//! Errors named by who broke what. Peer bytes may end a stream or a link, never the process.

use std::fmt;
use std::io;

/// Why a link or a role could not do its work.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused; the text names what was tried.
    Io(&'static str, io::Error),
    /// TLS of a link failed: wrong fingerprint, wrong version, bad record.
    Tls(String),
    /// The peer broke a rule of the multiplex.
    Peer(String),
    /// A bound of `limits.rs` or of the operator was reached.
    Limit(String),
    /// What was asked of is no more.
    Closed(&'static str),
}

impl Error {
    /// Less memory was granted than the `needed` bytes.
    pub(crate) fn memory(needed: usize) -> Self {
        Self::Limit(format!("at least {needed} bytes of memory are needed"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(what, e) => write!(f, "{what}: {e}"),
            Self::Tls(text) => write!(f, "TLS: {text}"),
            Self::Peer(text) => write!(f, "the other side broke the protocol: {text}"),
            Self::Limit(text) => write!(f, "limit: {text}"),
            Self::Closed(what) => write!(f, "{what} is closed"),
        }
    }
}

impl std::error::Error for Error {}
