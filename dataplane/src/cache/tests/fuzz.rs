//! Seeded runs: any bytes for the parsers, and any order of requests against a site whose every page is known.

use proptest::prelude::*;

use super::*;
use crate::cache::control::{RequestControl, ResponseControl, items};
use crate::cache::range::{Ranged, select};
use crate::cache::{conditional, date};

/// Never panics, whatever a field says.
fn fuzz_fields(data: &[u8]) {
    if let Some(moment) = date::parse(data, WALL) {
        assert!(moment < 400_000_000_000);
    }
    RequestControl::default().read(data);
    let mut control = ResponseControl::default();
    control.read(data);
    control.keeps_back(b"x");
    assert!(items(data).all(|item| !item.is_empty()));
    conditional::lists(data, Some(data));
    for len in [0, 1, 10] {
        if let Ranged::Part { first, last } = select(data, len) {
            assert!(first <= last && last < len);
        }
    }
    let bytes = request("/a/b?c", &[]);
    let parsed = Request::parse(&bytes).unwrap();
    let asked = Asked::read(&parsed, SITE).unwrap();
    if let Some(path) = asked.key.resolve(data) {
        assert_eq!(path[0], b'/');
    }
}

/// Pages of the site that `fuzz_operations` plays. The session is in the page where it is somebody's own.
fn page(path: usize, version: u32, session: u8) -> (Vec<String>, String) {
    let mine = format!("{path}.{version}.{session}");
    let all = format!("{path}.{version}");
    let line = |text: &str| text.to_owned();
    match path {
        0 => (vec![line("Cache-Control: max-age=5"), format!("ETag: \"{all}\"")], all),
        1 => (
            vec![
                line("Cache-Control: max-age=5"),
                line("Vary: Cookie"),
                format!("ETag: \"{mine}\""),
            ],
            mine,
        ),
        2 => (
            vec![line("Cache-Control: private, max-age=5"), format!("ETag: \"{mine}\"")],
            mine,
        ),
        3 => (
            vec![
                line("Cache-Control: no-cache"),
                format!("ETag: \"{mine}\""),
                line("Set-Cookie: c=canary"),
            ],
            mine,
        ),
        4 => (
            vec![format!("Last-Modified: {}", date(-1_000 - 100 * i64::from(session)))],
            mine,
        ),
        _ => (
            vec![
                line("Cache-Control: max-age=1, stale-while-revalidate=5"),
                line("Set-Cookie: c=canary"),
            ],
            all,
        ),
    }
}

const PATHS: usize = 6;

/// What the site says to a request that reached it.
fn told(sent: &str, path: usize, version: u32, session: u8) -> (Vec<u8>, String) {
    let (lines, body) = page(path, version, session);
    let mut lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let has = |name: &str| lines.iter().find_map(|l| l.strip_prefix(name));
    let tag = has("ETag: ").zip(field(sent, "If-None-Match"));
    let unmodified = has("Last-Modified: ")
        .zip(field(sent, "If-Modified-Since"))
        .is_some_and(|(own, asked)| {
            let moment = |text: &str| date::parse(text.as_bytes(), WALL).unwrap();
            moment(own) <= moment(asked)
        });
    if tag.is_some_and(|(own, asked)| own == asked) || unmodified {
        lines.retain(|l| !l.starts_with("Set-Cookie"));
        return (response(304, &lines, ""), String::new());
    }
    (response(200, &lines, &body), body)
}

/// Requests, some held back between question and answer: nobody gets a page of another session, one from before a change,
/// or a cookie that the site did not send to him.
fn fuzz_operations(data: &[u8]) {
    let limit = 300_000;
    let mut trial = Trial::with_limit(limit);
    let mut versions = [0; PATHS];
    let mut held = Vec::new();
    for op in data.chunks_exact(3) {
        let (path, session) = (op[0] as usize % PATHS, op[1] % 3);
        let cookie = format!("Cookie: s={session}");
        let mut asked = if session == 0 {
            Vec::new()
        } else {
            vec![cookie.as_str()]
        };
        match op[2] % 8 {
            0 => trial.sleep(u64::from(op[1] % 4)),
            1 => {
                versions[path] += 1;
                trial.get(&format!("POST /{path}"), &asked, (200, &[], ""));
            }
            2 if !held.is_empty() => {
                let (fetch, bytes, told, body): (Fetch, Vec<u8>, Vec<u8>, String) =
                    held.swap_remove(op[1] as usize % held.len());
                let parsed = Request::parse(&bytes).unwrap();
                let asked = Asked::read(&parsed, SITE).unwrap();
                let told = Response::parse(&told, "GET", false).unwrap();
                if let Answer::Keep(_, mut fill) = fetch.answer(&asked, &told, trial.now) {
                    fill.append(body.as_bytes());
                    fill.commit(trial.now);
                }
            }
            kind => {
                asked.extend((kind == 3).then_some("Cache-Control: no-cache"));
                asked.extend((kind == 4).then_some("Cache-Control: max-stale=2"));
                let bytes = request(&format!("/{path}"), &asked);
                let parsed = Request::parse(&bytes).unwrap();
                let asked = Asked::read(&parsed, SITE).unwrap();
                let (_, want) = page(path, versions[path], session);
                let mut got = Got::default();
                let fetch = match trial.cache.look_up(&asked, Some(Outcome::Alone), trial.now) {
                    Look::Hit(hit) => {
                        trial.deliver(&hit, &asked, &mut got);
                        assert_eq!(got.body, want);
                        assert!(!got.head.contains("canary"));
                        hit.refresh
                    }
                    Look::Ask(fetch) => Some(fetch),
                    _ => None,
                };
                let Some(fetch) = fetch else {
                    continue;
                };
                let mut sent = Vec::new();
                fetch.write_request(&asked, &[], &mut sent);
                let (told, body) = told(&String::from_utf8(sent).unwrap(), path, versions[path], session);
                if kind == 5 {
                    held.push((fetch, bytes, told, body));
                    continue;
                }
                let mut aside = Got::default();
                trial.fetch(fetch, &asked, &told, &body, &mut aside);
                assert_eq!(aside.body, want);
            }
        }
        assert!(trial.cache.counts().bytes_held <= limit as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn fields(data in prop::collection::vec(any::<u8>(), 0..80)) {
        fuzz_fields(&data);
    }

    #[test]
    fn likely_fields(pieces in prop::collection::vec(prop::sample::select(vec![
        "max-age", "no-cache", "=", "\"", ",", " ", "5", "bytes=", "-", "W/", "a", "/", "..", ".", "http://a.test", ":", "?",
        "Sun, ", "06 Nov 1994 ", "08:49:37", " GMT", "\\", "*", "#", "99999999999999999999",
    ]), 0..12)) {
        fuzz_fields(pieces.concat().as_bytes());
    }

    #[test]
    fn operations(data in prop::collection::vec(any::<u8>(), 0..360)) {
        fuzz_operations(&data);
    }
}
