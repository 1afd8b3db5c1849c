//! RFC 9111 sections 3 (what may be stored), 3.1 (fields), 3.5 (Authorization), and what a hit looks like.

use super::*;

#[test]
fn every_final_status_is_stored_that_says_how_long() {
    for status in [
        200, 201, 203, 204, 299, 301, 302, 303, 307, 308, 400, 403, 404, 410, 499, 500, 502, 503, 504, 599, 999,
    ] {
        reused((status, &["Cache-Control: max-age=100"]), 3, &[], true);
        reused((status, &["Cache-Control: max-age=2"]), 3, &[], false);
        reused((status, &["Cache-Control: max-age=100, must-understand"]), 3, &[], {
            matches!(status, 200 | 203 | 204 | 301 | 302 | 303 | 307 | 308 | 404 | 410)
        });
    }
    reused(
        (200, &["Cache-Control: max-age=100, no-store, must-understand"]),
        3,
        &[],
        true,
    );
    reused(
        (599, &["Cache-Control: max-age=100, no-store, must-understand"]),
        3,
        &[],
        false,
    );
}

#[test]
fn what_must_not_be_stored_is_not() {
    for line in [
        "Cache-Control: no-store, max-age=100",
        "Cache-Control: max-age=100, No-StOrE",
        "Cache-Control: private, max-age=100",
        "Cache-Control: max-age=100, no-cache",
        "Vary: *",
    ] {
        reused((200, &[line, "Cache-Control: max-age=100"]), 0, &[], false);
    }
    let mut trial = Trial::new();
    trial.get(
        "/",
        &["Cache-Control: no-store"],
        (200, &["Cache-Control: max-age=100"], ""),
    );
    assert!(!trial.probe("/", &[]).is_hit());
}

#[test]
fn a_part_that_nobody_asked_for_is_not_stored() {
    let mut trial = Trial::new();
    let told: &[&str] = &["Cache-Control: max-age=100", "Content-Range: bytes 0-2/9"];
    trial.get("/", &[], (206, told, "abc"));
    assert!(!trial.probe("/", &[]).is_hit());
    trial.get("/", &["Range: bytes=0-2"], (206, told, "abc"));
    assert!(!trial.probe("/", &["Range: bytes=0-2"]).is_hit());
    assert!(!trial.probe("/", &[]).is_hit());
}

#[test]
fn what_may_have_been_cut_is_not_stored() {
    let told: &[&str] = &["Cache-Control: max-age=100"];
    let by_close = head(&[&["HTTP/1.1 200 OK"], told].concat());
    for (scheme, hit) in [(Scheme::Http, true), (Scheme::Https, false)] {
        let mut trial = Trial::new();
        trial.site.scheme = scheme;
        let asked = head(&["GET / HTTP/1.1", "Host: a.test"]);
        trial.exchange(&asked, &by_close, "page");
        assert_eq!(trial.exchange(&asked, &by_close, "page").is_hit(), hit, "{scheme:?}");
        trial.exchange(&asked, &response(200, told, "page"), "page");
        assert!(
            trial.exchange(&asked, &by_close, "page").is_hit(),
            "its length was told"
        );
    }
}

#[test]
fn only_get_is_stored_and_only_get_and_head_look_up() {
    let told: &[&str] = &["Cache-Control: public, max-age=100"];
    for method in ["HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "REPORT", "get"] {
        let mut trial = Trial::new();
        let target = format!("{method} /");
        trial.get(&target, &[], (200, told, "other"));
        assert!(!trial.probe("/", &[]).is_hit(), "{method}");
        trial.get("/", &[], (200, told, "stored"));
        let got = trial.get(&target, &[], (200, told, "other"));
        assert_eq!(got.is_hit(), method == "HEAD", "{method}");
    }
    let mut trial = Trial::new();
    trial.get("/", &[], (200, told, "stored"));
    let got = trial.probe("HEAD /", &[]);
    assert_eq!((got.body.as_str(), got.field("Content-Length")), ("", Some("6")));
    assert!(
        !trial.probe("/", &["Content-Length: 1"]).is_hit(),
        "a GET with a body means something else"
    );
}

#[test]
fn keys_are_whole() {
    let mut trial = Trial::new();
    let told: &[&str] = &["Cache-Control: max-age=100"];
    trial.exchange(
        &head(&["GET http://a.test/x?y HTTP/1.1", "Host: a.test"]),
        &response(200, told, "1"),
        "1",
    );
    for (line, host, hit) in [
        ("GET http://a.test/x?y HTTP/1.1", "a.test", true),
        ("GET http://A.Test:80/x?y HTTP/1.1", "A.Test:80", true),
        ("GET http://a.test/x?y HTTP/1.1", "b.test", true),
        ("GET /x?y HTTP/1.1", "a.test", true),
        ("GET https://a.test/x?y HTTP/1.1", "a.test", false),
        ("GET http://a.test:8080/x?y HTTP/1.1", "a.test:8080", false),
        ("GET http://b.test/x?y HTTP/1.1", "a.test", false),
        ("GET /x?y HTTP/1.1", "b.test", false),
        ("GET http://a.test/x?z HTTP/1.1", "a.test", false),
        ("GET http://a.test/x HTTP/1.1", "a.test", false),
    ] {
        let got = trial.exchange(&head(&[line, &format!("Host: {host}")]), &response(500, &[], ""), "");
        assert_eq!(got.is_hit(), hit, "{line} of {host}");
    }
}

#[test]
fn a_site_that_is_not_trusted_has_no_part_in_it() {
    let mut trial = Trial::new();
    let told: &[&str] = &["Cache-Control: max-age=100"];
    trial.site.trusted = false;
    trial.get("/", &[], (200, told, "bad"));
    trial.site.trusted = true;
    assert!(!trial.probe("/", &[]).is_hit());
    trial.get("/", &[], (200, told, "good"));
    trial.site.trusted = false;
    let got = trial.probe("/", &[]);
    assert_eq!(
        (got.is_hit(), got.field("Cache-Status")),
        (false, Some("culvert; fwd=bypass"))
    );
}

#[test]
fn authorization_needs_a_word_from_the_site() {
    let shared = |control: &str, want: bool| {
        for by_option in [false, true] {
            let told = format!("Cache-Control: max-age=100{control}");
            let asked: &[&str] = if by_option { &[] } else { &["Authorization: Basic x"] };
            let mut trial = Trial::new();
            trial.site.authorized = by_option;
            trial.get("/", asked, (200, &[&told], "theirs"));
            trial.site.authorized = false;
            assert_eq!(trial.probe("/", &[]).is_hit(), want, "stored with {control}");

            let mut trial = Trial::new();
            trial.get("/", &[], (200, &[&told], "anybody's"));
            trial.site.authorized = by_option;
            assert_eq!(trial.probe("/", asked).is_hit(), want, "used with {control}");
        }
    };
    shared("", false);
    shared(", proxy-revalidate", false);
    shared(", public", true);
    shared(", must-revalidate", true);
    shared(", s-maxage=100", true);
}

#[test]
fn a_stored_head_is_what_came_but_for_one_connection_and_one_moment() {
    let mut trial = Trial::new();
    let told = [
        "X-First:   two  words ",
        "connection: close, X-Hop",
        "x-HOP: 1",
        "Keep-Alive: 5",
        "Proxy-Authenticate: Basic",
        "Proxy-Connection: x",
        "TE: x",
        "Upgrade: x",
        "Age: 5",
        "Set-Cookie: a=b",
        "Set-Cookie2: a=c",
        "X-Same: 1",
        "x-sAME: 2",
        "Cache-Control: max-age=100, no-cache=\"X-Kept-Back\", private=X-Private",
        "X-Kept-Back: 1",
        "x-private: 1",
        "Cache-Status: origin; hit",
        "Trailer: X-Sum",
        "Date: Wed, 16 Sep 2026 00:00:00 GMT",
        "Content-Range: odd",
    ];
    let first = trial.get("/", &[], (200, &told, "body"));
    assert_eq!(first.field("Cache-Status"), Some("origin; hit"));
    assert!(first.head.contains("Cache-Status: culvert; fwd=uri-miss; stored\r\n"));
    assert_eq!(first.field("Set-Cookie"), Some("a=b"));
    let second = trial.probe("/", &[]);
    let lines: Vec<_> = second.head.split("\r\n").collect();
    assert_eq!(
        lines,
        [
            "HTTP/1.1 200 Some Reason",
            "X-First:   two  words ",
            "Set-Cookie2: a=c",
            "X-Same: 1",
            "x-sAME: 2",
            told[13],
            "Cache-Status: origin; hit",
            "Date: Wed, 16 Sep 2026 00:00:00 GMT",
            "Content-Range: odd",
            "Content-Length: 4",
            "Age: 5",
            "Cache-Status: culvert; hit; ttl=95",
            "",
            ""
        ]
    );
}

#[test]
fn a_body_in_chunks_is_stored_with_its_length() {
    let mut trial = Trial::new();
    let told: &[&str] = &["Cache-Control: max-age=100", "Transfer-Encoding: chunked"];
    trial.get("/", &[], (200, told, "the content alone"));
    let got = trial.probe("/", &[]);
    assert_eq!(
        (got.body.as_str(), got.field("Content-Length")),
        ("the content alone", Some("17"))
    );
    assert_eq!(got.field("Transfer-Encoding"), None);
}

#[test]
fn a_length_is_never_kept_back() {
    let told: &[&str] = &["Cache-Control: max-age=100, no-cache=\"content-length, date\""];
    reused((200, told), 3, &[], true);
}

#[test]
fn a_body_that_ends_with_its_connection_is_stored_only_where_the_site_says_so() {
    let close = |lines: &[&str]| {
        let mut trial = Trial::new();
        let told = head(&[&["HTTP/1.0 200 OK"], lines].concat());
        trial.exchange(&request("/", &[]), &told, "all");
        let got = trial.probe("/", &[]);
        got.is_hit().then(|| got.field("Content-Length").unwrap().to_owned())
    };
    assert_eq!(close(&["Cache-Control: max-age=100"]).as_deref(), Some("3"));
    assert_eq!(close(&[&format!("Last-Modified: {}", date(-86_400))]), None);
    assert_eq!(close(&["Cache-Control: no-cache", "ETag: \"a\""]), None);
}

#[test]
fn an_http_1_0_browser_is_told_that_its_connection_ends() {
    let mut trial = Trial::new();
    trial.get("/", &[], (200, &["Cache-Control: max-age=100"], "x"));
    let asked = head(&["GET http://a.test/ HTTP/1.0", "Host: a.test"]);
    let got = trial.exchange(&asked, &response(500, &[], ""), "");
    assert_eq!((got.is_hit(), got.field("Connection")), (true, Some("close")));
}

#[test]
fn preconditions_for_the_site_bypass_the_cache() {
    let mut trial = Trial::new();
    trial.get("/", &[], (200, &["Cache-Control: max-age=100", "ETag: \"a\""], "x"));
    for line in ["If-Match: \"a\"", "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT"] {
        let got = trial.probe("/", &[line]);
        assert!(got.sent[0].contains(line), "{line}");
    }
}
