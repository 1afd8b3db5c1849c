//! A stream in the hands of a task: a browser's connection at the endpoint, a site's at `sc`.

use bytes::{Bytes, BytesMut};

use super::Shard;
use crate::mux::{Code, Open, Opened, Recv, StreamRef, Timings};

/// One stream of the multiplex. Dropping it resets with `cancelled` what has not ended.
///
/// All methods take `&self`, so that one task may read while it writes ([`super::runtime::join`]); one waiter for each
/// kind of wait. All waits may be dropped.
///
/// A stream whose OPEN had not left when its link died is placed anew behind the holder's back (on another link, or
/// once a link is up): what was written so far is written again. The holder only sees the wait.
pub struct Stream {
    shard: Shard,
    place: StreamRef,
    open: Open,
}

#[allow(clippy::todo)]
impl Stream {
    /// Waits for what the peer sends next: data or the end, never `Pending`. Bytes are to be given back with
    /// [`Stream::consumed`] once the local socket has them. After an end it waits for ever.
    pub async fn next(&self) -> Recv {
        todo!()
    }

    /// As [`Stream::next`] without waiting: may be `Pending`.
    pub fn recv(&self) -> Recv {
        todo!()
    }

    /// The local socket took `bytes` of what [`Stream::next`] gave: the peer may send as many more.
    pub fn consumed(&self, bytes: usize) {
        let _ = bytes;
        todo!()
    }

    /// Waits until something may be written, and returns how many bytes (> 0).
    ///
    /// # Errors
    /// Why the peer wants no more: its RESET, or the end of the session. The other direction may still deliver.
    pub async fn room(&self) -> Result<usize, Code> {
        todo!()
    }

    /// Writes one frame within [`Stream::room`]: 12 bytes of head-room, then 1 … 16,372 bytes of payload
    /// ([`super::buffers::Buffers::read`] makes such frames, [`super::buffers::frame`] copies into one).
    pub fn write(&self, frame: BytesMut) {
        let _ = frame;
        todo!()
    }

    /// Writes a copy of all of `bytes`, waiting for room as needed: for heads and other small things.
    ///
    /// # Errors
    /// As [`Stream::room`].
    pub async fn send(&self, bytes: &[u8]) -> Result<(), Code> {
        let _ = bytes;
        todo!()
    }

    /// Ends this direction, cleanly. `timings`: from `sc` on http(s).
    pub fn finish(&self, timings: Option<Timings>) {
        let _ = timings;
        todo!()
    }

    /// Ends the stream: before [`Stream::finish`] in both directions, after it only the peer's.
    pub fn reset(&self, code: Code, text: &str) {
        let _ = (code, text);
        todo!()
    }

    /// Waits until the site of an own `tcp` stream is connected.
    ///
    /// # Errors
    /// Why it is not, with text for people.
    pub async fn accepted(&self) -> Result<Opened, (Code, Bytes)> {
        todo!()
    }

    /// At `sc`: the site of a `tcp` stream is connected.
    pub fn opened(&self, opened: Opened) {
        let _ = opened;
        todo!()
    }

    /// What the stream was opened with.
    pub fn open(&self) -> &Open {
        &self.open
    }

    /// The shard that carries it.
    pub fn shard(&self) -> &Shard {
        let _ = self.place;
        &self.shard
    }
}
