//! The system's resolver, which may keep whoever asks for a minute, on helper threads. They are started on demand and end
//! when nothing is to be done. While all of them wait for name servers, one thread more answers what stands in /etc/hosts.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::mem;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::Sender;

use super::resolve::alternating;
use crate::limits::{
    ADDRESSES_PER_NAME_MAX, HOSTS_FILE_BYTES_MAX, LOOKUP_THREAD_IDLE, LOOKUP_THREADS_MAX, LOOKUP_TIME_MAX,
    LOOKUPS_PENDING_MAX,
};
use crate::time::Time;

/// What a look-up found: at least one address, or the resolver's words.
pub type Found = Result<Arc<[IpAddr]>, Arc<str>>;

/// Names and what stands in /etc/hosts of them.
type Addresses = HashMap<Box<str>, Arc<[IpAddr]>>;

/// Why a name is not looked up.
pub(super) const TOO_MANY: &str = "too many names are being looked up";

/// A name and what was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub host: Box<str>,
    pub found: Found,
    /// How long that took; None: it was not looked up.
    pub took: Option<Duration>,
}

/// Where a shard waits for replies.
#[derive(Clone)]
pub(super) struct Asker {
    /// With room for a reply to each name that it asks for.
    pub replies: Sender<Reply>,
    /// An eventfd.
    pub wake: Arc<OwnedFd>,
}

/// Where names are looked for. Both may block.
#[derive(Clone, Copy)]
pub(super) struct Sources {
    pub resolver: fn(&str) -> Found,
    /// Those of the names that stand there.
    pub hosts: fn(&[Box<str>]) -> Addresses,
}

/// The helper threads, shared by all shards of a process.
#[derive(Clone)]
pub struct Lookups(Arc<Pool>);

struct Pool {
    sources: Sources,
    /// A thread that had nothing to do for so long ends.
    idle_max: Duration,
    state: Mutex<State>,
    /// A name waits.
    more: Condvar,
}

/// Each name in `asked` is in `waiting`, or in `unread` alone, or with a thread of the resolver.
#[derive(Default)]
struct State {
    /// The names that were asked for and are not answered yet.
    asked: HashMap<Box<str>, Asked>,
    /// Those of them that no thread of the resolver looks up yet.
    waiting: VecDeque<Box<str>>,
    /// Those of them that are to be looked for in /etc/hosts.
    unread: Vec<Unread>,
    /// Threads of the resolver.
    threads: usize,
    /// Those of them that have nothing to do.
    idle: usize,
    /// The thread that reads /etc/hosts runs.
    reads_hosts: bool,
}

struct Asked {
    askers: Vec<Asker>,
    /// When somebody asked last: nobody waits longer than [`LOOKUP_TIME_MAX`].
    last: Time,
}

struct Unread {
    host: Box<str>,
    /// Too many others waited for the resolver.
    only_here: bool,
}

impl Default for Lookups {
    fn default() -> Self {
        let sources = Sources {
            resolver: ask_system,
            hosts: in_hosts_file,
        };
        Self::of(sources, LOOKUP_THREAD_IDLE)
    }
}

impl Lookups {
    pub(super) fn of(sources: Sources, idle_max: Duration) -> Self {
        Self(Arc::new(Pool {
            sources,
            idle_max,
            state: Mutex::default(),
            more: Condvar::new(),
        }))
    }

    /// Has a name looked up. One that somebody else has asked for already is looked up once for both.
    ///
    /// # Errors
    /// Too many names wait already, or the system gives no thread.
    pub(super) fn ask(&self, host: &str, asker: Asker) -> Result<(), &'static str> {
        let (mut state, now) = (self.0.state(), Time::now());
        if let Some(asked) = state.asked.get_mut(host) {
            asked.askers.push(asker);
            asked.last = now;
            return Ok(());
        }
        let mut is_served = state.idle > state.waiting.len();
        if !is_served && state.threads < LOOKUP_THREADS_MAX && start("lookup", &self.0, Pool::resolve).is_ok() {
            state.threads += 1;
            is_served = true;
        }
        // Otherwise those that run will come to it.
        if state.threads == 0 {
            return Err("the tunnel host has no threads left");
        }
        if !is_served && !state.reads_hosts {
            state.reads_hosts = start("lookup-hosts", &self.0, Pool::read_hosts).is_ok();
        }
        let is_read = !is_served && state.reads_hosts && state.unread.len() < LOOKUPS_PENDING_MAX;
        let has_room = state.has_room(now);
        if !has_room && !is_read {
            return Err(TOO_MANY);
        }
        if is_read {
            state.unread.push(Unread {
                host: host.into(),
                only_here: !has_room,
            });
        }
        if has_room {
            state.waiting.push_back(host.into());
            self.0.more.notify_one();
        }
        let askers = vec![asker];
        state.asked.insert(host.into(), Asked { askers, last: now });
        Ok(())
    }

    /// Somebody more waits for a name that was asked for.
    pub(super) fn renew(&self, host: &str) {
        if let Some(asked) = self.0.state().asked.get_mut(host) {
            asked.last = Time::now();
        }
    }
}

fn start(name: &str, pool: &Arc<Pool>, work: fn(&Pool)) -> io::Result<()> {
    let pool = pool.clone();
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(move || work(&pool)).map(drop)
}

impl State {
    /// Whether one name more may wait for the resolver. Those that nobody waits for make room.
    fn has_room(&mut self, now: Time) -> bool {
        if self.waiting.len() >= LOOKUPS_PENDING_MAX {
            for host in mem::take(&mut self.waiting) {
                if self.is_wanted(&host, now) {
                    self.waiting.push_back(host);
                } else {
                    self.answer(&host, &Err(TOO_MANY.into()), None);
                }
            }
        }
        self.waiting.len() < LOOKUPS_PENDING_MAX
    }

    fn is_wanted(&self, host: &str, now: Time) -> bool {
        let asked = self.asked.get(host);
        asked.is_some_and(|asked| now.since(asked.last) <= LOOKUP_TIME_MAX)
    }

    /// `took`: as in [`Reply`].
    fn answer(&mut self, host: &str, found: &Found, took: Option<Duration>) {
        let askers = self.asked.remove(host).map(|asked| asked.askers);
        for asker in askers.into_iter().flatten() {
            let (host, found) = (host.into(), found.clone());
            if asker.replies.try_send(Reply { host, found, took }).is_ok() {
                // A full counter means that a wake-up is already due.
                let _ = rustix::io::write(&*asker.wake, &1_u64.to_ne_bytes());
            }
        }
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread of the resolver.
    fn resolve(&self) {
        while let Some(host) = self.next() {
            let begun = Time::now();
            let found = (self.sources.resolver)(&host);
            let took = Time::now().since(begun);
            self.state().answer(&host, &found, Some(took));
        }
    }

    /// Waits for the next name; none if there was none for a while.
    fn next(&self) -> Option<Box<str>> {
        let mut state = self.state();
        state.idle += 1;
        let deadline = Time::now() + self.idle_max;
        let next = loop {
            let now = Time::now();
            if let Some(next) = state.waiting.pop_front() {
                // Others may be waiting for this thread.
                if state.is_wanted(&next, now) {
                    break Some(next);
                }
                state.answer(&next, &Err(TOO_MANY.into()), None);
                continue;
            }
            let left = deadline.since(now);
            if left.is_zero() {
                break None;
            }
            let waited = self.more.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        state.idle -= 1;
        state.threads -= usize::from(next.is_none());
        next
    }

    /// The thread of /etc/hosts: looks there for all that was asked for since it looked last, and ends.
    fn read_hosts(&self) {
        let mut state = self.state();
        while !state.unread.is_empty() {
            let (hosts, only_here): (Vec<_>, Vec<_>) = mem::take(&mut state.unread)
                .into_iter()
                .map(|unread| (unread.host, unread.only_here))
                .unzip();
            drop(state);
            let begun = Time::now();
            let mut found = (self.sources.hosts)(&hosts);
            let now = Time::now();
            state = self.state();
            for (host, only_here) in hosts.into_iter().zip(only_here) {
                let found = found.remove(&host).map(Ok);
                // By now a thread of the resolver may have it.
                let place = state.waiting.iter().position(|waiting| *waiting == host);
                match (found, place) {
                    (Some(found), Some(place)) => {
                        state.waiting.remove(place);
                        state.answer(&host, &found, Some(now.since(begun)));
                    }
                    (Some(found), None) if only_here => state.answer(&host, &found, Some(now.since(begun))),
                    (None, None) if only_here => {
                        if state.has_room(now) {
                            state.waiting.push_back(host);
                            self.more.notify_one();
                        } else {
                            state.answer(&host, &Err(TOO_MANY.into()), None);
                        }
                    }
                    _ => {}
                }
            }
        }
        state.reads_hosts = false;
    }
}

fn ask_system(host: &str) -> Found {
    let found = (host, 0_u16).to_socket_addrs().map_err(|e| Arc::from(e.to_string()))?;
    let mut addresses = Vec::new();
    found.for_each(|address| add(&mut addresses, address.ip()));
    match addresses.is_empty() {
        true => Err("the name has no address".into()),
        false => Ok(alternating(&addresses).into()),
    }
}

fn in_hosts_file(names: &[Box<str>]) -> Addresses {
    match File::open("/etc/hosts") {
        Ok(file) => in_hosts(BufReader::new(file.take(HOSTS_FILE_BYTES_MAX)), names),
        Err(_) => Addresses::new(),
    }
}

/// Those of `names` that are there, with their addresses as hosts(5) gives them.
fn in_hosts(file: impl BufRead, names: &[Box<str>]) -> Addresses {
    let plain = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let mut found: HashMap<String, Vec<IpAddr>> = names.iter().map(|name| (plain(name), Vec::new())).collect();
    for mut line in file.split(b'\n').map_while(Result::ok) {
        line.make_ascii_lowercase();
        let words = std::str::from_utf8(&line).unwrap_or_default();
        let mut words = words.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else {
            continue;
        };
        for name in words {
            if let Some(addresses) = found.get_mut(name) {
                add(addresses, address);
            }
        }
    }
    let those = names.iter().filter_map(|name| {
        let addresses = found.get(&plain(name)).filter(|addresses| !addresses.is_empty())?;
        Some((name.clone(), alternating(addresses).into()))
    });
    those.collect()
}

/// Each once, and not too many.
fn add(addresses: &mut Vec<IpAddr>, address: IpAddr) {
    if !addresses.contains(&address) && addresses.len() < ADDRESSES_PER_NAME_MAX {
        addresses.push(address);
    }
}

#[cfg(test)]
mod tests;
