//! The TLS record pump in memory: what one end seals, the other opens.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use dataplane::time::Time;
use dataplane::tls::{Handshake, Identity, Opener, Record, Sealer, client_config, server_config};

/// One direction of a connection.
pub struct Wire {
    sealer: Sealer,
    opener: Opener,
    sealed: Vec<u8>,
    input: BytesMut,
}

/// Both directions of a connection whose handshake is done: from `sc` to the endpoint, and back.
///
/// # Panics
/// If the handshake fails: both ends are ours.
pub fn connected() -> [Wire; 2] {
    let [client, server] = [(); 2].map(|()| Identity::generate().expect("a key"));
    let config = client_config(&client, server.fingerprint()).expect("a configuration");
    let mut client = Handshake::client(config, "bench").expect("a handshake");
    let config = server_config(&server, Arc::new(|_| true)).expect("a configuration");
    let mut server = Handshake::server(config).expect("a handshake");
    for _ in 0..2 {
        let mut flight = BytesMut::from(&client.output().unwrap_or_default()[..]);
        server.handle(&mut flight).expect("a good flight");
        let mut flight = BytesMut::from(&server.output().unwrap_or_default()[..]);
        client.handle(&mut flight).expect("a good flight");
    }
    let (client_sealer, client_opener, _) = client.into_records().expect("keys");
    let (server_sealer, server_opener, _) = server.into_records().expect("keys");
    [
        Wire::new(client_sealer, server_opener),
        Wire::new(server_sealer, client_opener),
    ]
}

impl Wire {
    fn new(sealer: Sealer, opener: Opener) -> Self {
        Self {
            sealer,
            opener,
            sealed: Vec::new(),
            input: BytesMut::new(),
        }
    }

    /// The sending end's part.
    ///
    /// # Panics
    /// If a frame is larger than a record.
    pub fn seal(&mut self, frames: &[Bytes]) {
        self.sealer.seal(frames, &mut self.sealed).expect("an open connection");
    }

    /// The network's part: what was sealed arrives, a copy of it as the kernel would make.
    pub fn carry(&mut self) {
        self.input.extend_from_slice(&self.sealed);
        self.sealed.clear();
    }

    /// The receiving end's part: the next record that arrived.
    ///
    /// # Panics
    /// If a record is damaged.
    pub fn open(&mut self, now: Time) -> Option<Bytes> {
        loop {
            match self.opener.open(now, &mut self.input).expect("a good record")? {
                Record::Data(bytes) => return Some(bytes),
                Record::KeyUpdate { .. } => {}
                Record::Closed => panic!("nobody closes it"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened() {
        for mut wire in connected() {
            let frames: Vec<Bytes> = [100, 16_384, 7].map(|n| Bytes::from(vec![n as u8; n])).into();
            wire.seal(&frames);
            assert_eq!(wire.open(Time::default()), None, "it has not arrived");
            wire.carry();
            let opened: Vec<Bytes> = std::iter::from_fn(|| wire.open(Time::default())).collect();
            assert_eq!(opened, frames);
        }
    }
}
