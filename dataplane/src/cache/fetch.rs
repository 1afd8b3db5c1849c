//! A request that the site is asked, as the cache sees it: what to ask with, and what to do with the answer.

use std::sync::Arc;

use bytes::BufMut;

use super::Now;
use super::asked::{Asked, Plan};
use super::entry::{ENTRY_BYTES, Entry, updated_head};
use super::facts::Facts;
use super::fill::{Draft, Fill};
use super::flight::{Flight, Outcome};
use super::hit::Hit;
use super::policy::{Policy, is_failure};
use super::status::{Forward, How, Status};
use super::store::Cache;
use super::vary::Variant;
use crate::http::{Field, Fields, Response, rewrite};
use crate::time::Time;

/// A request on its way to the site. Dropped, it lets those go who wait for it.
pub struct Fetch {
    pub(super) cache: Arc<Cache>,
    pub(super) hash: u64,
    /// Of the moment it was sent: an invalidation since then makes its answer worthless for others.
    pub(super) stamp: u64,
    pub(super) sent: Time,
    pub(super) forward: Forward,
    pub(super) entry: Option<Arc<Entry>>,
    /// The site is asked whether `entry` still holds.
    pub(super) validates: bool,
    /// No browser waits for it: the whole answer is wanted, whatever the request wanted.
    pub(super) is_refresh: bool,
    pub(super) lead: Option<Lead>,
}

/// What becomes of an answer.
pub enum Answer {
    /// It is relayed, and the field added.
    Relay(Status),
    /// The same, and its content is given to the fill.
    Keep(Status, Box<Fill>),
    /// It is dropped, with its body if it has one, and the browser gets this.
    Stored(Hit),
    /// It is dropped, and the request sent again, with this: the site confirmed something else than what is stored.
    Again(Fetch),
}

impl Fetch {
    /// Appends the request as it is to be sent: [`rewrite::request`], with the conditions of the cache in place of those of
    /// the browser where something is to be confirmed (RFC 9111 section 4.3.1).
    pub fn write_request(&self, asked: &Asked<'_>, add: &[(&str, &[u8])], out: &mut impl BufMut) {
        let entry = self.entry.as_ref().filter(|_| self.validates);
        if entry.is_none() && !self.is_refresh {
            rewrite::request(&asked.request, add, out);
            return;
        }
        let condition = entry.and_then(|entry| entry.condition());
        let add: Vec<_> = add.iter().copied().chain(condition).collect();
        let ours = ["If-None-Match", "If-Modified-Since"];
        let all = ["If-None-Match", "If-Modified-Since", "Range", "If-Range"];
        let leave = if self.is_refresh { &all[..] } else { &ours[..] };
        rewrite::request_without(&asked.request, leave, &add, out);
    }

    /// Takes the head of the final answer. Before it is relayed: what it makes untrue is gone when this returns, for all
    /// shards.
    pub fn answer(mut self, asked: &Asked<'_>, response: &Response<'_>, now: Now) -> Answer {
        match asked.plan {
            Plan::Pass => {}
            Plan::Unsafe => self.invalidate(asked, response),
            Plan::Head => self.answer_head(asked, response, now),
            Plan::Get => return self.answer_get(asked, response, now),
        }
        Answer::Relay(self.status(false))
    }

    /// Nothing of an answer came. What may stand in for it, if anything may.
    pub fn failed(mut self, asked: &Asked<'_>, now: Now) -> Option<Hit> {
        let entry = self.entry.take()?;
        let covers = entry.policy.covers_failure(asked, true, now.time);
        covers.then(|| self.hit(entry, How::Unreachable(self.forward)))
    }

    /// RFC 9111 section 4.4.
    fn invalidate(&self, asked: &Asked<'_>, response: &Response<'_>) {
        if !(200..400).contains(&response.status) {
            return;
        }
        self.cache.invalidate(&asked.key);
        let named = |field: &Field<'_>| field.is("Location") || field.is("Content-Location");
        for field in response.fields().filter(named) {
            if let Some(path) = asked.key.resolve(field.value) {
                self.cache.invalidate(&asked.key.with_path(&path));
            }
        }
    }

    /// RFC 9111 section 4.3.5. An answer without any validator proves nothing.
    fn answer_head(&mut self, asked: &Asked<'_>, response: &Response<'_>, now: Now) {
        let Some(entry) = self
            .entry
            .take()
            .filter(|entry| entry.status == 200 && response.status == 200)
        else {
            return;
        };
        let facts = Facts::read(response.fields(), now.wall);
        let length = response.fields().find(|field| field.is("Content-Length"));
        let same_length = length.is_none_or(|field| entry.field("Content-Length") == Some(field.value));
        if !same_length || !entry.is_meant_by(&facts, now.wall) {
            self.cache.remove(self.hash, &entry);
        } else if length.is_some() || facts.etag.is_some() || facts.last_modified.is_some() {
            self.update(&entry, asked, response, &facts, now);
        }
    }

    fn answer_get(mut self, asked: &Asked<'_>, response: &Response<'_>, now: Now) -> Answer {
        let status = response.status;
        if let Some(entry) = self.entry.take() {
            if status == 304 && self.validates {
                return self.confirm(entry, asked, response, now);
            }
            if is_failure(status) && entry.policy.covers_failure(asked, false, now.time) {
                return Answer::Stored(self.hit(entry, How::Failed(self.forward, status)));
            }
            // A 304 is then about what the browser has.
            if status != 304 && status != 416 && !is_failure(status) {
                self.cache.remove(self.hash, &entry);
            }
        }
        let facts = Facts::read(response.fields(), now.wall);
        let policy = Policy::of(asked, status, response.framing, &facts, self.sent, now);
        let draft = policy.and_then(|policy| Draft::of(asked, response, &facts, policy, now));
        let fill = draft.and_then(|draft| Fill::begin(&self, draft, asked));
        let is_shared = fill.as_ref().is_some_and(|fill| fill.is_shared(now));
        if !is_shared && asked.is_common() {
            self.cache.stored(self.hash).pass(self.hash, now.time);
        }
        let Some(mut fill) = fill else {
            return Answer::Relay(self.status(false));
        };
        fill.lead = self.lead.take().filter(|_| is_shared);
        Answer::Keep(self.status(true), Box::new(fill))
    }

    /// A 304 (RFC 9111 sections 4.3.3 and 4.3.4).
    fn confirm(mut self, entry: Arc<Entry>, asked: &Asked<'_>, response: &Response<'_>, now: Now) -> Answer {
        let facts = Facts::read(response.fields(), now.wall);
        let updated = if entry.is_meant_by(&facts, now.wall) {
            self.update(&entry, asked, response, &facts, now)
        } else {
            None
        };
        let Some(entry) = updated else {
            self.cache.remove(self.hash, &entry);
            self.validates = false;
            return Answer::Again(self);
        };
        let is_shared = entry.policy.is_shared(now.time);
        let mut stored = self.cache.stored(self.hash);
        stored.counts.confirmed += 1;
        if !is_shared && asked.is_common() {
            stored.pass(self.hash, now.time);
        }
        drop(stored);
        if let Some(lead) = self.lead.take().filter(|_| is_shared) {
            lead.land(Outcome::Shared);
        }
        let mut hit = self.hit(entry, How::Confirmed(self.forward));
        // They are for this browser, and for no other.
        for field in response.fields().filter(|field| field.is("Set-Cookie")) {
            hit.cookies.extend_from_slice(field.line);
        }
        Answer::Stored(hit)
    }

    /// The entry with the fields of an answer about it, which also takes its place. `None` if that would be too large. Where
    /// it may not be stored any more it is good for this request alone.
    fn update(
        &self,
        entry: &Arc<Entry>,
        asked: &Asked<'_>,
        response: &Response<'_>,
        told: &Facts<'_>,
        now: Now,
    ) -> Option<Arc<Entry>> {
        let head = updated_head(entry, response, told, now)?;
        let mut facts = Facts::read(Fields::of_head(&head), now.wall);
        // It is not kept in heads.
        facts.age = told.age;
        let variant = Variant::of(&facts.vary, &asked.headers());
        let personal = asked.cookie || told.sets_cookie;
        let policy = Policy::terms(entry.status, &facts, personal, self.sent, now);
        let policy = policy.filter(|policy| !asked.authorized || policy.shares_authorized);
        let charge = self.cache.make_room(head.len() + variant.bytes() + ENTRY_BYTES);
        let stored = policy.is_some() && charge.is_some();
        let new = Arc::new(Entry {
            status: entry.status,
            policy: policy.unwrap_or(entry.policy),
            variant,
            head: head.into(),
            body: Arc::clone(&entry.body),
            charge: charge.unwrap_or_else(|| self.cache.nothing()),
        });
        if stored {
            self.cache.replace(self.hash, entry, &new);
        } else {
            self.cache.remove(self.hash, entry);
        }
        Some(new)
    }

    fn hit(&self, entry: Arc<Entry>, how: How) -> Hit {
        Hit {
            cache: Arc::clone(&self.cache),
            hash: self.hash,
            entry,
            how,
            cookies: Vec::new(),
            refresh: None,
        }
    }

    fn status(&self, stored: bool) -> Status {
        Status {
            forward: self.forward,
            stored,
        }
    }
}

/// The request that others wait for. Dropped, it lets them go to ask for themselves.
pub(super) struct Lead {
    pub cache: Arc<Cache>,
    pub hash: u64,
    /// Its name among the flights of its part.
    pub name: u64,
    pub flight: Arc<Flight>,
}

impl Lead {
    /// Lets the others go.
    pub fn land(self, outcome: Outcome) {
        self.flight.land(outcome);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut stored = self.cache.stored(self.hash);
        if let Some(flight) = stored.flights.get(&self.name)
            && Arc::ptr_eq(flight, &self.flight)
        {
            stored.flights.remove(&self.name);
        }
        drop(stored);
        // Nothing, if it has landed.
        self.flight.land(Outcome::Alone);
    }
}
