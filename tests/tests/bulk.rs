//! A body of 1 GiB (10 GiB with `CULVERT_LONG`) beside 10,000 small requests over 100 connections, all exact; and what a
//! body costs in memory, whatever its length.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tests::both_drivers;
use tests::cloud::{Cloud, Driver, fault_lasts};
use tests::is_long;
use tests::origin::Origin;
use tests::process::memory_bytes;

both_drivers![down_beside_small_requests, a_body_costs_what_a_short_one_does];

const CONNECTIONS: u64 = 100;
const REQUESTS: u64 = 100;

/// What a body may cost: far less than it has.
const BODY_COST: u64 = 32 << 20;

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

/// Up and down, with a length, in chunks and up to the connection's end.
fn a_body_costs_what_a_short_one_does(driver: Driver) {
    let length: u64 = if is_long() { 10 << 30 } else { 300 << 20 };
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    let base = origin.base();
    tunnel.serves(&origin);
    let ids = [tunnel.process.id(), cloud.endpoint()];
    let before = ids.map(memory_bytes);
    for way in ["up", "up, in chunks", "", "&chunked", "&close"] {
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
            let mut client = tunnel.client();
            let moved = match way {
                "up" | "up, in chunks" => client.upload(&base, 1, length, way != "up"),
                query => client.download(&base, 1, length, query),
            };
            is_over.store(true, Ordering::Relaxed);
            moved.unwrap();
            look.join().unwrap()
        });
        let grown = [0, 1].map(|i| most[i] - before[i]);
        println!(
            "{way:?}: sc grew by {} KiB, the endpoint by {}",
            grown[0] >> 10,
            grown[1] >> 10
        );
        assert!(grown.iter().all(|grown| *grown < BODY_COST), "{way:?}: {grown:?}");
    }
    tunnel.stop();
}
