//! Counters of each shard, and their sum for the control plane.
//!
//! A counter is written by its shard alone and read by the control thread, without order between counters: a plain
//! load, add and store for the writer, on cache lines that no other shard writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::http::page::CAUSES;
use crate::mux::Code;

/// One counter or gauge of one shard.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the shard that owns the counter may.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes away; only the shard that owns the counter may.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).saturating_sub(n), Relaxed);
    }

    /// Sets; only the shard that owns the counter may.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one shard counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    pub requests: Counter,
    pub connections: Counter,
    pub streams_opened: Counter,
    pub streams_open: Counter,
    pub streams_withdrawn: Counter,
    pub streams_moved: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    pub links_up: Counter,
    pub links_live: Counter,
    pub resumes: Counter,
    pub frames_replayed: Counter,
    pub events_dropped: Counter,
    resets: [Counter; Code::ALL.len()],
    errors: [Counter; CAUSES.len()],
}

impl Counters {
    /// Counts a stream that ended before its time.
    pub fn reset(&self, code: Code) {
        self.resets[code as usize - 1].add(1);
    }

    /// Counts a browser that was told of a failure, or cut, by the cause's name.
    pub fn error(&self, name: &str) {
        let row = CAUSES.iter().position(|cause| cause.0 == name);
        self.errors[row.unwrap_or(0)].add(1);
    }
}

/// What one shard of an endpoint counts of one member.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct MemberCounters {
    /// Exchanges that were placed on it.
    pub requests: Counter,
    /// Streams on its links.
    pub streams: Counter,
    pub resumes: Counter,
    pub frames_replayed: Counter,
    /// When it last got a stream, in turns of its shard: of members with equal load the one that waits longest is next.
    pub turn: Counter,
}

/// What an endpoint counted of one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberReport {
    /// First 16 bytes of its key's fingerprint.
    pub member: [u8; 16],
    /// Exchanges that were placed on it.
    pub requests: u64,
    /// Streams that are open on its links.
    pub streams: u64,
    /// Cuts of its links that were bridged.
    pub resumes: u64,
    /// Frames that were written again after a cut.
    pub frames_replayed: u64,
}

impl MemberReport {
    /// Adds up what the shards have counted so far.
    pub fn of(member: [u8; 16], shards: &[Arc<MemberCounters>]) -> Self {
        let sum = |f: fn(&MemberCounters) -> &Counter| shards.iter().map(|s| f(s).value()).sum();
        Self {
            member,
            requests: sum(|c| &c.requests),
            streams: sum(|c| &c.streams),
            resumes: sum(|c| &c.resumes),
            frames_replayed: sum(|c| &c.frames_replayed),
        }
    }
}

/// What all shards of a process counted: totals since the start, and what is there now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Exchanges that went through the tunnel.
    pub requests: u64,
    /// Connections of browsers (endpoint) or to sites (`sc`) that are open.
    pub connections: u64,
    /// Streams opened by either side since the start.
    pub streams_opened: u64,
    /// Streams that are open.
    pub streams_open: u64,
    /// Streams taken back from a link, which was gone before it carried them.
    pub streams_withdrawn: u64,
    /// Of these, streams that were placed anew.
    pub streams_moved: u64,
    /// Payload bytes that came through the tunnel.
    pub bytes_in: u64,
    /// Payload bytes that went into the tunnel.
    pub bytes_out: u64,
    /// Links with a connection.
    pub links_up: u16,
    /// Cuts that were bridged.
    pub resumes: u64,
    /// Frames that were written again after a cut.
    pub frames_replayed: u64,
    /// Events that the control thread was too slow for.
    pub events_dropped: u64,
    /// Streams that ended before their time, by the name of the reason.
    pub resets: Vec<(&'static str, u64)>,
    /// Failures that browsers were told of by a page, or by a cut in the middle, by the name of the cause.
    pub errors: Vec<(&'static str, u64)>,
}

impl Report {
    /// Adds up what the shards have counted so far.
    pub fn of(shards: &[Arc<Counters>]) -> Self {
        let sum = |f: fn(&Counters) -> &Counter| shards.iter().map(|s| f(s).value()).sum();
        let mut resets: Vec<_> = Code::ALL.iter().map(|(_, name)| (*name, 0)).collect();
        for shard in shards {
            for ((_, total), counter) in resets.iter_mut().zip(&shard.resets) {
                *total += counter.value();
            }
        }
        let mut errors: Vec<_> = CAUSES.iter().map(|cause| (cause.0, 0)).collect();
        for shard in shards {
            for ((_, total), counter) in errors.iter_mut().zip(&shard.errors) {
                *total += counter.value();
            }
        }
        Self {
            requests: sum(|c| &c.requests),
            connections: sum(|c| &c.connections),
            streams_opened: sum(|c| &c.streams_opened),
            streams_open: sum(|c| &c.streams_open),
            streams_withdrawn: sum(|c| &c.streams_withdrawn),
            streams_moved: sum(|c| &c.streams_moved),
            bytes_in: sum(|c| &c.bytes_in),
            bytes_out: sum(|c| &c.bytes_out),
            links_up: u16::try_from(sum(|c| &c.links_up)).unwrap_or(u16::MAX),
            resumes: sum(|c| &c.resumes),
            frames_replayed: sum(|c| &c.frames_replayed),
            events_dropped: sum(|c| &c.events_dropped),
            resets,
            errors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_adds_shards() {
        let shards = [Arc::new(Counters::default()), Arc::new(Counters::default())];
        shards[0].requests.add(2);
        shards[1].requests.add(3);
        shards[1].links_up.set(1);
        shards[0].reset(Code::Dns);
        shards[1].reset(Code::Dns);
        shards[1].reset(Code::VerdictChanged);
        shards[0].error("blocked");
        shards[1].error("blocked");
        let report = Report::of(&shards);
        assert_eq!((report.requests, report.links_up), (5, 1));
        assert_eq!(report.resets[0], ("dns", 2));
        assert_eq!(report.resets[16], ("verdict-changed", 1));
        let told: Vec<_> = report.errors.into_iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(told, [("blocked", 2)]);
    }
}
