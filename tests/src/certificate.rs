//! A company's CA for the sites of a test, and a leaf under it.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_RSA_SHA256, date_time_ymd};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, SupportedCipherSuite};

/// A company's own root.
pub struct Company {
    pub root_pem: String,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Company {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a P-256 key");
        // No two have one name.
        let name = format!("A company's root {:x?}", &key.public_key_raw()[..8]);
        params.distinguished_name.push(DnType::CommonName, name);
        let root = params.self_signed(&key).expect("a root");
        Self {
            root_pem: root.pem(),
            root: root.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A leaf for the names given (DNS names or addresses), after `change`.
    pub fn site(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Site {
        self.site_of(KeyPair::generate().expect("a P-256 key"), names, change)
    }

    /// … whose leaf is of RSA.
    pub fn rsa_site(&self, names: &[&str]) -> Site {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("an RSA key");
        self.site_of(key, names, |_| {})
    }

    fn site_of(&self, key: KeyPair, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Site {
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).expect("a leaf");
        Site {
            root_pem: self.root_pem.clone(),
            root: self.root.clone(),
            leaf: leaf.der().clone(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }
}

impl Default for Company {
    fn default() -> Self {
        Self::new()
    }
}

/// For [`Company::site`]: its time is over.
pub fn expired(leaf: &mut CertificateParams) {
    leaf.not_before = date_time_ymd(2020, 1, 1);
    leaf.not_after = date_time_ymd(2020, 2, 1);
}

/// For [`Company::site`]: its time has not come.
pub fn not_yet_valid(leaf: &mut CertificateParams) {
    leaf.not_before = date_time_ymd(2090, 1, 1);
    leaf.not_after = date_time_ymd(2091, 1, 1);
}

/// A leaf and the root above it.
pub struct Site {
    /// What a client must trust.
    pub root_pem: String,
    root: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Site {
    /// Under a root of its own.
    pub fn new(names: &[&str]) -> Self {
        Company::new().site(names, |_| {})
    }

    /// Signed by its own key; `is_ca`: it calls itself a CA, as what `openssl req -x509` makes does.
    pub fn self_signed(names: &[&str], is_ca: bool) -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params =
            CertificateParams::new(names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>()).expect("names");
        params.is_ca = match is_ca {
            true => IsCa::Ca(BasicConstraints::Unconstrained),
            false => IsCa::ExplicitNoCa,
        };
        let leaf = params.self_signed(&key).expect("a leaf");
        Self {
            root_pem: leaf.pem(),
            root: leaf.der().clone(),
            leaf: leaf.der().clone(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }

    /// The leaf, for a server of others.
    pub fn leaf_pem(&self) -> String {
        pem("CERTIFICATE", &self.leaf)
    }

    /// Its key.
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", self.key.secret_der())
    }

    /// The leaf, as DER.
    pub fn leaf(&self) -> &[u8] {
        &self.leaf
    }

    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server_config_of(rustls::ALL_VERSIONS, false)
    }

    /// Of these TLS versions; `asks`: clients need a certificate of the same root.
    pub fn server_config_of(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        asks: bool,
    ) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions");
        let builder = match asks {
            false => builder.with_no_client_auth(),
            true => {
                let roots = Arc::new(roots(std::slice::from_ref(&self.root)));
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
                builder.with_client_cert_verifier(verifier.expect("a verifier"))
            }
        };
        let config = builder.with_single_cert(vec![self.leaf.clone()], self.key.clone_key());
        Arc::new(config.expect("a leaf that fits its key"))
    }

    /// In TLS 1.2, with any bytes in the place of its certificate.
    pub fn server_config_showing(&self, bytes: &[u8]) -> Arc<ServerConfig> {
        let mut config = (*self.server_config_of(&[&rustls::version::TLS12], false)).clone();
        config.cert_resolver = self.shows(bytes.to_vec().into());
        Arc::new(config)
    }

    pub fn client_config(&self) -> Arc<ClientConfig> {
        client_config(std::slice::from_ref(&self.root))
    }

    /// Trusts the site, speaks this version of TLS, and has this certificate for whoever asks.
    pub fn client_config_as(
        &self,
        person: &Self,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        let mut config = config_by(provider(), std::slice::from_ref(&self.root), &[version]);
        config.client_auth_cert_resolver = person.shows(person.leaf.clone());
        Arc::new(config)
    }

    /// A certificate, under its key.
    fn shows(&self, certificate: CertificateDer<'static>) -> Arc<SingleCertAndKey> {
        let key = provider().key_provider.load_private_key(self.key.clone_key());
        let shown = CertifiedKey::new(vec![certificate], key.expect("a key"));
        Arc::new(SingleCertAndKey::from(shown))
    }
}

/// Trusts the roots given and nothing else.
pub fn client_config(trusted: &[CertificateDer<'static>]) -> Arc<ClientConfig> {
    client_config_of(trusted, rustls::ALL_VERSIONS, &[])
}

/// … and speaks these versions of TLS, and these protocols in it.
pub fn client_config_of(
    trusted: &[CertificateDer<'static>],
    versions: &[&'static rustls::SupportedProtocolVersion],
    protocols: &[&str],
) -> Arc<ClientConfig> {
    let mut config = config_by(provider(), trusted, versions);
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// … by the suites of TLS 1.2 that want a signature of RSA.
pub fn rsa_client_config(trusted: &[CertificateDer<'static>]) -> Arc<ClientConfig> {
    let mut provider = (*provider()).clone();
    let is_rsa = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite()).contains("ECDHE_RSA");
    provider.cipher_suites.retain(is_rsa);
    Arc::new(config_by(Arc::new(provider), trusted, &[&rustls::version::TLS12]))
}

fn config_by(
    provider: Arc<rustls::crypto::CryptoProvider>,
    trusted: &[CertificateDer<'static>],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots(trusted))
        .with_no_client_auth()
}

/// A browser whose user goes on whatever the certificate is.
pub fn careless() -> Arc<ClientConfig> {
    let mut config = (*client_config(&[])).clone();
    config.dangerous().set_certificate_verifier(Arc::new(Careless));
    Arc::new(config)
}

#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn roots(trusted: &[CertificateDer<'static>]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for root in trusted {
        roots.add(root.clone()).expect("a root");
    }
    roots
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
