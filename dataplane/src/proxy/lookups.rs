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
    /// What stands there of these names.
    pub hosts: fn(&[Box<str>]) -> HashMap<Box<str>, Arc<[IpAddr]>>,
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

fn in_hosts_file(names: &[Box<str>]) -> HashMap<Box<str>, Arc<[IpAddr]>> {
    match File::open("/etc/hosts") {
        Ok(file) => in_hosts(BufReader::new(file.take(HOSTS_FILE_BYTES_MAX)), names),
        Err(_) => HashMap::new(),
    }
}

/// Those of `names` that are there, with their addresses as hosts(5) gives them.
fn in_hosts(file: impl BufRead, names: &[Box<str>]) -> HashMap<Box<str>, Arc<[IpAddr]>> {
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
mod tests {
    use std::sync::mpsc;
    use std::task::Waker;

    use crossbeam::channel::{Receiver, bounded};
    use rustix::event::{EventfdFlags, eventfd};

    use super::super::resolve::Resolver;
    use super::*;
    use crate::limits::LOOKUP_REPLIES_MAX;
    use crate::wakes::Wakes;

    const PATIENCE: Duration = Duration::from_secs(20);
    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn asker() -> (Asker, Receiver<Reply>) {
        let (replies, received) = bounded(LOOKUP_REPLIES_MAX);
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        (Asker { replies, wake }, received)
    }

    fn found() -> Found {
        Ok([ADDRESS].into())
    }

    /// Answers at once, but what begins with `silent` only when a word comes.
    fn resolver(host: &str) -> Found {
        if host.starts_with("silent") {
            hold();
        }
        found()
    }

    /// `known…` stands there; a word is waited for where `held…` is asked for.
    fn hosts(names: &[Box<str>]) -> HashMap<Box<str>, Arc<[IpAddr]>> {
        if names.iter().any(|name| name.starts_with("held")) {
            hold();
        }
        READS.lock().unwrap().push(names.len());
        let known = names.iter().filter(|name| name.starts_with("known"));
        known.map(|name| (name.clone(), [ADDRESS].into())).collect()
    }

    fn hold() {
        let (tell, told) = mpsc::channel();
        HELD.lock().unwrap().push(tell);
        told.recv_timeout(PATIENCE).unwrap();
    }

    /// Look-ups that are under way.
    static HELD: Mutex<Vec<mpsc::Sender<()>>> = Mutex::new(Vec::new());
    /// Names in each pass over the hosts.
    static READS: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    /// The tests share both.
    static ALONE: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        HELD.lock().unwrap().clear();
        READS.lock().unwrap().clear();
        alone
    }

    fn lookups() -> Lookups {
        Lookups::of(Sources { resolver, hosts }, PATIENCE)
    }

    /// All threads of the resolver wait.
    fn busy() -> (Lookups, Asker, Receiver<Reply>) {
        let (lookups, (asker, received)) = (lookups(), asker());
        for n in 0..LOOKUP_THREADS_MAX {
            lookups.ask(&format!("silent-{n}.test"), asker.clone()).unwrap();
        }
        until("all threads wait", || HELD.lock().unwrap().len() == LOOKUP_THREADS_MAX);
        (lookups, asker, received)
    }

    fn fill(lookups: &Lookups, asker: &Asker) {
        for n in 0..LOOKUPS_PENDING_MAX {
            lookups.ask(&format!("silent-{n}.waits.test"), asker.clone()).unwrap();
        }
        let is_full = |state: &State| state.unread.is_empty() && state.waiting.len() == LOOKUPS_PENDING_MAX;
        until("the queue is full", || is_full(&lookups.0.state()));
    }

    fn expire(lookups: &Lookups) {
        let mut state = lookups.0.state();
        state.asked.values_mut().for_each(|asked| asked.last = Time::default());
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

    /// Lets all look-ups end.
    fn finish(lookups: &Lookups) {
        until("all is answered", || {
            release();
            lookups.0.state().asked.is_empty()
        });
    }

    fn next(received: &Receiver<Reply>) -> (Box<str>, Found) {
        let reply = received.recv_timeout(PATIENCE).unwrap();
        (reply.host, reply.found)
    }

    fn too_many() -> Found {
        Err(TOO_MANY.into())
    }

    #[test]
    fn silent_names_hold_up_neither_others_nor_what_stands_in_hosts() {
        let _alone = alone();
        let (lookups, (asker, received)) = (lookups(), asker());
        let ask = |host: &str| lookups.ask(host, asker.clone()).unwrap();
        for n in 1..LOOKUP_THREADS_MAX {
            ask(&format!("silent-{n}.test"));
        }
        ask("other.test");
        assert_eq!(next(&received), ("other.test".into(), found()));
        ask("silent-0.test");
        until("all threads wait", || HELD.lock().unwrap().len() == LOOKUP_THREADS_MAX);
        for _ in 0..2 {
            ask("known.test");
            assert_eq!(next(&received), ("known.test".into(), found()));
        }
        ask("late.test");
        until("it is not in hosts", || !lookups.0.state().reads_hosts);
        assert_eq!(lookups.0.state().threads, LOOKUP_THREADS_MAX);
        assert_eq!(lookups.0.state().waiting, ["late.test".into()]);
        finish(&lookups);
        assert_eq!(received.len(), LOOKUP_THREADS_MAX + 1);
    }

    #[test]
    fn a_name_is_looked_up_once_for_all_who_ask() {
        let _alone = alone();
        let (lookups, (one, of_one), (two, of_two)) = (lookups(), asker(), asker());
        lookups.ask("silent.test", one).unwrap();
        lookups.ask("silent.test", two).unwrap();
        until("it is looked up", || !HELD.lock().unwrap().is_empty());
        release();
        for received in [of_one, of_two] {
            assert_eq!(next(&received), ("silent.test".into(), found()));
        }
        assert!(HELD.lock().unwrap().is_empty(), "it was looked up twice");
    }

    #[test]
    fn a_name_that_waited_long_is_looked_up_for_who_asked_since() {
        let _alone = alone();
        let (lookups, asker_of_silent, _received) = busy();
        let (later, of_later) = asker();
        let mut shard = Resolver::new(lookups.clone()).unwrap();
        let mut poll = |host: &str| {
            let waker = Waker::from(Arc::new(Wakes::default()));
            assert!(shard.poll(Time::now(), host, &waker).is_pending());
        };
        for host in ["left.test", "asked.test"] {
            lookups.ask(host, asker_of_silent.clone()).unwrap();
        }
        poll("polled.test");
        expire(&lookups);
        lookups.ask("asked.test", later.clone()).unwrap();
        poll("polled.test");
        let now = Time::now();
        let wanted = |host| lookups.0.state().is_wanted(host, now);
        assert!(wanted("asked.test") && wanted("polled.test") && !wanted("left.test"));
        release();
        assert_eq!(next(&of_later), ("asked.test".into(), found()));
        finish(&lookups);
    }

    #[test]
    fn names_that_nobody_waits_for_make_room() {
        let _alone = alone();
        let (lookups, asker, received) = busy();
        fill(&lookups, &asker);
        expire(&lookups);
        lookups.ask("late.test", asker).unwrap();
        assert!(lookups.0.state().waiting.iter().any(|host| &**host == "late.test"));
        assert_eq!(received.len(), LOOKUPS_PENDING_MAX);
        for _ in 0..LOOKUPS_PENDING_MAX {
            assert_eq!(next(&received).1, too_many());
        }
        finish(&lookups);
    }

    #[test]
    fn names_that_wait_are_bounded_and_what_stands_in_hosts_is_not_among_them() {
        let _alone = alone();
        let (lookups, asker, received) = busy();
        fill(&lookups, &asker);
        let ask = |host: &str| lookups.ask(host, asker.clone());
        ask("known.test").unwrap();
        assert_eq!(next(&received), ("known.test".into(), found()));
        ask("other.test").unwrap();
        assert_eq!(next(&received), ("other.test".into(), too_many()));
        ask("silent-0.test").expect("it is asked for already");
        ask("held.test").unwrap();
        until("hosts are read", || HELD.lock().unwrap().len() > LOOKUP_THREADS_MAX);
        for n in 0..LOOKUPS_PENDING_MAX {
            ask(&format!("known-{n}.test")).unwrap();
        }
        assert_eq!(ask("known.test"), Err(TOO_MANY));
        finish(&lookups);
    }

    #[test]
    fn hosts_are_read_once_for_all_names_that_came_meanwhile() {
        let _alone = alone();
        let (lookups, asker, received) = busy();
        lookups.ask("held.test", asker.clone()).unwrap();
        until("hosts are read", || HELD.lock().unwrap().len() > LOOKUP_THREADS_MAX);
        for n in 0..10 {
            lookups.ask(&format!("known-{n}.test"), asker.clone()).unwrap();
        }
        HELD.lock().unwrap().pop().unwrap().send(()).unwrap();
        for n in 0..10 {
            assert_eq!(next(&received).0, format!("known-{n}.test").into());
        }
        assert_eq!(*READS.lock().unwrap(), [1, 10]);
        finish(&lookups);
    }

    #[test]
    fn a_thread_ends_when_it_has_nothing_to_do() {
        let _alone = alone();
        let (lookups, (asker, received)) = (Lookups::of(Sources { resolver, hosts }, Duration::ZERO), asker());
        for _ in 0..2 {
            lookups.ask("silent.test", asker.clone()).unwrap();
            until("it is looked up", || !HELD.lock().unwrap().is_empty());
            assert_eq!(lookups.0.state().threads, 1);
            release();
            next(&received).1.unwrap();
            until("it ends", || lookups.0.state().threads == 0);
        }
    }

    #[test]
    fn hosts_are_read_as_the_system_reads_them() {
        let file = b"# a comment\n127.0.0.1 localhost\n\n 192.0.2.7\tApp.Test  www.app.test # app.test.old\n\
            192.0.2.7 app.test\n2001:db8::7 app.test\nfe80::1%lo0 app.test\nnonsense app.test\n\xff\n192.0.2.8 b.test";
        let names = [
            "app.test",
            "WWW.app.test.",
            "b.test",
            "app.test.old",
            "test",
            "comment",
            "192.0.2.7",
            "",
        ];
        let found = in_hosts(&file[..], &names.map(Box::from));
        let is = |name: &str, texts: &[&str]| {
            let list: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(found[name].to_vec(), list, "{name}");
        };
        is("app.test", &["192.0.2.7", "2001:db8::7"]);
        is("WWW.app.test.", &["192.0.2.7"]);
        is("b.test", &["192.0.2.8"]);
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
