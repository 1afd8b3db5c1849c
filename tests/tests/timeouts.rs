//! Time limits of browsers and sites, each as an option of 1 s: who is late gets the documented answer in time, and
//! nobody else notices. And what is too long for a head.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tests::both_drivers;
use tests::bumping::World;
use tests::cloud::{Cloud, CloudOptions, Driver, Tunnel, fault_lasts, until};
use tests::deaf::Deaf;
use tests::http::{Answer, Client, connect};
use tests::origin::Origin;
use tests::relay::{Cut, Relay, Rule, Which};
use tests::tls;

both_drivers![
    slow_heads,
    long_heads,
    slow_bodies,
    silent_browsers,
    a_stalled_tunnel_is_not_the_browsers_fault,
    f9_late_sites,
    f9_sites_that_shake_no_hands,
    f9_endless_sites,
    silent_connections,
];

const LIMIT: Duration = Duration::from_secs(1);
/// For a machine that does other things too; far from every default.
const MARGIN: Duration = Duration::from_secs(3);

fn cloud(driver: Driver) -> Cloud {
    Cloud::with(CloudOptions {
        arguments: ["--browser-head-timeout=1s", "--browser-body-timeout=1s"]
            .map(String::from)
            .to_vec(),
        ..CloudOptions::new(driver)
    })
}

fn impatient(cloud: &Cloud) -> Tunnel {
    let limits = ["--http-dial-timeout", "--first-byte-timeout", "--idle-timeout"];
    let mut arguments = vec!["--shards", "1"];
    limits.iter().for_each(|limit| arguments.extend([*limit, "1s"]));
    cloud.start_tunnel_with(&arguments)
}

fn in_time(begun: Instant, what: &str) {
    let took = begun.elapsed();
    assert!((LIMIT..=LIMIT + MARGIN).contains(&took), "{what}: {took:?}");
}

fn named(answer: &Answer, status: u16, name: &str, closes: bool) {
    let head = &answer.head;
    assert_eq!(
        (
            answer.status(),
            head.field("Culvert-Error"),
            head.has("Connection", "close")
        ),
        (status, Some(name), closes),
        "{head:?}"
    );
}

/// The tunnel works, and its link was never dialled again.
fn lives_on(cloud: &Cloud, tunnel: &Tunnel, origin: &Origin) {
    tunnel.serves(origin);
    assert_eq!(cloud.relay.stats().links, 1);
    assert_eq!(cloud.tunnel(&tunnel.id)["is_ready"], true);
}

/// The answer comes, and then the end of the connection.
fn last_answer(mut client: Client, status: u16, name: &str) {
    let answer = client.read_answer("GET").unwrap();
    named(&answer, status, name, true);
    ends(client);
}

/// Nothing more comes, and the end is clean.
fn ends(client: Client) {
    let (rest, mut stream) = client.into_connection().into_parts();
    assert_eq!((rest.len(), stream.read(&mut [0]).unwrap()), (0, 0));
}

fn slow_heads(driver: Driver) {
    let (cloud, origin) = (cloud(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    let start = format!("GET {}/echo-head HTTP/1.1\r\nHost: x\r\n", origin.base());
    thread::scope(|scope| {
        scope.spawn(|| {
            let (begun, mut client) = (Instant::now(), tunnel.client());
            client.send_raw(start.as_bytes()).unwrap();
            last_answer(client, 408, "request-timeout");
            in_time(begun, "a head that stops");
        });
        scope.spawn(|| {
            let (begun, mut client) = (Instant::now(), tunnel.client());
            // Each byte comes in time, the whole head never.
            let until = LIMIT * 9 / 10;
            while begun.elapsed() < until {
                client.send_raw(b"G").unwrap();
                fault_lasts(LIMIT / 10);
            }
            last_answer(client, 408, "request-timeout");
            in_time(begun, "a head that trickles");
        });
        scope.spawn(|| {
            let mut client = tunnel.client();
            assert_eq!(
                client.get(&format!("{}/echo-head", origin.base())).unwrap().status(),
                200
            );
            // Idle longer than a head may take: the clock starts with the first byte.
            fault_lasts(LIMIT * 3 / 2);
            let begun = Instant::now();
            client.send_raw(b"GET").unwrap();
            last_answer(client, 408, "request-timeout");
            in_time(begun, "the second head of a connection");
        });
    });
    lives_on(&cloud, &tunnel, &origin);
    tunnel.stop();
}

fn long_heads(driver: Driver) {
    let (cloud, origin) = (cloud(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    let url = format!("{}/echo-head?", origin.base());
    let target = |length: usize| format!("{url}{}", "a".repeat(length - url.len()));
    let fields = |count: usize| "X: y\r\n".repeat(count - 1);
    let get = |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    let filled = |length: usize| {
        let rest = length - get(&url, "X: \r\n").len();
        get(&url, &format!("X: {}\r\n", "a".repeat(rest)))
    };
    for (what, head, status) in [
        ("a target of 16 KiB", get(&target(16_384), ""), 200),
        ("a longer one", get(&target(16_385), ""), 414),
        ("128 fields", get(&url, &fields(128)), 200),
        ("129 fields", get(&url, &fields(129)), 431),
        ("a head of 64 KiB", filled(65_536), 200),
        ("a longer one", filled(65_537), 431),
    ] {
        let mut client = tunnel.client();
        client.send_raw(head.as_bytes()).unwrap();
        if status == 200 {
            assert_eq!(client.read_answer("GET").unwrap().status(), 200, "{what}");
        } else {
            last_answer(client, status, "bad-request");
        }
    }
    lives_on(&cloud, &tunnel, &origin);
    tunnel.stop();
}

fn slow_bodies(driver: Driver) {
    let (cloud, origin) = (cloud(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    thread::scope(|scope| {
        for (what, framing, part) in [
            ("no byte of a body", "Content-Length: 10", ""),
            ("a part of a body", "Content-Length: 10", "hello"),
            ("a part of a chunk", "Transfer-Encoding: chunked", "a\r\nhello"),
            ("no last chunk", "Transfer-Encoding: chunked", "5\r\nhello\r\n"),
        ] {
            let (tunnel, base) = (&tunnel, origin.base());
            scope.spawn(move || {
                let (begun, mut client) = (Instant::now(), tunnel.client());
                let head = format!("POST {base}/upload HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
                client.send_raw((head + part).as_bytes()).unwrap();
                last_answer(client, 408, "request-timeout");
                in_time(begun, what);
            });
        }
        scope.spawn(|| {
            let mut client = tunnel.client();
            let head = "POST {}/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n";
            client.send_raw(head.replace("{}", &origin.base()).as_bytes()).unwrap();
            // Slower than the limit in all, but never silent for as long.
            for _ in 0..8 {
                fault_lasts(LIMIT / 4);
                client.send_raw(b"b").unwrap();
            }
            let answer = client.read_answer("POST").unwrap();
            assert_eq!((answer.status(), &answer.json()["length"]), (200, &8.into()));
        });
    });
    // The site saw each of the late ones cut: none of them was a request that it answered.
    origin.wait("the site's connections", |c| c.connections_open <= 1);
    lives_on(&cloud, &tunnel, &origin);
    tunnel.stop();
}

fn silent_browsers(driver: Driver) {
    let cloud = Cloud::with(CloudOptions {
        arguments: vec!["--browser-idle-timeout=1s".to_owned()],
        ..CloudOptions::new(driver)
    });
    let origin = Origin::start();
    let tunnel = cloud.start_tunnel();
    let url = format!("{}/echo-head", origin.base());
    thread::scope(|scope| {
        scope.spawn(|| {
            let (begun, client) = (Instant::now(), tunnel.client());
            ends(client);
            in_time(begun, "a connection without a request");
        });
        scope.spawn(|| {
            let mut client = tunnel.client();
            assert_eq!(client.get(&url).unwrap().status(), 200);
            // A request starts the clock anew.
            fault_lasts(LIMIT / 2);
            let begun = Instant::now();
            assert_eq!(client.get(&url).unwrap().status(), 200);
            ends(client);
            in_time(begun, "a kept connection");
        });
    });
    lives_on(&cloud, &tunnel, &origin);
    tunnel.stop();
}

fn a_stalled_tunnel_is_not_the_browsers_fault(driver: Driver) {
    const LENGTH: u64 = 40_000_000;
    let (cloud, origin) = (cloud(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    let before = cloud.relay.stats().to_client;
    let base = origin.base();
    thread::scope(|scope| {
        let upload = scope.spawn(|| tunnel.client().upload(&base, 7, LENGTH, false));
        cloud
            .relay
            .wait("a part of the body", |stats| stats.to_client >= before + LENGTH / 8);
        cloud.relay.set(Which::Links, Rule::BlackHole);
        fault_lasts(LIMIT * 3);
        assert!(!upload.is_finished(), "there was no stall");
        cloud.relay.set(Which::Links, Rule::Pass);
        upload.join().unwrap().unwrap();
    });
    assert_eq!(origin.counters().path("/upload"), 1);
    tunnel.serves(&origin);
    tunnel.stop();
}

/// Says `bytes` to everybody who says something, and nothing more.
fn silent_site(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut held: Vec<TcpStream> = Vec::new();
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let _ = socket.read(&mut [0; 4_096]).unwrap();
            socket.write_all(bytes).unwrap();
            held.push(socket);
        }
    });
    address
}

fn f9_late_sites(driver: Driver) {
    let (cloud, origin, deaf) = (cloud(driver), Origin::start(), Deaf::start());
    let tunnel = impatient(&cloud);
    let base = origin.base();
    let interim = silent_site(b"HTTP/1.1 103 Early Hints\r\n\r\n");
    thread::scope(|scope| {
        for (name, method, url) in [
            ("connect-timeout", "GET", format!("http://{}/", deaf.address)),
            ("first-byte-timeout", "GET", format!("{base}/bytes?silent")),
            ("first-byte-timeout", "POST", format!("{base}/bytes?silent")),
            ("idle-timeout", "GET", format!("http://{interim}/")),
        ] {
            let (tunnel, base) = (&tunnel, &base);
            scope.spawn(move || {
                let (begun, mut client) = (Instant::now(), tunnel.client());
                let body: &[u8] = if method == "POST" { b"body" } else { b"" };
                let answer = client.request(method, &url, &[], body).unwrap();
                in_time(begun, name);
                // The request was read whole, so the connection serves again.
                named(&answer, 504, name, false);
                assert_eq!(client.get(&format!("{base}/echo-head")).unwrap().status(), 200);
            });
        }
        scope.spawn(|| {
            let begun = Instant::now();
            let answer = connect(tunnel.proxy, &deaf.address.to_string()).unwrap().unwrap_err();
            in_time(begun, "CONNECT");
            named(&answer, 504, "connect-timeout", true);
        });
    });
    lives_on(&cloud, &tunnel, &origin);
    let log = tunnel.log();
    for name in ["connect-timeout", "first-byte-timeout", "idle-timeout"] {
        assert!(log.contains(&format!("{name}: ")), "{name} is not in the log:\n{log}");
    }
    tunnel.stop();
}

/// A site that accepts connections and is silent in the handshake of TLS is late too, known or not; it teaches nothing.
fn f9_sites_that_shake_no_hands(driver: Driver) {
    let world = World::with(driver, &["--http-dial-timeout", "1s"]);
    let origin = world.origin();
    let World {
        cloud, tunnel, trust, ..
    } = world;
    let ways = [Relay::start(), Relay::start()];
    ways.iter().for_each(|way| way.set_target(origin.https));
    let [known, unknown] = [0, 1].map(|i: usize| ways[i].address.port());
    let open = |port| {
        let client = tls::client_through(tunnel.proxy, &trust, "localhost", port).unwrap();
        client.expect("CONNECT is answered with 200")
    };
    let mut early = open(known);
    early.download("", 1, 1_000, "").unwrap();
    for way in &ways {
        way.set(Which::All, Rule::BlackHole);
        way.cut(Which::All, Cut::Fin);
    }

    thread::scope(|scope| {
        for client in [Some(early), None] {
            let (open, known) = (&open, known);
            scope.spawn(move || {
                // Its own TLS needs nothing of the site.
                let mut client = client.unwrap_or_else(|| open(known));
                let begun = Instant::now();
                let answer = client.get("/bytes?seed=1&length=10").unwrap();
                in_time(begun, "a request to a known site");
                named(&answer, 504, "connect-timeout", false);
            });
        }
        scope.spawn(|| {
            let begun = Instant::now();
            let mut client = open(unknown);
            let answer = client.get("/").unwrap();
            in_time(begun, "a look at a site");
            named(&answer, 504, "connect-timeout", true);
        });
    });
    let counted = || cloud.tunnel(&tunnel.id)["culvert"]["errors"]["connect-timeout"] == 3;
    until("all three are counted", counted);
    let line = |port| format!("connect-timeout: localhost:{port}: the site did not shake hands in time");
    let (of_known, of_unknown) = (line(known), line(unknown));
    let sc_says = || tunnel.log().contains(&of_known) && tunnel.log().contains(&of_unknown);
    until("sc says so of both", sc_says);
    // Of what follows at once it may only say how often.
    let cloud_says = |log: String| log.contains(&of_known) || log.contains(&of_unknown);
    until("the cloud says so", || cloud_says(cloud.process.stderr()));

    ways.iter().for_each(|way| way.set(Which::All, Rule::Pass));
    for port in [known, unknown] {
        open(port).download("", 2, 1_000, "").unwrap();
    }
    lives_on(&cloud, &tunnel, &origin);
    tunnel.stop();
}

/// A site that never stops is read as long as its browser reads, and not longer.
fn f9_endless_sites(driver: Driver) {
    const READ_BYTES: usize = 16 << 20;
    /// More than all buffers between the site and its browser hold.
    const UNREAD_BYTES_MAX: usize = 256 << 20;
    let (cloud, origin) = (cloud(driver), Origin::start());
    let tunnel = impatient(&cloud);
    let site = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = site.local_addr().unwrap();
    thread::scope(|scope| {
        let endless = scope.spawn(move || {
            let (mut socket, _) = site.accept().unwrap();
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            socket.set_write_timeout(Some(LIMIT + MARGIN)).unwrap();
            socket.write_all(head).unwrap();
            let chunk = [b"10000\r\n".as_slice(), &[b'.'; 0x10000], b"\r\n"].concat();
            let mut written = 0;
            while written <= READ_BYTES + UNREAD_BYTES_MAX {
                match socket.write(&chunk[written % chunk.len()..]) {
                    Ok(bytes) => written += bytes,
                    Err(error) => return (written, error),
                }
            }
            (written, io::Error::other("it is read on although its browser has left"))
        });
        let mut client = tunnel.client();
        client
            .send_raw(format!("GET http://{address}/ HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())
            .unwrap();
        let (_, mut socket) = client.into_connection().into_parts();
        let mut read = 0;
        let mut buffer = vec![0; 1 << 20];
        while read < READ_BYTES {
            let bytes = socket.read(&mut buffer).unwrap();
            assert!(bytes > 0, "the site goes on");
            read += bytes;
        }
        drop(socket);
        let (written, error) = endless.join().unwrap();
        assert!(written >= READ_BYTES, "{written}");
        let cut = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(cut.contains(&error.kind()), "{error}");
    });
    lives_on(&cloud, &tunnel, &origin);
    tunnel.stop();
}

/// What a browser has begun to read can only be cut.
fn silent_connections(driver: Driver) {
    let (cloud, origin) = (cloud(driver), Origin::start());
    let tunnel = impatient(&cloud);
    let base = origin.base();
    thread::scope(|scope| {
        for query in ["&held", "&held&chunked", "&held&close"] {
            let (tunnel, base) = (&tunnel, &base);
            scope.spawn(move || {
                let begun = Instant::now();
                let error = tunnel.client().download(base, 1, 100_000, query).unwrap_err();
                in_time(begun, query);
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            });
        }
        scope.spawn(|| {
            let site = origin.http.to_string();
            let (begun, opened) = (Instant::now(), connect(tunnel.proxy, &site).unwrap());
            let mut socket = opened.unwrap();
            // One byte starts the clock anew.
            fault_lasts(LIMIT / 2);
            socket.write_all(b"G").unwrap();
            let error = socket.read(&mut [0]).unwrap_err();
            in_time(begun + LIMIT / 2, "an opaque connection");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        });
    });
    origin.open_gate();
    origin.wait("the site's connections", |c| c.connections_open <= 1);
    lives_on(&cloud, &tunnel, &origin);
    tunnel.stop();
}
