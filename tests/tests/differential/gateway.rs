//! What stands behind the servers that cannot run a program of their own, and lists their requests: FastCGI, which
//! carries a request as its server understood it, or HTTP as that server writes it anew.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use tests::http::Connection;

use crate::account::Record;
use crate::reading::Seen;

const BEGIN: u8 = 1;
const ABORT: u8 = 2;
const END: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const GET_VALUES: u8 = 9;
const GET_VALUES_RESULT: u8 = 10;

pub struct Gateway {
    pub address: SocketAddr,
    records: Arc<Mutex<Vec<Record>>>,
}

impl Gateway {
    /// `serve` lists the requests of one connection.
    pub fn start(serve: fn(TcpStream, &Mutex<Vec<Record>>) -> io::Result<()>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let records = Arc::new(Mutex::new(Vec::new()));
        let all = records.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let records = all.clone();
                // A connection that breaks off has nothing more to count.
                thread::spawn(move || serve(connection, &records));
            }
        });
        Self { address, records }
    }

    /// The requests that were counted so far.
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.records.lock().expect("no panic holds it"))
    }
}

/// A request as far as it has come.
#[derive(Default)]
struct Request {
    id: u16,
    keep: bool,
    params: Vec<u8>,
    body: Vec<u8>,
}

pub fn http(socket: TcpStream, records: &Mutex<Vec<Record>>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut connection = Connection::over(socket);
    while let Some(head) = connection.read_head()? {
        let [method, target, _] = &head.line;
        let mut body = Vec::new();
        connection.read_body(head.request_framing()?, &mut |piece| {
            body.extend_from_slice(piece);
            Ok(())
        })?;
        let seen = Seen {
            method: method.clone().into_bytes(),
            target: target.clone().into_bytes(),
            body,
        };
        let answer = format!("HTTP/1.1 200 OK\r\n{}", list(&seen, records));
        connection.write(answer.as_bytes())?;
    }
    Ok(())
}

/// Lists a request: the fields of its answer.
fn list(seen: &Seen, records: &Mutex<Vec<Record>>) -> String {
    records.lock().expect("no panic holds it").push(Record::of(seen));
    format!("X-Seen: {}\r\nContent-Length: 0\r\n\r\n", seen.digest())
}

pub fn fastcgi(connection: TcpStream, records: &Mutex<Vec<Record>>) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut writer = connection;
    let mut request = Request::default();
    loop {
        let mut header = [0; 8];
        reader.read_exact(&mut header)?;
        let [_, kind, id @ .., _, _, padding, _] = header;
        let id = u16::from_be_bytes(id);
        let length = u16::from_be_bytes([header[4], header[5]]).into();
        let mut content = vec![0; length + usize::from(padding)];
        reader.read_exact(&mut content)?;
        content.truncate(length);
        match kind {
            BEGIN => {
                request = Request {
                    id,
                    keep: content[2] & 1 == 1,
                    ..Request::default()
                }
            }
            PARAMS => request.params.extend(content),
            STDIN if !content.is_empty() => request.body.extend(content),
            STDIN => {
                let Some(seen) = request.seen() else { return Ok(()) };
                let answer = format!("Status: 200 OK\r\n{}", list(&seen, records));
                let mut out = record(STDOUT, request.id, answer.as_bytes());
                out.extend(record(STDOUT, request.id, b""));
                out.extend(record(END, request.id, &[0; 8]));
                writer.write_all(&out)?;
                if !request.keep {
                    return Ok(());
                }
            }
            ABORT => {
                writer.write_all(&record(END, id, &[0; 8]))?;
                return Ok(());
            }
            GET_VALUES => writer.write_all(&record(GET_VALUES_RESULT, 0, b""))?,
            _ => {}
        }
    }
}

fn record(kind: u8, id: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("answers are short");
    let mut out = vec![1, kind];
    out.extend(id.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend([0, 0]);
    out.extend(content);
    out
}

impl Request {
    /// None if its body is not as long as the server says.
    fn seen(&self) -> Option<Seen> {
        let (mut method, mut target) = (Vec::new(), Vec::new());
        let mut rest = &self.params[..];
        while !rest.is_empty() {
            let (name_length, value_length) = (length(&mut rest)?, length(&mut rest)?);
            let (name, after) = rest.split_at_checked(name_length)?;
            let (value, after) = after.split_at_checked(value_length)?;
            rest = after;
            match name {
                b"REQUEST_METHOD" => method = value.to_vec(),
                b"REQUEST_URI" => target = value.to_vec(),
                b"CONTENT_LENGTH" if !value.is_empty() => {
                    let said = std::str::from_utf8(value).ok()?.parse::<usize>().ok()?;
                    if said != self.body.len() {
                        return None;
                    }
                }
                _ => {}
            }
        }
        let body = self.body.clone();
        Some(Seen { method, target, body })
    }
}

/// One byte, or four with the highest bit set.
fn length(rest: &mut &[u8]) -> Option<usize> {
    let [first, after @ ..] = *rest else { return None };
    if first & 0x80 == 0 {
        *rest = after;
        return Some(usize::from(*first));
    }
    let (four, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*four) & 0x7fff_ffff).ok()
}
