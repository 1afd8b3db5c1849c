//! Streams of a session: what each one holds in both directions, and the table that names them.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;

use super::frame::{Code, Kind, Opened, Timings, TlsReport};
use super::planted::planted;
use crate::limits::FIRST_GRANT_BYTES;
use crate::queue::Queue;
use crate::time::Time;

/// Names a stream of one session; never reused while anyone may hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamRef {
    slot: u32,
    generation: u32,
}

/// The receiving direction.
///
/// ```text
///  Open ──FIN──► Fin ──handed on──► Done
///    └───RESET, own reset, end of session──► Reset ──handed on──► Done
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rx {
    Open,
    Fin(Option<Timings>),
    Reset(Code, Bytes),
    Done,
}

/// The sending direction.
///
/// ```text
///  Open ──finish──► FinQueued ──written──► Ended
///    └── reset, peer's RESET, end of session ──► Stopped
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tx {
    Open,
    FinQueued(Option<Timings>),
    Ended,
    Stopped(Code),
}

/// A run of received bytes and the block of memory that it keeps alive.
pub(super) struct Slice {
    pub bytes: Bytes,
    pub block: u32,
    /// Moved out of the link's read buffer.
    pub moved: bool,
}

/// Which list of the schedule a stream stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    None,
    New,
    Old,
    /// Only FIN or RESET is left and the reserve for such frames is full.
    Blocked,
}

/// Frames other than DATA that wait as flags: they hold no bytes, their frames are made when written.
#[derive(Default)]
pub(super) struct Flags {
    pub opened: Option<Opened>,
    pub start_tls: Option<(Bytes, Bytes)>,
    pub tls_report: Option<TlsReport>,
    pub credit: bool,
    pub recall: Option<u64>,
    pub answer_recall: bool,
    pub reset: Option<(Code, Bytes)>,
    /// The stream stands in the schedule's control list.
    pub listed: bool,
}

pub(super) struct Stream {
    pub id: u64,
    /// This side opened it.
    pub own: bool,
    pub kind: Kind,
    /// The holder called `release`.
    pub released: bool,
    /// Own, and a RESET now would be an early one.
    pub unserved: bool,
    /// OPENED, START_TLS, TLS_REPORT were read: once each.
    pub seen: [bool; 3],
    /// … and written.
    pub said: [bool; 3],
    /// Its session is over: only what was received is still handed on.
    pub orphan: bool,
    pub flags: Flags,

    pub rx: Rx,
    /// The peer's FIN was read, whether or not it was handed on.
    pub fin_read: bool,
    pub inbox: Queue<Slice, 1>,
    /// Slices at the front of `inbox` that `recv` gave out and `consumed` has not taken back.
    pub handed: usize,
    pub received: u64,
    pub consumed: u64,
    pub advertised: u64,
    pub window: u64,
    pub mark: u64,
    pub mark_at: Time,
    /// What must be consumed until the next mark.
    pub mark_due: u64,
    /// Bytes a second when the window last grew.
    pub mark_rate: u64,
    /// A RECALL is unanswered: no CREDIT until RETURN.
    pub recalled: bool,
    pub last_data: Time,
    pub young: bool,
    /// The interval of the link's rate meter in which it last received.
    pub rate_interval: u64,
    pub readable_told: bool,

    pub tx: Tx,
    pub outbox: Queue<Bytes, 1>,
    /// OPEN was written; before that nothing else of the stream may leave.
    pub open_written: bool,
    /// Frames written but not answered in any way: what a GOAWAY below this id makes us place anew.
    pub unanswered: Queue<Bytes, 1>,
    pub answered: bool,
    /// Payload bytes written or queued.
    pub queued: u64,
    /// Payload bytes written.
    pub written: u64,
    /// Offset up to which the peer takes bytes.
    pub limit: u64,
    /// Bytes retained or queued, with headers.
    pub held: usize,
    pub turn: Turn,
    pub deficit: usize,
    pub wants_room: bool,
    pub refusals_seen: u64,
    pub own_refusals: u64,
    /// Place in the budget's queue.
    pub ticket: u64,
}

impl Stream {
    pub fn new(id: u64, own: bool, kind: Kind, now: Time) -> Self {
        Self {
            id,
            own,
            kind,
            released: false,
            unserved: false,
            seen: [false; 3],
            said: [false; 3],
            orphan: false,
            flags: Flags::default(),
            rx: Rx::Open,
            fin_read: false,
            inbox: Queue::default(),
            handed: 0,
            received: 0,
            consumed: 0,
            advertised: 0,
            window: 0,
            mark: 0,
            mark_at: now,
            mark_due: FIRST_GRANT_BYTES as u64,
            mark_rate: 0,
            recalled: false,
            last_data: now,
            young: false,
            rate_interval: u64::MAX,
            readable_told: false,
            tx: Tx::Open,
            outbox: Queue::default(),
            open_written: !own,
            unanswered: Queue::default(),
            answered: !own,
            queued: 0,
            written: 0,
            limit: 0,
            held: 0,
            turn: Turn::None,
            deficit: 0,
            wants_room: false,
            refusals_seen: 0,
            own_refusals: 0,
            ticket: 0,
        }
    }

    /// Nothing of it is owed to the peer and nothing is left to hand on.
    pub fn is_over(&self) -> bool {
        let sent = self.orphan || (matches!(self.tx, Tx::Ended | Tx::Stopped(_)) && self.flags.reset.is_none());
        self.released && self.rx == Rx::Done && sent
    }

    /// Over in both directions as far as the peer can tell: what it still sends is dropped.
    pub fn is_ended(&self) -> bool {
        matches!(self.tx, Tx::Stopped(_)) || (self.tx == Tx::Ended && self.rx != Rx::Open)
    }

    /// Own, and its site is not connected yet: nothing can come from there.
    pub fn is_unanswered_tcp(&self) -> bool {
        self.own && self.kind == Kind::Tcp && !self.seen[0]
    }

    /// FIN was asked for, so that a RESET stops the other direction only.
    pub fn finished(&self) -> bool {
        matches!(self.tx, Tx::FinQueued(_) | Tx::Ended)
    }

    /// A RESET without FIN drops what is queued and waits for nothing.
    pub fn reset_goes_first(&self) -> bool {
        !self.finished() || planted("reset-before-fin")
    }

    /// Something waits for the stream's turn: DATA, FIN, or a RESET that goes after FIN.
    pub fn wants_turn(&self) -> bool {
        let f = &self.flags;
        // These go before any DATA, even while the reserve for them is full.
        let held_back = f.opened.is_some() || f.start_tls.is_some() || f.tls_report.is_some();
        let reset_in_turn = f.reset.is_some() && self.finished();
        !held_back && (!self.outbox.is_empty() || matches!(self.tx, Tx::FinQueued(_)) || reset_in_turn)
    }
}

struct Slot {
    generation: u32,
    stream: Option<Stream>,
}

/// All streams of a session, by ref and by id.
pub(super) struct Streams {
    slots: Vec<Slot>,
    free: Vec<u32>,
    ids: HashMap<u64, u32, IdHash>,
    /// Streams of the current session (orphans are not counted).
    pub open: usize,
}

impl Streams {
    pub fn new(seed: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ids: HashMap::with_hasher(IdHash(seed | 1)),
            open: 0,
        }
    }

    pub fn insert(&mut self, stream: Stream) -> StreamRef {
        let id = stream.id;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                stream: None,
            });
            self.slots.len() as u32 - 1
        });
        let entry = &mut self.slots[slot as usize];
        entry.stream = Some(stream);
        self.ids.insert(id, slot);
        self.open += 1;
        StreamRef {
            slot,
            generation: entry.generation,
        }
    }

    pub fn get(&self, r: StreamRef) -> Option<&Stream> {
        self.slots
            .get(r.slot as usize)
            .filter(|s| s.generation == r.generation)?
            .stream
            .as_ref()
    }

    pub fn get_mut(&mut self, r: StreamRef) -> Option<&mut Stream> {
        self.slots
            .get_mut(r.slot as usize)
            .filter(|s| s.generation == r.generation)?
            .stream
            .as_mut()
    }

    pub fn by_id(&self, id: u64) -> Option<StreamRef> {
        let slot = *self.ids.get(&id)?;
        Some(StreamRef {
            slot,
            generation: self.slots[slot as usize].generation,
        })
    }

    pub fn remove(&mut self, r: StreamRef) {
        let Some(slot) = self.slots.get_mut(r.slot as usize) else {
            return;
        };
        let Some(stream) = slot.stream.as_ref().filter(|_| slot.generation == r.generation) else {
            return;
        };
        if !stream.orphan {
            self.ids.remove(&stream.id);
            self.open -= 1;
        }
        slot.stream = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(r.slot);
    }

    /// Cuts a stream loose from the protocol: its id means nothing any more.
    pub fn orphan(&mut self, r: StreamRef) {
        if let Some(stream) = self.get_mut(r).filter(|s| !s.orphan) {
            stream.orphan = true;
            let id = stream.id;
            self.ids.remove(&id);
            self.open -= 1;
        }
    }

    /// Refs of all streams, orphans included.
    pub fn refs(&self) -> Vec<StreamRef> {
        let live = self.slots.iter().enumerate().filter(|(_, s)| s.stream.is_some());
        live.map(|(i, s)| StreamRef {
            slot: i as u32,
            generation: s.generation,
        })
        .collect()
    }
}

/// Ids are small numbers mostly in a row: one multiplication by an odd number, both halves of the product folded, spreads
/// them; a random one where the peer chooses the ids, whatever their gaps are.
#[derive(Clone, Copy)]
pub(crate) struct IdHash(u64);

/// For [`StreamRef`]s, which nobody else chooses.
impl Default for IdHash {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

pub(crate) struct IdHasher {
    key: u64,
    value: u64,
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;
    fn build_hasher(&self) -> IdHasher {
        IdHasher {
            key: self.0,
            value: self.0.rotate_left(32),
        }
    }
}

impl Hasher for IdHasher {
    /// Of an integer, as `Hash` writes it: eight bytes at most.
    fn write(&mut self, integer: &[u8]) {
        let mut id = [0; 8];
        id.iter_mut().zip(integer).for_each(|(to, from)| *to = *from);
        let product = u128::from(self.value ^ u64::from_le_bytes(id)) * u128::from(self.key);
        self.value = (product >> 64) as u64 ^ product as u64;
    }
    fn finish(&self) -> u64 {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::Hash;

    const KEYS: usize = 40;

    /// A table takes the bucket from the low bits of a hash, and from its high bits a tag that tells entries apart: how
    /// many of 8,192 buckets and 128 tags 4,096 ids reach. Drawn at random they would be 3,223 and 128.
    fn reach<T: Hash>(hash: IdHash, id: impl Fn(u32) -> T) -> (usize, usize) {
        let hashes = (1..=4_096).map(|n| hash.hash_one(id(n)));
        let (buckets, tags): (HashSet<_>, HashSet<_>) = hashes.map(|h| (h % 8_192, h >> 57)).unzip();
        (buckets.len(), tags.len())
    }

    #[test]
    fn ids_spread_over_a_table_whatever_gaps_a_peer_leaves() {
        for gap in [2, 1 << 14, 1 << 32, 1 << 50] {
            let mut key = 1_u64;
            let (mut buckets, mut tags) = (0, 0);
            for _ in 0..KEYS {
                key = key
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let (b, t) = reach(IdHash(key | 1), |n| u64::from(n) * gap);
                (buckets, tags) = (buckets + b, tags + t);
            }
            assert!(
                buckets > 2_500 * KEYS && tags > 100 * KEYS,
                "gaps of {gap}: {buckets}, {tags}"
            );
        }
    }

    #[test]
    fn refs_spread_over_a_table() {
        let slots = reach(IdHash::default(), |slot| StreamRef { slot, generation: 1 });
        let generations = reach(IdHash::default(), |generation| StreamRef { slot: 1, generation });
        for (buckets, tags) in [slots, generations] {
            assert!(buckets > 2_500 && tags > 100, "{buckets}, {tags}");
        }
    }
}
