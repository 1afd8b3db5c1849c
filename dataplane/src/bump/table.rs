//! Bounded tables that shards share: parts with a lock each, and what was used longest ago goes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use crate::limits::BUMP_PARTS;

/// Names a row: equal keys are equal rows, because nobody finds two inputs of one SHA-256.
pub(super) type Key = [u8; 32];

/// Makes a key of several fields, without allocating.
#[derive(Default)]
pub(super) struct KeyOf(Sha256);

impl KeyOf {
    /// Bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    /// A host: case does not matter, nor does a dot at its end.
    pub fn host(mut self, host: &str) -> Self {
        let host = host.strip_suffix('.').unwrap_or(host).as_bytes();
        self.0.update((host.len() as u64).to_be_bytes());
        let mut lower = [0; 64];
        for piece in host.chunks(lower.len()) {
            let lower = &mut lower[..piece.len()];
            lower.copy_from_slice(piece);
            lower.make_ascii_lowercase();
            self.0.update(&*lower);
        }
        self
    }

    /// Host and port.
    pub fn site(self, host: &str, port: u16) -> Self {
        self.host(host).bytes(&port.to_be_bytes())
    }

    pub fn key(self) -> Key {
        self.0.finalize().into()
    }
}

/// One part of a table.
pub(super) struct Rows<V> {
    rows: HashMap<Key, (u64, V)>,
    max: usize,
    /// Counts uses: the row with the lowest one was used longest ago.
    turn: u64,
}

impl<V> Rows<V> {
    fn new(max: usize) -> Self {
        Self {
            rows: HashMap::new(),
            max,
            turn: 0,
        }
    }

    pub fn get(&mut self, key: &Key) -> Option<&mut V> {
        self.turn += 1;
        let (used, value) = self.rows.get_mut(key)?;
        *used = self.turn;
        Some(value)
    }

    /// Full, it gives up the row that was used longest ago; parts are so small that it is looked for among all.
    pub fn insert(&mut self, key: Key, value: V) -> &mut V {
        if self.rows.len() >= self.max && !self.rows.contains_key(&key) {
            let oldest = self.rows.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            oldest.and_then(|oldest| self.rows.remove(&oldest));
        }
        self.turn += 1;
        let row = (self.turn, value);
        &mut self.rows.entry(key).insert_entry(row).into_mut().1
    }

    /// The row, made if there is none.
    pub fn get_or_insert(&mut self, key: Key) -> &mut V
    where
        V: Default,
    {
        if !self.rows.contains_key(&key) {
            return self.insert(key, V::default());
        }
        self.get(&key).expect("it is there")
    }

    pub fn remove(&mut self, key: &Key) -> Option<V> {
        self.rows.remove(key).map(|(_, value)| value)
    }
}

/// All parts.
pub(super) struct Table<V>(Box<[Mutex<Rows<V>>]>);

impl<V> Table<V> {
    /// At most `max` rows.
    pub fn new(max: usize) -> Self {
        let part = || Mutex::new(Rows::new(max / BUMP_PARTS));
        Self((0..BUMP_PARTS).map(|_| part()).collect())
    }

    /// The part that holds `key`.
    pub fn part(&self, key: &Key) -> MutexGuard<'_, Rows<V>> {
        let part = &self.0[usize::from(key[0]) % BUMP_PARTS];
        part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.iter().map(|part| part.lock().unwrap().rows.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes() {
        let mut rows = Rows::new(3);
        let key = |n| [n; 32];
        for n in 0..3 {
            rows.insert(key(n), n);
        }
        assert_eq!(rows.get(&key(0)), Some(&mut 0));
        rows.insert(key(2), 22);
        rows.insert(key(3), 3);
        assert_eq!(rows.get(&key(1)), None);
        assert_eq!(rows.get(&key(0)), Some(&mut 0));
        assert_eq!(rows.get(&key(2)), Some(&mut 22));
        assert_eq!(rows.remove(&key(3)), Some(3));
        assert_eq!(rows.get(&key(3)), None);
    }

    #[test]
    fn a_table_stays_within_its_bound() {
        let table = Table::new(4 * BUMP_PARTS);
        for n in 0..10_000u32 {
            let key = KeyOf::default().bytes(&n.to_be_bytes()).key();
            table.part(&key).insert(key, n);
        }
        assert_eq!(table.len(), 4 * BUMP_PARTS);
    }

    #[test]
    fn hosts_are_one_however_they_are_written_and_fields_do_not_run_together() {
        let host = |host: &str| KeyOf::default().host(host).key();
        let long = "A.".repeat(100);
        assert_eq!(host("A.Test."), host("a.test"));
        assert_eq!(host(&long), host(&long.to_lowercase()));
        assert_ne!(host("a.test"), host("b.test"));
        assert_ne!(
            KeyOf::default().bytes(b"ab").bytes(b"c").key(),
            KeyOf::default().bytes(b"a").bytes(b"bc").key()
        );
    }
}
