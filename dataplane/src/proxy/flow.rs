//! Bytes of a stream on their way to a local socket, and the ways a local socket ends.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use crate::http::{Bad, Finder};
use crate::limits::{LINGER_BYTES_MAX, LINGER_MAX, OUTLET_OWN_BYTES, SETTLE_MAX};
use crate::mux::{Code, Recv};
use crate::queue::Queue;
use crate::shard::pair::{Either, select};
use crate::shard::timers::{self, Alarm};
use crate::shard::transport::Transport;
use crate::shard::{Stream, runtime};
use crate::time::Time;

/// Slices handed to one `writev`.
pub const SLICES_MAX: usize = 16;
/// A direction that never has to wait lets the others run after so many bytes.
pub const TURN_BYTES: usize = 128 * 1024;

/// How the peer's direction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Clean.
    Fin,
    /// Cut: never to be shown as complete.
    Cut(Code, String),
}

/// Why there is no head.
#[derive(Debug)]
pub enum NoHead {
    Bad(Bad),
    /// The stream ended before.
    Ended(End),
}

/// What the peer sends, slice by slice.
pub struct Inlet<'a> {
    stream: &'a Stream,
    slice: Bytes,
    /// Bytes that were taken, and given back to be taken again: they go to the socket unseen.
    taken_before: usize,
    end: Option<End>,
}

impl<'a> Inlet<'a> {
    pub fn new(stream: &'a Stream) -> Self {
        Self {
            stream,
            slice: Bytes::new(),
            taken_before: 0,
            end: None,
        }
    }

    /// Waits until [`Inlet::slice`] holds something or the end is known.
    pub async fn fill(&mut self) {
        if self.slice.is_empty() && self.end.is_none() {
            let received = self.stream.next().await;
            self.take_in(received);
        }
    }

    /// As [`Inlet::fill`] without waiting; true if there is a slice that was not seen before.
    pub fn fill_now(&mut self) -> bool {
        self.taken_before == 0 && self.refill_now()
    }

    fn refill_now(&mut self) -> bool {
        if self.slice.is_empty() && (self.end.is_none() || self.taken_before > 0) {
            let received = self.stream.recv();
            self.take_in(received);
        }
        !self.slice.is_empty()
    }

    fn take_in(&mut self, received: Recv) {
        match received {
            Recv::Pending => {}
            Recv::Data(bytes) => self.slice = bytes,
            Recv::Fin(_) => self.end = Some(End::Fin),
            Recv::Reset(code, text) => {
                self.end = Some(End::Cut(code, String::from_utf8_lossy(&text).into_owned()));
            }
            Recv::Gone => self.end = Some(End::Cut(Code::TunnelDown, String::new())),
        }
    }

    pub fn stream(&self) -> &'a Stream {
        self.stream
    }

    /// What is there and not taken.
    pub fn slice(&self) -> &[u8] {
        &self.slice
    }

    /// Takes the first `n` bytes; they are given back to the peer once the local socket has them.
    pub fn take(&mut self, n: usize) -> Bytes {
        self.slice.split_to(n)
    }

    /// Drops the first `n` bytes.
    pub fn skip(&mut self, n: usize) {
        // Not advanced: an empty slice would still hold its buffer.
        drop(self.take(n));
        self.stream.consumed(n);
    }

    /// The end, once every byte before it was taken.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref().filter(|_| self.slice.is_empty())
    }

    /// Bytes that were taken never reached the socket: it was full, and the stream was reset meanwhile.
    pub fn has_lost(&self) -> bool {
        self.taken_before > 0 && matches!(self.end(), Some(End::Cut(..)))
    }

    /// Holds nothing any more: the last `unwritten` bytes that were taken, and the slice, will come again. What is
    /// held here would keep whole buffers of the link in memory.
    pub fn let_go(&mut self, unwritten: usize) {
        self.slice = Bytes::new();
        self.taken_before += unwritten;
        self.stream.rewind();
    }

    /// Takes the next head; mostly it lies in one slice and is not copied.
    pub async fn head(&mut self, finder: &mut Finder) -> Result<Bytes, NoHead> {
        let mut text = BytesMut::new();
        loop {
            self.fill().await;
            if let Some(end) = self.end() {
                return Err(NoHead::Ended(end.clone()));
            }
            if text.is_empty()
                && let Some(n) = finder.find(&self.slice).map_err(NoHead::Bad)?
            {
                self.stream.consumed(n);
                return Ok(self.slice.split_to(n));
            }
            let before = text.len();
            text.extend_from_slice(&self.slice);
            if before > 0
                && let Some(n) = finder.find(&text).map_err(NoHead::Bad)?
            {
                self.skip(n - before);
                text.truncate(n);
                return Ok(text.freeze());
            }
            self.skip(self.slice.len());
        }
    }

    /// Waits a moment for the end that is due, so that dropping the stream does not reset it.
    pub async fn settle(&mut self) {
        timers::timeout(SETTLE_MAX, self.fill()).await;
    }
}

/// Pieces on their way to a local socket, in order. While the socket is full it lets go of the stream's bytes, so all of
/// those have to go to the socket.
#[derive(Default)]
pub struct Outlet<'a> {
    /// Mostly a head, and what belongs to it.
    pieces: Queue<Piece<'a>, 2>,
    /// Bytes that came with [`Outlet::push_own`].
    own: usize,
}

enum Piece<'a> {
    /// They came from the stream and are given back to the peer.
    OfStream(Bytes),
    Own {
        bytes: Cow<'a, [u8]>,
        written: usize,
    },
}

impl Piece<'_> {
    fn unwritten(&self) -> &[u8] {
        match self {
            Self::OfStream(bytes) => bytes,
            Self::Own { bytes, written } => &bytes[*written..],
        }
    }
}

impl<'a> Outlet<'a> {
    /// Queues bytes of the stream.
    pub fn push(&mut self, bytes: Bytes) {
        self.pieces.push_back(Piece::OfStream(bytes));
    }

    /// Queues bytes of our own.
    pub fn push_own(&mut self, bytes: impl Into<Cow<'a, [u8]>>) {
        let bytes = bytes.into();
        self.own += bytes.len();
        self.pieces.push_back(Piece::Own { bytes, written: 0 });
    }

    /// As much is queued as one write takes, or as may be held that the stream's budget does not know of.
    pub fn is_full(&self) -> bool {
        self.pieces.len() >= SLICES_MAX || self.own >= OUTLET_OWN_BYTES
    }

    /// Writes everything. May be dropped and called again. If the stream was reset meanwhile it stops early, and
    /// the inlet knows.
    pub async fn flush(&mut self, socket: &Transport, inlet: &mut Inlet<'_>) -> io::Result<()> {
        let was_full = self.is_full();
        loop {
            while inlet.taken_before > 0 && !self.is_full() && inlet.refill_now() {
                let n = inlet.taken_before.min(inlet.slice.len());
                inlet.taken_before -= n;
                self.push(inlet.take(n));
            }
            if self.pieces.is_empty() {
                if !socket.has_unsent() {
                    break;
                }
                // TLS has the rest: a cut waits for none of it.
                inlet.refill_now();
                if matches!(inlet.end(), Some(End::Cut(..))) {
                    break;
                }
            }
            match self.write(socket) {
                Ok(written) => self.written(written, inlet.stream),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.let_go(inlet);
                    // A cut is not held up by a socket that takes nothing.
                    let change = select(socket.writable(), inlet.stream.arrival());
                    let idle = inlet.stream.shard().times().idle;
                    match timers::timeout(idle, change).await {
                        Some(Either::Left(writable)) => writable?,
                        Some(Either::Right(())) => {}
                        None => return Err(io::ErrorKind::TimedOut.into()),
                    }
                }
                Err(e) => return Err(e),
            }
        }
        if was_full {
            runtime::yield_now().await;
        }
        Ok(())
    }

    fn write(&self, socket: &Transport) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.pieces.len().min(SLICES_MAX);
        for (slice, piece) in slices.iter_mut().zip(self.pieces.iter()) {
            *slice = IoSlice::new(piece.unwritten());
        }
        socket.try_write(&slices[..count])
    }

    fn let_go(&mut self, inlet: &mut Inlet<'_>) {
        let mut unwritten = 0;
        for piece in self.pieces.take() {
            match piece {
                Piece::OfStream(bytes) => unwritten += bytes.len(),
                own => self.pieces.push_back(own),
            }
        }
        inlet.let_go(unwritten);
    }

    fn written(&mut self, mut written: usize, stream: &Stream) {
        let mut given_back = 0;
        while let Some(piece) = self.pieces.front_mut() {
            let part = written.min(piece.unwritten().len());
            written -= part;
            match piece {
                Piece::OfStream(bytes) => {
                    bytes.advance(part);
                    given_back += part;
                }
                Piece::Own { written, .. } => {
                    *written += part;
                    self.own -= part;
                }
            }
            if !piece.unwritten().is_empty() {
                break;
            }
            self.pieces.pop_front();
        }
        if given_back > 0 {
            stream.consumed(given_back);
        }
    }
}

/// When something moved last, if anything has.
pub struct Activity {
    last: Cell<Time>,
    any: Cell<bool>,
}

impl Activity {
    pub fn new() -> Self {
        Self {
            last: Cell::new(runtime::now()),
            any: Cell::new(false),
        }
    }

    pub fn touch(&self) {
        self.restart();
        self.any.set(true);
    }

    /// Silence counts from now on.
    pub fn restart(&self) {
        self.last.set(runtime::now());
    }

    /// Whether there has been any.
    pub fn any(&self) -> bool {
        self.any.get()
    }

    /// Waits until nothing has moved for as long as `limit` says each time that it is asked: never less than
    /// `shortest`, and another answer only after a [`Activity::touch`].
    pub async fn silence(&self, alarm: &Alarm, shortest: Duration, limit: impl Fn() -> Duration) {
        loop {
            let (now, due) = (runtime::now(), self.last.get() + limit());
            if now >= due {
                return;
            }
            // The limit may fall meanwhile: it is looked at again in time for the shortest.
            alarm.until(due.min(now + shortest)).await;
        }
    }
}

/// From now on the socket's end is a cut for the other side, with RST, whatever brings it about: a process that dies
/// ends nothing cleanly. [`linger`] takes it back.
pub fn cut_at_end(socket: &Transport) {
    // Fails only if the connection is gone already.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Closes after a whole answer: what still comes in is read and dropped for a while, for a socket closed with unread
/// bytes is reset, and a reset may overtake the answer.
pub async fn linger(socket: &Transport) {
    let _ = socket2::SockRef::from(socket).set_linger(None);
    socket.finish().await;
    let socket = socket.socket();
    let drained = async {
        let mut dropped = 0;
        let mut buffer = [BytesMut::with_capacity(4 * 1024)];
        while dropped < LINGER_BYTES_MAX {
            if socket.readable().await.is_err() {
                return;
            }
            buffer[0].clear();
            match socket.try_read(&mut buffer, 4 * 1024) {
                Ok(0) => return,
                Ok(read) => dropped += read,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    timers::timeout(LINGER_MAX, drained).await;
}
