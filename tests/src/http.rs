//! HTTP/1.1 over raw sockets, small enough to be obviously right: heads, framing of bodies, and a client that speaks
//! to the proxy port as a browser does.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::body::{self, Check, STEP_BYTES};
use crate::is_long;

/// Nothing on loopback is silent this long unless it hangs: longer than any outage that a test makes.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// As long as that in the long forms, where a drain takes 300 s.
const PATIENCE_LONG: Duration = Duration::from_secs(600);

/// A head that is larger is a fault.
const HEAD_BYTES_MAX: usize = 256 * 1024;

/// What carries bytes: a socket, or TLS over one.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Connects with time limits on reads and writes, so that a test ends with an error and never hangs.
pub fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    let patience = if is_long() { PATIENCE_LONG } else { PATIENCE };
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// The first line, taken apart at its spaces, and the fields in order.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub line: [String; 3],
    pub fields: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> io::Result<Self> {
        let mut lines = text.split("\r\n");
        let mut line = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned);
        let line = std::array::from_fn(|_| line.next().unwrap_or_default());
        let fields = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let (name, value) = line.split_once(':').ok_or_else(|| broken(format!("field {line:?}")))?;
                Ok((name.to_owned(), value.trim().to_owned()))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { line, fields })
    }

    /// Of an answer; 0 if the line holds none.
    pub fn status(&self) -> u16 {
        self.line[1].parse().unwrap_or(0)
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    pub fn has(&self, name: &str, word: &str) -> bool {
        self.field(name)
            .is_some_and(|v| v.split(',').any(|w| w.trim().eq_ignore_ascii_case(word)))
    }

    fn length(&self) -> io::Result<Option<u64>> {
        self.field("content-length")
            .map(|v| v.parse().map_err(|_| broken(format!("length {v:?}"))))
            .transpose()
    }

    /// How the body of a request is delimited (RFC 9112 section 6.3).
    pub fn request_framing(&self) -> io::Result<Framing> {
        if self.has("transfer-encoding", "chunked") {
            return Ok(Framing::Chunked);
        }
        Ok(Framing::Length(self.length()?.unwrap_or(0)))
    }

    /// How the body of the answer to `method` is delimited.
    pub fn answer_framing(&self, method: &str) -> io::Result<Framing> {
        if method == "HEAD" || matches!(self.status(), 100..=199 | 204 | 304) {
            return Ok(Framing::Length(0));
        }
        if self.has("transfer-encoding", "chunked") {
            return Ok(Framing::Chunked);
        }
        Ok(self.length()?.map_or(Framing::Close, Framing::Length))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    Close,
}

fn broken(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the message was cut")
}

/// A stream with what was read from it and not used yet.
pub struct Connection {
    stream: Box<dyn Stream>,
    unread: Vec<u8>,
    used: usize,
}

impl Connection {
    pub fn over(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            unread: Vec::new(),
            used: 0,
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Reads once; false at the end of the stream.
    fn more(&mut self) -> io::Result<bool> {
        if self.used == self.unread.len() {
            self.unread.clear();
            self.used = 0;
        }
        let held = self.unread.len();
        self.unread.resize(held + STEP_BYTES, 0);
        let read = self.stream.read(&mut self.unread[held..]);
        self.unread.truncate(held + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }

    /// The next head, or `None` when the other side closed between messages.
    pub fn read_head(&mut self) -> io::Result<Option<Head>> {
        let mut from = self.used;
        loop {
            if let Some(at) = self.unread[from..].windows(4).position(|w| w == b"\r\n\r\n") {
                let end = from + at;
                let text = std::str::from_utf8(&self.unread[self.used..end]).map_err(|e| broken(e.to_string()))?;
                let head = Head::parse(text)?;
                self.used = end + 4;
                return Ok(Some(head));
            }
            let held = self.unread.len() - self.used;
            if held > HEAD_BYTES_MAX {
                return Err(broken("the head is too long".into()));
            }
            if !self.more()? {
                return if held == 0 { Ok(None) } else { Err(cut()) };
            }
            from = self.used + held.saturating_sub(3);
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.unread[self.used..].windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[self.used..self.used + at]).into_owned();
                self.used += at + 2;
                return Ok(line);
            }
            if !self.more()? {
                return Err(cut());
            }
        }
    }

    /// Hands exactly `length` bytes to `sink`, in pieces.
    fn read_exactly(&mut self, length: u64, sink: &mut Sink<'_>) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.used == self.unread.len() && !self.more()? {
                return Err(cut());
            }
            let n = left.min((self.unread.len() - self.used) as u64) as usize;
            sink(&self.unread[self.used..self.used + n])?;
            self.used += n;
            left -= n as u64;
        }
        Ok(())
    }

    /// Hands a whole body to `sink`, in pieces; a body that was cut is an error.
    pub fn read_body(&mut self, framing: Framing, sink: &mut Sink<'_>) -> io::Result<()> {
        match framing {
            Framing::Length(length) => self.read_exactly(length, sink),
            Framing::Close => loop {
                sink(&self.unread[self.used..])?;
                self.used = self.unread.len();
                if !self.more()? {
                    return Ok(());
                }
            },
            Framing::Chunked => loop {
                let line = self.read_line()?;
                let size = line.split(';').next().unwrap_or_default();
                let size = u64::from_str_radix(size, 16).map_err(|_| broken(format!("chunk {line:?}")))?;
                if size == 0 {
                    while !self.read_line()?.is_empty() {}
                    return Ok(());
                }
                self.read_exactly(size, sink)?;
                if !self.read_line()?.is_empty() {
                    return Err(broken("a chunk is longer than it says".into()));
                }
            },
        }
    }

    /// What was read beyond the last message, and the stream.
    pub fn into_parts(self) -> (Vec<u8>, Box<dyn Stream>) {
        (self.unread[self.used..].to_vec(), self.stream)
    }
}

/// Where the pieces of a body go.
pub type Sink<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// A whole answer with a small body.
#[derive(Debug)]
pub struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()))
    }
}

/// A keep-alive client: to a proxy port with absolute-form targets, or to a server with origin-form ones.
pub struct Client {
    connection: Connection,
    /// What Host says where the target does not.
    host: String,
}

impl Client {
    pub fn dial(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::over(dial(address)?))
    }

    pub fn over(stream: impl Stream + 'static) -> Self {
        Self {
            connection: Connection::over(stream),
            host: "localhost".to_owned(),
        }
    }

    /// Origin-form targets are this host's.
    pub fn of_host(self, host: &str) -> Self {
        Self {
            host: host.to_owned(),
            ..self
        }
    }

    /// Sends a request with whatever fields are given, and nothing but those and Host.
    pub fn send(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.authority(target));
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || method == "POST" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        self.connection.write(&[head.as_bytes(), body].concat())
    }

    /// Host and port of an absolute-form target.
    fn authority<'a>(&'a self, target: &'a str) -> &'a str {
        let Some((_, after)) = target.split_once("://") else {
            return &self.host;
        };
        after.split('/').next().unwrap_or(after)
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.connection.write(bytes)
    }

    /// The next final answer's head; 1xx are read over, but 101.
    pub fn read_head(&mut self) -> io::Result<Head> {
        loop {
            let head = self.connection.read_head()?.ok_or_else(cut)?;
            if head.status() == 101 || head.status() >= 200 {
                return Ok(head);
            }
        }
    }

    pub fn read_answer(&mut self, method: &str) -> io::Result<Answer> {
        let head = self.read_head()?;
        let mut body = Vec::new();
        self.connection.read_body(head.answer_framing(method)?, &mut |piece| {
            body.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(Answer { head, body })
    }

    /// Hands the body of an answer whose head was read to `sink`.
    pub fn read_body(&mut self, head: &Head, sink: &mut Sink<'_>) -> io::Result<()> {
        self.connection.read_body(head.answer_framing("GET")?, sink)
    }

    pub fn request(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        self.send(method, target, fields, body)?;
        self.read_answer(method)
    }

    pub fn get(&mut self, target: &str) -> io::Result<Answer> {
        self.request("GET", target, &[], &[])
    }

    /// Gets `/bytes` of an origin (`base` is its URL) and checks each byte.
    pub fn download(&mut self, base: &str, seed: u64, length: u64, query: &str) -> io::Result<()> {
        self.send(
            "GET",
            &format!("{base}/bytes?seed={seed}&length={length}{query}"),
            &[],
            &[],
        )?;
        let head = self.read_head()?;
        if head.status() != 200 {
            return Err(broken(format!("{:?}", head)));
        }
        let mut check = Check::new(seed);
        self.read_body(&head, &mut |piece| check.update(piece))?;
        if check.offset() != length {
            return Err(broken(format!("{} of {length} bytes, and no error", check.offset())));
        }
        Ok(())
    }

    /// Posts body `seed` to `/upload` of an origin, chunked or with its length, and compares the hash it answers.
    pub fn upload(&mut self, base: &str, seed: u64, length: u64, chunked: bool) -> io::Result<()> {
        self.upload_pausing(base, seed, length, chunked, || {})
    }

    /// As [`Client::upload`]; half way it waits until `pause` returns.
    pub fn upload_pausing(
        &mut self,
        base: &str,
        seed: u64,
        length: u64,
        chunked: bool,
        pause: impl FnOnce(),
    ) -> io::Result<()> {
        let target = format!("{base}/upload");
        let framing = if chunked {
            "Transfer-Encoding: chunked".into()
        } else {
            format!("Content-Length: {length}")
        };
        self.connection.write(
            format!(
                "POST {target} HTTP/1.1\r\nHost: {}\r\n{framing}\r\n\r\n",
                self.authority(&target)
            )
            .as_bytes(),
        )?;
        let mut step = vec![0; STEP_BYTES];
        let (mut at, mut pause) = (0, Some(pause));
        while at < length {
            if at >= length / 2
                && let Some(pause) = pause.take()
            {
                pause();
            }
            let n = (length - at).min(STEP_BYTES as u64) as usize;
            body::fill(seed, at, &mut step[..n]);
            if chunked {
                self.connection.write(format!("{n:x}\r\n").as_bytes())?;
            }
            self.connection.write(&step[..n])?;
            if chunked {
                self.connection.write(b"\r\n")?;
            }
            at += n as u64;
        }
        if chunked {
            self.connection.write(b"0\r\n\r\n")?;
        }
        let answer = self.read_answer("POST")?;
        let expected = serde_json::json!({ "length": length, "sha256": body::sha256(seed, length) });
        if answer.status() != 200 || answer.json() != expected {
            return Err(broken(format!("{:?}: {}", answer.head, answer.text())));
        }
        Ok(())
    }

    pub fn into_connection(self) -> Connection {
        self.connection
    }
}

/// CONNECT through a proxy port: the raw socket after a 2xx, else the answer.
pub fn connect(proxy: SocketAddr, authority: &str) -> io::Result<Result<TcpStream, Answer>> {
    let socket = dial(proxy)?;
    let mut client = Client::over(socket.try_clone()?);
    client.send_raw(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes())?;
    let head = client.read_head()?;
    if head.status() / 100 == 2 {
        let (early, _) = client.connection.into_parts();
        // A site that speaks first may have spoken already; the callers here talk to sites that do not.
        return if early.is_empty() {
            Ok(Ok(socket))
        } else {
            Err(broken("bytes before the request".into()))
        };
    }
    let mut body = Vec::new();
    client.read_body(&head, &mut |piece| {
        body.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(Err(Answer { head, body }))
}

/// A value of a query string.
pub fn query<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = target.split_once('?')?;
    query.split('&').find_map(|pair| {
        let (n, value) = pair.split_once('=').unwrap_or((pair, ""));
        (n == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of a fixed size, and takes none.
    struct Pieces(Vec<u8>, usize);

    impl Read for Pieces {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(out.len());
            out[..n].copy_from_slice(&self.0[..n]);
            self.0.drain(..n);
            Ok(n)
        }
    }

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn messages_are_read_however_they_are_split() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n\
                    2\r\nde\r\n0\r\nT: u\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
        for size in 1..text.len() {
            let mut client = Client::over(Pieces(text.as_bytes().to_vec(), size));
            let first = client.read_answer("GET").unwrap();
            assert_eq!((first.status(), first.text()), (200, "abcde".to_owned()));
            let second = client.read_answer("GET").unwrap();
            assert_eq!((second.status(), second.text()), (404, "no".to_owned()));
            assert!(client.connection.read_head().unwrap().is_none());
        }
    }

    #[test]
    fn a_cut_body_is_an_error() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ] {
            let mut client = Client::over(Pieces(text.as_bytes().to_vec(), 9));
            assert_eq!(
                client.read_answer("GET").unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        }
    }
}
