//! The site: `GET /N` answers N bytes that are to be asked for each time, `GET /fresh/N` some that may be kept; over TLS
//! short ones only. One thread, prepared answers for short bodies, sendfile for long ones, so that it
//! is never what a measurement waits for.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;

use memchr::memmem;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create, sendfile};
use rustix::net::{SendFlags, SocketFlags, accept_with, getsockname, sockopt};
use rustls::ServerConnection;
use socket2::{Domain, Socket, Type};

use super::certificates;
use super::poller::{Interest, Poller};
use super::process::run;
use super::wire::Wire;

const LISTENER: u64 = u64::MAX;
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Bodies up to it leave with their head in one write.
const PREPARED_BYTES_MAX: u64 = 64 * 1024;
/// Long bodies come from a file in memory of this size, over and over.
const FILE_BYTES: u64 = 4 << 20;
/// One connection sends so much before the others have their turn.
const TURN_BYTES: u64 = 1 << 20;

struct Connection {
    wire: Wire,
    /// A head of which the end has not come yet.
    head: Vec<u8>,
    /// Bytes of the body still to be sent.
    left: u64,
    close: bool,
    waits_for_room: bool,
}

struct Site {
    poller: Poller,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    file: OwnedFd,
    /// Of all answers.
    date: String,
    /// How it shakes hands, if it does.
    tls: Option<certificates::Site>,
    /// By what was wanted; of a long body only the head.
    prepared: HashMap<Wanted, Vec<u8>>,
    buffer: Vec<u8>,
}

/// Serves on a free port of loopback until the process ends, over TLS if it is told how: then on each of its addresses.
///
/// # Errors
/// If no socket or file in memory can be had.
pub fn start(tls: Option<certificates::Site>) -> io::Result<SocketAddr> {
    let listener = match tls {
        Some(_) => on_all_of_loopback().map_err(|e| io::Error::other(format!("a site on all of 127.0.0.0/8: {e}")))?,
        None => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
    };
    rustix::net::listen(&listener, 4_096)?;
    // Accepted sockets have it from their listener.
    sockopt::set_tcp_nodelay(&listener, true)?;
    listener.set_nonblocking(true)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr()?.port()));
    let file = memfd_create("body", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, FILE_BYTES)?;
    let filling = vec![b'x'; FILE_BYTES as usize];
    rustix::io::pwrite(&file, &filling, 0)?;
    let poller = Poller::new()?;
    poller.add(&listener, LISTENER, Interest::IN)?;
    let mut site = Site {
        poller,
        listener,
        connections: Vec::new(),
        free: Vec::new(),
        file,
        date: run(Command::new("date")
            .args(["-u", "+%a, %d %b %Y %T GMT"])
            .env("LC_ALL", "C"))?,
        tls,
        prepared: HashMap::new(),
        buffer: vec![0; HEAD_BYTES_MAX],
    };
    thread::Builder::new().name("origin".into()).spawn(move || site.run())?;
    Ok(address)
}

/// A socket has one address, or those of all interfaces unless it is tied to one.
fn on_all_of_loopback() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind_device(Some(b"lo"))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
    Ok(socket.into())
}

impl Site {
    fn run(&mut self) {
        let mut ready = Vec::new();
        loop {
            self.poller.wait(None, &mut ready).expect("epoll waits");
            for &(token, _) in &ready {
                if token == LISTENER {
                    self.accept();
                    continue;
                }
                let index = token as usize;
                // The connection may have gone earlier in this turn.
                let Some(connection) = self.connections.get_mut(index).and_then(Option::take) else {
                    continue;
                };
                match self.serve(connection, token) {
                    Some(connection) => self.connections[index] = Some(connection),
                    None => self.free.push(index),
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok(socket) = accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            if self.poller.add(&socket, index as u64, Interest::IN).is_err() {
                self.free.push(index);
                continue;
            }
            let address = getsockname(&socket).and_then(SocketAddr::try_from);
            let mut wire = Wire::new(socket);
            if let (Some(site), Ok(address)) = (&mut self.tls, address) {
                let config = site.config(address.ip());
                let connection = ServerConnection::new(config).expect("a configuration of our own");
                if wire.secure(connection.into()).is_err() {
                    self.free.push(index);
                    continue;
                }
            }
            self.connections[index] = Some(Connection {
                wire,
                head: Vec::new(),
                left: 0,
                close: false,
                waits_for_room: false,
            });
        }
    }

    /// Goes on with a connection that is ready; none if it has ended.
    fn serve(&mut self, mut connection: Connection, token: u64) -> Option<Connection> {
        if connection.left == 0 && !self.request(&mut connection)? {
            return Some(connection);
        }
        match self.body(&mut connection) {
            Err(e) if e.kind() != ErrorKind::WouldBlock => return None,
            _ => {}
        }
        let unfinished = connection.left > 0;
        if !unfinished && connection.close {
            return None;
        }
        if unfinished != connection.waits_for_room {
            let interest = if unfinished { Interest::OUT } else { Interest::IN };
            self.poller.modify(&connection.wire.socket, token, interest).ok()?;
            connection.waits_for_room = unfinished;
        }
        Some(connection)
    }

    /// Reads a request and answers it; whether one was there.
    fn request(&mut self, connection: &mut Connection) -> Option<bool> {
        let read = match connection.wire.read(&mut self.buffer) {
            Ok(0) => return None,
            Ok(read) => read,
            Err(rustix::io::Errno::AGAIN) => return Some(false),
            Err(_) => return None,
        };
        let bytes = &self.buffer[..read];
        let wanted = if connection.head.is_empty() && bytes.ends_with(b"\r\n\r\n") {
            wanted(bytes)?
        } else {
            connection.head.extend_from_slice(bytes);
            if connection.head.len() > HEAD_BYTES_MAX {
                return None;
            }
            if !connection.head.ends_with(b"\r\n\r\n") {
                return Some(false);
            }
            let wanted = wanted(&connection.head)?;
            connection.head.clear();
            wanted
        };
        let length = wanted.length;
        connection.close = wanted.close;
        let prepared = length <= PREPARED_BYTES_MAX;
        let answer = self.prepared.entry(wanted).or_insert_with(|| {
            let mut answer = head(wanted, &self.date);
            if prepared {
                answer.resize(answer.len() + length as usize, b'x');
            }
            answer
        });
        let flags = if prepared { SendFlags::empty() } else { SendFlags::MORE };
        // The socket's buffer is empty: a part of it means that the peer is gone.
        let sent = connection.wire.send(answer, flags).ok()?;
        connection.left = if prepared { 0 } else { length };
        (sent == answer.len()).then_some(true)
    }

    fn body(&mut self, connection: &mut Connection) -> io::Result<()> {
        let mut turn = TURN_BYTES;
        while connection.left > 0 && turn > 0 {
            let mut offset = connection.left.wrapping_neg() % FILE_BYTES;
            let count = turn.min(connection.left).min(FILE_BYTES - offset);
            let sent = sendfile(&connection.wire.socket, &self.file, Some(&mut offset), count as usize)? as u64;
            connection.left -= sent;
            turn = turn.saturating_sub(sent);
        }
        Ok(())
    }
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Wanted {
    length: u64,
    /// It may be kept.
    fresh: bool,
    /// The connection closes after it.
    close: bool,
}

/// None for anything but `GET /N`, in either case.
fn wanted(head: &[u8]) -> Option<Wanted> {
    let path = head.strip_prefix(b"GET /").or_else(|| head.strip_prefix(b"get /"))?;
    let path = &path[..memchr::memchr(b' ', path)?];
    let length = path.strip_prefix(b"fresh/").unwrap_or(path);
    Some(Wanted {
        length: std::str::from_utf8(length).ok()?.parse().ok()?,
        fresh: path.len() > length.len(),
        close: memmem::find(head, b"onnection: close").is_some(),
    })
}

fn head(wanted: Wanted, date: &str) -> Vec<u8> {
    let close = if wanted.close { "Connection: close\r\n" } else { "" };
    let life = match wanted.fresh {
        true => "max-age=86400",
        false => "no-cache",
    };
    format!(
        "HTTP/1.1 200 OK\r\nServer: origin\r\nDate: {date}\r\nCache-Control: {life}\r\nContent-Type: text/html\r\n\
         Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nETag: \"65920080-400\"\r\nAccept-Ranges: bytes\r\n\
         Content-Length: {}\r\n{close}\r\n",
        wanted.length
    )
    .into_bytes()
}
