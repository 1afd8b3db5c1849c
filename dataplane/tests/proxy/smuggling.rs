//! The classes of messages with which requests were smuggled through proxies: what of them reaches the site, byte for byte.

use std::io::Read;
use std::net::TcpListener;

use crate::recorder::{Recorder, hidden, is_refused, passes, passes_with, statuses};
use crate::tunnel::on_both_drivers;

/// RFC 9112 section 6.3; pingora 2026-2835, HTTP/1.0 with Transfer-Encoding.
#[test]
fn lengths_beside_codings_reach_nobody() {
    on_both_drivers(|tunnel| {
        let recorder = Recorder::start();
        let refused = |fields, body| is_refused(tunnel, &recorder, 400, fields, body);
        refused("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n");
        refused("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n");
        refused("Content-Length: 0\r\ntransfer-encoding:chunked\r\n", "0\r\n\r\n");
        refused("Content-Length: 5\r\nTransfer-Encoding: identity\r\n", "hello");
        refused(
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        );
        refused("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n");
        refused("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n");
        refused("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n");
        refused("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n");
        refused("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n");
        refused("Transfer-Encoding : chunked\r\n", "0\r\n\r\n");
        refused(
            "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        );
        refused("Connection: Content-Length\r\nContent-Length: 5\r\n", "hello");
        is_refused(
            tunnel,
            &recorder,
            501,
            "Transfer-Encoding: gzip, chunked\r\n",
            "0\r\n\r\n",
        );

        let address = recorder.address;
        let old = format!("POST http://{address}/a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
        assert_eq!(recorder.exchange(tunnel, old.as_bytes()), (vec![400], String::new()));
    });
}

/// RFC 9112 section 6.3; haproxy 2023-40225 (empty), `+5` (pingora 2026-2835, hyper).
#[test]
fn lengths_that_are_not_one_number_reach_nobody() {
    on_both_drivers(|tunnel| {
        let recorder = Recorder::start();
        for length in [
            "",
            "+5",
            "-5",
            "0x5",
            "5 5",
            "5,5",
            "5, 6",
            "5.0",
            "5;",
            "\"5\"",
            "9223372036854775808",
            "18446744073709551621",
            "00000000000000000005",
        ] {
            is_refused(
                tunnel,
                &recorder,
                400,
                &format!("Content-Length: {length}\r\n"),
                "hello",
            );
        }
        for fields in [
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-length: 0\r\n",
            "Content-Length : 5\r\n",
            "Content-Length\0: 5\r\n",
            " Content-Length: 5\r\n",
        ] {
            is_refused(tunnel, &recorder, 400, fields, "hello");
        }
        for (sent, at_site, body) in [
            ("Content-Length: 007\r\n", "Content-Length: 7\r\n", "payload"),
            ("cONTENT-lENGTH:\t7 \t\r\n", "cONTENT-lENGTH: 7\r\n", "payload"),
            (
                "transfer-encoding:CHUNKED\t\r\n",
                "transfer-encoding: chunked\r\n",
                "0\r\n\r\n",
            ),
        ] {
            passes_with(tunnel, &recorder, sent, at_site, body);
        }
    });
}

/// haproxy 2023-25725 (empty name) and 2021-40346 (length overflow of a name): fields that hide others.
#[test]
fn names_of_any_length_hide_nothing() {
    on_both_drivers(|tunnel| {
        let recorder = Recorder::start();
        for fields in [
            ": x\r\nContent-Length: 5\r\n",
            ":\r\nContent-Length: 5\r\n",
            "X\r\nContent-Length: 5\r\n",
            "X(: y\r\nContent-Length: 5\r\n",
            "X\u{e4}: y\r\nContent-Length: 5\r\n",
        ] {
            is_refused(tunnel, &recorder, 400, fields, "hello");
        }
        for length in [255, 256, 257, 270, 65_536 / 4] {
            let name = format!("Content-Length0{}", "a".repeat(length - 15));
            passes(
                tunnel,
                &recorder,
                &format!("{name}:\r\nContent-Length: 7\r\n"),
                "payload",
            );
        }
    });
}

/// RFC 9112 sections 2.2 and 5: one way to end a line, and no line that goes on.
#[test]
fn heads_with_odd_lines_reach_nobody() {
    on_both_drivers(|tunnel| {
        let recorder = Recorder::start();
        for fields in [
            "X: y\nContent-Length: 5\r\n",
            "X: y\rContent-Length: 5\r\n",
            "X: y\r\r\nContent-Length: 5\r\n",
            "X: y\r\n z\r\nContent-Length: 5\r\n",
            "X: y\r\n\tz\r\nContent-Length: 5\r\n",
            "X : y\r\nContent-Length: 5\r\n",
            "X: \0\r\nContent-Length: 5\r\n",
            "X: y\x0bz\r\nContent-Length: 5\r\n",
            "Host: other.test\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\n\n",
        ] {
            is_refused(tunnel, &recorder, 400, fields, "hello");
        }
        let address = recorder.address;
        let host = format!("Host: {address}\r\n\r\n");
        let url = format!("http://{address}/a");
        for (start, status) in [
            (format!("\r\nGET {url} HTTP/1.1\r\n"), 400),
            (format!(" GET {url} HTTP/1.1\r\n"), 400),
            (format!("GET  {url} HTTP/1.1\r\n"), 400),
            (format!("GET {url} HTTP/1.1 \r\n"), 400),
            (format!("GET\t{url} HTTP/1.1\r\n"), 400),
            (format!("GET {url} x HTTP/1.1\r\n"), 400),
            (format!("GET {url} HTTP/1.1\n"), 400),
            (format!("GET {url}\r\n"), 400),
            (format!("GET {url}#f HTTP/1.1\r\n"), 400),
            (format!("GET {url}\0 HTTP/1.1\r\n"), 400),
            (format!("GET http://{address}@other.test/ HTTP/1.1\r\n"), 400),
            (format!("GET http://other.test@{address}/ HTTP/1.1\r\n"), 400),
            (format!("GET {url} HTTP/0.9\r\n"), 505),
            (format!("GET {url} HTTP/1.2\r\n"), 505),
            (format!("GET {url} HTTP/2.0\r\n"), 505),
            (format!("GET {url} http/1.1\r\n"), 400),
            ("GET /a HTTP/1.1\r\n".to_owned(), 400),
        ] {
            let got = recorder.exchange(tunnel, format!("{start}{host}").as_bytes());
            assert_eq!(got, (vec![status], String::new()), "{start:?}");
        }
    });
}

/// RFC 9112 section 7.1: whatever is well formed goes on as it came, however odd.
#[test]
fn chunks_extensions_and_trailers_pass_byte_for_byte() {
    on_both_drivers(|tunnel| {
        let recorder = Recorder::start();
        let (inner, _) = hidden(recorder.address);
        let length = inner.len();
        let single: String = inner.chars().map(|c| format!("1\r\n{c}\r\n")).collect();
        for body in [
            "0\r\n\r\n".to_owned(),
            "00005\r\nhello\r\n000\r\n\r\n".to_owned(),
            format!("{length:X}\r\n{inner}\r\n0\r\n\r\n"),
            format!("{length:x};a;b=c;d=\"e\\\";f\"\r\n{inner}\r\n0;last\r\nX-Sum: 1\r\nEtag:\r\n\r\n"),
            format!("{single}0\r\n\r\n"),
            // squid 2024-25111: no recursion on the smallest chunks.
            format!("{}0\r\n\r\n", "1\r\nx\r\n".repeat(100_000)),
        ] {
            passes(tunnel, &recorder, "Transfer-Encoding: chunked\r\n", &body);
        }
    });
}

/// pingora 2026-2835 (overflow), kestrel 2025-55315 and h11 2025-43859 (line ends and extensions): the site gets what came
/// before, exactly, and its connection ends there.
#[test]
fn bodies_are_cut_where_they_break() {
    const GOOD: &str = "2;a=b\r\nok\r\n";
    on_both_drivers(|tunnel| {
        for bad in [
            "+5\r\nhello\r\n0\r\n\r\n",
            "-1\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\rhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloxx0\r\n\r\n",
            "5;\nhello\r\n0\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "5;a=\"\r\n\"\r\nhello\r\n0\r\n\r\n",
            "5;\0\r\nhello\r\n0\r\n\r\n",
            "8000000000000000\r\n",
            "FFFFFFFFFFFFFFFF\r\n",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
            "00000000000000005\r\nhello\r\n0\r\n\r\n",
            "0\n\n",
            "0\r\n\n",
            "0\r\nX: y\n\r\n",
            "0\r\nX : y\r\n\r\n",
            "0\r\nX: y\r\n z\r\n\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "0\r\nHost: other.test\r\n\r\n",
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let (next, _) = hidden(address);
            let rest = format!("HTTP/1.1\r\nHost: {address}\r\nTransfer-Encoding: chunked\r\n\r\n{GOOD}");
            let mut browser = tunnel.browser();
            browser.send(format!("POST http://{address}/a {rest}").as_bytes());
            let (mut connection, _) = listener.accept().unwrap();
            let want = format!("POST /a {rest}");
            let mut got = vec![0; want.len()];
            connection.read_exact(&mut got).unwrap();
            browser.send(format!("{bad}{next}").as_bytes());
            assert_eq!(statuses(&mut browser), [400], "{bad:?}");
            // Cut, or ended in the middle of the body: never is there one byte more.
            let _ = connection.read_to_end(&mut got);
            assert_eq!(String::from_utf8_lossy(&got), want, "{bad:?}");
        }
    });
}

#[test]
fn requests_in_a_body_are_its_bytes_and_what_follows_it_is_the_next_request() {
    on_both_drivers(|tunnel| {
        let recorder = Recorder::start();
        let (inner, _) = hidden(recorder.address);
        let length = format!("Content-Length: {}\r\n", inner.len());
        passes(tunnel, &recorder, &length, &inner);
        // Whatever the method: what does not count as a body for one side is a request for it.
        let (next, next_at_site) = hidden(recorder.address);
        for method in ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get"] {
            let rest = format!("HTTP/1.1\r\nHost: {}\r\n{length}\r\n{inner}", recorder.address);
            let mut browser = tunnel.browser();
            browser.send(format!("{method} http://{}/a {rest}{next}", recorder.address).as_bytes());
            assert_eq!(browser.answer(method).status, 200);
            assert_eq!(browser.answer("GET").status, 200);
            assert_eq!(recorder.take(), format!("{method} /a {rest}{next_at_site}"));
        }
    });
}

#[test]
fn names_order_and_odd_fields_are_untouched() {
    const FIELDS: &str = "zETA: 1\r\nAlpha:2\r\nalpha: \t3 \t\r\nX-Empty:\r\nX_Under: \u{e4}\u{65e5}\r\nCookie: a=b;  c\r\n\
        Cookie: d\r\nTransfer_Encoding: chunked\r\nContent-Length-X: 9\r\nVia: 1.0 x\r\nMax-Forwards: 0\r\n\
        ACCEPT: */*,,\r\nTrailer: x\r\n";
    on_both_drivers(|tunnel| {
        let recorder = Recorder::start();
        passes(tunnel, &recorder, FIELDS, "");
        let address = recorder.address;
        // Hop-by-hop fields stay behind, those that Connection lists too, wherever they are.
        let sent = format!(
            "GET http://{address}?q HTTP/1.1\r\nX-Hop: 1\r\nA: 1\r\nconnection: x-hop, TE,,keep-alive\r\nHost: other.test\r\n\
             TE: trailers\r\nKeep-Alive: 5\r\nB: 2\r\nProxy-Authorization: Basic x\r\nProxy-Connection: x-second\r\n\
             X-SECOND: 2\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nC: 3\r\n\r\n"
        );
        let want = format!("GET /?q HTTP/1.1\r\nA: 1\r\nHost: {address}\r\nB: 2\r\nC: 3\r\n\r\n");
        assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), (vec![200], want));
    });
}

#[test]
fn an_http_1_0_browser_sends_one_request() {
    on_both_drivers(|tunnel| {
        let recorder = Recorder::start();
        let address = recorder.address;
        let (next, _) = hidden(address);
        let sent = format!(
            "POST http://{address}/a HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n\
             ok{next}"
        );
        let want = format!("POST /a HTTP/1.1\r\nHost: {address}\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), (vec![200], want));
    });
}

#[test]
fn heads_that_are_too_large_reach_nobody() {
    on_both_drivers(|tunnel| {
        let recorder = Recorder::start();
        let address = recorder.address;
        let host = format!("HTTP/1.1\r\nHost: {address}\r\n");
        let many = "X: y\r\n".repeat(128);
        let large = format!("X: {}\r\n", "y".repeat(66_000));
        let options = format!("Connection: {}\r\n", vec!["x"; 33].join(","));
        for (message, status) in [
            (format!("GET http://{address}/{} {host}\r\n", "a".repeat(17_000)), 414),
            (format!("GET http://{address}/a {host}{many}\r\n"), 431),
            (format!("GET http://{address}/a {host}{large}\r\n"), 431),
            (format!("GET http://{address}/a {host}{options}\r\n"), 431),
            (format!("GET http://{address}/a {host}Expect: 200-ok\r\n\r\n"), 417),
            (format!("{} http://{address}/a {host}\r\n", "A".repeat(33)), 501),
        ] {
            let (next, _) = hidden(address);
            let got = recorder.exchange(tunnel, format!("{message}{next}").as_bytes());
            assert_eq!(got, (vec![status], String::new()), "{}", &message[..60]);
        }
    });
}
