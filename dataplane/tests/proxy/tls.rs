//! TLS of browsers, which ends at the endpoint, and of sites.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use dataplane::bump::{Trust, TunnelCa};
use dataplane::client::{ClientConfig as Sc, Driver};
use dataplane::rules::Domains;
use dataplane::settings::Times;
use rcgen::{BasicConstraints, CertificateParams, CertifiedKey, IsCa, KeyPair, generate_simple_self_signed};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, ServerName};

use crate::tunnel::{Browser, Tunnel, site, timed};

/// A browser's end of a connection, or a site's.
#[derive(Debug)]
pub enum Connection {
    Plain(TcpStream),
    Browser(Box<StreamOwned<ClientConnection, TcpStream>>),
    Site(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Connection {
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Browser(tls) => &tls.sock,
            Self::Site(tls) => &tls.sock,
        }
    }

    /// Says that it sends no more. TLS has a notice for that, and the connection under it stays as it is.
    pub fn finish(&mut self) {
        match self {
            Self::Plain(socket) => socket.shutdown(Shutdown::Write).unwrap(),
            Self::Browser(tls) => {
                tls.conn.send_close_notify();
                tls.flush().unwrap();
            }
            Self::Site(tls) => {
                tls.conn.send_close_notify();
                tls.flush().unwrap();
            }
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Browser(tls) => tls.read(buffer),
            Self::Site(tls) => tls.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Browser(tls) => tls.write(bytes),
            Self::Site(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Browser(tls) => tls.flush(),
            Self::Site(tls) => tls.flush(),
        }
    }
}

/// A tunnel whose browsers trust its CA alone. `sc` takes any certificate.
pub fn bumping(driver: Driver) -> Tunnel {
    bumping_within(driver, Times::default())
}

/// The same, where `sc` waits so long.
pub fn bumping_within(driver: Driver, times: Times) -> Tunnel {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let ca = TunnelCa {
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
    };
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let browsers = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (mut tunnel, sc) = Tunnel::under(driver, Some(ca));
    tunnel.trust = Some(Arc::new(browsers));
    let trust = Trust {
        roots: Arc::new(RootCertStore::empty()),
        insecure: domains("all"),
    };
    tunnel.joined_by(timed(Sc { trust, ..sc }, times))
}

pub fn domains(list: &str) -> Domains {
    Domains::parse(&[list.to_owned()], true).unwrap()
}

/// A site with a certificate that nobody knows.
pub fn secure_site(serve: impl Fn(BufReader<Connection>) + Send + Sync + 'static) -> SocketAddr {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    site(move |socket| {
        let connection = ServerConnection::new(config.clone()).unwrap();
        let tls = StreamOwned::new(connection, socket.into_inner());
        serve(BufReader::new(Connection::Site(Box::new(tls))));
    })
}

/// A CONNECT for a site.
pub fn connect_to(authority: &str) -> String {
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
}

/// A browser's TLS, of which nothing was sent.
pub fn client_of(tunnel: &Tunnel) -> ClientConnection {
    client_for(tunnel, "localhost")
}

/// The same, where the site has this name.
pub fn client_for(tunnel: &Tunnel, host: &'static str) -> ClientConnection {
    let trust = tunnel.trust.as_ref().expect("TLS ends at its endpoint");
    ClientConnection::new(trust.clone(), ServerName::try_from(host).unwrap()).unwrap()
}

/// A browser's CONNECT, and its TLS with whoever answers.
pub fn connected(tunnel: &Tunnel, mut browser: Browser, site: SocketAddr) -> io::Result<BufReader<Connection>> {
    browser.send(connect_to(&format!("localhost:{}", site.port())).as_bytes());
    assert_eq!(browser.answer("CONNECT").status, 200);
    shaken(client_of(tunnel), browser)
}

/// Shakes hands to the end.
pub fn shaken(mut client: ClientConnection, browser: Browser) -> io::Result<BufReader<Connection>> {
    // What came with the answer to a CONNECT that the ClientHello was sent with.
    let early = browser.0.buffer().to_vec();
    let mut early = &early[..];
    while !early.is_empty() {
        client.read_tls(&mut early)?;
        client.process_new_packets().map_err(io::Error::other)?;
    }
    let Connection::Plain(mut socket) = browser.0.into_inner() else {
        panic!("it has done so before");
    };
    while client.is_handshaking() {
        client.complete_io(&mut socket)?;
    }
    let tls = StreamOwned::new(client, socket);
    Ok(BufReader::new(Connection::Browser(Box::new(tls))))
}
