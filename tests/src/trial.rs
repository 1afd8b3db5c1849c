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
use crate::process::{PATIENCE, ring_operations};
use crate::watch::Watch;

/// Why the connection of a link ended.
#[derive(Clone, Copy, Debug)]
pub enum Cause {
    /// By RST or FIN of somebody between both ends, or by the death of one of them.
    Cut,
    /// Nothing passed any more.
    Silent,
    /// Bytes were not those that were sent.
    Changed,
}

impl Cause {
    /// Whether a reset is seen by a read or by a write, and before or after what was sent ahead of it, is chance.
    fn texts(self) -> &'static [&'static str] {
        match self {
            Self::Cut => &["the connection was cut", "Connection reset by peer", "Broken pipe"],
            Self::Silent => &["no answer to PING in time"],
            Self::Changed => &["TLS: "],
        }
    }

    /// Whether a log of `sc` says that this ended a link's connection.
    pub fn is_told_by(self, log: &str) -> bool {
        let ends = log.lines().filter_map(|line| line.split_once("is down: "));
        let mut reasons = ends.map(|(_, reason)| reason);
        reasons.any(|reason| self.texts().iter().any(|text| reason.contains(text)))
    }
}

pub struct Trial {
    pub cloud: Cloud,
    pub origin: Origin,
    pub tunnel: Tunnel,
    watch: Watch,
}

impl Trial {
    pub fn start(driver: Driver) -> Self {
        Self::with(CloudOptions::new(driver), &["--shards", "1"])
    }

    pub fn with(options: CloudOptions, sc: &[&str]) -> Self {
        let (cloud, origin) = (Cloud::with(options), Origin::start());
        let tunnel = cloud.start_tunnel_with(sc);
        Self::of(cloud, origin, tunnel)
    }

    /// Of a tunnel that is up and has carried nothing yet.
    pub fn of(cloud: Cloud, origin: Origin, tunnel: Tunnel) -> Self {
        assert!(
            cloud.options.driver != Driver::IoUring || ring_operations(tunnel.process.id()) > 0,
            "sc waits for nothing"
        );
        let mut trial = Self {
            cloud,
            origin,
            tunnel,
            watch: Watch::default(),
        };
        trial.watch_anew();
        trial
    }

    /// From now on: what is there now is what must be there in the end.
    pub fn watch_anew(&mut self) {
        self.watch = Watch::default();
        self.watch.add("sc", self.tunnel.process.id());
        self.watch.add("the endpoint", self.cloud.endpoint());
        self.watch.add("sc-cloud", self.cloud.process.id());
    }

    /// Another `sc-cloud` has taken the place of the first, and its endpoint.
    pub fn cloud_replaced(&mut self) {
        self.watch.replace("sc-cloud", self.cloud.process.id());
    }

    /// Another endpoint has taken the place of the first.
    pub fn endpoint_replaced(&mut self) {
        self.watch.replace("the endpoint", self.cloud.endpoint());
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
        self.under_load_over(|| self.tunnel.client(), clients, exchange, act)
    }

    /// As [`Trial::under_load`], over connections that `connect` makes.
    pub fn under_load_over<R>(
        &self,
        connect: impl Fn() -> Client + Sync,
        clients: u64,
        exchange: impl Fn(&mut Client, u64, u64) -> io::Result<()> + Sync,
        act: impl FnOnce() -> R,
    ) -> R {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _over = Raise(&over);
            for client in 0..clients {
                let (over, connect, exchange) = (&over, &connect, &exchange);
                scope.spawn(move || {
                    let mut connection = connect();
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

    /// A log names this as the end of a link's connection: of `sc`, or of the cloud where that may notice first.
    pub fn expect_cause(&self, cause: Cause) {
        let (client, cloud) = (self.tunnel.log(), self.cloud.process.stderr());
        let cloud_says = |text: &&str| cloud.contains(&format!("reason=\"{text}"));
        assert!(
            cause.is_told_by(&client) || cause.texts().iter().any(cloud_says),
            "no log says {cause:?}:\n{client}\n{cloud}"
        );
    }

    /// `sc` itself names it: nothing that the cloud did reached it.
    pub fn expect_cause_at_sc(&self, cause: Cause) {
        let log = self.tunnel.log();
        assert!(cause.is_told_by(&log), "{cause:?} is not told:\n{log}");
    }

    /// Checks what must hold after all requests have ended.
    pub fn at_rest(&mut self) {
        let posts = self.origin.counters().posts;
        let twice: Vec<_> = posts.iter().filter(|(_, n)| **n > 1).collect();
        assert!(twice.is_empty(), "posted more than once: {twice:?}");
        assert!(self.tunnel.process.is_running() && self.cloud.process.is_running());
        self.wait_reported("streams", |n| n == 0);
        // What `sc` keeps of them for reuse is nobody's leak; an answer that waits does not see its connection's end.
        self.origin.open_gate();
        self.origin.close_connections();
        let (tunnel, base) = (&self.tunnel, self.origin.base());
        self.watch.end_in_use(|| {
            let mut client = tunnel.client();
            client.download(&base, 1, 1 << 20, "").expect("the tunnel works");
            client.upload(&base, 2, 1 << 20, false).expect("the tunnel works");
        });
    }

    /// Checks what must hold in the end, and ends the tunnel.
    pub fn end(mut self) {
        self.at_rest();
        self.tunnel.stop();
    }
}

/// Raises a flag when it goes, by a panic too: a scope waits for its threads.
pub struct Raise<'a>(pub &'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
