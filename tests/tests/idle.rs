//! What a stream costs that carried bytes both ways and is idle now, at both ends, on real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tests::body;
use tests::both_drivers;
use tests::cloud::{Cloud, CloudOptions, Driver, binary, fault_lasts};
use tests::http;
use tests::process::{Process, memory_bytes, raise_own_limit};
use tests::{is_long, leave_out};

both_drivers![idle_streams_are_cheap];

/// Carried by each stream, each way.
const CARRIED_BYTES: usize = 256 * 1024;
/// Written and read in turn, so that neither waits for the other with full hands.
const STEP_BYTES: usize = 16 * 1024;
/// Of each stream and side.
const IDLE_BYTES_MAX: u64 = 8 * 1024;
/// Within this the memory must be given back.
const REST: Duration = Duration::from_secs(30);
const THREADS: usize = 8;
/// Descriptors of this process that are no stream's.
const FDS_RESERVED: u64 = 200;

/// In the long form this process has descriptors for one driver at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn idle_streams_are_cheap(driver: Driver) {
    let _alone = is_long().then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
    let streams = streams();
    let cloud = Cloud::with(CloudOptions {
        arguments: ["--max-streams", "12000", "--memory-max", "1024"]
            .map(str::to_owned)
            .into(),
        ..CloudOptions::new(driver)
    });
    let tunnel = cloud.start_tunnel_with(&["--shards", "1", "--max-streams", "12000"]);
    let (sc, endpoint) = (tunnel.process.id(), cloud.endpoint());
    // Has the other ends: with them this process would need more descriptors than many machines allow it.
    let echo = Process::start(&mut Command::new(binary("echo-site")));
    let site = echo.line("its address", |line| line.strip_prefix("Listening: ")?.parse().ok());
    let open = |first: usize, count: usize| -> Vec<TcpStream> {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|t| {
                    let seeds = (first..first + count).skip(t).step_by(THREADS);
                    scope.spawn(move || {
                        seeds
                            .map(|seed| carry(tunnel.proxy, site, seed as u64))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|t| t.join().expect("all bytes arrive"))
                .collect()
        })
    };
    // What the first streams make for all: windows, buffers, tables.
    drop(open(0, 50));
    fault_lasts(Duration::from_secs(1));
    let before = (memory_bytes(sc), memory_bytes(endpoint));
    let mut held = open(50, streams);
    let since = Instant::now();
    let idle = loop {
        let each = |now: u64, before: u64| now.saturating_sub(before) / streams as u64;
        let now = (each(memory_bytes(sc), before.0), each(memory_bytes(endpoint), before.1));
        if since.elapsed() >= REST || (!is_long() && now.0.max(now.1) <= IDLE_BYTES_MAX) {
            break now;
        }
        fault_lasts(Duration::from_millis(200));
    };
    println!(
        "{streams} idle streams: {} bytes each at sc, {} at the endpoint",
        idle.0, idle.1
    );
    // They live: each carries on.
    for (i, browser) in held.iter_mut().enumerate() {
        exchange(browser, i as u64, STEP_BYTES);
    }
    assert!(idle.0.max(idle.1) <= IDLE_BYTES_MAX, "{idle:?}");
}

/// 10,000 in the long form, as far as this process may hold their browsers' ends; fewer are said, and with `CI=true` are a
/// failure.
fn streams() -> usize {
    let wanted = if is_long() { 10_000 } else { 1_500 };
    let most = raise_own_limit();
    let fit = most.saturating_sub(FDS_RESERVED) as usize;
    if fit < wanted {
        leave_out(&format!(
            "the limit of {most} descriptors allows {fit} of {wanted} streams"
        ));
    }
    wanted.min(fit)
}

/// A stream that has carried its bytes both ways.
fn carry(proxy: SocketAddr, site: SocketAddr, seed: u64) -> TcpStream {
    let browser = http::connect(proxy, &site.to_string()).expect("the proxy answers");
    let mut browser = browser.unwrap_or_else(|answer| panic!("{}", answer.text()));
    exchange(&mut browser, seed, CARRIED_BYTES);
    browser
}

fn exchange(browser: &mut TcpStream, seed: u64, bytes: usize) {
    let expected = body::bytes(seed, bytes);
    let mut came = vec![0; STEP_BYTES];
    for step in expected.chunks(STEP_BYTES) {
        let came = &mut came[..step.len()];
        browser.write_all(step).expect("the browser's bytes leave");
        browser.read_exact(came).expect("they come back");
        assert!(came == step, "other bytes arrived");
    }
}
