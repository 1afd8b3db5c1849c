//! The record layer against itself, against rustls' buffered API and against OpenSSL.

mod cases;
mod fuzz;
mod keys;
mod openssl;
mod pins;
mod stream;

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustls::{ClientConfig, Connection, ServerConfig};

use super::*;
use crate::time::Time;

pub(super) const NAME: &str = "0.b1946ac92492d234.tunnel.culvert";

/// Which end is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

const ROLES: [Role; 2] = [Role::Client, Role::Server];

/// Virtual time: `n` seconds after some origin.
fn second(n: u64) -> Time {
    Time::from_micros(1_000_000 * (n + 1))
}

/// Bytes that differ from place to place.
fn pattern(length: usize, seed: u8) -> Bytes {
    (0..length)
        .map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed)
        .collect()
}

/// Configurations of two ends that know each other.
fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let (client, server) = identities();
    let pin = client.fingerprint();
    (
        client_config(&client, server.fingerprint()).unwrap(),
        server_config(&server, Arc::new(move |shown| *shown == pin)).unwrap(),
    )
}

fn identities() -> (Identity, Identity) {
    (Identity::generate().unwrap(), Identity::generate().unwrap())
}

/// One end after the handshake, with the bytes it has not opened yet.
struct Half {
    sealer: Sealer,
    opener: Opener,
    input: BytesMut,
}

impl Half {
    fn new(handshake: Handshake, input: BytesMut) -> Self {
        let (sealer, opener, _) = handshake.into_records().unwrap();
        Self { sealer, opener, input }
    }

    fn seal(&mut self, frames: &[Bytes]) -> Vec<u8> {
        let mut out = Vec::new();
        self.sealer.seal(frames, &mut out).unwrap();
        out
    }

    /// One record whose plaintext, with type and padding, is `inner`.
    fn seal_raw(&mut self, inner: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let (last, content) = inner.split_last().unwrap();
        self.sealer.append((*last).into(), content, &mut out).unwrap();
        out
    }

    /// Every record that `bytes` completes.
    fn open(&mut self, now: Time, bytes: &[u8]) -> Result<Vec<Record>, Error> {
        self.input.extend_from_slice(bytes);
        let mut records = Vec::new();
        while let Some(record) = self.opener.open(now, &mut self.input)? {
            records.push(record);
        }
        Ok(records)
    }

    /// The data that `bytes` completes; a KeyUpdate is passed over.
    fn open_data(&mut self, now: Time, bytes: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        for record in self.open(now, bytes).unwrap() {
            match record {
                Record::Data(bytes) => data.extend_from_slice(&bytes),
                Record::KeyUpdate { .. } => {}
                Record::Closed => panic!("closed"),
            }
        }
        data
    }
}

/// Gives `bytes` to a handshake in pieces of `step` bytes.
fn give(handshake: &mut Handshake, input: &mut BytesMut, bytes: &[u8], step: usize) -> Result<(), Error> {
    for piece in bytes.chunks(step) {
        input.extend_from_slice(piece);
        handshake.handle(input)?;
    }
    Ok(())
}

/// Both ends ours, handshake bytes in pieces of `step`.
fn own_pair_by(step: usize) -> (Half, Half) {
    let (client_config, server_config) = configs();
    let mut client = Handshake::client(client_config, NAME).unwrap();
    let mut server = Handshake::server(server_config).unwrap();
    let (mut client_input, mut server_input) = (BytesMut::new(), BytesMut::new());
    for _ in 0..4 {
        let bytes = client.output().unwrap_or_default();
        give(&mut server, &mut server_input, &bytes, step).unwrap();
        let bytes = server.output().unwrap_or_default();
        give(&mut client, &mut client_input, &bytes, step).unwrap();
    }
    assert!(client.is_done() && server.is_done());
    (Half::new(client, client_input), Half::new(server, server_input))
}

fn own_pair() -> (Half, Half) {
    own_pair_by(usize::MAX)
}

/// A rustls connection through its buffered API: the second implementation that ours is held against.
struct Oracle {
    connection: Connection,
    received: Vec<u8>,
}

impl Oracle {
    fn new(connection: impl Into<Connection>) -> Self {
        Self {
            connection: connection.into(),
            received: Vec::new(),
        }
    }

    fn read(&mut self, mut bytes: &[u8]) -> Result<(), rustls::Error> {
        while !bytes.is_empty() {
            self.connection.read_tls(&mut bytes).unwrap();
            let state = self.connection.process_new_packets()?;
            let start = self.received.len();
            self.received.resize(start + state.plaintext_bytes_to_read(), 0);
            let place = &mut self.received[start..];
            self.connection.reader().read_exact(place).unwrap();
        }
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> Vec<u8> {
        self.connection.writer().write_all(data).unwrap();
        self.output()
    }

    fn output(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut out).unwrap();
        }
        out
    }
}

/// Our end in `role` and a rustls peer, handshake done.
fn with_oracle(role: Role) -> (Half, Oracle) {
    let (client, server) = configs();
    with_oracle_configured(role, client, server)
}

fn with_oracle_configured(role: Role, client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Half, Oracle) {
    let name = NAME.try_into().unwrap();
    let (mut own, mut oracle) = match role {
        Role::Client => (
            Handshake::client(client, NAME).unwrap(),
            Oracle::new(rustls::ServerConnection::new(server).unwrap()),
        ),
        Role::Server => (
            Handshake::server(server).unwrap(),
            Oracle::new(rustls::ClientConnection::new(client, name).unwrap()),
        ),
    };
    let mut input = BytesMut::new();
    for _ in 0..4 {
        oracle.read(&own.output().unwrap_or_default()).unwrap();
        input.extend_from_slice(&oracle.output());
        own.handle(&mut input).unwrap();
    }
    assert!(own.is_done() && !oracle.connection.is_handshaking());
    oracle.connection.set_buffer_limit(None);
    (Half::new(own, input), oracle)
}
