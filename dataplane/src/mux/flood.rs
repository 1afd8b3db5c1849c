//! Token buckets of a session: what a peer may do for nothing, and how this side keeps under the same limits.

use std::time::Duration;

use crate::limits::{EARLY_RESETS_BURST, EARLY_RESETS_PER_SECOND, IDLE_FRAMES_BURST, IDLE_FRAMES_PER_SECOND};
use crate::time::Time;

/// Tokens that refill with time, in millionths.
struct Bucket {
    micros: u64,
    burst: u64,
    per_second: u64,
    filled_at: Time,
}

impl Bucket {
    fn new(burst: u32, per_second: u32, now: Time) -> Self {
        let burst = u64::from(burst) * 1_000_000;
        Self {
            micros: burst,
            burst,
            per_second: u64::from(per_second),
            filled_at: now,
        }
    }

    fn tokens(&mut self, now: Time) -> u64 {
        let passed: Duration = now.since(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        let refill = (passed.as_micros() as u64).saturating_mul(self.per_second);
        self.micros = self.micros.saturating_add(refill).min(self.burst);
        self.micros / 1_000_000
    }

    fn take(&mut self, now: Time) -> bool {
        let some = self.tokens(now) > 0;
        if some {
            self.micros -= 1_000_000;
        }
        some
    }
}

/// All buckets of one session.
pub(super) struct Buckets {
    pings: Bucket,
    idle_credits: Bucket,
    settings_acks: Bucket,
    early_resets: Bucket,
    /// Ours, one eighth smaller: the network may press what leaves slowly into a burst.
    own_early_resets: Bucket,
}

impl Buckets {
    pub fn new(now: Time) -> Self {
        let (burst, rate) = (EARLY_RESETS_BURST, EARLY_RESETS_PER_SECOND);
        Self {
            pings: Bucket::new(IDLE_FRAMES_BURST, IDLE_FRAMES_PER_SECOND, now),
            idle_credits: Bucket::new(IDLE_FRAMES_BURST, IDLE_FRAMES_PER_SECOND, now),
            settings_acks: Bucket::new(IDLE_FRAMES_BURST, IDLE_FRAMES_PER_SECOND, now),
            early_resets: Bucket::new(burst, rate, now),
            own_early_resets: Bucket::new(burst - burst / 8, rate - rate / 8, now),
        }
    }

    /// A PING of the peer.
    pub fn ping(&mut self, now: Time) -> bool {
        self.pings.take(now)
    }

    /// A CREDIT of the peer that raises nothing.
    pub fn idle_credit(&mut self, now: Time) -> bool {
        self.idle_credits.take(now)
    }

    /// A SETTINGS_ACK of the peer, asked for or not.
    pub fn settings_ack(&mut self, now: Time) -> bool {
        self.settings_acks.take(now)
    }

    /// The peer reset a stream that it had opened, before it was served.
    pub fn early_reset(&mut self, now: Time) -> bool {
        self.early_resets.take(now)
    }

    /// Whether one more stream may be opened, when every unserved one may yet be reset early.
    pub fn may_open(&mut self, now: Time, unserved: u32) -> bool {
        self.own_early_resets.tokens(now) > u64::from(unserved)
    }

    pub fn own_early_reset(&mut self, now: Time) {
        self.own_early_resets.take(now);
    }
}
