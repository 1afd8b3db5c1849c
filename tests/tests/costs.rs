//! What browsers and sites send that is meant to be dear: 200 connections at a time, held open. It costs either program at
//! most four times what was sent, and 64 KiB a stream.

use std::io::{self, ErrorKind, Read, Write};
use std::iter;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use socket2::SockRef;
use tests::both_drivers;
use tests::bumping::World;
use tests::cloud::{Driver, fault_lasts};
use tests::http::{connect, dial};
use tests::origin::Origin;
use tests::process::{PATIENCE, memory_bytes, raise_own_limit};

both_drivers![
    what_is_sent_is_not_multiplied,
    what_is_stored_is_not_multiplied,
    what_is_opaque_is_not_multiplied,
    what_is_sent_in_tls_is_not_multiplied,
    what_is_sent_in_websockets_is_not_multiplied,
];

const CONNECTIONS: usize = 200;
const STREAM_BYTES: u64 = 64 * 1024;
const TIMES: u64 = 4;
/// Memory is looked at for so long once all was sent.
const LOOK: Duration = Duration::from_millis(300);
/// Buffers of the test's own sockets: what the kernel holds is nobody's memory here.
const SOCKET_BYTES: usize = 16 * 1024;

/// Where a browser writes.
#[derive(Clone, Copy)]
enum Way {
    /// To the proxy, for a whole URL.
    Url,
    /// Into a CONNECT for the site.
    Connect,
    /// Into TLS in it, where each write is a record of its own. The site speaks TLS as well.
    Secured,
}

/// One connection's part.
struct Attack {
    what: &'static str,
    way: Way,
    /// `SITE` stands for the site's address.
    request: String,
    /// As many bytes a write; 0 for all at once.
    step: usize,
    /// None if nothing that is sent reaches a site.
    answer: Option<Vec<u8>>,
    /// What the browser sends behind the head of that answer.
    then: Vec<u8>,
    /// Error pages come of it.
    refused: bool,
    /// Bytes of the answer's content that the cache takes while the browser reads. 0: it does not read.
    stored: u64,
}

/// The site does not read.
fn unread(what: &'static str, way: Way, request: String, step: usize) -> Attack {
    Attack {
        answer: Some(Vec::new()),
        ..unfinished(what, way, request, step)
    }
}

fn unfinished(what: &'static str, way: Way, request: String, step: usize) -> Attack {
    Attack {
        what,
        way,
        request,
        step,
        answer: None,
        then: Vec::new(),
        refused: false,
        stored: 0,
    }
}

fn answered(what: &'static str, way: Way, request: &str, step: usize, answer: impl Into<Vec<u8>>) -> Attack {
    Attack {
        answer: Some(answer.into()),
        ..unfinished(what, way, request.to_owned(), step)
    }
}

const GET: &str = "GET http://SITE/ HTTP/1.1\r\nHost: x\r\n";
const CHUNKED: &str = "POST http://SITE/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

fn tiny_chunks(count: usize) -> String {
    "1\r\nx\r\n".repeat(count)
}

fn field(length: usize) -> String {
    format!("X: {}", "a".repeat(length))
}

/// So many messages of WebSocket, of so many bytes each; what a browser sends has a mask.
fn frames(mask: &[u8], length: usize, count: usize) -> Vec<u8> {
    let masked = if mask.is_empty() { 0 } else { 0x80 };
    let mut frame = vec![0x82];
    if length <= 125 {
        frame.push(masked | length as u8);
    } else {
        frame.push(masked | 127);
        frame.extend((length as u64).to_be_bytes());
    }
    frame.extend(mask);
    frame.resize(frame.len() + length, b'x');
    frame.repeat(count)
}

fn of_plain_http() -> Vec<Attack> {
    let extended = format!("1;{}\r\nx\r\n", "e".repeat(4_000)).repeat(8);
    let (tiny, some_tiny) = (tiny_chunks(5_000), tiny_chunks(250));
    let unfinished = |what, request, step| unfinished(what, Way::Url, request, step);
    let unread = |what, request, step| unread(what, Way::Url, request, step);
    let answered = |what, request, step, answer: String| answered(what, Way::Url, request, step, answer);
    let (get, chunked, ok) = (GET, CHUNKED, OK);
    let whole = format!("{get}\r\n");
    vec![
        unfinished("many fields", format!("{get}{}", "a:\r\n".repeat(120)), 0),
        unfinished("many fields, byte by byte", format!("{get}{}", "a:\r\n".repeat(120)), 1),
        unfinished("one long line", format!("{get}{}", field(64_000)), 0),
        unfinished("one long line in small writes", format!("{get}{}", field(64_000)), 500),
        unread("a head of 64 KiB", format!("{get}{}\r\n\r\n", field(65_000)), 0),
        unread("chunk extensions", format!("{chunked}{extended}"), 0),
        unread("tiny chunks", format!("{chunked}{tiny}"), 0),
        unread("tiny chunks, byte by byte", format!("{chunked}{some_tiny}"), 1),
        unread("pipelined requests", format!("{whole}{}", whole.repeat(1_500)), 0),
        unread(
            "pipelined requests, byte by byte",
            format!("{whole}{}", whole.repeat(30)),
            1,
        ),
        Attack {
            refused: true,
            ..unfinished(
                "error pages that nobody reads",
                "GET http://SITE/unwanted HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_500),
                0,
            )
        },
        unread(
            "early bytes of an upgrade",
            format!(
                "{get}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n{}",
                "e".repeat(60_000)
            ),
            0,
        ),
        answered(
            "a site's long line",
            &whole,
            0,
            format!("HTTP/1.1 200 OK\r\n{}", field(64_000)),
        ),
        answered(
            "a site's head of 64 KiB",
            &whole,
            0,
            format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", field(65_000)),
        ),
        answered("a site's tiny chunks", &whole, 0, format!("{ok}{tiny}")),
        answered(
            "a site's tiny chunks, byte by byte",
            &whole,
            1,
            format!("{ok}{}", some_tiny),
        ),
        answered("a site's chunk extensions", &whole, 0, format!("{ok}{extended}")),
        answered(
            "a site's tiny chunks for HTTP/1.0",
            "GET http://SITE/ HTTP/1.0\r\n\r\n",
            0,
            format!("{ok}{tiny}"),
        ),
        answered(
            "interim answers",
            &whole,
            0,
            "HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n".repeat(60),
        ),
    ]
}

/// Answers that may be stored, none of which comes to its end.
fn of_the_cache() -> Vec<Attack> {
    let whole = format!("{GET}\r\n");
    let stored = |what, fields: &str, body: String, stored| Attack {
        stored,
        ..answered(
            what,
            Way::Url,
            &whole,
            0,
            format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\n{fields}\r\n{body}"),
        )
    };
    let chunked = "Transfer-Encoding: chunked\r\n";
    let long = "b".repeat(100_000);
    vec![
        stored("a large answer", "Content-Length: 100001\r\n", long.clone(), 100_000),
        stored(
            "an answer of unknown length",
            "Connection: close\r\n",
            long.clone(),
            100_000,
        ),
        stored("an answer in tiny chunks", chunked, tiny_chunks(5_000), 5_000),
        stored(
            "an answer that announces more",
            "Content-Length: 8000000\r\n",
            "b".to_owned(),
            1,
        ),
        stored("a chunk that announces more", chunked, "7fffff\r\nb".to_owned(), 1),
        stored(
            "an answer with a large head",
            &format!("{}\r\nContent-Length: 2\r\n", field(15_000)),
            "b".to_owned(),
            1,
        ),
    ]
}

fn of_opaque_streams() -> Vec<Attack> {
    let long = "\0".repeat(60_000);
    vec![
        unread("opaque bytes", Way::Connect, long.clone(), 0),
        unread("opaque bytes in small writes", Way::Connect, long.clone(), 100),
        answered("a site's opaque bytes", Way::Connect, "\0", 0, long.as_str()),
        answered("a site's opaque bytes in small writes", Way::Connect, "\0", 100, long),
    ]
}

fn of_tls() -> Vec<Attack> {
    let get = "GET / HTTP/1.1\r\nHost: SITE\r\n";
    let chunked = "POST / HTTP/1.1\r\nHost: SITE\r\nTransfer-Encoding: chunked\r\n\r\n";
    let whole = format!("{get}\r\n");
    // The beginning of one that is as long as one may be: its version, and suites without end.
    let hello = "\x01\0\x3f\x60\x03\x03".to_owned() + &"\x13\x02".repeat(7_900);
    let in_one_record = format!("\x16\x03\x01\x3f\x64{hello}");
    let in_tiny_records: String = hello[..2_500]
        .chars()
        .map(|byte| format!("\x16\x03\x01\0\x01{byte}"))
        .collect();
    let trickled = |what, hello: &str, step| unfinished(what, Way::Connect, hello.to_owned(), step);
    let unfinished = |what, request, step| unfinished(what, Way::Secured, request, step);
    let unread = |what, request, step| unread(what, Way::Secured, request, step);
    let answered = |what, step, answer: String| answered(what, Way::Secured, &whole, step, answer);
    vec![
        trickled("a ClientHello, byte by byte", &in_one_record[..1_500], 1),
        trickled("a ClientHello in small writes", &in_one_record, 100),
        trickled("a ClientHello in tiny records", &in_tiny_records, 60),
        unfinished(
            "many fields in tiny records",
            format!("{get}{}", "a:\r\n".repeat(120)),
            1,
        ),
        unfinished("one long line in small records", format!("{get}{}", field(64_000)), 200),
        unread("a head of 64 KiB in TLS", format!("{get}{}\r\n\r\n", field(65_000)), 0),
        unread("tiny chunks in TLS", format!("{chunked}{}", tiny_chunks(5_000)), 0),
        unread(
            "tiny chunks in tiny records",
            format!("{chunked}{}", tiny_chunks(80)),
            1,
        ),
        unread("pipelined requests in TLS", whole.repeat(1_500), 0),
        unread("pipelined requests in tiny records", whole.repeat(12), 1),
        answered(
            "a site's head of 64 KiB in TLS",
            0,
            format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", field(65_000)),
        ),
        answered(
            "a site's long line in small records",
            200,
            format!("HTTP/1.1 200 OK\r\n{}", field(64_000)),
        ),
        answered(
            "a site's tiny chunks in tiny records",
            1,
            format!("{OK}{}", tiny_chunks(80)),
        ),
    ]
}

/// WebSocket in TLS. Of whoever sends the frames the other side reads none.
fn of_websockets() -> Vec<Attack> {
    const MASK: &[u8] = &[1, 2, 3, 4];
    const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let request = format!("GET / HTTP/1.1\r\nHost: SITE\r\n{UPGRADE}");
    let switched = format!("HTTP/1.1 101 Switching Protocols\r\n{UPGRADE}").into_bytes();
    let of_browser = |what, step, frames| Attack {
        then: frames,
        ..answered(what, Way::Secured, &request, step, switched.as_slice())
    };
    let of_site = |what, step, frames: Vec<u8>| {
        let answer = [&switched[..], &frames].concat();
        answered(what, Way::Secured, &request, step, answer)
    };
    let (masked, bare) = (frames(MASK, 1, 1).len(), frames(&[], 1, 1).len());
    vec![
        of_browser("a large frame", 0, frames(MASK, 100_000, 1)),
        of_browser("tiny frames, a record each", masked, frames(MASK, 1, 80)),
        of_site("a site's large frame", 0, frames(&[], 100_000, 1)),
        of_site("a site's tiny frames, a record each", bare, frames(&[], 1, 80)),
    ]
}

/// Where sites are, and how they and browsers shake hands.
struct Sites {
    /// One for each test: what another one's `sc` tries again must not meet a port that was given out anew.
    address: Ipv4Addr,
    browser: Arc<ClientConfig>,
    site: Arc<ServerConfig>,
}

/// One end of a connection: a socket, or TLS over one.
struct End {
    socket: TcpStream,
    tls: Option<Box<Connection>>,
}

impl End {
    fn plain(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, tls: None }
    }

    fn secured(socket: TcpStream, tls: impl Into<Connection>) -> Self {
        let (mut end, mut tls) = (Self::plain(socket), tls.into());
        while tls.is_handshaking() {
            tls.complete_io(&mut end.socket).unwrap();
        }
        tls.set_buffer_limit(None);
        end.tls = Some(Box::new(tls));
        end
    }

    /// Writes what the socket takes, so many bytes at a time; returns how much was sent.
    fn write(&mut self, bytes: &[u8], step: usize) -> u64 {
        let mut sent = 0;
        self.socket.set_nonblocking(true).unwrap();
        for piece in bytes.chunks(if step == 0 { bytes.len().max(1) } else { step }) {
            match self.put(piece, &mut sent) {
                Ok(()) => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                    ) =>
                {
                    break;
                }
                Err(e) => panic!("{e}"),
            }
        }
        self.socket.set_nonblocking(false).unwrap();
        sent
    }

    fn put(&mut self, piece: &[u8], sent: &mut u64) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            *sent += self.socket.write(piece)? as u64;
            return Ok(());
        };
        tls.writer().write_all(piece)?;
        while tls.wants_write() {
            *sent += tls.write_tls(&mut self.socket)? as u64;
        }
        Ok(())
    }

    /// Reads some of what is there.
    fn take(&mut self, into: &mut [u8]) {
        let read = match &mut self.tls {
            None => self.socket.read(into).unwrap(),
            Some(tls) => loop {
                match tls.reader().read(into) {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => tls.complete_io(&mut self.socket).unwrap(),
                    read => break read.unwrap(),
                };
            },
        };
        assert_ne!(read, 0);
    }

    /// Reads the head of an answer.
    fn take_head(&mut self) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.take(&mut byte);
            head.push(byte[0]);
        }
    }

    /// Waits for something, and leaves it.
    fn await_input(&mut self) {
        // It may have come with the end of the handshake.
        let came = |tls: &mut Box<Connection>| tls.process_new_packets().unwrap().plaintext_bytes_to_read() > 0;
        let came = self.tls.as_mut().is_some_and(came);
        assert!(came || self.socket.peek(&mut [0]).unwrap() > 0);
    }

    fn has_input(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let has_input = self.socket.peek(&mut [0]).is_ok_and(|bytes| bytes > 0);
        self.socket.set_nonblocking(false).unwrap();
        has_input
    }

    /// Reads all that is there.
    fn drain(&mut self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.read(&mut [0; 16 * 1024]).is_ok_and(|read| read > 0) {}
        self.socket.set_nonblocking(false).unwrap();
    }
}

/// Waits for something on any of these sockets.
fn await_any<'a>(sockets: impl IntoIterator<Item = BorrowedFd<'a>>, what: &str) {
    let polled = sockets
        .into_iter()
        .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN));
    let limit = Timespec::try_from(PATIENCE).unwrap();
    let stirred = poll(&mut polled.collect::<Vec<_>>(), Some(&limit)).unwrap();
    assert_ne!(stirred, 0, "{what}: nothing comes to the site");
}

/// One connection: what has come of it stays open.
struct Open {
    browser: End,
    /// Where the site listens.
    listener: TcpListener,
    site: Option<End>,
    sent: u64,
}

impl Open {
    fn start(attack: &Attack, proxy: SocketAddr, sites: &Sites) -> Self {
        let listener = TcpListener::bind((sites.address, 0)).unwrap();
        SockRef::from(&listener).set_recv_buffer_size(SOCKET_BYTES).unwrap();
        listener.set_nonblocking(true).unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let serve = || {
            await_any([listener.as_fd()], attack.what);
            let socket = listener.accept().unwrap().0;
            match attack.way {
                Way::Url | Way::Connect => End::plain(socket),
                Way::Secured => End::secured(socket, ServerConnection::new(sites.site.clone()).unwrap()),
            }
        };
        let through = || connect(proxy, &authority).unwrap().ok().unwrap();
        let (mut browser, mut site) = match attack.way {
            Way::Url => (End::plain(dial(proxy).unwrap()), None),
            Way::Connect => {
                let browser = End::plain(through());
                (browser, Some(serve()))
            }
            // The two handshakes wait for each other.
            Way::Secured => thread::scope(|scope| {
                let site = scope.spawn(serve);
                let name = ServerName::from(IpAddr::from(sites.address));
                let tls = ClientConnection::new(sites.browser.clone(), name).unwrap();
                let browser = End::secured(through(), tls);
                (browser, Some(site.join().unwrap()))
            }),
        };
        SockRef::from(&browser.socket)
            .set_recv_buffer_size(SOCKET_BYTES)
            .unwrap();
        let request = attack.request.replace("SITE", &authority);
        let mut sent = browser.write(request.as_bytes(), attack.step);
        if let Some(answer) = &attack.answer {
            let opened = site.iter().map(|end| end.socket.as_fd());
            await_any(iter::once(listener.as_fd()).chain(opened), attack.what);
            // What `sc` has looked at the site with serves no POST for long: that then comes on a connection of its own.
            let mut asked = site.filter(End::has_input).unwrap_or_else(serve);
            asked.await_input();
            if !answer.is_empty() {
                asked.take(&mut [0; 1_024]);
                sent += asked.write(answer, attack.step);
            }
            if !attack.then.is_empty() {
                browser.take_head();
                sent += browser.write(&attack.then, attack.step);
            }
            site = Some(asked);
        }
        Self {
            browser,
            listener,
            site,
            sent,
        }
    }

    /// Whether a request came to the site, or is about to.
    fn went_on(&self) -> bool {
        let nobody_dials = self.listener.accept().is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
        !nobody_dials || self.site.as_ref().is_some_and(End::has_input)
    }
}

fn what_is_sent_is_not_multiplied(driver: Driver) {
    check(driver, &of_plain_http());
}

fn what_is_stored_is_not_multiplied(driver: Driver) {
    check(driver, &of_the_cache());
}

fn what_is_opaque_is_not_multiplied(driver: Driver) {
    check(driver, &of_opaque_streams());
}

fn what_is_sent_in_tls_is_not_multiplied(driver: Driver) {
    check(driver, &of_tls());
}

fn what_is_sent_in_websockets_is_not_multiplied(driver: Driver) {
    check(driver, &of_websockets());
}

fn check(driver: Driver, attacks: &[Attack]) {
    raise_own_limit();
    let origin = Origin::start();
    static TESTS: AtomicU8 = AtomicU8::new(1);
    let address = Ipv4Addr::new(127, 0, 1, TESTS.fetch_add(1, Ordering::Relaxed));
    for attack in attacks {
        // In programs of its own: what an allocator keeps of one attack would hide the next.
        let world = World::with(driver, &["-F", "/unwanted"]);
        let sites = Sites {
            address,
            browser: world.trust.clone(),
            site: world.company.site(&[&address.to_string()], |_| {}).server_config(),
        };
        world.tunnel.serves(&origin);
        hold(attack, &world, &sites);
        world.tunnel.serves(&origin);
    }
}

/// Holds all connections of an attack open, and looks at what that costs.
fn hold(attack: &Attack, world: &World, sites: &Sites) {
    let World { cloud, tunnel, .. } = world;
    let programs = [("sc", tunnel.process.id()), ("endpoint", cloud.endpoint())];
    let memory = || programs.map(|(_, id)| memory_bytes(id));
    let before = memory();
    let mut most = before;
    let mut look = || {
        for (most, now) in most.iter_mut().zip(memory()) {
            *most = now.max(*most);
        }
    };
    let held = || {
        let cache = &cloud.tunnel(&tunnel.id)["culvert"]["cache"];
        cache["bytes"].as_u64().expect("a count")
    };
    let to_hold = (attack.stored > 0).then(|| held() + CONNECTIONS as u64 * attack.stored);
    let mut open = Vec::new();
    for n in 0..CONNECTIONS {
        open.push(Open::start(attack, tunnel.proxy, sites));
        if n % 20 == 0 {
            look();
        }
    }
    if attack.refused {
        open.iter_mut().for_each(|open| open.browser.await_input());
    }
    let since = Instant::now();
    while since.elapsed() < LOOK || to_hold.is_some_and(|bytes| held() < bytes) {
        assert!(since.elapsed() < PATIENCE, "{}: it is not stored", attack.what);
        if to_hold.is_some() {
            open.iter_mut().for_each(|open| open.browser.drain());
        }
        look();
        fault_lasts(LOOK / 10);
    }
    assert!(
        attack.answer.is_some() || !open.iter().any(Open::went_on),
        "{}: it went on to a site",
        attack.what
    );
    let sent: u64 = open.iter().map(|open| open.sent).sum();
    let allowed = TIMES * sent + CONNECTIONS as u64 * STREAM_BYTES;
    for ((name, _), (before, most)) in programs.iter().zip(before.into_iter().zip(most)) {
        let grown = most.saturating_sub(before);
        println!(
            "{}: {name} grew by {} of {} KiB",
            attack.what,
            grown >> 10,
            allowed >> 10
        );
        assert!(grown <= allowed, "{}: {name}, {sent} bytes were sent", attack.what);
    }
}
