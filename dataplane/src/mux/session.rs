//! The session of one link: commands, frames, connections and deadlines.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::credit::{Blocks, Budget, RateMeter};
use super::flood::Buckets;
use super::frame::{self, Code, Frame, GoAwayReason, Hello, Open, Opened, Timings, TlsReport};
use super::liveness::Liveness;
use super::planted::planted;
use super::resume::{Retained, Retention};
use super::schedule::{Ordered, Schedule};
use super::stream::{Stream, StreamRef, Streams};
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
    /// Without progress for so long after a loss the session ends.
    pub resume_window: Duration,
}

/// Why a session ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The path is dead.
    Silent,
    /// The other side says no HELLO in time.
    NoHello,
    /// It says another HELLO than it may, or something else before it.
    WrongHello,
    /// There was nothing to carry any more before both HELLOs were exchanged.
    Unwanted,
    /// The session ended: without progress for too long.
    Lost,
    /// Nothing is left to carry.
    Drained,
    /// The session ended with an error of either side, which the other one is told.
    Failed,
}

impl Cause {
    /// At once: nothing that is ready is written any more, nor a close_notify.
    pub fn aborts(self) -> bool {
        !matches!(self, Self::Drained | Self::Failed)
    }

    /// For a log.
    pub fn text(self) -> &'static str {
        match self {
            Self::Silent => "no answer to PING in time",
            Self::NoHello => "no HELLO in time",
            Self::WrongHello => "no HELLO that fits",
            Self::Unwanted => "nothing to carry any more",
            Self::Lost => "no progress within the resume window",
            Self::Drained => "drained",
            Self::Failed => "its session ended",
        }
    }
}

/// What the shell has to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Client only: dial this link now.
    Dial,
    /// End the connection: at once if its cause [aborts](Cause::aborts), else after what `poll_transmit` still gives and
    /// close_notify.
    Close(Cause),
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
    pub(super) random: u64,
    pub(super) conn: Conn,
    /// `Close` was asked of the shell, and why.
    pub(super) closing: Option<Cause>,
    /// The session ended while its connection still stands.
    pub(super) failed: bool,
    pub(super) farewell: Option<Frame>,
    pub(super) hello_out: Option<Hello>,

    pub(super) session: [u8; 16],
    pub(super) fresh: [u8; 16],
    pub(super) epoch: u64,
    pub(super) up_since: Time,
    pub(super) lost_at: Option<Time>,
    /// First loss since the last progress.
    pub(super) outage: Option<Time>,
    /// This connection carried more than HELLO.
    pub(super) progressed: bool,
    pub(super) resumed_at: Option<Time>,
    pub(super) withdrawn_since_loss: bool,
    pub(super) cut_over: bool,
    pub(super) cut_over_received: Option<u64>,

    pub(super) dial_at: Option<Time>,
    pub(super) dial_started: Time,
    pub(super) dial_failures: u32,
    pub(super) errors: VecDeque<Time>,
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
    pub(super) freed: Vec<Retained>,

    pub(super) streams: Streams,
    pub(super) schedule: Schedule,
    pub(super) liveness: Liveness,
    pub(super) rate: RateMeter,
    pub(super) blocks: Blocks,
    /// Streams with slices of read buffers: since when, and behind how many received bytes.
    pub(super) young: VecDeque<(Time, u64, StreamRef)>,
    pub(super) recall_at: Option<Time>,
    pub(super) buckets: Buckets,
    pub(super) partial: BytesMut,
    pub(super) settings_in: Option<super::receive::SettingsIn>,
    /// Bytes of the SETTINGS handed on since the last answer.
    pub(super) settings_unanswered: usize,
    pub(super) events: VecDeque<Event>,

    pub(super) peer_credit: u32,
    pub(super) next_own: u64,
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

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    // ── Placement ─────────────────────────────────────────────────────────────────────────────────────────────

    /// Takes new streams: connected, progressing, not draining.
    pub fn is_live(&self) -> bool {
        let draining = self.goaway_queued || self.goaway_read;
        self.conn == Conn::Up && self.progressed && self.closing.is_none() && !self.failed && !draining
    }

    /// The peer has said that it takes no new streams, and no fresh session has begun since.
    pub fn peer_drains(&self) -> bool {
        self.goaway_read
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

    // ── Settings ──────────────────────────────────────────────────────────────────────────────────────────────

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
        if s.inbox.is_empty() {
            return;
        }
        let mut bytes = 0;
        for slice in s.inbox.take() {
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
        let bytes: usize = s.outbox.take().map(|f| f.len()).sum();
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
        let Some(s) = self.streams.get_mut(r) else {
            return;
        };
        mark_served(&mut self.unserved, s);
        let consumed = s.consumed;
        budget.set_offsets(s, consumed, consumed);
        budget.give_place_back(s.own);
        self.streams.remove(r);
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

    pub(super) fn forget(&mut self, budget: &mut Budget, frame: &Retained) {
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
pub(super) fn next_id(id: [u8; 16]) -> [u8; 16] {
    match u128::from_be_bytes(id).wrapping_add(1) {
        0 => 1u128.to_be_bytes(),
        next => next.to_be_bytes(),
    }
}
