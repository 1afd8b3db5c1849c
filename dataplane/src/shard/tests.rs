//! Both roles in one process, over real TCP and TLS on loopback. A browser's bytes go through one opaque stream to an echo.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};

use super::runtime::{self, Driver, Socket};
use super::transport::Transport;
use super::{Services, Shard, Stream, Visitor, pair, timers};
use crate::bump::Trust;
use crate::client::{self, Client, ClientConfig};
use crate::endpoint::{self, Endpoint, EndpointConfig, Event, Member};
use crate::limits::{BASE_CREDIT_PEER_BYTES, FRAME_HEADER_BYTES, LINK_NOTSENT_BYTES};
use crate::mux::{Code, Kind, Open, Opened, Recv};
use crate::rules::Domains;
use crate::settings::Settings;
use crate::tls::{Fingerprint, Identity};

const NAME: &str = "0123456789abcdef.tunnel.culvert";

/// A test that waits this long for something waits in vain.
const PATIENCE: Duration = Duration::from_secs(20);

const TEST: Services = Services {
    site: |shard, stream| shard.spawn(echo(stream)),
    browser: |shard, socket, visitor| shard.spawn(browse(shard.clone(), socket, visitor)),
};

async fn echo(stream: Stream) {
    if stream.open().kind == Kind::Tcp {
        stream.opened(Opened {
            family: 4,
            port: 1,
            ..Opened::default()
        });
    }
    loop {
        match stream.next().await {
            Recv::Data(bytes) => {
                if stream.send(&bytes).await.is_err() {
                    return;
                }
                stream.consumed(bytes.len());
            }
            Recv::Fin(_) => return stream.finish(None),
            _ => return,
        }
    }
}

/// The self-test's nonce is fixed; other connections are relayed.
async fn browse(shard: Shard, socket: Socket, visitor: Visitor) {
    let _counted = shard.count_connection();
    if visitor == Visitor::Probe {
        let text = match shard.probe(None, b"nonce").await {
            Ok(()) => "echoed".to_owned(),
            Err((code, text)) => format!("{}: {text}", code.name()),
        };
        return drop(socket.write_all(text.as_bytes()).await);
    }
    // One kind waits until it is accepted, the other sends at once.
    let kind = [Kind::Http, Kind::Tcp][(shard.0.counters.requests.value() % 2) as usize];
    let open = Open {
        kind,
        settings: 1,
        credit: 0,
        port: 80,
        host: Bytes::from_static(b"site.test"),
        shown: None,
    };
    let stream = match shard.open(open, None).await {
        Ok(stream) => stream,
        Err((code, _)) => return drop(socket.write_all(code.name().as_bytes()).await),
    };
    stream.count_request();
    if kind == Kind::Tcp {
        match stream.accepted().await {
            Ok(opened) => assert_eq!((opened.family, opened.port), (4, 1)),
            Err((code, _)) => return drop(socket.write_all(code.name().as_bytes()).await),
        }
    }
    let socket = Transport::from(socket);
    let inwards = async {
        inwards(&shard, &socket, &stream).await;
        Ok::<(), ()>(())
    };
    let outwards = async {
        outwards(&socket, &stream).await;
        Ok(())
    };
    let _ = pair::both(inwards, outwards).await;
}

async fn inwards(shard: &Shard, socket: &Transport, stream: &Stream) {
    while let Ok(room) = stream.room().await {
        match shard.buffers().read(socket, room, |frame| {
            assert!(frame.len() > FRAME_HEADER_BYTES);
            stream.write(frame);
        }) {
            Ok(0) => return stream.finish(None),
            Ok(_) => runtime::yield_now().await,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => socket.readable().await.unwrap(),
            Err(_) => return stream.reset(Code::Cancelled, ""),
        }
    }
}

async fn outwards(socket: &Transport, stream: &Stream) {
    loop {
        match stream.next().await {
            Recv::Data(mut bytes) => {
                let mut full = false;
                let mut taken = 0;
                while !bytes.is_empty() && !full {
                    match socket.try_write(&[IoSlice::new(&bytes)]) {
                        Ok(n) => {
                            taken += n;
                            bytes.advance(n);
                        }
                        Err(_) => full = true,
                    }
                }
                drop(bytes);
                stream.consumed(taken);
                if full {
                    stream.rewind();
                    if socket.writable().await.is_err() {
                        return;
                    }
                }
            }
            Recv::Fin(_) => return socket.finish().await,
            Recv::Reset(..) | Recv::Gone | Recv::Pending => return socket.socket().shutdown(Shutdown::Both),
        }
    }
}

/// A stopped path still takes what its kernel buffer to the front (twice what is asked for) has room for, and two reads: less
/// than half of `LINK_NOTSENT_BYTES`.
const PATH_READ_BYTES: usize = 4_096;
const PATH_BUFFER_BYTES: usize = 16_384;
const _: () = assert!(2 * PATH_BUFFER_BYTES + 2 * PATH_READ_BYTES < LINK_NOTSENT_BYTES as usize / 2);

/// A path between `sc` and the front that can be stopped: bytes stay where they are, and new connections are closed.
struct Path {
    address: SocketAddr,
    stopped: Arc<(Mutex<bool>, Condvar)>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Path {
    fn to(front: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let path = Self {
            address: listener.local_addr().unwrap(),
            stopped: Arc::default(),
            connections: Arc::default(),
        };
        let (stopped, connections) = (path.stopped.clone(), path.connections.clone());
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                if *stopped.0.lock().unwrap() {
                    continue;
                }
                let far = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                // Before the first window is offered.
                far.set_recv_buffer_size(PATH_BUFFER_BYTES).unwrap();
                far.connect(&front.into()).unwrap();
                let far = TcpStream::from(far);
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to, stopped) = (from.try_clone().unwrap(), to.try_clone().unwrap(), stopped.clone());
                    std::thread::spawn(move || carry(from, to, &stopped));
                }
                connections.lock().unwrap().extend([near, far]);
            }
        });
        path
    }

    fn stop(&self, stop: bool) {
        *self.stopped.0.lock().unwrap() = stop;
        self.stopped.1.notify_all();
    }

    fn cut(&self) {
        for socket in self.connections.lock().unwrap().drain(..) {
            socket.shutdown(Shutdown::Both).unwrap_or_default();
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, stopped: &(Mutex<bool>, Condvar)) {
    let mut buffer = vec![0; PATH_READ_BYTES];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let held = stopped.0.lock().unwrap();
        drop(stopped.1.wait_while(held, |stopped| *stopped).unwrap());
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Both roles, with what stands between them in the cloud: a front that accepts links, a broker that passes browsers.
struct Pair {
    client: Option<Client>,
    endpoint: Arc<Endpoint>,
    member: Member,
    front: SocketAddr,
    /// Accepted sockets of links, newest last.
    connections: Arc<Mutex<Vec<(u16, TcpStream)>>>,
    brokers: Vec<OwnedFd>,
    identity: Arc<Identity>,
    server: Fingerprint,
    driver: Driver,
    services: Services,
}

impl Pair {
    fn new(driver: Driver, shards: usize, links: u16) -> Self {
        Self::serving(TEST, driver, shards, links)
    }

    fn serving(services: Services, driver: Driver, shards: usize, links: u16) -> Self {
        let mut pair = Self::without_client(services, driver, shards);
        pair.client = Some(pair.dial(pair.front, links, pair.server));
        pair.await_links(usize::from(links));
        pair
    }

    fn over(driver: Driver, links: u16) -> (Self, Path) {
        let mut pair = Self::without_client(TEST, driver, 1);
        let path = Path::to(pair.front);
        pair.client = Some(pair.dial(path.address, links, pair.server));
        pair.await_links(usize::from(links));
        (pair, path)
    }

    fn without_client(services: Services, driver: Driver, shards: usize) -> Self {
        let identity = Arc::new(Identity::generate().unwrap());
        let own = Arc::new(Identity::generate().unwrap());
        let server = own.fingerprint();
        let (mut brokers, mut browsers) = (Vec::new(), Vec::new());
        for _ in 0..shards {
            let flags = SocketFlags::CLOEXEC;
            let (near, far) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            brokers.push(near);
            browsers.push(far);
        }
        let settings = Arc::new(Settings {
            version: 1,
            json: b"{}".as_slice().into(),
            ..Settings::default()
        });
        let config = EndpointConfig {
            shards,
            identity: own,
            settings,
            driver,
            max_streams: 1_000,
            memory_bytes: crate::limits::ENDPOINT_MEMORY_BYTES,
            browsers,
            ca: None,
            dark: None,
        };
        let endpoint = Arc::new(endpoint::prepare_with(config, services).unwrap().run());
        let member = Member {
            id: identity.member(),
            fingerprint: identity.fingerprint(),
            index: 0,
        };
        endpoint.attach(member);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (passed, to) = (connections.clone(), endpoint.clone());
        std::thread::spawn(move || {
            for link in listener.incoming() {
                accept_link(link.unwrap(), &to, member.id, &passed);
            }
        });
        Self {
            client: None,
            endpoint,
            member,
            front,
            connections,
            brokers,
            identity,
            server,
            driver,
            services,
        }
    }

    fn dial(&self, cloud: SocketAddr, links: u16, fingerprint: Fingerprint) -> Client {
        let config = ClientConfig {
            shards: self.brokers.len(),
            links,
            cloud,
            server_name: NAME.to_owned(),
            fingerprint,
            identity: self.identity.clone(),
            settings: Arc::new(Settings {
                version: 1,
                json: b"{}".as_slice().into(),
                ..Settings::default()
            }),
            driver: self.driver,
            denied: Vec::new(),
            trust: Trust {
                roots: Arc::new(rustls::RootCertStore::empty()),
                insecure: Domains::default(),
            },
            credentials: Default::default(),
            max_streams: 1_000,
            memory_bytes: crate::limits::CLIENT_MEMORY_BYTES,
        };
        client::start_with(config, self.services).unwrap()
    }

    fn await_links(&self, links: usize) {
        wait(&self.endpoint, |e, up: &mut isize| {
            match e {
                Event::LinkUp { .. } => *up += 1,
                Event::LinkDown { .. } => *up -= 1,
                Event::Failed(text) => panic!("{text}"),
                _ => {}
            }
            *up == links as isize
        });
    }

    /// A browser's connection, handed to one of the shards.
    fn browser(&self, shard: usize, kind: u8) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let browser = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        browser.set_read_timeout(Some(PATIENCE)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        self.hand_over(shard, kind, &accepted);
        browser
    }

    /// A browser whose connection holds little, for the time that it does not read.
    fn narrow_browser(&self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let browser = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        browser.set_read_timeout(Some(PATIENCE)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        socket2::SockRef::from(&accepted).set_send_buffer_size(32_768).unwrap();
        socket2::SockRef::from(&browser).set_recv_buffer_size(65_536).unwrap();
        self.hand_over(0, 0, &accepted);
        browser
    }

    fn hand_over(&self, shard: usize, kind: u8, accepted: &TcpStream) {
        accepted.set_nonblocking(true).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [accepted.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let message = [IoSlice::new(std::slice::from_ref(&kind))];
        rustix::net::sendmsg(&self.brokers[shard], &message, &mut control, SendFlags::empty()).unwrap();
    }

    /// The self-test's answer, once all links are live: a link is up a round trip before it takes streams.
    fn probe(&self, shard: usize) -> String {
        let since = Instant::now();
        loop {
            let mut text = String::new();
            self.browser(shard, 1).read_to_string(&mut text).unwrap();
            if text == "echoed" || since.elapsed() > PATIENCE {
                return text;
            }
        }
    }

    /// Waits until the newest connection, whose path has been stopped, is full, and keeps it so: its writer gets no room again.
    ///
    /// That a socket is full proves nothing by itself: the path's kernel takes what its window has left when the probe
    /// timer runs out, 200 ms later. But full means half of `LINK_NOTSENT_BYTES` unsent, more than the path can take; and
    /// from here on there is room only once nothing is unsent.
    fn block(&self) {
        let socket = self.connections.lock().unwrap().last().unwrap().1.try_clone().unwrap();
        let since = Instant::now();
        let now = rustix::event::Timespec::default();
        while rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&now)).unwrap() > 0 {
            assert!(since.elapsed() < PATIENCE, "the path still takes bytes");
            std::thread::yield_now();
        }
        socket2::SockRef::from(&socket).set_tcp_notsent_lowat(1).unwrap();
    }

    /// Cuts every connection of a link.
    fn cut(&self, link: u16) {
        self.connections.lock().unwrap().retain(|(number, socket)| {
            if *number == link {
                socket.shutdown(Shutdown::Both).unwrap_or_default();
            }
            *number != link
        });
    }
}

fn accept_link(mut link: TcpStream, endpoint: &Endpoint, member: [u8; 16], passed: &Mutex<Vec<(u16, TcpStream)>>) {
    let mut hello = vec![0; 4_096];
    let read = link.read(&mut hello).unwrap();
    hello.truncate(read);
    let Some(at) = hello.windows(NAME.len()).position(|w| w == NAME.as_bytes()) else {
        return;
    };
    let number = u16::from(hello[at - 2] - b'0');
    passed.lock().unwrap().push((number, link.try_clone().unwrap()));
    link.set_nonblocking(true).unwrap();
    endpoint.link(member, number, link.into(), hello);
}

/// Waits until `enough` of the endpoint's events have come.
fn wait<T: Default>(endpoint: &Endpoint, mut enough: impl FnMut(Event, &mut T) -> bool) {
    let mut state = T::default();
    loop {
        let event = endpoint.events().recv_timeout(PATIENCE).expect("an event");
        if enough(event, &mut state) {
            return;
        }
    }
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (((i + seed) * 2_654_435_761) >> 13) as u8)
        .collect()
}

/// Sends `bytes` and reads them back at the same time.
fn exchange(browser: TcpStream, bytes: Vec<u8>) -> Vec<u8> {
    let mut writer = browser.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        // A cut that shows is seen by the reader.
        let _ = writer.write_all(&bytes);
        let _ = writer.shutdown(Shutdown::Write);
    });
    let mut back = Vec::new();
    let mut reader = browser;
    let _ = reader.read_to_end(&mut back);
    sender.join().unwrap();
    back
}

fn on_both_drivers(test: impl Fn(Driver)) {
    test(Driver::Epoll);
    test(Driver::Auto);
}

#[test]
fn self_test_and_bulk_over_two_shards() {
    on_both_drivers(|driver| {
        let pair = Pair::new(driver, 2, 2);
        assert_eq!(pair.probe(0), "echoed");
        let browsers: Vec<_> = (0..4)
            .map(|n| {
                let (browser, bytes) = (pair.browser(n % 2, 0), pattern(3_000_000, n));
                std::thread::spawn(move || assert!(exchange(browser, bytes.clone()) == bytes, "bytes differ"))
            })
            .collect();
        browsers.into_iter().for_each(|b| b.join().unwrap());
        let report = pair.endpoint.report();
        assert_eq!(
            (report.requests, report.links_up, report.bytes_out >= 12_000_000),
            (4, 2, true)
        );
        assert_eq!(pair.client.as_ref().unwrap().report().links_up, 2);
    });
}

#[test]
fn a_cut_is_invisible() {
    on_both_drivers(|driver| {
        let pair = Pair::new(driver, 1, 1);
        assert_eq!(pair.probe(0), "echoed");
        let bytes = pattern(20_000_000, 9);
        let (browser, sent) = (pair.browser(0, 0), bytes.clone());
        let transfer = std::thread::spawn(move || exchange(browser, sent));
        while pair.endpoint.report().bytes_out < 2_000_000 {
            std::thread::yield_now();
        }
        pair.cut(0);
        // Begun while nothing is up: waits, and is placed once the link is back.
        let meanwhile = pair.browser(0, 0);
        assert_eq!(exchange(meanwhile, b"during the cut".to_vec()), b"during the cut");
        assert!(transfer.join().unwrap() == bytes, "bytes differ");
        let report = pair.endpoint.report();
        assert!(report.resumes >= 1, "{report:?}");
        assert!(report.resets.iter().all(|(_, n)| *n == 0), "{report:?}");
    });
}

#[test]
fn many_cuts_lose_and_double_nothing() {
    on_both_drivers(|driver| {
        let pair = Pair::new(driver, 2, 2);
        assert_eq!(pair.probe(0), "echoed");
        let transfers: Vec<_> = (0..4)
            .map(|n| {
                let (browser, bytes) = (pair.browser(n % 2, 0), pattern(15_000_000, n));
                std::thread::spawn(move || assert!(exchange(browser, bytes.clone()) == bytes, "bytes differ"))
            })
            .collect();
        let mut cuts = 0;
        while transfers.iter().any(|t| !t.is_finished()) {
            // Each cut falls into the transfer, some into the replay that the cut before caused.
            let (before, since) = (pair.endpoint.report(), Instant::now());
            while pair.endpoint.report().bytes_in < before.bytes_in + 4_000_000
                && transfers.iter().any(|t| !t.is_finished())
            {
                assert!(since.elapsed() < PATIENCE, "no progress: {:?}", pair.endpoint.report());
                std::thread::yield_now();
            }
            // A connection that lived shorter than two seconds is dialled again only after as long: five are enough.
            if cuts < 5 {
                pair.cut(cuts % 2);
                cuts += 1;
            }
        }
        transfers.into_iter().for_each(|t| t.join().unwrap());
        assert!(
            cuts > 3 && pair.endpoint.report().resumes > 1,
            "{cuts} cuts, {:?}",
            pair.endpoint.report()
        );
    });
}

/// A dead path blocks the link's writes, so the last OPENs never leave, and are withdrawn when the link has been down for a
/// second. No browser sees any of it.
#[test]
fn opens_that_never_left_are_placed_anew() {
    const FIRST: usize = 150;
    const LATE: usize = 10;
    let (pair, path) = Pair::over(Driver::Auto, 1);
    assert_eq!(pair.probe(0), "echoed");
    path.stop(true);
    let bytes = pattern(20_000, 5);
    let mut browsers = Vec::new();
    let mut open = |count| {
        for _ in 0..count {
            let mut browser = pair.browser(0, 0);
            browser.write_all(&bytes).unwrap();
            browser.shutdown(Shutdown::Write).unwrap();
            browsers.push(browser);
        }
        let (opened, since) = (1 + browsers.len() as u64, Instant::now());
        while pair.endpoint.report().streams_opened < opened {
            assert!(since.elapsed() < PATIENCE, "{:?}", pair.endpoint.report());
            std::thread::yield_now();
        }
    };
    open(FIRST);
    // Half of them send as much as their first credit, far more than the path takes.
    while pair.endpoint.report().bytes_out < (FIRST / 2 * BASE_CREDIT_PEER_BYTES) as u64 {
        std::thread::yield_now();
    }
    pair.block();
    // The writer may have been between two writes: this OPEN may be part of its last one.
    open(1);
    open(LATE);
    path.cut();
    let client = pair.client.as_ref().unwrap();
    let mut failures = 0;
    while failures < 3 {
        if let Event::DialFailed { wrong_key, .. } = client.events().recv_timeout(PATIENCE).expect("dials fail") {
            assert!(!wrong_key);
            failures += 1;
        }
    }
    let since = Instant::now();
    while pair.endpoint.report().streams_withdrawn < LATE as u64 {
        assert!(since.elapsed() < PATIENCE, "{:?}", pair.endpoint.report());
        std::thread::yield_now();
    }
    path.stop(false);
    for mut browser in browsers {
        let mut back = Vec::new();
        browser.read_to_end(&mut back).unwrap();
        assert!(back == bytes, "bytes differ: {} of {}", back.len(), bytes.len());
    }
    let report = pair.endpoint.report();
    assert!(
        report.streams_moved >= LATE as u64 && report.streams_moved <= FIRST as u64,
        "{report:?}"
    );
}

#[test]
fn wrong_key_is_told() {
    let pair = Pair::without_client(TEST, Driver::Auto, 1);
    let client = pair.dial(pair.front, 1, Identity::generate().unwrap().fingerprint());
    let event = client.events().recv_timeout(PATIENCE).unwrap();
    assert!(
        matches!(
            &event,
            Event::DialFailed {
                link: 0,
                wrong_key: true,
                ..
            }
        ),
        "{event:?}"
    );
    let mut answer = String::new();
    pair.browser(0, 0).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "tunnel-down", "no link since the start: at once");
    client.stop();
}

#[test]
fn drains_and_stops() {
    on_both_drivers(|driver| {
        let mut pair = Pair::new(driver, 2, 3);
        assert_eq!(pair.probe(1), "echoed");
        let client = pair.client.take().unwrap();
        client.drain();
        loop {
            match client.events().recv_timeout(PATIENCE).expect("Drained") {
                Event::Drained => break,
                Event::Failed(text) => panic!("{text}"),
                _ => {}
            }
        }
        client.stop();
        pair.endpoint.detach(pair.member.id);
    });
}

#[test]
fn a_dark_shard_passes_browsers_on() {
    let pair = Pair::new(Driver::Auto, 2, 1);
    assert_eq!(pair.probe(0), "echoed");
    assert_eq!(
        exchange(pair.browser(1, 0), b"over the other shard".to_vec()),
        b"over the other shard"
    );
}

/// Resets that `endless_end` has made.
static RESETS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Answers with a body of as many bytes as the path says, and resets where the end belongs.
async fn endless_end(stream: Stream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Recv::Data(bytes) = stream.next().await else { return };
        head.extend_from_slice(&bytes);
        stream.consumed(bytes.len());
    }
    let path = std::str::from_utf8(&head).unwrap().split(' ').nth(1).unwrap();
    let length: usize = path[1..].parse().unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    let body = [head.into_bytes(), pattern(length, 0)].concat();
    // Where the browser's connection and the stream's credit hold less, the answer is cut inside.
    timers::timeout(Duration::from_millis(500), stream.send(&body)).await;
    runtime::sleep(Duration::from_millis(100)).await;
    stream.reset(Code::SiteReset, "");
    *RESETS.0.lock().unwrap() += 1;
    RESETS.1.notify_all();
}

/// What the browser's full socket had to leave in the stream is lost with the stream, even if the answer's last byte
/// had arrived: the answer must not look complete.
#[test]
fn an_answer_whose_tail_was_lost_in_the_stream_is_cut() {
    let services = Services {
        site: |shard, stream| shard.spawn(endless_end(stream)),
        browser: super::SERVICES.browser,
    };
    on_both_drivers(|driver| {
        let pair = Pair::serving(services, driver, 1, 1);
        let ask = |length: usize| {
            let mut browser = pair.narrow_browser();
            let request = format!("GET http://site.test/{length} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            browser.write_all(request.as_bytes()).unwrap();
            browser
        };
        // A link is up a round trip before it takes streams.
        let (since, client) = (Instant::now(), pair.client.as_ref().unwrap());
        while client.report().streams_opened == 0 {
            assert!(since.elapsed() < PATIENCE, "the link is live");
            drop(ask(0).read_to_end(&mut Vec::new()));
        }
        let before = *RESETS.0.lock().unwrap();
        let browsers: Vec<_> = (2..18).map(|n| n * 16_384).map(|n| (ask(n), n)).collect();
        let all = before + browsers.len();
        let resets = RESETS.0.lock().unwrap();
        let waited = RESETS.1.wait_timeout_while(resets, PATIENCE, |n| *n < all).unwrap();
        assert!(!waited.1.timed_out(), "the site's resets are out");
        drop(waited);
        for (mut browser, length) in browsers {
            let mut answer = Vec::new();
            let clean = browser.read_to_end(&mut answer).is_ok();
            let whole = answer.ends_with(&pattern(length, 0)) || answer.starts_with(b"HTTP/1.1 502 ");
            assert!(
                whole || !clean,
                "{length}: a part of {} bytes looks complete",
                answer.len()
            );
        }
    });
}
