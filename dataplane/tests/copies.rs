//! Bytes that the record layer copies outside the cipher. Alone in its binary: the counter is the process's.
#![cfg(feature = "count-copies")]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use dataplane::copies::copied_bytes;
use dataplane::time::Time;
use dataplane::tls::{Handshake, Identity, Opener, Record, Sealer, client_config, server_config};

#[test]
fn bulk_is_not_copied_and_small_frames_are_copied_once() {
    let (mut sealer, mut opener) = connect();
    let bulk = vec![Bytes::from(vec![7; 16_384]); 64];
    assert_eq!(copied_by(&mut sealer, &mut opener, &bulk), 0);
    let single = [Bytes::from(vec![7; 30])];
    assert_eq!(copied_by(&mut sealer, &mut opener, &single), 0);
    let small = vec![Bytes::from(vec![7; 30]); 100];
    assert_eq!(copied_by(&mut sealer, &mut opener, &small), 3_000);
}

fn copied_by(sealer: &mut Sealer, opener: &mut Opener, frames: &[Bytes]) -> u64 {
    let before = copied_bytes();
    let mut out = Vec::new();
    sealer.seal(frames, &mut out).unwrap();
    let mut input = BytesMut::from(&out[..]);
    let mut received = 0;
    while let Some(record) = opener.open(Time::default(), &mut input).unwrap() {
        match record {
            Record::Data(data) => received += data.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, frames.iter().map(Bytes::len).sum::<usize>());
    copied_bytes() - before
}

fn connect() -> (Sealer, Opener) {
    let (client, server) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let config = client_config(&client, server.fingerprint()).unwrap();
    let mut client = Handshake::client(config, "copies").unwrap();
    let config = server_config(&server, Arc::new(|_| true)).unwrap();
    let mut server = Handshake::server(config).unwrap();
    for _ in 0..2 {
        let mut bytes = BytesMut::from(&client.output().unwrap_or_default()[..]);
        server.handle(&mut bytes).unwrap();
        let mut bytes = BytesMut::from(&server.output().unwrap_or_default()[..]);
        client.handle(&mut bytes).unwrap();
    }
    (client.into_records().unwrap().0, server.into_records().unwrap().1)
}
