//! The tunnel's TCP is gone for 10 s with 50 bodies in flight; 100 requests and 10 POSTs begin meanwhile. All succeed,
//! each POST once.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use tests::both_drivers;
use tests::cloud::{Driver, fault_lasts};
use tests::relay::{Cut, Rule, Which};
use tests::trial::{Cause, Trial};

both_drivers![connections_cut_and_refused, black_hole, cut_again_and_again];

const BODIES: u64 = 50;
const REQUESTS: u64 = 100;
const POSTS: u64 = 10;
const OUTAGE: Duration = Duration::from_secs(10);

fn connections_cut_and_refused(driver: Driver) {
    outage(driver, Rule::Refuse);
}

fn black_hole(driver: Driver) {
    outage(driver, Rule::BlackHole);
}

fn outage(driver: Driver, rule: Rule) {
    let trial = Trial::start(driver);
    let Trial {
        cloud, origin, tunnel, ..
    } = &trial;
    let dials = cloud.relay.stats().links;
    let begun = Barrier::new((REQUESTS + POSTS) as usize + 1);
    let base = origin.base();
    thread::scope(|scope| {
        let (base, begun) = (&base, &begun);
        for i in 0..BODIES {
            let query = if i % 2 == 0 { "&held" } else { "&held&chunked" };
            scope.spawn(move || tunnel.client().download(base, i, 1_000_000 + i, query).unwrap());
        }
        origin.wait("the bodies", |c| c.held == BODIES);
        cloud.relay.set(Which::Links, rule);
        if rule == Rule::Refuse {
            assert!(cloud.relay.cut(Which::Links, Cut::Reset) > 0);
        }
        // The second halves of the bodies, and all else, meet a path that is dead.
        origin.open_gate();
        for i in 0..REQUESTS {
            scope.spawn(move || {
                begun.wait();
                tunnel.client().download(base, 1_000 + i, 20_000, "").unwrap();
            });
        }
        for i in 0..POSTS {
            scope.spawn(move || {
                begun.wait();
                let answer = tunnel
                    .client()
                    .request("POST", &format!("{base}/once?key={i}"), &[], b"once")
                    .unwrap();
                assert_eq!((answer.status(), answer.text().as_str()), (200, "1"), "{answer:?}");
            });
        }
        begun.wait();
        fault_lasts(OUTAGE);
        cloud.relay.set(Which::Links, Rule::Pass);
    });
    let counters = origin.counters();
    assert_eq!(counters.requests, BODIES + REQUESTS + POSTS);
    assert!(
        counters.posts.len() == POSTS as usize && counters.posts.values().all(|&n| n == 1),
        "{:?}",
        counters.posts
    );
    assert!(
        cloud.relay.stats().links > dials,
        "the link was never dialled again: there was no outage"
    );
    trial.expect_cause_at_sc(match rule {
        Rule::BlackHole => Cause::Silent,
        _ => Cause::Cut,
    });
    trial.end();
}

/// Cuts in the middle of whatever is under way, by RST and by FIN in turn; nothing is lost and nothing is doubled.
fn cut_again_and_again(driver: Driver) {
    const LENGTH: u64 = 3_000_000;
    const CUTS: u64 = 6;
    let trial = Trial::start(driver);
    let Trial {
        cloud, origin, tunnel, ..
    } = &trial;
    let base = origin.base();
    let carried = || cloud.relay.stats().to_cloud + cloud.relay.stats().to_client;
    thread::scope(|scope| {
        let base = &base;
        for i in 0..10 {
            scope.spawn(move || {
                let mut client = tunnel.client();
                client
                    .download(base, i, LENGTH, if i % 2 == 0 { "" } else { "&chunked" })
                    .unwrap();
                client.upload(base, 100 + i, LENGTH, i % 2 == 0).unwrap();
            });
        }
        let start = carried();
        for cut in 1..=CUTS {
            // Of the 60 MB that are to be carried, at least; what is sent anew after a cut comes on top.
            let mark = start + cut * 8_000_000 + cut * 1_237;
            cloud
                .relay
                .wait("traffic", |stats| stats.to_cloud + stats.to_client >= mark);
            cloud
                .relay
                .cut(Which::Links, if cut % 2 == 0 { Cut::Reset } else { Cut::Fin });
        }
    });
    assert_eq!(origin.counters().requests, 20);
    assert!(cloud.relay.stats().links > 1, "no cut was ever felt");
    trial.expect_cause(Cause::Cut);
    trial.end();
}
