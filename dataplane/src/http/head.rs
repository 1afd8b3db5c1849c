//! Heads of requests and responses (RFC 9112), strictly: one reading or none.
//!
//! Refused although a lenient peer would take it: bare LF or CR, anything before the start line, obs-fold, white space
//! before a colon, control characters, a Content-Length that is doubled, listed, signed or empty, Content-Length beside
//! Transfer-Encoding, Transfer-Encoding other than `chunked` or in HTTP/1.0, Host missing or doubled, user information.
//!
//! Of answers one thing more is taken: a single transfer coding that is not known ends with its connection (RFC 9112
//! section 6.3), and the field is not passed on.

use std::fmt;

use memchr::memchr;

use super::facts::{Facts, Side, TOO_MANY_FIELDS};
use super::fields::Fields;
use super::is_token_byte;
use super::target::{Authority, Form, Scheme, Target};
use crate::limits::{HEAD_FIELDS_MAX, METHOD_BYTES_MAX, TARGET_BYTES_MAX};

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
        Self { status: 400, reason }
    }

    pub(crate) const fn of_site(self) -> Self {
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

/// A request's head: facts beside slices of the caller's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    head: &'a [u8],
    /// A token of 1 to 32 bytes, in its own case.
    pub method: &'a str,
    pub form: Form,
    /// Of absolute-form.
    pub scheme: Option<Scheme>,
    /// The target's, which wins (RFC 9112 section 3.2.2), else Host's. Absent only in HTTP/1.0 outside absolute-form:
    /// the caller then sets the connection's own, since what is sent on needs one.
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
    /// `Expect: 100-continue`. From HTTP/1.0 it means nothing, and without content nobody may send it (RFC 9110 section
    /// 10.1.1): some sites would never answer.
    pub expect_continue: bool,
    /// A Host field is there.
    pub(super) names_host: bool,
    /// Connection may list fields that stay behind.
    pub(crate) lists_fields: bool,
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
            upgrade: http11 && bodyless && method == "GET" && facts.upgrade_option && facts.websocket,
            expect_continue: http11 && !bodyless && facts.expect_continue,
            names_host: facts.host.is_some(),
            lists_fields: facts.lists_fields,
        })
    }

    /// As it came.
    pub fn head_bytes(&self) -> usize {
        self.head.len()
    }

    /// The field lines, in order.
    pub fn fields(&self) -> Fields<'a> {
        Fields::of_head(self.head)
    }

    /// Safe to send twice (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }

    /// `scheme://host:port/path?query`; `scheme` where the target names none. For pages, not for the wire.
    pub fn url(&self, scheme: Scheme) -> String {
        let scheme = self.scheme.unwrap_or(scheme).as_str();
        let authority = self.authority.map_or("", |a| a.raw);
        let slash = if self.path.first() == Some(&b'/') { "" } else { "/" };
        format!("{scheme}://{authority}{slash}{}", String::from_utf8_lossy(self.path))
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
    /// Connection may list fields that stay behind.
    pub(super) lists_fields: bool,
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
            lists_fields: facts.lists_fields,
        })
    }

    /// As it came.
    pub fn head_bytes(&self) -> usize {
        self.head.len()
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

fn request_line(line: &[u8]) -> Result<(&str, &str, Version), Bad> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
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
    // Bytes above ASCII are against RFC 3986, but a common sloppiness; not even UTF-8 is guesswork for all.
    let printable = target.iter().all(|b| *b > b' ' && *b != 0x7f);
    let text = std::str::from_utf8(target).ok();
    let target = text
        .filter(|text| printable && !text.is_empty())
        .ok_or(Bad::request("the target is empty or holds a forbidden character"))?;
    let method = std::str::from_utf8(method).map_err(|_| Bad::request("the method is not a token"))?;
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
    if reason.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
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

/// Any bytes: never panics; splits change nothing; what is accepted and rewritten means the same when parsed again.
/// Says whether it was accepted.
#[cfg(any(test, fuzzing))]
pub fn fuzz_head(data: &[u8]) -> bool {
    use super::{Finder, rewrite};

    let found = fuzz_find(Finder::request(), data);
    assert!(found.is_some() || Request::parse(data).is_err());
    let Some((head, mut request)) = found.and_then(|h| Some((h, Request::parse(h).ok()?))) else {
        return false;
    };
    let mut storage = [httparse::EMPTY_HEADER; HEAD_FIELDS_MAX];
    let mut second = httparse::Request::new(&mut storage);
    second.parse(head).expect("a second parser takes it too");
    let fields = second.headers.iter().map(|h| (h.name.as_bytes(), h.value));
    assert!(request.fields().map(|f| (f.name, f.value)).eq(fields));
    if request.authority.is_none() {
        request.authority = Authority::parse(b"other.test").ok();
    }
    let mut out = Vec::new();
    rewrite::request(&request, &[], &mut out);
    assert_eq!(Finder::forwarded().find(&out), Ok(Some(out.len())));
    let again = Request::parse(&out).expect("a rewritten request is valid");
    assert_eq!(again.method, request.method);
    assert_eq!(again.authority, request.authority);
    assert_eq!(again.framing, request.framing);
    assert_eq!(again.upgrade, request.upgrade);
    assert_eq!(again.expect_continue, request.expect_continue);
    assert_eq!(again.version, Version::Http11);
    assert!(again.path.ends_with(request.path));
    assert!(again.form != Form::Absolute && again.keep_alive);
    let options = again.fields().filter(|f| f.is("Connection")).count();
    assert_eq!(options, usize::from(request.upgrade));
    let mut twice = Vec::new();
    rewrite::request(&again, &[], &mut twice);
    assert_eq!(twice, out);
    true
}

/// As `fuzz_head`, for responses.
#[cfg(any(test, fuzzing))]
pub fn fuzz_response(data: &[u8]) -> bool {
    use super::{Finder, rewrite};

    let Some(head) = fuzz_find(Finder::response(), data) else {
        return false;
    };
    let mut accepted = false;
    let asked = [("GET", false), ("GET", true), ("HEAD", false), ("CONNECT", false)];
    for (n, (method, upgrade)) in asked.into_iter().enumerate() {
        let Ok(response) = Response::parse(head, method, upgrade) else {
            continue;
        };
        let to = if (data.len() + n).is_multiple_of(2) {
            Version::Http10
        } else {
            Version::Http11
        };
        let mut out = Vec::new();
        let delivery = rewrite::response(&response, to, !n.is_multiple_of(3), &[], &mut out);
        let again = Response::parse(&out, method, upgrade).expect("a rewritten response is valid");
        assert_eq!((again.status, again.reason), (response.status, response.reason));
        let framing = if delivery.dechunk {
            Framing::UntilClose
        } else {
            response.framing
        };
        assert_eq!(again.framing, framing);
        assert!(delivery.keep_alive || again.is_interim() || !again.keep_alive);
        let mut twice = Vec::new();
        rewrite::response(&again, to, !n.is_multiple_of(3), &[], &mut twice);
        assert_eq!(twice, out);
        accepted = true;
    }
    accepted
}

#[cfg(any(test, fuzzing))]
fn fuzz_find(mut finder: super::Finder, data: &[u8]) -> Option<&[u8]> {
    let whole = finder.clone().find(data);
    let mut ends = (0..=data.len()).map(|end| finder.find(&data[..end]));
    let split = ends.find(|found| *found != Ok(None)).unwrap_or(Ok(None));
    assert_eq!(whole, split);
    whole.ok().flatten().map(|n| &data[..n])
}
