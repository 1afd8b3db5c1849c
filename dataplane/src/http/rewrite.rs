//! The head that is sent on: hop-by-hop fields out, everything else as it came, in its order and case. What frames the
//! body of a request has its value written in one way.

use bytes::BufMut;

use super::fields::{Field, Fields, list};
use super::head::{Framing, Request, Response, Version};
use super::target::Form;
use crate::limits::CONNECTION_OPTIONS_MAX;

/// Fields that concern one connection only (RFC 9110 section 7.6.1), with those that older peers treat so, the one that
/// asks for the `h2c` that is not passed on, and the one that nobody sends because Connection lists its name. Connection,
/// Upgrade and Transfer-Encoding are dealt with apart.
const HOP_BY_HOP: [&str; 8] = [
    "Close",
    "Keep-Alive",
    "Proxy-Connection",
    "Proxy-Authenticate",
    "Proxy-Authentication-Info",
    "Proxy-Authorization",
    "TE",
    "HTTP2-Settings",
];

/// Appends the request as the site sees it: origin-form (`*` stays), HTTP/1.1, Host from the target, and `Connection`
/// only to upgrade. The body follows as it came. An authority-form request is written as CONNECT again. `add` are
/// further fields, names and values without line ends.
pub fn request(request: &Request<'_>, add: &[(&str, &[u8])], out: &mut impl BufMut) {
    request_without(request, &[], add, out);
}

/// As [`request`], without the fields that `leave` names.
pub fn request_without(request: &Request<'_>, leave: &[&str], add: &[(&str, &[u8])], out: &mut impl BufMut) {
    out.put_slice(request.method.as_bytes());
    out.put_u8(b' ');
    target(request, out);
    out.put_slice(b" HTTP/1.1\r\n");
    let host = request.authority.map_or("", |a| a.raw);
    if !host.is_empty() && !request.names_host {
        line(b"Host", host.as_bytes(), out);
    }
    let listed = request.lists_fields.then(|| Listed::read(request.fields()));
    let mut upgrade = request.upgrade;
    fields(request.fields(), out, |field| {
        if field.is("Host") {
            if field.value == host.as_bytes() {
                Fate::Keep
            } else {
                Fate::Change(host.as_bytes())
            }
        } else if field.is("Connection") {
            connection_to_upgrade(&mut upgrade)
        } else if field.is("Upgrade") {
            Fate::keep_if(request.upgrade)
        } else if field.is("Content-Length") || field.is("Transfer-Encoding") {
            framing(field)
        } else if leave.iter().any(|name| field.is(name)) || (field.is("Expect") && !request.expect_continue) {
            Fate::Drop
        } else {
            end_to_end(field, listed.as_ref())
        }
    });
    if upgrade {
        // The option stood in Proxy-Connection.
        line(b"Connection", b"Upgrade", out);
    }
    end(add, out);
}

/// A whole head with one more field line, which has its CRLF.
pub fn with_line(head: &[u8], line: &[u8]) -> Vec<u8> {
    let (fields, end) = head.split_at(head.len().saturating_sub(2));
    [fields, line, end].concat()
}

/// How the response whose head was written is to be relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The browser was told that its connection stays open. False: close it after the last byte, and reset it if the
    /// body was cut, so that the cut does not look like the end.
    pub keep_alive: bool,
    /// An HTTP/1.0 browser cannot read chunks: send it only the content ([`super::Body::run`]), delimited by close;
    /// trailers are lost (RFC 9112 section 7.1.2 allows it).
    pub dechunk: bool,
}

/// Appends the response as a browser of version `to` sees it, always named HTTP/1.1 (RFC 9110 section 6.2).
/// `keep_alive`: the browser wants its connection kept and we can. Interim responses (1xx) leave the connection as it
/// is, and are not for an HTTP/1.0 browser: do not send them there.
pub fn response(
    response: &Response<'_>,
    to: Version,
    keep_alive: bool,
    add: &[(&str, &[u8])],
    out: &mut impl BufMut,
) -> Delivery {
    status_line(response, out);
    let chunks = to == Version::Http11;
    let listed = response.lists_fields.then(|| Listed::read(response.fields()));
    let mut upgrade = response.is_upgrade();
    fields(response.fields(), out, |field| {
        if field.is("Connection") {
            connection_to_upgrade(&mut upgrade)
        } else if field.is("Upgrade") {
            Fate::keep_if(response.is_upgrade())
        } else if field.is("Transfer-Encoding") && !(chunks && field.value.eq_ignore_ascii_case(b"chunked")) {
            // The body arrives without its chunks, or ends with the connection.
            Fate::Drop
        } else {
            end_to_end(field, listed.as_ref())
        }
    });
    let keep_alive = keep_alive && chunks && response.framing != Framing::UntilClose;
    if !keep_alive && !response.is_upgrade() && !response.is_interim() {
        out.put_slice(b"Connection: close\r\n");
    }
    end(add, out);
    Delivery {
        keep_alive: keep_alive && !response.is_upgrade(),
        dechunk: response.framing == Framing::Chunked && !chunks,
    }
}

/// Appends the response as a cache keeps it (RFC 9111 section 3.1), without the empty line: the end-to-end fields that
/// `keep` wants. Not the framing of a body in chunks: it is kept without them.
pub fn stored(response: &Response<'_>, keep: impl Fn(&Field<'_>) -> bool, out: &mut impl BufMut) {
    status_line(response, out);
    let listed = response.lists_fields.then(|| Listed::read(response.fields()));
    fields(response.fields(), out, |field| {
        let of_connection = ["Connection", "Upgrade", "Transfer-Encoding"];
        if of_connection.iter().any(|name| field.is(name)) || !keep(field) {
            Fate::Drop
        } else {
            end_to_end(field, listed.as_ref())
        }
    });
}

/// RFC 9112 section 3.2.4: OPTIONS for the whole server arrives in absolute-form without a path.
fn target(request: &Request<'_>, out: &mut impl BufMut) {
    match (request.form, request.path) {
        (Form::Authority, _) => out.put_slice(request.authority.map_or("", |a| a.raw).as_bytes()),
        (Form::Absolute, b"") if request.method == "OPTIONS" => out.put_u8(b'*'),
        (Form::Absolute, path) => {
            if path.first() != Some(&b'/') {
                out.put_u8(b'/');
            }
            out.put_slice(path);
        }
        (_, path) => out.put_slice(path),
    }
}

/// What becomes of a field line.
enum Fate<'a> {
    Keep,
    Drop,
    /// It gets this value.
    Change(&'a [u8]),
}

impl Fate<'_> {
    fn keep_if(keep: bool) -> Self {
        if keep { Self::Keep } else { Self::Drop }
    }
}

/// Appends the field lines as `judge` says; lines that stay together are copied together.
fn fields<'a>(fields: Fields<'a>, out: &mut impl BufMut, mut judge: impl FnMut(&Field<'a>) -> Fate<'a>) {
    let block = fields.rest();
    let (mut kept, mut at) = (0, 0);
    for field in fields {
        let end = at + field.line.len();
        let fate = judge(&field);
        if !matches!(fate, Fate::Keep) {
            out.put_slice(&block[kept..at]);
            kept = end;
        }
        if let Fate::Change(value) = fate {
            line(field.name, value, out);
        }
        at = end;
    }
    out.put_slice(&block[kept..at]);
}

/// The value that frames a request's body is written in the one way that no site takes for something else: some keep a
/// tab at its end, or read a number that begins with 0 as an octal one.
fn framing<'a>(field: &Field<'a>) -> Fate<'a> {
    let value = match field.value {
        value if field.is("Transfer-Encoding") && value.eq_ignore_ascii_case(b"chunked") => b"chunked",
        value => {
            let zeros = value.iter().take_while(|digit| **digit == b'0').count();
            &value[zeros.min(value.len().saturating_sub(1))..]
        }
    };
    let is_so = field.line[field.name.len()..]
        .strip_prefix(b": ")
        .and_then(|rest| rest.strip_suffix(b"\r\n"));
    if is_so == Some(value) {
        Fate::Keep
    } else {
        Fate::Change(value)
    }
}

fn connection_to_upgrade(upgrade: &mut bool) -> Fate<'static> {
    if std::mem::take(upgrade) {
        Fate::Change(b"Upgrade")
    } else {
        Fate::Drop
    }
}

fn line(name: &[u8], value: &[u8], out: &mut impl BufMut) {
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn end(add: &[(&str, &[u8])], out: &mut impl BufMut) {
    for (name, value) in add {
        line(name.as_bytes(), value, out);
    }
    out.put_slice(b"\r\n");
}

fn status_line(response: &Response<'_>, out: &mut impl BufMut) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(&status_digits(response.status));
    out.put_u8(b' ');
    out.put_slice(response.reason);
    out.put_slice(b"\r\n");
}

fn status_digits(status: u16) -> [u8; 3] {
    [100, 10, 1].map(|unit| b'0' + (status / unit % 10) as u8)
}

/// The names that Connection lists, as many as the parser let through.
struct Listed<'a> {
    names: [&'a [u8]; CONNECTION_OPTIONS_MAX],
    len: usize,
}

impl<'a> Listed<'a> {
    fn read(fields: Fields<'a>) -> Self {
        let mut listed = Self {
            names: [b""; CONNECTION_OPTIONS_MAX],
            len: 0,
        };
        let options = fields
            .filter(|f| f.is("Connection") || f.is("Proxy-Connection"))
            .flat_map(|f| list(f.value));
        for (place, name) in listed.names.iter_mut().zip(options) {
            *place = name;
            listed.len += 1;
        }
        listed
    }

    /// Whether a field stays behind. The framing of the message never does, even if listed: the body is sent as is.
    fn drops(&self, field: &Field<'_>) -> bool {
        let listed = self.names[..self.len]
            .iter()
            .any(|name| name.eq_ignore_ascii_case(field.name));
        listed && !field.is("Content-Length") && !field.is("Transfer-Encoding")
    }
}

/// The fate of a field that is not dealt with apart.
fn end_to_end(field: &Field<'_>, listed: Option<&Listed<'_>>) -> Fate<'static> {
    let hop_by_hop = HOP_BY_HOP.iter().any(|name| field.is(name));
    Fate::keep_if(!hop_by_hop && !listed.is_some_and(|l| l.drops(field)))
}
