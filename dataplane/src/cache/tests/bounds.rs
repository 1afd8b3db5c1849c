//! What the cache may hold, and what becomes of what does not fit.

use super::*;
use crate::limits::{CACHE_BYTES, CACHE_HEAD_BYTES_MAX, CACHE_OBJECT_SHARE};

const LONG: &[&str] = &["Cache-Control: max-age=1000"];

#[test]
fn it_never_holds_more_than_its_limit_and_keeps_what_is_used() {
    let limit = 1 << 20;
    let mut trial = Trial::with_limit(limit);
    let empty = trial.cache.counts().bytes_held;
    let body = "x".repeat(20_000);
    trial.get("/used", &[], (200, LONG, &body));
    for n in 0..400 {
        let held = trial.cache.counts().bytes_held;
        assert!(held <= limit as u64, "{held}");
        trial.get(&format!("/{n}"), &[], (200, LONG, &body));
        assert!(trial.probe("/used", &[]).is_hit(), "after {n} others");
    }
    let counts = trial.cache.counts();
    assert!(
        counts.bytes_held > limit as u64 / 2 && counts.evicted > 300,
        "{counts:?}"
    );
    assert_eq!(counts.entries + counts.evicted, counts.stored);
    for n in 0..400 {
        trial.get(&format!("DELETE /{n}"), &[], (200, &[], ""));
    }
    trial.get("DELETE /used", &[], (200, &[], ""));
    assert_eq!(trial.cache.counts().bytes_held, empty, "all of it came back");
}

#[test]
fn tables_shrink_with_what_is_given_up() {
    let limit = 4 << 20;
    let large = "x".repeat(limit / CACHE_OBJECT_SHARE - 2_000);
    for displaces in [true, false] {
        let mut trial = Trial::with_limit(limit);
        for n in 0..4_000 {
            trial.get(&format!("/{n}"), &[], (200, LONG, ""));
        }
        let (places, counts) = (trial.cache.places(), trial.cache.counts());
        assert!(places > 4_000 && counts.entries == 4_000, "{counts:?}");
        match displaces {
            true => (0..2 * CACHE_OBJECT_SHARE).for_each(|n| {
                trial.get(&format!("/large/{n}"), &[], (200, LONG, &large));
            }),
            false => (0..4_000).for_each(|n| {
                trial.get(&format!("DELETE /{n}"), &[], (200, &[], ""));
            }),
        }
        let left = trial.cache.places();
        assert!(left < places / 4, "{left} of {places}, {displaces}");
    }
}

#[test]
fn what_was_often_given_up_can_be_displaced_still() {
    let limit = 1 << 20;
    let large = "x".repeat(limit / CACHE_OBJECT_SHARE - 2_000);
    // Each time leaves a place in the queue behind; by one of these numbers they are tidied up as the page is stored.
    for times in 60..70 {
        let mut trial = Trial::with_limit(limit);
        for _ in 0..times {
            trial.get("/often", &[], (200, LONG, "x"));
            trial.get("DELETE /often", &[], (200, &[], ""));
        }
        trial.get("/often", &[], (200, LONG, "x"));
        for n in 0..4 * CACHE_OBJECT_SHARE {
            trial.get(&format!("/other/{n}"), &[], (200, LONG, &large));
        }
        assert!(!trial.probe("/often", &[]).is_hit(), "{times}");
    }
}

#[test]
fn one_object_gets_its_share_and_no_more() {
    let limit = 1 << 20;
    let share = limit / CACHE_OBJECT_SHARE;
    for framing in ["X: y", "Transfer-Encoding: chunked"] {
        for (size, kept) in [(share - 2_000, true), (share, false), (2 * share, false)] {
            let mut trial = Trial::with_limit(limit);
            let empty = trial.cache.counts().bytes_held;
            let got = trial.get("/", &[], (200, &[LONG[0], framing], &"x".repeat(size)));
            assert_eq!(got.body.len(), size, "the browser gets all of it");
            assert_eq!(trial.probe("/", &[]).is_hit(), kept, "{size} {framing}");
            if !kept {
                assert_eq!(trial.cache.counts().bytes_held, empty);
            }
        }
    }
}

#[test]
fn a_head_that_is_too_large_is_relayed_and_not_stored() {
    for (size, kept) in [(CACHE_HEAD_BYTES_MAX - 1_000, true), (CACHE_HEAD_BYTES_MAX, false)] {
        let mut trial = Trial::with_limit(CACHE_BYTES);
        let big = format!("X: {}", "y".repeat(size));
        let got = trial.get("/", &[], (200, &[LONG[0], &big], "body"));
        assert_eq!(got.body, "body");
        assert_eq!(trial.probe("/", &[]).is_hit(), kept);
    }
}

#[test]
fn a_body_that_is_not_what_was_announced_is_not_stored() {
    let mut trial = Trial::new();
    let told = response(200, &["Cache-Control: max-age=1000", "Content-Length: 10"], "");
    for (body, kept) in [("012345678", false), ("0123456789A", false), ("0123456789", true)] {
        trial.exchange(&request("/", &[]), &told, body);
        assert_eq!(trial.probe("/", &[]).is_hit(), kept, "{body}");
    }
}

#[test]
fn bodies_that_are_still_arriving_count() {
    let limit = 1 << 20;
    let mut trial = Trial::with_limit(limit);
    trial.get("/stored", &[], (200, LONG, "x"));
    let told = response(200, &[LONG[0], "Transfer-Encoding: chunked"], "");
    let told = Response::parse(&told, "GET", false).unwrap();
    let piece = vec![b'x'; limit / CACHE_OBJECT_SHARE - 2_000];
    let fills: Vec<_> = (0..2 * CACHE_OBJECT_SHARE)
        .map(|n| {
            let bytes = request(&format!("/{n}"), &[]);
            let parsed = Request::parse(&bytes).unwrap();
            let asked = Asked::read(&parsed, SITE).unwrap();
            let Look::Ask(fetch) = trial.cache.look_up(&asked, None, trial.now) else {
                panic!();
            };
            let Answer::Keep(_, mut fill) = fetch.answer(&asked, &told, trial.now) else {
                return None;
            };
            fill.append(&piece);
            assert!(trial.cache.counts().bytes_held <= limit as u64);
            Some(fill)
        })
        .collect();
    assert!(
        !trial.probe("/stored", &[]).is_hit(),
        "it was given up for what arrives"
    );
    let commits = fills.into_iter().flatten().map(|fill| fill.commit(trial.now));
    let stored = commits.filter(|stored| *stored).count();
    assert!((3..CACHE_OBJECT_SHARE).contains(&stored), "{stored} found room");
}

#[test]
fn what_is_being_sent_is_held_until_it_is_sent() {
    let limit = 1 << 20;
    let mut trial = Trial::with_limit(limit);
    let body = "x".repeat(100_000);
    let mut sending = Vec::new();
    for n in 0..30 {
        trial.get(&format!("/{n}"), &[], (200, LONG, &body));
        let bytes = request(&format!("/{n}"), &[]);
        let parsed = Request::parse(&bytes).unwrap();
        if let Look::Hit(hit) = trial
            .cache
            .look_up(&Asked::read(&parsed, SITE).unwrap(), None, trial.now)
        {
            sending.push(hit);
        }
        assert!(trial.cache.counts().bytes_held <= limit as u64);
    }
    assert!(sending.len() > 5, "{}", sending.len());
    for hit in &sending {
        assert_eq!(hit.content(0..100_000).map(|b| b.len()).sum::<usize>(), 100_000);
    }
    drop(sending);
    trial.get("/last", &[], (200, LONG, &body));
    assert!(trial.probe("/last", &[]).is_hit(), "there is room again");
}

#[test]
fn an_invalidated_url_leaves_nothing_behind() {
    let mut trial = Trial::new();
    let empty = trial.cache.counts().bytes_held;
    for _ in 0..10_000 {
        trial.get("/", &[], (200, LONG, "x"));
        trial.get("POST /", &[], (200, &[], ""));
    }
    let counts = trial.cache.counts();
    assert_eq!(
        (counts.bytes_held, counts.entries, counts.invalidated),
        (empty, 0, 10_000)
    );
}

#[test]
fn counts_say_what_happened() {
    let mut trial = Trial::new();
    trial.get("/", &[], (200, LONG, "0123456789"));
    trial.probe("/", &[]);
    trial.probe("/", &["Range: bytes=0-3"]);
    trial.probe("HEAD /", &[]);
    trial.get("POST /other", &[], (200, &[], ""));
    let counts = trial.cache.counts();
    let want = Counts {
        hits: 3,
        misses: 1,
        stored: 1,
        entries: 1,
        bytes_saved: 14,
        bytes_held: counts.bytes_held,
        ..Counts::default()
    };
    assert_eq!(counts, want);
}
