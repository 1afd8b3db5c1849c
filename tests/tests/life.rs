//! The endpoint process is killed: what was in flight is cut, what begins afterwards waits and succeeds. `sc` is killed:
//! its identifier is free at once.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::both_drivers;
use tests::cloud::{Cloud, Driver};
use tests::http::{Answer, Client};
use tests::origin::Origin;
use tests::process::PATIENCE;
use tests::trial::{Cause, Trial};

both_drivers![f12_what_begins_after_a_kill_succeeds];

const CLIENTS: u64 = 20;
/// What is promised; the measured time is printed.
const RELAUNCH_MAX: Duration = Duration::from_secs(1);

/// One request on a connection of its own.
struct Sample {
    /// Of a POST.
    key: Option<String>,
    begun: Instant,
    ended: Instant,
    answer: io::Result<Answer>,
}

fn f12_what_begins_after_a_kill_succeeds(driver: Driver) {
    let mut trial = Trial::start(driver);
    let Trial {
        cloud, origin, tunnel, ..
    } = &trial;
    let (proxy, base) = (tunnel.proxy, origin.base());
    let endpoint = cloud.endpoint();
    let key = || cloud.tunnel(&tunnel.id)["culvert"]["fingerprint"].clone();
    let before = key();
    let stop = AtomicBool::new(false);
    let (mut dead, mut relaunched) = (Instant::now(), Duration::ZERO);
    let samples: Vec<Sample> = thread::scope(|scope| {
        let held: Vec<_> = (0..10_u64)
            .map(|seed| {
                let base = &base;
                let query = ["&held", "&held&chunked", "&held&close"][seed as usize % 3];
                scope.spawn(move || Client::dial(proxy)?.download(base, seed, 100_000, query))
            })
            .collect();
        origin.wait("the bodies", |c| c.held == 10);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (base, stop) = (&base, &stop);
                scope.spawn(move || {
                    let mut samples: Vec<Sample> = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let key = (client % 2 == 1).then(|| format!("{client}-{}", samples.len()));
                        let begun = Instant::now();
                        let answer = Client::dial(proxy).and_then(|mut c| match &key {
                            Some(key) => c.request("POST", &format!("{base}/once?key={key}"), &[], b"once"),
                            None => c.get(&format!("{base}/resource/{client}")),
                        });
                        samples.push(Sample {
                            key,
                            begun,
                            ended: Instant::now(),
                            answer,
                        });
                    }
                    samples
                })
            })
            .collect();
        origin.wait("load", |c| c.requests > 500);
        let killed = Instant::now();
        kill_process(Pid::from_raw(endpoint.cast_signed()).unwrap(), Signal::KILL).unwrap();
        while lives(endpoint) {
            thread::yield_now();
        }
        dead = Instant::now();
        while key() == before {
            assert!(killed.elapsed() < PATIENCE, "not relaunched");
        }
        relaunched = killed.elapsed();
        let served = origin.counters().requests;
        origin.wait("load afterwards", |c| c.requests > served + 500);
        stop.store(true, Ordering::Relaxed);
        for download in held {
            let error = download
                .join()
                .unwrap()
                .expect_err("the endpoint that carried it is gone");
            // That is what a body delimited by close looks like whose connection ended as if it were whole.
            assert_ne!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let ok = |s: &&Sample| s.answer.as_ref().is_ok_and(|a| a.status() == 200);
    let later: Vec<_> = samples.iter().filter(|s| s.begun > dead).collect();
    let lost = samples.iter().filter(|s| !ok(s)).count();
    let longest = later.iter().map(|s| s.ended - s.begun).max().unwrap();
    println!(
        "{driver:?}: relaunched in {relaunched:?}; {lost} of {} lost, the longest later wait {longest:?}",
        samples.len()
    );
    for sample in &later {
        assert!(
            ok(sample),
            "{:?} after the kill: {:?}",
            sample.begun - dead,
            sample.answer
        );
    }
    for sample in samples.iter().filter(|s| !ok(s)) {
        assert!(sample.ended < dead + RELAUNCH_MAX, "a cut shows at once");
    }
    let posts = origin.counters().posts;
    for key in samples.iter().filter(ok).filter_map(|s| s.key.as_ref()) {
        assert_eq!(posts.get(key), Some(&1), "{key}");
    }
    assert!(relaunched <= RELAUNCH_MAX, "{relaunched:?}");
    let after = cloud.tunnel(&tunnel.id);
    assert_eq!(after["culvert"]["proxy"], proxy.to_string());
    trial.expect_cause(Cause::Cut);
    trial.endpoint_replaced();
    trial.end();
}

#[test]
fn f13_the_identifier_of_a_killed_sc_is_free_at_once() {
    let (cloud, origin) = (Cloud::start(Driver::Epoll), Origin::start());
    let start = || cloud.start_tunnel_with(&["--shards", "1", "-i", "same"]);
    let mut first = start();
    first.process.signal(Signal::KILL);
    first.process.end(PATIENCE);
    let second = start();
    let objects = cloud.rest("GET", &format!("/{}/tunnels?full=1", cloud.user)).json();
    let named: Vec<_> = objects
        .as_array()
        .unwrap()
        .iter()
        .filter(|t| t["status"] != "halting")
        .collect();
    assert_eq!(named.len(), 1, "{objects}");
    assert_eq!(named[0]["id"], second.id.as_str());
    cloud.await_end(&first.id);
    assert_eq!(cloud.tunnel(&first.id)["shutdown_reason"], "replaced");
    assert_eq!(cloud.process.children().len(), 1, "the endpoint of the first stays");
    let trial = Trial::of(cloud, origin, second);
    trial
        .tunnel
        .client()
        .download(&trial.origin.base(), 1, 100_000, "")
        .unwrap();
    trial.end();
}

/// False once the process holds nothing any more: its last thread is a zombie, or nothing is there.
fn lives(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else {
        return false;
    };
    // Behind the name, which may hold anything: the state.
    threads > 1 || stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
