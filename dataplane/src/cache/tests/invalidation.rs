//! RFC 9111 section 4.4, and answers that were on their way meanwhile.

use super::*;

const LONG: &[&str] = &["Cache-Control: max-age=100"];

fn stored(paths: &[&str]) -> Trial {
    let mut trial = Trial::new();
    paths
        .iter()
        .for_each(|path| drop(trial.get(path, &[], (200, LONG, "old"))));
    trial
}

#[test]
fn a_successful_unsafe_request_ends_what_is_stored() {
    for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH"] {
        for (status, ends) in [
            (200, true),
            (204, true),
            (303, true),
            (399, true),
            (400, false),
            (500, false),
        ] {
            let mut trial = stored(&["/x"]);
            let got = trial.get(&format!("{method} /x"), &[], (status, &[], ""));
            assert_eq!(got.field("Cache-Status"), Some("culvert; fwd=method"));
            assert_eq!(trial.probe("/x", &[]).is_hit(), !ends, "{method} {status}");
        }
    }
    for method in ["OPTIONS", "TRACE"] {
        let mut trial = stored(&["/x"]);
        trial.get(&format!("{method} /x"), &[], (200, &[], ""));
        assert!(trial.probe("/x", &[]).is_hit(), "{method}");
    }
}

#[test]
fn also_what_location_and_content_location_name_on_the_same_site() {
    let named = |line: &str, ends: bool| {
        let mut trial = stored(&["/x/a", "/other"]);
        trial.get("POST /x/y", &[], (201, &[line], ""));
        assert_eq!(trial.probe("/x/a", &[]).is_hit(), !ends, "{line}");
        assert!(trial.probe("/other", &[]).is_hit());
    };
    named("Location: /x/a", true);
    named("Location: http://A.test:80/x/a", true);
    named("Content-Location: a", true);
    named("Content-Location: ./../x/a#z", true);
    named("Location: http://b.test/x/a", false);
    named("Location: https://a.test/x/a", false);
    named("Location: http://a.test:8080/x/a", false);
    named("Link: /x/a", false);
    let mut trial = stored(&["/x/a"]);
    trial.get("POST /x/y", &[], (400, &["Location: /x/a"], ""));
    assert!(trial.probe("/x/a", &[]).is_hit());
    // Not of a safe request: they are not about what changed.
    trial.get("/x/y", &[], (200, &["Content-Location: /x/a"], ""));
    assert!(trial.probe("/x/a", &[]).is_hit());
}

#[test]
fn all_variants_end_and_no_other_url() {
    let mut trial = stored(&["/x?y", "/y"]);
    for n in ["1", "2"] {
        trial.get(
            "/x",
            &[&format!("Foo: {n}")],
            (200, &["Cache-Control: max-age=100", "Vary: Foo"], n),
        );
    }
    trial.get("DELETE /x", &["Foo: 1"], (200, &[], ""));
    assert!(!trial.probe("/x", &["Foo: 1"]).is_hit() && !trial.probe("/x", &["Foo: 2"]).is_hit());
    assert!(trial.probe("/x?y", &[]).is_hit() && trial.probe("/y", &[]).is_hit());
    assert_eq!(trial.cache.counts().invalidated, 1);
}

#[test]
fn what_was_asked_for_before_is_not_stored_after() {
    let mut trial = Trial::new();
    let told = response(200, LONG, "old");
    let told = Response::parse(&told, "GET", false).unwrap();
    let bytes = request("/x", &[]);
    let parsed = Request::parse(&bytes).unwrap();
    let asked = Asked::read(&parsed, SITE).unwrap();
    let ask = |trial: &Trial| match trial.cache.look_up(&asked, Some(Outcome::Alone), trial.now) {
        Look::Ask(fetch) => fetch,
        _ => panic!(),
    };
    let keep = |trial: &Trial, fetch: Fetch| match fetch.answer(&asked, &told, trial.now) {
        Answer::Keep(_, fill) => fill,
        _ => panic!(),
    };
    // One is asked for, one is arriving, when a POST changes the page.
    let asked_before = ask(&trial);
    let mut arriving = keep(&trial, ask(&trial));
    trial.get("POST /x", &[], (200, &[], ""));
    arriving.append(b"old");
    assert!(!arriving.commit(trial.now));
    let mut fill = keep(&trial, asked_before);
    fill.append(b"old");
    assert!(!fill.commit(trial.now));
    assert!(!trial.probe("/x", &[]).is_hit());
    let mut fill = keep(&trial, ask(&trial));
    fill.append(b"old");
    assert!(fill.commit(trial.now), "what is asked for afterwards is");
}

#[test]
fn what_is_asked_for_outlives_the_invalidation_of_others() {
    let mut trial = Trial::new();
    let told = response(200, LONG, "");
    let told = Response::parse(&told, "GET", false).unwrap();
    for (others, kept) in [(1_000, true), (8_000, false)] {
        let bytes = request("/x", &["Cache-Control: no-cache"]);
        let parsed = Request::parse(&bytes).unwrap();
        let asked = Asked::read(&parsed, SITE).unwrap();
        let Look::Ask(fetch) = trial.cache.look_up(&asked, None, trial.now) else {
            panic!();
        };
        for n in 0..others {
            trial.get(&format!("POST /{n}"), &[], (200, &[], ""));
        }
        let Answer::Keep(_, fill) = fetch.answer(&asked, &told, trial.now) else {
            panic!();
        };
        assert_eq!(
            fill.commit(trial.now),
            kept,
            "more than are remembered may have been about it"
        );
    }
}

#[test]
fn a_304_on_its_way_does_not_bring_back_what_ended() {
    let mut trial = Trial::new();
    trial.get("/x", &[], (200, &["Cache-Control: max-age=5", "ETag: \"a\""], "old"));
    trial.sleep(10);
    let bytes = request("/x", &[]);
    let parsed = Request::parse(&bytes).unwrap();
    let asked = Asked::read(&parsed, SITE).unwrap();
    let Look::Ask(fetch) = trial.cache.look_up(&asked, None, trial.now) else {
        panic!();
    };
    trial.get("POST /x", &[], (200, &[], ""));
    let told = response(304, LONG, "");
    let told = Response::parse(&told, "GET", false).unwrap();
    let answer = fetch.answer(&asked, &told, trial.now);
    assert!(matches!(answer, Answer::Stored(_)), "it was true when it was asked for");
    drop(answer);
    assert!(!trial.probe("/x", &[]).is_hit());
}

#[test]
fn the_other_threads_see_it_at_once() {
    let trial = stored(&["/x"]);
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let cache = &trial.cache;
        scope.spawn(move || {
            let mut trial = Trial::new();
            trial.cache = Arc::clone(cache);
            trial.get("POST /x", &[], (200, &[], ""));
            done.send(()).unwrap();
        });
    });
    wait.recv().unwrap();
    let mut trial = trial;
    assert!(!trial.probe("/x", &[]).is_hit());
}
