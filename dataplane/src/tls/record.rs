//! The record layer after the handshake: AES-256-GCM over whole frames (RFC 8446 sections 5.1 to 5.5).

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::{Buf, Bytes, BytesMut};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets, ContentType, ExtractedSecrets};
use zeroize::Zeroizing;

use super::explain;
use super::handshake::HEADER_BYTES;
use crate::copies;
use crate::error::Error;
use crate::limits::{
    EMPTY_RECORDS_MAX, KEY_UPDATE_INTERVAL_MIN, PACKED_FRAME_BYTES_MAX, RECORD_BYTES_MAX,
    RECORD_CIPHERTEXT_BYTES_MAX, RECORDS_PER_KEY_MAX,
};
use crate::time::Time;

const TAG_BYTES: usize = 16;
/// The true type of a record, encrypted behind its content.
const TYPE_BYTES: usize = 1;
/// `key_update`, length 1, `update_not_requested` (RFC 8446 section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const ALERT_WARNING: u8 = 1;
const ALERT_FATAL: u8 = 2;

/// Bytes that a record adds to its content.
pub(super) const RECORD_OVERHEAD_BYTES: usize = HEADER_BYTES + TYPE_BYTES + TAG_BYTES;

/// rustls' key schedule, asked only at a KeyUpdate.
pub(super) enum Schedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Schedule {
    fn next_write_key(&mut self) -> Result<Key, Error> {
        let secrets = match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        };
        Key::new(secrets.map_err(explain)?)
    }

    fn next_read_key(&mut self) -> Result<Key, Error> {
        let secrets = match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        };
        Key::new(secrets.map_err(explain)?)
    }
}

/// Both halves hold the schedule; it is locked at a KeyUpdate only, so no record waits for it.
type SharedSchedule = Arc<Mutex<Schedule>>;

/// One direction's key. The expanded key is in memory that aws-lc wipes when it frees it.
struct Key {
    aead: LessSafeKey,
    iv: Zeroizing<[u8; 12]>,
    /// Records sealed or opened under this key.
    sequence: u64,
}

impl Key {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
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
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = *self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        // 2^64 records do not fit a connection's life.
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Both halves of a connection whose handshake is done.
pub(super) fn pair(
    secrets: ExtractedSecrets,
    schedule: Schedule,
) -> Result<(Sealer, Opener), Error> {
    let schedule = Arc::new(Mutex::new(schedule));
    let sealer = Sealer {
        key: Key::new(secrets.tx)?,
        schedule: schedule.clone(),
        records_per_key: RECORDS_PER_KEY_MAX,
        closed: false,
    };
    let opener = Opener {
        key: Key::new(secrets.rx)?,
        schedule,
        key_updated: None,
        empty_records: 0,
        state: State::Open,
        alert: None,
    };
    Ok((sealer, opener))
}

/// The sending half: frames to records.
pub struct Sealer {
    key: Key,
    schedule: SharedSchedule,
    records_per_key: u64,
    closed: bool,
}

impl Sealer {
    /// Changes the key after `records` records instead of `RECORDS_PER_KEY_MAX`, which stays the upper bound.
    pub fn rekey_after(&mut self, records: u64) {
        self.records_per_key = records.clamp(2, RECORDS_PER_KEY_MAX);
    }

    /// Appends the records of `frames`, in order, to `out`; no frame is split.
    ///
    /// A frame larger than `PACKED_FRAME_BYTES_MAX` is sealed straight from its own buffer, smaller neighbours are
    /// copied into one record. Errors: [`Error::Limit`] for a frame larger than a record, [`Error::Closed`] after
    /// [`Sealer::close_notify`].
    pub fn seal(&mut self, frames: &[Bytes], out: &mut Vec<u8>) -> Result<(), Error> {
        out.reserve(frames.iter().map(|f| f.len() + RECORD_OVERHEAD_BYTES).sum());
        let mut rest = frames;
        while let Some((first, _)) = rest.split_first() {
            let count = packed(rest);
            if count < 2 {
                self.seal_record(ContentType::ApplicationData, first, out)?;
            } else {
                self.seal_packed(&rest[..count], out)?;
            }
            rest = &rest[count.max(1)..];
        }
        Ok(())
    }

    /// Appends a KeyUpdate and changes the sending key.
    ///
    /// Due by itself before `RECORDS_PER_KEY_MAX` records; the caller only answers [`Record::KeyUpdate`].
    pub fn key_update(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.append(ContentType::Handshake, &KEY_UPDATE, out)?;
        self.key = lock(&self.schedule).next_write_key()?;
        Ok(())
    }

    /// Appends close_notify, after which nothing can be sealed.
    pub fn close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.send_alert(ALERT_WARNING, AlertDescription::CloseNotify, out)
    }

    /// Appends a fatal alert ([`Opener::alert`] names it), after which nothing can be sealed.
    pub fn alert(&mut self, alert: AlertDescription, out: &mut Vec<u8>) -> Result<(), Error> {
        self.send_alert(ALERT_FATAL, alert, out)
    }

    fn send_alert(
        &mut self,
        level: u8,
        alert: AlertDescription,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        self.append(ContentType::Alert, &[level, u8::from(alert)], out)?;
        self.closed = true;
        Ok(())
    }

    fn seal_record(
        &mut self,
        kind: ContentType,
        content: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        if content.len() > RECORD_BYTES_MAX {
            return Err(Error::Limit("a frame is larger than a record".to_owned()));
        }
        self.rekey_if_due(out)?;
        self.append(kind, content, out)
    }

    /// Seals out of place: `content` is read where it lies, and stays for replay.
    fn append(
        &mut self,
        kind: ContentType,
        content: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        if self.closed {
            return Err(Error::Closed("the sending half of the TLS connection"));
        }
        let Parts { header, body, tail } = append_record(out, content.len());
        let nonce = self.key.next_nonce();
        let kind = [u8::from(kind)];
        self.key
            .aead
            .seal_out_of_place_scatter(nonce, Aad::from(header), content, body, &kind, tail)
            .map_err(|_| Error::Tls("sealing failed".to_owned()))
    }

    fn seal_packed(&mut self, frames: &[Bytes], out: &mut Vec<u8>) -> Result<(), Error> {
        self.rekey_if_due(out)?;
        if self.closed {
            return Err(Error::Closed("the sending half of the TLS connection"));
        }
        let content = frames.iter().map(Bytes::len).sum();
        let Parts { header, body, tail } = append_record(out, content);
        let mut free = &mut body[..];
        for frame in frames {
            let (place, rest) = free.split_at_mut(frame.len());
            copies::copy(place, frame);
            free = rest;
        }
        let nonce = self.key.next_nonce();
        let kind = [u8::from(ContentType::ApplicationData)];
        self.key
            .aead
            .seal_in_place_scatter(nonce, Aad::from(header), body, &kind, tail)
            .map_err(|_| Error::Tls("sealing failed".to_owned()))
    }

    /// The KeyUpdate is the last record under the old key, so it counts as one of the allowed ones.
    fn rekey_if_due(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        if self.key.sequence + 1 < self.records_per_key {
            return Ok(());
        }
        self.key_update(out)
    }
}

/// How many frames from the front share one record by copying; below 2 the first one goes alone.
fn packed(frames: &[Bytes]) -> usize {
    let mut room = RECORD_BYTES_MAX;
    let fits = |frame: &&Bytes| {
        let small = frame.len() <= PACKED_FRAME_BYTES_MAX && frame.len() <= room;
        room = room.saturating_sub(frame.len());
        small
    };
    frames.iter().take_while(fits).count()
}

/// A record's place in the send buffer.
struct Parts<'a> {
    header: [u8; HEADER_BYTES],
    /// As long as the content.
    body: &'a mut [u8],
    /// Type and tag.
    tail: &'a mut [u8],
}

fn append_record(out: &mut Vec<u8>, content: usize) -> Parts<'_> {
    let start = out.len();
    out.resize(start + content + RECORD_OVERHEAD_BYTES, 0);
    let (place, body) = out[start..].split_at_mut(HEADER_BYTES);
    let header = record_header(content + TYPE_BYTES + TAG_BYTES);
    place.copy_from_slice(&header);
    let (body, tail) = body.split_at_mut(content);
    Parts { header, body, tail }
}

fn record_header(ciphertext: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = (ciphertext as u16).to_be_bytes();
    [u8::from(ContentType::ApplicationData), 3, 3, high, low]
}

/// What one record of the peer brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// Whole frames, never empty: a slice of the input's allocation.
    Data(Bytes),
    /// The peer changed its key. If `respond`, call [`Sealer::key_update`] before the next data.
    KeyUpdate { respond: bool },
    /// close_notify: the peer sends nothing more. Its absence at the end of the input is a cut.
    Closed,
}

/// The receiving half: records to frames.
pub struct Opener {
    key: Key,
    schedule: SharedSchedule,
    /// When the peer last changed its key.
    key_updated: Option<Time>,
    /// Records without content in a row.
    empty_records: u32,
    state: State,
    alert: Option<AlertDescription>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closed,
    Failed,
}

/// Why a record ends the connection, and the alert that says so to the peer.
struct Fault {
    alert: Option<AlertDescription>,
    error: Error,
}

fn fault(alert: AlertDescription, text: &str) -> Fault {
    Fault {
        alert: Some(alert),
        error: Error::Tls(text.to_owned()),
    }
}

impl Opener {
    /// Opens the next record of `input` in place; `None` if none is whole. Call again until then.
    ///
    /// Errors are final, and [`Opener::alert`] then tells what to send. [`Error::Tls`] for whatever the peer did
    /// wrong or reported by an alert, [`Error::Closed`] when called after an error.
    pub fn open(&mut self, now: Time, input: &mut BytesMut) -> Result<Option<Record>, Error> {
        loop {
            match self.state {
                State::Open => {}
                State::Failed => return Err(Error::Closed("the receiving half of the connection")),
                // RFC 8446 section 6.1: data behind close_notify is ignored.
                State::Closed => {
                    input.clear();
                    return Ok(None);
                }
            }
            match self.open_next(now, input) {
                Ok(Opened::Record(record)) => return Ok(Some(record)),
                Ok(Opened::Nothing) => {}
                Ok(Opened::Partial) => return Ok(None),
                Err(Fault { alert, error }) => {
                    self.state = State::Failed;
                    self.alert = alert;
                    return Err(error);
                }
            }
        }
    }

    /// After an error of [`Opener::open`]: the alert for the peer; `None` if it was the peer that gave up.
    pub fn alert(&self) -> Option<AlertDescription> {
        self.alert
    }

    /// Whether close_notify has arrived.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    fn open_next(&mut self, now: Time, input: &mut BytesMut) -> Result<Opened, Fault> {
        let Some(header) = input.first_chunk::<HEADER_BYTES>().copied() else {
            return Ok(Opened::Partial);
        };
        let length = ciphertext_length(header)?;
        if input.len() < HEADER_BYTES + length {
            return Ok(Opened::Partial);
        }
        let mut record = input.split_to(HEADER_BYTES + length);
        let nonce = self.key.next_nonce();
        let plain = self
            .key
            .aead
            .open_in_place(nonce, Aad::from(header), &mut record[HEADER_BYTES..])
            .map_err(|_| {
                fault(
                    AlertDescription::BadRecordMac,
                    "a record is damaged or forged",
                )
            })?;
        let (kind, content) = inner(plain)?;
        record.advance(HEADER_BYTES);
        record.truncate(content);
        self.accept(now, kind, record.freeze())
    }

    fn accept(&mut self, now: Time, kind: ContentType, content: Bytes) -> Result<Opened, Fault> {
        match kind {
            ContentType::ApplicationData if content.is_empty() => {
                self.empty_records += 1;
                if self.empty_records > EMPTY_RECORDS_MAX {
                    let text = "the peer floods with empty records";
                    return Err(fault(AlertDescription::UnexpectedMessage, text));
                }
                Ok(Opened::Nothing)
            }
            ContentType::ApplicationData => {
                self.empty_records = 0;
                Ok(Opened::Record(Record::Data(content)))
            }
            ContentType::Handshake => {
                let respond = self.accept_key_update(now, &content)?;
                Ok(Opened::Record(Record::KeyUpdate { respond }))
            }
            ContentType::Alert => {
                accept_alert(&content)?;
                self.state = State::Closed;
                Ok(Opened::Record(Record::Closed))
            }
            other => {
                let text = format!("a record of type {other:?} after the handshake");
                Err(fault(AlertDescription::UnexpectedMessage, &text))
            }
        }
    }

    /// Returns whether the peer wants one in return.
    fn accept_key_update(&mut self, now: Time, content: &[u8]) -> Result<bool, Fault> {
        let respond = match *content {
            [24, 0, 0, 1, 0] => false,
            [24, 0, 0, 1, 1] => true,
            [24, 0, 0, 1, _] => {
                let text = "a KeyUpdate with an unknown request";
                return Err(fault(AlertDescription::IllegalParameter, text));
            }
            [24, ..] => {
                let text = "a KeyUpdate that is not alone in its record";
                return Err(fault(AlertDescription::UnexpectedMessage, text));
            }
            _ => {
                let text = "a handshake message other than KeyUpdate after the handshake";
                return Err(fault(AlertDescription::UnexpectedMessage, text));
            }
        };
        let too_soon = |last: Time| now.since(last) < KEY_UPDATE_INTERVAL_MIN;
        if self.key_updated.is_some_and(too_soon) {
            let text = "the peer changes its key more than once a second";
            return Err(fault(AlertDescription::UnexpectedMessage, text));
        }
        self.key_updated = Some(now);
        let next = lock(&self.schedule).next_read_key();
        self.key = next.map_err(|error| Fault {
            alert: Some(AlertDescription::InternalError),
            error,
        })?;
        Ok(respond)
    }
}

enum Opened {
    Record(Record),
    /// An empty record: look at the next one.
    Nothing,
    Partial,
}

/// Checks a header before its record is waited for.
fn ciphertext_length(header: [u8; HEADER_BYTES]) -> Result<usize, Fault> {
    let [kind, _, _, high, low] = header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if kind != u8::from(ContentType::ApplicationData) {
        let text = "an unprotected record after the handshake";
        return Err(fault(AlertDescription::UnexpectedMessage, text));
    }
    if length > RECORD_CIPHERTEXT_BYTES_MAX {
        return Err(fault(
            AlertDescription::RecordOverflow,
            "a record is too long",
        ));
    }
    Ok(length)
}

/// Strips the padding; returns the type and the length of the content (RFC 8446 section 5.4).
fn inner(plain: &[u8]) -> Result<(ContentType, usize), Fault> {
    // The bound holds with the padding, so the content needs no second look.
    if plain.len() > RECORD_BYTES_MAX + TYPE_BYTES {
        return Err(fault(
            AlertDescription::RecordOverflow,
            "a record is too long",
        ));
    }
    match plain.iter().rposition(|&byte| byte != 0) {
        Some(end) => Ok((ContentType::from(plain[end]), end)),
        None => Err(fault(
            AlertDescription::UnexpectedMessage,
            "a record without a type",
        )),
    }
}

fn accept_alert(content: &[u8]) -> Result<(), Fault> {
    match *content {
        [_, description] if description == u8::from(AlertDescription::CloseNotify) => Ok(()),
        [_, description] => Err(Fault {
            alert: None,
            error: explain(rustls::Error::AlertReceived(description.into())),
        }),
        _ => Err(fault(
            AlertDescription::DecodeError,
            "an alert of a wrong length",
        )),
    }
}

fn lock(schedule: &SharedSchedule) -> std::sync::MutexGuard<'_, Schedule> {
    // Nothing panics while it is held; a poisoned schedule would be a whole one.
    schedule.lock().unwrap_or_else(PoisonError::into_inner)
}
