//! What the holder of a stream may do with it.

use bytes::{Bytes, BytesMut};

use super::credit::{Budget, grow_window};
use super::frame::{self, Code, Header, Open, Opened, Timings, TlsReport, kind};
use super::planted::planted;
use super::schedule::Ordered;
use super::session::{Conn, OpenError, Recv, Session, WriteError, mark_served};
use super::stream::{Rx, Stream, StreamRef, Tx};
use crate::limits::{CREDIT_STEP_BYTES, FIRST_GRANT_BYTES, FRAME_HEADER_BYTES, LINK_DOWN_GRACE, WINDOW_BYTES_MAX};
use crate::time::Time;

impl Session {
    /// Opens a stream; `open.credit` is set here.
    ///
    /// # Errors
    /// Why not; nothing was changed.
    pub fn open(&mut self, now: Time, budget: &mut Budget, mut open: Open) -> Result<StreamRef, OpenError> {
        if !self.is_live() {
            return Err(OpenError::NotLive);
        }
        if !self.buckets.may_open(now, self.unserved) {
            return Err(OpenError::Paced);
        }
        if !budget.take_place(true) {
            return Err(OpenError::Limit);
        }
        let credit = budget.first_grant(self.rate.bandwidth_delay(now, self.liveness.rtt_us()));
        let mut stream = Stream::new(self.next_own, true, open.kind, now);
        self.next_own += 2;
        self.unserved += 1;
        stream.unserved = true;
        // Twice the grant: a window of one round trip, refilled at its half, would carry half of what the link does.
        stream.window = (2 * credit).clamp(FIRST_GRANT_BYTES, WINDOW_BYTES_MAX) as u64;
        stream.mark_due = credit as u64;
        stream.limit = u64::from(self.peer_credit);
        stream.refusals_seen = budget.refusals;
        budget.set_offsets(&mut stream, credit as u64, 0);
        open.credit = credit as u32;
        let r = self.streams.insert(stream);
        self.schedule.ordered.push_back(Ordered::Open(r, open));
        Ok(r)
    }

    /// Payload bytes that may be read from the local socket and written now; 0: wait for `Writable`.
    ///
    /// # Errors
    /// If this direction was stopped or the ref is dead.
    pub fn room(&mut self, now: Time, budget: &mut Budget, r: StreamRef) -> Result<usize, WriteError> {
        let down_long = self.conn != Conn::Up && self.lost_at.is_some_and(|t| now.since(t) > LINK_DOWN_GRACE);
        let Some(s) = self.streams.get_mut(r) else {
            return Err(WriteError::Gone);
        };
        match s.tx {
            Tx::Stopped(code) => return Err(WriteError::Stopped(code)),
            Tx::FinQueued(_) | Tx::Ended => return Ok(0),
            Tx::Open => {}
        }
        let credit = s.limit.saturating_sub(s.queued) as usize;
        if credit == 0 || down_long {
            s.wants_room = true;
            return Ok(0);
        }
        let room = budget.tx_room(s, self.data_held);
        if room == 0 {
            s.wants_room = true;
            s.own_refusals += 1;
            budget.wait_for_room(self.config.key, r, &mut s.ticket);
        }
        Ok(room.min(credit))
    }

    /// The budget has room again for a stream that `room` refused ([`Budget::next_unblocked`]).
    pub fn unblock(&mut self, r: StreamRef) {
        self.tell_writable(r);
    }

    /// Takes one DATA frame: 12 bytes of head-room, then 1 … 16,372 bytes of payload, within `room`.
    pub fn write(&mut self, _now: Time, budget: &mut Budget, r: StreamRef, mut frame: BytesMut) {
        let Some(s) = self.streams.get_mut(r).filter(|s| s.tx == Tx::Open) else {
            return;
        };
        let length = frame.len().saturating_sub(FRAME_HEADER_BYTES);
        debug_assert!(length > 0 && s.queued + length as u64 <= s.limit, "write beyond room");
        if let Some(header) = frame.first_chunk_mut() {
            Header {
                length,
                kind: kind::DATA,
                stream: s.id,
            }
            .encode(header);
        }
        s.queued += length as u64;
        s.held += frame.len();
        s.refusals_seen = budget.refusals;
        s.own_refusals = 0;
        self.data_held += frame.len();
        budget.tx_charge(frame.len());
        s.outbox.push_back(frame.freeze());
        self.schedule.list_turn(r, s);
    }

    /// No more bytes follow.
    pub fn finish(&mut self, _now: Time, r: StreamRef, timings: Option<Timings>) {
        if let Some(s) = self.streams.get_mut(r).filter(|s| s.tx == Tx::Open) {
            s.tx = Tx::FinQueued(timings);
            self.schedule.list_turn(r, s);
        }
    }

    /// Ends the stream: before `finish` in both directions, after it only the peer's direction.
    pub fn reset(&mut self, now: Time, budget: &mut Budget, r: StreamRef, code: Code, text: &str) {
        let Some(s) = self.streams.get_mut(r).filter(|s| !s.orphan) else {
            return;
        };
        let rx_over = s.rx != Rx::Open;
        let tx_over = matches!(s.tx, Tx::Stopped(_)) || (s.finished() && rx_over);
        if tx_over && rx_over {
            return self.settle(budget, r);
        }
        if s.own && !s.open_written && !s.finished() {
            return self.forget_unopened(budget, r, code);
        }
        if s.unserved {
            self.buckets.own_early_reset(now);
        }
        mark_served(&mut self.unserved, s);
        let finished = s.finished();
        s.flags.reset = Some((code, frame::short_text(text)));
        // An end that was not taken yet goes with the bytes before it: they would look complete.
        s.rx = Rx::Done;
        if !rx_over {
            let (advertised, consumed) = (s.received, s.consumed);
            budget.set_offsets(s, advertised, consumed);
            s.flags.credit = false;
            if s.flags.recall.take().is_some() {
                s.recalled = false;
            }
        }
        if !finished {
            s.tx = Tx::Stopped(code);
        }
        self.discard_inbox(budget, r);
        if !finished {
            self.drop_outbox(budget, r);
        }
        if let Some(s) = self.streams.get_mut(r) {
            self.schedule.list_control(r, s);
            self.schedule.list_turn(r, s);
        }
        self.settle(budget, r);
    }

    /// Reset before OPEN was written: nothing of it is ever sent.
    fn forget_unopened(&mut self, budget: &mut Budget, r: StreamRef, code: Code) {
        self.schedule
            .ordered
            .retain(|o| !matches!(o, Ordered::Open(x, _) if *x == r));
        self.end_stream(budget, r, code);
    }

    /// The next slice or the end.
    pub fn recv(&mut self, budget: &mut Budget, r: StreamRef) -> Recv {
        let Some(s) = self.streams.get_mut(r) else {
            return Recv::Gone;
        };
        if let Some(slice) = s.inbox.get(s.handed) {
            s.handed += 1;
            return Recv::Data(slice.bytes.clone());
        }
        let end = match std::mem::replace(&mut s.rx, Rx::Done) {
            Rx::Open => {
                s.rx = Rx::Open;
                s.readable_told = false;
                return Recv::Pending;
            }
            Rx::Fin(timings) => Recv::Fin(timings),
            Rx::Reset(code, text) => Recv::Reset(code, text),
            Rx::Done => return Recv::Gone,
        };
        self.settle(budget, r);
        end
    }

    /// Whether `recv` would give something; if not, `Readable` follows.
    pub fn has_input(&mut self, r: StreamRef) -> bool {
        let Some(s) = self.streams.get_mut(r) else {
            return true;
        };
        let has = s.inbox.len() > s.handed || !matches!(s.rx, Rx::Open);
        if !has {
            s.readable_told = false;
        }
        has
    }

    /// What `recv` gave and `consumed` did not take is given again: the local socket took no more for now.
    pub fn rewind(&mut self, r: StreamRef) {
        if let Some(s) = self.streams.get_mut(r) {
            s.handed = 0;
        }
    }

    /// The local socket took `bytes` of what `recv` gave. Says whether there is something to write now, or a deadline.
    pub fn consumed(&mut self, now: Time, budget: &mut Budget, r: StreamRef, bytes: usize) -> bool {
        let Some(s) = self.streams.get_mut(r) else {
            return false;
        };
        let mut left = bytes;
        while left > 0 {
            let Some(slice) = s.inbox.front_mut() else {
                break;
            };
            if slice.bytes.len() > left {
                drop(slice.bytes.split_to(left));
                left = 0;
            } else {
                left -= slice.bytes.len();
                self.blocks.release(budget, slice.block);
                s.inbox.pop_front();
                s.handed = s.handed.saturating_sub(1);
            }
        }
        let taken = bytes - left;
        budget.unhold(taken);
        let (advertised, consumed) = (s.advertised, s.consumed + taken as u64);
        budget.set_offsets(s, advertised, consumed);
        grow_window(s, now, self.liveness.rtt_us());
        self.refill(budget, r)
    }

    /// Sends CREDIT when half the window or `CREDIT_STEP_BYTES` are used up, as far as the pool allows. Says whether credit
    /// was due, and with it CREDIT or a look at idle streams.
    pub(super) fn refill(&mut self, budget: &mut Budget, r: StreamRef) -> bool {
        let Some(s) = self.streams.get_mut(r).filter(|s| !s.orphan && s.rx == Rx::Open) else {
            return false;
        };
        let outstanding = s.advertised - s.consumed;
        let due_at = if planted("refill-when-empty") {
            0
        } else if planted("refill-at-once") {
            s.window
        } else {
            s.window - (s.window / 2).min(CREDIT_STEP_BYTES as u64)
        };
        if (s.recalled && !planted("credit-during-recall")) || outstanding > due_at {
            return false;
        }
        let target = s.window.min(budget.refill_max(s) as u64);
        // Where the pool holds the window down, credit goes in quarters of what it leaves: halves would fall into a
        // rhythm of little more than half of that in a round trip.
        let worth = target >= outstanding + (target / 4).min(CREDIT_STEP_BYTES as u64) || planted("refill-at-once");
        if target > outstanding && worth {
            let consumed = s.consumed;
            budget.set_offsets(s, consumed + target, consumed);
            s.flags.credit = true;
            self.schedule.list_control(r, s);
        }
        if budget.pool_is_low() && self.recall_at.is_none() {
            self.recall_at = Some(s.last_data + crate::limits::RECALL_INTERVAL);
        }
        true
    }

    /// The holder is done with the ref; what is not ended is reset with `cancelled`.
    pub fn release(&mut self, now: Time, budget: &mut Budget, r: StreamRef) {
        let Some(s) = self.streams.get_mut(r) else {
            return;
        };
        s.released = true;
        let open = s.rx == Rx::Open || s.tx == Tx::Open;
        if open && !s.orphan {
            self.reset(now, budget, r, Code::Cancelled, "");
        }
        if let Some(s) = self.streams.get_mut(r) {
            s.rx = Rx::Done;
            self.discard_inbox(budget, r);
        }
        self.settle(budget, r);
        self.check_finished(now, budget);
    }

    /// `sc`: the site of a `tcp` stream is connected.
    pub fn opened(&mut self, r: StreamRef, opened: Opened) {
        self.flag(r, |s| s.flags.opened = Some(opened));
    }

    /// Endpoint: asks `sc` to shake hands with the site of a `tcp` stream.
    pub fn start_tls(&mut self, r: StreamRef, sni: Bytes, alpn: Bytes) {
        self.flag(r, |s| s.flags.start_tls = Some((sni, alpn)));
    }

    /// `sc`: what the handshake showed.
    pub fn tls_report(&mut self, r: StreamRef, report: TlsReport) {
        self.flag(r, |s| s.flags.tls_report = Some(report));
    }

    fn flag(&mut self, r: StreamRef, set: impl FnOnce(&mut Stream)) {
        if let Some(s) = self.streams.get_mut(r).filter(|s| !s.orphan && s.flags.reset.is_none()) {
            set(s);
            self.schedule.list_control(r, s);
        }
    }
}
