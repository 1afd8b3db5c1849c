//! The receiving half of the record layer.

use aws_lc_rs::aead::Aad;
use bytes::{Buf, Bytes, BytesMut};
use rustls::{AlertDescription, ContentType};

use super::explain;
use super::record::{HEADER_BYTES, Key, SharedSchedule, TYPE_BYTES, lock};
use crate::error::Error;
use crate::limits::{EMPTY_RECORDS_MAX, KEY_UPDATE_INTERVAL_MIN, RECORD_BYTES_MAX, RECORD_CIPHERTEXT_BYTES_MAX};
use crate::time::Time;

/// What one record of the peer brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// Whole frames, never empty: a slice of the input's allocation.
    Data(Bytes),
    /// The peer changed its key. If `respond`, call [`super::Sealer::key_update`] before the next data.
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
    pub(super) fn new(key: Key, schedule: SharedSchedule) -> Self {
        Self {
            key,
            schedule,
            key_updated: None,
            empty_records: 0,
            state: State::Open,
            alert: None,
        }
    }

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
            .map_err(|_| fault(AlertDescription::BadRecordMac, "a record is damaged or forged"))?;
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
        return Err(fault(AlertDescription::RecordOverflow, "a record is too long"));
    }
    Ok(length)
}

/// Strips the padding; returns the type and the length of the content (RFC 8446 section 5.4).
fn inner(plain: &[u8]) -> Result<(ContentType, usize), Fault> {
    // The bound holds with the padding, so the content needs no second look.
    if plain.len() > RECORD_BYTES_MAX + TYPE_BYTES {
        return Err(fault(AlertDescription::RecordOverflow, "a record is too long"));
    }
    match plain.iter().rposition(|&byte| byte != 0) {
        Some(end) => Ok((ContentType::from(plain[end]), end)),
        None => Err(fault(AlertDescription::UnexpectedMessage, "a record without a type")),
    }
}

fn accept_alert(content: &[u8]) -> Result<(), Fault> {
    match *content {
        [_, description] if description == u8::from(AlertDescription::CloseNotify) => Ok(()),
        [_, description] => Err(Fault {
            alert: None,
            error: explain(rustls::Error::AlertReceived(description.into())),
        }),
        _ => Err(fault(AlertDescription::DecodeError, "an alert of a wrong length")),
    }
}
