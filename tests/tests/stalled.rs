//! Rows 8 and 10 of the matrix of faults: half of 100 streams stall, each after 4 MiB at full rate, their senders going on,
//! some read one byte at a time; what the other half pays for it, measured in turns with and without them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tests::cloud::{CloudOptions, Driver, fault_lasts, left_out};
use tests::http::Client;
use tests::is_long;
use tests::process::memory_bytes;
use tests::trial::Trial;

const STALLED: usize = 50;
/// Of the stalled ones: they take a byte now and then.
const SLOW: usize = 10;
const OTHERS: u64 = 50;
/// Read at full rate before the stall.
const READ_BYTES: usize = 4 << 20;
const ROUNDS: usize = 7;
/// A sender that gets rid of nothing for so long is stalled.
const STILL: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(30);
/// Of the 99th percentile of the others' latency, with stalled streams beside them and without.
const RATIO_MAX: f64 = 1.5;

#[test]
fn f8_f10_stalled_readers_cost_the_others_nothing() {
    // One after the other: they would disturb each other's clocks.
    for driver in [Driver::IoUring, Driver::Epoll] {
        if !left_out(driver) {
            others_beside_stalled(driver);
        }
    }
}

fn others_beside_stalled(driver: Driver) {
    // In full on the driver that users have.
    let full = is_long() && matches!(driver, Driver::IoUring);
    let [alone_for, stalled_for] = if full { [10, 60] } else { [1, 1] }.map(Duration::from_secs);
    let trial = Trial::with(CloudOptions::new(driver), &["--shards", "1"]);
    let base = trial.origin.base();
    let proxy = trial.tunnel.proxy;
    let (sc, endpoint) = (trial.tunnel.process.id(), trial.cloud.endpoint());
    latency(proxy, &base, Duration::from_secs(1));
    let mut ratios = Vec::new();
    let mut most = (0, 0);
    for round in 0..ROUNDS {
        let alone = latency(proxy, &base, alone_for);
        let stalled: Vec<_> = (0..STALLED).map(|i| Stalled::start(proxy, i)).collect();
        await_stall(&stalled);
        let beside = latency(proxy, &base, stalled_for);
        most = (most.0.max(memory_bytes(sc)), most.1.max(memory_bytes(endpoint)));
        drop(stalled);
        println!("{driver:?} round {round}: p99 {alone:?} alone, {beside:?} beside {STALLED} stalled streams");
        ratios.push(beside.as_secs_f64() / alone.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "{driver:?}: ratios {ratios:.2?}, most memory {} and {} MiB",
        most.0 >> 20,
        most.1 >> 20
    );
    assert!(ratios[ROUNDS / 2] <= RATIO_MAX, "{ratios:.2?}");
    // The pools of both ends, and what the rest of a process takes.
    assert!(most.0 <= 512 << 20 && most.1 <= 512 << 20, "{most:?}");
    trial.end();
}

/// Waits until no sender gets on any more: until then they are bulk transfers, which fill what there is of buffers.
fn await_stall(stalled: &[Stalled]) {
    let sent = || -> u64 { stalled[SLOW..].iter().map(|s| s.sent.load(Ordering::Relaxed)).sum() };
    let since = Instant::now();
    let mut last = (sent(), since);
    while last.1.elapsed() < STILL {
        assert!(
            since.elapsed() < PATIENCE,
            "senders whose readers have stopped go on and on"
        );
        fault_lasts(Duration::from_millis(20));
        let now = sent();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
}

/// The 99th percentile of small requests over `OTHERS` keep-alive connections.
fn latency(proxy: SocketAddr, base: &str, time: Duration) -> Duration {
    let start = Instant::now();
    let mut all: Vec<Duration> = thread::scope(|scope| {
        let threads: Vec<_> = (0..OTHERS)
            .map(|i| {
                scope.spawn(move || {
                    let mut client = Client::dial(proxy).expect("the proxy port listens");
                    let mut took = Vec::new();
                    while start.elapsed() < time {
                        let since = Instant::now();
                        client.download(base, i, 1_024, "").expect("the others go on");
                        took.push(since.elapsed());
                    }
                    took
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect()
    });
    all.sort();
    all[all.len() * 99 / 100]
}

/// A stream whose reader has stopped and whose sender goes on; dropping it ends both.
struct Stalled {
    sockets: [TcpStream; 2],
    over: Arc<AtomicBool>,
    /// Pieces that its sender got rid of.
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Stalled {
    /// Even ones stall at the browser, odd ones at the site.
    fn start(proxy: SocketAddr, number: usize) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let authority = listener.local_addr().expect("bound").to_string();
        let browser = tests::http::connect(proxy, &authority).expect("the proxy answers");
        let browser = browser.unwrap_or_else(|answer| panic!("{}", answer.text()));
        let site = listener.accept().expect("sc has connected").0;
        let sockets = [browser, site];
        let clone = |i: usize| sockets[i].try_clone().expect("a descriptor");
        let (mut reader, mut writer) = (clone(number % 2), clone(1 - number % 2));
        let sent = Arc::new(AtomicU64::new(0));
        let pieces = sent.clone();
        let mut threads = vec![thread::spawn(move || {
            let piece = [7; 64 * 1024];
            // Ends when the sockets are shut down.
            while writer.write_all(&piece).is_ok() {
                pieces.fetch_add(1, Ordering::Relaxed);
            }
        })];
        let mut read = 0;
        let mut piece = vec![0; 256 * 1024];
        while read < READ_BYTES {
            read += reader.read(&mut piece).expect("the stream carries");
        }
        let over = Arc::new(AtomicBool::new(false));
        if number < SLOW {
            let over = over.clone();
            threads.push(thread::spawn(move || {
                while !over.load(Ordering::Relaxed) && reader.read(&mut [0]).is_ok_and(|n| n > 0) {
                    fault_lasts(Duration::from_millis(100));
                }
            }));
        }
        Self {
            sockets,
            over,
            sent,
            threads,
        }
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            thread.join().expect("threads of a stalled stream do not panic");
        }
    }
}
