//! What is stored, for all shards of the process: parts with a lock each, which is never held over anything slow.
//!
//! Full, the cache gives up the URL that was stored first among those not asked for since they were last looked at
//! (CLOCK); parts take turns.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry as Place, HashMap};
use std::hash::{BuildHasherDefault, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::asked::Asked;
use super::budget::{Budget, Charge};
use super::entry::Entry;
use super::flight::Flight;
use super::key::{Key, OwnedKey};
use crate::limits::{
    CACHE_INVALIDATIONS, CACHE_OBJECT_SHARE, CACHE_PARTS, CACHE_PASS_TIME, CACHE_PASSES, CACHE_VARIANTS_MAX,
};
use crate::time::Time;

/// A response cache (RFC 9111), shared by the shards of a process.
pub struct Cache {
    pub(super) state: RandomState,
    parts: Box<[Part]>,
    budget: Arc<Budget>,
    object_max: usize,
    /// The part that gives up something next.
    hand: AtomicUsize,
}

#[derive(Default)]
struct Part {
    stored: Mutex<Stored>,
    /// Bytes of contents that the sites were not asked for.
    saved: AtomicU64,
}

/// Hashes of keys, which are hashes already.
#[derive(Default)]
pub(super) struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

pub(super) type ByHash<T> = HashMap<u64, T, BuildHasherDefault<Same>>;

pub(super) struct Stored {
    slots: ByHash<Slot>,
    /// Slots in the order in which they are looked at, with their turns: one that has another turn by now is gone.
    queue: VecDeque<(u64, u64)>,
    turns: u64,
    pub flights: ByHash<Arc<Flight>>,
    /// URLs whose answers nobody else may have, each until when: a table, so that no flood of them displaces anything.
    passes: Box<[(u64, Time)]>,
    /// What was invalidated last, and how much ever was.
    invalidated: VecDeque<u64>,
    stamp: u64,
    pub counts: Counts,
}

impl Default for Stored {
    fn default() -> Self {
        Self {
            slots: ByHash::default(),
            queue: VecDeque::new(),
            turns: 0,
            flights: ByHash::default(),
            passes: vec![(0, Time::default()); CACHE_PASSES].into(),
            invalidated: VecDeque::with_capacity(CACHE_INVALIDATIONS),
            stamp: 0,
            counts: Counts::default(),
        }
    }
}

/// All answers of one URL.
struct Slot {
    key: OwnedKey,
    /// The newest first.
    entries: Vec<Arc<Entry>>,
    turn: u64,
    /// Asked for since it was last looked at.
    used: bool,
    charge: Charge,
}

/// Slot, places in map, queue and vector.
const SLOT_BYTES: usize = 2 * size_of::<Slot>() + 48 + CACHE_VARIANTS_MAX * size_of::<usize>();

/// What was counted since the start, and what is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that were answered without asking the site, stale ones and collapsed ones included.
    pub hits: u64,
    /// … of them with an answer that was stale.
    pub stale_hits: u64,
    /// … and with one that another request had fetched meanwhile.
    pub collapsed: u64,
    /// Requests that the site was asked, although something might have been stored.
    pub misses: u64,
    /// … of them to confirm what is stored, which it did.
    pub confirmed: u64,
    /// Answers that were stored.
    pub stored: u64,
    /// URLs that were invalidated.
    pub invalidated: u64,
    /// URLs that were given up for others.
    pub evicted: u64,
    /// Bytes of contents that were sent from the cache.
    pub bytes_saved: u64,
    /// Held now, tables and bodies that are arriving included.
    pub bytes_held: u64,
    /// Answers that are stored now.
    pub entries: u64,
}

/// What was found for a request.
pub(super) struct Found {
    pub entry: Option<Arc<Entry>>,
    /// Something is stored for the URL.
    pub known: bool,
    /// Of the fields that choose between its answers; with the hash it names a flight.
    pub mark: u64,
}

impl Cache {
    /// An empty cache that holds at most `limit` bytes. `state`: so that nobody can choose URLs that collide.
    pub fn new(limit: usize, state: RandomState) -> Arc<Self> {
        let parts: Box<[Part]> = (0..CACHE_PARTS).map(|_| Part::default()).collect();
        let tables = CACHE_PASSES * size_of::<(u64, Time)>() + CACHE_INVALIDATIONS * size_of::<u64>();
        let tables = CACHE_PARTS * (size_of::<Part>() + tables);
        Arc::new(Self {
            state,
            parts,
            budget: Budget::new(limit, tables),
            object_max: limit / CACHE_OBJECT_SHARE,
            hand: AtomicUsize::new(0),
        })
    }

    /// Adds up what the parts have counted.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts {
            bytes_held: self.budget.held() as u64,
            ..Counts::default()
        };
        for part in &self.parts {
            let stored = part.lock();
            sum.hits += stored.counts.hits;
            sum.stale_hits += stored.counts.stale_hits;
            sum.collapsed += stored.counts.collapsed;
            sum.misses += stored.counts.misses;
            sum.confirmed += stored.counts.confirmed;
            sum.stored += stored.counts.stored;
            sum.invalidated += stored.counts.invalidated;
            sum.evicted += stored.counts.evicted;
            sum.bytes_saved += part.saved.load(Relaxed);
            sum.entries += stored.slots.values().map(|slot| slot.entries.len() as u64).sum::<u64>();
        }
        sum
    }

    /// Bytes of the largest object.
    pub(super) fn object_max(&self) -> usize {
        self.object_max
    }

    pub(super) fn stored(&self, hash: u64) -> MutexGuard<'_, Stored> {
        self.part(hash).lock()
    }

    pub(super) fn saved(&self, hash: u64, bytes: u64) {
        self.part(hash).saved.fetch_add(bytes, Relaxed);
    }

    /// Takes so many bytes of the budget, giving up others for them. What is still being sent stays held although it was
    /// given up: then this fails rather than to empty the cache.
    pub(super) fn make_room(&self, bytes: usize) -> Option<Charge> {
        let mut freed = 0;
        loop {
            if let Some(charge) = self.budget.charge(bytes) {
                return Some(charge);
            }
            if freed > 2 * bytes {
                return None;
            }
            freed += self.evict()?;
        }
    }

    /// A charge of nothing: for what is not stored, or not any more.
    pub(super) fn nothing(&self) -> Charge {
        self.budget.nothing()
    }

    /// Gives up one URL; says how many bytes that were.
    fn evict(&self) -> Option<usize> {
        // Once around, all marks are gone.
        (0..2 * CACHE_PARTS).find_map(|_| {
            let at = self.hand.fetch_add(1, Relaxed) % CACHE_PARTS;
            let slot = self.parts[at].lock().evict();
            slot.map(|slot| slot.bytes())
        })
    }

    /// Stores an answer to a request that was sent under `stamp`, in place of the one that it would have been chosen beside.
    /// False: it is not true any more, or there is no room.
    pub(super) fn insert(&self, hash: u64, stamp: u64, key: OwnedKey, entry: &Arc<Entry>) -> bool {
        let Some(charge) = self.make_room(SLOT_BYTES + key.bytes()) else {
            return false;
        };
        let mut stored = self.stored(hash);
        if stored.is_outdated(hash, stamp) {
            return false;
        }
        let displaced = stored.insert(hash, key, charge, Arc::clone(entry));
        drop(stored);
        // Large buffers are freed without the lock.
        drop(displaced);
        true
    }

    /// Puts an updated entry in the place of the one that it was made from, unless that has gone meanwhile.
    pub(super) fn replace(&self, hash: u64, old: &Arc<Entry>, new: &Arc<Entry>) {
        let mut stored = self.stored(hash);
        if let Some(place) = stored.place(hash, old) {
            *place = Arc::clone(new);
        }
    }

    /// Drops an entry that has turned out to be outdated.
    pub(super) fn remove(&self, hash: u64, entry: &Arc<Entry>) {
        let mut stored = self.stored(hash);
        let Place::Occupied(mut place) = stored.slots.entry(hash) else {
            return;
        };
        place.get_mut().entries.retain(|e| !Arc::ptr_eq(e, entry));
        if place.get().entries.is_empty() {
            let slot = place.remove();
            stored.tidy();
            drop(stored);
            drop(slot);
        }
    }

    /// Drops all answers of a URL, and those that are on their way to a request that was sent before.
    pub(super) fn invalidate(&self, key: &Key<'_>) {
        let hash = key.hash(&self.state);
        let mut stored = self.stored(hash);
        stored.note_invalidation(hash);
        let slot = stored.slots.get(&hash).is_some_and(|slot| slot.key.is(key));
        let slot = slot.then(|| stored.slots.remove(&hash)).flatten();
        stored.counts.invalidated += u64::from(slot.is_some());
        stored.tidy();
        drop(stored);
        drop(slot);
    }

    /// Drops everything, and the answers that are on their way: under other rules they may come from elsewhere, and while
    /// nobody asks the cache nothing is invalidated.
    pub fn clear(&self) {
        for part in &self.parts {
            let mut stored = part.lock();
            stored.stamp += 1;
            stored.invalidated.clear();
            stored.queue = VecDeque::new();
            let slots = std::mem::take(&mut stored.slots);
            drop(stored);
            drop(slots);
        }
    }

    /// Of slots, in the tables of all parts, whether taken or not.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        let of = |part: &Part| {
            let stored = part.lock();
            stored.slots.capacity() + stored.queue.capacity()
        };
        self.parts.iter().map(of).sum()
    }

    fn part(&self, hash: u64) -> &Part {
        &self.parts[hash as usize % CACHE_PARTS]
    }
}

impl Part {
    fn lock(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn bytes(&self) -> usize {
        self.charge.bytes() + self.entries.iter().map(|e| e.bytes()).sum::<usize>()
    }
}

impl Stored {
    /// The newest answer that a request may be given.
    pub fn find(&mut self, hash: u64, asked: &Asked<'_>) -> Found {
        let Some(slot) = self.slots.get_mut(&hash).filter(|slot| slot.key.is(&asked.key)) else {
            return Found {
                entry: None,
                known: false,
                mark: 0,
            };
        };
        slot.used = true;
        let fields = asked.headers();
        let entry = slot.entries.iter().find(|e| e.variant.matches(&fields));
        Found {
            entry: entry.cloned(),
            known: true,
            mark: slot.entries.first().map_or(0, |newest| newest.variant.mark(&fields)),
        }
    }

    /// The moment, in invalidations.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// The request that others may wait for; what an invalidation has overtaken brings them nothing.
    pub fn flight(&self, hash: u64, name: u64) -> Option<&Arc<Flight>> {
        let flight = self.flights.get(&name)?;
        (!self.is_outdated(hash, flight.stamp)).then_some(flight)
    }

    /// Whether this key was invalidated after that moment, or may have been.
    fn is_outdated(&self, hash: u64, stamp: u64) -> bool {
        let since = (self.stamp - stamp) as usize;
        let mut last = self.invalidated.iter().rev().take(since);
        since > self.invalidated.len() || last.any(|invalidated| *invalidated == hash)
    }

    fn note_invalidation(&mut self, hash: u64) {
        self.stamp += 1;
        if self.invalidated.len() == CACHE_INVALIDATIONS {
            self.invalidated.pop_front();
        }
        self.invalidated.push_back(hash);
    }

    /// Whether requests for this key do not wait for each other.
    pub fn is_passed(&self, hash: u64, now: Time) -> bool {
        let (passed, until) = self.passes[pass_of(hash)];
        passed == hash && now < until
    }

    pub fn pass(&mut self, hash: u64, now: Time) {
        self.passes[pass_of(hash)] = (hash, now + CACHE_PASS_TIME);
    }

    pub fn forget_pass(&mut self, hash: u64) {
        let place = &mut self.passes[pass_of(hash)];
        if place.0 == hash {
            *place = (0, Time::default());
        }
    }

    /// Gives back what it displaced.
    fn insert(&mut self, hash: u64, key: OwnedKey, charge: Charge, entry: Arc<Entry>) -> Vec<Arc<Entry>> {
        self.counts.stored += 1;
        let same_key = self.slots.get(&hash).is_some_and(|slot| slot.key == key);
        if same_key && let Some(slot) = self.slots.get_mut(&hash) {
            // One without Vary would be found before all older ones.
            let goes = |e: &Arc<Entry>| e.variant == entry.variant || entry.variant.is_all();
            let mut displaced: Vec<_> = slot.entries.extract_if(.., |e| goes(e)).collect();
            slot.entries.insert(0, entry);
            if slot.entries.len() > CACHE_VARIANTS_MAX {
                displaced.extend(slot.entries.pop());
            }
            return displaced;
        }
        self.turns += 1;
        let slot = Slot {
            key,
            entries: vec![entry],
            turn: self.turns,
            used: false,
            charge,
        };
        let before = self.slots.insert(hash, slot);
        self.queue.push_back((hash, self.turns));
        // A place without its slot would be tidied away, and the slot be there for good.
        self.tidy();
        before.map_or(Vec::new(), |slot| slot.entries)
    }

    /// Keeps queue and map in proportion to the slots that are there, which pay for them: invalidated ones leave their
    /// places in the queue behind, and neither becomes smaller by itself.
    fn tidy(&mut self) {
        let kept = self.slots.len();
        if self.queue.len() > 2 * kept + 64 {
            let slots = &self.slots;
            self.queue
                .retain(|(hash, turn)| slots.get(hash).is_some_and(|slot| slot.turn == *turn));
        }
        if self.slots.capacity() > 4 * kept + 64 {
            self.slots.shrink_to(2 * kept);
        }
        if self.queue.capacity() > 8 * kept + 128 {
            self.queue.shrink_to(4 * kept);
        }
    }

    fn place(&mut self, hash: u64, entry: &Arc<Entry>) -> Option<&mut Arc<Entry>> {
        let slot = self.slots.get_mut(&hash)?;
        slot.entries.iter_mut().find(|e| Arc::ptr_eq(e, entry))
    }

    /// Gives up the first that was not used, and takes the marks of those before it.
    fn evict(&mut self) -> Option<Slot> {
        for _ in 0..self.queue.len() {
            let (hash, turn) = self.queue.pop_front()?;
            let Place::Occupied(mut place) = self.slots.entry(hash) else {
                continue;
            };
            if place.get().turn != turn {
                continue;
            }
            if std::mem::take(&mut place.get_mut().used) {
                self.queue.push_back((hash, turn));
                continue;
            }
            self.counts.evicted += 1;
            let slot = place.remove();
            self.tidy();
            return Some(slot);
        }
        None
    }
}

/// The low bits choose the part.
fn pass_of(hash: u64) -> usize {
    (hash >> 16) as usize % CACHE_PASSES
}
