//! Bytes that nobody has asked for yet, or any more: whose they are, byte for byte.

use std::io::{Read, Write};
use std::sync::mpsc;

use crate::recorder::{Recorder, hidden, statuses};
use crate::tls::{client_of, connect_to, shaken};
use crate::tunnel::{Browser, PATIENCE, is_asked, read_head, refusing};
use crate::way::{Way, in_every_way, in_one_way};

/// pingora 2025-4366: a body that nobody read would be the next request.
#[test]
fn a_body_is_never_left_over_by_an_answer_that_is_stored() {
    const FRESH: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: 0\r\n\r\n";
    in_every_way(|tunnel, way| {
        let recorder = Recorder::answering(way, FRESH);
        let site = recorder.site;
        for _ in 0..2 {
            assert_eq!(site.get(tunnel, "/a").status, 200);
        }
        assert_eq!(
            recorder.take(),
            site.head_at_site("GET", "/a", ""),
            "the second one is answered here"
        );
        let (inner, next_at_site) = hidden(site);
        for (method, fields, body) in [
            ("GET", format!("Content-Length: {}\r\n", inner.len()), inner.clone()),
            ("HEAD", format!("Content-Length: {}\r\n", inner.len()), inner.clone()),
            (
                "GET",
                "Transfer-Encoding: chunked\r\n".to_owned(),
                format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len()),
            ),
        ] {
            let mut browser = site.browser(tunnel);
            let no_store = "Cache-Control: no-store\r\n";
            browser.send((site.head(method, "/a", &fields) + &body).as_bytes());
            assert_eq!(browser.answer(method).status, 200);
            browser.send(site.head("GET", "/b", no_store).as_bytes());
            assert_eq!(browser.answer("GET").status, 200);
            let first = site.head_at_site(method, "/a", &fields) + &body;
            assert_eq!(recorder.take(), first + &site.head_at_site("GET", "/b", no_store));
        }
        // A hit that is followed by a request in the same packet.
        let mut browser = site.browser(tunnel);
        browser.send((site.head("GET", "/a", "") + &inner).as_bytes());
        assert_eq!(browser.answer("GET").status, 200);
        assert_eq!(browser.answer("GET").status, 200);
        assert_eq!(recorder.take(), next_at_site);
    });
}

/// A site that answers at once: what it did not read is its own loss, and never another's request.
#[test]
fn a_body_that_its_site_does_not_want_is_no_request() {
    in_every_way(|tunnel, way| {
        for (expect, status) in [("Expect: 100-continue\r\n", 417), ("", 413)] {
            let (tell, told) = mpsc::channel();
            let site = way.site(move |mut connection| {
                if !is_asked(&mut connection) {
                    return;
                }
                // Nobody listens where a test has failed.
                let tell = |came: &[u8]| tell.send(String::from_utf8_lossy(came).into_owned());
                let _ = tell(read_head(&mut connection).as_bytes());
                let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
                connection.get_mut().write_all(answer.as_bytes()).unwrap();
                let mut after = Vec::new();
                let _ = connection.read_to_end(&mut after);
                let _ = tell(&after);
            });
            let told = || told.recv_timeout(PATIENCE).expect("the site tells");
            let (inner, _) = hidden(site);
            // One byte is missing, so that it is not complete when it is answered.
            let fields = format!("{expect}Content-Length: {}\r\n", inner.len() + 1);
            let mut browser = site.browser(tunnel);
            browser.send(site.head("POST", "/a", &fields).as_bytes());
            assert_eq!(told(), site.head_at_site("POST", "/a", &fields));
            let answer = browser.answer("POST");
            assert_eq!((answer.status, answer.field("Connection")), (status, Some("close")));
            browser.send(inner.as_bytes());
            assert_eq!(browser.rest(), (Vec::new(), true));
            let after = told();
            assert!(inner.starts_with(&after), "{after:?}");
            assert_eq!(site.get(tunnel, "/last").status, status);
            assert_eq!(
                told(),
                site.head_at_site("GET", "/last", ""),
                "the body came as a request"
            );
        }
    });
}

/// envoy 2025-64763 and pingora 2026-2833: what comes before the 2xx or 101 belongs to nobody yet.
#[test]
fn early_bytes_are_requests_only_where_nothing_was_opened() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        let (next, next_at_site) = hidden(site);
        if way == Way::Absolute {
            let (_bound, closed) = refusing();
            for (authority, status) in [(closed.to_string(), 502), ("169.254.169.254:80".to_owned(), 403)] {
                let sent = connect_to(&authority) + &next;
                let got = recorder.exchange(tunnel, sent.as_bytes());
                assert_eq!(got, (vec![status], String::new()));
            }
            let body = "Content-Length: 5\r\n";
            let sent = format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n{body}\r\nhello{next}");
            assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), (vec![400], String::new()));
        }
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        for (fields, kept) in [
            // A site that does not switch is asked again: an ordinary request, then the next.
            (upgrade, upgrade),
            // Other protocols are not asked for.
            ("Connection: Upgrade\r\nUpgrade: h2c\r\n", ""),
            (
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
                "",
            ),
        ] {
            let sent = site.head("GET", "/a", fields) + &next;
            let want = site.head_at_site("GET", "/a", kept) + &next_at_site;
            assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), (vec![200, 200], want));
        }
    });
}

/// A browser need not wait for the 200 with what it has to say to its site.
#[test]
fn requests_that_come_with_a_connect_are_served() {
    in_one_way(Way::Connect, |tunnel| {
        let recorder = Recorder::start(Way::Connect);
        let site = recorder.site;
        let (next, next_at_site) = hidden(site);
        let sent = connect_to(&site.to_string()) + &next + &next;
        for length in [0, 1, 4, next.len(), 2 * next.len()] {
            let mut browser = tunnel.browser();
            let (early, late) = sent.split_at(sent.len() - length);
            browser.send(early.as_bytes());
            assert_eq!(browser.answer("CONNECT").status, 200);
            browser.send(late.as_bytes());
            browser.finish();
            assert_eq!(statuses(&mut browser), [200, 200], "{length}");
            assert_eq!(recorder.reached(tunnel), next_at_site.repeat(2));
        }
    });
}

/// Nor with its TLS, whole or in part; and what stands behind it in plain is no request.
#[test]
fn tls_that_comes_with_a_connect_is_served() {
    in_one_way(Way::Tls, |tunnel| {
        let recorder = Recorder::start(Way::Tls);
        let site = recorder.site;
        let (next, next_at_site) = hidden(site);
        let connect = connect_to(&site.to_string());
        // The first is about a site of which nothing is known.
        for early in [usize::MAX, 0, 1, 5, 100, usize::MAX] {
            let mut client = client_of(tunnel);
            let mut hello = Vec::new();
            client.write_tls(&mut hello).unwrap();
            let (early, late) = hello.split_at(early.min(hello.len()));
            let mut browser = tunnel.browser();
            browser.send(&[connect.as_bytes(), early].concat());
            assert_eq!(browser.answer("CONNECT").status, 200);
            browser.send(late);
            let mut browser = Browser(shaken(client, browser).unwrap());
            browser.send(next.as_bytes());
            assert_eq!(browser.answer("GET").status, 200);
            assert_eq!(recorder.take(), next_at_site);
        }
        let mut hello = Vec::new();
        client_of(tunnel).write_tls(&mut hello).unwrap();
        let mut browser = tunnel.browser();
        browser.send(&[connect.as_bytes(), &hello, next.as_bytes()].concat());
        assert_eq!(browser.answer("CONNECT").status, 200);
        let (bytes, _) = browser.rest();
        assert!(!bytes.windows(5).any(|window| window == b"HTTP/"), "it is answered");
        assert_eq!(recorder.reached(tunnel), "");

        // No site, no TLS.
        let (_bound, closed) = refusing();
        let mut browser = tunnel.browser();
        browser.send(&[connect_to(&closed.to_string()).as_bytes(), &hello].concat());
        assert_eq!(browser.answer("GET").status, 502);
        assert_eq!(browser.rest(), (Vec::new(), true));
    });
}

/// What a site sends beyond its answer is no answer to the next request, of whoever.
#[test]
fn answers_that_nobody_asked_for_reach_nobody() {
    in_every_way(|tunnel, way| {
        for surplus in [
            "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled",
            "x",
            "\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
        ] {
            let site = way.site(move |mut connection| {
                while is_asked(&mut connection) {
                    let head = read_head(&mut connection);
                    let Some(target) = head.split(' ').nth(1) else { return };
                    let length = target.len();
                    let more = if target == "/more" { surplus } else { "" };
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{target}{more}");
                    if connection.get_mut().write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
            let mut browser = site.browser(tunnel);
            browser.send(site.head("GET", "/more", "").as_bytes());
            assert_eq!(browser.answer("GET").body, b"/more", "{surplus:?}");
            for n in 0..3 {
                let path = format!("/{n}");
                let answer = site.get(tunnel, &path);
                assert_eq!(answer.body, path.as_bytes(), "{way:?} {surplus:?}");
            }
        }
    });
}
