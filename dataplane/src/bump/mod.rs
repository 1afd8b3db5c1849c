//! SSL bump (RFC 8446, RFC 5246): the endpoint shows a browser a leaf of the tunnel's own CA, and `sc` speaks TLS to the
//! site. A bad certificate stays bad: what `sc` finds wrong with the site's is wrong with the leaf too.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::rules::Domains;

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

/// What `sc` judges sites by.
#[derive(Clone)]
pub struct Trust {
    /// The system's, and those of `--cacert-file`.
    pub roots: Arc<RootCertStore>,
    /// `--insecure-domains`: sites whose certificate is not checked.
    pub insecure: Domains,
}
