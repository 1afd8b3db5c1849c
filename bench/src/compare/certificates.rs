//! Certificates of the site, and browsers that take any.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};

const WHY: &str = "certificates of our own making";
/// Addresses of which the site keeps what it shows.
const SHOWN_MAX: usize = 1_024;

/// Signs leaves of P-256.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub root: CertificateDer<'static>,
    /// The same.
    pub pem: String,
    /// Of all leaves.
    key: KeyPair,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect(WHY);
        let mut root = CertificateParams::default();
        // Whoever finds the leaf's own name takes that for signed by itself.
        root.distinguished_name.push(DnType::CommonName, "root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signed = root.self_signed(&key).expect(WHY);
        Self {
            issuer: Issuer::new(root, key),
            root: signed.der().clone(),
            pem: signed.pem(),
            key: KeyPair::generate().expect(WHY),
        }
    }

    /// Certificate and key, for somebody else to sign with.
    pub fn into_parts(self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        (
            self.root,
            PrivateKeyDer::Pkcs8(self.issuer.key().serialize_der().into()),
        )
    }

    /// A certificate that is valid for the address, and its key.
    pub fn leaf(&self, address: IpAddr) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let name = address.to_string();
        let mut leaf = CertificateParams::new([name.clone()]).expect(WHY);
        // Squid looks for addresses there alone.
        leaf.distinguished_name.push(DnType::CommonName, name);
        let leaf = leaf.signed_by(&self.key, &self.issuer).expect(WHY);
        (
            leaf.der().clone(),
            PrivateKeyDer::Pkcs8(self.key.serialize_der().into()),
        )
    }
}

/// How the site shakes hands on each of its addresses.
pub struct Site {
    authority: Authority,
    tickets: Arc<dyn ProducesTickets>,
    shown: HashMap<IpAddr, Arc<ServerConfig>>,
}

impl Site {
    pub fn new() -> Self {
        Self {
            authority: Authority::new(),
            tickets: Ticketer::new().expect("the provider has tickets"),
            shown: HashMap::new(),
        }
    }

    /// The root of its certificates.
    pub fn root(&self) -> &str {
        &self.authority.pem
    }

    /// The same, as it is.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.authority.root.clone()
    }

    /// With a certificate that is valid for the address, made when it is first asked for.
    pub fn config(&mut self, address: IpAddr) -> Arc<ServerConfig> {
        if self.shown.len() == SHOWN_MAX {
            self.shown.clear();
        }
        let shown = self.shown.entry(address).or_insert_with(|| {
            let (leaf, key) = self.authority.leaf(address);
            let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()
                .expect(WHY)
                .with_no_client_auth()
                .with_single_cert(vec![leaf], key)
                .expect(WHY);
            config.ticketer = self.tickets.clone();
            config.session_storage = Arc::new(NoServerSessionStorage {});
            Arc::new(config)
        });
        shown.clone()
    }
}

/// Cipher suites in the order that browsers have: AES-128 first.
pub fn as_browsers_do() -> CryptoProvider {
    let mut provider = default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| !suite.suite().as_str().unwrap_or_default().contains("AES_128"));
    provider
}

/// A browser that looks at no certificate, since what is measured is not its, and resumes no session.
pub fn browser() -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(as_browsers_do()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
