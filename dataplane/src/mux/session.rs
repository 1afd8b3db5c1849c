//! The session of one link: commands, frames, connections and deadlines.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::credit::{Blocks, Budget, RateMeter, grow_window};
use super::flood::Buckets;
use super::frame::{self, Code, Frame, GoAwayReason, Header, Hello, Open, Opened, Timings, TlsReport, kind};
use super::liveness::Liveness;
use super::planted::planted;
use super::resume::{Retained, Retention};
use super::schedule::{Ordered, Schedule};
use super::stream::{Rx, Stream, StreamRef, Streams, Tx};
use crate::limits::{
    BASE_CREDIT_PEER_BYTES, CONNECTION_LIFE_MIN, DIAL_BACKOFF_MAX, DIAL_BACKOFF_MIN, FIRST_DIAL_MAX, FIRST_GRANT_BYTES,
    FRAME_HEADER_BYTES, LINK_DOWN_GRACE, OUTAGE_INVISIBLE, RESUME_WINDOW, SESSION_ERRORS_BACKOFF, SESSION_ERRORS_MAX,
    SESSION_ERRORS_SPAN, WINDOW_BYTES_MAX,
};
use crate::time::Time;

/// Which end of the link this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `sc`: dials, opens odd ids.
    Client,
    /// The endpoint: is dialled, opens even ids.
    Endpoint,
}

/// What a session needs to know of its link.
#[derive(Clone, Debug)]
pub struct Config {
    pub side: Side,
    /// Names this session in [`Budget::next_unblocked`]; unique within the shard.
    pub key: u32,
    pub link: u16,
    pub links: u16,
    pub member: [u8; 16],
    /// Random: session ids are counted up from it, back-off jitter is drawn from it.
    pub seed: [u8; 16],
    /// The rules' version held at the start (endpoint: answered in the first SETTINGS_ACK; 0 = none).
    pub settings: u32,
}

/// What the shell has to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Client only: dial this link now.
    Dial,
    /// End the connection: at once if `abort`, else after what `poll_transmit` still gives and close_notify.
    Close {
        abort: bool,
    },
    /// Both HELLOs are exchanged.
    Up {
        resumed: bool,
    },
    /// Streams may be opened on this link (again).
    Live,
    /// The peer opened a stream.
    Opened(StreamRef, Open),
    /// `recv` has something new: data or an end.
    Readable(StreamRef),
    /// `room` may have grown, or writing was stopped.
    Writable(StreamRef),
    /// The site of an own `tcp` stream is connected.
    Accepted(StreamRef, Opened),
    StartTls(StreamRef, Bytes, Bytes),
    TlsReport(StreamRef, TlsReport),
    /// The stream was never acted on and will not be: place it anew, on another link or later, with these DATA frames
    /// (head-room and payload) and `finish` if it was asked for. The ref is dead.
    Withdrawn {
        stream: StreamRef,
        frames: Vec<Bytes>,
        finished: Option<Option<Timings>>,
    },
    /// Rules arrived whole; parse them on the control thread and answer with `settings_ack`.
    Settings {
        version: u32,
        json: Vec<u8>,
    },
    SettingsAck {
        version: u32,
        accepted: bool,
        text: Bytes,
    },
    /// The peer drains: no new streams here.
    GoAway {
        reason: GoAwayReason,
        text: Bytes,
    },
    /// Drained in both directions: nothing is left of this session, do not redial.
    Finished,
    /// The session ended and its streams with it; a fresh one follows.
    SessionEnded {
        code: Code,
        peer_at_fault: bool,
        text: String,
    },
}

/// Why no stream was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The link takes no new streams now.
    NotLive,
    /// The stream limit of the shard is reached.
    Limit,
    /// The flood limit for early resets is near: wait and try again.
    Paced,
}

/// Why nothing more can be written to a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The peer, or the end of the session, stopped this direction.
    Stopped(Code),
    /// The ref is dead.
    Gone,
}

/// What a stream has for its local socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recv {
    /// Nothing yet; `Readable` follows.
    Pending,
    /// The next bytes; give them back with `consumed` once the local socket has them.
    Data(Bytes),
    /// The end, clean.
    Fin(Option<Timings>),
    /// The end, cut: never to be shown as complete.
    Reset(Code, Bytes),
    /// The ref is dead.
    Gone,
}

/// Why a HELLO was not accepted; the connection closes, the session is untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// No common protocol version.
    Version,
    /// Lower or equal epoch: an older connection that arrived late.
    OldEpoch,
    /// Another member, link or number of links, or no name for a fresh session.
    Mismatch,
}

/// Where the link's connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conn {
    Down,
    /// `sc`: the shell is dialling.
    Dialing,
    /// `sc`: HELLO is on its way, the answer is not here.
    Greeting,
    /// Both HELLOs are exchanged.
    Up,
}

/// State machine of one link: its current session, or none, and at most one connection.
///
/// ```text
///  Down ──dial due──► Dialing ──connected──► Greeting ──HELLO──► Up      (sc)
///  Down ──────────────────────connected_by─────────────────────► Up      (endpoint)
///    ▲────────────────────── disconnected, dial_failed ──────────┘
/// ```
pub struct Session {
    pub(super) config: Config,
    random: u64,
    pub(super) conn: Conn,
    /// `Close` was asked of the shell: `Some(true)` at once, `Some(false)` after a flush.
    pub(super) closing: Option<bool>,
    /// The session ended while its connection still stands.
    pub(super) failed: bool,
    pub(super) farewell: Option<Frame>,
    pub(super) hello_out: Option<Hello>,

    session: [u8; 16],
    fresh: [u8; 16],
    epoch: u64,
    up_since: Time,
    lost_at: Option<Time>,
    /// First loss since the last progress.
    outage: Option<Time>,
    /// This connection carried more than HELLO.
    progressed: bool,
    pub(super) resumed_at: Option<Time>,
    withdrawn_since_loss: bool,
    cut_over: bool,
    cut_over_received: Option<u64>,

    dial_at: Option<Time>,
    dial_started: Time,
    dial_failures: u32,
    errors: VecDeque<Time>,
    pub(super) finished: bool,

    pub(super) received: u64,
    pub(super) ack_sent: u64,
    pub(super) ack_due: Option<Time>,
    pub(super) ack_now: bool,
    /// This connection sent an ACK: the first leaves at once, because it tells the peer that the outage is over.
    pub(super) acked_once: bool,
    pub(super) pongs: VecDeque<[u8; 8]>,
    pub(super) retention: Retention,
    /// Retained frames other than DATA.
    pub(super) control_held: usize,
    /// Retained and queued DATA of this link, with headers.
    pub(super) data_held: usize,
    pub(super) frames_replayed: u64,
    /// Scratch of `acknowledged`.
    freed: Vec<Retained>,

    pub(super) streams: Streams,
    pub(super) schedule: Schedule,
    pub(super) liveness: Liveness,
    pub(super) rate: RateMeter,
    pub(super) blocks: Blocks,
    pub(super) young: VecDeque<(Time, StreamRef)>,
    pub(super) recall_at: Option<Time>,
    pub(super) buckets: Buckets,
    pub(super) partial: BytesMut,
    pub(super) settings_in: Option<super::receive::SettingsIn>,
    /// Bytes of the SETTINGS handed on since the last answer.
    pub(super) settings_unanswered: usize,
    pub(super) events: VecDeque<Event>,

    peer_credit: u32,
    next_own: u64,
    /// Highest own id whose OPEN was written.
    pub(super) highest_own: u64,
    /// Highest id that the peer opened.
    pub(super) highest_peer: u64,
    pub(super) goaway_queued: bool,
    pub(super) goaway_last: Option<u64>,
    pub(super) goaway_read: bool,
    /// Own streams that received less than an early reset needs.
    pub(super) unserved: u32,
}

impl Session {
    pub fn new(config: Config, now: Time) -> Self {
        let random = u64::from_be_bytes(*config.seed.first_chunk().unwrap_or(&[1; 8])) | 1;
        let client = config.side == Side::Client;
        Self {
            random,
            conn: Conn::Down,
            closing: None,
            failed: false,
            farewell: None,
            hello_out: None,
            session: [0; 16],
            fresh: next_id(config.seed),
            epoch: 0,
            up_since: now,
            lost_at: None,
            outage: None,
            progressed: false,
            resumed_at: None,
            withdrawn_since_loss: false,
            cut_over: false,
            cut_over_received: None,
            dial_at: client.then_some(now),
            dial_started: now,
            dial_failures: 0,
            errors: VecDeque::new(),
            finished: false,
            received: 0,
            ack_sent: 0,
            ack_due: None,
            ack_now: false,
            acked_once: false,
            pongs: VecDeque::new(),
            retention: Retention::default(),
            control_held: 0,
            data_held: 0,
            frames_replayed: 0,
            freed: Vec::new(),
            streams: Streams::new(random),
            schedule: Schedule::default(),
            liveness: Liveness::new(now),
            rate: RateMeter::default(),
            blocks: Blocks::default(),
            young: VecDeque::new(),
            recall_at: None,
            buckets: Buckets::new(now),
            partial: BytesMut::new(),
            settings_in: None,
            settings_unanswered: 0,
            events: VecDeque::new(),
            peer_credit: 0,
            next_own: if client { 1 } else { 2 },
            highest_own: 0,
            highest_peer: 0,
            goaway_queued: false,
            goaway_last: None,
            goaway_read: false,
            unserved: 0,
            config,
        }
    }

    // ── Connection ────────────────────────────────────────────────────────────────────────────────────────────

    /// Client: TLS is up on a new connection; HELLO leaves next.
    pub fn connected(&mut self, now: Time, _budget: &mut Budget) {
        debug_assert_eq!(self.conn, Conn::Dialing);
        self.epoch += 1;
        self.conn = Conn::Greeting;
        self.liveness.received(now);
        if self.finished {
            return self.close(true);
        }
        self.hello_out = Some(self.hello(self.session, self.fresh));
    }

    /// Client: the dial failed or took too long.
    pub fn dial_failed(&mut self, now: Time) {
        self.conn = Conn::Down;
        self.back_off(now);
    }

    /// Client: how long a dial (proxy, TCP, TLS and HELLO together) may take now.
    pub fn dial_time_max(&self) -> Duration {
        match self.liveness.srtt() {
            Some(_) => self.liveness.patience(),
            None => FIRST_DIAL_MAX,
        }
    }

    /// Endpoint: may this HELLO take the link over? Asked before the cut-over, changes nothing.
    ///
    /// # Errors
    /// Why not; only the new connection closes.
    pub fn check_hello(&self, hello: &Hello) -> Result<(), Reject> {
        let c = &self.config;
        if !(hello.version_min..=hello.version_max).contains(&frame::VERSION) {
            return Err(Reject::Version);
        }
        let unnamed = hello.fresh == [0; 16];
        if hello.member != c.member || hello.link != c.link || hello.links != c.links || unnamed {
            return Err(Reject::Mismatch);
        }
        if hello.epoch <= self.epoch && !planted("accept-old-epoch") {
            return Err(Reject::OldEpoch);
        }
        Ok(())
    }

    /// Endpoint: the cut-over starts; the session does not expire until `connected_by`.
    pub fn begin_cut_over(&mut self) {
        self.cut_over = true;
        self.cut_over_received = Some(self.received);
    }

    /// Endpoint: a new connection, after the cut-over; our HELLO leaves next.
    pub fn connected_by(&mut self, now: Time, budget: &mut Budget, hello: &Hello) {
        debug_assert_eq!(self.conn, Conn::Down);
        self.cut_over = false;
        self.epoch = hello.epoch;
        self.finished = false;
        let exists = self.session != [0; 16];
        let same = exists && hello.session == self.session;
        let confirmed_only_here = exists && hello.fresh == self.session;
        let resumed = same || confirmed_only_here;
        let received = if same || planted("fresh-received-not-zero") {
            hello.received
        } else {
            0
        };
        let kept = if resumed {
            self.acknowledged(now, budget, received)
        } else {
            self.start_fresh(now, budget, hello.fresh);
            Ok(())
        };
        let mut answer = self.hello(self.session, [0; 16]);
        answer.fresh = [0; 16];
        if planted("received-before-old-read") && resumed {
            answer.received = self.cut_over_received.unwrap_or(answer.received);
        }
        self.hello_out = Some(answer);
        self.go_up(now, hello, resumed);
        if let Err(violation) = kept {
            self.fail(now, budget, GoAwayReason::Protocol, violation.0);
        }
    }

    fn hello(&self, session: [u8; 16], fresh: [u8; 16]) -> Hello {
        let c = &self.config;
        Hello {
            version_min: frame::VERSION,
            version_max: frame::VERSION,
            link: c.link,
            links: c.links,
            member: c.member,
            session,
            fresh,
            epoch: self.epoch,
            received: self.received,
            first_credit: BASE_CREDIT_PEER_BYTES as u32,
        }
    }

    /// Client: the endpoint's answer.
    pub(super) fn handle_hello(&mut self, now: Time, budget: &mut Budget, hello: &Hello) {
        let c = &self.config;
        let fits = hello.version_min == frame::VERSION
            && hello.version_max == frame::VERSION
            && hello.member == c.member
            && (hello.link, hello.links, hello.epoch) == (c.link, c.links, self.epoch);
        let same = self.session != [0; 16] && hello.session == self.session;
        if !fits || !(same || hello.session == self.fresh) {
            return self.close(true);
        }
        if same {
            // Before the link counts as up: HELLO alone is no progress.
            let kept = if planted("replay-from-last-ack") {
                Ok(())
            } else {
                self.acknowledged(now, budget, hello.received)
            };
            self.go_up(now, hello, true);
            if let Err(violation) = kept {
                self.fail(now, budget, GoAwayReason::Protocol, violation.0);
            }
            return;
        }
        let fresh = self.fresh;
        self.fresh = next_id(fresh);
        self.start_fresh(now, budget, fresh);
        self.go_up(now, hello, false);
        if hello.received != 0 {
            self.fail(
                now,
                budget,
                GoAwayReason::Protocol,
                "a fresh session that has received bytes already",
            );
        }
    }

    fn go_up(&mut self, now: Time, hello: &Hello, resumed: bool) {
        self.conn = Conn::Up;
        self.up_since = now;
        self.progressed = false;
        self.peer_credit = hello.first_credit;
        self.ack_sent = self.received;
        (self.ack_due, self.ack_now, self.acked_once) = (None, false, false);
        self.retention.rewind();
        self.liveness.restart(now);
        if resumed {
            self.resumed_at = Some(now);
        }
        if planted("count-hello") {
            self.received += (FRAME_HEADER_BYTES + 76) as u64;
        }
        if planted("hello-restarts-window") {
            self.outage = None;
        }
        self.events.push_back(Event::Up { resumed });
    }

    /// The connection carries more than HELLO: the outage is over.
    pub(super) fn progress(&mut self) {
        self.outage = None;
        if std::mem::replace(&mut self.progressed, true) {
            return;
        }
        self.dial_failures = 0;
        if self.is_live() {
            self.events.push_back(Event::Live);
        }
        for r in self.streams.refs() {
            self.tell_writable(r);
        }
    }

    fn start_fresh(&mut self, now: Time, budget: &mut Budget, session: [u8; 16]) {
        let lost_long = self.outage.is_some_and(|t| now.since(t) > OUTAGE_INVISIBLE);
        let code = if lost_long {
            Code::TunnelDown
        } else {
            Code::PeerRestarted
        };
        if self.session != [0; 16] {
            self.tell_ended(code, "the other side does not know it any more");
        }
        self.end_session(now, budget, code);
        self.outage = None;
        self.session = session;
        (self.next_own, self.highest_own, self.highest_peer) = (2 - self.next_own % 2, 0, 0);
        (self.goaway_queued, self.goaway_last, self.goaway_read) = (false, None, false);
        self.buckets = Buckets::new(now);
        if self.config.side == Side::Endpoint {
            let version = self.config.settings;
            self.schedule.ordered.push_back(Ordered::SettingsAck {
                version,
                accepted: true,
                text: Bytes::new(),
            });
        }
    }

    /// The connection is gone and all it brought was fed. `clean`: close_notify was read.
    pub fn disconnected(&mut self, now: Time, budget: &mut Budget, clean: bool) {
        let was = std::mem::replace(&mut self.conn, Conn::Down);
        (self.closing, self.hello_out, self.farewell) = (None, None, None);
        // What was to be closed is gone: the next connection must not be taken for it.
        self.events.retain(|e| !matches!(e, Event::Close { .. }));
        (self.ack_due, self.ack_now) = (None, false);
        self.partial.clear();
        self.pongs.clear();
        if planted("drop-fin-at-cut") {
            self.drop_pending_fins();
        }
        if std::mem::take(&mut self.failed) {
            self.session = [0; 16];
            self.outage = None;
        } else if self.session != [0; 16] {
            self.outage.get_or_insert(now);
        }
        if was == Conn::Up {
            self.lost_at = Some(now);
            self.withdrawn_since_loss = false;
        }
        self.check_finished(now, budget);
        if clean && self.goaway_read && self.streams.open == 0 {
            self.finish_session(now, budget);
        }
        self.closing = None;
        if self.finished {
            return self.forget_session(now, budget);
        }
        if self.config.side == Side::Client {
            self.schedule_dial(now, was);
        }
        self.expire(now, budget);
    }

    fn forget_session(&mut self, now: Time, budget: &mut Budget) {
        self.end_session(now, budget, Code::Shutdown);
        self.session = [0; 16];
        self.outage = None;
    }

    fn drop_pending_fins(&mut self) {
        for r in self.streams.refs() {
            if let Some(s) = self.streams.get_mut(r).filter(|s| matches!(s.tx, Tx::FinQueued(_))) {
                s.tx = Tx::Ended;
            }
        }
    }

    fn schedule_dial(&mut self, now: Time, was: Conn) {
        if was != Conn::Up {
            return self.back_off(now);
        }
        let lived = now.since(self.up_since) >= CONNECTION_LIFE_MIN;
        self.dial_at = Some(if lived { now } else { now + CONNECTION_LIFE_MIN });
        self.forget_old_errors(now);
        if self.errors.len() >= SESSION_ERRORS_MAX {
            self.dial_at = Some(now + SESSION_ERRORS_BACKOFF);
        }
    }

    fn forget_old_errors(&mut self, now: Time) {
        self.errors.retain(|t| now.since(*t) < SESSION_ERRORS_SPAN);
    }

    fn back_off(&mut self, now: Time) {
        let doubled = DIAL_BACKOFF_MIN * 2u32.pow(self.dial_failures.min(8));
        self.dial_failures = self.dial_failures.saturating_add(1);
        let delay = doubled.min(DIAL_BACKOFF_MAX);
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let jitter = (self.random >> 33) as f64 / (1u64 << 31) as f64;
        self.dial_at = Some(now + delay.mul_f64(0.5 + jitter / 2.0));
    }

    pub fn is_connected(&self) -> bool {
        self.conn == Conn::Up
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` is due at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        let streams = self.streams.open > 0;
        let up =
            (self.conn == Conn::Up && self.closing.is_none() && !self.failed).then(|| self.liveness.deadline(streams));
        let greeting =
            (self.conn == Conn::Greeting && self.closing.is_none()).then(|| self.dial_started + self.dial_time_max());
        let dial = self.dial_at.filter(|_| self.conn == Conn::Down && !self.finished);
        let expiry = self.expires_at();
        let grace = self.withdraw_at();
        let young = self.young.front().map(|(t, _)| *t + crate::limits::SLICE_AGE_MAX);
        [up, greeting, dial, expiry, grace, young, self.ack_due, self.recall_at]
            .into_iter()
            .flatten()
            .min()
    }

    pub fn handle_timeout(&mut self, now: Time, budget: &mut Budget) {
        if self.conn == Conn::Down && !self.finished && self.dial_at.is_some_and(|t| t <= now) {
            self.dial_at = None;
            self.conn = Conn::Dialing;
            self.dial_started = now;
            self.events.push_back(Event::Dial);
        }
        if self.conn == Conn::Greeting && self.dial_started + self.dial_time_max() <= now {
            self.close(true);
        }
        self.expire(now, budget);
        if self.withdraw_at().is_some_and(|t| t <= now) {
            self.withdrawn_since_loss = true;
            self.withdraw_unwritten(now, budget);
        }
        if self.conn == Conn::Up && self.closing.is_none() && !self.failed {
            let streams = self.streams.open > 0;
            if self.liveness.handle_timeout(now, streams) == super::liveness::Verdict::Dead {
                self.close(true);
            }
        }
        if self.ack_due.is_some_and(|t| t <= now) {
            self.ack_due = None;
            self.ack_now = true;
        }
        self.settle_young(now, budget);
        self.recall_idle(now, budget);
    }

    fn expires_at(&self) -> Option<Time> {
        let greeting = self.conn == Conn::Greeting && !planted("expire-during-hello");
        let cut_over = self.cut_over && !planted("expire-during-cut-over");
        self.outage
            .map(|t| t + RESUME_WINDOW)
            .filter(|_| !greeting && !cut_over && !self.failed)
    }

    fn expire(&mut self, now: Time, budget: &mut Budget) {
        if self.expires_at().is_none_or(|t| now < t) {
            return;
        }
        self.tell_ended(Code::TunnelDown, "no progress within the resume window");
        self.end_session(now, budget, Code::TunnelDown);
        self.session = [0; 16];
        self.outage = None;
        if self.conn == Conn::Up {
            self.failed = true;
            self.close(true);
        }
    }

    fn tell_ended(&mut self, code: Code, text: &str) {
        self.events.push_back(Event::SessionEnded {
            code,
            peer_at_fault: false,
            text: text.to_owned(),
        });
    }

    fn withdraw_at(&self) -> Option<Time> {
        let down = self.conn != Conn::Up && !self.withdrawn_since_loss;
        self.lost_at.map(|t| t + LINK_DOWN_GRACE).filter(|_| down)
    }

    /// Ask the shell, once, to end the connection.
    pub(super) fn close(&mut self, abort: bool) {
        if self.closing.is_none() && self.conn != Conn::Down {
            self.closing = Some(abort);
            self.events.push_back(Event::Close { abort });
        }
    }

    /// The session ends because one side broke its rules; it is never resumed.
    pub(super) fn fail(&mut self, now: Time, budget: &mut Budget, reason: GoAwayReason, text: &str) {
        self.farewell = Some(Frame::GoAway {
            last: self.highest_peer,
            reason,
            text: frame::short_text(text),
        });
        self.session_over(now, budget, reason, text, true);
    }

    pub(super) fn session_over(
        &mut self,
        now: Time,
        budget: &mut Budget,
        reason: GoAwayReason,
        text: &str,
        peer_at_fault: bool,
    ) {
        let code = if reason == GoAwayReason::Limit {
            Code::Limit
        } else {
            Code::Protocol
        };
        self.end_session(now, budget, Code::Protocol);
        self.failed = true;
        self.forget_old_errors(now);
        self.errors.push_back(now);
        if self.errors.len() > SESSION_ERRORS_MAX {
            self.errors.pop_front();
        }
        self.events.push_back(Event::SessionEnded {
            code,
            peer_at_fault,
            text: text.to_owned(),
        });
        self.close(false);
    }

    /// Ends every stream and forgets what was retained and queued.
    fn end_session(&mut self, now: Time, budget: &mut Budget, code: Code) {
        self.withdraw_unwritten(now, budget);
        for r in self.streams.refs() {
            self.end_stream(budget, r, code);
        }
        let mut freed = Vec::new();
        self.retention.clear(|f| freed.push(f));
        for frame in freed {
            self.forget(budget, &frame);
        }
        self.schedule = Schedule::default();
        self.settings_in = None;
        self.settings_unanswered = 0;
        (self.received, self.ack_sent, self.ack_due, self.ack_now) = (0, 0, None, false);
        self.recall_at = None;
    }

    fn end_stream(&mut self, budget: &mut Budget, r: StreamRef, code: Code) {
        let Some(s) = self.streams.get_mut(r).filter(|s| !s.orphan) else {
            return;
        };
        if s.rx == Rx::Open {
            s.rx = Rx::Reset(code, Bytes::new());
        }
        if matches!(s.tx, Tx::Open | Tx::FinQueued(_)) {
            s.tx = Tx::Stopped(code);
        }
        mark_served(&mut self.unserved, s);
        s.flags = Default::default();
        s.unanswered = Vec::new();
        let (advertised, consumed) = (s.received, s.consumed);
        budget.set_offsets(s, advertised, consumed);
        if matches!(s.rx, Rx::Reset(..)) {
            self.discard_inbox(budget, r);
        }
        self.drop_outbox(budget, r);
        self.streams.orphan(r);
        self.tell_readable(r);
        self.tell_stopped(r);
        self.settle(budget, r);
    }

    /// OPENs that never left move on: gaps in ids are allowed.
    pub(super) fn withdraw_unwritten(&mut self, now: Time, budget: &mut Budget) {
        let mut kept = VecDeque::new();
        for item in std::mem::take(&mut self.schedule.ordered) {
            match item {
                Ordered::Open(r, _) => self.withdraw(now, budget, r),
                other => kept.push_back(other),
            }
        }
        self.schedule.ordered = kept;
    }

    /// Gives an own stream that the peer has not acted on back to its holder.
    pub(super) fn withdraw(&mut self, _now: Time, budget: &mut Budget, r: StreamRef) {
        let Some(s) = self.streams.get_mut(r) else {
            return;
        };
        let mut frames = std::mem::take(&mut s.unanswered);
        frames.extend(s.outbox.iter().cloned());
        let finished = match &s.tx {
            Tx::FinQueued(timings) => Some(*timings),
            Tx::Ended => Some(None),
            _ => None,
        };
        let wanted = !s.released && matches!(s.rx, Rx::Open);
        self.remove_stream(budget, r);
        if wanted {
            self.events.push_back(Event::Withdrawn {
                stream: r,
                frames,
                finished,
            });
        }
    }

    // ── Placement ─────────────────────────────────────────────────────────────────────────────────────────────

    /// Takes new streams: connected, progressing, not draining.
    pub fn is_live(&self) -> bool {
        let draining = self.goaway_queued || self.goaway_read;
        self.conn == Conn::Up && self.progressed && self.closing.is_none() && !self.failed && !draining
    }

    /// Open streams, the load by which links are compared.
    pub fn streams_open(&self) -> usize {
        self.streams.open
    }

    /// Smoothed round trip of the link, if known.
    pub fn srtt(&self) -> Option<Duration> {
        self.liveness.srtt()
    }

    /// Frames written a second time after a cut.
    pub fn frames_replayed(&self) -> u64 {
        self.frames_replayed
    }

    // ── Streams ───────────────────────────────────────────────────────────────────────────────────────────────

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
            s.flags.recall = None;
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

    /// What `recv` gave and `consumed` did not take is given again: the local socket took no more for now.
    pub fn rewind(&mut self, r: StreamRef) {
        if let Some(s) = self.streams.get_mut(r) {
            s.handed = 0;
        }
    }

    /// The local socket took `bytes` of what `recv` gave.
    pub fn consumed(&mut self, now: Time, budget: &mut Budget, r: StreamRef, bytes: usize) {
        let Some(s) = self.streams.get_mut(r) else {
            return;
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
        self.refill(budget, r);
    }

    /// Sends CREDIT when half the window is used up, as far as the pool allows.
    pub(super) fn refill(&mut self, budget: &mut Budget, r: StreamRef) {
        let Some(s) = self.streams.get_mut(r).filter(|s| !s.orphan && s.rx == Rx::Open) else {
            return;
        };
        let outstanding = s.advertised - s.consumed;
        if (s.recalled && !planted("credit-during-recall")) || outstanding > s.window / 2 {
            return;
        }
        let target = s.window.min(budget.refill_max(s) as u64);
        // Where the pool holds the window down, credit goes in quarters of what it leaves: halves would fall into a
        // rhythm of little more than half of that in a round trip.
        let worth = target >= outstanding + target / 4;
        if target > outstanding && worth {
            let consumed = s.consumed;
            budget.set_offsets(s, consumed + target, consumed);
            s.flags.credit = true;
            self.schedule.list_control(r, s);
        }
        if budget.pool_is_low() && self.recall_at.is_none() {
            self.recall_at = Some(s.last_data + crate::limits::RECALL_INTERVAL);
        }
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

    // ── Settings and end ──────────────────────────────────────────────────────────────────────────────────────

    /// `sc`: new rules for the endpoint.
    pub fn send_settings(&mut self, version: u32, json: Bytes) {
        self.schedule.start_settings(version, json);
    }

    /// Endpoint: the rules in force from here on, behind every OPEN already queued.
    pub fn settings_ack(&mut self, version: u32, accepted: bool, text: &str) {
        self.settings_unanswered = 0;
        if accepted {
            self.config.settings = version;
        }
        if self.session == [0; 16] || self.failed {
            return;
        }
        let item = Ordered::SettingsAck {
            version,
            accepted,
            text: frame::short_text(text),
        };
        if planted("settings-ack-overtakes") {
            self.schedule.ordered.push_front(item);
        } else {
            self.schedule.ordered.push_back(item);
        }
    }

    /// Drains: serves what is open, opens nothing.
    pub fn go_away(&mut self, _now: Time, reason: GoAwayReason, text: &str) {
        if self.session == [0; 16] && self.conn != Conn::Up && !self.finished {
            // No session has begun: none will.
            self.finished = true;
            self.events.push_back(Event::Finished);
            if self.conn == Conn::Greeting {
                self.close(true);
            }
        }
        if self.goaway_queued || self.session == [0; 16] || self.failed {
            return;
        }
        self.goaway_queued = true;
        self.schedule.ordered.push_back(Ordered::GoAway {
            reason,
            text: frame::short_text(text),
        });
    }

    /// Drained, or told to drain before there was a session: nothing is left of it.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// GOAWAY was sent or read, no stream is left, all own bytes are acknowledged: nothing is left to do.
    pub(super) fn check_finished(&mut self, now: Time, budget: &mut Budget) {
        let draining = self.goaway_last.is_some() || self.goaway_read;
        let queue = &self.schedule;
        let written = self.retention.is_empty() && queue.ordered.is_empty() && queue.refusals.is_empty();
        let idle = self.streams.open == 0 && written;
        if draining && idle && !self.finished && !self.failed {
            self.finish_session(now, budget);
        }
    }

    fn finish_session(&mut self, now: Time, budget: &mut Budget) {
        if !self.finished {
            self.finished = true;
            self.ack_now = true;
            self.events.push_back(Event::Finished);
            self.close(false);
        }
        if matches!(self.conn, Conn::Down | Conn::Dialing) {
            self.forget_session(now, budget);
        }
    }

    // ── Shared by both directions ─────────────────────────────────────────────────────────────────────────────

    pub(super) fn tell_readable(&mut self, r: StreamRef) {
        if let Some(s) = self.streams.get_mut(r).filter(|s| !s.readable_told && !s.released) {
            s.readable_told = true;
            self.events.push_back(Event::Readable(r));
        }
    }

    /// Writing was stopped: told also to a holder that has room and waits for something else.
    pub(super) fn tell_stopped(&mut self, r: StreamRef) {
        if let Some(s) = self.streams.get_mut(r).filter(|s| !s.released) {
            s.wants_room = false;
            self.events.push_back(Event::Writable(r));
        }
    }

    pub(super) fn tell_writable(&mut self, r: StreamRef) {
        if let Some(s) = self.streams.get_mut(r).filter(|s| s.wants_room && !s.released) {
            s.wants_room = false;
            self.events.push_back(Event::Writable(r));
        }
    }

    pub(super) fn discard_inbox(&mut self, budget: &mut Budget, r: StreamRef) {
        let Some(s) = self.streams.get_mut(r) else {
            return;
        };
        let mut bytes = 0;
        for slice in s.inbox.drain(..) {
            bytes += slice.bytes.len();
            self.blocks.release(budget, slice.block);
        }
        s.handed = 0;
        budget.unhold(bytes);
        let (advertised, consumed) = (s.advertised, s.consumed + bytes as u64);
        budget.set_offsets(s, advertised, consumed);
    }

    pub(super) fn drop_outbox(&mut self, budget: &mut Budget, r: StreamRef) {
        let Some(s) = self.streams.get_mut(r) else {
            return;
        };
        let bytes: usize = s.outbox.drain(..).map(|f| f.len()).sum();
        s.held -= bytes;
        self.data_held -= bytes;
        budget.tx_release(bytes, self.data_held == 0);
    }

    /// Removes the stream if nothing of it is left.
    pub(super) fn settle(&mut self, budget: &mut Budget, r: StreamRef) {
        let early = planted("undelivered-dropped-at-end");
        if self.streams.get(r).is_some_and(|s| s.is_over() || (early && s.orphan)) {
            self.remove_stream(budget, r);
        }
    }

    pub(super) fn remove_stream(&mut self, budget: &mut Budget, r: StreamRef) {
        self.discard_inbox(budget, r);
        self.drop_outbox(budget, r);
        let Some(mut s) = self.streams.remove(r) else {
            return;
        };
        mark_served(&mut self.unserved, &mut s);
        let consumed = s.consumed;
        budget.set_offsets(&mut s, consumed, consumed);
        budget.give_place_back(s.own);
    }

    /// The peer has these counted bytes.
    pub(super) fn acknowledged(&mut self, now: Time, budget: &mut Budget, offset: u64) -> Result<(), frame::Violation> {
        let mut freed = std::mem::take(&mut self.freed);
        let result = self.retention.acknowledge(offset, |f| freed.push(f));
        for frame in freed.drain(..) {
            self.forget(budget, &frame);
        }
        self.freed = freed;
        self.unblock_control();
        if result? {
            self.liveness.ack_rose(now);
            if self.conn == Conn::Up {
                self.progress();
            }
        }
        Ok(())
    }

    fn forget(&mut self, budget: &mut Budget, frame: &Retained) {
        let bytes = frame.bytes.len();
        let Some(r) = frame.data_of else {
            self.control_held -= bytes;
            return;
        };
        self.data_held -= bytes;
        if let Some(s) = self.streams.get_mut(r) {
            s.held -= bytes;
        }
        budget.tx_release(bytes, self.data_held == 0);
    }
}

/// An own stream was served, or ended otherwise than by an early reset.
pub(super) fn mark_served(unserved: &mut u32, s: &mut Stream) {
    if std::mem::take(&mut s.unserved) {
        *unserved -= 1;
    }
}

/// Session ids are counted up from a random start.
fn next_id(id: [u8; 16]) -> [u8; 16] {
    match u128::from_be_bytes(id).wrapping_add(1) {
        0 => 1u128.to_be_bytes(),
        next => next.to_be_bytes(),
    }
}
