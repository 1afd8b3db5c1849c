//! Live tunnels: their states, how identifiers collide, and when one counts as lost. No I/O; time is an argument.
//!
//! ```text
//!  new ──► booting ──► running ──► halting ──► terminated (history)
//!   │         │           │  ▲ a relaunched endpoint keeps `running`
//!   └─────────┴───────────┴──► halting: DELETE, replaced, lost, endpoint, cloud
//! ```

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::ledger::{KeptEndpoint, KeptTunnel};
use super::limits::{COMMANDS_WAITING_MAX, LINKS_MAX, TUNNELS_PER_ACCOUNT_MAX};
use super::tunnel_ca::Certificate;
use crate::api::{self, Counts, EndpointInfo, Tunnel, TunnelRequest, difference};

/// Of a request that names none.
const PROTOCOL: &str = "kgp";

/// Where a tunnel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    New,
    Booting,
    Running,
    Halting,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Halting => "halting",
        }
    }
}

/// To the task that owns an endpoint; `tunnel` is the id of one that it serves.
pub enum Command {
    /// One more tunnel of the same pool.
    Join(Member),
    /// A link's connection and what was read of it.
    Link {
        tunnel: String,
        link: u16,
        socket: OwnedFd,
        first: Vec<u8>,
    },
    /// End the tunnel, and the endpoint with the last one; its streams may go on for `limit`.
    Drain { tunnel: String, limit: Duration },
    /// What the endpoint counts for it.
    Counts {
        tunnel: String,
        answer: oneshot::Sender<Counts>,
    },
}

/// A tunnel as its endpoint is told of it.
pub struct Member {
    pub tunnel: String,
    /// Its pinned key; without it no link can be accepted.
    pub fingerprint: Option<String>,
    /// Its number in the pool.
    pub index: usize,
}

/// An endpoint that a tunnel can join.
#[derive(Debug, PartialEq, Eq)]
pub struct Pool {
    pub endpoint: String,
    pub proxy: SocketAddr,
    pub shards: usize,
    pub ca: Option<Certificate>,
}

/// What is new about a tunnel that is to be made.
pub struct Order {
    pub id: String,
    pub owner: String,
    pub request: TunnelRequest,
    /// `host:port` that its links dial.
    pub address: String,
    /// Name of its endpoint: the id of the tunnel for which that was started.
    pub endpoint: String,
    /// Where browsers find it.
    pub proxy: SocketAddr,
    /// Shards of its endpoint.
    pub shards: usize,
    /// The CA of its endpoint.
    pub ca: Option<Certificate>,
    /// Unix seconds.
    pub created: u64,
}

struct Entry {
    order: Order,
    state: State,
    index: usize,
    launched: Option<u64>,
    last_connected: Option<u64>,
    shutdown: Option<u64>,
    reason: Option<String>,
    user_shutdown: bool,
    /// When its streams are cut, in unix seconds; the earliest that was named.
    cut_at: Option<u64>,
    ready: bool,
    /// The running endpoint's; the last one's while it is relaunched.
    fingerprint: Option<String>,
    links: BTreeSet<u16>,
    /// The last sign of life from its member.
    alive: Instant,
    commands: mpsc::Sender<Command>,
}

/// All live tunnels of this host.
#[derive(Default)]
pub struct Registry {
    tunnels: HashMap<String, Entry>,
}

/// A tunnel that was made.
#[derive(Debug)]
pub struct Created {
    /// For the task of its endpoint, which is to be started; none if it joins one.
    pub commands: Option<mpsc::Receiver<Command>>,
    /// Its number in the pool.
    pub index: usize,
    /// Ids of tunnels that must make room for it.
    pub collisions: Vec<String>,
}

impl Registry {
    /// Adds a tunnel.
    ///
    /// # Errors
    /// The account has too many; the text is for the caller.
    pub fn create(&mut self, order: Order, now: Instant) -> Result<Created, String> {
        let collisions = self.collisions(&order);
        let live = self.of(&order.owner).count() - collisions.len() + 1;
        if live > TUNNELS_PER_ACCOUNT_MAX {
            return Err(format!(
                "Too many active org tunnels: {live} >= {TUNNELS_PER_ACCOUNT_MAX}"
            ));
        }
        let pool: Vec<_> = self.at(&order.endpoint).collect();
        let index = (0..).find(|n| pool.iter().all(|e| e.index != *n)).unwrap_or_default();
        let (commands, receiver) = match pool.first() {
            Some(member) => (member.commands.clone(), None),
            None => {
                let (commands, receiver) = mpsc::channel(COMMANDS_WAITING_MAX);
                (commands, Some(receiver))
            }
        };
        let entry = Entry {
            index,
            state: State::New,
            launched: None,
            last_connected: None,
            shutdown: None,
            reason: None,
            user_shutdown: false,
            cut_at: None,
            ready: false,
            fingerprint: None,
            links: BTreeSet::new(),
            alive: now,
            commands,
            order,
        };
        self.tunnels.insert(entry.order.id.clone(), entry);
        Ok(Created {
            commands: receiver,
            index,
            collisions,
        })
    }

    /// Adds the tunnels of an endpoint that an earlier process of this program has left. They have all the time that a
    /// tunnel has without a sign of life.
    pub fn restore(
        &mut self,
        endpoint: &KeptEndpoint,
        tunnels: &[KeptTunnel],
        now: Instant,
    ) -> mpsc::Receiver<Command> {
        let (commands, receiver) = mpsc::channel(COMMANDS_WAITING_MAX);
        for kept in tunnels.iter().cloned() {
            let entry = Entry {
                order: Order {
                    id: kept.id.clone(),
                    owner: kept.owner,
                    request: kept.request,
                    address: kept.address,
                    endpoint: kept.endpoint,
                    proxy: endpoint.proxy,
                    shards: endpoint.shards,
                    ca: endpoint.ca.as_ref().map(|ca| ca.certificate.clone()),
                    created: kept.created,
                },
                state: kept.state,
                index: kept.index,
                launched: kept.launched,
                last_connected: kept.last_connected,
                shutdown: kept.shutdown,
                reason: kept.reason,
                user_shutdown: kept.user_shutdown,
                cut_at: kept.cut_at,
                ready: false,
                fingerprint: endpoint.fingerprint.clone(),
                links: BTreeSet::new(),
                alive: now,
                commands: commands.clone(),
            };
            self.tunnels.insert(kept.id, entry);
        }
        receiver
    }

    /// A tunnel as the store keeps it.
    pub fn kept(&self, id: &str) -> Option<KeptTunnel> {
        let e = self.tunnels.get(id)?;
        Some(KeptTunnel {
            id: e.order.id.clone(),
            endpoint: e.order.endpoint.clone(),
            owner: e.order.owner.clone(),
            request: e.order.request.clone(),
            address: e.order.address.clone(),
            index: e.index,
            state: e.state,
            created: e.order.created,
            launched: e.launched,
            last_connected: e.last_connected,
            shutdown: e.shutdown,
            reason: e.reason.clone(),
            user_shutdown: e.user_shutdown,
            cut_at: e.cut_at,
        })
    }

    /// The pool that a tunnel of `owner` belongs to, if there is one yet.
    ///
    /// # Errors
    /// What keeps the tunnel out of it; the text is for the caller.
    pub fn pool(&self, owner: &str, request: &TunnelRequest) -> Result<Option<Pool>, String> {
        let pooled = |r: &TunnelRequest| r.tunnel_pool == Some(true);
        let mut members = self
            .of(owner)
            .filter(|e| pooled(request) && pooled(&e.order.request) && e.state != State::Halting)
            .filter(|e| e.order.request.identifier() == request.identifier());
        let Some(first) = members.next() else {
            return Ok(None);
        };
        let (own, pool) = (request.settings_json(), first.order.request.settings_json());
        if crate::secret::sha256(&own) != crate::secret::sha256(&pool) {
            let what = difference(&own, &pool).unwrap_or_default();
            return Err(format!("The rules differ from those of the pool: {what}"));
        }
        let key = |r: &TunnelRequest| r.culvert.as_ref().and_then(|c| c.fingerprint.clone());
        let endpoint = first.order.endpoint.clone();
        if key(request).is_some() && self.at(&endpoint).any(|e| key(&e.order.request) == key(request)) {
            return Err("culvert.fingerprint: another tunnel of the pool has this key".into());
        }
        Ok(Some(Pool {
            endpoint,
            proxy: first.order.proxy,
            shards: first.order.shards,
            ca: first.order.ca.clone(),
        }))
    }

    /// The tunnels of an endpoint.
    fn at<'a>(&'a self, endpoint: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.tunnels.values().filter(move |e| e.order.endpoint == endpoint)
    }

    /// Ids of the tunnels of an endpoint.
    pub fn tunnels_of(&self, endpoint: &str) -> Vec<String> {
        self.at(endpoint).map(|e| e.order.id.clone()).collect()
    }

    /// Whether all tunnels of an endpoint are on their way out.
    pub fn is_ending(&self, endpoint: &str) -> bool {
        self.at(endpoint).all(|e| e.state == State::Halting)
    }

    /// Whether any tunnel of an endpoint has a link.
    pub fn has_links(&self, endpoint: &str) -> bool {
        self.at(endpoint).any(|e| !e.links.is_empty())
    }

    /// All members of an endpoint have agreed on new rules.
    ///
    /// # Errors
    /// What is wrong with them; nothing is changed then.
    pub fn take_rules(&mut self, endpoint: &str, json: &[u8]) -> Result<(), String> {
        api::rules(json)?;
        let entries = self.tunnels.values_mut();
        for e in entries.filter(|e| e.order.endpoint == endpoint) {
            e.order.request.take_rules(json)?;
        }
        Ok(())
    }

    /// Same owner and same identifier, or both without; pools live side by side.
    fn collisions(&self, order: &Order) -> Vec<String> {
        if order.request.tunnel_pool == Some(true) {
            return Vec::new();
        }
        self.of(&order.owner)
            .filter(|e| e.state != State::Halting)
            .filter(|e| e.order.request.identifier() == order.request.identifier())
            .map(|e| e.order.id.clone())
            .collect()
    }

    fn of<'a>(&'a self, owner: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.tunnels.values().filter(move |e| e.order.owner == owner)
    }

    /// Its process has been started.
    pub fn booting(&mut self, id: &str) {
        if let Some(e) = self.tunnels.get_mut(id).filter(|e| e.state == State::New) {
            e.state = State::Booting;
        }
    }

    /// Its endpoint answers, under this key. `now` begins the time in which a member must come.
    pub fn running(&mut self, id: &str, fingerprint: &str, now: Instant, unix: u64) {
        let Some(e) = self.tunnels.get_mut(id) else {
            return;
        };
        e.fingerprint = Some(fingerprint.to_owned());
        e.alive = now;
        if matches!(e.state, State::New | State::Booting) {
            e.state = State::Running;
            e.launched = Some(unix);
        }
    }

    /// Its endpoint has died; the tunnel stays as it is and waits for the next one.
    pub fn endpoint_lost(&mut self, id: &str, now: Instant) {
        if let Some(e) = self.tunnels.get_mut(id) {
            e.ready = false;
            if !e.links.is_empty() {
                e.alive = now;
            }
            e.links.clear();
        }
    }

    /// A link has come up. True if it is the only one.
    pub fn link_up(&mut self, id: &str, link: u16, unix: u64) -> bool {
        let Some(e) = self.tunnels.get_mut(id).filter(|_| link < LINKS_MAX) else {
            return false;
        };
        let first = e.links.is_empty();
        e.links.insert(link);
        e.last_connected = Some(unix);
        first
    }

    /// A link is down.
    pub fn link_down(&mut self, id: &str, link: u16, now: Instant, unix: u64) {
        if let Some(e) = self.tunnels.get_mut(id)
            && e.links.remove(&link)
        {
            e.alive = now;
            e.last_connected = Some(unix);
        }
    }

    /// A request has gone through the whole path and back.
    pub fn ready(&mut self, id: &str) {
        if let Some(e) = self.tunnels.get_mut(id) {
            e.ready = e.state == State::Running;
        }
    }

    /// Whether the self-test has still to be made: running with a link, but not ready.
    pub fn awaits_probe(&self, id: &str) -> bool {
        self.tunnels
            .get(id)
            .is_some_and(|e| e.state == State::Running && !e.ready && !e.links.is_empty())
    }

    /// A heartbeat of the member. `None`: unknown tunnel; false: it is on its way out.
    pub fn heartbeat(&mut self, id: &str, owner: &str, now: Instant) -> Option<bool> {
        let e = self.tunnels.get_mut(id).filter(|e| e.order.owner == owner)?;
        e.alive = now;
        Some(e.state != State::Halting)
    }

    /// Takes the tunnel out of service; its streams may go on for `limit`. The first reason and the shortest limit stay;
    /// false if it was on its way out already, or there is none.
    pub fn halt(&mut self, id: &str, reason: &str, by_user: bool, unix: u64, limit: Duration) -> bool {
        let Some(e) = self.tunnels.get_mut(id) else {
            return false;
        };
        let cut_at = unix.saturating_add(limit.as_secs());
        e.cut_at = Some(e.cut_at.map_or(cut_at, |at| at.min(cut_at)));
        if e.state == State::Halting {
            return false;
        }
        e.state = State::Halting;
        e.ready = false;
        e.shutdown = Some(unix);
        e.reason = Some(reason.to_owned());
        e.user_shutdown = by_user;
        true
    }

    /// Removes a tunnel whose end history knows.
    pub fn remove(&mut self, id: &str) {
        self.tunnels.remove(id);
    }

    /// The tunnel as history keeps it once its endpoint has ended.
    pub fn ended(&self, id: &str, unix: u64) -> Option<Tunnel> {
        let mut object = self.object(id)?;
        object.status = Some("terminated".into());
        object.is_ready = Some(false);
        object.shutdown_time = Some(unix);
        object.culvert = None;
        Some(object)
    }

    /// Ids of tunnels without a sign of life for `time`.
    pub fn lost(&self, now: Instant, time: Duration) -> Vec<String> {
        let silent = |e: &&Entry| now.saturating_duration_since(e.alive) >= time;
        self.tunnels
            .values()
            .filter(|e| e.state != State::Halting && e.links.is_empty())
            .filter(silent)
            .map(|e| e.order.id.clone())
            .collect()
    }

    /// Ids of all tunnels.
    pub fn ids(&self) -> Vec<String> {
        self.tunnels.keys().cloned().collect()
    }

    /// The way to the task of a tunnel.
    pub fn commands(&self, id: &str) -> Option<mpsc::Sender<Command>> {
        self.tunnels.get(id).map(|e| e.commands.clone())
    }

    /// Whether `owner` has this tunnel.
    pub fn owns(&self, owner: &str, id: &str) -> bool {
        self.tunnels.get(id).is_some_and(|e| e.order.owner == owner)
    }

    /// The CA of a tunnel.
    pub fn ca(&self, id: &str) -> Option<Certificate> {
        self.tunnels.get(id)?.order.ca.clone()
    }

    /// The state of a tunnel.
    pub fn state(&self, id: &str) -> Option<State> {
        self.tunnels.get(id).map(|e| e.state)
    }

    /// The tunnels of `owner` as REST shows them, oldest first: of all protocols if none is named.
    pub fn objects(&self, owner: &str, protocols: &[&str]) -> Vec<Tunnel> {
        let protocol = |e: &Entry| e.order.request.protocol.clone().unwrap_or_else(|| PROTOCOL.into());
        let wanted = |e: &&Entry| protocols.is_empty() || protocols.contains(&protocol(e).as_str());
        let mut objects: Vec<_> = self.of(owner).filter(wanted).map(show).collect();
        objects.sort_by(|a, b| (a.creation_time, &a.id).cmp(&(b.creation_time, &b.id)));
        objects
    }

    /// A tunnel as REST shows it.
    pub fn object(&self, id: &str) -> Option<Tunnel> {
        self.tunnels.get(id).map(show)
    }
}

fn show(e: &Entry) -> Tunnel {
    let request = e.order.request.clone();
    let list = |list: Option<Vec<String>>| Some(list.unwrap_or_default());
    let running = matches!(e.state, State::Running | State::Halting);
    let host = e.order.address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let caches = request.allows_caching();
    Tunnel {
        id: Some(e.order.id.clone()),
        owner: Some(e.order.owner.clone()),
        host: host.filter(|_| running),
        ip_address: None,
        status: Some(e.state.name().into()),
        tunnel_identifier: request.identifier().map(str::to_owned),
        creation_time: Some(e.order.created),
        launch_time: e.launched,
        last_connected: e.last_connected,
        shutdown_time: e.shutdown,
        shutdown_reason: e.reason.clone(),
        user_shutdown: Some(e.user_shutdown),
        is_ready: Some(e.ready && !e.links.is_empty()),
        shared_tunnel: Some(request.shared_tunnel.unwrap_or(false)),
        shared: request.shared,
        tunnel_pool: Some(request.tunnel_pool.unwrap_or(false)),
        domain_names: list(request.domain_names),
        direct_domains: list(request.direct_domains),
        fast_fail_regexps: list(request.fast_fail_regexps),
        no_ssl_bump_domains: list(request.no_ssl_bump_domains),
        no_proxy_caching: Some(!caches),
        use_caching_proxy: Some(caches),
        use_kgp: Some(request.use_kgp.unwrap_or(true)),
        ssh_port: Some(request.ssh_port.unwrap_or(443)),
        vm_version: request.vm_version,
        extra_info: request.extra_info,
        metadata: request.metadata,
        messages: None,
        culvert: endpoint(e).filter(|_| running),
    }
}

fn endpoint(e: &Entry) -> Option<EndpointInfo> {
    Some(EndpointInfo {
        address: Some(e.order.address.clone()),
        server_name: Some(format!("{}.tunnel.culvert", e.order.id)),
        fingerprint: Some(e.fingerprint.clone()?),
        shards: Some(e.order.shards as u64),
        links_max: Some(u64::from(LINKS_MAX)),
        proxy: Some(e.order.proxy.to_string()),
        ca_fingerprint: e.order.ca.as_ref().and_then(Certificate::fingerprint),
        counts: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::limits::LOST_AFTER;

    fn order(id: &str, owner: &str, identifier: Option<&str>) -> Order {
        Order {
            id: id.into(),
            owner: owner.into(),
            request: TunnelRequest {
                tunnel_identifier: identifier.map(str::to_owned),
                ..Default::default()
            },
            address: "cloud.test:443".into(),
            endpoint: id.into(),
            proxy: "127.0.0.1:20000".parse().unwrap(),
            shards: 2,
            ca: None,
            created: 1,
        }
    }

    fn status(registry: &Registry, id: &str) -> Option<String> {
        registry.object(id)?.status
    }

    #[test]
    fn a_life_from_new_to_terminated() {
        let (mut r, now) = (Registry::default(), Instant::now());
        r.create(order("a", "ada", Some("x")), now).unwrap();
        let new = r.object("a").unwrap();
        assert_eq!(
            (new.status.as_deref(), &new.host, &new.culvert),
            (Some("new"), &None, &None)
        );
        r.booting("a");
        assert_eq!(status(&r, "a").as_deref(), Some("booting"));
        r.running("a", "f1", now, 5);
        let running = r.object("a").unwrap();
        assert_eq!((running.is_ready, running.launch_time), (Some(false), Some(5)));
        assert_eq!(running.host.as_deref(), Some("cloud.test"));
        let culvert = running.culvert.unwrap();
        assert_eq!(culvert.server_name.as_deref(), Some("a.tunnel.culvert"));
        assert_eq!((culvert.shards, culvert.fingerprint.as_deref()), (Some(2), Some("f1")));
        assert!(!r.awaits_probe("a"));
        assert!(r.link_up("a", 1, 6) && !r.link_up("a", 0, 6) && !r.link_up("a", LINKS_MAX, 6));
        assert!(r.awaits_probe("a"));
        r.ready("a");
        assert_eq!(r.object("a").unwrap().is_ready, Some(true));
        r.link_down("a", 0, now, 7);
        assert_eq!(r.object("a").unwrap().is_ready, Some(true));
        r.link_down("a", 1, now, 7);
        assert_eq!(r.object("a").unwrap().is_ready, Some(false));
        r.link_up("a", 1, 8);
        assert_eq!(r.object("a").unwrap().is_ready, Some(true));
        r.endpoint_lost("a", now);
        let relaunching = r.object("a").unwrap();
        assert_eq!(
            (relaunching.is_ready, relaunching.status.as_deref()),
            (Some(false), Some("running"))
        );
        r.running("a", "f2", now, 9);
        assert_eq!(
            r.object("a").unwrap().culvert.unwrap().fingerprint.as_deref(),
            Some("f2")
        );
        assert!(r.halt("a", "sigterm", true, 10, Duration::ZERO) && !r.halt("a", "lost", false, 11, Duration::ZERO));
        r.ready("a");
        assert_eq!(r.object("a").unwrap().is_ready, Some(false));
        let ended = r.ended("a", 12).unwrap();
        r.remove("a");
        assert_eq!(ended.status.as_deref(), Some("terminated"));
        assert_eq!(
            (ended.shutdown_reason.as_deref(), ended.user_shutdown),
            (Some("sigterm"), Some(true))
        );
        assert!(r.object("a").is_none() && r.ended("a", 13).is_none());
    }

    #[test]
    fn identifiers_collide_within_an_account() {
        let (mut r, now) = (Registry::default(), Instant::now());
        r.create(order("named", "ada", Some("x")), now).unwrap();
        r.create(order("plain", "ada", None), now).unwrap();
        r.create(order("other", "bob", Some("x")), now).unwrap();
        let hits = |r: &mut Registry, o| r.create(o, now).unwrap().collisions;
        assert_eq!(hits(&mut r, order("n2", "ada", Some("x"))), ["named"]);
        assert_eq!(hits(&mut r, order("p2", "ada", Some(""))), ["plain"]);
        assert!(hits(&mut r, order("y", "ada", Some("y"))).is_empty());
        let mut pool = order("pool", "ada", Some("y"));
        pool.request.tunnel_pool = Some(true);
        assert!(hits(&mut r, pool).is_empty());
    }

    #[test]
    fn a_pool_is_one_endpoint_with_equal_rules() {
        let (mut r, now) = (Registry::default(), Instant::now());
        let pooled = |id: &str, identifier| {
            let mut order = order(id, "ada", identifier);
            order.request.tunnel_pool = Some(true);
            order.request.culvert.get_or_insert_default().fingerprint = Some(id.into());
            order
        };
        r.create(order("plain", "ada", Some("x")), now).unwrap();
        let first = pooled("a", Some("x"));
        assert_eq!(r.pool("ada", &first.request), Ok(None), "a tunnel alone is no pool");
        assert!(r.create(first, now).unwrap().commands.is_some());
        let join = |r: &mut Registry, mut order: Order| {
            let pool = r.pool("ada", &order.request).unwrap().unwrap();
            (order.endpoint, order.proxy) = (pool.endpoint, pool.proxy);
            r.create(order, now).unwrap()
        };
        let second = join(&mut r, pooled("b", Some("x")));
        assert!(second.commands.is_none() && second.index == 1 && second.collisions.is_empty());
        for (owner, other) in [("bob", pooled("c", Some("x"))), ("ada", pooled("c", Some("y")))] {
            assert_eq!(r.pool(owner, &other.request), Ok(None));
        }
        assert_eq!(r.pool("ada", &order("c", "ada", Some("x")).request), Ok(None));
        assert!(
            r.pool("ada", &pooled("b", Some("x")).request)
                .unwrap_err()
                .contains("key")
        );
        let mut different = pooled("c", Some("x"));
        different.request.direct_domains = Some(vec!["d.test".into()]);
        let refused = r.pool("ada", &different.request).unwrap_err();
        assert!(
            refused.contains("direct_domains") && refused.contains("d.test"),
            "{refused}"
        );
        r.take_rules("a", &different.request.settings_json()).unwrap();
        assert!(r.pool("ada", &different.request).is_ok() && r.take_rules("a", b"{").is_err());
        assert_eq!(r.object("b").unwrap().direct_domains.unwrap(), ["d.test"]);
        // The lowest number that is free again; with the last one the pool is no more.
        r.halt("a", "user", true, 0, Duration::ZERO);
        r.remove("a");
        assert!(!r.is_ending("a") && r.tunnels_of("a") == ["b"]);
        assert_eq!(join(&mut r, different).index, 0);
        for id in ["b", "c"] {
            r.halt(id, "user", true, 0, Duration::ZERO);
        }
        assert!(r.is_ending("a"));
        assert_eq!(r.pool("ada", &pooled("d", Some("x")).request), Ok(None));
    }

    #[test]
    fn silence_is_loss_after_90_seconds() {
        let (mut r, start) = (Registry::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        r.create(order("a", "ada", None), start).unwrap();
        r.running("a", "f", at(1), 0);
        assert!(r.lost(at(90), LOST_AFTER).is_empty());
        assert_eq!(r.lost(at(91), LOST_AFTER), ["a"]);
        assert_eq!(r.heartbeat("a", "ada", at(60)), Some(true));
        assert_eq!(r.heartbeat("a", "bob", at(60)), None);
        assert!(r.lost(at(149), LOST_AFTER).is_empty());
        r.link_up("a", 0, 0);
        assert!(r.lost(at(10_000), LOST_AFTER).is_empty());
        r.link_down("a", 0, at(10_000), 0);
        assert!(r.lost(at(10_089), LOST_AFTER).is_empty());
        assert_eq!(r.lost(at(10_090), LOST_AFTER), ["a"]);
        r.halt("a", "lost", false, 0, Duration::ZERO);
        assert!(r.lost(at(20_000), LOST_AFTER).is_empty());
        assert_eq!(r.heartbeat("a", "ada", at(20_000)), Some(false));
    }

    #[test]
    fn what_was_kept_comes_back() {
        let (mut r, now) = (Registry::default(), Instant::now());
        r.create(order("a", "ada", Some("x")), now).unwrap();
        r.running("a", "f", now, 5);
        r.link_up("a", 0, 6);
        r.ready("a");
        r.create(order("b", "ada", None), now).unwrap();
        r.running("b", "f", now, 5);
        r.halt("b", "enough", true, 7, Duration::from_secs(300));
        r.halt("b", "lost", false, 8, Duration::from_secs(5));
        let kept = [r.kept("a").unwrap(), r.kept("b").unwrap()];
        assert_eq!((kept[0].cut_at, kept[1].cut_at), (None, Some(13)));
        let endpoint = KeptEndpoint {
            id: "a".into(),
            proxy: "127.0.0.1:20000".parse().unwrap(),
            shards: 2,
            rules: Vec::new(),
            ca: None,
            process: None,
            fingerprint: Some("f".into()),
            linked: true,
            dark_since: None,
        };
        let mut next = Registry::default();
        next.restore(&endpoint, &kept, now + Duration::from_secs(1_000));
        for id in ["a", "b"] {
            let mut before = r.object(id).unwrap();
            before.is_ready = Some(false);
            assert_eq!(next.object(id).unwrap(), before);
        }
        assert!(
            next.lost(now + Duration::from_secs(1_000), LOST_AFTER).is_empty(),
            "nobody has looked for it"
        );
        next.link_up("a", 0, 9);
        assert!(next.awaits_probe("a") && !next.awaits_probe("b"));
    }

    #[test]
    fn an_account_has_a_limit() {
        let (mut r, now) = (Registry::default(), Instant::now());
        for n in 0..TUNNELS_PER_ACCOUNT_MAX {
            r.create(order(&n.to_string(), "ada", Some(&n.to_string())), now)
                .unwrap();
        }
        let refused = r.create(order("x", "ada", Some("x")), now).unwrap_err();
        assert_eq!(refused, "Too many active org tunnels: 101 >= 100");
        assert!(r.create(order("y", "ada", Some("7")), now).is_ok());
        assert!(r.create(order("z", "bob", None), now).is_ok());
    }
}
