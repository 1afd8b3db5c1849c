//! RFC 9111 section 4.3: asking the site (4.3.1), answering a browser's own question (4.3.2), 304 (4.3.3, 4.3.4, 3.2), HEAD
//! (4.3.5).

use super::*;

const STALE: u64 = 10;
const DAY: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// A cache with an answer of these lines that was fresh for 5 s, 10 s ago.
fn stale(lines: &[&str]) -> Trial {
    let mut trial = Trial::new();
    trial.get("/", &[], (200, &[&["Cache-Control: max-age=5"], lines].concat(), "old"));
    trial.sleep(STALE);
    trial
}

#[test]
fn a_stale_answer_is_asked_for_by_tag_else_by_date() {
    let modified = format!("Last-Modified: {DAY}");
    for (lines, want) in [
        (&["ETag: \"a\""][..], Some("If-None-Match: \"a\"")),
        (&["ETag: W/\"a\""], Some("If-None-Match: W/\"a\"")),
        (&["ETag: \"a\"", &modified], Some("If-None-Match: \"a\"")),
        (&[&modified], Some("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT")),
        (&["Last-Modified: yesterday"], None),
        (&["ETag:"], None),
        (&[], None),
    ] {
        let got = stale(lines).probe("/", &["X: y"]);
        assert_eq!(got.sent.len(), 1);
        let asked: Vec<_> = got.sent[0].lines().filter(|l| l.starts_with("If-")).collect();
        assert_eq!(asked, Vec::from_iter(want), "{lines:?}");
        assert!(got.sent[0].contains("X: y"));
    }
    let long = format!("ETag: \"{}\"", "x".repeat(600));
    assert!(!stale(&[&long]).probe("/", &[]).sent[0].contains("If-"));
}

#[test]
fn a_head_that_is_full_gets_no_condition() {
    let lines: Vec<_> = (0..126).map(|n| format!("X-{n}: y")).collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    // Host is one more.
    assert!(!stale(&["ETag: \"a\""]).probe("/", &lines).sent[0].contains("If-"));
    assert!(stale(&["ETag: \"a\""]).probe("/", &lines[..125]).sent[0].contains("If-"));
}

#[test]
fn only_a_200_is_asked_for() {
    let mut trial = Trial::new();
    trial.get("/", &[], (404, &["Cache-Control: max-age=5", "ETag: \"a\""], "old"));
    trial.sleep(STALE);
    assert!(!trial.probe("/", &[]).sent[0].contains("If-"));
}

#[test]
fn a_304_makes_the_stored_answer_fresh() {
    let mut trial = stale(&["ETag: \"a\"", "X-Old: 1", "x-both: 1", "X-Last: 1", "X-Both: 2"]);
    let told: &[&str] = &["Cache-Control: max-age=60", "ETag: \"a\"", "X-BOTH: 3", "X-New: 1"];
    let got = trial.get("/", &[], (304, told, ""));
    assert_eq!((got.status(), got.body.as_str()), (200, "old"));
    assert_eq!(
        got.field("Cache-Status"),
        Some("culvert; fwd=stale; fwd-status=304; ttl=60")
    );
    let got = trial.probe("/", &[]);
    assert!(got.is_hit());
    let lines: Vec<_> = got
        .head
        .lines()
        .filter(|l| !l.starts_with("Date") && !l.starts_with("Cache-"))
        .collect();
    assert_eq!(
        lines,
        [
            "HTTP/1.1 200 Some Reason",
            "ETag: \"a\"",
            "X-Old: 1",
            "X-BOTH: 3",
            "X-Last: 1",
            "Content-Length: 3",
            "X-New: 1",
            "Age: 0",
            ""
        ]
    );
    let counts = trial.cache.counts();
    assert_eq!(
        (counts.confirmed, counts.entries, counts.hits, counts.misses),
        (1, 1, 1, 2)
    );
}

#[test]
fn a_304_does_not_change_what_the_body_depends_on() {
    let told = [
        "Content-Length: 999",
        "Content-Encoding: br",
        "Content-Range: bytes 0-1/2",
        "Content-MD5: x",
        "Content-Type: text/new",
        "Connection: X-Hop",
        "X-Hop: 1",
        "Set-Cookie: a=b",
        "Age: 2",
        "ETag: \"a\"",
    ];
    let mut trial = stale(&["ETag: \"a\"", "Content-Encoding: gzip", "Content-Type: text/old"]);
    let first = trial.get("/", &[], (304, &told, ""));
    assert_eq!(
        (first.field("Set-Cookie"), first.field("Age")),
        (Some("a=b"), Some("2"))
    );
    let second = trial.probe("/", &[]);
    assert_eq!(
        (second.is_hit(), second.field("Set-Cookie"), second.field("X-Hop")),
        (true, None, None)
    );
    for (name, want) in [
        ("Content-Length", Some("3")),
        ("Content-Encoding", Some("gzip")),
        ("Content-Range", None),
        ("Content-MD5", None),
        ("Content-Type", Some("text/new")),
    ] {
        assert_eq!((first.field(name), second.field(name)), (want, want), "{name}");
    }
}

#[test]
fn a_304_about_something_else_is_not_believed() {
    let modified = format!("Last-Modified: {DAY}");
    let later = "Last-Modified: Sun, 06 Nov 1994 08:49:38 GMT";
    for (stored, told, want) in [
        ("ETag: \"a\"", "ETag: \"b\"", false),
        ("ETag: W/\"a\"", "ETag: \"a\"", false),
        ("ETag: \"a\"", "ETag: W/\"a\"", true),
        ("ETag: W/\"a\"", "ETag: W/\"b\"", false),
        ("ETag: \"a\"", "X: y", true),
        (&modified, &modified, true),
        (&modified, later, false),
        (&modified, "ETag: \"a\"", false),
    ] {
        let mut trial = stale(&[stored]);
        let got = trial.get("/", &[], (304, &[told], ""));
        assert_eq!(got.sent.len(), if want { 1 } else { 2 }, "{stored} and {told}");
        assert_eq!(got.body == "old", want);
        if !want {
            assert!(!got.sent[1].contains("If-"), "the second time without condition");
            assert_eq!(trial.cache.counts().entries, 0);
        }
    }
}

#[test]
fn a_304_may_end_what_was_stored() {
    for line in ["Cache-Control: no-store", "Cache-Control: private", "Vary: *"] {
        let mut trial = stale(&["ETag: \"a\""]);
        let got = trial.get("/", &[], (304, &[line], ""));
        assert_eq!((got.status(), got.body.as_str()), (200, "old"), "{line}: good once");
        assert_eq!(trial.cache.counts().entries, 0, "{line}");
    }
}

#[test]
fn heads_do_not_grow_with_each_304() {
    let mut trial = stale(&["ETag: \"a\""]);
    let mut last = 0;
    for n in 0..40 {
        let big = format!("X-{n}: {}", "y".repeat(1_000));
        let got = trial.get(
            "/",
            &["Cache-Control: no-cache"],
            (304, &["Cache-Control: max-age=60", &big], ""),
        );
        if got.sent.len() == 2 {
            assert!(n > 25 && trial.cache.counts().entries == 0);
            return;
        }
        assert!(got.head.len() > last);
        last = got.head.len();
    }
    panic!("it grew to {last}");
}

#[test]
fn a_new_answer_takes_the_place_of_the_old_one() {
    let mut trial = stale(&["ETag: \"a\""]);
    let got = trial.get("/", &[], (200, &["Cache-Control: max-age=60", "ETag: \"b\""], "new"));
    assert_eq!(
        (got.body.as_str(), got.field("Cache-Status")),
        ("new", Some("culvert; fwd=stale; stored"))
    );
    assert_eq!(trial.probe("/", &[]).body, "new");
    assert_eq!(trial.cache.counts().entries, 1);
    // One that is not stored ends it all the same; a failure of the site does not.
    let mut trial = stale(&["ETag: \"a\""]);
    trial.get("/", &[], (503, &[], ""));
    assert_eq!(trial.cache.counts().entries, 1);
    trial.get("/", &[], (200, &["Cache-Control: no-store"], "new"));
    assert_eq!(trial.cache.counts().entries, 0);
}

#[test]
fn reload_validates_what_is_fresh() {
    for line in [
        "Cache-Control: no-cache",
        "Cache-Control: max-age=0",
        "Pragma: no-cache",
    ] {
        let mut trial = Trial::new();
        trial.get("/", &[], (200, &["Cache-Control: max-age=60", "ETag: \"a\""], "x"));
        let got = trial.get("/", &[line], (304, &[], ""));
        assert!(got.sent[0].contains("If-None-Match: \"a\""), "{line}");
        assert_eq!(
            got.field("Cache-Status"),
            Some("culvert; fwd=request; fwd-status=304; ttl=60")
        );
    }
    let mut trial = Trial::new();
    trial.get("/", &[], (200, &["Cache-Control: no-cache", "ETag: \"a\""], "x"));
    assert!(trial.get("/", &[], (304, &[], "")).sent[0].contains("If-None-Match: \"a\""));
}

#[test]
fn a_browsers_own_condition_is_answered() {
    let modified = format!("Last-Modified: {DAY}");
    let asked = |lines: &[&str], asked: &[&str], want: u16| {
        let mut trial = Trial::new();
        trial.get(
            "/",
            &[],
            (200, &[&["Cache-Control: max-age=60"], lines].concat(), "body"),
        );
        let got = trial.probe("/", asked);
        assert_eq!((got.is_hit(), got.status()), (true, want), "{lines:?} {asked:?}");
        got
    };
    asked(&["ETag: \"a\""], &["If-None-Match: \"x\", W/\"a\""], 304);
    asked(&["ETag: \"a\""], &["If-None-Match: \"x\"", "If-None-Match: \"a\""], 304);
    asked(&["ETag: \"a\""], &["If-None-Match: *"], 304);
    asked(&["ETag: \"a\""], &["If-None-Match: \"b\""], 200);
    asked(
        &[&modified],
        &["If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT"],
        304,
    );
    asked(&[&modified], &["If-Modified-Since: Mon, 07 Nov 1994 08:49:37 GMT"], 304);
    asked(&[&modified], &["If-Modified-Since: Sat, 05 Nov 1994 08:49:37 GMT"], 200);
    asked(&[&modified], &["If-Modified-Since: yesterday"], 200);
    asked(&[], &[&format!("If-Modified-Since: {}", date(0))], 304);
    asked(&[], &[&format!("If-Modified-Since: {}", date(-1))], 200);
    // The tag goes first.
    let both = [
        "If-None-Match: \"a\"",
        "If-Modified-Since: Sat, 05 Nov 1994 08:49:37 GMT",
    ];
    asked(&["ETag: \"a\"", &modified], &both, 304);
    let both = [
        "If-None-Match: \"b\"",
        "If-Modified-Since: Mon, 07 Nov 1994 08:49:37 GMT",
    ];
    asked(&["ETag: \"a\"", &modified], &both, 200);

    let got = asked(
        &["ETag: \"a\"", "Content-Type: x", "Vary: Foo"],
        &["If-None-Match: \"a\""],
        304,
    );
    for (name, want) in [
        ("ETag", Some("\"a\"")),
        ("Cache-Control", Some("max-age=60")),
        ("Vary", Some("Foo")),
        ("Content-Type", None),
        ("Content-Length", None),
    ] {
        assert_eq!(got.field(name), want, "{name}");
    }
    assert!(got.field("Date").is_some() && got.field("Age").is_some() && got.body.is_empty());
}

#[test]
fn conditions_are_about_a_200() {
    let mut trial = Trial::new();
    trial.get("/", &[], (404, &["Cache-Control: max-age=60", "ETag: \"a\""], "gone"));
    let got = trial.probe("/", &["If-None-Match: \"a\"", "Range: bytes=0-0"]);
    assert_eq!((got.status(), got.body.as_str()), (404, "gone"));
}

#[test]
fn a_browsers_condition_is_replaced_while_the_site_is_asked() {
    let mut trial = stale(&["ETag: \"a\""]);
    let asked = [
        "If-None-Match: \"mine\"",
        "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
        "Range: bytes=0-0",
    ];
    let got = trial.get("/", &asked, (304, &["Cache-Control: max-age=60"], ""));
    assert!(got.sent[0].contains("If-None-Match: \"a\"\r\n") && got.sent[0].contains("Range: bytes=0-0"));
    assert!(!got.sent[0].contains("mine") && !got.sent[0].contains("Since"));
    assert_eq!((got.status(), got.body.as_str()), (206, "o"));
    let got = trial.probe("/", &["If-None-Match: \"a\""]);
    assert_eq!(got.status(), 304);

    // What cannot be validated leaves the browser's condition alone, and the 304 is about what the browser has.
    let mut trial = stale(&[]);
    let got = trial.get("/", &["If-None-Match: \"mine\""], (304, &[], ""));
    assert!(got.sent[0].contains("mine"));
    assert_eq!((got.status(), trial.cache.counts().entries), (304, 1));
    let mut trial = Trial::new();
    let got = trial.get(
        "/",
        &["If-None-Match: \"mine\""],
        (304, &["Cache-Control: max-age=60"], ""),
    );
    assert_eq!((got.status(), trial.cache.counts().entries), (304, 0));
}

#[test]
fn head_confirms_or_refutes_what_is_stored() {
    let head = |stored: &[&str], told: (u16, &[&str]), entries: u64, fresh: bool| {
        let mut trial = stale(stored);
        let bytes = super::head(&[&[&format!("HTTP/1.1 {} OK", told.0)[..]], told.1].concat());
        let got = trial.exchange(&request("HEAD /", &[]), &bytes, "");
        assert!(got.sent[0].starts_with("HEAD / ") && !got.sent[0].contains("If-"));
        assert_eq!(trial.cache.counts().entries, entries, "{stored:?} {told:?}");
        let got = trial.probe("/", &[]);
        assert_eq!(got.is_hit(), fresh, "{stored:?} {told:?}");
        got
    };
    let long = "Cache-Control: max-age=60";
    let got = head(
        &["ETag: \"a\"", "X: 1", "Y: 1"],
        (200, &[long, "ETag: \"a\"", "X: 2"]),
        1,
        true,
    );
    assert_eq!(
        (got.field("X"), got.field("Y"), got.body.as_str()),
        (Some("2"), Some("1"), "old")
    );
    head(&["ETag: \"a\""], (200, &[long, "ETag: \"b\""]), 0, false);
    head(&[], (200, &[long, "Content-Length: 3"]), 1, true);
    head(&[], (200, &[long, "Content-Length: 4"]), 0, false);
    head(
        &["ETag: \"a\""],
        (200, &[long, "ETag: \"a\"", "Content-Length: 4"]),
        0,
        false,
    );
    head(&[], (200, &[long]), 1, false);
    head(&["ETag: \"a\""], (410, &[long]), 1, false);
}
