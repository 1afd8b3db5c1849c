//! A body of 1 GiB (10 GiB with `CULVERT_LONG`) beside 10,000 small requests over 100 connections, all exact; and what a
//! body costs in memory, whatever its length, and however it goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustls::ClientConfig;
use tests::bumping::World;
use tests::cloud::{Cloud, Driver, fault_lasts, until};
use tests::http::{Client, connect};
use tests::origin::Origin;
use tests::process::memory_bytes;
use tests::{both_drivers, is_long, tls};

both_drivers![down_beside_small_requests, a_body_costs_what_a_short_one_does];

const CONNECTIONS: u64 = 100;
const REQUESTS: u64 = 100;

/// What a body may cost: far less than it has.
const BODY_COST: u64 = 32 << 20;
/// Bodies that a browser sends, with a length and in chunks; what a site sends is named by its query.
const UP: &str = "up";
const UP_CHUNKED: &str = "up, in chunks";

fn down_beside_small_requests(driver: Driver) {
    let length: u64 = if is_long() { 10 << 30 } else { 1 << 30 };
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    let base = origin.base();
    thread::scope(|scope| {
        // Half down, half up: 1 GiB in all.
        let (tunnel, base) = (&tunnel, &base);
        scope.spawn(move || tunnel.client().download(base, 1, length / 2, "").unwrap());
        scope.spawn(move || tunnel.client().upload(base, 2, length / 2, true).unwrap());
        for connection in 0..CONNECTIONS {
            scope.spawn(move || {
                let mut client = tunnel.client();
                for i in 0..REQUESTS {
                    client
                        .download(base, 1_000 + connection * REQUESTS + i, 1_000 + i, "")
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(origin.counters().requests, CONNECTIONS * REQUESTS + 2);
    tunnel.stop();
}

/// How a browser reaches the site.
#[derive(Clone, Copy, Debug)]
enum Way {
    Url,
    /// HTTP in a CONNECT.
    Connect,
    /// TLS that ends at the endpoint.
    Bumped,
    /// TLS of a host that is left alone.
    Opaque,
}

/// Of an answer that may be stored, if the cache takes one so large.
const STORABLE: &str = "&field=Cache-Control:max-age=600";

/// Up and down, with a length, in chunks and up to the connection's end.
fn a_body_costs_what_a_short_one_does(driver: Driver) {
    let world = World::with(driver, &["-B", "localhost"]);
    let origin = world.origin();
    let World {
        cloud, tunnel, trust, ..
    } = world;
    let secure = |trust: &Arc<ClientConfig>, host: &str| {
        let client = tls::client_through(tunnel.proxy, trust, host, origin.https.port());
        (client.unwrap().unwrap(), String::new())
    };
    let open = |way| match way {
        Way::Url => (tunnel.client(), origin.base()),
        Way::Connect => {
            let authority = origin.http.to_string();
            let socket = connect(tunnel.proxy, &authority).unwrap().unwrap();
            (Client::over(socket).of_host(&authority), String::new())
        }
        Way::Bumped => secure(&trust, "127.0.0.1"),
        Way::Opaque => secure(&origin.site.client_config(), "localhost"),
    };
    for way in [Way::Url, Way::Connect, Way::Bumped, Way::Opaque] {
        let (mut client, base) = open(way);
        client.download(&base, 1, 1_000, "").unwrap();
    }
    let cached = || {
        let cache = &cloud.tunnel(&tunnel.id)["culvert"]["cache"];
        (cache["entries"].as_u64().unwrap(), cache["bytes"].as_u64().unwrap())
    };
    let unfilled = cached();
    let ids = [tunnel.process.id(), cloud.endpoint()];
    let before = ids.map(memory_bytes);
    let uploads = [UP, UP_CHUNKED].map(str::to_owned);
    let downloads = ["", "&chunked", "&close"].map(str::to_owned);
    let storable = downloads.clone().map(|query| query + STORABLE);
    let whole = uploads.into_iter().chain(downloads).chain(storable.clone());
    let bodies = whole
        .map(|body| (Way::Url, body))
        .chain([UP, "&chunked"].map(|body| (Way::Connect, body.to_owned())))
        .chain([UP_CHUNKED, ""].map(|body| (Way::Bumped, body.to_owned())))
        .chain(storable[1..].iter().map(|body| (Way::Bumped, body.clone())))
        .chain([UP, ""].map(|body| (Way::Opaque, body.to_owned())));
    for (way, body) in bodies {
        let length: u64 = match (is_long(), way) {
            (true, Way::Url) if !body.ends_with(STORABLE) => 10 << 30,
            (true, _) => 1 << 30,
            (false, _) => 80 << 20,
        };
        let is_over = AtomicBool::new(false);
        let most = thread::scope(|scope| {
            let look = scope.spawn(|| {
                let mut most = before;
                while !is_over.load(Ordering::Relaxed) {
                    most = [0, 1].map(|i| most[i].max(memory_bytes(ids[i])));
                    fault_lasts(Duration::from_millis(5));
                }
                most
            });
            let (mut client, base) = open(way);
            let moved = match body.as_str() {
                UP | UP_CHUNKED => client.upload(&base, 1, length, body == UP_CHUNKED),
                query => client.download(&base, 1, length, query),
            };
            is_over.store(true, Ordering::Relaxed);
            moved.unwrap();
            look.join().unwrap()
        });
        let grown = [0, 1].map(|i| most[i] - before[i]);
        println!(
            "{way:?} {body:?}: sc grew by {} KiB, the endpoint by {}",
            grown[0] >> 10,
            grown[1] >> 10
        );
        assert!(
            grown.iter().all(|grown| *grown < BODY_COST),
            "{way:?} {body:?}: {grown:?}"
        );
    }
    until("the cache gives back what it has begun", || cached() == unfilled);
    tunnel.stop();
}
