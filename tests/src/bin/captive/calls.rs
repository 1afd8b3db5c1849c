//! One system call each.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::Path;
use std::ptr;

use libc::{c_int, c_long};

use super::Deed;

/// A listener of this machine's loopback, somebody who waits there to be accepted, and a socket that may dial it.
pub struct Site {
    pub listener: TcpListener,
    pub address: libc::sockaddr_in,
    _waiting: TcpStream,
    pub fresh: OwnedFd,
}

impl Site {
    pub fn new() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        Ok(Self {
            _waiting: TcpStream::connect(address)?,
            listener,
            address: raw(address),
            fresh: socket(libc::SOCK_STREAM)?,
        })
    }
}

pub fn raw(address: SocketAddr) -> libc::sockaddr_in {
    let SocketAddr::V4(address) = address else {
        panic!("an address of IPv4")
    };
    libc::sockaddr_in {
        sin_family: libc::AF_INET as _,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(*address.ip()).to_be(),
        },
        sin_zero: [0; 8],
    }
}

pub const ADDRESS_BYTES: libc::socklen_t = mem::size_of::<libc::sockaddr_in>() as _;

pub fn any() -> libc::sockaddr_in {
    raw(SocketAddr::from(([127, 0, 0, 1], 0)))
}

pub fn socket(kind: c_int) -> io::Result<OwnedFd> {
    // SAFETY: numbers only; the new descriptor is nobody else's.
    unsafe {
        let fd = made(libc::socket(libc::AF_INET, kind, 0).into())?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

pub fn made(result: c_long) -> io::Result<RawFd> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        fd => Ok(fd as RawFd),
    }
}

pub fn done(result: c_long) -> io::Result<()> {
    made(result).map(drop)
}

fn name(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path")
}

/// A deed that is one system call of numbers.
macro_rules! call {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: what the arguments point at outlives the call.
        Box::new(move || done(unsafe { libc::syscall(libc::$number $(, $argument)*) }))
    };
}

pub fn prepare(attempt: &str, folder: &Path) -> io::Result<Deed> {
    let secret = folder.join("secret");
    fs::write(&secret, "kept from the endpoint")?;
    let parent = std::os::unix::process::parent_id() as c_int;
    Ok(match attempt {
        "socket" => call!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
        "socketpair" => {
            let mut pair = [0_i32; 2];
            call!(SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr())
        }
        "connect" => {
            let site = Site::new()?;
            Box::new(move || {
                let site = &site;
                // SAFETY: the address lives in `site`.
                done(unsafe {
                    let address = &raw const site.address;
                    libc::syscall(libc::SYS_connect, site.fresh.as_raw_fd(), address, ADDRESS_BYTES)
                })
            })
        }
        "bind" => {
            let (socket, address) = (socket(libc::SOCK_STREAM)?, any());
            call!(SYS_bind, socket.as_raw_fd(), &raw const address, ADDRESS_BYTES)
        }
        "listen" => {
            let socket = socket(libc::SOCK_STREAM)?;
            call!(SYS_listen, socket.as_raw_fd(), 1)
        }
        "accept4" => {
            let site = Site::new()?;
            Box::new(move || {
                let site = &site;
                let (none, length) = (ptr::null_mut::<u8>(), ptr::null_mut::<u8>());
                // SAFETY: no address is asked for.
                done(unsafe { libc::syscall(libc::SYS_accept4, site.listener.as_raw_fd(), none, length, 0) })
            })
        }
        "sendto" => {
            let target = UdpSocket::bind("127.0.0.1:0")?;
            let (socket, address) = (socket(libc::SOCK_DGRAM)?, raw(target.local_addr()?));
            call!(
                SYS_sendto,
                socket.as_raw_fd(),
                c"x".as_ptr(),
                1,
                0,
                &raw const address,
                ADDRESS_BYTES
            )
        }
        "sendmsg" => send_message(libc::SYS_sendmsg)?,
        "sendmmsg" => send_message(libc::SYS_sendmmsg)?,
        "openat" => {
            let secret = name(&secret);
            call!(SYS_openat, libc::AT_FDCWD, secret.as_ptr(), libc::O_RDONLY)
        }
        "mkdirat" => {
            let made = name(&folder.join("made"));
            call!(SYS_mkdirat, libc::AT_FDCWD, made.as_ptr(), 0o700)
        }
        "execve" => {
            let arguments = [c"true".as_ptr(), ptr::null()];
            call!(
                SYS_execve,
                c"/bin/true".as_ptr(),
                arguments.as_ptr(),
                arguments[1..].as_ptr()
            )
        }
        "clone" => Box::new(|| {
            // SAFETY: the child shares nothing and leaves at once.
            match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
                // SAFETY: ends the child.
                0 => unsafe { libc::_exit(0) },
                child => done(child),
            }
        }),
        "thread" => Box::new(|| std::thread::Builder::new().spawn(|| ()).map(drop)),
        "ptrace" => call!(SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0),
        "process_vm_readv" => Box::new(|| {
            let (mut to, from) = ([0_u8; 4], *b"code");
            let local = libc::iovec {
                iov_base: to.as_mut_ptr().cast(),
                iov_len: 4,
            };
            let remote = libc::iovec {
                iov_base: from.as_ptr().cast_mut().cast(),
                iov_len: 4,
            };
            // SAFETY: one slice of this process's own memory each.
            done(unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) } as c_long)
        }),
        "memfd_create" => call!(SYS_memfd_create, c"code".as_ptr(), 0),
        "io_uring_setup" => Box::new(|| io_uring::IoUring::new(8).map(drop)),
        "io_uring_register" => {
            let (ring, mut probe) = (io_uring::IoUring::new(8)?, io_uring::Probe::new());
            Box::new(move || ring.submitter().register_probe(&mut probe))
        }
        "pidfd_open" => call!(SYS_pidfd_open, parent, 0),
        "pidfd_getfd" => {
            // SAFETY: numbers only.
            let own = made(unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) })?;
            call!(SYS_pidfd_getfd, own, 0, 0)
        }
        "mmap" => code(libc::PROT_EXEC)?,
        "mprotect" => {
            let page = map(libc::PROT_READ | libc::PROT_WRITE)?;
            call!(SYS_mprotect, page, PAGE_BYTES, libc::PROT_READ | libc::PROT_EXEC)
        }
        "setsockopt" => {
            let (socket, on) = (socket(libc::SOCK_STREAM)?, 1_i32);
            let fd = socket.as_raw_fd();
            Box::new(move || {
                let _open = &socket;
                // SAFETY: the option is an integer of 4 bytes.
                let set =
                    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, (&raw const on).cast(), 4) };
                done(set.into())
            })
        }
        "ioctl" => {
            let (socket, mut left) = (socket(libc::SOCK_DGRAM)?, 0_i32);
            call!(SYS_ioctl, socket.as_raw_fd(), libc::FIONREAD, &raw mut left)
        }
        "unshare" => call!(SYS_unshare, libc::CLONE_FS),
        "chroot" => call!(SYS_chroot, c"/".as_ptr()),
        "kill" => call!(SYS_kill, parent, 0),
        // Sockets of their own, in whatever network the process is by then.
        "dial" => {
            let site = Site::new()?;
            Box::new(move || TcpStream::connect(site.listener.local_addr()?).map(drop))
        }
        "listen anew" => Box::new(|| TcpListener::bind("127.0.0.1:0").map(drop)),
        "send anew" => Box::new(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", "127.0.0.1:9").map(drop)),
        "abstract socket" => {
            let address = UnixAddr::from_abstract_name(format!("captive {}", std::process::id()))?;
            let listener = UnixListener::bind_addr(&address)?;
            Box::new(move || {
                let _open = &listener;
                UnixStream::connect_addr(&address).map(drop)
            })
        }
        _ => return Err(io::Error::other("no such call")),
    })
}

pub const PAGE_BYTES: usize = 4096;

fn map(protection: c_int) -> io::Result<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, where the kernel likes.
    match unsafe { libc::mmap(ptr::null_mut(), PAGE_BYTES, protection, flags, -1, 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        page => Ok(page),
    }
}

fn code(protection: c_int) -> io::Result<Deed> {
    Ok(Box::new(move || map(libc::PROT_READ | protection).map(drop)))
}

/// A datagram to an address.
pub struct Message {
    pub socket: OwnedFd,
    pub header: libc::mmsghdr,
    _target: UdpSocket,
    _address: Box<libc::sockaddr_in>,
    _slice: Box<libc::iovec>,
}

impl Message {
    pub fn new() -> io::Result<Self> {
        let target = UdpSocket::bind("127.0.0.1:0")?;
        let mut address = Box::new(raw(target.local_addr()?));
        let mut slice = Box::new(libc::iovec {
            iov_base: c"x".as_ptr().cast_mut().cast(),
            iov_len: 1,
        });
        // SAFETY: all zero is an empty header.
        let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
        header.msg_hdr.msg_name = (&raw mut *address).cast();
        header.msg_hdr.msg_namelen = ADDRESS_BYTES;
        header.msg_hdr.msg_iov = &raw mut *slice;
        header.msg_hdr.msg_iovlen = 1;
        Ok(Self {
            socket: socket(libc::SOCK_DGRAM)?,
            header,
            _target: target,
            _address: address,
            _slice: slice,
        })
    }
}

fn send_message(call: c_long) -> io::Result<Deed> {
    let mut message = Message::new()?;
    Ok(Box::new(move || {
        let message = &mut message;
        let (fd, header) = (message.socket.as_raw_fd(), &raw mut message.header);
        // SAFETY: the header and what it points at live in `message`; its first field is a `msghdr`.
        done(unsafe { libc::syscall(call, fd, header, libc::c_long::from(call == libc::SYS_sendmmsg), 0) })
    }))
}
