//! Names in certificates that no site has: they match nothing, and no leaf says them or a part of them.

use rcgen::{CertificateParams, CustomExtension};
use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::mirror::chain_of;
use super::pki::*;
use crate::bump::{Judge, Seen, Verdict};

/// As alternative names; each reads as one of [`ASKED`] to somebody who stops at its NUL, skips what he does not know, or
/// takes a wildcard anywhere.
const NOT_NAMES: [&[u8]; 14] = [
    b"good.test\0.evil.test",
    b"good.test\0",
    b"\0good.test",
    b"good\0.test",
    b"*.test\0.evil.test",
    b"*.good.test\0.evil.test",
    b"",
    b".",
    b".good.test",
    b"a.*.test",
    b"a.g*.test",
    b"**.good.test",
    b"good.test ",
    b"go\xc3\xb6d.test",
];
const ASKED: [&str; 4] = ["good.test", "a.good.test", "evil.test", "a.evil.test"];

/// A leaf with these alternative names, whatever bytes they are.
fn leaf_of(names: &[&[u8]]) -> CertificateParams {
    let short = |tag: u8, value: &[u8]| [&[tag, u8::try_from(value.len()).unwrap()], value].concat();
    let list: Vec<u8> = names.iter().flat_map(|name| short(0x82, name)).collect();
    assert!(list.len() < 128, "longer lengths are written otherwise");
    let mut params = leaf_for(&[]);
    let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], short(0x30, &list));
    params.custom_extensions.push(names);
    params
}

/// All that a leaf names: its alternative names, and its subject.
fn said(certificate: &CertificateDer<'_>) -> Vec<String> {
    let (_, leaf) = X509Certificate::from_der(certificate).unwrap();
    let alternative = leaf.subject_alternative_name().unwrap().unwrap().value;
    let names = alternative.general_names.iter().map(|name| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        other => panic!("{other:?}"),
    });
    let subject = leaf
        .subject()
        .iter_common_name()
        .map(|name| name.as_str().unwrap().to_owned());
    names.chain(subject).collect()
}

#[test]
fn what_is_no_name_matches_nothing_and_is_left_out() {
    let world = World::new();
    let leaves = Tunnel::new().leaves();
    let judge = Judge::new(world.trust(&[]));
    for bad in NOT_NAMES {
        for (names, kept) in [
            (&[bad][..], None),
            (&[bad, b"x.test"], Some("x.test")),
            (&[b"x.test", bad], Some("x.test")),
        ] {
            let shown = issued(leaf_of(names), &world.intermediate, &[&world.intermediate]);
            for host in ASKED {
                let name = ServerName::try_from(host).unwrap();
                let what = format!("{} for {host}", bad.escape_ascii());
                // Not read at all, it is the browser's to judge.
                let Ok(judged) = judge.judge(&shown.chain, &name, host, at(NOW)) else {
                    assert!(!bad.is_ascii(), "{what}");
                    continue;
                };
                assert_eq!(judged.verdict, Verdict::WRONG_NAME, "{what}");
                assert_eq!(judged.names, Vec::from_iter(kept), "{what}");
                let seen = Seen {
                    verdict: judged.verdict,
                    leaf: judged.leaf,
                    names: judged.names,
                    ..Seen::default()
                };
                let leaf = &chain_of(&leaves, host, &seen)[0];
                assert_eq!(said(leaf), [kept.unwrap_or("no-name.invalid"); 2], "{what}");
            }
        }
    }
}

#[test]
fn a_common_name_with_a_nul_is_no_name_either() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    for common in ["good.test\0.evil.test", "good.test\0", "*.good.test\0.evil.test"] {
        for (names, kept) in [(&[][..], None), (&["x.test"][..], Some("x.test"))] {
            let mut params = leaf_for(names);
            named(&mut params, common);
            let shown = issued(params, &world.intermediate, &[&world.intermediate]);
            for host in ASKED {
                let name = ServerName::try_from(host).unwrap();
                let judged = judge.judge(&shown.chain, &name, host, at(NOW)).unwrap();
                assert_eq!(judged.verdict, Verdict::WRONG_NAME, "{common:?} for {host}");
                assert_eq!(judged.names, Vec::from_iter(kept), "{common:?}");
            }
        }
    }
}

#[test]
fn what_is_no_name_is_taken_neither_from_a_browser_nor_from_a_report() {
    let leaves = Tunnel::new().leaves();
    for bad in NOT_NAMES {
        let Ok(bad) = std::str::from_utf8(bad) else { continue };
        assert!(leaves.plain(bad, at(NOW)).is_err(), "{bad:?}");
        let seen = Seen {
            verdict: Verdict::WRONG_NAME,
            names: vec![bad.to_owned()],
            ..Seen::default()
        };
        let told = Seen::from_report(&seen.to_report());
        assert_eq!(told, Err("TLS_REPORT with a name that is none"), "{bad:?}");
    }
}
