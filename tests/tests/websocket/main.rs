//! WebSocket servers of others say the same through the tunnel as without it, byte for byte: to each case of [`cases`],
//! over `ws` (to the proxy, and in a CONNECT as browsers do) and `wss` whose TLS ends at the endpoint. The servers are
//! Debian's packages python3-websockets and node-ws.

mod cases;

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use cases::{Case, End};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tests::certificate::Company;
use tests::cloud::{Cloud, CloudOptions, Driver, left_out};
use tests::http::{connect, dial};
use tests::process::Process;
use tests::tls;
use tests::websocket::CLOSE;

/// Cases at a time.
const THREADS: usize = 8;

#[test]
fn the_library_websockets() {
    verdicts_are_the_same("/usr/bin/python3", "echo.py");
}

#[test]
fn the_library_ws() {
    verdicts_are_the_same("node", "echo.cjs");
}

fn verdicts_are_the_same(program: &str, script: &str) {
    let cases = cases::all();
    assert!(cases.len() >= 300, "{}", cases.len());
    let company = Company::new();
    let site = company.site(&["localhost"], |_| {});
    let folder = tempfile::tempdir().unwrap();
    let (roots, leaf, key) = ["root.pem", "leaf.pem", "key.pem"]
        .map(|name| folder.path().join(name))
        .into();
    fs::write(&roots, &company.root_pem).unwrap();
    fs::write(&leaf, site.leaf_pem()).unwrap();
    fs::write(&key, site.key_pem()).unwrap();
    let mut command = Command::new(program);
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/websocket")
        .join(script);
    command
        .arg(script)
        .arg(&leaf)
        .arg(&key)
        .env("NODE_PATH", "/usr/share/nodejs");
    let server = Process::start(&mut command);
    let ports = server.line("its ports", |line| {
        let mut ports = line.strip_prefix("PORTS ")?.split(' ').map(str::parse);
        Some((ports.next()?.ok()?, ports.next()?.ok()?))
    });
    let (http, https): (u16, u16) = ports;

    let trust = site.client_config();
    let plain = judge(&cases, &Way::Direct(http));
    let secure = judge(&cases, &Way::DirectTls(https, trust));
    let mut kinds: Vec<_> = plain
        .iter()
        .map(|verdict| (&verdict.handshake, &verdict.bytes))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    let resets = |verdicts: &[Verdict]| verdicts.iter().filter(|v| v.ended == Ended::ByReset).count();
    println!(
        "{} cases, {} verdicts, {} and {} ended by resets",
        cases.len(),
        kinds.len(),
        resets(&plain),
        resets(&secure)
    );
    assert!(kinds.len() >= 100, "the server answers everything alike");
    for (case, (plain, secure)) in cases.iter().zip(plain.iter().zip(&secure)) {
        if let Some(ended) = case.server_ends {
            assert_eq!((plain.ended, secure.ended), (ended, ended), "{}", case.name);
        }
    }
    for driver in [Driver::IoUring, Driver::Epoll] {
        if left_out(driver) {
            continue;
        }
        let cloud = Cloud::with(CloudOptions::new(driver));
        let tunnel = cloud.start_bumping_tunnel(&["--shards", "1", "--cacert-file", roots.to_str().unwrap()]);
        let trust = tls::trust_file(&cloud.ca()).unwrap();
        for (way, direct) in [
            (Way::Absolute(tunnel.proxy, http), &plain),
            (Way::Connect(tunnel.proxy, http), &plain),
            (Way::ConnectTls(tunnel.proxy, https, trust), &secure),
        ] {
            let through = judge(&cases, &way);
            let differing = cases
                .iter()
                .zip(direct.iter().zip(&through))
                .filter(|(_, (a, b))| a != b);
            let told: Vec<String> = differing
                .map(|(case, (a, b))| format!("{}: {a:?}\n    {}: {b:?}", case.name, way.name()))
                .collect();
            assert!(
                told.is_empty(),
                "{driver:?}: {} differ\n{}",
                told.len(),
                told.join("\n")
            );
        }
        tunnel.stop();
    }
}

/// How a server is reached.
enum Way {
    Direct(u16),
    DirectTls(u16, Arc<ClientConfig>),
    Absolute(SocketAddr, u16),
    Connect(SocketAddr, u16),
    ConnectTls(SocketAddr, u16, Arc<ClientConfig>),
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Direct(_) => "ws",
            Self::DirectTls(..) => "wss",
            Self::Absolute(..) => "ws, to the proxy",
            Self::Connect(..) => "ws, by CONNECT",
            Self::ConnectTls(..) => "wss, by CONNECT",
        }
    }

    /// A connection, and the target and host of the request on it.
    fn open(&self) -> io::Result<(Link, String, String)> {
        let through = |proxy: &SocketAddr, port: &u16| -> io::Result<TcpStream> {
            let connected = connect(*proxy, &format!("localhost:{port}"))?;
            connected.map_err(|page| io::Error::other(page.text()))
        };
        let (link, port) = match self {
            Self::Direct(port) => (Link::Plain(dial((Ipv4Addr::LOCALHOST, *port).into())?), port),
            Self::DirectTls(port, trust) => (Link::secure(dial((Ipv4Addr::LOCALHOST, *port).into())?, trust)?, port),
            Self::Absolute(proxy, port) => (Link::Plain(dial(*proxy)?), port),
            Self::Connect(proxy, port) => (Link::Plain(through(proxy, port)?), port),
            Self::ConnectTls(proxy, port, trust) => (Link::secure(through(proxy, port)?, trust)?, port),
        };
        let host = format!("localhost:{port}");
        let target = match self {
            Self::Absolute(..) => format!("http://{host}/"),
            _ => "/".to_owned(),
        };
        Ok((link, target, host))
    }
}

enum Link {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Link {
    fn secure(socket: TcpStream, trust: &Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let tls = ClientConnection::new(trust.clone(), name).map_err(io::Error::other)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(tls, socket))))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(into),
            // Not as rustls' own stream, which writes first: what was said is there also where nothing is taken.
            Self::Tls(tls) => loop {
                match tls.conn.reader().read(into) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
                tls.conn.read_tls(&mut tls.sock)?;
                tls.conn.process_new_packets().map_err(io::Error::other)?;
            },
        }
    }

    /// Ends our direction.
    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.shutdown(Shutdown::Write),
            Self::Tls(tls) => {
                tls.conn.send_close_notify();
                tls.flush()?;
                tls.sock.shutdown(Shutdown::Write)
            }
        }
    }
}

/// What a server has said.
#[derive(PartialEq, Eq)]
struct Verdict {
    /// Status and WebSocket fields.
    handshake: Vec<String>,
    /// All that followed, up to the end of the connection.
    bytes: Vec<u8>,
    ended: Ended,
}

/// How a server has ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ended {
    /// Its direction has an end, whether TLS says so or not: that a WebSocket is whole is told by its close frame.
    Cleanly,
    ByReset,
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = &self.bytes[..self.bytes.len().min(40)];
        let Self {
            handshake,
            bytes,
            ended,
        } = self;
        write!(f, "{handshake:?}, {} bytes {start:02x?}, ended {ended:?}", bytes.len())
    }
}

/// Plays all cases.
fn judge(cases: &[Case], way: &Way) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let mut verdicts: Vec<(usize, Verdict)> = thread::scope(|scope| {
        let play_on = || {
            let mut played = Vec::new();
            while let number = next.fetch_add(1, Ordering::Relaxed)
                && let Some(case) = cases.get(number)
            {
                let verdict = play(case, way).unwrap_or_else(|e| panic!("{}, {}: {e}", way.name(), case.name));
                played.push((number, verdict));
            }
            played
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(play_on)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("it says what is wrong"))
            .collect()
    });
    verdicts.sort_unstable_by_key(|(number, _)| *number);
    verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

/// Errors: the server, or what is between, says nothing and does not end.
fn play(case: &Case, way: &Way) -> io::Result<Verdict> {
    let (link, target, host) = way.open()?;
    let mut player = Player {
        link,
        came: Vec::new(),
        at: 0,
        ended: None,
        was_reset: false,
    };
    player.link.write(request(case, &target, &host).as_bytes())?;
    let handshake = player.handshake()?;
    if handshake[0] != "101" {
        // The page is the server's own business.
        return Ok(Verdict {
            handshake,
            bytes: Vec::new(),
            ended: Ended::Cleanly,
        });
    }
    let mut closed = None;
    for (bytes, frames) in &case.steps {
        for piece in bytes.chunks(case.piece) {
            // It may have ended already; what it said then is read below.
            player.write(piece);
        }
        for _ in 0..*frames {
            match player.frame()? {
                Some((first, payload)) if first & 0x0f == CLOSE => closed = Some(payload),
                Some(_) => continue,
                None => {}
            }
            break;
        }
        if closed.is_some() || player.ended.is_some() {
            break;
        }
    }
    if player.ended.is_none() {
        match (case.end, closed) {
            (End::Cut, _) => drop(player.link.finish()),
            (End::Close, None) => player.write(b"\x88\x82\0\0\0\0\x03\xe8"),
            (End::Close, Some(_)) => player.write(b"\x88\x80\0\0\0\0"),
            (End::Closed, _) => {}
        }
    }
    let ended = loop {
        match player.ended {
            Some(ended) => break ended,
            None => player.more()?,
        }
    };
    Ok(Verdict {
        handshake,
        bytes: player.came,
        ended,
    })
}

/// The handshake of a case.
fn request(case: &Case, target: &str, host: &str) -> String {
    let usual = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let others = usual
        .iter()
        .filter(|(name, _)| !case.fields.iter().any(|(own, _)| own == name));
    let mut head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in others.chain(&case.fields).filter(|(_, value)| !value.is_empty()) {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

struct Player {
    link: Link,
    /// What came after the handshake.
    came: Vec<u8>,
    /// Where the next frame begins in it.
    at: usize,
    ended: Option<Ended>,
    /// A write has met it, and so no read does.
    was_reset: bool,
}

impl Player {
    /// The server may be gone already: then nobody reads it.
    fn write(&mut self, bytes: &[u8]) {
        let written = self.link.write(bytes);
        self.was_reset |= written.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset);
    }

    /// Reads once.
    fn more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 65_536];
        match self.link.read(&mut buffer) {
            Ok(0) if self.was_reset => self.ended = Some(Ended::ByReset),
            Ok(0) => self.ended = Some(Ended::Cleanly),
            Ok(read) => self.came.extend_from_slice(&buffer[..read]),
            Err(e) => match e.kind() {
                io::ErrorKind::UnexpectedEof => self.ended = Some(Ended::Cleanly),
                io::ErrorKind::ConnectionReset => self.ended = Some(Ended::ByReset),
                _ => return Err(e),
            },
        }
        Ok(())
    }

    /// Status, and the fields that are WebSocket's.
    fn handshake(&mut self) -> io::Result<Vec<String>> {
        let end = loop {
            if let Some(at) = self.came.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if self.ended.is_some() {
                return Err(io::Error::other("no answer to the handshake"));
            }
            self.more()?;
        };
        let head: Vec<u8> = self.came.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        let fields = lines
            .map(str::to_owned)
            .filter(|line| line.to_ascii_lowercase().starts_with("sec-websocket"));
        Ok([status.to_owned()].into_iter().chain(fields).collect())
    }

    /// The next frame: its first byte and payload; none at the end of the connection.
    fn frame(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some((first, start, end)) = framed(&self.came[self.at..]) {
                let payload = self.came[self.at + start..self.at + end].to_vec();
                self.at += end;
                return Ok(Some((first, payload)));
            }
            if self.ended.is_some() {
                return Ok(None);
            }
            self.more()?;
        }
    }
}

/// First byte of a server's frame, where its payload begins, and where it ends; none as long as it is not whole.
fn framed(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (start, length) = match bytes.get(1)? {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(*short)),
    };
    let end = start + usize::try_from(length).ok()?;
    (bytes.len() >= end).then_some((bytes[0], start, end))
}
