//! `sc-cloud` is killed: its endpoints and their streams go on, and the next one goes on with them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use rustls::ClientConfig;
use serde_json::Value;
use tests::bumping::{NAMES, World, another_tunnel};
use tests::certificate::Company;
use tests::cloud::{Cloud, CloudOptions, Driver, Tunnel, fault_lasts};
use tests::http::{Client, connect};
use tests::origin::{Origin, STORED};
use tests::process::{Held, PATIENCE};
use tests::trial::Trial;
use tests::{both_drivers, tls};

both_drivers![
    what_is_open_goes_on_and_what_is_new_is_served,
    a_pool_goes_on_with_all_its_members,
];

const MIB: u64 = 1 << 20;
/// What is promised; the measured time is printed.
const ADOPTED_MAX: Duration = Duration::from_secs(10);

/// Asks until REST says what is wanted of the tunnel.
fn until(cloud: &Cloud, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let object = cloud.tunnel(id);
        if wanted(&object) {
            return object;
        }
        assert!(started.elapsed() < PATIENCE, "never {what}: {object}");
    }
}

fn is_ready(object: &Value) -> bool {
    object["is_ready"] == true
}

/// A new browser's request.
fn get(tunnel: &Tunnel, origin: &Origin) -> io::Result<u16> {
    let answer = tunnel.client().get(&format!("{}/echo-head", origin.base()));
    answer.map(|a| a.status())
}

/// What does not change when another `serve` adopts the endpoint.
fn lasting(object: &Value) -> Value {
    let mut lasting = object.clone();
    for gone in ["is_ready", "last_connected"] {
        lasting[gone].take();
    }
    for count in ["requests", "streams", "resumes", "frames_replayed", "cache"] {
        lasting["culvert"][count].take();
    }
    lasting
}

/// A method in small letters is none to the endpoint: the connection stays opaque.
fn echo_head(socket: &mut TcpStream) -> io::Result<()> {
    socket.write_all(b"get /echo-head HTTP/1.1\r\nHost: site\r\n\r\n")?;
    let mut first = [0; 15];
    socket.read_exact(&mut first)?;
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    Ok(())
}

fn endpoint_of(cloud: &Cloud) -> Held {
    Held::of(cloud.endpoint()).expect("it lives")
}

/// A browser in whose TLS the endpoint speaks for the site.
fn in_tls(tunnel: &Tunnel, trust: &Arc<ClientConfig>, site: &Origin) -> Client {
    let opened = tls::client_through(tunnel.proxy, trust, "localhost", site.https.port());
    opened.unwrap().unwrap()
}

/// Kills `sc-cloud` with 20 bodies under way, lets half of them end before the next one starts, and checks all. In TLS
/// and from the cache all goes on as well.
fn kill_under_load(trial: &mut Trial, company: &Company, trust: &Arc<ClientConfig>, round: u64) {
    const EACH: u64 = 5;
    let sites = [(); 2].map(|()| Origin::of(company.site(NAMES, |_| {})));
    let mut secure = sites.each_ref().map(|site| in_tls(&trial.tunnel, trust, site));
    secure[0].download("", 1, 1_000, "").unwrap();
    assert_eq!(secure[0].get(STORED).unwrap().status(), 200);
    let halves = [Barrier::new(EACH as usize + 1), Barrier::new(EACH as usize + 1)];
    let rests = [Barrier::new(EACH as usize + 1), Barrier::new(EACH as usize + 1)];
    let Trial { cloud, tunnel, .. } = trial;
    let tunnel = &*tunnel;
    let before = cloud.tunnel(&tunnel.id);
    let mut kept_alive = tunnel.client();
    kept_alive.download(&sites[0].base(), 1, 1_000, "").unwrap();
    let mut idle = connect(tunnel.proxy, &sites[0].http.to_string()).unwrap().unwrap();
    thread::scope(|scope| {
        let bodies = [0, 1].map(|part| {
            let (base, half, rest) = (sites[part].base(), &halves[part], &rests[part]);
            let ids = (0..EACH).map(|n| 100 * round + 10 * part as u64 + n);
            let downloads: Vec<_> = ids
                .clone()
                .map(|seed| {
                    let base = base.clone();
                    scope.spawn(move || tunnel.client().download(&base, seed, 3 * MIB, "&held"))
                })
                .collect();
            let uploads = ids.map(|seed| {
                let base = base.clone();
                let pause = move || {
                    half.wait();
                    rest.wait();
                };
                scope.spawn(move || {
                    tunnel
                        .client()
                        .upload_pausing(&base, seed, 3 * MIB, seed % 2 == 0, pause)
                })
            });
            downloads.into_iter().chain(uploads).collect::<Vec<_>>()
        });
        for part in [0, 1] {
            sites[part].wait("the bodies", |c| c.held == EACH);
            halves[part].wait();
        }
        cloud.kill();
        assert!(Client::dial(tunnel.proxy).is_err(), "nobody listens");
        // Nobody is there, and nothing is missing.
        let [first, second] = bodies;
        sites[0].open_gate();
        rests[0].wait();
        for body in first {
            body.join().unwrap().unwrap();
        }
        kept_alive.download(&sites[0].base(), 2, MIB, "").unwrap();
        secure[0].download("", 2, MIB, "").unwrap();
        assert_eq!(secure[0].get(STORED).unwrap().status(), 200);
        let started = Instant::now();
        cloud.restart();
        while get(tunnel, &sites[1]).is_err() {
            assert!(started.elapsed() < ADOPTED_MAX);
        }
        println!(
            "round {round}: a new request is served {:?} after the start",
            started.elapsed()
        );
        let after = until(cloud, &tunnel.id, "ready", is_ready);
        assert!(started.elapsed() < ADOPTED_MAX);
        assert_eq!(lasting(&after), lasting(&before));
        assert!(after["culvert"]["requests"].as_u64() > before["culvert"]["requests"].as_u64());
        sites[1].open_gate();
        rests[1].wait();
        for body in second {
            body.join().unwrap().unwrap();
        }
    });
    kept_alive.download(&sites[0].base(), 3, MIB, "").unwrap();
    echo_head(&mut idle).unwrap();
    assert_eq!(cloud.process.children(), [0; 0], "adopted, not started anew");
    for client in &mut secure {
        client.download("", 3, MIB, "").unwrap();
    }
    // The cache is the endpoint's, and a new browser's TLS ends there as before.
    let mut later = in_tls(tunnel, trust, &sites[0]);
    later.download("", 4, 1_000, "").unwrap();
    assert_eq!(later.get(STORED).unwrap().status(), 200);
    assert_eq!(sites[0].counters().path("/bytes/stored"), 1);
    drop((kept_alive, idle, secure, later));
    for site in sites {
        site.close_connections();
    }
    trial.cloud_replaced();
    trial.at_rest();
}

fn what_is_open_goes_on_and_what_is_new_is_served(driver: Driver) {
    let World {
        cloud,
        tunnel,
        company,
        trust,
    } = World::start(driver);
    let mut trial = Trial::of(cloud, Origin::start(), tunnel);
    let endpoint = endpoint_of(&trial.cloud);
    for round in 1..=2 {
        kill_under_load(&mut trial, &company, &trust, round);
    }
    let Trial {
        mut cloud, mut tunnel, ..
    } = trial;
    assert!(!endpoint.ends_within(Duration::ZERO));
    let deleted = cloud.rest("DELETE", &format!("/{}/tunnels/{}", cloud.user, tunnel.id));
    assert_eq!(deleted.status(), 200, "{}", deleted.text());
    assert_eq!(tunnel.process.exit_code(PATIENCE), 6, "{}", tunnel.log());
    until(&cloud, &tunnel.id, "terminated", |t| t["status"] == "terminated");
    assert!(endpoint.ends_within(PATIENCE), "the endpoint stays");
    let sockets = fs::read_dir(cloud.state.path().join("endpoints")).unwrap();
    assert_eq!(sockets.count(), 0, "files of the endpoint stay");
    // Nothing of it comes back.
    cloud.kill();
    cloud.restart();
    assert_eq!(cloud.tunnel(&tunnel.id)["status"], "terminated");
    assert!(Client::dial(tunnel.proxy).is_err(), "nobody listens");
}

/// The endpoint keeps its two shards, whatever the next `serve` gives to others.
fn a_pool_goes_on_with_all_its_members(driver: Driver) {
    let options = CloudOptions {
        endpoint_shards: 2,
        ..CloudOptions::new(driver)
    };
    let pool = ["--shards", "1", "-i", "pool", "--tunnel-pool"];
    let world = World::of(Company::new(), options, &pool);
    let origin = world.origin();
    let World {
        mut cloud,
        tunnel: first,
        trust,
        ..
    } = world;
    cloud.options.endpoint_shards = 1;
    let second = another_tunnel(&cloud, &pool);
    // Of each member.
    let mut secure = [(); 2].map(|()| in_tls(&first, &trust, &origin));
    let endpoint = endpoint_of(&cloud);
    thread::scope(|scope| {
        let bodies: Vec<_> = (0..8)
            .map(|seed| {
                let (first, origin) = (&first, &origin);
                scope.spawn(move || first.client().download(&origin.base(), seed, MIB, "&held"))
            })
            .collect();
        origin.wait("the bodies", |c| c.held == 8);
        for round in 0..2 {
            cloud.kill();
            cloud.restart();
            for id in [&first.id, &second.id] {
                until(&cloud, id, "ready", is_ready);
            }
            assert_eq!(get(&first, &origin).unwrap(), 200, "{round}");
            for client in &mut secure {
                client.download("", round, 1_000, "").unwrap();
            }
        }
        origin.open_gate();
        for body in bodies {
            body.join().unwrap().unwrap();
        }
    });
    let requests = |t: &Tunnel| cloud.tunnel(&t.id)["culvert"]["requests"].as_u64().unwrap();
    assert_eq!(requests(&first) + requests(&second), 8 + 2 * 3, "counts go on");
    in_tls(&first, &trust, &origin).download("", 1, 1_000, "").unwrap();
    // It is a pool still: another one joins, and one leaves without the others.
    let third = another_tunnel(&cloud, &pool);
    assert_eq!(third.proxy, first.proxy);
    first.stop();
    assert!(!endpoint.ends_within(Duration::ZERO));
    assert_eq!(get(&second, &origin).unwrap(), 200);
    third.stop();
    second.stop();
    assert!(endpoint.ends_within(PATIENCE), "the endpoint stays");
}

#[test]
fn a_tunnel_on_its_way_out_stays_on_it() {
    let (mut cloud, origin) = (Cloud::start(Driver::Epoll), Origin::start());
    let mut tunnel = cloud.start_tunnel();
    let endpoint = endpoint_of(&cloud);
    thread::scope(|scope| {
        let body = scope.spawn(|| tunnel.client().download(&origin.base(), 1, MIB, "&held"));
        origin.wait("the body", |c| c.held == 1);
        let path = format!("/{}/tunnels/{}?wait_for_jobs=1&reason=enough", cloud.user, tunnel.id);
        assert_eq!(cloud.rest("DELETE", &path).status(), 200);
        cloud.kill();
        cloud.restart();
        let object = cloud.tunnel(&tunnel.id);
        assert_eq!(
            (&object["status"], &object["shutdown_reason"]),
            (&"halting".into(), &"enough".into())
        );
        origin.open_gate();
        body.join().unwrap().unwrap();
    });
    let ended = until(&cloud, &tunnel.id, "terminated", |t| t["status"] == "terminated");
    assert_eq!(
        (&ended["shutdown_reason"], &ended["user_shutdown"]),
        (&"enough".into(), &true.into())
    );
    assert!(endpoint.ends_within(PATIENCE));
    assert_eq!(tunnel.process.exit_code(PATIENCE), 6, "{}", tunnel.log());
}

#[test]
fn an_endpoint_that_died_meanwhile_is_started_again() {
    let world = World::start(Driver::Epoll);
    let origin = world.origin();
    let World {
        mut cloud,
        tunnel,
        trust,
        ..
    } = world;
    let get_stored = || {
        let mut client = in_tls(&tunnel, &trust, &origin);
        assert_eq!(client.get(STORED).unwrap().status(), 200);
        origin.counters().path("/bytes/stored")
    };
    assert_eq!((get_stored(), get_stored()), (1, 1));
    let endpoint = endpoint_of(&cloud);
    let key = |cloud: &Cloud| cloud.tunnel(&tunnel.id)["culvert"]["fingerprint"].clone();
    let before = key(&cloud);
    cloud.kill();
    endpoint.signal(Signal::KILL);
    assert!(endpoint.ends_within(PATIENCE));
    cloud.restart();
    // It waits for the new endpoint and its link.
    assert_eq!(get(&tunnel, &origin).unwrap(), 200);
    assert_ne!(key(&cloud), before);
    assert_eq!((get_stored(), get_stored()), (2, 2), "the cache ended with it");
    // One that dies after it was adopted is replaced as any other.
    let endpoint = endpoint_of(&cloud);
    cloud.kill();
    cloud.restart();
    let before = key(&cloud);
    until(&cloud, &tunnel.id, "ready", is_ready);
    endpoint.signal(Signal::KILL);
    assert!(endpoint.ends_within(PATIENCE));
    while key(&cloud) == before {}
    assert_eq!(get(&tunnel, &origin).unwrap(), 200);
    tunnel.stop();
}

#[test]
fn what_nobody_has_seen_for_long_is_history() {
    let (mut cloud, origin) = (Cloud::start(Driver::Epoll), Origin::start());
    let tunnel = cloud.start_tunnel();
    let endpoint = endpoint_of(&cloud);
    cloud.kill();
    endpoint.signal(Signal::KILL);
    assert!(endpoint.ends_within(PATIENCE));
    let lock = File::options().append(true).open(cloud.state.path().join("serve.lock"));
    let hours = Duration::from_secs(7_200);
    lock.unwrap().set_modified(SystemTime::now() - hours).unwrap();
    cloud.restart();
    let object = cloud.tunnel(&tunnel.id);
    assert_eq!(
        (&object["status"], &object["shutdown_reason"]),
        (&"terminated".into(), &"lost".into())
    );
    // Its `sc` lives, and asks for another one.
    let proxy = cloud.renewed(&tunnel);
    Client::dial(proxy)
        .unwrap()
        .download(&origin.base(), 1, 1_000, "")
        .unwrap();
    tunnel.stop();
}

#[test]
fn a_second_one_is_refused_and_takes_nothing() {
    let (cloud, origin) = (Cloud::start(Driver::Epoll), Origin::start());
    let tunnel = cloud.start_tunnel();
    let mut second = cloud.second();
    assert_eq!(second.exit_code(PATIENCE), 7);
    let state = cloud.state.path().display();
    assert_eq!(
        second.stderr(),
        format!("sc-cloud: another sc-cloud serves from {state}")
    );
    assert_eq!(second.stdout(), "");
    assert_eq!(get(&tunnel, &origin).unwrap(), 200);
    assert_eq!(cloud.process.children().len(), 1);
    tunnel.stop();
}

#[test]
fn sigterm_ends_what_was_adopted() {
    let mut cloud = Cloud::start(Driver::Epoll);
    let tunnel = cloud.start_tunnel();
    let endpoint = endpoint_of(&cloud);
    cloud.kill();
    cloud.restart();
    until(&cloud, &tunnel.id, "ready", is_ready);
    cloud.process.signal(Signal::TERM);
    assert_eq!(cloud.process.exit_code(PATIENCE), 0);
    assert!(endpoint.ends_within(Duration::ZERO), "the endpoint stays");
}

/// What was answered holds, and no process is left that nobody knows of.
#[test]
fn at_whatever_moment_it_is_killed() {
    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let mut cloud = Cloud::start(Driver::Epoll);
    let path = format!("/{}/tunnels", cloud.user);
    let mut endpoints = Vec::new();
    for moment in [0, 1, 2, 4, 6, 8, 10, 15, 20, 30, 50, 80] {
        let body = format!(r#"{{"tunnel_identifier":"x","culvert":{{"fingerprint":"{KEY}"}}}}"#);
        let made = cloud.rest_with("POST", &path, body.as_bytes());
        assert_eq!(made.status(), 200, "{}", made.text());
        let made = made.json();
        let id = made["id"].as_str().unwrap();
        fault_lasts(Duration::from_millis(moment));
        endpoints.extend(cloud.kill());
        cloud.restart();
        until(&cloud, id, "running", |t| t["status"] == "running");
        endpoints.extend(cloud.process.children());
        assert_eq!(cloud.rest("DELETE", &format!("{path}/{id}")).status(), 200);
        fault_lasts(Duration::from_millis(moment % 7));
        endpoints.extend(cloud.kill());
        cloud.restart();
        let ended = until(&cloud, id, "terminated", |t| t["status"] == "terminated");
        assert_eq!(ended["shutdown_reason"], "user", "{moment}");
    }
    let ended = |id: &u32| Held::of(*id).is_none_or(|process| process.ends_within(PATIENCE));
    assert!(endpoints.iter().all(ended));
    assert_eq!(cloud.process.children(), [0; 0]);
    assert_eq!(cloud.rest("GET", &path).json(), serde_json::json!([]));
}
