//! Real browsers that trust the cloud's root: a company's sites load in them through the tunnel, and bad certificates
//! are seen as what they are. Nothing here leads to the outside, where browsers ask for this and that unasked.

use std::{fs, thread};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustls::version;
use tests::both_drivers;
use tests::browser::{Browser, Kind, Refusal};
use tests::bumping::{self, NAMES};
use tests::certificate::{self, Company, Site};
use tests::cloud::{Cloud, Driver, Tunnel};
use tests::namespace::in_world;
use tests::origin::Origin;

both_drivers![
    pages_of_the_company_load,
    bad_certificates_are_seen_as_such,
    other_defects_are_the_browsers_to_judge,
];

const BROWSERS: [Kind; 2] = [Kind::Chromium, Kind::Firefox];

struct World {
    tunnel: Tunnel,
    company: Company,
    cloud_root_pem: String,
    _cloud: Cloud,
}

impl World {
    /// `sc` trusts the company's root. None outside of the test's own namespaces.
    fn enter(driver: Driver, test: &str) -> Option<Self> {
        let module = driver.name();
        if !in_world(&format!("{module}::{test}")) {
            return None;
        }
        let bumping::World {
            cloud, tunnel, company, ..
        } = bumping::World::start(driver);
        Some(Self {
            tunnel,
            company,
            cloud_root_pem: fs::read_to_string(cloud.ca()).unwrap(),
            _cloud: cloud,
        })
    }

    /// A browser that trusts the cloud's root, and these.
    fn browser(&self, kind: Kind, others: &[&str]) -> Browser {
        let roots = [&[self.cloud_root_pem.as_str()], others].concat();
        Browser::start(kind, self.tunnel.proxy, &roots)
    }
}

fn url(origin: &Origin) -> String {
    format!("https://localhost:{}/page?resources=50", origin.https.port())
}

fn pages_of_the_company_load(driver: Driver) {
    let Some(world) = World::enter(driver, "pages_of_the_company_load") else {
        return;
    };
    for kind in BROWSERS {
        let origin = Origin::of(world.company.site(NAMES, |_| {}));
        let browser = world.browser(kind, &[]);
        for _ in 0..2 {
            browser.new_tab();
            browser.open(&url(&origin));
            assert_eq!(browser.final_title(), "loaded 50, hello", "{kind:?}");
        }
        let counts = origin.counters();
        assert_eq!((counts.path("/page"), counts.messages), (2, 2), "{kind:?}: {counts:?}");
        assert!(
            (0..50).all(|i| counts.path(&format!("/resource/{i}")) == 2),
            "{kind:?}: {counts:?}"
        );
        // A browser has six for all tabs, and one for each WebSocket.
        assert!(counts.connections <= 16, "they are used again: {kind:?}: {counts:?}");
    }
}

fn bad_certificates_are_seen_as_such(driver: Driver) {
    let Some(world) = World::enter(driver, "bad_certificates_are_seen_as_such") else {
        return;
    };
    type Change = fn(&mut CertificateParams);
    let (expired, early, good): (Change, Change, Change) = (certificate::expired, certificate::not_yet_valid, |_| {});
    let ours = |names, change: Change| world.company.site(names, change);
    let elsewhere = &["other.test"][..];
    let sees = |kind: Kind| {
        let browser = world.browser(kind, &[]);
        for (site, chromium, firefox) in [
            (
                ours(NAMES, expired),
                "ERR_CERT_DATE_INVALID",
                "SEC_ERROR_EXPIRED_CERTIFICATE",
            ),
            (
                ours(NAMES, early),
                "ERR_CERT_DATE_INVALID",
                "MOZILLA_PKIX_ERROR_NOT_YET_VALID_CERTIFICATE",
            ),
            (
                ours(elsewhere, good),
                "ERR_CERT_COMMON_NAME_INVALID",
                "SSL_ERROR_BAD_CERT_DOMAIN",
            ),
            (
                ours(&[], good),
                "ERR_CERT_COMMON_NAME_INVALID",
                "SSL_ERROR_BAD_CERT_DOMAIN",
            ),
            (
                Company::new().site(NAMES, good),
                "ERR_CERT_AUTHORITY_INVALID",
                "SEC_ERROR_UNKNOWN_ISSUER",
            ),
            // The leaf that stands for it has an issuer, whom nobody knows either.
            (
                Site::self_signed(NAMES, false),
                "ERR_CERT_AUTHORITY_INVALID",
                "SEC_ERROR_UNKNOWN_ISSUER",
            ),
        ] {
            let origin = Origin::of(site);
            let Refusal { error, leaf } = browser.refusal(&url(&origin));
            let expected = if kind == Kind::Chromium { chromium } else { firefox };
            assert_eq!(error, expected, "{kind:?}");
            let leaf = leaf.expect("the certificate is what it complains of");
            assert_ne!(leaf, origin.site.leaf(), "{kind:?}: {error}: seen past the tunnel");
            assert_eq!(origin.counters().requests, 0, "{kind:?}: {error}");
        }
        // Not that nothing would load at all.
        let origin = Origin::of(ours(NAMES, good));
        browser.open(&url(&origin));
        assert_eq!(browser.final_title(), "loaded 50, hello", "{kind:?}");
    };
    // Both at once: Chromium looks for captive portals before it shows most of them, for 3 s.
    thread::scope(|both| {
        for kind in BROWSERS {
            both.spawn(move || sees(kind));
        }
    });
}

/// They get the site's own certificate: browsers that trust the company as well see nothing else amiss.
fn other_defects_are_the_browsers_to_judge(driver: Driver) {
    let Some(world) = World::enter(driver, "other_defects_are_the_browsers_to_judge") else {
        return;
    };
    for kind in BROWSERS {
        let browser = world.browser(kind, &[&world.company.root_pem]);
        // In TLS 1.3 the refusal comes after the handshake, when the end of the connection may overtake it.
        let asking = Origin::of(world.company.site(NAMES, |_| {}));
        asking.set_tls(asking.site.server_config_of(&[&version::TLS12], true));
        let refusal = browser.refusal(&url(&asking));
        let expected = match kind {
            Kind::Chromium => "ERR_BAD_SSL_CLIENT_AUTH_CERT",
            Kind::Firefox => "SSL_ERROR_RX_CERTIFICATE_REQUIRED_ALERT",
        };
        assert_eq!(refusal.error, expected, "{kind:?}");

        assert_eq!(asking.counters().requests, 0, "{kind:?}");

        let misused = world.company.site(NAMES, |c| {
            c.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection]
        });
        let own_ca = Site::self_signed(NAMES, true);
        for (site, chromium, firefox) in [
            (misused, "ERR_CERT_INVALID", "SEC_ERROR_INADEQUATE_CERT_TYPE"),
            (
                own_ca,
                "ERR_CERT_AUTHORITY_INVALID",
                "MOZILLA_PKIX_ERROR_SELF_SIGNED_CERT",
            ),
        ] {
            let origin = Origin::of(site);
            let refusal = browser.refusal(&url(&origin));
            let expected = if kind == Kind::Chromium { chromium } else { firefox };
            assert_eq!(refusal.error, expected, "{kind:?}");
            assert_eq!(refusal.leaf.as_deref(), Some(origin.site.leaf()), "{kind:?}");
            assert_eq!(origin.counters().requests, 0, "{kind:?}: {expected}");
        }
    }
    let log = world.tunnel.log();
    for reason in ["client certificate", "extended key usage", "CaUsedAsEndEntity"] {
        assert!(log.contains(reason), "{log}");
    }
}
