//! Each failure has one name: in the page and its header, in the log of `sc` where `sc` met it, in the cloud's log, and in
//! the count of REST.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use dataplane::limits::{DIRECT_STREAMS_MAX, ERROR_LINES_APART};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tests::both_drivers;
use tests::bumping::World;
use tests::certificate::Company;
use tests::cloud::{Cloud, CloudOptions, Driver, fault_lasts, until};
use tests::deaf::{Closed, Deaf};
use tests::http::{Answer, Client, PATIENCE, connect, dial};
use tests::namespace::in_world;
use tests::origin::Origin;
use tests::process::raise_own_limit;
use tests::tls;

both_drivers![
    one_name_everywhere,
    what_goes_past_the_tunnel_has_the_same_names,
    a_flood_of_errors_is_none_of_lines,
    too_much_is_limit,
    what_was_kept_and_closed_costs_nothing
];

/// What was provoked, and how often under which name.
#[derive(Default)]
struct Told(BTreeMap<&'static str, u64>);

impl Told {
    fn page(&mut self, what: &str, answer: &Answer, status: u16, name: &'static str, words: &str) {
        let shown = (answer.status(), answer.head.field("Culvert-Error"));
        assert_eq!(shown, (status, Some(name)), "{what}: {}", answer.text());
        let text = answer.text();
        assert!(text.contains(&format!("<code>{name}</code>")), "{what}: {text}");
        assert!(text.contains(words), "{what}: {words:?} is not in {text}");
        self.cut(name);
    }

    fn cut(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    /// What REST shows, once it has all of it.
    fn is_counted(&self, cloud: &Cloud, id: &str) {
        let since = Instant::now();
        let own: BTreeMap<String, u64> = self.0.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        loop {
            let shown = cloud.tunnel(id)["culvert"]["errors"].clone();
            let counted: BTreeMap<String, u64> = serde_json::from_value(shown).expect("names and counts");
            if counted == own {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "REST has {counted:?}, told were {own:?}");
            // The front limits the connections of one address.
            fault_lasts(Duration::from_millis(50));
        }
    }
}

/// Waits until the cloud's log has a line of each name.
fn is_logged<'a>(cloud: &Cloud, names: impl IntoIterator<Item = &'a str>) {
    for name in names {
        let is_there = |sign| cloud.process.stderr().contains(&format!(" INFO {name}{sign}"));
        until(name, || is_there(": ") || is_there(" ("));
    }
}

/// Reads a request, says `bytes`, and ends the connection, cleanly or with a reset.
fn site_that_says(bytes: &'static [u8], resets: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let _ = socket.read(&mut [0; 4_096]).unwrap();
            socket.write_all(bytes).unwrap();
            if resets {
                SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
    });
    address
}

fn one_name_everywhere(driver: Driver) {
    let options = CloudOptions {
        arguments: vec!["--browser-body-timeout=200ms".to_owned()],
        ..CloudOptions::new(driver)
    };
    let mut arguments = vec!["--shards", "1", "-F", "/unwanted"];
    for limit in ["--http-dial-timeout", "--first-byte-timeout", "--idle-timeout"] {
        arguments.extend([limit, "500ms"]);
    }
    let world = World::of(Company::new(), options, &arguments);
    let (origin, deaf, closed) = (world.origin(), Deaf::start(), Closed::start());
    let World {
        cloud, tunnel, trust, ..
    } = world;
    let (base, closed) = (origin.base(), closed.address);
    let interim = site_that_says(b"HTTP/1.1 103 Early Hints\r\n\r\n", false);
    let garbled = site_that_says(b"SSH-2.0-OpenSSH_9.2\r\n", false);
    let dropped = site_that_says(b"", true);
    let mut told = Told::default();

    // Met by `sc`: status, name, words of the page, and a URL.
    let by_client = [
        (502, "dns", "nowhere.invalid", "http://nowhere.invalid/".to_owned()),
        (
            502,
            "refused",
            "the connection was refused",
            format!("http://{closed}/"),
        ),
        (
            502,
            "unreachable",
            "cannot be reached",
            "http://255.255.255.255/".to_owned(),
        ),
        (504, "connect-timeout", "in time", format!("http://{}/", deaf.address)),
        (
            504,
            "first-byte-timeout",
            "silent for too long",
            format!("{base}/bytes?silent"),
        ),
        (502, "site-reset", "before it answered", format!("http://{dropped}/")),
        (502, "site-reset", "broke its answer off", format!("http://{interim}/")),
        (502, "protocol", "", format!("http://{garbled}/")),
        (
            403,
            "denied",
            "link-local",
            "http://169.254.169.254/latest/meta-data".to_owned(),
        ),
        (403, "denied", "metadata", "http://100.100.100.200/".to_owned()),
    ];
    for (status, name, words, url) in &by_client {
        let answer = tunnel.client().get(url).unwrap();
        told.page(url, &answer, *status, name, words);
    }
    let refused = connect(tunnel.proxy, &closed.to_string()).unwrap().unwrap_err();
    told.page("CONNECT", &refused, 502, "refused", "the connection was refused");

    // Met in the middle, where there is no page any more.
    let error = tunnel.client().download(&base, 1, 100_000, "&held").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    told.cut("idle-timeout");
    let mut opaque = connect(tunnel.proxy, &dropped.to_string()).unwrap().unwrap();
    opaque.write_all(b"no HTTP\r\n").unwrap();
    assert_eq!(
        opaque.read(&mut [0]).unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    told.cut("site-reset");
    origin.open_gate();

    // Inside TLS that ends at the endpoint; the page says which check failed.
    let secure = || tls::client_through(tunnel.proxy, &trust, "localhost", origin.https.port()).unwrap();
    let changing = || {
        let mut client = secure().unwrap();
        assert_eq!(client.get("/echo-head").unwrap().status(), 200);
        client
    };
    let mut client = changing();
    let mut other = (*origin.site.server_config()).clone();
    other.alpn_protocols = vec![b"h2".to_vec()];
    origin.set_tls(Arc::new(other));
    origin.close_connections();
    told.page("TLS", &client.get("/x").unwrap(), 502, "tls", "(ALPN)");
    origin.set_tls(origin.site.server_config());
    let mut client = changing();
    origin.set_tls(Company::new().site(&["localhost"], |_| {}).server_config());
    origin.close_connections();
    told.page(
        "issuer",
        &client.get("/x").unwrap(),
        502,
        "verdict-changed",
        "certificate is",
    );
    origin.set_tls(origin.site.server_config());
    let by_sc = told.0.clone();
    let mut client = changing();
    client.send_raw(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").unwrap();
    told.page(
        "another site",
        &client.read_answer("GET").unwrap(),
        421,
        "misdirected",
        "names another site",
    );

    // Met by the endpoint, which has no part in the user's log.
    let mut said = |raw: &str, status, name, words: &str| {
        let mut client = tunnel.client();
        client.send_raw(raw.as_bytes()).unwrap();
        told.page(raw, &client.read_answer("GET").unwrap(), status, name, words);
    };
    said(
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        400,
        "bad-request",
        "this is a proxy",
    );
    said(
        &format!("GET {base}/unwanted HTTP/1.1\r\nHost: x\r\n\r\n"),
        403,
        "blocked",
        "/unwanted",
    );
    said(
        "GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
        403,
        "denied",
        "goes by CONNECT",
    );
    let only = "HTTP/1.1\r\nHost: x\r\nCache-Control: only-if-cached\r\n\r\n";
    said(
        &format!("GET {base}/bytes/a {only}"),
        504,
        "only-if-cached",
        "not in the cache",
    );
    let late = "HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf";
    said(&format!("POST {base}/upload {late}"), 408, "request-timeout", "paused");

    told.is_counted(&cloud, &tunnel.id);
    is_logged(&cloud, told.0.keys().copied());
    let secure = format!("localhost:{}", origin.https.port());
    let logged = by_client.iter().map(|(_, name, _, url)| {
        let host = url.strip_prefix("http://").and_then(|rest| rest.split('/').next());
        (*name, host.unwrap())
    });
    let logged: Vec<_> = logged
        .chain([
            ("idle-timeout", &base["http://".len()..]),
            ("tls", &secure),
            ("verdict-changed", &secure),
        ])
        .map(|(name, host)| format!(" {name}: {host}"))
        .collect();
    let unlogged = |log: &str| {
        let lines = |name: &str| log.matches(&format!(" INFO {name}: ")).count() as u64;
        let line = logged.iter().find(|line| !log.contains(line.as_str()));
        // As often as it was told: what the endpoint has met is not in it.
        line.cloned().or_else(|| {
            let (name, told) = by_sc.iter().find(|(name, told)| lines(name) != **told)?;
            Some(format!("{name}, {told} times"))
        })
    };
    // The log is written behind what it tells of.
    let since = Instant::now();
    while let Some(what) = unlogged(&tunnel.log()) {
        assert!(
            since.elapsed() < PATIENCE,
            "{what:?} is not in the log:\n{}",
            tunnel.log()
        );
        fault_lasts(Duration::from_millis(20));
    }
    tunnel.stop();
}

/// As above, met where the cloud itself dials: `sc` has no part in it.
fn what_goes_past_the_tunnel_has_the_same_names(driver: Driver) {
    let module = driver.name();
    if !in_world(&format!("{module}::what_goes_past_the_tunnel_has_the_same_names")) {
        return;
    }
    raise_own_limit();
    let cloud = Cloud::with(CloudOptions {
        arguments: vec!["--direct-networks=0.0.0.0/32,255.255.255.255/32".to_owned()],
        ..CloudOptions::new(driver)
    });
    // To the kernel the first one is this host too, and it is none that always goes through the tunnel.
    let direct = "0.0.0.0,255.255.255.255,169.254.169.254,nowhere.invalid";
    let tunnel = cloud.start_bumping_tunnel(&["--shards", "1", "-D", direct]);
    let (deaf, closed) = (Deaf::start(), Closed::start());
    let here = |site: SocketAddr| format!("0.0.0.0:{}", site.port());
    let mut told = Told::default();
    let unreached = [
        (403, "denied", "only the internet", "169.254.169.254:80".to_owned()),
        (502, "dns", "nowhere.invalid", "nowhere.invalid:80".to_owned()),
        (502, "refused", "the connection was refused", here(closed.address)),
        (502, "unreachable", "cannot be reached", "255.255.255.255:80".to_owned()),
        (504, "connect-timeout", "in time", here(deaf.address)),
    ];
    // The kernel itself gives up then, long before the cloud does.
    dials_take(Duration::from_secs(3));
    thread::scope(|scope| {
        let asked = unreached.each_ref().map(|(.., site)| {
            let proxy = tunnel.proxy;
            let get = move || Client::dial(proxy)?.get(&format!("http://{site}/page?token=secret"));
            (scope.spawn(get), scope.spawn(move || connect(proxy, site)))
        });
        for ((status, name, words, site), (whole, opened)) in unreached.iter().zip(asked) {
            told.page(site, &whole.join().unwrap().unwrap(), *status, name, words);
            let page = opened.join().unwrap().unwrap().unwrap_err();
            told.page(site, &page, *status, name, words);
        }
    });
    let dropped = here(site_that_says(b"", true));
    for (name, words, site) in [
        ("site-reset", "before it answered", &dropped),
        (
            "site-reset",
            "broke its answer off",
            &here(site_that_says(b"HTTP/1.1 103 Early Hints\r\n\r\n", false)),
        ),
        ("protocol", "", &here(site_that_says(b"SSH-2.0-OpenSSH_9.2\r\n", false))),
    ] {
        let answer = tunnel.client().get(&format!("http://{site}/page?token=secret"));
        told.page(site, &answer.unwrap(), 502, name, words);
    }
    let mut opaque = connect(tunnel.proxy, &dropped).unwrap().unwrap();
    opaque.write_all(b"no HTTP\r\n").unwrap();
    let cut = opaque.read(&mut [0]).unwrap_err();
    assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset);
    told.cut("site-reset");

    // As many as may go past the tunnel, and one more.
    dials_take(PATIENCE);
    let site = here(deaf.address);
    let waiting: Vec<TcpStream> = (0..=DIRECT_STREAMS_MAX)
        .map(|number| {
            let mut socket = dial(tunnel.proxy).unwrap();
            SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
            // No two are alike, and none waits for another one's answer.
            let request = format!("GET http://{site}/{number} HTTP/1.1\r\nHost: {site}\r\n\r\n");
            socket.write_all(request.as_bytes()).unwrap();
            socket
        })
        .collect();
    let limit = Timespec::try_from(PATIENCE).unwrap();
    let mut polled: Vec<_> = waiting.iter().map(|s| PollFd::new(s, PollFlags::IN)).collect();
    assert_eq!(poll(&mut polled, Some(&limit)).unwrap(), 1);
    let answered = polled.iter().position(|polled| !polled.revents().is_empty()).unwrap();
    let answer = Client::over(waiting[answered].try_clone().unwrap()).read_answer("GET");
    let words = "as many requests as may go past the tunnel do already";
    told.page("one more", &answer.unwrap(), 503, "limit", words);
    drop(waiting);

    told.is_counted(&cloud, &tunnel.id);
    is_logged(&cloud, told.0.keys().copied());
    let log = cloud.process.stderr();
    for (_, name, _, site) in &unreached {
        let host = site.strip_suffix(":80").unwrap_or(site);
        assert!(log.contains(&format!(" INFO {name}: {host}")), "{name}, {host}: {log}");
    }
    for name in told.0.keys() {
        assert!(!tunnel.log().contains(&format!(" {name}: ")), "{}", tunnel.log());
    }
    assert!(!log.contains("secret"), "{log}");
    tunnel.stop();
}

/// In the world only: after about so long the kernel gives up a connection that nobody accepts.
fn dials_take(time: Duration) {
    // It waits for a second, then twice as long each time.
    let retries = (time.as_secs() + 1).ilog2() - 1;
    let folder = Path::new("/proc/sys/net/ipv4");
    fs::write(folder.join("tcp_syn_retries"), retries.to_string()).unwrap();
    // Linux before 6.5 has none.
    let linear = folder.join("tcp_syn_linear_timeouts");
    if linear.exists() {
        fs::write(linear, "0").unwrap();
    }
}

/// Whatever browsers ask for: those that had no line are counted in the next one.
fn a_flood_of_errors_is_none_of_lines(driver: Driver) {
    const ERRORS: u64 = 200;
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_tunnel_with(&["--shards", "1", "-F", "/unwanted"]);
    let mut client = tunnel.client();
    let mut blocked = || {
        assert_eq!(
            client.get("http://site.test/unwanted?token=secret").unwrap().status(),
            403
        )
    };
    let begun = Instant::now();
    for _ in 0..ERRORS {
        blocked();
    }
    fault_lasts(ERROR_LINES_APART);
    let took = begun.elapsed();
    blocked();
    let since = Instant::now();
    loop {
        let log = cloud.process.stderr();
        let lines: Vec<&str> = log
            .lines()
            .filter_map(|l| Some(l.split_once(" INFO blocked")?.1))
            .collect();
        let times = |rest: &&str| {
            let (times, reason) = rest.split_once(": ").expect("a reason");
            assert!(reason.starts_with("http://site.test: the rule is /unwanted"), "{log}");
            let times = times
                .strip_prefix(" (")
                .map(|rest| rest.strip_suffix(" times)").unwrap());
            times.map_or(1, |times| times.parse::<u64>().unwrap())
        };
        let (written, told) = (lines.len() as u64, lines.iter().map(times).sum::<u64>());
        if told == ERRORS + 1 {
            assert!(written <= took.as_secs() / ERROR_LINES_APART.as_secs() + 2, "{log}");
            assert!(!log.contains("secret"), "{log}");
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{log}");
        fault_lasts(Duration::from_millis(20));
    }
    tunnel.stop();
}

/// As many streams as may be.
fn too_much_is_limit(driver: Driver) {
    const STREAMS: usize = 8;
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_tunnel_with(&["--shards", "1", "--max-streams", &STREAMS.to_string()]);
    let origin = Origin::start();
    let url = format!("{}/bytes?seed=1&length=10&held", origin.base());
    let mut told = Told::default();
    let held: Vec<Client> = (0..STREAMS)
        .map(|_| {
            let mut client = tunnel.client();
            client.send("GET", &url, &[], &[]).unwrap();
            client
        })
        .collect();
    origin.wait("all of them", |c| c.path("/bytes") == STREAMS as u64);
    let answer = tunnel.client().get(&origin.base()).unwrap();
    told.page("one more", &answer, 503, "limit", "");
    assert_eq!(answer.head.field("Retry-After"), Some("1"));
    told.is_counted(&cloud, &tunnel.id);
    is_logged(&cloud, ["limit"]);
    let line = " INFO limit: streams beyond --max-streams were turned away: 1\n";
    until("sc says so", || tunnel.log().contains(line));
    origin.open_gate();
    for mut client in held {
        assert_eq!(client.read_answer("GET").unwrap().status(), 200);
    }
    tunnel.stop();
}

/// Connections that wait for their next request are the site's to close: neither a GET nor a POST fails by it or is doubled.
fn what_was_kept_and_closed_costs_nothing(driver: Driver) {
    const ROUNDS: u64 = 20;
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_tunnel();
    let origin = Origin::start();
    let once = format!("{}/once?key=a", origin.base());
    let mut client = tunnel.client();
    for round in 1..=ROUNDS {
        let posted = client.request("POST", &once, &[], b"x").unwrap();
        assert_eq!((posted.status(), posted.text()), (200, round.to_string()));
        origin.close_connections();
        tunnel.serves(&origin);
        origin.close_connections();
    }
    let counters = origin.counters();
    assert_eq!((counters.path("/once"), counters.path("/echo-head")), (ROUNDS, ROUNDS));
    assert_eq!(counters.connections, 2 * ROUNDS, "each was asked on a new one");
    Told::default().is_counted(&cloud, &tunnel.id);
    tunnel.stop();
}
