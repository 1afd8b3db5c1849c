//! A session's connections: dials, HELLO, cut-over, outage, expiry, and the deadlines of all of them.

use std::time::Duration;

use bytes::Bytes;

use super::credit::Budget;
use super::flood::Buckets;
use super::frame::{self, Code, GoAwayReason, Hello};
use super::planted::planted;
use super::schedule::Ordered;
use super::session::{Cause, Conn, Event, Reject, Session, Side, next_id};
use super::stream::Tx;
use crate::limits::{
    BASE_CREDIT_PEER_BYTES, CONNECTION_LIFE_MIN, DIAL_BACKOFF_MAX, DIAL_BACKOFF_MIN, FIRST_DIAL_MAX,
    FRAME_HEADER_BYTES, LINK_DOWN_GRACE, SESSION_ERRORS_BACKOFF, SESSION_ERRORS_MAX, SESSION_ERRORS_SPAN,
    outage_invisible,
};
use crate::time::Time;

impl Session {
    /// Client: TLS is up on a new connection; HELLO leaves next.
    pub fn connected(&mut self, now: Time, _budget: &mut Budget) {
        debug_assert_eq!(self.conn, Conn::Dialing);
        self.epoch += 1;
        self.conn = Conn::Greeting;
        self.liveness.received(now);
        if self.finished {
            return self.close(Cause::Unwanted);
        }
        self.hello_out = Some(self.hello(self.session, self.fresh));
    }

    /// Client: the dial failed or took too long.
    pub fn dial_failed(&mut self, now: Time) {
        self.conn = Conn::Down;
        self.back_off(now);
    }

    /// Client: the cloud is to be dialled elsewhere, or under another key. That the old way failed says nothing of it.
    pub fn dial_now(&mut self, now: Time) {
        self.dial_failures = 0;
        if self.conn == Conn::Down {
            self.dial_at = Some(now);
        }
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
            return self.close(Cause::WrongHello);
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
        let lost_long = self
            .outage
            .is_some_and(|t| now.since(t) > outage_invisible(self.config.resume_window));
        let code = if lost_long {
            Code::TunnelDown
        } else {
            Code::PeerRestarted
        };
        if self.session != [0; 16] {
            self.tell_ended(code, false, "the other side does not know it any more");
        }
        self.end_session(now, budget, code);
        self.outage = None;
        self.session = session;
        (self.next_own, self.highest_own, self.highest_peer) = (2 - self.next_own % 2, 0, 0);
        (self.goaway_queued, self.goaway_last, self.goaway_read) = (false, None, false);
        self.buckets = Buckets::new(now);
        if self.config.side == Side::Endpoint && !planted("no-first-settings-ack") {
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
        self.events.retain(|e| !matches!(e, Event::Close(_)));
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
            return self.forget_session(now, budget, Code::Shutdown);
        }
        if self.config.side == Side::Client {
            self.schedule_dial(now, was);
        }
        self.expire(now, budget);
    }

    pub(super) fn forget_session(&mut self, now: Time, budget: &mut Budget, code: Code) {
        self.end_session(now, budget, code);
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

    pub(super) fn forget_old_errors(&mut self, now: Time) {
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
        let young = self.young.front().map(|(t, ..)| *t + crate::limits::SLICE_AGE_MAX);
        let all = [up, greeting, dial, expiry, grace, young, self.ack_due, self.recall_at];
        // Asked for several times a request: without iterators over iterators.
        all.into_iter().fold(None, |first, next| match (first, next) {
            (Some(a), Some(b)) => Some(std::cmp::min::<Time>(a, b)),
            (a, b) => a.or(b),
        })
    }

    pub fn handle_timeout(&mut self, now: Time, budget: &mut Budget) {
        if self.conn == Conn::Down && !self.finished && self.dial_at.is_some_and(|t| t <= now) {
            self.dial_at = None;
            self.conn = Conn::Dialing;
            self.dial_started = now;
            self.events.push_back(Event::Dial);
        }
        if self.conn == Conn::Greeting && self.dial_started + self.dial_time_max() <= now {
            self.close(Cause::NoHello);
        }
        self.expire(now, budget);
        if self.withdraw_at().is_some_and(|t| t <= now) {
            self.withdrawn_since_loss = true;
            self.withdraw_unwritten(now, budget);
        }
        if self.conn == Conn::Up && self.closing.is_none() && !self.failed {
            let streams = self.streams.open > 0;
            if self.liveness.handle_timeout(now, streams) == super::liveness::Verdict::Dead {
                self.close(Cause::Silent);
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
            .map(|t| t + self.config.resume_window)
            .filter(|_| !greeting && !cut_over && !self.failed)
    }

    fn expire(&mut self, now: Time, budget: &mut Budget) {
        if self.expires_at().is_none_or(|t| now < t) {
            return;
        }
        self.tell_ended(Code::TunnelDown, false, Cause::Lost.text());
        self.forget_session(now, budget, Code::TunnelDown);
        if self.conn == Conn::Up {
            self.failed = true;
            self.close(Cause::Lost);
        }
    }

    pub(super) fn tell_ended(&mut self, code: Code, peer_at_fault: bool, text: &str) {
        self.events.push_back(Event::SessionEnded {
            code,
            peer_at_fault,
            text: text.to_owned(),
        });
    }

    fn withdraw_at(&self) -> Option<Time> {
        let down = self.conn != Conn::Up && !self.withdrawn_since_loss;
        self.lost_at.map(|t| t + LINK_DOWN_GRACE).filter(|_| down)
    }

    /// Ask the shell, once, to end the connection.
    pub(super) fn close(&mut self, cause: Cause) {
        if self.closing.is_none() && self.conn != Conn::Down {
            self.closing = Some(cause);
            self.events.push_back(Event::Close(cause));
        }
    }
}
