//! What the field lines of a head say about host, connection and framing.

use super::fields::list;
use super::head::{Bad, Framing, Version};
use crate::limits::{CONNECTION_OPTIONS_MAX, HEAD_FIELDS_MAX};

/// Whose head it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Request,
    Response,
}

pub(crate) const TOO_MANY_FIELDS: Bad = Bad {
    status: 431,
    reason: "the head has too many fields",
};

/// As many fields as most heads have.
const HEAD_FIELDS_USUAL: usize = 32;

/// What the field lines say about connection and framing.
#[derive(Debug, Default)]
pub(crate) struct Facts<'a> {
    pub fields: usize,
    pub host: Option<&'a [u8]>,
    pub length: Option<u64>,
    pub chunked: bool,
    /// One transfer coding that is not known here.
    pub foreign: bool,
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade_option: bool,
    /// `Upgrade: websocket`, and nothing else.
    pub websocket: bool,
    pub upgrades: usize,
    pub options: usize,
    /// Connection, or what some send for it, may list more than the options that are no fields, or are dropped anyway.
    pub lists_fields: bool,
    pub expect_continue: bool,
}

impl<'a> Facts<'a> {
    /// `block` is the field lines and the empty line.
    pub fn read(block: &'a [u8], side: Side) -> Result<Self, Bad> {
        // httparse takes a bare LF for a line end.
        if block.first() == Some(&b'\n') || has_bare_lf(block) {
            return Err(Bad::request("a line of the head ends in LF without CR"));
        }
        // Room for all that a head may have is 4 KiB to be filled: most need a quarter.
        match Self::read_into(&mut [httparse::EMPTY_HEADER; HEAD_FIELDS_USUAL], block, side) {
            Err(bad) if bad == TOO_MANY_FIELDS => {
                Self::read_into(&mut [httparse::EMPTY_HEADER; HEAD_FIELDS_MAX], block, side)
            }
            read => read,
        }
    }

    fn read_into(storage: &mut [httparse::Header<'a>], block: &'a [u8], side: Side) -> Result<Self, Bad> {
        let fields = match httparse::parse_headers(block, storage) {
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
        if facts.chunked && facts.foreign {
            return Err(Bad::request("Transfer-Encoding is there twice"));
        }
        if facts.is_encoded() && facts.length.is_some() {
            return Err(Bad::request("Content-Length beside Transfer-Encoding"));
        }
        Ok(facts)
    }

    fn add(&mut self, name: &str, value: &'a [u8], side: Side) -> Result<(), Bad> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        // By length first: most fields are none of these.
        match name.len() {
            4 if is("host") && side == Side::Request => once(&mut self.host, value, "Host is there twice")?,
            14 if is("content-length") => {
                once(
                    &mut self.length,
                    content_length(value)?,
                    "Content-Length is there twice",
                )?;
            }
            17 if is("transfer-encoding") => {
                if self.chunked {
                    return Err(Bad::request("Transfer-Encoding is there twice"));
                }
                match transfer_encoding(value) {
                    Ok(chunked) => self.chunked = chunked,
                    // RFC 9112 section 6.3: the body of an answer ends with its connection then.
                    Err(_) if side == Side::Response && is_foreign_coding(value) && !self.foreign => {
                        self.foreign = true
                    }
                    Err(bad) => return Err(bad),
                }
            }
            10 if is("connection") => self.connection(value, side)?,
            16 if is("proxy-connection") && side == Side::Request => self.connection(value, side)?,
            16 if is("proxy-connection") => self.lists_fields = true,
            7 if is("upgrade") => {
                self.upgrades += 1;
                self.websocket = self.upgrades == 1 && value.eq_ignore_ascii_case(b"websocket");
            }
            6 if is("expect") && side == Side::Request => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Bad {
                        status: 417,
                        reason: "Expect asks for something other than 100-continue",
                    });
                }
                self.expect_continue = true;
            }
            _ => {}
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
            let (close, keep_alive, upgrade) = (is(b"close"), is(b"keep-alive"), is(b"upgrade"));
            self.close |= close;
            self.keep_alive |= keep_alive;
            self.upgrade_option |= upgrade;
            self.lists_fields |= !(close || keep_alive || upgrade);
            // Sites do list Transfer-Encoding; from a browser it can only be meant to hide a field from the next hop.
            if side == Side::Request && (is(b"host") || is(b"content-length") || is(b"transfer-encoding")) {
                return Err(Bad::request("Connection lists a field that no hop may drop"));
            }
        }
        Ok(())
    }

    pub fn request_framing(&self, method: &str, version: Version) -> Result<Framing, Bad> {
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

    pub fn response_framing(&self, method: &str, version: Version, status: u16) -> Result<Framing, Bad> {
        self.check_version(version)?;
        // RFC 9112 section 6.3: whatever these say about a body is ignored.
        if (method == "CONNECT" && (200..300).contains(&status)) || method == "HEAD" && status >= 200 || status == 304 {
            return Ok(Framing::None);
        }
        if status < 200 || status == 204 {
            if self.is_encoded() || self.length.is_some_and(|n| n > 0) {
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

    fn is_encoded(&self) -> bool {
        self.chunked || self.foreign
    }

    fn check_version(&self, version: Version) -> Result<(), Bad> {
        if self.is_encoded() && version == Version::Http10 {
            return Err(Bad::request("Transfer-Encoding in HTTP/1.0"));
        }
        Ok(())
    }
}

fn once<T>(place: &mut Option<T>, value: T, twice: &'static str) -> Result<(), Bad> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Bad::request(twice)),
    }
}

/// Whether an LF behind the first byte stands without CR before it. Looks at all bytes, without a branch for each: so it
/// takes 16 at a time.
pub(super) fn has_bare_lf(bytes: &[u8]) -> bool {
    let behind = bytes.get(1..).unwrap_or_default();
    let bare = bytes.iter().zip(behind).fold(0, |found, (before, b)| {
        found | u8::from((*b == b'\n') & (*before != b'\r'))
    });
    bare != 0
}

/// Digits and nothing else, at most 2^63 - 1: more would be negative to some.
fn content_length(value: &[u8]) -> Result<u64, Bad> {
    let digits = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    // 19 digits fit.
    let number = || value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
    digits
        .then(number)
        .filter(|n| *n <= i64::MAX as u64)
        .ok_or(Bad::request("Content-Length is not one number"))
}

/// A token, and no coding that exists, which would have to be undone: none of IANA's transfer codings, nor of its content
/// codings, whose names mean the same here (RFC 9112 section 7.3).
fn is_foreign_coding(value: &[u8]) -> bool {
    let known = [
        &b"gzip"[..],
        b"x-gzip",
        b"deflate",
        b"compress",
        b"x-compress",
        b"identity",
        b"trailers",
        b"br",
        b"zstd",
        b"dcb",
        b"dcz",
        b"aes128gcm",
        b"exi",
        b"pack200-gzip",
    ];
    let is_known = known.iter().any(|k| value.eq_ignore_ascii_case(k));
    !value.is_empty() && value.iter().copied().all(super::is_token_byte) && !is_known
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
