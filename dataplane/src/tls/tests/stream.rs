//! Data in both directions, however it is cut.

use super::*;
use crate::limits::{PACKED_FRAME_BYTES_MAX, RECORD_BYTES_MAX};
use crate::tls::record::RECORD_OVERHEAD_BYTES;

fn frames() -> Vec<Bytes> {
    [
        1, 12, 20, 4_096, 4_097, 300, 16_384, 16_384, 7, 9_000, 4_000, 4_000, 4_000, 4_000, 4_000,
    ]
    .iter()
    .enumerate()
    .map(|(i, &length)| pattern(length, i as u8))
    .collect()
}

#[test]
fn a_handshake_cut_at_every_byte_completes() {
    let (mut client, mut server) = own_pair_by(1);
    let wire = client.seal(&frames());
    assert_eq!(server.open_data(second(0), &wire), frames().concat());
}

#[test]
fn frames_cross_both_ways_to_ourselves_and_to_rustls() {
    let (mut client, mut server) = own_pair();
    let wire = client.seal(&frames());
    assert_eq!(server.open_data(second(0), &wire), frames().concat());
    let wire = server.seal(&frames());
    assert_eq!(client.open_data(second(0), &wire), frames().concat());
    for role in ROLES {
        let (mut own, mut oracle) = with_oracle(role);
        oracle.read(&own.seal(&frames())).unwrap();
        assert_eq!(oracle.received, frames().concat());
        let wire = oracle.write(&frames().concat());
        assert_eq!(own.open_data(second(0), &wire), frames().concat());
    }
}

#[test]
fn records_cut_at_every_byte_arrive() {
    let sent = [pattern(5, 1), pattern(700, 2), pattern(4_097, 3)];
    let (mut client, mut server) = own_pair();
    let mut wire = client.seal(&sent[..2]);
    wire.extend(client.seal(&sent[2..]));
    for cut in 0..wire.len() {
        let (first, second_part) = wire.split_at(cut);
        let mut data = server.open_data(second(0), first);
        data.extend(server.open_data(second(0), second_part));
        assert_eq!(data, sent.concat(), "cut at {cut}");
        // The next round is sealed afresh: each record opens once.
        wire = client.seal(&sent[..2]);
        wire.extend(client.seal(&sent[2..]));
    }
}

#[test]
fn records_given_byte_by_byte_arrive() {
    let (mut client, mut server) = own_pair();
    let wire = client.seal(&frames());
    let mut data = Vec::new();
    for byte in &wire {
        data.extend(server.open_data(second(0), &[*byte]));
    }
    assert_eq!(data, frames().concat());
}

/// The client may send right behind its Finished; the server must not lose it to rustls.
#[test]
fn data_behind_the_clients_finished_is_kept() {
    let (client_config, server_config) = configs();
    let mut client = Handshake::client(client_config, NAME).unwrap();
    let mut server = Handshake::server(server_config).unwrap();
    let (mut client_input, mut server_input) = (BytesMut::new(), BytesMut::new());
    let hello = client.output().unwrap();
    give(&mut server, &mut server_input, &hello, usize::MAX).unwrap();
    let flight = server.output().unwrap();
    give(&mut client, &mut client_input, &flight, usize::MAX).unwrap();
    let mut flight = client.output().unwrap();
    let mut client = Half::new(client, client_input);
    let hello = pattern(120, 9);
    flight.extend(client.seal(std::slice::from_ref(&hello)));
    give(&mut server, &mut server_input, &flight, usize::MAX).unwrap();
    assert_eq!(server_input.len(), hello.len() + RECORD_OVERHEAD_BYTES);
    let mut server = Half::new(server, server_input);
    assert_eq!(server.open_data(second(0), &[]), hello);
}

#[test]
fn data_behind_the_finished_of_a_rustls_client_is_kept() {
    let (client_config, server_config) = configs();
    let name = NAME.try_into().unwrap();
    let mut oracle = Oracle::new(rustls::ClientConnection::new(client_config, name).unwrap());
    let mut own = Handshake::server(server_config).unwrap();
    let mut input = BytesMut::from(&oracle.output()[..]);
    own.handle(&mut input).unwrap();
    oracle.read(&own.output().unwrap()).unwrap();
    let sent = pattern(20_000, 3);
    input.extend_from_slice(&oracle.write(&sent));
    assert_eq!(own.handle(&mut input).unwrap(), Progress::Done);
    assert_eq!(Half::new(own, input).open_data(second(0), &[]), sent);
}

/// A server may send before it has read the client's Finished (RFC 8446 section 2, figure 1).
#[test]
fn data_in_the_servers_first_flight_is_kept() {
    let (client, server) = identities();
    let open = server_that_asks_for_no_key(&server);
    let mut own = Handshake::client(client_config(&client, server.fingerprint()).unwrap(), NAME).unwrap();
    let mut oracle = Oracle::new(rustls::ServerConnection::new(open).unwrap());
    oracle.read(&own.output().unwrap()).unwrap();
    let sent = pattern(3_000, 4);
    let mut input = BytesMut::from(&oracle.write(&sent)[..]);
    assert_eq!(own.handle(&mut input).unwrap(), Progress::Done);
    oracle.read(&own.output().unwrap()).unwrap();
    assert_eq!(Half::new(own, input).open_data(second(0), &[]), sent);
}

fn server_that_asks_for_no_key(id: &Identity) -> Arc<ServerConfig> {
    let config = server_config(id, Arc::new(|_| true)).unwrap();
    let mut open = ServerConfig::builder_with_provider(config.crypto_provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(config.cert_resolver.clone());
    open.alpn_protocols = config.alpn_protocols.clone();
    open.send_half_rtt_data = true;
    open.send_tls13_tickets = 0;
    Arc::new(open)
}

#[test]
fn small_frames_share_a_record_and_big_ones_have_their_own() {
    let (mut client, mut server) = own_pair();
    let data = |lengths: &[usize], client: &mut Half, server: &mut Half| -> Vec<usize> {
        let frames: Vec<_> = lengths.iter().map(|&n| pattern(n, 0)).collect();
        let wire = client.seal(&frames);
        let records = server.open(second(0), &wire).unwrap();
        let length = |record| match record {
            Record::Data(data) => data.len(),
            other => panic!("{other:?}"),
        };
        records.into_iter().map(length).collect()
    };
    let mut lengths = |frames: &[usize]| data(frames, &mut client, &mut server);
    assert_eq!(lengths(&[12, 20, 30]), [62]);
    assert_eq!(lengths(&[20, RECORD_BYTES_MAX, 20, 20]), [20, RECORD_BYTES_MAX, 40]);
    let (small, big) = (PACKED_FRAME_BYTES_MAX, PACKED_FRAME_BYTES_MAX + 1);
    assert_eq!(lengths(&[small, big, small]), [small, big, small]);
    assert_eq!(lengths(&[small; 5]), [4 * small, small]);
    assert_eq!(lengths(&[small, small, small, small - 1, 2]), [4 * small - 1, 2]);
    assert_eq!(lengths(&[small, small, small, small - 1, 1]), [RECORD_BYTES_MAX]);
}

#[test]
fn a_frame_larger_than_a_record_is_refused() {
    let (mut client, _) = own_pair();
    let result = client.sealer.seal(&[pattern(RECORD_BYTES_MAX + 1, 0)], &mut Vec::new());
    assert!(matches!(result, Err(Error::Limit(_))));
}

/// Received data lies where the input lay: nothing was moved.
#[test]
fn data_is_a_slice_of_the_input() {
    let (mut client, mut server) = own_pair();
    server.input.extend_from_slice(&client.seal(&[pattern(9_000, 0)]));
    let start = server.input.as_ptr() as usize;
    let Ok(Some(Record::Data(data))) = server.opener.open(second(0), &mut server.input) else {
        panic!("no data");
    };
    assert_eq!(data.as_ptr() as usize, start + 5);
}

#[test]
fn close_notify_ends_the_stream_and_its_absence_is_seen() {
    for role in ROLES {
        let (mut own, mut oracle) = with_oracle(role);
        let mut out = own.seal(&[pattern(10, 0)]);
        own.sealer.close_notify(&mut out).unwrap();
        oracle.read(&out).unwrap();
        assert!(oracle.connection.process_new_packets().unwrap().peer_has_closed());
        assert!(matches!(
            own.sealer.seal(&[pattern(1, 0)], &mut out),
            Err(Error::Closed(_))
        ));

        let wire = oracle.write(b"last");
        assert_eq!(own.open_data(second(0), &wire), b"last");
        assert!(!own.opener.is_closed(), "the peer has not said so yet");
        oracle.connection.send_close_notify();
        let mut wire = oracle.output();
        wire.extend(b"behind the end");
        assert_eq!(own.open(second(0), &wire).unwrap(), [Record::Closed]);
        assert!(own.opener.is_closed());
        assert_eq!(own.open(second(0), b"more").unwrap(), []);
    }
}

#[test]
fn a_truncated_record_is_never_delivered() {
    let (mut client, mut server) = own_pair();
    let wire = client.seal(&[pattern(5_000, 0)]);
    let records = server.open(second(0), &wire[..wire.len() - 1]).unwrap();
    assert_eq!(records, []);
    assert!(!server.opener.is_closed());
}

#[test]
fn damaged_replayed_and_reordered_records_are_refused() {
    type Harm = fn(Vec<u8>, Vec<u8>) -> Vec<u8>;
    let damages: [(&str, Harm); 6] = [
        ("first byte of the ciphertext", |mut a, b| {
            a[5] ^= 1;
            [a, b].concat()
        }),
        ("last byte of the tag", |mut a, b| {
            *a.last_mut().unwrap() ^= 0x80;
            [a, b].concat()
        }),
        ("version in the header", |mut a, b| {
            a[2] ^= 1;
            [a, b].concat()
        }),
        ("replayed", |a, _| [a.clone(), a].concat()),
        ("reordered", |a, b| [b, a].concat()),
        ("dropped", |_, b| b),
    ];
    for (name, harm) in damages {
        let (mut client, mut server) = own_pair();
        let first = client.seal(&[pattern(60, 1)]);
        let second_record = client.seal(&[pattern(60, 2)]);
        let wire = harm(first, second_record);
        assert!(server.open(second(0), &wire).is_err(), "{name}");
        assert_eq!(server.opener.alert(), Some(AlertDescription::BadRecordMac), "{name}");
        assert!(matches!(server.open(second(0), &[]), Err(Error::Closed(_))), "{name}");
    }
}
