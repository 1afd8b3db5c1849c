//! A bad certificate stays bad: a browser refuses the leaf for what it would have refused the site's for.

use std::mem::discriminant;
use std::sync::Arc;

use rustls::{CertificateError, Error};
use rustls_pki_types::ServerName;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::pki::*;
use super::shake::*;
use crate::bump::{Judge, Leaves, Seen, Trust, TunnelCa, Verdict};
use crate::limits::{LEAF_RENEWED, LEAVES_MAX};

/// What `sc` sees of such a site, after its report went over the link.
fn seen(world: &World, shown: &Shown) -> Seen {
    let judge = world.judge(&Clock::new());
    let site = Arc::new(site_config(shown, &rustls::version::TLS13));
    let (seen, _) = visit(&judge, &site, 443, NOW).unwrap();
    let told = Seen::from_report(&seen.to_report()).unwrap();
    assert_eq!(told, seen);
    told
}

fn class(error: Error) -> std::mem::Discriminant<CertificateError> {
    match error {
        Error::InvalidCertificate(error) => discriminant(&error),
        other => panic!("{other}"),
    }
}

#[test]
fn a_browser_refuses_the_leaf_as_it_refuses_the_site() {
    let (world, tunnel) = (World::new(), Tunnel::new());
    let leaves = tunnel.leaves();
    for version in VERSIONS {
        let direct = browser(roots(&world.root.certificate), version);
        let bumped = browser(roots(&tunnel.root.certificate), version);
        for bits in possible() {
            let shown = world.site(bits);
            let config = leaves.config(HOST, &seen(&world, &shown), at(NOW)).unwrap();
            let without = open(&direct, &Arc::new(site_config(&shown, version)), HOST);
            let with = open(&bumped, &config, HOST);
            match (without, with) {
                (Ok(_), Ok(client)) => {
                    assert_eq!(bits, 0);
                    assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));
                    assert_eq!(client.protocol_version(), Some(version.version));
                }
                (Err(without), Err(with)) => assert_eq!(class(without), class(with), "{bits}"),
                (without, with) => panic!("{bits}: {:?} but {:?}", without.err(), with.err()),
            }
        }
    }
}

/// What a browser gets for `host`, judged by one that trusts the tunnel's root.
fn judged(tunnel: &Tunnel, leaves: &Leaves, host: &str, seen: &Seen) -> (Verdict, Vec<String>) {
    let chain = chain_of(leaves, host, seen);
    let judge = Judge::new(Trust {
        roots: Arc::new(roots(&tunnel.root.certificate)),
        insecure: crate::rules::Domains::default(),
    });
    let name = ServerName::try_from(host.trim_end_matches('.')).unwrap();
    let judged = judge.judge(&chain, &name, host, at(NOW)).unwrap();
    (judged.verdict, judged.names)
}

/// What a browser is shown, without judging it.
pub fn chain_of(leaves: &Leaves, host: &str, seen: &Seen) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    let config = leaves.config(host, seen, at(NOW)).unwrap();
    let browser = lenient(&rustls::version::TLS13);
    let client = open(&browser, &config, host.trim_end_matches('.')).unwrap();
    client.peer_certificates().unwrap().to_vec()
}

#[test]
fn every_combination_of_faults_is_in_the_leaf_and_no_other() {
    let (world, tunnel) = (World::new(), Tunnel::new());
    let leaves = tunnel.leaves();
    for bits in possible() {
        let seen = seen(&world, &world.site(bits));
        let (verdict, names) = judged(&tunnel, &leaves, HOST, &seen);
        assert_eq!(verdict, Verdict(bits));
        match bits & 4 {
            0 => assert_eq!(names, [HOST]),
            _ => assert_eq!(names, seen.names),
        }
    }
}

#[test]
fn a_wrong_name_without_any_or_with_the_right_one_is_still_wrong() {
    let tunnel = Tunnel::new();
    let leaves = tunnel.leaves();
    // Nobody takes a wildcard right below a top-level domain.
    let unfit = vec!["a.test", "*.test"];
    for (leaf, names, shown) in [
        (0, vec![], vec!["no-name.invalid"]),
        (1, vec![HOST], vec!["no-name.invalid"]),
        (2, vec!["*.b.test", "APP.test"], vec!["no-name.invalid"]),
        (3, unfit.clone(), unfit),
    ] {
        let seen = Seen {
            verdict: Verdict::WRONG_NAME,
            leaf: [leaf; 32],
            names: names.into_iter().map(str::to_owned).collect(),
            ..Seen::default()
        };
        let (verdict, names) = judged(&tunnel, &leaves, HOST, &seen);
        assert_eq!(verdict, Verdict::WRONG_NAME);
        assert_eq!(names, shown);
    }
}

#[test]
fn any_host_that_a_browser_can_ask_for_gets_a_leaf() {
    let tunnel = Tunnel::new();
    let leaves = tunnel.leaves();
    let long = format!("{}.test", vec!["label"; 20].join("."));
    for host in [
        "localhost",
        "under_score.test",
        "10.0.0.1",
        "fd00::1",
        "xn--bcher-kva.test",
        long.as_str(),
    ] {
        assert_eq!(
            judged(&tunnel, &leaves, host, &Seen::default()).0,
            Verdict::GOOD,
            "{host}"
        );
    }
    let with_dot = leaves.plain("a.test.", at(NOW)).unwrap();
    assert!(Arc::ptr_eq(&with_dot, &leaves.plain("A.test", at(NOW)).unwrap()));
    for host in ["", "a b", "a..b", "[::1]", "ä.test", "*.test"] {
        assert!(leaves.plain(host, at(NOW)).is_err(), "{host}");
    }
}

#[test]
fn a_leaf_says_what_browsers_want_and_no_number_is_used_twice() {
    let tunnel = Tunnel::new();
    let leaves = tunnel.leaves();
    let mut serials = Vec::new();
    for host in ["a.test", "b.test"] {
        let chain = chain_of(&leaves, host, &Seen::default());
        assert_eq!(chain[1..], *std::slice::from_ref(&tunnel.ca.certificate));
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        let (_, ca) = X509Certificate::from_der(&chain[1]).unwrap();
        assert_eq!(leaf.issuer().as_raw(), ca.subject().as_raw());
        assert!(leaf.extended_key_usage().unwrap().unwrap().value.server_auth);
        assert!(!leaf.is_ca());
        let validity = leaf.validity();
        assert_eq!(validity.not_before.timestamp(), NOW - DAY);
        assert_eq!(validity.not_after.timestamp(), NOW + 10 * DAY);
        serials.push(leaf.raw_serial().to_vec());
    }
    assert_ne!(serials[0], serials[1]);
    assert!(serials.iter().all(|serial| serial.len() == 16));
}

#[test]
fn a_leaf_is_no_older_than_the_ca() {
    let root = root("root");
    let mut params = ca_params("young");
    valid(&mut params, -3_600, YEAR);
    let tunnel = Tunnel {
        ca: root.below(params),
        root,
    };
    let chain = chain_of(&tunnel.leaves(), HOST, &Seen::default());
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.validity().not_before.timestamp(), NOW - 3_600);
    assert_eq!(leaf.validity().not_after.timestamp(), NOW + 30 * DAY);
}

#[test]
fn a_leaf_is_made_once_for_a_name_and_what_was_seen() {
    let tunnel = Tunnel::new();
    let leaves = tunnel.leaves();
    let bad = |leaf| Seen {
        verdict: Verdict::UNTRUSTED,
        leaf: [leaf; 32],
        ..Seen::default()
    };
    let good = |leaf| Seen {
        leaf: [leaf; 32],
        ..Seen::default()
    };
    let config = |seen: &Seen, now| leaves.config(HOST, seen, at(now)).unwrap();
    let first = config(&good(1), NOW);
    assert!(Arc::ptr_eq(&first, &config(&good(2), NOW)));
    assert!(Arc::ptr_eq(&first, &leaves.plain(HOST, at(NOW)).unwrap()));
    let untrusted = config(&bad(1), NOW);
    assert!(!Arc::ptr_eq(&first, &untrusted));
    assert!(Arc::ptr_eq(&untrusted, &config(&bad(1), NOW)));
    assert!(!Arc::ptr_eq(&untrusted, &config(&bad(2), NOW)));
}

#[test]
fn a_leaf_near_its_end_is_made_anew_and_none_outlives_the_ca() {
    let root = root("long");
    let ca = |key| TunnelCa {
        chain: vec![root.certificate.clone()],
        key,
    };
    let leaves = Leaves::new(ca(key_der(root.issuer.key()))).unwrap();
    let config = |now| leaves.plain(HOST, at(now));
    let first = config(NOW).unwrap();
    let renewed = NOW + LEAF_RENEWED.as_secs() as i64;
    assert!(Arc::ptr_eq(&first, &config(renewed - 1).unwrap()));
    let second = config(renewed).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    // The clock is set back to before the second leaf.
    assert!(!Arc::ptr_eq(&second, &config(NOW).unwrap()));
    assert!(leaves.plain("early.test", at(NOW - YEAR - 1)).is_err());
    let end = NOW + YEAR;
    let last = config(end).unwrap();
    assert!(Arc::ptr_eq(&last, &config(end).unwrap()));
    assert!(
        leaves
            .plain("late.test", at(end + 1))
            .unwrap_err()
            .to_string()
            .contains("not valid now")
    );
}

#[test]
fn a_ca_that_is_none_is_refused_by_name() {
    let tunnel = Tunnel::new();
    let refused = |chain, key| Leaves::new(TunnelCa { chain, key }).unwrap_err().to_string();
    let key_of = |ca: &Ca| key_der(ca.issuer.key());
    let text = refused(vec![], key_of(&tunnel.ca));
    assert!(text.contains("no certificate"), "{text}");
    let text = refused(vec![tunnel.ca.certificate.clone()], key_of(&tunnel.root));
    assert!(text.contains("no leaf of it would be accepted"), "{text}");
    let leaf = issued(leaf_params(), &tunnel.root, &[]);
    let text = refused(leaf.chain, key_of(&tunnel.ca));
    assert!(text.contains("no leaf of it would be accepted"), "{text}");
    let text = refused(vec![vec![0x30, 0].into()], key_of(&tunnel.ca));
    assert!(text.contains("cannot be read"), "{text}");
}

#[test]
fn what_is_opaque_is_not_mirrored() {
    let leaves = Tunnel::new().leaves();
    for bits in [0x40, 0x80, 0x41, 0x10, 0x03] {
        assert!(leaves.config(HOST, &Seen::opaque(Verdict(bits)), at(NOW)).is_err());
    }
}

#[test]
fn leaves_are_bounded_and_what_is_asked_for_stays() {
    let leaves = Tunnel::new().leaves();
    let kept = leaves.plain(HOST, at(NOW)).unwrap();
    for n in 0..2 * LEAVES_MAX {
        leaves.plain(&format!("n{n}.test"), at(NOW)).unwrap();
        assert!(Arc::ptr_eq(&kept, &leaves.plain(HOST, at(NOW)).unwrap()));
    }
    assert_eq!(leaves.count(), LEAVES_MAX);
}

#[test]
fn threads_that_want_one_leaf_get_the_same() {
    let leaves = Tunnel::new().leaves();
    let configs: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| leaves.plain(HOST, at(NOW)).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(configs.iter().all(|config| Arc::ptr_eq(config, &configs[0])));
}
