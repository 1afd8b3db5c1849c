//! Names of sites: a small cache in each shard, filled by helper threads, and the addresses that no browser may reach
//! through the tunnel.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Poll, Waker};

use crossbeam::channel::{Receiver, bounded};
use rustix::event::{EventfdFlags, eventfd};

use super::lookups::{Asker, Found, Lookups, Reply};
use crate::limits::{LOOKUP_CACHE_MAX, LOOKUP_FAILED_MAX_AGE, LOOKUP_MAX_AGE, LOOKUP_THREADS_MAX, LOOKUPS_PENDING_MAX};
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

enum Entry {
    /// Asked; who waits for it.
    Pending(Vec<Waker>),
    Known {
        until: Time,
        found: Found,
    },
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
        let (answers, replies) = bounded(LOOKUPS_PENDING_MAX + LOOKUP_THREADS_MAX);
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
        match self.entries.get_mut(host) {
            Some(Entry::Pending(waiting)) => {
                if !waiting.iter().any(|w| w.will_wake(waker)) {
                    waiting.push(waker.clone());
                }
                return Poll::Pending;
            }
            Some(Entry::Known { until, found }) if *until > now => {
                return Poll::Ready(found.clone());
            }
            _ => {}
        }
        if let Err(text) = self.lookups.ask(host, self.asker.clone()) {
            return Poll::Ready(Err(text.into()));
        }
        self.pending += 1;
        let waiting = Entry::Pending(vec![waker.clone()]);
        self.entries.insert(host.into(), waiting);
        Poll::Pending
    }

    /// Takes the answers in and wakes who waits.
    pub fn collect(&mut self, now: Time) {
        let _ = rustix::io::read(&*self.asker.wake, &mut [0_u8; 8]);
        while let Ok((host, found)) = self.replies.try_recv() {
            self.pending -= 1;
            let age = if found.is_ok() {
                LOOKUP_MAX_AGE
            } else {
                LOOKUP_FAILED_MAX_AGE
            };
            self.make_room(now);
            let until = now + age;
            let known = Entry::Known { until, found };
            if let Some(Entry::Pending(waiting)) = self.entries.insert(host, known) {
                waiting.into_iter().for_each(Waker::wake);
            }
        }
    }

    /// Drops what is stale and, if that is not enough, any answer: it costs one look-up.
    fn make_room(&mut self, now: Time) {
        if self.entries.len() < LOOKUP_CACHE_MAX {
            return;
        }
        self.entries
            .retain(|_, e| !matches!(e, Entry::Known { until, .. } if *until <= now));
        if self.entries.len() >= LOOKUP_CACHE_MAX {
            self.entries.retain(|_, e| matches!(e, Entry::Pending(_)));
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
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
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
    use super::*;
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
        let stale = now + LOOKUP_FAILED_MAX_AGE;
        assert!(resolver.poll(stale, name, &one).is_pending());
    }
}
