//! Names of sites: a small cache in each shard, filled by helper threads, and the addresses that no browser may reach
//! through the tunnel.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use rustix::event::{EventfdFlags, eventfd};

use super::lookups::{Asker, Found, Lookups, Reply, TOO_MANY};
use crate::limits::{
    LOOKUP_CACHE_MAX, LOOKUP_FAILED_MAX_AGE, LOOKUP_MAX_AGE, LOOKUP_REPLIES_MAX, LOOKUP_SILENCE_MIN,
    LOOKUP_SILENT_MAX_AGE, LOOKUP_STALE_AFTER, LOOKUP_STALE_MAX,
};
use crate::time::Time;

/// The families take turns, the resolver's first choice first (RFC 8305 section 4).
pub(super) fn alternating(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (mut first, mut second): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().partition(|a| a.is_ipv6() == first_is_v6);
    let mut out = Vec::with_capacity(addresses.len());
    let longer = first.len().max(second.len());
    first.reverse();
    second.reverse();
    for _ in 0..longer {
        out.extend(first.pop());
        out.extend(second.pop());
    }
    out
}

/// What a shard knows of a name.
struct Entry {
    /// None: nothing yet.
    found: Option<Found>,
    /// It needs no look-up until then.
    until: Time,
    /// Addresses serve until then (RFC 8767), if no answer replaces them.
    serves_until: Time,
    /// When it was last asked for …
    asked: Time,
    /// … and who waits, while there is no reply.
    waiting: Option<Vec<Waker>>,
}

impl Entry {
    fn is_fresh(&self, now: Time) -> bool {
        now < self.until
    }

    /// `took`: as in [`Reply`].
    fn learn(&mut self, now: Time, found: Found, took: Option<Duration>) {
        let (age, is_answer) = match took {
            _ if found.is_ok() => (LOOKUP_MAX_AGE, true),
            Some(took) if took < LOOKUP_SILENCE_MIN => (LOOKUP_FAILED_MAX_AGE, true),
            Some(_) => (LOOKUP_SILENT_MAX_AGE, false),
            None => (LOOKUP_FAILED_MAX_AGE, false),
        };
        self.until = now + age;
        if is_answer || self.addresses(now).is_none() {
            self.found = Some(found);
            self.serves_until = now + LOOKUP_STALE_MAX;
        } else {
            self.until = self.until.min(self.serves_until);
        }
    }

    /// Addresses, fresh or not.
    fn addresses(&self, now: Time) -> Option<Arc<[IpAddr]>> {
        let found = self.found.as_ref()?.as_ref().ok()?;
        (now < self.serves_until).then(|| found.clone())
    }
}

/// One shard's view: its cache and the answers on their way. The shard calls [`Resolver::collect`] when
/// [`Resolver::wake_fd`] is readable.
pub struct Resolver {
    lookups: Lookups,
    asker: Asker,
    replies: Receiver<Reply>,
    entries: HashMap<Box<str>, Entry>,
    pending: usize,
}

impl Resolver {
    /// # Errors
    /// The system gave no eventfd.
    pub fn new(lookups: Lookups) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (answers, replies) = bounded(LOOKUP_REPLIES_MAX);
        Ok(Self {
            lookups,
            asker: Asker { replies: answers, wake },
            replies,
            entries: HashMap::new(),
            pending: 0,
        })
    }

    /// Readable when answers wait.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.asker.wake.as_fd()
    }

    /// Look-ups that are on their way.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// The addresses of a name or literal, from the cache or from a helper thread; whoever polls is woken by
    /// [`Resolver::collect`]. The caller bounds the wait.
    pub fn poll(&mut self, now: Time, host: &str, waker: &Waker) -> Poll<Found> {
        if let Some(fixed) = fixed(host) {
            return Poll::Ready(Ok(fixed.into()));
        }
        let mut entry = self.entries.get_mut(host);
        let mut old = None;
        if let Some(entry) = &mut entry {
            if let Some(found) = &entry.found
                && entry.is_fresh(now)
            {
                return Poll::Ready(found.clone());
            }
            old = entry.addresses(now);
            if let Some(waiting) = &mut entry.waiting {
                if let Some(old) = old
                    && now.since(entry.asked) >= LOOKUP_STALE_AFTER
                {
                    return Poll::Ready(Ok(old));
                }
                if !waiting.iter().any(|w| w.will_wake(waker)) {
                    waiting.push(waker.clone());
                    self.lookups.renew(host);
                }
                return Poll::Pending;
            }
        }
        let asked = if self.pending < LOOKUP_REPLIES_MAX {
            self.lookups.ask(host, self.asker.clone())
        } else {
            Err(TOO_MANY)
        };
        if let Err(text) = asked {
            return Poll::Ready(old.ok_or_else(|| text.into()));
        }
        self.pending += 1;
        let waiting = Some(vec![waker.clone()]);
        match entry {
            Some(entry) => (entry.asked, entry.waiting) = (now, waiting),
            None => {
                self.make_room(now);
                let entry = Entry {
                    found: None,
                    until: now,
                    serves_until: now,
                    asked: now,
                    waiting,
                };
                self.entries.insert(host.into(), entry);
            }
        }
        Poll::Pending
    }

    /// Addresses that the name had, while the look-up of today is under way.
    pub fn old(&self, now: Time, host: &str) -> Option<Arc<[IpAddr]>> {
        self.entries.get(host)?.addresses(now)
    }

    /// Takes the answers in and wakes who waits.
    pub fn collect(&mut self, now: Time) {
        let _ = rustix::io::read(&*self.asker.wake, &mut [0_u8; 8]);
        while let Ok(reply) = self.replies.try_recv() {
            self.pending -= 1;
            if let Some(entry) = self.entries.get_mut(&reply.host) {
                entry.learn(now, reply.found, reply.took);
                entry.waiting.take().into_iter().flatten().for_each(Waker::wake);
            }
        }
    }

    /// Drops what serves no more and, if that is not enough, what is not fresh, then any answer: it costs one look-up.
    fn make_room(&mut self, now: Time) {
        let keeps: [fn(&Entry, Time) -> bool; 3] = [
            |entry, now| entry.is_fresh(now) || entry.addresses(now).is_some(),
            Entry::is_fresh,
            |_, _| false,
        ];
        for keeps in keeps {
            if self.entries.len() >= LOOKUP_CACHE_MAX {
                self.entries
                    .retain(|_, entry| entry.waiting.is_some() || keeps(entry, now));
            }
        }
    }
}

/// Literals, and the names that mean the tunnel host itself whatever a resolver says (RFC 6761 section 6.3).
fn fixed(host: &str) -> Option<Vec<IpAddr>> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some(vec![address]);
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let local = name == "localhost" || name.ends_with(".localhost");
    local.then(|| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
}

/// Addresses of cloud metadata services that are not link-local.
const METADATA: [IpAddr; 9] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1)),
];

/// Why no browser may reach `ip` through the tunnel, or `None`. Asked for the address that is dialled, after
/// resolution: a name proves nothing.
pub fn forbidden(ip: IpAddr) -> Option<&'static str> {
    let ip = canonical(ip);
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local {
        return Some("a link-local address is not served through the tunnel");
    }
    METADATA
        .contains(&ip)
        .then_some("a metadata address is not served through the tunnel")
}

/// Whether `address` leads to a port of this host that `own`, the process's own listening sockets, has: on every local
/// address, for the kernel gives a connection to the unspecified address and to IPv4-mapped ones as well.
pub fn is_own(address: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|o| o.port() == address.port()) && is_local(canonical(address.ip()))
}

/// The IPv4 address inside an IPv4-mapped (RFC 4291) or NAT64 (RFC 6052) one: they lead to the same host.
pub fn canonical(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    match v6.octets() {
        [0x00, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
        _ => ip.to_canonical(),
    }
}

/// Whether packets to `ip` stay on this host. Only a local address can be bound.
pub fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::lookups::Sources;
    use super::*;
    use crate::limits::LOOKUP_TIME_MAX;
    use crate::wakes::Wakes;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn own_listeners_are_denied_on_every_local_address() {
        let own = [address("127.0.0.1:4445")];
        for site in [
            "127.0.0.1:4445",
            "127.9.9.9:4445",
            "0.0.0.0:4445",
            "[::1]:4445",
            "[::]:4445",
            "[::ffff:127.0.0.1]:4445",
            "[64:ff9b::7f00:1]:4445",
        ] {
            assert!(is_own(address(site), &own), "{site}");
        }
        for site in ["127.0.0.1:4446", "[::1]:80", "192.0.2.1:4445", "[2001:db8::1]:4445"] {
            assert!(!is_own(address(site), &own), "{site}");
        }
    }

    #[test]
    fn link_local_and_metadata_addresses_are_denied_in_every_spelling() {
        for site in [
            "169.254.169.254:80",
            "169.254.0.1:1",
            "[fe80::1]:80",
            "[febf::1]:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[fd00:ec2::254]:80",
            "[fd00:ec2::23]:80",
            "[fd20:ce::254]:80",
            "[fd00:c1::a9fe:a9fe]:80",
            "[fd00:42::42]:80",
            "[fd00:a9fe:a9fe::1]:80",
            "100.100.100.200:80",
        ] {
            assert!(forbidden(address(site).ip()).is_some(), "{site}");
        }
        for site in ["10.0.0.1:80", "[fd00::1]:80", "127.0.0.1:80", "[2001:db8::1]:80"] {
            assert_eq!(forbidden(address(site).ip()), None, "{site}");
        }
    }

    #[test]
    fn literals_and_localhost_need_no_resolver() {
        assert_eq!(fixed("192.0.2.7"), Some(vec!["192.0.2.7".parse().unwrap()]));
        assert_eq!(fixed("[::1]"), Some(vec!["::1".parse().unwrap()]));
        assert_eq!(fixed("LOCALHOST."), fixed("app.localhost"));
        assert_eq!(fixed("localhost").unwrap().len(), 2);
        assert_eq!(fixed("localhost.example"), None);
    }

    #[test]
    fn families_take_turns() {
        let list = |t: &[&str]| t.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
        let given = list(&["2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        let taken = list(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "192.0.2.3"]);
        assert_eq!(alternating(&given), taken);
    }

    const NAME: &str = "app.test";

    /// The resolver says what the test says.
    fn scripted() -> Resolver {
        let sources = Sources {
            resolver: |_| {
                let (_tell, told) = std::sync::mpsc::channel();
                told.recv_timeout(2 * LOOKUP_TIME_MAX).map_err(|e| e.to_string().into())
            },
            hosts: |_| HashMap::new(),
        };
        Resolver::new(Lookups::of(sources, Duration::ZERO)).unwrap()
    }

    fn poll(resolver: &mut Resolver, now: Time) -> Poll<Found> {
        resolver.poll(now, NAME, &Waker::from(Arc::new(Wakes::default())))
    }

    fn reply(resolver: &mut Resolver, now: Time, found: Found, took: Option<Duration>) {
        let host = NAME.into();
        resolver.asker.replies.send(Reply { host, found, took }).unwrap();
        resolver.collect(now);
    }

    fn good() -> Found {
        Ok([IpAddr::V4(Ipv4Addr::LOCALHOST)].into())
    }

    fn bad() -> Found {
        Err("in vain".into())
    }

    #[test]
    fn old_addresses_serve_while_name_servers_are_silent() {
        let (mut resolver, start) = (scripted(), Time::now());
        assert!(poll(&mut resolver, start).is_pending());
        reply(&mut resolver, start, good(), Some(Duration::ZERO));
        let now = start + LOOKUP_MAX_AGE;
        // A name may have moved: an answer is waited for first.
        assert!(poll(&mut resolver, now).is_pending());
        assert_eq!(resolver.pending(), 1);
        assert_eq!(resolver.old(now, NAME), good().ok());
        let now = now + LOOKUP_STALE_AFTER;
        assert_eq!(poll(&mut resolver, now), Poll::Ready(good()));
        for took in [None, Some(LOOKUP_SILENCE_MIN)] {
            reply(&mut resolver, now, bad(), took);
            assert_eq!(poll(&mut resolver, now), Poll::Ready(good()));
            assert_eq!(resolver.pending(), 0, "it is remembered");
            assert!(poll(&mut resolver, now + LOOKUP_SILENT_MAX_AGE).is_pending());
        }
        let now = start + LOOKUP_STALE_MAX;
        assert!(poll(&mut resolver, now).is_pending());
        assert_eq!(resolver.old(now, NAME), None);
        reply(&mut resolver, now, bad(), Some(LOOKUP_SILENCE_MIN));
        assert_eq!(poll(&mut resolver, now), Poll::Ready(bad()));
    }

    #[test]
    fn an_answer_replaces_old_addresses() {
        let (mut resolver, start) = (scripted(), Time::now());
        assert!(poll(&mut resolver, start).is_pending());
        reply(&mut resolver, start, good(), Some(LOOKUP_SILENCE_MIN));
        let now = start + LOOKUP_MAX_AGE;
        assert!(poll(&mut resolver, now).is_pending());
        reply(&mut resolver, now, bad(), Some(Duration::ZERO));
        assert_eq!(poll(&mut resolver, now), Poll::Ready(bad()));
        assert_eq!(resolver.old(now, NAME), None);
    }

    #[test]
    fn silence_is_remembered_longer_than_an_answer() {
        for (took, age) in [
            (Duration::ZERO, LOOKUP_FAILED_MAX_AGE),
            (LOOKUP_SILENCE_MIN, LOOKUP_SILENT_MAX_AGE),
        ] {
            let (mut resolver, start) = (scripted(), Time::now());
            assert!(poll(&mut resolver, start).is_pending());
            reply(&mut resolver, start, bad(), Some(took));
            let last = start + age - Duration::from_micros(1);
            assert_eq!(poll(&mut resolver, last), Poll::Ready(bad()));
            assert!(poll(&mut resolver, start + age).is_pending());
        }
    }

    #[test]
    fn a_look_up_is_shared_by_its_waiters_and_remembered() {
        let mut resolver = Resolver::new(Lookups::default()).unwrap();
        let (now, count) = (Time::now(), Arc::new(Wakes::default()));
        let (one, two) = (Waker::from(count.clone()), Waker::from(count.clone()));
        let name = "no-such-name.invalid";
        assert!(resolver.poll(now, name, &one).is_pending());
        assert!(resolver.poll(now, name, &two).is_pending());
        assert_eq!(resolver.pending(), 1);
        let mut fds = [rustix::event::PollFd::new(
            &*resolver.asker.wake,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, None).unwrap();
        resolver.collect(now);
        assert_eq!(resolver.pending(), 0);
        assert_ne!(count.count(), 0);
        assert!(matches!(resolver.poll(now, name, &one), Poll::Ready(Err(_))));
        let stale = now + LOOKUP_SILENT_MAX_AGE;
        assert!(resolver.poll(stale, name, &one).is_pending());
    }
}
