//! A hostile `sc` against the real programs: a member of a pool breaks the protocol in every way that its link allows,
//! each time on a fresh session. Its link ends or goes on as the protocol says; the endpoint process that it shares
//! with an honest member, and everything that member carries, go on. `endpoint` is the other direction.

mod endpoint;
mod peer;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dataplane::mux::frame::{Code, Frame};
use dataplane::mux::{Kind, Open, Opened, Side};
use tests::both_drivers;
use tests::cloud::{CloudOptions, Driver, fault_lasts};
use tests::http::{Client, Framing, dial};
use tests::origin::Origin;
use tests::process::{PATIENCE, open_fds};
use tests::trial::Trial;
use tests::{is_long, tls};

use endpoint::{
    f7_a_hostile_endpoint_ends_its_session_and_nothing_else, f7_settings_acks_without_end_do_not_fill_the_log,
    f7_streams_beyond_the_limit_are_refused_and_nothing_else,
};
use peer::{Link, Member};
use table::{Case, Expected, Known, State, all_streams_at_once, cells, values};

both_drivers![
    f7_a_hostile_peer_ends_its_link_and_nothing_else,
    f7_all_streams_opened_at_once_end_nothing,
    f7_a_hostile_endpoint_ends_its_session_and_nothing_else,
    f7_streams_beyond_the_limit_are_refused_and_nothing_else,
    f7_settings_acks_without_end_do_not_fill_the_log
];

/// One cell of so many in the ordinary run: a prime, so that every state and every type has its turn.
const STEP: usize = 13;
/// Clients of the honest member, all the time.
const CLIENTS: u64 = 2;
const BODY_BYTES: u64 = 100_000;
const HELD_BYTES: u64 = 3_000_000;
/// What the endpoint may hold more in the end: it was just closing something when it was looked at first.
const FDS_SLACK: usize = 4;

/// A browser whose request comes to the hostile member.
struct Browser {
    client: Client,
    socket: TcpStream,
    /// It has sent CONNECT, not a request.
    connects: bool,
    answered: bool,
}

impl Browser {
    fn ask(trial: &Trial, connects: bool, request: &str) -> Self {
        let socket = dial(trial.tunnel.proxy).expect("the proxy port listens");
        let mut client = Client::over(socket.try_clone().expect("a descriptor"));
        client.send_raw(request.as_bytes()).expect("a request leaves");
        Self {
            client,
            socket,
            connects,
            answered: false,
        }
    }

    fn connect(trial: &Trial, host: &str) -> Self {
        let port = trial.origin.http.port();
        let head = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
        Self::ask(trial, true, &head)
    }

    fn get(trial: &Trial) -> Self {
        let (site, base) = (trial.origin.http, trial.origin.base());
        Self::ask(
            trial,
            false,
            &format!("GET {base}/resource/1 HTTP/1.1\r\nHost: {site}\r\n\r\n"),
        )
    }

    /// Its CONNECT has been answered.
    fn connected(&mut self) {
        assert_eq!(self.client.read_head().expect("an answer").status(), 200);
        self.answered = true;
    }

    /// It gets the site's answer from the honest member, or an error with a name, or its connection ends.
    fn ends_well(mut self) {
        if !self.connects {
            let answer = self.client.read_answer("GET").expect("an answer");
            let whole = answer.status() == 200 && answer.body == b"resources += 1;\n";
            assert!(whole || answer.head.field("Culvert-Error").is_some(), "{answer:?}");
            return;
        }
        if !self.answered {
            let head = self.client.read_head().expect("an answer");
            let named = head.field("Culvert-Error").is_some();
            assert!(head.status() == 200 || named, "{head:?}");
        }
        // A site that has it from the honest member waits for this end.
        let _ = self.socket.shutdown(Shutdown::Write);
        let mut connection = self.client.into_connection();
        let hangs = |e: &io::Error| matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        let end = connection.read_body(Framing::Close, &mut |_| Ok(()));
        assert!(!end.as_ref().is_err_and(hangs), "its connection stays: {end:?}");
    }
}

/// A link in a state, the stream that the state speaks of, and whose that is.
struct Reached {
    link: Link,
    stream: u64,
    /// What may be sent there.
    credit: u64,
    browser: Option<Browser>,
}

impl Reached {
    fn without_stream(link: Link) -> Self {
        Self {
            link,
            stream: 0,
            credit: 0,
            browser: None,
        }
    }

    /// A browser's request for a URL, which goes to the member with fewer streams.
    fn requested(mut link: Link, trial: &Trial) -> Self {
        let browser = Browser::get(trial);
        let (stream, open) = link.until_open(Kind::Http);
        Self {
            link,
            stream,
            credit: u64::from(open.credit),
            browser: Some(browser),
        }
    }

    /// A browser's CONNECT. Members take turns: of two the honest one gets the other.
    fn asked(mut link: Link, trial: &Trial) -> Self {
        const HOSTS: [&str; 2] = ["localhost", "127.0.0.1"];
        let [first, second] = HOSTS.map(|host| Browser::connect(trial, host));
        let (stream, open) = link.until_open(Kind::Tcp);
        let is_first = open.host == HOSTS[0];
        let (browser, mut other) = if is_first { (first, second) } else { (second, first) };
        other.connected();
        other.ends_well();
        Self {
            link,
            stream,
            credit: u64::from(open.credit),
            browser: Some(browser),
        }
    }

    /// The same, answered.
    fn opened(link: Link, trial: &Trial) -> Self {
        let mut reached = Self::asked(link, trial);
        let opened = Opened {
            family: 4,
            ..Opened::default()
        };
        reached.link.say_frame(&Frame::Opened(reached.stream, opened));
        reached.browser().connected();
        reached
    }

    fn browser(&mut self) -> &mut Browser {
        self.browser.as_mut().expect("a browser's stream")
    }

    fn until_fin(&mut self) {
        let stream = self.stream;
        self.link
            .until("FIN", |f| matches!(f, Frame::Fin(id, _) if *id == stream));
    }

    fn known(&self) -> Known {
        self.link.known(self.stream, self.credit)
    }
}

fn reset(stream: u64) -> Frame {
    Frame::Reset(stream, Code::SiteReset, Bytes::new())
}

fn reach(state: State, member: &mut Member, trial: &Trial) -> Reached {
    let link = match state {
        State::Silent | State::Greeting => return Reached::without_stream(member.dial()),
        State::Idle => return Reached::without_stream(member.up()),
        _ => {
            let mut link = member.up();
            link.goes_live();
            link
        }
    };
    match state {
        State::Refused => return refused(link),
        State::Asked => return Reached::asked(link, trial),
        State::Requested | State::BothFins => {
            let mut reached = Reached::requested(link, trial);
            reached.until_fin();
            if state == State::BothFins {
                reached.link.say_frame(&Frame::Fin(reached.stream, None));
            }
            return reached;
        }
        _ => {}
    }
    let mut reached = Reached::opened(link, trial);
    match state {
        State::FinSaid => reached.link.say_frame(&Frame::Fin(reached.stream, None)),
        State::FinHeard => {
            // No method begins so: what follows is the site's.
            reached.browser().client.send_raw(&[0; 4]).expect("a connection");
            reached
                .browser()
                .socket
                .shutdown(Shutdown::Write)
                .expect("a connection");
            reached.until_fin();
        }
        State::ResetSaid => reached.link.say_frame(&reset(reached.stream)),
        State::Draining => {
            reached.link.say_frame(&Frame::Ack(reached.link.received));
            reached.link.drains();
        }
        State::Resumed => {
            reached.link = member.resume(reached.link);
            reached.link.ping().expect("a session that goes on");
        }
        _ => {}
    }
    reached
}

fn refused(mut link: Link) -> Reached {
    const STREAM: u64 = 1;
    let relay = Open {
        kind: Kind::Relay,
        settings: 1,
        credit: 65_536,
        port: 0,
        host: Bytes::new(),
        shown: None,
    };
    link.say_frame(&Frame::Open(STREAM, relay));
    link.until("a refusal", |f| matches!(f, Frame::Reset(STREAM, ..)));
    Reached {
        stream: STREAM,
        ..Reached::without_stream(link)
    }
}

/// The link ends or goes on as expected, in time, and the browser whose request it carried hears of it.
fn judge(case: &Case, mut reached: Reached, cut: usize) {
    let known = reached.known();
    reached.link.say_case(case, &known, cut);
    let what = &case.what;
    let link = &mut reached.link;
    match case.expected {
        Expected::Unanswered => assert_eq!(link.rest(), (Vec::new(), false), "{what}"),
        Expected::Violation(reason) => link.ends_as(reason, what),
        Expected::GoesOn => {
            if case.state == State::Silent {
                link.until("HELLO", |f| matches!(f, Frame::Hello(_)));
            }
            assert_eq!(link.goes_on(what), Ok(()), "{what}");
        }
        Expected::MayEnd => {
            assert_ne!(link.goes_on(what), Err(false), "{what}: the link is cut");
        }
    }
    // A browser whose stream nothing has ended would wait for the site.
    if reached.browser.is_some() {
        link.say_frame(&reset(reached.stream));
    }
    if let Some(browser) = reached.browser {
        browser.ends_well();
    }
}

/// A link whose peer says half a HELLO.
fn half_a_hello(member: &mut Member) -> Link {
    let mut link = member.dial();
    link.say(&[link.greeting().slice(..50)]);
    link
}

/// The honest member's name, without its key.
fn stolen_name(member: &mut Member, trial: &Trial) {
    let honest = trial.cloud.tunnel(&trial.tunnel.id);
    let name = honest["culvert"]["server_name"].as_str().expect("a name");
    let mut link = member.dial_as(name);
    link.say(&[link.greeting()]);
    assert_eq!(link.rest(), (Vec::new(), false), "a stolen name");
}

/// A peer that dies within a HELLO, and within each frame that is right; how many.
fn deaths(member: &mut Member, trial: &Trial) -> usize {
    let mut dying = half_a_hello(member);
    dying.hang_up();
    assert_eq!(dying.rest(), (Vec::new(), false), "half a HELLO");
    let right = |c: &Case| c.state == State::Opened && c.expected == Expected::GoesOn;
    let right: Vec<Case> = cells(Side::Client).into_iter().filter(right).collect();
    for case in &right {
        let mut reached = reach(case.state, member, trial);
        let frame = (case.frames)(&reached.known()).remove(0);
        reached.link.dies_within(&frame, &case.what);
        // Its stream would wait for the session as long as in any outage: a fresh one ends it.
        let _fresh = member.up();
        reached.browser.expect("a browser").ends_well();
    }
    1 + right.len()
}

fn f7_a_hostile_peer_ends_its_link_and_nothing_else(driver: Driver) {
    beside_an_honest_one(driver, |member, trial| {
        // The endpoint gives it up after a time in which all the rest goes on.
        let mut silent = half_a_hello(member);
        stolen_name(member, trial);
        let step = if is_long() { 1 } else { STEP };
        let cells = cells(Side::Client).into_iter().step_by(step);
        let cases: Vec<Case> = cells.chain(values(Side::Client)).collect();
        let mut counts = BTreeMap::new();
        for (n, case) in cases.iter().enumerate() {
            let reached = reach(case.state, member, trial);
            judge(case, reached, n);
            *counts.entry(format!("{:?}", case.expected)).or_insert(0) += 1;
        }
        let deaths = deaths(member, trial);
        assert_eq!(silent.rest(), (Vec::new(), false), "half a HELLO, and then nothing");
        println!("{} cases: {counts:?}, deaths: {deaths}", cases.len() + deaths + 2);
    });
}

/// As many as a client may have open, so within every limit; only that they come in one piece is strange.
fn f7_all_streams_opened_at_once_end_nothing(driver: Driver) {
    beside_an_honest_one(driver, |member, trial| {
        let case = all_streams_at_once();
        let reached = reach(case.state, member, trial);
        judge(&case, reached, 0);
    });
}

/// What a hostile member of a pool does harms nothing of the honest one: bodies that are under way all the time, one
/// that began before, and the process that both share.
fn beside_an_honest_one(driver: Driver, attack: impl FnOnce(&mut Member, &Trial)) {
    let options = CloudOptions::new(driver);
    let trial = Trial::with(options, &["--shards", "1", "-i", "pool", "--tunnel-pool"]);
    let endpoint = trial.cloud.endpoint();
    let fds = open_fds(endpoint);
    let (config, site) = (trial.origin.site.client_config(), trial.origin.https);
    // Opaque: one stream each, which the honest member carries from the first byte to the last, whoever joins the pool.
    let browser = || {
        let through = tls::client_through(trial.tunnel.proxy, &config, "localhost", site.port());
        through.expect("TLS with the site").expect("a connection")
    };
    let exchanges = AtomicU64::new(0);
    let exchange = |client: &mut Client, i: u64, round: u64| {
        let seed = i * 1_000_000 + round;
        client.download("", seed, BODY_BYTES, "")?;
        client.upload("", seed, BODY_BYTES, round.is_multiple_of(2))?;
        exchanges.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let started = Instant::now();
    thread::scope(|scope| {
        let held = scope.spawn(|| {
            trial
                .tunnel
                .client()
                .download(&trial.origin.base(), 7, HELD_BYTES, "&held")
        });
        trial.origin.wait("the held body", |c| c.held == 1);
        // Opened by a panic of the attack too: the scope waits for that browser.
        let open = OpenGate(&trial.origin);
        trial.under_load_over(browser, CLIENTS, exchange, || {
            trial.origin.wait("the honest load", |c| c.path("/upload") >= CLIENTS);
            let mut member = Member::join(&trial.cloud, &trial.tunnel);
            attack(&mut member, &trial);
            leave(&trial, &member);
        });
        drop(open);
        held.join().expect("a browser").expect("the held body");
    });
    println!("{driver:?}: {:.1?}, honest exchanges: {exchanges:?}", started.elapsed());
    assert_eq!(trial.cloud.process.children(), [endpoint], "the endpoint lives");
    trial.tunnel.serves(&trial.origin);
    let since = Instant::now();
    while open_fds(endpoint) > fds + FDS_SLACK {
        let now = open_fds(endpoint);
        assert!(since.elapsed() < PATIENCE, "{now} descriptors, before: {fds}");
        fault_lasts(Duration::from_millis(50));
    }
    trial.end();
}

/// Opens the site's gate when it goes.
struct OpenGate<'a>(&'a Origin);

impl Drop for OpenGate<'_> {
    fn drop(&mut self) {
        self.0.open_gate();
    }
}

/// The hostile tunnel is deleted, and ends.
fn leave(trial: &Trial, member: &Member) {
    let path = format!("/{}/tunnels/{}", trial.cloud.user, member.id);
    let deleted = trial.cloud.rest("DELETE", &path);
    assert_eq!(deleted.status(), 200, "{}", deleted.text());
    trial.cloud.await_end(&member.id);
}
