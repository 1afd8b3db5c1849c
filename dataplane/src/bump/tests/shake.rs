//! Handshakes in memory.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, Error, HandshakeKind, RootCertStore, ServerConfig,
    ServerConnection, SupportedProtocolVersion,
};
use rustls_pki_types::ServerName;

use super::pki::{Clock, HOST, NOW, Shown, at, key_der};
use crate::bump::judge::Checks;
use crate::bump::{Judge, Seen, Trust, client_config, see};
use crate::rules::Domains;

pub const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// Both ends to the end of the handshake, and what comes right after it; or the client's error, else the server's.
pub fn shake(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), Error> {
    for _ in 0..20 {
        carry(client, server)?;
        // The client's alert says why the server's handshake failed.
        let failed = carry(server, client);
        failed?;
        if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() && !server.wants_write() {
            return Ok(());
        }
    }
    panic!("the handshake does not end");
}

fn carry<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> Result<(), Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut bytes = &bytes[..];
    while !bytes.is_empty() {
        to.read_tls(&mut bytes).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

pub fn name() -> ServerName<'static> {
    ServerName::try_from(HOST).unwrap()
}

pub fn certified(shown: &Shown) -> CertifiedKey {
    let signing = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key_der(&shown.key)).unwrap();
    CertifiedKey::new(shown.chain.clone(), signing)
}

/// A site of one TLS version, which gives tickets.
pub fn site_config(shown: &Shown, version: &'static SupportedProtocolVersion) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified(shown))));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// `sc` with such a site.
pub fn visit(
    judge: &Arc<Judge>,
    site: &Arc<ServerConfig>,
    port: u16,
    now: i64,
) -> Result<(Seen, HandshakeKind), Error> {
    let mut client = ClientConnection::new(client_config(judge, HOST, port), name()).unwrap();
    let mut server = ServerConnection::new(site.clone()).unwrap();
    shake(&mut client, &mut server)?;
    let kind = client.handshake_kind().unwrap();
    Ok((see(judge, &client, &name(), HOST, at(now)), kind))
}

/// A browser that trusts `roots`, and checks all that webpki checks.
pub fn browser(roots: RootCertStore, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let clock = Clock::new();
    clock.set(NOW);
    let mut config = ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_webpki_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A browser that is content with everything that can be read, and resumes sessions.
pub fn lenient(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let trust = Trust {
        roots: Arc::new(RootCertStore::empty()),
        insecure: Domains::parse(&["all".to_owned()], true).unwrap(),
    };
    let provider = Arc::new(default_provider());
    let checks = Checks::new(trust, provider.signature_verification_algorithms);
    let config = ClientConfig::builder_with_details(provider, Clock::new())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(checks))
        .with_no_client_auth();
    Arc::new(config)
}

/// A browser that asks for `host`.
pub fn open(browser: &Arc<ClientConfig>, server: &Arc<ServerConfig>, host: &str) -> Result<ClientConnection, Error> {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = ClientConnection::new(browser.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    shake(&mut client, &mut server)?;
    Ok(client)
}
