//! `--memory-max` of both programs, reached: stalled uploads and downloads, by CONNECT, by URL and in TLS that ends at the
//! endpoint, are pushed until nothing moves any more. Neither program grows beyond it, a new request still moves, and in the
//! end the memory comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dataplane::limits::{BASE_CREDIT_OWN_BYTES, BASE_CREDIT_PEER_BYTES, Pools, client_pools, endpoint_pools};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use socket2::SockRef;
use tests::both_drivers;
use tests::certificate::Site;
use tests::cloud::{Cloud, CloudOptions, Driver, Tunnel, fault_lasts};
use tests::http::{Client, connect, dial};
use tests::origin::Origin;
use tests::process::{memory_bytes, raise_own_limit};
use tests::relay::{Direction, Impairment, Which};
use tests::tls;

both_drivers![nothing_grows_beyond_it];

const MIB: usize = 1 << 20;
/// Where sites with TLS listen. Their ports are theirs alone: of a site that is known to speak TLS, a CONNECT is not dialled
/// before its browser has spoken.
const SECURE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Of `sc` …
const CLIENT_MIB: usize = 193;
/// … and of an endpoint: a fifth of the pools that both have by default, or less.
const ENDPOINT_MIB: usize = 347;
const STREAMS: usize = 1_024;
/// Stalled streams of each kind.
const EACH: usize = 45;
const KINDS: [Kind; 7] = [
    Kind::UploadConnect,
    Kind::UploadBody,
    Kind::DownloadConnect,
    Kind::DownloadBody,
    Kind::DownloadDechunked,
    Kind::UploadSecure,
    Kind::DownloadSecure,
];
/// Tasks, sockets and tables of a stream beside its buffers: what an idle stream may cost.
const STREAM_BYTES: usize = 8 * 1024;
/// TLS with a browser or a site, as `limits.rs` has it.
const TLS_BYTES: usize = 32 * 1024;
/// Beside the streams and their budgets: runtime and scratch buffers of a shard, as `limits.rs` has them.
const SHARD_BYTES: usize = 8 * MIB;
/// What is nobody's: the allocator keeps a page of half a mebibyte for each size of block, of which there are 32 between
/// 1 and 16 KiB. It has them for the next flood, which may cost no more.
const REST_BYTES: usize = 16 * MIB;
const FLOODS: usize = 2;
/// Nothing was taken for so long: all is stuck.
const STUCK: Duration = Duration::from_secs(1);
/// The stretch in which the pushing goes on for nothing.
const STRETCH: Duration = Duration::from_secs(2);
/// Until the memory is back, and for a small exchange beside all that.
const PATIENCE: Duration = Duration::from_secs(30);
/// In which the link carries less than is pushed, so that what waits for it fills the send budgets.
const SLOW: Duration = Duration::from_secs(2);
const SLOW_BYTES_PER_SECOND: u64 = 8 << 20;
/// Buffers of the test's own sockets: what the kernel holds is nobody's memory here.
const SOCKET_BYTES: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The site does not read.
    UploadConnect,
    UploadBody,
    /// The browser does not read.
    DownloadConnect,
    DownloadBody,
    /// As above, HTTP/1.0: the endpoint takes the chunks' framing out.
    DownloadDechunked,
    /// As those with a body, by HTTPS.
    UploadSecure,
    DownloadSecure,
}

impl Kind {
    fn is_upload(self) -> bool {
        matches!(self, Self::UploadConnect | Self::UploadBody | Self::UploadSecure)
    }

    fn is_secure(self) -> bool {
        matches!(self, Self::UploadSecure | Self::DownloadSecure)
    }

    /// What the browser asks for, if it is more than CONNECT.
    fn request(self, authority: &str) -> Option<String> {
        let url = format!("http://{authority}/");
        Some(match self {
            Self::UploadConnect | Self::DownloadConnect => return None,
            Self::UploadBody => format!("POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"),
            Self::UploadSecure => {
                format!("POST / HTTP/1.1\r\nHost: {authority}\r\nContent-Length: 1000000000000\r\n\r\n")
            }
            Self::DownloadBody => format!("GET {url} HTTP/1.1\r\nHost: x\r\n\r\n"),
            Self::DownloadSecure => format!("GET / HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
            Self::DownloadDechunked => format!("GET {url} HTTP/1.0\r\n\r\n"),
        })
    }

    /// The head of the site's answer, if it gives one.
    fn answer(self) -> Option<&'static [u8]> {
        match self {
            Self::DownloadBody | Self::DownloadSecure => {
                Some(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
            }
            Self::DownloadDechunked => Some(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            _ => None,
        }
    }
}

/// One end of a stream: a socket, or TLS over one.
struct End {
    socket: TcpStream,
    tls: Option<Box<Connection>>,
}

impl End {
    fn plain(socket: TcpStream) -> Self {
        Self { socket, tls: None }
    }

    fn secure(socket: TcpStream, mut tls: Connection) -> Self {
        while tls.is_handshaking() {
            tls.complete_io(&mut &socket).unwrap();
        }
        Self {
            socket,
            tls: Some(Box::new(tls)),
        }
    }
}

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.socket.read(buffer);
        };
        loop {
            match tls.reader().read(buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => tls.complete_io(&mut self.socket)?,
                read => return read,
            };
        }
    }
}

impl Write for End {
    /// What TLS has taken goes to the socket before it takes more.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.socket.write(bytes);
        };
        while tls.wants_write() {
            tls.write_tls(&mut self.socket)?;
        }
        tls.writer().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        while let Some(tls) = self.tls.as_mut().filter(|tls| tls.wants_write()) {
            tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

/// How browsers and sites shake hands.
struct Secrets {
    browser: Arc<ClientConfig>,
    site: Arc<ServerConfig>,
}

/// A stream with its two ends: one is pushed into, the other not read.
struct Stalled {
    writer: End,
    reader: TcpStream,
    /// What is written, over and over.
    piece: Arc<[u8]>,
    at: usize,
}

impl Stalled {
    fn start(kind: Kind, proxy: SocketAddr, secrets: &Secrets) -> Self {
        let address = if kind.is_secure() { SECURE } else { Ipv4Addr::LOCALHOST };
        let listener = TcpListener::bind((address, 0)).unwrap();
        SockRef::from(&listener).set_recv_buffer_size(SOCKET_BYTES).unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let request = kind.request(&authority);
        let asked = request.is_some();
        let (browser, site) = thread::scope(|scope| {
            // The two handshakes wait for each other.
            let site = scope.spawn(|| serve(kind, &listener, asked, secrets));
            let mut browser = browse(kind, proxy, &authority, secrets);
            browser.write_all(request.unwrap_or_default().as_bytes()).unwrap();
            browser.flush().unwrap();
            (browser, site.join().unwrap())
        });
        let (writer, reader) = if kind.is_upload() {
            (browser, site.socket)
        } else {
            (site, browser.socket)
        };
        SockRef::from(&writer.socket)
            .set_send_buffer_size(SOCKET_BYTES)
            .unwrap();
        SockRef::from(&reader).set_recv_buffer_size(SOCKET_BYTES).unwrap();
        writer.socket.set_nonblocking(true).unwrap();
        let mut piece = vec![7; 1_000];
        if kind == Kind::DownloadDechunked {
            piece = [b"3e8\r\n", &piece[..], b"\r\n"].concat();
        }
        Self {
            writer,
            reader,
            piece: piece.repeat(64).into(),
            at: 0,
        }
    }

    /// Writes what the socket takes; returns how much.
    fn push(&mut self) -> u64 {
        let mut pushed = 0;
        loop {
            match self.writer.write(&self.piece[self.at..]) {
                Ok(n) => {
                    pushed += n as u64;
                    self.at = (self.at + n) % self.piece.len();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return pushed,
                Err(e) => panic!("a stalled stream was ended: {e}"),
            }
        }
    }
}

/// The browser's end, before its request.
fn browse(kind: Kind, proxy: SocketAddr, authority: &str, secrets: &Secrets) -> End {
    match kind {
        Kind::UploadConnect | Kind::DownloadConnect => End::plain(connect(proxy, authority).unwrap().ok().unwrap()),
        _ if kind.is_secure() => {
            let socket = connect(proxy, authority).unwrap().ok().unwrap();
            let name = ServerName::from(IpAddr::from(SECURE));
            let tls = ClientConnection::new(secrets.browser.clone(), name).unwrap();
            End::secure(socket, tls.into())
        }
        _ => End::plain(dial(proxy).unwrap()),
    }
}

/// The site's end, up to the beginning of its answer.
fn serve(kind: Kind, listener: &TcpListener, asked: bool, secrets: &Secrets) -> End {
    let socket = listener.accept().unwrap().0;
    let mut site = if kind.is_secure() {
        let tls = ServerConnection::new(secrets.site.clone()).unwrap();
        End::secure(socket, tls.into())
    } else {
        End::plain(socket)
    };
    if asked {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            site.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
    }
    site.write_all(kind.answer().unwrap_or_default()).unwrap();
    site.flush().unwrap();
    site
}

/// Pushes into all streams until it is dropped, which ends them.
struct Pusher {
    shared: Arc<(AtomicU64, AtomicBool)>,
    thread: Option<JoinHandle<()>>,
}

impl Pusher {
    fn start(mut streams: Vec<Stalled>) -> Self {
        let shared = Arc::new((AtomicU64::new(0), AtomicBool::new(false)));
        let (pushed, over) = (shared.clone(), shared.clone());
        let thread = thread::spawn(move || {
            let tick = Timespec::try_from(Duration::from_millis(100)).unwrap();
            while !over.1.load(Ordering::Relaxed) {
                let took: u64 = streams.iter_mut().map(Stalled::push).sum();
                pushed.0.fetch_add(took, Ordering::Relaxed);
                let mut fds: Vec<_> = streams
                    .iter()
                    .map(|s| PollFd::new(&s.writer.socket, PollFlags::OUT))
                    .collect();
                poll(&mut fds, Some(&tick)).unwrap();
            }
            assert!(streams.iter().all(|s| s.reader.take_error().unwrap().is_none()));
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    fn pushed(&self) -> u64 {
        self.shared.0.load(Ordering::Relaxed)
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.shared.1.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(thread::panicking() || ended.is_ok(), "pushing failed");
    }
}

/// One of the two programs.
struct Watched {
    name: &'static str,
    id: u32,
    before: u64,
    most: u64,
    /// By what its streams and its budgets may grow, buffers charged whole.
    growth: usize,
    memory_max: usize,
    pools: Pools,
}

impl Watched {
    fn new(name: &'static str, id: u32, memory_mib: usize, pools: Pools, base: usize) -> Self {
        let streams = KINDS.len() * EACH;
        let secure = KINDS.iter().filter(|kind| kind.is_secure()).count() * EACH;
        let budgets = pools.receive_bytes + pools.send_bytes + streams * base;
        Self {
            name,
            id,
            before: memory_bytes(id),
            most: 0,
            growth: budgets / 2 * 3 + streams * STREAM_BYTES + secure * TLS_BYTES + SHARD_BYTES + REST_BYTES,
            memory_max: memory_mib * MIB,
            pools,
        }
    }

    fn look(&mut self) {
        self.most = self.most.max(memory_bytes(self.id));
    }

    fn check(&self, when: &str) {
        let Self {
            name,
            before,
            most,
            growth,
            ..
        } = self;
        println!(
            "{when}: {name} {} → {} KiB, may grow by {} KiB, --memory-max {} KiB",
            before >> 10,
            most >> 10,
            growth >> 10,
            self.memory_max >> 10
        );
        assert!(*most <= self.memory_max as u64, "{name} exceeds --memory-max {when}");
        assert!(*most <= before + *growth as u64, "{name} exceeds its budgets {when}");
    }

    fn is_back(&self) -> bool {
        memory_bytes(self.id) <= self.before + REST_BYTES as u64
    }
}

fn nothing_grows_beyond_it(driver: Driver) {
    raise_own_limit();
    let streams = STREAMS.to_string();
    let (client_mib, endpoint_mib) = (CLIENT_MIB.to_string(), ENDPOINT_MIB.to_string());
    let cloud = Cloud::with(CloudOptions {
        arguments: ["--max-streams", &streams, "--memory-max", &endpoint_mib]
            .map(str::to_owned)
            .into(),
        ..CloudOptions::new(driver)
    });
    let company = Site::new(&[&SECURE.to_string()]);
    let file = cloud.state.path().join("company.pem");
    std::fs::write(&file, &company.root_pem).unwrap();
    let tunnel = cloud.start_bumping_tunnel(&[
        "--cacert-file",
        file.to_str().unwrap(),
        "--shards",
        "1",
        "--tunnel-connections",
        "1",
        "--max-streams",
        &streams,
        "--memory-max",
        &client_mib,
    ]);
    let secrets = Secrets {
        browser: tls::trust_file(&cloud.ca()).unwrap(),
        site: company.server_config(),
    };
    let origin = Origin::start();
    exchanges(&mut tunnel.client(), &origin, "before");
    let client = client_pools(CLIENT_MIB * MIB, STREAMS, 1, 1).unwrap();
    let endpoint = endpoint_pools(ENDPOINT_MIB * MIB, STREAMS, 1).unwrap();
    let mut watched = [
        Watched::new("sc", tunnel.process.id(), CLIENT_MIB, client, BASE_CREDIT_PEER_BYTES),
        Watched::new(
            "endpoint",
            cloud.endpoint(),
            ENDPOINT_MIB,
            endpoint,
            BASE_CREDIT_OWN_BYTES,
        ),
    ];
    println!("{client:?} {endpoint:?}");
    for _ in 0..FLOODS {
        flood(&cloud, &tunnel, &origin, &secrets, &mut watched);
        let since = Instant::now();
        while !watched.iter().all(Watched::is_back) {
            let now: Vec<_> = watched.iter().map(|w| (w.name, w.before, memory_bytes(w.id))).collect();
            assert!(since.elapsed() < PATIENCE, "memory does not come back: {now:?}");
            // An allocator gives back while it is used.
            exchanges(&mut tunnel.client(), &origin, "afterwards");
        }
        println!("back after {:?}", since.elapsed());
    }
    tunnel.stop();
}

/// Stalls all streams, and looks at what that costs.
fn flood(cloud: &Cloud, tunnel: &Tunnel, origin: &Origin, secrets: &Secrets, watched: &mut [Watched]) {
    let stalled = (0..EACH)
        .flat_map(|_| KINDS)
        .map(|kind| Stalled::start(kind, tunnel.proxy, secrets))
        .collect();
    for direction in Direction::BOTH {
        let slow = Impairment {
            bytes_per_second: Some(SLOW_BYTES_PER_SECOND),
            ..Impairment::default()
        };
        cloud.relay.impair(Which::Links, direction, slow);
    }
    let pusher = Pusher::start(stalled);
    push_for(&pusher, watched, SLOW);
    watched.iter().for_each(|w| w.check("behind a slow link"));
    for direction in Direction::BOTH {
        cloud.relay.impair(Which::Links, direction, Impairment::default());
    }
    let since = Instant::now();
    loop {
        let before = pusher.pushed();
        push_for(&pusher, watched, STUCK);
        if pusher.pushed() == before {
            break;
        }
        assert!(
            since.elapsed() < PATIENCE,
            "it moves on and on: {} bytes",
            pusher.pushed()
        );
    }
    println!("stuck after {:?} and {} bytes", since.elapsed(), pusher.pushed());
    watched.iter().for_each(|w| w.check("when all is stuck"));
    let closed = |w: &Watched| w.before == 0;
    let full = |w: &Watched| w.most - w.before >= (w.pools.receive_bytes / 2) as u64;
    assert!(watched.iter().all(|w| closed(w) || full(w)), "nothing was filled");

    exchanges(&mut tunnel.client(), origin, "beside all that");
    push_for(&pusher, watched, STRETCH);
    exchanges(&mut tunnel.client(), origin, "once more");
    watched.iter().for_each(|w| w.check("in the end"));
}

/// Notes the most memory while the pushing goes on.
fn push_for(pusher: &Pusher, watched: &mut [Watched], time: Duration) {
    let since = Instant::now();
    while since.elapsed() < time {
        assert!(!pusher.thread.as_ref().unwrap().is_finished(), "pushing failed");
        watched.iter_mut().for_each(Watched::look);
        fault_lasts(Duration::from_millis(50));
    }
}

/// A page, and a mebibyte each way, every byte checked.
fn exchanges(client: &mut Client, origin: &Origin, when: &str) {
    let since = Instant::now();
    let base = origin.base();
    let answer = client.get(&format!("{base}/echo-head")).unwrap();
    assert_eq!(answer.status(), 200);
    let page = since.elapsed();
    client.download(&base, 1, MIB as u64, "").unwrap();
    let download = since.elapsed();
    client.upload(&base, 2, MIB as u64, false).unwrap();
    if when != "afterwards" {
        println!(
            "{when}: page {page:?}, download {download:?}, all {:?}",
            since.elapsed()
        );
    }
    assert!(since.elapsed() < PATIENCE, "{when}: {:?}", since.elapsed());
}
