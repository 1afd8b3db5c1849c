//! Sessions that are resumed keep what was seen, and not for long.

use std::sync::Arc;

use rustls::HandshakeKind::{Full, Resumed};
use rustls::{ClientConfig, HandshakeKind, ServerConfig};

use super::pki::*;
use super::shake::*;
use crate::bump::{Seen, Verdict};

#[test]
fn a_session_with_a_site_is_resumed_for_ten_minutes_from_its_first_handshake() {
    let world = World::new();
    for version in VERSIONS {
        let clock = Clock::new();
        let judge = world.judge(&clock);
        let site = Arc::new(site_config(&world.site(4), version));
        let mut last = None;
        for (now, expected) in [
            (0, Full),
            (1, Resumed),
            // Each gives new tickets, none of which is younger than the first handshake.
            (300, Resumed),
            (599, Resumed),
            (600, Full),
            (601, Resumed),
            (1_199, Resumed),
            (1_200, Full),
        ] {
            clock.set(NOW + now);
            let (seen, kind) = visit(&judge, &site, 443, NOW + now).unwrap();
            assert_eq!(kind, expected, "{version:?} after {now} s");
            assert_eq!(seen.verdict, Verdict::WRONG_NAME);
            assert_eq!(*last.get_or_insert_with(|| seen.clone()), seen);
        }
    }
}

#[test]
fn a_session_belongs_to_its_host_and_port() {
    let world = World::new();
    for version in VERSIONS {
        let judge = world.judge(&Clock::new());
        let site = Arc::new(site_config(&world.site(0), version));
        let kinds: Vec<HandshakeKind> = [443, 443, 8_443, 8_443]
            .into_iter()
            .map(|port| visit(&judge, &site, port, NOW).unwrap().1)
            .collect();
        assert_eq!(kinds, [Full, Resumed, Full, Resumed]);
    }
}

#[test]
fn a_resumed_session_is_judged_by_the_time_that_it_is() {
    let world = World::new();
    let clock = Clock::new();
    let judge = world.judge(&clock);
    let mut params = leaf_params();
    valid(&mut params, -DAY, 60);
    let shown = issued(params, &world.intermediate, &[&world.intermediate]);
    let site = Arc::new(site_config(&shown, &rustls::version::TLS13));
    for (now, verdict, kind) in [(0, Verdict::GOOD, Full), (61, Verdict::EXPIRED, Resumed)] {
        clock.set(NOW + now);
        let (seen, was) = visit(&judge, &site, 443, NOW + now).unwrap();
        assert_eq!((seen.verdict, was), (verdict, kind));
    }
}

fn kind(browser: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> HandshakeKind {
    open(browser, server, HOST).unwrap().handshake_kind().unwrap()
}

#[test]
fn a_browser_resumes_with_the_leaf_that_it_was_shown_and_with_no_other() {
    let leaves = Tunnel::new().leaves();
    let expired = Seen {
        verdict: Verdict::EXPIRED,
        leaf: [1; 32],
        not_before: NOW - 2 * DAY,
        not_after: NOW - DAY,
        ..Seen::default()
    };
    for version in VERSIONS {
        let browser = lenient(version);
        let good = leaves.plain(HOST, at(NOW)).unwrap();
        let bad = leaves.config(HOST, &expired, at(NOW)).unwrap();
        assert_eq!(kind(&browser, &good), Full);
        assert_eq!(kind(&browser, &good), Resumed);
        assert_eq!(kind(&browser, &bad), Full);
        assert_eq!(kind(&browser, &bad), Resumed);
        assert_eq!(kind(&browser, &good), Full);
    }
}
