//! What a cloud of 100 parallel tests asks of the sans-IO parts of a link: 600 connections of browsers, pages of 70
//! resources and 2.2 MB, one stream for each exchange.
//!
//! ```text
//!  browsers ► [ heads ► session ► sealer ] ═► [ opener ► session ► heads ] ► sites
//!           ◄ [ heads ◄ session ◄ opener ] ◄═ [ sealer ◄ session ◄ heads ] ◄
//!               the endpoint                    sc
//! ```
//!
//! Only what stands in brackets is counted, as CPU time of this thread. There is no socket, runtime or kernel in it: what
//! browsers, sites and the network do, and every copy that a kernel would make, is not counted.

mod browsers;
mod endpoint;
mod sc;
mod sites;

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use dataplane::time::Time;
use rustix::time::{ClockId, clock_gettime};

use crate::core::{Host, Pair};
use crate::page::{PAGE_BYTES, Pages, RESOURCES};
use crate::records::{self, Wire};
use browsers::Browsers;
use endpoint::Endpoint;
use sc::Sc;
use sites::Sites;

/// Parallel tests, each a browser with a page of its own.
pub const TESTS: usize = 100;
/// Connections that a browser has to its proxy for one site.
pub const CONNECTIONS: usize = 6;
/// The rate that a tunnel of this size is to carry.
const PAGES_PER_SECOND: f64 = 10.0;
/// The link's clock moves on by this much while each end has a turn.
const TURN: Duration = Duration::from_micros(50);
/// Turns in which no resource arrives: far less than a second of the link's clock.
const IDLE_TURNS_MAX: usize = 1_000;

/// Both ends of a link, their browsers and their sites.
pub struct Suite {
    now: Time,
    endpoint: Endpoint,
    sc: Sc,
    browsers: Browsers,
    sites: Sites,
    to_sc: Wire,
    to_endpoint: Wire,
    spent: Spent,
}

/// CPU time of both ends for what has arrived.
#[derive(Clone, Copy, Default)]
pub struct Spent {
    pub endpoint: Duration,
    pub sc: Duration,
    /// Pages have [`RESOURCES`].
    pub resources: usize,
}

impl Suite {
    /// Each test loads its page `times` times, one right after the other.
    pub fn new(times: usize) -> Self {
        let pages = Rc::new(Pages::new(TESTS));
        let (sc, endpoint, now) = Pair::connected().into_hosts();
        let [to_endpoint, to_sc] = records::connected();
        Self {
            now,
            endpoint: Endpoint::new(endpoint),
            sc: Sc::new(sc),
            browsers: Browsers::new(pages.clone(), times),
            sites: Sites::new(pages),
            to_sc,
            to_endpoint,
            spent: Spent::default(),
        }
    }

    /// Runs until so many more resources have arrived; the CPU time of both ends for them.
    ///
    /// # Panics
    /// If a byte is missing or out of place, or if nothing moves any more.
    pub fn run(&mut self, resources: usize) -> Duration {
        let before = self.spent;
        let mut idle = 0;
        while self.spent.resources < before.resources + resources {
            let arrived = self.spent.resources;
            self.turn();
            idle = if self.spent.resources > arrived { 0 } else { idle + 1 };
            assert!(idle < IDLE_TURNS_MAX, "the link stands still");
        }
        self.spent.endpoint + self.spent.sc - before.endpoint - before.sc
    }

    /// What was spent so far.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    fn turn(&mut self) {
        self.now = self.now + TURN;
        let now = self.now;
        self.spent.endpoint += cpu_of(|| {
            let sent = &mut self.browsers.sent;
            self.endpoint.turn(now, sent, &mut self.to_endpoint, &mut self.to_sc);
        });
        self.browsers.take(&mut self.endpoint.delivered);
        self.to_sc.carry();
        self.spent.sc += cpu_of(|| self.sc.receive(now, &mut self.to_sc));
        self.sites.take(&mut self.sc.requests);
        self.spent.sc += cpu_of(|| self.sc.prepare(now, &self.sites));
        self.sites.fill(&mut self.sc.reads);
        self.spent.sc += cpu_of(|| self.sc.send(now, &mut self.to_endpoint));
        self.to_endpoint.carry();
        self.spent.resources = self.browsers.resources;
    }
}

/// Seals everything that is ready, write by write.
fn transmit(now: Time, host: &mut Host, frames: &mut Vec<Bytes>, wire: &mut Wire) {
    while host.session.poll_transmit(now, &mut host.budget, frames) > 0 {
        wire.seal(frames);
        frames.clear();
    }
}

/// CPU time that this thread spends on `work`.
fn cpu_of(work: impl FnOnce()) -> Duration {
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    let begun = now();
    work();
    now() - begun
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.resources as f64 / RESOURCES as f64;
        let [endpoint, sc] = [self.endpoint, self.sc].map(|spent| spent.as_secs_f64() / pages);
        let both = endpoint + sc;
        let ms = |seconds: f64| seconds * 1_000.0;
        let cores = |seconds: f64| seconds * PAGES_PER_SECOND;
        writeln!(
            f,
            "suite_100: {pages:.0} pages of {RESOURCES} resources and {:.1} MB over {} streams at a time",
            PAGE_BYTES as f64 / 1e6,
            TESTS * CONNECTIONS,
        )?;
        writeln!(
            f,
            "  CPU a page: endpoint {:.2} ms, sc {:.2} ms, both {:.2} ms",
            ms(endpoint),
            ms(sc),
            ms(both)
        )?;
        writeln!(
            f,
            "  cores needed at {PAGES_PER_SECOND:.0} pages/s: endpoint {:.3}, sc {:.3}, both {:.3}",
            cores(endpoint),
            cores(sc),
            cores(both)
        )?;
        write!(
            f,
            "  (frame codec, session, TLS records and heads only, at full load: no sockets, no runtime, no kernel)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest delay after which an end says something of itself.
    const REST: Duration = Duration::from_millis(30);

    #[test]
    fn every_byte_of_a_page_for_each_test_arrives_and_nothing_is_left() {
        let mut suite = Suite::new(1);
        suite.run(TESTS * RESOURCES);
        let browsers = &suite.browsers;
        assert_eq!((browsers.resources, browsers.bytes), (7_000, 220_000_000));
        let request = browsers.request_bytes / browsers.resources;
        assert!((400..600).contains(&request), "{request} bytes a request");
        for _ in 0..3 {
            suite.now = suite.now + REST;
            suite.turn();
        }
        for budget in [&suite.endpoint.host.budget, &suite.sc.host.budget] {
            assert_eq!(budget.streams(), (0, 0));
            assert_eq!(
                (budget.tx_held(), budget.rx_outstanding(), budget.rx_charged()),
                (0, 0, 0)
            );
        }
    }

    #[test]
    fn six_hundred_streams_are_open() {
        let mut suite = Suite::new(usize::MAX);
        suite.run(RESOURCES);
        for _ in 0..100 {
            suite.turn();
            for host in [&suite.endpoint.host, &suite.sc.host] {
                // Where an answer ended in this turn, the next request follows in the next one.
                assert!((550..=600).contains(&host.session.streams_open()));
            }
        }
    }

    #[test]
    fn cores_are_cpu_seconds_a_page_times_the_rate() {
        let spent = Spent {
            endpoint: Duration::from_millis(300),
            sc: Duration::from_millis(500),
            resources: 100 * RESOURCES,
        };
        let text = spent.to_string();
        assert!(text.contains("endpoint 3.00 ms, sc 5.00 ms, both 8.00 ms"), "{text}");
        assert!(text.contains("endpoint 0.030, sc 0.050, both 0.080"), "{text}");
    }
}
