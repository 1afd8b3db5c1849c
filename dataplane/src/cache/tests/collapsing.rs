//! Requests for the same at the same time.

use std::task::Waker;

use super::*;
use crate::limits::{CACHE_FOLLOWERS_MAX, CACHE_PASS_TIME};
use crate::wakes::Wakes;

/// A second request, of these lines, while a first one is on its way.
fn second(trial: &Trial, lines: &[&str]) -> Look {
    look(trial, lines, None)
}

fn look(trial: &Trial, lines: &[&str], waited: Option<Outcome>) -> Look {
    let bytes = request("/", lines);
    let parsed = Request::parse(&bytes).unwrap();
    let asked = Asked::read(&parsed, trial.site).unwrap();
    trial.cache.look_up(&asked, waited, trial.now)
}

fn lead(trial: &Trial) -> Fetch {
    match second(trial, &[]) {
        Look::Ask(fetch) => fetch,
        _ => panic!("it is the first"),
    }
}

fn follow(trial: &Trial) -> Follow {
    match second(trial, &[]) {
        Look::Follow(follow) => follow,
        _ => panic!("it is not the first"),
    }
}

/// The site's answer to the first request.
fn answer(trial: &Trial, fetch: Fetch, status: u16, lines: &[&str], body: &str) -> Answer {
    let bytes = request("/", &[]);
    let parsed = Request::parse(&bytes).unwrap();
    let asked = Asked::read(&parsed, trial.site).unwrap();
    let told = response(status, lines, body);
    fetch.answer(&asked, &Response::parse(&told, "GET", false).unwrap(), trial.now)
}

#[test]
fn one_goes_and_the_others_get_what_it_brings() {
    let mut trial = Trial::new();
    let fetch = lead(&trial);
    let count = Arc::new(Wakes::default());
    let waker: Waker = Arc::clone(&count).into();
    let follows = [follow(&trial), follow(&trial)];
    assert!(follows.iter().all(|f| f.poll(&waker).is_none()));
    let Answer::Keep(_, mut fill) = answer(&trial, fetch, 200, &["Cache-Control: max-age=60"], "body") else {
        panic!();
    };
    assert!(follows.iter().all(|f| f.poll(&waker).is_none()), "it is not whole yet");
    fill.append(b"body");
    assert!(fill.commit(trial.now));
    assert_eq!(count.count(), 2);
    assert!(follows.iter().all(|f| f.poll(&waker) == Some(Outcome::Shared)));
    let Look::Hit(hit) = look(&trial, &[], Some(Outcome::Shared)) else {
        panic!();
    };
    let mut got = Got::default();
    let bytes = request("/", &[]);
    let parsed = Request::parse(&bytes).unwrap();
    trial.deliver(&hit, &Asked::read(&parsed, SITE).unwrap(), &mut got);
    assert_eq!(
        got.field("Cache-Status"),
        Some("culvert; fwd=uri-miss; collapsed; ttl=60")
    );
    assert_eq!(trial.cache.counts().collapsed, 1);
    assert!(trial.probe("/", &[]).is_hit());
}

#[test]
fn an_answer_for_one_lets_all_go_at_its_head_and_is_remembered() {
    for lines in [
        &["Cache-Control: no-store"][..],
        &["Cache-Control: private, max-age=60"],
        &["Cache-Control: no-cache", "ETag: \"a\""],
        &["Cache-Control: max-age=0", "ETag: \"a\""],
        &["Vary: *", "Cache-Control: max-age=60"],
        &[],
    ] {
        let mut trial = Trial::new();
        let fetch = lead(&trial);
        let follows = [follow(&trial), follow(&trial)];
        let answered = answer(&trial, fetch, 200, lines, "body");
        assert!(
            follows.iter().all(|f| f.poll(Waker::noop()) == Some(Outcome::Alone)),
            "{lines:?}"
        );
        drop(answered);
        let (one, other) = (second(&trial, &[]), second(&trial, &[]));
        assert!(
            matches!((one, other), (Look::Ask(_), Look::Ask(_))),
            "{lines:?}: nobody waits"
        );
        trial.sleep(CACHE_PASS_TIME.as_secs());
        let first = lead(&trial);
        drop(follow(&trial));
        drop(first);
    }
}

#[test]
fn what_comes_to_nothing_lets_all_go() {
    let trial = Trial::new();
    let fetch = lead(&trial);
    let waiting = follow(&trial);
    drop(fetch);
    assert_eq!(
        waiting.poll(Waker::noop()),
        Some(Outcome::Alone),
        "the request was given up"
    );

    let fetch = lead(&trial);
    let waiting = follow(&trial);
    let Answer::Keep(_, fill) = answer(&trial, fetch, 200, &["Cache-Control: max-age=60"], "body") else {
        panic!();
    };
    drop(fill);
    assert_eq!(waiting.poll(Waker::noop()), Some(Outcome::Alone), "the answer was cut");

    let fetch = lead(&trial);
    let waiting = follow(&trial);
    let Answer::Keep(_, fill) = answer(&trial, fetch, 200, &["Cache-Control: max-age=60"], "body") else {
        panic!();
    };
    assert!(!fill.commit(trial.now), "it is shorter than it said");
    assert_eq!(waiting.poll(Waker::noop()), Some(Outcome::Alone));

    let waiting = (lead(&trial), follow(&trial));
    let bytes = request("POST /", &[]);
    let parsed = Request::parse(&bytes).unwrap();
    trial.cache.invalidate(&Asked::read(&parsed, SITE).unwrap().key);
    let Answer::Keep(_, mut fill) = answer(&trial, waiting.0, 200, &["Cache-Control: max-age=60"], "body") else {
        panic!();
    };
    fill.append(b"body");
    assert!(!fill.commit(trial.now));
    assert_eq!(
        waiting.1.poll(Waker::noop()),
        Some(Outcome::Alone),
        "it was invalidated meanwhile"
    );
}

#[test]
fn who_waited_once_does_not_wait_again() {
    let trial = Trial::new();
    let first = lead(&trial);
    assert!(matches!(look(&trial, &[], Some(Outcome::Alone)), Look::Ask(_)));
    assert!(matches!(look(&trial, &[], Some(Outcome::Shared)), Look::Ask(_)));
    drop(first);
}

#[test]
fn only_plain_requests_wait() {
    for lines in [
        &["Authorization: Basic x"][..],
        &["Range: bytes=0-1"],
        &["If-None-Match: \"a\""],
        &["If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"],
        &["Cache-Control: no-cache"],
        &["Cache-Control: max-age=0"],
        &["Cache-Control: no-store"],
    ] {
        let mut trial = Trial::new();
        let first = second(&trial, lines);
        assert!(matches!(first, Look::Ask(_)));
        let leader = lead(&trial);
        assert!(matches!(second(&trial, lines), Look::Ask(_)), "{lines:?}");
        drop((first, leader));
        trial.site.authorized = true;
        let one = second(&trial, &[]);
        assert!(matches!((one, second(&trial, &[])), (Look::Ask(_), Look::Ask(_))));
    }
    let trial = Trial::new();
    let first = lead(&trial);
    assert!(matches!(second(&trial, &["Cookie: a=b"]), Look::Follow(_)));
    drop(first);
}

#[test]
fn variants_that_are_known_do_not_wait_for_each_other() {
    let mut trial = Trial::new();
    trial.get("/", &["Foo: 0"], (200, &["Cache-Control: max-age=60", "Vary: Foo"], ""));
    let first = second(&trial, &["Foo: 1"]);
    let other = second(&trial, &["Foo: 2"]);
    assert!(matches!((&first, &other), (Look::Ask(_), Look::Ask(_))));
    assert!(matches!(second(&trial, &["Foo: 1"]), Look::Follow(_)));
}

#[test]
fn a_validation_is_waited_for_too() {
    let mut trial = Trial::new();
    trial.get("/", &[], (200, &["Cache-Control: max-age=5", "ETag: \"a\""], "old"));
    trial.sleep(10);
    let fetch = lead(&trial);
    let waiting = follow(&trial);
    let Answer::Stored(hit) = answer(&trial, fetch, 304, &["Cache-Control: max-age=60"], "") else {
        panic!();
    };
    assert_eq!(waiting.poll(Waker::noop()), Some(Outcome::Shared));
    drop(hit);
    assert!(trial.probe("/", &[]).is_hit());
}

#[test]
fn nobody_follows_what_was_sent_before_a_change() {
    let change: [fn(&mut Trial); 2] = [
        |trial| drop(trial.get("POST /", &[], (200, &[], ""))),
        |trial| trial.cache.clear(),
    ];
    for change in change {
        let mut trial = Trial::new();
        let outdated = lead(&trial);
        change(&mut trial);
        let first = lead(&trial);
        let waiting = follow(&trial);
        drop(outdated);
        assert_eq!(
            waiting.poll(Waker::noop()),
            None,
            "it waits for the one after the change"
        );
        drop(first);
        assert_eq!(waiting.poll(Waker::noop()), Some(Outcome::Alone));
    }
}

#[test]
fn what_was_sent_before_a_change_renews_nothing() {
    let mut trial = Trial::new();
    let told: &[&str] = &["Cache-Control: max-age=1, stale-while-revalidate=600"];
    let outdated = lead(&trial);
    trial.get("POST /", &[], (200, &[], ""));
    trial.get_alone("/", (200, told, "new"));
    trial.sleep(10);
    let Look::Hit(hit) = second(&trial, &[]) else { panic!() };
    assert!(hit.refresh.is_some());
    drop(outdated);
}

#[test]
fn where_each_has_to_ask_nobody_waits_for_long() {
    let mut trial = Trial::new();
    let told: &[&str] = &["Cache-Control: no-cache", "ETag: \"a\""];
    trial.get("/", &["Cache-Control: no-cache"], (200, told, "page"));
    let fetch = lead(&trial);
    let waiting = follow(&trial);
    let answered = answer(&trial, fetch, 304, &[], "");
    assert!(matches!(answered, Answer::Stored(_)));
    assert_eq!(waiting.poll(Waker::noop()), Some(Outcome::Alone));
    let (one, other) = (second(&trial, &[]), second(&trial, &[]));
    assert!(matches!((one, other), (Look::Ask(_), Look::Ask(_))));
}

#[test]
fn those_who_find_no_place_go_themselves() {
    let trial = Trial::new();
    let first = lead(&trial);
    let waiting: Vec<_> = (0..CACHE_FOLLOWERS_MAX).map(|_| follow(&trial)).collect();
    assert!(matches!(second(&trial, &[]), Look::Ask(_)));
    drop(waiting);
    drop(follow(&trial));
    drop(first);
}
