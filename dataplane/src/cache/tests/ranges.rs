//! RFC 9110 section 14: parts of a whole stored answer.

use super::*;

fn trial() -> Trial {
    let mut trial = Trial::new();
    let told = [
        "Cache-Control: max-age=60",
        "ETag: \"a\"",
        "Content-Type: text/plain",
        "Content-Range: odd",
        "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT",
        "A: 1",
    ];
    trial.get("/", &[], (200, &told, "0123456789A"));
    trial
}

#[test]
fn a_part_is_cut_from_the_whole() {
    for (range, want, part) in [
        ("bytes=0-1", "01", "bytes 0-1/11"),
        ("bytes=1-", "123456789A", "bytes 1-10/11"),
        ("bytes=-1", "A", "bytes 10-10/11"),
        ("bytes=5-99", "56789A", "bytes 5-10/11"),
    ] {
        let got = trial().probe("/", &[&format!("Range: {range}")]);
        assert_eq!(
            (got.is_hit(), got.status(), got.body.as_str()),
            (true, 206, want),
            "{range}"
        );
        assert_eq!(got.field("Content-Range"), Some(part));
        assert_eq!(got.field("Content-Length"), Some(want.len().to_string().as_str()));
        assert_eq!(
            (got.field("A"), got.field("Content-Type")),
            (Some("1"), Some("text/plain"))
        );
        assert_eq!(got.head.matches("Content-Range").count(), 1);
    }
}

#[test]
fn a_range_beyond_the_end_is_416() {
    let got = trial().probe("/", &["Range: bytes=11-"]);
    assert_eq!((got.status(), got.field("Content-Range")), (416, Some("bytes */11")));
    assert_eq!(got.body, "");
}

#[test]
fn what_a_range_provoked_is_nobody_elses_answer() {
    for status in [416, 404, 400] {
        let mut trial = Trial::new();
        let told = ["Cache-Control: max-age=60"];
        trial.get("/", &["Range: bytes=99-"], (status, &told, "none"));
        assert!(!trial.probe("/", &[]).is_hit(), "{status}");
    }
    let mut trial = Trial::new();
    let told = ["Cache-Control: max-age=60"];
    trial.get("/", &[], (416, &told, "none"));
    assert!(!trial.probe("/", &[]).is_hit());
    trial.get("/", &["Range: bytes=0-"], (200, &told, "all"));
    assert!(trial.probe("/", &[]).is_hit(), "all of it is");
}

#[test]
fn what_a_range_provoked_ends_nothing_that_is_stored() {
    for (status, ends) in [(416, false), (206, true), (200, true), (404, true)] {
        let mut trial = Trial::new();
        trial.get("/", &[], (200, &["Cache-Control: max-age=5", "ETag: \"a\""], "old"));
        trial.sleep(10);
        trial.get("/", &["Range: bytes=9-"], (status, &["Cache-Control: no-store"], "x"));
        let got = trial.probe("/", &["Cache-Control: max-stale"]);
        assert_eq!(got.is_hit(), !ends, "{status}");
    }
}

#[test]
fn what_need_not_be_cut_is_given_whole() {
    for line in ["Range: bytes=0-1,3-4", "Range: lines=0-1", "Range: bytes=x"] {
        let got = trial().probe("/", &[line]);
        assert_eq!((got.is_hit(), got.status(), got.body.len()), (true, 200, 11), "{line}");
    }
    assert!(!trial().probe("/", &["Range: bytes=0-1", "Range: bytes=3-4"]).is_hit());
    let got = trial().probe("HEAD /", &["Range: bytes=0-1"]);
    assert_eq!((got.status(), got.field("Content-Length")), (200, Some("11")));
}

#[test]
fn if_range_wants_the_same_answer() {
    for (condition, status) in [
        ("\"a\"", 206),
        ("\"b\"", 200),
        ("W/\"a\"", 200),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 206),
        ("Sun, 06 Nov 1994 08:49:38 GMT", 200),
    ] {
        let got = trial().probe("/", &["Range: bytes=0-1", &format!("If-Range: {condition}")]);
        assert_eq!((got.is_hit(), got.status()), (true, status), "{condition}");
    }
    let got = trial().probe("/", &["Range: bytes=0-1", "If-None-Match: \"a\""]);
    assert_eq!(got.status(), 304, "conditions go first");
}

#[test]
fn parts_are_cut_across_buffers() {
    let mut trial = Trial::with_limit(8 << 20);
    let body: String = (0..200_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    for (path, framing) in [("/length", "X: y"), ("/chunks", "Transfer-Encoding: chunked")] {
        trial.get(path, &[], (200, &["Cache-Control: max-age=60", framing], &body));
        for (first, last) in [
            (0, 0),
            (4_095, 4_096),
            (65_535, 131_072),
            (1, 199_998),
            (199_999, 199_999),
        ] {
            let got = trial.probe(path, &[&format!("Range: bytes={first}-{last}")]);
            assert!(got.is_hit() && got.body == body[first..=last], "{path} {first}-{last}");
        }
        assert!(trial.probe(path, &[]).body == body);
    }
}

#[test]
fn ranges_are_asked_of_the_site_where_nothing_whole_is_stored() {
    let mut trial = Trial::new();
    let got = trial.get("/", &["Range: bytes=0-1"], (206, &["Cache-Control: max-age=60"], "01"));
    assert!(got.sent[0].contains("Range: bytes=0-1"));
    // A site need not know ranges: then its answer is whole, and kept.
    trial.get(
        "/",
        &["Range: bytes=0-1"],
        (200, &["Cache-Control: max-age=60"], "0123"),
    );
    assert_eq!(trial.probe("/", &["Range: bytes=2-"]).body, "23");
}
