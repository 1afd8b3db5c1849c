//! A body of 1 GiB (10 GiB with `CULVERT_LONG`) beside 10,000 small requests over 100 connections, all exact.

use std::thread;

use tests::both_drivers;
use tests::cloud::{Cloud, Driver};
use tests::is_long;
use tests::origin::Origin;

both_drivers![down_beside_small_requests];

const CONNECTIONS: u64 = 100;
const REQUESTS: u64 = 100;

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
