//! A fuzzer for [`Opener`]: operations of a hostile peer that shook hands properly, and raw bytes.

use std::sync::Arc;

use bytes::BytesMut;

use super::{Handshake, Identity, Opener, Record, Sealer, client_config, server_config};
use crate::limits::RECORD_BYTES_MAX;
use crate::time::Time;

/// Plays `data` as operations against an opener. Panics if it delivers what was not sent, goes on after an error,
/// or keeps more than one partial record.
pub fn fuzz_open(data: &[u8]) {
    let (mut sealer, mut opener) = connect();
    let mut input = BytesMut::new();
    let mut now = Time::default();
    let mut sent = Vec::new();
    let mut rest = data;
    while let Some((&operation, tail)) = rest.split_first() {
        let length = usize::from(operation >> 3).min(tail.len());
        let (argument, tail) = tail.split_at(length);
        rest = tail;
        match operation & 7 {
            0 => input.extend_from_slice(argument),
            1 => now = now + std::time::Duration::from_millis(100 * length as u64),
            2 => truncate(&mut input, length),
            3 => flip(&mut input, argument),
            kind => send(kind, argument, &mut sealer, &mut input, &mut sent),
        }
        if operation & 1 == 0 && !receive(&mut opener, now, &mut input, &sent) {
            return;
        }
    }
    receive(&mut opener, now, &mut input, &sent);
}

/// Appends a record of the peer: data, an arbitrary plaintext, or a KeyUpdate.
fn send(kind: u8, argument: &[u8], sealer: &mut Sealer, input: &mut BytesMut, sent: &mut Vec<Vec<u8>>) {
    let mut out = Vec::new();
    let sealed = match (kind, argument) {
        (4 | 5, [_, ..]) => {
            sent.push(argument.to_vec());
            sealer.append(rustls::ContentType::ApplicationData, argument, &mut out)
        }
        (6, [kind, content @ ..]) => {
            if *kind == 23 {
                sent.push(content.to_vec());
            }
            sealer.append((*kind).into(), content, &mut out)
        }
        _ => sealer.key_update(&mut out),
    };
    if sealed.is_ok() {
        input.extend_from_slice(&out);
    }
}

fn truncate(input: &mut BytesMut, length: usize) {
    input.truncate(input.len().saturating_sub(length));
}

fn flip(input: &mut BytesMut, argument: &[u8]) {
    if let ([place, bits, ..], false) = (argument, input.is_empty()) {
        let place = usize::from(*place) % input.len();
        input[place] ^= bits;
    }
}

/// Opens what is there; false once the connection is over.
fn receive(opener: &mut Opener, now: Time, input: &mut BytesMut, sent: &[Vec<u8>]) -> bool {
    loop {
        match opener.open(now, input) {
            Ok(Some(Record::Data(data))) => {
                assert!(!data.is_empty() && data.len() <= RECORD_BYTES_MAX);
                assert!(sent.iter().any(|sent| *sent == data), "never sent");
            }
            Ok(Some(Record::KeyUpdate { .. })) => {}
            Ok(Some(Record::Closed)) => {
                assert!(opener.is_closed());
                assert!(matches!(opener.open(now, input), Ok(None)) && input.is_empty());
                return false;
            }
            Ok(None) => return true,
            Err(_) => {
                assert!(opener.open(now, input).is_err(), "an error is final");
                return false;
            }
        }
    }
}

fn connect() -> (Sealer, Opener) {
    shake_hands().expect("both ends are ours")
}

fn shake_hands() -> Result<(Sealer, Opener), crate::error::Error> {
    let (client, server) = (Identity::generate()?, Identity::generate()?);
    let mut client = Handshake::client(client_config(&client, server.fingerprint())?, "fuzz")?;
    let mut server = Handshake::server(server_config(&server, Arc::new(|_| true))?)?;
    let mut input = BytesMut::new();
    for _ in 0..2 {
        input.extend_from_slice(&client.output().unwrap_or_default());
        server.handle(&mut input)?;
        let mut answer = BytesMut::from(&server.output().unwrap_or_default()[..]);
        client.handle(&mut answer)?;
    }
    let (sealer, _, _) = client.into_records()?;
    let (_, opener, _) = server.into_records()?;
    Ok((sealer, opener))
}
