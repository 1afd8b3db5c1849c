//! The classes of messages with which requests were smuggled through proxies: what of them reaches the site, byte for byte.

use crate::recorder::{Recorder, Silent, hidden, is_refused, passes, passes_with, statuses};
use crate::way::{Way, in_every_way};

/// RFC 9112 section 6.3; pingora 2026-2835, HTTP/1.0 with Transfer-Encoding.
#[test]
fn lengths_beside_codings_reach_nobody() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
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

        let target = recorder.site.target("/a");
        let old = format!("POST {target} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
        assert_eq!(recorder.exchange(tunnel, old.as_bytes()), (vec![400], String::new()));
    });
}

/// RFC 9112 section 6.3; haproxy 2023-40225 (empty), `+5` (pingora 2026-2835, hyper).
#[test]
fn lengths_that_are_not_one_number_reach_nobody() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
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
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
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
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
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
        let site = recorder.site;
        let host = format!("Host: {site}\r\n\r\n");
        let url = site.target("/a");
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
            (format!("GET http://{site}@other.test/ HTTP/1.1\r\n"), 400),
            (format!("GET http://other.test@{site}/ HTTP/1.1\r\n"), 400),
            (format!("GET {url} HTTP/0.9\r\n"), 505),
            (format!("GET {url} HTTP/1.2\r\n"), 505),
            (format!("GET {url} HTTP/2.0\r\n"), 505),
            (format!("GET {url} http/1.1\r\n"), 400),
            ("GET a HTTP/1.1\r\n".to_owned(), 400),
            ("GET * HTTP/1.1\r\n".to_owned(), 400),
            ("GET ftp://other.test/a HTTP/1.1\r\n".to_owned(), 501),
        ] {
            let got = recorder.exchange(tunnel, format!("{start}{host}").as_bytes());
            assert_eq!(got, (vec![status], String::new()), "{way:?} {start:?}");
        }
    });
}

/// RFC 9112 section 7.1: whatever is well formed goes on as it came, however odd.
#[test]
fn chunks_extensions_and_trailers_pass_byte_for_byte() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let (inner, _) = hidden(recorder.site);
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
    in_every_way(|tunnel, way| {
        let silent = Silent::start(way, GOOD.len());
        let site = silent.site;
        let (next, _) = hidden(site);
        let fields = "Transfer-Encoding: chunked\r\n";
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
            let mut browser = site.browser(tunnel);
            browser.send(format!("{}{GOOD}", site.head("POST", "/a", fields)).as_bytes());
            let want = format!("{}{GOOD}", site.head_at_site("POST", "/a", fields));
            assert_eq!(silent.told(), want);
            browser.send(format!("{bad}{next}").as_bytes());
            assert_eq!(statuses(&mut browser), [400], "{way:?} {bad:?}");
            // Cut, or ended in the middle of the body: never is there one byte more.
            assert_eq!(silent.told(), want, "{way:?} {bad:?}");
        }
    });
}

#[test]
fn requests_in_a_body_are_its_bytes_and_what_follows_it_is_the_next_request() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let (inner, _) = hidden(recorder.site);
        let length = format!("Content-Length: {}\r\n", inner.len());
        passes(tunnel, &recorder, &length, &inner);
        // Whatever the method: what does not count as a body for one side is a request for it.
        let site = recorder.site;
        let (next, next_at_site) = hidden(site);
        for method in ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get"] {
            let mut browser = recorder.browser(tunnel);
            browser.send(format!("{}{inner}{next}", site.head(method, "/a", &length)).as_bytes());
            assert_eq!(browser.answer(method).status, 200);
            assert_eq!(browser.answer("GET").status, 200);
            let want = format!("{}{inner}{next_at_site}", site.head_at_site(method, "/a", &length));
            assert_eq!(recorder.take(), want);
        }
    });
}

#[test]
fn names_order_and_odd_fields_are_untouched() {
    const FIELDS: &str = "zETA: 1\r\nAlpha:2\r\nalpha: \t3 \t\r\nX-Empty:\r\nX_Under: \u{e4}\u{65e5}\r\nCookie: a=b;  c\r\n\
        Cookie: d\r\nTransfer_Encoding: chunked\r\nContent-Length-X: 9\r\nVia: 1.0 x\r\nMax-Forwards: 0\r\n\
        ACCEPT: */*,,\r\nTrailer: x\r\n";
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        passes(tunnel, &recorder, FIELDS, "");
        let site = recorder.site;
        // Hop-by-hop fields stay behind, those that Connection lists too, wherever they are. A target in absolute form says
        // more than Host, also where browsers send another form.
        let sent = format!(
            "GET {} HTTP/1.1\r\nX-Hop: 1\r\nA: 1\r\nconnection: x-hop, TE,,keep-alive\r\nHost: other.test\r\n\
             TE: trailers\r\nKeep-Alive: 5\r\nB: 2\r\nProxy-Authorization: Basic x\r\nProxy-Connection: x-second\r\n\
             X-SECOND: 2\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nC: 3\r\n\r\n",
            site.url("?q")
        );
        let want = format!("GET /?q HTTP/1.1\r\nA: 1\r\nHost: {site}\r\nB: 2\r\nC: 3\r\n\r\n");
        assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), (vec![200], want));
    });
}

/// In origin form it names no site: the CONNECT around it does.
#[test]
fn an_http_1_0_browser_sends_one_request() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        let (next, _) = hidden(site);
        let sent = format!(
            "POST {} HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok{next}",
            site.target("/a")
        );
        let want = site.head_at_site("POST", "/a", "Content-Length: 2\r\n") + "ok";
        assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), (vec![200], want));
    });
}

/// In a CONNECT each request is for its site, whatever it says; at the proxy's port each has to say whom it is for.
#[test]
fn requests_for_other_sites_reach_nobody() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        let host = format!("Host: {site}\r\n");
        let capitals = format!("HOST: {}\r\n", site.to_string().to_uppercase());
        let (name, port) = host.trim().rsplit_once(':').unwrap();
        let other_scheme = match way {
            Way::Tls => format!("GET http://{site}/a"),
            Way::Absolute | Way::Connect => format!("GET https://{site}/a"),
        };
        for (start, fields, at_port, within) in [
            ("GET /a", host.as_str(), 400, 200),
            ("GET /a", &capitals, 400, 200),
            ("OPTIONS *", &host, 400, 200),
            ("GET /a", "", 400, 400),
            ("GET /a", "Host:\r\n", 400, 400),
            ("GET /a", "Host: other.test\r\n", 400, 421),
            ("GET /a", &format!("Host: other.test:{port}\r\n"), 400, 421),
            // The scheme's own port.
            ("GET /a", &format!("{name}\r\n"), 400, 421),
            ("GET http://probe.culvert.invalid/a", &host, 403, 421),
            (&other_scheme, &host, 403, 421),
        ] {
            let sent = format!("{start} HTTP/1.1\r\n{fields}\r\n");
            let want = match (way, within) {
                (Way::Absolute, _) => (vec![at_port], String::new()),
                (Way::Connect | Way::Tls, 200) => (vec![200], sent.clone()),
                (Way::Connect | Way::Tls, status) => (vec![status], String::new()),
            };
            assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), want, "{way:?} {sent:?}");
        }
        if way != Way::Absolute {
            let sent = format!("CONNECT {site} HTTP/1.1\r\n{host}\r\n{}", hidden(site).0);
            let want = (vec![400], String::new());
            assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), want, "{way:?}");
        }
    });
}
