//! An answer from what is stored.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::Now;
use super::asked::Asked;
use super::conditional;
use super::date;
use super::entry::Entry;
use super::fetch::Fetch;
use super::range::{Ranged, select};
use super::status::How;
use super::store::Cache;
use crate::http::Field;

/// A stored answer that a browser may be given.
pub struct Hit {
    pub(super) cache: Arc<Cache>,
    pub(super) hash: u64,
    pub(super) entry: Arc<Entry>,
    pub(super) how: How,
    /// Lines that are for this browser alone.
    pub(super) cookies: Vec<u8>,
    /// The site is to be asked beside it, in the background (RFC 5861 section 3): by whoever gets this, and by nobody else.
    pub refresh: Option<Fetch>,
}

/// How the answer whose head was written is to be sent on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The browser was told that its connection stays open.
    pub keep_alive: bool,
    /// What follows of the content, for [`Hit::content`].
    pub content: Range<u64>,
}

/// Which answer the stored one makes for a request.
enum Form {
    Whole,
    Part(u64, u64),
    NotModified,
    Unsatisfiable,
}

/// Of the content that a 304 or a part does not bring (RFC 9110 section 15.4.5).
const OF_CONTENT: [&str; 6] = [
    "Content-Length",
    "Content-Range",
    "Content-Encoding",
    "Content-Language",
    "Content-Type",
    "Content-MD5",
];

impl Hit {
    /// Appends the head of the answer to `asked`: the stored one, or the 304, 206 or 416 that it makes, with Age and
    /// Cache-Status. `keep_alive`: the browser wants its connection kept and we can.
    pub fn write_head(&self, asked: &Asked<'_>, keep_alive: bool, now: Now, out: &mut Vec<u8>) -> Reply {
        let len = self.entry.body.len;
        let content = match self.form(asked, now) {
            Form::Whole => {
                out.extend_from_slice(&self.entry.head);
                0..len
            }
            Form::Part(first, last) => {
                out.extend_from_slice(b"HTTP/1.1 206 Partial Content\r\n");
                self.fields(&OF_CONTENT[..2], out);
                let length = last - first + 1;
                line(
                    out,
                    format_args!("Content-Range: bytes {first}-{last}/{len}\r\nContent-Length: {length}\r\n"),
                );
                first..last + 1
            }
            Form::NotModified => {
                out.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n");
                self.fields(&OF_CONTENT, out);
                0..0
            }
            Form::Unsatisfiable => {
                out.extend_from_slice(b"HTTP/1.1 416 Range Not Satisfiable\r\n");
                line(
                    out,
                    format_args!("Content-Range: bytes */{len}\r\nContent-Length: 0\r\n"),
                );
                0..0
            }
        };
        out.extend_from_slice(&self.cookies);
        line(out, format_args!("Age: {}\r\n", self.entry.policy.age(now.time)));
        self.how.line(self.entry.policy.ttl(now.time), out);
        let keep_alive = keep_alive && asked.may_be_kept_alive();
        out.extend_from_slice(if keep_alive {
            b"\r\n"
        } else {
            b"Connection: close\r\n\r\n"
        });
        let content = if asked.request.method == "HEAD" { 0..0 } else { content };
        self.cache.saved(self.hash, content.end - content.start);
        Reply { keep_alive, content }
    }

    /// The stored bytes in `range`, without copying them.
    pub fn content(&self, range: Range<u64>) -> impl Iterator<Item = Bytes> {
        self.entry.body.slices(range)
    }

    /// Conditions and ranges are about a 200 (RFC 9110 sections 13.2.1 and 14.2).
    fn form(&self, asked: &Asked<'_>, now: Now) -> Form {
        let wants = asked.is_conditional() || asked.range.is_some();
        if self.entry.status != 200 || !wants {
            return Form::Whole;
        }
        let entry = &self.entry;
        let moment = |name| entry.field(name).and_then(|value| date::parse(value, now.wall));
        let (etag, modified) = (entry.field("ETag"), moment("Last-Modified"));
        // Without one it was added when it was stored; a broken one is in the past.
        let date = moment("Date").unwrap_or(0);
        let not_modified = if asked.if_none_match {
            let mut lines = asked.headers().filter(|field| field.is("If-None-Match"));
            lines.any(|field| conditional::lists(field.value, etag))
        } else {
            let since = asked.if_modified_since;
            since.is_some_and(|since| conditional::unmodified_since(since, modified, date, now.wall))
        };
        if not_modified {
            return Form::NotModified;
        }
        let holds = |value| conditional::range_holds(value, etag, modified, date, now.wall);
        let range = asked
            .range
            .filter(|_| asked.request.method == "GET" && asked.if_range.is_none_or(holds));
        match range.map(|range| select(range, entry.body.len)) {
            None | Some(Ranged::Whole) => Form::Whole,
            Some(Ranged::Part { first, last }) => Form::Part(first, last),
            Some(Ranged::Unsatisfiable) => Form::Unsatisfiable,
        }
    }

    fn fields(&self, without: &[&str], out: &mut Vec<u8>) {
        let kept = |field: &Field<'_>| !without.iter().any(|name| field.is(name));
        for field in self.entry.fields().filter(kept) {
            out.extend_from_slice(field.line);
        }
    }
}

fn line(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(written.is_ok(), "a Vec takes everything");
}
