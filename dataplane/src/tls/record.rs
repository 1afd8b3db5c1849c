//! What both halves of the record layer share: AES-256-GCM keys and the shape of a record (RFC 8446 section 5).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use zeroize::Zeroizing;

use super::explain;
use crate::error::Error;

/// Header of a record: type, version u16, length u16 (RFC 8446 section 5.1).
pub(super) const HEADER_BYTES: usize = 5;
/// The true type of a record, encrypted behind its content.
pub(super) const TYPE_BYTES: usize = 1;
pub(super) const TAG_BYTES: usize = 16;

/// Bytes that a record adds to its content.
pub(super) const RECORD_OVERHEAD_BYTES: usize = HEADER_BYTES + TYPE_BYTES + TAG_BYTES;

/// rustls' key schedule, asked only at a KeyUpdate.
pub(super) enum Schedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Schedule {
    pub(super) fn next_write_key(&mut self) -> Result<Key, Error> {
        let secrets = match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        };
        Key::new(secrets.map_err(explain)?)
    }

    pub(super) fn next_read_key(&mut self) -> Result<Key, Error> {
        let secrets = match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        };
        Key::new(secrets.map_err(explain)?)
    }
}

/// Both halves hold the schedule; it is locked at a KeyUpdate only, so no record waits for it.
pub(super) type SharedSchedule = Arc<Mutex<Schedule>>;

/// One direction's key. The expanded key is in memory that aws-lc wipes when it frees it.
pub(super) struct Key {
    pub(super) aead: LessSafeKey,
    iv: Zeroizing<[u8; 12]>,
    /// Records sealed or opened under this key.
    pub(super) sequence: u64,
}

impl Key {
    pub(super) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else {
            return Err(Error::Tls("the cipher suite is not ours".to_owned()));
        };
        let unbound = UnboundKey::new(&AES_256_GCM, key.as_ref())
            .map_err(|_| Error::Tls("the key has the wrong length".to_owned()))?;
        let mut own_iv = Zeroizing::new([0; 12]);
        own_iv.copy_from_slice(iv.as_ref());
        Ok(Self {
            aead: LessSafeKey::new(unbound),
            iv: own_iv,
            sequence,
        })
    }

    /// Nonce of the next record: the IV with the sequence number (RFC 8446 section 5.3), used once.
    pub(super) fn next_nonce(&mut self) -> Nonce {
        let mut nonce = *self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        // 2^64 records do not fit a connection's life.
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

pub(super) fn lock(schedule: &SharedSchedule) -> MutexGuard<'_, Schedule> {
    // Nothing panics while it is held; a poisoned schedule would be a whole one.
    schedule.lock().unwrap_or_else(PoisonError::into_inner)
}
