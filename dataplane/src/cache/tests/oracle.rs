//! The same decisions by `http-cache-semantics`, for what both mean to do alike.
//!
//! Left out, because that crate differs from RFC 9111 or decides otherwise on purpose: statuses that it does not know,
//! Set-Cookie, Date as a source of age, `proxy-revalidate` (never fresh there), `immutable`, Pragma in answers and beside
//! Cache-Control, directives said twice, odd numbers, lists of names, `must-understand`, `max-stale` beside `s-maxage`
//! or `no-cache` (served there), exactly `max-stale` seconds (not served there), `no-store` of a request that finds something
//! (served there), what could only be given stale and is not stored here, lists in Age, guesses above a day.

use std::time::SystemTime;

use http_cache_semantics::{AfterResponse, BeforeRequest, CacheOptions, CachePolicy};
use proptest::prelude::*;

use super::*;

fn subset(of: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(of, 0..=of.len().min(3))
}

const STATUSES: [u16; 14] = [200, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 501];
const TOLD: &[&str] = &[
    "max-age=0",
    "max-age=100",
    "s-maxage=50",
    "s-maxage=200",
    "public",
    "private",
    "no-store",
    "no-cache",
    "must-revalidate",
    "x=y",
];
const ASKED: &[&str] = &[
    "no-cache",
    "max-age=70",
    "min-fresh=30",
    "max-stale=60",
    "max-stale",
    "x",
];

/// Directives that stand for the same are not said twice.
fn once(directives: &[&'static str]) -> bool {
    let name = |d: &'static str| d.split('=').next();
    let mut names: Vec<_> = directives.iter().map(|d| name(d)).collect();
    names.dedup();
    names.len() == directives.len()
}

fn joined(directives: &[&str]) -> Option<String> {
    (!directives.is_empty()).then(|| format!("Cache-Control: {}", directives.join(", ")))
}

fn moment(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn their_request(lines: &[&str]) -> http::Request<()> {
    let request = http::Request::builder().uri("http://a.test/");
    let fields = lines.iter().filter_map(|line| line.split_once(": "));
    fields
        .fold(request, |r, (name, value)| r.header(name, value))
        .body(())
        .unwrap()
}

fn their_response(status: u16, lines: &[&str]) -> http::Response<()> {
    let response = http::Response::builder().status(status);
    let fields = lines.iter().filter_map(|line| line.split_once(": "));
    fields
        .fold(response, |r, (name, value)| r.header(name, value))
        .body(())
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, max_global_rejects: 65_536, ..ProptestConfig::default() })]

    #[test]
    fn storing_and_using(
        status in prop::sample::select(&STATUSES[..]),
        control in subset(TOLD).prop_filter("said twice", |d| once(d)),
        expires in prop::option::of(prop::sample::select(vec!["0".to_owned(), date(-10), date(80), date(300)])),
        modified in prop::option::of(1_i64..80),
        age in prop::option::of(0_u64..150),
        vary in any::<bool>(),
        etag in any::<bool>(),
        asked in subset(ASKED).prop_filter("said twice", |d| once(d)),
        pragma in any::<bool>(),
        authorized in any::<bool>(),
        same in any::<bool>(),
        later in 0_u64..400,
    ) {
        let all: Vec<_> = control.iter().chain(&asked).collect();
        let says = |text: &str| all.iter().any(|d| d.starts_with(text));
        prop_assume!(!(says("max-stale") && (says("s-maxage") || control.contains(&"no-cache"))));
        let has_validator = (etag || modified.is_some()) && matches!(status, 200 | 203);
        let told = [
            Some(format!("Date: {}", date(0))),
            joined(&control),
            expires.map(|e| format!("Expires: {e}")),
            modified.map(|tens| format!("Last-Modified: {}", date(-100 * tens))),
            age.map(|a| format!("Age: {a}")),
            vary.then(|| "Vary: Foo".to_owned()),
            etag.then(|| "ETag: \"a\"".to_owned()),
        ];
        let told: Vec<_> = told.iter().flatten().map(String::as_str).collect();
        let control = joined(&asked);
        let mut first = vec!["Foo: 1"];
        first.extend(authorized.then_some("Authorization: x"));
        let mut second = first.clone();
        second[0] = if same { "Foo: 1" } else { "Foo: 2" };
        second.extend(control.as_deref());
        second.extend((pragma && control.is_none()).then_some("Pragma: no-cache"));

        let options = CacheOptions::default();
        let theirs = CachePolicy::new_options(&their_request(&first), &their_response(status, &told), moment(WALL), options);
        let ageless: Vec<_> = told.iter().copied().filter(|line| !line.starts_with("Age")).collect();
        let ageless = CachePolicy::new_options(&their_request(&first), &their_response(status, &ageless), moment(WALL), options);
        let lifetime = ageless.time_to_live(moment(WALL)).as_secs();
        prop_assume!(theirs.age(moment(WALL + later)).as_secs() != lifetime + 60);
        prop_assume!(has_validator || lifetime > age.unwrap_or(0) || !says("max-stale"));
        let before = theirs.before_request(&their_request(&second), moment(WALL + later));

        let mut trial = Trial::new();
        let body = if status == 204 { "" } else { "body" };
        trial.get("/", &first, (status, &told, body));
        if !theirs.is_storable() {
            prop_assert_eq!(trial.cache.counts().entries, 0);
        }
        trial.sleep(later);
        let got = trial.probe("/", &second);
        match before {
            BeforeRequest::Fresh(parts) if theirs.is_storable() => {
                prop_assert!(got.is_hit());
                prop_assert_eq!(got.field("Age"), Some(parts.headers["age"].to_str().unwrap()));
            }
            BeforeRequest::Fresh(_) => prop_assert!(!got.is_hit()),
            BeforeRequest::Stale { request, matches } => {
                prop_assert!(!got.is_hit());
                if matches && status == 200 && theirs.is_storable() {
                    let condition = request.headers.get("if-none-match").map(|v| v.to_str().unwrap());
                    prop_assert_eq!(field(&got.sent[0], "If-None-Match"), condition);
                }
            }
        }
    }
}

#[test]
fn confirming() {
    let modified = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT";
    let later = "Last-Modified: Sun, 06 Nov 1994 08:49:38 GMT";
    let tags = ["ETag: \"a\"", "ETag: \"b\"", "ETag: W/\"a\"", "ETag: W/\"b\""];
    let pairs = [tags[0], tags[2]]
        .into_iter()
        .flat_map(|stored| tags.map(|told| (stored, told)));
    for (stored, told) in pairs.chain([(modified, modified), (modified, later)]) {
        // There, a strong tag names a weak one too.
        if (stored, told) == (tags[2], tags[0]) {
            continue;
        }
        let lines = ["Cache-Control: max-age=5", stored];
        let options = CacheOptions::default();
        let theirs = CachePolicy::new_options(&their_request(&[]), &their_response(200, &lines), moment(WALL), options);
        let after = theirs.after_response(&their_request(&[]), &their_response(304, &[told]), moment(WALL + 10));
        let mut trial = Trial::new();
        trial.get("/", &[], (200, &lines, "body"));
        trial.sleep(10);
        let got = trial.get("/", &[], (304, &[told], ""));
        let confirmed = matches!(after, AfterResponse::NotModified(..));
        assert_eq!(got.sent.len() == 1, confirmed, "{stored} and {told}");
    }
}
