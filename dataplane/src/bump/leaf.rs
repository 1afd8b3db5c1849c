//! One certificate for a browser: what it says, and its signature.

use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::rand;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateDer;

use crate::error::Error;

/// Who signs.
pub(super) type Signer = Issuer<'static, KeyPair>;

/// What a leaf says.
pub(super) struct Leaf<'a> {
    /// Names and addresses, at least one.
    pub names: &'a [&'a str],
    /// Its validity, in seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

/// A name that no site has (RFC 6761 section 6.4), for a certificate that has none.
pub(super) const NO_NAME: &str = "no-name.invalid";

/// Longest common name (RFC 5280 appendix A.1).
const COMMON_NAME_CHARS_MAX: usize = 64;

/// What a certificate can say: years 1 to 9999.
const FIRST_SECOND: i64 = -62_135_596_800;
const LAST_SECOND: i64 = 253_402_300_799;

impl Leaf<'_> {
    /// Signs it, for the key `key`.
    pub fn sign(&self, key: &KeyPair, signer: &Signer) -> Result<CertificateDer<'static>, Error> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = self
            .names
            .iter()
            .map(|name| alternative(name))
            .collect::<Result<_, _>>()?;
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = self.names.iter().find(|name| name.len() <= COMMON_NAME_CHARS_MAX) {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let moment = |seconds: i64| {
            let seconds = seconds.clamp(FIRST_SECOND, LAST_SECOND);
            let distance = Duration::from_secs(seconds.unsigned_abs());
            match seconds < 0 {
                true => date_time_ymd(1970, 1, 1) - distance,
                false => date_time_ymd(1970, 1, 1) + distance,
            }
        };
        params.not_before = moment(self.not_before);
        params.not_after = moment(self.not_after);
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        let certificate = params.signed_by(key, signer).map_err(failed)?;
        Ok(certificate.der().clone())
    }
}

/// Without it the number would be made of the key, and browsers refuse an issuer that uses a number twice.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| Error::Tls("no random numbers".to_owned()))?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn alternative(name: &str) -> Result<SanType, Error> {
    match name.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(Ia5String::try_from(name).map_err(failed)?)),
    }
}

/// An issuer that no browser trusts, made anew in each process.
pub(super) fn untrusted() -> Result<Signer, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "Culvert: the site's issuer is not trusted");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    Ok(Issuer::new(params, key))
}

pub(super) fn failed(error: rcgen::Error) -> Error {
    Error::Tls(format!("cannot make a certificate: {error}"))
}
