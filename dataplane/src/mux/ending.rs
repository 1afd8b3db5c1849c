//! How a session ends: broken rules, an outage that lasts too long, or GOAWAY and everything served. What was never
//! acted on goes back to its holder.

use std::collections::VecDeque;

use bytes::Bytes;

use super::credit::Budget;
use super::frame::{self, Code, Frame, GoAwayReason};
use super::planted::planted;
use super::schedule::{Ordered, Schedule};
use super::session::{Cause, Conn, Event, Session, mark_served};
use super::stream::{Rx, StreamRef, Tx};
use crate::limits::SESSION_ERRORS_MAX;
use crate::time::Time;

impl Session {
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
        self.tell_ended(code, peer_at_fault, text);
        self.close(Cause::Failed);
    }

    /// Ends every stream and forgets what was retained and queued.
    pub(super) fn end_session(&mut self, now: Time, budget: &mut Budget, code: Code) {
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

    pub(super) fn end_stream(&mut self, budget: &mut Budget, r: StreamRef, code: Code) {
        let Some(s) = self.streams.get_mut(r).filter(|s| !s.orphan) else {
            return;
        };
        if s.rx == Rx::Open {
            s.rx = Rx::Reset(code, Bytes::new());
            s.readable_told = false;
        }
        if matches!(s.tx, Tx::Open | Tx::FinQueued(_)) {
            s.tx = Tx::Stopped(code);
        }
        mark_served(&mut self.unserved, s);
        s.flags = Default::default();
        s.unanswered = Default::default();
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
        let frames = s.unanswered.take().chain(s.outbox.iter().cloned()).collect();
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

    /// Drains: serves what is open, opens nothing.
    pub fn go_away(&mut self, _now: Time, reason: GoAwayReason, text: &str) {
        if self.session == [0; 16] && self.conn != Conn::Up && !self.finished {
            // No session has begun: none will.
            self.finished = true;
            self.events.push_back(Event::Finished);
            if self.conn == Conn::Greeting {
                self.close(Cause::Unwanted);
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

    /// Ends the session and its streams at once; the other side is told why if it can be.
    pub fn abandon(&mut self, now: Time, budget: &mut Budget, reason: GoAwayReason, text: &str) {
        if matches!(self.conn, Conn::Down | Conn::Dialing) {
            return self.forget_session(now, budget, Code::Shutdown);
        }
        self.farewell = Some(Frame::GoAway {
            last: self.highest_peer,
            reason,
            text: frame::short_text(text),
        });
        self.end_session(now, budget, Code::Shutdown);
        self.failed = true;
        self.close(Cause::Failed);
    }

    /// Drained, or told to drain before there was a session: nothing is left of it.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// GOAWAY was sent or read, no stream is left, all own bytes are acknowledged: nothing is left to do.
    pub(super) fn check_finished(&mut self, now: Time, budget: &mut Budget) {
        let draining = self.goaway_last.is_some() || self.goaway_read;
        let queue = &self.schedule;
        let acked = self.retention.is_empty() || planted("finish-before-ack");
        // Without a connection, an own GOAWAY that has not left is no reason to dial for it.
        let down = self.conn != Conn::Up;
        let idle_queue = (queue.ordered.iter()).all(|o| down && matches!(o, Ordered::GoAway { .. }));
        let written = acked && idle_queue && queue.refusals.is_empty();
        let idle = self.streams.open == 0 && written;
        let resumes = planted("drained-resumes") && down;
        if draining && idle && !self.finished && !self.failed && !resumes {
            self.finish_session(now, budget);
        }
    }

    pub(super) fn finish_session(&mut self, now: Time, budget: &mut Budget) {
        if !self.finished {
            self.finished = true;
            self.ack_now = true;
            self.events.push_back(Event::Finished);
            self.close(Cause::Drained);
        }
        if matches!(self.conn, Conn::Down | Conn::Dialing) {
            self.forget_session(now, budget, Code::Shutdown);
        }
    }
}
