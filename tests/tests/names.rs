//! Names of sites, as the tunnel host has them: `/etc/hosts`, an address that is dead beside one that lives, a name server
//! that says nothing. All in namespaces of the test's own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use dataplane::limits::{DIAL_STAGGER, LOOKUP_MAX_AGE, LOOKUP_STALE_AFTER, LOOKUP_THREADS_MAX, LOOKUP_TIME_MAX};
use tests::both_drivers;
use tests::cloud::{Cloud, Driver, Tunnel, fault_lasts};
use tests::namespace::{in_world, name_hosts};
use tests::origin::Origin;

both_drivers![names_are_the_tunnel_hosts];

/// Nobody answers there: what is sent into the device is gone.
const DEAD: &str = "2001:db8:99::2";
/// No browser may reach it, whatever names it.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const PORT: u16 = 8_080;
/// For a machine that does other things too.
const MARGIN: Duration = Duration::from_secs(4);

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect("it is installed");
    assert!(status.success(), "{program} {arguments:?}");
}

/// Replaces a file of this namespace alone.
fn bind(folder: &Path, name: &str, text: &str) {
    let own = folder.join(name);
    fs::write(&own, text).unwrap();
    run("mount", &["--bind", own.to_str().unwrap(), &format!("/etc/{name}")]);
}

fn site(last: u8) -> Origin {
    let at = |port| SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port));
    Origin::start_at(at(PORT), at(0), &["localhost"]).unwrap()
}

fn get(tunnel: &Tunnel, name: &str) -> (u16, String, Duration) {
    let since = Instant::now();
    let answer = tunnel.client().get(&format!("http://{name}:{PORT}/echo-head")).unwrap();
    let error = answer.head.field("Culvert-Error").unwrap_or_default().to_owned();
    (answer.status(), error, since.elapsed())
}

fn names_are_the_tunnel_hosts(driver: Driver) {
    let module = driver.name();
    if !in_world(&format!("{module}::names_are_the_tunnel_hosts")) {
        return;
    }
    run(
        "ip",
        &["link", "add", "hole", "type", "veth", "peer", "name", "nowhere"],
    );
    run("ip", &["address", "add", "2001:db8:99::1/64", "dev", "hole", "nodad"]);
    run("ip", &["link", "set", "hole", "up"]);
    run("ip", &["link", "set", "nowhere", "up"]);
    // An address of somebody, so that the kernel sends and nobody answers.
    let neighbour = ["neighbour", "add", DEAD, "lladdr", "02:00:00:00:00:99", "dev", "hole"];
    run("ip", &[&["-6"][..], &neighbour].concat());
    let folder = tempfile::tempdir().unwrap();
    name_hosts(
        folder.path(),
        &[
            ("127.0.0.1", "localhost"),
            (DEAD, "both.test"),
            ("127.0.0.2", "both.test"),
            (DEAD, "dead.test"),
            ("127.0.0.2", "moving.test"),
            ("169.254.169.254", "rebound.test"),
            ("169.254.169.254", "half.test"),
            ("127.0.0.2", "half.test"),
            ("127.0.0.2", "rebinding.test"),
        ],
    );
    bind(
        folder.path(),
        "resolv.conf",
        &format!("nameserver {DEAD}\noptions timeout:60 attempts:1\n"),
    );
    run("ip", &["address", "add", &METADATA.to_string(), "dev", "lo"]);
    let metadata = TcpListener::bind((METADATA, PORT)).unwrap();
    let (first, second) = (site(2), site(3));
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_tunnel_with(&["--shards", "1", "--http-dial-timeout", "1s"]);

    // Happy eyeballs: IPv6 is tried first, and not waited for.
    let (status, _, took) = get(&tunnel, "both.test");
    assert_eq!(status, 200);
    assert!((DIAL_STAGGER..Duration::from_secs(1)).contains(&took), "{took:?}");
    let (status, error, _) = get(&tunnel, "dead.test");
    assert_eq!((status, error.as_str()), (504, "connect-timeout"));
    let (status, error, _) = get(&tunnel, "rebound.test");
    assert_eq!((status, error.as_str()), (403, "denied"));
    // Of several addresses those that are denied are left out, and what is left is all there is.
    assert_eq!(get(&tunnel, "half.test").0, 200);
    let other_port = tunnel.client().get("http://half.test:9/").unwrap();
    assert_eq!(other_port.head.field("Culvert-Error"), Some("refused"));

    thread::scope(|scope| {
        // The name server says nothing, and nobody else waits for it, though nobody is left to ask it.
        for n in 0..LOOKUP_THREADS_MAX + 6 {
            let (tunnel, name) = (&tunnel, format!("silent-{n}.test"));
            scope.spawn(move || {
                let (status, error, took) = get(tunnel, &name);
                assert_eq!((status, error.as_str()), (502, "dns"), "{name}");
                assert!((LOOKUP_TIME_MAX..LOOKUP_TIME_MAX + MARGIN).contains(&took), "{took:?}");
            });
        }
        let known = Instant::now();
        for name in ["rebinding.test", "moving.test", "127.0.0.2", "both.test"] {
            let (status, _, took) = get(&tunnel, name);
            assert_eq!(status, 200, "{name}");
            assert!(took < LOOKUP_TIME_MAX / 4, "{name} took {took:?}");
        }
        // A name that has moved is where it was, until it is looked up anew.
        fs::write(
            folder.path().join("hosts"),
            format!("127.0.0.3 moving.test\n{METADATA} rebinding.test\n"),
        )
        .unwrap();
        let before = second.counters().requests;
        first.close_connections();
        assert_eq!(get(&tunnel, "moving.test").0, 200);
        assert!(known.elapsed() < LOOKUP_MAX_AGE, "this machine is too slow for it");
        assert_eq!(second.counters().requests, before, "it was not remembered");
        while second.counters().requests == before {
            assert!(known.elapsed() < LOOKUP_MAX_AGE + MARGIN, "it is remembered for ever");
            fault_lasts(Duration::from_millis(100));
            first.close_connections();
            assert_eq!(get(&tunnel, "moving.test").0, 200);
        }
        // Where it has moved is looked at as it was the first time.
        let (status, error, _) = get(&tunnel, "rebinding.test");
        assert_eq!((status, error.as_str()), (403, "denied"));
    });
    // Nobody but the silent name server may know it now: it is where it was, which is waited for once.
    fs::write(folder.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
    fault_lasts(LOOKUP_MAX_AGE);
    for waits in [true, false] {
        second.close_connections();
        let (status, error, took) = get(&tunnel, "moving.test");
        assert_eq!(status, 200, "{error}");
        assert_eq!(took >= LOOKUP_STALE_AFTER, waits, "{took:?}");
        assert!(took < LOOKUP_STALE_AFTER + MARGIN, "{took:?}");
    }
    tunnel.stop();
    metadata.set_nonblocking(true).unwrap();
    assert!(metadata.accept().is_err(), "the metadata service was asked");
    let _own = TcpStream::connect((METADATA, PORT)).unwrap();
    metadata.accept().expect("whoever asks it is noticed");
}
