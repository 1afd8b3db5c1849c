//! TLS of links: 1.3 only, `TLS_AES_256_GCM_SHA384` only, both ends pinned by the key that the REST exchange named.
//!
//! ```text
//!  TCP bytes ─► Handshake (rustls, sans-IO) ─┬─► Sealer : frames ─► records
//!                                            └─► Opener : records ─► frames, opened in place
//! ```
//!
//! rustls shakes hands; then the traffic keys go to our own record pump, which seals bulk frames straight from the
//! buffer they were read into and opens records where they lie.
//!
//! Architecture invariant: no CA, no name check, no ticket, no resumption, no early data. After the handshake the
//! only handshake message is KeyUpdate.

mod config;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod handshake;
mod opener;
mod record;
mod sealer;
#[cfg(test)]
mod tests;

pub use config::{Fingerprint, Identity, client_config, server_config};
#[cfg(any(test, fuzzing))]
pub use fuzz::fuzz_open;
pub(crate) use handshake::encode;
pub use handshake::{Handshake, Progress};
pub use opener::{Opener, Record};
pub use rustls::AlertDescription;
pub use sealer::Sealer;

use crate::error::Error;

/// Application protocol of links (RFC 7301): whoever speaks another one is no peer.
pub const ALPN: &[u8] = b"culvert";

/// Text of the error when the peer proved another key than the pinned one.
pub const WRONG_KEY: &str = "the peer's key is not the one that the REST exchange named";

/// Text of the error when the peer found that ours is not the pinned one.
pub const KEY_REFUSED: &str = "the peer refused our key: it is not the one that the REST exchange named";

/// What rustls found, in words for the log of a link.
fn explain(error: rustls::Error) -> Error {
    use rustls::CertificateError::ApplicationVerificationFailure;
    let text = match error {
        rustls::Error::InvalidCertificate(ApplicationVerificationFailure) => WRONG_KEY.to_owned(),
        rustls::Error::AlertReceived(AlertDescription::AccessDenied) => KEY_REFUSED.to_owned(),
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the cloud knows no tunnel of this name".to_owned()
        }
        rustls::Error::AlertReceived(alert) => format!("the peer sent the alert {alert:?}"),
        other => other.to_string(),
    };
    Error::Tls(text)
}
