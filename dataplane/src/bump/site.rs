//! TLS towards sites, at `sc`: what it offers, and what is told of a finished handshake.

use std::fmt;
use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, CommonState, Error, ProtocolVersion, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::Trust;
use super::failure::{CLIENT_CERTIFICATE, Defect};
use super::judge::{Checks, Judged};
use super::seen::{HTTP11, Seen};
use super::sessions::{Sessions, Site};
use super::table::{KeyOf, Table};
use super::verdict::Verdict;
use crate::limits::{OPAQUE_HOSTS_MAX, OPAQUE_TIME};
use crate::time::Time;

/// Suites in the order that browsers have: AES-128 needs fewer rounds, and SHA-256 has instructions of its own on most
/// processors, where SHA-384 costs a handshake a twelfth.
fn as_browsers_do() -> CryptoProvider {
    let mut provider = provider::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| !suite.suite().as_str().unwrap_or_default().contains("AES_128"));
    provider
}

/// Judges sites' certificates for all shards of `sc`, and holds the sessions that may be resumed.
pub struct Judge {
    checks: Arc<Checks>,
    sessions: Arc<Sessions>,
    config: ClientConfig,
    /// Until when a site is left alone that asks for a client certificate late.
    late: Table<Time>,
}

impl Judge {
    /// By `trust`, with nothing remembered yet.
    pub fn new(trust: Trust) -> Self {
        Self::with_clock(trust, Arc::new(rustls::time_provider::DefaultTimeProvider))
    }

    pub(super) fn with_clock(trust: Trust, clock: Arc<dyn TimeProvider>) -> Self {
        let provider = Arc::new(as_browsers_do());
        let checks = Arc::new(Checks::new(trust, provider.signature_verification_algorithms));
        let mut config = ClientConfig::builder_with_details(provider, clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("the provider has suites of both versions")
            .dangerous()
            .with_custom_certificate_verifier(checks.clone())
            .with_client_cert_resolver(Arc::new(NoClientCertificate));
        config.alpn_protocols = vec![HTTP11.to_vec()];
        Self {
            checks,
            sessions: Arc::new(Sessions::new(clock)),
            config,
            late: Table::new(OPAQUE_HOSTS_MAX),
        }
    }

    /// The site asked for a client certificate when it had a request already: for [`OPAQUE_TIME`] it is left to browsers that
    /// have not been shown a leaf yet.
    pub fn learn_late(&self, host: &str, port: u16, now: Time) {
        let key = KeyOf::default().site(host, port).key();
        self.late.part(&key).insert(key, now + OPAQUE_TIME);
    }

    /// Whether that was learnt of the site.
    pub fn asks_late(&self, host: &str, port: u16, now: Time) -> bool {
        let key = KeyOf::default().site(host, port).key();
        self.late.part(&key).get(&key).is_some_and(|until| now < *until)
    }

    /// Judges the certificates that a site shows, its own first, when it was asked for as `name`. `host` is what
    /// `--insecure-domains` is asked about: such a site is good whatever its certificate, which must be readable.
    ///
    /// # Errors
    /// A fault that is not mirrored: the connection is relayed as it is.
    pub fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        host: &str,
        now: UnixTime,
    ) -> Result<Judged, Defect> {
        let Some((leaf, above)) = chain.split_first() else {
            return Err(Defect("the site shows no certificate".to_owned()));
        };
        self.checks.judge(leaf, above, name, host, now)
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Judge")
    }
}

/// For *one* connection to `host` and `port`: TLS 1.2 or 1.3, HTTP/1.1, a session of the same site resumed if one is at
/// hand. The name that is sent (SNI) is the one the connection is made with.
///
/// The handshake fails for what is not mirrored ([`super::failed`] says what), and if the site asks for a client
/// certificate, whether it insists or not. Sessions would outlive [`crate::limits::JUDGED_AGE_MAX`] if two connections
/// shared a configuration.
pub fn client_config(judge: &Arc<Judge>, host: &str, port: u16) -> Arc<ClientConfig> {
    let mut config = judge.config.clone();
    config.resumption = Resumption::store(Arc::new(Site::new(judge.sessions.clone(), host, port)));
    Arc::new(config)
}

/// What a finished handshake showed, also a resumed one. `tls_us` is the caller's to fill in.
pub fn see(judge: &Judge, conn: &CommonState, name: &ServerName<'_>, host: &str, now: UnixTime) -> Seen {
    let chain = conn.peer_certificates().unwrap_or_default();
    let Ok(judged) = judge.judge(chain, name, host, now) else {
        return Seen::opaque(Verdict::OPAQUE);
    };
    Seen {
        verdict: judged.verdict,
        leaf: judged.leaf,
        names: judged.names,
        not_before: judged.not_before,
        not_after: judged.not_after,
        version: conn.protocol_version().map_or(0, ProtocolVersion::into),
        http11: conn.alpn_protocol() == Some(HTTP11),
        tls_us: 0,
    }
}

/// Has no certificate, and ends the handshake of a site that asks for one: its browser may have one. A key that cannot
/// sign does that; the site reads no Finished.
#[derive(Debug)]
struct NoClientCertificate;

impl ResolvesClientCert for NoClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::new(CertifiedKey::new(Vec::new(), Arc::new(Self))))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl SigningKey for NoClientCertificate {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Self))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for NoClientCertificate {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, Error> {
        Err(Error::General(CLIENT_CERTIFICATE.to_owned()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}
