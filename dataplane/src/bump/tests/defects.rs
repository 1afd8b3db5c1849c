//! Faults that are not mirrored: the handshake fails, and says why.

use std::sync::Arc;

use rcgen::{
    CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    NameConstraints, PKCS_ED25519,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{Error, ServerConfig};
use rustls_pki_types::CertificateDer;

use super::pki::*;
use super::shake::*;
use crate::bump::{Judge, Verdict, failed};

/// Chains with one defect each, and a word of the text that names it.
fn defective(world: &World) -> Vec<(&'static str, Shown)> {
    let mut all = Vec::new();
    let good = |params: CertificateParams| issued(params, &world.intermediate, &[&world.intermediate]);

    let mut params = leaf_params();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    all.push(("not for servers", good(params)));

    let mut params = leaf_params();
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
    unknown.set_criticality(true);
    params.custom_extensions = vec![unknown];
    all.push(("CriticalExtension", good(params)));

    let mut params = leaf_params();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    all.push(("CaUsedAsEndEntity", good(params)));

    let mut params = leaf_params();
    valid(&mut params, DAY, -DAY);
    all.push(("ends before it begins", good(params)));

    let mut params = ca_params("old");
    valid(&mut params, -YEAR, -DAY);
    let old = world.root.below(params);
    all.push(("above the site's has expired", issued(leaf_params(), &old, &[&old])));

    let mut params = ca_params("young");
    valid(&mut params, DAY, YEAR);
    let young = world.root.below(params);
    all.push((
        "above the site's is not valid yet",
        issued(leaf_params(), &young, &[&young]),
    ));

    let mut params = ca_params("narrow");
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("other.test".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let narrow = world.root.below(params);
    all.push(("NameConstraintViolation", issued(leaf_params(), &narrow, &[&narrow])));

    // Another key than the certificate of that name has.
    let forged = world.root.below(ca_params("intermediate"));
    all.push(("signature", issued(leaf_params(), &forged, &[&world.intermediate])));

    let other = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let other = Ca {
        issuer: Issuer::new(ca_params("intermediate"), other),
        certificate: world.intermediate.certificate.clone(),
    };
    all.push(("key is of another kind", issued(leaf_params(), &other, &[&other])));

    let mut params = ca_params("no CA");
    params.is_ca = IsCa::NoCa;
    let no_ca = world.root.below(params);
    all.push(("EndEntityUsedAsCa", issued(leaf_params(), &no_ca, &[&no_ca])));

    let mut long = world.site(0);
    long.chain.extend(vec![world.strange.certificate.clone(); 100]);
    all.push(("bytes", long));

    let mut garbage = world.site(0);
    garbage.chain[0] = CertificateDer::from(vec![0x30, 3, 2, 1, 0]);
    all.push(("cannot be read", garbage));
    all
}

#[test]
fn a_defect_ends_the_handshake_of_either_version_and_is_named() {
    let world = World::new();
    for version in VERSIONS {
        let judge = world.judge(&Clock::new());
        for (word, shown) in defective(&world) {
            let site = Arc::new(site_config(&shown, version));
            let error = visit(&judge, &site, 443, NOW).unwrap_err();
            let text = failed(&error);
            assert!(text.contains(word), "{text:?} is to name {word:?}");
        }
    }
}

#[test]
fn a_defect_stays_one_beside_faults_that_are_mirrored() {
    let world = World::new();
    let judge = Judge::new(world.trust(&[]));
    let mut params = leaf_for(&["other.test"]);
    valid(&mut params, -90 * DAY, -DAY);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for issuer in [&world.intermediate, &world.strange] {
        let shown = issued(params.clone(), issuer, &[issuer]);
        assert!(judge.judge(&shown.chain, &name(), HOST, at(NOW)).is_err());
    }
}

#[test]
fn no_certificate_is_a_defect_and_an_insecure_one_must_be_readable() {
    let world = World::new();
    let judge = Judge::new(world.trust(&["all"]));
    assert!(judge.judge(&[], &name(), HOST, at(NOW)).is_err());
    for (word, shown) in defective(&world) {
        let judged = judge.judge(&shown.chain, &name(), HOST, at(NOW));
        match word {
            "cannot be read" | "bytes" | "ends before it begins" | "CriticalExtension" => {
                assert!(judged.is_err(), "{word}")
            }
            _ => assert_eq!(judged.map(|judged| judged.verdict), Ok(Verdict::GOOD), "{word}"),
        }
    }
}

#[test]
fn a_site_must_prove_its_key_even_if_it_is_insecure() {
    let world = World::new();
    let judge = Arc::new(Judge::with_clock(world.trust(&["all"]), Clock::new()));
    for version in VERSIONS {
        let mut shown = world.site(0);
        shown.key = key();
        let error = visit(&judge, &Arc::new(site_config(&shown, version)), 443, NOW).unwrap_err();
        assert!(failed(&error).contains("signature"), "{error}");
    }
}

#[test]
fn a_site_that_asks_for_a_client_certificate_is_told_apart_whether_it_insists_or_not() {
    let world = World::new();
    for version in VERSIONS {
        for insists in [false, true] {
            let provider = Arc::new(default_provider());
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&world.root.certificate)), provider.clone());
            let verifier = if insists {
                verifier
            } else {
                verifier.allow_unauthenticated()
            };
            let site = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .unwrap()
                .with_client_cert_verifier(verifier.build().unwrap())
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified(&world.site(0)))));
            let error = visit(&world.judge(&Clock::new()), &Arc::new(site), 443, NOW).unwrap_err();
            assert_eq!(failed(&error), "the site asks for a client certificate");
        }
    }
}

#[test]
fn without_a_protocol_in_common_the_handshake_fails_and_without_alpn_it_does_not() {
    let world = World::new();
    let judge = world.judge(&Clock::new());
    let mut site = site_config(&world.site(0), &rustls::version::TLS13);
    site.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = rustls::ClientConnection::new(crate::bump::client_config(&judge, HOST, 443), name()).unwrap();
    let mut server = rustls::ServerConnection::new(Arc::new(site.clone())).unwrap();
    assert_eq!(shake(&mut client, &mut server), Err(Error::NoApplicationProtocol));
    let alert = Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
    assert!(failed(&alert).contains("HTTP/1.1"));

    assert!(
        failed(&Error::PeerMisbehaved(
            rustls::PeerMisbehaved::SelectedUnofferedApplicationProtocol
        ))
        .contains("HTTP/1.1")
    );

    site.alpn_protocols.clear();
    let (seen, _) = visit(&judge, &Arc::new(site), 443, NOW).unwrap();
    assert_eq!((seen.verdict, seen.http11), (Verdict::GOOD, false));
}

#[test]
fn a_site_that_speaks_no_tls_or_an_old_one_is_named() {
    let judge = World::new().judge(&Clock::new());
    for (bytes, word) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "no TLS"),
        (&[21, 3, 1, 0, 2, 2, 70], "neither TLS 1.2 nor TLS 1.3"),
        (&[21, 3, 3, 0, 2, 2, 40], "no cipher suite"),
    ] {
        let mut client = rustls::ClientConnection::new(crate::bump::client_config(&judge, HOST, 443), name()).unwrap();
        client.read_tls(&mut &*bytes).unwrap();
        let text = failed(&client.process_new_packets().unwrap_err());
        assert!(text.contains(word), "{text:?} is to name {word:?}");
    }
}
