//! Row 5 of the matrix of faults, on packets: the path between `sc` and the cloud loses some of them, as a firewall in two
//! network namespaces makes it. What a relay can do to a path stands with the other faults.

use std::time::{Duration, Instant};

use tests::both_drivers;
use tests::cloud::{Cloud, CloudOptions, Driver, fault_lasts};
use tests::is_long;
use tests::namespace::{Inner, WORLD, in_world};
use tests::origin::Origin;
use tests::process::Process;
use tests::relay::{Direction, Impairment, Which};
use tests::trial::Trial;

both_drivers![f5_lost_packets];

const CLIENTS: u64 = 20;
const BODY_BYTES: u64 = 30_000;

/// How bad a path is.
struct Path {
    lost_per_mille: u32,
    /// Of each direction.
    delay: Duration,
    /// Healthy links that may be given up; what is more is only told.
    redials_max: Option<u64>,
}

fn paths() -> Vec<Path> {
    let path = |lost_per_mille, delay, redials_max| Path {
        lost_per_mille,
        delay: Duration::from_millis(delay),
        redials_max,
    };
    vec![
        path(1, 0, Some(1)),
        path(10, 0, Some(1)),
        path(50, 0, Some(1)),
        path(50, 150, Some(1)),
        path(200, 0, None),
    ]
}

/// No loss costs an exchange, and up to 5 % at most one link a minute is taken for dead.
fn f5_lost_packets(driver: Driver) {
    let module = driver.name();
    if !in_world(&format!("{module}::f5_lost_packets")) {
        return;
    }
    let lasts = Duration::from_secs(if is_long() { 60 } else { 5 });
    let inner = Inner::enclose();
    inner.split_packets();
    let origin = inner.within(Origin::start);
    let cloud = Cloud::with(CloudOptions {
        public: WORLD,
        ..CloudOptions::new(driver)
    });
    let folder = tempfile::tempdir().unwrap();
    let mut sc = cloud.sc(&folder.path().join("sc.log"));
    sc.args(["--shards", "1", "--pidfile"])
        .arg(folder.path().join("sc.pid"));
    let tunnel = cloud.adopt(Process::start(&mut inner.enter(&sc)), folder);
    let trial = Trial::of(cloud, origin, tunnel);
    let base = trial.origin.base();
    for (n, path) in paths().iter().enumerate() {
        inner.lose(path.lost_per_mille);
        for direction in Direction::BOTH {
            let delay = path.delay;
            let impairment = Impairment {
                delay,
                ..Impairment::default()
            };
            trial.cloud.relay.impair(Which::Links, direction, impairment);
        }
        let (before, since) = (trial.cloud.relay.stats(), Instant::now());
        let first = n as u64 * 1_000_000_000;
        let exchange = |client: &mut tests::http::Client, i: u64, round: u64| {
            let seed = first + i * 1_000_000 + round;
            client.download(&base, seed, BODY_BYTES, "")?;
            client.upload(&base, seed, BODY_BYTES, round.is_multiple_of(2))
        };
        trial.under_load(CLIENTS, exchange, || fault_lasts(lasts));
        let (after, took) = (trial.cloud.relay.stats(), since.elapsed());
        let redials = after.links - before.links;
        println!(
            "{driver:?}: {} of 1,000 packets lost, {:?} of delay: {} MB in {took:?}, {redials} redials",
            path.lost_per_mille,
            path.delay,
            (after.to_cloud + after.to_client - before.to_cloud - before.to_client) / 1_000_000
        );
        assert!(
            path.redials_max.is_none_or(|most| redials <= most),
            "healthy links were given up: {redials}\n{}",
            trial.tunnel.log()
        );
    }
    inner.lose(0);
    trial.end();
}
