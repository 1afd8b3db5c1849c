//! A tunnel under faults, with what must hold whatever happens to it:
//!
//! | oracle | must hold | checked by |
//! |---|---|---|
//! | O1, O2 | every body is exact, and no byte of another stream is in it | keyed bodies at both ends ([`crate::body`]) |
//! | O3 | every request ends in success or a named error, in time | the suites (most faults must cost no request), the clients' own time limit |
//! | O4 | a truncation never looks complete | [`crate::http::Client::download`] |
//! | O5 | a POST reaches the site at most once | [`Trial::end`] |
//! | O6 | descriptors, tasks, memory and ring operations go back | [`Trial::end`] |
//! | O7 | the processes live, and the log names the cause | [`Trial::end`], [`Trial::expect_cause`] |

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cloud::{Cloud, CloudOptions, Driver, Tunnel, fault_lasts};
use crate::http::Client;
use crate::origin::Origin;
use crate::process::{PATIENCE, memory_bytes, open_fds, ring_operations};

/// Site connections that `sc` may keep for reuse, and a little for what is just closing.
const FDS_SLACK: usize = 80;
/// What allocators and windows may keep of a load.
const MEMORY_SLACK_BYTES: u64 = 96 << 20;
/// Operations that were just between two when the tunnel had just started.
const OPERATIONS_SLACK: usize = 4;
/// After the last request.
const REST: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
struct Use {
    fds: usize,
    memory_bytes: u64,
    ring_operations: usize,
}

impl Use {
    fn of(process: u32) -> Self {
        Self {
            fds: open_fds(process),
            memory_bytes: memory_bytes(process),
            ring_operations: ring_operations(process),
        }
    }

    fn is_back(self, before: Self) -> bool {
        // A connection that is kept waits for one thing.
        let kept = self.fds.saturating_sub(before.fds);
        self.fds <= before.fds + FDS_SLACK
            && self.memory_bytes <= before.memory_bytes + MEMORY_SLACK_BYTES
            && self.ring_operations <= before.ring_operations + kept + OPERATIONS_SLACK
    }
}

pub struct Trial {
    pub cloud: Cloud,
    pub origin: Origin,
    pub tunnel: Tunnel,
    endpoint: u32,
    before: [Use; 2],
}

impl Trial {
    pub fn start(driver: Driver) -> Self {
        Self::with(CloudOptions::new(driver), &["--shards", "1"])
    }

    pub fn with(options: CloudOptions, sc: &[&str]) -> Self {
        let has_ring = matches!(options.driver, Driver::IoUring);
        let (cloud, origin) = (Cloud::with(options), Origin::start());
        let tunnel = cloud.start_tunnel_with(sc);
        let endpoint = cloud.process.children()[0];
        let before = [Use::of(tunnel.process.id()), Use::of(endpoint)];
        assert!(
            !has_ring || before[0].ring_operations > 0,
            "sc waits for nothing: {before:?}"
        );
        Self {
            cloud,
            origin,
            tunnel,
            endpoint,
            before,
        }
    }

    /// A field of the endpoint's own report.
    pub fn reported(&self, field: &str) -> u64 {
        let object = self.cloud.tunnel(&self.tunnel.id);
        let value = object["culvert"].get(field).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no culvert.{field}: {object}"))
    }

    /// Waits until the endpoint's report fits.
    pub fn wait_reported(&self, field: &str, fits: impl Fn(u64) -> bool) -> u64 {
        let since = Instant::now();
        loop {
            let value = self.reported(field);
            if fits(value) {
                return value;
            }
            assert!(since.elapsed() < PATIENCE, "culvert.{field} stays {value}");
            fault_lasts(Duration::from_millis(50));
        }
    }

    /// Runs `act` while `clients` go on with `exchange` (of client and round), the last time after its end.
    pub fn under_load<R>(
        &self,
        clients: u64,
        exchange: impl Fn(&mut Client, u64, u64) -> io::Result<()> + Sync,
        act: impl FnOnce() -> R,
    ) -> R {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            // Raised by a panic of `act` too: the scope waits for the clients.
            let _over = Raise(&over);
            for client in 0..clients {
                let (over, exchange) = (&over, &exchange);
                scope.spawn(move || {
                    let mut connection = self.tunnel.client();
                    for round in 0.. {
                        exchange(&mut connection, client, round).expect("a fault of the path costs no exchange");
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                });
            }
            act()
        })
    }

    /// A line of `sc`'s log that names the cause.
    pub fn expect_cause(&self, cause: &str) {
        let log = self.tunnel.log();
        assert!(log.contains(cause), "the log does not say {cause:?}:\n{log}");
    }

    /// Ends the tunnel after all requests have ended, and checks what must hold in the end.
    pub fn end(mut self) {
        let posts = self.origin.counters().posts;
        let twice: Vec<_> = posts.iter().filter(|(_, n)| **n > 1).collect();
        assert!(twice.is_empty(), "posted more than once: {twice:?}");
        assert!(self.tunnel.process.is_running() && self.cloud.process.is_running());
        self.wait_reported("streams", |n| n == 0);
        let since = Instant::now();
        loop {
            let now = [Use::of(self.tunnel.process.id()), Use::of(self.endpoint)];
            if now.iter().zip(self.before).all(|(now, before)| now.is_back(before)) {
                break;
            }
            assert!(
                since.elapsed() < REST,
                "sc and endpoint: {:?}, before: {:?}",
                now,
                self.before
            );
            fault_lasts(Duration::from_millis(100));
        }
        self.tunnel.stop();
    }
}

/// Raises a flag when it goes.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
