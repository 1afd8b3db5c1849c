//! A stored answer: head as bytes, body in buffers of its own, terms.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::Now;
use super::budget::Charge;
use super::conditional::confirms;
use super::date;
use super::facts::Facts;
use super::policy::{Policy, can_be_validated};
use super::vary::Variant;
use crate::http::{Field, Fields, Response, rewrite};
use crate::limits::{CACHE_DATE_BYTES_MAX, CACHE_ETAG_BYTES_MAX, CACHE_HEAD_BYTES_MAX, HEAD_FIELDS_MAX};

/// An answer that is whole.
pub(super) struct Entry {
    pub status: u16,
    pub policy: Policy,
    pub variant: Variant,
    /// Status line and field lines as they came, without the empty line.
    pub head: Box<[u8]>,
    pub body: Arc<Body>,
    /// Of the head and the rest but the body.
    pub charge: Charge,
}

/// What an entry holds beside its head and its body.
pub(super) const ENTRY_BYTES: usize = size_of::<Entry>() + size_of::<Body>() + 4 * size_of::<usize>();

impl Entry {
    /// The first field of that name.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields().find(|field| field.is(name)).map(|field| field.value)
    }

    pub fn fields(&self) -> Fields<'_> {
        Fields::of_head(&self.head)
    }

    /// The field that the site may be asked with whether this still holds (RFC 9111 section 4.3.1): by tag where there is
    /// one, and then by nothing else, since a date tells less.
    pub fn condition(&self) -> Option<(&'static str, &[u8])> {
        if !can_be_validated(self.status) {
            return None;
        }
        if let Some(tag) = self.field("ETag") {
            let usable = !tag.is_empty() && tag.len() <= CACHE_ETAG_BYTES_MAX;
            return usable.then_some(("If-None-Match", tag));
        }
        let date = self
            .field("Last-Modified")
            .filter(|date| date.len() <= CACHE_DATE_BYTES_MAX)?;
        date::parse(date, 0).map(|_| ("If-Modified-Since", date))
    }

    /// Whether a 304, or the answer to HEAD, is about this answer (RFC 9111 sections 4.3.4 and 4.3.5).
    pub fn is_meant_by(&self, facts: &Facts<'_>, wall: u64) -> bool {
        match (facts.etag, facts.last_modified) {
            (Some(tag), _) => self.field("ETag").is_some_and(|stored| confirms(stored, tag)),
            (None, Some(modified)) => {
                let stored = self.field("Last-Modified");
                stored.and_then(|value| date::parse(value, wall)) == Some(modified)
            }
            (None, None) => true,
        }
    }

    /// Bytes that are charged for it; its body's are counted with each entry that has it.
    pub fn bytes(&self) -> usize {
        self.charge.bytes() + self.body.charge.bytes()
    }
}

/// Heads hold what is nobody else's business.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({}, {} bytes, {:?})", self.status, self.body.len, self.policy)
    }
}

/// A content, shared by the entries that a 304 made of one another.
pub(super) struct Body {
    pub chunks: Vec<Bytes>,
    pub len: u64,
    pub charge: Charge,
}

impl Body {
    /// What stands in `range`, in slices of the stored buffers.
    pub fn slices(&self, range: Range<u64>) -> impl Iterator<Item = Bytes> {
        let mut at = 0;
        self.chunks.iter().filter_map(move |chunk| {
            let start = at;
            at += chunk.len() as u64;
            let from = range.start.clamp(start, at) - start;
            let to = range.end.clamp(start, at) - start;
            (from < to).then(|| chunk.slice(from as usize..to as usize))
        })
    }
}

/// The head as it is stored: what concerns one connection, one session or one moment is left out (RFC 9111 section 3.1).
/// `None` if it is too large.
pub(super) fn stored_head(response: &Response<'_>, facts: &Facts<'_>, now: Now) -> Option<Vec<u8>> {
    let mut head = Vec::with_capacity(response.head_bytes());
    rewrite::stored(response, |field| is_stored(field, facts), &mut head);
    add_date(facts, now, &mut head);
    (head.len() <= CACHE_HEAD_BYTES_MAX).then_some(head)
}

/// The stored head with the fields of a 304 or of an answer to HEAD in place of its own (RFC 9111 section 3.2), each where
/// the first of its name stood; new ones at the end. `None` if it has become too large.
pub(super) fn updated_head(entry: &Entry, response: &Response<'_>, facts: &Facts<'_>, now: Now) -> Option<Vec<u8>> {
    let mut update = Vec::with_capacity(response.head_bytes());
    rewrite::stored(
        response,
        |field| is_stored(field, facts) && is_updated(field),
        &mut update,
    );
    add_date(facts, now, &mut update);
    let update: Vec<_> = Fields::of_head(&update).collect();
    let same = |a: &Field<'_>, b: &Field<'_>| a.name.eq_ignore_ascii_case(b.name);
    let line_end = memchr::memchr(b'\n', &entry.head).map_or(0, |at| at + 1);
    let mut head = entry.head[..line_end].to_vec();
    let mut placed = vec![false; update.len()];
    let mut fields = 0;
    let mut put = |field: &Field<'_>| {
        fields += 1;
        head.extend_from_slice(field.line);
    };
    for old in entry.fields() {
        if !update.iter().any(|new| same(new, &old)) {
            put(&old);
        }
        for (new, placed) in update.iter().zip(&mut placed) {
            if same(new, &old) && !std::mem::replace(placed, true) {
                put(new);
            }
        }
    }
    for (new, placed) in update.iter().zip(placed) {
        if !placed {
            put(new);
        }
    }
    (fields <= HEAD_FIELDS_MAX && head.len() <= CACHE_HEAD_BYTES_MAX).then_some(head)
}

/// RFC 9110 section 6.6.1: what came without a Date is as old as its receipt.
fn add_date(facts: &Facts<'_>, now: Now, head: &mut Vec<u8>) {
    if !facts.has_date {
        head.extend_from_slice(format!("Date: {}\r\n", date::format(now.wall)).as_bytes());
    }
}

fn is_stored(field: &Field<'_>, facts: &Facts<'_>) -> bool {
    let momentary = field.is("Age") || field.is("Set-Cookie") || field.is("Trailer");
    // Without its length the end of the body could not be found.
    field.is("Content-Length") || !(momentary || facts.control.keeps_back(field.name))
}

/// Not what the stored body depends on: it stays.
fn is_updated(field: &Field<'_>) -> bool {
    const OF_BODY: [&str; 5] = [
        "Content-Length",
        "Content-Encoding",
        "Content-Range",
        "Content-MD5",
        "ETag",
    ];
    !OF_BODY.iter().any(|name| field.is(name))
}
