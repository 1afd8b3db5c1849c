//! The two budgets of a shard, both hard: credit that was advertised, and bytes retained or queued for sending.

use std::collections::VecDeque;

use super::planted::planted;
use super::stream::{Stream, StreamRef};
use crate::limits::{
    BASE_CREDIT_OWN_BYTES, BASE_CREDIT_PEER_BYTES, FIRST_GRANT_BYTES, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX,
    LINK_SHARE, LONG_ROUND_TRIP, RECORD_BYTES_MAX, WINDOW_BYTES_MAX,
};

/// Sizes of a shard's budgets.
#[derive(Clone, Copy, Debug)]
pub struct BudgetConfig {
    /// Bytes of the receive pool.
    pub pool_bytes: usize,
    /// Bytes retained and queued for sending.
    pub tx_bytes: usize,
    /// Streams that the other side may have open.
    pub streams_peer_max: usize,
    /// Streams that this side may have open.
    pub streams_own_max: usize,
}

/// Shared by all sessions of one shard, so that memory does not grow with links.
pub struct Budget {
    config: BudgetConfig,
    /// Σ of what streams were granted above their base.
    pool_used: usize,
    outstanding: usize,
    charged: usize,
    held: usize,
    streams_peer: usize,
    streams_own: usize,
    tx_held: usize,
    /// Times that a stream was refused room, ever.
    pub(super) refusals: u64,
    /// Streams of peers that were turned away for the limit, since somebody asked.
    turned_away: u64,
    waiting: VecDeque<(u32, StreamRef)>,
    /// Places in `waiting` ever given out, and ever called up.
    issued: u64,
    served: u64,
    unblocked: VecDeque<(u32, StreamRef)>,
}

impl Budget {
    pub fn new(config: BudgetConfig) -> Self {
        Self {
            config,
            pool_used: 0,
            outstanding: 0,
            charged: 0,
            held: 0,
            streams_peer: 0,
            streams_own: 0,
            tx_held: 0,
            refusals: 0,
            turned_away: 0,
            waiting: VecDeque::new(),
            issued: 0,
            served: 0,
            unblocked: VecDeque::new(),
        }
    }

    /// A stream that was refused room and may ask again: (session key, stream). Drain after every call.
    pub fn next_unblocked(&mut self) -> Option<(u32, StreamRef)> {
        self.unblocked.pop_front()
    }

    /// Credit advertised and not yet consumed, over all streams.
    pub fn rx_outstanding(&self) -> usize {
        self.outstanding
    }

    /// The bound of `rx_outstanding`: bases of all streams and the pool.
    pub fn rx_outstanding_max(&self) -> usize {
        let c = &self.config;
        c.streams_peer_max * BASE_CREDIT_PEER_BYTES + c.streams_own_max * BASE_CREDIT_OWN_BYTES + c.pool_bytes
    }

    /// Received bytes that wait to be handed on.
    pub fn rx_held(&self) -> usize {
        self.held
    }

    /// Memory charged for received bytes, by capacity of buffers.
    pub fn rx_charged(&self) -> usize {
        self.charged
    }

    /// Bytes retained and queued, DATA with headers.
    pub fn tx_held(&self) -> usize {
        self.tx_held
    }

    /// The bound of `tx_held`.
    pub fn tx_held_max(&self) -> usize {
        self.config.tx_bytes
    }

    /// (peer-opened, own) streams that hold a place.
    pub fn streams(&self) -> (usize, usize) {
        (self.streams_peer, self.streams_own)
    }

    pub(super) fn pool_free(&self) -> usize {
        self.config.pool_bytes.saturating_sub(self.pool_used)
    }

    /// Less than a quarter is free: idle streams give back what they do not use.
    pub(super) fn pool_is_low(&self) -> bool {
        self.pool_free() < self.config.pool_bytes / 4
    }

    /// What [`Self::take_turned_away`] would return.
    pub fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// Streams of peers beyond the limit that were turned away since the last call.
    pub fn take_turned_away(&mut self) -> u64 {
        std::mem::take(&mut self.turned_away)
    }

    pub(super) fn take_place(&mut self, own: bool) -> bool {
        let (count, max) = if own {
            (&mut self.streams_own, self.config.streams_own_max)
        } else {
            (&mut self.streams_peer, self.config.streams_peer_max)
        };
        let free = *count < max || planted("skip-stream-limit");
        *count += usize::from(free);
        self.turned_away += u64::from(!free && !own);
        free
    }

    pub(super) fn give_place_back(&mut self, own: bool) {
        let count = if own {
            &mut self.streams_own
        } else {
            &mut self.streams_peer
        };
        *count -= 1;
    }

    /// Moves a stream's offsets and the pool with them.
    pub(super) fn set_offsets(&mut self, s: &mut Stream, advertised: u64, consumed: u64) {
        let before = outstanding(s);
        self.pool_used -= share(s, before);
        s.advertised = advertised;
        s.consumed = consumed;
        let after = outstanding(s);
        self.pool_used += share(s, after);
        self.outstanding = self.outstanding - before + after;
    }

    /// The most that may be outstanding on a stream after a refill: each stalled stream leaves room behind it
    /// (dynamic threshold, Choudhury and Hahne).
    pub(super) fn refill_max(&self, s: &Stream) -> usize {
        if planted("skip-rx-budget") {
            return WINDOW_BYTES_MAX;
        }
        base(s) + (self.pool_free() + share(s, outstanding(s))) / 2
    }

    /// First grant of a stream, given what the link can carry for it in one round trip.
    pub(super) fn first_grant(&self, bandwidth_delay: usize) -> usize {
        let wanted = bandwidth_delay.clamp(FIRST_GRANT_BYTES, WINDOW_BYTES_MAX);
        wanted.min(self.pool_free() / 16).max(BASE_CREDIT_OWN_BYTES)
    }

    pub(super) fn charge(&mut self, bytes: usize) {
        self.charged += bytes;
    }

    pub(super) fn discharge(&mut self, bytes: usize) {
        self.charged -= bytes;
    }

    pub(super) fn hold(&mut self, bytes: usize) {
        self.held += bytes;
    }

    pub(super) fn unhold(&mut self, bytes: usize) {
        self.held -= bytes;
    }

    /// Payload bytes that a stream may read now; `link_held` is what its link holds already.
    pub(super) fn tx_room(&self, s: &Stream, link_held: usize) -> usize {
        let limit = self.config.tx_bytes;
        if planted("skip-tx-budget") {
            return limit;
        }
        let free = limit.saturating_sub(self.tx_held);
        let others = self.tx_held - link_held;
        let of_link = ((limit - others.min(limit)) / LINK_SHARE.1 * LINK_SHARE.0).saturating_sub(link_held);
        let mut room = if planted("link-takes-all") {
            free
        } else {
            free.min(of_link)
        };
        let another_was_refused = self.refusals - s.refusals_seen > s.own_refusals;
        if another_was_refused && !planted("stream-takes-all") {
            room = room.min((limit / 8).saturating_sub(s.held));
        }
        if planted("header-not-charged") {
            return room;
        }
        room.saturating_sub(FRAME_HEADER_BYTES * room.div_ceil(RECORD_BYTES_MAX))
    }

    pub(super) fn tx_charge(&mut self, bytes: usize) {
        self.tx_held += bytes;
    }

    /// Bytes that need not be kept any more, and how many streams may therefore ask again.
    pub(super) fn tx_release(&mut self, bytes: usize, link_is_empty: bool) {
        self.tx_held -= bytes;
        let mut wake = (bytes / FRAME_PAYLOAD_BYTES_MAX).max(8);
        if link_is_empty {
            wake = self.waiting.len();
        }
        for _ in 0..wake.min(self.waiting.len()) {
            self.unblocked.extend(self.waiting.pop_front());
            self.served += 1;
        }
    }

    /// Queues a refused stream once; `ticket` tells whether it still waits.
    pub(super) fn wait_for_room(&mut self, key: u32, stream: StreamRef, ticket: &mut u64) {
        self.refusals += 1;
        if *ticket <= self.served {
            self.issued += 1;
            *ticket = self.issued;
            self.waiting.push_back((key, stream));
        }
    }
}

fn outstanding(s: &Stream) -> usize {
    (s.advertised - s.consumed) as usize
}

/// Credit that a stream has whatever the pool says.
pub(super) fn base(s: &Stream) -> usize {
    if s.own {
        BASE_CREDIT_OWN_BYTES
    } else {
        BASE_CREDIT_PEER_BYTES
    }
}

fn share(s: &Stream, outstanding: usize) -> usize {
    outstanding.saturating_sub(base(s))
}

/// Received bytes share blocks of memory; a block is charged until its last slice is gone.
#[derive(Default)]
pub(super) struct Blocks {
    blocks: Vec<(usize, u32)>,
    free: Vec<u32>,
}

impl Blocks {
    /// A block of `bytes`, held by nobody yet.
    pub fn add(&mut self, budget: &mut Budget, bytes: usize) -> u32 {
        budget.charge(bytes);
        let index = self.free.pop().unwrap_or_else(|| {
            self.blocks.push((0, 0));
            self.blocks.len() as u32 - 1
        });
        self.blocks[index as usize] = (bytes, 1);
        index
    }

    pub fn hold(&mut self, block: u32) {
        self.blocks[block as usize].1 += 1;
    }

    pub fn release(&mut self, budget: &mut Budget, block: u32) {
        let entry = &mut self.blocks[block as usize];
        entry.1 -= 1;
        if entry.1 == 0 {
            budget.discharge(entry.0);
            self.free.push(block);
        }
    }
}

/// The receiver's window follows what a stream consumes.
///
/// Each time a whole window (at first: the first grant) has been consumed since the last mark: if that took at most two
/// round trips and was faster than when the window last grew, the window becomes twice what was consumed. On a long
/// path it becomes four times as much while that pays: the window was the limit, and the last growth at least doubled
/// the rate. So it ends at two to five times what the stream moves in a round trip, whether the link or the consumer
/// is the limit. Without the test of the rate windows chase their own queue.
pub(super) fn grow_window(s: &mut Stream, now: crate::time::Time, rtt_us: u64) {
    if s.consumed < s.mark_due {
        return;
    }
    let moved = s.consumed - s.mark;
    let elapsed_us = (now.since(s.mark_at).as_micros() as u64).max(1);
    let rate = moved.saturating_mul(1_000_000) / elapsed_us;
    if elapsed_us <= 2 * rtt_us && rate.saturating_mul(10) >= s.mark_rate.saturating_mul(11) {
        let long = rtt_us >= LONG_ROUND_TRIP.as_micros() as u64;
        let pays = elapsed_us * 4 <= rtt_us * 5 && rate >= s.mark_rate.saturating_mul(2);
        let wanted = moved.saturating_mul(if long && pays { 4 } else { 2 });
        s.window = s.window.max(wanted.min(WINDOW_BYTES_MAX as u64));
        s.mark_rate = rate;
    }
    if !planted("growth-mark-stays") {
        s.mark = s.consumed;
        s.mark_at = now;
    }
    s.mark_due = s.mark + s.window;
}

const INTERVAL_US: u64 = 100_000;
const INTERVALS: usize = 100;

/// What a link brings: the best tenth of a second of the last ten seconds, and how many streams share it.
pub(super) struct RateMeter {
    bytes: [u32; INTERVALS],
    current: u64,
    /// The best interval before the current one.
    best: u32,
    streams: usize,
    streams_before: usize,
}

impl Default for RateMeter {
    fn default() -> Self {
        Self {
            bytes: [0; INTERVALS],
            current: 0,
            best: 0,
            streams: 0,
            streams_before: 0,
        }
    }
}

impl RateMeter {
    /// Counts received bytes of a stream.
    pub fn add(&mut self, now: crate::time::Time, s: &mut Stream, bytes: usize) {
        self.advance(now);
        let slot = &mut self.bytes[self.current as usize % INTERVALS];
        *slot = slot.saturating_add(bytes as u32);
        if s.rate_interval != self.current {
            s.rate_interval = self.current;
            self.streams += 1;
        }
    }

    fn advance(&mut self, now: crate::time::Time) {
        let interval = now.as_micros() / INTERVAL_US;
        if interval == self.current {
            return;
        }
        let passed = (interval - self.current).min(INTERVALS as u64);
        for i in 0..passed {
            self.bytes[(interval - i) as usize % INTERVALS] = 0;
        }
        self.streams_before = if passed == 1 { self.streams } else { 0 };
        self.streams = 0;
        self.current = interval;
        self.best = self.bytes.iter().copied().max().unwrap_or(0);
    }

    /// Bytes that one more stream may expect to receive in a round trip.
    pub fn bandwidth_delay(&mut self, now: crate::time::Time, rtt_us: u64) -> usize {
        self.advance(now);
        let current = self.bytes[self.current as usize % INTERVALS];
        let best = u64::from(self.best.max(current));
        let sharers = self.streams.max(self.streams_before).max(1) as u64;
        (best * rtt_us / INTERVAL_US / sharers) as usize
    }
}
