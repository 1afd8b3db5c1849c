//! RFC 9111: what may be stored (section 3), how long it is fresh (4.2), and for whom it may be used (4).

use super::Now;
use super::asked::{Asked, Plan};
use super::control::SECONDS_MAX;
use super::facts::Facts;
use crate::http::Framing;
use crate::limits::CACHE_UNREACHABLE_MAX;
use crate::time::Time;

/// May be fresh without saying so (RFC 9110 section 15.1), 206 apart.
fn is_heuristic(status: u16) -> bool {
    matches!(status, 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// What it means is known here: `must-understand` asks.
fn is_understood(status: u16) -> bool {
    is_heuristic(status) || matches!(status, 302 | 303 | 307)
}

/// A site can say of it that it still holds.
pub(super) fn can_be_validated(status: u16) -> bool {
    status == 200 || status == 203
}

/// The site failed, as RFC 5861 section 4 means it.
pub(super) fn is_failure(status: u16) -> bool {
    matches!(status, 500 | 502 | 503 | 504)
}

/// A stored answer's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    received: Time,
    /// At that moment, in seconds.
    age: u64,
    /// In seconds.
    lifetime: u64,
    /// The site did not say that anybody may have it for a while.
    unsaid: bool,
    no_cache: bool,
    must_revalidate: bool,
    /// May be given to requests with Authorization.
    pub shares_authorized: bool,
    stale_while_revalidate: u64,
    stale_if_error: u64,
}

/// What a stored answer is good for, for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Fresh,
    /// The request takes it as it is.
    Stale,
    /// It may be given once more while the site is asked (RFC 5861 section 3).
    WhileRevalidate,
    /// Only if the site says so.
    Validate,
}

impl Policy {
    /// The terms on which the answer to a request that was sent at `sent` is stored; `None` if it is not.
    pub fn of(
        asked: &Asked<'_>,
        status: u16,
        framing: Framing,
        facts: &Facts<'_>,
        sent: Time,
        now: Now,
    ) -> Option<Self> {
        // What is wrong with the range that one asked for is no answer for those who ask for all of it.
        let whole = status == 200 || (asked.range.is_none() && !matches!(status, 206 | 304 | 416));
        let may = asked.plan == Plan::Get && status >= 200 && whole;
        // TLS that ends unannounced counts as an end: nothing says that it was the content's.
        let doubtful = framing == Framing::UntilClose && asked.key.is_secure();
        (may && !doubtful).then_some(())?;
        let policy = Self::terms(status, facts, asked.cookie, sent, now);
        let policy = policy.filter(|policy| !asked.authorized || policy.shares_authorized)?;
        // RFC 9112 section 8 calls it complete, but its end looks like a cut: only where the site means it to be stored.
        (framing != Framing::UntilClose || !policy.unsaid).then_some(policy)
    }

    /// The same for an answer that is stored already and got new fields. `cookie`: a session asked for it.
    pub fn terms(status: u16, facts: &Facts<'_>, cookie: bool, sent: Time, now: Now) -> Option<Self> {
        let control = &facts.control;
        let understood = control.must_understand && is_understood(status);
        let forbidden =
            ((control.no_store || control.must_understand) && !understood) || control.private || facts.vary.star;
        let lifetime = facts.lifetime(is_heuristic(status), now.wall);
        let allowed = lifetime.explicit || is_heuristic(status) || control.public;
        if forbidden || !allowed {
            return None;
        }
        let unsaid = !lifetime.explicit || lifetime.seconds == 0 || control.no_cache;
        // What is made for one session seldom says so: nothing is guessed for it, and it is known again by its tag alone,
        // because another session's page may well be older than this one.
        let personal = unsaid && (cookie || facts.sets_cookie);
        if personal && facts.etag.is_none() {
            return None;
        }
        let policy = Self {
            received: now.time,
            age: initial_age(facts, sent, now),
            lifetime: if personal { 0 } else { lifetime.seconds },
            unsaid,
            no_cache: control.no_cache,
            must_revalidate: control.must_revalidate,
            shares_authorized: control.shares_authorized,
            stale_while_revalidate: control.stale_while_revalidate.unwrap_or(0),
            stale_if_error: control.stale_if_error.unwrap_or(0),
        };
        let has_validator = can_be_validated(status) && (facts.etag.is_some() || facts.last_modified.is_some());
        // Also what is stale when it arrives: for `max-stale`, and dates are whole seconds, which is much of a short life.
        let usable = policy.lifetime + policy.stale_while_revalidate > 0 && !policy.no_cache;
        (has_validator || usable).then_some(policy)
    }

    /// RFC 9111 section 4.2.3, in seconds.
    pub fn age(&self, now: Time) -> u64 {
        self.age.saturating_add(now.since(self.received).as_secs())
    }

    /// Seconds for which it is still fresh; negative once it is stale.
    pub fn ttl(&self, now: Time) -> i64 {
        // Both are far from the limits of the type.
        self.lifetime as i64 - self.age(now).min(2 * SECONDS_MAX) as i64
    }

    /// Good for others without asking the site.
    pub fn is_shared(&self, now: Time) -> bool {
        self.ttl(now) > 0 && !self.no_cache
    }

    /// The site may have something else for the session that asks.
    pub fn is_personal_for(&self, asked: &Asked<'_>) -> bool {
        self.unsaid && asked.cookie
    }

    /// RFC 9111 sections 4 and 4.2.4, for a request that the answer was found for.
    pub fn usage(&self, asked: &Asked<'_>, now: Time) -> Use {
        let control = &asked.control;
        let (age, ttl) = (self.age(now), self.ttl(now));
        // Reload sends `max-age=0`, and means it also in the first second.
        let too_old = control.max_age.is_some_and(|max| max == 0 || age > max);
        let not_fresh_enough = control.min_fresh.is_some_and(|min| ttl < min as i64);
        if self.no_cache || control.no_cache || too_old || not_fresh_enough || self.is_personal_for(asked) {
            return Use::Validate;
        }
        if ttl > 0 {
            return Use::Fresh;
        }
        let staleness = ttl.unsigned_abs();
        if self.must_revalidate {
            Use::Validate
        } else if control.max_stale.is_some_and(|max| staleness <= max) {
            Use::Stale
        } else if !control.is_demanding() && staleness < self.stale_while_revalidate {
            Use::WhileRevalidate
        } else {
            Use::Validate
        }
    }

    /// Whether it may stand in for a site that failed, or (`unreachable`) could not be asked at all.
    pub fn covers_failure(&self, asked: &Asked<'_>, unreachable: bool, now: Time) -> bool {
        let barred = self.no_cache || self.must_revalidate || asked.control.is_demanding();
        if barred || self.is_personal_for(asked) {
            return false;
        }
        let unreachable = if unreachable {
            CACHE_UNREACHABLE_MAX.as_secs()
        } else {
            0
        };
        let asked = asked.control.stale_if_error.unwrap_or(0);
        let most = self.stale_if_error.max(asked).max(unreachable);
        -self.ttl(now) <= most as i64 && most > 0
    }
}

fn initial_age(facts: &Facts<'_>, sent: Time, now: Now) -> u64 {
    let apparent = facts.date.map_or(0, |date| now.wall.saturating_sub(date));
    let corrected = facts.age.saturating_add(now.time.since(sent).as_secs());
    apparent.max(corrected).min(SECONDS_MAX)
}
