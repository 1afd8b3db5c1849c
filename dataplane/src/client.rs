//! The role of `sc`: dials links, serves the streams that the endpoint opens.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crossbeam::channel::Receiver;

use crate::bump::{Judge, Trust};
use crate::credentials::Credentials;
use crate::error::Error;
use crate::limits::{CLIENT_STREAMS_MAX, FDS_LOOKUPS, LINKS_MAX, client_pools, connections_max};
use crate::mux::BudgetConfig;
use crate::settings::Settings;
use crate::shard::mailbox::Command;
use crate::shard::threads::{Shards, Start, raise_fd_limit};
use crate::shard::{self, Dialling, Role, Services};
use crate::stats::Report;
use crate::tls::{Fingerprint, Identity, client_config};

pub use crate::shard::mailbox::{Event, Level};
pub use crate::shard::runtime::Driver;

/// What `sc`'s data plane is started with.
pub struct ClientConfig {
    pub shards: usize,
    /// Links to dial; link `n` lives on shard `n mod shards`.
    pub links: u16,
    pub cloud: SocketAddr,
    /// `<tunnel id>.tunnel.culvert`; the SNI of link `n` is `n.<server_name>`.
    pub server_name: String,
    /// Of the endpoint's key.
    pub fingerprint: Fingerprint,
    pub identity: Arc<Identity>,
    pub settings: Arc<Settings>,
    pub driver: Driver,
    /// `sc`'s own listening sockets, denied to streams.
    pub denied: Vec<SocketAddr>,
    /// Streams that the endpoint may have open.
    pub max_streams: usize,
    /// What the process stays within: its buffers shrink to fit.
    pub memory_bytes: usize,
    /// What sites are judged by.
    pub trust: Trust,
    /// What sites are shown that want a password.
    pub credentials: Arc<Credentials>,
}

/// The running data plane of `sc`.
pub struct Client {
    shards: Shards,
    identity: Arc<Identity>,
}

/// Raises the limit of descriptors, starts the shards, and dials.
///
/// # Errors
/// A bad number of shards or links, too little memory for them, or what the kernel refused.
pub fn start(config: ClientConfig) -> Result<Client, Error> {
    start_with(config, crate::shard::SERVICES)
}

/// As [`start`], with other services: for tests.
pub(crate) fn start_with(config: ClientConfig, services: Services) -> Result<Client, Error> {
    if config.shards == 0 || config.links == 0 || config.links > LINKS_MAX {
        return Err(Error::Limit(format!(
            "{} shards and {} links",
            config.shards, config.links
        )));
    }
    let connections_max = connections_max(raise_fd_limit()?.saturating_sub(FDS_LOOKUPS), config.shards);
    // Each stream may need a descriptor.
    let share = |streams: usize| (streams / config.shards).clamp(1, connections_max);
    let pools = client_pools(
        config.memory_bytes,
        config.max_streams,
        config.shards,
        config.links.into(),
    )
    .map_err(Error::memory)?;
    let start = Start {
        shards: config.shards,
        driver: config.driver,
        pinned: true,
        settings: config.settings,
        services,
        connections_max,
        budget: BudgetConfig {
            pool_bytes: pools.receive_bytes,
            tx_bytes: pools.send_bytes,
            streams_peer_max: share(config.max_streams),
            streams_own_max: share(CLIENT_STREAMS_MAX),
        },
        dark_since: None,
        cache: None,
        bump: None,
    };
    let tls = client_config(&config.identity, config.fingerprint)?;
    let member = config.identity.member();
    let (cloud, server_name, denied) = (config.cloud, config.server_name, config.denied);
    let (judge, credentials) = (Arc::new(Judge::new(config.trust)), config.credentials);
    let role = move || {
        Role::Client(Dialling {
            judge: judge.clone(),
            credentials: credentials.clone(),
            cloud: RefCell::new((cloud, tls.clone())),
            server_name: server_name.clone(),
            own_listeners: denied.clone(),
        })
    };
    let (shards, links) = (config.shards, config.links);
    let begin = move |shard: &shard::Shard| shard.dial_links(member, links, shards);
    let shards = Shards::start(&start, Vec::new(), role, begin)?;
    shards.run();
    Ok(Client {
        shards,
        identity: config.identity,
    })
}

impl Client {
    /// Where and whom to dial from now on: the endpoint was started anew, or moved. Links that are up stay up.
    pub fn set_cloud(&self, cloud: SocketAddr, fingerprint: Fingerprint) {
        match client_config(&self.identity, fingerprint) {
            Ok(tls) => self.shards.tell_all(|| Command::Cloud(cloud, tls.clone())),
            Err(e) => self.shards.note(Event::Failed(e.to_string())),
        }
    }

    /// Switches to new rules and sends them to the endpoint, which answers with [`Event::SettingsAck`].
    pub fn reload(&self, settings: Arc<Settings>) {
        self.shards.tell_all(|| Command::Settings(settings.clone()));
    }

    /// What happened. Empty it each time that [`Client::wake_fd`] was readable.
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

    /// Connections on which nothing moves any more are ended from now on: [`Client::drain`] is to follow.
    pub fn dismiss(&self) {
        self.shards.tell_all(|| Command::Dismiss);
    }

    /// Takes no new streams and serves those that are open; [`Event::Drained`] follows.
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
