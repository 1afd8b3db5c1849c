//! What the peer's frames do to a session. Anything that breaks a rule ends the session, never the process.

use bytes::{Bytes, BytesMut};

use super::credit::Budget;
use super::frame::{self, Code, Frame, GoAwayReason, Header, Kind, Open, Violation, kind};
use super::planted::planted;
use super::session::{Cause, Conn, Event, Session, Side, mark_served};
use super::stream::{Rx, Slice, Stream, StreamRef, Tx};
use crate::limits::{
    ACK_BYTES, ACK_DELAY, BASE_CREDIT_PEER_BYTES, EARLY_RESET_BYTES, EARLY_RESET_GRACE, FIRST_GRANT_BYTES,
    FRAME_HEADER_BYTES, PONGS_PENDING_MAX, RECALL_IDLE, RECALL_INTERVAL, REFUSALS_PENDING_MAX, SETTINGS_BYTES_MAX,
    SETTINGS_UNANSWERED_BYTES_MAX, SLICE_AGE_MAX, SLICE_MERGE_BYTES, SLICES_IN_READ_BUFFERS_MAX, WINDOW_BYTES_MAX,
};
use crate::time::Time;

/// SETTINGS that arrive part by part.
pub(super) struct SettingsIn {
    version: u32,
    next: u16,
    parts: u16,
    json: Vec<u8>,
}

/// Why the session ends.
struct Fault(GoAwayReason, &'static str);

impl From<Violation> for Fault {
    fn from(v: Violation) -> Self {
        Self(GoAwayReason::Protocol, v.0)
    }
}

const fn protocol(text: &'static str) -> Fault {
    Fault(GoAwayReason::Protocol, text)
}

const fn flood(text: &'static str) -> Fault {
    Fault(GoAwayReason::Limit, text)
}

type Done = Result<(), Fault>;

impl Session {
    /// Plaintext of the link in order, split anywhere.
    pub fn handle_bytes(&mut self, now: Time, budget: &mut Budget, bytes: Bytes) {
        if matches!(self.conn, Conn::Down | Conn::Dialing) || bytes.is_empty() {
            return;
        }
        self.liveness.received(now);
        let mut input = bytes;
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(&input);
            input = self.partial.split().freeze();
        }
        let block = self.blocks.add(budget, input.len());
        while let Some(header) = Header::decode(&input) {
            let frame = match header {
                Ok(h) if input.len() < FRAME_HEADER_BYTES + h.length => break,
                Ok(h) => {
                    let mut whole = input.split_to(FRAME_HEADER_BYTES + h.length);
                    frame::decode(h, whole.split_off(FRAME_HEADER_BYTES)).map(|f| (h, f))
                }
                Err(violation) => Err(violation),
            };
            let done = match frame {
                _ if self.failed || (self.closing.is_some_and(Cause::aborts) && self.is_greeting()) => break,
                Ok((header, frame)) => self.handle_frame(now, budget, header, frame, block),
                Err(violation) => Err(violation.into()),
            };
            if let Err(Fault(reason, text)) = done {
                if self.is_greeting() {
                    self.close(Cause::WrongHello);
                } else {
                    self.fail(now, budget, reason, text);
                }
                break;
            }
        }
        self.blocks.release(budget, block);
        if self.young.front().is_some_and(|(_, at, _)| self.has_passed(*at)) {
            self.settle_young(now, budget);
        }
        if !input.is_empty() && !self.failed && !planted("partial-frame-dropped") {
            self.partial = BytesMut::from(input);
        }
        self.ack_when_due(now);
        self.check_finished(now, budget);
    }

    fn ack_when_due(&mut self, now: Time) {
        let unacked = self.received - self.ack_sent;
        if unacked >= ACK_BYTES || (unacked > 0 && !self.acked_once && self.conn == Conn::Up) {
            self.acked_once = true;
            self.ack_now = true;
        } else if unacked > 0 && self.ack_due.is_none() && self.conn == Conn::Up && !self.ack_now {
            self.ack_due = Some(now + ACK_DELAY);
        }
    }

    /// Not both HELLOs have gone their way: what is wrong is the connection's fault, not the session's.
    fn is_greeting(&self) -> bool {
        self.conn == Conn::Greeting || self.hello_out.is_some()
    }

    fn handle_frame(&mut self, now: Time, budget: &mut Budget, header: Header, frame: Frame, block: u32) -> Done {
        // The peer answers what it has not read.
        if self.hello_out.is_some() {
            return Err(protocol("a frame before HELLO"));
        }
        if self.conn == Conn::Greeting {
            return match frame {
                Frame::Hello(hello) => {
                    self.handle_hello(now, budget, &hello);
                    Ok(())
                }
                _ => Err(protocol("a frame before HELLO")),
            };
        }
        if header.counted() {
            self.received += (FRAME_HEADER_BYTES + header.length) as u64;
        }
        match frame {
            Frame::Hello(_) => Err(protocol("a second HELLO")),
            Frame::Ack(offset) => Ok(self.acknowledged(now, budget, offset)?),
            Frame::Ping(token) => self.handle_ping(now, token),
            Frame::Pong(token) => self.handle_pong(now, token),
            Frame::Settings {
                version,
                part,
                parts,
                bytes,
            } => self.handle_settings(version, part, parts, &bytes),
            Frame::SettingsAck {
                version,
                accepted,
                text,
            } => {
                if self.config.side == Side::Endpoint {
                    return Err(protocol("SETTINGS_ACK from sc"));
                }
                if !self.buckets.settings_ack(now) {
                    return Err(flood("too many SETTINGS_ACKs"));
                }
                self.events.push_back(Event::SettingsAck {
                    version,
                    accepted,
                    text,
                });
                Ok(())
            }
            Frame::GoAway { last, reason, text } => self.handle_goaway(now, budget, last, reason, text),
            Frame::Extension => Ok(()),
            Frame::Open(id, open) => self.handle_open(now, budget, id, open),
            frame => self.handle_stream_frame(now, budget, header, frame, block),
        }
    }

    fn handle_ping(&mut self, now: Time, token: [u8; 8]) -> Done {
        if !self.buckets.ping(now) {
            return Err(flood("too many PINGs"));
        }
        if self.pongs.len() >= PONGS_PENDING_MAX {
            self.pongs.pop_front();
        }
        self.pongs.push_back(token);
        Ok(())
    }

    fn handle_pong(&mut self, now: Time, token: [u8; 8]) -> Done {
        if !self.liveness.pong(now, token) {
            return Ok(());
        }
        if self.retention.is_empty() && !planted("pong-is-no-progress") {
            self.progress();
        } else if self.liveness.ack_stalled(now, self.retention.unacked()) {
            return Err(protocol("PONGs but no ACK for 30 s"));
        }
        Ok(())
    }

    fn handle_settings(&mut self, version: u32, part: u16, parts: u16, bytes: &[u8]) -> Done {
        if self.config.side == Side::Client {
            return Err(protocol("SETTINGS from the endpoint"));
        }
        let mut whole = match self.settings_in.take() {
            Some(s) if (s.version, s.next, s.parts) == (version, part, parts) => s,
            None if part == 0 => SettingsIn {
                version,
                next: 0,
                parts,
                json: Vec::new(),
            },
            _ => return Err(protocol("parts of SETTINGS out of order")),
        };
        if whole.json.len() + bytes.len() > SETTINGS_BYTES_MAX {
            return Err(protocol("SETTINGS longer than 4 MiB"));
        }
        whole.json.extend_from_slice(bytes);
        whole.next += 1;
        if whole.next == parts {
            self.settings_unanswered += whole.json.len() + size_of::<Event>();
            if self.settings_unanswered > SETTINGS_UNANSWERED_BYTES_MAX {
                return Err(flood("too many SETTINGS at once"));
            }
            self.events.push_back(Event::Settings {
                version,
                json: whole.json,
            });
        } else {
            self.settings_in = Some(whole);
        }
        Ok(())
    }

    fn handle_goaway(&mut self, now: Time, budget: &mut Budget, last: u64, reason: GoAwayReason, text: Bytes) -> Done {
        if matches!(reason, GoAwayReason::Protocol | GoAwayReason::Limit) {
            let words = String::from_utf8_lossy(&text).into_owned();
            self.session_over(now, budget, reason, &words, false);
            return Ok(());
        }
        if std::mem::replace(&mut self.goaway_read, true) {
            return Err(protocol("a second GOAWAY"));
        }
        for r in self.streams.refs() {
            if self.streams.get(r).is_some_and(|s| s.own && !s.orphan && s.id > last) {
                self.withdraw(now, budget, r);
            }
        }
        self.withdraw_unwritten(now, budget);
        self.events.push_back(Event::GoAway { reason, text });
        Ok(())
    }

    fn own_parity(&self, id: u64) -> bool {
        (id % 2 == 1) == (self.config.side == Side::Client)
    }

    fn handle_open(&mut self, now: Time, budget: &mut Budget, id: u64, open: Open) -> Done {
        if self.own_parity(id) {
            return Err(protocol("OPEN of the wrong parity"));
        }
        if id <= self.highest_peer {
            return Err(protocol("OPEN at or below an earlier one"));
        }
        if self.goaway_read {
            return Err(protocol("OPEN after GOAWAY"));
        }
        if (open.kind == Kind::Relay) != (self.config.side == Side::Endpoint) {
            return Err(protocol("OPEN of a kind that this side does not open"));
        }
        self.highest_peer = id;
        if self.goaway_last.is_some() && !planted("goaway-serves-all") {
            return Ok(());
        }
        if !budget.take_place(false) {
            if self.schedule.refusals.len() >= REFUSALS_PENDING_MAX && !planted("refusals-unbounded") {
                return Err(flood("too many streams beyond the limit"));
            }
            self.schedule.refusals.push_back(id);
            return Ok(());
        }
        let mut stream = Stream::new(id, false, open.kind, now);
        stream.limit = u64::from(open.credit);
        stream.window = FIRST_GRANT_BYTES as u64;
        stream.refusals_seen = budget.refusals;
        let warm = self.rate.bandwidth_delay(now, self.liveness.rtt_us());
        budget.set_offsets(&mut stream, BASE_CREDIT_PEER_BYTES as u64, 0);
        let grant = budget.first_grant(warm);
        if warm > FIRST_GRANT_BYTES && grant > BASE_CREDIT_PEER_BYTES {
            budget.set_offsets(&mut stream, grant as u64, 0);
            stream.window = (2 * grant).min(WINDOW_BYTES_MAX) as u64;
            stream.mark_due = grant as u64;
            stream.flags.credit = true;
        }
        let r = self.streams.insert(stream);
        if let Some(s) = self.streams.get_mut(r) {
            self.schedule.list_control(r, s);
        }
        self.events.push_back(Event::Opened(r, open));
        Ok(())
    }

    fn handle_stream_frame(
        &mut self,
        now: Time,
        budget: &mut Budget,
        header: Header,
        frame: Frame,
        block: u32,
    ) -> Done {
        let id = header.stream;
        let highest = if self.own_parity(id) {
            self.highest_own
        } else {
            self.highest_peer
        };
        if id > highest {
            return Err(protocol("a frame for a stream that was never opened"));
        }
        let Some(r) = self.streams.by_id(id) else {
            return Ok(());
        };
        if let Some(s) = self.streams.get_mut(r).filter(|s| !s.answered) {
            s.answered = true;
            s.unanswered = Default::default();
        }
        if self.streams.get(r).is_some_and(Stream::is_ended) {
            return Ok(());
        }
        match frame {
            Frame::Data(_, bytes) => self.handle_data(now, budget, r, bytes, block),
            Frame::Fin(_, timings) => self.handle_fin(budget, r, timings),
            Frame::Reset(_, code, text) => self.handle_reset(now, budget, r, code, text),
            Frame::Credit(_, offset) => self.handle_credit(now, r, offset),
            Frame::Recall(_, offset) => self.handle_recall(r, offset),
            Frame::Return(_, limit) => self.handle_return(budget, r, limit),
            Frame::Opened(_, opened) => self.once(r, kind::OPENED, true, |r| Event::Accepted(r, opened)),
            Frame::StartTls { sni, alpn, .. } => {
                self.once(r, kind::START_TLS, false, |r| Event::StartTls(r, sni, alpn))
            }
            Frame::TlsReport(_, report) => self.once(r, kind::TLS_REPORT, true, |r| Event::TlsReport(r, report)),
            _ => Err(protocol("a session frame that names a stream")),
        }
    }

    /// OPENED, START_TLS and TLS_REPORT: once a stream, of kind `tcp`, opened by the right side, each in answer to the
    /// one before. OPENED and START_TLS come before any DATA of their sender.
    fn once(&mut self, r: StreamRef, kind: u8, own: bool, event: impl FnOnce(StreamRef) -> Event) -> Done {
        let Some(s) = self.streams.get_mut(r) else {
            return Ok(());
        };
        let n = usize::from(kind - kind::OPENED);
        let again = std::mem::replace(&mut s.seen[n], true);
        let unasked = n > 0 && !s.said[n - 1];
        let late = kind != kind::TLS_REPORT && (s.received > 0 || s.fin_read);
        if again || unasked || late || s.kind != Kind::Tcp || s.own != own {
            return Err(protocol(
                "a frame that this stream does not have, not now, or not twice",
            ));
        }
        // The site may have ended already: a TLS_REPORT says what it was all the same.
        if !matches!(s.rx, Rx::Reset(..) | Rx::Done) && !s.released {
            self.events.push_back(event(r));
        }
        Ok(())
    }

    fn handle_data(&mut self, now: Time, budget: &mut Budget, r: StreamRef, bytes: Bytes, block: u32) -> Done {
        let Some(s) = self.streams.get_mut(r) else {
            return Ok(());
        };
        if s.fin_read || s.is_unanswered_tcp() {
            return Err(protocol("DATA before OPENED or after FIN"));
        }
        // Own RESET is on its way: what the peer sends meanwhile is dropped, without credit.
        if s.rx != Rx::Open {
            return Ok(());
        }
        if s.received + bytes.len() as u64 > s.advertised {
            return Err(protocol("DATA beyond the credit"));
        }
        s.received += bytes.len() as u64;
        s.last_data = now;
        if s.received >= EARLY_RESET_BYTES {
            mark_served(&mut self.unserved, s);
        }
        self.rate.add(now, s, bytes.len());
        budget.hold(bytes.len());
        self.blocks.hold(block);
        s.inbox.push_back(Slice {
            bytes,
            block,
            moved: false,
        });
        if !s.young {
            s.young = true;
            self.young.push_back((now, self.received, r));
        }
        self.tell_readable(r);
        Ok(())
    }

    fn handle_fin(&mut self, budget: &mut Budget, r: StreamRef, timings: Option<frame::Timings>) -> Done {
        let Some(s) = self.streams.get_mut(r) else {
            return Ok(());
        };
        if std::mem::replace(&mut s.fin_read, true) || s.is_unanswered_tcp() {
            return Err(protocol("FIN before OPENED, or a second one"));
        }
        if s.rx != Rx::Open {
            return Ok(());
        }
        s.rx = Rx::Fin(timings);
        self.receiving_ended(budget, r);
        self.tell_readable(r);
        self.settle(budget, r);
        Ok(())
    }

    /// No more DATA comes: the unused credit goes back to the pool at once.
    fn receiving_ended(&mut self, budget: &mut Budget, r: StreamRef) {
        let Some(s) = self.streams.get_mut(r) else {
            return;
        };
        mark_served(&mut self.unserved, s);
        s.flags.credit = false;
        // The answer to one that has left is still to come.
        if s.flags.recall.take().is_some() {
            s.recalled = false;
        }
        if !planted("unused-credit-kept") {
            let (received, consumed) = (s.received, s.consumed);
            budget.set_offsets(s, received, consumed);
        }
    }

    fn handle_reset(&mut self, now: Time, budget: &mut Budget, r: StreamRef, code: Code, text: Bytes) -> Done {
        let in_grace = self.resumed_at.is_some_and(|t| now.since(t) < EARLY_RESET_GRACE);
        let Some(s) = self.streams.get_mut(r) else {
            return Ok(());
        };
        // A whole answer is served, however short: its opener does not count such a reset either.
        let served = s.written >= EARLY_RESET_BYTES || s.tx == Tx::Ended;
        let early = !s.own && !served && !in_grace;
        if early && !self.buckets.early_reset(now) {
            return Err(flood("too many streams reset before they were served"));
        }
        let after_fin = matches!(s.rx, Rx::Fin(_));
        if matches!(s.tx, Tx::Open | Tx::FinQueued(_)) {
            s.tx = Tx::Stopped(code);
        }
        s.flags = super::stream::Flags {
            listed: s.flags.listed,
            ..Default::default()
        };
        let discard = !after_fin || planted("discard-before-fin");
        if discard && s.rx != Rx::Done {
            s.rx = Rx::Reset(code, text);
            // Told again even if its holder has not come for what was there: that is discarded now.
            s.readable_told = false;
            self.receiving_ended(budget, r);
            self.discard_inbox(budget, r);
        }
        self.drop_outbox(budget, r);
        self.tell_readable(r);
        self.tell_stopped(r);
        self.settle(budget, r);
        Ok(())
    }

    fn handle_credit(&mut self, now: Time, r: StreamRef, offset: u64) -> Done {
        let Some(s) = self.streams.get_mut(r) else {
            return Ok(());
        };
        if offset > s.limit {
            s.limit = offset;
            self.tell_writable(r);
        } else if !self.buckets.idle_credit(now) {
            return Err(flood("too many CREDITs that raise nothing"));
        }
        Ok(())
    }

    fn handle_recall(&mut self, r: StreamRef, offset: u64) -> Done {
        let Some(s) = self.streams.get_mut(r) else {
            return Ok(());
        };
        let used = if planted("return-ignores-queue") {
            s.written
        } else {
            s.queued
        };
        s.limit = s.limit.min(offset.max(used));
        if s.flags.reset.is_none() || s.finished() {
            s.flags.answer_recall = true;
            self.schedule.list_control(r, s);
        }
        Ok(())
    }

    fn handle_return(&mut self, budget: &mut Budget, r: StreamRef, limit: u64) -> Done {
        let Some(s) = self.streams.get_mut(r) else {
            return Ok(());
        };
        if !std::mem::take(&mut s.recalled) {
            return Err(protocol("RETURN without RECALL"));
        }
        if s.rx != Rx::Open {
            return Ok(());
        }
        if limit < s.received || limit > s.advertised {
            return Err(protocol("RETURN out of range"));
        }
        let consumed = s.consumed;
        budget.set_offsets(s, limit, consumed);
        // An idle stream keeps its base and no more, else it would take back at once what it returned.
        if limit - consumed < super::credit::base(s) as u64 {
            self.refill(budget, r);
        }
        Ok(())
    }

    /// As many bytes have come since as slices in read buffers may keep alive. What outlives its session waits for its time:
    /// the count has begun anew.
    fn has_passed(&self, at: u64) -> bool {
        self.received.saturating_sub(at) > SLICES_IN_READ_BUFFERS_MAX
    }

    /// Slices that have waited long, or behind which much has come, move into buffers of their own size, so that a
    /// stalled stream does not keep a whole read buffer alive.
    pub(super) fn settle_young(&mut self, now: Time, budget: &mut Budget) {
        // Those that are handed out are asked once.
        for _ in 0..self.young.len() {
            let Some((since, at, r)) = self.young.front().copied() else {
                return;
            };
            if now.since(since) < SLICE_AGE_MAX && !self.has_passed(at) {
                return;
            }
            self.young.pop_front();
            let Some(s) = self.streams.get_mut(r) else {
                continue;
            };
            s.young = false;
            if s.handed > 0 {
                s.young = true;
                self.young.push_back((now, self.received, r));
                continue;
            }
            let first = s.inbox.iter().position(|x| !x.moved);
            let Some(mut first) = first else { continue };
            // A short buffer before them takes them up.
            let mut slices: Vec<Slice> = s.inbox.take().collect();
            if first > 0 && slices[first - 1].bytes.len() < SLICE_MERGE_BYTES / 4 {
                first -= 1;
            }
            let old = slices.split_off(first);
            s.inbox.extend(slices);
            s.inbox.extend(moved(old, &mut self.blocks, budget));
        }
    }

    /// While the pool is low, idle streams are asked for the credit that they do not use.
    pub(super) fn recall_idle(&mut self, now: Time, budget: &mut Budget) {
        if self.recall_at.is_some_and(|t| now < t) {
            return;
        }
        self.recall_at = None;
        if !budget.pool_is_low() || self.streams.open == 0 || planted("never-recall") {
            return;
        }
        for r in self.streams.refs() {
            let Some(s) = self.streams.get_mut(r) else {
                continue;
            };
            let keep = s.received.max(s.consumed + super::credit::base(s) as u64);
            let idle = s.rx == Rx::Open && !s.orphan && !s.recalled && now.since(s.last_data) >= RECALL_IDLE;
            if idle && keep < s.advertised && s.open_written {
                s.recalled = true;
                s.flags.recall = Some(keep);
                self.schedule.list_control(r, s);
            }
        }
        self.recall_at = Some(now + RECALL_INTERVAL);
    }
}

/// Copies slices together into buffers of their own size.
fn moved(old: Vec<Slice>, blocks: &mut super::credit::Blocks, budget: &mut Budget) -> Vec<Slice> {
    let mut out: Vec<Slice> = Vec::new();
    let mut gathered: Vec<Slice> = Vec::new();
    let mut bytes = 0;
    let mut old = old.into_iter().peekable();
    while let Some(slice) = old.next() {
        bytes += slice.bytes.len();
        gathered.push(slice);
        let full = old
            .peek()
            .is_none_or(|next| bytes + next.bytes.len() > SLICE_MERGE_BYTES);
        if full {
            let mut own = Vec::with_capacity(bytes);
            for slice in gathered.drain(..) {
                own.extend_from_slice(&slice.bytes);
                blocks.release(budget, slice.block);
            }
            out.push(Slice {
                bytes: Bytes::from(own),
                block: blocks.add(budget, bytes),
                moved: true,
            });
            bytes = 0;
        }
    }
    out
}
