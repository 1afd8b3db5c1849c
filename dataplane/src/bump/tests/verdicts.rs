//! Faults that are mirrored: each on its own and with the others.

use std::sync::Arc;

use rcgen::{CertificateParams, IsCa};
use rustls::HandshakeKind;
use rustls_pki_types::ServerName;
use sha2::{Digest, Sha256};

use super::pki::*;
use super::shake::*;
use crate::bump::{Judge, Verdict};

#[test]
fn each_fault_and_each_combination_is_seen_in_a_handshake_of_either_version() {
    let world = World::new();
    for version in VERSIONS {
        let judge = world.judge(&Clock::new());
        for bits in possible() {
            let shown = world.site(bits);
            let site = Arc::new(site_config(&shown, version));
            let (seen, kind) = visit(&judge, &site, 443, NOW).unwrap();
            assert_eq!(
                (seen.verdict, kind),
                (Verdict(bits), HandshakeKind::Full),
                "{version:?}"
            );
            assert_eq!(seen.leaf, <[u8; 32]>::from(Sha256::digest(&shown.chain[0])));
            assert_eq!((seen.version, seen.http11), (u16::from(version.version), true));
            let name = if bits & 4 == 0 { HOST } else { "*.other.test" };
            assert_eq!(seen.names, [name, "10.1.2.3", "fd00::1"]);
            let (from, until) = match bits & 3 {
                1 => (-90, -1),
                2 => (1, 90),
                _ => (-90, 90),
            };
            assert_eq!((seen.not_before, seen.not_after), (NOW + from * DAY, NOW + until * DAY));
        }
    }
}

fn verdict_of(judge: &Judge, shown: &Shown, host: &str, now: i64) -> Verdict {
    let name = ServerName::try_from(host).unwrap();
    judge.judge(&shown.chain, &name, host, at(now)).unwrap().verdict
}

#[test]
fn the_time_of_a_remembered_certificate_is_looked_at_anew() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    let mut params = leaf_params();
    valid(&mut params, 0, 60);
    let shown = issued(params, &world.intermediate, &[&world.intermediate]);
    for (now, verdict) in [
        (-1, Verdict::NOT_YET_VALID),
        (0, Verdict::GOOD),
        (60, Verdict::GOOD),
        (61, Verdict::EXPIRED),
    ] {
        assert_eq!(verdict_of(&judge, &shown, HOST, NOW + now), verdict, "{now}");
    }
}

#[test]
fn self_signed_or_without_its_intermediate_is_untrusted() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    let key = key();
    let mut params = leaf_params();
    params.is_ca = IsCa::ExplicitNoCa;
    let own = params.self_signed(&key).unwrap().der().clone();
    for chain in [vec![own.clone()], vec![own.clone(), own]] {
        let shown = Shown {
            chain,
            key: super::pki::key(),
        };
        assert_eq!(verdict_of(&judge, &shown, HOST, NOW), Verdict::UNTRUSTED);
    }
    let alone = issued(leaf_params(), &world.intermediate, &[]);
    assert_eq!(verdict_of(&judge, &alone, HOST, NOW), Verdict::UNTRUSTED);
}

#[test]
fn a_chain_in_any_order_and_with_more_than_it_needs_is_good() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    let second = world.intermediate.below(ca_params("second"));
    let shown = issued(
        leaf_params(),
        &second,
        &[&world.root, &world.strange, &world.intermediate, &second],
    );
    assert_eq!(verdict_of(&judge, &shown, HOST, NOW), Verdict::GOOD);
}

#[test]
fn an_expired_site_with_an_expired_intermediate_is_expired() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    let mut params = ca_params("old");
    valid(&mut params, -YEAR, -DAY);
    let old = world.root.below(params);
    let mut params = leaf_params();
    valid(&mut params, -90 * DAY, -2 * DAY);
    let shown = issued(params, &old, &[&old]);
    assert_eq!(verdict_of(&judge, &shown, HOST, NOW), Verdict::EXPIRED);
}

#[test]
fn names_are_matched_as_browsers_do() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    let good = |names: &[&str], host: &str| {
        let shown = issued(leaf_for(names), &world.intermediate, &[&world.intermediate]);
        verdict_of(&judge, &shown, host, NOW).is_good()
    };
    assert!(good(&["*.app.test"], "a.app.test"));
    assert!(good(&["APP.test"], "app.TEST"));
    assert!(good(&["127.0.0.1", "::1"], "127.0.0.1"));
    assert!(good(&["127.0.0.1", "::1"], "0:0:0:0:0:0:0:1"));
    assert!(!good(&["*.app.test"], "app.test"));
    assert!(!good(&["*.app.test"], "a.b.app.test"));
    assert!(!good(&["127.0.0.1"], "127.0.0.2"));
    assert!(!good(&["app.test"], "127.0.0.1"));
}

#[test]
fn a_common_name_alone_is_no_name() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    let mut params = leaf_for(&[]);
    named(&mut params, HOST);
    let shown = issued(params, &world.intermediate, &[&world.intermediate]);
    let judged = judge.judge(&shown.chain, &name(), HOST, at(NOW)).unwrap();
    assert_eq!((judged.verdict, judged.names), (Verdict::WRONG_NAME, Vec::new()));
}

#[test]
fn an_address_written_as_a_dns_name_is_left_out_of_the_names() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    let mut params = leaf_for(&["x.test"]);
    let text = rcgen::string::Ia5String::try_from("10.0.0.1").unwrap();
    params.subject_alt_names.push(rcgen::SanType::DnsName(text));
    let shown = issued(params, &world.intermediate, &[&world.intermediate]);
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let judged = judge.judge(&shown.chain, &name, "10.0.0.1", at(NOW)).unwrap();
    assert_eq!(
        (judged.verdict, judged.names),
        (Verdict::WRONG_NAME, vec!["x.test".to_owned()])
    );
}

#[test]
fn of_very_many_names_the_first_are_kept() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    let names: Vec<String> = (0..500).map(|n| format!("n{n}.{HOST}")).collect();
    let mut params = CertificateParams::new(names.clone()).unwrap();
    valid(&mut params, -DAY, DAY);
    let shown = issued(params, &world.intermediate, &[&world.intermediate]);
    let name = ServerName::try_from("n499.app.test").unwrap();
    let judged = judge.judge(&shown.chain, &name, HOST, at(NOW)).unwrap();
    assert!(judged.verdict.is_good());
    assert_eq!(judged.names, names[..crate::limits::SITE_NAMES_MAX]);
}

#[test]
fn an_insecure_domain_is_good_whatever_its_certificate() {
    let world = World::new();
    let judge = Judge::new(world.trust(&["app.test"]));
    for bits in possible() {
        let shown = world.site(bits);
        assert_eq!(verdict_of(&judge, &shown, HOST, NOW), Verdict::GOOD);
        assert_eq!(verdict_of(&judge, &shown, "sub.app.test", NOW), Verdict::GOOD);
    }
    let shown = world.site(8);
    assert_eq!(verdict_of(&judge, &shown, "other.test", NOW), Verdict(12));
}

#[test]
fn what_was_found_is_remembered_for_ten_minutes() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    // The intermediate ends in a minute: a judgement made anew finds a defect.
    let mut params = ca_params("short");
    valid(&mut params, -YEAR, 60);
    let short = world.root.below(params);
    let shown = issued(leaf_params(), &short, &[&short]);
    let judged = |now| {
        judge
            .judge(&shown.chain, &name(), HOST, at(NOW + now))
            .map(|judged| judged.verdict)
    };
    assert_eq!(judged(0), Ok(Verdict::GOOD));
    assert_eq!(judged(600), Ok(Verdict::GOOD));
    assert!(judged(601).is_err());
    // Nor does it count after the clock was set back.
    assert_eq!(judged(-1), Ok(Verdict::GOOD));
}
