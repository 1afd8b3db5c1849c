//! Faults of the path between `sc` and the cloud, by their number in the matrix of faults: each test names its row.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::both_drivers;
use tests::cloud::{CloudOptions, Driver, Tunnel, fault_lasts};
use tests::http::Client;
use tests::is_long;
use tests::process::PATIENCE;
use tests::relay::{Blow, Cut, Direction, Impairment, Rule, Stats, Strike, Which};
use tests::simulation::prng::Prng;
use tests::trial::{Cause, Trial};

both_drivers![
    f1_f2_f4_cut_twenty_times,
    f1_f2_f6_blows_anywhere,
    f1_f2_f6_every_byte_of_the_handshake,
    f3_a_dead_path_is_found_in_time,
    f3_black_holes,
    f4_one_way_is_dead,
    f5_slow_paths,
];

/// `SEED=` replays a run.
fn draws() -> Prng {
    let given = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").as_nanos() as u64
    });
    println!("SEED={seed}");
    Prng::new(seed)
}

/// Bodies under way at any time: half up and half down.
const BODIES: u64 = 50;
const BODY_BYTES: u64 = 300_000;

/// `uploads` counts those that have succeeded.
fn mixed(base: &str, uploads: &AtomicU64) -> impl Fn(&mut Client, u64, u64) -> io::Result<()> + Sync {
    move |client, i, round| {
        let seed = i * 1_000_000 + round;
        match i % 4 {
            0 => client.download(base, seed, BODY_BYTES, ""),
            1 => client.download(base, seed, BODY_BYTES, "&chunked"),
            n => {
                client.upload(base, seed, BODY_BYTES, n == 2)?;
                uploads.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

/// At least 50 bodies under way while the path is cut 20 times, by RST, by FIN, and by silence of one half.
fn f1_f2_f4_cut_twenty_times(driver: Driver) {
    const CUTS: u64 = 20;
    let trial = Trial::start(driver);
    let base = trial.origin.base();
    let uploads = AtomicU64::new(0);
    let mut draws = draws();
    trial.under_load(BODIES, mixed(&base, &uploads), || {
        let cut = |which: u64| match which {
            0 => trial.cloud.relay.cut(Which::Links, Cut::Reset),
            1 => trial.cloud.relay.cut(Which::Links, Cut::Fin),
            // The half of the way that is dead hides what the other half still brings.
            2 => trial.cloud.relay.stall(Which::Links, Direction::ToClient),
            _ => trial.cloud.relay.stall(Which::Links, Direction::ToCloud),
        };
        let mut links = trial.cloud.relay.stats().links;
        for n in 0..CUTS {
            await_traffic(&trial, 3_000_000 + draws.below(3_000_000));
            // The silent ones take seconds to be found: one in six.
            let which = if n % 6 == 5 { 2 + n / 6 % 2 } else { n % 2 };
            assert!(cut(which) >= 1, "a link is up");
            links = trial.cloud.relay.wait("a new connection", |s| s.links > links).links;
        }
    });
    each_came_once(&trial, uploads);
    trial.expect_cause(Cause::Cut);
    outlived(trial, CUTS);
}

/// The same bodies while the path swallows everything for up to 30 s; requests and POSTs that begin meanwhile succeed too.
fn f3_black_holes(driver: Driver) {
    const OUTAGES: [u64; 5] = [1, 3, 10, 25, 30];
    let trial = Trial::start(driver);
    let base = trial.origin.base();
    let uploads = AtomicU64::new(0);
    let posted = trial.under_load(BODIES, mixed(&base, &uploads), || {
        let mut posted = 0;
        // REST too, every other time.
        for (outage, which) in OUTAGES.into_iter().zip([Which::All, Which::Links].into_iter().cycle()) {
            trial.cloud.relay.set(which, Rule::BlackHole);
            let begun = Barrier::new(11);
            thread::scope(|inner| {
                for i in 0..10 {
                    let (begun, tunnel, base) = (&begun, &trial.tunnel, &base);
                    inner.spawn(move || {
                        begun.wait();
                        let key = format!("{outage}-{i}");
                        let target = format!("{base}/once?key={key}");
                        let answer = tunnel.client().request("POST", &target, &[], b"once").unwrap();
                        assert_eq!((answer.status(), answer.text().as_str()), (200, "1"), "{answer:?}");
                        tunnel.client().download(base, outage * 100 + i, 20_000, "").unwrap();
                    });
                    posted += 1;
                }
                begun.wait();
                fault_lasts(Duration::from_secs(outage));
                trial.cloud.relay.set(which, Rule::Pass);
            });
            // Every body gets on before the next outage, or its reader loses patience.
            await_traffic(&trial, 2 * BODIES * BODY_BYTES);
        }
        posted
    });
    assert_eq!(trial.origin.counters().posts.len(), posted);
    each_came_once(&trial, uploads);
    trial.expect_cause_at_sc(Cause::Silent);
    // One second and three are over before anybody has noticed.
    outlived(trial, OUTAGES.len() as u64 - 2);
}

/// What was lost was sent again, in sessions that went on.
fn outlived(trial: Trial, resumes: u64) {
    assert!(trial.wait_reported("frames_replayed", |n| n > 0) > 0);
    assert!(trial.wait_reported("resumes", |n| n >= resumes) >= resumes);
    trial.expect_cause(Cause::Silent);
    trial.end();
}

/// The site has met each upload once: the load has ended, so none is under way, and none has failed.
fn each_came_once(trial: &Trial, uploads: AtomicU64) {
    assert_eq!(trial.origin.counters().path("/upload"), uploads.into_inner());
}

/// A body down and one up; `uploads` counts those that have succeeded.
fn both_ways(base: &str, bytes: u64, uploads: &AtomicU64) -> impl Fn(&mut Client, u64, u64) -> io::Result<()> + Sync {
    move |client, i, round| {
        let seed = i * 1_000_000 + round;
        client.download(base, seed, bytes, "")?;
        client.upload(base, seed, bytes, true)?;
        uploads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Waits until so many bytes more have passed.
fn await_traffic(trial: &Trial, bytes: u64) {
    let passed = |s: &Stats| s.to_cloud + s.to_client;
    let mark = passed(&trial.cloud.relay.stats()) + bytes;
    trial.cloud.relay.wait("traffic", |s| passed(s) >= mark);
}

/// The connection is struck once at each byte of the handshake, HELLO and the first frames, in each direction: by RST, by
/// FIN, and by a flipped bit; one byte in 64 in the ordinary run. 16 links at a time, so that it ends.
fn f1_f2_f6_every_byte_of_the_handshake(driver: Driver) {
    const LINKS: usize = 16;
    const FIRST_FRAMES_BYTES: u64 = 150;
    let step = if is_long() { 1 } else { 64 };
    let mut trial = Trial::with(
        CloudOptions::new(driver),
        &["--shards", "1", "--tunnel-connections", "16", "-v"],
    );
    trial.cloud.await_links(LINKS);
    trial.watch_anew();
    let relay = &trial.cloud.relay;
    let mut progress = Progress::of(&trial.tunnel, LINKS);
    // What a fresh connection carries before it has anything to do, the handshake and HELLO among it, and a little of
    // what streams make it carry then.
    let bound = relay.least_carried(Which::Links).map(|n| n + FIRST_FRAMES_BYTES);
    assert!(bound.iter().all(|n| (700..4_500).contains(n)), "{bound:?}");
    let first = draws().below(step);
    let mut strikes = Vec::new();
    for how in [Blow::Reset, Blow::Fin, Blow::Flip] {
        for direction in Direction::BOTH {
            let bytes = (first..bound[direction as usize]).step_by(step as usize);
            strikes.extend(bytes.map(|at| Strike { direction, at, how }));
        }
    }
    println!("{} strikes", strikes.len());
    let base = trial.origin.base();
    let uploads = AtomicU64::new(0);
    // More clients than links: one that carries nothing but PINGs takes a minute to reach its last bytes.
    trial.under_load(2 * LINKS as u64, both_ways(&base, 50_000, &uploads), || {
        for round in strikes.chunks(LINKS) {
            let struck = relay.stats().struck + round.len() as u64;
            for (link, strike) in round.iter().enumerate() {
                // A flipped bit may end its connection only now, and the next one be on its way.
                relay.cut_and_strike(Which::Link(link as u16), Cut::Reset, *strike);
            }
            relay.wait("all strikes", |s| s.struck == struck);
            relay.wait("all links", |s| s.links_open == LINKS);
            // Each of them gets on: one that is always the last would be cut before it does, round after round, until its
            // session has seen no progress for longer than it may.
            let since = Instant::now();
            while !progress.is_everywhere() {
                assert!(since.elapsed() < PATIENCE, "a link stays behind");
                fault_lasts(Duration::from_millis(5));
            }
        }
    });
    each_came_once(&trial, uploads);
    trial.expect_cause(Cause::Cut);
    trial.expect_cause(Cause::Changed);
    trial.end();
}

/// Which links carry streams, by the log of `sc`.
struct Progress {
    log: File,
    text: String,
    carries: Vec<bool>,
}

impl Progress {
    fn of(tunnel: &Tunnel, links: usize) -> Self {
        Self {
            log: File::open(tunnel.folder.path().join("sc.log")).unwrap(),
            text: String::new(),
            carries: vec![false; links],
        }
    }

    /// Whether each link has got beyond its last cut.
    fn is_everywhere(&mut self) -> bool {
        self.log.read_to_string(&mut self.text).unwrap();
        let whole = self.text.rfind('\n').map_or(0, |end| end + 1);
        for line in self.text[..whole].lines() {
            let Some((_, line)) = line.split_once("link ") else {
                continue;
            };
            let (link, carries) = match line.split_once(' ') {
                Some((link, "carries streams")) => (link, true),
                Some((link, rest)) if rest.starts_with("is down") => (link, false),
                _ => continue,
            };
            self.carries[link.parse::<usize>().unwrap()] = carries;
        }
        self.text.drain(..whole);
        self.carries.iter().all(|carries| *carries)
    }
}

/// A path that is dead both ways: found within 4 s with streams open, within 18 s without.
fn f3_a_dead_path_is_found_in_time(driver: Driver) {
    let trial = Trial::start(driver);
    let found = |limit: u64| {
        let lines = trial.tunnel.log().matches("link 0 is down").count();
        let since = Instant::now();
        trial.cloud.relay.set(Which::Links, Rule::BlackHole);
        while trial.tunnel.log().matches("link 0 is down").count() == lines {
            // The clocks start a moment apart, and the log is written by another thread.
            assert!(
                since.elapsed() < Duration::from_secs(limit + 1),
                "not found in {limit} s"
            );
            fault_lasts(Duration::from_millis(20));
        }
        trial.cloud.relay.set(Which::Links, Rule::Pass);
        since.elapsed()
    };
    let base = trial.origin.base();
    thread::scope(|scope| {
        let (tunnel, base) = (&trial.tunnel, &base);
        scope.spawn(move || tunnel.client().download(base, 1, 100_000, "&held").unwrap());
        trial.origin.wait("the stream", |c| c.held == 1);
        println!("with a stream: {:?}", found(4));
        trial.origin.open_gate();
    });
    trial.tunnel.client().download(&base, 2, 1_000, "").unwrap();
    trial.wait_reported("streams", |n| n == 0);
    println!("without: {:?}", found(18));
    trial.tunnel.client().download(&base, 3, 1_000, "").unwrap();
    trial.expect_cause_at_sc(Cause::Silent);
    trial.end();
}

/// One way of the connection is dead for good, as when a NAT forgets the flow: bodies of both directions end exactly.
fn f4_one_way_is_dead(driver: Driver) {
    let trial = Trial::start(driver);
    let base = trial.origin.base();
    for (n, direction) in Direction::BOTH.into_iter().enumerate() {
        thread::scope(|scope| {
            let (tunnel, base) = (&trial.tunnel, &base);
            for i in 0..10 {
                let seed = n as u64 * 100 + i;
                scope.spawn(move || tunnel.client().download(base, seed, 3_000_000, "").unwrap());
                scope.spawn(move || tunnel.client().upload(base, seed, 3_000_000, i % 2 == 0).unwrap());
            }
            let before = trial.cloud.relay.stats();
            trial.cloud.relay.wait("traffic", |s| {
                s.to_cloud > before.to_cloud + 2_000_000 && s.to_client > before.to_client + 2_000_000
            });
            assert!(trial.cloud.relay.stall(Which::Links, direction) >= 1);
            trial.cloud.relay.wait("a new connection", |s| s.links > before.links);
        });
    }
    trial.expect_cause(Cause::Silent);
    trial.end();
}

/// Delays up to 600 ms, narrow paths, pieces down to one byte: exact, and nobody takes a slow path for a dead one.
fn f5_slow_paths(driver: Driver) {
    let trial = Trial::start(driver);
    let base = trial.origin.base();
    let links = trial.cloud.relay.stats().links;
    let path = |delay, bytes_per_second, piece_max| Impairment {
        delay: Duration::from_millis(delay),
        bytes_per_second,
        piece_max,
    };
    for (n, (impairment, length)) in [
        (path(20, None, usize::MAX), 3_000_000),
        (path(300, None, 1_400), 3_000_000),
        (path(100, Some(500_000), 1_400), 100_000),
        (path(0, None, 1), 20_000),
    ]
    .into_iter()
    .enumerate()
    {
        for direction in Direction::BOTH {
            trial.cloud.relay.impair(Which::Links, direction, impairment);
        }
        thread::scope(|scope| {
            let (tunnel, base) = (&trial.tunnel, &base);
            for i in 0..5 {
                let seed = n as u64 * 100 + i;
                scope.spawn(move || tunnel.client().download(base, seed, length, "").unwrap());
                scope.spawn(move || tunnel.client().upload(base, seed, length, i % 2 == 0).unwrap());
            }
        });
    }
    assert_eq!(trial.cloud.relay.stats().links, links, "a healthy link was given up");
    trial.end();
}

/// Each of many connections meets its blow at any byte: RST, FIN, or a bit that flips under TLS and ends it with an
/// alert. Nothing is lost, and nothing wrong is delivered.
fn f1_f2_f6_blows_anywhere(driver: Driver) {
    /// Of a kind in a direction.
    const EACH: usize = 4;
    /// A link whose connection has ended soon waits before it dials again: several share the blows.
    const LINKS: usize = 4;
    let mut trial = Trial::with(
        CloudOptions::new(driver),
        &["--shards", "1", "--tunnel-connections", "4"],
    );
    trial.cloud.await_links(LINKS);
    trial.watch_anew();
    let relay = &trial.cloud.relay;
    let base = trial.origin.base();
    let uploads = AtomicU64::new(0);
    let mut draws = draws();
    let mut strikes = Vec::new();
    for how in [Blow::Reset, Blow::Fin, Blow::Flip] {
        for direction in Direction::BOTH {
            for _ in 0..EACH {
                let at = 2_000 + draws.below(1_500_000);
                strikes.push(Strike { direction, at, how });
            }
        }
    }
    let blows = strikes.len() as u64;
    // One that came between the strikes and the cut would take a strike and be ended before it is struck.
    relay.wait("all links", |s| s.links_open == LINKS);
    relay.strike(Which::Links, strikes);
    trial.under_load(20, both_ways(&base, 200_000, &uploads), || {
        relay.cut(Which::Links, Cut::Reset);
        relay.wait("all blows", |s| s.struck == blows);
    });
    assert!(relay.stats().links >= blows);
    each_came_once(&trial, uploads);
    trial.expect_cause(Cause::Cut);
    trial.expect_cause(Cause::Changed);
    trial.end();
}
