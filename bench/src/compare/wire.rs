//! A socket, or TLS over one, as clients and site read and write it.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustls::Connection;

pub struct Wire {
    pub socket: OwnedFd,
    tls: Option<Box<Connection>>,
}

/// The bytes under TLS.
struct Raw<'a>(&'a OwnedFd);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire {
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, tls: None }
    }

    /// From now on what is read and sent is content.
    pub fn secure(&mut self, tls: Connection) -> Result<(), Errno> {
        self.tls = Some(Box::new(tls));
        self.flush()
    }

    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// 0 is the end; `AGAIN` if nothing is there.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let Some(tls) = &mut self.tls else {
            return rustix::io::read(&self.socket, buffer);
        };
        loop {
            match tls.reader().read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map_err(|_| Errno::CONNRESET),
            }
            if tls.read_tls(&mut Raw(&self.socket)).map_err(|e| errno(&e))? == 0 {
                return Ok(0);
            }
            let read = tls.process_new_packets();
            while tls.wants_write() {
                tls.write_tls(&mut Raw(&self.socket)).map_err(|e| errno(&e))?;
            }
            read.map_err(|_| Errno::PROTO)?;
        }
    }

    /// As `send` does. Short texts alone are sent over TLS: the socket takes them whole.
    pub fn send(&mut self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
        let Some(tls) = &mut self.tls else {
            return send(&self.socket, bytes, flags | SendFlags::NOSIGNAL);
        };
        tls.writer().write_all(bytes).map_err(|_| Errno::IO)?;
        self.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        while let Some(tls) = self.tls.as_mut().filter(|tls| tls.wants_write()) {
            tls.write_tls(&mut Raw(&self.socket)).map_err(|e| errno(&e))?;
        }
        Ok(())
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
