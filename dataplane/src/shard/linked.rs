//! A stream that a link carries, as its holder sees it: its place may change behind the holder's back.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::link::Link;
use super::signal::Signal;
use super::{Shard, buffers, pair};
use crate::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};
use crate::mux::{Budget, Code, Open, Opened, Recv, Session, StreamRef, Timings, TlsReport, WriteError};
use crate::time::Time;

/// The one protocol that is asked for (RFC 7301), as START_TLS has it.
const HTTP11: &[u8] = b"\x08http/1.1";

/// A stream whose OPEN had not left when its link died is placed anew behind the holder's back (on another link, or
/// once a link is up): what was written so far is written again. The holder only sees the wait.
pub(super) struct Linked {
    shard: Shard,
    open: Open,
    place: RefCell<(Rc<Link>, StreamRef)>,
    cell: Rc<StreamCell>,
    moving: Cell<bool>,
    /// Why it could not be placed anew, or that it was reset meanwhile.
    lost: RefCell<Option<(Code, String)>>,
}

/// What a link tells about a stream.
#[derive(Default)]
pub(super) struct StreamCell {
    pub readable: Signal,
    pub writable: Signal,
    /// OPENED, START_TLS or TLS_REPORT has come.
    pub accepted: Signal,
    pub opened: Cell<Option<Opened>>,
    /// Boxed: few streams ever have it, and each holds the place for it.
    shaken: RefCell<Option<Box<Shaken>>>,
    /// Its member is lost, and another one is there.
    pub forsaken: Signal,
    /// Where it is placed as long as that is live, wherever else there is less to do.
    pub prefers: Cell<Option<[u8; 16]>>,
    /// Its link drains, or is about to.
    pub draining: Signal,
    /// The stream has no place now, or has one where what was written before is not written again yet.
    withdrawn: Cell<bool>,
    /// How often it lost its place.
    withdrawals: Cell<u32>,
    returned: RefCell<Returned>,
    /// As `writable`, for whoever writes again.
    replayable: Signal,
}

/// What the other side says of the site's TLS.
pub(super) enum Shaken {
    /// At `sc`: it is to shake hands, with this SNI.
    Asked(Bytes),
    /// At the endpoint: `sc` has.
    Reported(TlsReport),
}

impl StreamCell {
    pub fn shake(&self, shaken: Shaken) {
        self.shaken.replace(Some(Box::new(shaken)));
        self.accepted.raise();
    }

    /// The peer never acted on the stream and will not: whoever waits places it anew, with what was written to it.
    pub fn withdraw(&self, frames: Vec<Bytes>, finished: Option<Option<Timings>>) {
        let mut returned = self.returned.borrow_mut();
        for frame in frames.into_iter().rev() {
            returned.frames.push_front(frame);
        }
        returned.finished = returned.finished.or(finished);
        drop(returned);
        // Its next link may not drain.
        self.draining.take();
        self.withdrawn.set(true);
        self.withdrawals.set(self.withdrawals.get().wrapping_add(1));
        self.raise_all();
    }

    /// Room may have grown, or writing was stopped.
    pub fn is_writable(&self) {
        self.writable.raise();
        self.replayable.raise();
    }

    fn raise_all(&self) {
        self.readable.raise();
        self.is_writable();
        self.accepted.raise();
    }
}

/// What was written to a stream that has to be placed anew.
#[derive(Default)]
struct Returned {
    /// DATA frames with their head-room.
    frames: VecDeque<Bytes>,
    finished: Option<Option<Timings>>,
}

impl Returned {
    /// The next frame, or its first `room` bytes (> 0) if it has more: whoever waited for room for all of it would not be
    /// told when there is some.
    fn take(&mut self, room: usize) -> Option<BytesMut> {
        let frame = self.frames.pop_front()?;
        let payload = &frame[FRAME_HEADER_BYTES..];
        if payload.len() <= room {
            return Some(
                frame
                    .try_into_mut()
                    .unwrap_or_else(|f| buffers::frame(&f[FRAME_HEADER_BYTES..])),
            );
        }
        let (now, later) = payload.split_at(room);
        self.frames.push_front(buffers::frame(later).freeze());
        Some(buffers::frame(now))
    }
}

impl Linked {
    /// Opens a stream on a live link, of this member if it has one, or waits for one.
    pub(super) async fn open_own(shard: &Shard, open: Open, prefers: Option<[u8; 16]>) -> Result<Self, (Code, String)> {
        let cell = Rc::new(StreamCell::default());
        cell.prefers.set(prefers);
        let place = shard.place(&open, &cell).await?;
        Ok(Self::new(shard.clone(), place, cell, open))
    }

    /// Opens a stream on this link or not at all.
    pub(super) fn open_on(shard: &Shard, link: &Rc<Link>, open: Open) -> Option<Self> {
        let cell = Rc::new(StreamCell::default());
        let stream = link.open(shard, &open, &cell).ok()?;
        Some(Self::new(shard.clone(), (link.clone(), stream), cell, open))
    }

    pub(super) fn from_peer(shard: Shard, link: Rc<Link>, stream: StreamRef, cell: Rc<StreamCell>, open: Open) -> Self {
        Self::new(shard, (link, stream), cell, open)
    }

    fn new(shard: Shard, place: (Rc<Link>, StreamRef), cell: Rc<StreamCell>, open: Open) -> Self {
        shard.0.counters.streams_opened.add(1);
        shard.0.counters.streams_open.add(1);
        Self {
            shard,
            open,
            place: RefCell::new(place),
            cell,
            moving: Cell::new(false),
            lost: RefCell::new(None),
        }
    }

    fn with<R>(&self, call: impl FnOnce(&mut Session, &mut Budget, Time, StreamRef) -> R) -> R {
        let (link, stream) = self.place();
        link.with(&self.shard, |s, b, now| call(s, b, now, stream))
    }

    fn queue(&self, call: impl FnOnce(&mut Session, &mut Budget, Time, StreamRef)) {
        let (link, stream) = self.place();
        link.queue(&self.shard, |s, b, now| call(s, b, now, stream));
    }

    fn ask<R>(&self, call: impl FnOnce(&mut Session, &mut Budget, Time, StreamRef) -> R) -> R {
        let (link, stream) = self.place();
        link.ask(&self.shard, |s, b, now| call(s, b, now, stream))
    }

    fn place(&self) -> (Rc<Link>, StreamRef) {
        let place = self.place.borrow();
        (place.0.clone(), place.1)
    }

    /// Waits for what the peer sends next: data or the end, never `Pending`. Bytes are to be given back with
    /// [`Stream::consumed`] once the local socket has them. After an end: `Gone`.
    pub async fn next(&self) -> Recv {
        loop {
            self.settle().await;
            match self.recv() {
                Recv::Pending => self.cell.readable.wait().await,
                other => return other,
            }
        }
    }

    /// Endpoint: counts the exchange that it carries.
    pub fn count_request(&self) {
        self.shard.0.counters.requests.add(1);
        self.place().0.counters.requests.add(1);
    }

    /// Endpoint: waits until its member is lost while another one is there to ask. May be dropped.
    pub async fn forsaken(&self) {
        loop {
            self.cell.forsaken.wait().await;
            // It may have been placed anew since.
            if self.place().0.is_lost() {
                return;
            }
        }
    }

    /// Waits until its link drains, or is about to; once. May be dropped.
    pub async fn draining(&self) {
        self.cell.draining.wait().await;
        self.cell.draining.raise();
    }

    /// Endpoint: the member that has it now.
    pub fn member(&self) -> [u8; 16] {
        self.place().0.member
    }

    /// It waits for a link: nothing of it has reached the other side.
    pub fn has_no_place(&self) -> bool {
        self.cell.withdrawn.get()
    }

    /// Endpoint: whether it ended with `code` because of its member, while another one is there to ask.
    pub fn is_orphaned(&self, code: Code) -> bool {
        let gone = matches!(code, Code::TunnelDown | Code::PeerRestarted | Code::Shutdown);
        gone && self.shard.has_another_member(self.place().0.member)
    }

    /// Waits until something new has arrived, an end above all. May be dropped.
    pub async fn arrival(&self) {
        self.cell.readable.wait().await;
    }

    pub async fn input(&self) {
        loop {
            self.settle().await;
            let is_placed = !self.cell.withdrawn.get();
            if self.lost.borrow().is_some() || (is_placed && self.ask(|s, _, _, stream| s.has_input(stream))) {
                return;
            }
            self.cell.readable.wait().await;
        }
    }

    /// As [`Stream::next`] without waiting: may be `Pending`.
    pub fn recv(&self) -> Recv {
        if let Some((code, text)) = &*self.lost.borrow() {
            return Recv::Reset(*code, crate::mux::frame::short_text(text));
        }
        if self.cell.withdrawn.get() {
            return Recv::Pending;
        }
        let received = self.ask(|s, b, _, stream| s.recv(b, stream));
        if let Recv::Reset(code, _) = &received {
            self.shard.0.counters.reset(*code);
        }
        received
    }

    /// The local socket took `bytes` of what [`Stream::next`] gave: the peer may send as many more.
    pub fn consumed(&self, bytes: usize) {
        self.shard.0.counters.bytes_in.add(bytes as u64);
        if !self.cell.withdrawn.get() {
            let (link, stream) = self.place();
            if link.ask(&self.shard, |s, b, now| s.consumed(now, b, stream, bytes)) {
                link.settle(&self.shard);
            }
        }
    }

    /// What [`Stream::next`] gave and [`Stream::consumed`] did not take is given again. To be called when the local
    /// socket is full, before waiting for it: slices that someone keeps pin the link's buffers.
    pub fn rewind(&self) {
        if !self.cell.withdrawn.get() {
            self.ask(|s, _, _, stream| s.rewind(stream));
        }
    }

    /// Waits until something may be written, and returns how many bytes (> 0).
    ///
    /// # Errors
    /// Why the peer wants no more: its RESET, or the end of the session. The other direction may still deliver.
    pub async fn room(&self) -> Result<usize, Code> {
        loop {
            self.settle().await;
            match self.room_now()? {
                0 => self.cell.writable.wait().await,
                room => return Ok(room),
            }
        }
    }

    /// As [`Stream::room`] without waiting: may be 0.
    ///
    /// # Errors
    /// As [`Stream::room`].
    pub fn room_now(&self) -> Result<usize, Code> {
        if let Some((code, _)) = &*self.lost.borrow() {
            return Err(*code);
        }
        if self.cell.withdrawn.get() {
            return Ok(0);
        }
        match self.ask(|s, b, now, stream| s.room(now, b, stream)) {
            Ok(room) => Ok(room),
            Err(WriteError::Stopped(code)) => Err(code),
            Err(WriteError::Gone) => Err(Code::Cancelled),
        }
    }

    /// Waits until the peer wants no more of this direction, and returns why. Not beside [`Stream::room`].
    pub async fn stopped(&self) -> Code {
        loop {
            match self.room_now() {
                Err(code) => return code,
                Ok(_) => self.cell.writable.wait().await,
            }
        }
    }

    /// Writes one frame within [`Stream::room`]: 12 bytes of head-room, then 1 … 16,372 bytes of payload
    /// ([`super::buffers::Buffers::read`] makes such frames, [`super::buffers::frame`] copies into one).
    pub fn write(&self, frame: BytesMut) {
        self.shard
            .0
            .counters
            .bytes_out
            .add((frame.len() - FRAME_HEADER_BYTES) as u64);
        if self.cell.withdrawn.get() {
            // Its room was given before: at most one read of the local socket.
            self.cell.returned.borrow_mut().frames.push_back(frame.freeze());
        } else {
            self.queue(|s, b, now, stream| s.write(now, b, stream, frame));
        }
    }

    /// Ends this direction, cleanly. `timings`: from `sc` on http(s).
    pub fn finish(&self, timings: Option<Timings>) {
        if self.cell.withdrawn.get() {
            self.cell.returned.borrow_mut().finished = Some(timings);
        } else {
            self.queue(|s, _, now, stream| s.finish(now, stream, timings));
        }
    }

    /// Ends the stream: before [`Stream::finish`] in both directions, after it only the peer's.
    pub fn reset(&self, code: Code, text: &str) {
        self.shard.0.counters.reset(code);
        if self.cell.withdrawn.get() {
            self.lose(code, text.to_owned());
        } else {
            self.with(|s, b, now, stream| s.reset(now, b, stream, code, text));
        }
    }

    /// Waits until the site of an own `tcp` stream is connected.
    ///
    /// # Errors
    /// Why it is not, with text for people.
    pub async fn accepted(&self) -> Result<Opened, (Code, Bytes)> {
        loop {
            self.settle().await;
            if let Some(opened) = self.cell.opened.get() {
                return Ok(opened);
            }
            match self.recv() {
                Recv::Pending => {
                    pair::select(self.cell.accepted.wait(), self.cell.readable.wait()).await;
                }
                Recv::Reset(code, text) => return Err((code, text)),
                Recv::Gone => return Err((Code::TunnelDown, Bytes::new())),
                Recv::Data(_) | Recv::Fin(_) => {
                    return Err((
                        Code::Protocol,
                        Bytes::from_static(b"the stream spoke before it was accepted"),
                    ));
                }
            }
        }
    }

    /// At `sc`: the site of a `tcp` stream is connected.
    pub fn opened(&self, opened: Opened) {
        self.with(|s, _, _, stream| s.opened(stream, opened));
    }

    /// At the endpoint: asks `sc` to shake hands with the site of a `tcp` stream that carried nothing yet.
    pub fn start_tls(&self, sni: &str) {
        let sni = Bytes::copy_from_slice(sni.as_bytes());
        self.with(|s, _, _, stream| s.start_tls(stream, sni, Bytes::from_static(HTTP11)));
    }

    /// At the endpoint: waits for what `sc` has seen.
    ///
    /// # Errors
    /// The stream has ended instead.
    pub async fn tls_reported(&self) -> Result<TlsReport, (Code, Bytes)> {
        loop {
            if let Some(Shaken::Reported(report)) = self.cell.shaken.borrow().as_deref() {
                return Ok(report.clone());
            }
            if let Err(code) = self.room_now() {
                return Err(match self.recv() {
                    Recv::Reset(code, text) => (code, text),
                    _ => (code, Bytes::new()),
                });
            }
            pair::select(self.cell.accepted.wait(), self.cell.writable.wait()).await;
        }
    }

    /// At `sc`: waits until the endpoint asks for TLS, and returns the SNI.
    pub async fn tls_asked(&self) -> Bytes {
        loop {
            if let Some(Shaken::Asked(sni)) = self.cell.shaken.borrow().as_deref() {
                return sni.clone();
            }
            self.cell.accepted.wait().await;
        }
    }

    /// At `sc`: what the handshake showed.
    pub fn tls_report(&self, report: TlsReport) {
        self.with(|s, _, _, stream| s.tls_report(stream, report));
    }

    /// What the stream was opened with.
    pub fn open(&self) -> &Open {
        &self.open
    }

    /// The shard that carries it.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Places a withdrawn stream anew. If another wait of this stream is at it already, that one wakes us.
    async fn settle(&self) {
        if self.cell.withdrawn.get() && self.lost.borrow().is_none() && !self.moving.replace(true) {
            // Boxed because it is rare, and every wait of every stream holds the place for it.
            Box::pin(self.place_anew()).await;
        }
    }

    async fn place_anew(&self) {
        let _moving = Moving(self);
        while self.lost.borrow().is_none() {
            let round = self.cell.withdrawals.get();
            match self.shard.place(&self.open, &self.cell).await {
                Err((code, text)) => self.lose(code, text),
                Ok(place) => {
                    self.place.replace(place);
                    if self.write_again(round).await {
                        self.shard.0.counters.streams_moved.add(1);
                        self.cell.withdrawn.set(false);
                        return;
                    }
                }
            }
        }
        let (link, stream) = self.place();
        link.release(&self.shard, stream);
    }

    /// Writes what was written before; false if the stream was withdrawn once more.
    async fn write_again(&self, round: u32) -> bool {
        loop {
            if self.cell.withdrawals.get() != round || self.lost.borrow().is_some() {
                return false;
            }
            if self.cell.returned.borrow().frames.is_empty() {
                if let Some(timings) = self.cell.returned.take().finished {
                    self.with(|s, _, now, stream| s.finish(now, stream, timings));
                }
                return true;
            }
            let room = match self.ask(|s, b, now, stream| s.room(now, b, stream)) {
                Ok(0) => {
                    self.cell.replayable.wait().await;
                    continue;
                }
                Ok(room) => room,
                // A stream that was stopped takes the frame and drops it: the holder learns of the end by itself.
                Err(_) => FRAME_PAYLOAD_BYTES_MAX,
            };
            let frame = self.cell.returned.borrow_mut().take(room);
            if let Some(frame) = frame {
                self.with(|s, b, now, stream| s.write(now, b, stream, frame));
            }
        }
    }

    fn lose(&self, code: Code, text: String) {
        self.lost.borrow_mut().get_or_insert((code, text));
        self.cell.raise_all();
    }
}

/// While a wait places the stream anew; if that wait is dropped, the next one takes over.
struct Moving<'a>(&'a Linked);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.moving.set(false);
        self.0.cell.raise_all();
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.shard.0.counters.streams_open.sub(1);
        let (link, stream) = self.place();
        link.release(&self.shard, stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_is_placed_anew_fits_whatever_room_there_is() {
        let mut returned = Returned::default();
        returned.frames.push_back(buffers::frame(b"placed anew").freeze());
        let mut next = |room| returned.take(room).map(|f| f[FRAME_HEADER_BYTES..].to_vec());
        assert_eq!(next(6).as_deref(), Some(&b"placed"[..]));
        assert_eq!(next(5).as_deref(), Some(&b" anew"[..]));
        assert_eq!(next(5), None);
    }
}
