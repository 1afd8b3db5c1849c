//! Request targets (RFC 9112 section 3.2) and authorities.

use std::net::Ipv6Addr;
use std::str;

use super::head::Bad;
use crate::limits::HOST_BYTES_MAX;

/// The four forms of a request target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `/path?query`, to the site itself.
    Origin,
    /// `http://host/path`, to a proxy.
    Absolute,
    /// `host:port`, of CONNECT.
    Authority,
    /// `*`, of OPTIONS.
    Asterisk,
}

/// Schemes that are proxied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    /// The port of an authority that names none.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Host and port. Never holds user information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// As sent, as it stands in a Host field.
    pub raw: &'a str,
    /// Name or address as sent, without the brackets of IPv6; 1 to 255 bytes.
    pub host: &'a str,
    /// 1 to 65535 where one was sent.
    pub port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Parses `host`, `host:port`, `[v6]`, `[v6]:port`. Stricter than RFC 3986: hosts are letters, digits, `-`, `.`
    /// and `_` (no `%` and no sub-delimiters, which resolvers and sites read differently); a port is digits without
    /// leading zeros and not empty.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Bad> {
        let raw = str::from_utf8(bytes).map_err(|_| Bad::request("the host is not ASCII"))?;
        Self::of(raw)
    }

    fn of(raw: &'a str) -> Result<Self, Bad> {
        // Nothing that is taken holds one.
        let user = |bad| match raw.contains('@') {
            true => Bad::request("the host holds user information"),
            false => bad,
        };
        Self::split(raw).map_err(user)
    }

    fn split(raw: &'a str) -> Result<Self, Bad> {
        let (host, rest) = match raw.strip_prefix('[') {
            Some(inner) => bracketed(inner)?,
            None => named(raw)?,
        };
        let port = match rest.strip_prefix(':') {
            Some(digits) => Some(parse_port(digits)?),
            None if rest.is_empty() => None,
            None => return Err(Bad::request("bytes after the host")),
        };
        Ok(Self { raw, host, port })
    }

    /// The port, or the scheme's.
    pub fn port_or(&self, default: u16) -> u16 {
        self.port.unwrap_or(default)
    }

    /// Whether this names the same host (in any case) and port; `default` stands for a port not sent.
    pub fn matches(&self, host: &str, port: u16, default: u16) -> bool {
        self.host.eq_ignore_ascii_case(host) && self.port_or(default) == port
    }
}

fn bracketed(inner: &str) -> Result<(&str, &str), Bad> {
    let (host, rest) = inner
        .split_once(']')
        .ok_or(Bad::request("a bracket of the host is not closed"))?;
    host.parse::<Ipv6Addr>()
        .map_err(|_| Bad::request("the host is not an IPv6 address"))?;
    Ok((host, rest))
}

fn named(raw: &str) -> Result<(&str, &str), Bad> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let (host, rest) = raw.split_at(raw.bytes().position(|b| !good(b)).unwrap_or(raw.len()));
    if !matches!(rest.as_bytes(), [] | [b':', ..]) {
        return Err(Bad::request("the host holds a forbidden character"));
    }
    if host.is_empty() {
        return Err(Bad::request("the host is empty"));
    }
    if host.len() > HOST_BYTES_MAX {
        return Err(Bad::request("the host is too long"));
    }
    Ok((host, rest))
}

fn parse_port(digits: &str) -> Result<u16, Bad> {
    let good = matches!(digits.as_bytes(), [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit));
    let port = if good { digits.parse().ok() } else { None };
    port.ok_or(Bad::request("the port is not a number from 1 to 65535"))
}

/// A request target, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    pub form: Form,
    pub scheme: Option<Scheme>,
    pub authority: Option<Authority<'a>>,
    /// Path and query as sent: may be empty or begin with `?` in absolute-form.
    pub path: &'a [u8],
}

impl<'a> Target<'a> {
    /// `text` is printable, without white space, and not empty.
    pub fn parse(method: &str, text: &'a str) -> Result<Self, Bad> {
        let bytes = text.as_bytes();
        if memchr::memchr(b'#', bytes).is_some() {
            return Err(Bad::request("the target holds a fragment"));
        }
        let bare = |form, path| Self {
            form,
            scheme: None,
            authority: None,
            path,
        };
        match bytes {
            _ if method == "CONNECT" => Self::connect(text),
            b"*" if method == "OPTIONS" => Ok(bare(Form::Asterisk, bytes)),
            [b'/', ..] => Ok(bare(Form::Origin, bytes)),
            _ => Self::absolute(text),
        }
    }

    fn connect(text: &'a str) -> Result<Self, Bad> {
        let authority = Authority::of(text)?;
        if authority.port.is_none() {
            return Err(Bad::request("CONNECT names no port"));
        }
        Ok(Self {
            form: Form::Authority,
            scheme: None,
            authority: Some(authority),
            path: b"",
        })
    }

    fn absolute(text: &'a str) -> Result<Self, Bad> {
        let neither = Bad::request("the target is neither a path nor a URL");
        let (scheme, rest) = text.split_at(text.bytes().position(|b| b == b':').ok_or(neither)?);
        let rest = rest.strip_prefix("://").ok_or(neither)?;
        let scheme = match scheme {
            s if s.eq_ignore_ascii_case("http") => Scheme::Http,
            s if s.eq_ignore_ascii_case("https") => Scheme::Https,
            s if !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                return Err(Bad {
                    status: 501,
                    reason: "the scheme of the target is not proxied",
                });
            }
            _ => return Err(neither),
        };
        let end = memchr::memchr2(b'/', b'?', rest.as_bytes()).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (authority, path) = (Some(Authority::of(authority)?), path.as_bytes());
        Ok(Self {
            form: Form::Absolute,
            scheme: Some(scheme),
            authority,
            path,
        })
    }
}
