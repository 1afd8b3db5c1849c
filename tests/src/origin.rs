//! The site under test: HTTP and HTTPS, bodies of any length in constant memory, a WebSocket echo, a page with
//! resources, and counts of what arrived.
//!
//! | target | answer |
//! |---|---|
//! | `GET /` and `/page?resources=N` | a page that loads N resources and one WebSocket echo, then sets its title and gets `/result/N/TEXT` |
//! | `GET /resource/I` | one of them |
//! | `GET /bytes?seed=S&length=N` | body S; `&chunked`, `&close` choose its framing, `&held` stops half way until the gate opens, `&silent` before its head, `&cut` ends there without the rest, `&status=S` is its status |
//! | `/bytes/NAME?…` | the same, counted apart, to any method; each `&field=NAME:VALUE` (`+` for a space) adds a field, and a request whose If-None-Match is the ETag among them gets 304 |
//! | `POST /upload` | length and SHA-256 of what came |
//! | `POST /once?key=K` | how often K was posted |
//! | `GET /echo-head` | the request's head as it arrived |
//! | `GET /ws` | WebSocket echo |
//! | `GET /counters` | the counts; not counted itself |

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use aws_lc_rs::digest;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::body::{self, STEP_BYTES};
use crate::certificate::Site;
use crate::http::{Connection, Head, PATIENCE, query};
use crate::websocket::{self, WebSocket};

/// Connections at a time; each has a thread.
const CONNECTIONS_MAX: usize = 2_048;
/// Keys of `/once`, and paths, that are told apart.
const KEYS_MAX: usize = 100_000;

/// What has arrived so far.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub connections: u64,
    pub connections_open: usize,
    pub requests: u64,
    /// WebSocket messages echoed.
    pub messages: u64,
    /// Requests by path, without the query.
    pub paths: BTreeMap<String, u64>,
    /// The Authorization of the last request for a path, if it had one.
    pub authorization: BTreeMap<String, Option<String>>,
    /// Posts by key.
    pub posts: BTreeMap<String, u64>,
    /// Answers that wait at the gate.
    pub held: u64,
}

impl Counters {
    pub fn path(&self, path: &str) -> u64 {
        self.paths.get(path).copied().unwrap_or(0)
    }
}

#[derive(Default)]
struct State {
    counters: Counters,
    gate_open: bool,
}

struct Shared {
    tls: Mutex<Arc<ServerConfig>>,
    /// By number; those that are over are gone.
    sockets: Mutex<BTreeMap<u64, TcpStream>>,
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the site panics while it counts")
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.lock().counters);
        self.changed.notify_all();
    }

    fn wait(&self, what: &str, reached: impl Fn(&State) -> bool) -> Counters {
        let (state, late) = self
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, |state| !reached(state))
            .expect("as above");
        let counters = state.counters.clone();
        drop(state);
        assert!(!late.timed_out(), "waited in vain for {what}: {counters:?}");
        counters
    }
}

/// An answer that may be kept for longer than any test takes.
pub const STORED: &str = "/bytes/stored?length=10&field=Cache-Control:max-age=600";

/// A running site; it stops accepting when dropped.
pub struct Origin {
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub site: Site,
    shared: Arc<Shared>,
}

impl Origin {
    /// On loopback, with a certificate for `localhost` and `127.0.0.1`.
    pub fn start() -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_at(loopback, loopback, &["localhost", "127.0.0.1"]).expect("a site on loopback")
    }

    pub fn start_at(http: SocketAddr, https: SocketAddr, names: &[&str]) -> io::Result<Self> {
        Self::start_with(http, https, Site::new(names))
    }

    /// With a certificate like this, on loopback.
    pub fn of(site: Site) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_with(loopback, loopback, site).expect("a site on loopback")
    }

    fn start_with(http: SocketAddr, https: SocketAddr, site: Site) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            tls: Mutex::new(site.server_config()),
            sockets: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
        });
        let plain = TcpListener::bind(http)?;
        let secure = TcpListener::bind(https)?;
        let origin = Self {
            http: plain.local_addr()?,
            https: secure.local_addr()?,
            shared: shared.clone(),
            site,
        };
        accept_all(plain, shared.clone(), Spoken::Http);
        accept_all(secure, shared, Spoken::Https);
        Ok(origin)
    }

    /// Serves HTTP and HTTPS on one more address, for as long as this process lives.
    pub fn serve_at(&self, address: SocketAddr) -> io::Result<()> {
        accept_all(TcpListener::bind(address)?, self.shared.clone(), Spoken::Either);
        Ok(())
    }

    /// Connections from now on are shaken hands with like this.
    pub fn set_tls(&self, config: Arc<ServerConfig>) {
        *self.shared.tls.lock().expect("as for the counts") = config;
    }

    pub fn base(&self) -> String {
        format!("http://{}", self.http)
    }

    pub fn counters(&self) -> Counters {
        self.shared.lock().counters.clone()
    }

    /// Waits until the counts fit.
    pub fn wait(&self, what: &str, reached: impl Fn(&Counters) -> bool) -> Counters {
        self.shared.wait(what, |state| reached(&state.counters))
    }

    /// Ends all connections, and waits until they are over.
    pub fn close_connections(&self) {
        for socket in self.shared.sockets.lock().expect("as for the counts").values() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        self.wait("the end of all connections", |c| c.connections_open == 0);
    }

    /// Lets all held answers go on, now and later.
    pub fn open_gate(&self) {
        self.shared.lock().gate_open = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.open_gate();
        for address in [self.http, self.https] {
            // Wakes the accept loop, which then sees that it is over.
            let _ = TcpStream::connect(address);
        }
    }
}

/// On connections to one address.
#[derive(Clone, Copy)]
enum Spoken {
    Http,
    Https,
    /// As the first byte tells.
    Either,
}

impl Spoken {
    fn is_tls(self, socket: &TcpStream) -> io::Result<bool> {
        /// A handshake (RFC 8446 section 5.1); no method begins so.
        const HANDSHAKE: u8 = 22;
        let mut first = [0];
        Ok(match self {
            Self::Http => false,
            Self::Https => true,
            Self::Either => socket.peek(&mut first)? == 1 && first[0] == HANDSHAKE,
        })
    }
}

fn accept_all(listener: TcpListener, shared: Arc<Shared>, spoken: Spoken) {
    thread::spawn(move || {
        for socket in listener.incoming() {
            if shared.stopped.load(Ordering::Relaxed) {
                return;
            }
            let Ok(socket) = socket else { continue };
            if shared.lock().counters.connections_open >= CONNECTIONS_MAX {
                continue;
            }
            let number = {
                let counters = &mut shared.lock().counters;
                counters.connections += 1;
                counters.connections
            };
            // Before it counts as open: who waits for the end of all that are has ended it.
            if let Ok(socket) = socket.try_clone() {
                shared.sockets.lock().expect("as for the counts").insert(number, socket);
            }
            shared.count(|c| c.connections_open += 1);
            let shared = shared.clone();
            let tls = shared.tls.lock().expect("as for the counts").clone();
            thread::spawn(move || {
                // A connection that its client breaks off is no event for the site.
                let _ = spoken
                    .is_tls(&socket)
                    .and_then(|secure| serve(socket, secure.then_some(tls), &shared));
                shared.sockets.lock().expect("as for the counts").remove(&number);
                shared.count(|c| c.connections_open -= 1);
            });
        }
    });
}

fn serve(socket: TcpStream, tls: Option<Arc<ServerConfig>>, shared: &Shared) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut connection = match tls {
        None => Connection::over(socket),
        Some(config) => {
            let tls = ServerConnection::new(config).map_err(io::Error::other)?;
            Connection::over(StreamOwned::new(tls, socket))
        }
    };
    while let Some(head) = connection.read_head()? {
        let path = head.line[1].split('?').next().unwrap_or_default().to_owned();
        if path != "/counters" {
            shared.count(|c| {
                c.requests += 1;
                if c.paths.len() < KEYS_MAX {
                    *c.paths.entry(path.clone()).or_default() += 1;
                    let shown = head.field("authorization").map(str::to_owned);
                    c.authorization.insert(path.clone(), shown);
                }
            });
        }
        if path == "/ws" && head.field("upgrade").is_some() {
            return upgrade(connection, &head, shared);
        }
        if !answer(&mut connection, &head, &path, shared)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers one request; false when the connection ends with it.
fn answer(connection: &mut Connection, head: &Head, path: &str, shared: &Shared) -> io::Result<bool> {
    if head.has("expect", "100-continue") {
        connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let target = &head.line[1];
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut length = 0u64;
    connection.read_body(head.request_framing()?, &mut |piece| {
        hash.update(piece);
        length += piece.len() as u64;
        Ok(())
    })?;
    let number = |name: &str| query(target, name).and_then(|v| v.parse::<u64>().ok());
    match (head.line[0].as_str(), path) {
        ("POST", "/upload") => {
            let body = serde_json::json!({ "length": length, "sha256": body::hex(hash.finish().as_ref()) });
            whole(
                connection,
                head,
                "200 OK",
                "application/json",
                body.to_string().as_bytes(),
            )?;
        }
        ("POST", "/once") => {
            let key = query(target, "key").unwrap_or_default().to_owned();
            let mut times = 0;
            shared.count(|c| {
                if c.posts.len() < KEYS_MAX {
                    let count = c.posts.entry(key).or_default();
                    *count += 1;
                    times = *count;
                }
            });
            whole(connection, head, "200 OK", "text/plain", times.to_string().as_bytes())?;
        }
        (_, path) if path == "/bytes" || path.starts_with("/bytes/") => return keyed(connection, head, shared),
        (_, "/" | "/page") => {
            let text = page(number("resources").unwrap_or(50));
            whole(connection, head, "200 OK", "text/html; charset=utf-8", text.as_bytes())?;
        }
        (_, "/echo-head") => {
            let mut text = head.line.join(" ") + "\r\n";
            head.fields
                .iter()
                .for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
            whole(connection, head, "200 OK", "text/plain", text.as_bytes())?;
        }
        (_, "/counters") => {
            let text = counters_json(&shared.lock().counters).to_string();
            whole(connection, head, "200 OK", "application/json", text.as_bytes())?;
        }
        (_, path) if path.starts_with("/resource/") => {
            whole(connection, head, "200 OK", "text/javascript", b"resources += 1;\n")?;
        }
        (_, path) if path.starts_with("/result/") => whole(connection, head, "200 OK", "text/plain", b"")?,
        _ => whole(connection, head, "404 Not Found", "text/plain", b"no such page\n")?,
    }
    Ok(!head.has("connection", "close"))
}

fn counters_json(counters: &Counters) -> serde_json::Value {
    serde_json::json!({
        "connections": counters.connections,
        "requests": counters.requests,
        "messages": counters.messages,
        "paths": counters.paths,
        "posts": counters.posts,
    })
}

fn whole(connection: &mut Connection, request: &Head, status: &str, kind: &str, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\r\n",
        body.len()
    );
    let body = if request.line[0] == "HEAD" { &[] } else { body };
    connection.write(&[head.as_bytes(), body].concat())
}

/// A keyed body, in constant memory.
fn keyed(connection: &mut Connection, request: &Head, shared: &Shared) -> io::Result<bool> {
    let target = &request.line[1];
    let fields = added(target);
    if request
        .field("if-none-match")
        .is_some_and(|tag| fields.contains(&format!("ETag: {tag}\r\n")))
    {
        connection.write(format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n").as_bytes())?;
        return Ok(true);
    }
    let number = |name: &str| query(target, name).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    let flag = |name: &str| query(target, name).is_some();
    let (seed, length, chunked, close) = (number("seed"), number("length"), flag("chunked"), flag("close"));
    let framing = if chunked {
        "Transfer-Encoding: chunked".into()
    } else if close {
        "Connection: close".into()
    } else {
        format!("Content-Length: {length}")
    };
    if flag("silent") {
        hold(shared);
    }
    let status = query(target, "status").map_or("200 OK".to_owned(), |status| format!("{status} as asked"));
    connection.write(
        format!("HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\n{fields}{framing}\r\n\r\n").as_bytes(),
    )?;
    let half = if flag("held") || flag("cut") {
        length / 2
    } else {
        length
    };
    let mut at = 0;
    let mut step = vec![0; STEP_BYTES];
    while at < length {
        if at == half && flag("cut") {
            return Ok(false);
        }
        if at == half && flag("held") {
            hold(shared);
        }
        let end = if at < half { half } else { length };
        let n = (end - at).min(STEP_BYTES as u64) as usize;
        body::fill(seed, at, &mut step[..n]);
        if chunked {
            let mut chunk = format!("{n:x}\r\n").into_bytes();
            chunk.extend_from_slice(&step[..n]);
            chunk.extend_from_slice(b"\r\n");
            connection.write(&chunk)?;
        } else {
            connection.write(&step[..n])?;
        }
        at += n as u64;
    }
    if chunked {
        connection.write(b"0\r\n\r\n")?;
    }
    Ok(!close)
}

/// The lines of the fields that a target asks for.
fn added(target: &str) -> String {
    let pairs = target.split(['?', '&']).filter_map(|pair| pair.strip_prefix("field="));
    let fields = pairs.filter_map(|field| field.split_once(':'));
    fields
        .map(|(name, value)| format!("{name}: {}\r\n", value.replace('+', " ")))
        .collect()
}

/// Waits until the gate opens.
fn hold(shared: &Shared) {
    shared.count(|c| c.held += 1);
    let opened = shared.changed.wait_while(shared.lock(), |state| !state.gate_open);
    opened
        .expect("no thread of the site panics while it counts")
        .counters
        .held -= 1;
}

fn upgrade(mut connection: Connection, head: &Head, shared: &Shared) -> io::Result<()> {
    let accept = websocket::accept(head.field("sec-websocket-key").unwrap_or_default());
    let mut answer = Vec::new();
    write!(
        answer,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    )?;
    write!(answer, "Sec-WebSocket-Accept: {accept}\r\n\r\n")?;
    connection.write(&answer)?;
    WebSocket::server(connection).serve_echo(|| shared.count(|c| c.messages += 1))
}

/// Loads its resources and one WebSocket echo, then says so in its title: `loaded N, TEXT`.
fn page(resources: u64) -> String {
    let mut text = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><title>loading</title><h1>Culvert's demo site</h1>\n\
         <p id=result>loading</p><script>var resources = 0;</script>\n",
    );
    for i in 0..resources {
        text += &format!("<script src=\"/resource/{i}\"></script>\n");
    }
    text += "<script>\n\
        const socket = new WebSocket(location.origin.replace('http', 'ws') + '/ws');\n\
        const done = text => { document.title = document.getElementById('result').textContent = \
        `loaded ${resources}, ${text}`; fetch(`/result/${resources}/${text}`); };\n\
        socket.onopen = () => socket.send('hello');\n\
        socket.onmessage = event => { done(event.data); socket.close(); };\n\
        socket.onerror = () => done('none');\n\
        </script></html>\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Client, dial};
    use crate::tls;

    #[test]
    fn bodies_come_back_whole_in_every_framing() {
        let origin = Origin::start();
        let mut client = Client::dial(origin.http).unwrap();
        for query in ["", "&chunked", "&close"] {
            for length in [0, 1, 65_536, 1_000_003] {
                client.download("", 3, length, query).unwrap();
                if query == "&close" {
                    client = Client::dial(origin.http).unwrap();
                }
            }
        }
        client.upload("", 4, 1_000_003, false).unwrap();
        client.upload("", 5, 1_000_003, true).unwrap();
        assert_eq!(origin.counters().path("/bytes"), 12);
    }

    #[test]
    fn a_body_that_the_site_cuts_is_an_error() {
        let origin = Origin::start();
        for query in ["&cut", "&cut&chunked"] {
            let mut client = Client::dial(origin.http).unwrap();
            assert_eq!(
                client.download("", 3, 200_000, query).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        }
    }

    #[test]
    fn held_bodies_wait_for_the_gate() {
        let origin = Origin::start();
        let address = origin.http;
        let download = thread::spawn(move || Client::dial(address)?.download("", 9, 300_000, "&held"));
        origin.wait("a held body", |c| c.held == 1);
        origin.open_gate();
        download.join().unwrap().unwrap();
    }

    #[test]
    fn https_and_websocket() {
        let origin = Origin::start();
        let config = origin.site.client_config();
        let mut client = tls::client(&config, "localhost", dial(origin.https).unwrap()).unwrap();
        client.download("", 1, 100_000, "").unwrap();
        let mut socket = WebSocket::open(client, "/ws").unwrap();
        for length in [0, 1, 125, 126, 65_535, 65_536, 300_000] {
            socket.echo(&body::bytes(1, length)).unwrap();
        }
        socket.close().unwrap();
        assert_eq!(origin.counters().messages, 7);
    }

    #[test]
    fn posts_are_counted_by_key() {
        let origin = Origin::start();
        let mut client = Client::dial(origin.http).unwrap();
        for (key, times) in [("a", "1"), ("b", "1"), ("a", "2")] {
            assert_eq!(
                client
                    .request("POST", &format!("/once?key={key}"), &[], b"x")
                    .unwrap()
                    .text(),
                times
            );
        }
        assert_eq!(client.get("/counters").unwrap().json()["posts"]["a"], 2);
        assert_eq!(origin.counters().requests, 3);
    }
}
