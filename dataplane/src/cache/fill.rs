//! An answer that is being stored while it is relayed. It is seen by others only once it is whole.

use std::sync::Arc;

use bytes::Bytes;

use super::Now;
use super::asked::Asked;
use super::budget::Charge;
use super::entry::{Body, ENTRY_BYTES, Entry, stored_head};
use super::facts::Facts;
use super::fetch::{Fetch, Lead};
use super::flight::Outcome;
use super::key::OwnedKey;
use super::policy::Policy;
use super::store::Cache;
use super::vary::Variant;
use crate::copies;
use crate::http::{Framing, Response};
use crate::limits::{CACHE_CHUNK_BYTES_MAX, CACHE_CHUNK_BYTES_MIN};

/// What an entry will be made of, but for its body.
pub(super) struct Draft {
    status: u16,
    policy: Policy,
    variant: Variant,
    head: Vec<u8>,
    /// Of the body, where it was announced.
    length: Option<u64>,
    /// The head says how long the body is, or must not.
    says_length: bool,
}

impl Draft {
    /// `None` if the head is too large to be stored.
    pub fn of(asked: &Asked<'_>, response: &Response<'_>, facts: &Facts<'_>, policy: Policy, now: Now) -> Option<Self> {
        let length = match response.framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        Some(Self {
            status: response.status,
            policy,
            variant: Variant::of(&facts.vary, &asked.headers()),
            head: stored_head(response, facts, now)?,
            length,
            says_length: length.is_some(),
        })
    }
}

/// Takes the content of an answer: not its chunk sizes, and not its trailers, which are lost to those who come later.
/// Dropped before [`Fill::commit`], nothing is stored.
pub struct Fill {
    cache: Arc<Cache>,
    hash: u64,
    stamp: u64,
    key: OwnedKey,
    draft: Draft,
    chunks: Vec<Bytes>,
    /// The buffer that is not full yet.
    tail: Vec<u8>,
    len: u64,
    /// None: it was given up.
    charge: Option<Charge>,
    pub(super) lead: Option<Lead>,
}

impl Fill {
    /// `None` if there is no room for it.
    pub(super) fn begin(fetch: &Fetch, draft: Draft, asked: &Asked<'_>) -> Option<Self> {
        let head = draft.head.len() + draft.variant.bytes() + ENTRY_BYTES;
        let whole = draft.length.unwrap_or(0).saturating_add(head as u64);
        if whole > fetch.cache.object_max() as u64 {
            return None;
        }
        Some(Self {
            cache: Arc::clone(&fetch.cache),
            hash: fetch.hash,
            stamp: fetch.stamp,
            key: asked.key.to_owned(),
            charge: Some(fetch.cache.make_room(head)?),
            draft,
            chunks: Vec::new(),
            tail: Vec::new(),
            len: 0,
            lead: None,
        })
    }

    pub(super) fn is_shared(&self, now: Now) -> bool {
        self.draft.policy.is_shared(now.time)
    }

    /// Copies the next bytes of the content, so that no buffer of a link is kept by what is stored. Gives up, for good,
    /// what has become too large.
    pub fn append(&mut self, mut content: &[u8]) {
        if self.charge.is_none() {
            return;
        }
        self.len += content.len() as u64;
        let too_long = self.draft.length.is_some_and(|length| self.len > length);
        if too_long || self.len + self.draft.head.len() as u64 > self.cache.object_max() as u64 {
            return self.give_up();
        }
        while !content.is_empty() {
            if self.tail.len() == self.tail.capacity() && !self.add_chunk(content.len()) {
                return self.give_up();
            }
            let room = self.tail.capacity() - self.tail.len();
            let (now, later) = content.split_at(room.min(content.len()));
            copies::moved(now.len());
            self.tail.extend_from_slice(now);
            content = later;
        }
    }

    /// Whether it has become too large: nothing will be stored.
    pub fn is_given_up(&self) -> bool {
        self.charge.is_none()
    }

    /// The content is whole. Says whether it was stored: not if it was given up, is shorter than announced, or was
    /// invalidated since it was asked for.
    pub fn commit(mut self, now: Now) -> bool {
        let is_whole = self.draft.length.is_none_or(|length| length == self.len);
        let Some(charge) = self.charge.take().filter(|_| is_whole) else {
            return false;
        };
        let shared = self.is_shared(now);
        let (cache, hash, stamp, lead) = (Arc::clone(&self.cache), self.hash, self.stamp, self.lead.take());
        let (key, entry) = self.into_entry(charge);
        let stored = cache.insert(hash, stamp, key, &Arc::new(entry));
        if let Some(lead) = lead.filter(|_| stored && shared) {
            cache.stored(hash).forget_pass(hash);
            lead.land(Outcome::Shared);
        }
        stored
    }

    fn into_entry(mut self, mut charge: Charge) -> (OwnedKey, Entry) {
        let spare = self.tail.capacity() - self.tail.len();
        self.tail.shrink_to_fit();
        drop(charge.split(spare));
        if !self.tail.is_empty() {
            self.chunks.push(self.tail.into());
        }
        let mut head = self.draft.head;
        if !self.draft.says_length {
            head.extend_from_slice(format!("Content-Length: {}\r\n", self.len).as_bytes());
        }
        let of_head = charge.split(head.len() + self.draft.variant.bytes() + ENTRY_BYTES);
        let body = Body {
            chunks: self.chunks,
            len: self.len,
            charge,
        };
        let entry = Entry {
            status: self.draft.status,
            policy: self.draft.policy,
            variant: self.draft.variant,
            head: head.into(),
            body: Arc::new(body),
            charge: of_head,
        };
        (self.key, entry)
    }

    /// Makes room for at least one byte more; false if there is none.
    fn add_chunk(&mut self, coming: usize) -> bool {
        let full = std::mem::take(&mut self.tail);
        let doubled = full.len() * 2;
        if !full.is_empty() {
            self.chunks.push(full.into());
        }
        let left = self
            .draft
            .length
            .map(|length| length.saturating_sub(self.len - coming as u64));
        let wanted = left.map_or(doubled.max(CACHE_CHUNK_BYTES_MIN), |left| left as usize);
        let size = wanted.clamp(1, CACHE_CHUNK_BYTES_MAX);
        let (Some(charge), Some(more)) = (&mut self.charge, self.cache.make_room(size + size_of::<Bytes>())) else {
            return false;
        };
        charge.add(more);
        self.tail.reserve_exact(size);
        true
    }

    fn give_up(&mut self) {
        self.charge = None;
        self.chunks = Vec::new();
        self.tail = Vec::new();
        self.lead = None;
    }
}
