//! TLS of browsers ends at the endpoint: under a leaf of the tunnel's own CA that is as good or as bad as the site's.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use dataplane::limits::LINK_DOWN_GRACE;
use rcgen::CertificateParams;
use rustix::process::Signal;
use tests::both_drivers;
use tests::bumping::{NAMES, World, another_tunnel, assert_blocked};
use tests::certificate::{self, Company, Site};
use tests::cloud::{Driver, fault_lasts, until};
use tests::deaf::Closed;
use tests::http::{Client, connect, dial};
use tests::origin::Origin;
use tests::process::PATIENCE;
use tests::relay::{Cut, Rule, Which};
use tests::socket::{held_as, join};
use tests::tls;
use tests::websocket::WebSocket;

both_drivers![
    good_sites_are_served_from_within,
    rules_and_cache_hold_within,
    bad_certificates_stay_bad,
    whoever_changes_its_certificate_gets_nothing,
    what_is_kept_of_a_site_serves_only_who_was_shown_the_same,
    a_renewed_certificate_disturbs_nobody,
    a_known_site_is_dialled_with_the_first_request,
    what_cannot_be_reached_is_a_page,
    what_cannot_be_reached_any_more_is_told,
    what_passes_is_a_page_and_teaches_nothing,
    another_tunnel_of_the_pool_looks,
    what_only_ends_is_not_denied,
    nothing_but_the_site_follows_the_answer,
    each_tunnel_of_a_pool_judges_by_itself,
];

fn good_sites_are_served_from_within(driver: Driver) {
    let world = World::start(driver);
    let origin = world.origin();
    let mut client = world.browser(&origin).unwrap();
    for length in [0, 1, 16_384, 100_000, 20 << 20] {
        client.download("", 3, length, "").unwrap();
        client.download("", 3, length, "&chunked").unwrap();
    }
    let body = tests::body::bytes(5, 3_000_000);
    let posted = client.request("POST", "/upload", &[], &body).unwrap();
    assert_eq!(posted.json()["length"], 3_000_000);
    let counts = origin.counters();
    assert_eq!(
        (counts.requests, counts.connections),
        (11, 1),
        "one connection serves all: {counts:?}"
    );
    // Until its end, and another browser.
    let mut closing = world.browser(&origin).unwrap();
    closing.download("", 3, 100_000, "&close").unwrap();
    let cut = world.browser(&origin).unwrap().get("/bytes?seed=1&length=200000&cut");
    // Where the end overtakes all of it, there is a page of ours.
    assert!(cut.is_err() || cut.unwrap().status() == 502, "half an answer is none");
    // Many at once.
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let mut client = world.browser(&origin).unwrap();
                for _ in 0..5 {
                    client.download("", 9, 50_000, "").unwrap();
                }
            });
        }
    });
    let socket = WebSocket::open(world.browser(&origin).unwrap(), "/ws");
    let mut socket = socket.unwrap();
    for length in [0, 5, 70_000] {
        socket.echo(&vec![b'x'; length]).unwrap();
    }
    socket.close().unwrap();
    // The site sees the request as the browser wrote it.
    let head = world.browser(&origin).unwrap().get("/echo-head").unwrap().text();
    assert!(head.starts_with("GET /echo-head HTTP/1.1\r\n"), "{head}");
    let misdirected = world
        .browser(&origin)
        .unwrap()
        .request("GET", "https://other.test/", &[], &[])
        .unwrap();
    assert_eq!(misdirected.status(), 421);
}

fn rules_and_cache_hold_within(driver: Driver) {
    let world = World::with(
        driver,
        &["-F", r"https://localhost(:\d+)?/unwanted/.*\.js,.*blocked-host.*"],
    );
    let origin = world.origin();
    let mut client = world.browser(&origin).unwrap();
    let blocked = client.get("/unwanted/a.js").unwrap();
    assert_eq!(blocked.status(), 403);
    assert_blocked(&blocked, "blocked");
    client.download("", 1, 1_000, "&path=/unwanted/a.css").unwrap();
    let fresh = "/bytes/a?seed=1&length=1000&field=Cache-Control:max-age=600";
    for _ in 0..3 {
        assert_eq!(client.get(fresh).unwrap().status(), 200);
    }
    let hit = world.browser(&origin).unwrap().get(fresh).unwrap();
    let status = hit.head.field("Cache-Status").unwrap_or_default();
    assert!(status.starts_with("culvert; hit"), "{status}");
    // The scheme is part of what is asked for.
    let http = format!("http://localhost:{}{fresh}", origin.https.port());
    assert_ne!(world.tunnel.client().get(&http).unwrap().status(), 200);
    let counts = origin.counters();
    assert_eq!(counts.path("/bytes/a"), 1, "{counts:?}");
    assert_eq!(counts.path("/unwanted/a.js"), 0);
}

/// What a browser holds against a certificate, without the particulars.
fn defect(shaken: io::Result<Client>) -> String {
    let error = shaken.err().expect("it is bad").to_string();
    let kind = error.strip_prefix("invalid peer certificate: ").expect("that is why");
    kind.split([':', ';']).next().unwrap_or(kind).to_owned()
}

/// Each kind of bad certificate, as a browser sees it through the tunnel and as one inside the firewall does.
fn bad_certificates_stay_bad(driver: Driver) {
    let world = World::start(driver);
    type Change = fn(&mut CertificateParams);
    let (expired, early, good): (Change, Change, Change) = (certificate::expired, certificate::not_yet_valid, |_| {});
    let ours = |names, change: Change| world.company.site(names, change);
    let theirs = |names, change: Change| Company::new().site(names, change);
    let elsewhere = &["other.test"][..];
    let trust = tls::trust_file(&world.company_pem()).unwrap();
    for site in [
        ours(NAMES, expired),
        ours(NAMES, early),
        ours(elsewhere, good),
        ours(elsewhere, expired),
        theirs(NAMES, good),
        theirs(NAMES, early),
        theirs(elsewhere, good),
        theirs(elsewhere, expired),
        Site::self_signed(NAMES, false),
    ] {
        let origin = Origin::of(site);
        let direct = tls::client(&trust, "localhost", dial(origin.https).unwrap());
        let seen = defect(direct);
        assert_eq!(defect(world.browser(&origin)), seen);
        // Whoever goes on all the same gets the site, and nothing of it is stored.
        let careless = certificate::careless();
        let mut client = world.browser_of(&origin, &careless).unwrap();
        for asked in 1..=2 {
            let answer = client
                .get("/bytes/a?seed=1&length=10&field=Cache-Control:max-age=600")
                .unwrap();
            assert_eq!((answer.status(), answer.body.len()), (200, 10), "{seen}");
            assert_eq!(origin.counters().path("/bytes/a"), asked, "{seen}");
        }
    }
}

fn whoever_changes_its_certificate_gets_nothing(driver: Driver) {
    let world = World::start(driver);
    let origin = world.origin();
    let expired = world.company.site(NAMES, certificate::expired);
    let careless = certificate::careless();
    for (now, next) in [
        (origin.site.server_config(), expired.server_config()),
        (expired.server_config(), origin.site.server_config()),
    ] {
        origin.set_tls(now);
        let mut client = world.browser_of(&origin, &careless).unwrap();
        // The site's connection ends with it: the next request needs another one.
        client.download("", 1, 1_000, "").unwrap();
        let last = client.request("GET", "/bytes/last?seed=1&length=10", &[("X-Last", "1")], &[]);
        assert_eq!(last.unwrap().status(), 200);
        origin.set_tls(next);
        origin.close_connections();
        let before = origin.counters().requests;
        let answer = client.request("POST", "/upload", &[], b"secret").unwrap();
        assert_eq!(answer.status(), 502);
        assert_blocked(&answer, "verdict-changed");
        assert!(answer.head.has("Connection", "close"));
        assert_eq!(origin.counters().requests, before, "nothing was sent");
        // A new connection shows what is true now.
        let mut client = world.browser_of(&origin, &careless).unwrap();
        client.download("", 1, 1_000, "").unwrap();
    }
}

/// Also where connections to the site are open that somebody else was shown.
fn what_is_kept_of_a_site_serves_only_who_was_shown_the_same(driver: Driver) {
    let world = World::start(driver);
    let careless = certificate::careless();
    let good = world.company.site(NAMES, |_| {});
    let expired = world.company.site(NAMES, certificate::expired);
    let expired_too = world.company.site(NAMES, certificate::expired);
    for (was, is) in [(&good, &expired), (&expired, &good), (&expired, &expired_too)] {
        let origin = world.origin();
        origin.set_tls(was.server_config());
        let mut early = world.browser_of(&origin, &careless).unwrap();
        early.download("", 1, 1_000, "").unwrap();
        origin.set_tls(is.server_config());
        // Its connection to the site goes on, and ends with the answer.
        early.download("", 1, 1_000, "&field=Connection:close").unwrap();
        assert_eq!(origin.counters().connections, 1);
        // The next one is still shown what was seen a moment ago, and the one after it what is.
        let mut between = world.browser_of(&origin, &careless).unwrap();
        assert_blocked(&between.get("/bytes?seed=1&length=10").unwrap(), "verdict-changed");
        let mut late = world.browser_of(&origin, &careless).unwrap();
        late.download("", 1, 1_000, "").unwrap();

        let before = origin.counters();
        let answer = early.request("POST", "/upload", &[], b"secret").unwrap();
        assert_eq!(answer.status(), 502);
        assert_blocked(&answer, "verdict-changed");
        assert_eq!(origin.counters().requests, before.requests, "nothing was sent");
        late.download("", 1, 1_000, "").unwrap();
        let connections = origin.counters().connections - before.connections;
        assert_eq!(
            connections, 1,
            "the one that was refused; the other one was there to be taken"
        );
    }
}

/// One that is as good as the one before.
fn a_renewed_certificate_disturbs_nobody(driver: Driver) {
    let world = World::start(driver);
    let origin = world.origin();
    let mut client = world.browser(&origin).unwrap();
    client.download("", 1, 1_000, "").unwrap();
    origin.set_tls(world.company.site(NAMES, |_| {}).server_config());
    origin.close_connections();
    let posted = client.request("POST", "/upload", &[], b"x").unwrap();
    assert_eq!((posted.status(), posted.json()["length"].as_u64()), (200, Some(1)));
}

fn a_known_site_is_dialled_with_the_first_request(driver: Driver) {
    let world = World::start(driver);
    let origin = world.origin();
    world.browser(&origin).unwrap().download("", 1, 1_000, "").unwrap();
    origin.close_connections();
    let before = origin.counters().connections;
    let mut clients: Vec<Client> = (0..5).map(|_| world.browser(&origin).unwrap()).collect();
    world.tunnel.serves(&origin);
    let with_that = before + 1;
    assert_eq!(origin.counters().connections, with_that);
    for client in &mut clients {
        client.download("", 1, 1_000, "").unwrap();
    }
    assert_eq!(origin.counters().connections, with_that + 1, "one serves all in turn");
}

fn what_cannot_be_reached_is_a_page(driver: Driver) {
    let world = World::start(driver);
    // An address of loopback on which nobody listens.
    for host in ["127.211.3.7", "nobody.invalid"] {
        let mut client = tls::client_through(world.tunnel.proxy, &world.trust, host, 443)
            .unwrap()
            .expect("CONNECT is answered with 200");
        let answer = client.get("/x").unwrap();
        assert_eq!(answer.status(), 502, "{:?}", answer.head);
        assert_blocked(&answer, if host == "nobody.invalid" { "dns" } else { "refused" });
        assert!(answer.text().contains(&format!("https://{host}")), "{}", answer.text());
    }
    // Elsewhere it may be anything, and the answer to CONNECT says it.
    let refused = connect(world.tunnel.proxy, "127.211.3.7:444").unwrap();
    assert_blocked(&refused.expect_err("nobody listens"), "refused");
}

/// It was known, so that the answer to CONNECT has been before it is dialled for a browser that wants the site itself.
fn what_cannot_be_reached_any_more_is_told(driver: Driver) {
    let world = World::start(driver);
    let origin = world.origin();
    world.browser(&origin).unwrap().download("", 1, 1_000, "").unwrap();
    let (site, port) = (origin.https, origin.https.port());
    drop(origin);
    let _closed = Closed::instead_of(site);
    let roots = tls::read(&world.cloud.ca()).unwrap();
    let foreign = certificate::client_config_of(&roots, rustls::ALL_VERSIONS, &["acme-tls/1"]);
    let cut = tls::client_through(world.tunnel.proxy, &foreign, "localhost", port);
    cut.map(|_| ()).expect_err("there is no site");
    let counted = || world.cloud.tunnel(&world.tunnel.id)["culvert"]["errors"]["refused"] == 1;
    until("it is counted", counted);
    let line = format!(" INFO refused: localhost:{port}: ");
    until("it is logged", || world.cloud.process.stderr().contains(&line));
}

/// A way to the site whose first connection is `first`'s.
fn by_way_of(origin: &Origin, first: impl FnOnce(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, site) = (listener.local_addr().unwrap().port(), origin.https);
    std::thread::spawn(move || {
        first(listener.accept().unwrap().0);
        for near in listener.incoming() {
            join(near.unwrap(), TcpStream::connect(site).unwrap());
        }
    });
    port
}

fn what_passes_is_a_page_and_teaches_nothing(driver: Driver) {
    let world = World::start(driver);
    let origin = world.origin();
    let port = by_way_of(&origin, |mut socket| {
        // It dies when it has been spoken to.
        socket.read_exact(&mut [0]).unwrap();
    });
    let through = || tls::client_through(world.tunnel.proxy, &world.trust, "localhost", port);
    let mut client = through().unwrap().expect("CONNECT is answered with 200");
    let answer = client.get("/x").unwrap();
    assert_eq!(answer.status(), 502, "{:?}", answer.head);
    assert_blocked(&answer, "site-reset");
    let mut client = through().unwrap().expect("CONNECT is answered with 200");
    client.download("", 1, 1_000, "").unwrap();
}

fn another_tunnel_of_the_pool_looks(driver: Driver) {
    let world = World::with(driver, &["-i", "pool", "--tunnel-pool"]);
    let second = another_tunnel(&world.cloud, &["--shards", "1", "-i", "pool", "--tunnel-pool"]);
    let origin = world.origin();
    let (tell, told) = mpsc::channel();
    let port = by_way_of(&origin, move |mut socket| {
        // It says nothing, and its client dies.
        socket.read_exact(&mut [0]).unwrap();
        tell.send(socket).unwrap();
    });
    std::thread::scope(|scope| {
        let browser = scope.spawn(|| tls::client_through(world.tunnel.proxy, &world.trust, "localhost", port));
        let silent = told.recv_timeout(PATIENCE).unwrap();
        let looks = [&world.tunnel, &second]
            .into_iter()
            .find(|tunnel| held_as(tunnel.process.id(), &silent).is_some())
            .expect("one of the two");
        looks.process.signal(Signal::KILL);
        let mut client = browser.join().unwrap().unwrap().expect("CONNECT is answered with 200");
        client.download("", 1, 1_000, "").unwrap();
    });
}

fn what_only_ends_is_not_denied(driver: Driver) {
    let world = World::with(driver, &["-F", "^https://localhost"]);
    let origin = world.origin();
    // Whoever asks for nothing.
    let idle = connect(world.tunnel.proxy, &format!("localhost:{}", origin.https.port())).unwrap();
    origin.wait("the site's connection", |c| c.connections_open == 1);
    drop(idle);
    origin.wait("its end", |c| c.connections_open == 0);
    assert!(!world.tunnel.log().contains("denied"), "{}", world.tunnel.log());
    // HTTP in a CONNECT is none of what is dropped, and goes over the connection that was made for it.
    let before = origin.counters().connections;
    let name = format!("localhost:{}", origin.http.port());
    let socket = connect(world.tunnel.proxy, &name).unwrap().unwrap();
    let mut client = Client::over(socket).of_host(&name);
    client.download("", 1, 1_000, "").unwrap();
    client.download("", 2, 1_000, "").unwrap();
    assert_eq!(origin.counters().connections, before + 1);
    assert!(!world.tunnel.log().contains("denied"), "{}", world.tunnel.log());
}

/// Behind the 200 a browser reads what the site says, and nothing else, also while the stream to it waits for a link.
fn nothing_but_the_site_follows_the_answer(driver: Driver) {
    let world = World::start(driver);
    let origin = world.origin();
    drop(world.browser(&origin).unwrap());
    let relay = &world.cloud.relay;
    relay.set(Which::Links, Rule::Refuse);
    relay.cut(Which::Links, Cut::Reset);
    relay.wait("the loss", |s| s.links_open == 0);
    // No link takes a stream any more.
    fault_lasts(LINK_DOWN_GRACE + Duration::from_millis(500));
    // The site is known, so it is not dialled yet.
    let site = format!("localhost:{}", origin.https.port());
    let mut socket = connect(world.tunnel.proxy, &site).unwrap().unwrap();
    socket.write_all(b"neither TLS nor HTTP").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    fault_lasts(Duration::from_millis(500));
    relay.set(Which::Links, Rule::Pass);
    let mut came = Vec::new();
    // The site may cut what it does not understand.
    let _ = socket.read_to_end(&mut came);
    assert!(!came.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&came));
    world.tunnel.serves(&origin);
}

/// One trusts the company's root and one does not: browsers see what the one has seen that is asked for them.
fn each_tunnel_of_a_pool_judges_by_itself(driver: Driver) {
    let world = World::with(driver, &["-i", "pool", "--tunnel-pool"]);
    let second = world
        .cloud
        .start_bumping_tunnel(&["--shards", "1", "-i", "pool", "--tunnel-pool"]);
    let origin = world.origin();
    // One of them has more to do: browsers come to both all the same, since they are no load yet when they come.
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let site = busy.local_addr().unwrap().to_string();
    let mut held = connect(world.tunnel.proxy, &site).unwrap().ok().unwrap();
    held.write_all(b"no TLS").unwrap();
    let _site = busy.accept().unwrap();
    let (mut good, mut bad) = (0, 0);
    for _ in 0..8 {
        match world.browser(&origin) {
            Ok(mut client) => {
                good += 1;
                for seed in 0..3 {
                    client.download("", seed, 1_000, "").unwrap();
                }
            }
            Err(error) => {
                bad += 1;
                let error = error.to_string();
                assert!(error.contains("UnknownIssuer"), "{error}");
            }
        }
    }
    assert!(good > 0 && bad > 0, "{good} saw it as good, {bad} as bad");
    drop(held);
    second.stop();
    // Nobody else is left to ask: whatever was learnt of the other is of no use.
    for _ in 0..3 {
        world.browser(&origin).unwrap().download("", 1, 1_000, "").unwrap();
    }
}
