//! Bytes that nobody has asked for yet, or any more: whose they are, byte for byte.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::recorder::{Recorder, hidden};
use crate::tunnel::{Tunnel, on_both_drivers, read_head, site};

/// pingora 2025-4366: a body that nobody read would be the next request.
#[test]
fn a_body_is_never_left_over_by_an_answer_that_is_stored() {
    const FRESH: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: 0\r\n\r\n";
    on_both_drivers(|tunnel| {
        let recorder = Recorder::answering(FRESH);
        let address = recorder.address;
        let get = format!("HTTP/1.1\r\nHost: {address}\r\n");
        for _ in 0..2 {
            assert_eq!(tunnel.get(&format!("http://{address}/a")).status, 200);
        }
        assert_eq!(
            recorder.take(),
            format!("GET /a {get}\r\n"),
            "the second one is answered here"
        );
        let (inner, next_at_site) = hidden(address);
        for (method, fields, body) in [
            ("GET", format!("Content-Length: {}\r\n", inner.len()), inner.clone()),
            ("HEAD", format!("Content-Length: {}\r\n", inner.len()), inner.clone()),
            (
                "GET",
                "Transfer-Encoding: chunked\r\n".to_owned(),
                format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len()),
            ),
        ] {
            let mut browser = tunnel.browser();
            let rest = format!("{get}Cache-Control: no-store\r\n\r\n");
            browser.send(format!("{method} http://{address}/a {get}{fields}\r\n{body}").as_bytes());
            assert_eq!(browser.answer(method).status, 200);
            browser.send(format!("GET http://{address}/b {rest}").as_bytes());
            assert_eq!(browser.answer("GET").status, 200);
            assert_eq!(
                recorder.take(),
                format!("{method} /a {get}{fields}\r\n{body}GET /b {rest}")
            );
        }
        // A hit that is followed by a request in the same packet.
        let mut browser = tunnel.browser();
        browser.send(format!("GET http://{address}/a {get}\r\n{inner}").as_bytes());
        assert_eq!(browser.answer("GET").status, 200);
        assert_eq!(browser.answer("GET").status, 200);
        assert_eq!(recorder.take(), next_at_site);
    });
}

/// A site that answers at once: what it did not read is its own loss, and never another's request.
#[test]
fn a_body_that_its_site_does_not_want_is_no_request() {
    on_both_drivers(|tunnel| {
        for (expect, status) in [("Expect: 100-continue\r\n", 417), ("", 413)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let (inner, _) = hidden(address);
            // One byte is missing, so that it is not complete when it is answered.
            let length = inner.len() + 1;
            let rest = format!("HTTP/1.1\r\nHost: {address}\r\n{expect}Content-Length: {length}\r\n\r\n");
            let mut browser = tunnel.browser();
            browser.send(format!("POST http://{address}/a {rest}").as_bytes());
            let (mut connection, _) = listener.accept().unwrap();
            let want = format!("POST /a {rest}");
            let mut got = vec![0; want.len()];
            connection.read_exact(&mut got).unwrap();
            assert_eq!(String::from_utf8_lossy(&got), want);
            connection
                .write_all(format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n").as_bytes())
                .unwrap();
            let answer = browser.answer("POST");
            assert_eq!((answer.status, answer.field("Connection")), (status, Some("close")));
            browser.send(inner.as_bytes());
            assert_eq!(browser.rest(), (Vec::new(), true));
            let mut after = Vec::new();
            let _ = connection.read_to_end(&mut after);
            assert!(
                inner.as_bytes().starts_with(&after),
                "{:?}",
                String::from_utf8_lossy(&after)
            );
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err(), "the body came as a request");
        }
    });
}

/// envoy 2025-64763 and pingora 2026-2833: what comes before the 2xx or 101 belongs to nobody yet.
#[test]
fn early_bytes_are_requests_only_where_nothing_was_opened() {
    on_both_drivers(|tunnel| {
        let recorder = Recorder::start();
        let address = recorder.address;
        let (next, next_at_site) = hidden(address);
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for (connect, status) in [(closed.to_string(), 502), ("169.254.169.254:80".to_owned(), 403)] {
            let sent = format!("CONNECT {connect} HTTP/1.1\r\nHost: {connect}\r\n\r\n{next}");
            assert_eq!(
                recorder.exchange(tunnel, sent.as_bytes()),
                (vec![status], String::new())
            );
        }
        let body = "Content-Length: 5\r\n";
        let sent = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{body}\r\nhello{next}");
        assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), (vec![400], String::new()));

        // A site that does not switch is asked again: an ordinary request, then the next.
        let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        passes_as_get(tunnel, &recorder, fields, fields, &next, &next_at_site);
        // Other protocols are not asked for.
        passes_as_get(
            tunnel,
            &recorder,
            "Connection: Upgrade\r\nUpgrade: h2c\r\n",
            "",
            &next,
            &next_at_site,
        );
        passes_as_get(
            tunnel,
            &recorder,
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            "",
            &next,
            &next_at_site,
        );
    });
}

fn passes_as_get(tunnel: &Tunnel, recorder: &Recorder, fields: &str, kept: &str, next: &str, next_at_site: &str) {
    let address = recorder.address;
    let host = format!("Host: {address}\r\n");
    let sent = format!("GET http://{address}/a HTTP/1.1\r\n{host}{fields}\r\n{next}");
    let want = format!("GET /a HTTP/1.1\r\n{host}{kept}\r\n{next_at_site}");
    assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), (vec![200, 200], want));
}

/// What a site sends beyond its answer is no answer to the next request, of whoever.
#[test]
fn answers_that_nobody_asked_for_reach_nobody() {
    on_both_drivers(|tunnel| {
        for surplus in [
            "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled",
            "x",
            "\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
        ] {
            let site = site(move |mut connection: BufReader<TcpStream>| {
                loop {
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
            let mut browser = tunnel.browser();
            browser.get(&format!("http://{site}/more"));
            assert_eq!(browser.answer("GET").body, b"/more", "{surplus:?}");
            for n in 0..3 {
                let answer = tunnel.get(&format!("http://{site}/{n}"));
                assert_eq!(answer.body, format!("/{n}").as_bytes(), "{surplus:?}");
            }
        }
    });
}
