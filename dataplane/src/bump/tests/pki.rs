//! Certificate authorities and sites.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::bump::{Judge, Leaves, Trust, TunnelCa};
use crate::rules::Domains;

/// When tests take place: 2027-01-15.
pub const NOW: i64 = 1_800_000_000;
pub const DAY: i64 = 24 * 3_600;
pub const YEAR: i64 = 365 * DAY;
pub const HOST: &str = "app.test";

pub fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds as u64))
}

/// A clock that tests set.
#[derive(Debug)]
pub struct Clock(pub AtomicU64);

impl Clock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(NOW as u64)))
    }

    pub fn set(&self, seconds: i64) {
        self.0.store(seconds as u64, Relaxed);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(at(self.0.load(Relaxed) as i64))
    }
}

pub struct Ca {
    pub issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
}

pub fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

pub fn key_der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// Valid from `from` until `until`, in seconds from [`NOW`].
pub fn valid(params: &mut CertificateParams, from: i64, until: i64) {
    let moment = |seconds: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs((NOW + seconds) as u64);
    params.not_before = moment(from);
    params.not_after = moment(until);
}

pub fn named(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let mut serial = [0; 8];
    aws_lc_rs::rand::fill(&mut serial).unwrap();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

pub fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    named(&mut params, name);
    valid(&mut params, -YEAR, YEAR);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

pub fn root(name: &str) -> Ca {
    let (params, key) = (ca_params(name), key());
    let certificate = params.self_signed(&key).unwrap().der().clone();
    Ca {
        issuer: Issuer::new(params, key),
        certificate,
    }
}

impl Ca {
    pub fn below(&self, params: CertificateParams) -> Ca {
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Ca {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }
}

/// What a site shows, its own first.
pub struct Shown {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: KeyPair,
}

/// A leaf for [`HOST`] without fault.
pub fn leaf_params() -> CertificateParams {
    leaf_for(&[HOST])
}

pub fn leaf_for(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    named(&mut params, "site");
    valid(&mut params, -90 * DAY, 90 * DAY);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

pub fn issued(params: CertificateParams, issuer: &Ca, above: &[&Ca]) -> Shown {
    let key = key();
    let leaf = params.signed_by(&key, &issuer.issuer).unwrap().der().clone();
    let chain = [leaf]
        .into_iter()
        .chain(above.iter().map(|ca| ca.certificate.clone()))
        .collect();
    Shown { chain, key }
}

/// A root that `sc` trusts, an intermediate below it, and one that nobody trusts with its own.
pub struct World {
    pub root: Ca,
    pub intermediate: Ca,
    pub strange: Ca,
}

impl World {
    pub fn new() -> Self {
        let (root, strange) = (root("root"), root("strange root"));
        let intermediate = root.below(ca_params("intermediate"));
        Self {
            root,
            intermediate,
            strange,
        }
    }

    pub fn trust(&self, insecure: &[&str]) -> Trust {
        let insecure: Vec<String> = insecure.iter().map(|name| (*name).to_owned()).collect();
        Trust {
            roots: Arc::new(roots(&self.root.certificate)),
            insecure: Domains::parse(&insecure, true).unwrap(),
        }
    }

    pub fn judge(&self, clock: &Arc<Clock>) -> Arc<Judge> {
        Arc::new(Judge::with_clock(self.trust(&[]), clock.clone()))
    }

    /// A site with the faults whose bits are set.
    pub fn site(&self, verdict: u8) -> Shown {
        let name = if verdict & 4 == 0 { HOST } else { "*.other.test" };
        let mut params = leaf_for(&[name, "10.1.2.3", "fd00::1"]);
        match verdict & 3 {
            0 => {}
            1 => valid(&mut params, -90 * DAY, -DAY),
            2 => valid(&mut params, DAY, 90 * DAY),
            _ => unreachable!("no certificate is both"),
        }
        let issuer = if verdict & 8 == 0 {
            &self.intermediate
        } else {
            &self.strange
        };
        issued(params, issuer, &[issuer])
    }
}

/// All faults that one certificate can have, and none.
pub fn possible() -> impl Iterator<Item = u8> {
    (0..16).filter(|verdict| verdict & 3 != 3)
}

pub fn roots(certificate: &CertificateDer<'static>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    roots
}

/// A tunnel's CA below a root that browsers have.
pub struct Tunnel {
    pub root: Ca,
    pub ca: Ca,
}

impl Tunnel {
    pub fn new() -> Self {
        let root = root("tunnel root");
        let mut params = ca_params("tunnel");
        valid(&mut params, -YEAR, 10 * DAY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = root.below(params);
        Self { root, ca }
    }

    pub fn leaves(&self) -> Leaves {
        Leaves::new(TunnelCa {
            chain: vec![self.ca.certificate.clone()],
            key: key_der(self.ca.issuer.key()),
        })
        .unwrap()
    }
}
