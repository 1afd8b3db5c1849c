//! Judges sites' certificates. Time, name and trust are looked at each on its own, because each is mirrored on its own;
//! every other fault is for the browser to see, on the site's own certificate.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::failure::{Defect, failed};
use super::table::{Key, KeyOf, Table};
use super::verdict::Verdict;
use super::{Trust, names};
use crate::limits::{JUDGED_AGE_MAX, JUDGED_MAX, SITE_CHAIN_BYTES_MAX};

/// What was found about a certificate that can be mirrored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    pub verdict: Verdict,
    /// SHA-256 of the certificate (DER).
    pub leaf: [u8; 32],
    /// DNS names and addresses that it is for, the first ones of many.
    pub names: Vec<String>,
    /// Its validity, in seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

/// Judges certificates by one trust, for all shards; what it found it remembers for [`JUDGED_AGE_MAX`].
pub(super) struct Checks {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
    known: Table<Known>,
}

struct Known {
    /// When it was found, in seconds since 1970.
    at: u64,
    /// Without what depends on the time.
    found: Result<Judged, Defect>,
}

impl Checks {
    pub fn new(trust: Trust, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self {
            trust,
            algorithms,
            known: Table::new(JUDGED_MAX),
        }
    }

    /// As [`super::Judge::judge`].
    pub fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        host: &str,
        now: UnixTime,
    ) -> Result<Judged, Defect> {
        let bytes = leaf.len() + above.iter().map(|certificate| certificate.len()).sum::<usize>();
        if bytes > SITE_CHAIN_BYTES_MAX {
            let text = format!("the site's certificates have {bytes} bytes, at most {SITE_CHAIN_BYTES_MAX} are read");
            return Err(Defect(text));
        }
        let insecure = self.trust.insecure.contains(host);
        let key = key(leaf, above, name, insecure);
        let seconds = now.as_secs();
        let known = self.known.part(&key).get(&key).and_then(|known| {
            let age = seconds.checked_sub(known.at)?;
            (age <= JUDGED_AGE_MAX.as_secs()).then(|| known.found.clone())
        });
        let found = known.unwrap_or_else(|| {
            let found = self.look(leaf, above, name, insecure, now);
            let known = Known {
                at: seconds,
                found: found.clone(),
            };
            self.known.part(&key).insert(key, known);
            found
        });
        let mut judged = found?;
        if !insecure {
            judged.verdict = judged.verdict.and(timely(&judged, now));
        }
        Ok(judged)
    }

    fn look(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        insecure: bool,
        now: UnixTime,
    ) -> Result<Judged, Defect> {
        let parsed = ParsedCertificate::try_from(leaf).map_err(defect)?;
        let mut judged = read(leaf)?;
        if insecure {
            return Ok(judged);
        }
        // The path is looked at while the leaf is valid: its time is no part of this question.
        let moment = (now.as_secs() as i64).clamp(judged.not_before, judged.not_after);
        let moment = UnixTime::since_unix_epoch(Duration::from_secs(moment.max(0) as u64));
        let roots = &self.trust.roots;
        match verify_server_cert_signed_by_trust_anchor(&parsed, roots, above, moment, self.algorithms.all) {
            Ok(()) => {}
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                judged.verdict = judged.verdict.and(Verdict::UNTRUSTED);
            }
            Err(other) => return Err(defect(other)),
        }
        match verify_server_name(&parsed, name) {
            Ok(()) => {}
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => judged.verdict = judged.verdict.and(Verdict::WRONG_NAME),
            Err(other) => return Err(defect(other)),
        }
        Ok(judged)
    }
}

/// What the certificate says of itself, as a good one.
fn read(leaf: &CertificateDer<'_>) -> Result<Judged, Defect> {
    let unreadable = || Defect("the site's certificate cannot be read".to_owned());
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| unreadable())?;
    let validity = certificate.validity();
    let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    if not_before > not_after {
        let text = "the site's certificate ends before it begins".to_owned();
        return Err(Defect(text));
    }
    Ok(Judged {
        verdict: Verdict::GOOD,
        leaf: Sha256::digest(leaf).into(),
        names: names::of_certificate(&certificate).ok_or_else(unreadable)?,
        not_before,
        not_after,
    })
}

fn timely(judged: &Judged, now: UnixTime) -> Verdict {
    let now = now.as_secs() as i64;
    if now < judged.not_before {
        Verdict::NOT_YET_VALID
    } else if now > judged.not_after {
        Verdict::EXPIRED
    } else {
        Verdict::GOOD
    }
}

fn key(leaf: &CertificateDer<'_>, above: &[CertificateDer<'_>], name: &ServerName<'_>, insecure: bool) -> Key {
    let key = KeyOf::default()
        .bytes(&[u8::from(insecure)])
        .host(&name.to_str())
        .bytes(leaf);
    above.iter().fold(key, |key, certificate| key.bytes(certificate)).key()
}

fn defect(error: rustls::Error) -> Defect {
    Defect(failed(&error))
}

/// In a handshake: it fails only for a defect. Of the host only the name that was sent is known here.
impl ServerCertVerifier for Checks {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.judge(end_entity, intermediates, server_name, &server_name.to_str(), now) {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(defect) => Err(CertificateError::Other(OtherError(Arc::new(defect))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Checks")
    }
}
