//! The role of an endpoint: carries browsers' connections into the multiplex. It never makes, accepts or dials a socket.

use std::cell::RefCell;
use std::hash::RandomState;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::channel::Receiver;

use crate::bump::{Bump, Leaves, Reports, TunnelCa};
use crate::cache::{Cache, Counts};
use crate::error::Error;
use crate::limits::{CACHE_BYTES, CLIENT_STREAMS_MAX, MEMBERS_MAX, connections_max, endpoint_pools};
use crate::mux::BudgetConfig;
use crate::settings::Settings;
use crate::shard::mailbox::{Attached, Command};
use crate::shard::threads::{Shards, Start, raise_fd_limit};
use crate::shard::{Outcome, Role, Services};
use crate::stats::{MemberCounters, MemberReport, Report};
use crate::time::Time;
use crate::tls::{Fingerprint, Identity, server_config};

pub use crate::shard::mailbox::{Event, Level};
pub use crate::shard::runtime::Driver;

/// What an endpoint's data plane is started with.
pub struct EndpointConfig {
    pub shards: usize,
    pub identity: Arc<Identity>,
    pub settings: Arc<Settings>,
    pub driver: Driver,
    /// Streams towards `sc`, of all shards together.
    pub max_streams: usize,
    /// What the process stays within: its buffers shrink to fit.
    pub memory_bytes: usize,
    /// The receiving end of one SOCK_SEQPACKET pair for each shard. A message is one byte (0 browser, 1 self-test of
    /// the broker) with SCM_RIGHTS of 1 … 16 connected sockets.
    pub browsers: Vec<OwnedFd>,
    /// Signs what browsers are shown; without one all TLS stays opaque.
    pub ca: Option<TunnelCa>,
    /// How long ago the last link was lost, if an earlier process served this tunnel and had links: requests then wait
    /// for one as in any outage.
    pub dark: Option<Duration>,
}

/// One `sc` process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// First 16 bytes of its key's fingerprint.
    pub id: [u8; 16],
    pub fingerprint: Fingerprint,
    /// Its number in the pool: link `n` lives on shard `(index + n) mod shards`.
    pub index: usize,
}

/// The running data plane of an endpoint.
pub struct Endpoint {
    shards: Shards,
    identity: Arc<Identity>,
    /// The first rules' version.
    version: u32,
    cache: Arc<Cache>,
    members: Mutex<Vec<Attendee>>,
}

/// A member with what its shards count.
struct Attendee {
    member: Member,
    counters: Vec<Arc<MemberCounters>>,
}

/// An endpoint whose threads and rings are made and that does nothing yet.
pub struct Prepared(Endpoint);

impl Prepared {
    /// As [`Endpoint::wake_fd`].
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.wake_fd()
    }

    /// Lets the shards run: they make no thread and no ring any more.
    pub fn run(self) -> Endpoint {
        self.0.shards.run();
        self.0
    }
}

/// Raises the limit of descriptors and makes the shards. Where they wait on io_uring, their rings are restricted.
///
/// # Errors
/// Not one socket for browsers each shard, too little memory, or what the kernel refused.
pub fn prepare(config: EndpointConfig) -> Result<Prepared, Error> {
    prepare_with(config, crate::shard::SERVICES)
}

/// As [`prepare`], with other services: for tests.
pub(crate) fn prepare_with(config: EndpointConfig, services: Services) -> Result<Prepared, Error> {
    one_each(config.shards, &config.browsers)?;
    let connections_max = connections_max(raise_fd_limit()?, config.shards);
    // Each stream may need a descriptor.
    let share = |streams: usize| (streams / config.shards).clamp(1, connections_max);
    let version = config.settings.version;
    let pools = endpoint_pools(config.memory_bytes, config.max_streams, config.shards).map_err(Error::memory)?;
    let cache = Cache::new(CACHE_BYTES, RandomState::new());
    let leaves = config.ca.map(Leaves::new).transpose()?;
    let bump = leaves.map(|leaves| {
        let reports = Reports::new();
        Arc::new(Bump { leaves, reports })
    });
    let start = Start {
        shards: config.shards,
        driver: config.driver,
        pinned: false,
        settings: config.settings,
        services,
        connections_max,
        budget: BudgetConfig {
            pool_bytes: pools.receive_bytes,
            tx_bytes: pools.send_bytes,
            streams_peer_max: share(CLIENT_STREAMS_MAX),
            streams_own_max: share(config.max_streams),
        },
        dark_since: config.dark.map(|dark| Time::now() - dark),
        cache: Some(cache.clone()),
        bump,
    };
    let role = || Role::Endpoint(RefCell::default());
    let shards = Shards::start(&start, config.browsers, role, |_| {})?;
    Ok(Prepared(Endpoint {
        shards,
        identity: config.identity,
        version,
        cache,
        members: Mutex::default(),
    }))
}

/// Checks that each shard has a socket for browsers.
fn one_each(shards: usize, browsers: &[OwnedFd]) -> Result<(), Error> {
    if shards > 0 && browsers.len() == shards {
        return Ok(());
    }
    let text = format!("{shards} shards and {} sockets for browsers", browsers.len());
    Err(Error::Limit(text))
}

impl Endpoint {
    /// Lets a member in: its links may come from now on. A member too many is said in the log.
    pub fn attach(&self, member: Member) {
        let pin = member.fingerprint;
        let tls = match server_config(&self.identity, Arc::new(move |shown: &Fingerprint| *shown == pin)) {
            Ok(tls) => tls,
            Err(e) => return self.shards.note(Event::Failed(e.to_string())),
        };
        let mut members = self.members();
        members.retain(|m| m.member.id != member.id);
        if members.len() >= MEMBERS_MAX {
            let text = format!("a pool has at most {MEMBERS_MAX} members: one was not let in");
            return self.shards.note(Event::Log {
                level: Level::Error,
                text,
            });
        }
        let counters: Vec<Arc<MemberCounters>> = (0..self.shards.count()).map(|_| Arc::default()).collect();
        let unparted = Arc::new(AtomicUsize::new(self.shards.count()));
        self.shards.tell_each(|shard| {
            Command::Attach(Attached {
                id: member.id,
                fingerprint: member.fingerprint,
                tls: tls.clone(),
                version: self.version,
                counters: counters[shard].clone(),
                parting: false,
                unparted: unparted.clone(),
            })
        });
        members.push(Attendee { member, counters });
    }

    /// Drains one member: it gets no new streams; [`Event::Parted`] follows.
    pub fn part(&self, id: [u8; 16]) {
        self.shards.tell_all(|| Command::Part(id));
    }

    /// Shows a member out: its streams end at once, and its links may not come any more.
    pub fn detach(&self, id: [u8; 16]) {
        self.members().retain(|m| m.member.id != id);
        self.shards.tell_all(|| Command::Detach(id));
    }

    /// Hands over a link's socket with the bytes that the front has read of it. Closes it if there is no such member.
    pub fn link(&self, member: [u8; 16], link: u16, fd: OwnedFd, first: Vec<u8>) {
        let index = {
            let members = self.members();
            members
                .iter()
                .map(|m| m.member)
                .find(|m| m.id == member)
                .map(|m| m.index)
        };
        let Some(index) = index else { return };
        let shard = (index + usize::from(link)) % self.shards.count();
        self.shards.tell(
            shard,
            Command::Link {
                member,
                link,
                fd,
                first,
            },
        );
    }

    /// Answers [`Event::Dial`]. A shard that does not wait any more closes the socket.
    pub fn dialled(&self, shard: usize, id: u64, outcome: Outcome) {
        if shard < self.shards.count() {
            self.shards.tell(shard, Command::Dialled { id, outcome });
        }
    }

    /// Takes browsers from these sockets from now on, one for each shard. What waits in the ones before is still served.
    ///
    /// # Errors
    /// Not one socket for each shard: all stays as it is.
    pub fn receive_from(&self, browsers: Vec<OwnedFd>) -> Result<(), Error> {
        one_each(self.shards.count(), &browsers)?;
        for (shard, socket) in browsers.into_iter().enumerate() {
            self.shards.tell(shard, Command::Browsers(socket));
        }
        Ok(())
    }

    fn members(&self) -> std::sync::MutexGuard<'_, Vec<Attendee>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches to these rules and answers those members who sent them, each under its own version.
    pub fn switch(&self, settings: &Arc<Settings>, versions: &Arc<[([u8; 16], u32)]>) {
        self.shards
            .tell_all(|| Command::Rules(settings.clone(), versions.clone()));
    }

    /// Does not take rules that a member sent, and says why.
    pub fn refuse(&self, member: [u8; 16], version: u32, text: &str) {
        self.shards.tell_all(|| Command::Refuse {
            member,
            version,
            text: text.to_owned(),
        });
    }

    /// What happened. Empty it each time that [`Endpoint::wake_fd`] was readable.
    pub fn events(&self) -> &Receiver<Event> {
        self.shards.events()
    }

    /// An eventfd, readable when events wait: read 8 bytes from it, then take all events.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.shards.wake_fd()
    }

    /// What the shards have counted so far.
    pub fn report(&self) -> Report {
        self.shards.report()
    }

    /// What the shards have counted of each member so far.
    pub fn members_report(&self) -> Vec<MemberReport> {
        let members = self.members();
        members
            .iter()
            .map(|m| MemberReport::of(m.member.id, &m.counters))
            .collect()
    }

    /// What the cache has counted so far.
    pub fn cache_counts(&self) -> Counts {
        self.cache.counts()
    }

    /// Takes no new requests and serves those that are open; [`Event::Drained`] follows.
    pub fn drain(&self) {
        self.shards.tell_all(|| Command::Drain);
    }

    /// Cuts what is left and waits for the threads.
    pub fn stop(self) {
        self.shards.stop();
    }

    /// The driver in use: never `Auto`.
    pub fn driver(&self) -> Driver {
        self.shards.driver()
    }
}
