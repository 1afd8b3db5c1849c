//! Unix SOCK_SEQPACKET pairs: whole messages, with file descriptors beside them (SCM_RIGHTS). Datagram sockets, which
//! have no other end to be gone, are read the same way.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::limits::{MESSAGE_BYTES_MAX, MESSAGE_FDS_MAX};
use crate::runtime::{has_now, watch};

/// One end, on the control thread.
pub struct Seqpacket(AsyncFd<OwnedFd>);

/// A connected pair; both ends non-blocking and closed on exec.
///
/// # Errors
/// What the system says, usually that descriptors have run out.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

impl Seqpacket {
    /// Takes one end over; it must be non-blocking.
    ///
    /// # Errors
    /// What the reactor says.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        watch(fd, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Sends one message, or says `WouldBlock` when the other end has not read enough yet.
    ///
    /// # Errors
    /// `WouldBlock`; anything else means that the other end is gone.
    pub fn try_send(&self, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if fds.is_empty() {
            // All that an endpoint may do: `sendmsg` is none of its system calls. SIGPIPE is ignored.
            rustix::io::write(self.0.get_ref(), data)?;
            return Ok(());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(self.0.get_ref(), &[IoSlice::new(data)], &mut ancillary, flags)?;
        Ok(())
    }

    /// Sends one message as soon as there is room for it.
    ///
    /// # Errors
    /// The other end is gone.
    pub async fn send(&self, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match self.try_send(data, fds) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Waits until a message that was refused may be tried again.
    ///
    /// # Errors
    /// What the reactor says.
    pub async fn writable(&self) -> io::Result<()> {
        let mut guard = self.0.writable().await?;
        // A poll that finds no room clears the readiness; one that finds some keeps it.
        let _ = guard.try_io(|fd| match has_now(fd.get_ref(), PollFlags::OUT)? {
            false => Err(io::Error::from(io::ErrorKind::WouldBlock)),
            true => Ok(()),
        });
        Ok(())
    }

    /// Whether the other end is closed, as it is with the end of its process. It may have left messages.
    pub fn is_closed(&self) -> bool {
        // Interrupted: as open as a moment ago.
        has_now(self.0.get_ref(), PollFlags::RDHUP).unwrap_or(false)
    }

    /// Receives one message into `buffer` and its descriptors (closed on exec); `None` when the other end is closed.
    ///
    /// # Errors
    /// A message longer than [`MESSAGE_BYTES_MAX`] or with too many descriptors; what the system says.
    pub async fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Vec<OwnedFd>>> {
        buffer.resize(MESSAGE_BYTES_MAX, 0);
        let Some((length, fds)) = self.receive_into(buffer).await? else {
            return Ok(None);
        };
        buffer.truncate(length);
        Ok(Some(fds))
    }

    /// As [`Seqpacket::receive`], into a buffer as long as the longest message that is expected: the message's length,
    /// and its descriptors.
    ///
    /// # Errors
    /// `InvalidData`: a longer message, or one with too many descriptors; what the system says.
    pub async fn receive_into(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
        loop {
            let mut guard = self.0.readable().await?;
            match guard.try_io(|fd| receive_now(fd.get_ref(), buffer)) {
                Ok(Ok(received)) => return Ok(received),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                // The other end died with our messages unread: as good as closed.
                Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        }
    }
}

fn receive_now(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(fd, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
    }
    Ok((message.bytes > 0).then_some((message.bytes, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn run<T>(test: impl Future<Output = T>) -> T {
        crate::runtime::Runtime::epoll().unwrap().block_on(test)
    }

    #[test]
    fn messages_keep_their_borders_and_their_descriptors() {
        run(async {
            let (a, b) = pair().unwrap();
            let (a, b) = (Seqpacket::new(a).unwrap(), Seqpacket::new(b).unwrap());
            let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
            a.send(b"first", &[]).await.unwrap();
            a.send(b"second", &[one.as_fd(), other.as_fd()]).await.unwrap();
            let mut buffer = Vec::new();
            assert_eq!(b.receive(&mut buffer).await.unwrap().unwrap().len(), 0);
            assert_eq!(buffer, b"first");
            assert_eq!(b.receive(&mut buffer).await.unwrap().unwrap().len(), 2);
            assert_eq!(buffer, b"second");
            a.send(b"last", &[]).await.unwrap();
            assert!(!b.is_closed());
            drop(a);
            assert!(b.is_closed(), "with a message unread");
            b.receive(&mut buffer).await.unwrap().unwrap();
            assert_eq!(buffer, b"last");
            assert!(b.receive(&mut buffer).await.unwrap().is_none());
            assert!(b.send(b"x", &[]).await.is_err());
        });
    }

    #[test]
    fn a_full_socket_is_waited_for_and_not_lost() {
        run(async {
            let (a, b) = pair().unwrap();
            let (a, b) = (Seqpacket::new(a).unwrap(), Seqpacket::new(b).unwrap());
            let mut sent = 0u32;
            while a.try_send(&sent.to_be_bytes(), &[]).is_ok() {
                sent += 1;
            }
            let reader = async {
                let mut buffer = Vec::new();
                for expected in 0..=sent {
                    b.receive(&mut buffer).await.unwrap().unwrap();
                    assert_eq!(buffer, expected.to_be_bytes());
                }
            };
            let last = sent.to_be_bytes();
            let (_, sent) = tokio::join!(reader, a.send(&last, &[]));
            sent.unwrap();
        });
    }
}
