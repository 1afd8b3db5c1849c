//! What an endpoint remembers of sites.

use std::sync::Arc;
use std::time::Duration;

use crate::bump::{Reports, Seen, Site};
use crate::limits::{OPAQUE_HOSTS_MAX, OPAQUE_TIME, PINNED_APART, PINNED_SPAN, REPORT_FRESH_MAX, REPORTS_MAX};
use crate::time::Time;

const START: Time = Time::from_micros(1_000_000_000);
const MOMENT: Duration = Duration::from_micros(1);

const SITE: Site<'_> = Site {
    host: "app.test",
    port: 443,
    member: [1; 16],
};

#[test]
fn a_report_is_fresh_for_a_while_and_until_it_is_forgotten() {
    let reports = Reports::new();
    let seen = Arc::new(Seen::default());
    reports.insert(SITE, seen.clone(), START);
    let fresh = |now| reports.fresh(SITE, now).is_some_and(|found| Arc::ptr_eq(&found, &seen));
    assert!(fresh(START) && fresh(START + REPORT_FRESH_MAX));
    assert!(!fresh(START + REPORT_FRESH_MAX + MOMENT));
    reports.insert(SITE, seen.clone(), START + REPORT_FRESH_MAX);
    assert!(fresh(START + REPORT_FRESH_MAX + MOMENT));
    reports.forget(SITE);
    assert!(!fresh(START + REPORT_FRESH_MAX));
}

#[test]
fn a_report_is_about_host_port_and_name() {
    let reports = Reports::new();
    reports.insert(SITE, Arc::new(Seen::default()), START);
    let known = |site| reports.fresh(site, START).is_some();
    assert!(known(Site {
        host: "APP.test.",
        ..SITE
    }));
    assert!(!known(Site { port: 8_443, ..SITE }));

    assert!(!known(Site { host: "b.test", ..SITE }));
    assert!(!known(Site {
        member: [2; 16],
        ..SITE
    }));
}

#[test]
fn an_opaque_host_is_one_for_ten_minutes() {
    let reports = Reports::new();
    reports.learn_opaque("app.test", 443, START);
    assert!(reports.is_opaque("App.test", 443, START + OPAQUE_TIME - MOMENT));
    assert!(!reports.is_opaque("app.test", 443, START + OPAQUE_TIME));
    assert!(!reports.is_opaque("app.test", 8_443, START));
    assert!(!reports.is_opaque("b.test", 443, START));
}

#[test]
fn the_third_refusal_within_ten_minutes_makes_a_host_opaque() {
    let reports = Reports::new();
    let refused = |now| reports.refused("app.test", 443, false, now);
    assert!(!refused(START));
    assert!(!refused(START + PINNED_APART * 2));
    let late = START + PINNED_SPAN + MOMENT;
    assert!(!refused(late), "the first was too long ago");
    assert!(!reports.is_opaque("app.test", 443, late));
    let late = late + PINNED_APART;
    assert!(refused(late));
    assert!(reports.is_opaque("app.test", 443, late + OPAQUE_TIME - MOMENT));
    let over = late + OPAQUE_TIME;
    assert!(!reports.is_opaque("app.test", 443, over));
    // And then counting begins anew.
    let next = |n| refused(over + PINNED_APART * n);
    assert!(!next(0) && !next(1) && next(2));
}

#[test]
fn connections_that_a_browser_opens_at_once_are_one_refusal() {
    let reports = Reports::new();
    let refused = |now| reports.refused("app.test", 443, false, now);
    for _ in 0..10 {
        assert!(!refused(START));
    }
    assert!(!refused(START + PINNED_APART));
    assert!(!refused(START + PINNED_APART * 2 - MOMENT));
    assert!(refused(START + PINNED_APART * 2));
}

#[test]
fn a_site_that_breaks_off_again_is_opaque() {
    let reports = Reports::new();
    let broke_off = |now| reports.broke_off("old.test", 443, now);
    assert!(!broke_off(START));
    assert!(!broke_off(START + PINNED_APART - MOMENT), "connections made at once");
    let late = START + PINNED_SPAN + MOMENT;
    assert!(!broke_off(late), "it may have been restarted, twice");
    assert!(!reports.is_opaque("old.test", 443, late));
    assert!(broke_off(late + PINNED_APART));
    assert!(reports.is_opaque("old.test", 443, late + PINNED_APART));
    assert!(!reports.is_opaque("old.test", 444, late + PINNED_APART));
}

#[test]
fn refusals_count_for_their_host_and_never_where_somebody_wants_to_see_its_requests() {
    let reports = Reports::new();
    for port in 1..10 {
        assert!(!reports.refused("app.test", port, false, START));
    }
    for _ in 0..10 {
        assert!(!reports.refused("auth.test", 443, true, START));
    }
    assert!(!reports.is_opaque("auth.test", 443, START));
}

#[test]
fn what_is_remembered_is_bounded() {
    let reports = Reports::new();
    let seen = Arc::new(Seen::default());
    for n in 0..5_000 {
        let host = format!("n{n}.test");
        reports.insert(Site { host: &host, ..SITE }, seen.clone(), START);
        reports.learn_opaque(&host, 443, START);
        assert!(!reports.is_opaque(&format!("x{n}.test"), 443, START));
    }
    assert_eq!(Arc::strong_count(&seen), 1 + REPORTS_MAX);
    let opaque = (0..5_000).filter(|n| reports.is_opaque(&format!("n{n}.test"), 443, START));
    assert_eq!(opaque.count(), OPAQUE_HOSTS_MAX);
}
