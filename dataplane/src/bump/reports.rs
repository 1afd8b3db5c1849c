//! What an endpoint remembers of sites: how `sc` saw them last, and which cannot be bumped.

use std::fmt;
use std::sync::Arc;

use super::seen::Seen;
use super::table::{Key, KeyOf, Table};
use crate::limits::{
    OPAQUE_HOSTS_MAX, OPAQUE_TIME, PINNED_APART, PINNED_REFUSALS, PINNED_SPAN, REPORT_FRESH_MAX, REPORTS_MAX,
};
use crate::time::Time;

/// A site as a CONNECT names it (a ClientHello for another name is relayed as it is), and as one member of a pool sees it:
/// each has its own roots, and its own way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site<'a> {
    pub host: &'a str,
    pub port: u16,
    pub member: [u8; 16],
}

/// For all shards of an endpoint. A look-up allocates nothing.
pub struct Reports {
    seen: Table<(Arc<Seen>, Time)>,
    hosts: Table<Host>,
}

/// What was learnt of a host and port.
#[derive(Default)]
struct Host {
    opaque_until: Option<Time>,
    /// When it last ended a handshake without a word.
    broken_off: Option<Time>,
    /// The last refusals of our leaf, in a ring.
    refusals: [Option<Time>; PINNED_REFUSALS],
    next: usize,
}

impl Host {
    /// From now on; counting begins anew afterwards.
    fn opaque(now: Time) -> Self {
        Self {
            opaque_until: Some(now + OPAQUE_TIME),
            ..Self::default()
        }
    }
}

impl Reports {
    #[expect(clippy::new_without_default, reason = "an empty one is a decision")]
    pub fn new() -> Self {
        Self {
            seen: Table::new(REPORTS_MAX),
            hosts: Table::new(OPAQUE_HOSTS_MAX),
        }
    }

    /// The site was seen just now.
    pub fn insert(&self, site: Site<'_>, seen: Arc<Seen>, now: Time) {
        let key = site.key();
        self.seen.part(&key).insert(key, (seen, now));
    }

    /// How the site was seen, if that is at most [`REPORT_FRESH_MAX`] ago.
    pub fn fresh(&self, site: Site<'_>, now: Time) -> Option<Arc<Seen>> {
        let key = site.key();
        let mut part = self.seen.part(&key);
        let (seen, at) = part.get(&key)?;
        (now.since(*at) <= REPORT_FRESH_MAX).then(|| seen.clone())
    }

    /// What was seen does not hold any more.
    pub fn forget(&self, site: Site<'_>) {
        let key = site.key();
        self.seen.part(&key).remove(&key);
    }

    /// The host cannot be bumped: it is relayed as it is for [`OPAQUE_TIME`].
    pub fn learn_opaque(&self, host: &str, port: u16, now: Time) {
        self.with_host(host, port, |host| host.opaque_until = Some(now + OPAQUE_TIME));
    }

    /// Whether that was learnt of the host.
    pub fn is_opaque(&self, host: &str, port: u16, now: Time) -> bool {
        let key = KeyOf::default().site(host, port).key();
        let mut part = self.hosts.part(&key);
        part.get(&key)
            .is_some_and(|host| host.opaque_until.is_some_and(|until| now < until))
    }

    /// The site ended its handshake with `sc` and did not say why: it may have passed, or be the way in which it says that
    /// there is no TLS in common. When it happens again, at least [`PINNED_APART`] and at most [`PINNED_SPAN`] later, the
    /// host is opaque, and true is returned.
    pub fn broke_off(&self, host: &str, port: u16, now: Time) -> bool {
        self.with_host(host, port, |host| {
            let since = host.broken_off.map(|last| now.since(last));
            if since.is_some_and(|since| since < PINNED_APART) {
                return false;
            }
            host.broken_off = Some(now);
            let again = since.is_some_and(|since| since <= PINNED_SPAN);
            if again {
                *host = Host::opaque(now);
            }
            again
        })
    }

    /// A browser answered our leaf, a good one, with an alert about certificates at once: an app may have pinned the
    /// site's. After [`PINNED_REFUSALS`] within [`PINNED_SPAN`], each [`PINNED_APART`] from the one before, the host is
    /// opaque, and true is returned, but never if it is `exempt`: somebody wants to see its requests.
    pub fn refused(&self, host: &str, port: u16, exempt: bool, now: Time) -> bool {
        if exempt {
            return false;
        }
        self.with_host(host, port, |host| {
            let last = host.refusals[(host.next + PINNED_REFUSALS - 1) % PINNED_REFUSALS];
            if last.is_some_and(|last| now.since(last) < PINNED_APART) {
                return false;
            }
            host.refusals[host.next] = Some(now);
            host.next = (host.next + 1) % PINNED_REFUSALS;
            let recent = |at: &Option<Time>| at.is_some_and(|at| now.since(at) <= PINNED_SPAN);
            let pinned = host.refusals.iter().all(recent);
            if pinned {
                *host = Host::opaque(now);
            }
            pinned
        })
    }

    fn with_host<T>(&self, host: &str, port: u16, change: impl FnOnce(&mut Host) -> T) -> T {
        let key = KeyOf::default().site(host, port).key();
        change(self.hosts.part(&key).get_or_insert(key))
    }
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reports")
    }
}

impl Site<'_> {
    fn key(&self) -> Key {
        KeyOf::default().site(self.host, self.port).bytes(&self.member).key()
    }
}
