//! TLS over a raw socket, for clients of the sites and of REST.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::certificate;
use crate::http::{self, Answer, Client};

/// Shakes hands as `name` is expected to.
pub fn client(config: &Arc<ClientConfig>, name: &str, socket: TcpStream) -> io::Result<Client> {
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut socket = socket;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(Client::over(StreamOwned::new(connection, socket)))
}

/// HTTPS through the proxy port, as a browser does it.
pub fn client_through(
    proxy: SocketAddr,
    config: &Arc<ClientConfig>,
    host: &str,
    port: u16,
) -> io::Result<Result<Client, Answer>> {
    Ok(match http::connect(proxy, &format!("{host}:{port}"))? {
        Ok(socket) => Ok(client(config, host, socket)?.of_host(&format!("{host}:{port}"))),
        Err(answer) => Err(answer),
    })
}

/// A configuration that trusts the certificates of a PEM file.
pub fn trust_file(path: &Path) -> io::Result<Arc<ClientConfig>> {
    Ok(certificate::client_config(&read(path)?))
}

/// The certificates of a PEM file.
pub fn read(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let roots = CertificateDer::pem_file_iter(path).map_err(io::Error::other)?;
    roots.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)
}
