//! The cloud's own certificate authority: made at the first start, it signs the certificate of REST and the CA of each
//! endpoint.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::tunnel_ca::{Certificate, TunnelCa};
use crate::secret;

const NAME: &str = "Culvert cloud";
/// A client may trust the file for as long as this.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Nobody can take one back, so it ends, but later than its tunnel: browsers trust it once and endpoints keep it, and a
/// tunnel host that is patched starts `sc` anew several times a year.
const TUNNEL_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// A new one is made at each start.
const SERVER_LIFE: Duration = Duration::from_secs(2 * 365 * 86_400);
/// Clocks of clients differ.
const CLOCK_SKEW: Duration = Duration::from_secs(86_400);

/// Basic constraints (RFC 5280 section 4.2.1.9) of a CA with nothing but servers below it, as earlier versions wrote them
/// into `ca.pem`: critical, CA, path length 0.
const NO_CA_BELOW: [u8; 18] = [
    0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x08, 0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, 0x00,
];

/// The authority's key with what its certificate says.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    pub origin: Origin,
}

/// What this start has done with the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Found,
    Made,
    /// The CA of a tunnel could not stand under the one that was there. The key and the name are the same: what trusts
    /// the old file still trusts REST.
    Renewed,
}

impl Authority {
    /// Reads `ca.pem` and `ca.key` in the state folder, or makes both.
    ///
    /// # Errors
    /// The files cannot be read, made or understood, or are not of one making.
    pub fn open(state: &Path) -> io::Result<Self> {
        let (certificate_path, key_path) = (state.join("ca.pem"), state.join("ca.key"));
        let mut origin = Origin::Found;
        if !certificate_path.exists() {
            make(&certificate_path, &key_path)?;
            origin = Origin::Made;
        }
        let mut pem = read(&certificate_path)?;
        let mut certificate = parse(&certificate_path, &pem)?;
        let text = secret::Secret::new(read(&key_path)?);
        let key = KeyPair::from_pem(text.expose()).map_err(|e| invalid(&key_path, e))?;
        if !holds(&certificate, key.public_key_raw()) || !holds(&certificate, NAME.as_bytes()) {
            let why =
                "sc-cloud has not made it with the ca.key beside it; move both away, and the next start makes new ones";
            return Err(invalid(&certificate_path, why));
        }
        if holds(&certificate, &NO_CA_BELOW) {
            pem = self_sign(&key)?;
            certificate = parse(&certificate_path, &pem)?;
            let next = state.join("ca.pem.new");
            write(&next, 0o644, &pem)?;
            fs::rename(&next, &certificate_path)?;
            origin = Origin::Renewed;
        }
        Ok(Self {
            issuer: Issuer::new(params(NAME, 1), key),
            certificate,
            pem,
            origin,
        })
    }

    /// The certificate as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A CA for the endpoint `id`, with nothing but servers below it.
    ///
    /// # Errors
    /// No key can be made.
    pub fn tunnel_ca(&self, id: &str) -> Result<TunnelCa, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(&format!("Culvert tunnel {id}"), 0);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        limit(&mut params, TUNNEL_LIFE);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(TunnelCa {
            certificate: Certificate(certificate.pem()),
            key: secret::Secret::new(key.serialize_pem()),
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

/// A CA with up to `below` CAs between it and a server.
fn params(name: &str, below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
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
    let certificate = self_sign(&key)?;
    write(key_path, 0o600, secret::Secret::new(key.serialize_pem()).expose())?;
    write(certificate_path, 0o644, &certificate)
}

/// The authority's certificate, as PEM.
fn self_sign(key: &KeyPair) -> io::Result<String> {
    let mut params = params(NAME, 1);
    limit(&mut params, AUTHORITY_LIFE);
    // Without one it is made of the key, and browsers refuse two certificates of one issuer and number.
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| io::Error::other(secret::NoRandomness))?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let certificate = params.self_signed(key).map_err(io::Error::other)?;
    Ok(certificate.pem())
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn parse(path: &Path, pem: &str) -> io::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| invalid(path, e))
}

fn holds(certificate: &[u8], part: &[u8]) -> bool {
    certificate.windows(part.len()).any(|window| window == part)
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
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::UnixTime;
    use std::os::unix::fs::PermissionsExt;

    /// Whether who trusts `root` takes a server of `issuer`, whose chain is `chain`.
    fn verify(
        root: &CertificateDer<'static>,
        chain: &[CertificateDer<'static>],
        issuer: &Issuer<'static, KeyPair>,
        now: SystemTime,
    ) -> Result<(), rustls::Error> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["site.test".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1);
        params.not_after = rcgen::date_time_ymd(2999, 1, 1);
        let server = params.signed_by(&key, issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap());
        let name = "site.test".try_into().unwrap();
        let verified = verifier.build().unwrap();
        verified
            .verify_server_cert(server.der(), chain, &name, &[], now)
            .map(drop)
    }

    fn issuer_of(ca: &TunnelCa, id: &str) -> Issuer<'static, KeyPair> {
        let key = KeyPair::from_pem(ca.key.expose()).unwrap();
        Issuer::new(params(&format!("Culvert tunnel {id}"), 0), key)
    }

    /// `ca.pem` as it was before tunnels had CAs: the number is that of the key.
    fn make_old(folder: &Path) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let mut params = params(NAME, 0);
        limit(&mut params, AUTHORITY_LIFE);
        let certificate = params.self_signed(&key).unwrap();
        write(&folder.join("ca.key"), 0o600, &key.serialize_pem()).unwrap();
        write(&folder.join("ca.pem"), 0o644, &certificate.pem()).unwrap();
        certificate.der().clone()
    }

    #[test]
    fn made_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open(folder.path()).unwrap();
        let second = Authority::open(folder.path()).unwrap();
        assert_eq!((first.origin, second.origin), (Origin::Made, Origin::Found));
        assert_eq!(first.fingerprint(), second.fingerprint());
        let mode = fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(second.server_config(&["localhost".into(), "127.0.0.1".into()]).is_ok());
    }

    #[test]
    fn a_tunnels_ca_stands_under_the_clouds_and_has_no_ca_below() {
        let folder = tempfile::tempdir().unwrap();
        let cloud = Authority::open(folder.path()).unwrap();
        let ca = cloud.tunnel_ca("0123").unwrap();
        let chain = ca.parsed().unwrap().chain;
        let issuer = issuer_of(&ca, "0123");
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        verify(&cloud.certificate, &chain, &issuer, now).unwrap();
        verify(&cloud.certificate, &chain, &issuer, now + 364 * day).unwrap();
        assert!(verify(&cloud.certificate, &chain, &issuer, now + 366 * day).is_err());
        assert!(verify(&cloud.certificate, &[], &issuer, now).is_err());
        let other = tempfile::tempdir().unwrap();
        let other = Authority::open(other.path()).unwrap();
        assert!(verify(&other.certificate, &chain, &issuer, now).is_err());

        let key = KeyPair::generate().unwrap();
        let mut below = params("below", 0);
        limit(&mut below, TUNNEL_LIFE);
        let certificate = below.signed_by(&key, &issuer).unwrap();
        let chain = [certificate.der().clone(), chain[0].clone()];
        let refused = verify(&cloud.certificate, &chain, &Issuer::new(below, key), now);
        assert!(refused.is_err());
        let again = cloud.tunnel_ca("0123").unwrap();
        assert!(again.key != ca.key && again.certificate != ca.certificate);
        assert!(!format!("{ca:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_root_without_room_for_cas_is_renewed_under_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let old = make_old(folder.path());
        let renewed = Authority::open(folder.path()).unwrap();
        assert_eq!(renewed.origin, Origin::Renewed);
        assert_ne!(renewed.certificate, old);
        let now = SystemTime::now();
        // REST, for those who have the old file.
        let sent = std::slice::from_ref(&renewed.certificate);
        verify(&old, sent, &renewed.issuer, now).unwrap();
        let ca = renewed.tunnel_ca("a").unwrap();
        verify(
            &renewed.certificate,
            &ca.parsed().unwrap().chain,
            &issuer_of(&ca, "a"),
            now,
        )
        .unwrap();
        let again = Authority::open(folder.path()).unwrap();
        assert_eq!(
            (again.origin, &again.certificate),
            (Origin::Found, &renewed.certificate)
        );
        assert_eq!(fs::read_to_string(folder.path().join("ca.pem")).unwrap(), again.pem());
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = || Authority::open(folder.path()).err().unwrap().to_string();
        fs::write(folder.path().join("ca.pem"), "nothing").unwrap();
        assert!(error().contains("ca.pem"), "{}", error());
        let other = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        fs::write(folder.path().join("ca.pem"), other.cert.pem()).unwrap();
        assert!(error().contains("ca.key"), "{}", error());
        fs::write(
            folder.path().join("ca.key"),
            KeyPair::generate().unwrap().serialize_pem(),
        )
        .unwrap();
        assert!(
            error().contains("ca.pem") && error().contains("move both away"),
            "{}",
            error()
        );
    }
}
