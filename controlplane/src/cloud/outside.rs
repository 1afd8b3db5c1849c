//! Sites that browsers reach without the tunnel (`-D`, `-t`): the broker dials them for an endpoint, and decides which
//! addresses are dialled. Through the tunnel a browser reaches what the customer's network reaches; from here it would
//! reach the cloud's own.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use dataplane::mux::Code;
use dataplane::proxy::resolve::{canonical, is_local};
use dataplane::proxy::{code_of, told};
use dataplane::shard::Outcome;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::limits::{DIAL_ADDRESS_MAX, DIAL_MAX, DIAL_STAGGER, DIALS_MAX, LOOKUP_MAX};
use dataplane::limits::ADDRESSES_PER_NAME_MAX;

/// A block of addresses, `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Where browsers come from unless other networks are named.
pub const LOOPBACK: Network = Network {
    address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)),
    bits: 8,
};

impl FromStr for Network {
    type Err = String;

    /// An address alone is a network of one.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no network: 10.0.0.0/8, fd00::/8 or one address is needed");
        let (address, bits) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            "" if !text.contains('/') => all,
            bits => bits.parse().ok().filter(|b| *b <= all).ok_or_else(bad)?,
        };
        Ok(Self { address, bits })
    }
}

impl Network {
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether an address is in both: then one holds all of the other.
    pub fn meets(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let (own, ip, all) = match (self.address, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => (own.to_bits().into(), ip.to_bits().into(), 32),
            (IpAddr::V6(own), IpAddr::V6(ip)) => (own.to_bits(), ip.to_bits(), 128),
            _ => return false,
        };
        let differing: u128 = own ^ ip;
        differing.checked_shr(all - u32::from(self.bits)).unwrap_or(0) == 0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// What may be dialled, for all endpoints.
pub struct Outside {
    /// Reached beside the internet (`--direct-networks`).
    networks: Vec<Network>,
    /// Of this cloud: not even where a network of the list holds them.
    public_port: u16,
    proxy_ports: RangeInclusive<u16>,
    permits: Semaphore,
}

impl Outside {
    pub fn new(networks: Vec<Network>, public_port: u16, proxy_ports: RangeInclusive<u16>) -> Self {
        Self {
            networks,
            public_port,
            proxy_ports,
            permits: Semaphore::new(DIALS_MAX),
        }
    }

    /// Looks the host up and connects to it.
    ///
    /// # Errors
    /// Why not, with text for people.
    pub async fn dial(&self, host: &str, port: u16) -> Outcome {
        // Closed never.
        let _permit = self.permits.acquire().await;
        let late = || {
            (
                Code::ConnectTimeout,
                format!("{host}:{port}: {}", told(Code::ConnectTimeout)),
            )
        };
        timeout(DIAL_MAX, self.connect(host, port))
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn connect(&self, host: &str, port: u16) -> Outcome {
        let found = match timeout(LOOKUP_MAX, lookup_host((host, port))).await {
            Ok(Ok(found)) => found,
            Ok(Err(e)) => return Err((Code::Dns, format!("{host}: {e}"))),
            Err(_) => return Err((Code::Dns, format!("{host}: no answer within {LOOKUP_MAX:?}"))),
        };
        let mut denied = "the name has no address";
        let mut allowed = Vec::new();
        for address in found {
            match self.denies(address) {
                Some(why) => denied = why,
                None if allowed.contains(&address) || allowed.len() == ADDRESSES_PER_NAME_MAX => {}
                None => allowed.push(address),
            }
        }
        if allowed.is_empty() {
            return Err((Code::Denied, format!("{host}:{port}: {denied}")));
        }
        let connected = race(allowed).await;
        connected.map_err(|code| (code, format!("{host}:{port}: {}", told(code))))
    }

    /// Why no browser may reach `address` from here. Asked for what is dialled: a name proves nothing.
    fn denies(&self, address: SocketAddr) -> Option<&'static str> {
        let ip = canonical(address.ip());
        let own = self.public_port == address.port() || self.proxy_ports.contains(&address.port());
        if own && is_local(ip) {
            return Some("the cloud's own ports are not reached directly");
        }
        if self.networks.iter().any(|network| network.contains(ip)) {
            return None;
        }
        if !is_internet(ip) || is_local(ip) {
            return Some(
                "only the internet is reached directly: what is inside a network goes through the tunnel (leave it out of -D, or put it into -t)",
            );
        }
        None
    }
}

/// Whether an address belongs to somebody on the internet (IANA's registries of special addresses; of IPv6, what can be
/// routed at all, without what has an IPv4 address inside).
fn is_internet(ip: IpAddr) -> bool {
    const INSIDE: [(Ipv4Addr, u8); 15] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(168, 63, 129, 16), 32),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
        (Ipv4Addr::new(224, 0, 0, 0), 3),
    ];
    const ROUTED: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
    const INSIDE_ROUTED: [(Ipv6Addr, u8); 4] = [
        (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
        (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
        (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    ];
    let within = |address: IpAddr, bits| Network { address, bits }.contains(ip);
    match ip {
        IpAddr::V4(_) => !INSIDE.iter().any(|(a, bits)| within((*a).into(), *bits)),
        IpAddr::V6(_) => {
            within(ROUTED.0.into(), ROUTED.1) && !INSIDE_ROUTED.iter().any(|(a, bits)| within((*a).into(), *bits))
        }
    }
}

/// Tries the addresses one after the other, each a little after the one before it or as soon as that has failed
/// (RFC 8305); the first that is connected wins.
async fn race(addresses: Vec<SocketAddr>) -> Result<(OwnedFd, SocketAddr), Code> {
    let mut waiting = addresses.into_iter();
    let mut running = JoinSet::new();
    let mut failed = Code::Unreachable;
    running.extend(waiting.next().map(attempt));
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                None => return Err(failed),
                Some(Ok(Ok(connected))) => return Ok(connected),
                Some(Ok(Err(code))) => failed = code,
                Some(Err(_)) => {}
            },
            () = sleep(DIAL_STAGGER), if waiting.len() > 0 => {}
        }
        running.extend(waiting.next().map(attempt));
    }
}

async fn attempt(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), Code> {
    let connected = timeout(DIAL_ADDRESS_MAX, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| Code::ConnectTimeout)?.map_err(|e| code_of(&e))?;
    passable(stream, address)
        .map(|fd| (fd, address))
        .map_err(|e| code_of(&e))
}

/// A socket that the endpoint cannot turn into another connection, whatever became of it meanwhile: only once `connect`
/// itself has said so the kernel holds it for connected for good.
fn passable(stream: TcpStream, address: SocketAddr) -> io::Result<OwnedFd> {
    stream.set_nodelay(true)?;
    let socket = OwnedFd::from(stream.into_std()?);
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside(networks: &[&str]) -> Outside {
        let networks = networks.iter().map(|n| n.parse().unwrap()).collect();
        Outside::new(networks, 443, 20_000..=20_009)
    }

    fn denies(outside: &Outside, address: &str) -> bool {
        outside.denies(address.parse().unwrap()).is_some()
    }

    #[test]
    fn networks_are_written_as_usual() {
        for (text, inside, beside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.128/25", "192.0.2.200", "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "203.0.113.9", "::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
        ] {
            let network: Network = text.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!network.contains(beside.parse().unwrap()), "{text} {beside}");
        }
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0/8",
            "a.test",
            "::/129",
            "10.0.0.0/-1",
        ] {
            assert!(bad.parse::<Network>().unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn only_the_internet_is_reached_in_whatever_spelling() {
        let outside = outside(&[]);
        for address in [
            "127.0.0.1:80",
            "0.0.0.0:80",
            "10.1.2.3:80",
            "172.31.0.1:80",
            "192.168.1.1:80",
            "100.64.0.1:80",
            "100.100.100.200:80",
            "168.63.129.16:80",
            "169.254.169.254:80",
            "192.0.0.192:80",
            "198.19.0.1:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[::]:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:10.0.0.1]:80",
            "[64:ff9b::a00:1]:80",
            "[fe80::1]:80",
            "[fd00:ec2::254]:80",
            "[fec0::1]:80",
            "[2002:a00:1::]:80",
            "[2001:0:a00:1::]:80",
            "[2001:db8::1]:80",
            "[ff02::1]:80",
        ] {
            assert!(denies(&outside, address), "{address}");
        }
        for address in [
            "93.184.215.14:80",
            "[2606:2800:21f:cb07::1]:443",
            "[::ffff:93.184.215.14]:80",
            "172.32.0.1:1",
        ] {
            assert!(!denies(&outside, address), "{address}");
        }
    }

    #[test]
    fn a_network_may_be_allowed_but_never_the_clouds_own_ports() {
        let outside = outside(&["127.0.0.0/8", "10.0.0.0/8"]);
        assert!(!denies(&outside, "127.0.0.1:80") && !denies(&outside, "10.0.0.1:443"));
        for address in [
            "127.0.0.1:443",
            "127.8.8.8:20000",
            "127.0.0.1:20009",
            "[::1]:80",
            "[::ffff:127.0.0.1]:443",
        ] {
            assert!(denies(&outside, address), "{address}");
        }
        assert!(!denies(&outside, "127.0.0.1:20010"));
    }

    #[test]
    fn what_is_connected_is_passed_and_what_is_refused_is_named() {
        crate::runtime::Runtime::epoll().unwrap().block_on(async {
            let outside = outside(&["127.0.0.0/8"]);
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let (socket, reached) = outside.dial("127.0.0.1", address.port()).await.unwrap();
            assert_eq!(reached, address);
            // A second time it would say 0 only if the first had not settled it.
            let again = rustix::net::connect(&socket, &address);
            assert_eq!(again, Err(rustix::io::Errno::ISCONN));
            drop((listener, socket));
            let (code, text) = outside.dial("127.0.0.1", address.port()).await.unwrap_err();
            assert_eq!(code, Code::Refused, "{text}");
            let (code, text) = outside.dial("::1", address.port()).await.unwrap_err();
            assert!(code == Code::Denied && text.contains("only the internet"), "{text}");
        });
    }
}
