//! Browsers: each connection sends its next request when the answer to the last one is whole. One thread, one read and
//! one write a request.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use memchr::{memchr, memmem};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::certificates;
use super::hosts::Hosts;
use super::poller::{Interest, Poller};
use super::wire::Wire;

const READ_BYTES: usize = 256 * 1024;
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// More failures than this are no measurement any more.
const FAILURES_MAX: u64 = 10_000;
/// Answers under way at the end get this long.
const DRAIN_MAX: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(20);
/// Three digits, up to a minute, in microseconds.
const LATENCY_MICROS_MAX: u64 = 60_000_000;

/// How a request reaches the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The target is the site, or carries bytes to it.
    Origin,
    /// The target is an HTTP proxy, `GET http://SITE/…`.
    Absolute,
    /// As `Absolute`, for what may be kept.
    Fresh,
    /// The target is an HTTP proxy: CONNECT first, then TLS with whoever answers, requests inside.
    Secure,
    /// The target is an HTTP proxy: CONNECT first, requests inside that nobody on the way takes for such.
    Connect,
}

impl Form {
    /// Of a GET. Culvert relays what does not begin with a method as they are written, and only that, as it is.
    pub fn method(self) -> &'static str {
        match self {
            Self::Origin | Self::Absolute | Self::Fresh | Self::Secure => "GET",
            Self::Connect => "get",
        }
    }

    fn opens(self) -> bool {
        matches!(self, Self::Connect | Self::Secure)
    }
}

pub struct Load<'a> {
    pub target: SocketAddr,
    pub form: Form,
    pub origin: SocketAddr,
    /// Each connection is to another of them, on the origin's port.
    pub hosts: Option<&'a Hosts>,
    pub body_bytes: u64,
    pub connections: usize,
    /// A new connection for each request.
    pub fresh: bool,
    pub warm_up: Duration,
    pub duration: Duration,
}

/// When something is read beside the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Everything from here counts …
    Start,
    /// … up to here; connections are open still.
    End,
}

pub struct Outcome {
    pub requests: u64,
    pub failures: u64,
    /// Of bodies.
    pub bytes: u64,
    pub seconds: f64,
    /// Microseconds from the first byte sent (with `fresh`: from dialling) to the last byte of the answer.
    pub latency: Histogram<u64>,
}

/// Where a connection leads, and what is said on it.
struct Way {
    site: SocketAddr,
    open: Vec<u8>,
    request: Vec<u8>,
}

struct Connection {
    wire: Wire,
    way: Rc<Way>,
    phase: Phase,
    started: Instant,
    /// The part of a head that has come.
    head: Vec<u8>,
    waits_for_room: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Dialling,
    /// CONNECT is out.
    Opening,
    /// TLS has begun.
    Shaking,
    /// The request is out.
    Head,
    Body(u64),
}

struct Clients<'a> {
    load: &'a Load<'a>,
    poller: Poller,
    connections: Vec<Option<Connection>>,
    /// To the origin.
    way: Rc<Way>,
    tls: Arc<ClientConfig>,
    buffer: Vec<u8>,
    outcome: Outcome,
    all_failures: u64,
    draining: bool,
}

/// Runs a load; `mark` is called as the measured time starts and as it ends.
///
/// # Errors
/// If there is no measurement: no sockets, or more than `FAILURES_MAX` failures.
pub fn run(load: &Load<'_>, mut mark: impl FnMut(Mark)) -> io::Result<Outcome> {
    let mut clients = Clients {
        load,
        poller: Poller::new()?,
        connections: Vec::new(),
        way: Rc::new(Way::to(load.origin, load)),
        tls: certificates::browser(),
        buffer: vec![0; READ_BYTES],
        outcome: outcome()?,
        all_failures: 0,
        draining: false,
    };
    for index in 0..load.connections {
        let connection = clients.dial(index)?;
        clients.connections.push(Some(connection));
    }
    let mut ready = Vec::new();
    clients.go_on(&mut ready, Instant::now() + load.warm_up)?;
    mark(Mark::Start);
    clients.outcome = outcome()?;
    let started = Instant::now();
    clients.go_on(&mut ready, started + load.duration)?;
    clients.outcome.seconds = started.elapsed().as_secs_f64();
    mark(Mark::End);
    let counted = std::mem::replace(&mut clients.outcome, outcome()?);
    // Of bulk nobody waits for the rest.
    if load.body_bytes <= READ_BYTES as u64 {
        clients.draining = true;
        clients.go_on(&mut ready, Instant::now() + DRAIN_MAX)?;
    }
    Ok(counted)
}

fn outcome() -> io::Result<Outcome> {
    Ok(Outcome {
        requests: 0,
        failures: 0,
        bytes: 0,
        seconds: 0.0,
        latency: Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3).map_err(io::Error::other)?,
    })
}

const USER_AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0";

impl Way {
    fn to(site: SocketAddr, load: &Load<'_>) -> Self {
        Self {
            site,
            open: format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\nUser-Agent: {USER_AGENT}\r\n\r\n").into_bytes(),
            request: request(site, load),
        }
    }
}

fn request(site: SocketAddr, load: &Load<'_>) -> Vec<u8> {
    let path = load.body_bytes;
    let target = match load.form {
        Form::Absolute => format!("http://{site}/{path}"),
        Form::Fresh => format!("http://{site}/fresh/{path}"),
        Form::Origin | Form::Connect | Form::Secure => format!("/{path}"),
    };
    let close = if load.fresh { "Connection: close\r\n" } else { "" };
    let method = load.form.method();
    format!(
        "{method} {target} HTTP/1.1\r\nHost: {site}\r\n{close}User-Agent: {USER_AGENT}\r\nAccept: */*\r\n\
         Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\n\r\n"
    )
    .into_bytes()
}

impl Clients<'_> {
    fn go_on(&mut self, ready: &mut Vec<(u64, Interest)>, end: Instant) -> io::Result<()> {
        while let Some(left) = end
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            if self.draining && self.connections.iter().all(Option::is_none) {
                break;
            }
            self.poller.wait(Some(left.min(TICK)), ready)?;
            for &(token, _) in ready.iter() {
                let index = token as usize;
                if let Some(connection) = self.connections[index].take() {
                    self.connections[index] = self.serve(index, connection)?;
                }
            }
        }
        Ok(())
    }

    fn dial(&mut self, index: usize) -> io::Result<Connection> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let started = Instant::now();
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match connect(&socket, &self.load.target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(e.into()),
        }
        let way = match self.load.hosts {
            Some(hosts) => {
                let site = (hosts.fresh()?, self.load.origin.port()).into();
                Rc::new(Way::to(site, self.load))
            }
            None => self.way.clone(),
        };
        let mut connection = Connection {
            wire: Wire::new(socket),
            way,
            phase: Phase::Dialling,
            started,
            head: Vec::new(),
            waits_for_room: true,
        };
        // On loopback a connection stands at once, or it is refused.
        if self.send(&mut connection).is_ok() {
            connection.waits_for_room = false;
        }
        let interest = if connection.waits_for_room {
            Interest::OUT
        } else {
            Interest::IN
        };
        self.poller.add(&connection.wire.socket, index as u64, interest)?;
        Ok(connection)
    }

    /// Sends what comes first on a new connection, or the next request.
    fn send(&self, connection: &mut Connection) -> Result<(), Errno> {
        let opens = connection.phase == Phase::Dialling && self.load.form.opens();
        let (bytes, next) = if opens {
            (&connection.way.open, Phase::Opening)
        } else {
            (&connection.way.request, Phase::Head)
        };
        // The socket's buffer is empty: a part of it means that the peer is gone.
        if connection.wire.send(bytes, SendFlags::empty())? != bytes.len() {
            return Err(Errno::PIPE);
        }
        connection.phase = next;
        Ok(())
    }

    /// Goes on with a connection that is ready, or with a new one in its place.
    fn serve(&mut self, index: usize, mut connection: Connection) -> io::Result<Option<Connection>> {
        let done = if connection.waits_for_room {
            self.established(index, &mut connection)
        } else {
            self.receive(&mut connection)
        };
        match done {
            Ok(_) if self.draining && !connection.is_busy() => Ok(None),
            Ok(true) if self.load.fresh => {
                drop(connection);
                self.dial(index).map(Some)
            }
            Ok(true) => {
                connection.started = Instant::now();
                match self.send(&mut connection) {
                    Ok(()) => Ok(Some(connection)),
                    Err(_) => self.failed(index, connection),
                }
            }
            Ok(false) => Ok(Some(connection)),
            Err(_) => self.failed(index, connection),
        }
    }

    fn failed(&mut self, index: usize, connection: Connection) -> io::Result<Option<Connection>> {
        drop(connection);
        self.outcome.failures += 1;
        self.all_failures += 1;
        if self.all_failures > FAILURES_MAX {
            return Err(io::Error::other(format!("more than {FAILURES_MAX} requests failed")));
        }
        if self.draining {
            return Ok(None);
        }
        self.dial(index).map(Some)
    }

    fn established(&mut self, index: usize, connection: &mut Connection) -> Result<bool, Errno> {
        self.send(connection)?;
        connection.waits_for_room = false;
        self.poller
            .modify(&connection.wire.socket, index as u64, Interest::IN)
            .map_err(|_| Errno::IO)?;
        Ok(false)
    }

    /// Reads once; whether an answer is whole.
    fn receive(&mut self, connection: &mut Connection) -> Result<bool, Errno> {
        let read = match connection.wire.read(&mut self.buffer) {
            Ok(0) => return Err(Errno::CONNRESET),
            Ok(read) => read,
            Err(Errno::AGAIN) => {
                if connection.phase == Phase::Shaking && !connection.wire.is_handshaking() {
                    self.send(connection)?;
                }
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let body = match connection.phase {
            Phase::Body(left) => {
                let took = left.min(read as u64);
                connection.phase = Phase::Body(left - took);
                took
            }
            _ => match self.head(connection, read)? {
                Some(took) => took,
                None => return Ok(false),
            },
        };
        self.outcome.bytes += body;
        if connection.phase != Phase::Body(0) {
            return Ok(false);
        }
        self.outcome.requests += 1;
        let micros = connection.started.elapsed().as_micros() as u64;
        self.outcome.latency.saturating_record(micros.max(1));
        Ok(true)
    }

    /// Follows a head; the bytes of the body that came behind it.
    fn head(&mut self, connection: &mut Connection, read: usize) -> Result<Option<u64>, Errno> {
        let partial = !connection.head.is_empty();
        let bytes = if partial {
            connection.head.extend_from_slice(&self.buffer[..read]);
            &connection.head[..]
        } else {
            &self.buffer[..read]
        };
        let Some(end) = memmem::find(bytes, b"\r\n\r\n") else {
            if bytes.len() > HEAD_BYTES_MAX {
                return Err(Errno::MSGSIZE);
            }
            if !partial {
                connection.head.extend_from_slice(&self.buffer[..read]);
            }
            return Ok(None);
        };
        let (head, behind) = (&bytes[..end + 2], (bytes.len() - end - 4) as u64);
        if !head.starts_with(b"HTTP/1.1 200") {
            return Err(Errno::PROTO);
        }
        let opened = connection.phase == Phase::Opening;
        let length = if opened { 0 } else { length(head).ok_or(Errno::PROTO)? };
        connection.head.clear();
        if opened && self.load.form == Form::Secure {
            let name = ServerName::IpAddress(connection.way.site.ip().into());
            let tls = ClientConnection::new(self.tls.clone(), name).map_err(|_| Errno::INVAL)?;
            connection.wire.secure(tls.into())?;
            connection.phase = Phase::Shaking;
            return Ok(None);
        }
        if opened {
            self.send(connection)?;
            return Ok(None);
        }
        let took = length.min(behind);
        connection.phase = Phase::Body(length - took);
        Ok(Some(took))
    }
}

impl Connection {
    fn is_busy(&self) -> bool {
        self.phase != Phase::Body(0)
    }
}

fn length(head: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"content-length: ";
    let mut rest = head;
    while let Some(end) = memchr(b'\n', rest) {
        let line = &rest[..end];
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            return std::str::from_utf8(line[NAME.len()..].trim_ascii()).ok()?.parse().ok();
        }
        rest = &rest[end + 1..];
    }
    None
}
