//! The cloud's own certificate authority: made at the first start, it signs the certificate of REST.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::secret;

/// A client may trust the file for as long as this.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// A new one is made at each start.
const SERVER_LIFE: Duration = Duration::from_secs(2 * 365 * 86_400);
/// Clocks of clients differ.
const CLOCK_SKEW: Duration = Duration::from_secs(86_400);

/// The authority's key with what its certificate says.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// True if this start made it.
    pub fresh: bool,
}

impl Authority {
    /// Reads `ca.pem` and `ca.key` in the state folder, or makes both.
    ///
    /// # Errors
    /// The files cannot be read, made or understood.
    pub fn open(state: &Path) -> io::Result<Self> {
        let (certificate_path, key_path) = (state.join("ca.pem"), state.join("ca.key"));
        let fresh = !certificate_path.exists();
        if fresh {
            make(&certificate_path, &key_path)?;
        }
        let pem = fs::read(&certificate_path)?;
        let certificate = CertificateDer::from_pem_slice(&pem).map_err(|e| invalid(&certificate_path, e))?;
        let text = secret::Secret::new(fs::read_to_string(&key_path)?);
        let key = KeyPair::from_pem(text.expose()).map_err(|e| invalid(&key_path, e))?;
        Ok(Self {
            issuer: Issuer::new(params(), key),
            certificate,
            fresh,
        })
    }

    /// SHA-256 of the certificate, 64 lower-case hex digits.
    pub fn fingerprint(&self) -> String {
        secret::hex(&secret::sha256(&self.certificate))
    }

    /// TLS of REST: a fresh certificate for `names` (host names and addresses), ALPN `http/1.1`.
    ///
    /// # Errors
    /// A name that no certificate can carry.
    pub fn server_config(&self, names: &[String]) -> Result<Arc<rustls::ServerConfig>, String> {
        let key = KeyPair::generate().map_err(|e| e.to_string())?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(|e| format!("host name {names:?}: {e}"))?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Culvert REST");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        limit(&mut params, SERVER_LIFE);
        let certificate = params.signed_by(&key, &self.issuer).map_err(|e| e.to_string())?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone(), self.certificate.clone()], key)
            .map_err(|e| e.to_string())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Culvert cloud");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn limit(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now + life;
}

/// The certificate is written last, so that an interrupted first start begins anew.
fn make(certificate_path: &Path, key_path: &Path) -> io::Result<()> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut params = params();
    limit(&mut params, AUTHORITY_LIFE);
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    write(key_path, 0o600, secret::Secret::new(key.serialize_pem()).expose())?;
    write(certificate_path, 0o644, &certificate.pem())
}

fn write(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn invalid(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn made_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open(folder.path()).unwrap();
        let second = Authority::open(folder.path()).unwrap();
        assert!(first.fresh && !second.fresh);
        assert_eq!(first.fingerprint(), second.fingerprint());
        let mode = fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(second.server_config(&["localhost".into(), "127.0.0.1".into()]).is_ok());
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), "nothing").unwrap();
        let error = Authority::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("ca.pem"), "{error}");
    }
}
