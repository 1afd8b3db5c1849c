//! Tunnels of one pool: two `sc` behind one proxy port and one endpoint process. What one of them does not answer any
//! more the other does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tests::both_drivers;
use tests::bumping::{World, another_tunnel};
use tests::certificate::Company;
use tests::cloud::{Cloud, CloudOptions, Driver, Tunnel};
use tests::http::Client;
use tests::origin::STORED;
use tests::process::{PATIENCE, Process};
use tests::trial::Raise;

both_drivers![two_share_the_load_and_the_endpoint, a_killed_one_loses_no_get];

const POOL: [&str; 5] = ["--shards", "1", "-i", "pool", "--tunnel-pool"];

/// Of this company, with its first tunnel.
fn pool(driver: Driver) -> World {
    World::of(Company::new(), CloudOptions::new(driver), &POOL)
}

fn requests(cloud: &Cloud, tunnel: &Tunnel) -> u64 {
    cloud.tunnel(&tunnel.id)["culvert"]["requests"].as_u64().unwrap()
}

fn two_share_the_load_and_the_endpoint(driver: Driver) {
    const REQUESTS: u64 = 40;
    const IN_TLS: u64 = 5;
    let world = pool(driver);
    let (origin, mut second) = (world.origin(), another_tunnel(&world.cloud, &POOL));
    let (cloud, first) = (&world.cloud, &world.tunnel);
    let endpoint = cloud.endpoint();
    assert_eq!(first.proxy, second.proxy);
    assert_ne!(first.id, second.id);
    let key = |t: &Tunnel| cloud.tunnel(&t.id)["culvert"]["fingerprint"].clone();
    assert_eq!(key(first), key(&second));
    let counts = || [first, &second].map(|t| requests(cloud, t));
    // One after the other: members of equal load take turns.
    let mut client = first.client();
    for seed in 0..REQUESTS {
        client.download(&origin.base(), seed, 1_000, "").unwrap();
    }
    assert_eq!(counts(), [REQUESTS / 2; 2]);
    // In TLS each connection is the one's that has looked at the site for it.
    let mut in_tls = [(); 2].map(|()| world.browser(&origin).unwrap());
    for (client, sum) in in_tls.iter_mut().zip([IN_TLS, 2 * IN_TLS]) {
        for seed in 0..IN_TLS {
            client.download("", seed, 1_000, "").unwrap();
        }
        let own = counts().map(|count| count - REQUESTS / 2);
        assert_eq!(own.iter().sum::<u64>(), sum);
        assert!(own.iter().all(|own| own % IN_TLS == 0), "{own:?}");
    }
    assert_eq!(counts(), [REQUESTS / 2 + IN_TLS; 2]);
    // Whoever has fetched it, it is for all browsers.
    for client in &mut in_tls {
        assert_eq!(client.get(STORED).unwrap().status(), 200);
    }
    assert_eq!(origin.counters().path("/bytes/stored"), 1);
    let before = requests(cloud, first);

    let deleted = cloud.rest("DELETE", &format!("/{}/tunnels/{}", cloud.user, second.id));
    assert_eq!(deleted.status(), 200, "{}", deleted.text());
    assert_eq!(second.process.exit_code(PATIENCE), 6, "{}", second.log());
    cloud.await_end(&second.id);
    assert_eq!(cloud.process.children(), [endpoint], "it serves the first");
    for seed in 0..REQUESTS {
        client.download(&origin.base(), seed, 1_000, "").unwrap();
    }
    // Also whose TLS was the other one's.
    for client in &mut in_tls {
        client.download("", 1, 1_000, "").unwrap();
        assert_eq!(client.get(STORED).unwrap().status(), 200);
    }
    assert_eq!(origin.counters().path("/bytes/stored"), 1);
    assert_eq!(requests(cloud, first), before + REQUESTS + 2);
    drop((client, in_tls));
    let World {
        cloud, tunnel: first, ..
    } = world;
    let (id, proxy) = (first.id.clone(), first.proxy);
    first.stop();
    cloud.await_end(&id);
    assert_eq!(cloud.process.children(), [0u32; 0], "it ended with the last tunnel");
    assert!(Client::dial(proxy).is_err());
}

fn a_killed_one_loses_no_get(driver: Driver) {
    const CLIENTS: u64 = 16;
    let world = pool(driver);
    let (origin, mut second) = (world.origin(), another_tunnel(&world.cloud, &POOL));
    let (cloud, first) = (&world.cloud, &world.tunnel);
    let endpoints = cloud.process.children();
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    // Every other one in TLS that ends at the endpoint.
    let (http, https) = (origin.base(), String::new());
    let open = |number: u64| match number % 2 {
        0 => (first.client(), &http),
        _ => (world.browser(&origin).unwrap(), &https),
    };
    let reached = |what: &str, mark: u64| {
        let started = std::time::Instant::now();
        while done.load(Ordering::Relaxed) < mark {
            assert!(started.elapsed() < PATIENCE, "no {what}: {done:?}");
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        let _stop_at_last = Raise(&stop);
        // They have been asked for when their member dies, and are not answered before.
        let silent: Vec<_> = (0..8)
            .map(|seed| {
                let open = &open;
                scope.spawn(move || {
                    let (mut client, base) = open(seed);
                    client.download(base, seed, 500, "&silent")
                })
            })
            .collect();
        origin.wait("the silent ones", |c| c.held == 8);
        for seed in 0..CLIENTS {
            let (open, done, stop) = (&open, &done, &stop);
            scope.spawn(move || {
                let (mut client, base) = open(seed);
                while !stop.load(Ordering::Relaxed) {
                    // Head and body are one write of the site: a kill finds the answer begun or not, but not between them.
                    let answer = client.get(&format!("{base}/resource/{seed}")).unwrap();
                    assert_eq!(answer.status(), 200, "{answer:?}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        reached("load", 500);
        second.process.signal(Signal::KILL);
        second.process.end(PATIENCE);
        let before = done.load(Ordering::Relaxed);
        reached("load afterwards", before + 500);
        origin.open_gate();
        for answer in silent {
            answer.join().unwrap().unwrap();
        }
    });
    assert_eq!(cloud.process.children(), endpoints, "the endpoint stays");
    assert_eq!(cloud.tunnel(&second.id)["is_ready"], false);
    assert_eq!(cloud.tunnel(&first.id)["is_ready"], true);
    // A killed endpoint comes back with all that are left, and others may join meanwhile.
    kill_process(Pid::from_raw(endpoints[0].cast_signed()).unwrap(), Signal::KILL).unwrap();
    let third = another_tunnel(cloud, &POOL);
    assert_eq!(third.proxy, first.proxy);
    for number in 0..2 {
        let (mut client, base) = open(number);
        client.download(base, 1, 500, "").unwrap();
    }
    assert_eq!(cloud.process.children().len(), 1);
    third.stop();
    world.tunnel.stop();
}

#[test]
fn other_rules_are_refused_in_one_line() {
    let cloud = Cloud::start(Driver::Epoll);
    // This `sc` has no rules to give; the pool is made by another client.
    let pool = cloud.rest_with(
        "POST",
        &format!("/{}/tunnels", cloud.user),
        br#"{"tunnel_identifier":"pool","tunnel_pool":true,"direct_domains":["intern.test"]}"#,
    );
    assert_eq!(pool.status(), 200, "{}", pool.text());
    let folder = tempfile::tempdir().unwrap();
    let mut command = cloud.bumping_sc(&folder.path().join("sc.log"));
    command.args(POOL).arg("--pidfile").arg(folder.path().join("sc.pid"));
    let mut refused = Process::start(&mut command);
    assert_eq!(refused.exit_code(PATIENCE), 5, "{}", refused.stdout());
    let text = refused.stdout();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("Error")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    for part in ["pool", "direct_domains", "intern.test"] {
        assert!(lines[0].contains(part), "{part:?} in {}", lines[0]);
    }
}
