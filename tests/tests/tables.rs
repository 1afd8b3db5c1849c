//! What is remembered of requests that are over: it costs no more than is counted for it, and has an end.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::Arc;
use std::thread;

use dataplane::limits::{CACHE_BYTES, CACHE_VARIANTS_MAX, LEAVES_MAX, REPORTS_MAX};
use rustls::{ServerConfig, ServerConnection};
use tests::both_drivers;
use tests::bumping::World;
use tests::cloud::{Driver, Tunnel};
use tests::http::{Client, Connection};
use tests::process::anonymous_bytes;
use tests::tls;

both_drivers![
    what_is_stored_costs_what_is_counted,
    variants_of_a_page_have_an_end,
    hosts_without_number_have_an_end,
];

/// Browsers at a time.
const BROWSERS: usize = 8;
/// What is nobody's: what an allocator keeps for each size of block, and streams that are under way.
const REST_BYTES: u64 = 4 << 20;

/// Answers each request with the same bytes.
fn site_that_answers(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer: Arc<[u8]> = answer.into();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut connection, answer) = (Connection::over(socket.unwrap()), answer.clone());
            // Whoever leaves gets no more.
            thread::spawn(move || -> io::Result<()> {
                while connection.read_head()?.is_some() {
                    connection.write(&answer)?;
                }
                Ok(())
            });
        }
    });
    address
}

fn answer(fields: &str, body_bytes: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\n{fields}Content-Length: {body_bytes}\r\n\r\n");
    [head.into_bytes(), vec![b'b'; body_bytes]].concat()
}

/// Runs `work` with each of these numbers, by as many browsers at a time as there are.
fn share(numbers: Range<usize>, work: impl Fn(usize, &mut Client) + Sync, tunnel: &Tunnel) {
    thread::scope(|scope| {
        for browser in 0..BROWSERS {
            let (numbers, work) = (numbers.clone().skip(browser).step_by(BROWSERS), &work);
            scope.spawn(move || {
                let mut client = tunnel.client();
                numbers.for_each(|number| work(number, &mut client));
            });
        }
    });
}

fn get(client: &mut Client, url: &str, fields: &[(&str, &str)]) {
    let answer = client.request("GET", url, fields, &[]).unwrap();
    assert_eq!(answer.status(), 200, "{url}: {}", answer.text());
}

/// All that serves a request for once has served one.
fn warm(driver: Driver) -> World {
    let world = World::start(driver);
    let site = site_that_answers(answer("Vary: *\r\n", 10));
    share(
        0..100,
        |_, client| get(client, &format!("http://{site}/"), &[]),
        &world.tunnel,
    );
    world
}

/// What REST shows of the cache.
fn cached(world: &World, name: &str) -> u64 {
    let cache = &world.cloud.tunnel(&world.tunnel.id)["culvert"]["cache"];
    cache[name].as_u64().unwrap()
}

fn memory(world: &World) -> u64 {
    anonymous_bytes(world.cloud.endpoint())
}

/// Tiny answers first, whose tables have more than they themselves; then large ones up to all that the cache may hold,
/// and tiny ones in their place.
fn what_is_stored_costs_what_is_counted(driver: Driver) {
    const TINY: usize = 8_000;
    const LARGE_BYTES: usize = 1 << 20;
    let world = warm(driver);
    let (before, held, entries) = (memory(&world), cached(&world, "bytes"), cached(&world, "entries"));
    let check = |what: &str| {
        let (grown, counted) = (memory(&world).saturating_sub(before), cached(&world, "bytes") - held);
        println!("{what}: grew by {} KiB, {} KiB are counted", grown >> 10, counted >> 10);
        // A block may have a quarter more than was asked for.
        assert!(
            grown <= counted / 4 * 5 + REST_BYTES,
            "{what}: {grown} bytes, {counted} counted"
        );
        assert!(held + counted <= CACHE_BYTES as u64, "{what}: {counted}");
    };
    let ask = |site: SocketAddr, numbers: Range<usize>| {
        let get = |number, client: &mut Client| get(client, &format!("http://{site}/{number}"), &[]);
        share(numbers, get, &world.tunnel);
    };
    let tiny = site_that_answers(answer("", 0));
    ask(tiny, 0..TINY);
    check("tiny answers");
    assert_eq!(cached(&world, "entries") - entries, TINY as u64);
    let large = site_that_answers(answer("", LARGE_BYTES));
    ask(large, 0..CACHE_BYTES / LARGE_BYTES + BROWSERS);
    check("large answers");
    assert!(
        cached(&world, "bytes") > (CACHE_BYTES - 2 * LARGE_BYTES) as u64,
        "it is not full"
    );
    ask(tiny, TINY..TINY + TINY / 4);
    check("more tiny answers");
    world.tunnel.stop();
}

/// Of one URL only so many are kept, however many there are and however long what they were chosen by.
fn variants_of_a_page_have_an_end(driver: Driver) {
    const VARIANTS: usize = 200;
    const BODY_BYTES: usize = 10_000;
    let world = warm(driver);
    let (before, entries) = (memory(&world), cached(&world, "entries"));
    let url = format!(
        "http://{}/",
        site_that_answers(answer("Vary: X-Session\r\n", BODY_BYTES))
    );
    let get = |number, client: &mut Client| {
        let session = format!("{number:030000}");
        get(client, &url, &[("X-Session", &session)]);
    };
    share(0..VARIANTS, get, &world.tunnel);
    assert_eq!(cached(&world, "entries") - entries, CACHE_VARIANTS_MAX as u64);
    let grown = memory(&world).saturating_sub(before);
    println!("variants: grew by {} KiB", grown >> 10);
    let kept = (CACHE_VARIANTS_MAX * BODY_BYTES) as u64;
    assert!(grown <= kept + REST_BYTES, "{grown} bytes");
    world.tunnel.stop();
}

/// Hosts whose TLS ends at the endpoint: more than it has places for leaves and reports, and then half as many again.
fn hosts_without_number_have_an_end(driver: Driver) {
    // Parts of a table are full one after the other.
    const HOSTS: usize = LEAVES_MAX + LEAVES_MAX / 4;
    const { assert!(REPORTS_MAX <= LEAVES_MAX) };
    /// Of a host, with its leaf and its report.
    const HOST_BYTES: u64 = 8 << 10;
    let world = World::start(driver);
    let hosts = world.company.site(&["*.hosts.localhost"], |_| {});
    let site = site_that_shakes_hands(hosts.server_config());
    let open = |number, _: &mut Client| {
        let host = format!("{number}.hosts.localhost");
        tls::client_through(world.tunnel.proxy, &world.trust, &host, site.port())
            .unwrap()
            .unwrap();
    };
    let ids = [world.tunnel.process.id(), world.cloud.endpoint()];
    let memory = || ids.map(anonymous_bytes);
    let before = memory();
    share(0..HOSTS, open, &world.tunnel);
    let full = memory();
    share(HOSTS..HOSTS + HOSTS / 2, open, &world.tunnel);
    let after = memory();
    for (name, at) in [("sc", 0), ("endpoint", 1)] {
        let (first, then) = (full[at].saturating_sub(before[at]), after[at].saturating_sub(full[at]));
        println!("{name} grew by {} KiB, then by {}", first >> 10, then >> 10);
        let allowed = HOSTS as u64 * HOST_BYTES;
        assert!(first + then <= allowed, "{name}: {first} bytes, then {then}");
        // The tables of `sc` are so small that what its allocator takes at a time is more.
        assert!(name == "sc" || then <= allowed / 6, "{name}: {then} bytes more");
    }
    world.tunnel.stop();
}

/// On each connection, and says nothing in it.
fn site_that_shakes_hands(config: Arc<ServerConfig>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, config) = (socket.unwrap(), config.clone());
            thread::spawn(move || {
                let mut tls = ServerConnection::new(config).unwrap();
                // Whoever breaks it off has had what it wanted.
                while tls.is_handshaking()
                    && tls
                        .complete_io(&mut socket)
                        .is_ok_and(|(read, written)| read + written > 0)
                {}
            });
        }
    });
    address
}
