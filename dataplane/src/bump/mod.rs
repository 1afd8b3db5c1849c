//! SSL bump (RFC 8446, RFC 5246): the endpoint shows a browser a leaf of the tunnel's own CA, and `sc` speaks TLS to the
//! site. A bad certificate stays bad: what `sc` finds wrong with the site's is wrong with the leaf too.
//!
//! ```text
//!            sc                                              endpoint
//!  site ─► client_config ─► see ─► Seen ─► TLS_REPORT ═► Seen ─► Leaves::config ─► browser
//!             Judge                                        └► Reports
//! ```
//!
//! Sans-IO: no sockets, and `now` is an argument, but rustls reads the wall clock in a handshake and for tickets.

mod failure;
mod hello;
mod judge;
mod leaf;
mod leaves;
mod names;
mod reports;
mod seen;
mod sessions;
mod site;
mod table;
#[cfg(test)]
mod tests;
mod tls;
mod verdict;

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::rules::Domains;

pub(crate) use failure::CLIENT_CERTIFICATE;
pub use failure::{Defect, failed, is_passing};
pub use hello::{Hello, HelloReader, NoHello};
pub use judge::Judged;
pub use leaves::Leaves;
pub use reports::{Reports, Site};
pub use seen::Seen;
pub use site::{Judge, client_config, see};
pub use tls::Tls;
pub use verdict::Verdict;

/// A tunnel's own CA: leaves are signed with it.
pub struct TunnelCa {
    /// Its certificate first, then those above it but for the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for TunnelCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelCa")
    }
}

/// What an endpoint's shards have in common for it.
pub struct Bump {
    pub leaves: Leaves,
    pub reports: Reports,
}

/// What `sc` judges sites by.
#[derive(Clone)]
pub struct Trust {
    /// The system's, and those of `--cacert-file`.
    pub roots: Arc<RootCertStore>,
    /// `--insecure-domains`: sites whose certificate is not checked.
    pub insecure: Domains,
}
