use super::head;
use crate::http::{Delivery, Request, Response, Version, rewrite};

#[track_caller]
fn request(from: &[&str], to: &[&str]) {
    let bytes = head(from);
    let mut out = Vec::new();
    rewrite::request(&Request::parse(&bytes).unwrap(), &[], &mut out);
    assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&head(to)));
}

#[test]
fn requests_become_origin_form() {
    request(
        &["GET http://a.test:8080/x?y HTTP/1.1", "Host: a.test:8080"],
        &["GET /x?y HTTP/1.1", "Host: a.test:8080"],
    );
    request(&["GET http://a HTTP/1.1", "Host: a"], &["GET / HTTP/1.1", "Host: a"]);
    request(
        &["GET http://a?q HTTP/1.1", "Host: a"],
        &["GET /?q HTTP/1.1", "Host: a"],
    );
    request(
        &["GET http://a//b/ HTTP/1.1", "Host: a"],
        &["GET //b/ HTTP/1.1", "Host: a"],
    );
    request(
        &["OPTIONS http://a HTTP/1.1", "Host: a"],
        &["OPTIONS * HTTP/1.1", "Host: a"],
    );
    request(
        &["OPTIONS http://a/ HTTP/1.1", "Host: a"],
        &["OPTIONS / HTTP/1.1", "Host: a"],
    );
    request(&["OPTIONS * HTTP/1.1", "Host: a"], &["OPTIONS * HTTP/1.1", "Host: a"]);
    request(&["GET /x HTTP/1.1", "host:  a "], &["GET /x HTTP/1.1", "host:  a "]);
    request(
        &["CONNECT a:1 HTTP/1.1", "Host: b"],
        &["CONNECT a:1 HTTP/1.1", "Host: a:1"],
    );
}

#[test]
fn the_target_names_the_host() {
    request(
        &["GET http://a:81/ HTTP/1.1", "X: 1", "hOst: internal", "Y: 2"],
        &["GET / HTTP/1.1", "X: 1", "hOst: a:81", "Y: 2"],
    );
    request(
        &["GET http://a/ HTTP/1.0", "X: 1"],
        &["GET / HTTP/1.1", "Host: a", "X: 1"],
    );
}

#[test]
fn hop_by_hop_fields_stay_behind_and_the_rest_keeps_order_and_case() {
    request(
        &[
            "POST http://a/ HTTP/1.1",
            "uSER-aGENT:x",
            "Host: a",
            "Proxy-Connection: Keep-Alive",
            "Connection: close, X-Hop ,, x-HOP-2",
            "Keep-Alive: timeout=5",
            "Cookie: a=b",
            "Proxy-Authorization: Basic c2VjcmV0",
            "x-hop: 1",
            "TE: trailers",
            "Trailer: X-Sum",
            "X-Hop-2: 2",
            "X-Hop-3: 3",
            "Cookie: c=d",
            "Upgrade: h2c",
            "HTTP2-Settings: AAA",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
            "empty:",
        ],
        &[
            "POST / HTTP/1.1",
            "uSER-aGENT:x",
            "Host: a",
            "Cookie: a=b",
            "Trailer: X-Sum",
            "X-Hop-3: 3",
            "Cookie: c=d",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
            "empty:",
        ],
    );
    request(
        &[
            "POST http://a/ HTTP/1.0",
            "Expect: 100-continue",
            "Content-Length: 1",
            "Connection: keep-alive",
        ],
        &["POST / HTTP/1.1", "Host: a", "Content-Length: 1"],
    );
}

#[test]
fn framing_is_written_in_one_way() {
    for (from, to) in [
        ("Transfer-Encoding:chunked", "Transfer-Encoding: chunked"),
        ("tRANSFER-eNCODING: \tCHUNKED\t", "tRANSFER-eNCODING: chunked"),
        ("Content-Length:5", "Content-Length: 5"),
        ("content-LENGTH: \t007 \t", "content-LENGTH: 7"),
        ("Content-Length: 000", "Content-Length: 0"),
        ("Content-Length: 100", "Content-Length: 100"),
        ("X-Content-Length:\t007 \t", "X-Content-Length:\t007 \t"),
    ] {
        request(
            &["POST http://a/ HTTP/1.1", "Host: a", from, "X: 1"],
            &["POST / HTTP/1.1", "Host: a", to, "X: 1"],
        );
    }
}

#[test]
fn nothing_is_expected_without_content() {
    for (fields, stays) in [
        (&["Content-Length: 1"][..], true),
        (&["Transfer-Encoding: chunked"], true),
        (&["Content-Length: 0"], false),
        (&[], false),
    ] {
        let expect = ["Expect: 100-continue"];
        let [first, host] = ["POST http://a/ HTTP/1.1", "Host: a"];
        let kept = if stays { &expect[..] } else { &[] };
        request(
            &[&[first, host][..], &expect, fields].concat(),
            &[&["POST / HTTP/1.1", host][..], kept, fields].concat(),
        );
    }
}

#[test]
fn only_websocket_is_upgraded_to() {
    let upgrade = [
        "Host: a",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        "Sec-WebSocket-Key: k",
    ];
    let get = "GET http://a/ HTTP/1.1";
    request(
        &[get, upgrade[0], upgrade[1], upgrade[2], upgrade[3]],
        &[
            "GET / HTTP/1.1",
            upgrade[0],
            upgrade[1],
            "Connection: Upgrade",
            upgrade[3],
        ],
    );
    request(
        &[
            get,
            upgrade[0],
            "Connection: keep-alive",
            upgrade[1],
            "connection: upgrade",
        ],
        &["GET / HTTP/1.1", upgrade[0], "Connection: Upgrade", upgrade[1]],
    );
    request(
        &[get, upgrade[0], "Proxy-Connection: upgrade", upgrade[1]],
        &["GET / HTTP/1.1", upgrade[0], upgrade[1], "Connection: Upgrade"],
    );
    request(
        &[get, upgrade[0], upgrade[1], upgrade[2], "Content-Length: 5"],
        &["GET / HTTP/1.1", upgrade[0], "Content-Length: 5"],
    );
}

#[test]
fn fields_can_be_added() {
    let bytes = head(&["GET http://a/ HTTP/1.1", "Host: a"]);
    let mut out = b"before".to_vec();
    let request = Request::parse(&bytes).unwrap();
    rewrite::request(&request, &[("Authorization", b"Basic eDp5")], &mut out);
    assert_eq!(
        out,
        b"beforeGET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic eDp5\r\n\r\n"
    );
}

#[track_caller]
fn response(from: &[&str], to: Version, keep_alive: bool, want: (bool, bool), lines: &[&str]) {
    let bytes = head(from);
    let mut out = Vec::new();
    let response = Response::parse(&bytes, "GET", true).unwrap();
    let delivery = rewrite::response(&response, to, keep_alive, &[], &mut out);
    assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&head(lines)));
    assert_eq!(
        delivery,
        Delivery {
            keep_alive: want.0,
            dechunk: want.1
        }
    );
}

#[test]
fn responses_keep_their_framing() {
    use Version::{Http10, Http11};
    let (ok, te, cl) = ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Content-Length: 5");
    let close = "Connection: close";
    response(&[ok, cl, "A: b"], Http11, true, (true, false), &[ok, cl, "A: b"]);
    response(
        &[ok, te, "Connection: Transfer-Encoding"],
        Http11,
        true,
        (true, false),
        &[ok, te],
    );
    response(&[ok, cl], Http11, false, (false, false), &[ok, cl, close]);
    response(&[ok], Http11, true, (false, false), &[ok, close]);
    response(&[ok, cl], Http10, true, (false, false), &[ok, cl, close]);
    response(&[ok, te, "A: b"], Http10, true, (false, true), &[ok, "A: b", close]);
    let own = "Transfer-Encoding: x-own";
    response(&[ok, own, "A: b"], Http11, true, (false, false), &[ok, "A: b", close]);
    response(
        &["HTTP/1.0 404 No", cl],
        Http11,
        true,
        (true, false),
        &["HTTP/1.1 404 No", cl],
    );
    response(
        &["HTTP/1.1 200", cl],
        Http11,
        true,
        (true, false),
        &["HTTP/1.1 200 ", cl],
    );
    response(
        &[
            ok,
            "connection: X-A, close",
            "Keep-Alive: x",
            "x-a: 1",
            "Proxy-Authenticate: Basic",
            "Set-Cookie: a",
            cl,
        ],
        Http11,
        true,
        (true, false),
        &[ok, "Set-Cookie: a", cl],
    );
}

#[test]
fn interim_responses_and_upgrades_leave_the_connection_alone() {
    let hints = ["HTTP/1.1 103 Early Hints", "Link: x"];
    response(&hints, Version::Http11, false, (false, false), &hints);
    response(
        &[
            "HTTP/1.1 101 Switching Protocols",
            "upgrade: websocket",
            "connection: upgrade, x",
            "x: y",
            "z: 1",
        ],
        Version::Http11,
        true,
        (false, false),
        &[
            "HTTP/1.1 101 Switching Protocols",
            "upgrade: websocket",
            "connection: Upgrade",
            "z: 1",
        ],
    );
}
