//! Round trips and death of a connection.
//!
//! One PING at most is out, and it counts as out from the moment it is *due*, written or not: a write blocked by a
//! dead path must not stop the clock.

use std::time::Duration;

use super::planted::planted;
use crate::limits::{
    ACK_BYTES, ACK_STALL_MAX, ACK_STALL_PONGS_MIN, DEAD_AFTER_MIN, DEAD_WITHOUT_PROGRESS, LATE_TIMER, PING_BUSY,
    PING_IDLE, PING_REST, RTT_MEMORY,
};
use crate::time::Time;

struct Ping {
    out_since: Time,
    written: Option<Time>,
    token: [u8; 8],
}

/// What the deadline of a connection says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Alive,
    Dead,
}

pub(super) struct Liveness {
    last_received: Time,
    last_ping: Time,
    ping: Option<Ping>,
    tokens: u64,
    ack_rose: Time,
    /// PONGs without a rising ACK while much is unacknowledged: since when, and how many.
    stall: Option<(Time, u32)>,
    srtt_us: Option<u64>,
    /// Least round trip of the current and of the previous stretch of `RTT_MEMORY`.
    least_us: [Option<u64>; 2],
    stretch: Time,
}

impl Liveness {
    pub fn new(now: Time) -> Self {
        Self {
            last_received: now,
            last_ping: now,
            ping: None,
            tokens: 0,
            ack_rose: now,
            stall: None,
            srtt_us: None,
            least_us: [None; 2],
            stretch: now,
        }
    }

    /// A new connection: its first PING is due at once, so that the round trip is known before it matters.
    pub fn restart(&mut self, now: Time) {
        (self.last_received, self.ack_rose, self.stall) = (now, now, None);
        self.ping = None;
        self.put_out(now);
    }

    pub fn received(&mut self, now: Time) {
        self.last_received = self.last_received.max(now);
    }

    pub fn ack_rose(&mut self, now: Time) {
        (self.ack_rose, self.stall) = (now, None);
    }

    fn put_out(&mut self, now: Time) {
        self.tokens += 1;
        self.ping = Some(Ping {
            out_since: now,
            written: None,
            token: self.tokens.to_be_bytes(),
        });
        self.last_ping = now;
    }

    /// The PING that waits to be written, marked as written.
    pub fn take_ping(&mut self, now: Time) -> Option<[u8; 8]> {
        let ping = self.ping.as_mut().filter(|p| p.written.is_none())?;
        ping.written = Some(now);
        Some(ping.token)
    }

    /// Reads a PONG; whether it answers the PING that is out.
    pub fn pong(&mut self, now: Time, token: [u8; 8]) -> bool {
        let Some(written) = self.ping.as_ref().filter(|p| p.token == token).and_then(|p| p.written) else {
            return false;
        };
        self.ping = None;
        // A connection does not live so long without an answer: this process did not run meanwhile.
        if now.since(written) > DEAD_WITHOUT_PROGRESS {
            return true;
        }
        let sample = (now.since(written).as_micros() as u64).max(1);
        self.srtt_us = Some(self.srtt_us.map_or(sample, |s| (s * 7 + sample) / 8));
        if now.since(self.stretch) > RTT_MEMORY {
            self.stretch = now;
            self.least_us = [None, self.least_us[0]];
        }
        self.least_us[0] = Some(self.least_us[0].map_or(sample, |l| l.min(sample)));
        true
    }

    /// A PONG was read: has the peer answered for `ACK_STALL_MAX` without acknowledging anything? Several PONGs
    /// must say so, because the clock counts time in which this process did not run.
    pub fn ack_stalled(&mut self, now: Time, unacked: u64) -> bool {
        if unacked < ACK_BYTES {
            self.stall = None;
            return false;
        }
        let (since, pongs) = self.stall.get_or_insert((now, 0));
        *pongs += 1;
        now.since(*since) >= ACK_STALL_MAX && *pongs >= ACK_STALL_PONGS_MIN
    }

    pub fn srtt(&self) -> Option<Duration> {
        self.srtt_us.map(Duration::from_micros)
    }

    /// Least round trip of the last ten seconds or more, in µs; one millisecond at least, because scheduling of the
    /// two processes is part of every real round trip.
    pub fn rtt_us(&self) -> u64 {
        self.least_us
            .iter()
            .flatten()
            .copied()
            .min()
            .unwrap_or(1_000)
            .max(1_000)
    }

    /// How long silence may last while a PING is out.
    pub fn patience(&self) -> Duration {
        let four = Duration::from_micros(self.srtt_us.unwrap_or(0) * 4 + 1_000_000);
        DEAD_AFTER_MIN.max(four)
    }

    fn ping_due(&self, streams: bool) -> Time {
        if streams {
            (self.last_received + PING_IDLE).min(self.last_ping + PING_BUSY)
        } else {
            self.last_received + PING_REST
        }
    }

    fn dead_at(&self, ping: &Ping) -> Time {
        let silent = ping.out_since.max(self.last_received) + self.patience();
        silent.min(ping.out_since.max(self.ack_rose) + DEAD_WITHOUT_PROGRESS)
    }

    /// When `handle_timeout` has something to do.
    pub fn deadline(&self, streams: bool) -> Time {
        match &self.ping {
            Some(ping) => self.dead_at(ping),
            None => self.ping_due(streams),
        }
    }

    pub fn handle_timeout(&mut self, now: Time, streams: bool) -> Verdict {
        let due = self.deadline(streams);
        if now < due {
            return Verdict::Alive;
        }
        let Some(ping) = &mut self.ping else {
            self.put_out(now);
            return Verdict::Alive;
        };
        let unwritten = ping.written.is_none() && planted("ping-out-when-written");
        // A timer that comes this late means that this process did not run: what the peer sent meanwhile has not
        // been read yet, so its silence proves nothing.
        if now.since(due) > LATE_TIMER || unwritten {
            ping.out_since = now;
            return Verdict::Alive;
        }
        Verdict::Dead
    }
}
