//! A company's CA for the sites of a test, and a leaf under it.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// A fresh CA and one leaf for the names given (DNS names or addresses).
pub struct Site {
    /// What a client must trust.
    pub root_pem: String,
    root: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Site {
    pub fn new(names: &[&str]) -> Self {
        let fresh = || KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "A company's root for its sites under test");
        let root_key = fresh();
        let root = params.self_signed(&root_key).expect("a root");
        let issuer = Issuer::new(params, root_key);
        let leaf_key = fresh();
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        let leaf = CertificateParams::new(names)
            .expect("names")
            .signed_by(&leaf_key, &issuer)
            .expect("a leaf");
        Self {
            root_pem: root.pem(),
            root: root.der().clone(),
            leaf: leaf.der().clone(),
            key: PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into()),
        }
    }

    pub fn server_config(&self) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.leaf.clone()], self.key.clone_key());
        Arc::new(config.expect("a leaf that fits its key"))
    }

    pub fn client_config(&self) -> Arc<ClientConfig> {
        client_config(std::slice::from_ref(&self.root))
    }
}

/// Trusts the roots given and nothing else.
pub fn client_config(trusted: &[CertificateDer<'static>]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for root in trusted {
        roots.add(root.clone()).expect("a root");
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
