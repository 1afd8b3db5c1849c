//! A browser's or a site's connection: a socket as it is, or TLS over one. Both are read and written the same way.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use bytes::BytesMut;

use super::runtime::{self, Socket};
use super::timers;
use crate::bump::Tls;
use crate::limits::{LINGER_MAX, TLS_FILLS_MAX, TLS_READ_BYTES, TLS_WRITES_MAX};

/// One of them. Waits may be dropped; one task waits for each direction.
pub struct Transport {
    socket: Socket,
    tls: Option<Box<RefCell<Tls>>>,
    /// More is there than was looked at: the others have their turn first.
    rests: Cell<bool>,
}

impl From<Socket> for Transport {
    fn from(socket: Socket) -> Self {
        Self {
            socket: socket.watched(),
            tls: None,
            rests: Cell::new(false),
        }
    }
}

impl Transport {
    /// Shakes hands; from then on everything is content of `tls`. Nothing may have been read that is not its input. If
    /// this is dropped halfway the connection is good for nothing more.
    ///
    /// # Errors
    /// Of kind `InvalidData` with the [`rustls::Error`] in it, or the socket's.
    pub async fn secure(&mut self, mut tls: Tls) -> io::Result<()> {
        loop {
            let done = tls.shake();
            let flushed = flush(&self.socket, &mut tls).await;
            let done = done.map_err(invalid)?;
            flushed?;
            if done {
                self.tls = Some(Box::new(RefCell::new(tls)));
                return Ok(());
            }
            match fill(&self.socket, &mut tls) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.socket.readable().await?,
                Err(e) => return Err(e),
            }
        }
    }

    /// The TLS, if there is any.
    pub fn tls(&self) -> Option<&RefCell<Tls>> {
        self.tls.as_deref()
    }

    /// As [`Socket::readable`].
    ///
    /// # Errors
    /// As there.
    pub async fn readable(&self) -> io::Result<()> {
        if self.tls.as_ref().is_some_and(|tls| tls.borrow().is_ready()) {
            return Ok(());
        }
        if self.rests.take() {
            runtime::yield_now().await;
        }
        self.socket.readable().await
    }

    /// As [`Socket::writable`].
    ///
    /// # Errors
    /// As there.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    /// As [`Socket::try_read`]. The end of a connection is 0 also where TLS did not announce it: what it ends says
    /// whether it was complete.
    ///
    /// # Errors
    /// As there, and what is wrong with the peer's records.
    pub fn try_read(&self, buffers: &mut [BytesMut], limit: usize) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            return self.socket.try_read(buffers, limit);
        };
        let tls = &mut *tls.borrow_mut();
        let (mut taken, mut at, mut fills) = (0, 0, 0);
        loop {
            let opened = tls.open(|content| {
                let mut copied = 0;
                while copied < content.len() && taken < limit && at < buffers.len() {
                    let buffer = &mut buffers[at];
                    let spare = buffer.capacity() - buffer.len();
                    let part = spare.min(limit - taken).min(content.len() - copied);
                    buffer.extend_from_slice(&content[copied..copied + part]);
                    copied += part;
                    taken += part;
                    if part == spare {
                        at += 1;
                    }
                }
                copied
            });
            // An answer of its own, or an alert; what the socket does not take goes before the next content.
            let _ = write(&self.socket, tls);
            if taken > 0 || tls.has_ended() {
                return Ok(taken);
            }
            opened.map_err(invalid)?;
            // Records without content are few; who sends nothing else does not keep the shard.
            fills += 1;
            if fills > TLS_FILLS_MAX {
                self.rests.set(true);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if fill(&self.socket, tls)? == 0 {
                return Ok(0);
            }
        }
    }

    /// As [`Socket::try_write`]. What TLS has taken may wait for the socket until [`Transport::has_unsent`] is false.
    ///
    /// # Errors
    /// As there.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            return self.socket.try_write(slices);
        };
        let tls = &mut *tls.borrow_mut();
        write(&self.socket, tls)?;
        let (mut taken, mut slices) = (0, slices.to_vec());
        let mut left = &mut slices[..];
        for _ in 0..TLS_WRITES_MAX {
            let sealed = tls.seal(left).map_err(invalid)?;
            taken += sealed;
            IoSlice::advance_slices(&mut left, sealed);
            match write(&self.socket, tls) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
                Ok(()) if left.is_empty() => break,
                Ok(()) => {}
            }
        }
        Ok(taken)
    }

    /// Something was taken that the socket does not have yet: a further [`Transport::try_write`], also of nothing,
    /// writes it.
    pub fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| !tls.borrow().unsent().is_empty())
    }

    /// As [`Socket::write_all`].
    ///
    /// # Errors
    /// As there.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() || self.has_unsent() {
            match self.try_write(&[IoSlice::new(bytes)]) {
                Ok(written) => bytes = &bytes[written..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Whether nothing has come: neither content nor an end. Without `certain` as far as the kernel has told.
    pub fn is_quiet(&self, certain: bool) -> bool {
        let stirred = (certain || self.socket.has_input()) && has_bytes(&self.socket);
        if !stirred {
            return self.tls.as_ref().is_none_or(|tls| !tls.borrow().is_ready());
        }
        // Records without content are usual: tickets.
        let mut byte = [BytesMut::with_capacity(1)];
        self.tls.is_some() && matches!(self.try_read(&mut byte, 1), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Writes what was taken and waits for the socket.
    ///
    /// # Errors
    /// As [`Socket::write_all`].
    pub async fn flush(&self) -> io::Result<()> {
        self.write_all(&[]).await
    }

    /// Ends our direction; waits at most [`LINGER_MAX`] for a full socket. Whoever gets no notice then sees the end of the
    /// connection.
    pub async fn finish(&self) {
        if let Some(tls) = &self.tls {
            tls.borrow_mut().close();
            timers::timeout(LINGER_MAX, self.flush()).await;
        }
        self.socket.shutdown(Shutdown::Write);
    }

    /// The bytes under it, for whoever wants no content any more.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// As [`Socket::local_address`].
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.socket.local_address()
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// With certainty.
fn has_bytes(socket: &Socket) -> bool {
    use rustix::net::{RecvFlags, recv};
    let peeked = recv(socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    !matches!(peeked, Err(rustix::io::Errno::AGAIN))
}

fn fill(socket: &Socket, tls: &mut Tls) -> io::Result<usize> {
    let input = tls.input();
    input.reserve(TLS_READ_BYTES);
    let read = socket.try_read(std::slice::from_mut(input), TLS_READ_BYTES);
    if input.is_empty() {
        *input = BytesMut::new();
    }
    read
}

fn write(socket: &Socket, tls: &mut Tls) -> io::Result<()> {
    while !tls.unsent().is_empty() {
        let written = socket.try_write(&[IoSlice::new(tls.unsent())])?;
        tls.sent(written);
    }
    Ok(())
}

async fn flush(socket: &Socket, tls: &mut Tls) -> io::Result<()> {
    loop {
        match write(socket, tls) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            written => return written,
        }
    }
}

/// What TLS says, if an error of a [`Transport`] is of it.
pub fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
