//! Which frame leaves next: ACK, PONG and PING at the head of every write, then what an earlier connection carried,
//! then control frames, then streams in turns.
//!
//! A stream enters the *new* list when nothing of it was queued; after one quantum, or when it empties, it goes to the
//! end of the *old* list (as fq_codel does): a small request overtakes bulk, and refilling each turn gains nothing.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::credit::Budget;
use super::frame::{self, Code, Frame, Open};
use super::planted::planted;
use super::resume::Retained;
use super::session::{Cause, Conn, Session};
use super::stream::{Stream, StreamRef, Turn, Tx};
use crate::limits::{
    CONTROL_RESERVE_BYTES, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, FRAME_TEXT_BYTES_MAX, LINK_WRITE_BYTES_MAX,
    QUANTUM_BYTES,
};
use crate::time::Time;

/// What shares the one queue in order.
pub(super) enum Ordered {
    Open(StreamRef, Open),
    SettingsAck { version: u32, accepted: bool, text: Bytes },
    GoAway { reason: frame::GoAwayReason, text: Bytes },
}

/// Who has a turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Stream(StreamRef),
    Settings,
}

/// SETTINGS that leave part by part.
pub(super) struct SettingsOut {
    pub version: u32,
    pub json: Bytes,
    next: u16,
    parts: u16,
}

/// Small frames share one allocation of this size.
const SCRATCH_BYTES: usize = 4_096;
/// Bytes of JSON in one SETTINGS frame.
const PART_BYTES: usize = FRAME_PAYLOAD_BYTES_MAX - 8;

impl SettingsOut {
    pub fn new(version: u32, json: Bytes) -> Self {
        let parts = json.len().div_ceil(PART_BYTES).max(1) as u16;
        Self {
            version,
            json,
            next: 0,
            parts,
        }
    }

    fn next_part(&mut self) -> Frame {
        let start = usize::from(self.next) * PART_BYTES;
        let end = (start + PART_BYTES).min(self.json.len());
        let part = self.next;
        self.next += 1;
        Frame::Settings {
            version: self.version,
            part,
            parts: self.parts,
            bytes: self.json.slice(start..end),
        }
    }
}

/// Everything that waits for a write.
#[derive(Default)]
pub(super) struct Schedule {
    pub ordered: VecDeque<Ordered>,
    /// Streams refused for the limit.
    pub refusals: VecDeque<u64>,
    control: VecDeque<StreamRef>,
    new: VecDeque<Entry>,
    old: VecDeque<Entry>,
    blocked: Vec<StreamRef>,
    /// As `blocked`, for SETTINGS.
    settings_blocked: bool,
    pub settings: Option<SettingsOut>,
    /// The newest rules that came while others were leaving.
    pub settings_next: Option<(u32, Bytes)>,
    scratch: BytesMut,
}

impl Schedule {
    /// Its flags may have changed; whether a frame comes of them is seen at its turn.
    pub fn list_control(&mut self, r: StreamRef, s: &mut Stream) {
        if !s.flags.listed && s.open_written && !s.orphan {
            s.flags.listed = true;
            self.control.push_back(r);
        }
    }

    pub fn list_turn(&mut self, r: StreamRef, s: &mut Stream) {
        if s.turn == Turn::None && s.open_written && !s.orphan && s.wants_turn() {
            s.turn = Turn::New;
            s.deficit = QUANTUM_BYTES;
            self.new.push_back(Entry::Stream(r));
        }
    }

    pub fn start_settings(&mut self, version: u32, json: Bytes) {
        if self.settings.is_some() {
            self.settings_next = Some((version, json));
        } else {
            self.settings = Some(SettingsOut::new(version, json));
            self.new.push_back(Entry::Settings);
        }
    }

    fn front_list(&self) -> Turn {
        if self.new.is_empty() { Turn::Old } else { Turn::New }
    }

    fn front(&self) -> Option<(Entry, Turn)> {
        self.new.front().or(self.old.front()).map(|e| (*e, self.front_list()))
    }

    fn pop(&mut self, list: Turn) {
        let list = if list == Turn::New {
            &mut self.new
        } else {
            &mut self.old
        };
        list.pop_front();
    }

    fn push_old(&mut self, entry: Entry) -> Turn {
        self.old.push_back(entry);
        Turn::Old
    }

    fn encode(&mut self, frame: &Frame) -> Bytes {
        if self.scratch.capacity() < FRAME_HEADER_BYTES + FRAME_TEXT_BYTES_MAX {
            self.scratch.reserve(SCRATCH_BYTES);
        }
        frame::encode(frame, &mut self.scratch);
        self.scratch.split().freeze()
    }
}

/// One write being filled.
pub(super) struct Write<'a> {
    out: &'a mut Vec<Bytes>,
    bytes: usize,
}

impl<'a> Write<'a> {
    pub fn new(out: &'a mut Vec<Bytes>) -> Self {
        Self { out, bytes: 0 }
    }

    fn fits(&self, bytes: usize) -> bool {
        self.bytes + bytes <= LINK_WRITE_BYTES_MAX
    }

    fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.out.push(frame);
    }
}

/// Outcome of offering one frame to a write.
#[derive(PartialEq, Eq)]
enum Offer {
    Written,
    /// The write is full.
    Full,
    /// The reserve for frames other than DATA is full.
    NoReserve,
    Nothing,
}

impl Session {
    /// Appends whole frames for one write, at most `LINK_WRITE_BYTES_MAX` bytes, and returns their bytes.
    pub fn poll_transmit(&mut self, now: Time, budget: &mut Budget, out: &mut Vec<Bytes>) -> usize {
        if self.closing.is_some_and(Cause::aborts) {
            return 0;
        }
        let mut w = Write::new(out);
        if let Some(hello) = self.hello_out.take() {
            w.push(self.schedule.encode(&Frame::Hello(hello)));
        }
        if let Some(farewell) = self.farewell.take() {
            w.push(self.schedule.encode(&farewell));
        }
        if self.conn != Conn::Up || self.failed {
            return w.bytes;
        }
        self.transmit_head(now, &mut w);
        if planted("new-before-replay") && self.retention.replaying() {
            self.transmit_control(budget, &mut w);
        }
        self.transmit_replay(&mut w);
        if !self.retention.replaying() {
            self.transmit_ordered(&mut w);
            self.transmit_control(budget, &mut w);
            self.transmit_streams(budget, &mut w);
        }
        self.check_finished(now, budget);
        if self.ack_now {
            self.transmit_head(now, &mut w);
        }
        w.bytes
    }

    fn transmit_head(&mut self, now: Time, w: &mut Write) {
        if self.ack_now && self.received > self.ack_sent {
            self.ack_sent = self.received;
            w.push(self.schedule.encode(&Frame::Ack(self.received)));
            self.ack_due = None;
        }
        self.ack_now = false;
        while let Some(pong) = self.pongs.pop_front() {
            w.push(self.schedule.encode(&Frame::Pong(pong)));
        }
        if let Some(ping) = self.liveness.take_ping(now) {
            w.push(self.schedule.encode(&Frame::Ping(ping)));
        }
    }

    fn transmit_replay(&mut self, w: &mut Write) {
        while self.retention.peek_replay().is_some_and(|bytes| w.fits(bytes)) {
            let Some(mut frame) = self.retention.next_replay() else {
                break;
            };
            if planted("replay-updated-credit") && frame[2] == frame::kind::CREDIT {
                frame = self.updated_credit(&frame);
            }
            self.frames_replayed += 1;
            w.push(frame);
        }
    }

    /// A CREDIT as it would be written now, instead of as it was written.
    fn updated_credit(&mut self, old: &Bytes) -> Bytes {
        let id = frame::Header::decode(old).and_then(Result::ok).map_or(0, |h| h.stream);
        let advertised = self
            .streams
            .by_id(id)
            .and_then(|r| self.streams.get(r))
            .map(|s| s.advertised);
        advertised.map_or_else(|| old.clone(), |a| self.schedule.encode(&Frame::Credit(id, a)))
    }

    /// Writes a counted frame other than DATA, if the write and the reserve have room for it.
    fn offer(&mut self, frame: &Frame, w: &mut Write) -> Offer {
        let bytes = self.schedule.encode(frame);
        if self.control_held + bytes.len() > CONTROL_RESERVE_BYTES {
            return Offer::NoReserve;
        }
        if !w.fits(bytes.len()) {
            return Offer::Full;
        }
        self.control_held += bytes.len();
        self.retain(Retained {
            bytes: bytes.clone(),
            data_of: None,
        });
        w.push(bytes);
        Offer::Written
    }

    fn retain(&mut self, frame: Retained) {
        self.retention.push(frame);
    }

    fn transmit_ordered(&mut self, w: &mut Write) {
        while let Some(item) = self.schedule.ordered.pop_front() {
            let frame = match &item {
                Ordered::Open(r, open) => match self.streams.get(*r) {
                    Some(s) => Frame::Open(s.id, open.clone()),
                    None => continue,
                },
                Ordered::SettingsAck {
                    version,
                    accepted,
                    text,
                } => Frame::SettingsAck {
                    version: *version,
                    accepted: *accepted,
                    text: text.clone(),
                },
                Ordered::GoAway { reason, text } => Frame::GoAway {
                    last: self.highest_peer,
                    reason: *reason,
                    text: text.clone(),
                },
            };
            if self.offer(&frame, w) != Offer::Written {
                self.schedule.ordered.push_front(item);
                return;
            }
            match item {
                Ordered::Open(r, _) => self.open_was_written(r),
                Ordered::GoAway { .. } => self.goaway_last = Some(self.highest_peer),
                Ordered::SettingsAck { .. } => {}
            }
        }
        while let Some(id) = self.schedule.refusals.front().copied() {
            let text = Bytes::from_static(b"too many streams");
            if self.offer(&Frame::Reset(id, Code::Limit, text), w) != Offer::Written {
                return;
            }
            self.schedule.refusals.pop_front();
        }
    }

    fn open_was_written(&mut self, r: StreamRef) {
        if let Some(s) = self.streams.get_mut(r) {
            s.open_written = true;
            self.highest_own = s.id;
            self.schedule.list_control(r, s);
            self.schedule.list_turn(r, s);
        }
    }

    fn transmit_control(&mut self, budget: &mut Budget, w: &mut Write) {
        while let Some(r) = self.schedule.control.front().copied() {
            let Some(frame) = self.streams.get(r).filter(|s| !s.orphan).and_then(next_control) else {
                self.schedule.control.pop_front();
                if let Some(s) = self.streams.get_mut(r) {
                    s.flags.listed = false;
                }
                continue;
            };
            if self.offer(&frame, w) != Offer::Written {
                return;
            }
            if let Some(s) = self.streams.get_mut(r) {
                clear_flag(s, &frame);
                self.schedule.list_turn(r, s);
            }
            self.settle(budget, r);
        }
    }

    fn transmit_streams(&mut self, budget: &mut Budget, w: &mut Write) {
        while let Some((entry, turn)) = self.schedule.front() {
            let Entry::Stream(r) = entry else {
                if !self.transmit_settings(w) {
                    return;
                }
                continue;
            };
            let Some(s) = self.streams.get_mut(r).filter(|s| s.turn == turn && !s.orphan) else {
                self.schedule.pop(turn);
                continue;
            };
            if !s.wants_turn() {
                self.schedule.pop(turn);
                // A new stream that empties takes one empty turn among the old ones, else it would be new for ever.
                s.turn = if turn == Turn::New {
                    self.schedule.push_old(entry)
                } else {
                    Turn::None
                };
                continue;
            }
            if s.deficit == 0 {
                s.deficit = QUANTUM_BYTES;
                self.schedule.pop(turn);
                s.turn = self.schedule.push_old(entry);
                continue;
            }
            match self.transmit_next(budget, r, w) {
                Offer::Full => return,
                Offer::NoReserve => {
                    self.schedule.pop(turn);
                    self.schedule.blocked.push(r);
                    if let Some(s) = self.streams.get_mut(r) {
                        s.turn = Turn::Blocked;
                    }
                }
                Offer::Written | Offer::Nothing => {}
            }
        }
    }

    /// One part of the SETTINGS that are leaving; false when the write is full.
    fn transmit_settings(&mut self, w: &mut Write) -> bool {
        let list = self.schedule.front_list();
        let Some(mut settings) = self.schedule.settings.take() else {
            self.schedule.pop(list);
            return true;
        };
        let part = settings.next_part();
        let offer = self.offer(&part, w);
        if offer != Offer::Written {
            settings.next -= 1;
            self.schedule.settings = Some(settings);
            if offer == Offer::NoReserve {
                self.schedule.pop(list);
                self.schedule.settings_blocked = true;
            }
            return offer == Offer::NoReserve;
        }
        self.schedule.pop(list);
        if settings.next < settings.parts {
            self.schedule.settings = Some(settings);
            self.schedule.push_old(Entry::Settings);
        } else if let Some((version, json)) = self.schedule.settings_next.take() {
            self.schedule.start_settings(version, json);
        }
        true
    }

    /// One frame of a stream's turn: DATA, then FIN, then the RESET that goes after FIN.
    fn transmit_next(&mut self, budget: &mut Budget, r: StreamRef, w: &mut Write) -> Offer {
        let Some(s) = self.streams.get_mut(r) else {
            return Offer::Nothing;
        };
        let fin_first = planted("fin-before-data") && matches!(s.tx, Tx::FinQueued(_));
        if let Some(data) = s.outbox.front().filter(|_| !fin_first) {
            if !w.fits(data.len()) {
                return Offer::Full;
            }
            return self.transmit_data(r, w);
        }
        let frame = match (&s.tx, &s.flags.reset) {
            (Tx::FinQueued(timings), _) => Frame::Fin(s.id, *timings),
            (_, Some((code, text))) => Frame::Reset(s.id, *code, text.clone()),
            _ => return Offer::Nothing,
        };
        let offer = self.offer(&frame, w);
        if offer == Offer::Written {
            if let Some(s) = self.streams.get_mut(r) {
                match frame {
                    Frame::Fin(..) => s.tx = Tx::Ended,
                    _ => s.flags.reset = None,
                }
                s.deficit = s.deficit.saturating_sub(FRAME_HEADER_BYTES);
            }
            self.settle(budget, r);
        }
        offer
    }

    fn transmit_data(&mut self, r: StreamRef, w: &mut Write) -> Offer {
        let Some(s) = self.streams.get_mut(r) else {
            return Offer::Nothing;
        };
        let Some(data) = s.outbox.pop_front() else {
            return Offer::Nothing;
        };
        s.written += (data.len() - FRAME_HEADER_BYTES) as u64;
        s.deficit = s.deficit.saturating_sub(data.len());
        if !s.answered {
            s.unanswered.push_back(data.clone());
        }
        self.retain(Retained {
            bytes: data.clone(),
            data_of: Some(r),
        });
        w.push(data);
        Offer::Written
    }

    /// Room in the reserve again: what waited for it gets turns.
    pub(super) fn unblock_control(&mut self) {
        if std::mem::take(&mut self.schedule.settings_blocked) {
            self.schedule.push_old(Entry::Settings);
        }
        for r in std::mem::take(&mut self.schedule.blocked) {
            if let Some(s) = self.streams.get_mut(r).filter(|s| s.turn == Turn::Blocked) {
                s.turn = Turn::None;
                self.schedule.list_turn(r, s);
            }
        }
    }
}

/// The control frame of a stream that leaves next: CREDIT before RECALL, RESET last.
fn next_control(s: &Stream) -> Option<Frame> {
    let (f, id) = (&s.flags, s.id);
    let sni = f.start_tls.as_ref().map(|(sni, alpn)| (sni.clone(), alpn.clone()));
    f.opened
        .map(|o| Frame::Opened(id, o))
        .or_else(|| sni.map(|(sni, alpn)| Frame::StartTls { stream: id, sni, alpn }))
        .or_else(|| f.tls_report.clone().map(|r| Frame::TlsReport(id, r)))
        .or_else(|| f.credit.then_some(Frame::Credit(id, s.advertised)))
        .or_else(|| f.recall.map(|offset| Frame::Recall(id, offset)))
        .or_else(|| f.answer_recall.then_some(Frame::Return(id, s.limit)))
        .or_else(|| {
            f.reset
                .clone()
                .filter(|_| s.reset_goes_first())
                .map(|(code, text)| Frame::Reset(id, code, text))
        })
}

fn clear_flag(s: &mut Stream, written: &Frame) {
    match written {
        Frame::Opened(..) => (s.flags.opened, s.said[0]) = (None, true),
        Frame::StartTls { .. } => (s.flags.start_tls, s.said[1]) = (None, true),
        Frame::TlsReport(..) => (s.flags.tls_report, s.said[2]) = (None, true),
        Frame::Credit(..) => s.flags.credit = false,
        Frame::Recall(..) => s.flags.recall = None,
        Frame::Return(..) => s.flags.answer_recall = false,
        _ => s.flags.reset = None,
    }
}
