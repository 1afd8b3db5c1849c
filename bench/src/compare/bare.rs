//! One bare handshake of rustls, in memory: what a connection to a new host must cost at either end, and no more.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use super::certificates::{Authority, as_browsers_do};
use super::halves::{Halves, on, turn};

const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// The mean of one. TLS 1.3, a leaf of P-256 under a root of P-256 that the client verifies,
/// the tickets that rustls sends unless told not to, never resumed; connections are made and dropped, configurations are
/// not.
///
/// # Errors
/// If a handshake fails.
pub fn measure() -> io::Result<Halves> {
    let ends = ends().map_err(io::Error::other)?;
    Halves::mean(|spent| ends.shake(spent))
}

fn ends() -> Result<Ends, rustls::Error> {
    let authority = Authority::new();
    let mut roots = RootCertStore::empty();
    roots.add(authority.root.clone())?;
    let provider = Arc::new(as_browsers_do());
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = Resumption::disabled();
    let (leaf, key) = authority.leaf(HOST.into());
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)?;
    Ok(Ends {
        client: Arc::new(client),
        server: Arc::new(server),
    })
}

impl Ends {
    fn shake(&self, spent: &mut Halves) -> io::Result<()> {
        let name = ServerName::IpAddress(std::net::IpAddr::from(HOST).into());
        let client = on(&mut spent.client, || ClientConnection::new(self.client.clone(), name));
        let server = on(&mut spent.server, || ServerConnection::new(self.server.clone()));
        let mut client = Connection::from(client.map_err(io::Error::other)?);
        let mut server = Connection::from(server.map_err(io::Error::other)?);
        let mut wire = Vec::new();
        while client.is_handshaking() || server.is_handshaking() {
            on(&mut spent.client, || turn(&mut client, &mut wire))?;
            on(&mut spent.server, || turn(&mut server, &mut wire))?;
        }
        on(&mut spent.client, || drop(client));
        on(&mut spent.server, || drop(server));
        Ok(())
    }
}
