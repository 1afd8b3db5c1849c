//! TLS sessions with sites that may be resumed (RFC 8446 section 2.2, RFC 5077).
//!
//! A resumed handshake shows no certificate: the one of the first handshake counts, for [`JUDGED_AGE_MAX`]. So a session
//! has the age of the one that it was resumed from.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, MutexGuard};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::ServerName;

use super::table::{Key, KeyOf, Rows, Table};
use crate::limits::{JUDGED_AGE_MAX, SITE_SESSIONS_MAX, SITE_TICKETS_MAX};

/// Of all sites.
pub(super) struct Sessions {
    clock: Arc<dyn TimeProvider>,
    kept: Table<Kept>,
}

/// Of one site.
#[derive(Default)]
struct Kept {
    group: Option<NamedGroup>,
    tls12: Option<Aged<Tls12ClientSessionValue>>,
    tls13: VecDeque<Aged<Tls13ClientSessionValue>>,
}

struct Aged<T> {
    /// When its certificate was shown, in seconds since 1970.
    since: u64,
    session: T,
}

impl Sessions {
    pub fn new(clock: Arc<dyn TimeProvider>) -> Self {
        Self {
            clock,
            kept: Table::new(SITE_SESSIONS_MAX),
        }
    }

    fn now(&self) -> u64 {
        self.clock.current_time().map_or(0, |now| now.as_secs())
    }
}

/// What one connection has to do with them.
pub(super) struct Site {
    sessions: Arc<Sessions>,
    /// Of host and port: one name may stand for sites that have tickets in common but not the certificate.
    site: Key,
    /// The age of the session that this connection offered; without one its own handshake is the first.
    offered: AtomicU64,
}

/// No session was offered.
const NONE: u64 = u64::MAX;

impl Site {
    pub fn new(sessions: Arc<Sessions>, host: &str, port: u16) -> Self {
        Self {
            sessions,
            site: KeyOf::default().site(host, port).key(),
            offered: AtomicU64::new(NONE),
        }
    }

    fn key(&self, name: &ServerName<'_>) -> Key {
        KeyOf::default().bytes(&self.site).host(&name.to_str()).key()
    }

    fn keep(&self, name: &ServerName<'_>, change: impl FnOnce(&mut Kept)) {
        let key = self.key(name);
        change(self.kept(&key).get_or_insert(key));
    }

    fn kept<'a>(&'a self, key: &Key) -> MutexGuard<'a, Rows<Kept>> {
        self.sessions.kept.part(key)
    }

    /// A session that this connection was given, if its certificate may still count.
    fn aged<T>(&self, session: T) -> Option<Aged<T>> {
        let now = self.sessions.now();
        let since = match self.offered.load(Relaxed) {
            NONE => now,
            since => since,
        };
        let aged = Aged { since, session };
        aged.is_young(now).then_some(aged)
    }

    fn offer<T>(&self, aged: Aged<T>) -> T {
        self.offered.fetch_min(aged.since, Relaxed);
        aged.session
    }
}

impl<T> Aged<T> {
    fn is_young(&self, now: u64) -> bool {
        now.checked_sub(self.since)
            .is_some_and(|age| age < JUDGED_AGE_MAX.as_secs())
    }
}

impl ClientSessionStore for Site {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.keep(&server_name, |kept| kept.group = Some(group));
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        let key = self.key(server_name);
        self.kept(&key).get(&key)?.group
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        let aged = self.aged(value);
        self.keep(&server_name, |kept| kept.tls12 = aged);
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let key = self.key(server_name);
        let now = self.sessions.now();
        let mut rows = self.kept(&key);
        let kept = rows.get(&key)?;
        let aged = kept.tls12.as_ref().filter(|aged| aged.is_young(now))?;
        Some(self.offer(Aged {
            since: aged.since,
            session: aged.session.clone(),
        }))
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.keep(server_name, |kept| kept.tls12 = None);
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        let Some(aged) = self.aged(value) else { return };
        self.keep(&server_name, |kept| {
            if kept.tls13.len() == SITE_TICKETS_MAX {
                kept.tls13.pop_front();
            }
            kept.tls13.push_back(aged);
        });
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let key = self.key(server_name);
        let now = self.sessions.now();
        let mut rows = self.kept(&key);
        let kept = rows.get(&key)?;
        kept.tls13.retain(|aged| aged.is_young(now));
        let newest = kept.tls13.pop_back()?;
        Some(self.offer(newest))
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}
