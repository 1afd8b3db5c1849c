//! What carries a browser's bytes: a socket, or TLS in it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

/// Its clones are one connection.
#[derive(Clone)]
pub enum Carrier {
    Plain(Arc<TcpStream>),
    Tls(Arc<TcpStream>, Arc<Mutex<ClientConnection>>),
}

impl Carrier {
    pub fn plain(socket: TcpStream) -> Self {
        Self::Plain(Arc::new(socket))
    }

    /// The same connection, after a handshake with the site of this name.
    pub fn secured(&self, config: &Arc<ClientConfig>, host: &str) -> io::Result<Self> {
        let Self::Plain(socket) = self else {
            return Err(io::Error::other("there is TLS already"));
        };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let mut tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut &**socket)?;
        }
        Ok(Self::Tls(socket.clone(), Arc::new(Mutex::new(tls))))
    }

    /// Says that no more follows; what comes is still read.
    pub fn end(&self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.shutdown(Shutdown::Write),
            Self::Tls(socket, tls) => {
                let mut tls = locked(tls);
                tls.send_close_notify();
                write(&mut tls, socket)
            }
        }
    }
}

impl Read for Carrier {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (socket, tls) = match self {
            Self::Plain(socket) => return (&**socket).read(into),
            Self::Tls(socket, tls) => (socket, tls),
        };
        // Not as rustls' own stream, which writes first: an answer is there also where the socket takes nothing any more.
        let mut tls = locked(tls);
        loop {
            match tls.reader().read(into) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            tls.read_tls(&mut &**socket)?;
            tls.process_new_packets().map_err(io::Error::other)?;
        }
    }
}

impl Write for Carrier {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => (&**socket).write(bytes),
            Self::Tls(socket, tls) => {
                let mut tls = locked(tls);
                let taken = tls.writer().write(bytes)?;
                write(&mut tls, socket)?;
                Ok(taken)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn locked(tls: &Mutex<ClientConnection>) -> MutexGuard<'_, ClientConnection> {
    tls.lock().expect("a browser is one thread")
}

fn write(tls: &mut ClientConnection, socket: &TcpStream) -> io::Result<()> {
    let mut socket = socket;
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    Ok(())
}
