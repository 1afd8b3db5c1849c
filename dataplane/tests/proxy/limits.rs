//! Requests that are too large, too slow, or expect too much.

use std::io::{BufReader, Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use dataplane::limits::HEAD_FIELDS_MAX;
use dataplane::settings::{Settings, Times};
use rustls::StreamOwned;

use crate::recorder::{Recorder, Silent, hidden};
use crate::reload::adopt;
use crate::tls::{Connection, client_of, connect_to};
use crate::tunnel::{Browser, PATIENCE, SETTINGS, Tunnel, is_asked, read_head};
use crate::way::{Site, Way, in_every_way, in_every_way_within};

#[test]
fn heads_that_are_too_large_reach_nobody() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        let many = "X: y\r\n".repeat(128);
        let large = format!("X: {}\r\n", "y".repeat(66_000));
        let options = format!("Connection: {}\r\n", vec!["x"; 33].join(","));
        for (message, status) in [
            (site.head("GET", &format!("/{}", "a".repeat(17_000)), ""), 414),
            (site.head("GET", "/a", &many), 431),
            (site.head("GET", "/a", &large), 431),
            (site.head("GET", "/a", &options), 431),
            (site.head("GET", "/a", "Expect: 200-ok\r\n"), 417),
            (site.head(&"A".repeat(33), "/a", ""), 501),
        ] {
            let (next, _) = hidden(site);
            let got = recorder.exchange(tunnel, format!("{message}{next}").as_bytes());
            assert_eq!(got, (vec![status], String::new()), "{way:?} {}", &message[..60]);
        }
    });
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";

/// `count` fields, with those that upgrade and so many others of the head before or behind the rest.
fn upgrading(count: usize, others: usize, before: bool) -> String {
    let rest = "X: y\r\n".repeat(count - 2 - others);
    match before {
        true => format!("{UPGRADE}{rest}"),
        false => format!("{rest}{UPGRADE}"),
    }
}

/// An upgrade takes as many fields as any head, and one more is refused by whoever reads it: the browser's reaches
/// nobody, and of the site's nothing is relayed, nor of what either sends behind it.
#[test]
fn upgrades_with_too_many_fields_open_nothing() {
    in_every_way(|tunnel, way| {
        let (tell, told) = mpsc::channel();
        let site = way.site(move |mut connection| {
            if !is_asked(&mut connection) {
                return;
            }
            let head = read_head(&mut connection);
            let (_, many) = head.split_once(" /").unwrap();
            let (many, _) = many.split_once(' ').unwrap();
            let fields = upgrading(many.parse().unwrap(), 0, true);
            let answer = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\nhello");
            connection.get_mut().write_all(answer.as_bytes()).unwrap();
            let mut frames = Vec::new();
            // Up to the end, or the cut.
            let _ = connection.read_to_end(&mut frames);
            tell.send((head, frames)).unwrap();
        });
        let told = || told.recv_timeout(PATIENCE).unwrap();
        let (most, more) = (HEAD_FIELDS_MAX, HEAD_FIELDS_MAX + 1);
        let ask = |many: usize, fields: &str| {
            let mut browser = site.browser(tunnel);
            let head = site.head("GET", &format!("/{many}"), fields);
            browser.send(format!("{head}frames").as_bytes());
            let answer = browser.answer("GET");
            (
                browser,
                (answer.status, answer.field("Culvert-Error").map(str::to_owned)),
            )
        };
        for before in [true, false] {
            let fields = upgrading(most, 1, before);
            let reached = site.head_at_site("GET", &format!("/{most}"), &fields);
            let (mut browser, answer) = ask(most, &fields);
            assert_eq!(answer, (101, None), "{way:?}");
            let mut hello = [0; 5];
            browser.0.read_exact(&mut hello).unwrap();
            assert_eq!(&hello, b"hello", "{way:?}");
            browser.finish();
            assert_eq!(told(), (reached, b"frames".to_vec()), "{way:?}");

            let (mut browser, answer) = ask(most, &upgrading(more, 1, before));
            assert_eq!(answer, (431, Some("bad-request".to_owned())), "{way:?}");
            assert_eq!(browser.rest(), (Vec::new(), true), "{way:?}");

            // What the site is told next is this: the one before has not come.
            let reached = site.head_at_site("GET", &format!("/{more}"), &fields);
            let (mut browser, answer) = ask(more, &fields);
            assert_eq!(answer, (502, Some("protocol".to_owned())), "{way:?}");
            assert_eq!(browser.rest(), (Vec::new(), true), "{way:?}");
            assert_eq!(told(), (reached, Vec::new()), "{way:?}");
        }
    });
}

/// Nobody waits for the end of what is too large already.
#[test]
fn heads_that_never_end_are_refused() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        let target = site.target("/");
        let field = format!("X: {}\r\n", "a".repeat(1_000));
        for (begun, status) in [
            (format!("GET {target}{}", "a".repeat(17_000)), 414),
            (
                format!("GET {target} HTTP/1.1\r\nHost: {site}\r\n{}", field.repeat(70)),
                431,
            ),
        ] {
            let mut browser = recorder.browser(tunnel);
            browser.send(begun.as_bytes());
            let answer = browser.answer("GET");
            assert_eq!((answer.status, answer.field("Connection")), (status, Some("close")));
            assert_eq!(browser.rest(), (Vec::new(), true), "{way:?}");
            assert_eq!(recorder.reached(tunnel), "");
        }
    });
}

fn is_too_late(mut browser: Browser, what: &str) {
    let answer = browser.answer("POST");
    assert_eq!(
        (answer.status, answer.field("Culvert-Error"), answer.field("Connection")),
        (408, Some("request-timeout"), Some("close")),
        "{what}"
    );
    assert_eq!(browser.rest(), (Vec::new(), true), "{what}");
}

/// A browser whose handshake lacks what only it has to send: that goes with its first bytes.
fn almost_in_tls(tunnel: &Tunnel, site: Site) -> Browser {
    let mut browser = tunnel.browser();
    browser.send(connect_to(&site.to_string()).as_bytes());
    assert_eq!(browser.answer("CONNECT").status, 200);
    let (mut socket, mut client) = (browser.socket().try_clone().unwrap(), client_of(tunnel));
    while client.is_handshaking() {
        if client.wants_write() {
            client.write_tls(&mut socket).unwrap();
        } else {
            assert_ne!(client.read_tls(&mut socket).unwrap(), 0);
            client.process_new_packets().unwrap();
        }
    }
    let tls = StreamOwned::new(client, socket);
    Browser(BufReader::new(Connection::Browser(Box::new(tls))))
}

#[test]
fn heads_that_take_too_long_reach_nobody() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        let head = site.head("POST", "/late", "Content-Length: 0\r\n");
        let (line, _) = head.split_once('\n').unwrap();
        // Less could be the beginning of anything in a CONNECT.
        let (target, _) = head.split_at("POST ".len() + 1);
        let parts = [target, line, &head[..head.len() - 1]];
        // A handshake may take as long as a head, so they are made before that is short. What is waited for already keeps the
        // limit under which that began.
        let mut seconds = parts.map(|_| site.browser(tunnel));
        let firsts = (way == Way::Tls).then(|| parts.map(|_| almost_in_tls(tunnel, site)));
        let allow = |version, browser_head| {
            let times = Times {
                browser_head,
                ..Times::default()
            };
            let settings = Settings {
                version,
                times,
                ..Settings::default()
            };
            adopt(tunnel, settings);
        };
        allow(SETTINGS + 2, Duration::from_secs(1));
        let mut firsts = firsts.unwrap_or_else(|| parts.map(|_| site.browser(tunnel)));
        // Each is the first of its connection, and the second of another.
        for ((part, first), second) in parts.iter().zip(&mut firsts).zip(&mut seconds) {
            let get = site.head("GET", "/first", "");
            second.send(get.as_bytes());
            assert_eq!(second.answer("GET").status, 200);
            first.send(part.as_bytes());
            second.send(part.as_bytes());
        }
        assert_eq!(
            recorder.take(),
            site.head_at_site("GET", "/first", "").repeat(parts.len())
        );
        for browser in firsts.into_iter().chain(seconds) {
            is_too_late(browser, &format!("{way:?}"));
        }
        allow(SETTINGS + 1, Times::default().browser_head);
        assert_eq!(recorder.reached(tunnel), "");
    });
}

/// The site sees the request cut where it paused.
#[test]
fn bodies_that_pause_too_long_are_cut() {
    let times = Times {
        browser_body: Duration::from_secs(1),
        ..Times::default()
    };
    in_every_way_within(times, |tunnel, way| {
        let begun = [
            ("Content-Length: 10\r\n", ""),
            ("Content-Length: 10\r\n", "hello"),
            ("Transfer-Encoding: chunked\r\n", "a\r\nhello"),
            ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
            ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\nX: y\r\n"),
        ]
        .map(|(fields, part)| {
            let silent = Silent::start(way, part.len());
            let mut browser = silent.site.browser(tunnel);
            browser.send((silent.site.head("POST", "/a", fields) + part).as_bytes());
            let want = silent.site.head_at_site("POST", "/a", fields) + part;
            (silent, browser, want)
        });
        for (silent, browser, want) in begun {
            assert_eq!(silent.told(), want);
            is_too_late(browser, &format!("{way:?} {want:?}"));
            assert_eq!(silent.told(), want, "more came than was sent");
        }
    });
}
