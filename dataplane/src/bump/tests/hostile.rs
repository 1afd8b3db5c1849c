//! Bytes of a site or a peer that are wrong.

use bytes::Bytes;
use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

use super::pki::*;
use super::shake::name;
use crate::bump::{Judge, Seen, Verdict};
use crate::limits::{FRAME_PAYLOAD_BYTES_MAX, SITE_NAMES_BYTES_MAX, SITE_NAMES_MAX};
use crate::mux::TlsReport;

fn names() -> impl Strategy<Value = Vec<String>> {
    let name = prop_oneof![
        "[a-z]{1,10}(\\.[a-z]{1,10}){0,3}",
        "\\*\\.[a-z]{1,10}\\.test",
        any::<std::net::IpAddr>().prop_map(|address| address.to_string()),
    ];
    prop::collection::vec(name, 0..SITE_NAMES_MAX).prop_filter("too long", |names| {
        names.iter().map(String::len).sum::<usize>() <= SITE_NAMES_BYTES_MAX
    })
}

fn seen() -> impl Strategy<Value = Seen> {
    let verdict = prop::sample::select((0..=255u8).map(Verdict).filter(|v| v.is_possible()).collect::<Vec<_>>());
    let rest = (any::<i64>(), any::<i64>(), any::<u16>(), any::<bool>(), any::<u32>());
    (verdict, any::<[u8; 32]>(), names(), rest).prop_map(|(verdict, leaf, names, rest)| Seen {
        verdict,
        leaf,
        names,
        not_before: rest.0.min(rest.1),
        not_after: rest.0.max(rest.1),
        version: rest.2,
        http11: rest.3,
        tls_us: rest.4,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_report_says_what_was_seen(seen in seen()) {
        let report = seen.to_report();
        prop_assert!(33 + report.tlvs.len() <= FRAME_PAYLOAD_BYTES_MAX);
        prop_assert_eq!(Seen::from_report(&report), Ok(seen));
    }

    #[test]
    fn bytes_that_are_no_report_do_no_harm(verdict: u8, tlvs: Vec<u8>) {
        let report = TlsReport { verdict, leaf: [0; 32], tlvs: Bytes::from(tlvs) };
        let _ = Seen::from_report(&report);
    }

    #[test]
    fn a_report_with_wrong_bytes_says_nothing_that_cannot_be_said_again(
        seen in seen(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut report = seen.to_report();
        let mut tlvs = report.tlvs.to_vec();
        for (place, byte) in changes {
            let place = place.index(tlvs.len());
            tlvs[place] = byte;
        }
        report.tlvs = Bytes::from(tlvs);
        if let Ok(read) = Seen::from_report(&report) {
            prop_assert_eq!(Seen::from_report(&read.to_report()), Ok(read));
        }
    }
}

fn refused(change: impl FnOnce(&mut Vec<u8>)) -> &'static str {
    let mut tlvs = Vec::new();
    change(&mut tlvs);
    let report = TlsReport {
        verdict: 0,
        leaf: [0; 32],
        tlvs: Bytes::from(tlvs),
    };
    Seen::from_report(&report).unwrap_err()
}

#[test]
fn what_breaks_a_report_is_named() {
    let validity = [&[3, 0, 16][..], &[0; 16]].concat();
    let cases: [(&[&[u8]], &str); 8] = [
        (&[], "without the certificate's validity"),
        (&[&validity, &validity], "twice"),
        (&[&validity, &[5, 0, 1, 3]], "wrong length"),
        (&[&validity, &[5, 0, 2, 3]], "cut short"),
        (&[&validity, &[2, 0, 0]], "must not be ignored"),
        (&[&validity, &[1, 0, 3, 2, b'a', b' ']], "a name that is none"),
        (&[&validity, &[1, 0, 2, 2, b'a']], "cut short"),
        (&[&[3, 0, 16], &[1; 8], &[0; 8]], "ends before it begins"),
    ];
    for (pieces, word) in cases {
        let text = refused(|tlvs| *tlvs = pieces.concat());
        assert!(text.contains(word), "{text:?} is to name {word:?}");
    }
    let many: Vec<u8> = std::iter::repeat_n([1, b'a'], SITE_NAMES_MAX + 1).flatten().collect();
    let text = refused(|tlvs| *tlvs = [&[1, 0, many.len() as u8][..], &many, &validity].concat());
    assert!(text.contains("too many names"), "{text}");
    for verdict in [0x03, 0x10, 0x20, 0x43] {
        let report = TlsReport {
            verdict,
            ..Seen::default().to_report()
        };
        assert!(Seen::from_report(&report).is_err(), "{verdict:x}");
    }
}

#[test]
fn unknown_odd_tlvs_are_ignored() {
    let mut report = Seen::default().to_report();
    report.tlvs = [&report.tlvs[..], &[11, 0, 1, 7, 255, 0, 0, 255, 0, 0]].concat().into();
    assert_eq!(Seen::from_report(&report), Ok(Seen::default()));
}

#[test]
fn an_opaque_site_has_nothing_else_to_tell() {
    let seen = Seen::opaque(Verdict::SPOKE_FIRST);
    assert_eq!(seen.leaf, [0; 32]);
    let report = TlsReport {
        verdict: 0x80,
        leaf: [0; 32],
        tlvs: Bytes::new(),
    };
    assert_eq!(Seen::from_report(&report), Ok(seen.clone()));
    assert_eq!(Seen::from_report(&seen.to_report()), Ok(seen));
}

#[test]
fn certificates_with_wrong_bytes_never_stop_the_process() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    let shown = world.site(0);
    for (i, certificate) in shown.chain.iter().enumerate() {
        for place in 0..certificate.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut chain = shown.chain.clone();
                let mut bytes = certificate.to_vec();
                bytes[place] ^= change;
                chain[i] = CertificateDer::from(bytes);
                // Whatever is found, a certificate that was changed is not trusted.
                if let Ok(judged) = judge.judge(&chain, &name(), HOST, at(NOW)) {
                    assert!(judged.verdict.has(Verdict::UNTRUSTED), "{place}");
                }
            }
        }
    }
}
