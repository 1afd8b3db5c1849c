//! A company whose root `sc` trusts, and a tunnel at whose endpoint TLS of browsers ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

use rustls::ClientConfig;

use crate::certificate::Company;
use crate::cloud::{Cloud, CloudOptions, Driver, Tunnel};
use crate::http::{Answer, Client};
use crate::origin::Origin;
use crate::tls;

/// Of a site on loopback.
pub const NAMES: &[&str] = &["localhost", "127.0.0.1"];

pub struct World {
    pub cloud: Cloud,
    pub tunnel: Tunnel,
    pub company: Company,
    /// What a browser trusts: the cloud's root and nothing else.
    pub trust: Arc<ClientConfig>,
}

impl World {
    pub fn start(driver: Driver) -> Self {
        Self::with(driver, &[])
    }

    /// With further arguments of `sc`.
    pub fn with(driver: Driver, arguments: &[&str]) -> Self {
        let arguments = [&["--shards", "1"], arguments].concat();
        Self::of(Company::new(), CloudOptions::new(driver), &arguments)
    }

    /// Of a company that may have sites already. `arguments`: of `sc`, beside the company's root.
    pub fn of(company: Company, options: CloudOptions, arguments: &[&str]) -> Self {
        Self::within(Cloud::with(options), company, arguments)
    }

    /// As [`World::of`], in a cloud that is there.
    pub fn within(cloud: Cloud, company: Company, arguments: &[&str]) -> Self {
        fs::write(company_file(&cloud), &company.root_pem).expect("a file");
        let tunnel = another_tunnel(&cloud, arguments);
        let trust = tls::trust_file(&cloud.ca()).expect("the cloud's CA");
        Self {
            cloud,
            tunnel,
            company,
            trust,
        }
    }

    /// The company's root.
    pub fn company_pem(&self) -> PathBuf {
        company_file(&self.cloud)
    }

    /// A site under the company's root.
    pub fn origin(&self) -> Origin {
        Origin::of(self.company.site(NAMES, |_| {}))
    }

    /// A browser's connection to the site.
    pub fn browser(&self, origin: &Origin) -> io::Result<Client> {
        self.browser_of(origin, &self.trust)
    }

    /// … of a browser that is not like the others.
    pub fn browser_of(&self, origin: &Origin, trust: &Arc<ClientConfig>) -> io::Result<Client> {
        let client = tls::client_through(self.tunnel.proxy, trust, "localhost", origin.https.port())?;
        Ok(client.expect("CONNECT is answered with 200"))
    }
}

/// A further tunnel to the company of a [`World`], of its cloud.
pub fn another_tunnel(cloud: &Cloud, arguments: &[&str]) -> Tunnel {
    let file = company_file(cloud);
    let file = file.to_string_lossy();
    cloud.start_bumping_tunnel(&[&["--cacert-file", &file], arguments].concat())
}

fn company_file(cloud: &Cloud) -> PathBuf {
    cloud.state.path().join("company.pem")
}

/// The answer is a page of Culvert's own, of this error.
pub fn assert_blocked(answer: &Answer, name: &str) {
    assert_eq!(answer.head.field("Culvert-Error"), Some(name), "{:?}", answer.head);
}
