//! `-a`: exactly one host and port is shown a password, and nobody else ever sees it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use tempfile::TempDir;
use tests::both_drivers;
use tests::bumping::{NAMES, World};
use tests::certificate::{self, Company};
use tests::cloud::{Cloud, CloudOptions, Driver, Tunnel, fault_lasts};
use tests::deaf::Closed;
use tests::http::{Answer, Client, PATIENCE, connect};
use tests::memory;
use tests::origin::Origin;
use tests::process::{Held, Process};
use tests::tls;
use tests::websocket::WebSocket;

both_drivers![
    exactly_that_site_is_shown_it,
    a_site_within_tls_is_shown_it,
    a_host_field_opens_nothing,
    what_it_opens_is_nobody_elses,
];

const USER: &str = "ada";
const PASSWORD: &str = "pw:d@planted";

fn basic() -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

/// What follows `-a`.
fn entry(host: &str, port: u16) -> String {
    format!("{host}:{port}:{USER}:{PASSWORD}")
}

/// What a request had as Authorization, as `/echo-head` tells it.
fn shown(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status(), 200, "{:?}: {}", answer.head, answer.text());
    let text = answer.text();
    let fields = text.lines().filter_map(|line| line.split_once(": "));
    let ours = fields.filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    ours.map(|(_, value)| value.to_owned()).collect()
}

/// Waits until the log of `sc` has this text.
fn await_log(tunnel: &Tunnel, text: &str) {
    let begun = Instant::now();
    while !tunnel.log().contains(text) {
        assert!(begun.elapsed() < PATIENCE, "{text:?} is not in\n{}", tunnel.log());
        fault_lasts(Duration::from_millis(20));
    }
}

fn exactly_that_site_is_shown_it(driver: Driver) {
    let (origin, other) = (Origin::start(), Origin::start());
    let (port, other_port) = (origin.http.port(), other.http.port());
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_tunnel_with(&["--shards", "1", "-a", &entry("localhost", port)]);
    let mut client = tunnel.client();
    let echoed = |host: &str, port: u16| format!("http://{host}:{port}/echo-head");
    let url = echoed("localhost", port);
    for (url, wanted) in [
        (url.clone(), vec![basic()]),
        (echoed("localhost", other_port), vec![]),
        (echoed("LocalHost.", port), vec![basic()]),
        // The same site under another name, and below its name.
        (echoed("127.0.0.1", port), vec![]),
        (echoed("x.localhost", port), vec![]),
        (url.clone(), vec![basic()]),
    ] {
        assert_eq!(shown(&client.get(&url).unwrap()), wanted, "{url}");
    }
    // Who brings one keeps it; and nobody gets it back from the site.
    for (method, fields, wanted) in [
        ("GET", &[("authorization", "Digest own")][..], &["Digest own"][..]),
        (
            "GET",
            &[("Authorization", "Basic eDp5"), ("X-Other", "1")],
            &["Basic eDp5"],
        ),
        ("OPTIONS", &[], &[&basic()]),
        ("POST", &[], &[&basic()]),
        ("TRACE", &[], &[]),
    ] {
        let answer = client.request(method, &url, fields, &[]).unwrap();
        assert_eq!(shown(&answer), wanted, "{method} {fields:?}");
    }
    client
        .upload(&format!("http://localhost:{port}"), 1, 300_000, true)
        .unwrap();
    assert_eq!(origin.counters().authorization["/upload"], Some(basic()));

    let target = format!(
        "/bytes/moved?length=0&status=302&field=Location:{}",
        echoed("localhost", other_port)
    );
    let moved = client.get(&format!("http://localhost:{port}{target}")).unwrap();
    assert_eq!(
        (moved.status(), &origin.counters().authorization["/bytes/moved"]),
        (302, &Some(basic()))
    );
    let there = moved.head.field("Location").unwrap();
    assert_eq!(shown(&client.get(there).unwrap()), [""; 0]);

    // HTTP in a CONNECT, as browsers send all of ws://.
    let inside = connect(tunnel.proxy, &format!("localhost:{port}")).unwrap().unwrap();
    let mut client = Client::over(inside).of_host(&format!("localhost:{port}"));
    assert_eq!(shown(&client.get("/echo-head").unwrap()), [basic()]);
    let open = |client, target: &str| {
        let mut socket = WebSocket::open(client, target).unwrap();
        socket.echo(b"hello").unwrap();
        socket.close().unwrap();
    };
    open(client, "/ws");
    assert_eq!(origin.counters().authorization["/ws"], Some(basic()));
    open(tunnel.client(), &format!("http://127.0.0.1:{port}/ws"));
    assert_eq!(origin.counters().authorization["/ws"], None);
    open(tunnel.client(), &format!("http://localhost:{port}/ws"));
    assert_eq!(origin.counters().authorization["/ws"], Some(basic()));
    tunnel.stop();
}

fn a_site_within_tls_is_shown_it(driver: Driver) {
    let company = Company::new();
    let origin = Origin::of(company.site(NAMES, |_| {}));
    let expired = Origin::of(company.site(NAMES, certificate::expired));
    let entries = [&origin, &expired].map(|origin| entry("localhost", origin.https.port()));
    let arguments = ["--shards", "1", "-a", &entries[0], "-a", &entries[1]];
    let world = World::of(company, CloudOptions::new(driver), &arguments);
    let roots = world.company_pem();
    let arguments = [&arguments[..], &["--cacert-file", roots.to_str().unwrap()]].concat();
    let World {
        cloud, tunnel, trust, ..
    } = world;
    let browser = |tunnel: &Tunnel, trust, host, origin: &Origin| {
        let client = tls::client_through(tunnel.proxy, trust, host, origin.https.port());
        client.unwrap().expect("CONNECT is answered with 200")
    };

    let mut client = browser(&tunnel, &trust, "localhost", &origin);
    assert_eq!(shown(&client.get("/echo-head").unwrap()), [basic()]);
    let own = client
        .request("GET", "/echo-head", &[("Authorization", "Basic eDp5")], &[])
        .unwrap();
    assert_eq!(shown(&own), ["Basic eDp5"]);
    let mut socket = WebSocket::open(client, "/ws").unwrap();
    socket.echo(b"hello").unwrap();
    socket.close().unwrap();
    assert_eq!(origin.counters().authorization["/ws"], Some(basic()));
    let mut elsewhere = browser(&tunnel, &trust, "127.0.0.1", &origin);
    assert_eq!(shown(&elsewhere.get("/echo-head").unwrap()), [""; 0]);

    // Whoever shows a bad certificate may be anybody.
    let anybody = certificate::careless();
    let mut careless = browser(&tunnel, &anybody, "localhost", &expired);
    assert_eq!(shown(&careless.get("/echo-head").unwrap()), [""; 0]);
    await_log(
        &tunnel,
        "no credentials of --auth were added: its certificate is expired",
    );
    tunnel.stop();

    let insecure = [&arguments[..], &["--insecure-domains", "localhost"]].concat();
    let tunnel = cloud.start_bumping_tunnel(&insecure);
    let mut client = browser(&tunnel, &trust, "localhost", &expired);
    assert_eq!(
        shown(&client.get("/echo-head").unwrap()),
        [basic()],
        "the operator vouches for it"
    );
    tunnel.stop();

    // What stays opaque cannot be added to, and that is said.
    let tunnel = cloud.start_tunnel_with(&arguments);
    let mut client = browser(&tunnel, &origin.site.client_config(), "localhost", &origin);
    assert_eq!(shown(&client.get("/echo-head").unwrap()), [""; 0]);
    drop(client);
    await_log(
        &tunnel,
        "no credentials of --auth were added: the connection stayed opaque",
    );
}

/// Who is shown them is who the request goes to, by its target or the CONNECT around it, whatever Host says.
fn a_host_field_opens_nothing(driver: Driver) {
    let company = Company::new();
    let origin = Origin::of(company.site(NAMES, |_| {}));
    let [http, https] = [origin.http, origin.https].map(|site| entry("localhost", site.port()));
    let arguments = ["--shards", "1", "-a", &http, "-a", &https];
    let world = World::of(company, CloudOptions::new(driver), &arguments);
    let World { tunnel, trust, .. } = &world;
    for (way, scheme, port, misdirected) in [
        ("at the port", "http", origin.http.port(), 400),
        ("in a CONNECT", "http", origin.http.port(), 421),
        ("in TLS", "https", origin.https.port(), 421),
    ] {
        let site = |host: &str| format!("{host}:{port}");
        let open = |host: &str| match way {
            "at the port" => tunnel.client(),
            "in a CONNECT" => Client::over(connect(tunnel.proxy, &site(host)).unwrap().unwrap()),
            _ => tls::client_through(tunnel.proxy, trust, host, port).unwrap().unwrap(),
        };
        let ask = |host: &str, target: &str, named: &str| {
            let mut client = open(host);
            let head = format!("GET {target} HTTP/1.1\r\nX-First: 1\r\nHost: {named}\r\nX-Last: 1\r\n\r\n");
            client.send_raw(head.as_bytes()).unwrap();
            client.read_answer("GET").unwrap()
        };
        let (theirs, elsewhere) = ("localhost", "127.0.0.1");
        for (host, shown) in [
            (theirs, format!("Authorization: {}\r\n", basic())),
            (elsewhere, String::new()),
        ] {
            let target = format!("{scheme}://{}/echo-head", site(host));
            let reached = format!(
                "GET /echo-head HTTP/1.1\r\nX-First: 1\r\nHost: {}\r\nX-Last: 1\r\n{shown}",
                site(host)
            );
            for named in [&site(theirs), &site(elsewhere), "other.test"] {
                let answer = ask(host, &target, named);
                let got = (answer.status(), answer.text());
                assert_eq!(got, (200, reached.clone()), "{way}, {target}, {named}");
            }
        }
        let before = origin.counters().requests;
        let answer = ask(elsewhere, "/echo-head", &site(theirs));
        assert_eq!(answer.status(), misdirected, "{way}: {}", answer.text());
        assert_eq!(origin.counters().requests, before, "{way}");
    }
    world.tunnel.stop();
}

/// What a site shows to them is stored only where it says that anybody may have it.
fn what_it_opens_is_nobody_elses(driver: Driver) {
    let origin = Origin::start();
    let port = origin.http.port();
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_bumping_tunnel(&["--shards", "1", "-a", &entry("localhost", port)]);
    let get = |host: &str, name: &str, query: &str| {
        let url = format!("http://{host}:{port}/bytes/{name}?seed=1&length=100{query}");
        tunnel.client().get(&url).unwrap()
    };
    let asked = |name: &str| origin.counters().path(&format!("/bytes/{name}"));
    const FRESH: &str = "&field=Cache-Control:max-age=600";
    const PUBLIC: &str = "&field=Cache-Control:public,+max-age=600";
    for (host, name, query, status, wanted) in [
        ("localhost", "own", FRESH, 200, 2),
        (
            "localhost",
            "refused",
            "&status=401&field=Cache-Control:max-age=600",
            401,
            2,
        ),
        ("localhost", "public", PUBLIC, 200, 1),
        ("127.0.0.1", "theirs", FRESH, 200, 1),
    ] {
        for _ in 0..2 {
            assert_eq!(get(host, name, query).status(), status, "{name}");
        }
        assert_eq!(asked(name), wanted, "{name}");
    }
    // Nobody waits for an answer that is another one's own.
    let held = format!("http://localhost:{port}/bytes/held?seed=1&length=100{FRESH}&held");
    let mut clients = [tunnel.client(), tunnel.client()];
    for client in &mut clients {
        client.send("GET", &held, &[], &[]).unwrap();
    }
    origin.wait("both requests", |c| c.held == 2);
    origin.open_gate();
    for client in &mut clients {
        assert_eq!(client.read_answer("GET").unwrap().status(), 200);
    }
    // An endpoint that takes over knows the sites as well.
    let key = || cloud.tunnel(&tunnel.id)["culvert"]["fingerprint"].clone();
    let (before, begun) = (key(), Instant::now());
    let endpoint = Held::of(cloud.endpoint()).unwrap();
    endpoint.signal(Signal::KILL);
    while key() == before {
        assert!(begun.elapsed() < PATIENCE, "no other endpoint");
        fault_lasts(Duration::from_millis(20));
    }
    for _ in 0..2 {
        assert_eq!(get("localhost", "later", FRESH).status(), 200);
    }
    assert_eq!(asked("later"), 2);
    tunnel.stop();
}

/// Each `sc` of a pool has its own password, and all name the same sites, in whatever order.
#[test]
fn a_pool_agrees_on_the_sites() {
    let cloud = Cloud::start(Driver::Epoll);
    let start = |folder: &TempDir, sites: [&str; 2]| {
        let mut sc = cloud.sc(&folder.path().join("sc.log"));
        sc.arg("--pidfile").arg(folder.path().join("sc.pid"));
        sc.args(["--shards", "1", "--tunnel-pool", "-i", "pool"]);
        for site in sites {
            sc.args(["-a", &entry(site, 80)]);
        }
        Process::start(&mut sc)
    };
    let members = [["a.test", "B.test"], ["b.test", "a.test"]].map(|sites| {
        let folder = tempfile::tempdir().unwrap();
        cloud.adopt(start(&folder, sites), folder)
    });
    assert_eq!(members[0].proxy, members[1].proxy);
    let folder = tempfile::tempdir().unwrap();
    let mut other = start(&folder, ["a.test", "c.test"]);
    assert_eq!(other.exit_code(PATIENCE), 5);
    let text = other.stdout();
    assert!(text.contains("auth_hosts") && text.contains("c.test:80"), "{text}");
    assert_unseen("the error", text.as_bytes());
    members.into_iter().for_each(Tunnel::stop);
}

/// Neither as it was typed nor as it is sent.
fn assert_unseen(what: &str, bytes: &[u8]) {
    let sent = basic();
    let sent = sent.trim_start_matches("Basic ").trim_end_matches('=');
    for secret in [PASSWORD, sent] {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{what} shows it:\n{}", String::from_utf8_lossy(bytes));
    }
}

fn assert_unseen_in(folder: &Path) {
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            assert_unseen_in(&path);
        } else if path.is_file() {
            assert_unseen(&path.display().to_string(), &fs::read(&path).unwrap());
        }
    }
}

/// From the command line, the environment and a file: it is in no log, no argument, no page and nothing of the cloud, its
/// memory included.
#[test]
fn nobody_else_sees_it() {
    let origin = Origin::start();
    let closed = Closed::start();
    let closed_port = closed.address.port();
    let entries = [origin.http.port(), closed_port].map(|port| entry("localhost", port));
    let mut cloud = Cloud::start(Driver::Epoll);
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("sc.yaml");
    fs::write(&file, format!("auth:\n  - '{}'\n  - '{}'\n", entries[0], entries[1])).unwrap();
    for source in ["arguments", "environment", "file"] {
        let folder = tempfile::tempdir().unwrap();
        let mut sc = cloud.sc(&folder.path().join("sc.log"));
        sc.arg("--pidfile")
            .arg(folder.path().join("sc.pid"))
            .args(["--shards", "1", "-vv"]);
        match source {
            "arguments" => sc.args(["-a", &entries[0], &format!("--auth={}", entries[1])]),
            "environment" => sc.env("SAUCE_AUTH", entries.join("\n")),
            _ => sc.arg("-c").arg(&file),
        };
        let tunnel = cloud.adopt(Process::start(&mut sc), folder);
        let base = format!("http://localhost:{}", origin.http.port());
        let page = tunnel
            .client()
            .get(&format!("{base}/bytes/{source}?length=10"))
            .unwrap();
        assert_eq!(page.status(), 200);
        assert_eq!(
            origin.counters().authorization[&format!("/bytes/{source}")],
            Some(basic()),
            "{source}"
        );

        let failed = tunnel
            .client()
            .get(&format!("http://localhost:{closed_port}/"))
            .unwrap();
        assert_eq!(failed.status(), 502);
        assert_unseen("the error page", &failed.body);
        let tunnels = cloud.rest("GET", &format!("/{}/tunnels?full=1", cloud.user));
        assert_unseen("REST", &tunnels.body);
        assert_unseen("REST", cloud.tunnel(&tunnel.id).to_string().as_bytes());
        let mut ids = cloud.process.children();
        assert!(!ids.is_empty());
        ids.push(cloud.process.id());
        let sent = basic();
        assert!(
            memory::holds(tunnel.process.id(), sent.as_bytes()),
            "it cannot be found where it is"
        );
        for id in &ids {
            let held = [PASSWORD, &sent].map(|secret| memory::holds(*id, secret.as_bytes()));
            assert_eq!(held, [false; 2], "the cloud's process {id} has it, of {source}");
        }
        ids.push(tunnel.process.id());
        for id in ids {
            let arguments = fs::read(format!("/proc/{id}/cmdline")).unwrap();
            assert!(!arguments.is_empty());
            assert_unseen(&format!("ps, of {source}"), &arguments);
        }
        let Tunnel {
            mut process, folder, ..
        } = tunnel;
        process.signal(Signal::TERM);
        assert_eq!(process.exit_code(PATIENCE), 0);
        assert_unseen("sc", (process.stdout() + &process.stderr()).as_bytes());
        assert_unseen_in(folder.path());
    }
    let said = cloud.last_words() + &cloud.process.stdout();
    assert_unseen("sc-cloud", said.as_bytes());
    assert_unseen_in(cloud.state.path());
}

/// One sentence, which tells what is wrong with it and not what it is.
#[test]
fn what_is_wrong_is_named_without_it() {
    let cloud = Cloud::start(Driver::Epoll);
    let folder = tempfile::tempdir().unwrap();
    let good = entry("localhost", 80);
    for (arguments, said) in [
        (
            vec!["-a", &good, "-a", PASSWORD],
            "--auth: entry 2 does not begin with a host and its port",
        ),
        (
            vec!["-a", "localhost:80:pw"],
            "--auth: entry 1, for localhost:80: a user name and a password are needed",
        ),
        (vec!["-a", &good, "-a", &good], "--auth: localhost:80 stands twice"),
    ] {
        let mut sc = Process::start(cloud.sc(&folder.path().join("sc.log")).args(&arguments));
        assert_eq!(sc.exit_code(PATIENCE), 2);
        let (out, err) = (sc.stdout(), sc.stderr());
        assert!(out.starts_with(&format!("Error: {said}")), "{out}");
        assert_eq!((out.lines().count(), err.as_str()), (1, ""), "{out}");
        assert_unseen("the error", out.as_bytes());
    }
    // Where it would count as absent, nothing would be sent.
    let unreadable = std::os::unix::ffi::OsStringExt::from_vec(b"localhost:80:u:\xe4".to_vec());
    let unreadable: std::ffi::OsString = unreadable;
    let mut sc = Process::start(cloud.sc(&folder.path().join("sc.log")).env("SAUCE_AUTH", unreadable));
    assert_eq!(sc.exit_code(PATIENCE), 2);
    assert!(
        sc.stdout().starts_with("Error: SAUCE_AUTH is not UTF-8"),
        "{}",
        sc.stdout()
    );
}
