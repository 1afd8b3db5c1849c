//! Heads of requests and responses (RFC 9112), strictly: one reading or none.
//!
//! Refused although a lenient peer would take it: bare LF or CR, anything before the start line, obs-fold, white space
//! before a colon, control characters, a Content-Length that is doubled, listed, signed or empty, Content-Length beside
//! Transfer-Encoding, Transfer-Encoding other than `chunked` or in HTTP/1.0, Host missing or doubled, user information.

use std::fmt;

use memchr::{memchr, memchr_iter};

use super::fields::{Fields, list};
use super::is_token_byte;
use super::target::{Authority, Form, Scheme, Target};
use crate::limits::{
    CONNECTION_OPTIONS_MAX, HEAD_BYTES_MAX, HEAD_FIELDS_MAX, HEAD_GROWTH_BYTES_MAX,
    METHOD_BYTES_MAX, TARGET_BYTES_MAX,
};

/// Why a message was refused: whoever sent it is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    /// What to answer the browser: 400, 414, 417, 431, 501, 505; 502 for a site's response.
    pub status: u16,
    /// For people; holds nothing of the message.
    pub reason: &'static str,
}

impl Bad {
    pub(crate) const fn request(reason: &'static str) -> Self {
        Self {
            status: 400,
            reason,
        }
    }

    const fn of_site(self) -> Self {
        Self {
            status: 502,
            reason: self.reason,
        }
    }
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason)
    }
}

impl std::error::Error for Bad {}

/// Versions that are spoken; every other is 505.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// How the end of a message's body is known (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Responses only: the body ends with the connection.
    UntilClose,
}

/// Whose head it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

/// Finds the end of a head in a growing buffer, never scanning a byte twice.
#[derive(Clone, Debug)]
pub struct Finder {
    side: Side,
    bytes_max: usize,
    scanned: usize,
    /// Where the line begins that is being scanned.
    line: usize,
}

impl Finder {
    /// For what browsers send.
    pub const fn request() -> Self {
        Self::new(Side::Request, HEAD_BYTES_MAX)
    }

    /// For requests that `rewrite::request` wrote: they may have grown by a Host field.
    pub const fn forwarded() -> Self {
        Self::new(Side::Request, HEAD_BYTES_MAX + HEAD_GROWTH_BYTES_MAX)
    }

    /// For what sites send.
    pub const fn response() -> Self {
        Self::new(Side::Response, HEAD_BYTES_MAX)
    }

    const fn new(side: Side, bytes_max: usize) -> Self {
        Self {
            side,
            bytes_max,
            scanned: 0,
            line: 0,
        }
    }

    /// Length of the head at the start of `buf` with its empty line, or `None` if more bytes are needed. `buf` begins
    /// at the same byte on each call until a head was found; then the finder is ready for the next one. What cannot
    /// become a head (no token or `HTTP/1.` at its start, a bare LF, too long) is refused without waiting for its end.
    pub fn find(&mut self, buf: &[u8]) -> Result<Option<usize>, Bad> {
        self.search(buf).map_err(|bad| match self.side {
            Side::Request => bad,
            Side::Response => bad.of_site(),
        })
    }

    fn search(&mut self, buf: &[u8]) -> Result<Option<usize>, Bad> {
        self.check_start(buf)?;
        let end = buf.len().min(self.bytes_max);
        let from = self.scanned.min(end);
        for at in memchr_iter(b'\n', &buf[from..end]) {
            let at = from + at;
            if at == 0 || buf[at - 1] != b'\r' {
                return Err(Bad::request("a line of the head ends in LF without CR"));
            }
            if at == self.line + 1 {
                *self = Self::new(self.side, self.bytes_max);
                return Ok(Some(at + 1));
            }
            self.line = at + 1;
        }
        self.scanned = end;
        if self.line == 0
            && self.side == Side::Request
            && end > TARGET_BYTES_MAX + METHOD_BYTES_MAX + 16
        {
            return Err(Bad {
                status: 414,
                reason: "the request target is too long",
            });
        }
        if end == self.bytes_max {
            return Err(Bad {
                status: 431,
                reason: "the head is too large",
            });
        }
        Ok(None)
    }

    fn check_start(&self, buf: &[u8]) -> Result<(), Bad> {
        let good = match (self.side, buf) {
            (_, []) => true,
            (Side::Request, [first, ..]) => is_token_byte(*first),
            (Side::Response, _) => buf.iter().zip(b"HTTP/1.").all(|(a, b)| a == b),
        };
        if good {
            Ok(())
        } else {
            Err(Bad::request(
                "the message does not begin with a start line of HTTP/1",
            ))
        }
    }
}

/// A request's head: facts beside slices of the caller's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    head: &'a [u8],
    /// A token of 1 to 32 bytes, in its own case.
    pub method: &'a str,
    pub form: Form,
    /// Of absolute-form.
    pub scheme: Option<Scheme>,
    /// The target's, which wins (RFC 9112 section 3.2.2), else Host's; absent only in HTTP/1.0.
    pub authority: Option<Authority<'a>>,
    /// Path and query as sent: empty or beginning with `?` in absolute-form, empty in authority-form.
    pub path: &'a [u8],
    pub version: Version,
    /// Never `UntilClose`.
    pub framing: Framing,
    /// The browser wants its connection kept; never in HTTP/1.0 (RFC 9112 section 9.3 warns proxies of it).
    pub keep_alive: bool,
    /// It asks for WebSocket. Other protocols are not upgraded to: `h2c` would carry requests past every rule.
    pub upgrade: bool,
    /// `Expect: 100-continue`.
    pub expect_continue: bool,
}

impl<'a> Request<'a> {
    /// Parses a whole head, as long as the finder said.
    pub fn parse(head: &'a [u8]) -> Result<Self, Bad> {
        let (line, block) = split_start(head)?;
        let (method, target, version) = request_line(line)?;
        let target = Target::parse(method, target)?;
        let facts = Facts::read(block, Side::Request)?;
        if facts.host.is_none() && version == Version::Http11 {
            return Err(Bad::request("Host is missing"));
        }
        if facts.host.is_none() && facts.fields == HEAD_FIELDS_MAX {
            return Err(TOO_MANY_FIELDS);
        }
        let host = facts.host.map(Authority::parse).transpose()?;
        let framing = facts.request_framing(method, version)?;
        let bodyless = matches!(framing, Framing::None | Framing::Length(0));
        let http11 = version == Version::Http11;
        Ok(Self {
            head,
            method,
            form: target.form,
            scheme: target.scheme,
            authority: target.authority.or(host),
            path: target.path,
            version,
            framing,
            keep_alive: http11 && !facts.close,
            upgrade: http11
                && bodyless
                && method == "GET"
                && facts.upgrade_option
                && facts.websocket,
            expect_continue: http11 && facts.expect_continue,
        })
    }

    /// The field lines, in order.
    pub fn fields(&self) -> Fields<'a> {
        Fields::of_head(self.head)
    }

    /// Safe to send twice (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(
            self.method,
            "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
        )
    }

    /// `scheme://host:port/path?query`; `scheme` where the target names none. For rules and pages, not for the wire.
    pub fn url(&self, scheme: Scheme) -> String {
        let scheme = self.scheme.unwrap_or(scheme).as_str();
        let authority = self.authority.map_or("", |a| a.raw);
        let slash = if self.path.first() == Some(&b'/') {
            ""
        } else {
            "/"
        };
        format!(
            "{scheme}://{authority}{slash}{}",
            String::from_utf8_lossy(self.path)
        )
    }
}

/// A response's head: facts beside slices of the caller's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    head: &'a [u8],
    pub version: Version,
    /// 100 to 999.
    pub status: u16,
    /// May be empty.
    pub reason: &'a [u8],
    pub framing: Framing,
    /// The site lets its connection be used again once this body is done.
    pub keep_alive: bool,
}

impl<'a> Response<'a> {
    /// Parses a whole head, the answer to a request of `method` that asked for an `upgrade` or did not.
    pub fn parse(head: &'a [u8], method: &str, upgrade: bool) -> Result<Self, Bad> {
        Self::parse_as(head, method, upgrade).map_err(Bad::of_site)
    }

    fn parse_as(head: &'a [u8], method: &str, upgrade: bool) -> Result<Self, Bad> {
        let (line, block) = split_start(head)?;
        let (version, status, reason) = status_line(line)?;
        let facts = Facts::read(block, Side::Response)?;
        if status < 200 && version == Version::Http10 {
            return Err(Bad::request("an interim response in HTTP/1.0"));
        }
        if status == 101 && !(upgrade && facts.upgrade_option && facts.websocket) {
            return Err(Bad::request("101 to a request that did not ask for it"));
        }
        let framing = facts.response_framing(method, version, status)?;
        let opaque = status == 101 || (method == "CONNECT" && (200..300).contains(&status));
        let persistent = match version {
            Version::Http11 => !facts.close,
            Version::Http10 => facts.keep_alive && !facts.close,
        };
        let keep_alive = persistent && !opaque && framing != Framing::UntilClose;
        Ok(Self {
            head,
            version,
            status,
            reason,
            framing,
            keep_alive,
        })
    }

    /// The field lines, in order.
    pub fn fields(&self) -> Fields<'a> {
        Fields::of_head(self.head)
    }

    /// 1xx other than 101: another response follows.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && !self.is_upgrade()
    }

    /// 101: from here on both directions are opaque.
    pub fn is_upgrade(&self) -> bool {
        self.status == 101
    }
}

/// Start line without its CRLF, and the field lines with the empty line.
fn split_start(head: &[u8]) -> Result<(&[u8], &[u8]), Bad> {
    let end = memchr(b'\n', head).ok_or(Bad::request("the head is not complete"))?;
    let (line, block) = head.split_at(end + 1);
    match line {
        [line @ .., b'\r', b'\n'] => Ok((line, block)),
        _ => Err(Bad::request("a line of the head ends in LF without CR")),
    }
}

fn request_line(line: &[u8]) -> Result<(&str, &[u8], Version), Bad> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Bad::request(
            "the request line is not three words with one space between them",
        ));
    };
    if method.is_empty() || !method.iter().copied().all(is_token_byte) {
        return Err(Bad::request("the method is not a token"));
    }
    if method.len() > METHOD_BYTES_MAX {
        return Err(Bad {
            status: 501,
            reason: "the method is too long",
        });
    }
    if target.len() > TARGET_BYTES_MAX {
        return Err(Bad {
            status: 414,
            reason: "the request target is too long",
        });
    }
    if target.is_empty() || target.iter().any(|b| *b <= b' ' || *b == 0x7f) {
        return Err(Bad::request(
            "the target is empty or holds a control character",
        ));
    }
    let method =
        std::str::from_utf8(method).map_err(|_| Bad::request("the method is not a token"))?;
    Ok((method, target, parse_version(version)?))
}

fn status_line(line: &[u8]) -> Result<(Version, u16, &[u8]), Bad> {
    let (version, rest) = line
        .split_at_checked(8)
        .ok_or(Bad::request("the status line is too short"))?;
    let version = parse_version(version)?;
    let ([b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'], rest) = rest
        .split_first_chunk::<4>()
        .ok_or(Bad::request("the status line is too short"))?
    else {
        return Err(Bad::request("the status is not three digits"));
    };
    let reason = match rest {
        [] => rest,
        [b' ', reason @ ..] => reason,
        _ => return Err(Bad::request("the status is not three digits")),
    };
    if reason
        .iter()
        .any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f)
    {
        return Err(Bad::request("the reason phrase holds a control character"));
    }
    let digit = |d: &u8| u16::from(d - b'0');
    Ok((version, digit(a) * 100 + digit(b) * 10 + digit(c), reason))
}

fn parse_version(word: &[u8]) -> Result<Version, Bad> {
    match word {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(Bad {
            status: 505,
            reason: "only HTTP/1.0 and HTTP/1.1 are spoken here",
        }),
        _ => Err(Bad::request("the version is not one of HTTP")),
    }
}

const TOO_MANY_FIELDS: Bad = Bad {
    status: 431,
    reason: "the head has too many fields",
};

/// What the field lines say about connection and framing.
#[derive(Debug, Default)]
struct Facts<'a> {
    fields: usize,
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade_option: bool,
    /// `Upgrade: websocket`, and nothing else.
    websocket: bool,
    upgrades: usize,
    options: usize,
    expect_continue: bool,
}

impl<'a> Facts<'a> {
    /// `block` is the field lines and the empty line.
    fn read(block: &'a [u8], side: Side) -> Result<Self, Bad> {
        // httparse takes a bare LF for a line end.
        if memchr_iter(b'\n', block).any(|at| at == 0 || block[at - 1] != b'\r') {
            return Err(Bad::request("a line of the head ends in LF without CR"));
        }
        let mut storage = [httparse::EMPTY_HEADER; HEAD_FIELDS_MAX];
        let fields = match httparse::parse_headers(block, &mut storage) {
            Ok(httparse::Status::Complete((n, fields))) if n == block.len() => fields,
            Ok(httparse::Status::Complete(_)) => return Err(Bad::request("bytes after the head")),
            Ok(httparse::Status::Partial) => return Err(Bad::request("the head is not complete")),
            Err(httparse::Error::TooManyHeaders) => return Err(TOO_MANY_FIELDS),
            Err(httparse::Error::HeaderName) => {
                return Err(Bad::request(
                    "a field name is empty, folded, or holds a forbidden character",
                ));
            }
            Err(_) => return Err(Bad::request("a field value holds a control character")),
        };
        let mut facts = Self {
            fields: fields.len(),
            ..Self::default()
        };
        for field in fields.iter() {
            facts.add(field.name, field.value, side)?;
        }
        if facts.chunked && facts.length.is_some() {
            return Err(Bad::request("Content-Length beside Transfer-Encoding"));
        }
        Ok(facts)
    }

    fn add(&mut self, name: &str, value: &'a [u8], side: Side) -> Result<(), Bad> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("host") && side == Side::Request {
            if self.host.replace(value).is_some() {
                return Err(Bad::request("Host is there twice"));
            }
        } else if is("content-length") {
            if self.length.replace(content_length(value)?).is_some() {
                return Err(Bad::request("Content-Length is there twice"));
            }
        } else if is("transfer-encoding") {
            if self.chunked {
                return Err(Bad::request("Transfer-Encoding is there twice"));
            }
            self.chunked = transfer_encoding(value)?;
        } else if is("connection") || (is("proxy-connection") && side == Side::Request) {
            self.connection(value, side)?;
        } else if is("upgrade") {
            self.upgrades += 1;
            self.websocket = self.upgrades == 1 && value.eq_ignore_ascii_case(b"websocket");
        } else if is("expect") && side == Side::Request {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Bad {
                    status: 417,
                    reason: "Expect asks for something other than 100-continue",
                });
            }
            self.expect_continue = true;
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8], side: Side) -> Result<(), Bad> {
        for option in list(value) {
            self.options += 1;
            if self.options > CONNECTION_OPTIONS_MAX {
                return Err(Bad {
                    status: 431,
                    reason: "Connection lists too many names",
                });
            }
            let is = |other: &[u8]| option.eq_ignore_ascii_case(other);
            self.close |= is(b"close");
            self.keep_alive |= is(b"keep-alive");
            self.upgrade_option |= is(b"upgrade");
            // Sites do list Transfer-Encoding; from a browser it can only be meant to hide a field from the next hop.
            if side == Side::Request
                && (is(b"host") || is(b"content-length") || is(b"transfer-encoding"))
            {
                return Err(Bad::request(
                    "Connection lists a field that no hop may drop",
                ));
            }
        }
        Ok(())
    }

    fn request_framing(&self, method: &str, version: Version) -> Result<Framing, Bad> {
        self.check_version(version)?;
        let framing = match (self.chunked, self.length) {
            (true, _) => Framing::Chunked,
            (false, Some(n)) => Framing::Length(n),
            (false, None) => Framing::None,
        };
        // What follows a CONNECT is the tunnel's; a body there would be read as such by some and not by others.
        if method == "CONNECT" && !matches!(framing, Framing::None | Framing::Length(0)) {
            return Err(Bad::request("CONNECT with a body"));
        }
        Ok(framing)
    }

    fn response_framing(
        &self,
        method: &str,
        version: Version,
        status: u16,
    ) -> Result<Framing, Bad> {
        self.check_version(version)?;
        // RFC 9112 section 6.3: whatever these say about a body is ignored.
        if (method == "CONNECT" && (200..300).contains(&status))
            || method == "HEAD" && status >= 200
            || status == 304
        {
            return Ok(Framing::None);
        }
        if status < 200 || status == 204 {
            if self.chunked || self.length.is_some_and(|n| n > 0) {
                return Err(Bad::request("a status without a body announces one"));
            }
            return Ok(Framing::None);
        }
        Ok(match (self.chunked, self.length) {
            (true, _) => Framing::Chunked,
            (false, Some(n)) => Framing::Length(n),
            (false, None) => Framing::UntilClose,
        })
    }

    fn check_version(&self, version: Version) -> Result<(), Bad> {
        if self.chunked && version == Version::Http10 {
            return Err(Bad::request("Transfer-Encoding in HTTP/1.0"));
        }
        Ok(())
    }
}

/// Digits and nothing else, at most 2^63 - 1: more would be negative to some.
fn content_length(value: &[u8]) -> Result<u64, Bad> {
    let digits = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value)
        .ok()
        .filter(|_| digits)
        .and_then(|s| s.parse::<u64>().ok());
    number
        .filter(|n| *n <= i64::MAX as u64)
        .ok_or(Bad::request("Content-Length is not one number"))
}

/// True, or refused: 501 where the value is valid but names a coding that is not spoken (RFC 9112 section 6.1).
fn transfer_encoding(value: &[u8]) -> Result<bool, Bad> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(true);
    }
    let codings = value.strip_suffix(b"chunked").unwrap_or(b"x");
    let known = |c: &[u8]| {
        [&b"gzip"[..], b"x-gzip", b"deflate", b"compress"]
            .iter()
            .any(|k| c.eq_ignore_ascii_case(k))
    };
    if list(codings).all(known) && codings.contains(&b',') {
        return Err(Bad {
            status: 501,
            reason: "a transfer coding other than chunked",
        });
    }
    Err(Bad::request("Transfer-Encoding is not exactly chunked"))
}
