//! Accepts browsers for an endpoint and passes their sockets to it: the endpoint itself never has a listener.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dataplane::limits::ERROR_LINES_APART;
use dataplane::shard::Visitor;
use rustix::net::{SocketFlags, acceptfrom_with, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::limits::{ACCEPTS_PER_TURN, BROKER_PAUSE, FDS_WAITING_MAX, LISTEN_BACKLOG};
use super::outside::Network;
use super::seqpacket::{self, Seqpacket};
use crate::runtime::watch;

/// What one waiting message costs of the sender's buffer, at least: the kernel charges a socket buffer's whole size
/// (640 bytes and more on 64 bit), however short the message.
const MESSAGE_COST_BYTES: usize = 640;
/// The kernel's smallest send buffer holds so many messages.
const MESSAGES_MIN: usize = 8;

/// The broker's listeners take their ports from here.
pub struct Ports {
    address: Ipv4Addr,
    range: RangeInclusive<u16>,
    next: u16,
    networks: Arc<[Network]>,
}

/// A tunnel's proxy port. It outlives the endpoint processes that serve it.
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    pub address: SocketAddr,
    /// Where browsers may come from (`--proxy-networks`).
    networks: Arc<[Network]>,
    /// When the log was told last that somebody came from elsewhere.
    told: Mutex<Option<Instant>>,
    /// Local addresses of own connections under way: the self-test.
    probes: Mutex<HashSet<SocketAddr>>,
    /// Browsers that an endpoint died too soon for: its successor gets them first.
    left: Mutex<Vec<OwnedFd>>,
}

impl Ports {
    /// Ports of `range` on `address`, for browsers of `networks`.
    pub fn new(address: Ipv4Addr, range: RangeInclusive<u16>, networks: &[Network]) -> Self {
        Self {
            address,
            next: *range.start(),
            range,
            networks: networks.into(),
        }
    }

    /// Listens on the next port that is free.
    ///
    /// # Errors
    /// No port of the range is free, or the system refuses for another reason.
    pub fn listen(&mut self) -> io::Result<Listener> {
        for _ in self.range.clone() {
            let port = self.next;
            self.next = if port == *self.range.end() {
                *self.range.start()
            } else {
                port + 1
            };
            match TcpListener::bind(SocketAddrV4::new(self.address, port)) {
                Ok(socket) => return Listener::new(socket, self.networks.clone()),
                Err(e) if matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no proxy port is free"))
    }

    /// Listens where an endpoint had its port before.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen_again(&self, address: SocketAddr) -> io::Result<Listener> {
        TcpListener::bind(address).and_then(|socket| Listener::new(socket, self.networks.clone()))
    }
}

impl Listener {
    fn new(socket: TcpListener, networks: Arc<[Network]>) -> io::Result<Self> {
        // Once more, for the library's own length is 128: a suite's start would lose SYNs and wait a second for each.
        rustix::net::listen(&socket, LISTEN_BACKLOG)?;
        socket.set_nonblocking(true)?;
        // What it accepts inherits this, and no endpoint has to ask for it.
        sockopt::set_tcp_nodelay(&socket, true)?;
        let address = socket.local_addr()?;
        Ok(Self {
            socket: watch(socket.into(), Interest::READABLE)?,
            address,
            networks,
            told: Mutex::default(),
            probes: Mutex::default(),
            left: Mutex::default(),
        })
    }

    /// Connects to this port like a browser. The socket is known before its connection can be accepted, and only by
    /// an address that nobody else can have: no browser passes for it.
    ///
    /// # Errors
    /// What the system says.
    pub async fn probe(self: &Arc<Self>) -> io::Result<Probe> {
        let mut target = self.address;
        if target.ip().is_unspecified() {
            target.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(target.ip(), 0))?;
        let own = socket.local_addr()?;
        self.probes().insert(own);
        let registered = Registered {
            listener: Arc::clone(self),
            own,
        };
        Ok(Probe {
            stream: socket.connect(target).await?,
            _registered: registered,
        })
    }

    /// Accepts what waits, at most `most`; waits for the first. Returns how many it took.
    async fn turn(&self, most: usize, accepted: &mut Accepted<'_>) -> usize {
        let mut count = 0;
        while count < most {
            let Ok(mut guard) = self.socket.readable().await else {
                break;
            };
            match guard.try_io(|listener| self.accept(listener.get_ref())) {
                Ok(Ok((socket, visitor))) => {
                    count += 1;
                    accepted.of(visitor).push(socket);
                }
                // The client has given up already.
                Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Ok(Err(e)) => {
                    tracing::warn!(port = self.address.port(), "accepting pauses: {e}");
                    drop(guard);
                    tokio::time::sleep(BROKER_PAUSE).await;
                    break;
                }
                Err(_would_block) if count == 0 => {}
                Err(_would_block) => break,
            }
        }
        count
    }

    fn accept(&self, listener: &OwnedFd) -> io::Result<(OwnedFd, Visitor)> {
        let (socket, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
        let peer = peer.and_then(|p| SocketAddr::try_from(p).ok());
        let is_authorized = |peer: SocketAddr| self.networks.iter().any(|network| network.contains(peer.ip()));
        let visitor = match peer {
            Some(peer) if self.probes().remove(&peer) => Visitor::Probe,
            Some(peer) if is_authorized(peer) => Visitor::Browser,
            _ => Visitor::Stranger,
        };
        if visitor == Visitor::Stranger {
            self.tell_stranger(peer);
        }
        Ok((socket, visitor))
    }

    /// Says in the log where one came from, if none did just now: anybody can connect as often as they like.
    fn tell_stranger(&self, peer: Option<SocketAddr>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= ERROR_LINES_APART) {
            *told = Some(Instant::now());
            let from = peer.map_or_else(|| "an unknown address".to_owned(), |peer| peer.ip().to_string());
            let port = self.address.port();
            tracing::info!("proxy port {port}: a browser from {from}, which no network of --proxy-networks holds");
        }
    }

    fn left(&self) -> std::sync::MutexGuard<'_, Vec<OwnedFd>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn probes(&self) -> std::sync::MutexGuard<'_, HashSet<SocketAddr>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An own connection to a proxy port.
pub struct Probe {
    pub stream: tokio::net::TcpStream,
    _registered: Registered,
}

struct Registered {
    listener: Arc<Listener>,
    own: SocketAddr,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.listener.probes().remove(&self.own);
    }
}

/// Sockets in one message: fewer to many shards, so that together no more than [`FDS_WAITING_MAX`] wait.
fn batch_max(shards: usize) -> usize {
    (FDS_WAITING_MAX / MESSAGES_MIN / shards).clamp(1, ACCEPTS_PER_TURN)
}

/// The way to one shard of an endpoint.
pub struct ShardSender {
    socket: Seqpacket,
    passed: u64,
}

impl ShardSender {
    /// A sender for one of `shards`, and the end that the endpoint gets.
    ///
    /// # Errors
    /// What the system says.
    pub fn pair(shards: usize) -> io::Result<(Self, OwnedFd)> {
        let (own, endpoint) = seqpacket::pair()?;
        // The kernel doubles the figure; it refuses a message once that much is waiting.
        let messages = FDS_WAITING_MAX / shards / batch_max(shards);
        sockopt::set_socket_send_buffer_size(&own, messages * MESSAGE_COST_BYTES / 2)?;
        let sender = Self {
            socket: Seqpacket::new(own)?,
            passed: 0,
        };
        Ok((sender, endpoint))
    }
}

/// Accepts on `listener` and passes on, until the endpoint is gone: the other end of its `control` is closed. What it
/// has accepted then and not passed waits for the next endpoint. Strangers are closed where the endpoint does not know
/// them.
pub async fn run(
    listener: Arc<Listener>,
    control: Arc<Seqpacket>,
    mut shards: Vec<ShardSender>,
    knows_strangers: bool,
) {
    let most = batch_max(shards.len().max(1));
    let mut accepted = Accepted::on(&listener);
    let mut many = false;
    loop {
        if !knows_strangers {
            accepted.strangers.clear();
        }
        for visitor in [Visitor::Probe, Visitor::Browser, Visitor::Stranger] {
            while !accepted.of(visitor).is_empty() {
                let next = accepted.of(visitor).len().min(most);
                let sockets: Vec<_> = accepted.of(visitor)[..next].iter().map(AsFd::as_fd).collect();
                if pass(&control, &mut shards, visitor, &sockets).await.is_err() {
                    return;
                }
                accepted.of(visitor).drain(..next);
            }
        }
        if many {
            // Waking up for every second browser costs more than it does itself: on a busy machine the others have their
            // turn first, and all who have come by then go together. On an idle one this waits for nothing.
            std::thread::yield_now();
        }
        tokio::task::yield_now().await;
        many = listener.turn(most, &mut accepted).await > 1;
    }
}

/// Connections that are not passed on yet. Browsers that are left when the endpoint dies wait for the next one.
struct Accepted<'a> {
    listener: &'a Listener,
    browsers: Vec<OwnedFd>,
    probes: Vec<OwnedFd>,
    strangers: Vec<OwnedFd>,
}

impl<'a> Accepted<'a> {
    fn on(listener: &'a Listener) -> Self {
        let browsers = std::mem::take(&mut *listener.left());
        Self {
            listener,
            browsers,
            probes: Vec::new(),
            strangers: Vec::new(),
        }
    }

    fn of(&mut self, visitor: Visitor) -> &mut Vec<OwnedFd> {
        match visitor {
            Visitor::Browser => &mut self.browsers,
            Visitor::Probe => &mut self.probes,
            Visitor::Stranger => &mut self.strangers,
        }
    }
}

impl Drop for Accepted<'_> {
    fn drop(&mut self) {
        self.listener.left().append(&mut self.browsers);
    }
}

/// Passes to the least loaded shard that has room, and waits while none has: meanwhile the listener's own queue holds
/// the browsers.
async fn pass(
    control: &Seqpacket,
    shards: &mut [ShardSender],
    visitor: Visitor,
    sockets: &[BorrowedFd<'_>],
) -> io::Result<()> {
    loop {
        // A ring lets go of a dead shard's socket some milliseconds after its process has ended, and what was passed there
        // meanwhile is reset.
        if control.is_closed() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        shards.sort_by_key(|s| s.passed);
        for shard in shards.iter_mut() {
            match shard.socket.try_send(&[visitor.byte()], sockets) {
                Ok(()) => {
                    shard.passed += sockets.len() as u64;
                    return Ok(());
                }
                Err(e) if is_full(&e) => {}
                Err(e) => return Err(e),
            }
        }
        // The first shard to have room may be any of them.
        let Some(least) = shards.first() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let _ = tokio::time::timeout(BROKER_PAUSE, least.socket.writable()).await;
    }
}

/// `ETOOMANYREFS`: this user has too many descriptors under way between processes.
fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || e.raw_os_error() == Some(rustix::io::Errno::TOOMANYREFS.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn run_test<T>(test: impl Future<Output = T>) -> T {
        crate::runtime::Runtime::epoll().unwrap().block_on(test)
    }

    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

    /// The broker's end, and the endpoint's.
    fn control() -> (Arc<Seqpacket>, OwnedFd) {
        let (own, theirs) = seqpacket::pair().unwrap();
        (Arc::new(Seqpacket::new(own).unwrap()), theirs)
    }

    fn listener() -> Arc<Listener> {
        let networks = ["127.0.0.1".parse().unwrap()];
        Arc::new(Listener::new(TcpListener::bind("127.0.0.1:0").unwrap(), networks.into()).unwrap())
    }

    #[test]
    fn only_the_own_connection_is_a_probe() {
        run_test(async {
            let listener = listener();
            let (control, theirs) = control();
            let (sender, shard) = ShardSender::pair(1).unwrap();
            let shard = Seqpacket::new(shard).unwrap();
            let broker = tokio::spawn(run(Arc::clone(&listener), control, vec![sender], true));
            let browser = TcpStream::connect(listener.address).unwrap();
            let probe = listener.probe().await.unwrap();
            let expected = [
                (browser.local_addr().unwrap(), Visitor::Browser),
                (probe.stream.local_addr().unwrap(), Visitor::Probe),
            ];
            let (mut seen, mut buffer) = (Vec::new(), Vec::new());
            while seen.len() < expected.len() {
                let sockets = shard.receive(&mut buffer).await.unwrap().unwrap();
                for socket in sockets {
                    let flags = rustix::fs::fcntl_getfl(&socket).unwrap();
                    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
                    assert!(sockopt::tcp_nodelay(&socket).unwrap());
                    seen.push((TcpStream::from(socket).peer_addr().unwrap(), Visitor::of(buffer[0])));
                }
            }
            seen.sort_by_key(|(peer, _)| *peer);
            let mut expected = expected.to_vec();
            expected.sort_by_key(|(peer, _)| *peer);
            assert_eq!(seen, expected);
            drop(probe);
            assert!(listener.probes().is_empty());
            // Without an endpoint the broker stops at the next browser, and the next endpoint gets it, whatever the kernel
            // has closed of the last one's.
            let mut expected = Vec::new();
            let mut stop = |broker: tokio::task::JoinHandle<()>| {
                let last = TcpStream::connect(listener.address).unwrap();
                expected.push(last.local_addr().unwrap());
                async move {
                    tokio::time::timeout(PATIENCE, broker).await.unwrap().unwrap();
                    last
                }
            };
            drop(theirs);
            let first = stop(broker).await;
            let (control, _theirs) = self::control();
            let (sender, shard) = ShardSender::pair(1).unwrap();
            drop(shard);
            let second = stop(tokio::spawn(run(Arc::clone(&listener), control, vec![sender], true))).await;
            let (control, _theirs) = self::control();
            let (sender, shard) = ShardSender::pair(1).unwrap();
            let shard = Seqpacket::new(shard).unwrap();
            let broker = tokio::spawn(run(Arc::clone(&listener), control, vec![sender], true));
            let mut peers = Vec::new();
            while peers.len() < expected.len() {
                let sockets = shard.receive(&mut buffer).await.unwrap().unwrap();
                peers.extend(sockets.into_iter().map(|s| TcpStream::from(s).peer_addr().unwrap()));
            }
            assert_eq!(peers, expected);
            drop((first, second));
            broker.abort();
        });
    }

    #[test]
    fn few_sockets_wait_for_a_stalled_endpoint() {
        run_test(async {
            for shards in [1, 2, 3, 4, 8, 16, 32] {
                let (sender, _stalled) = ShardSender::pair(shards).unwrap();
                let sockets: Vec<_> = (0..batch_max(shards))
                    .map(|_| rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap())
                    .collect();
                let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
                let mut waiting = 0;
                while sender.socket.try_send(&[Visitor::Browser.byte()], &fds).is_ok() {
                    waiting += fds.len();
                    assert!(waiting <= 4 * FDS_WAITING_MAX, "no bound");
                }
                assert!(
                    waiting > 0 && waiting * shards <= FDS_WAITING_MAX,
                    "{shards}: {waiting}"
                );
            }
        });
    }

    #[test]
    fn ports_are_taken_in_turn_and_run_out() {
        run_test(async {
            let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut ports = Ports::new(Ipv4Addr::LOCALHOST, free..=free, &[]);
            let first = ports.listen().unwrap();
            assert_eq!(first.address.port(), free);
            assert_eq!(ports.listen().err().unwrap().kind(), io::ErrorKind::AddrInUse);
            drop(first);
            assert!(ports.listen().is_ok());
        });
    }
}
