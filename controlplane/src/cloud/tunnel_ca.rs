//! The CA of one endpoint: the certificates that browsers are shown in place of those of sites are signed with it. It
//! outlives the endpoint's processes, for browsers trust it once.

use dataplane::bump;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::secret::{self, Secret};

/// Made by [`super::authority::Authority::tunnel_ca`]. It goes to the endpoint over its control socket, and into the
/// store, beside which the key of the cloud's own CA lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelCa {
    pub certificate: Certificate,
    /// PKCS#8 as PEM.
    #[serde(with = "exposed")]
    pub key: Secret,
}

/// A certificate as PEM (RFC 7468).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate(pub String);

impl Certificate {
    fn der(&self) -> Option<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.0.as_bytes()).ok()
    }

    /// SHA-256 of the certificate, 64 lower-case hex digits.
    pub fn fingerprint(&self) -> Option<String> {
        Some(secret::hex(&secret::sha256(&self.der()?)))
    }
}

impl TunnelCa {
    /// As the data plane takes it; none if it is damaged.
    pub fn parsed(&self) -> Option<bump::TunnelCa> {
        Some(bump::TunnelCa {
            chain: vec![self.certificate.der()?],
            key: PrivateKeyDer::from_pem_slice(self.key.expose().as_bytes()).ok()?,
        })
    }
}

/// A secret in a message between this host's own processes.
mod exposed {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::secret::Secret;

    pub fn serialize<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret.expose())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}
