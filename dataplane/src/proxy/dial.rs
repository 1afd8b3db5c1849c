//! From a name to a connected socket: look-up, rules of addresses, happy eyeballs (RFC 8305). An endpoint asks its broker
//! for all of that.

use std::cell::RefCell;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::LazyLock;
use std::task::Poll;
use std::time::Duration;

use super::lookups::Lookups;
use super::origin::Pool;
use super::resolve::{Resolver, forbidden};
use crate::limits::{DIAL_ALL_TIMES, DIAL_STAGGER, LOOKUP_STALE_AFTER, LOOKUP_TIME_MAX, ORIGIN_SWEEP};
use crate::mux::{Code, Opened, Side, Timings};
use crate::shard::pair::{Either, select};
use crate::shard::runtime::{self, Socket};
use crate::shard::signal::Signal;
use crate::shard::timers::{self, Alarm};
use crate::shard::transport::Transport;
use crate::shard::{Counted, Shard};

/// Why a site was not reached, with text for people.
pub type Unreached = (Code, String);

/// A connection to a site.
pub struct Site {
    pub socket: Transport,
    /// For the silence of whatever it carries.
    pub alarm: Alarm,
    _counted: Counted,
}

/// A fresh connection and what it took.
pub struct Dialled {
    pub site: Site,
    pub address: SocketAddr,
    pub dns: Duration,
    pub connect: Duration,
}

impl Dialled {
    pub fn opened(&self) -> Opened {
        let (family, address) = match self.address.ip() {
            IpAddr::V4(v4) => {
                let mut padded = [0; 16];
                padded[..4].copy_from_slice(&v4.octets());
                (4, padded)
            }
            IpAddr::V6(v6) => (6, v6.octets()),
        };
        Opened {
            family,
            address,
            port: self.address.port(),
            dns_us: micros(self.dns),
            connect_us: micros(self.connect),
        }
    }

    pub fn timings(&self) -> Timings {
        Timings {
            dns_us: micros(self.dns),
            connect_us: micros(self.connect),
            ..Timings::default()
        }
    }
}

/// Microseconds as frames carry them.
pub fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// What the streams of one shard share: the cache of names and the idle connections.
pub struct Sites {
    /// None at an endpoint, which looks nothing up.
    resolver: Option<RefCell<Resolver>>,
    pub pool: RefCell<Pool<Site>>,
    /// The pool is no longer empty.
    pub filled: Signal,
}

thread_local! {
    // A task of the shard owns it, so that its sockets end with the shard's runtime and not after it.
    static SITES: RefCell<Weak<Sites>> = const { RefCell::new(Weak::new()) };
}

/// The helper threads of the process.
static LOOKUPS: LazyLock<Lookups> = LazyLock::new(Lookups::default);

impl Sites {
    /// This shard's.
    pub fn here(shard: &Shard) -> io::Result<Rc<Self>> {
        if let Some(sites) = SITES.with_borrow(Weak::upgrade) {
            return Ok(sites);
        }
        let (resolver, bell) = match shard.side() {
            Side::Endpoint => (None, None),
            Side::Client => {
                let resolver = Resolver::new(LOOKUPS.clone())?;
                let bell = Socket::new(resolver.wake_fd().try_clone_to_owned()?)?;
                (Some(RefCell::new(resolver)), Some(bell))
            }
        };
        let sites = Rc::new(Self {
            resolver,
            pool: RefCell::default(),
            filled: Signal::new(),
        });
        SITES.set(Rc::downgrade(&sites));
        runtime::spawn(keep(sites.clone(), bell));
        Ok(sites)
    }

    /// Looks a name up, within the time limit. Addresses of before serve where that takes longer than usual.
    async fn addresses(resolver: &RefCell<Resolver>, host: &str) -> Result<Vec<IpAddr>, Unreached> {
        let mut found = poll_fn(|cx| resolver.borrow_mut().poll(runtime::now(), host, cx.waker()));
        let mut answer = timers::timeout(LOOKUP_STALE_AFTER, &mut found).await;
        if answer.is_none() {
            let old = resolver.borrow().old(runtime::now(), host).map(Ok);
            answer = match old {
                Some(old) => Some(old),
                None => timers::timeout(LOOKUP_TIME_MAX - LOOKUP_STALE_AFTER, found).await,
            };
        }
        match answer {
            Some(Ok(addresses)) => Ok(addresses.to_vec()),
            Some(Err(text)) => Err((Code::Dns, format!("{host}: {text}"))),
            None => Err((Code::Dns, format!("{host}: no answer within {LOOKUP_TIME_MAX:?}"))),
        }
    }

    /// Connects to the site, at an address that streams may reach.
    pub async fn dial(&self, shard: &Shard, host: &str, port: u16) -> Result<Dialled, Unreached> {
        let begun = runtime::now();
        let Some(resolver) = &self.resolver else {
            return self.dial_outside(shard, host, port).await;
        };
        let found = Self::addresses(resolver, host).await?;
        let looked_up = runtime::now();
        let allowed = allowed(shard, host, port, &found)?;
        let time = shard.times().dial;
        let attempt = |address| attempt(shard.clone(), address, time);
        let raced = match connect_any(&allowed, time, attempt).await {
            Err(Code::Limit) if !self.pool.borrow().is_empty() => {
                self.pool.borrow_mut().clear();
                connect_any(&allowed, time, attempt).await
            }
            raced => raced,
        };
        let (site, address) = raced.map_err(|code| (code, format!("{host}:{port}: {}", told(code))))?;
        Ok(Dialled {
            site,
            address,
            dns: looked_up.since(begun),
            connect: runtime::now().since(looked_up),
        })
    }

    async fn dial_outside(&self, shard: &Shard, host: &str, port: u16) -> Result<Dialled, Unreached> {
        let begun = runtime::now();
        let counted = shard.count_connection();
        if shard.over_fd_mark() {
            self.pool.borrow_mut().clear();
        }
        if shard.over_fd_mark() {
            return Err((Code::Limit, "as many connections are open as may be".to_owned()));
        }
        let (socket, address) = shard.dial_outside(host, port).await?;
        Ok(Dialled {
            site: Site {
                socket: socket.into(),
                alarm: Alarm::default(),
                _counted: counted,
            },
            address,
            dns: Duration::ZERO,
            connect: runtime::now().since(begun),
        })
    }
}

/// Takes the resolver's answers in and closes connections that have waited too long, as long as the shard lives.
async fn keep(sites: Rc<Sites>, bell: Option<Socket>) {
    loop {
        let kept = !sites.pool.borrow().is_empty();
        let stirred = async {
            // Not with each connection that comes back: that is once a request.
            if kept {
                runtime::sleep(ORIGIN_SWEEP).await;
            } else {
                sites.filled.wait().await;
            }
        };
        let rung = async {
            match &bell {
                Some(bell) => bell.readable().await,
                None => pending().await,
            }
        };
        if let Either::Left(Err(_)) = select(rung, stirred).await {
            return;
        }
        let now = runtime::now();
        if let Some(resolver) = &sites.resolver {
            resolver.borrow_mut().collect(now);
        }
        sites.pool.borrow_mut().sweep(now);
    }
}

/// The addresses that streams may reach; a name with none is denied.
fn allowed(shard: &Shard, host: &str, port: u16, found: &[IpAddr]) -> Result<Vec<SocketAddr>, Unreached> {
    let mut reason = "the name has no address";
    let mut allowed = Vec::new();
    for ip in found {
        let address = SocketAddr::new(*ip, port);
        if let Some(why) = forbidden(*ip) {
            reason = why;
        } else if shard.is_own_listener(address) {
            reason = "the tunnel client's own port is not served through the tunnel";
        } else {
            allowed.push(address);
        }
    }
    if allowed.is_empty() {
        return Err((Code::Denied, format!("{host}:{port}: {reason}")));
    }
    Ok(allowed)
}

/// A failed dial, for people.
pub fn told(code: Code) -> &'static str {
    match code {
        Code::Refused => "the connection was refused",
        Code::ConnectTimeout => "the site did not accept the connection in time",
        Code::Limit => "the tunnel host has no descriptors or ports left",
        _ => "the site cannot be reached",
    }
}

type Attempt<T> = Pin<Box<dyn Future<Output = Result<T, Code>>>>;

/// One connection to any of `addresses`; `attempt` makes one to a certain one.
async fn connect_any<T>(
    addresses: &[SocketAddr],
    time: Duration,
    attempt: impl Fn(SocketAddr) -> Attempt<T>,
) -> Result<T, Code> {
    let attempts = addresses.iter().map(|address| attempt(*address));
    let raced = timers::timeout(time * DIAL_ALL_TIMES, race(attempts)).await;
    raced.unwrap_or(Err(Code::ConnectTimeout))
}

/// Tries the addresses one after the other, each a little after the one before it or as soon as that has failed; the
/// first that is connected wins.
async fn race<T>(mut waiting: impl ExactSizeIterator<Item = Attempt<T>>) -> Result<T, Code> {
    let mut running: Vec<Attempt<T>> = waiting.next().into_iter().collect();
    let mut failed: Option<Code> = None;
    loop {
        let mut stagger = pin!(runtime::sleep(DIAL_STAGGER));
        let more = waiting.len() > 0;
        let won = poll_fn(|cx| {
            let mut at = 0;
            let mut lost = false;
            while let Some(one) = running.get_mut(at) {
                match one.as_mut().poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(Ok(won)) => return Poll::Ready(Some(won)),
                    Poll::Ready(Err(code)) => {
                        drop(running.remove(at));
                        failed = Some(failed.map_or(code, |f| clearer(f, code)));
                        lost = true;
                    }
                }
            }
            let next = lost || (more && stagger.as_mut().poll(cx).is_ready());
            if next || running.is_empty() {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await;
        if let Some(won) = won {
            return Ok(won);
        }
        match waiting.next() {
            Some(attempt) => running.push(attempt),
            None if running.is_empty() => return Err(failed.unwrap_or(Code::Unreachable)),
            None => {}
        }
    }
}

/// One address, which gets `time` and counts from the first moment.
fn attempt(shard: Shard, address: SocketAddr, time: Duration) -> Attempt<(Site, SocketAddr)> {
    Box::pin(async move {
        let counted = shard.count_connection();
        if shard.over_fd_mark() {
            return Err(Code::Limit);
        }
        let socket = connect(address, time).await?;
        let site = Site {
            socket: socket.into(),
            alarm: Alarm::default(),
            _counted: counted,
        };
        Ok((site, address))
    })
}

async fn connect(address: SocketAddr, time: Duration) -> Result<Socket, Code> {
    match timers::timeout(time, Socket::connect(address)).await {
        None => Err(Code::ConnectTimeout),
        Some(Err(e)) => Err(code_of(&e)),
        // A port of this host on which nobody listens can connect to itself.
        Some(Ok(socket)) if socket.local_address() == Some(address) => Err(Code::Refused),
        Some(Ok(socket)) => Ok(socket),
    }
}

/// Of two failures the one that tells more: an address was not tried, somebody answered, nobody did, there is no way.
fn clearer(a: Code, b: Code) -> Code {
    [Code::Limit, Code::Refused, Code::ConnectTimeout]
        .into_iter()
        .find(|c| [a, b].contains(c))
        .unwrap_or(a)
}

/// The name of a failed `connect`.
pub fn code_of(e: &io::Error) -> Code {
    match e.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => Code::Refused,
        Some(libc::ETIMEDOUT) => Code::ConnectTimeout,
        Some(libc::EMFILE | libc::ENFILE | libc::EADDRNOTAVAIL | libc::ENOBUFS | libc::ENOMEM) => Code::Limit,
        _ => Code::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;

    #[test]
    fn a_failed_connect_has_the_name_of_its_errno() {
        let code = |errno| code_of(&io::Error::from_raw_os_error(errno));
        assert_eq!(code(libc::ECONNREFUSED), Code::Refused);
        assert_eq!(code(libc::ETIMEDOUT), Code::ConnectTimeout);
        assert_eq!(code(libc::EHOSTUNREACH), Code::Unreachable);
        assert_eq!(code(libc::ENETUNREACH), Code::Unreachable);
        assert_eq!(code(libc::EMFILE), Code::Limit);
    }

    #[test]
    fn all_addresses_together_have_a_limit() {
        let stream = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        // A full backlog: the kernel drops what comes, as a firewall would.
        let (deaf, fill) = (stream(), [stream(), stream(), stream()]);
        deaf.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        deaf.listen(0).unwrap();
        let address = deaf.local_addr().unwrap().as_socket().unwrap();
        for socket in &fill {
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address.into());
        }
        let time = 4 * DIAL_STAGGER;
        let runtime = runtime::Runtime::new(runtime::Driver::Epoll).unwrap();
        runtime.run(async {
            // The last of the 16 would have its own time until 4.75 times as long.
            for (addresses, times) in [(1, 1), (16, DIAL_ALL_TIMES)] {
                let begun = Time::now();
                let raced = connect_any(&vec![address; addresses], time, |a| Box::pin(connect(a, time))).await;
                let took = Time::now().since(begun);
                assert_eq!(raced.err(), Some(Code::ConnectTimeout));
                assert!((time * times..time * (times + 1)).contains(&took), "{took:?}");
            }
        });
    }

    #[test]
    fn the_failure_that_tells_most_is_shown() {
        assert_eq!(clearer(Code::Unreachable, Code::Refused), Code::Refused);
        assert_eq!(clearer(Code::ConnectTimeout, Code::Refused), Code::Refused);
        assert_eq!(clearer(Code::Unreachable, Code::ConnectTimeout), Code::ConnectTimeout);
        assert_eq!(clearer(Code::Unreachable, Code::Unreachable), Code::Unreachable);
        assert_eq!(clearer(Code::Refused, Code::Limit), Code::Limit);
    }
}
