//! The session of one link: commands, frames, connections and deadlines.

use bytes::{Bytes, BytesMut};

use super::credit::Budget;
use super::frame::{Code, GoAwayReason, Hello, Open, Opened, Timings, TlsReport};
use super::stream::StreamRef;
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
    /// The OPEN never left and will not: place the stream anew, on another link or later. The ref is dead.
    Withdrawn(StreamRef),
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
    /// The session ended and its streams with it; a fresh one follows. `ours` tells who broke the rules.
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
    /// Another member, link or number of links.
    Mismatch,
}

/// State machine of one link.
pub struct Session {}

#[allow(unused_variables)]
impl Session {
    pub fn new(config: Config, now: Time) -> Self {
        todo!()
    }

    // ── Connection ────────────────────────────────────────────────────────────────────────────────────────────

    /// Client: TLS is up on a new connection; HELLO leaves next.
    pub fn connected(&mut self, now: Time, budget: &mut Budget) {
        todo!()
    }
    /// Client: the dial failed or took too long.
    pub fn dial_failed(&mut self, now: Time) {
        todo!()
    }
    /// Client: how long a dial (proxy, TCP, TLS and HELLO) may take now.
    pub fn dial_time_max(&self) -> std::time::Duration {
        todo!()
    }
    /// Endpoint: may this HELLO take the link over? Asked before the cut-over, changes nothing.
    pub fn check_hello(&self, hello: &Hello) -> Result<(), Reject> {
        todo!()
    }
    /// Endpoint: cut-over starts; the session does not expire until `connected_by` or `disconnected`.
    pub fn begin_cut_over(&mut self) {
        todo!()
    }
    /// Endpoint: a new connection after the cut-over; our HELLO leaves next.
    pub fn connected_by(&mut self, now: Time, budget: &mut Budget, hello: &Hello) {
        todo!()
    }
    /// Plaintext of the link in order, split anywhere.
    pub fn handle_bytes(&mut self, now: Time, budget: &mut Budget, bytes: Bytes) {
        todo!()
    }
    /// The connection is gone and all it brought was fed. `clean`: close_notify was read.
    pub fn disconnected(&mut self, now: Time, budget: &mut Budget, clean: bool) {
        todo!()
    }
    pub fn is_connected(&self) -> bool {
        todo!()
    }
    /// Appends whole frames for one write, at most `LINK_WRITE_BYTES_MAX`, and returns their bytes.
    pub fn poll_transmit(&mut self, now: Time, budget: &mut Budget, out: &mut Vec<Bytes>) -> usize {
        todo!()
    }
    pub fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }
    /// When `handle_timeout` is due at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        todo!()
    }
    pub fn handle_timeout(&mut self, now: Time, budget: &mut Budget) {
        todo!()
    }

    // ── Placement ─────────────────────────────────────────────────────────────────────────────────────────────

    /// Takes new streams: connected, progressing, not draining.
    pub fn is_live(&self) -> bool {
        todo!()
    }
    /// Open streams, the load by which links are compared.
    pub fn streams_open(&self) -> usize {
        todo!()
    }
    /// Smoothed round trip of the link, if known.
    pub fn srtt(&self) -> Option<std::time::Duration> {
        todo!()
    }

    // ── Streams ───────────────────────────────────────────────────────────────────────────────────────────────

    /// Opens a stream; `open.credit` is set here.
    pub fn open(
        &mut self,
        now: Time,
        budget: &mut Budget,
        open: Open,
    ) -> Result<StreamRef, OpenError> {
        todo!()
    }
    /// Bytes that may be read from the local socket and written now; 0: wait for `Writable`.
    pub fn room(
        &mut self,
        now: Time,
        budget: &mut Budget,
        stream: StreamRef,
    ) -> Result<usize, WriteError> {
        todo!()
    }
    /// Takes one DATA frame: 12 bytes of head-room, then 1 … 16,372 bytes of payload, within `room`.
    pub fn write(&mut self, now: Time, budget: &mut Budget, stream: StreamRef, frame: BytesMut) {
        todo!()
    }
    /// No more bytes follow.
    pub fn finish(&mut self, now: Time, stream: StreamRef, timings: Option<Timings>) {
        todo!()
    }
    /// Ends the stream: before `finish` in both directions, after it only the peer's direction.
    pub fn reset(
        &mut self,
        now: Time,
        budget: &mut Budget,
        stream: StreamRef,
        code: Code,
        text: &str,
    ) {
        todo!()
    }
    /// The next slice or the end.
    pub fn recv(&mut self, budget: &mut Budget, stream: StreamRef) -> Recv {
        todo!()
    }
    /// The local socket took `bytes` of what `recv` gave.
    pub fn consumed(&mut self, now: Time, budget: &mut Budget, stream: StreamRef, bytes: usize) {
        todo!()
    }
    /// The holder is done with the ref; what is not ended is reset with `cancelled`.
    pub fn release(&mut self, now: Time, budget: &mut Budget, stream: StreamRef) {
        todo!()
    }
    /// `sc`: the site of a `tcp` stream is connected.
    pub fn opened(&mut self, stream: StreamRef, opened: Opened) {
        todo!()
    }
    /// Endpoint: asks `sc` to shake hands with the site of a `tcp` stream.
    pub fn start_tls(&mut self, stream: StreamRef, sni: Bytes, alpn: Bytes) {
        todo!()
    }
    /// `sc`: what the handshake showed.
    pub fn tls_report(&mut self, stream: StreamRef, report: TlsReport) {
        todo!()
    }

    // ── Settings and end ──────────────────────────────────────────────────────────────────────────────────────

    /// `sc`: new rules for the endpoint.
    pub fn send_settings(&mut self, version: u32, json: Bytes) {
        todo!()
    }
    /// Endpoint: the rules in force from here on, behind every OPEN already queued.
    pub fn settings_ack(&mut self, version: u32, accepted: bool, text: &str) {
        todo!()
    }
    /// Drains: serves what is open, opens nothing.
    pub fn go_away(&mut self, now: Time, reason: GoAwayReason, text: &str) {
        todo!()
    }
}
