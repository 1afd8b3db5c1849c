//! A stream in the hands of a task: a browser's connection at the endpoint, a site's at `sc`. A link carries it, or it
//! stays in its shard because its site is reached without the tunnel.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::Shard;
use super::buffers;
use super::link::Link;
use super::linked::{Linked, StreamCell};
use super::pipe;
use crate::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};
use crate::mux::{Code, Open, Opened, Recv, StreamRef, Timings, TlsReport};

/// What a small head may waste: copying it would cost more.
const HEAD_SLACK_BYTES: usize = 256;

/// One stream. Dropping it resets with `cancelled` what has not ended.
///
/// All methods take `&self`, so that one task may read while it writes ([`super::pair::both`]); one waiter for each
/// kind of wait. All waits may be dropped.
pub struct Stream(Carrier);

enum Carrier {
    Link(Linked),
    Pipe(pipe::End),
}

impl Stream {
    /// Opens a stream on a live link, of this member if it has one, or waits for one.
    pub(super) async fn open_own(shard: &Shard, open: Open, prefers: Option<[u8; 16]>) -> Result<Self, (Code, String)> {
        Ok(Self(Carrier::Link(Linked::open_own(shard, open, prefers).await?)))
    }

    /// Opens a stream on this link or not at all.
    pub(super) fn open_on(shard: &Shard, link: &Rc<Link>, open: Open) -> Option<Self> {
        Some(Self(Carrier::Link(Linked::open_on(shard, link, open)?)))
    }

    pub(super) fn from_peer(shard: Shard, link: Rc<Link>, stream: StreamRef, cell: Rc<StreamCell>, open: Open) -> Self {
        Self(Carrier::Link(Linked::from_peer(shard, link, stream, cell, open)))
    }

    pub(super) fn of_pipe(end: pipe::End) -> Self {
        Self(Carrier::Pipe(end))
    }

    /// Whether its site is reached without the tunnel.
    pub fn is_direct(&self) -> bool {
        matches!(self.0, Carrier::Pipe(_))
    }

    /// Waits for what the peer sends next: data or the end, never `Pending`. Bytes are to be given back with
    /// [`Stream::consumed`] once the local socket has them. After an end: `Gone`.
    pub async fn next(&self) -> Recv {
        match &self.0 {
            Carrier::Link(stream) => stream.next().await,
            Carrier::Pipe(end) => end.next().await,
        }
    }

    /// Endpoint: counts the exchange that it carries, if it goes through the tunnel.
    pub fn count_request(&self) {
        if let Carrier::Link(stream) = &self.0 {
            stream.count_request();
        }
    }

    /// Endpoint: waits until its member is lost while another one is there to ask. May be dropped.
    pub async fn forsaken(&self) {
        match &self.0 {
            Carrier::Link(stream) => stream.forsaken().await,
            Carrier::Pipe(_) => std::future::pending().await,
        }
    }

    /// Waits until what carries it drains, or is about to. May be dropped.
    pub async fn draining(&self) {
        match &self.0 {
            Carrier::Link(stream) => stream.draining().await,
            Carrier::Pipe(end) => end.draining().await,
        }
    }

    /// Endpoint: the member of a pool that has it now, if it goes through the tunnel.
    pub fn member(&self) -> Option<[u8; 16]> {
        match &self.0 {
            Carrier::Link(stream) => Some(stream.member()),
            Carrier::Pipe(_) => None,
        }
    }

    /// It waits for a link: nothing of it has reached the other side.
    pub fn has_no_place(&self) -> bool {
        match &self.0 {
            Carrier::Link(stream) => stream.has_no_place(),
            Carrier::Pipe(_) => false,
        }
    }

    /// Endpoint: whether it ended with `code` because of its member, while another one is there to ask.
    pub fn is_orphaned(&self, code: Code) -> bool {
        match &self.0 {
            Carrier::Link(stream) => stream.is_orphaned(code),
            Carrier::Pipe(_) => false,
        }
    }

    /// Waits until something new has arrived, an end above all. May be dropped.
    pub async fn arrival(&self) {
        match &self.0 {
            Carrier::Link(stream) => stream.arrival().await,
            Carrier::Pipe(end) => end.arrival().await,
        }
    }

    /// Waits until [`Stream::recv`] has something to give, and takes none of it. May be dropped.
    pub async fn input(&self) {
        match &self.0 {
            Carrier::Link(stream) => stream.input().await,
            Carrier::Pipe(end) => end.input().await,
        }
    }

    /// As [`Stream::next`] without waiting: may be `Pending`.
    pub fn recv(&self) -> Recv {
        match &self.0 {
            Carrier::Link(stream) => stream.recv(),
            Carrier::Pipe(end) => end.recv(),
        }
    }

    /// The local socket took `bytes` of what [`Stream::next`] gave: the peer may send as many more.
    pub fn consumed(&self, bytes: usize) {
        match &self.0 {
            Carrier::Link(stream) => stream.consumed(bytes),
            Carrier::Pipe(end) => end.consumed(bytes),
        }
    }

    /// What [`Stream::next`] gave and [`Stream::consumed`] did not take is given again. To be called when the local
    /// socket is full, before waiting for it: slices that someone keeps pin the link's buffers.
    pub fn rewind(&self) {
        match &self.0 {
            Carrier::Link(stream) => stream.rewind(),
            Carrier::Pipe(end) => end.rewind(),
        }
    }

    /// Waits until something may be written, and returns how many bytes (> 0).
    ///
    /// # Errors
    /// Why the peer wants no more: its RESET, or the end of the session. The other direction may still deliver.
    pub async fn room(&self) -> Result<usize, Code> {
        match &self.0 {
            Carrier::Link(stream) => stream.room().await,
            Carrier::Pipe(end) => end.room().await,
        }
    }

    /// As [`Stream::room`] without waiting: may be 0.
    ///
    /// # Errors
    /// As [`Stream::room`].
    pub fn room_now(&self) -> Result<usize, Code> {
        match &self.0 {
            Carrier::Link(stream) => stream.room_now(),
            Carrier::Pipe(end) => end.room_now(),
        }
    }

    /// Waits until the peer wants no more of this direction, and returns why. Not beside [`Stream::room`].
    pub async fn stopped(&self) -> Code {
        match &self.0 {
            Carrier::Link(stream) => stream.stopped().await,
            Carrier::Pipe(end) => end.stopped().await,
        }
    }

    /// Writes one frame within [`Stream::room`]: 12 bytes of head-room, then 1 … 16,372 bytes of payload
    /// ([`super::buffers::Buffers::read`] makes such frames, [`super::buffers::frame`] copies into one).
    pub fn write(&self, frame: BytesMut) {
        match &self.0 {
            Carrier::Link(stream) => stream.write(frame),
            Carrier::Pipe(end) => end.write(frame),
        }
    }

    /// Writes a copy of all of `bytes`, waiting for room as needed: for heads and other small things.
    ///
    /// # Errors
    /// As [`Stream::room`].
    pub async fn send(&self, mut bytes: &[u8]) -> Result<(), Code> {
        while !bytes.is_empty() {
            let room = self.room().await?;
            let (now, rest) = bytes.split_at(bytes.len().min(room).min(FRAME_PAYLOAD_BYTES_MAX));
            self.write(buffers::frame(now));
            bytes = rest;
        }
        Ok(())
    }

    /// As [`Stream::send`] for what was written behind 12 bytes of head-room: as it is, if it fits into one frame and
    /// the room.
    ///
    /// # Errors
    /// As [`Stream::room`].
    pub async fn send_frame(&self, frame: BytesMut) -> Result<(), Code> {
        let payload = frame.len() - FRAME_HEADER_BYTES;
        if payload == 0 || payload > self.room().await?.min(FRAME_PAYLOAD_BYTES_MAX) {
            return self.send(&frame[FRAME_HEADER_BYTES..]).await;
        }
        // Until it is acknowledged it may hold no more than it is charged with, and half of that.
        if frame.capacity() > frame.len() / 2 * 3 + HEAD_SLACK_BYTES {
            self.write(buffers::frame(&frame[FRAME_HEADER_BYTES..]));
        } else {
            self.write(frame);
        }
        Ok(())
    }

    /// Ends this direction, cleanly. `timings`: from `sc` on http(s).
    pub fn finish(&self, timings: Option<Timings>) {
        match &self.0 {
            Carrier::Link(stream) => stream.finish(timings),
            Carrier::Pipe(end) => end.finish(timings),
        }
    }

    /// Ends the stream: before [`Stream::finish`] in both directions, after it only the peer's.
    pub fn reset(&self, code: Code, text: &str) {
        match &self.0 {
            Carrier::Link(stream) => stream.reset(code, text),
            Carrier::Pipe(end) => end.reset(code, text),
        }
    }

    /// Waits until the site of an own `tcp` stream is connected.
    ///
    /// # Errors
    /// Why it is not, with text for people.
    pub async fn accepted(&self) -> Result<Opened, (Code, Bytes)> {
        match &self.0 {
            Carrier::Link(stream) => stream.accepted().await,
            Carrier::Pipe(end) => end.accepted().await,
        }
    }

    /// Where it is served: the site of a `tcp` stream is connected.
    pub fn opened(&self, opened: Opened) {
        match &self.0 {
            Carrier::Link(stream) => stream.opened(opened),
            Carrier::Pipe(end) => end.opened(opened),
        }
    }

    /// Endpoint: asks `sc` to shake hands with the site of a `tcp` stream that carried nothing yet. Not for what goes
    /// past the tunnel.
    pub fn start_tls(&self, sni: &str) {
        if let Carrier::Link(stream) = &self.0 {
            stream.start_tls(sni);
        }
    }

    /// Endpoint: waits for what `sc` has seen of the site's TLS.
    ///
    /// # Errors
    /// The stream has ended instead.
    pub async fn tls_reported(&self) -> Result<TlsReport, (Code, Bytes)> {
        match &self.0 {
            Carrier::Link(stream) => stream.tls_reported().await,
            Carrier::Pipe(_) => Err((Code::Protocol, Bytes::new())),
        }
    }

    /// Where it is served: waits until the endpoint asks for TLS, and returns the SNI. May be dropped.
    pub async fn tls_asked(&self) -> Bytes {
        match &self.0 {
            Carrier::Link(stream) => stream.tls_asked().await,
            Carrier::Pipe(_) => std::future::pending().await,
        }
    }

    /// Where it is served: what the handshake showed.
    pub fn tls_report(&self, report: TlsReport) {
        if let Carrier::Link(stream) = &self.0 {
            stream.tls_report(report);
        }
    }

    /// What the stream was opened with.
    pub fn open(&self) -> &Open {
        match &self.0 {
            Carrier::Link(stream) => stream.open(),
            Carrier::Pipe(end) => end.open(),
        }
    }

    /// The shard that carries it.
    pub fn shard(&self) -> &Shard {
        match &self.0 {
            Carrier::Link(stream) => stream.shard(),
            Carrier::Pipe(end) => end.shard(),
        }
    }
}
