//! `-D` and `-t`: what goes past the tunnel is dialled by the cloud, and only if it is on the internet. The cloud is in
//! one network namespace, `sc` and both sites are in another one; one site has an address of the internet there.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use serde_json::Value;
use tempfile::TempDir;
use tests::both_drivers;
use tests::cloud::{Cloud, CloudOptions, Driver, Tunnel, binary, until};
use tests::http::{Answer, Client, Connection, connect};
use tests::namespace::{INNER, Inner, WORLD, in_world, name_hosts};
use tests::origin::Origin;
use tests::process::{PATIENCE, Process};
use tests::tls;
use tests::websocket::WebSocket;

both_drivers![
    what_is_direct_goes_past_the_tunnel,
    what_is_not_for_the_tunnel_is_direct,
    what_is_direct_is_dropped_by_its_url,
    what_is_direct_is_cached,
    the_internet_and_nothing_else,
    no_spelling_leads_to_the_clouds_own_host,
    no_name_server_leads_there_either
];

/// Of the site that is on the internet; in no list of special addresses.
const INTERNET: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const HOSTS: [(&str, &str); 11] = [
    ("127.0.0.1", "localhost"),
    ("93.184.215.14", "cdn.test"),
    ("93.184.215.14", "www.cdn.test"),
    ("10.99.0.2", "intern.test"),
    ("10.99.0.2", "rebound.cdn.test"),
    ("169.254.169.254", "metadata.cdn.test"),
    ("127.0.0.1", "loopback.cdn.test"),
    ("::1", "loopback6.cdn.test"),
    ("10.99.0.1", "cloud.cdn.test"),
    ("10.99.0.1", "half.cdn.test"),
    ("10.99.0.2", "half.cdn.test"),
];
const PORT: u16 = 8_080;
const TLS_PORT: u16 = 8_443;

/// Both namespaces with all that runs in them.
struct Stage {
    inner: Inner,
    cloud: Cloud,
    folder: TempDir,
    _sites: [Process; 2],
}

impl Stage {
    /// None outside of the world: the test has run there.
    fn set(driver: Driver, test: &str, arguments: &[&str]) -> Option<Self> {
        let module = driver.name();
        if !in_world(&format!("{module}::{test}")) {
            return None;
        }
        let inner = Inner::enclose();
        inner.add_address(INTERNET);
        let folder = tempfile::tempdir().unwrap();
        name_hosts(folder.path(), &HOSTS);
        let sites = [
            site(&inner, INTERNET, &folder.path().join("outside.pem")),
            site(&inner, INNER, &folder.path().join("inside.pem")),
        ];
        let cloud = Cloud::with(CloudOptions {
            public: WORLD,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            ..CloudOptions::new(driver)
        });
        Some(Self {
            inner,
            cloud,
            folder,
            _sites: sites,
        })
    }

    fn tunnel(&self, arguments: &[&str]) -> Tunnel {
        let folder = tempfile::tempdir().unwrap();
        // What goes past the tunnel stays opaque for all that.
        let mut sc = self.cloud.bumping_sc(&folder.path().join("sc.log"));
        sc.arg("--pidfile").arg(folder.path().join("sc.pid"));
        sc.args(["--shards", "1"]).args(arguments);
        self.cloud.adopt(Process::start(&mut self.inner.enter(&sc)), folder)
    }

    /// Requests that the tunnel has carried.
    fn requests(&self, tunnel: &Tunnel) -> u64 {
        self.cloud.tunnel(&tunnel.id)["culvert"]["requests"].as_u64().unwrap()
    }

    /// Requests for `path` that a site has seen: asked of it directly, from the other namespace.
    fn seen(&self, site: Ipv4Addr, path: &str) -> u64 {
        let mut client = Client::dial(SocketAddr::from((site, PORT))).unwrap();
        let counters: Value = client.get("/counters").unwrap().json();
        counters["paths"][path].as_u64().unwrap_or(0)
    }
}

fn site(inner: &Inner, address: Ipv4Addr, ca: &Path) -> Process {
    let mut command = Command::new(binary("demo-site"));
    command.args(["--http", &SocketAddrV4::new(address, PORT).to_string()]);
    command.args(["--https", &SocketAddrV4::new(address, TLS_PORT).to_string()]);
    command.arg("--ca").arg(ca).args(["www.cdn.test", "intern.test"]);
    let site = Process::start(&mut inner.enter(&command));
    site.line("its address", |line| line.starts_with("HTTPS: ").then_some(()));
    site
}

fn refused(answer: &Answer, status: u16, name: &str, words: &str) {
    let shown = (answer.status(), answer.head.field("Culvert-Error"));
    assert_eq!(shown, (status, Some(name)), "{}", answer.text());
    assert!(answer.text().contains(words), "{words:?} is not in {}", answer.text());
}

/// `-D`: bodies both ways, kept connections, WebSocket and HTTPS; the tunnel carries none of it, and works beside it.
fn what_is_direct_goes_past_the_tunnel(driver: Driver) {
    let Some(stage) = Stage::set(driver, "what_is_direct_goes_past_the_tunnel", &[]) else {
        return;
    };
    let tunnel = stage.tunnel(&["-D", "cdn.test", "-F", "/unwanted"]);
    let counted = || stage.requests(&tunnel);
    let (direct, inside) = (
        format!("http://www.cdn.test:{PORT}"),
        format!("http://intern.test:{PORT}"),
    );
    let before = counted();
    let mut client = tunnel.client();
    client.download(&direct, 1, 5_000_000, "").unwrap();
    client.upload(&direct, 2, 3_000_000, false).unwrap();
    client.upload(&direct, 3, 300_000, true).unwrap();
    assert_eq!(
        client
            .request("HEAD", &format!("{direct}/bytes?seed=1&length=9"), &[], b"")
            .unwrap()
            .status(),
        200
    );
    refused(
        &client.get(&format!("{direct}/unwanted")).unwrap(),
        403,
        "blocked",
        "/unwanted",
    );
    let mut socket = WebSocket::open(tunnel.client(), &format!("{direct}/ws")).unwrap();
    socket.send(1, b"past the tunnel").unwrap();
    assert_eq!(socket.receive().unwrap(), (1, b"past the tunnel".to_vec()));
    let trust = tls::trust_file(&stage.folder.path().join("outside.pem")).unwrap();
    let mut secure = tls::client_through(tunnel.proxy, &trust, "www.cdn.test", TLS_PORT)
        .unwrap()
        .unwrap();
    secure.download("", 4, 1_000_000, "").unwrap();
    assert_eq!(counted(), before, "the tunnel carried some of it");
    // Between the others on one connection.
    client.download(&inside, 5, 100_000, "").unwrap();
    client.download(&direct, 6, 100_000, "").unwrap();
    assert_eq!(counted(), before + 1);
    assert_eq!((stage.seen(INTERNET, "/bytes"), stage.seen(INNER, "/bytes")), (4, 1));
    assert_eq!(stage.seen(INTERNET, "/upload"), 2);
    tunnel.process.signal(rustix::process::Signal::KILL);
    // Past the tunnel there is no need of it.
    client.download(&direct, 7, 100_000, "").unwrap();
}

/// `-F` in a CONNECT past the tunnel or through it: the whole URL of a request, and the site of what stays opaque.
fn what_is_direct_is_dropped_by_its_url(driver: Driver) {
    let Some(stage) = Stage::set(driver, "what_is_direct_is_dropped_by_its_url", &[]) else {
        return;
    };
    // On the ports that no URL names.
    let at = |address: Ipv4Addr| {
        let [http, https] = [80, 443].map(|port| SocketAddr::from((address, port)));
        let site = || Origin::start_at(http, https, &["www.cdn.test", "cdn.test"]);
        stage.inner.within(site).unwrap()
    };
    let (outside, inside) = (at(INTERNET), at(INNER));
    let opaque = r"^https://www\.cdn\.test/$";
    let pages = r"://(www\.cdn|intern)\.test/page\?resources=7$";
    let sockets = r"\.test/ws\?unwanted$";
    let list = [opaque, pages, sockets].join(",");
    let tunnel = stage.tunnel(&["-D", "cdn.test", "-F", &list]);

    let answer = connect(tunnel.proxy, "www.cdn.test:443").unwrap().unwrap_err();
    refused(&answer, 403, "blocked", opaque);
    // Another name, and no rule sees what is asked for.
    let trust = outside.site.client_config();
    let mut client = tls::client_through(tunnel.proxy, &trust, "cdn.test", 443)
        .unwrap()
        .unwrap();
    assert_eq!(client.get("/page?resources=7").unwrap().status(), 200);
    assert_eq!(outside.counters().connections, 1, "what is dropped is not dialled");

    let before = stage.requests(&tunnel);
    for (host, site, through) in [("www.cdn.test", &outside, 0), ("intern.test", &inside, 2)] {
        let counts = site.counters();
        let open = || {
            let socket = connect(tunnel.proxy, &format!("{host}:80")).unwrap().ok().unwrap();
            Client::over(socket).of_host(host)
        };
        let mut client = open();
        refused(&client.get("/page?resources=7").unwrap(), 403, "blocked", pages);
        assert_eq!(client.get("/page?resources=70").unwrap().status(), 200);
        let handshake = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
        let answer = open().request("GET", "/ws?unwanted", &handshake, &[]).unwrap();
        refused(&answer, 403, "blocked", sockets);
        let mut socket = WebSocket::open(open(), "/ws?wanted").unwrap();
        socket.echo(b"along").unwrap();
        assert_eq!(site.counters().requests, counts.requests + 2, "{host}");
        assert_eq!(stage.requests(&tunnel), before + through, "{host}");
    }
}

/// Past the tunnel too, in a CONNECT and without: stored, renewed by a condition, and over once somebody posts.
fn what_is_direct_is_cached(driver: Driver) {
    let Some(stage) = Stage::set(driver, "what_is_direct_is_cached", &[]) else {
        return;
    };
    let tunnel = stage.tunnel(&["-D", "cdn.test", "-B", "www.cdn.test"]);
    let before = stage.requests(&tunnel);
    let site = format!("cdn.test:{PORT}");
    let target = "/bytes/a?seed=1&length=1000&field=Cache-Control:max-age=600";
    let url = format!("http://{site}{target}");
    let mut whole = tunnel.client();
    let mut inside = Client::over(connect(tunnel.proxy, &site).unwrap().unwrap()).of_host(&site);
    for (asked, is_inside) in [(1, false), (1, true), (1, false)] {
        let answer = match is_inside {
            true => inside.get(target),
            false => whole.get(&url),
        };
        let answer = answer.unwrap();
        assert_eq!((answer.status(), answer.body.len()), (200, 1_000));
        assert_eq!(stage.seen(INTERNET, "/bytes/a"), asked);
    }
    for posted in 1..=2 {
        let answer = match posted {
            1 => whole.request("POST", &url, &[], b"x"),
            _ => inside.request("POST", target, &[], b"x"),
        };
        assert_eq!(answer.unwrap().status(), 200);
        for is_hit in [false, true] {
            let answer = whole.get(&url).unwrap();
            assert_eq!(hit_for(&answer).is_some(), is_hit, "{:?}", answer.head);
        }
        assert_eq!(stage.seen(INTERNET, "/bytes/a"), 1 + 2 * posted);
    }
    // But nothing of a host that is left alone as well.
    let alone = format!("www.cdn.test:{PORT}");
    let target = target.replace("/a?", "/alone?");
    let mut inside = Client::over(connect(tunnel.proxy, &alone).unwrap().unwrap()).of_host(&alone);
    for round in 1..=2 {
        for answer in [whole.get(&format!("http://{alone}{target}")), inside.get(&target)] {
            let answer = answer.unwrap();
            assert_eq!((answer.status(), answer.head.field("Cache-Status")), (200, None));
        }
        assert_eq!(stage.seen(INTERNET, "/bytes/alone"), 2 * round);
    }

    let listener = stage.inner.within(|| TcpListener::bind((INTERNET, 9_000))).unwrap();
    let (come, comes) = mpsc::channel();
    thread::spawn(move || listener.incoming().try_for_each(|socket| come.send(socket.unwrap())));
    let asked = || {
        let socket: TcpStream = comes.recv_timeout(PATIENCE).expect("the site is asked");
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut site = Connection::over(socket);
        let head = site.read_head().unwrap().expect("a request");
        (site, head)
    };
    let url = "http://cdn.test:9000/";
    whole.send("GET", url, &[], &[]).unwrap();
    let (mut site, _) = asked();
    let stale = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=0, stale-while-revalidate=600\r\nETag: \"v1\"\r\n\
          Content-Length: 5\r\nConnection: close\r\n\r\nfirst";
    site.write(stale).unwrap();
    whole.read_answer("GET").unwrap();
    // Given before the site has said anything.
    let answer = whole.get(url).unwrap();
    assert!(hit_for(&answer).is_some_and(|ttl| ttl <= 0), "{:?}", answer.head);
    let (mut site, head) = asked();
    assert_eq!(head.field("If-None-Match"), Some("\"v1\""));
    site.write(b"HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=600\r\nConnection: close\r\n\r\n")
        .unwrap();
    until("it is fresh", || {
        let answer = whole.get(url).unwrap();
        assert_eq!(answer.text(), "first");
        hit_for(&answer).is_some_and(|ttl| ttl > 0)
    });
    assert_eq!(stage.requests(&tunnel), before, "the tunnel carried some of it");
}

/// How many seconds it is fresh, if it comes from the cache.
fn hit_for(answer: &Answer) -> Option<i64> {
    let status = answer.head.field("Cache-Status")?;
    status.strip_prefix("culvert; hit; ttl=")?.parse().ok()
}

/// `-t` overrides `-D`: what it does not name goes past the tunnel, but for `localhost`.
fn what_is_not_for_the_tunnel_is_direct(driver: Driver) {
    let Some(stage) = Stage::set(driver, "what_is_not_for_the_tunnel_is_direct", &[]) else {
        return;
    };
    let tunnel = stage.tunnel(&["-D", "intern.test", "-t", "*.elsewhere.test,intern.test"]);
    let mut client = tunnel.client();
    client
        .download(&format!("http://intern.test:{PORT}"), 1, 10_000, "")
        .unwrap();
    client
        .download(&format!("http://cdn.test:{PORT}"), 2, 10_000, "")
        .unwrap();
    assert_eq!((stage.seen(INTERNET, "/bytes"), stage.seen(INNER, "/bytes")), (1, 1));
    // The tunnel host's, where nobody listens; the cloud's own would be denied.
    let answer = client.get("http://localhost:9/").unwrap();
    refused(&answer, 502, "refused", "localhost:9");
}

/// Addresses that are not on the internet are denied whatever names them; a network may be allowed.
fn the_internet_and_nothing_else(driver: Driver) {
    let allowed = ["--direct-networks", "10.99.0.0/30,127.0.0.0/8"];
    let Some(mut stage) = Stage::set(driver, "the_internet_and_nothing_else", &allowed) else {
        return;
    };
    let tunnel = stage.tunnel(&["-D", "cdn.test,93.184.215.14,10.0.0.0,::ffff:169.254.169.254"]);
    let mut client = tunnel.client();
    for host in ["metadata.cdn.test", "10.0.0.0", "[::ffff:169.254.169.254]"] {
        let answer = client.get(&format!("http://{host}/")).unwrap();
        refused(&answer, 403, "denied", "only the internet");
        let answer = connect(tunnel.proxy, &format!("{host}:443")).unwrap().unwrap_err();
        refused(&answer, 403, "denied", "only the internet");
    }
    client
        .download(&format!("http://rebound.cdn.test:{PORT}"), 1, 10_000, "")
        .unwrap();
    assert_eq!(stage.seen(INNER, "/bytes"), 1);
    refused(&client.get("http://cdn.test:9/").unwrap(), 502, "refused", "cdn.test:9");
    let answer = client.get("http://nowhere.cdn.test/").unwrap();
    refused(&answer, 502, "dns", "nowhere.cdn.test");
    // Of the cloud's own ports not even a network that is allowed has any.
    let listens = |line: &str| {
        let address = line.strip_prefix("REST: https://")?.split('/').next()?;
        address.parse::<SocketAddr>().ok()
    };
    let rest = stage.cloud.process.line("REST", listens).port();
    for port in [rest, tunnel.proxy.port()] {
        for host in ["loopback.cdn.test", "cloud.cdn.test"] {
            let answer = client.get(&format!("http://{host}:{port}/")).unwrap();
            refused(&answer, 403, "denied", "own ports are not reached");
        }
        let other = format!("half.cdn.test:{port}");
        refused(
            &client.get(&format!("http://{other}/")).unwrap(),
            502,
            "refused",
            &other,
        );
    }
    let errors = &stage.cloud.tunnel(&tunnel.id)["culvert"]["errors"];
    assert_eq!(errors, &serde_json::json!({ "denied": 10, "dns": 1, "refused": 3 }));
    // Without a broker nobody dials, and kept connections serve on.
    let direct = format!("http://{INTERNET}:{PORT}");
    client.download(&direct, 2, 10_000, "").unwrap();
    stage.cloud.kill();
    client.download(&direct, 3, 10_000, "").unwrap();
    let other = format!("http://cdn.test:{PORT}");
    refused(&client.get(&other).unwrap(), 503, "limit", "starts anew");
    stage.cloud.restart();
    stage.cloud.tunnel(&tunnel.id);
    client
        .download(&format!("http://cdn.test:{PORT}"), 4, 10_000, "")
        .unwrap();
}

/// Whatever a browser writes for loopback, link-local and metadata addresses, and for the cloud's own: nobody there is asked.
fn no_spelling_leads_to_the_clouds_own_host(driver: Driver) {
    let Some(stage) = Stage::set(driver, "no_spelling_leads_to_the_clouds_own_host", &[]) else {
        return;
    };
    // All that is not named goes past the tunnel.
    let tunnel = stage.tunnel(&["-t", "intern.test"]);
    let secret = [
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9_000)).unwrap(),
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, 9_001)).unwrap(),
    ];
    let mut client = tunnel.client();
    for host in [
        "127.0.0.1",
        "127.8.8.8",
        "[::1]",
        "[::ffff:7f00:1]",
        "localhost",
        "a.localhost",
    ] {
        // The tunnel host's own, where nobody listens.
        let url = format!("{host}:9000");
        refused(&client.get(&format!("http://{url}/")).unwrap(), 502, "refused", &url);
    }
    for host in [
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "0",
        "[::]",
        "[::ffff:10.99.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "loopback.cdn.test",
        "loopback6.cdn.test",
        "cloud.cdn.test",
        "10.99.0.1",
        "169.254.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "metadata.cdn.test",
        "192.168.0.1",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        for port in [9_000, 9_001] {
            let answer = client.get(&format!("http://{host}:{port}/")).unwrap();
            refused(&answer, 403, "denied", "only the internet");
            let answer = connect(tunnel.proxy, &format!("{host}:{port}")).unwrap().unwrap_err();
            refused(&answer, 403, "denied", "only the internet");
        }
    }
    for listener in secret {
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "the cloud's own host was asked");
    }
}

/// Names, each with its addresses at one look-up, at the next one, and so on from the first again.
type Zone = [(&'static str, &'static [&'static [&'static str]])];

/// What a name server of strangers says.
const ZONE: &Zone = &[
    ("loopback.half.test", &[&["93.184.215.14", "127.0.0.1"]]),
    ("metadata.half.test", &[&["169.254.169.254", "93.184.215.14"]]),
    ("cloud.half.test", &[&["10.99.0.1", "93.184.215.14"]]),
    ("loopback6.half.test", &[&["::1", "93.184.215.14"]]),
    ("mapped.half.test", &[&["::ffff:127.0.0.1", "93.184.215.14"]]),
    (
        "mapped-metadata.half.test",
        &[&["::ffff:169.254.169.254", "93.184.215.14"]],
    ),
    ("mapped.test", &[&["::ffff:127.0.0.1"]]),
    (
        "none-is-good.test",
        &[&["127.0.0.1", "169.254.169.254", "::1", "::ffff:10.99.0.1", "fe80::1"]],
    ),
    ("rebinds.test", &[&["93.184.215.14"], &["127.0.0.1"]]),
    ("rebinds-to-metadata.test", &[&["93.184.215.14"], &["169.254.169.254"]]),
    ("rebinds-to-mapped.test", &[&["93.184.215.14"], &["::ffff:127.0.0.1"]]),
];

/// In the world only: from now on it looks names up here.
fn serve_names(folder: &Path) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap();
    let own = folder.join("resolv.conf");
    fs::write(&own, "nameserver 127.0.0.1\n").unwrap();
    let bound = Command::new("mount")
        .arg("--bind")
        .arg(&own)
        .arg("/etc/resolv.conf")
        .status();
    assert!(bound.unwrap().success());
    thread::spawn(move || {
        let (mut turns, mut query) = (BTreeMap::new(), [0; 512]);
        while let Ok((length, asker)) = socket.recv_from(&mut query) {
            let answer = answer(&query[..length], &mut turns);
            socket.send_to(&answer, asker).unwrap();
        }
    });
}

/// Of the name server (RFC 1035 section 4.1).
fn answer(query: &[u8], turns: &mut BTreeMap<&'static str, usize>) -> Vec<u8> {
    const HEADER_BYTES: usize = 12;
    const A: u8 = 1;
    const AAAA: u8 = 28;
    let (mut labels, mut at) = (Vec::new(), HEADER_BYTES);
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(std::str::from_utf8(&query[at + 1..end]).unwrap());
        at = end;
    }
    let (name, kind) = (labels.join("."), query[at + 2]);
    let mut told = query[..at + 5].to_vec();
    told[8..HEADER_BYTES].fill(0);
    let Some((name, lists)) = ZONE.iter().find(|(known, _)| *known == name) else {
        told[2..8].copy_from_slice(&[0x81, 0x83, 0, 1, 0, 0]);
        return told;
    };
    // A look-up asks for both kinds, and for this one first.
    let turn = turns.entry(name).or_default();
    *turn += usize::from(kind == A);
    let addresses = lists[turn.saturating_sub(1) % lists.len()];
    let mut count = 0;
    for address in addresses.iter().map(|text| text.parse().unwrap()) {
        let octets = match (kind, address) {
            (A, IpAddr::V4(v4)) => v4.octets().to_vec(),
            (AAAA, IpAddr::V6(v6)) => v6.octets().to_vec(),
            _ => continue,
        };
        // The name of the question; nobody is to keep it for a second.
        told.extend([
            0xc0,
            HEADER_BYTES as u8,
            0,
            kind,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            octets.len() as u8,
        ]);
        told.extend(octets);
        count += 1;
    }
    told[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, count]);
    told
}

/// Names that have addresses of the cloud's own host beside one of the internet, or after it: the latter is dialled or none.
fn no_name_server_leads_there_either(driver: Driver) {
    /// Nobody listens there at the address of the internet.
    const SECRET: u16 = 9_000;
    let Some(stage) = Stage::set(driver, "no_name_server_leads_there_either", &[]) else {
        return;
    };
    serve_names(stage.folder.path());
    stage.inner.add_address(METADATA);
    let tunnel = stage.tunnel(&["-t", "intern.test"]);
    let at = |address: IpAddr| [PORT, SECRET].map(|port| TcpListener::bind((address, port)).unwrap());
    let own = at(Ipv6Addr::UNSPECIFIED.into());
    let metadata = stage.inner.within(|| at(METADATA.into()));

    let (half, others): (Vec<_>, Vec<_>) = ZONE.iter().partition(|(name, _)| name.ends_with(".half.test"));
    for (done, (name, _)) in half.iter().enumerate() {
        let mut client = tunnel.client();
        client
            .download(&format!("http://{name}:{PORT}"), 1, 10_000, "")
            .unwrap();
        assert_eq!(stage.seen(INTERNET, "/bytes"), done as u64 + 1, "{name}");
        let url = format!("{name}:{SECRET}");
        refused(&client.get(&format!("http://{url}/")).unwrap(), 502, "refused", &url);
        let answer = connect(tunnel.proxy, &url).unwrap().unwrap_err();
        refused(&answer, 502, "refused", &url);
    }
    for (name, lists) in others {
        // Each of its own connection, and none is kept: there is a look-up each time.
        let asked = || {
            let url = format!("http://{name}:{PORT}/bytes?seed=1&length=10&close");
            tunnel.client().get(&url).unwrap()
        };
        let (good, bad): (Vec<_>, Vec<_>) = (0..6).map(|_| asked()).partition(|answer| answer.status() == 200);
        for answer in &bad {
            refused(answer, 403, "denied", "only the internet");
        }
        assert_eq!((good.is_empty(), bad.is_empty()), (lists.len() == 1, false), "{name}");
    }
    for (listener, address) in own
        .iter()
        .map(|listener| (listener, Ipv4Addr::LOCALHOST))
        .chain(metadata.iter().map(|listener| (listener, METADATA)))
    {
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "{address} was asked");
        let _own = TcpStream::connect((address, listener.local_addr().unwrap().port())).unwrap();
        listener.accept().expect("whoever asks is noticed");
    }
}
