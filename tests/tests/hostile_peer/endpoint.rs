//! A hostile endpoint against the real `sc`. The test is the whole cloud: a REST API of one tunnel that names the test's
//! own key, and the endpoint that `sc` dials. One link is honest and carries bodies all the time; each of the others
//! breaks the protocol in every way that an endpoint's link allows, each time on a fresh connection. The session ends or
//! goes on as the protocol says, `sc` dials again, and the process and the honest link go on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use dataplane::limits::{FRAME_PAYLOAD_BYTES_MAX, FRAME_TEXT_BYTES_MAX, SESSION_ERRORS_MAX};
use dataplane::mux::frame::{Code, Frame};
use dataplane::mux::{Hello, Kind, Open, Side};
use dataplane::tls::{Identity, server_config};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::cloud::{Driver, UP, binary};
use tests::deaf::Deaf;
use tests::http::{Client, Connection};
use tests::is_long;
use tests::origin::Origin;
use tests::process::{PATIENCE, Process, raise_own_limit};
use tests::watch::Watch;

use super::STEP;
use super::peer::Link;
use super::table::{Case, Expected, Known, State, cells, values};

/// All that one `sc` may have, but one, which is honest.
const HOSTILE_LINKS: usize = 63;
/// `sc` processes at a time.
const PROCESSES: usize = 3;
/// All cases of a link, with the waits of `sc` between them.
const ATTACK_MAX: Duration = Duration::from_secs(180);
const BODY_BYTES: u64 = 100_000;
/// What the honest endpoint takes of a stream at a time.
const WINDOW_BYTES: u32 = 256 * 1024;
/// The first stream of an endpoint, and the only one that it opens before a case.
const STREAM: u64 = 2;
const TUNNEL: &str = "0123456789abcdef0123456789abcdef";

/// Where streams lead.
struct Sites {
    origin: Origin,
    deaf: Deaf,
}

impl Sites {
    fn start() -> Self {
        raise_own_limit();
        Self {
            origin: Origin::start(),
            deaf: Deaf::start(),
        }
    }

    fn get(&self, query: &str) -> Bytes {
        let site = self.origin.http;
        format!("GET /bytes?seed=1&length=10{query} HTTP/1.1\r\nHost: {site}\r\n\r\n").into()
    }
}

/// A connection that `sc` has dialled: its HELLO is read, nothing was said.
struct Dialled {
    link: Link,
    theirs: Hello,
}

impl Dialled {
    /// HELLO of a fresh session, and what a right endpoint says next.
    fn up(mut self) -> Self {
        let version = Frame::SettingsAck {
            version: 1,
            accepted: true,
            text: Bytes::new(),
        };
        self.link.say(&[self.link.greeting()]);
        self.link.say_frame(&version);
        self
    }
}

/// One link of `sc`, with the connections that it dials, one after the other.
struct Line {
    number: usize,
    dialled: Receiver<Dialled>,
}

impl Line {
    fn next(&self) -> Dialled {
        let next = self.dialled.recv_timeout(PATIENCE);
        next.unwrap_or_else(|e| panic!("link {} is not dialled again: {e}", self.number))
    }

    /// Is a right endpoint without requests, until `sc` dials no more.
    fn rest(&self) {
        while let Ok(dialled) = self.dialled.recv_timeout(PATIENCE) {
            let mut link = dialled.up().link;
            while link.next().is_ok() {}
        }
    }
}

/// A link in a state, and the stream that the state speaks of.
struct Reached {
    link: Link,
    stream: u64,
    /// What may be sent there.
    credit: u64,
}

impl Reached {
    fn without_stream(dialled: Dialled) -> Self {
        Self {
            link: dialled.link,
            stream: 0,
            credit: 0,
        }
    }

    /// A stream that is not answered yet.
    fn asked(dialled: Dialled, kind: Kind, host: &str, port: u16) -> Self {
        let mut link = dialled.link;
        link.say_frame(&open(STREAM, kind, host, port));
        Self {
            link,
            stream: STREAM,
            credit: u64::from(dialled.theirs.first_credit),
        }
    }

    fn say(&mut self, bytes: Bytes) {
        self.credit -= bytes.len() as u64;
        self.link.say_frame(&Frame::Data(self.stream, bytes));
    }

    fn until(&mut self, what: &str, fits: impl Fn(&Frame) -> bool) {
        self.link.until(what, fits);
    }

    fn known(&self) -> Known {
        self.link.known(self.stream, self.credit)
    }
}

fn open(stream: u64, kind: Kind, host: &str, port: u16) -> Frame {
    let open = Open {
        kind,
        settings: 1,
        credit: WINDOW_BYTES,
        port,
        host: Bytes::copy_from_slice(host.as_bytes()),
        shown: None,
    };
    Frame::Open(stream, open)
}

fn reach(state: State, line: &Line, sites: &Sites) -> Reached {
    let dialled = line.next();
    if matches!(state, State::Silent | State::Greeting) {
        return Reached::without_stream(dialled);
    }
    let dialled = dialled.up();
    let (site, deaf) = (sites.origin.http, sites.deaf.address);
    let on = |kind, to: SocketAddr| move |dialled| Reached::asked(dialled, kind, &to.ip().to_string(), to.port());
    let mut reached = match state {
        State::Idle => Reached::without_stream(dialled),
        State::Refused => {
            // Denied before anything is dialled.
            let mut reached = Reached::asked(dialled, Kind::Tcp, "169.254.169.254", 80);
            reached.until("a refusal", |f| matches!(f, Frame::Reset(STREAM, ..)));
            reached
        }
        State::Asked => on(Kind::Tcp, deaf)(dialled),
        State::Requested | State::BothFins => on(Kind::Http, site)(dialled),
        _ => {
            let mut reached = on(Kind::Tcp, site)(dialled);
            reached.until("OPENED", |f| matches!(f, Frame::Opened(STREAM, _)));
            reached
        }
    };
    let is_fin = |f: &Frame| matches!(f, Frame::Fin(STREAM, _));
    let fin = Frame::Fin(STREAM, None);
    match state {
        State::FinSaid => reached.link.say_frame(&fin),
        State::FinHeard => {
            reached.say(sites.get("&close"));
            reached.until("FIN", is_fin);
        }
        State::ResetSaid => reached.link.say_frame(&reset(STREAM)),
        State::Requested => {
            reached.say(sites.get("&held&silent"));
            reached.link.say_frame(&fin);
        }
        State::BothFins => {
            reached.say(sites.get(""));
            reached.link.say_frame(&fin);
            reached.until("FIN", is_fin);
        }
        State::Draining => reached.link.drains(),
        State::Resuming => reached.link = offered_again(reached.link, line),
        State::Resumed => {
            reached.link = offered_again(reached.link, line);
            reached.link.say(&[reached.link.greeting()]);
            reached.link.ping().expect("a session that goes on");
        }
        _ => {}
    }
    reached
}

fn reset(stream: u64) -> Frame {
    Frame::Reset(stream, Code::Cancelled, Bytes::new())
}

/// The session may go on over another connection.
fn offered_again(mut link: Link, line: &Line) -> Link {
    // All that was said has been taken: nothing is to be said again.
    link.ping().expect("a link that goes on");
    let (session, received) = (link.hello.session, link.received);
    drop(link);
    let Dialled { mut link, theirs } = line.next();
    assert_eq!(theirs.session, session, "the session goes on");
    (link.hello.session, link.hello.received, link.received) = (session, received, received);
    link
}

/// The session ends or goes on as expected, in time.
fn judge(case: &Case, mut reached: Reached, cut: usize) {
    let known = reached.known();
    reached.link.say_case(case, &known, cut);
    let what = &case.what;
    let link = &mut reached.link;
    match case.expected {
        Expected::Unanswered => assert_eq!(link.rest(), (Vec::new(), false), "{what}"),
        Expected::Violation(reason) => link.ends_as(reason, what),
        Expected::GoesOn => {
            assert_eq!(link.goes_on(what), Ok(()), "{what}");
            let again = (case.frames)(&reached.known()).swap_remove(0);
            reached.link.dies_within(&again, what);
        }
        Expected::MayEnd => assert_ne!(link.ping(), Err(false), "{what}: the link is cut"),
    }
}

/// Cases that links take one after the other, so that none waits for its back-off: it dials no more once the endpoint
/// has drained, and not for 30 s after so many errors of its sessions.
fn plans(cases: Vec<Case>) -> Vec<Vec<Case>> {
    let (mut broken, mut last, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    for case in cases {
        match case.expected {
            Expected::Violation(_) => broken.push(case),
            Expected::MayEnd => last.push(case),
            Expected::GoesOn | Expected::Unanswered => rest.push(case),
        }
    }
    let links = (broken.len() + last.len()).div_ceil(SESSION_ERRORS_MAX);
    last.extend(broken.drain(broken.len().min(links * (SESSION_ERRORS_MAX - 1))..));
    let mut plans: Vec<Vec<Case>> = Vec::new();
    plans.resize_with(links, Vec::new);
    for cases in [rest, broken, last] {
        for (n, case) in cases.into_iter().enumerate() {
            plans[n % links].push(case);
        }
    }
    plans
}

pub fn f7_a_hostile_endpoint_ends_its_session_and_nothing_else(driver: Driver) {
    let started = Instant::now();
    let step = if is_long() { 1 } else { STEP };
    let cells = cells(Side::Endpoint).into_iter().step_by(step);
    let cases: Vec<Case> = cells.chain(values(Side::Endpoint)).collect();
    let mut counts = BTreeMap::new();
    for case in &cases {
        *counts.entry(format!("{:?}", case.expected)).or_insert(0) += 1;
    }
    let (all, sites, plans) = (cases.len(), Sites::start(), plans(cases));
    for plans in plans.chunks(PROCESSES * HOSTILE_LINKS) {
        thread::scope(|scope| {
            for plans in plans.chunks(HOSTILE_LINKS) {
                let sites = &sites;
                scope.spawn(move || one_of_many(driver, sites, plans));
            }
        });
    }
    println!("{driver:?}: {:.1?}, {all} cases: {counts:?}", started.elapsed());
}

fn one_of_many(driver: Driver, sites: &Sites, plans: &[Vec<Case>]) {
    let log = beside_an_honest_link(driver, sites, plans.len(), &[], |line| {
        for (n, case) in plans[line.number - 1].iter().enumerate() {
            let reached = reach(case.state, line, sites);
            judge(case, reached, line.number + n);
        }
    });
    let breaks = |case: &&Case| matches!(case.expected, Expected::Violation(_));
    assert_eq!(faults(&log), plans.iter().flatten().filter(breaks).count(), "{log}");
}

/// What is too much is refused by name, nothing else is; and there is room again afterwards.
pub fn f7_streams_beyond_the_limit_are_refused_and_nothing_else(driver: Driver) {
    const MAX: usize = 64;
    const BEYOND: usize = 500;
    let sites = Sites::start();
    let open_at = |id: u64, to: SocketAddr| open(id, Kind::Tcp, &to.ip().to_string(), to.port());
    let attack = |line: &Line| {
        let mut link = line.next().up().link;
        let ids: Vec<u64> = (1..=MAX + BEYOND).map(|n| 2 * n as u64).collect();
        link.say_frames(ids.iter().map(|id| open_at(*id, sites.deaf.address)));
        // The honest link has a place, too.
        let (taken, beyond) = ids.split_at(MAX - 1);
        for id in beyond {
            link.until("a refusal", |f| matches!(f, Frame::Reset(n, Code::Limit, _) if n == id));
        }
        let heard = link.ping().expect("a link that goes on");
        assert!(!heard.iter().any(|f| matches!(f, Frame::Reset(..))), "{heard:?}");
        link.say_frames(taken.iter().map(|id| reset(*id)));
        // Each place is free once its dial has been given up.
        let since = Instant::now();
        for id in (2 + 2 * ids.len() as u64..).step_by(2) {
            link.say_frame(&open_at(id, sites.origin.http));
            let answers = |f: &Frame| matches!(f, Frame::Opened(n, _) | Frame::Reset(n, Code::Limit, _) if *n == id);
            if matches!(link.until("OPENED", answers), Frame::Opened(..)) {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "no place is free again");
        }
    };
    let log = beside_an_honest_link(driver, &sites, 1, &["--max-streams", &MAX.to_string()], attack);
    assert_eq!(faults(&log), 0, "{log}");
}

/// Whatever the endpoint repeats, the log tells it in few words, and has room for what else happens.
pub fn f7_settings_acks_without_end_do_not_fill_the_log(driver: Driver) {
    const ACKS: usize = 20_000;
    const LOG_BYTES_MAX: usize = 512 * 1024;
    let sites = Sites::start();
    let attack = |line: &Line| {
        let mut link = line.next().up().link;
        let acks = (0..ACKS).map(|_| Frame::SettingsAck {
            version: 1,
            accepted: true,
            text: Bytes::from_static(&[b'x'; FRAME_TEXT_BYTES_MAX]),
        });
        link.say_frames(acks);
        // It may be too much for a session.
        assert_ne!(link.ping(), Err(false), "the link is cut");
    };
    let log = beside_an_honest_link(driver, &sites, 1, &[], attack);
    assert!(
        log.len() < LOG_BYTES_MAX,
        "{} bytes, {} lines",
        log.len(),
        log.lines().count()
    );
}

/// Sessions that ended because of what the endpoint said, by the log of `sc`.
fn faults(log: &str) -> usize {
    log.matches("the other side broke the protocol").count()
}

/// `sc` against a cloud that is this test: its first link is honest all the time, `attack` has each other one. Returns its
/// log.
fn beside_an_honest_link(
    driver: Driver,
    sites: &Sites,
    hostile_links: usize,
    arguments: &[&str],
    attack: impl Fn(&Line) + Sync,
) -> String {
    let identity = Identity::generate().expect("a key");
    let tls = server_config(&identity, Arc::new(|_| true)).expect("TLS of links");
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let (links, rest) = (listen(), listen());
    let [links_at, rest_at] = [&links, &rest].map(|l| l.local_addr().expect("bound"));
    let object = json!({
        "id": TUNNEL,
        "status": "running",
        "is_ready": true,
        "culvert": {
            "address": links_at.to_string(),
            "server_name": format!("{TUNNEL}.tunnel.culvert"),
            "fingerprint": identity.fingerprint().to_string(),
        },
    });
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = folder.path().join("sc.log");
    let (stopped, over, exchanges) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        // By a panic too: the scope waits for both.
        let _stop = Stop {
            stopped: &stopped,
            addresses: [links_at, rest_at],
        };
        let (dialled, lines): (Vec<_>, Vec<_>) = (0..=hostile_links)
            .map(|number| {
                let (sender, dialled) = channel();
                (sender, Line { number, dialled })
            })
            .unzip();
        scope.spawn(|| serve_rest(&rest, &object, &stopped));
        let stopped = &stopped;
        scope.spawn(move || accept_all(scope, &links, &tls, dialled, stopped));
        let mut command = sc(driver, rest_at, &log);
        command.args(["--tunnel-connections", &lines.len().to_string()]);
        let mut process = Process::start(command.args(arguments));
        let mut lines = lines.into_iter();
        let first_line = lines.next().expect("the first link");
        let lines: Vec<_> = lines.map(|line| (line.next().up(), line)).collect();
        // The last one to be answered: from here on somebody always listens to it.
        let (honest, mut client) = carry(first_line.next().up(), sites.origin.http);
        let (over, exchanges, attack) = (&over, &exchanges, &attack);
        scope.spawn(move || {
            for round in 0.. {
                let whole = client
                    .download("", round, BODY_BYTES, "")
                    .and_then(|()| client.upload("", round, BODY_BYTES, round.is_multiple_of(2)));
                whole.expect("an honest exchange");
                exchanges.fetch_add(1, Ordering::Relaxed);
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
            let mut link = lock(&honest);
            link.say_frame(&reset(STREAM));
            while link.next().is_ok() {}
        });
        process.line("readiness", |line| line.ends_with(UP).then_some(()));
        // What `sc` holds in the end is compared with this: all links are up, and the honest one has begun.
        let mut watch = Watch::default();
        watch.add("sc", process.id());
        let (done, all_done) = channel();
        for (first, line) in lines {
            let done = done.clone();
            scope.spawn(move || {
                drop(first);
                attack(&line);
                let _ = done.send(());
                drop(done);
                line.rest();
            });
        }
        drop(done);
        for _ in 0..hostile_links {
            let passed = all_done.recv_timeout(ATTACK_MAX);
            passed.expect("every link comes through all its cases");
        }
        assert!(process.is_running(), "sc lives");
        watch.end();
        over.store(true, Ordering::Relaxed);
        process.signal(Signal::TERM);
        let code = process.exit_code(PATIENCE);
        assert_eq!((code, process.stderr()), (0, String::new()), "{}", process.stdout());
    });
    println!("{hostile_links} hostile links, honest exchanges: {exchanges:?}");
    fs::read_to_string(log).expect("a log")
}

fn sc(driver: Driver, rest: SocketAddr, log: &Path) -> Command {
    let mut command = Command::new(binary("sc"));
    // Several run at a time.
    command.arg("--pidfile").arg(log.with_file_name("sc.pid"));
    command.args(["-u", "ada", "-k", "key", "-x", &format!("http://{rest}/rest/v1")]);
    command
        .args(["--shards", "1", "--driver", driver.name(), "-l"])
        .arg(log);
    command
}

/// Ends what accepts when it goes.
struct Stop<'a> {
    stopped: &'a AtomicBool,
    addresses: [SocketAddr; 2],
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for address in self.addresses {
            // Wakes the accept loop, which then sees that it is over.
            let _ = TcpStream::connect(address);
        }
    }
}

/// REST of one tunnel.
fn serve_rest(listener: &TcpListener, object: &Value, stopped: &AtomicBool) {
    let mut deleted = false;
    for socket in listener.incoming().flatten() {
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        // A call that is broken off is made again.
        let _ = answer(&mut Connection::over(socket), object, &mut deleted);
    }
}

/// One call a connection.
fn answer(connection: &mut Connection, object: &Value, deleted: &mut bool) -> io::Result<()> {
    let Some(head) = connection.read_head()? else {
        return Ok(());
    };
    connection.read_body(head.request_framing()?, &mut |_| Ok(()))?;
    let done = json!({"id": TUNNEL, "result": true, "jobs_running": 0});
    *deleted |= head.line[0] == "DELETE";
    let (status, body) = match (head.line[0].as_str(), head.line[1].rsplit('/').next()) {
        ("DELETE", _) | (_, Some("connected" | "num_jobs")) => ("200 OK", &done),
        _ if *deleted => ("404 Not Found", &done),
        _ => ("200 OK", object),
    };
    let text = body.to_string();
    let length = text.len();
    connection
        .write(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}").as_bytes())
}

/// Hands each connection of a link over once `sc` has said HELLO.
fn accept_all<'scope>(
    scope: &'scope Scope<'scope, '_>,
    listener: &TcpListener,
    tls: &Arc<rustls::ServerConfig>,
    dialled: Vec<Sender<Dialled>>,
    stopped: &AtomicBool,
) {
    let dialled = Arc::new(dialled);
    for socket in listener.incoming().flatten() {
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        let (tls, dialled) = (tls.clone(), dialled.clone());
        scope.spawn(move || {
            if let Some((link, theirs)) = Link::accept(socket, tls) {
                // One whose link is over is dropped.
                let _ = dialled[usize::from(theirs.link)].send(Dialled { link, theirs });
            }
        });
    }
}

fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().expect("one thread at a time has it")
}

/// Opens a stream to the site on an honest link: a client of the site over it, and the link.
fn carry(dialled: Dialled, site: SocketAddr) -> (Arc<Mutex<Link>>, Client) {
    let mut link = dialled.link;
    link.say_frame(&open(STREAM, Kind::Tcp, &site.ip().to_string(), site.port()));
    link.until("OPENED", |f| matches!(f, Frame::Opened(STREAM, _)));
    let link = Arc::new(Mutex::new(link));
    let carried = Carried {
        link: link.clone(),
        inbox: BytesMut::new(),
        consumed: 0,
        written: 0,
        limit: u64::from(dialled.theirs.first_credit),
    };
    (link, Client::over(carried))
}

/// The honest stream.
struct Carried {
    link: Arc<Mutex<Link>>,
    inbox: BytesMut,
    consumed: u64,
    written: u64,
    /// `sc` takes so much of it.
    limit: u64,
}

impl Carried {
    /// Takes frames until `there` is what it waits for.
    fn until(&mut self, there: impl Fn(&Self) -> bool) -> io::Result<()> {
        let since = Instant::now();
        while !there(self) {
            let frame = lock(&self.link).next();
            match frame {
                Ok(Frame::Data(STREAM, bytes)) => self.inbox.extend_from_slice(&bytes),
                Ok(Frame::Credit(STREAM, limit)) => self.limit = limit,
                Ok(Frame::Ping(_) | Frame::Ack(_)) if since.elapsed() < PATIENCE => {}
                other => return Err(io::Error::other(format!("the honest link: {other:?}"))),
            }
        }
        Ok(())
    }
}

impl Read for Carried {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.until(|carried| !carried.inbox.is_empty())?;
        let n = self.inbox.len().min(out.len());
        self.inbox.copy_to_slice(&mut out[..n]);
        self.consumed += n as u64;
        let mut link = lock(&self.link);
        let received = link.received;
        link.say_frames([
            Frame::Ack(received),
            Frame::Credit(STREAM, self.consumed + u64::from(WINDOW_BYTES)),
        ]);
        Ok(n)
    }
}

impl Write for Carried {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until(|carried| carried.written < carried.limit)?;
        let room = usize::try_from(self.limit - self.written).expect("a window");
        let n = bytes.len().min(room).min(FRAME_PAYLOAD_BYTES_MAX);
        self.written += n as u64;
        lock(&self.link).say_frame(&Frame::Data(STREAM, Bytes::copy_from_slice(&bytes[..n])));
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
