//! A stream that stays in its shard. What an endpoint carries to a site without the tunnel is served by the same code as
//! at `sc`, by a task of the same shard, with this between both instead of a link.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};

use super::signal::Signal;
use super::{Shard, Stream, pair};
use crate::limits::{DIRECT_STREAMS_MAX, FRAME_HEADER_BYTES, PIPE_BYTES, PIPE_PIECE_BYTES};
use crate::mux::frame::short_text;
use crate::mux::{Code, Open, Opened, Recv, Timings};

/// Index of the end that opened it.
const NEAR: usize = 0;
/// Index of the end that serves it.
const FAR: usize = 1;

pub(super) struct Pipe {
    open: Open,
    /// By the end that writes into it.
    ways: [Way; 2],
    opened: Cell<Option<Opened>>,
    accepted: Signal,
    /// By the end that waits for it.
    draining: [Signal; 2],
}

/// One direction.
#[derive(Default)]
struct Way {
    flow: RefCell<Flow>,
    readable: Signal,
    writable: Signal,
}

#[derive(Default)]
struct Flow {
    /// Written, and not given to the reader.
    fresh: VecDeque<Bytes>,
    /// Given to it, and not consumed.
    given: VecDeque<Bytes>,
    /// Of both.
    bytes: usize,
    ending: Option<Ending>,
    /// The reader knows the end, or wants no more.
    is_over: bool,
    /// Why the reader wants no more.
    stopped: Option<Code>,
}

enum Ending {
    Fin(Option<Timings>),
    Cut(Code, Bytes),
}

impl Flow {
    fn clear(&mut self) {
        self.fresh.clear();
        self.given.clear();
        self.bytes = 0;
    }

    fn room(&self) -> Result<usize, Code> {
        match (self.stopped, &self.ending) {
            (Some(code), _) => Err(code),
            (None, Some(Ending::Cut(code, _))) => Err(*code),
            _ => {
                let pieces = self.fresh.len() + self.given.len();
                Ok(PIPE_BYTES.saturating_sub(self.bytes + pieces * PIPE_PIECE_BYTES))
            }
        }
    }

    fn recv(&mut self) -> Recv {
        if let Some(piece) = self.fresh.pop_front() {
            self.given.push_back(piece.clone());
            return Recv::Data(piece);
        }
        match &self.ending {
            _ if self.is_over => Recv::Gone,
            None => Recv::Pending,
            Some(ending) => {
                self.is_over = true;
                match ending {
                    Ending::Fin(timings) => Recv::Fin(*timings),
                    Ending::Cut(code, text) => Recv::Reset(*code, text.clone()),
                }
            }
        }
    }

    fn has_input(&self) -> bool {
        !self.fresh.is_empty() || self.ending.is_some() || self.is_over
    }

    fn consume(&mut self, mut bytes: usize) {
        while let Some(piece) = self.given.front_mut() {
            let part = bytes.min(piece.len());
            piece.advance(part);
            bytes -= part;
            self.bytes -= part;
            if !piece.is_empty() {
                return;
            }
            self.given.pop_front();
        }
    }
}

/// One end of a pipe; dropping it resets with `cancelled` what has not ended.
pub(super) struct End {
    shard: Shard,
    pipe: Rc<Pipe>,
    side: usize,
}

impl Shard {
    /// Endpoint: opens a stream to a site that is reached without the tunnel, whatever its links do.
    ///
    /// # Errors
    /// Why there is no stream, with text for people: `limit`, `shutdown`.
    pub fn open_direct(&self, open: Open) -> Result<Stream, (Code, String)> {
        if self.dismisses() {
            return Err((Code::Shutdown, "the tunnel is shutting down".to_owned()));
        }
        if self.0.pipes.borrow().len() >= DIRECT_STREAMS_MAX {
            let text = "as many requests as may go past the tunnel do already";
            return Err((Code::Limit, text.to_owned()));
        }
        let pipe = Rc::new(Pipe {
            open,
            ways: Default::default(),
            opened: Cell::new(None),
            accepted: Signal::new(),
            draining: [Signal::new(), Signal::new()],
        });
        self.0.pipes.borrow_mut().push(pipe.clone());
        let end = |side| End {
            shard: self.clone(),
            pipe: pipe.clone(),
            side,
        };
        let (near, far) = (end(NEAR), end(FAR));
        (self.0.services.site)(self, Stream::of_pipe(far));
        Ok(Stream::of_pipe(near))
    }

    /// Nobody serves any more, or will soon.
    pub(super) fn drain_pipes(&self) {
        for pipe in self.0.pipes.borrow().iter() {
            pipe.draining.iter().for_each(Signal::raise);
        }
    }
}

impl End {
    /// What this end writes.
    fn out(&self) -> &Way {
        &self.pipe.ways[self.side]
    }

    /// What it reads.
    fn into(&self) -> &Way {
        &self.pipe.ways[1 - self.side]
    }

    pub async fn next(&self) -> Recv {
        loop {
            match self.recv() {
                Recv::Pending => self.arrival().await,
                other => return other,
            }
        }
    }

    pub fn recv(&self) -> Recv {
        self.into().flow.borrow_mut().recv()
    }

    pub async fn arrival(&self) {
        self.into().readable.wait().await;
    }

    pub async fn input(&self) {
        while !self.into().flow.borrow().has_input() {
            self.arrival().await;
        }
    }

    pub fn consumed(&self, bytes: usize) {
        self.into().flow.borrow_mut().consume(bytes);
        self.into().writable.raise();
    }

    pub fn rewind(&self) {
        let mut flow = self.into().flow.borrow_mut();
        while let Some(piece) = flow.given.pop_back() {
            flow.fresh.push_front(piece);
        }
    }

    pub async fn room(&self) -> Result<usize, Code> {
        loop {
            match self.room_now()? {
                0 => self.out().writable.wait().await,
                room => return Ok(room),
            }
        }
    }

    pub fn room_now(&self) -> Result<usize, Code> {
        self.out().flow.borrow().room()
    }

    pub async fn stopped(&self) -> Code {
        loop {
            match self.room_now() {
                Err(code) => return code,
                Ok(_) => self.out().writable.wait().await,
            }
        }
    }

    pub fn write(&self, frame: BytesMut) {
        let mut flow = self.out().flow.borrow_mut();
        if flow.room().is_err() || flow.ending.is_some() {
            return;
        }
        let piece = frame.freeze().slice(FRAME_HEADER_BYTES..);
        flow.bytes += piece.len();
        flow.fresh.push_back(piece);
        drop(flow);
        self.out().readable.raise();
    }

    pub fn finish(&self, timings: Option<Timings>) {
        self.out().flow.borrow_mut().ending.get_or_insert(Ending::Fin(timings));
        self.out().readable.raise();
    }

    pub fn reset(&self, code: Code, text: &str) {
        self.shard.0.counters.reset(code);
        self.end(code, text);
    }

    fn end(&self, code: Code, text: &str) {
        let mut own = self.out().flow.borrow_mut();
        if own.ending.is_none() {
            own.clear();
            own.ending = Some(Ending::Cut(code, short_text(text)));
        }
        drop(own);
        let mut theirs = self.into().flow.borrow_mut();
        if !std::mem::replace(&mut theirs.is_over, true) {
            theirs.clear();
            theirs.stopped = Some(code);
        }
        drop(theirs);
        self.out().readable.raise();
        self.into().writable.raise();
    }

    pub async fn accepted(&self) -> Result<Opened, (Code, Bytes)> {
        loop {
            if let Some(opened) = self.pipe.opened.get() {
                return Ok(opened);
            }
            match self.recv() {
                Recv::Pending => {
                    pair::select(self.pipe.accepted.wait(), self.arrival()).await;
                }
                Recv::Reset(code, text) => return Err((code, text)),
                Recv::Data(_) | Recv::Fin(_) | Recv::Gone => {
                    let text = Bytes::from_static(b"the stream spoke before it was accepted");
                    return Err((Code::Protocol, text));
                }
            }
        }
    }

    pub fn opened(&self, opened: Opened) {
        self.pipe.opened.set(Some(opened));
        self.pipe.accepted.raise();
    }

    pub async fn draining(&self) {
        self.pipe.draining[self.side].wait().await;
        self.pipe.draining[self.side].raise();
    }

    pub fn open(&self) -> &Open {
        &self.pipe.open
    }

    pub fn shard(&self) -> &Shard {
        &self.shard
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.end(Code::Cancelled, "");
        // The shard's own, and this.
        if Rc::strong_count(&self.pipe) == 2 {
            self.shard.0.pipes.borrow_mut().retain(|p| !Rc::ptr_eq(p, &self.pipe));
            self.shard.note_drained();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::buffers;

    fn piece(text: &[u8]) -> Bytes {
        buffers::frame(text).freeze().slice(FRAME_HEADER_BYTES..)
    }

    fn flow(pieces: &[&[u8]]) -> Flow {
        let fresh: VecDeque<_> = pieces.iter().map(|p| piece(p)).collect();
        Flow {
            bytes: fresh.iter().map(Bytes::len).sum(),
            fresh,
            ..Flow::default()
        }
    }

    fn read(flow: &mut Flow) -> Vec<u8> {
        match flow.recv() {
            Recv::Data(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_not_consumed_is_given_again_in_order() {
        let mut flow = flow(&[b"one", b"two", b"three"]);
        assert_eq!((read(&mut flow), read(&mut flow)), (b"one".to_vec(), b"two".to_vec()));
        flow.consume(4);
        while let Some(piece) = flow.given.pop_back() {
            flow.fresh.push_front(piece);
        }
        assert_eq!((read(&mut flow), read(&mut flow)), (b"wo".to_vec(), b"three".to_vec()));
        flow.consume(7);
        assert_eq!((flow.bytes, flow.given.len()), (0, 0));
        assert!(matches!(flow.recv(), Recv::Pending));
    }

    #[test]
    fn an_end_is_told_once_and_behind_what_stood_before_it() {
        let mut flow = flow(&[b"last"]);
        flow.ending = Some(Ending::Fin(None));
        assert_eq!(read(&mut flow), b"last");
        assert!(matches!(flow.recv(), Recv::Fin(None)));
        assert!(matches!(flow.recv(), Recv::Gone));
    }

    #[test]
    fn many_small_pieces_are_as_bounded_as_few_large_ones() {
        let mut flow = Flow::default();
        let mut written = 0;
        while flow.room().is_ok_and(|room| room > 0) {
            flow.fresh.push_back(piece(b"x"));
            flow.bytes += 1;
            written += 1;
            assert!(written <= PIPE_BYTES / PIPE_PIECE_BYTES + 1);
        }
        assert!(written > PIPE_BYTES / PIPE_PIECE_BYTES / 2);
    }
}
