//! The endpoint's response cache, as browsers and sites see it.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use dataplane::limits::{CACHE_FOLLOW_MAX, DRAIN_SILENCE_MAX};
use tests::body::{self, Check};
use tests::both_drivers;
use tests::cloud::{Cloud, CloudOptions, Driver, Tunnel, fault_lasts};
use tests::deaf::Closed;
use tests::http::{Answer, Client, Connection, PATIENCE, connect, dial};
use tests::origin::Origin;
use tests::process::is_closed_to_us;
use tests::socket::watched_by;

both_drivers![
    what_is_stored_is_not_asked_for_again,
    what_differs_is_told_apart,
    nothing_of_a_session_crosses,
    what_changes_on_one_shard_is_gone_on_the_other,
    equal_requests_go_once,
    who_leaves_lets_the_others_go_on,
    stale_answers_are_renewed_in_the_background,
    a_renewal_holds_up_no_drain,
    a_drain_waits_for_what_is_being_sent,
    large_bodies_are_exact,
    a_cut_body_is_never_stored,
    requests_in_a_connect_are_cached,
    a_site_that_is_gone_is_stood_in_for,
    without_caching_each_request_goes_to_its_site,
    hosts_that_are_left_alone_are_not_cached,
    the_target_is_the_key_whatever_host_says,
];

const FRESH: &str = "&field=Cache-Control:max-age=600";
/// Of bodies whose length does not matter.
const LENGTH: u64 = 10_000;

struct World {
    cloud: Cloud,
    tunnel: Tunnel,
    origin: Origin,
}

impl World {
    fn start(driver: Driver) -> Self {
        Self::with(CloudOptions::new(driver), &["--shards", "1"])
    }

    fn with(options: CloudOptions, sc: &[&str]) -> Self {
        let origin = Origin::start();
        let cloud = Cloud::with(options);
        let tunnel = cloud.start_bumping_tunnel(sc);
        Self { cloud, tunnel, origin }
    }

    fn url(&self, name: &str, query: &str) -> String {
        format!("{}/bytes/{name}?seed=1&length={LENGTH}{query}", self.origin.base())
    }

    /// How often the site was asked for it.
    fn asked(&self, name: &str) -> u64 {
        self.origin.counters().path(&format!("/bytes/{name}"))
    }

    /// GET on a connection of its own, with the whole body.
    fn get(&self, url: &str, fields: &[(&str, &str)]) -> Answer {
        let answer = self
            .tunnel
            .client()
            .request("GET", url, fields, &[])
            .expect("an answer");
        assert_eq!(answer.status(), 200, "{:?}", answer.head);
        assert_eq!(answer.body, body::bytes(1, LENGTH as usize));
        answer
    }

    /// Nothing new begins, and what is open goes on.
    fn drain(&self) {
        let path = format!("/{}/tunnels/{}?wait_for_jobs=true", self.cloud.user, self.tunnel.id);
        assert_eq!(self.cloud.rest("DELETE", &path).status(), 200);
    }

    fn counted(&self, field: &str) -> u64 {
        let tunnel = self.cloud.tunnel(&self.tunnel.id);
        tunnel["culvert"]["cache"][field].as_u64().expect("a count")
    }
}

fn status(answer: &Answer) -> &str {
    answer.head.field("Cache-Status").unwrap_or("none")
}

const STORED: &str = "culvert; fwd=uri-miss; stored";
const HIT: &str = "culvert; hit; ttl=";

/// Cache-Status of a page of `site` that is asked for with another Host.
fn get_as(world: &World, site: &str, host: &str, path: &str) -> String {
    let mut client = world.tunnel.client();
    let head = format!("GET http://{site}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    client.send_raw(head.as_bytes()).unwrap();
    let answer = client.read_answer("GET").unwrap();
    assert_eq!(answer.status(), 200, "{:?}", answer.head);
    status(&answer).to_owned()
}

fn assert_hit(answer: &Answer) {
    assert!(status(answer).starts_with(HIT), "{:?}", answer.head);
    let age: Option<u64> = answer.head.field("Age").and_then(|age| age.parse().ok());
    assert!(age.is_some_and(|age| age < 600), "{:?}", answer.head);
}

fn what_is_stored_is_not_asked_for_again(driver: Driver) {
    let world = World::start(driver);
    let url = world.url("a", &format!("{FRESH}&field=ETag:\"v1\""));
    let miss = world.get(&url, &[]);
    assert_eq!(status(&miss), STORED);
    assert!(miss.head.field("Age").is_none());

    let mut client = world.tunnel.client();
    for _ in 0..2 {
        let hit = client.get(&url).unwrap();
        assert_eq!((hit.status(), &hit.body), (200, &miss.body));
        assert_hit(&hit);
    }
    let head = client.request("HEAD", &url, &[], &[]).unwrap();
    assert_eq!(head.head.field("Content-Length"), Some("10000"));
    let same = client
        .request("GET", &url, &[("If-None-Match", "\"v1\"")], &[])
        .unwrap();
    assert_eq!((same.status(), same.body.len()), (304, 0));
    let part = client.request("GET", &url, &[("Range", "bytes=100-199")], &[]).unwrap();
    assert_eq!(part.head.field("Content-Range"), Some("bytes 100-199/10000"));
    assert_eq!((part.status(), &part.body[..]), (206, &miss.body[100..200]));
    let none = client.request("GET", &url, &[("Range", "bytes=10000-")], &[]).unwrap();
    assert_eq!(none.status(), 416);
    assert_eq!(world.asked("a"), 1);

    let chunked = world.url("b", &format!("{FRESH}&chunked"));
    assert_hit(&[world.get(&chunked, &[]), world.get(&chunked, &[])][1]);
    assert_eq!(world.asked("b"), 1);
    let only = [("Cache-Control", "only-if-cached")];
    let absent = client.request("GET", &world.url("c", ""), &only, &[]).unwrap();
    assert_eq!(
        (absent.status(), absent.head.field("Culvert-Error")),
        (504, Some("only-if-cached"))
    );
    assert_eq!(world.asked("c"), 0);

    // Three whole bodies of `a`, a part of it, and one of `b`.
    assert_eq!((world.counted("hits"), world.counted("misses")), (7, 2));
    assert_eq!(
        (world.counted("bytes_saved"), world.counted("entries")),
        (3 * LENGTH + 100, 2)
    );
    assert!(world.counted("bytes") > 2 * LENGTH);
}

fn what_differs_is_told_apart(driver: Driver) {
    let world = World::start(driver);
    let url = world.url("vary", &format!("{FRESH}&field=Vary:X-Lang"));
    for (language, asked) in [("a", 1), ("a", 1), ("b", 2), ("a", 2), ("b", 2)] {
        world.get(&url, &[("X-Lang", language)]);
        assert_eq!(world.asked("vary"), asked, "{language}");
    }
    world.get(&world.url("query", FRESH), &[]);
    world.get(&world.url("query", &format!("{FRESH}&other")), &[]);
    assert_eq!(world.asked("query"), 2, "the query is part of the key");
    let again = world.url("query", FRESH).replace("127.0.0.1", "localhost");
    world.get(&again, &[]);
    assert_eq!(world.asked("query"), 3, "the host is");
}

/// Set-Cookie and Authorization.
fn nothing_of_a_session_crosses(driver: Driver) {
    let world = World::start(driver);
    let url = world.url("cookie", &format!("{FRESH}&field=Set-Cookie:sid=1"));
    assert_eq!(world.get(&url, &[]).head.field("Set-Cookie"), Some("sid=1"));
    let hit = world.get(&url, &[]);
    assert_hit(&hit);
    assert_eq!(hit.head.field("Set-Cookie"), None);

    let own = [("Authorization", "Basic eDp5")];
    let url = world.url("own", FRESH);
    world.get(&url, &own);
    world.get(&url, &own);
    assert_eq!(world.asked("own"), 2);
    let url = world.url("public", "&field=Cache-Control:public,+max-age=600");
    world.get(&url, &own);
    assert_hit(&world.get(&url, &[]));
    assert_eq!(world.asked("public"), 1);
}

/// Browsers that are served by one shard and by the other.
fn on_both_shards(world: &World, browsers: usize) -> Vec<Client> {
    let url = format!("{}/echo-head", world.origin.base());
    let endpoint = world.cloud.endpoint();
    let mut shards = BTreeSet::new();
    let clients = (0..browsers).map(|_| {
        let socket = dial(world.tunnel.proxy).unwrap();
        let mut client = Client::over(socket.try_clone().unwrap());
        // What comes alone goes to the shard that got fewest.
        assert_eq!(client.get(&url).unwrap().status(), 200);
        shards.extend(watched_by(endpoint, &socket));
        client
    });
    let clients = clients.collect();
    assert!(shards.len() == 2 || is_closed_to_us(endpoint), "{shards:?}");
    clients
}

fn what_changes_on_one_shard_is_gone_on_the_other(driver: Driver) {
    let mut options = CloudOptions::new(driver);
    options.endpoint_shards = 2;
    let world = World::with(options, &["--shards", "2"]);
    let url = world.url("a", FRESH);
    let mut clients = on_both_shards(&world, 6);
    let mut asked = 0;
    for poster in 0..clients.len() {
        for client in &mut clients {
            assert_eq!(client.get(&url).unwrap().body.len() as u64, LENGTH);
        }
        asked += 1;
        assert_eq!(world.asked("a"), asked, "all but the first are hits");
        let posted = clients[poster].request("POST", &url, &[], b"x").unwrap();
        assert_eq!(posted.status(), 200);
        asked += 1;
    }
}

fn equal_requests_go_once(driver: Driver) {
    const BROWSERS: usize = 20;
    let mut options = CloudOptions::new(driver);
    options.endpoint_shards = 2;
    let world = World::with(options, &["--shards", "2"]);
    let url = world.url("a", &format!("{FRESH}&held"));
    let mut clients = on_both_shards(&world, BROWSERS);
    for client in &mut clients {
        client.send("GET", &url, &[], &[]).unwrap();
    }
    world.origin.wait("a held answer", |c| c.held == 1);
    // The endpoint has read what was sent before.
    world.tunnel.serves(&world.origin);
    world.origin.open_gate();
    let answers: Vec<Answer> = clients.iter_mut().map(|c| c.read_answer("GET").unwrap()).collect();
    assert!(
        answers
            .iter()
            .all(|a| a.body == answers[0].body && a.body.len() as u64 == LENGTH)
    );
    assert_eq!(world.asked("a"), 1);
    let collapsed = answers.iter().filter(|a| status(a).contains("; collapsed"));
    assert!(collapsed.count() > 0, "nobody has waited");
}

fn who_leaves_lets_the_others_go_on(driver: Driver) {
    let world = World::start(driver);
    // More than its own socket takes.
    let length = 4 << 20;
    let url = format!("{}/bytes/a?seed=1&length={length}{FRESH}&held", world.origin.base());
    let leader = dial(world.tunnel.proxy).unwrap();
    let mut client = Client::over(leader.try_clone().unwrap());
    client.send("GET", &url, &[], &[]).unwrap();
    world.origin.wait("a held answer", |c| c.held == 1);
    let mut follower = world.tunnel.client();
    follower.send("GET", &url, &[], &[]).unwrap();
    world.tunnel.serves(&world.origin);
    assert_eq!(world.asked("a"), 1, "the second waits for the first");
    let left = Instant::now();
    socket2::SockRef::from(&leader)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop((leader, client));
    world.origin.wait("the second request", |c| c.path("/bytes/a") == 2);
    assert!(left.elapsed() < CACHE_FOLLOW_MAX, "it was not let go");
    world.origin.open_gate();
    assert_exact(&mut follower, 1, length);
}

fn stale_answers_are_renewed_in_the_background(driver: Driver) {
    let world = World::start(driver);
    let url = world.url(
        "a",
        "&field=Cache-Control:max-age=0,+stale-while-revalidate=600&field=ETag:\"v1\"",
    );
    world.get(&url, &[]);
    let stale = world.get(&url, &[]);
    assert!(status(&stale).starts_with("culvert; hit; ttl="), "{:?}", stale.head);
    world.origin.wait("the renewal", |c| c.path("/bytes/a") == 2);
}

fn a_renewal_holds_up_no_drain(driver: Driver) {
    let world = World::start(driver);
    let site = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let asked = || {
        let mut site = Connection::over(site.accept().unwrap().0);
        site.read_head().unwrap().expect("a request");
        site
    };
    let url = format!("http://{}/", site.local_addr().unwrap());
    let mut client = world.tunnel.client();
    client.send("GET", &url, &[], &[]).unwrap();
    asked()
        .write(
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=0, stale-while-revalidate=600\r\n\
              Content-Length: 0\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    client.read_answer("GET").unwrap();
    let stale = client.get(&url).unwrap();
    assert!(status(&stale).starts_with("culvert; hit; ttl="), "{:?}", stale.head);
    let never_answered = asked();
    let begun = Instant::now();
    world.drain();
    world.cloud.await_end(&world.tunnel.id);
    assert!(begun.elapsed() < DRAIN_SILENCE_MAX, "{:?}", begun.elapsed());
    drop(never_answered);
}

fn a_drain_waits_for_what_is_being_sent(driver: Driver) {
    // More than the sockets between hold.
    const LONG: u64 = 7 << 20;
    let world = World::start(driver);
    let url = format!("{}/bytes/a?seed=1&length={LONG}{FRESH}", world.origin.base());
    let mut idle = dial(world.tunnel.proxy).unwrap();
    let mut client = Client::over(idle.try_clone().unwrap());
    client.send("GET", &url, &[], &[]).unwrap();
    assert_exact(&mut client, 1, LONG);

    let mut slow = Client::over(narrow(world.tunnel.proxy));
    slow.send("GET", &url, &[], &[]).unwrap();
    let head = slow.read_head().unwrap();
    assert!(
        head.field("Cache-Status").is_some_and(|s| s.contains("hit")),
        "{head:?}"
    );
    world.drain();
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "who asks for nothing goes");
    fault_lasts(Duration::from_secs(1));
    let mut check = Check::new(1);
    slow.read_body(&head, &mut |piece| check.update(piece)).unwrap();
    assert_eq!(check.offset(), LONG);
    drop(slow);
    world.cloud.await_end(&world.tunnel.id);
    assert_eq!(world.asked("a"), 1);
}

/// A connection that takes little at a time.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

fn large_bodies_are_exact(driver: Driver) {
    let world = World::start(driver);
    let mut client = world.tunnel.client();
    for (name, length, asked) in [("stored", 5 << 20, 1), ("too-large", (8 << 20) + 1, 2)] {
        for framing in ["", "&chunked"] {
            let name = format!("{name}{}", framing.len());
            let url = format!(
                "{}/bytes/{name}?seed=7&length={length}{FRESH}{framing}",
                world.origin.base()
            );
            for _ in 0..2 {
                client.send("GET", &url, &[], &[]).unwrap();
                assert_exact(&mut client, 7, length);
            }
            assert_eq!(world.asked(&name), asked, "{name}");
        }
    }
}

fn assert_exact(client: &mut Client, seed: u64, length: u64) {
    let head = client.read_head().unwrap();
    assert_eq!(head.status(), 200, "{head:?}");
    let mut check = Check::new(seed);
    client.read_body(&head, &mut |piece| check.update(piece)).unwrap();
    assert_eq!(check.offset(), length);
}

fn a_cut_body_is_never_stored(driver: Driver) {
    let world = World::start(driver);
    for (asked, framing) in [(2, ""), (4, "&chunked")] {
        let url = format!(
            "{}/bytes/a?seed=1&length=200000{FRESH}&cut{framing}",
            world.origin.base()
        );
        for _ in 0..2 {
            let mut client = world.tunnel.client();
            client.get(&url).expect_err("half a body is no answer");
        }
        assert_eq!(world.asked("a"), asked);
    }
    assert_eq!(world.counted("entries"), 0);
}

fn requests_in_a_connect_are_cached(driver: Driver) {
    let world = World::start(driver);
    let url = world.url("a", FRESH);
    world.get(&url, &[]);
    let site = world.origin.http.to_string();
    let inside = connect(world.tunnel.proxy, &site).unwrap().expect("a connection");
    let mut client = Client::over(inside);
    let target = url.strip_prefix(&world.origin.base()).unwrap();
    for _ in 0..2 {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {site}\r\n\r\n");
        client.send_raw(head.as_bytes()).unwrap();
        assert_hit(&client.read_answer("GET").unwrap());
    }
    assert_eq!(world.asked("a"), 1);
}

fn a_site_that_is_gone_is_stood_in_for(driver: Driver) {
    let world = World::start(driver);
    // Nothing keeps its connection.
    let stale = "&field=Cache-Control:max-age=50,+stale-if-error=600&field=Age:100&field=ETag:\"v1\"";
    let url = world.url("a", &format!("&close{stale}"));
    world.get(&url, &[]);
    let World {
        cloud: _cloud,
        tunnel,
        origin,
    } = world;
    let site = origin.http;
    drop(origin);
    let _closed = Closed::instead_of(site);
    let mut client = tunnel.client();
    let stale = client.get(&url).unwrap();
    assert_eq!((stale.status(), stale.body.len() as u64), (200, LENGTH));
    assert!(status(&stale).ends_with("detail=unreachable"), "{:?}", stale.head);
    // What was never seen has nothing to stand in for it.
    let other = client.get(&url.replace("/bytes/a", "/bytes/b")).unwrap();
    assert_eq!(other.status(), 502);
}

fn without_caching_each_request_goes_to_its_site(driver: Driver) {
    let world = World::with(CloudOptions::new(driver), &["--shards", "1", "-N"]);
    let url = world.url("a", FRESH);
    for asked in 1..=2 {
        let answer = world.get(&url, &[]);
        assert_eq!(status(&answer), "none");
        assert_eq!(world.asked("a"), asked);
    }
    let tunnel = world.cloud.tunnel(&world.tunnel.id);
    assert_eq!(
        (&tunnel["no_proxy_caching"], &tunnel["use_caching_proxy"]),
        (&true.into(), &false.into())
    );
    assert_eq!((world.counted("hits"), world.counted("misses")), (0, 0));
}

fn hosts_that_are_left_alone_are_not_cached(driver: Driver) {
    let world = World::with(CloudOptions::new(driver), &["--shards", "1", "-B", "localhost"]);
    let port = world.origin.http.port();
    let path = |name: &str| format!("/bytes/{name}?seed=1&length={LENGTH}{FRESH}");
    let (alone, other) = (format!("localhost:{port}"), world.origin.http.to_string());
    for asked in 1..=2 {
        assert_eq!(get_as(&world, &alone, &alone, &path("whole")), "none");
        let inside = connect(world.tunnel.proxy, &alone).unwrap().expect("a connection");
        let mut client = Client::over(inside);
        let head = format!("GET {} HTTP/1.1\r\nHost: {alone}\r\n\r\n", path("inside"));
        client.send_raw(head.as_bytes()).unwrap();
        let answer = client.read_answer("GET").unwrap();
        assert_eq!((answer.status(), status(&answer)), (200, "none"));
        assert_eq!((world.asked("whole"), world.asked("inside")), (asked, asked));
    }
    assert_eq!((world.counted("entries"), world.counted("misses")), (0, 0));
    assert_eq!(get_as(&world, &other, &other, &path("whole")), STORED);
    assert!(get_as(&world, &other, &other, &path("whole")).starts_with(HIT));
}

fn the_target_is_the_key_whatever_host_says(driver: Driver) {
    let world = World::start(driver);
    let path = format!("/bytes/a?seed=1&length={LENGTH}{FRESH}");
    let (asked, named) = (
        format!("localhost:{}", world.origin.http.port()),
        world.origin.http.to_string(),
    );
    assert_eq!(get_as(&world, &asked, &named, &path), STORED);
    assert_eq!(
        get_as(&world, &named, &named, &path),
        STORED,
        "a page of the host that the field named"
    );
    for host in [&asked, &named] {
        assert!(get_as(&world, &asked, host, &path).starts_with(HIT));
    }
    assert_eq!(world.asked("a"), 2);
}

/// Browsers on both shards at once, and one that changes what they ask for.
#[test]
fn parallel_browsers_see_what_was_written_last() {
    let mut options = CloudOptions::new(Driver::Epoll);
    options.endpoint_shards = 2;
    let world = World::with(options, &["--shards", "2"]);
    let url = world.url("a", FRESH);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = world.tunnel.client();
                for _ in 0..50 {
                    assert_eq!(client.get(&url).unwrap().body.len() as u64, LENGTH);
                }
            });
        }
        scope.spawn(|| {
            let mut client = world.tunnel.client();
            for _ in 0..50 {
                client.request("POST", &url, &[], b"x").unwrap();
            }
        });
    });
    let before = world.asked("a");
    world.tunnel.client().request("POST", &url, &[], b"x").unwrap();
    world.get(&url, &[]);
    world.get(&url, &[]);
    assert_eq!(world.asked("a"), before + 2);
}
