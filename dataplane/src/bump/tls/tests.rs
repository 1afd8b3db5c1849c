//! Against rustls' own buffered connections.

use std::io::{IoSlice, Read, Write};
use std::sync::Arc;

use proptest::prelude::*;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{PrivateKeyDer, ServerName};

use super::*;

struct World {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl World {
    fn of(version: &'static rustls::SupportedProtocolVersion, trusts: bool) -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        if trusts {
            roots.add(cert.der().clone()).unwrap();
        }
        let provider = Arc::new(default_provider());
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        Self {
            client: Arc::new(client),
            server: Arc::new(server),
        }
    }

    /// Ours as the client or as the server, and rustls' own on the other side.
    fn pair(&self, ours_dials: bool) -> (Tls, Connection) {
        let name = ServerName::try_from("a.test").unwrap();
        match ours_dials {
            true => (
                Tls::client(self.client.clone(), name).unwrap(),
                ServerConnection::new(self.server.clone()).unwrap().into(),
            ),
            false => (
                Tls::server(self.server.clone()).unwrap(),
                ClientConnection::new(self.client.clone(), name).unwrap().into(),
            ),
        }
    }
}

/// Gives the peer what is unsent, and returns the content in it.
fn deliver(ours: &mut Tls, peer: &mut Connection, piece: usize) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    let sent = ours.unsent().to_vec();
    ours.sent(sent.len());
    for part in sent.chunks(piece) {
        let mut part = part;
        while !part.is_empty() {
            peer.read_tls(&mut part).unwrap();
            let state = peer.process_new_packets()?;
            let start = content.len();
            content.resize(start + state.plaintext_bytes_to_read(), 0);
            peer.reader().read_exact(&mut content[start..]).unwrap();
        }
    }
    Ok(content)
}

/// Moves bytes in pieces until the handshake is over, or one has failed.
fn exchange(ours: &mut Tls, peer: &mut Connection, piece: usize) -> Result<(), Error> {
    loop {
        let quiet = ours.unsent().is_empty();
        deliver(ours, peer, piece)?;
        let mut back = Vec::new();
        while peer.wants_write() {
            peer.write_tls(&mut back).unwrap();
        }
        for part in back.chunks(piece) {
            ours.input().extend_from_slice(part);
            ours.shake()?;
        }
        if quiet && back.is_empty() {
            return Ok(());
        }
    }
}

fn open_all(tls: &mut Tls, room: usize) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut left = room;
        tls.open(|content| {
            let taken = left.min(content.len());
            all.extend_from_slice(&content[..taken]);
            left -= taken;
            taken
        })
        .unwrap();
        if !tls.is_ready() || tls.has_ended() {
            return all;
        }
    }
}

#[test]
fn content_is_whole_in_any_pieces_of_it_and_of_records() {
    let content: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    for version in [&TLS12, &TLS13] {
        let world = World::of(version, true);
        for ours_dials in [true, false] {
            for piece in [1, 100, 5_000, 100_000] {
                let (mut ours, mut peer) = world.pair(ours_dials);
                if ours_dials {
                    assert!(!ours.unsent().is_empty(), "a ClientHello");
                }
                exchange(&mut ours, &mut peer, piece).unwrap();
                assert!(ours.shake().unwrap() && !peer.is_handshaking());

                let mut arrived = Vec::new();
                let mut rest = &content[..];
                while !rest.is_empty() {
                    let (first, second) = rest.split_at(rest.len().min(1_000));
                    let taken = ours.seal(&[IoSlice::new(first), IoSlice::new(second)]).unwrap();
                    assert!(taken > 0 && taken <= TLS_WRITE_BYTES_MAX);
                    rest = &rest[taken..];
                    arrived.extend(deliver(&mut ours, &mut peer, piece).unwrap());
                }
                assert_eq!(arrived, content);

                let mut opened = Vec::new();
                for part in content.chunks(20_000) {
                    peer.writer().write_all(part).unwrap();
                    let mut back = Vec::new();
                    while peer.wants_write() {
                        peer.write_tls(&mut back).unwrap();
                    }
                    for part in back.chunks(piece) {
                        ours.input().extend_from_slice(part);
                        opened.extend(open_all(&mut ours, 7_000));
                    }
                }
                assert_eq!(opened, content);
                assert!(
                    ours.sealed.is_empty() && ours.sealed.capacity() == 0,
                    "an idle one holds nothing"
                );

                peer.send_close_notify();
                let mut back = Vec::new();
                peer.write_tls(&mut back).unwrap();
                ours.input().extend_from_slice(&back);
                assert!(open_all(&mut ours, 1).is_empty() && ours.has_ended());
                // The other direction goes on.
                assert_eq!(ours.seal(&[IoSlice::new(b"more")]).unwrap(), 4);
                ours.close();
                ours.close();
                assert_eq!(deliver(&mut ours, &mut peer, piece).unwrap(), b"more");
                assert_eq!(peer.reader().read(&mut [0]).unwrap(), 0, "it was told of the end");
            }
        }
    }
}

#[test]
fn content_right_behind_the_handshake_is_kept() {
    for version in [&TLS12, &TLS13] {
        let world = World::of(version, true);
        let (mut ours, mut peer) = world.pair(false);
        peer.writer().write_all(b"first").unwrap();
        let mut back = Vec::new();
        while !ours.shake().unwrap() {
            while peer.wants_write() {
                peer.write_tls(&mut back).unwrap();
            }
            ours.input().extend_from_slice(&std::mem::take(&mut back));
            ours.shake().unwrap();
            let sent = ours.unsent().to_vec();
            ours.sent(sent.len());
            let mut sent = &sent[..];
            while !sent.is_empty() {
                peer.read_tls(&mut sent).unwrap();
                peer.process_new_packets().unwrap();
            }
        }
        while peer.wants_write() {
            peer.write_tls(&mut back).unwrap();
        }
        ours.input().extend_from_slice(&back);
        assert_eq!(open_all(&mut ours, 2), b"first");
    }
}

/// After the handshake a message may be spread over records, and ours goes out between them.
#[test]
fn half_a_message_of_the_peer_holds_nothing_up() {
    let mut world = World::of(&TLS13, true);
    Arc::get_mut(&mut world.server).unwrap().max_fragment_size = Some(64);
    let (mut ours, mut peer) = world.pair(true);
    let mut back = Vec::new();
    while !ours.shake().unwrap() {
        deliver(&mut ours, &mut peer, 10_000).unwrap();
        while peer.wants_write() {
            peer.write_tls(&mut back).unwrap();
        }
        ours.input().extend_from_slice(&std::mem::take(&mut back));
    }
    deliver(&mut ours, &mut peer, 10_000).unwrap();
    peer.writer().write_all(b"answer").unwrap();
    while peer.wants_write() {
        peer.write_tls(&mut back).unwrap();
    }
    // Tickets, each in several records.
    let first = 5 + usize::from(u16::from_be_bytes([back[3], back[4]]));
    ours.input().extend_from_slice(&back[..first]);
    assert!(open_all(&mut ours, 100).is_empty());
    assert_eq!(ours.seal(&[IoSlice::new(b"request")]).unwrap(), 7);
    assert_eq!(deliver(&mut ours, &mut peer, 10_000).unwrap(), b"request");
    // What is whole by the next write is not lost by it.
    ours.input().extend_from_slice(&back[first..]);
    assert_eq!(ours.seal(&[IoSlice::new(b"more")]).unwrap(), 4);
    ours.close();
    assert_eq!(deliver(&mut ours, &mut peer, 10_000).unwrap(), b"more");
    assert_eq!(open_all(&mut ours, 2), b"answer");
}

/// Whoever waits for the peer's next byte would wait in vain.
#[test]
fn an_error_behind_content_is_ready_to_be_found() {
    for version in [&TLS12, &TLS13] {
        let (mut ours, mut peer) = World::of(version, true).pair(true);
        exchange(&mut ours, &mut peer, 10_000).unwrap();
        peer.writer().write_all(b"content").unwrap();
        let mut back = Vec::new();
        while peer.wants_write() {
            peer.write_tls(&mut back).unwrap();
        }
        ours.input().extend_from_slice(&back);
        ours.input().extend_from_slice(b"this is no record");
        let mut came = Vec::new();
        let opened = ours.open(|content| {
            came.extend_from_slice(content);
            content.len()
        });
        assert_eq!(came, b"content");
        opened.unwrap_err();
        assert!(ours.is_ready());
        ours.open(|_| panic!("no more content")).unwrap_err();
    }
}

#[test]
fn the_peer_is_told_why() {
    for version in [&TLS12, &TLS13] {
        let world = World::of(version, false);
        let (mut ours, mut peer) = world.pair(true);
        let error = exchange(&mut ours, &mut peer, 10_000).unwrap_err();
        assert!(matches!(error, Error::InvalidCertificate(_)), "{error}");
        let told = deliver(&mut ours, &mut peer, 10_000).unwrap_err();
        assert_eq!(told, Error::AlertReceived(rustls::AlertDescription::UnknownCA));
        let (mut ours, mut peer) = world.pair(false);
        exchange(&mut ours, &mut peer, 10_000).unwrap_err();
        let mut back = Vec::new();
        while peer.wants_write() {
            peer.write_tls(&mut back).unwrap();
        }
        ours.input().extend_from_slice(&back);
        let error = ours.shake().unwrap_err();
        assert_eq!(error, Error::AlertReceived(rustls::AlertDescription::UnknownCA));
    }
}

#[test]
fn a_handshake_has_a_bound() {
    let world = World::of(&TLS13, true);
    let (mut ours, _) = world.pair(false);
    // A ClientHello that never ends, in records as large as may be.
    let mut last = Ok(false);
    for n in 0..8 {
        let mut record = vec![22, 3, 1, 0x3f, 0xfc];
        record.extend(if n == 0 { vec![1, 1, 0, 0] } else { vec![0; 4] });
        record.resize(5 + 0x3ffc, 0);
        ours.input().extend_from_slice(&record);
        last = ours.shake();
        if last.is_err() {
            break;
        }
    }
    last.unwrap_err();
}

proptest! {
    #[test]
    fn bytes_of_the_peer_never_panic(flips in proptest::collection::vec((0_usize..6_000, 1_u8..), 1..4), version in 0..2, dials: bool) {
        let world = World::of([&TLS12, &TLS13][version as usize], true);
        let (mut ours, mut peer) = world.pair(dials);
        let mut at = 0;
        for _ in 0..6 {
            let sent = ours.unsent().to_vec();
            ours.sent(sent.len());
            let mut sent = &sent[..];
            while !sent.is_empty() {
                peer.read_tls(&mut sent).unwrap();
                if peer.process_new_packets().is_err() {
                    break;
                }
            }
            if !peer.is_handshaking() {
                let _ = peer.writer().write_all(&[7; 3_000]);
            }
            let mut back = Vec::new();
            while peer.wants_write() {
                peer.write_tls(&mut back).unwrap();
            }
            for byte in &mut back {
                for (place, flip) in &flips {
                    if *place == at {
                        *byte ^= flip;
                    }
                }
                at += 1;
            }
            ours.input().extend_from_slice(&back);
            let went = match ours.done {
                false => ours.shake().map(drop),
                true => ours.open(|content| content.len()),
            };
            if went.is_err() {
                break;
            }
        }
    }
}
