//! Who is let in: the pinned key, proved by the handshake, and nobody else.

use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;

use super::*;

/// Runs a handshake to its end; returns both results and the client's half if it got one.
fn meet(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Result<Half, Error>, Result<Half, Error>) {
    let mut client = Handshake::client(client, NAME).unwrap();
    let mut server = Handshake::server(server).unwrap();
    let (mut to_client, mut to_server) = (BytesMut::new(), BytesMut::new());
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..4 {
        if server_error.is_none() {
            to_server.extend_from_slice(&client.output().unwrap_or_default());
            server_error = server.handle(&mut to_server).err();
        }
        if client_error.is_none() {
            to_client.extend_from_slice(&server.output().unwrap_or_default());
            client_error = client.handle(&mut to_client).err();
        }
    }
    (
        finish(client, to_client, client_error),
        finish(server, to_server, server_error),
    )
}

fn finish(handshake: Handshake, input: BytesMut, error: Option<Error>) -> Result<Half, Error> {
    if let Some(error) = error {
        return Err(error);
    }
    let (sealer, opener, _) = handshake.into_records()?;
    Ok(Half { sealer, opener, input })
}

fn text<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "let in".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn each_end_learns_the_others_key() {
    let (client, server) = identities();
    let pin = client.fingerprint();
    let mut dialling = Handshake::client(client_config(&client, server.fingerprint()).unwrap(), NAME).unwrap();
    let pins = Arc::new(move |shown: &Fingerprint| *shown == pin);
    let mut accepting = Handshake::server(server_config(&server, pins).unwrap()).unwrap();
    let mut input = BytesMut::from(&dialling.output().unwrap()[..]);
    accepting.handle(&mut input).unwrap();
    let mut input = BytesMut::from(&accepting.output().unwrap()[..]);
    dialling.handle(&mut input).unwrap();
    let mut input = BytesMut::from(&dialling.output().unwrap()[..]);
    accepting.handle(&mut input).unwrap();
    let (_, _, shown) = dialling.into_records().unwrap();
    assert_eq!(shown, server.fingerprint());
    let (_, _, shown) = accepting.into_records().unwrap();
    assert_eq!(shown, client.fingerprint());
    assert_eq!(shown.member(), client.member());
    assert_eq!(client.member(), client.fingerprint().as_bytes()[..16]);
}

#[test]
fn a_server_with_another_key_is_refused_and_told() {
    let (client, server) = identities();
    let wrong = Identity::generate().unwrap().fingerprint();
    let (dialled, accepted) = meet(
        client_config(&client, wrong).unwrap(),
        server_config(&server, Arc::new(|_| true)).unwrap(),
    );
    assert_eq!(text(dialled), format!("TLS: {WRONG_KEY}"));
    assert_eq!(text(accepted), format!("TLS: {KEY_REFUSED}"));
}

/// In TLS 1.3 the client is done before the server has seen its key: the refusal comes as an alert.
#[test]
fn a_client_with_another_key_is_refused_and_told() {
    let (client, server) = identities();
    let config = client_config(&client, server.fingerprint()).unwrap();
    let refusing = server_config(&server, Arc::new(|_| false)).unwrap();
    let (dialled, accepted) = meet(config, refusing);
    assert_eq!(text(accepted), format!("TLS: {WRONG_KEY}"));
    let mut dialled = dialled.unwrap();
    let error = dialled.open(second(0), &[]).unwrap_err();
    assert_eq!(error.to_string(), format!("TLS: {KEY_REFUSED}"));
    assert_eq!(dialled.opener.alert(), None);
}

/// A certificate is public: showing the pinned one without its key proves nothing.
#[test]
fn a_pinned_certificate_without_its_key_is_refused() {
    let (client, server) = identities();
    let thief = Identity::generate().unwrap();
    let stolen = |owner: &Identity| {
        let owner = own_key(owner);
        Arc::new(rustls::sign::SingleCertAndKey::from(CertifiedKey::new(
            owner.cert.clone(),
            own_key(&thief).key.clone(),
        )))
    };
    let mut config = client_config(&thief, server.fingerprint()).unwrap();
    Arc::make_mut(&mut config).client_auth_cert_resolver = stolen(&client);
    let pin = client.fingerprint();
    let honest = server_config(&server, Arc::new(move |shown| *shown == pin)).unwrap();
    let (_, accepted) = meet(config, honest);
    assert!(text(accepted).contains("BadSignature"));

    let mut posing = server_config(&thief, Arc::new(|_| true)).unwrap();
    Arc::make_mut(&mut posing).cert_resolver = stolen(&server);
    let config = client_config(&client, server.fingerprint()).unwrap();
    let (dialled, _) = meet(config, posing);
    assert!(text(dialled).contains("BadSignature"));
}

fn own_key(id: &Identity) -> Arc<CertifiedKey> {
    let config = client_config(id, id.fingerprint()).unwrap();
    let resolver: &dyn ResolvesClientCert = &*config.client_auth_cert_resolver;
    resolver.resolve(&[], &[]).unwrap()
}

#[derive(Debug)]
struct NoKey;

impl ResolvesClientCert for NoKey {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_client_without_a_key_is_refused() {
    let (client, server) = identities();
    let mut config = client_config(&client, server.fingerprint()).unwrap();
    Arc::make_mut(&mut config).client_auth_cert_resolver = Arc::new(NoKey);
    let (_, accepted) = meet(config, server_config(&server, Arc::new(|_| true)).unwrap());
    assert_eq!(text(accepted), "TLS: peer sent no certificates");
}

#[test]
fn a_peer_with_another_protocol_is_refused() {
    for protocols in [vec![], vec![b"h2".to_vec()]] {
        let (mut client, server) = configs();
        Arc::make_mut(&mut client).alpn_protocols = protocols.clone();
        let (_, accepted) = meet(client, server);
        assert!(accepted.is_err(), "{protocols:?}");
        let (client, mut server) = configs();
        Arc::make_mut(&mut server).alpn_protocols = protocols.clone();
        let (dialled, _) = meet(client, server);
        assert!(dialled.is_err(), "{protocols:?}");
    }
}

#[test]
fn a_peer_with_another_suite_is_refused() {
    use rustls::crypto::aws_lc_rs as provider;
    let (client, server) = configs();
    let mut other = (**client.crypto_provider()).clone();
    other.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    let mut weak = ClientConfig::builder_with_provider(Arc::new(other))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    weak.alpn_protocols = vec![ALPN.to_vec()];
    let (dialled, accepted) = meet(Arc::new(weak), server);
    assert!(dialled.is_err() && accepted.is_err());
}

#[test]
fn handshakes_that_are_none_end_at_once() {
    for bytes in [
        &b"HTTP/1.1 502 Bad Gateway\r\n\r\n"[..],
        &[22, 2, 0, 0, 5],
        &[22, 3, 1, 255, 0],
    ] {
        let mut server = Handshake::server(configs().1).unwrap();
        let mut input = BytesMut::from(bytes);
        assert!(matches!(server.handle(&mut input), Err(Error::Tls(_))));
        assert!(matches!(server.handle(&mut input), Err(Error::Closed(_))));
    }
}

/// What the front of the cloud answers to a name that it does not know: a fatal `unrecognized_name` in the clear.
#[test]
fn an_unknown_tunnel_is_named_as_such() {
    let mut client = Handshake::client(configs().0, NAME).unwrap();
    let mut input = BytesMut::from(&[21, 3, 3, 0, 2, 2, 112][..]);
    let error = client.handle(&mut input).unwrap_err();
    assert_eq!(error.to_string(), "TLS: the cloud knows no tunnel of this name");
}

/// A message that never ends: the header of a ClientHello of 16 MiB, then bytes for ever.
#[test]
fn an_endless_handshake_message_is_refused() {
    let mut server = Handshake::server(configs().1).unwrap();
    let mut record = vec![22, 3, 3, 0x40, 0x00, 1, 0xff, 0xff, 0xff];
    record.resize(5 + 16_384, 0);
    let mut input = BytesMut::new();
    for _ in 0..5 {
        input.extend_from_slice(&record);
        if server.handle(&mut input).is_err() {
            return;
        }
        record[5..9].fill(0);
    }
    panic!("80 KiB were taken");
}

#[test]
fn records_need_a_finished_handshake() {
    let client = Handshake::client(configs().0, NAME).unwrap();
    assert!(client.into_records().is_err());
    assert!(Handshake::client(configs().0, "no name").is_err());
}

#[test]
fn a_fingerprint_reads_as_it_is_written() {
    let own = Identity::generate().unwrap().fingerprint();
    let text = own.to_string();
    assert_eq!(text.len(), 64);
    assert_eq!(text.parse::<Fingerprint>().unwrap(), own);
    assert_eq!(Fingerprint::from_bytes(*own.as_bytes()), own);
    let upper = "A".repeat(64);
    for bad in ["", "abc", &text[1..], &upper, &format!("{text}0"), &"é".repeat(32)] {
        assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
    }
}

#[test]
fn keys_are_fresh_and_never_printed() {
    let (one, other) = identities();
    assert_ne!(one.fingerprint(), other.fingerprint());
    assert_eq!(format!("{one:?}"), "Identity(***)");
}
