//! The system's resolver, which may keep whoever asks for a minute, on helper threads. They are started on demand and end
//! when nothing is to be done. While all of them wait for name servers, one thread more answers what stands in /etc/hosts.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::Sender;

use super::resolve::alternating;
use crate::limits::{
    ADDRESSES_PER_NAME_MAX, HOSTS_FILE_BYTES_MAX, LOOKUP_THREAD_IDLE, LOOKUP_THREADS_MAX, LOOKUP_TIME_MAX,
    LOOKUPS_PENDING_MAX,
};
use crate::time::Time;

/// What a look-up found: at least one address, or the resolver's words.
pub type Found = Result<Arc<[IpAddr]>, Arc<str>>;

/// A name and what was found.
pub(super) type Reply = (Box<str>, Found);

/// Where a shard waits for replies.
#[derive(Clone)]
pub(super) struct Asker {
    pub replies: Sender<Reply>,
    /// An eventfd.
    pub wake: Arc<OwnedFd>,
}

/// Where names are looked for. Both may block.
#[derive(Clone, Copy)]
struct Sources {
    resolver: fn(&str) -> Found,
    /// None: the name is not there.
    hosts: fn(&str) -> Option<Found>,
}

/// The helper threads, shared by all shards of a process.
#[derive(Clone)]
pub struct Lookups(Arc<Pool>);

struct Pool {
    sources: Sources,
    state: Mutex<State>,
    /// A name waits.
    more: Condvar,
}

#[derive(Default)]
struct State {
    /// Who waits for each name that was asked for and is not answered yet.
    asked: HashMap<Box<str>, Vec<Asker>>,
    /// Those of them that no thread looks up yet.
    waiting: VecDeque<Waiting>,
    /// Threads of the resolver.
    threads: usize,
    /// Those of them that have nothing to do.
    idle: usize,
    /// The thread that reads /etc/hosts runs.
    reads_hosts: bool,
}

struct Waiting {
    host: Box<str>,
    since: Time,
    /// It is not in /etc/hosts.
    is_foreign: bool,
}

impl Default for Lookups {
    fn default() -> Self {
        Self::of(Sources {
            resolver: ask_system,
            hosts: in_hosts_file,
        })
    }
}

impl Lookups {
    fn of(sources: Sources) -> Self {
        Self(Arc::new(Pool {
            sources,
            state: Mutex::default(),
            more: Condvar::new(),
        }))
    }

    /// Has a name looked up. One that somebody else has asked for already is looked up once for both.
    ///
    /// # Errors
    /// Too many names wait already, or the system gives no thread.
    pub(super) fn ask(&self, host: &str, asker: Asker) -> Result<(), &'static str> {
        let mut state = self.0.state();
        if let Some(askers) = state.asked.get_mut(host) {
            askers.push(asker);
            return Ok(());
        }
        if state.waiting.len() >= LOOKUPS_PENDING_MAX {
            return Err("too many names are being looked up");
        }
        if state.idle <= state.waiting.len() {
            if state.threads < LOOKUP_THREADS_MAX {
                let started = start("lookup", &self.0, Pool::resolve);
                // Those that run will come to it.
                if started.is_err() && state.threads == 0 {
                    return Err("the tunnel host has no threads left");
                }
                state.threads += usize::from(started.is_ok());
            } else if !state.reads_hosts {
                state.reads_hosts = start("lookup-hosts", &self.0, Pool::read_hosts).is_ok();
            }
        }
        state.asked.insert(host.into(), vec![asker]);
        state.waiting.push_back(Waiting {
            host: host.into(),
            since: Time::now(),
            is_foreign: false,
        });
        self.0.more.notify_one();
        Ok(())
    }
}

fn start(name: &str, pool: &Arc<Pool>, work: fn(&Pool)) -> io::Result<()> {
    let pool = pool.clone();
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(move || work(&pool)).map(drop)
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread of the resolver.
    fn resolve(&self) {
        while let Some(waiting) = self.next() {
            // Nobody waits for so long, and others may be waiting for this thread.
            let found = match Time::now().since(waiting.since) > LOOKUP_TIME_MAX {
                true => Err("too many names are being looked up".into()),
                false => (self.sources.resolver)(&waiting.host),
            };
            self.answer(waiting.host, &found);
        }
    }

    /// Waits for the next name; none if there was none for a while.
    fn next(&self) -> Option<Waiting> {
        let mut state = self.state();
        state.idle += 1;
        let deadline = Time::now() + LOOKUP_THREAD_IDLE;
        let next = loop {
            if let Some(next) = state.waiting.pop_front() {
                break Some(next);
            }
            let left = deadline.since(Time::now());
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

    /// The thread of /etc/hosts: looks there for what waits, once for each name, and ends.
    fn read_hosts(&self) {
        let mut state = self.state();
        while let Some(at) = state.waiting.iter().position(|waiting| !waiting.is_foreign) {
            state.waiting[at].is_foreign = true;
            let host = state.waiting[at].host.clone();
            drop(state);
            let found = (self.sources.hosts)(&host);
            state = self.state();
            // By now a thread of the resolver may have it.
            let place = state.waiting.iter().position(|waiting| waiting.host == host);
            if let (Some(found), Some(place)) = (found, place) {
                state.waiting.remove(place);
                drop(state);
                self.answer(host, &found);
                state = self.state();
            }
        }
        state.reads_hosts = false;
    }

    fn answer(&self, host: Box<str>, found: &Found) {
        let askers = self.state().asked.remove(&host).unwrap_or_default();
        for asker in askers {
            if asker.replies.send((host.clone(), found.clone())).is_ok() {
                // A full counter means that a wake-up is already due.
                let _ = rustix::io::write(&*asker.wake, &1_u64.to_ne_bytes());
            }
        }
    }
}

fn ask_system(host: &str) -> Found {
    let found = (host, 0_u16).to_socket_addrs().map_err(|e| Arc::from(e.to_string()))?;
    of_addresses(found.map(|address| address.ip())).ok_or_else(|| Arc::from("the name has no address"))
}

fn in_hosts_file(host: &str) -> Option<Found> {
    let file = File::open("/etc/hosts").ok()?.take(HOSTS_FILE_BYTES_MAX);
    in_hosts(BufReader::new(file), host).map(Ok)
}

/// The addresses of a name as hosts(5) gives them.
fn in_hosts(file: impl BufRead, host: &str) -> Option<Arc<[IpAddr]>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let lines = file.split(b'\n').map_while(Result::ok);
    of_addresses(lines.filter_map(|line| {
        let line = std::str::from_utf8(&line).ok()?;
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    }))
}

/// Each once, and not too many.
fn of_addresses(found: impl Iterator<Item = IpAddr>) -> Option<Arc<[IpAddr]>> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) && addresses.len() < ADDRESSES_PER_NAME_MAX {
            addresses.push(address);
        }
    }
    (!addresses.is_empty()).then(|| alternating(&addresses).into())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use crossbeam::channel::{Receiver, bounded};
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn asker() -> (Asker, Receiver<Reply>) {
        let (replies, received) = bounded(2 * LOOKUPS_PENDING_MAX);
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        (Asker { replies, wake }, received)
    }

    fn found() -> Found {
        Ok([ADDRESS].into())
    }

    /// Answers at once, but what begins with `silent` only when a word comes.
    fn resolver(host: &str) -> Found {
        if host.starts_with("silent") {
            let (tell, told) = mpsc::channel();
            HELD.lock().unwrap().push(tell);
            told.recv_timeout(PATIENCE).unwrap();
        }
        found()
    }

    /// Look-ups of silent names that are under way.
    static HELD: Mutex<Vec<mpsc::Sender<()>>> = Mutex::new(Vec::new());
    /// The tests share it.
    static ALONE: Mutex<()> = Mutex::new(());

    fn lookups() -> Lookups {
        Lookups::of(Sources {
            resolver,
            hosts: |host| (host == "known.test").then(found),
        })
    }

    fn until(what: &str, holds: impl Fn() -> bool) {
        let begun = Time::now();
        while !holds() {
            assert!(Time::now().since(begun) < PATIENCE, "{what}: in vain");
            std::thread::yield_now();
        }
    }

    fn release() {
        HELD.lock().unwrap().drain(..).for_each(|held| held.send(()).unwrap());
    }

    #[test]
    fn silent_names_hold_up_neither_others_nor_what_stands_in_hosts() {
        let _alone = ALONE.lock().unwrap();
        let (lookups, (asker, received)) = (lookups(), asker());
        let ask = |host: &str| lookups.ask(host, asker.clone()).unwrap();
        let answered = || received.recv_timeout(PATIENCE).unwrap().0;
        for n in 1..LOOKUP_THREADS_MAX {
            ask(&format!("silent-{n}.test"));
        }
        ask("other.test");
        assert_eq!(&*answered(), "other.test");
        ask("silent-0.test");
        until("all threads wait", || HELD.lock().unwrap().len() == LOOKUP_THREADS_MAX);
        for _ in 0..2 {
            ask("known.test");
            assert_eq!(&*answered(), "known.test");
        }
        // Behind the silent ones.
        ask("late.test");
        assert!(received.try_recv().is_err());
        release();
        for _ in 0..=LOOKUP_THREADS_MAX {
            answered();
        }
        assert!(lookups.0.state().asked.is_empty());
    }

    #[test]
    fn a_name_is_looked_up_once_for_all_who_ask() {
        let _alone = ALONE.lock().unwrap();
        let (lookups, (one, of_one), (two, of_two)) = (lookups(), asker(), asker());
        lookups.ask("silent.test", one).unwrap();
        lookups.ask("silent.test", two).unwrap();
        until("it is looked up", || !HELD.lock().unwrap().is_empty());
        release();
        for received in [of_one, of_two] {
            let reply = received.recv_timeout(PATIENCE).unwrap();
            assert_eq!(reply, ("silent.test".into(), found()));
        }
        assert!(HELD.lock().unwrap().is_empty(), "it was looked up twice");
    }

    #[test]
    fn names_that_wait_are_bounded() {
        let _alone = ALONE.lock().unwrap();
        let (lookups, (asker, received)) = (lookups(), asker());
        let ask = |n: usize| lookups.ask(&format!("silent-{n}.test"), asker.clone());
        for n in 0..LOOKUP_THREADS_MAX {
            ask(n).unwrap();
        }
        until("all threads wait", || HELD.lock().unwrap().len() == LOOKUP_THREADS_MAX);
        let more = LOOKUP_THREADS_MAX..LOOKUP_THREADS_MAX + LOOKUPS_PENDING_MAX;
        assert!(more.map(ask).all(|asked| asked.is_ok()));
        assert!(ask(0).is_ok(), "it is asked for already");
        assert!(ask(usize::MAX).is_err());
        for _ in 0..=LOOKUP_THREADS_MAX + LOOKUPS_PENDING_MAX {
            while received.is_empty() {
                release();
                std::thread::yield_now();
            }
            assert!(received.try_recv().is_ok());
        }
    }

    #[test]
    fn a_thread_ends_when_it_has_nothing_to_do() {
        let _alone = ALONE.lock().unwrap();
        let (lookups, (asker, received)) = (lookups(), asker());
        lookups.ask("other.test", asker).unwrap();
        received.recv_timeout(PATIENCE).unwrap().1.unwrap();
        assert_eq!(lookups.0.state().threads, 1);
        until("it ends", || lookups.0.state().threads == 0);
    }

    #[test]
    fn hosts_are_read_as_the_system_reads_them() {
        let file = b"# a comment\n127.0.0.1 localhost\n\n 192.0.2.7\tApp.Test  www.app.test # app.test.old\n\
            192.0.2.7 app.test\n2001:db8::7 app.test\nfe80::1%lo0 app.test\nnonsense app.test\n\xff\n192.0.2.8 b.test";
        let found = |host| in_hosts(&file[..], host).map(|found| found.to_vec());
        let list = |texts: &[&str]| Some(texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<IpAddr>>());
        assert_eq!(found("app.test"), list(&["192.0.2.7", "2001:db8::7"]));
        assert_eq!(found("WWW.app.test."), list(&["192.0.2.7"]));
        assert_eq!(found("b.test"), list(&["192.0.2.8"]));
        for absent in ["app.test.old", "test", "comment", "192.0.2.7", ""] {
            assert_eq!(found(absent), None, "{absent}");
        }
    }
}
