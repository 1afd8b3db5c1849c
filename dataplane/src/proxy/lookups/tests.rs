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
fn hosts(names: &[Box<str>]) -> Addresses {
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
