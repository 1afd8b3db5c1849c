use super::head;
use crate::http::{Authority, Bad, Finder, Form, Framing, Request, Scheme, Version};
use crate::limits::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX, TARGET_BYTES_MAX};

/// What a browser loop does with the bytes: the status of the refusal, or 0.
fn status(bytes: &[u8]) -> u16 {
    let outcome = Finder::request().find(bytes).and_then(|found| {
        let n = found.ok_or(Bad {
            status: 1,
            reason: "not complete",
        })?;
        Request::parse(&bytes[..n]).map(|_| ())
    });
    outcome.err().map_or(0, |bad| bad.status)
}

/// As `status`, with the bytes coming one at a time.
fn status_split(bytes: &[u8]) -> u16 {
    let mut finder = Finder::request();
    for end in 0..=bytes.len() {
        match finder.find(&bytes[..end]) {
            Ok(None) => {}
            Ok(Some(n)) => {
                return Request::parse(&bytes[..n]).err().map_or(0, |bad| bad.status);
            }
            Err(bad) => return bad.status,
        }
    }
    1
}

#[track_caller]
fn check(bytes: &[u8], want: u16) {
    let shown = String::from_utf8_lossy(bytes);
    assert_eq!(status(bytes), want, "{shown:?}");
    assert_eq!(status_split(bytes), want, "split: {shown:?}");
}

#[test]
fn line_ends_and_white_space_have_one_reading() {
    for (bytes, want) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], 0),
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x0b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", 0),
        (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x0bc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\xff: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xa4\tb\r\nY:\r\nZ:\t\r\n\r\n", 0),
    ] {
        check(bytes, want);
    }
}

#[test]
fn start_lines() {
    for (line, want) in [
        ("GET /?a=b&c HTTP/1.1", 0),
        ("PATCH /x HTTP/1.1", 0),
        ("get /x HTTP/1.1", 0),
        ("M-SEARCH * HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1", 0),
        ("GET * HTTP/1.1", 400),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/2.0", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET / HTTP/0.9", 505),
        ("GET / HTTP/11", 400),
        ("GET / HTTP/1.1.1", 400),
        ("GET / HTTP/01.1", 400),
        ("GET / http/1.1", 400),
        ("GET / ICAP/1.0", 400),
        ("GET /", 400),
        ("GET", 400),
        ("G@T / HTTP/1.1", 400),
        ("GET /#f HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("GET a:80 HTTP/1.1", 400),
        ("connect a:80 HTTP/1.1", 400),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1", 501),
        ("GET ftp://a/ HTTP/1.1", 501),
        ("GET ://a/ HTTP/1.1", 400),
        ("GET ht_tp://a/ HTTP/1.1", 400),
    ] {
        check(&head(&[line, "Host: a"]), want);
    }
}

#[test]
fn authorities() {
    for (authority, want) in [
        ("a", 0),
        ("a:1", 0),
        ("a:65535", 0),
        ("A-b_c.d.:80", 0),
        ("127.0.0.1:80", 0),
        ("[::1]:80", 0),
        ("[::ffff:127.0.0.1]", 0),
        ("", 400),
        (":80", 400),
        ("a:", 400),
        ("a:0", 400),
        ("a:00080", 400),
        ("a:080", 400),
        ("a:65536", 400),
        ("a:+80", 400),
        ("a:80a", 400),
        ("a:8 0", 400),
        ("a:80:80", 400),
        ("user@a", 400),
        ("user:pwd@a:80", 400),
        ("a%00", 400),
        ("%61", 400),
        ("a,b", 400),
        ("a\\b", 400),
        ("a;b", 400),
        ("ä", 400),
        ("::1", 400),
        ("[::1", 400),
        ("[::1]x", 400),
        ("[::1%eth0]", 400),
        ("[v1.x]", 400),
        ("[]", 400),
        ("[127.0.0.1]", 400),
    ] {
        check(&head(&["GET / HTTP/1.1", &format!("Host: {authority}")]), want);
        check(&head(&[&format!("GET http://{authority}/x HTTP/1.1"), "Host: a"]), want);
    }
    let long = "a".repeat(255);
    check(&head(&["GET / HTTP/1.1", &format!("Host: {long}")]), 0);
    check(&head(&["GET / HTTP/1.1", &format!("Host: {long}a")]), 400);
    for (target, want) in [
        ("a:443", 0),
        ("[::1]:443", 0),
        ("a", 400),
        ("a:443/", 400),
        ("http://a:443", 400),
        ("/", 400),
        ("*", 400),
        ("u@a:443", 400),
    ] {
        check(&head(&[&format!("CONNECT {target} HTTP/1.1"), "Host: a:443"]), want);
    }
    let authority = Authority::parse(b"[::1]:8080").unwrap();
    assert_eq!((authority.host, authority.port), ("::1", Some(8080)));
    assert!(Authority::parse(b"Site.Test").unwrap().matches("site.test", 443, 443));
    assert!(
        !Authority::parse(b"site.test:80")
            .unwrap()
            .matches("site.test", 443, 443)
    );
    assert!(!Authority::parse(b"site.test.").unwrap().matches("site.test", 80, 80));
}

#[test]
fn hosts_are_there_once() {
    check(&head(&["GET / HTTP/1.1"]), 400);
    check(&head(&["GET / HTTP/1.0"]), 0);
    check(&head(&["GET http://a/ HTTP/1.1"]), 400);
    check(&head(&["GET http://a/ HTTP/1.0"]), 0);
    check(&head(&["GET / HTTP/1.1", "Host: a", "Host: a"]), 400);
    check(&head(&["GET / HTTP/1.1", "Host: a", "hOST: b"]), 400);
    check(&head(&["GET http://a/ HTTP/1.1", "Host: b"]), 0);
    check(&head(&["GET http://a/ HTTP/1.1", "Host:"]), 400);
    check(&head(&["GET http://a/ HTTP/1.1", "Host: u:p@b"]), 400);
}

#[test]
fn framing_has_one_reading() {
    for (fields, want) in [
        (&["Content-Length: 5"][..], 0),
        (&["Content-Length: 007"], 0),
        (&["Content-Length: 9223372036854775807"], 0),
        (&["Content-Length: 9223372036854775808"], 400),
        (&["Content-Length: 18446744073709551616"], 400),
        (&["Content-Length: 99999999999999999999999999"], 400),
        (&["Content-Length: 00000000000000000005"], 400),
        (&["Content-Length:"], 400),
        (&["Content-Length: "], 400),
        (&["Content-Length: +5"], 400),
        (&["Content-Length: -5"], 400),
        (&["Content-Length: 5 5"], 400),
        (&["Content-Length: 5,5"], 400),
        (&["Content-Length: 5, 6"], 400),
        (&["Content-Length: 0x5"], 400),
        (&["Content-Length: 5.0"], 400),
        (&["Content-Length: \u{665}"], 400),
        (&["Content-Length: 5", "Content-Length: 5"], 400),
        (&["Content-Length: 5", "content-length: 6"], 400),
        (&["Transfer-Encoding: chunked"], 0),
        (&["Transfer-Encoding: CHUNKED"], 0),
        (&["Transfer-Encoding: chunked", "Content-Length: 5"], 400),
        (&["Content-Length: 0", "Transfer-Encoding: chunked"], 400),
        (&["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], 400),
        (&["Transfer-Encoding: gzip", "Transfer-Encoding: chunked"], 400),
        (&["Transfer-Encoding: gzip, chunked"], 501),
        (&["Transfer-Encoding: chunked, chunked"], 400),
        (&["Transfer-Encoding: chunked, gzip"], 400),
        (&["Transfer-Encoding: identity"], 400),
        (&["Transfer-Encoding: identity, chunked"], 400),
        (&["Transfer-Encoding: gzip"], 400),
        (&["Transfer-Encoding: x-own"], 400),
        (&["Transfer-Encoding:"], 400),
        (&["Transfer-Encoding: xchunked"], 400),
        (&["Transfer-Encoding: \"chunked\""], 400),
        (&["Transfer-Encoding: chunked;q=1"], 400),
        (&["Transfer-Encoding: \x0bchunked"], 400),
        (&["Transfer-Encoding : chunked"], 400),
        (&["Connection: Content-Length", "Content-Length: 5"], 400),
        (&["Connection: x, transfer-encoding"], 400),
        (&["Connection: host"], 400),
        (&["Expect: 200-ok"], 417),
        (&["Expect: 100-Continue"], 0),
    ] {
        let mut lines = vec!["POST / HTTP/1.1", "Host: a"];
        lines.extend_from_slice(fields);
        check(&head(&lines), want);
    }
    check(
        &head(&["POST / HTTP/1.0", "Host: a", "Transfer-Encoding: chunked"]),
        400,
    );
    check(&head(&["CONNECT a:1 HTTP/1.1", "Host: a:1", "Content-Length: 5"]), 400);
    check(
        &head(&["CONNECT a:1 HTTP/1.1", "Host: a:1", "Transfer-Encoding: chunked"]),
        400,
    );
    check(&head(&["CONNECT a:1 HTTP/1.1", "Host: a:1", "Content-Length: 0"]), 0);
}

#[test]
fn sizes_are_bounded() {
    let with_target = |n: usize| head(&[&format!("GET /{} HTTP/1.1", "a".repeat(n - 1)), "Host: a"]);
    check(&with_target(TARGET_BYTES_MAX), 0);
    check(&with_target(TARGET_BYTES_MAX + 1), 414);
    check(&vec![b'a'; HEAD_BYTES_MAX], 414);

    let with_fields = |n: usize| {
        let mut lines = vec!["GET / HTTP/1.1", "Host: a"];
        lines.resize(n + 1, "X: y");
        head(&lines)
    };
    check(&with_fields(HEAD_FIELDS_MAX), 0);
    check(&with_fields(HEAD_FIELDS_MAX + 1), 431);
    let mut hostless = vec!["GET http://a/ HTTP/1.0"];
    hostless.resize(HEAD_FIELDS_MAX + 1, "X: y");
    check(&head(&hostless), 431);

    let with_bytes = |n: usize| {
        let base = head(&["GET / HTTP/1.1", "Host: a", "X: "]).len();
        head(&["GET / HTTP/1.1", "Host: a", &format!("X: {}", "y".repeat(n - base))])
    };
    assert_eq!(with_bytes(HEAD_BYTES_MAX).len(), HEAD_BYTES_MAX);
    assert_eq!(status(&with_bytes(HEAD_BYTES_MAX)), 0);
    assert_eq!(status(&with_bytes(HEAD_BYTES_MAX + 1)), 431);
    assert_eq!(status(&with_bytes(4 * HEAD_BYTES_MAX)), 431);

    let names = vec!["x"; 33].join(",");
    check(
        &head(&["GET / HTTP/1.1", "Host: a", &format!("Connection: {names}")]),
        431,
    );
    check(
        &head(&["GET / HTTP/1.1", "Host: a", &format!("Connection: {}", &names[2..])]),
        0,
    );
}

#[test]
fn facts_of_an_absolute_form_request() {
    let bytes = head(&[
        "POST http://Site.Test:8080/a?b=c HTTP/1.1",
        "Host: other",
        "Content-Length: 12",
    ]);
    let request = Request::parse(&bytes).unwrap();
    assert_eq!(request.method, "POST");
    assert_eq!((request.form, request.scheme), (Form::Absolute, Some(Scheme::Http)));
    let authority = request.authority.unwrap();
    assert_eq!((authority.host, authority.port), ("Site.Test", Some(8080)));
    assert_eq!(request.path, b"/a?b=c");
    assert_eq!(
        (request.version, request.framing),
        (Version::Http11, Framing::Length(12))
    );
    assert!(request.keep_alive && !request.upgrade && !request.expect_continue);
    assert_eq!(request.url(Scheme::Https), "http://Site.Test:8080/a?b=c");
    assert!(!request.is_idempotent());
}

#[test]
fn a_connection_is_kept_or_upgraded_only_on_clear_words() {
    let parse = |lines: &[&str], keep: bool, upgrade: bool| {
        let bytes = head(lines);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!((request.keep_alive, request.upgrade), (keep, upgrade), "{lines:?}");
    };
    let get = "GET http://a/ HTTP/1.1";
    parse(&[get, "Host: a"], true, false);
    parse(&[get, "Host: a", "Connection: x, ClOsE"], false, false);
    parse(&[get, "Host: a", "Proxy-Connection: close"], false, false);
    parse(&[get, "Host: a", "Connection: keep-alive, close"], false, false);
    parse(&["GET http://a/ HTTP/1.0", "Connection: keep-alive"], false, false);
    let upgrade = ["Connection: keep-alive, Upgrade", "Upgrade: WebSocket"];
    parse(&[get, "Host: a", upgrade[0], upgrade[1]], true, true);
    parse(&[get, "Host: a", upgrade[0]], true, false);
    parse(&[get, "Host: a", upgrade[1]], true, false);
    parse(
        &[get, "Host: a", upgrade[0], upgrade[1], "Content-Length: 0"],
        true,
        true,
    );
    parse(
        &[get, "Host: a", upgrade[0], upgrade[1], "Content-Length: 5"],
        true,
        false,
    );
    parse(
        &[get, "Host: a", upgrade[0], upgrade[1], "Transfer-Encoding: chunked"],
        true,
        false,
    );
    parse(&[get, "Host: a", upgrade[0], "Upgrade: h2c"], true, false);
    parse(&[get, "Host: a", upgrade[0], "Upgrade: websocket, h2c"], true, false);
    parse(&[get, "Host: a", upgrade[0], upgrade[1], "Upgrade: h2c"], true, false);
    parse(&[get, "Host: a", upgrade[0], "Upgrade: h2c", upgrade[1]], true, false);
    parse(
        &["POST http://a/ HTTP/1.1", "Host: a", upgrade[0], upgrade[1]],
        true,
        false,
    );
    parse(&["GET http://a/ HTTP/1.0", upgrade[0], upgrade[1]], false, false);
}

#[test]
fn pipelined_heads_are_found_one_after_the_other() {
    let mut bytes = head(&["GET /1 HTTP/1.1", "Host: a"]);
    let first = bytes.len();
    bytes.extend(head(&["GET /22 HTTP/1.1", "Host: a"]));
    let mut finder = Finder::request();
    assert_eq!(finder.find(&bytes[..3]), Ok(None));
    assert_eq!(finder.find(&bytes), Ok(Some(first)));
    assert_eq!(finder.find(&bytes[first..]), Ok(Some(bytes.len() - first)));
    assert!(Request::parse(&bytes).is_err(), "one head and no more");
    assert!(Request::parse(&bytes[..first - 2]).is_err());
}

#[test]
fn the_parser_is_strict_without_the_finder() {
    for bytes in [
        &b""[..],
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nX",
    ] {
        assert!(Request::parse(bytes).is_err(), "{bytes:?}");
    }
}
