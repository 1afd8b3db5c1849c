//! Why the broker passes accepted sockets, fully dialled ones and nothing else: of the sockets that a process may be given, which can an
//! address and MSG_FASTOPEN send to another listener, without `connect`?

use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockRef, Socket, Type};

/// Long enough for loopback; only sockets whose bytes were taken wait this long.
const ARRIVAL: Duration = Duration::from_millis(500);

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

fn fresh() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket")
}

fn ready(socket: &impl std::os::fd::AsFd, events: PollFlags, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).expect("a short time");
    poll(&mut [PollFd::new(socket, events)], Some(&limit)).expect("poll") > 0
}

/// Sends to an address, as only `sendto` and `sendmsg` can; true if another listener than the socket's own hears of it.
/// More than once: an attempt that fails may leave the socket fit for the next one.
fn reaches_another(socket: &Socket) -> bool {
    let fast_open = 0x2000_0000;
    (0..3).any(|_| {
        let (other, address) = listener();
        let sent = socket.send_to_with_flags(b"x", &address.into(), fast_open);
        let taken = sent.map_or_else(|e| e.raw_os_error() == Some(libc::EINPROGRESS), |_| true);
        taken && ready(&other, PollFlags::IN, ARRIVAL)
    })
}

/// As it is, and after the process that holds it has shut it down, in either order of what a peer may do before.
fn is_bound_to_its_peer(name: &str, make: impl Fn() -> (Socket, TcpStream)) {
    type Peer = fn(TcpStream) -> Option<TcpStream>;
    let peers: [(&str, Peer); 3] = [
        ("stays", Some),
        ("is gone", |_| None),
        ("resets", |peer| {
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("linger");
            None
        }),
    ];
    for (how, peer) in peers {
        for shut in [false, true] {
            let (socket, far) = make();
            let _far = peer(far);
            if _far.is_none() {
                // The end, or the reset, has arrived.
                let _ = (&socket).read(&mut [0]);
            }
            if shut {
                // A connection that is gone cannot be shut down.
                let _ = socket.shutdown(Shutdown::Both);
            }
            assert!(!reaches_another(&socket), "{name}, whose peer {how}, shut down: {shut}");
        }
    }
}

/// True where this kernel's clients do not use TCP Fast Open at all: then nothing here can be shown, which is said, and
/// with `CI=true` is a failure.
fn left_out() -> bool {
    let setting = fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").unwrap_or_default();
    let off = setting.trim().parse::<u32>().is_ok_and(|bits| bits & 1 == 0);
    if off {
        tests::leave_out("TCP Fast Open is switched off");
    }
    off
}

#[test]
fn accepted_and_fully_dialled_sockets_cannot() {
    is_bound_to_its_peer("accepted", || {
        let (listener, address) = listener();
        let far = TcpStream::connect(address).expect("loopback");
        let (accepted, _) = listener.accept().expect("it waits");
        (Socket::from(accepted), far)
    });
    is_bound_to_its_peer("dialled, blocking", || {
        let (listener, address) = listener();
        let socket = fresh();
        socket.connect(&address.into()).expect("loopback");
        (socket, listener.accept().expect("it waits").0)
    });
    is_bound_to_its_peer("dialled, with a second connect", || {
        let (listener, address) = listener();
        let socket = half_dialled(address);
        socket.connect(&address.into()).expect("it is connected, and says so");
        (socket, listener.accept().expect("it waits").0)
    });
}

/// A connect that did not wait, judged by POLLOUT and SO_ERROR as the standard library and tokio do.
fn half_dialled(address: SocketAddr) -> Socket {
    let socket = fresh();
    socket.set_nonblocking(true).expect("a flag");
    let begun = socket.connect(&address.into()).expect_err("it does not wait");
    assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
    assert!(ready(&socket, PollFlags::OUT, ARRIVAL));
    assert!(socket.take_error().expect("SO_ERROR").is_none());
    socket
}

#[test]
fn all_others_can() {
    if left_out() {
        return;
    }
    // Half-dialled, then reset by the peer.
    let (listener_of_it, address) = listener();
    let socket = half_dialled(address);
    let (peer, _) = listener_of_it.accept().expect("it waits");
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("linger");
    drop(peer);
    assert!(ready(&socket, PollFlags::IN, ARRIVAL), "the reset arrives");
    let reset = (&socket).read(&mut [0]).expect_err("a reset");
    assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
    assert!(reaches_another(&socket), "half-dialled, then reset");

    // Still connecting: to a listener whose queue is full.
    let full = fresh();
    full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .expect("a port");
    full.listen(0).expect("a listener");
    let address = full.local_addr().expect("bound");
    let _queued = TcpStream::connect(address.as_socket().expect("IPv4")).expect("the queue holds one");
    let socket = fresh();
    socket.set_nonblocking(true).expect("a flag");
    let begun = socket.connect(&address).expect_err("it does not wait");
    assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
    assert!(
        !ready(&socket, PollFlags::OUT, Duration::from_millis(50)),
        "the queue is not full"
    );
    // It is not connected, says the kernel, and closes it all the same.
    let _ = socket.shutdown(Shutdown::Both);
    assert!(reaches_another(&socket), "still connecting, shut down");

    // A listener.
    let (listener, _) = listener();
    let socket = Socket::from(listener);
    socket.shutdown(Shutdown::Both).expect("a listener may be shut down");
    assert!(reaches_another(&socket), "a listener, shut down");

    assert!(reaches_another(&fresh()), "fresh");

    // UDP needs no flag.
    let (target, near) = (
        UdpSocket::bind("127.0.0.1:0").expect("a port"),
        UdpSocket::bind("127.0.0.1:0").expect("a port"),
    );
    near.connect("127.0.0.1:9").expect("UDP connects to anything");
    near.send_to(b"x", target.local_addr().expect("bound"))
        .expect("sent elsewhere");
    assert!(ready(&target, PollFlags::IN, ARRIVAL), "UDP, connected");
}
