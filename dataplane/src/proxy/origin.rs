//! Connections to sites that wait for their next request, and the rule by which a request may be sent again.

use std::collections::HashMap;

use crate::bump::Verdict;
use crate::limits::{ORIGIN_IDLE_MAX, ORIGIN_POOL_CLOSED, ORIGIN_POOL_MAX, ORIGIN_POOL_SITE_MAX, ORIGIN_TRUST_MAX};
use crate::mux::Shown;
use crate::time::Time;

/// What a pooled connection belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Lower case.
    host: Box<[u8]>,
    port: u16,
    /// What is wrong with the site's certificate, and which one that is, where TLS is spoken.
    tls: Option<(Verdict, [u8; 32])>,
}

impl Key {
    pub fn new(host: &[u8], port: u16) -> Self {
        Self {
            host: host.to_ascii_lowercase().into_boxed_slice(),
            port,
            tls: None,
        }
    }

    /// Where TLS is spoken and the browser was shown this. All certificates are alike that nothing is wrong with.
    pub fn secure(host: &[u8], port: u16, shown: &Shown) -> Self {
        let verdict = Verdict(shown.verdict);
        let leaf = if verdict.is_good() { [0; 32] } else { shown.leaf };
        Self {
            tls: Some((verdict, leaf)),
            ..Self::new(host, port)
        }
    }
}

struct Idle<C> {
    connection: C,
    since: Time,
}

/// Idle connections of one shard; the newest of a site is taken first.
pub struct Pool<C> {
    idle: HashMap<Key, Vec<Idle<C>>>,
    count: usize,
}

impl<C> Default for Pool<C> {
    fn default() -> Self {
        Self {
            idle: HashMap::new(),
            count: 0,
        }
    }
}

impl<C> Pool<C> {
    /// Takes a connection that `alive` vouches for. A request that cannot be repeated gets only one that was used a
    /// moment ago: a site that closes idle connections must not cost a POST.
    pub fn take(&mut self, now: Time, key: &Key, repeatable: bool, alive: impl Fn(&C) -> bool) -> Option<C> {
        let list = self.idle.get_mut(key)?;
        let age_max = if repeatable { ORIGIN_IDLE_MAX } else { ORIGIN_TRUST_MAX };
        let mut found = None;
        while let Some(idle) = list.pop() {
            if now.since(idle.since) > age_max {
                list.push(idle);
                break;
            }
            self.count -= 1;
            if alive(&idle.connection) {
                found = Some(idle.connection);
                break;
            }
        }
        if list.is_empty() {
            self.idle.remove(key);
        }
        found
    }

    /// Keeps a connection for the next request; the oldest makes room.
    pub fn put(&mut self, now: Time, key: Key, connection: C) {
        if self.count >= ORIGIN_POOL_MAX {
            self.make_room();
        }
        let list = self.idle.entry(key).or_default();
        if list.len() >= ORIGIN_POOL_SITE_MAX {
            list.remove(0);
            self.count -= 1;
        }
        list.push(Idle { connection, since: now });
        self.count += 1;
    }

    /// Closes the oldest, several at once: they have to be looked for among all.
    fn make_room(&mut self) {
        let mut left = ORIGIN_POOL_CLOSED;
        let mut since: Vec<Time> = self.idle.values().flatten().map(|idle| idle.since).collect();
        let (_, &mut newest, _) = since.select_nth_unstable(left - 1);
        self.idle.retain(|_, list| {
            list.retain(|idle| {
                let goes = left > 0 && idle.since <= newest;
                left -= usize::from(goes);
                !goes
            });
            !list.is_empty()
        });
        self.count -= ORIGIN_POOL_CLOSED;
    }

    /// Closes what waited too long.
    pub fn sweep(&mut self, now: Time) {
        let mut count = 0;
        self.idle.retain(|_, list| {
            list.retain(|idle| now.since(idle.since) <= ORIGIN_IDLE_MAX);
            count += list.len();
            !list.is_empty()
        });
        self.count = count;
    }

    /// Closes all of them: their descriptors are needed.
    pub fn clear(&mut self) {
        self.idle.clear();
        self.count = 0;
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What is known of an attempt that failed.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// It ran on a connection that had served before: the site may just have closed it.
    pub pooled: bool,
    /// A byte of an answer was read.
    pub answered: bool,
    /// The request can be sent again whole: idempotent, and without a body.
    pub repeatable: bool,
}

impl Attempt {
    /// A request goes out again only if the site cannot have meant to answer it and a second time does no harm.
    pub fn may_repeat(self) -> bool {
        self.pooled && !self.answered && self.repeatable
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    #[test]
    fn a_key_ignores_the_case_of_names_and_minds_the_port() {
        assert_eq!(Key::new(b"A.Example", 80), Key::new(b"a.eXample", 80));
        assert_ne!(Key::new(b"a.example", 80), Key::new(b"a.example", 81));
    }

    #[test]
    fn a_key_minds_what_is_wrong_with_a_certificate_and_which_one_is() {
        let key = |verdict, leaf| {
            Key::secure(
                b"a",
                443,
                &Shown {
                    verdict,
                    leaf: [leaf; 32],
                },
            )
        };
        assert_eq!(key(0, 1), key(0, 2), "all good ones are alike");
        assert_eq!(key(1, 1), key(1, 1));
        assert_ne!(key(1, 1), key(1, 2));
        assert_ne!(key(1, 1), key(2, 1));
        assert_ne!(key(0, 1), Key::new(b"a", 443));
    }

    #[test]
    fn the_newest_living_connection_is_taken() {
        let (mut pool, key) = (Pool::default(), Key::new(b"a", 80));
        for n in 0..3 {
            pool.put(at(n), key.clone(), n);
        }
        assert_eq!(pool.take(at(5), &key, true, |n| *n != 2), Some(1));
        assert_eq!(pool.take(at(5), &key, true, |_| true), Some(0));
        assert_eq!(pool.take(at(5), &key, true, |_| true), None);
        assert!(pool.is_empty());
    }

    #[test]
    fn an_old_connection_serves_no_request_that_cannot_be_repeated() {
        let (mut pool, key) = (Pool::default(), Key::new(b"a", 80));
        pool.put(at(0), key.clone(), 1);
        let later = at(0) + ORIGIN_TRUST_MAX + Duration::from_millis(1);
        assert_eq!(pool.take(later, &key, false, |_| true), None);
        assert_eq!(pool.take(later, &key, true, |_| true), Some(1));
    }

    #[test]
    fn the_pool_is_bounded_by_site_in_all_and_in_time() {
        let mut pool = Pool::default();
        for n in 0..ORIGIN_POOL_SITE_MAX + 5 {
            pool.put(at(0), Key::new(b"a", 80), n);
        }
        assert_eq!(pool.count, ORIGIN_POOL_SITE_MAX);
        for n in 0..2 * ORIGIN_POOL_MAX {
            pool.put(at(1), Key::new(n.to_string().as_bytes(), 80), n);
            assert_eq!(pool.count, pool.idle.values().map(Vec::len).sum::<usize>());
            assert!(pool.count <= ORIGIN_POOL_MAX);
        }
        assert!(pool.count > ORIGIN_POOL_MAX - ORIGIN_POOL_CLOSED);
        pool.sweep(at(1) + ORIGIN_IDLE_MAX + Duration::from_secs(1));
        assert!(pool.is_empty());
    }

    #[test]
    fn in_a_full_pool_the_oldest_make_room_for_the_newest() {
        let mut pool = Pool::default();
        let key = |n: usize| Key::new(n.to_string().as_bytes(), 80);
        for n in 0..ORIGIN_POOL_MAX {
            pool.put(at(n as u64), key(n), n);
        }
        let (first, newest) = (ORIGIN_POOL_CLOSED, ORIGIN_POOL_MAX);
        let now = at(newest as u64);
        pool.put(now, key(newest), newest);
        assert_eq!(pool.take(now, &key(newest), false, |_| true), Some(newest));
        assert_eq!(pool.take(now, &key(first - 1), true, |_| true), None);
        assert_eq!(pool.take(now, &key(first), true, |_| true), Some(first));
    }

    #[test]
    fn only_an_unanswered_repeatable_request_on_a_used_connection_goes_out_again() {
        for (pooled, answered, repeatable, may) in [
            (true, false, true, true),
            (false, false, true, false),
            (true, true, true, false),
            (true, false, false, false),
        ] {
            let attempt = Attempt {
                pooled,
                answered,
                repeatable,
            };
            assert_eq!(attempt.may_repeat(), may, "{attempt:?}");
        }
    }
}
