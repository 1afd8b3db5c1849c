//! `sc-cloud endpoint`: the process that carries one tunnel or one pool. It gets every socket from the broker, makes its own key,
//! and never creates, accepts or dials anything once its shards run: [`super::sandbox`] takes away what it could do it with.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use dataplane::endpoint::{self, Driver, Endpoint, EndpointConfig, Event, Level, Member};
use dataplane::limits::SETTINGS_BYTES_MAX;
use dataplane::mux::Code;
use dataplane::settings::Settings;
use dataplane::tls::Identity;
use rustix::net::{SocketType, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::adoption::Door;
use super::agreement::{Agreement, MemberId, Outcome};
use super::dials::{Asker, Dial, Dials, Turn};
use super::limits::{EVENTS_PER_TURN, LEAVE_MAX, RULES_PART_BYTES_MAX};
use super::messages::{self, FromEndpoint, MemberCounts, Present, ToEndpoint, Unreached};
use super::sandbox;
use super::seqpacket::Seqpacket;
use super::tunnel_ca::TunnelCa;
use crate::api::{self, CacheCounts, Counts};
use crate::runtime::{Runtime, watch};
use crate::secret::{hex, unhex};

/// Runs the endpoint whose control socket is standard input, to its end.
///
/// # Errors
/// A sentence for the file that the launcher keeps of standard error.
pub fn run() -> Result<(), String> {
    let control = control().map_err(|_| "this command is started by `sc-cloud serve` only".to_owned())?;
    // The process is called `exe` otherwise, after the link that started it.
    let _ = rustix::thread::set_name(c"sc-endpoint");
    let refused = sandbox::enclose();
    let runtime = Runtime::epoll().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let control = Seqpacket::new(control).map_err(|e| e.to_string())?;
        start(control, refused).await?.serve().await
    })
}

fn control() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    if sockopt::socket_type(&stdin)? != SocketType::SEQPACKET {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    stdin.as_fd().try_clone_to_owned()
}

/// Waits for the configuration, makes the shards, seals the process, lets them run and tells the broker the key.
async fn start(control: Seqpacket, mut refused: Vec<String>) -> Result<Guest, String> {
    let mut rules = Vec::new();
    loop {
        let message = messages::receive(&control).await.map_err(|e| e.to_string())?;
        let Some((message, mut sockets)) = message else {
            return Err("the broker went away before it said anything".into());
        };
        match message {
            ToEndpoint::Rules { part } => {
                rules.extend(messages::decode(&part).map_err(|e| e.to_string())?);
                if rules.len() > SETTINGS_BYTES_MAX {
                    return Err("the rules are too long".into());
                }
            }
            ToEndpoint::Start {
                shards,
                driver,
                max_streams,
                memory_bytes,
                version,
                dark_ms,
                reload_ms,
                adoption,
                times,
                ca,
                ..
            } => {
                if sockets.is_empty() {
                    return Err("the broker gave no sockets".into());
                }
                let door = Door::new(sockets.remove(0), adoption).map_err(|e| e.to_string())?;
                let identity = Arc::new(Identity::generate().map_err(|e| e.to_string())?);
                let fingerprint = identity.fingerprint().to_string();
                let settings = Arc::new(Settings {
                    version,
                    rules: Arc::new(api::rules(&rules)?),
                    json: rules.into(),
                    times: times.times(),
                });
                let parsed = |ca: TunnelCa| ca.parsed().ok_or("its CA is damaged");
                let config = EndpointConfig {
                    shards,
                    identity,
                    settings: Arc::clone(&settings),
                    driver: driver_named(&driver)?,
                    max_streams,
                    memory_bytes,
                    browsers: sockets,
                    ca: ca.map(parsed).transpose()?,
                    dark: dark_ms.map(Duration::from_millis),
                };
                let prepared = endpoint::prepare(config).map_err(|e| e.to_string())?;
                let wake = prepared.wake_fd().try_clone_to_owned();
                let wake = wake.and_then(|wake| watch(wake, Interest::READABLE));
                let wake = wake.map_err(|e| e.to_string())?;
                refused.extend(sandbox::seal());
                let endpoint = prepared.run();
                let driver = format!("{:?}", endpoint.driver());
                let guest = Guest {
                    control,
                    door,
                    broker: Broker::Here,
                    endpoint,
                    wake,
                    fingerprint,
                    driver,
                    agreement: Agreement::new(settings, Duration::from_millis(reload_ms)),
                    orphan_timeout: times.orphaned,
                    members: Vec::new(),
                    dials: Dials::default(),
                };
                let ready = FromEndpoint::Ready {
                    fingerprint: guest.fingerprint.clone(),
                    driver: guest.driver.clone(),
                    refused,
                };
                guest.tell(ready).await;
                return Ok(guest);
            }
            _ => return Err("the broker spoke out of turn".into()),
        }
    }
}

fn driver_named(name: &str) -> Result<Driver, String> {
    match name {
        "auto" => Ok(Driver::Auto),
        "io_uring" => Ok(Driver::IoUring),
        "epoll" => Ok(Driver::Epoll),
        _ => Err(format!("no such driver: {name}")),
    }
}

/// Whether there is anybody to talk to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broker {
    Here,
    /// Another one may adopt this process until then.
    Gone(Instant),
    /// None has: this process drains, and leaves then at the latest.
    Missed(Instant),
}

impl Broker {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Here => None,
            Self::Gone(until) | Self::Missed(until) => Some(until),
        }
    }
}

/// The control thread of a running endpoint.
struct Guest {
    control: Seqpacket,
    door: Door,
    broker: Broker,
    endpoint: Endpoint,
    /// Readable when the shards have something to say.
    wake: AsyncFd<OwnedFd>,
    fingerprint: String,
    driver: String,
    agreement: Agreement,
    /// How long it waits for another broker.
    orphan_timeout: Duration,
    members: Vec<Present>,
    /// What the broker is asked to dial.
    dials: Dials,
}

impl Guest {
    /// Passes messages and events on until the endpoint has nothing left to do.
    async fn serve(&mut self) -> Result<(), String> {
        loop {
            let (alone, expiry) = (self.broker.deadline(), self.agreement.deadline().map(Instant::from_std));
            tokio::select! {
                message = messages::receive(&self.control), if alone.is_none() => match message {
                    Ok(Some((message, fds))) => self.obey(message, fds).await,
                    Ok(None) | Err(_) => self.orphaned(),
                },
                sockets = self.door.offered(), if !matches!(self.broker, Broker::Missed(_)) => {
                    self.adopted(sockets.map_err(|e| e.to_string())?).await?;
                }
                () = awake(&self.wake) => {
                    if self.report().await? {
                        return Ok(());
                    }
                }
                () = sleep_until(expiry), if expiry.is_some() => {
                    let outcome = self.agreement.expire(std::time::Instant::now());
                    self.conclude(outcome).await;
                }
                () = sleep_until(alone), if alone.is_some() => {
                    if matches!(self.broker, Broker::Missed(_)) {
                        return Ok(());
                    }
                    self.endpoint.drain();
                    self.broker = Broker::Missed(Instant::now() + LEAVE_MAX);
                }
            }
        }
    }

    /// A broker that is gone shows at the next receive.
    async fn tell(&self, message: FromEndpoint) {
        if self.broker == Broker::Here {
            let _ = messages::send(&self.control, &message, &[]).await;
        }
    }

    /// Nobody dials any more until another broker is there.
    fn orphaned(&mut self) {
        self.broker = Broker::Gone(Instant::now() + self.orphan_timeout);
        for (shard, id) in self.dials.take_all() {
            self.endpoint.dialled(shard, id, Err(undialled(NO_BROKER)));
        }
    }

    async fn dial(&mut self, dial: Dial) {
        let (shard, id) = dial.asker;
        if self.broker != Broker::Here {
            return self.endpoint.dialled(shard, id, Err(undialled(NO_BROKER)));
        }
        match self.dials.add(dial) {
            Turn::Now(dial) => self.ask(dial).await,
            Turn::Later => {}
            Turn::Never => self.endpoint.dialled(shard, id, Err(undialled(TOO_MANY_DIALS))),
        }
    }

    async fn ask(&self, dial: Dial) {
        let Dial { asker, host, port } = dial;
        let (shard, id) = asker;
        self.tell(FromEndpoint::Dial { shard, id, host, port }).await;
    }

    async fn dialled(&mut self, asker: Asker, outcome: Result<SocketAddr, Unreached>, socket: Option<OwnedFd>) {
        let outcome = match (outcome, socket) {
            (Ok(address), Some(socket)) => Ok((socket, address)),
            (Ok(_), None) => Err(undialled("its socket was lost on the way")),
            (Err(Unreached { code, text }), _) => Err((Code::named(&code).unwrap_or(Code::Unreachable), text)),
        };
        self.endpoint.dialled(asker.0, asker.1, outcome);
        if let Some(next) = self.dials.answered(asker) {
            self.ask(next).await;
        }
    }

    /// Goes on with another broker, and says what that one cannot know.
    async fn adopted(&mut self, mut sockets: Vec<OwnedFd>) -> Result<(), String> {
        if sockets.is_empty() {
            return Ok(());
        }
        let control = Seqpacket::new(sockets.remove(0)).map_err(|e| e.to_string())?;
        if self.endpoint.receive_from(sockets).is_err() {
            // For another number of shards: no offer of ours.
            return Ok(());
        }
        self.control = control;
        self.broker = Broker::Here;
        self.tell_rules().await;
        self.tell(FromEndpoint::Adopted {
            fingerprint: self.fingerprint.clone(),
            driver: self.driver.clone(),
            members: self.members.clone(),
            knows_strangers: true,
        })
        .await;
        Ok(())
    }

    async fn tell_rules(&self) {
        for part in self.agreement.settings().json.chunks(RULES_PART_BYTES_MAX) {
            let part = messages::encode(part);
            self.tell(FromEndpoint::Rules { part }).await;
        }
    }

    /// What is known of a member; nothing if it has been detached.
    fn present(&mut self, member: MemberId) -> Option<&mut Present> {
        let name = hex(&member);
        self.members.iter_mut().find(|m| m.member == name)
    }

    async fn obey(&mut self, message: ToEndpoint, mut fds: Vec<OwnedFd>) {
        match message {
            ToEndpoint::Attach { fingerprint, index } => {
                if let (Some(id), Ok(fingerprint)) = (member(messages::member(&fingerprint)), fingerprint.parse()) {
                    self.endpoint.attach(Member { id, fingerprint, index });
                    self.agreement.attach(id);
                    self.members.retain(|m| m.member != hex(&id));
                    self.members.push(Present {
                        member: hex(&id),
                        links: BTreeSet::new(),
                        parted: false,
                    });
                }
            }
            ToEndpoint::Part { member: name } => {
                if let Some(id) = member(&name) {
                    self.endpoint.part(id);
                    let outcome = self.agreement.part(id);
                    self.conclude(outcome).await;
                }
            }
            ToEndpoint::Detach { member: name } => {
                if let Some(id) = member(&name) {
                    self.members.retain(|m| m.member != name);
                    self.endpoint.detach(id);
                    let outcome = self.agreement.detach(id);
                    self.conclude(outcome).await;
                }
            }
            ToEndpoint::Link {
                member: name,
                link,
                first,
            } => {
                if let (Some(id), Some(fd), Ok(first)) = (member(&name), fds.pop(), messages::decode(&first)) {
                    self.endpoint.link(id, link, fd, first);
                }
            }
            ToEndpoint::Dialled { shard, id, outcome } => self.dialled((shard, id), outcome, fds.pop()).await,
            ToEndpoint::Drain => self.endpoint.drain(),
            ToEndpoint::Report => {
                let cache = self.endpoint.cache_counts();
                let cache = CacheCounts {
                    hits: cache.hits,
                    misses: cache.misses,
                    bytes_saved: cache.bytes_saved,
                    entries: cache.entries,
                    bytes: cache.bytes_held,
                };
                let members = self.endpoint.members_report().into_iter();
                let members = members.map(|m| MemberCounts {
                    member: hex(&m.member),
                    counts: Counts {
                        requests: m.requests,
                        streams: m.streams,
                        resumes: m.resumes,
                        frames_replayed: m.frames_replayed,
                        cache,
                        errors: BTreeMap::new(),
                    },
                });
                let errors = self.endpoint.report().errors.into_iter().filter(|(_, n)| *n > 0);
                self.tell(FromEndpoint::Report {
                    members: members.collect(),
                    errors: errors.map(|(name, n)| (name.to_owned(), n)).collect(),
                })
                .await;
            }
            // Only at the start.
            ToEndpoint::Rules { .. } | ToEndpoint::Start { .. } => {}
        }
    }

    /// Passes events on. True once the endpoint has drained.
    async fn report(&mut self) -> Result<bool, String> {
        let mut turn = 0;
        while let Ok(event) = self.endpoint.events().try_recv() {
            let message = match event {
                Event::Drained => {
                    // It sees the socket close next, whether it got this or not.
                    self.tell(FromEndpoint::Drained).await;
                    return Ok(true);
                }
                Event::Settings {
                    member, version, json, ..
                } => {
                    self.reload(member, version, json).await;
                    continue;
                }
                Event::Dial { shard, id, host, port } => {
                    let asker = (shard, id);
                    self.dial(Dial { asker, host, port }).await;
                    continue;
                }
                Event::Parted { member } => {
                    if let Some(present) = self.present(member) {
                        present.parted = true;
                    }
                    FromEndpoint::Parted { member: hex(&member) }
                }
                Event::LinkUp { member, link } => {
                    if let Some(present) = self.present(member) {
                        present.links.insert(link);
                    }
                    FromEndpoint::LinkUp {
                        member: hex(&member),
                        link,
                    }
                }
                Event::LinkDown { member, link, reason } => {
                    if let Some(present) = self.present(member) {
                        present.links.remove(&link);
                    }
                    FromEndpoint::LinkDown {
                        member: hex(&member),
                        link,
                        reason: messages::clean(&reason),
                    }
                }
                Event::Log { level, text } => FromEndpoint::Log {
                    level: level_name(level).to_owned(),
                    text: messages::clean(&text),
                },
                Event::Failed(text) => {
                    let text = messages::clean(&text);
                    self.tell(FromEndpoint::Failed { text: text.clone() }).await;
                    return Err(text);
                }
                // Events of the other role.
                Event::DialFailed { .. } | Event::SettingsAck { .. } => continue,
            };
            self.tell(message).await;
            turn += 1;
            if turn % EVENTS_PER_TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(false)
    }

    /// Parses whole; what is sound waits until the members agree.
    async fn reload(&mut self, member: MemberId, version: u32, json: Vec<u8>) {
        let outcome = match api::rules(&json) {
            Ok(rules) => self
                .agreement
                .sent(member, version, json, rules, std::time::Instant::now()),
            Err(text) => Some(Outcome::Refuse { member, version, text }),
        };
        self.conclude(outcome).await;
    }

    /// Switches whole, or refuses whole with the reason. The broker learns of new rules: the next endpoint has them.
    async fn conclude(&self, outcome: Option<Outcome>) {
        match outcome {
            None => {}
            Some(Outcome::Refuse { member, version, text }) => self.endpoint.refuse(member, version, &text),
            Some(Outcome::Switch {
                settings,
                versions,
                fresh,
            }) => {
                self.endpoint.switch(&settings, &versions.into());
                if fresh {
                    self.tell_rules().await;
                    self.tell(FromEndpoint::Switched).await;
                }
            }
        }
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

const NO_BROKER: &str = "the cloud's control, which connects to what is reached without the tunnel, starts anew";
const TOO_MANY_DIALS: &str = "too many connections are under way without the tunnel";

/// Nothing is wrong with the site: it is worth trying again.
fn undialled(text: &str) -> (Code, String) {
    (Code::Limit, text.to_owned())
}

/// Who goes by this name.
fn member(name: &str) -> Option<MemberId> {
    unhex(name)
}

/// Until the shards have something to say.
async fn awake(wake: &AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut guard) = wake.readable().await else {
            return;
        };
        let mut count = [0u8; 8];
        let read = guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut count)?));
        if !matches!(read, Err(_would_block)) {
            return;
        }
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    }
}
