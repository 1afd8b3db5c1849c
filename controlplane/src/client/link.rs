//! The data plane's client as `sc` sees it: started once a tunnel, told where the endpoint is, asked how it goes.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use dataplane::bump::Trust;
use dataplane::client::{self, Client, ClientConfig, Driver, Event, Level};
use dataplane::http::Authority;
use dataplane::limits::LOOKUP_MAX;
use dataplane::rules::{Route, Rules};
use dataplane::settings::Settings;
use dataplane::tls::Identity;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout};

use super::Failure;
use super::provision::Endpoint;
use crate::api;
use crate::config::Config;
use crate::runtime;

/// All links of one tunnel.
pub struct Links {
    client: Client,
    wake: AsyncFd<OwnedFd>,
    endpoint: Endpoint,
    addresses: Vec<SocketAddr>,
    /// Which of `addresses` is dialled.
    chosen: usize,
    last_down: Option<String>,
    /// When a link was last lost.
    lost: Option<Instant>,
    /// Dials in a row that met another key than the one that REST named, or whose own key was refused.
    wrong_keys: u32,
    /// A dial failed since the address was chosen.
    dial_failed: bool,
    drained: bool,
    failed: Option<String>,
}

impl Links {
    /// Looks up the endpoint and starts dialling it.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] if its name has no address, [`Failure::Local`] if the
    /// shards cannot be had.
    pub async fn start(
        config: &Config,
        trust: Trust,
        identity: Arc<Identity>,
        endpoint: Endpoint,
        rules: Vec<u8>,
    ) -> Result<Self, Failure> {
        let addresses = look_up(&endpoint.address).await?;
        let links = endpoint.links(config);
        tracing::info!(
            "dialling {} ({}), links: {links}, shards: {}",
            endpoint.address,
            addresses[0],
            config.shards
        );
        let local = |e: &dyn std::fmt::Display| Failure::Local(format!("cannot start: {e}"));
        let compiled = api::rules(&rules).map_err(|e| local(&e))?;
        for site in config.auth.sites.iter().filter(|site| is_direct(&compiled, site)) {
            tracing::warn!("{site}: no credentials of --auth are added: it goes past the tunnel (-D, -t)");
        }
        let client = client::start(ClientConfig {
            shards: config.shards,
            links,
            cloud: addresses[0],
            server_name: endpoint.server_name.clone(),
            fingerprint: endpoint.fingerprint,
            identity,
            settings: Arc::new(Settings {
                version: 1,
                rules: Arc::new(compiled),
                json: rules.into(),
                times: config.times,
            }),
            driver: config.driver,
            denied: Vec::new(),
            max_streams: config.max_streams,
            memory_bytes: config.memory_bytes,
            trust,
            credentials: config.auth.credentials.clone(),
        })
        .map_err(|e| local(&e))?;
        match (config.driver, client.driver()) {
            (Driver::Auto, Driver::Epoll) => {
                tracing::warn!("the kernel refuses io_uring: traffic runs on epoll, with every feature");
            }
            (_, driver) => tracing::info!("driver: {driver:?}"),
        }
        let wake = client
            .wake_fd()
            .try_clone_to_owned()
            .and_then(|fd| runtime::watch(fd, Interest::READABLE))
            .map_err(|e| local(&e))?;
        Ok(Self {
            client,
            wake,
            endpoint,
            addresses,
            chosen: 0,
            last_down: None,
            lost: None,
            wrong_keys: 0,
            dial_failed: false,
            drained: false,
            failed: None,
        })
    }

    /// Waits until the data plane has something to say, and takes it all in.
    pub async fn changed(&mut self) {
        match self.wake.readable().await {
            Ok(mut guard) => {
                // An event counter: one read empties it. It is non-blocking, so a false alarm reads nothing.
                let _ = rustix::io::read(self.wake.get_ref(), &mut [0u8; 8]);
                guard.clear_ready();
            }
            Err(e) => {
                tracing::error!("no news from the data plane: {e}");
                std::future::pending::<()>().await;
            }
        }
        while let Ok(event) = self.client.events().try_recv() {
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::LinkUp { link, .. } => {
                tracing::info!("link {link} is up");
                self.wrong_keys = 0;
            }
            Event::LinkDown { link, reason, .. } => {
                tracing::warn!("link {link} is down: {reason}");
                self.lost = Some(Instant::now());
                self.last_down = Some(reason);
            }
            Event::DialFailed { link, wrong_key, text } => {
                tracing::warn!("link {link} cannot be dialled: {text}");
                self.wrong_keys = if wrong_key {
                    self.wrong_keys.saturating_add(1)
                } else {
                    0
                };
                self.dial_failed = true;
                self.last_down = Some(text);
            }
            Event::Log { level, text } => match level {
                Level::Error => tracing::error!("{text}"),
                Level::Warn => tracing::warn!("{text}"),
                Level::Info => tracing::info!("{text}"),
                Level::Debug => tracing::debug!("{text}"),
            },
            Event::SettingsAck {
                version,
                accepted,
                text,
            } => tracing::info!("rules {version}: accepted: {accepted} {text}"),
            Event::Drained => self.drained = true,
            Event::Failed(text) => self.failed = Some(text),
            // Events of the other role.
            Event::Settings { .. } | Event::Parted { .. } | Event::Dial { .. } => {}
        }
    }

    /// Links that carry streams.
    pub fn up(&self) -> u16 {
        self.client.report().links_up
    }

    /// Open streams.
    pub fn streams(&self) -> u64 {
        self.client.report().streams_open
    }

    /// Why the last link went down.
    pub fn last_down(&self) -> Option<&str> {
        self.last_down.as_deref()
    }

    /// When a link was last lost.
    pub fn lost(&self) -> Option<Instant> {
        self.lost
    }

    /// Dials in a row that show that the endpoint's key is another one than REST says.
    pub fn wrong_keys(&self) -> u32 {
        self.wrong_keys
    }

    /// Why the data plane cannot go on.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Where it dials, for messages.
    pub fn address(&self) -> String {
        format!("{} ({})", self.endpoint.address, self.addresses[self.chosen])
    }

    /// How many addresses the endpoint's name has.
    pub fn addresses(&self) -> u32 {
        u32::try_from(self.addresses.len()).unwrap_or(u32::MAX)
    }

    /// A poll's view of the endpoint: a relaunched one has another key, a moved one another address. When a dial
    /// failed and no link is up, the next address of its name is tried.
    pub async fn follow(&mut self, endpoint: Endpoint) {
        let relaunched = endpoint.fingerprint != self.endpoint.fingerprint;
        let moved = endpoint.address != self.endpoint.address;
        let next = !moved && self.dial_failed && self.up() == 0 && self.addresses.len() > 1;
        if moved {
            match look_up(&endpoint.address).await {
                Ok(addresses) => (self.addresses, self.chosen) = (addresses, 0),
                Err(e) => return tracing::warn!("{e}"),
            }
        } else if next {
            self.chosen = (self.chosen + 1) % self.addresses.len();
        }
        self.endpoint = endpoint;
        if moved || relaunched || next {
            tracing::info!("the endpoint is now {}", self.address());
            self.dial_failed = false;
            self.client
                .set_cloud(self.addresses[self.chosen], self.endpoint.fingerprint);
        }
    }

    /// From now on connections on which nothing moves any more are ended: they would keep us for as long as browsers keep
    /// them.
    pub fn dismiss(&self) {
        self.client.dismiss();
    }

    /// Asks the other end to open nothing more, and waits until all streams have ended.
    pub async fn drain(&mut self) {
        self.client.drain();
        while !self.drained && self.streams() > 0 {
            // Streams end without an event; the counters are looked at from time to time.
            let _ = timeout(Duration::from_millis(100), self.changed()).await;
        }
    }

    /// Ends all links now.
    pub fn stop(self) {
        let Self { client, wake, .. } = self;
        drop(wake);
        client.stop();
    }
}

fn is_direct(rules: &Rules, site: &str) -> bool {
    Authority::parse(site.as_bytes()).is_ok_and(|site| rules.routes.of(site.host) == Route::Direct)
}

/// At least one address, in the resolver's order.
async fn look_up(address: &str) -> Result<Vec<SocketAddr>, Failure> {
    let fail = |why: &dyn std::fmt::Display| {
        Failure::Unreachable(format!("cannot find the tunnel's address {address:?}: {why}"))
    };
    let found = timeout(LOOKUP_MAX, tokio::net::lookup_host(address))
        .await
        .map_err(|_| fail(&"the name look-up takes too long"))?
        .map_err(|e| fail(&e))?;
    let addresses: Vec<SocketAddr> = found.collect();
    if addresses.is_empty() {
        return Err(fail(&"the name has no address"));
    }
    Ok(addresses)
}
