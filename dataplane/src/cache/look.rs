//! The first question: is the answer here, is it on its way, or must the site be asked?

use std::sync::Arc;

use super::Now;
use super::asked::{Asked, Plan};
use super::entry::Entry;
use super::fetch::{Fetch, Lead};
use super::flight::{Flight, Follow, Outcome};
use super::hit::Hit;
use super::policy::Use;
use super::status::{Forward, How};
use super::store::{Cache, Found, Stored};

/// What is to be done with a request.
pub enum Look {
    /// Answer it with this.
    Hit(Hit),
    /// Answer it with 504: it allows nothing but what is stored, and nothing is (RFC 9111 section 5.2.1.7).
    Absent,
    /// Wait at most [`crate::limits::CACHE_FOLLOW_MAX`], then look again with the outcome, or with `Alone` after that time.
    Follow(Follow),
    /// Ask the site.
    Ask(Fetch),
}

impl Cache {
    /// Looks up a request. `waited`: how the request ended that it was told to wait for; then it is not told so again.
    pub fn look_up(self: &Arc<Self>, asked: &Asked<'_>, waited: Option<Outcome>, now: Now) -> Look {
        let mut fetch = Fetch {
            cache: Arc::clone(self),
            hash: 0,
            stamp: 0,
            sent: now.time,
            forward: Forward::Bypass,
            entry: None,
            validates: false,
            is_refresh: false,
            lead: None,
        };
        match asked.plan {
            Plan::Get | Plan::Head => {}
            Plan::Pass => return Look::Ask(fetch),
            Plan::Unsafe => {
                fetch.forward = Forward::Method;
                return Look::Ask(fetch);
            }
        }
        let hash = asked.key.hash(&self.state);
        let mut stored = self.stored(hash);
        let stored = &mut *stored;
        fetch.hash = hash;
        fetch.stamp = stored.stamp();
        let found = stored.find(hash, asked);
        let name = hash ^ found.mark;
        if let Some((entry, usage)) = fetch.consider(found, asked, now) {
            let waited = waited == Some(Outcome::Shared);
            stored.counts.hits += 1;
            stored.counts.stale_hits += u64::from(usage != Use::Fresh);
            stored.counts.collapsed += u64::from(waited);
            let refreshes = usage == Use::WhileRevalidate && asked.plan == Plan::Get;
            let refresh = if refreshes && stored.flight(hash, name).is_none() {
                fetch.lead = Some(fetch.take_lead(stored, name));
                fetch.is_refresh = true;
                Some(fetch)
            } else {
                None
            };
            return Look::Hit(Hit {
                cache: Arc::clone(self),
                hash,
                entry,
                how: if waited { How::Collapsed } else { How::Stored },
                cookies: Vec::new(),
                refresh,
            });
        }
        if asked.control.only_if_cached {
            return Look::Absent;
        }
        let waits = waited.is_none() && asked.is_common() && !stored.is_passed(hash, now.time);
        if waits && let Some(flight) = stored.flight(hash, name) {
            if let Some(follow) = flight.follow() {
                return Look::Follow(follow);
            }
        } else if waits {
            fetch.lead = Some(fetch.take_lead(stored, name));
        }
        stored.counts.misses += 1;
        Look::Ask(fetch)
    }
}

impl Fetch {
    /// The stored answer, and how it may be used without the site; `None` if the site is to be asked. Notes what for.
    fn consider(&mut self, found: Found, asked: &Asked<'_>, now: Now) -> Option<(Arc<Entry>, Use)> {
        let entry = match found.entry {
            None if found.known => {
                self.forward = Forward::VaryMiss;
                return None;
            }
            None => {
                self.forward = Forward::UriMiss;
                return None;
            }
            Some(entry) => entry,
        };
        // RFC 9111 section 3.5 forbids only to store; but what was made for nobody in particular may not be for this one.
        let for_others = asked.authorized && !entry.policy.shares_authorized;
        // A date would tell nothing: this session's page may be older than what is stored.
        let by_date = entry.policy.is_personal_for(asked) && entry.field("ETag").is_none();
        if for_others || by_date {
            self.forward = Forward::Request;
            return None;
        }
        let usage = entry.policy.usage(asked, now.time);
        let is_fresh = entry.policy.is_shared(now.time);
        self.forward = if is_fresh { Forward::Request } else { Forward::Stale };
        self.validates = asked.plan == Plan::Get && asked.has_room() && entry.condition().is_some();
        self.entry = Some(Arc::clone(&entry));
        (usage != Use::Validate).then_some((entry, usage))
    }

    fn take_lead(&self, stored: &mut Stored, name: u64) -> Lead {
        let flight = Flight::new(self.stamp);
        stored.flights.insert(name, Arc::clone(&flight));
        Lead {
            cache: Arc::clone(&self.cache),
            hash: self.hash,
            name,
            flight,
        }
    }
}
