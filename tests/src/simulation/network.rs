//! Simulated TCP: one direction of a connection is a [`Pipe`] with delay, bandwidth, a congestion window and a
//! socket buffer in front of it. Bytes stay in order and are split anywhere.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::prng::Prng;

/// A write completes once no more than this waits in the socket (`TCP_NOTSENT_LOWAT`).
const UNSENT_LOW_BYTES: usize = 128 * 1024;
const FIRST_WINDOW_BYTES: usize = 14_600;

/// How one direction of a path behaves.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub delay_us: u64,
    pub bytes_per_ms: u64,
    /// Bytes that the network holds: bandwidth × delay and the router's queue.
    pub window_bytes: usize,
    pub slow_start: bool,
    pub segment_bytes_max: usize,
    /// Segments of any length, often a few bytes.
    pub ragged: bool,
}

impl Profile {
    /// A path whose queue holds `queue_bytes` beyond bandwidth × round trip.
    pub fn new(delay_us: u64, bytes_per_ms: u64, queue_bytes: usize) -> Self {
        let pipe = (bytes_per_ms * delay_us * 2 / 1000) as usize;
        Self {
            delay_us,
            bytes_per_ms,
            window_bytes: (pipe + queue_bytes).max(FIRST_WINDOW_BYTES),
            slow_start: false,
            segment_bytes_max: 16 * 1024,
            ragged: false,
        }
    }
}

/// How a direction ends, after all its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// FIN, with close_notify before it or without.
    Fin {
        notify: bool,
    },
    Reset,
}

struct Segment {
    arrives: u64,
    bytes: Bytes,
}

/// One direction of a connection.
pub struct Pipe {
    pub profile: Profile,
    unsent: VecDeque<Bytes>,
    unsent_bytes: usize,
    flight: VecDeque<Segment>,
    acks: VecDeque<(u64, usize)>,
    flight_bytes: usize,
    window: usize,
    free_at: u64,
    last_arrival: u64,
    rng: Prng,
    pub delivered: u64,
    pub written: u64,
    /// Nothing passes while set; the sender learns nothing.
    pub dead: bool,
    /// Writes longer than this never pass, nor does anything behind them.
    pub small_only: Option<usize>,
    /// Delivery stops at this offset and the connection breaks.
    pub cut_at: Option<u64>,
    pub ending: Option<Ending>,
    ends_at: Option<u64>,
    over: bool,
    /// When the world looks at this pipe next.
    pub armed: u64,
}

impl Pipe {
    pub fn new(profile: Profile, rng: Prng) -> Self {
        let window = if profile.slow_start {
            FIRST_WINDOW_BYTES
        } else {
            profile.window_bytes
        };
        Self {
            profile,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            flight: VecDeque::new(),
            acks: VecDeque::new(),
            flight_bytes: 0,
            window,
            free_at: 0,
            last_arrival: 0,
            rng,
            delivered: 0,
            written: 0,
            dead: false,
            small_only: None,
            cut_at: None,
            ending: None,
            ends_at: None,
            over: false,
            armed: u64::MAX,
        }
    }

    /// The next bytes leave no earlier than `at`.
    pub fn hold_until(&mut self, at: u64) {
        self.free_at = self.free_at.max(at);
    }

    pub fn write(&mut self, now: u64, frames: &[Bytes]) {
        if self.ending.is_some() {
            return;
        }
        let n: usize = frames.iter().map(Bytes::len).sum();
        let mut batch = BytesMut::with_capacity(n);
        frames.iter().for_each(|f| batch.extend_from_slice(f));
        self.unsent.push_back(batch.freeze());
        self.unsent_bytes += n;
        self.written += n as u64;
        self.pump(now);
    }

    /// A reset loses what the socket had not sent.
    pub fn drop_unsent(&mut self) {
        self.unsent.clear();
        self.unsent_bytes = 0;
    }

    /// The write in flight has completed: there is room for another.
    pub fn writable(&self) -> bool {
        self.unsent_bytes < UNSENT_LOW_BYTES
    }

    pub fn is_blocked(&self) -> bool {
        let stuck = self
            .small_only
            .is_some_and(|max| self.unsent.front().is_some_and(|b| b.len() > max));
        self.dead || stuck
    }

    /// Moves bytes from the socket into the network as far as the window lets it.
    pub fn pump(&mut self, now: u64) {
        while self.acks.front().is_some_and(|a| a.0 <= now) {
            let (_, n) = self.acks.pop_front().unwrap_or_default();
            self.flight_bytes -= n;
            if self.window < self.profile.window_bytes {
                self.window = (self.window + n).min(self.profile.window_bytes);
            }
        }
        while !self.is_blocked() && self.flight_bytes < self.window {
            let Some(front) = self.unsent.front_mut() else {
                break;
            };
            let mut n = front.len().min(self.profile.segment_bytes_max);
            if self.profile.ragged {
                let max = if self.rng.chance(30) { 40 } else { n as u64 };
                n = n.min(self.rng.between(1, max) as usize);
            }
            let bytes = front.split_to(n);
            if front.is_empty() {
                self.unsent.pop_front();
            }
            self.unsent_bytes -= n;
            self.flight_bytes += n;
            let start = self.free_at.max(now);
            self.free_at = start + (n as u64 * 1000).div_ceil(self.profile.bytes_per_ms);
            let arrives = (self.free_at + self.profile.delay_us).max(self.last_arrival);
            self.last_arrival = arrives;
            self.acks.push_back((arrives + self.profile.delay_us, n));
            self.flight.push_back(Segment { arrives, bytes });
        }
        if self.ending.is_some() && self.ends_at.is_none() && self.unsent.is_empty() {
            self.ends_at = Some(self.last_arrival.max(now + self.profile.delay_us));
        }
    }

    /// When something happens here next, if anything will.
    pub fn next(&self) -> Option<u64> {
        if self.dead || self.over {
            return None;
        }
        let arrival = self.flight.front().map(|s| s.arrives);
        let ack = match self.unsent.is_empty() || self.is_blocked() {
            true => None,
            false => self.acks.front().map(|a| a.0),
        };
        let end = match arrival {
            None => self.ends_at,
            Some(_) => None,
        };
        [arrival, ack, end].into_iter().flatten().min()
    }

    /// The next segment that has arrived by `now`; a cut shortens it.
    pub fn arrived(&mut self, now: u64) -> Option<Bytes> {
        if self.dead || self.flight.front().is_none_or(|s| s.arrives > now) {
            return None;
        }
        let mut bytes = self.flight.pop_front()?.bytes;
        if let Some(cut) = self.cut_at {
            let left = cut.saturating_sub(self.delivered);
            bytes.truncate(left.min(bytes.len() as u64) as usize);
        }
        self.delivered += bytes.len() as u64;
        Some(bytes)
    }

    pub fn is_cut(&self) -> bool {
        self.cut_at.is_some_and(|at| self.delivered >= at)
    }

    /// How the direction ended, told once.
    pub fn ended(&mut self, now: u64) -> Option<Ending> {
        let due = self.flight.is_empty() && self.ends_at.is_some_and(|at| at <= now);
        if !due || self.dead || self.over {
            return None;
        }
        self.over = true;
        self.ending
    }

    /// After an outage: what stood in the network arrives from `now` on, with the acknowledgements behind it.
    pub fn revive(&mut self, now: u64) {
        self.dead = false;
        self.small_only = None;
        let late = now + self.profile.delay_us;
        for s in &mut self.flight {
            s.arrives = s.arrives.max(late);
        }
        for a in &mut self.acks {
            a.0 = a.0.max(late + self.profile.delay_us);
        }
        self.last_arrival = self.last_arrival.max(late);
        self.ends_at = self.ends_at.map(|at| at.max(late));
        self.pump(now);
    }
}

/// Time that `bytes` take over a fresh connection of this profile with nothing but TCP in the way, in µs: a round
/// trip of TCP, one of TLS, then the bytes.
pub fn bare_transfer_us(profile: Profile, bytes: u64, warm: bool) -> u64 {
    let mut pipe = Pipe::new(profile, Prng::new(0));
    if warm {
        pipe.window = profile.window_bytes;
    }
    let block = Bytes::from(vec![0; UNSENT_LOW_BYTES]);
    let mut now = 0;
    while pipe.delivered < bytes {
        while pipe.written < bytes && pipe.writable() {
            pipe.write(now, std::slice::from_ref(&block));
        }
        let Some(next) = pipe.next() else { break };
        now = next.max(now);
        while pipe.arrived(now).is_some() {}
        pipe.pump(now);
    }
    now
}
