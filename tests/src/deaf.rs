//! A site that accepts no connection: its backlog is full, so the kernel drops what comes, as a firewall would.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

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
