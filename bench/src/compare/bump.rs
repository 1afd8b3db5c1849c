//! SSL bump of a host never seen before, in memory: what our two ends do for it beyond a connection that they only carry,
//! to be compared with [`super::bare`]. Sockets, the multiplex and the request are not in it.
//!
//! `sc`: the configuration for the site, TLS with it, the judgement and the report. The endpoint: the ClientHello, the
//! report, the leaf with its configuration, TLS with the browser.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use dataplane::bump::{Hello, Judge, Leaves, Seen, Tls, Trust, TunnelCa, client_config, see};
use dataplane::rules::Domains;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConnection};

use super::certificates::{Authority, Site, browser};
use super::halves::{Halves, on, turn};
use super::hosts::Hosts;

const PORT: u16 = 443;

struct Ends {
    site: Site,
    judge: Arc<Judge>,
    leaves: Leaves,
    browser: Arc<ClientConfig>,
}

/// The mean of one host at each end, each with a certificate of its own.
///
/// # Errors
/// If a handshake fails.
pub fn measure() -> io::Result<Halves> {
    let (mut ends, hosts) = (ends()?, Hosts::new());
    Halves::mean(|spent| ends.meet(hosts.fresh()?, spent))
}

fn ends() -> io::Result<Ends> {
    let site = Site::new();
    let mut roots = RootCertStore::empty();
    roots.add(site.certificate()).map_err(io::Error::other)?;
    let trust = Trust {
        roots: Arc::new(roots),
        insecure: Domains::default(),
    };
    let (root, key) = Authority::new().into_parts();
    let leaves = Leaves::new(TunnelCa { chain: vec![root], key }).map_err(io::Error::other)?;
    Ok(Ends {
        site,
        judge: Arc::new(Judge::new(trust)),
        leaves,
        browser: browser(),
    })
}

impl Ends {
    fn meet(&mut self, host: Ipv4Addr, spent: &mut Halves) -> io::Result<()> {
        let name = ServerName::from(std::net::IpAddr::from(host));
        let text = host.to_string();
        let site = ServerConnection::new(self.site.config(host.into())).map_err(io::Error::other)?;
        let judge = &self.judge;
        let sc = on(&mut spent.client, || {
            Tls::client(client_config(judge, &text, PORT), name.clone())
        });
        let sc = shake(&mut spent.client, sc.map_err(io::Error::other)?, &mut site.into())?;
        let report = on(&mut spent.client, || {
            see(judge, sc.facts(), &name, &text, UnixTime::now()).to_report()
        });
        let browser = ClientConnection::new(self.browser.clone(), name).map_err(io::Error::other)?;
        let mut browser = Connection::from(browser);
        let mut hello = Vec::new();
        turn(&mut browser, &mut hello)?;
        let leaves = &self.leaves;
        let endpoint = on(&mut spent.server, || {
            let fits = Hello::read(&hello).is_ok_and(|hello| hello.is_some_and(|hello| hello.fits(&text)));
            let seen = Seen::from_report(&report).map_err(io::Error::other)?;
            if !fits || !seen.verdict.is_good() {
                return Err(io::Error::other(
                    "a browser and a site without fault were taken for others",
                ));
            }
            let config = leaves.config(&text, &seen, UnixTime::now()).map_err(io::Error::other)?;
            let mut tls = Tls::server(config).map_err(io::Error::other)?;
            tls.input().extend_from_slice(&hello);
            Ok(tls)
        })?;
        let endpoint = shake(&mut spent.server, endpoint, &mut browser)?;
        on(&mut spent.client, || drop(sc));
        on(&mut spent.server, || drop(endpoint));
        Ok(())
    }
}

/// Our half's time alone is counted.
fn shake(spent: &mut Duration, mut ours: Tls, theirs: &mut Connection) -> io::Result<Tls> {
    let mut done = false;
    while !done || theirs.is_handshaking() {
        done = on(spent, || ours.shake()).map_err(io::Error::other)?;
        let mut wire = ours.unsent().to_vec();
        ours.sent(wire.len());
        turn(theirs, &mut wire)?;
        ours.input().extend_from_slice(&wire);
    }
    // The tickets of a site.
    on(spent, || ours.open(|content| content.len())).map_err(io::Error::other)?;
    Ok(ours)
}
