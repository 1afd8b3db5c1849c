//! Keys and their pins: who may be at the other end of a link.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, PeerIncompatible, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::{ALPN, explain};
use crate::error::Error;

/// SHA-256 of a key's DER SubjectPublicKeyInfo (RFC 5280 section 4.1); written as 64 lower-case hex digits.
///
/// Public: a fingerprint lets nobody in, so it may be logged. `==` takes constant time.
#[derive(Clone, Copy)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint whose 32 bytes these are.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Of the key in a DER certificate. Error: [`Error::Tls`], the certificate cannot be read.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        Self::read(certificate).map_err(explain)
    }

    fn read(certificate: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        let hash = digest::digest(&digest::SHA256, &key);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(hash.as_ref());
        Ok(Self(bytes))
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Name of the member that owns the key: the first 16 bytes.
    pub fn member(&self) -> [u8; 16] {
        let mut member = [0; 16];
        member.copy_from_slice(&self.0[..16]);
        member
    }
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Fingerprint {}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return Err(bad_fingerprint());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

fn hex_digit(digit: u8) -> Result<u8, Error> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(bad_fingerprint()),
    }
}

fn bad_fingerprint() -> Error {
    Error::Tls("a fingerprint is 64 lower-case hex digits".to_owned())
}

/// The key of one end: fresh for each process, never written anywhere.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    fingerprint: Fingerprint,
}

impl Identity {
    /// A fresh P-256 key with a self-signed certificate (about 30 µs).
    pub fn generate() -> Result<Self, Error> {
        let made = |e: rcgen::Error| Error::Tls(format!("cannot make a key: {e}"));
        let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        // The certificate only carries the key: nobody reads its name or its dates.
        let certificate = CertificateParams::new(Vec::new())
            .and_then(|params| params.self_signed(&key))
            .map_err(made)?;
        let mut der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = provider::sign::any_ecdsa_type(&der);
        der.zeroize();
        key.zeroize();
        let certificate = certificate.der().clone();
        Ok(Self {
            fingerprint: Fingerprint::of_certificate(&certificate)?,
            certified: Arc::new(CertifiedKey::new(vec![certificate], signer.map_err(explain)?)),
        })
    }

    /// What the REST exchange carries to the other end.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Name of the member that owns this key: first 16 bytes of its fingerprint.
    pub fn member(&self) -> [u8; 16] {
        self.fingerprint.member()
    }

    fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(self.certified.clone()))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(***)")
    }
}

/// Configuration of the dialling end, which accepts the key `pin` alone.
pub fn client_config(id: &Identity, pin: Fingerprint) -> Result<Arc<ClientConfig>, Error> {
    let pins = Pins(Arc::new(move |shown: &Fingerprint| *shown == pin));
    let mut config = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(explain)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pins))
        .with_client_cert_resolver(id.resolver());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// Configuration of the accepting end, which demands a client key that `pins` says yes to.
///
/// `pins` is asked in each handshake, so that members may come and go under one configuration.
pub fn server_config(
    id: &Identity,
    pins: Arc<dyn Fn(&Fingerprint) -> bool + Send + Sync>,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(explain)?
        .with_client_cert_verifier(Arc::new(Pins(pins)))
        .with_cert_resolver(id.resolver());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// aws-lc-rs cut down to the one suite; passed explicitly, so that no process-wide default is needed.
fn crypto() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![provider::cipher_suite::TLS13_AES_256_GCM_SHA384],
        ..provider::default_provider()
    })
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider::default_provider().signature_verification_algorithms
}

/// Verifier of both ends: the key is one of the pinned ones, and the handshake proves that the peer has it.
struct Pins(Arc<dyn Fn(&Fingerprint) -> bool + Send + Sync>);

impl Pins {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if (self.0)(&Fingerprint::read(certificate)?) {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn check_signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms())
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pins")
    }
}

impl ServerCertVerifier for Pins {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for Pins {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
