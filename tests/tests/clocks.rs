//! The tunnel's own clocks, at a small scale by their options; with `CULVERT_LONG=1` as they are by default.

use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use tests::both_drivers;
use tests::cloud::{Cloud, CloudOptions, Driver, Tunnel, fault_lasts};
use tests::http::{Answer, Client};
use tests::is_long;
use tests::origin::Origin;
use tests::process::PATIENCE;
use tests::relay::{Cut, Rule, Which};
use tests::trial::{Cause, Trial};
use tests::watch::Watch;

both_drivers![f3_an_outage_beyond_all_clocks];

/// For a machine that does other things too.
const MARGIN: Duration = Duration::from_secs(4);
/// What `sc` gives streams that are left after its drain, and the cloud after DELETE.
const CUT_AFTER: Duration = Duration::from_secs(2);
const CLOUD_DRAIN: Duration = Duration::from_secs(5);
/// Between two looks at what tells of no change.
const PAUSE: Duration = Duration::from_millis(50);

/// Each clock's option with its length here.
struct Scale {
    cloud: &'static [&'static str],
    client: &'static [&'static str],
    resume: Duration,
    lost: Duration,
    drain: Duration,
    orphaned: Duration,
}

fn scale() -> Scale {
    let seconds = Duration::from_secs;
    if is_long() {
        return Scale {
            cloud: &[],
            client: &["--shards=2"],
            resume: seconds(45),
            lost: seconds(90),
            drain: seconds(300),
            orphaned: seconds(90),
        };
    }
    // In the order of the defaults: what is lost has no session any more.
    Scale {
        cloud: &[
            "--resume-window=3s",
            "--lost-timeout=4s",
            "--drain-timeout=2s",
            "--orphan-timeout=3s",
        ],
        client: &[
            "--shards=2",
            "--resume-window=3s",
            "--lost-timeout=4s",
            "--drain-timeout=2s",
        ],
        resume: seconds(3),
        lost: seconds(4),
        drain: seconds(2),
        orphaned: seconds(3),
    }
}

fn cloud(scale: &Scale, driver: Driver) -> Cloud {
    Cloud::with(CloudOptions {
        arguments: scale.cloud.iter().map(ToString::to_string).collect(),
        ..CloudOptions::new(driver)
    })
}

fn start(driver: Driver) -> (Scale, Cloud, Tunnel, Origin) {
    let scale = scale();
    let cloud = cloud(&scale, driver);
    let tunnel = cloud.start_tunnel_with(scale.client);
    (scale, cloud, tunnel, Origin::start())
}

fn in_time(begun: Instant, limit: Duration, what: &str) {
    let took = begun.elapsed();
    assert!(
        (limit..=limit + MARGIN).contains(&took),
        "{what}: {took:?} of {limit:?}"
    );
}

fn tunnel_down(answer: &Answer) {
    let name = answer.head.field("Culvert-Error");
    assert_eq!((answer.status(), name), (503, Some("tunnel-down")), "{}", answer.text());
}

/// An outage longer than the resume window ends what was open, and what waited is told; then all works again.
#[test]
fn the_resume_window() {
    let (scale, cloud, tunnel, origin) = start(Driver::Epoll);
    let trial = Trial::of(cloud, origin, tunnel);
    let Trial {
        cloud, origin, tunnel, ..
    } = &trial;
    let base = origin.base();
    thread::scope(|scope| {
        let base = &base;
        let mut held = tunnel.client();
        held.send("GET", &format!("{base}/bytes?length=100000&held"), &[], &[])
            .unwrap();
        let head = held.read_head().unwrap();
        let silent = scope.spawn(move || tunnel.client().get(&format!("{base}/bytes?silent")));
        origin.wait("both answers", |c| c.held == 2);
        cloud.relay.set(Which::Links, Rule::Refuse);
        let begun = Instant::now();
        cloud.relay.cut(Which::Links, Cut::Reset);
        let waits = scope.spawn(move || tunnel.client().get(&format!("{base}/echo-head")));
        let cut = held.read_body(&head, &mut |_| Ok(())).unwrap_err();
        assert_eq!(cut.kind(), ErrorKind::ConnectionReset);
        in_time(begun, scale.resume, "a body");
        tunnel_down(&silent.join().unwrap().unwrap());
        tunnel_down(&waits.join().unwrap().unwrap());
        in_time(begun, scale.resume, "what had not begun");
        let late = Instant::now();
        tunnel_down(&tunnel.client().get(&format!("{base}/echo-head")).unwrap());
        assert!(
            late.elapsed() < scale.resume / 2,
            "the window is over: {:?}",
            late.elapsed()
        );
    });
    assert_eq!(origin.counters().path("/echo-head"), 0);
    let dials = cloud.relay.stats().links;
    cloud.relay.set(Which::Links, Rule::Pass);
    cloud
        .relay
        .wait("a new link", |stats| stats.links > dials && stats.links_open > 0);
    let begun = Instant::now();
    while tunnel.client().get(&format!("{base}/echo-head")).unwrap().status() != 200 {
        assert!(begun.elapsed() < MARGIN, "the tunnel does not come back");
        fault_lasts(PAUSE);
    }
    trial.expect_cause(Cause::Cut);
    trial.end();
}

/// An outage that takes REST too and outlasts every clock: what was open is cut and told, the cloud reaps the tunnel, and
/// `sc` asks for another one as soon as it can. Nothing of the first stays with it: the runtimes of two shards have more
/// descriptors than a watch lets pass.
fn f3_an_outage_beyond_all_clocks(driver: Driver) {
    let (scale, cloud, tunnel, origin) = start(driver);
    let lasts = if is_long() {
        Duration::from_secs(120)
    } else {
        scale.lost + MARGIN * 2
    };
    let base = origin.base();
    let mut watch = Watch::default();
    watch.add("sc", tunnel.process.id());
    watch.add("the endpoint", cloud.endpoint());
    watch.add("sc-cloud", cloud.process.id());
    thread::scope(|scope| {
        let (tunnel, base) = (&tunnel, &base);
        let body = scope.spawn(move || tunnel.client().download(base, 1, 3_000_000, "&held"));
        let silent = scope.spawn(move || tunnel.client().get(&format!("{base}/bytes?silent")));
        origin.wait("both answers", |c| c.held == 2);
        cloud.relay.set(Which::All, Rule::BlackHole);
        let begun = Instant::now();
        assert!(body.join().unwrap().is_err());
        tunnel_down(&silent.join().unwrap().unwrap());
        fault_lasts(lasts.saturating_sub(begun.elapsed()));
        cloud.relay.set(Which::All, Rule::Pass);
    });
    let proxy = cloud.renewed(&tunnel);
    Client::dial(proxy).unwrap().download(&base, 2, 100_000, "").unwrap();
    cloud.await_end(&tunnel.id);
    assert_eq!(cloud.tunnel(&tunnel.id)["shutdown_reason"], "lost");
    let begun = Instant::now();
    while cloud.process.children().len() > 1 {
        assert!(begun.elapsed() < PATIENCE, "the endpoint of a lost tunnel stays");
        fault_lasts(PAUSE);
    }
    origin.open_gate();
    origin.close_connections();
    watch.replace("the endpoint", cloud.endpoint());
    watch.end();
    tunnel.stop();
}

/// A tunnel whose `sc` is gone is reaped, and so is its endpoint.
#[test]
fn f13_reaping() {
    let scale = scale();
    let cloud = cloud(&scale, Driver::Epoll);
    let mut watch = Watch::default();
    watch.add("sc-cloud", cloud.process.id());
    let tunnel = cloud.start_tunnel_with(scale.client);
    let begun = Instant::now();
    tunnel.process.signal(Signal::KILL);
    let path = format!("/{}/tunnels/{}", cloud.user, tunnel.id);
    let end = loop {
        let object = cloud.rest("GET", &path).json();
        if object["status"] == "terminated" {
            break object;
        }
        assert!(begun.elapsed() < scale.lost + MARGIN, "{object}");
        fault_lasts(PAUSE);
    };
    in_time(begun, scale.lost, "reaping");
    assert_eq!(end["shutdown_reason"], "lost");
    assert!(cloud.process.children().is_empty());
    watch.end();
}

/// `sc` waits for an open stream as long as it says, and cuts it then.
#[test]
fn draining() {
    let (scale, _cloud, mut tunnel, origin) = start(Driver::Epoll);
    let (proxy, base) = (tunnel.proxy, origin.base());
    let download = thread::spawn(move || Client::dial(proxy)?.download(&base, 1, 3_000_000, "&held"));
    origin.wait("the body", |c| c.held == 1);
    let begun = Instant::now();
    tunnel.process.signal(Signal::TERM);
    let said = format!("Will wait for up to {}s for jobs", scale.drain.as_secs());
    tunnel
        .process
        .line("the drain", |line| line.starts_with(&said).then_some(()));
    assert_eq!(tunnel.process.exit_code(scale.drain + PATIENCE), 0);
    let took = begun.elapsed();
    let most = scale.drain + CUT_AFTER + CLOUD_DRAIN + MARGIN;
    assert!((scale.drain..most).contains(&took), "{took:?}");
    assert!(download.join().unwrap().is_err());
}

/// `sc-cloud serve` is gone: what is open goes on at its endpoint for a while, and `sc` asks for a new tunnel.
#[test]
fn orphans() {
    let (scale, mut cloud, tunnel, origin) = start(Driver::Epoll);
    let (proxy, base) = (tunnel.proxy, origin.base());
    let download = thread::spawn(move || Client::dial(proxy)?.download(&base, 1, 3_000_000, "&held"));
    origin.wait("the body", |c| c.held == 1);
    let endpoint = cloud.endpoint();
    let endpoint = pidfd_open(Pid::from_raw(endpoint as i32).unwrap(), PidfdFlags::empty()).unwrap();
    let begun = Instant::now();
    cloud.process.signal(Signal::KILL);
    cloud.process.end(PATIENCE);
    let limit = Timespec::try_from(scale.orphaned + MARGIN).unwrap();
    let ended = poll(&mut [PollFd::new(&endpoint, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "the endpoint stays");
    in_time(begun, scale.orphaned, "an orphan");
    assert!(download.join().unwrap().is_err());
    let log = tunnel.folder.path().join("sc.log");
    let asks = |text: &str| text.contains("the tunnel is lost: no link and no REST for");
    while !fs::read_to_string(&log).is_ok_and(|text| asks(&text)) {
        let most = scale.orphaned + scale.lost + MARGIN * 4;
        assert!(begun.elapsed() < most, "{}", tunnel.log());
        fault_lasts(PAUSE);
    }
}
