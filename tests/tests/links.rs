//! Two shards and two links at both ends; one link is cut for good. Its streams end by name, the others go on.

use std::sync::mpsc;
use std::thread;

use tests::both_drivers;
use tests::cloud::{Cloud, CloudOptions, Driver};
use tests::http::Answer;
use tests::origin::Origin;
use tests::process::PATIENCE;
use tests::relay::{Cut, Rule, Which};

both_drivers![one_link_lost_for_good];

const STREAMS: u64 = 32;

fn one_link_lost_for_good(driver: Driver) {
    let cloud = Cloud::with(CloudOptions {
        endpoint_shards: 2,
        ..CloudOptions::new(driver)
    });
    let origin = Origin::start();
    let tunnel = cloud.start_tunnel_with(&["--shards", "2", "--tunnel-connections", "2"]);
    // One link is enough to be up: before streams are spread, both must carry some.
    let idle = |n: &u16| cloud.relay.carried(Which::Link(*n)) < 200_000;
    for i in 0.. {
        let Some(n) = [0, 1].into_iter().find(idle) else { break };
        assert!(i < 2_000, "link {n} carries nothing");
        tunnel.client().download(&origin.base(), i, 100_000, "").unwrap();
    }
    assert_eq!(cloud.relay.stats().links_open, 2);
    let mut answers: Vec<(u64, Answer)> = Vec::new();
    let base = origin.base();
    thread::scope(|scope| {
        let (tunnel, base) = (&tunnel, &base);
        let (sender, ended) = mpsc::channel();
        for i in 0..STREAMS {
            let (target, sender) = (format!("{base}/bytes?seed={i}&length=100000&silent"), sender.clone());
            scope.spawn(move || {
                sender
                    .send((i, tunnel.client().get(&target).unwrap()))
                    .expect("all are received")
            });
        }
        drop(sender);
        origin.wait("all requests", |c| c.held == STREAMS);
        cloud.relay.set(Which::Link(1), Rule::Refuse);
        assert_eq!(cloud.relay.cut(Which::Link(1), Cut::Reset), 1);
        // New work goes to the link that lives, while the other one's streams still wait for it.
        for i in 0..STREAMS {
            tunnel.client().download(base, 500 + i, 50_000, "").unwrap();
        }
        // The streams of the lost link end by themselves; only then the site answers the rest.
        answers.push(
            ended
                .recv_timeout(PATIENCE)
                .expect("a stream of the lost link ends within its window"),
        );
        origin.open_gate();
        answers.extend(ended);
    });
    let (lost, alive): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, answer)| answer.status() != 200);
    assert!(
        !lost.is_empty() && !alive.is_empty(),
        "{} lost, {} alive",
        lost.len(),
        alive.len()
    );
    for (_, answer) in &lost {
        assert_eq!(
            (answer.status(), answer.head.field("culvert-error")),
            (503, Some("tunnel-down")),
            "{answer:?}"
        );
    }
    for (i, answer) in &alive {
        assert!(answer.body == tests::body::bytes(*i, 100_000), "body {i} differs");
    }
    tunnel.client().download(&origin.base(), 7, 1_000_000, "").unwrap();
    tunnel.stop();
}
