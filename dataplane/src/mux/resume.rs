//! What a session has written and the peer has not acknowledged: retained as plaintext, replayed after a cut.

use std::collections::VecDeque;

use bytes::Bytes;

use super::frame::Violation;
use super::planted::planted;
use super::stream::StreamRef;

/// A counted frame, whole and unchangeable.
pub(super) struct Retained {
    pub bytes: Bytes,
    /// The stream whose DATA it is; `None` for every other frame.
    pub data_of: Option<StreamRef>,
}

/// Retained frames in order of their first write.
#[derive(Default)]
pub(super) struct Retention {
    frames: VecDeque<Retained>,
    /// Counted bytes that the peer is known to have.
    acked: u64,
    /// Counted bytes ever written.
    sent: u64,
    /// Index of the next frame that this connection has not carried yet.
    next: usize,
}

impl Retention {
    /// Retains a frame that is being written for the first time.
    pub fn push(&mut self, frame: Retained) {
        self.sent += frame.bytes.len() as u64;
        self.frames.push_back(frame);
        self.next = self.frames.len();
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn unacked(&self) -> u64 {
        self.sent - self.acked
    }

    /// The next frame that was written on an earlier connection and not yet on this one.
    pub fn next_replay(&mut self) -> Option<Bytes> {
        let frame = self.frames.get(self.next)?;
        self.next += 1;
        Some(frame.bytes.clone())
    }

    pub fn peek_replay(&self) -> Option<usize> {
        self.frames.get(self.next).map(|f| f.bytes.len())
    }

    pub fn replaying(&self) -> bool {
        self.next < self.frames.len()
    }

    /// A new connection carries everything retained again, from the first frame.
    pub fn rewind(&mut self) {
        self.next = usize::from(planted("replay-one-too-few")).min(self.frames.len());
    }

    /// The peer has `offset` counted bytes: frees what lies before, frame by frame.
    ///
    /// # Errors
    /// If the offset goes back, lies beyond what was sent, or inside a frame.
    pub fn acknowledge(&mut self, offset: u64, mut free: impl FnMut(Retained)) -> Result<bool, Violation> {
        let rises = offset > self.acked;
        while self.acked < offset {
            let Some(frame) = self.frames.pop_front() else {
                break;
            };
            self.acked += frame.bytes.len() as u64;
            self.next = self.next.saturating_sub(1);
            if !planted("ack-without-release") {
                free(frame);
            }
        }
        if self.acked != offset {
            return Err(Violation("an acknowledgement inside a frame or out of range"));
        }
        Ok(rises)
    }

    /// Forgets everything: a fresh session starts at 0.
    pub fn clear(&mut self, mut free: impl FnMut(Retained)) {
        self.frames.drain(..).for_each(&mut free);
        (self.acked, self.sent, self.next) = (0, 0, 0);
    }
}
