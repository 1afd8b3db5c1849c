//! Both roles in one process, over TCP and TLS on loopback, with what stands between them in the cloud: a front that
//! passes links on and a broker that passes browsers.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dataplane::bump::TunnelCa;
use dataplane::client::{self, Client, ClientConfig, Driver};
use dataplane::endpoint::{self, Endpoint, EndpointConfig, Event, Member};
use dataplane::settings::{Settings, Times};
use dataplane::stats::Report;
use dataplane::tls::{Fingerprint, Identity};
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};

use crate::tls::Connection;

const NAME: &str = "0123456789abcdef.tunnel.culvert";

/// A test that waits this long for something waits in vain.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Rules' version that every error page names.
pub const SETTINGS: u32 = 3;

pub struct Tunnel {
    client: Option<Client>,
    pub endpoint: Arc<Endpoint>,
    pub member: [u8; 16],
    /// What its browsers trust, if their TLS ends here.
    pub trust: Option<Arc<rustls::ClientConfig>>,
    broker: OwnedFd,
    /// Where and whom the client dials.
    cloud: (SocketAddr, Fingerprint),
    /// The last one that came; none comes while this is locked.
    link: Arc<Mutex<Option<TcpStream>>>,
}

impl Tunnel {
    /// A tunnel that has proved that it works. `denied`: listening sockets of its own.
    pub fn start(driver: Driver, denied: Vec<SocketAddr>) -> Self {
        let (tunnel, config) = Self::without_client(driver);
        tunnel.joined_by(ClientConfig { denied, ..config })
    }

    /// Starts the client and waits until both have proved that they work.
    pub fn joined_by(self, client: ClientConfig) -> Self {
        let mut tunnel = self;
        tunnel.client = Some(client::start(client).unwrap());
        // A link is up a round trip before it takes streams.
        for _ in 0..10_000 {
            let answer = tunnel.probe("http://probe.culvert.invalid/nonce");
            if answer.status == 200 {
                assert_eq!(answer.body, b"nonce");
                return tunnel;
            }
            assert_eq!(answer.field("Culvert-Error"), Some("tunnel-down"));
        }
        panic!("the tunnel does not come up");
    }

    /// An endpoint that nobody has dialled, and what a client needs for it.
    pub fn without_client(driver: Driver) -> (Self, ClientConfig) {
        Self::under(driver, None)
    }

    /// The same, with the CA under which TLS of browsers ends.
    pub fn under(driver: Driver, ca: Option<TunnelCa>) -> (Self, ClientConfig) {
        let (identity, own) = (
            Arc::new(Identity::generate().unwrap()),
            Arc::new(Identity::generate().unwrap()),
        );
        let fingerprint = own.fingerprint();
        let flags = SocketFlags::CLOEXEC;
        let (broker, browsers) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let settings = Arc::new(Settings {
            version: SETTINGS,
            json: b"{}".as_slice().into(),
            ..Settings::default()
        });
        let config = EndpointConfig {
            shards: 1,
            identity: own,
            settings: settings.clone(),
            driver,
            max_streams: 1_000,
            memory_bytes: dataplane::limits::ENDPOINT_MEMORY_BYTES,
            browsers: vec![browsers],
            ca,
            dark: None,
        };
        let endpoint = Arc::new(endpoint::prepare(config).unwrap().run());
        let member = identity.member();
        endpoint.attach(Member {
            id: member,
            fingerprint: identity.fingerprint(),
            index: 0,
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cloud = listener.local_addr().unwrap();
        let (front, last) = (endpoint.clone(), Arc::new(Mutex::new(None)));
        let link = last.clone();
        std::thread::spawn(move || {
            for link in listener.incoming() {
                let link = link.unwrap();
                *last.lock().unwrap() = Some(link.try_clone().unwrap());
                pass_link(link, &front, member);
            }
        });
        let config = ClientConfig {
            shards: 1,
            links: 1,
            cloud,
            server_name: NAME.to_owned(),
            fingerprint,
            identity,
            settings,
            driver,
            denied: Vec::new(),
            max_streams: 1_000,
            memory_bytes: dataplane::limits::CLIENT_MEMORY_BYTES,
            trust: dataplane::bump::Trust {
                roots: Arc::new(rustls::RootCertStore::empty()),
                insecure: Default::default(),
            },
            credentials: Default::default(),
        };
        let tunnel = Self {
            client: None,
            endpoint,
            member,
            trust: None,
            broker,
            cloud: (cloud, fingerprint),
            link,
        };
        (tunnel, config)
    }

    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("it was started")
    }

    /// Cuts its link: no other one comes before [`Tunnel::mend`].
    pub fn cut(&self) -> MutexGuard<'_, Option<TcpStream>> {
        let link = self.link.lock().unwrap();
        link.as_ref().unwrap().shutdown(Shutdown::Both).unwrap();
        let told = || self.endpoint.events().recv_timeout(PATIENCE).unwrap();
        while !matches!(told(), Event::LinkDown { .. }) {}
        link
    }

    /// Has the client dial at once.
    pub fn mend(&self, cut: MutexGuard<'_, Option<TcpStream>>) {
        drop(cut);
        self.client().set_cloud(self.cloud.0, self.cloud.1);
    }

    /// A browser's connection to the proxy port.
    pub fn browser(&self) -> Browser {
        Browser::over(self.connect(0))
    }

    /// The answer to a request of the broker's own.
    pub fn probe(&self, url: &str) -> Answer {
        let mut browser = Browser::over(self.connect(1));
        browser.send(format!("GET {url} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        browser.answer("GET")
    }

    fn connect(&self, kind: u8) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let browser = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        browser.set_read_timeout(Some(PATIENCE)).unwrap();
        // As browsers do, and what is sent in parts comes at once.
        browser.set_nodelay(true).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        self.hand_over(&accepted, kind);
        browser
    }

    /// Gives the endpoint the near end of a browser's connection.
    pub fn hand_over(&self, accepted: &TcpStream, kind: u8) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [accepted.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let message = [IoSlice::new(std::slice::from_ref(&kind))];
        rustix::net::sendmsg(&self.broker, &message, &mut control, SendFlags::empty()).unwrap();
    }

    /// The answer to one GET on a connection of its own.
    pub fn get(&self, url: &str) -> Answer {
        let mut browser = self.browser();
        browser.get(url);
        browser.answer("GET")
    }

    /// What `sc` has counted.
    pub fn client_report(&self) -> Report {
        self.client.as_ref().expect("it has joined").report()
    }

    pub fn stop(self) {
        if let Some(client) = self.client {
            client.stop();
        }
        // The front's thread still holds the endpoint, which ends with the process.
        self.endpoint.drain();
    }
}

/// The same client with other time limits.
pub fn timed(client: ClientConfig, times: Times) -> ClientConfig {
    let settings = Settings {
        times,
        ..(*client.settings).clone()
    };
    ClientConfig {
        settings: Arc::new(settings),
        ..client
    }
}

fn pass_link(mut link: TcpStream, endpoint: &Endpoint, member: [u8; 16]) {
    let mut hello = vec![0; 4_096];
    let read = link.read(&mut hello).unwrap();
    hello.truncate(read);
    endpoint.link(member, 0, link.into(), hello);
}

/// Runs a test on each driver.
pub fn on_both_drivers(test: impl Fn(&Tunnel)) {
    for driver in [Driver::Epoll, Driver::Auto] {
        let tunnel = Tunnel::start(driver, Vec::new());
        test(&tunnel);
        tunnel.stop();
    }
}

/// The browser's end of a connection.
pub struct Browser(pub BufReader<Connection>);

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    /// As it came: chunks are not taken off.
    pub body: Vec<u8>,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }
}

pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (n, value) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// Waits for a request: whoever has no more to ask may also break off.
pub fn is_asked(reader: &mut impl BufRead) -> bool {
    reader.fill_buf().is_ok_and(|bytes| !bytes.is_empty())
}

/// Reads up to and with the empty line; what came if the connection ends before.
pub fn read_head(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap() == 0 {
            break;
        }
    }
    head
}

/// Reads the chunks with the last one, as they are; the trailers too.
pub fn read_chunks(reader: &mut impl BufRead) -> Vec<u8> {
    let mut raw = Vec::new();
    loop {
        let start = raw.len();
        reader.read_until(b'\n', &mut raw).unwrap();
        let line = std::str::from_utf8(&raw[start..]).unwrap().trim_end();
        let size = usize::from_str_radix(line.split(';').next().unwrap(), 16).unwrap();
        if size == 0 {
            raw.extend_from_slice(read_trailers(reader).as_bytes());
            return raw;
        }
        let at = raw.len();
        raw.resize(at + size + 2, 0);
        reader.read_exact(&mut raw[at..]).unwrap();
    }
}

fn read_trailers(reader: &mut impl BufRead) -> String {
    let mut trailers = String::new();
    loop {
        let start = trailers.len();
        assert_ne!(reader.read_line(&mut trailers).unwrap(), 0);
        if &trailers[start..] == "\r\n" {
            return trailers;
        }
    }
}

impl Browser {
    pub fn over(socket: TcpStream) -> Self {
        Self(BufReader::new(Connection::Plain(socket)))
    }

    pub fn socket(&self) -> &TcpStream {
        self.0.get_ref().socket()
    }

    /// Says that it sends no more.
    pub fn finish(&mut self) {
        self.0.get_mut().finish();
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    pub fn get(&mut self, url: &str) {
        self.send(format!("GET {url} HTTP/1.1\r\nHost: ignored.test\r\n\r\n").as_bytes());
    }

    /// The next answer, interim ones included, to a request with this method.
    pub fn answer(&mut self, method: &str) -> Answer {
        let head = read_head(&mut self.0);
        let status: u16 = head.split(' ').nth(1).expect("a status line").parse().unwrap();
        let mut body = Vec::new();
        let bodyless = method == "HEAD" || status < 200 || status == 204 || status == 304;
        if bodyless || method == "CONNECT" && status == 200 {
        } else if let Some(length) = field(&head, "Content-Length") {
            body.resize(length.parse().unwrap(), 0);
            self.0.read_exact(&mut body).unwrap();
        } else if field(&head, "Transfer-Encoding").is_some() {
            body = read_chunks(&mut self.0);
        } else {
            self.0.read_to_end(&mut body).unwrap();
        }
        Answer { status, head, body }
    }

    /// Reads to the end: what came, and whether the end was clean.
    pub fn rest(&mut self) -> (Vec<u8>, bool) {
        let mut rest = Vec::new();
        let clean = self.0.read_to_end(&mut rest).is_ok();
        (rest, clean)
    }
}

/// For a site whose answers wait, each for a word.
pub fn gate() -> (Sender<()>, impl Fn()) {
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    (release, move || {
        released.lock().unwrap().recv_timeout(PATIENCE).unwrap()
    })
}

/// A port that refuses connections, for as long as the socket is there: bound, so that nobody else is given it.
pub fn refusing() -> (socket2::Socket, SocketAddr) {
    let bound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    bound.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = bound.local_addr().unwrap().as_socket().unwrap();
    (bound, address)
}

/// A site: `serve` gets each connection on a thread of its own.
pub fn site(serve: impl Fn(BufReader<TcpStream>) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (serve, connection) = (serve.clone(), connection.unwrap());
            connection.set_read_timeout(Some(PATIENCE)).unwrap();
            std::thread::spawn(move || serve(BufReader::new(connection)));
        }
    });
    address
}

/// Bytes that differ at every place.
pub fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}
