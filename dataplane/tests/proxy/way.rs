//! The ways in which browsers' requests come, each with sites of its own.

use std::fmt;
use std::io::BufReader;
use std::net::SocketAddr;

use dataplane::client::Driver;
use dataplane::settings::{Settings, Times};

use crate::reload::adopt;
use crate::tls::{Connection, bumping, connect_to, connected, secure_site};
use crate::tunnel::{Answer, Browser, SETTINGS, Tunnel, site};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In absolute form, at the proxy's port.
    Absolute,
    /// In origin form, in a CONNECT.
    Connect,
    /// In origin form, in TLS that ends at the endpoint; `sc` speaks TLS with the site.
    Tls,
}

const EVERY: [Way; 3] = [Way::Absolute, Way::Connect, Way::Tls];

/// Runs a test in each way, on each driver.
pub fn in_every_way(test: impl Fn(&Tunnel, Way)) {
    in_ways(&EVERY, Times::default(), test);
}

/// The same, where the endpoint waits so long.
pub fn in_every_way_within(times: Times, test: impl Fn(&Tunnel, Way)) {
    in_ways(&EVERY, times, test);
}

/// Runs a test that says nothing about other ways.
pub fn in_one_way(way: Way, test: impl Fn(&Tunnel)) {
    in_ways(&[way], Times::default(), |tunnel, _| test(tunnel));
}

fn in_ways(ways: &[Way], times: Times, test: impl Fn(&Tunnel, Way)) {
    for driver in [Driver::Epoll, Driver::Auto] {
        let tunnel = bumping(driver);
        let settings = Settings {
            version: SETTINGS + 1,
            times,
            ..Settings::default()
        };
        adopt(&tunnel, settings);
        for way in ways {
            test(&tunnel, *way);
        }
        tunnel.stop();
    }
}

impl Way {
    /// A site that is asked in this way: `serve` gets each connection on a thread of its own.
    pub fn site(self, serve: impl Fn(BufReader<Connection>) + Send + Sync + 'static) -> Site {
        let address = match self {
            Self::Tls => secure_site(serve),
            Self::Absolute | Self::Connect => {
                site(move |socket| serve(BufReader::new(Connection::Plain(socket.into_inner()))))
            }
        };
        Site { way: self, address }
    }
}

/// Shown as a Host field has it.
#[derive(Clone, Copy)]
pub struct Site {
    pub way: Way,
    address: SocketAddr,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.way {
            Way::Tls => write!(f, "localhost:{}", self.address.port()),
            Way::Absolute | Way::Connect => self.address.fmt(f),
        }
    }
}

impl Site {
    /// A target in absolute form, which is good in every way.
    pub fn url(&self, path: &str) -> String {
        let scheme = match self.way {
            Way::Tls => "https",
            Way::Absolute | Way::Connect => "http",
        };
        format!("{scheme}://{self}{path}")
    }

    /// A target as browsers send it.
    pub fn target(&self, path: &str) -> String {
        match self.way {
            Way::Absolute => self.url(path),
            Way::Connect | Way::Tls => path.to_owned(),
        }
    }

    /// A request's head as a browser sends it.
    pub fn head(&self, method: &str, path: &str, fields: &str) -> String {
        self.head_at_site(method, &self.target(path), fields)
    }

    /// A request's head as the site gets it.
    pub fn head_at_site(&self, method: &str, path: &str, fields: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nHost: {self}\r\n{fields}\r\n")
    }

    /// A browser whose next bytes are for this site.
    pub fn browser(&self, tunnel: &Tunnel) -> Browser {
        let mut browser = tunnel.browser();
        match self.way {
            Way::Absolute => {}
            Way::Connect => {
                browser.send(connect_to(&self.to_string()).as_bytes());
                assert_eq!(browser.answer("CONNECT").status, 200);
            }
            Way::Tls => return Browser(connected(tunnel, browser, self.address).unwrap()),
        }
        browser
    }

    /// The answer to one GET on a connection of its own.
    pub fn get(&self, tunnel: &Tunnel, path: &str) -> Answer {
        let mut browser = self.browser(tunnel);
        browser.send(self.head("GET", path, "").as_bytes());
        browser.answer("GET")
    }
}
