//! What is one session's must not reach another one, whatever the site says.

use super::*;

#[test]
fn a_cookie_reaches_nobody_but_who_asked() {
    for lines in [
        &["Cache-Control: public, max-age=60, s-maxage=60"][..],
        &["Cache-Control: max-age=60", "ETag: \"a\""],
        &["Cache-Control: no-cache", "ETag: \"a\""],
        &["Cache-Control: max-age=1, stale-while-revalidate=600, stale-if-error=600"],
    ] {
        let mut trial = Trial::new();
        let told = [lines, &["set-COOKIE: session=canary", "SET-Cookie: second=canary"]].concat();
        let first = trial.get("/", &[], (200, &told, "page"));
        assert_eq!(first.head.matches("canary").count(), 2, "who asked gets them");
        for later in [0, 5, 100] {
            trial.sleep(later);
            for asked in [
                &[][..],
                &["Cache-Control: no-cache"],
                &["If-None-Match: \"a\""],
                &["Range: bytes=0-1"],
            ] {
                // The site has nothing to say about cookies now; nor has anybody else.
                let got = trial.get("/", asked, (304, lines, ""));
                assert!(!got.head.contains("canary"), "{lines:?} {asked:?}");
            }
            let head = trial.get("HEAD /", &[], (200, lines, ""));
            assert!(!head.head.contains("canary"));
        }
    }
}

#[test]
fn a_cookie_of_a_304_reaches_nobody_but_who_asked() {
    let mut trial = Trial::new();
    trial.get("/", &[], (200, &["Cache-Control: max-age=60", "ETag: \"a\""], "page"));
    let got = trial.get(
        "/",
        &["Cache-Control: no-cache"],
        (304, &["ETag: \"a\"", "Set-Cookie: s=canary"], ""),
    );
    assert_eq!((got.status(), got.field("Set-Cookie")), (200, Some("s=canary")));
    assert!(!trial.probe("/", &[]).head.contains("canary"));
    let got = trial.get(
        "HEAD /",
        &["Cache-Control: no-cache"],
        (200, &["ETag: \"a\"", "Set-Cookie: s=canary"], ""),
    );
    assert!(got.head.contains("canary"));
    assert!(!trial.probe("/", &[]).head.contains("canary"));
}

#[test]
fn a_background_fetch_brings_no_cookie() {
    let mut trial = Trial::new();
    let told: &[&str] = &[
        "Cache-Control: max-age=1, stale-while-revalidate=600",
        "Set-Cookie: s=canary",
    ];
    trial.get("/", &[], (200, told, "old"));
    trial.sleep(3);
    let got = trial.get("/", &[], (200, told, "new"));
    assert!(got.is_hit() && !got.head.contains("canary"));
    let got = trial.probe("/", &[]);
    assert!(got.body == "new" && !got.head.contains("canary"));
}

#[test]
fn pages_chosen_by_cookie_stay_apart() {
    let mut trial = Trial::new();
    let told: &[&str] = &["Cache-Control: max-age=60", "Vary: Cookie"];
    trial.get("/", &["Cookie: s=1"], (200, told, "page of 1"));
    for asked in [&["Cookie: s=2"][..], &[], &["Cookie: s=1, s=2"], &["Cookie:"]] {
        assert!(!trial.probe("/", asked).is_hit(), "{asked:?}");
    }
    assert_eq!(trial.probe("/", &["Cookie: s=1"]).body, "page of 1");
}

#[test]
fn a_page_for_a_session_is_not_given_to_another_on_a_date() {
    let modified = format!("Last-Modified: {}", date(-86_400));
    // Made for one session, which only its cookie tells.
    for asked in [&["Cookie: s=1"][..], &[]] {
        for told in [
            &[modified.as_str()][..],
            &[&modified, "Cache-Control: no-cache"],
            &[&modified, "Expires: 0"],
        ] {
            let cookie: &[&str] = if asked.is_empty() { &["Set-Cookie: s=1"] } else { &[] };
            let mut trial = Trial::new();
            trial.get("/", asked, (200, &[told, cookie].concat(), "canary"));
            for other in [&["Cookie: s=2"][..], &[]] {
                // The other session's page is older, so the site would say 304.
                let got = trial.get("/", other, (200, &[&modified], "another page"));
                assert!(!got.sent[0].contains("If-Modified-Since"), "{told:?} {other:?}");
                assert_eq!(got.body, "another page");
            }
        }
    }
    // Made for nobody, and asked for by a session.
    let mut trial = Trial::new();
    trial.get("/", &[], (200, &[&modified], "canary"));
    let got = trial.get("/", &["Cookie: s=2"], (304, &[], ""));
    assert!(!got.sent[0].contains("If-Modified-Since"));
    // By its tag the site tells bodies apart, so that this is the same page.
    let mut trial = Trial::new();
    trial.get("/", &["Cookie: s=1"], (200, &["ETag: \"a\"", &modified], "page"));
    let got = trial.get("/", &["Cookie: s=2"], (304, &["ETag: \"a\""], ""));
    assert!(got.sent[0].contains("If-None-Match: \"a\"") && !got.sent[0].contains("Since"));
    assert_eq!(got.body, "page");
}

#[test]
fn what_was_made_with_credentials_stays_with_them() {
    let mut trial = Trial::new();
    trial.get(
        "/",
        &["Authorization: Basic canary"],
        (200, &["Cache-Control: max-age=60", "ETag: \"a\""], "canary"),
    );
    for asked in [&[][..], &["Authorization: Basic other"], &["Cache-Control: max-stale"]] {
        let got = trial.get("/", asked, (200, &[], "public"));
        assert_eq!((got.sent.len(), got.body.as_str()), (1, "public"));
        assert!(!got.sent[0].contains("If-None-Match"));
    }
}
