//! Both roles with the real proxy in one process: a browser's CONNECT to a site on loopback, bulk both ways, and what it
//! costs in copied bytes. Alone in its binary: the counter of copies is the process's.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use dataplane::client::{self, Client, ClientConfig};
use dataplane::endpoint::{self, Driver, Endpoint, EndpointConfig, Event, Member};
use dataplane::limits::ENDPOINT_STREAMS_MAX;
use dataplane::settings::Settings;
use dataplane::tls::Identity;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};

const NAME: &str = "00ff.tunnel.culvert";
const PATIENCE: Duration = Duration::from_secs(20);
const BULK_BYTES: usize = 48 * 1024 * 1024;

struct Tunnel {
    broker: OwnedFd,
    endpoint: Arc<Endpoint>,
    client: Client,
}

impl Tunnel {
    fn new(driver: Driver) -> Self {
        let (own, server) = (
            Arc::new(Identity::generate().unwrap()),
            Arc::new(Identity::generate().unwrap()),
        );
        let settings = Arc::new(Settings {
            version: 1,
            json: b"{}".as_slice().into(),
            ..Settings::default()
        });
        let (broker, browsers) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let fingerprint = server.fingerprint();
        let endpoint = Arc::new(
            endpoint::prepare(EndpointConfig {
                shards: 1,
                identity: server,
                settings: settings.clone(),
                driver,
                max_streams: ENDPOINT_STREAMS_MAX,
                memory_bytes: dataplane::limits::ENDPOINT_MEMORY_BYTES,
                browsers: vec![browsers],
                ca: None,
                dark: None,
            })
            .unwrap()
            .run(),
        );
        let member = Member {
            id: own.member(),
            fingerprint: own.fingerprint(),
            index: 0,
        };
        endpoint.attach(member);
        let front = TcpListener::bind("127.0.0.1:0").unwrap();
        let cloud = front.local_addr().unwrap();
        let to = endpoint.clone();
        std::thread::spawn(move || {
            for link in front.incoming() {
                let link = link.unwrap();
                link.set_nonblocking(true).unwrap();
                to.link(member.id, 0, link.into(), Vec::new());
            }
        });
        let client = client::start(ClientConfig {
            shards: 1,
            links: 1,
            cloud,
            server_name: NAME.to_owned(),
            fingerprint,
            identity: own,
            settings,
            driver,
            denied: vec![cloud],
            max_streams: ENDPOINT_STREAMS_MAX,
            memory_bytes: dataplane::limits::CLIENT_MEMORY_BYTES,
            trust: dataplane::bump::Trust {
                roots: Arc::new(rustls::RootCertStore::empty()),
                insecure: Default::default(),
            },
            credentials: Default::default(),
        })
        .unwrap();
        let tunnel = Self {
            broker,
            endpoint,
            client,
        };
        while !matches!(
            tunnel.endpoint.events().recv_timeout(PATIENCE).unwrap(),
            Event::LinkUp { .. }
        ) {}
        tunnel.await_probe();
        tunnel
    }

    /// A link is up a round trip before it takes streams.
    fn await_probe(&self) {
        for _ in 0..1_000 {
            let mut browser = self.browser(1);
            browser.write_all(b"GET http://probe.culvert.invalid/abc HTTP/1.1\r\nHost: probe.culvert.invalid\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            browser.read_to_string(&mut answer).unwrap();
            if answer.starts_with("HTTP/1.1 200 ") {
                return assert!(answer.contains("abc"), "{answer}");
            }
        }
        panic!("the self-test does not succeed");
    }

    fn browser(&self, kind: u8) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let browser = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        browser.set_read_timeout(Some(PATIENCE)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [accepted.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let message = [IoSlice::new(std::slice::from_ref(&kind))];
        rustix::net::sendmsg(&self.broker, &message, &mut control, SendFlags::empty()).unwrap();
        browser
    }

    /// CONNECT; what follows is opaque.
    fn connect(&self, site: SocketAddr) -> TcpStream {
        let mut browser = self.browser(0);
        write!(browser, "CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            browser.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        browser
    }
}

fn bulk() -> Vec<u8> {
    (0..BULK_BYTES as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect()
}

/// A site that takes all, then sends all back: one direction at a time.
fn site() -> (SocketAddr, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut first = String::new();
        // The line keeps the connection opaque: it is no HTTP.
        BufReader::with_capacity(1, &socket).read_line(&mut first).unwrap();
        assert_eq!(first, "\u{1}opaque\n");
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        socket.write_all(&all).unwrap();
    });
    (address, thread)
}

#[test]
fn bulk_through_connect_is_exact_and_hardly_copied() {
    for driver in [Driver::Epoll, Driver::Auto] {
        let tunnel = Tunnel::new(driver);
        let (address, site) = site();
        let mut browser = tunnel.connect(address);
        let bytes = bulk();
        let before = copied();
        browser.write_all(b"\x01opaque\n").unwrap();
        browser.write_all(&bytes).unwrap();
        browser.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        browser.read_to_end(&mut back).unwrap();
        site.join().unwrap();
        assert!(back == bytes, "bytes differ: {} of {}", back.len(), bytes.len());
        let passed = (2 * BULK_BYTES) as f64;
        let ratio = 1.0 + (copied() - before) as f64 / (2.0 * passed);
        println!("{driver:?}: {ratio:.3} bytes touched a byte and end, the cipher included");
        assert!(ratio <= 1.15, "{ratio}");
        tunnel.client.stop();
    }
}

#[cfg(feature = "count-copies")]
fn copied() -> u64 {
    dataplane::copies::copied_bytes()
}

#[cfg(not(feature = "count-copies"))]
fn copied() -> u64 {
    0
}
