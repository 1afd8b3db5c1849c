//! One bare handshake of rustls, in memory: what a connection to a new host must cost at either end, and no more.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use serde_json::{Value, json};

use super::certificates::{Authority, as_browsers_do};
use super::usage;

const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const HANDSHAKES: u32 = 500;
/// Before those that count.
const WARM_UP: u32 = 50;

/// CPU of one handshake, in microseconds, each half alone.
#[derive(Clone, Copy)]
pub struct Bare {
    pub client: f64,
    pub server: f64,
}

impl Bare {
    pub fn both(self) -> f64 {
        self.client + self.server
    }

    pub fn json(self) -> Value {
        json!({ "client_cpu_us": self.client, "server_cpu_us": self.server })
    }
}

struct Halves {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

#[derive(Default)]
struct Spent {
    client: Duration,
    server: Duration,
}

/// The mean of several hundred in this thread. TLS 1.3, a leaf of P-256 under a root of P-256 that the client verifies,
/// the tickets that rustls sends unless told not to, never resumed; connections are made and dropped, configurations are
/// not.
///
/// # Errors
/// If a handshake fails.
pub fn measure() -> io::Result<Bare> {
    let halves = halves().map_err(io::Error::other)?;
    let mut spent = Spent::default();
    for _ in 0..WARM_UP {
        halves.shake(&mut spent)?;
    }
    spent = Spent::default();
    for _ in 0..HANDSHAKES {
        halves.shake(&mut spent)?;
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(HANDSHAKES);
    Ok(Bare {
        client: each(spent.client),
        server: each(spent.server),
    })
}

fn halves() -> Result<Halves, rustls::Error> {
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
    Ok(Halves {
        client: Arc::new(client),
        server: Arc::new(server),
    })
}

impl Halves {
    fn shake(&self, spent: &mut Spent) -> io::Result<()> {
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

/// Adds what this thread works for it.
fn on<T>(spent: &mut Duration, work: impl FnOnce() -> T) -> T {
    let before = usage::thread();
    let done = work();
    *spent += usage::thread().saturating_sub(before);
    done
}

/// Reads what the other half has sent, and writes its own in its place.
fn turn(half: &mut Connection, wire: &mut Vec<u8>) -> io::Result<()> {
    let mut unread = &wire[..];
    while !unread.is_empty() {
        half.read_tls(&mut unread)?;
        half.process_new_packets().map_err(io::Error::other)?;
    }
    wire.clear();
    while half.wants_write() {
        half.write_tls(wire)?;
    }
    Ok(())
}
