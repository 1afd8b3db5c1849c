//! The leaves that an endpoint shows browsers, each with the configuration of the handshake that shows it.
//!
//! | what is wrong with the site's | what is wrong with the leaf |
//! |---|---|
//! | expired, not yet valid | it has the site's validity |
//! | wrong name | it has the site's names |
//! | untrusted | an issuer that nobody trusts signed it |

use std::fmt;
use std::sync::Arc;

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroize;

use super::leaf::{Leaf, NO_NAME, Signer, failed, untrusted};
use super::names;
use super::seen::{HTTP11, Seen};
use super::table::{KeyOf, Table};
use super::{TunnelCa, Verdict};
use crate::error::Error;
use crate::limits::{LEAF_BACKDATE, LEAF_LIFE, LEAF_RENEWED, LEAVES_MAX};

/// Makes leaves and keeps them, for all shards.
///
/// All leaves of a process have one key: whoever reads one key in its memory reads all, and the CA's beside them; the
/// traffic keys come of ephemeral ones, so that it opens nothing that was recorded.
pub struct Leaves {
    trusted: Signer,
    untrusted: Signer,
    chain: Vec<CertificateDer<'static>>,
    /// Common validity of the chain, in seconds since 1970.
    not_before: i64,
    not_after: i64,
    key: KeyPair,
    signing: Arc<dyn SigningKey>,
    provider: Arc<CryptoProvider>,
    made: Table<Made>,
}

struct Made {
    config: Arc<ServerConfig>,
    /// Used from then on and until then, in seconds since 1970.
    from: i64,
    until: i64,
}

impl Leaves {
    /// Of a tunnel's CA.
    ///
    /// # Errors
    /// The CA is none: its certificate cannot be read, is not its key's, or may not sign leaves.
    pub fn new(mut ca: TunnelCa) -> Result<Self, Error> {
        let bad = |what: &str| Error::Tls(format!("the tunnel's CA: {what}"));
        let key = KeyPair::try_from(&ca.key).map_err(|_| bad("its key cannot be read"))?;
        ca.key.zeroize();
        let first = ca.chain.first().ok_or_else(|| bad("it has no certificate"))?;
        let trusted = Issuer::from_ca_cert_der(first, key).map_err(|_| bad("its certificate cannot be read"))?;
        let (mut not_before, mut not_after) = (i64::MIN, i64::MAX);
        for certificate in &ca.chain {
            let (_, certificate) =
                X509Certificate::from_der(certificate).map_err(|_| bad("a certificate cannot be read"))?;
            not_before = not_before.max(certificate.validity().not_before.timestamp());
            not_after = not_after.min(certificate.validity().not_after.timestamp());
        }
        let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = provider::sign::any_ecdsa_type(&der).map_err(|_| bad("no key for leaves"))?;
        der.zeroize();
        key.zeroize();
        let leaves = Self {
            trusted,
            untrusted: untrusted()?,
            chain: ca.chain,
            not_before,
            not_after,
            key,
            signing,
            provider: Arc::new(provider::default_provider()),
            made: Table::new(LEAVES_MAX),
        };
        leaves.proven().map_err(|why| bad(&why))?;
        Ok(leaves)
    }

    /// A leaf leads to the CA: that its key, its name as we write it and its purpose fit.
    fn proven(&self) -> Result<(), String> {
        let leaf = Leaf {
            names: &[NO_NAME],
            not_before: self.not_before,
            not_after: self.not_after,
        };
        let leaf = leaf.sign(&self.key, &self.trusted).map_err(|e| e.to_string())?;
        let parsed = ParsedCertificate::try_from(&leaf).map_err(|e| e.to_string())?;
        let mut roots = RootCertStore::empty();
        roots.add(self.chain[0].clone()).map_err(|e| e.to_string())?;
        let moment = std::time::Duration::from_secs(self.not_after.max(0) as u64);
        let moment = UnixTime::since_unix_epoch(moment);
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], moment, algorithms)
            .map_err(|e| format!("no leaf of it would be accepted ({e})"))
    }

    /// How the endpoint shakes hands with a browser that asked for `name` (SNI, else the host of its CONNECT) while the
    /// site is as it was `seen`. TLS 1.2 and 1.3, HTTP/1.1; a browser's session is resumed only with this very leaf.
    ///
    /// # Errors
    /// The site was seen as opaque, `name` is none that a certificate can hold, or the CA is not valid now.
    pub fn config(&self, name: &str, seen: &Seen, now: UnixTime) -> Result<Arc<ServerConfig>, Error> {
        if seen.verdict.is_opaque() || !seen.verdict.is_possible() {
            return Err(Error::Tls(format!("no leaf mirrors a site that is {}", seen.verdict)));
        }
        let key = KeyOf::default().host(name).bytes(&[seen.verdict.0]);
        let key = if seen.verdict.is_good() {
            key
        } else {
            key.bytes(&seen.leaf)
        }
        .key();
        let seconds = now.as_secs() as i64;
        let mut made = self.made.part(&key);
        if let Some(made) = made.get(&key)
            && (made.from..made.until).contains(&seconds)
        {
            return Ok(made.config.clone());
        }
        // Others that want the same leaf wait for the lock meanwhile, and then find it.
        let leaf = self.mint(name, seen, seconds)?;
        let config = self.shown(leaf)?;
        made.insert(
            key,
            Made {
                config: config.clone(),
                // Not before the leaf is valid, should the clock be set back.
                from: seconds - LEAF_BACKDATE.as_secs() as i64 / 2,
                until: seconds + LEAF_RENEWED.as_secs() as i64,
            },
        );
        Ok(config)
    }

    /// As [`Self::config`], for a page of our own: no site was seen.
    ///
    /// # Errors
    /// As there.
    pub fn plain(&self, name: &str, now: UnixTime) -> Result<Arc<ServerConfig>, Error> {
        self.config(name, &Seen::default(), now)
    }

    fn mint(&self, name: &str, seen: &Seen, now: i64) -> Result<CertificateDer<'static>, Error> {
        let asked = names::of_host(name).ok_or_else(|| Error::Tls(format!("{name:?} is no name for a certificate")))?;
        if !(self.not_before..=self.not_after).contains(&now) {
            return Err(Error::Tls(
                "the tunnel's CA is not valid now: start the tunnel anew".to_owned(),
            ));
        }
        let has = |bit| seen.verdict.has(bit);
        let (not_before, not_after) = match has(Verdict::EXPIRED) || has(Verdict::NOT_YET_VALID) {
            true => (seen.not_before, seen.not_after),
            false => (
                self.not_before.max(now - LEAF_BACKDATE.as_secs() as i64),
                self.not_after.min(now + LEAF_LIFE.as_secs() as i64),
            ),
        };
        let signer = if has(Verdict::UNTRUSTED) {
            &self.untrusted
        } else {
            &self.trusted
        };
        let sign = |names: &[&str]| {
            let leaf = Leaf {
                names,
                not_before,
                not_after,
            };
            leaf.sign(&self.key, signer)
        };
        if !has(Verdict::WRONG_NAME) {
            return sign(&[&asked.to_str()]);
        }
        let theirs: Vec<&str> = seen.names.iter().map(String::as_str).collect();
        if !theirs.is_empty() {
            let leaf = sign(&theirs)?;
            // A report that says otherwise than its names must not become a leaf that is right.
            let parsed = ParsedCertificate::try_from(&leaf).map_err(|e| Error::Tls(e.to_string()))?;
            if verify_server_name(&parsed, &asked).is_err() {
                return Ok(leaf);
            }
        }
        sign(&[NO_NAME])
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.made.len()
    }

    fn shown(&self, leaf: CertificateDer<'static>) -> Result<Arc<ServerConfig>, Error> {
        let explain = |error: rustls::Error| Error::Tls(error.to_string());
        let chain = [leaf].into_iter().chain(self.chain.iter().cloned()).collect();
        let certified = CertifiedKey::new(chain, self.signing.clone());
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(explain)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![HTTP11.to_vec()];
        // Sessions live in tickets, at the browser's; their keys are this leaf's alone.
        config.ticketer = provider::Ticketer::new().map_err(explain)?;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leaves(***)")
    }
}
