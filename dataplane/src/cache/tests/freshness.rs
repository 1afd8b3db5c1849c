//! RFC 9111 sections 4.2 (freshness), 5.1 (Age), 5.2 (directives), 5.3 (Expires), 5.4 (Pragma).

use super::*;

/// Lines of a 200 with the current date, and whether it is given again 3 s later.
#[track_caller]
fn fresh(lines: &[&str], want: bool) {
    let now = format!("Date: {}", date(0));
    reused((200, &[&[now.as_str()], lines].concat()), 3, &[], want);
}

#[test]
fn nothing_said_is_nothing_stored() {
    fresh(&[], false);
    fresh(&["ETag: \"a\""], false);
}

#[test]
fn max_age_is_the_lifetime() {
    for (value, want) in [
        ("max-age=3600", true),
        ("max-age=4", true),
        ("max-age=3", false),
        ("max-age=0", false),
        ("max-age=2147483647", true),
        ("max-age=2147483648", true),
        ("max-age=99999999999999999999", true),
        ("max-age=-3600", false),
        ("max-age='3600'", false),
        ("max-age=\"3600\"", true),
        ("max-age=3600.5", false),
        ("MaX-aGe=3600", true),
        ("foobar, max-age=3600", true),
        ("max-age=1800, max-age=1", false),
        ("max-age=1, max-age=1800", false),
        ("max-age=1, s-maxage=3600", true),
        ("max-age=3600, s-maxage=1", false),
        ("max-age=0, s-maxage=3600", true),
        ("s-maxage=3600", true),
        ("s-maxage=x, max-age=3600", false),
        ("x=\"max-age=3600\", max-age=1", false),
    ] {
        fresh(&[&format!("Cache-Control: {value}")], want);
    }
    fresh(&["Cache-Control: max-age=3600", "Cache-Control: s-maxage=1"], false);
    fresh(&["CDN-Cache-Control: max-age=3600"], false);
    fresh(&["Surrogate-Control: max-age=3600"], false);
}

#[test]
fn expires_counts_from_date_and_only_without_max_age() {
    let expires = |from: i64| format!("Expires: {}", date(from));
    fresh(&[&expires(100)], true);
    fresh(&[&expires(-100)], false);
    fresh(&[&expires(0)], false);
    fresh(&["Expires: 0"], false);
    fresh(&["Expires: 0", "Cache-Control: max-age=3600"], true);
    fresh(&[&expires(-100), "Cache-Control: max-age=3600"], true);
    fresh(&[&expires(3600), "Cache-Control: max-age=0"], false);
    fresh(&[&expires(100), &expires(100)], true);
    fresh(&[&expires(100), &expires(200)], false);
    let told = |lines: &[String], want| {
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        reused((200, &lines), 0, &[], want);
    };
    // Both of a site whose clock is fast.
    told(&[expires(300), format!("Date: {}", date(400))], false);
    told(
        &[expires(20), format!("Date: {}", date(10)), "Age: 15".to_owned()],
        false,
    );
    told(
        &[expires(10), format!("Date: {}", date(-10)), "Age: 25".to_owned()],
        false,
    );
    told(&[expires(10), "Date: foo".to_owned()], true);
    told(&[expires(10)], true);
}

#[test]
fn age_comes_from_age_date_and_delay() {
    for (age, want) in [
        ("Age: 7200", false),
        ("Age: 3600", false),
        ("Age: 3000", true),
        ("Age: 2147483648", false),
        ("Age: 99999999999999999999", false),
        ("Age: 7200, 0", false),
        ("Age: 0, 7200", true),
        ("Age: abc", true),
        ("Age: -7200", true),
        ("Age: 7200.0", true),
        ("Age: 7200;x=y", true),
        ("Age:", true),
    ] {
        fresh(&["Cache-Control: max-age=3600", age], want);
    }
    fresh(&["Cache-Control: max-age=3600", "Age: 0", "Age: 7200"], true);
    fresh(&["Cache-Control: max-age=3600", "Age: 7200", "Age: 0"], false);
    let old = format!("Date: {}", date(-7200));
    reused((200, &[&old, "Cache-Control: max-age=3600"]), 0, &[], false);
    let ahead = format!("Date: {}", date(7200));
    reused((200, &[&ahead, "Cache-Control: max-age=3600"]), 3599, &[], true);
}

#[test]
fn age_rises_and_date_stays() {
    let mut trial = Trial::new();
    let told: &[&str] = &[
        "Cache-Control: max-age=600",
        "Age: 30",
        "Date: Sun, 06 Nov 1994 08:49:37 GMT",
    ];
    // Its date makes it as old as that date.
    assert_eq!(trial.get("/old", &[], (200, told, "")).sent.len(), 1);
    assert!(!trial.probe("/old", &[]).is_hit());
    let now = format!("Date: {}", date(0));
    trial.get("/", &[], (200, &["Cache-Control: max-age=600", "Age: 30", &now], ""));
    trial.sleep(3);
    let got = trial.probe("/", &[]);
    assert_eq!(
        (got.field("Age"), got.field("Date")),
        (Some("33"), Some(date(0).as_str()))
    );
    assert_eq!(got.head.matches("Age:").count(), 1);
    assert_eq!(got.field("Cache-Status"), Some("culvert; hit; ttl=567"));
}

#[test]
fn a_missing_date_is_the_moment_of_receipt() {
    let mut trial = Trial::new();
    trial.get("/", &[], (200, &["Cache-Control: max-age=600"], ""));
    trial.sleep(9);
    let got = trial.probe("/", &[]);
    assert_eq!(
        (got.field("Date"), got.field("Age")),
        (Some(date(0).as_str()), Some("9"))
    );
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_fresh() {
    let mut trial = Trial::new();
    let now = format!("Date: {}", date(0));
    trial.get("/", &[], (200, &["Cache-Control: max-age=60", &now], ""));
    trial.now.wall -= 10_000;
    assert!(trial.probe("/", &[]).is_hit());
    trial.now.time = trial.now.time + Duration::from_secs(61);
    assert!(!trial.probe("/", &[]).is_hit());
    // Not even the other clock can make an age negative.
    trial.get("/b", &[], (200, &["Cache-Control: max-age=60", &now], ""));
    trial.now.time = Time::from_micros(0);
    assert_eq!(trial.probe("/b", &[]).field("Age"), Some("0"));
}

#[test]
fn a_slow_answer_is_as_old_as_its_request() {
    let mut trial = Trial::new();
    let bytes = request("/", &[]);
    let parsed = Request::parse(&bytes).unwrap();
    let asked = Asked::read(&parsed, SITE).unwrap();
    let Look::Ask(fetch) = trial.cache.look_up(&asked, None, trial.now) else {
        panic!();
    };
    trial.sleep(50);
    let told = response(200, &["Cache-Control: max-age=60"], "");
    let told = Response::parse(&told, "GET", false).unwrap();
    let Answer::Keep(_, fill) = fetch.answer(&asked, &told, trial.now) else {
        panic!();
    };
    assert!(fill.commit(trial.now));
    assert_eq!(trial.probe("/", &[]).field("Age"), Some("50"));
    trial.sleep(10);
    assert!(!trial.probe("/", &[]).is_hit());
}

#[test]
fn a_tenth_of_what_is_unchanged_is_guessed() {
    let modified = |ago: i64| format!("Last-Modified: {}", date(-ago));
    let now = format!("Date: {}", date(0));
    let guess = |status, ago, lines: &[&str], later, want| {
        let modified = modified(ago);
        reused(
            (status, &[&[now.as_str(), &modified], lines].concat()),
            later,
            &[],
            want,
        );
    };
    for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501] {
        guess(status, 86_400, &[], 8_639, true);
        guess(status, 86_400, &[], 8_640, false);
    }
    for status in [201, 202, 302, 307, 400, 403, 500, 502, 503, 504, 599] {
        guess(status, 86_400, &[], 0, false);
        guess(status, 86_400, &["Cache-Control: public"], 8_639, true);
    }
    // A day at most, and nothing beside what the site says.
    guess(200, 86_400 * 1_000, &[], 86_399, true);
    guess(200, 86_400 * 1_000, &[], 86_400, false);
    guess(200, 86_400, &["Cache-Control: max-age=0"], 0, false);
    guess(200, 86_400, &["Expires: 0"], 0, false);
    guess(200, -86_400, &[], 0, false);
    guess(200, 86_400, &["Pragma: no-cache"], 3, true);
}

#[test]
fn a_guess_is_for_nobody_with_a_cookie() {
    let modified = format!("Last-Modified: {}", date(-86_400));
    reused((200, &[&modified]), 3, &["Cookie: a=b"], false);
    reused(
        (200, &[&modified, "Cache-Control: max-age=60"]),
        3,
        &["Cookie: a=b"],
        true,
    );
    let mut trial = Trial::new();
    trial.get("/", &["Cookie: a=b"], (200, &[&modified], "mine"));
    assert!(!trial.probe("/", &[]).is_hit());
}

#[test]
fn a_request_may_want_more_or_less() {
    let told: (u16, &[&str]) = (200, &["Cache-Control: max-age=1500", "Age: 1000"]);
    for (asked, want) in [
        ("Cache-Control: max-age=0", false),
        ("Cache-Control: max-age=600", false),
        ("Cache-Control: max-age=1003", true),
        ("Cache-Control: max-age=1002", false),
        ("Cache-Control: min-fresh=497", true),
        ("Cache-Control: min-fresh=498", false),
        ("Cache-Control: no-cache", false),
        ("Cache-Control: no-store", false),
        ("Cache-Control: nothing-to-see-here", true),
        ("Pragma: no-cache", false),
        ("Pragma: unheard-of", true),
        ("Cache-Control: only-if-cached", true),
    ] {
        reused(told, 3, &[asked], want);
    }
    reused(told, 3, &["Pragma: no-cache", "Cache-Control: x"], true);
    reused(
        (200, &["Cache-Control: max-age=1500"]),
        0,
        &["Cache-Control: max-age=0"],
        false,
    );
    let stale: (u16, &[&str]) = (200, &["Cache-Control: max-age=1500", "Age: 1000"]);
    reused(stale, 2_500, &["Cache-Control: max-stale=2000"], true);
    reused(stale, 2_500, &["Cache-Control: max-stale=1999"], false);
    reused(stale, 99_999, &["Cache-Control: max-stale"], true);
    // Its second is over before it arrives.
    let brief: (u16, &[&str]) = (200, &["Cache-Control: max-age=1", &format!("Date: {}", date(-1))]);
    reused(brief, 0, &["Cache-Control: max-stale"], true);
    reused(brief, 0, &[], false);
    for strict in ["must-revalidate", "proxy-revalidate", "s-maxage=1500"] {
        let line = format!("Cache-Control: max-age=1500, {strict}");
        reused((200, &[&line]), 2_500, &["Cache-Control: max-stale"], false);
    }
}

#[test]
fn only_if_cached_asks_nobody() {
    let mut trial = Trial::new();
    let got = trial.probe("/", &["Cache-Control: only-if-cached"]);
    assert!(got.is_hit() && got.status() == 504);
    trial.get("/", &[], (200, &["Cache-Control: max-age=60"], ""));
    trial.sleep(61);
    assert_eq!(trial.probe("/", &["Cache-Control: only-if-cached"]).status(), 504);
}

#[test]
fn stale_answers_stand_in_where_they_may() {
    let stand_in = |control: &str, later, asked: &[&str], want: bool| {
        let mut trial = Trial::new();
        trial.get("/", &[], (200, &[&format!("Cache-Control: {control}")], "old"));
        trial.sleep(later);
        let got = trial.unreachable("/", asked);
        assert_eq!(got.is_some(), want, "{control} after {later} s");
        if let Some(got) = got {
            assert_eq!(got.body, "old");
            assert!(got.field("Cache-Status").unwrap().contains("detail=unreachable"));
        }
    };
    stand_in("max-age=2", 3, &[], true);
    stand_in("max-age=2", 62, &[], true);
    stand_in("max-age=2", 63, &[], false);
    stand_in("max-age=2, stale-if-error=600", 602, &[], true);
    stand_in("max-age=2, stale-if-error=600", 603, &[], false);
    stand_in("max-age=2", 302, &["Cache-Control: stale-if-error=300"], true);
    stand_in("max-age=2", 3, &["Cache-Control: no-cache"], false);
    for strict in ["must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=2"] {
        stand_in(&format!("max-age=2, {strict}"), 3, &[], false);
    }

    let failing = |control: &str, status, later, want: bool| {
        let mut trial = Trial::new();
        trial.get("/", &[], (200, &[&format!("Cache-Control: {control}")], "old"));
        trial.sleep(later);
        let got = trial.get("/", &[], (status, &[], "broken"));
        assert_eq!((got.sent.len(), got.body == "old"), (1, want), "{control}, {status}");
    };
    failing("max-age=2, stale-if-error=60", 503, 3, true);
    failing("max-age=2, stale-if-error=60", 500, 62, true);
    failing("max-age=2, stale-if-error=60", 503, 63, false);
    failing("max-age=2, stale-if-error=60", 404, 3, false);
    failing("max-age=2, stale-if-error=60, must-revalidate", 503, 3, false);
    failing("max-age=2", 503, 3, false);
}

#[test]
fn stale_while_revalidate_gives_the_old_one_and_fetches_the_new_one() {
    let mut trial = Trial::new();
    trial.get(
        "/",
        &[],
        (
            200,
            &["Cache-Control: max-age=1, stale-while-revalidate=10", "ETag: \"a\""],
            "old",
        ),
    );
    trial.sleep(3);
    let got = trial.get(
        "/",
        &["Range: bytes=0-0"],
        (200, &["Cache-Control: max-age=60", "ETag: \"b\""], "new"),
    );
    assert_eq!((got.is_hit(), got.status(), got.body.as_str()), (true, 206, "o"));
    assert_eq!(got.field("Cache-Status"), Some("culvert; hit; ttl=-2"));
    let got = trial.probe("/", &[]);
    assert_eq!((got.is_hit(), got.body.as_str()), (true, "new"));
    assert_eq!(trial.cache.counts().stale_hits, 1);

    reused(
        (200, &["Cache-Control: max-age=1, stale-while-revalidate=3600"]),
        3,
        &[],
        true,
    );
    reused(
        (200, &["Cache-Control: max-age=1, stale-while-revalidate=4"]),
        5,
        &[],
        false,
    );
    reused(
        (
            200,
            &["Cache-Control: max-age=1, stale-while-revalidate=9, must-revalidate"],
        ),
        3,
        &[],
        false,
    );
    reused(
        (200, &["Cache-Control: max-age=1, stale-while-revalidate=9"]),
        3,
        &["Cache-Control: max-age=5"],
        false,
    );
}

#[test]
fn only_one_asks_the_site_while_the_old_one_is_given() {
    let mut trial = Trial::new();
    trial.get(
        "/",
        &[],
        (200, &["Cache-Control: max-age=1, stale-while-revalidate=100"], "old"),
    );
    trial.sleep(3);
    let bytes = request("/", &["Range: bytes=0-0", "If-None-Match: \"x\""]);
    let parsed = Request::parse(&bytes).unwrap();
    let asked = Asked::read(&parsed, SITE).unwrap();
    let look = |trial: &Trial| match trial.cache.look_up(&asked, None, trial.now) {
        Look::Hit(hit) => hit.refresh,
        _ => panic!(),
    };
    let first = look(&trial).expect("one asks");
    assert!(look(&trial).is_none());
    let mut sent = Vec::new();
    first.write_request(&asked, &[], &mut sent);
    let sent = String::from_utf8(sent).unwrap();
    assert!(!sent.contains("Range") && !sent.contains("If-"), "{sent}");
    drop(first);
    assert!(look(&trial).is_some(), "it came to nothing");
}
