//! RFC 9111 section 4.1: Vary.

use super::*;
use crate::limits::CACHE_VARIANTS_MAX;

const LONG: &str = "Cache-Control: max-age=100";

#[test]
fn an_answer_is_for_requests_like_its_own() {
    let vary = |vary: &[&str], stored: &[&str], asked: &[&str], want: bool| {
        let mut trial = Trial::new();
        trial.get("/", stored, (200, &[&[LONG], vary].concat(), "x"));
        assert_eq!(trial.probe("/", asked).is_hit(), want, "{vary:?} {stored:?} {asked:?}");
    };
    vary(&["Vary: Foo"], &["Foo: 1"], &["Foo: 1", "Other: 2"], true);
    vary(&["Vary: Foo"], &["Foo: 1"], &["Foo: 2"], false);
    vary(&["Vary: Foo"], &["Foo: 1"], &[], false);
    vary(&["Vary: Foo"], &[], &["Foo: 1"], false);
    vary(
        &["Vary: Foo, Bar", "Vary: Baz"],
        &["Foo: 1", "Baz: 3"],
        &["Baz: 3", "Foo: 1"],
        true,
    );
    vary(
        &["Vary: Foo, Bar", "Vary: Baz"],
        &["Foo: 1", "Baz: 3"],
        &["Baz: 4", "Foo: 1"],
        false,
    );
    vary(&["Vary: Foo"], &["Foo: 1, 2"], &["Foo: 1", "Foo: 2"], true);
    vary(&["Vary: *"], &[], &[], false);
    vary(&["Vary:", "Vary: *"], &[], &[], false);
    vary(&["Vary: Foo, *"], &["Foo: 1"], &["Foo: 1"], false);
}

#[test]
fn variants_live_side_by_side_up_to_a_bound() {
    let mut trial = Trial::new();
    let told: &[&str] = &[LONG, "Vary: Foo"];
    for n in 0..CACHE_VARIANTS_MAX + 1 {
        let got = trial.get("/", &[&format!("Foo: {n}")], (200, told, &n.to_string()));
        let want = if n == 0 {
            "culvert; fwd=uri-miss; stored"
        } else {
            "culvert; fwd=vary-miss; stored"
        };
        assert_eq!(got.field("Cache-Status"), Some(want));
    }
    assert_eq!(trial.cache.counts().entries, CACHE_VARIANTS_MAX as u64);
    assert!(!trial.probe("/", &["Foo: 0"]).is_hit(), "the oldest went");
    for n in 1..CACHE_VARIANTS_MAX + 1 {
        assert_eq!(trial.probe("/", &[&format!("Foo: {n}")]).body, n.to_string());
    }
    // The same variant again takes its own place; an answer without Vary is for all.
    trial.get("/", &["Foo: 5", "Cache-Control: no-cache"], (200, told, "new"));
    assert_eq!(trial.cache.counts().entries, CACHE_VARIANTS_MAX as u64);
    assert_eq!(trial.probe("/", &["Foo: 5"]).body, "new");
    trial.get("/", &["Foo: 5", "Cache-Control: no-cache"], (200, &[LONG], "for all"));
    assert_eq!(trial.probe("/", &["Foo: 3"]).body, "for all");
    assert_eq!(trial.cache.counts().entries, 1);
}

#[test]
fn a_304_confirms_the_variant_that_was_asked_for() {
    let mut trial = Trial::new();
    for n in ["1", "2"] {
        let told: &[&str] = &["Cache-Control: max-age=5", "Vary: Foo", &format!("ETag: \"{n}\"")];
        trial.get("/", &[&format!("Foo: {n}")], (200, told, n));
    }
    trial.sleep(10);
    let got = trial.get("/", &["Foo: 1"], (304, &[LONG], ""));
    assert!(got.sent[0].contains("If-None-Match: \"1\"") && got.sent[0].contains("Foo: 1"));
    assert_eq!(trial.probe("/", &["Foo: 1"]).body, "1");
    assert!(!trial.probe("/", &["Foo: 2"]).is_hit());
}

#[test]
fn what_a_hop_keeps_to_itself_makes_no_variant() {
    let mut trial = Trial::new();
    let told = ["Cache-Control: max-age=60", "Vary: X-Lang"];
    trial.get("/", &["X-Lang: de", "Connection: X-Lang"], (200, &told, "default"));
    assert!(!trial.probe("/", &["X-Lang: de"]).is_hit());
}
