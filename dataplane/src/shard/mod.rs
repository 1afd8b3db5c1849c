//! A shard: one thread, one runtime, its own links, connections, buffers and counters. On the path of a request nothing
//! is shared, locked or atomic between shards but the response cache; counters have one writer each ([`crate::stats`]).
//!
//! ```text
//!  control thread ── Command ─► mailbox ─┐                        ┌─► browser / site tasks (proxy)
//!  other shards ─────────────────────────┴─ Shard ── Link ── Stream ┘
//!  control thread ◄─ Event ── mailbox ◄──────┘
//! ```
//!
//! Architecture invariant: a shard decides nothing but which link a stream goes to. An endpoint's shard never makes,
//! accepts or dials a socket: the broker does, and passes it.

mod accept;
pub mod buffers;
mod connection;
mod cut_over;
mod dial;
mod errors;
mod landings;
mod link;
mod linked;
pub mod mailbox;
mod outside;
pub mod pair;
mod pipe;
mod placement;
mod probe;
mod readiness;
pub mod ring;
pub mod runtime;
mod seats;
pub mod signal;
pub mod stream;
mod tasks;
pub(crate) mod threads;
pub mod timers;
pub mod transport;
mod visitor;
mod waiting;

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::bump::{Bump, Judge};
use crate::cache::{Cache, Follow, Outcome as Flown};
use crate::credentials::Credentials;
use crate::limits::{
    CACHE_REFRESHES_MAX, COMMANDS_MAX, ERROR_LINES_APART, EVENTS_MAX, FDS_LINK, LINKS_MAX, MEMBERS_MAX, REFUSED_MAX,
};
use crate::mux::{self, Budget, Code, GoAwayReason, Kind, Open, Side};
use crate::proxy::resolve::is_own;
use crate::proxy::{browser, site};
use crate::rules::Rules;
use crate::settings::{Settings, Times};
use crate::stats::Counters;
use crate::time::Time;
use buffers::Buffers;
use errors::ErrorLines;
use landings::Landings;
use link::Link;
use mailbox::{Attached, Command, Event, Inbox, Outbox};
use runtime::Socket;
use seats::Seats;
use signal::Signal;
use waiting::Waiting;

pub use mailbox::Level;
pub use outside::Outcome;
pub use seats::Seat;
pub use stream::Stream;
pub use tasks::give_back_by;
pub use visitor::Visitor;

/// Handle of the shard that runs on this thread.
#[derive(Clone)]
pub struct Shard(Rc<Inner>);

struct Inner {
    index: usize,
    role: Role,
    services: Services,
    settings: RefCell<Arc<Settings>>,
    budget: RefCell<Budget>,
    /// One for each link of each member that was seen here; a handful.
    links: RefCell<Vec<Rc<Link>>>,
    next_key: Cell<u32>,
    buffers: Buffers,
    /// Of all shards; this one writes its own.
    all_counters: Vec<Arc<Counters>>,
    counters: Arc<Counters>,
    events: Outbox<Event>,
    error_lines: ErrorLines,
    /// Of all shards, this one included.
    shards: Vec<Outbox<Command>>,
    waiting: Waiting,
    seats: RefCell<Seats>,
    calling: Cell<bool>,
    /// Since when no link has been live; `None` while one is.
    dark_since: Cell<Option<Time>>,
    was_live: Cell<bool>,
    /// Of the last stream that was placed.
    next_turn: Cell<u64>,
    draining: Cell<bool>,
    /// Endpoint: every member drains, and none has come since.
    left: Cell<bool>,
    drained: Signal,
    /// Shards of this process that are not drained yet.
    undrained: Arc<AtomicUsize>,
    handshakes: Cell<usize>,
    /// Endpoint: open connections of strangers.
    strangers: Rc<Cell<usize>>,
    /// Connections above which new ones are turned away.
    connections_max: usize,
    /// Endpoint: streams to sites that are reached without the tunnel.
    pipes: RefCell<Vec<Rc<pipe::Pipe>>>,
    dials: outside::Dials,
    probes: RefCell<HashMap<u64, Rc<probe::Pending>>>,
    next_probe: Cell<u64>,
    /// Endpoint: where browsers come from.
    browsers: RefCell<Option<Rc<Socket>>>,
    cache: Option<Arc<Cache>>,
    bump: Option<Arc<Bump>>,
    landings: Landings,
    refreshes: Rc<Cell<usize>>,
    /// Exchanges that a drain waits for.
    held: Cell<usize>,
}

/// What is particular to one of the two programs.
pub(crate) enum Role {
    Client(Dialling),
    Endpoint(RefCell<Vec<Attached>>),
}

/// Who starts the tasks that serve what arrives: the proxy, or a test.
#[derive(Clone, Copy)]
pub(crate) struct Services {
    /// A stream of kind `tcp`, `http` or `https`: at `sc`, and at an endpoint where it goes past the tunnel.
    pub site: fn(&Shard, Stream),
    /// Endpoint: a connection to the proxy port.
    pub browser: fn(&Shard, Socket, Visitor),
}

/// How `sc` dials, and what its streams may not reach.
pub(crate) struct Dialling {
    pub cloud: RefCell<(SocketAddr, Arc<rustls::ClientConfig>)>,
    /// Name that the link's number is put before.
    pub server_name: String,
    pub own_listeners: Vec<SocketAddr>,
    /// Says what is wrong with sites' certificates.
    pub judge: Arc<Judge>,
    /// What sites are shown that want a password.
    pub credentials: Arc<Credentials>,
}

/// What GOAWAY says when this process ends.
const DRAINING: &str = "shutting down";
/// … and when one member leaves.
const LEAVING: &str = "the tunnel is no more";

/// Counts a local connection for as long as it lives.
pub struct Counted {
    counters: Arc<Counters>,
    _place: Option<Place>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counters.connections.sub(1);
    }
}

/// One of a kind that only so many are of: requests that fill the cache for nobody, strangers.
pub struct Place(Rc<Cell<usize>>);

impl Place {
    fn among(taken: &Rc<Cell<usize>>, most: usize) -> Option<Self> {
        (taken.get() < most).then(|| {
            taken.set(taken.get() + 1);
            Self(taken.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A browser's exchange that a drain waits for, whether a stream carries it or not.
pub struct Held(Shard);

impl Drop for Held {
    fn drop(&mut self) {
        let Inner { held, .. } = &*self.0.0;
        held.set(held.get() - 1);
        self.0.note_drained();
    }
}

impl Shard {
    /// Which role this process has.
    pub fn side(&self) -> Side {
        match self.0.role {
            Role::Client(_) => Side::Client,
            Role::Endpoint(_) => Side::Endpoint,
        }
    }

    /// The settings in force, whole.
    pub fn settings(&self) -> Arc<Settings> {
        self.0.settings.borrow().clone()
    }

    /// Of the rules in force; fetch it anew for each request, and name it in OPEN.
    pub fn rules_version(&self) -> u32 {
        self.0.settings.borrow().version
    }

    /// The rules in force.
    pub fn rules(&self) -> Ref<'_, Rules> {
        Ref::map(self.0.settings.borrow(), |settings| &*settings.rules)
    }

    /// The cache of this endpoint, if the rules allow one.
    pub fn cache(&self) -> Option<&Arc<Cache>> {
        self.0.cache.as_ref().filter(|_| !self.rules().no_cache)
    }

    /// Endpoint: what TLS of browsers ends with; none where all of it stays opaque.
    pub fn bump(&self) -> Option<&Arc<Bump>> {
        self.0.bump.as_ref()
    }

    /// At `sc`: who says what is wrong with sites' certificates.
    pub fn judge(&self) -> Option<&Arc<Judge>> {
        match &self.0.role {
            Role::Client(client) => Some(&client.judge),
            Role::Endpoint(_) => None,
        }
    }

    /// At `sc`: what sites are shown that want a password.
    pub fn credentials(&self) -> Option<&Credentials> {
        match &self.0.role {
            Role::Client(client) => Some(&client.credentials),
            Role::Endpoint(_) => None,
        }
    }

    /// Waits for what another request brings, on whatever shard that is. May be dropped.
    pub async fn landed(&self, follow: Follow) -> Flown {
        self.0.landings.landed(follow).await
    }

    /// A place among the requests that fill the cache for nobody in particular; none if they are too many.
    pub fn take_refresh(&self) -> Option<Place> {
        Place::among(&self.0.refreshes, CACHE_REFRESHES_MAX)
    }

    /// Has a drain wait while the guard lives.
    pub fn hold(&self) -> Held {
        self.0.held.set(self.0.held.get() + 1);
        Held(self.clone())
    }

    /// The time limits in force.
    pub fn times(&self) -> Times {
        self.0.settings.borrow().times
    }

    /// The chunks that local sockets are read into.
    pub fn buffers(&self) -> &Buffers {
        &self.0.buffers
    }

    /// Starts a task on this shard. A panic ends the task and nothing else.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        runtime::spawn(task);
    }

    /// Opens a stream on the least loaded live link (`open.credit` is set here), of the member that is preferred if that
    /// has one. Waits while no link is up: in order, at most the resume window after the last loss; heads only, so read
    /// nothing of the body before.
    ///
    /// # Errors
    /// Why there is no stream, with text for people: `tunnel-down`, `limit`, `shutdown`.
    pub async fn open(&self, open: Open, prefers: Option<[u8; 16]>) -> Result<Stream, (Code, String)> {
        Stream::open_own(self, open, prefers).await
    }

    /// Above the first mark of open descriptors: answer new connections with 503, Retry-After, and close.
    pub fn over_fd_mark(&self) -> bool {
        self.descriptors() > self.0.connections_max
    }

    /// At the second mark: take no connection at all.
    fn is_full(&self) -> bool {
        self.descriptors() >= self.0.connections_max + REFUSED_MAX
    }

    fn descriptors(&self) -> usize {
        let links = self.0.links.borrow().len() * FDS_LINK + self.0.handshakes.get();
        usize::try_from(self.0.counters.connections.value()).map_or(usize::MAX, |local| local + links)
    }

    /// Counts a failure that a browser is told of, by the name of a row of [`crate::http::page::CAUSES`], and logs it with
    /// its `reason`, unless one of this name was logged a moment ago.
    pub fn tell_error(&self, name: &str, reason: impl FnOnce() -> String) {
        self.0.counters.error(name);
        if let Some(times) = self.line_due(name) {
            self.log(Level::Info, errors::line(name, times, &reason()));
        }
    }

    /// As [`ErrorLines::due`].
    fn line_due(&self, name: &str) -> Option<u64> {
        let apart = ERROR_LINES_APART * self.0.all_counters.len() as u32;
        self.0.error_lines.due(name, runtime::now(), apart)
    }

    /// `sc`: logs how many streams were turned away for the limit.
    fn tell_turned_away(&self) {
        let budget = &self.0.budget;
        if budget.borrow().turned_away() > 0
            && self.side() == Side::Client
            && self.line_due(Code::Limit.name()).is_some()
        {
            let streams = budget.borrow_mut().take_turned_away();
            let text = format!("streams beyond --max-streams were turned away: {streams}");
            self.log(Level::Info, errors::line(Code::Limit.name(), 1, &text));
        }
    }

    /// Counts a local connection while the guard lives.
    pub fn count_connection(&self) -> Counted {
        self.counted(None)
    }

    fn counted(&self, place: Option<Place>) -> Counted {
        self.0.counters.connections.add(1);
        Counted {
            counters: self.0.counters.clone(),
            _place: place,
        }
    }

    /// No new requests are to be taken: answer them with `shutdown`, close idle connections.
    pub fn is_draining(&self) -> bool {
        self.0.draining.get()
    }

    /// Nobody will serve a request that begins now: the process drains, or every member does.
    pub fn dismisses(&self) -> bool {
        self.is_draining() || self.0.left.get()
    }

    /// A member drains. With the last one browsers that ask for nothing go.
    fn note_goaway(&self) {
        if self.side() == Side::Endpoint && self.0.links.borrow().iter().all(|l| l.is_left()) {
            self.0.left.set(true);
            self.wake_seats();
            self.drain_pipes();
        }
    }

    /// This shard has no live link but another has.
    pub fn is_dark(&self) -> bool {
        !self.has_live_link() && self.lit_shard().is_some()
    }

    fn lit_shard(&self) -> Option<usize> {
        let room = |c: &Counters| c.connections.value() < self.0.connections_max as u64;
        self.0
            .all_counters
            .iter()
            .position(|c| c.links_live.value() > 0 && room(c) && !Arc::ptr_eq(c, &self.0.counters))
    }

    /// `sc`: this address is one of its own listening sockets and is denied to streams.
    pub fn is_own_listener(&self, address: SocketAddr) -> bool {
        match &self.0.role {
            Role::Client(client) => is_own(address, &client.own_listeners),
            Role::Endpoint(_) => false,
        }
    }

    /// One line for the log, by way of the control thread; lost if it cannot keep up.
    pub fn log(&self, level: Level, text: String) {
        if self.0.events.len() < EVENTS_MAX / 2 {
            self.tell(Event::Log { level, text });
        } else {
            self.0.counters.events_dropped.add(1);
        }
    }

    fn tell(&self, event: Event) {
        if self.0.events.send(event).is_err() {
            self.0.counters.events_dropped.add(1);
        }
    }

    // ── Links ─────────────────────────────────────────────────────────────────────────────────────────────────

    fn start_link(&self, side: Side, member: [u8; 16], number: u16, links: u16) -> Rc<Link> {
        let key = self.0.next_key.get();
        self.0.next_key.set(key.wrapping_add(1));
        let mut seed = [0; 16];
        aws_lc_rs::rand::fill(&mut seed).expect("the system gives random bytes");
        let settings = self.settings();
        let (version, counters) = match self.attached(member) {
            Some(member) => (member.version, member.counters),
            None => (settings.version, Arc::default()),
        };
        let link = Link::start(
            self,
            mux::Config {
                side,
                key,
                link: number,
                links,
                member,
                seed,
                settings: version,
                resume_window: settings.times.resume_window,
            },
            counters,
        );
        self.0.links.borrow_mut().push(link.clone());
        link
    }

    /// `sc`: makes and dials this shard's links.
    pub(crate) fn dial_links(&self, member: [u8; 16], links: u16, shards: usize) {
        for number in (0..links).filter(|n| usize::from(*n) % shards == self.0.index) {
            self.start_link(Side::Client, member, number, links);
        }
    }

    /// A retired link's session has ended.
    fn forget(&self, link: &Rc<Link>) {
        self.0.links.borrow_mut().retain(|l| !Rc::ptr_eq(l, link));
    }

    fn link_has_finished(&self, member: [u8; 16]) {
        self.note_drained();
        let links = self.0.links.borrow();
        let parted = links.iter().filter(|l| l.member == member).all(|l| l.is_finished());
        drop(links);
        if parted {
            self.has_parted(member);
        }
    }

    /// To be called after whatever may have been the last thing that a drain waits for.
    fn note_drained(&self) {
        let rests = || {
            let all_finished = self.0.links.borrow().iter().all(|l| l.is_finished());
            all_finished && self.0.pipes.borrow().is_empty() && self.0.held.get() == 0
        };
        if self.is_draining() && rests() {
            self.0.drained.raise();
        }
    }

    /// Nothing is left of a member here. The last shard to see that tells.
    fn has_parted(&self, id: [u8; 16]) {
        let Role::Endpoint(members) = &self.0.role else { return };
        let mut members = members.borrow_mut();
        let Some(member) = members.iter_mut().find(|m| m.id == id && m.parting) else {
            return;
        };
        // Once a shard: another connection may come and finish too.
        let unparted = std::mem::take(&mut member.unparted);
        if unparted.load(Ordering::Relaxed) > 0 && unparted.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.tell(Event::Parted { member: id });
        }
    }

    /// Endpoint: a member, if it may have links.
    fn attached(&self, id: [u8; 16]) -> Option<Attached> {
        let Role::Endpoint(members) = &self.0.role else {
            return None;
        };
        members.borrow().iter().find(|m| m.id == id).cloned()
    }

    /// The process drains, or this member does.
    fn is_leaving(&self, member: [u8; 16]) -> bool {
        self.is_draining() || self.attached(member).is_some_and(|m| m.parting)
    }

    fn drain(&self) {
        if self.0.draining.replace(true) {
            return;
        }
        // Whoever waits for a link is told now, and who asks for nothing goes.
        self.0.waiting.call(usize::MAX);
        self.wake_seats();
        self.drain_pipes();
        let links = self.0.links.borrow().clone();
        for link in links {
            link.drain(self, GoAwayReason::Shutdown, DRAINING);
        }
        self.note_drained();
    }

    // ── What arrives ──────────────────────────────────────────────────────────────────────────────────────────

    /// Starts what serves a stream that the peer opened.
    fn serve(&self, stream: Stream) {
        match (self.side(), stream.open().kind) {
            (Side::Client, Kind::Probe) => runtime::spawn(probe::echo(stream)),
            (Side::Client, Kind::Tcp | Kind::Http | Kind::Https) => (self.0.services.site)(self, stream),
            _ => stream.reset(Code::Denied, "this side serves no such stream"),
        }
    }

    /// Endpoint: takes browsers from this socket from now on. What waits in the one before is still served.
    fn receive_from(&self, fd: OwnedFd) {
        let socket = match Socket::new(fd) {
            Ok(socket) => Rc::new(socket),
            Err(e) => return self.log(Level::Error, format!("taking the browsers' socket: {e}")),
        };
        if let Some(last) = self.0.browsers.replace(Some(socket.clone())) {
            last.shutdown(std::net::Shutdown::Both);
        }
        runtime::spawn(accept::receive_browsers(self.clone(), socket));
    }

    /// True to stop.
    fn obey(&self, command: Command) -> bool {
        match command {
            Command::Stop => return true,
            Command::Drain => self.drain(),
            Command::Dismiss => self.each_link(|link| link.dismiss()),
            Command::Attach(member) => self.attach(member),
            Command::Part(id) => self.part(id),
            Command::Detach(id) => self.detach(id),
            Command::Link {
                member,
                link,
                fd,
                first,
            } => {
                runtime::spawn(accept_link(self.clone(), member, link, fd, first));
            }
            Command::Browser(browser) => self.serve_here(browser, Visitor::Browser),
            Command::Browsers(fd) => self.receive_from(fd),
            Command::Settings(settings) => self.reload(settings),
            Command::Rules(settings, versions) => self.rule(settings, &versions),
            Command::Refuse { member, version, text } => self.each_link_of(member, |link| {
                link.with(self, |s, _, _| s.settings_ack(version, false, &text));
            }),
            Command::Cloud(address, tls) => {
                if let Role::Client(client) = &self.0.role {
                    client.cloud.replace((address, tls));
                    self.each_link(|link| link.with(self, |s, _, now| s.dial_now(now)));
                }
            }
            Command::Probe {
                member,
                nonce,
                from,
                id,
            } => runtime::spawn(probe::answer(self.clone(), member, nonce, from, id)),
            Command::Probed { id, result } => self.probed(id, result),
            Command::Dialled { id, outcome } => self.dialled(id, outcome),
        }
        false
    }

    fn each_link(&self, act: impl Fn(&Rc<Link>)) {
        let links = self.0.links.borrow().clone();
        links.iter().for_each(act);
    }

    fn each_link_of(&self, member: [u8; 16], act: impl Fn(&Rc<Link>)) {
        self.each_link(|link| {
            if link.member == member {
                act(link);
            }
        });
    }

    fn attach(&self, member: Attached) {
        let Role::Endpoint(members) = &self.0.role else { return };
        let mut members = members.borrow_mut();
        members.retain(|m| m.id != member.id);
        if members.len() < MEMBERS_MAX {
            members.push(member);
        }
    }

    fn part(&self, id: [u8; 16]) {
        if let Role::Endpoint(members) = &self.0.role
            && let Some(member) = members.borrow_mut().iter_mut().find(|m| m.id == id)
        {
            member.parting = true;
        }
        self.each_link_of(id, |link| link.drain(self, GoAwayReason::Drain, LEAVING));
        self.link_has_finished(id);
        self.refresh_live();
    }

    fn detach(&self, id: [u8; 16]) {
        let Role::Endpoint(members) = &self.0.role else { return };
        members.borrow_mut().retain(|m| m.id != id);
        self.each_link_of(id, |link| link.abandon(self, LEAVING));
    }

    /// Endpoint: switches whole, and answers on each session of these members, behind the last OPEN under the old
    /// rules.
    fn rule(&self, settings: Arc<Settings>, versions: &[([u8; 16], u32)]) {
        let Role::Endpoint(members) = &self.0.role else { return };
        let last = self.0.settings.replace(settings.own());
        if let Some(cache) = self.0.cache.as_ref().filter(|_| *last.rules != *self.rules()) {
            // Each shard does: what others stored under the rules before goes with the last one's.
            cache.clear();
        }
        for (id, version) in versions {
            if let Some(member) = members.borrow_mut().iter_mut().find(|m| m.id == *id) {
                member.version = *version;
            }
            self.each_link_of(*id, |link| link.acknowledge(self, *version));
        }
        self.wake_seats();
    }

    /// `sc`: sends the rules over one live link; answers of lower versions make it send them again.
    fn reload(&self, settings: Arc<Settings>) {
        let version = settings.version;
        let json = settings.json.clone();
        self.0.settings.replace(settings.own());
        let lit = self
            .0
            .all_counters
            .iter()
            .position(|c| c.links_live.value() > 0)
            .unwrap_or(0);
        let links = self.0.links.borrow().clone();
        let live = links.iter().find(|l| l.is_live()).or(links.first());
        if let (true, Some(link)) = (lit == self.0.index, live) {
            link.with(self, |s, _, _| s.send_settings(version, json));
        }
    }
}

async fn accept_link(shard: Shard, member: [u8; 16], link: u16, fd: OwnedFd, first: Vec<u8>) {
    if link < LINKS_MAX {
        accept::accept(shard, member, link, fd, first).await;
    }
}

/// Obeys commands until told to stop, then ends all connections.
async fn run(shard: Shard, inbox: Inbox<Command>, browsers: Option<OwnedFd>) -> std::io::Result<()> {
    let bell = Socket::new(inbox.bell().try_clone_to_owned()?)?;
    if let Some(fd) = browsers {
        shard.receive_from(fd);
    }
    runtime::spawn(threads::announce_drained(shard.clone()));
    loop {
        bell.readable().await?;
        inbox.silence();
        shard.0.landings.call();
        for _ in 0..COMMANDS_MAX {
            let Some(command) = inbox.take() else { break };
            if shard.obey(command) {
                threads::end_links(&shard).await;
                return Ok(());
            }
        }
    }
}

/// What serves outside of tests.
pub(crate) const SERVICES: Services = Services {
    site: |shard, stream| runtime::spawn(site::serve(shard.clone(), stream)),
    browser: |shard, socket, visitor| {
        // Before its task runs: the marks must know of it.
        if let Some(counted) = shard.admit(visitor) {
            runtime::spawn(browser::serve(shard.clone(), socket, visitor, counted));
        }
    },
};

#[cfg(test)]
mod tests;
