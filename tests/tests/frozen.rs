//! Processes that do not run for a while (SIGSTOP, a suspended host): nothing is lost, nothing comes twice.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tests::both_drivers;
use tests::cloud::{Driver, fault_lasts};
use tests::process::Held;
use tests::trial::Trial;

both_drivers![f12_f13_what_is_frozen_goes_on];

const EACH: u64 = 5;
const BYTES: u64 = 4 << 20;

#[derive(Clone, Copy, Debug)]
enum Frozen {
    Endpoint,
    Client,
    Both,
    Cloud,
}

/// Four tunnels at the same time, since each waits for most of its time.
fn f12_f13_what_is_frozen_goes_on(driver: Driver) {
    let faults = [
        (Frozen::Endpoint, 10),
        (Frozen::Client, 10),
        (Frozen::Both, 6),
        (Frozen::Cloud, 10),
    ];
    thread::scope(|scope| {
        for (who, seconds) in faults {
            scope.spawn(move || freeze(driver, who, Duration::from_secs(seconds)));
        }
    });
}

fn freeze(driver: Driver, who: Frozen, time: Duration) {
    let trial = Trial::start(driver);
    let Trial {
        cloud, origin, tunnel, ..
    } = &trial;
    let endpoint = Held::of(cloud.endpoint()).unwrap();
    let signal = |signal| match who {
        Frozen::Endpoint => endpoint.signal(signal),
        Frozen::Client => tunnel.process.signal(signal),
        Frozen::Both => {
            endpoint.signal(signal);
            tunnel.process.signal(signal);
        }
        Frozen::Cloud => cloud.process.signal(signal),
    };
    let key = || cloud.tunnel(&tunnel.id)["culvert"]["fingerprint"].clone();
    let (before, base) = (key(), origin.base());
    let (half, rest) = (Barrier::new(EACH as usize + 1), Barrier::new(EACH as usize + 1));
    thread::scope(|scope| {
        let (base, half, rest) = (&base, &half, &rest);
        let mut bodies: Vec<_> = (0..EACH)
            .map(|seed| scope.spawn(move || tunnel.client().download(base, seed, BYTES, "&held")))
            .collect();
        bodies.extend((0..EACH).map(|seed| {
            let pause = || {
                half.wait();
                rest.wait();
            };
            scope.spawn(move || tunnel.client().upload_pausing(base, seed, BYTES, false, pause))
        }));
        origin.wait("the bodies", |c| c.held == EACH);
        half.wait();
        // They are on their way when the fault begins, others begin while it lasts.
        origin.open_gate();
        rest.wait();
        signal(Signal::STOP);
        let posts: Vec<_> = (0..EACH)
            .map(|n| {
                scope.spawn(move || {
                    tunnel
                        .client()
                        .request("POST", &format!("{base}/once?key={n}"), &[], b"")
                })
            })
            .collect();
        fault_lasts(time);
        signal(Signal::CONT);
        for body in bodies {
            body.join().unwrap().unwrap_or_else(|e| panic!("{who:?}: {e}"));
        }
        for post in posts {
            let answer = post.join().unwrap().unwrap_or_else(|e| panic!("{who:?}: {e}"));
            assert_eq!((answer.status(), answer.text()), (200, "1".to_owned()), "{who:?}");
        }
    });
    let posts = origin.counters().posts;
    assert!(
        posts.len() == EACH as usize && posts.values().all(|n| *n == 1),
        "{posts:?}"
    );
    assert_eq!(key(), before, "the endpoint was not replaced");
    tunnel.client().download(&base, 99, BYTES, "").unwrap();
    trial.end();
}
