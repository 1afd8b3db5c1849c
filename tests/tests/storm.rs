//! Row 25 of the matrix of faults: all links of many tunnels (1,024 in the long form) lose their connections at once and
//! come back, not all at one moment.

use std::thread;
use std::time::{Duration, Instant};

use tests::cloud::{Cloud, Driver, Tunnel, fault_lasts};
use tests::is_long;
use tests::origin::Origin;
use tests::relay::{Cut, Rule, Which};
use tests::trial::Cause;
use tests::watch::Watch;

/// The most that the cloud takes of one tunnel.
const LINKS: usize = 16;
/// Nobody can dial for this long.
const OUTAGE: Duration = Duration::from_secs(3);
/// The longest back-off, twice, and the handshakes of all on a busy machine.
const BACK_WITHIN: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);

#[test]
fn f25_all_come_back() {
    let (cloud, origin) = (Cloud::start(Driver::Epoll), Origin::start());
    let count = if is_long() { 64 } else { 16 };
    let names: Vec<_> = (0..count).map(|i| format!("storm-{i}")).collect();
    let links = LINKS.to_string();
    let tunnels: Vec<_> = names
        .iter()
        .map(|name| cloud.start_tunnel_with(&["-i", name, "--shards", "1", "--tunnel-connections", &links]))
        .collect();
    let all = count * LINKS;
    cloud.relay.wait("all links", |s| s.links_open == all);
    cloud.await_links(all);
    let mut watch = Watch::default();
    watch.add("sc-cloud", cloud.process.id());
    for endpoint in cloud.process.children() {
        watch.add(&format!("endpoint {endpoint}"), endpoint);
    }
    for (name, tunnel) in names.iter().zip(&tunnels) {
        watch.add(name, tunnel.process.id());
    }
    let base = origin.base();
    thread::scope(|scope| {
        for (i, tunnel) in tunnels.iter().enumerate() {
            let base = &base;
            scope.spawn(move || tunnel.client().download(base, i as u64, 1_000_000, "&held").unwrap());
        }
        origin.wait("all bodies", |c| c.held == count as u64);
        // As if they had lived long: a connection that was short is not redialled at once.
        fault_lasts(Duration::from_secs(2));
        cloud.relay.set(Which::Links, Rule::Refuse);
        assert_eq!(cloud.relay.cut(Which::Links, Cut::Reset), all);
        fault_lasts(OUTAGE);
        cloud.relay.set(Which::Links, Rule::Pass);
        let since = Instant::now();
        let (mut dials, mut busiest) = (cloud.relay.stats().links, 0);
        while cloud.relay.stats().links_open < all {
            assert!(
                since.elapsed() < BACK_WITHIN,
                "{:?} after {BACK_WITHIN:?}",
                cloud.relay.stats()
            );
            fault_lasts(LOOK);
            let now = cloud.relay.stats().links;
            busiest = busiest.max(now - dials);
            dials = now;
        }
        println!(
            "all back after {:?}, at most {busiest} dials in {LOOK:?}",
            since.elapsed()
        );
        assert!(busiest < all as u64 / 2, "{busiest} of {all} dials at once");
        origin.open_gate();
    });
    for (i, tunnel) in tunnels.iter().enumerate() {
        tunnel.client().download(&base, 100 + i as u64, 10_000, "").unwrap();
        assert!(Cause::Cut.is_told_by(&tunnel.log()), "{}", tunnel.log());
    }
    origin.close_connections();
    watch.end();
    tunnels.into_iter().for_each(Tunnel::stop);
}
