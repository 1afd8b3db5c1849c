//! OpenSSL finds the same faults in leaves, and none in a good one.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustls_pki_types::CertificateDer;

use super::mirror::chain_of;
use super::pki::*;
use crate::bump::{Seen, Verdict};

fn pem(folder: &Path, name: &str, certificate: &CertificateDer<'_>) -> PathBuf {
    let (der, pem) = (folder.join("der"), folder.join(name));
    std::fs::write(&der, certificate).unwrap();
    let mut openssl = Command::new("openssl");
    openssl
        .args(["x509", "-inform", "der", "-in"])
        .arg(&der)
        .arg("-out")
        .arg(&pem);
    assert!(openssl.status().unwrap().success());
    pem
}

/// What `openssl verify` says of a chain below `root`.
fn verify(root: &CertificateDer<'_>, chain: &[CertificateDer<'_>], host: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let pem = |name, certificate| pem(folder.path(), name, certificate);
    let output = Command::new("openssl")
        .args([
            "verify",
            "-no-CApath",
            "-purpose",
            "sslserver",
            "-attime",
            &NOW.to_string(),
        ])
        .args(["-verify_hostname", host])
        .arg("-CAfile")
        .arg(pem("root", root))
        .arg("-untrusted")
        .arg(pem("above", &chain[1]))
        .arg(pem("leaf", &chain[0]))
        .output()
        .unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn openssl_finds_the_faults_of_a_leaf_and_no_other() {
    let tunnel = Tunnel::new();
    let leaves = tunnel.leaves();
    let seen = |verdict, from, until| Seen {
        verdict,
        leaf: [verdict.0; 32],
        names: vec!["other.test".to_owned()],
        not_before: NOW + from,
        not_after: NOW + until,
        ..Seen::default()
    };
    for (seen, says) in [
        (seen(Verdict::GOOD, -DAY, DAY), "leaf: OK"),
        (seen(Verdict::EXPIRED, -2 * DAY, -DAY), "certificate has expired"),
        (
            seen(Verdict::NOT_YET_VALID, DAY, 2 * DAY),
            "certificate is not yet valid",
        ),
        (seen(Verdict::WRONG_NAME, -DAY, DAY), "hostname mismatch"),
        (
            seen(Verdict::UNTRUSTED, -DAY, DAY),
            "unable to get local issuer certificate",
        ),
    ] {
        let chain = chain_of(&leaves, HOST, &seen);
        let text = verify(&tunnel.root.certificate, &chain, HOST);
        assert!(text.contains(says), "{text}");
    }
}
