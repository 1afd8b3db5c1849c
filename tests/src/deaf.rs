//! Sites that accept no connection: one whose backlog is full, so that the kernel drops what comes, as a firewall
//! would, and one that is not there.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

use crate::process::PATIENCE;

/// Connections that any backlog of 0 holds, with room to spare.
const FILL_MAX: usize = 16;
/// On loopback a connection is accepted at once or not at all.
const AT_ONCE: Duration = Duration::from_millis(200);

pub struct Deaf {
    pub address: SocketAddr,
    _listener: Socket,
    _fill: Vec<Socket>,
}

impl Deaf {
    /// On a free port of loopback.
    pub fn start() -> Self {
        let stream = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let listener = stream();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        listener.bind(&any.into()).expect("a free port");
        listener.listen(0).expect("own port");
        let address = listener.local_addr().expect("bound").as_socket().expect("an IP socket");
        let mut fill = Vec::new();
        while fill.len() < FILL_MAX {
            let socket = stream();
            socket.set_nonblocking(true).expect("a flag");
            // In progress, whatever comes of it.
            let _ = socket.connect(&address.into());
            let at_once = Timespec::try_from(AT_ONCE).expect("a short time");
            let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
            let connected = poll(&mut fds, Some(&at_once)).expect("poll") > 0;
            fill.push(socket);
            if !connected {
                return Self {
                    address,
                    _listener: listener,
                    _fill: fill,
                };
            }
        }
        panic!("a backlog of 0 holds {FILL_MAX} connections");
    }
}

/// A port of loopback that refuses connections. It is bound, so that no socket of another test is given it.
pub struct Closed {
    pub address: SocketAddr,
    _socket: Socket,
}

impl Closed {
    pub fn start() -> Self {
        Self::bind((Ipv4Addr::LOCALHOST, 0).into(), false).expect("a free port")
    }

    /// In the place of a site that goes.
    pub fn instead_of(site: SocketAddr) -> Self {
        let since = Instant::now();
        loop {
            // Beside connections that it has left, but not beside its listener.
            match Self::bind(site, true) {
                Ok(closed) => return closed,
                Err(error) => assert!(since.elapsed() < PATIENCE, "{site} is still taken: {error}"),
            }
        }
    }

    fn bind(address: SocketAddr, reuse: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(reuse)?;
        socket.bind(&address.into())?;
        let address = socket.local_addr()?.as_socket().expect("an IP socket");
        Ok(Self {
            address,
            _socket: socket,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_closed_port_refuses_also_beside_connections_of_before() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let left = listener.local_addr().unwrap();
        assert!(Closed::bind(left, true).is_err(), "somebody listens there");
        let near = TcpStream::connect(left).unwrap();
        let far = listener.accept().unwrap();
        drop(listener);
        for closed in [Closed::start(), Closed::instead_of(left)] {
            let refused = TcpStream::connect(closed.address).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        drop((near, far));
    }
}
