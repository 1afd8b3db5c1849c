//! The sending half of the record layer.

use aws_lc_rs::aead::Aad;
use bytes::Bytes;
use rustls::{AlertDescription, ContentType};

use super::record::{HEADER_BYTES, Key, RECORD_OVERHEAD_BYTES, SharedSchedule, TAG_BYTES, TYPE_BYTES, lock};
use crate::copies;
use crate::error::Error;
use crate::limits::{PACKED_FRAME_BYTES_MAX, RECORD_BYTES_MAX, RECORDS_PER_KEY_MAX};

/// `key_update`, length 1, `update_not_requested` (RFC 8446 section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const ALERT_WARNING: u8 = 1;
const ALERT_FATAL: u8 = 2;

/// The sending half: frames to records.
pub struct Sealer {
    key: Key,
    schedule: SharedSchedule,
    records_per_key: u64,
    closed: bool,
}

impl Sealer {
    pub(super) fn new(key: Key, schedule: SharedSchedule) -> Self {
        Self {
            key,
            schedule,
            records_per_key: RECORDS_PER_KEY_MAX,
            closed: false,
        }
    }

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
            self.rekey_if_due(out)?;
            if count < 2 {
                self.seal_alone(first, out)?;
            } else {
                self.seal_packed(&rest[..count], out)?;
            }
            rest = &rest[count.max(1)..];
        }
        Ok(())
    }

    /// Appends a KeyUpdate and changes the sending key.
    ///
    /// Due by itself before `RECORDS_PER_KEY_MAX` records; the caller only answers [`super::Record::KeyUpdate`].
    pub fn key_update(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.append(ContentType::Handshake, &KEY_UPDATE, out)?;
        self.change_key()
    }

    pub(super) fn change_key(&mut self) -> Result<(), Error> {
        self.key = lock(&self.schedule).next_write_key()?;
        Ok(())
    }

    /// Appends close_notify, after which nothing can be sealed.
    pub fn close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.send_alert(ALERT_WARNING, AlertDescription::CloseNotify, out)
    }

    /// Appends a fatal alert ([`super::Opener::alert`] names it), after which nothing can be sealed.
    pub fn alert(&mut self, alert: AlertDescription, out: &mut Vec<u8>) -> Result<(), Error> {
        self.send_alert(ALERT_FATAL, alert, out)
    }

    fn send_alert(&mut self, level: u8, alert: AlertDescription, out: &mut Vec<u8>) -> Result<(), Error> {
        self.append(ContentType::Alert, &[level, u8::from(alert)], out)?;
        self.closed = true;
        Ok(())
    }

    fn seal_alone(&mut self, frame: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        if frame.len() > RECORD_BYTES_MAX {
            return Err(Error::Limit("a frame is larger than a record".to_owned()));
        }
        self.append(ContentType::ApplicationData, frame, out)
    }

    /// Seals out of place: `content` is read where it lies, and stays for replay.
    pub(super) fn append(&mut self, kind: ContentType, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.check_open()?;
        let Parts { header, body, tail } = append_record(out, content.len());
        let nonce = self.key.next_nonce();
        let kind = [u8::from(kind)];
        self.key
            .aead
            .seal_out_of_place_scatter(nonce, Aad::from(header), content, body, &kind, tail)
            .map_err(|_| Error::Tls("sealing failed".to_owned()))
    }

    fn seal_packed(&mut self, frames: &[Bytes], out: &mut Vec<u8>) -> Result<(), Error> {
        self.check_open()?;
        let content = frames.iter().map(Bytes::len).sum();
        let header = record_header(content + TYPE_BYTES + TAG_BYTES);
        out.extend_from_slice(&header);
        let start = out.len();
        for frame in frames {
            copies::append(out, frame);
        }
        out.resize(start + content + TYPE_BYTES + TAG_BYTES, 0);
        let (body, tail) = out[start..].split_at_mut(content);
        let nonce = self.key.next_nonce();
        let kind = [u8::from(ContentType::ApplicationData)];
        self.key
            .aead
            .seal_in_place_scatter(nonce, Aad::from(header), body, &kind, tail)
            .map_err(|_| Error::Tls("sealing failed".to_owned()))
    }

    fn check_open(&self) -> Result<(), Error> {
        match self.closed {
            true => Err(Error::Closed("the sending half of the TLS connection")),
            false => Ok(()),
        }
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
