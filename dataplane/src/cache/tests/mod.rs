//! Sequences of requests through a cache in front of a site that a test plays, by section of the RFCs.

mod bounds;
mod canaries;
mod collapsing;
mod freshness;
mod fuzz;
mod invalidation;
mod oracle;
mod ranges;
mod storing;
mod threads;
mod validation;
mod variants;

use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::http::{Body, Framing, Request, Response, Scheme, rewrite};

/// 2026-09-16.
const WALL: u64 = 1_789_516_800;

const SITE: Site = Site {
    scheme: Scheme::Http,
    trusted: true,
    authorized: false,
};

/// A cache, and a clock.
struct Trial {
    cache: Arc<Cache>,
    now: Now,
    site: Site,
}

/// What a browser got, and what the site saw of it.
#[derive(Debug, Default)]
struct Got {
    head: String,
    body: String,
    /// Heads of the requests that reached the site.
    sent: Vec<String>,
}

impl Got {
    /// The site was not asked.
    fn is_hit(&self) -> bool {
        self.sent.is_empty()
    }

    fn status(&self) -> u16 {
        self.head[9..12].parse().unwrap()
    }

    fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

/// A date so many seconds from the start of each trial.
fn date(from_start: i64) -> String {
    super::date::format(WALL.saturating_add_signed(from_start))
}

fn head(lines: &[&str]) -> Vec<u8> {
    let mut head = lines.join("\r\n").into_bytes();
    head.extend_from_slice(b"\r\n\r\n");
    head
}

/// A request for a path of `http://a.test`, with further lines; `METHOD path`, GET if no method is named.
fn request(target: &str, lines: &[&str]) -> Vec<u8> {
    let (method, path) = target.split_once(' ').unwrap_or(("GET", target));
    let line = format!("{method} http://a.test{path} HTTP/1.1");
    head(&[&[&line, "Host: a.test"], lines].concat())
}

/// An answer with a body and its length; `status` may be one without.
fn response(status: u16, lines: &[&str], body: &str) -> Vec<u8> {
    let line = format!("HTTP/1.1 {status} Some Reason");
    let length = format!("Content-Length: {}", body.len());
    let framed = lines
        .iter()
        .any(|l| l.starts_with("Transfer-Encoding") || l.starts_with("Content-Length"));
    let length = if status == 304 || status == 204 || framed {
        None
    } else {
        Some(length.as_str())
    };
    let mut all = vec![line.as_str()];
    all.extend(lines);
    all.extend(length);
    head(&all)
}

impl Trial {
    fn new() -> Self {
        Self::with_limit(1 << 20)
    }

    fn with_limit(limit: usize) -> Self {
        Self {
            cache: Cache::new(limit, RandomState::new()),
            now: Now {
                time: Time::from_micros(1_000_000_000),
                wall: WALL,
            },
            site: SITE,
        }
    }

    fn sleep(&mut self, seconds: u64) {
        self.now.time = self.now.time + Duration::from_secs(seconds);
        self.now.wall += seconds;
    }

    /// A request for a path, and what the site answers if it is asked: status, lines, body.
    fn get(&mut self, path: &str, asked: &[&str], told: (u16, &[&str], &str)) -> Got {
        self.exchange(&request(path, asked), &response(told.0, told.1, told.2), told.2)
    }

    /// As `get`, waiting for no other request.
    fn get_alone(&mut self, path: &str, told: (u16, &[&str], &str)) -> Got {
        let (asked, answer) = (request(path, &[]), response(told.0, told.1, told.2));
        self.exchange_after(Some(Outcome::Alone), &asked, &answer, told.2)
    }

    /// A request that the site, asked anything, answers in a way that nothing else is mistaken for.
    fn probe(&mut self, path: &str, asked: &[&str]) -> Got {
        self.get(path, asked, (299, &["Cache-Control: no-store"], "the site was asked"))
    }

    fn exchange(&mut self, asked: &[u8], told: &[u8], body: &str) -> Got {
        self.exchange_after(None, asked, told, body)
    }

    fn exchange_after(&mut self, waited: Option<Outcome>, asked: &[u8], told: &[u8], body: &str) -> Got {
        let request = Request::parse(asked).unwrap();
        let asked = Asked::read(&request, self.site).unwrap();
        let mut got = Got::default();
        let fetch = match self.cache.look_up(&asked, waited, self.now) {
            Look::Hit(hit) => {
                self.deliver(&hit, &asked, &mut got);
                if let Some(refresh) = hit.refresh {
                    let mut aside = Got::default();
                    self.fetch(refresh, &asked, told, body, &mut aside);
                }
                return got;
            }
            Look::Absent => {
                got.head = "HTTP/1.1 504 Gateway Timeout\r\n\r\n".to_owned();
                return got;
            }
            Look::Follow(_) => panic!("nobody else asks"),
            Look::Ask(fetch) => fetch,
        };
        self.fetch(fetch, &asked, told, body, &mut got);
        got
    }

    fn fetch(&mut self, fetch: Fetch, asked: &Asked<'_>, told: &[u8], body: &str, got: &mut Got) {
        let mut sent = Vec::new();
        fetch.write_request(asked, &[], &mut sent);
        Request::parse(&sent).expect("the site can read it");
        got.sent.push(String::from_utf8(sent).unwrap());
        let response = Response::parse(told, asked.request.method, false).unwrap();
        let relay = |got: &mut Got, status: Status| {
            let value = status.value();
            let mut out = Vec::new();
            rewrite::response(
                &response,
                asked.request.version,
                true,
                &[("Cache-Status", value)],
                &mut out,
            );
            got.head = String::from_utf8(out).unwrap();
            got.body = if response.framing == Framing::None { "" } else { body }.to_owned();
        };
        match fetch.answer(asked, &response, self.now) {
            Answer::Relay(status) => relay(got, status),
            Answer::Keep(status, mut fill) => {
                relay(got, status);
                for byte in got.body.as_bytes().chunks(7) {
                    fill.append(byte);
                }
                fill.commit(self.now);
            }
            Answer::Stored(hit) => self.deliver(&hit, asked, got),
            Answer::Again(again) => self.fetch(again, asked, told, body, got),
        }
    }

    fn deliver(&self, hit: &Hit, asked: &Asked<'_>, got: &mut Got) {
        let mut out = Vec::new();
        let reply = hit.write_head(asked, true, self.now, &mut out);
        let response = Response::parse(&out, asked.request.method, false).expect("a browser can read it");
        let content: Vec<u8> = hit.content(reply.content).flatten().collect();
        let mut framed = Body::new(response.framing);
        assert_eq!(framed.advance(&content).unwrap().bytes, content.len());
        assert!(framed.is_done() && response.keep_alive == reply.keep_alive);
        got.head = String::from_utf8(out).unwrap();
        got.body = String::from_utf8(content).unwrap();
    }

    /// The site breaks its connection before it answers.
    fn unreachable(&mut self, path: &str, lines: &[&str]) -> Option<Got> {
        let bytes = request(path, lines);
        let request = Request::parse(&bytes).unwrap();
        let asked = Asked::read(&request, self.site).unwrap();
        let Look::Ask(fetch) = self.cache.look_up(&asked, None, self.now) else {
            panic!("the site was not asked");
        };
        let hit = fetch.failed(&asked, self.now)?;
        let mut got = Got::default();
        self.deliver(&hit, &asked, &mut got);
        Some(got)
    }
}

/// Whether an answer with these lines is given again, `later` seconds after, to a request with these.
#[track_caller]
fn reused(told: (u16, &[&str]), later: u64, asked: &[&str], want: bool) {
    let mut trial = Trial::new();
    let body = if told.0 == 204 { "" } else { "the first" };
    let first = trial.get("/", &[], (told.0, told.1, body));
    assert_eq!(first.sent.len(), 1);
    trial.sleep(later);
    let second = trial.probe("/", asked);
    assert_eq!(second.is_hit(), want, "{told:?} after {later} s to {asked:?}");
    if want {
        assert_eq!((second.status(), second.body.as_str()), (told.0, body));
        assert!(second.field("Age").unwrap().parse::<u64>().unwrap() >= later);
    }
}
