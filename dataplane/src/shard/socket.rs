//! The sockets of a shard. Two ways to do I/O, and no third:
//!
//! - *Local sockets* (browsers, sites) wait for readiness ([`Socket::readable`], [`Socket::writable`]), through a set that
//!   the ring watches for all of them (`readiness.rs`) or, where it happens seldom, through the ring itself, and then call
//!   `readv(2)`/`writev(2)` themselves. A wait may be dropped: it holds no buffer and loses no byte, so it may stand in
//!   `select` (`pair.rs`) and `timeout` (`clock.rs`). At most one task waits for each direction of a socket.
//! - *Links* hand a buffer to the ring ([`Socket::read_link`], [`Socket::write_link`]). These must be awaited to their end:
//!   a dropped read that had completed loses its bytes. To stop one, shut the socket down and await it.
//!
//! Writes use WRITEV and never SEND, which would take an address: a ring must not be able to send to one.

use std::cell::UnsafeCell;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use bytes::BytesMut;
use monoio::buf::{IoBufMut, IoVecBuf};
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::UnixStream;

use super::readiness::Watch;

/// A socket (or an eventfd) of this shard. Closed when dropped, once what is in flight has ended.
pub struct Socket {
    /// The cell is for links alone: monoio's reads and writes ask for `&mut`, and a link has one of each in flight.
    inner: Rc<UnsafeCell<UnixStream>>,
    watch: Option<Watch>,
}

/// Buffers that one [`Socket::try_read`] fills.
pub const READ_BUFFERS_MAX: usize = 4;

impl Socket {
    /// Takes a descriptor of any kind that can be polled. Sets O_NONBLOCK, which the epoll driver lives on.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // monoio's Unix stream is its plainest wrapper of a descriptor: it looks at nothing of the socket.
        let inner = UnixStream::from_std(fd.into())?;
        Ok(Self {
            inner: Rc::new(UnsafeCell::new(inner)),
            watch: None,
        })
    }

    /// As [`Socket::new`], with TCP_NODELAY.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn tcp(fd: OwnedFd) -> io::Result<Self> {
        rustix::net::sockopt::set_tcp_nodelay(&fd, true)?;
        Self::new(fd)
    }

    /// Connects to an address. May be dropped, which closes the socket.
    ///
    /// # Errors
    /// What the kernel said, refused and unreachable included.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM.nonblocking().cloexec(),
            Some(socket2::Protocol::TCP),
        )?;
        match socket.connect(&address.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
            _ => {}
        }
        let socket = Self::tcp(socket.into())?;
        socket.writable().await?;
        rustix::net::sockopt::socket_error(&socket)??;
        Ok(socket)
    }

    fn inner(&self) -> &UnixStream {
        // SAFETY: `&mut` to the cell exists only inside `read_link` and `write_link` while an operation is made; it
        // is not held over anything that calls back here.
        unsafe { &*self.inner.get() }
    }

    /// From now on waits go by the shard's set of sockets, for those that are waited for often.
    pub fn watched(mut self) -> Self {
        self.watch = Watch::new(&self);
        self
    }

    /// Waits until a read would not block (bytes, end or error); now and then it returns too early. May be dropped.
    ///
    /// # Errors
    /// The wait itself failed; errors of the socket are found by the read.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.watch {
            Some(watch) => watch.readable().await,
            None => Box::pin(self.inner().readable(false)).await?,
        }
        Ok(())
    }

    /// Whether there may be something to read (bytes, end or error), as far as the kernel has told.
    pub fn has_input(&self) -> bool {
        self.watch.as_ref().is_none_or(Watch::is_readable)
    }

    /// Waits until a write would not block; now and then it returns too early. May be dropped.
    ///
    /// # Errors
    /// The wait itself failed; errors of the socket are found by the write.
    pub async fn writable(&self) -> io::Result<()> {
        match &self.watch {
            Some(watch) => watch.writable().await,
            None => Box::pin(self.inner().writable(false)).await?,
        }
        Ok(())
    }

    /// Reads at most `limit` bytes into the spare capacity of at most [`READ_BUFFERS_MAX`] buffers, in order, without
    /// waiting; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock`: wait for [`Socket::readable`]. Anything else ends the socket.
    pub fn try_read(&self, buffers: &mut [BytesMut], limit: usize) -> io::Result<usize> {
        let (mut left, mut asked) = (limit, 0);
        let mut slices = [EMPTY; READ_BUFFERS_MAX];
        for (slice, buffer) in slices.iter_mut().zip(buffers.iter_mut()) {
            let spare = buffer.spare_capacity_mut();
            *slice = libc::iovec {
                iov_base: spare.as_mut_ptr().cast(),
                iov_len: spare.len().min(left),
            };
            left -= slice.iov_len;
            asked += slice.iov_len;
        }
        let count = buffers.len().min(READ_BUFFERS_MAX);
        let read = loop {
            // SAFETY: each of the first `count` slices is spare capacity of a buffer borrowed until the call has
            // returned; the kernel writes there and nowhere else.
            let read = unsafe { libc::readv(self.inner().as_raw_fd(), slices.as_ptr(), count as i32) };
            match usize::try_from(read) {
                Ok(read) => break Ok(read),
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => break Err(e),
                },
            }
        };
        if let Some(watch) = &self.watch {
            watch.was_read(&read, asked);
        }
        let read = read?;
        left = read;
        for (slice, buffer) in slices.iter().zip(buffers.iter_mut()) {
            let filled = left.min(slice.iov_len);
            // SAFETY: the kernel filled `filled` bytes from the old length on, all within the capacity.
            unsafe { buffer.set_len(buffer.len() + filled) };
            left -= filled;
        }
        Ok(read)
    }

    /// Writes without waiting what the kernel takes, from the slices in order.
    ///
    /// # Errors
    /// `WouldBlock`: wait for [`Socket::writable`]. Anything else ends the socket.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match rustix::io::writev(self, slices) {
                Err(rustix::io::Errno::INTR) => {}
                written => {
                    if let Some(watch) = &self.watch
                        && written.unwrap_or(0) < slices.iter().map(|slice| slice.len()).sum()
                    {
                        watch.was_full(self);
                    }
                    return Ok(written?);
                }
            }
        }
    }

    /// Writes all of `bytes`. If it is dropped halfway the socket is good for nothing more.
    ///
    /// # Errors
    /// The peer is gone, or what else the kernel said.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(&[IoSlice::new(bytes)]) {
                Ok(written) => bytes = &bytes[written..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Ends one or both directions. A link's read in flight completes.
    pub fn shutdown(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        // Fails only where the peer has ended the connection already.
        let _ = rustix::net::shutdown(self, how);
    }

    /// Address of the other side; `None` if it is gone already or not TCP.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        rustix::net::getpeername(self).ok()??.try_into().ok()
    }

    /// Own address; `None` if not TCP.
    pub fn local_address(&self) -> Option<SocketAddr> {
        rustix::net::getsockname(self).ok()?.try_into().ok()
    }

    /// Links only: appends to `buffer` up to its capacity; 0 is the end. One at a time, and to be awaited to its end.
    pub async fn read_link(&self, mut buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        loop {
            let length = buffer.len();
            // SAFETY: making the operation is all that happens under this `&mut`; its future works on a counted
            // reference to the descriptor.
            let read = unsafe { &mut *self.inner.get() }.read(buffer.slice_mut(length..));
            let (result, slice) = read.await;
            buffer = slice.into_inner();
            match result {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(e) = self.readable().await {
                        return (Err(e), buffer);
                    }
                }
                result => return (result, buffer),
            }
        }
    }

    /// Links only: writes all of `bytes` and gives the buffer back, empty. One at a time, and to be awaited to its end.
    pub async fn write_link(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let mut out = Outgoing::new(bytes);
        while out.slice.iov_len > 0 {
            // SAFETY: as in `read_link`.
            let write = unsafe { &mut *self.inner.get() }.writev(out);
            let (result, returned) = write.await;
            out = returned;
            match result {
                Ok(written) => out.advance(written),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(e) = self.writable().await {
                        return (Err(e), out.bytes);
                    }
                }
                Err(e) => return (Err(e), out.bytes),
            }
        }
        out.bytes.clear();
        (Ok(()), out.bytes)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream owns the descriptor and outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.inner().as_raw_fd()) }
    }
}

const EMPTY: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Bytes of a link on their way, with the slice that the kernel reads them by.
struct Outgoing {
    bytes: Vec<u8>,
    /// What is still to be written: boxed, so that it stays in place while the operation moves.
    slice: Box<libc::iovec>,
}

impl Outgoing {
    fn new(mut bytes: Vec<u8>) -> Self {
        let slice = Box::new(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        });
        Self { bytes, slice }
    }

    fn advance(&mut self, written: usize) {
        self.slice.iov_base = self.slice.iov_base.wrapping_byte_add(written);
        self.slice.iov_len -= written;
    }
}

// SAFETY: the slice is boxed and points into `bytes`, whose allocation neither moves nor changes while the runtime
// owns the value; `advance` keeps it within.
unsafe impl IoVecBuf for Outgoing {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        &raw const *self.slice
    }

    fn read_iovec_len(&self) -> usize {
        1
    }
}
