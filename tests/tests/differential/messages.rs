//! Messages of all classes of which proxies and sites were found to disagree, each from its number alone.

use tests::simulation::prng::Prng;

use crate::chunks::{Odd, chunks};
use crate::reading::Way;

/// Fields that mean nothing for the framing, or look as if they did.
const FIELDS: &[&str] = &[
    "Accept: */*",
    "Accept-Encoding: gzip, deflate",
    "Cache-Control: no-store",
    "Connection: X-Hop",
    "Connection: keep-alive",
    "Connection: keep-alive, Upgrade",
    "Connection: TE, close",
    "Content-Encoding: chunked",
    "Content-Length-Total: 7",
    "Content-Type: application/x-www-form-urlencoded",
    "Content_Length: 7",
    "Cookie: a=\"b; c\"; Content-Length=7",
    "Expect: 100-continue",
    "Forwarded: for=\"[::1]\";host=other.test",
    "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    "If-None-Match: \"Transfer-Encoding: chunked\"",
    "Keep-Alive: timeout=5",
    "Max-Forwards: 0",
    "Proxy-Connection: keep-alive",
    "Range: bytes=0-4",
    "TE: trailers, chunked",
    "Trailer: X-Sum",
    "Transfer_Encoding: chunked",
    "Transfer-Encodings: chunked",
    "Upgrade: h2c",
    "Upgrade: websocket",
    "Via: 1.0 a, HTTP/1.1 b",
    "X-Empty:",
    "X-Forwarded-Host: other.test",
    "X-High: \u{e4}\u{65e5}",
    "X-HTTP-Method-Override: DELETE",
    "X-Hop: 1",
    "X-Original-URL: /hidden",
    "X-Text: a: b, \"c\\\"",
];

const LENGTHS: &[&str] = &[
    "Content-Length: +{n}",
    "Content-Length: -{n}",
    "Content-Length: 0x{n}",
    "Content-Length: {n}, {n}",
    "Content-Length: {n}, 0",
    "Content-Length: {n},",
    "Content-Length: {n} 0",
    "Content-Length: {n}.0",
    "Content-Length: {n};",
    "Content-Length: \"{n}\"",
    "Content-Length: 00000{n}",
    "Content-Length: 00000000000000000000{n}",
    "Content-Length: 1844674407370955161{n}",
    "Content-Length: 429496729{n}",
    "Content-Length:",
    "Content-Length: ",
    "Content-Length:{n}",
    "Content-Length: \t {n} \t",
    "Content-Length : {n}",
    "Content-Length\t: {n}",
    "Content-Length\u{b}: {n}",
    "Content-Length: \u{b}{n}",
    "Content-Length: \u{c}{n}",
    "Content-Length:\r\n {n}",
    "Content-Length: {n}\r\n\t",
    "Content-Length: {n}\r",
    "Content-Length: {n}\0",
    " Content-Length: {n}",
    "cONTENT-lENGTH: {n}",
    "Content-Length: {n}\r\nContent-Length: {n}",
    "Content-Length: {n}\r\ncontent-length: 0",
    "Content-Length: 0\r\nContent-Length: {n}",
    "Content-Length: {n}\nX: y",
    "X: y\rContent-Length: {n}",
    "X: y\nContent-Length: {n}",
    "Content-Length: {n}\r\nConnection: Content-Length",
    "Content-Length: {n}\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: {n}",
    "Content-Length: {n}\r\nTransfer-Encoding: identity",
    "Content-Length: {n}\r\nTransfer-Encoding:",
    "Content-Length: {n}\r\nTransfer-Encoding : chunked",
    "Content-Length: {n}\r\n Transfer-Encoding: chunked",
    "Content-Length: {n}\r\nX: y\r\n\tTransfer-Encoding: chunked",
    "Content-Length: {n}\r\n\0Transfer-Encoding: chunked",
];

const ENCODINGS: &[&str] = &[
    "Transfer-Encoding: CHUNKED",
    "transfer-encoding:chunked",
    "Transfer-Encoding:\t chunked \t",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding\t: chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunkedx",
    "Transfer-Encoding: chunked;q=1",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: 'chunked'",
    "Transfer-Encoding: chunked,",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding:\r\n chunked",
    "Transfer-Encoding: chunked\r\n ",
    "Transfer-Encoding: x\r\n chunked",
    "Transfer-Encoding: \u{b}chunked",
    "Transfer-Encoding: chunked\u{c}",
    "Transfer-Encoding: chunked\0",
    "Transfer-Encoding: chun\tked",
    "Transfer-Encoding: chunked\r",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\nX: y",
    "Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding",
    "Transfer-Encoding: chunked\r\nConnection: close, transfer-encoding",
    "Transfer\u{2d}Encoding: chunk\u{e9}d",
    "Transfer-Encoding: \u{a0}chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 4",
];

/// What changes the meaning of a message where it lands in the wrong place.
const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    " ",
    "\t",
    "\0",
    "\u{b}",
    ":",
    ",",
    ";",
    "\"",
    "0",
    "5",
    "chunked",
    "HTTP/1.0",
    "HTTP/1.1",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "0\r\n\r\n",
    "GET ",
    "#",
    "?",
    "\u{e4}",
];

/// A message before it is written.
struct Message {
    line: Vec<u8>,
    fields: Vec<Vec<u8>>,
    body: Vec<u8>,
}

impl Message {
    fn written(&self) -> Vec<u8> {
        let mut bytes = [&self.line[..], b"\r\n"].concat();
        for field in &self.fields {
            bytes.extend_from_slice(field);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A request that nobody reads in two ways.
pub fn plain(way: Way, site: &str, path: &str) -> Vec<u8> {
    let base = base(way, site);
    format!("GET {base}{path} HTTP/1.1\r\nHost: {site}\r\n\r\n").into_bytes()
}

fn base(way: Way, site: &str) -> String {
    match way {
        Way::Absolute => format!("http://{site}"),
        Way::Origin | Way::Secured => String::new(),
    }
}

/// A message that was mutated at least once.
pub fn mutated(random: &mut Prng, way: Way, site: &str, number: u64) -> Vec<u8> {
    // One thing that is hard to read shows more than several, of which one is refused by everybody.
    let odd = random.chance(30).then(|| random.pick(&Odd::ALL));
    let mut message = fresh(random, way, site, number, odd);
    for _ in 0..random.between(1, 3) {
        soften(random, &mut message, way);
    }
    let others = if odd.is_some() { 10 } else { 35 };
    if random.chance(others) {
        harden_head(random, &mut message);
    }
    let mut bytes = message.written();
    if random.chance(others / 2) {
        for _ in 0..random.between(1, 3) {
            scramble(random, &mut bytes);
        }
    }
    bytes
}

fn fresh(random: &mut Prng, way: Way, site: &str, number: u64, odd: Option<Odd>) -> Message {
    let methods = [
        "GET", "GET", "POST", "POST", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS",
    ];
    let suffix = random.pick(&[
        "",
        "",
        "",
        "?q=1&r=%20",
        "/a/../b",
        "//c",
        "/%2e%2e/d",
        ";p=1",
        "?/?",
        "/a%0d%0ab",
        "/a\\b",
    ]);
    let base = base(way, site);
    let hidden = String::from_utf8_lossy(&plain(way, site, &format!("/hidden-{number}"))).into_owned();
    let payloads = [
        String::new(),
        "hello".to_owned(),
        "a=b&c=d".to_owned(),
        "0\r\n\r\n".to_owned(),
        "x".repeat(random.between(1, 300) as usize),
        format!("0\r\n\r\n{hidden}"),
        format!("\r\n\r\n{hidden}"),
        hidden.clone(),
        hidden,
    ];
    let payload = payloads[random.below(payloads.len() as u64) as usize].as_bytes();
    let mut message = Message {
        line: format!("{} {base}/m{number}{suffix} HTTP/1.1", random.pick(&methods)).into_bytes(),
        fields: vec![format!("Host: {site}").into_bytes()],
        body: Vec::new(),
    };
    match random.below(5) {
        0 => {}
        1 | 2 => {
            message
                .fields
                .push(format!("Content-Length: {}", payload.len()).into_bytes());
            message.body = payload.to_vec();
        }
        _ => {
            message.fields.push(b"Transfer-Encoding: chunked".to_vec());
            message.body = chunks(random, payload, odd);
        }
    }
    message
}

/// What most readers take.
fn soften(random: &mut Prng, message: &mut Message, way: Way) {
    let place = random.below(message.fields.len() as u64) as usize;
    match random.below(12) {
        0..=4 => message.fields.insert(place, random.pick(FIELDS).as_bytes().to_vec()),
        5 => {
            let field = &mut message.fields[place];
            let colon = field.iter().position(|byte| *byte == b':').unwrap_or(0);
            field[..colon].iter_mut().for_each(|byte| {
                *byte = match random.chance(50) {
                    true => byte.to_ascii_uppercase(),
                    false => byte.to_ascii_lowercase(),
                }
            });
        }
        6 => {
            let field = &mut message.fields[place];
            let colon = field.iter().position(|byte| *byte == b':').unwrap_or(0);
            let blanks = random.pick(&[" ", "\t", "  \t", ""]);
            field.splice(colon + 1..field.len().min(colon + 2), blanks.bytes());
            field.extend_from_slice(random.pick(&[" ", "\t", " \t ", ""]).as_bytes());
        }
        7 => message.fields.swap(0, place),
        8 if way == Way::Absolute => {
            let host = random.pick(&["other.test", "other.test:81", "127.0.0.1", "[::1]:80"]);
            for field in message.fields.iter_mut().filter(|field| field.starts_with(b"Host")) {
                *field = format!("Host: {host}").into_bytes();
            }
        }
        9 if random.chance(30) => replace(&mut message.line, b"HTTP/1.1", b"HTTP/1.0"),
        10 => {
            let filler = "y".repeat(random.pick(&[10, 100, 4_000]));
            message.fields.insert(place, format!("X-Long: {filler}").into_bytes());
        }
        11 if random.chance(20) => {
            let more = random.between(20, 120);
            message
                .fields
                .extend((0..more).map(|n| format!("X-{n}: {n}").into_bytes()));
        }
        _ => {
            let method = random.pick(&["PROPFIND", "REPORT", "M-SEARCH", "X", "get", "TRACE", "PURGE", "QUERY"]);
            let end = message.line.iter().position(|byte| *byte == b' ').unwrap_or(0);
            message.line.splice(..end, method.bytes());
        }
    }
}

/// What readers take in different ways, or should not take at all.
fn harden_head(random: &mut Prng, message: &mut Message) {
    let place = random.below(message.fields.len() as u64 + 1) as usize;
    let length = message.body.len();
    match random.below(10) {
        0..=2 => {
            let near = random.pick(&[length, length, length.saturating_sub(1), length + 1, 0, length / 2]);
            let field = random.pick(LENGTHS).replace("{n}", &near.to_string());
            message
                .fields
                .retain(|field| !is(field, b"content-length") || random.chance(20));
            message
                .fields
                .insert(place.min(message.fields.len()), field.into_bytes());
        }
        3..=5 => {
            let field = random.pick(ENCODINGS);
            message
                .fields
                .retain(|field| !is(field, b"transfer-encoding") || random.chance(20));
            message
                .fields
                .insert(place.min(message.fields.len()), field.as_bytes().to_vec());
        }
        6 => {
            let line = random.pick(&[
                "X-Folded: a\r\n b",
                "X : a",
                " X: a",
                ": a",
                "X",
                "X: a\rY: b",
                "X: a\nY: b",
                "X: a\0b",
                "X\0: a",
                "X\u{e4}: a",
                "X(y): a",
                "X: \u{7f}",
                "Host: other.test",
                "Host:",
                "\r",
                "Expect: 200-ok",
                "Connection: Host",
                "X: a\r\n\r",
            ]);
            message.fields.insert(place, line.as_bytes().to_vec());
        }
        7 | 8 => {
            let (from, to) = random.pick(&[
                (" HTTP/1.1", ""),
                (" HTTP/1.1", " HTTP/0.9"),
                (" HTTP/1.1", " HTTP/1.2"),
                (" HTTP/1.1", " HTTP/2.0"),
                (" HTTP/1.1", " HTTP/1.10"),
                (" HTTP/1.1", " HTTP/1.1 "),
                (" HTTP/1.1", "  HTTP/1.1"),
                (" HTTP/1.1", "\tHTTP/1.1"),
                (" HTTP/1.1", " http/1.1"),
                (" HTTP/1.1", " HTTP/1.1\r"),
                (" HTTP/1.1", " x HTTP/1.1"),
                (" HTTP/1.1", "\n"),
                ("/m", "/\u{e4}m"),
                ("/m", "/#m"),
                ("/m", "/m\0"),
                ("/m", "/%00m"),
                ("/m", "/m\u{7f}"),
                ("/m", "?m"),
                ("/m", "@other.test/m"),
                (" ", "  "),
                (" ", "\t"),
            ]);
            replace(&mut message.line, from.as_bytes(), to.as_bytes());
        }
        _ => {
            let before = random.pick(&["\r\n", "\n", " ", "\0", "\r\n\r\n", "\u{feff}"]);
            message.line.splice(0..0, before.bytes());
        }
    }
}

fn is(field: &[u8], name: &[u8]) -> bool {
    field
        .get(..name.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(name))
}

fn replace(text: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    if let Some(at) = text.windows(from.len()).position(|window| window == from) {
        text.splice(at..at + from.len(), to.iter().copied());
    }
}

/// Changes bytes wherever they are.
fn scramble(random: &mut Prng, bytes: &mut Vec<u8>) {
    let at = random.below(bytes.len() as u64 + 1) as usize;
    match random.below(5) {
        0 if at < bytes.len() => bytes[at] = random.below(256) as u8,
        1 => {
            let end = (at + random.between(1, 8) as usize).min(bytes.len());
            bytes.drain(at..end);
        }
        2 => {
            let from = at.saturating_sub(random.between(1, 40) as usize);
            let copy = bytes[from..at].to_vec();
            bytes.splice(at..at, copy);
        }
        _ => {
            let piece = random.pick(PIECES).bytes();
            bytes.splice(at..at, piece);
        }
    }
}
