//! Sends messages one after the other as a browser would, and holds each answer against our own account.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tests::http::{Connection, Framing, Head};
use tests::simulation::prng::Prng;

use crate::account::{Account, Disagreement, Outcome, describe};
use crate::carrier::Carrier;
use crate::messages::{mutated, plain};
use crate::reading::{Reading, Rest, Seen, Way, read};

/// Where the messages for one site go.
#[derive(Clone)]
pub struct Route {
    pub seed: u64,
    /// Host and port of the site.
    pub site: String,
    /// What listens there: the proxy, or the site itself.
    pub address: SocketAddr,
    pub way: Way,
    pub through_proxy: bool,
    /// Under which TLS is good.
    pub trust: Arc<ClientConfig>,
    pub folds_methods: bool,
    /// Whoever says nothing for so long waits for bytes that do not come.
    pub patience: Duration,
}

/// One message, what may follow it, and how we read both.
pub struct Case {
    pub bytes: Vec<u8>,
    pub reading: Reading,
    /// Where its bytes are sent apart.
    cut: Option<usize>,
}

impl Case {
    /// The message of this number: always the same.
    pub fn new(route: &Route, number: u64) -> Self {
        let mut random = Prng::new(route.seed.rotate_left(32) ^ number);
        // What is for another place is not sent to anybody.
        for _ in 0..1_000 {
            let mut bytes = mutated(&mut random, route.way, &route.site, number);
            if random.chance(40) {
                bytes.extend(plain(route.way, &route.site, &format!("/next-{number}")));
            }
            if let Some(mut reading) = read(&bytes, route.way, &route.site) {
                if route.folds_methods {
                    reading
                        .requests
                        .iter_mut()
                        .for_each(|seen| seen.method.make_ascii_uppercase());
                }
                let cut = random.chance(10).then(|| random.below(bytes.len() as u64 + 1) as usize);
                return Self { bytes, reading, cut };
            }
        }
        panic!("no message {number} is for {}", route.site);
    }
}

/// What one browser has seen.
#[derive(Default)]
pub struct Tally {
    pub account: Account,
    pub messages: u64,
    /// Messages of which the site counted a request.
    pub forwarded: u64,
    /// Requests that were begun at a site.
    pub begun: u64,
    /// … of them those that came to no end.
    pub unfinished: u64,
    /// Error pages and refusals of the proxy, by name and status.
    pub pages: BTreeMap<String, u64>,
    pub disagreements: Vec<Disagreement>,
}

impl Tally {
    pub fn merge(&mut self, other: Self) {
        self.account.merge(other.account);
        self.messages += other.messages;
        self.forwarded += other.forwarded;
        self.begun += other.begun;
        self.unfinished += other.unfinished;
        for (name, count) in other.pages {
            *self.pages.entry(name).or_default() += count;
        }
        self.disagreements.extend(other.disagreements);
    }

    fn disagree(&mut self, number: u64, what: String) {
        let number = Some(number);
        self.disagreements.push(Disagreement { number, what });
    }

    fn page(&mut self, answer: &Head) {
        let name = answer.field("Culvert-Error").unwrap_or("the site's own");
        *self.pages.entry(format!("{name} {}", answer.status())).or_default() += 1;
    }
}

/// A connection on which the next message may be sent.
struct Browser {
    carrier: Carrier,
    connection: Connection,
}

/// How an answer was waited for in vain.
enum Silence {
    Ended,
    TimedOut,
}

impl Browser {
    fn open(route: &Route, number: u64, tally: &mut Tally) -> io::Result<Self> {
        let socket = TcpStream::connect(route.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(route.patience))?;
        socket.set_write_timeout(Some(route.patience))?;
        let carrier = Carrier::plain(socket);
        let connection = Connection::over(carrier.clone());
        let mut browser = Self { carrier, connection };
        match route.way {
            Way::Origin if route.through_proxy => {
                browser.connect(&route.site)?;
                browser.begin(route, number, tally)?;
            }
            Way::Secured => {
                browser.connect(&route.site)?;
                let host = route.site.split(':').next().unwrap_or_default();
                browser.carrier = browser.carrier.secured(&route.trust, host)?;
                browser.connection = Connection::over(browser.carrier.clone());
            }
            Way::Absolute | Way::Origin => {}
        }
        Ok(browser)
    }

    fn connect(&mut self, site: &str) -> io::Result<()> {
        self.connection
            .write(format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n").as_bytes())?;
        let head = self.connection.read_head()?;
        if head.is_none_or(|head| head.status() != 200) {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        Ok(())
    }

    /// The first bytes in a CONNECT decide whether it carries requests.
    fn begin(&mut self, route: &Route, number: u64, tally: &mut Tally) -> io::Result<()> {
        let site = &route.site;
        let first = Case {
            bytes: plain(route.way, site, &format!("/first-{number}")),
            reading: Reading {
                requests: Vec::new(),
                rest: Rest::Nothing,
            },
            cut: None,
        };
        let reading = read(&first.bytes, route.way, site).expect("it is for this site");
        match self.exchange(route, number, &Case { reading, ..first }, tally) {
            true => Ok(()),
            false => Err(ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Sends one message and reads what is answered; whether another may follow.
    fn exchange(&mut self, route: &Route, number: u64, case: &Case, tally: &mut Tally) -> bool {
        let (first, second) = case.bytes.split_at(case.cut.unwrap_or(0));
        // Whoever does not take it all has answered before, or ends the connection, and that shows.
        let _ = self
            .carrier
            .write_all(first)
            .and_then(|()| self.carrier.write_all(second));
        let rest = case.reading.rest;
        if matches!(rest, Rest::Head | Rest::Body) {
            let _ = self.carrier.end();
        }
        let mut was_forwarded = false;
        for seen in &case.reading.requests {
            tally.begun += 1;
            let (outcome, goes_on) = self.answer_to(route, seen, number, tally);
            was_forwarded |= outcome == Outcome::Answered;
            tally.account.add(number, seen, outcome);
            if !goes_on {
                tally.forwarded += u64::from(was_forwarded);
                return false;
            }
        }
        tally.forwarded += u64::from(was_forwarded);
        let unfinished = u64::from(matches!(rest, Rest::Body | Rest::Broken));
        tally.begun += unfinished;
        tally.unfinished += unfinished;
        rest == Rest::Nothing || self.end(route, number, rest, tally)
    }

    fn answer_to(&mut self, route: &Route, seen: &Seen, number: u64, tally: &mut Tally) -> (Outcome, bool) {
        let method = String::from_utf8_lossy(&seen.method).into_owned();
        let head = match self.answer(&method) {
            Ok(head) => head,
            Err(Silence::Ended) => return (Outcome::Lost, false),
            Err(Silence::TimedOut) => {
                tally.disagree(number, format!("no answer to {}", describe(seen)));
                return (Outcome::Lost, false);
            }
        };
        let goes_on =
            !head.has("connection", "close") && head.answer_framing(&method).is_ok_and(|f| f != Framing::Close);
        let outcome = match head.field("X-Seen") {
            Some(digest) if digest == seen.digest() => Outcome::Answered,
            Some(_) => {
                tally.disagree(number, format!("{} got the answer to another", describe(seen)));
                return (Outcome::Lost, false);
            }
            None if route.through_proxy && head.field("Culvert-Error").is_some() => {
                tally.page(&head);
                Outcome::Lost
            }
            None => Outcome::Refused,
        };
        (outcome, goes_on)
    }

    /// Reads what follows the last whole request: a refusal, or the end. Never does the connection go on.
    fn end(&mut self, route: &Route, number: u64, rest: Rest, tally: &mut Tally) -> bool {
        // Of a refusal that answers HEAD that is all there is.
        match (self.answer("HEAD"), rest) {
            (Ok(head), _) if head.field("X-Seen").is_some() => {
                tally.disagree(number, format!("the site counts what we read as {rest:?}"));
            }
            (Ok(head), Rest::Refused(status)) if route.through_proxy && head.status() != status => {
                tally.disagree(number, format!("{} instead of {status}", head.status()));
            }
            (Ok(head), Rest::Closed) => {
                tally.disagree(number, format!("{} after the last answer", head.status()));
            }
            (Ok(head), _) => tally.page(&head),
            (Err(Silence::TimedOut), _) => tally.disagree(number, format!("silence where we read {rest:?}")),
            (Err(Silence::Ended), Rest::Refused(_)) if route.through_proxy => {
                tally.disagree(number, format!("the end without an answer where we read {rest:?}"));
            }
            (Err(Silence::Ended), _) => {}
        }
        false
    }

    /// The next final answer, with its body read.
    fn answer(&mut self, method: &str) -> Result<Head, Silence> {
        let mut read = || -> io::Result<Option<Head>> {
            loop {
                let Some(head) = self.connection.read_head()? else {
                    return Ok(None);
                };
                if head.status() >= 200 {
                    let framing = head.answer_framing(method)?;
                    self.connection.read_body(framing, &mut |_| Ok(()))?;
                    return Ok(Some(head));
                }
            }
        };
        match read() {
            Ok(Some(head)) => Ok(head),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Err(Silence::TimedOut),
            _ => Err(Silence::Ended),
        }
    }
}

/// Sends the messages of these numbers.
pub fn run(route: &Route, numbers: impl Iterator<Item = u64>) -> Tally {
    let mut tally = Tally::default();
    let mut kept: Option<Browser> = None;
    for number in numbers {
        let case = Case::new(route, number);
        let opened = match kept.take() {
            Some(browser) => Ok(browser),
            None => Browser::open(route, number, &mut tally),
        };
        let mut browser = match opened {
            Ok(browser) => browser,
            Err(e) => {
                tally.disagree(number, format!("no connection: {e}"));
                continue;
            }
        };
        tally.messages += 1;
        if browser.exchange(route, number, &case, &mut tally) {
            kept = Some(browser);
        }
    }
    tally
}
