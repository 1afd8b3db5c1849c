//! Whom `sc` believes: the system's roots, and those that options name beside them for REST and for sites.

use std::path::Path;
use std::sync::Arc;

use dataplane::bump::Trust;
use dataplane::rules::Domains;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{Error, PemObject};

use super::Failure;
use crate::config::Config;

/// The system's roots as `rustls-native-certs` finds them: the bundle file of the distribution, or what `SSL_CERT_FILE`
/// and `SSL_CERT_DIR` name, so that a company's own roots count. A bundle compiled in would miss those and grow old; the
/// platform verifier does the same on Linux, but cannot say which file was bad.
pub fn system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!("system roots: {error}");
    }
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!("system roots: {added} trusted, {ignored} not understood");
    if added == 0 {
        tracing::warn!(
            "this system has no root certificates: only what --cainfo (REST) and --cacert-file (sites) name is trusted; \
             install the package ca-certificates, or set SSL_CERT_FILE"
        );
    }
    roots
}

/// Adds the certificates of a PEM file that `option` names.
///
/// # Errors
/// [`Failure::Usage`] if it cannot be read, holds no certificate, or one that is none.
pub fn add_file(roots: &mut RootCertStore, option: &str, path: &Path) -> Result<(), Failure> {
    add(roots, path).map_err(|why| Failure::Usage(format!("--{option}: {}: {why}", path.display())))
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let unfit = |why: &dyn std::fmt::Display| {
        format!("{why}; a file of certificates in PEM is needed (from DER: openssl x509 -inform der -in FILE)")
    };
    let unread = |e: Error| match e {
        Error::Io(e) => format!("{e}; name a file of certificates in PEM that can be read"),
        e => unfit(&e),
    };
    let mut count = 0;
    for certificate in CertificateDer::pem_file_iter(path).map_err(unread)? {
        let certificate = certificate.map_err(unread)?;
        roots.add(certificate).map_err(|e| unfit(&e))?;
        count += 1;
    }
    if count == 0 {
        return Err(unfit(&"no certificate in it"));
    }
    Ok(())
}

/// What sites are judged by: the system's roots, and the options.
///
/// # Errors
/// [`Failure::Usage`] that names the option and what is wrong with it.
pub fn of_sites(config: &Config, system: RootCertStore) -> Result<Trust, Failure> {
    let mut roots = system;
    for path in &config.cacert_files {
        add_file(&mut roots, "cacert-file", path)?;
    }
    let insecure = Domains::parse(&config.insecure_domains, true)
        .map_err(|why| Failure::Usage(format!("--insecure-domains: {why}")))?;
    if !insecure.is_empty() {
        let named = config.insecure_domains.join(", ");
        tracing::warn!("the certificates of these sites are not checked (--insecure-domains): {named}");
    }
    let roots = Arc::new(roots);
    Ok(Trust { roots, insecure })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_must_hold_certificates() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let text = |path: &Path| {
            let text = add_file(&mut RootCertStore::empty(), "cacert-file", path);
            text.unwrap_err().to_string()
        };
        let start = format!("Error: --cacert-file: {}: ", path.display());
        let missing = text(&path);
        assert!(
            missing.starts_with(&start) && missing.contains("No such file"),
            "{missing}"
        );
        let folder = text(folder.path());
        assert!(folder.contains("Is a directory"), "{folder}");
        let key = rcgen::generate_simple_self_signed(["h".to_string()]).unwrap();
        let (pem, der) = (key.cert.pem(), key.cert.der());
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for bad in [
            b"nothing".as_slice(),
            b"",
            der,
            &pem.as_bytes()[..100],
            junk.as_bytes(),
            key.signing_key.serialize_pem().as_bytes(),
            &[pem.as_bytes(), junk.as_bytes()].concat(),
        ] {
            std::fs::write(&path, bad).unwrap();
            let text = text(&path);
            assert!(text.starts_with(&start) && text.contains("in PEM is needed"), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
        std::fs::write(&path, [&pem, "and a second one:\n", &pem].concat()).unwrap();
        let mut roots = RootCertStore::empty();
        add_file(&mut roots, "cacert-file", &path).unwrap();
        assert_eq!(roots.len(), 2);
    }
}
