//! One entry of a ring each, in a free ring or in one that was restricted by the endpoint's own function.

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use dataplane::shard::ring;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, OpenHow};
use io_uring::{IoUring, opcode};

use super::Deed;
use super::calls::{ADDRESS_BYTES, Message, Site, socket};

const HERE: Fd = Fd(libc::AT_FDCWD);

/// Keeps what an entry points at.
struct Kept {
    _sockets: (Site, Message, TcpStream),
    _pipes: [OwnedFd; 6],
    _paths: [CString; 2],
}

pub fn prepare(attempt: &str, folder: &Path, restricted: bool) -> io::Result<Deed> {
    let mut ring = match restricted {
        true => ring::restricted(|flags| flags.build(8))?.0,
        false => IoUring::new(8)?,
    };
    let (entry, kept) = entry(attempt, folder)?;
    Ok(Box::new(move || {
        let _kept = kept;
        // SAFETY: what the entry points at is kept until it has completed.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        let result = ring.completion().next().map_or(0, |completed| completed.result());
        match result {
            0.. => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }))
}

fn entry(attempt: &str, folder: &Path) -> io::Result<(Entry, Kept)> {
    fs::write(folder.join("secret"), "kept from the endpoint")?;
    let path = |name: &str| CString::new(folder.join(name).as_os_str().as_bytes()).expect("no NUL in a path");
    let (secret, new) = (path("secret"), path(&format!("new {}", std::process::id())));
    let (site, message) = (Site::new()?, Message::new()?);
    let connected = TcpStream::connect(site.listener.local_addr()?)?;
    let (full, full_in) = pipe()?;
    let (empty, empty_in) = pipe()?;
    rustix::io::write(&full_in, b"x")?;
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?;
    let datagram = socket(libc::SOCK_DGRAM)?;
    let byte = c"x".as_ptr().cast::<u8>();
    let fd = |fd: &dyn AsRawFd| Fd(fd.as_raw_fd());
    // What only its address is taken of lives as long as the process.
    let address = Box::leak(Box::new(site.address));
    let status = Box::leak(Box::new([0_u8; 256]));
    let header = Box::leak(Box::new(message.header.msg_hdr));
    let how = Box::leak(Box::new(OpenHow::new().flags(libc::O_RDONLY as u64)));
    let slice = Box::leak(Box::new(libc::iovec {
        iov_base: byte.cast_mut().cast(),
        iov_len: 1,
    }));
    let event = Box::leak(Box::new(libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 0,
    }));
    let buffers = Box::leak(Box::new([0_u8; 64]));
    let to = (&raw const *address).cast();
    let entry = match attempt {
        "NOP" => opcode::Nop::new().build(),
        "OPENAT" => opcode::OpenAt::new(HERE, secret.as_ptr()).build(),
        "OPENAT2" => opcode::OpenAt2::new(HERE, secret.as_ptr(), how).build(),
        "STATX" => opcode::Statx::new(HERE, secret.as_ptr(), status.as_mut_ptr().cast()).build(),
        "UNLINKAT" => opcode::UnlinkAt::new(HERE, secret.as_ptr()).build(),
        "RENAMEAT" => opcode::RenameAt::new(HERE, secret.as_ptr(), HERE, new.as_ptr()).build(),
        "MKDIRAT" => opcode::MkDirAt::new(HERE, new.as_ptr()).build(),
        "SOCKET" => opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        "CONNECT" => opcode::Connect::new(fd(&site.fresh), to, ADDRESS_BYTES).build(),
        "ACCEPT" => opcode::Accept::new(fd(&site.listener), std::ptr::null_mut(), std::ptr::null_mut()).build(),
        "SEND" => opcode::Send::new(fd(&connected), byte, 1).build(),
        "SENDMSG" => opcode::SendMsg::new(fd(&message.socket), header).build(),
        "SEND_ZC" => opcode::SendZc::new(fd(&datagram), byte, 1)
            .dest_addr(header.msg_name.cast())
            .dest_addr_len(ADDRESS_BYTES)
            .build(),
        "SENDMSG_ZC" => opcode::SendMsgZc::new(fd(&message.socket), header).build(),
        "SHUTDOWN" => opcode::Shutdown::new(fd(&connected), libc::SHUT_RDWR).build(),
        "SPLICE" => opcode::Splice::new(fd(&full), -1, fd(&empty_in), -1, 1).build(),
        "TEE" => opcode::Tee::new(fd(&full), fd(&empty_in), 1).build(),
        "WRITE" => opcode::Write::new(fd(&empty_in), byte, 1).build(),
        "READV" => {
            slice.iov_base = buffers.as_mut_ptr().cast();
            opcode::Readv::new(fd(&full), slice, 1).build()
        }
        "EPOLL_CTL" => {
            let event = (&raw const *event).cast();
            opcode::EpollCtl::new(fd(&epoll), fd(&full), libc::EPOLL_CTL_ADD, event).build()
        }
        "PROVIDE_BUFFERS" => opcode::ProvideBuffers::new(buffers.as_mut_ptr(), 16, 4, 0, 0).build(),
        // SOCKET_URING_OP_SIOCINQ: bytes that wait in a socket.
        "URING_CMD" => opcode::UringCmd16::new(fd(&connected), 0).build(),
        // The controls of the restricted ring: what it is for.
        "WRITEV" => opcode::Writev::new(fd(&connected), slice, 1).build(),
        "READ" => opcode::Read::new(fd(&full), buffers.as_mut_ptr(), 1).build(),
        "POLL_ADD" => opcode::PollAdd::new(fd(&full), libc::POLLIN as u32).build(),
        _ => return Err(io::Error::other("no such opcode")),
    };
    let kept = Kept {
        _sockets: (site, message, connected),
        _pipes: [full, full_in, empty, empty_in, epoll, datagram],
        _paths: [secret, new],
    };
    Ok((entry, kept))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe()?)
}
