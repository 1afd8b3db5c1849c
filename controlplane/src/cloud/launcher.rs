//! The life of an endpoint process: started or adopted, spoken to, restarted when it dies, and ended with the last of
//! its tunnels.
//!
//! ```text
//!  Join ─► attached ─► links ─► probed: ready
//!                        │
//!  Drain ─► Part ─► Parted, or the time is up ─► Detach ─► history      (the last one: Drain ─► the process ends)
//! ```

mod orphan;
mod seat;
mod sockets;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::limits::SETTINGS_BYTES_MAX;
use dataplane::mux::Code;
use dataplane::rules::{Route, Routes};
use dataplane::shard::Outcome;
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot::Sender;
use tokio::task::JoinSet;

use seat::{Seat, Task};
use sockets::Sockets;

use super::adoption::{self, Key};
use super::broker::{self, Listener, ShardSender};
use super::bucket::Bucket;
use super::ledger::{self, KeptEndpoint, KeptTunnel, Launched};
use super::limits::{
    BOOT_MAX, DEATHS_MAX, DEATHS_SPAN, DIALS_OF_ONE_MAX, EXIT_MAX, LAYERS_MAX, LINES_BURST, LINES_PER_SECOND,
    RELAUNCH_PAUSE, RULES_PART_BYTES_MAX, SEND_MAX,
};
use super::messages::{self, FromEndpoint, MemberCounts, ToEndpoint, Unreached};
use super::pid::{Pid, Process};
use super::process::{discard_if_empty, spawn, stderr_file};
use super::registry::{Command, Member, State};
use super::seqpacket::Seqpacket;
use super::tunnel_ca::TunnelCa;
use super::{Cloud, probe, unix_now};
use crate::api::Counts;

/// An endpoint and everything that outlives its processes.
pub struct Life {
    cloud: Arc<Cloud>,
    /// The id of the tunnel that it was started for.
    id: String,
    shards: usize,
    seats: Vec<Seat>,
    /// The rules in force, as JSON.
    rules: Vec<u8>,
    /// What of them the broker holds an endpoint to.
    routes: Routes,
    /// Each of its processes has it; none if it was made by a version without.
    ca: Option<TunnelCa>,
    /// A process that an earlier `serve` has started.
    orphan: Option<(Process, Key)>,
    listener: Arc<Listener>,
    commands: Receiver<Command>,
    /// Since when no tunnel has had a link; `None` while one has, or before the first.
    dark_since: Option<Instant>,
}

/// Why an endpoint process is no more.
enum End {
    /// It was told to go.
    Finished,
    Died(String),
}

/// Runs the endpoint until its tunnels have ended, and leaves them in the history.
pub async fn run(mut life: Life) {
    let mut deaths: Vec<Instant> = Vec::new();
    loop {
        let died = match life.endpoint().await {
            End::Finished => break,
            End::Died(text) => text,
        };
        tracing::warn!(endpoint = life.id, "it ended: {died}");
        life.lose().await;
        deaths.retain(|death| death.elapsed() < DEATHS_SPAN);
        deaths.push(Instant::now());
        if deaths.len() > DEATHS_MAX {
            tracing::error!(endpoint = life.id, "given up: its processes keep dying");
            break;
        }
        if deaths.len() > 1 {
            tokio::time::sleep(RELAUNCH_PAUSE).await;
        }
    }
    // One that was about to join has no seat yet.
    for tunnel in life.tunnels() {
        life.cloud
            .registry()
            .halt(&tunnel, "endpoint", false, unix_now(), Duration::ZERO);
    }
    for tunnel in life.tunnels() {
        life.end(&tunnel).await;
    }
    adoption::discard(&life.cloud.options.state, &life.id);
    discard_if_empty(&stderr_file(&life.cloud.options.state, &life.id));
}

/// One endpoint process with what belongs to it.
struct Running {
    process: Process,
    control: Arc<Seqpacket>,
    fingerprint: String,
    knows_strangers: bool,
    lines: Bucket,
    /// New rules, as far as they have come.
    rules: Vec<u8>,
    /// Who asks what a tunnel has counted.
    counts: Vec<(String, Sender<Counts>)>,
    /// Connections that are under way for it.
    dials: JoinSet<Dialled>,
}

/// What a dial came to, for whom.
struct Dialled {
    shard: usize,
    id: u64,
    outcome: Outcome,
}

impl Running {
    fn new(process: Process, control: Arc<Seqpacket>) -> Self {
        Self {
            process,
            control,
            fingerprint: String::new(),
            knows_strangers: true,
            lines: Bucket::new(LINES_BURST, LINES_PER_SECOND, Instant::now()),
            rules: Vec::new(),
            counts: Vec::new(),
            dials: JoinSet::new(),
        }
    }
}

impl Life {
    /// An endpoint for its first tunnel, with rules of settings version 1.
    pub fn new(
        cloud: Arc<Cloud>,
        first: Member,
        shards: usize,
        rules: Vec<u8>,
        ca: TunnelCa,
        listener: Arc<Listener>,
        commands: Receiver<Command>,
    ) -> Self {
        Self {
            cloud,
            id: first.tunnel.clone(),
            shards,
            seats: vec![Seat::new(first)],
            routes: routes(&rules),
            rules,
            ca: Some(ca),
            orphan: None,
            listener,
            commands,
            dark_since: None,
        }
    }

    /// The endpoint of an earlier `serve`, with its process or what comes after it.
    pub fn restored(
        cloud: Arc<Cloud>,
        endpoint: KeptEndpoint,
        tunnels: Vec<KeptTunnel>,
        orphan: Option<(Process, Key)>,
        listener: Arc<Listener>,
        commands: Receiver<Command>,
    ) -> Self {
        Self {
            cloud,
            dark_since: endpoint.dark_since(),
            id: endpoint.id,
            shards: endpoint.shards,
            seats: tunnels.into_iter().map(Seat::restored).collect(),
            routes: routes(&endpoint.rules),
            rules: endpoint.rules,
            ca: endpoint.ca,
            orphan,
            listener,
            commands,
        }
    }

    fn tunnels(&self) -> Vec<String> {
        self.cloud.registry().tunnels_of(&self.id)
    }

    fn is_ending(&self) -> bool {
        self.cloud.registry().is_ending(&self.id)
    }

    /// The process is no more: its tunnels wait for the next one.
    async fn lose(&mut self) {
        let had_links = self.cloud.registry().has_links(&self.id);
        for seat in &mut self.seats {
            seat.probe = None;
            self.cloud.registry().endpoint_lost(&seat.member.tunnel, Instant::now());
        }
        if had_links {
            self.dark().await;
        }
    }

    /// The last link is lost.
    async fn dark(&mut self) {
        self.dark_since = Some(Instant::now());
        self.written(ledger::linked(&self.cloud.store, &self.id, false, Some(ledger::now())).await);
    }

    /// Without the store the tunnels work, but another `serve` would not know of them.
    fn written(&self, result: rusqlite::Result<()>) {
        if let Err(e) = result {
            tracing::error!(endpoint = self.id, "the store: {e}");
        }
    }

    /// Writes what is new about a tunnel.
    async fn save(&self, tunnel: &str) {
        let kept = self.cloud.registry().kept(tunnel).into_iter().collect();
        self.written(ledger::save(&self.cloud.store, kept).await);
    }

    /// Ends the tunnels on their way out for which there is no process.
    async fn dismiss(&mut self) {
        let halting = |seat: &Seat| self.cloud.registry().state(&seat.member.tunnel) == Some(State::Halting);
        let (gone, kept) = std::mem::take(&mut self.seats).into_iter().partition(halting);
        self.seats = kept;
        let gone: Vec<Seat> = gone;
        for seat in gone {
            self.end(&seat.member.tunnel).await;
        }
    }

    /// Leaves a tunnel in the history.
    async fn end(&self, tunnel: &str) {
        let ended = self.cloud.registry().ended(tunnel, unix_now());
        if let Some(object) = ended {
            tracing::info!(tunnel, reason = object.shutdown_reason, "terminated");
            self.written(ledger::ended(&self.cloud.store, object).await);
        }
        // Only now: whoever waits for the end finds it in the history.
        self.cloud.registry().remove(tunnel);
    }

    /// One process, from its start to its end.
    async fn endpoint(&mut self) -> End {
        let begun = match self.orphan.take() {
            Some((process, key)) => self.adopt(process, &key).await,
            None => {
                self.dismiss().await;
                if self.is_ending() {
                    return End::Finished;
                }
                let booted = tokio::time::timeout(BOOT_MAX, self.boot()).await;
                booted.unwrap_or_else(|_| Err("it was not ready in time".into()))
            }
        };
        let (mut running, shards) = match begun {
            Ok(begun) => begun,
            Err(text) => return End::Died(text),
        };
        // It goes on while the endpoint drains: new browsers are told so by the endpoint.
        let broker = broker::run(
            Arc::clone(&self.listener),
            Arc::clone(&running.control),
            shards,
            running.knows_strangers,
        );
        let broker = Task(tokio::spawn(broker));
        loop {
            let deadline = self.seats.iter().filter_map(|s| s.deadline).min();
            let result = tokio::select! {
                message = messages::receive(&running.control) => match message {
                    Ok(Some((message, _))) => self.heard(&mut running, message).await,
                    Ok(None) => Err("it closed its control socket".to_owned()),
                    Err(e) => Err(format!("it said what no endpoint says: {e}")),
                },
                Some(command) = self.commands.recv() => self.told(&mut running, command).await,
                Some(dialled) = running.dials.join_next() => match dialled {
                    Ok(dialled) => answer(&running, dialled).await,
                    // A panic: the shard's own time runs out.
                    Err(_) => Ok(()),
                },
                () = tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    self.cut(&running).await
                }
            };
            if let Err(text) = result {
                drop(broker);
                return self.finish(running, text).await;
            }
        }
    }

    /// Starts the process, gives it its configuration and waits for its key.
    async fn boot(&mut self) -> Result<(Running, Vec<ShardSender>), String> {
        let state = &self.cloud.options.state;
        let Sockets {
            control,
            shards,
            theirs,
        } = Sockets::new(self.shards).map_err(|e| e.to_string())?;
        let key = Key::random().map_err(|e| e.to_string())?;
        let door = adoption::make(state, &self.id).map_err(|e| e.to_string())?;
        let child = spawn(state, &self.id, theirs.control).map_err(|e| e.to_string())?;
        // Written before the process has anything to do: one that nobody knows of ends by itself.
        if let Some(pid) = child.id().and_then(|id| Pid::of(id.cast_signed())) {
            let key = key.clone();
            self.written(ledger::launched(&self.cloud.store, &self.id, Launched { pid, key }).await);
        }
        for seat in &self.seats {
            self.cloud.registry().booting(&seat.member.tunnel);
        }
        let mut sockets = vec![door];
        sockets.extend(theirs.browsers);
        self.configure(&control, key, &sockets)
            .await
            .map_err(|e| e.to_string())?;
        drop(sockets);
        let mut running = Running::new(Process::Child(child), control);
        loop {
            match messages::receive(&running.control).await {
                Ok(Some((
                    FromEndpoint::Ready {
                        fingerprint,
                        driver,
                        refused,
                    },
                    _,
                ))) => {
                    if crate::secret::unhex::<32>(&fingerprint).is_none() {
                        return Err("it named no key".into());
                    }
                    let proxy = self.listener.address;
                    tracing::info!(endpoint = self.id, %proxy, driver = messages::clean(&driver), "running");
                    for text in refused.iter().take(LAYERS_MAX) {
                        tracing::warn!(endpoint = self.id, "its sandbox has a hole: {}", messages::clean(text));
                    }
                    self.runs(&mut running, fingerprint).await;
                    return Ok((running, shards));
                }
                Ok(Some((message, _))) => self.heard(&mut running, message).await?,
                Ok(None) => {
                    let file = stderr_file(&self.cloud.options.state, &self.id);
                    return Err(format!("it did not start: see {}", file.display()));
                }
                Err(e) => return Err(format!("it did not start: {e}")),
            }
        }
    }

    /// The process answers, under this key.
    async fn runs(&mut self, running: &mut Running, fingerprint: String) {
        running.fingerprint = fingerprint;
        self.written(ledger::runs(&self.cloud.store, &self.id, &running.fingerprint).await);
        for seat in &self.seats {
            self.joins(running, &seat.member.tunnel).await;
        }
    }

    /// A tunnel has a process that serves it.
    async fn joins(&self, running: &Running, tunnel: &str) {
        self.cloud
            .registry()
            .running(tunnel, &running.fingerprint, Instant::now(), unix_now());
        self.save(tunnel).await;
    }

    async fn configure(&self, control: &Seqpacket, adoption: Key, sockets: &[OwnedFd]) -> io::Result<()> {
        for part in self.rules.chunks(RULES_PART_BYTES_MAX) {
            let part = messages::encode(part);
            messages::send(control, &ToEndpoint::Rules { part }, &[]).await?;
        }
        let options = &self.cloud.options;
        let start = ToEndpoint::Start {
            tunnel: self.id.clone(),
            shards: self.shards,
            driver: options.driver.name().to_owned(),
            max_streams: options.max_streams,
            memory_bytes: options.memory_bytes,
            version: 1,
            dark_ms: self.dark_since.map(|since| milliseconds(since.elapsed())),
            reload_ms: milliseconds(options.pool_reload_max),
            times: options.times,
            ca: self.ca.clone(),
            adoption,
        };
        let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        messages::send(control, &start, &fds).await?;
        for attach in self.seats.iter().filter_map(Seat::attach) {
            messages::send(control, &attach, &[]).await?;
        }
        Ok(())
    }

    /// What the endpoint says. It may have been taken over: it is believed about its own tunnels only.
    async fn heard(&mut self, running: &mut Running, message: FromEndpoint) -> Result<(), String> {
        match message {
            FromEndpoint::LinkUp { member, link } => self.link_up(&member, link).await,
            FromEndpoint::LinkDown { member, link, reason } => self.link_down(&member, link, &reason).await,
            FromEndpoint::Log { level, text } => {
                if running.lines.take(Instant::now()).is_ok() {
                    log(&self.id, &level, &messages::clean(&text));
                }
            }
            FromEndpoint::Report { members, errors } => self.counted(running, &members, &errors),
            FromEndpoint::Dial { shard, id, host, port } => return self.dial(running, shard, id, host, port).await,
            FromEndpoint::Rules { part } => {
                running
                    .rules
                    .extend(messages::decode(&part).map_err(|e| e.to_string())?);
                if running.rules.len() > SETTINGS_BYTES_MAX {
                    return Err("its rules are too long".into());
                }
            }
            FromEndpoint::Switched => {
                let rules = std::mem::take(&mut running.rules);
                self.cloud.registry().take_rules(&self.id, &rules)?;
                tracing::info!(endpoint = self.id, "new rules are in force");
                self.rules.clone_from(&rules);
                self.routes = routes(&rules);
                self.written(ledger::rules(&self.cloud.store, &self.id, rules).await);
            }
            FromEndpoint::Parted { member } => {
                // With the last one the whole process drains, and goes.
                if let Some(at) = self.seat_at(&member)
                    && (self.seats.len() > 1 || !self.is_ending())
                {
                    return self.detach(running, at).await;
                }
            }
            FromEndpoint::Failed { text } => return Err(messages::clean(&text)),
            FromEndpoint::Drained => tracing::debug!(endpoint = self.id, "drained"),
            FromEndpoint::Ready { .. } | FromEndpoint::Adopted { .. } => {}
        }
        Ok(())
    }

    /// Dials for the endpoint, if its rules say so: not every endpoint that asks is one that was not taken over.
    async fn dial(&self, running: &mut Running, shard: usize, id: u64, host: String, port: u16) -> Result<(), String> {
        let refused = match self.routes.of(&host) {
            Route::Tunnel => Some((Code::Denied, "the rules send this host through the tunnel")),
            Route::Direct if running.dials.len() >= DIALS_OF_ONE_MAX => {
                Some((Code::Limit, "too many connections are under way without the tunnel"))
            }
            Route::Direct => None,
        };
        if let Some((code, text)) = refused {
            let outcome = Err((code, text.to_owned()));
            return answer(running, Dialled { shard, id, outcome }).await;
        }
        let cloud = Arc::clone(&self.cloud);
        running.dials.spawn(async move {
            let outcome = cloud.outside.dial(&host, port).await;
            Dialled { shard, id, outcome }
        });
        Ok(())
    }

    fn seat_at(&self, member: &str) -> Option<usize> {
        self.seats.iter().position(|s| s.name() == Some(member))
    }

    async fn link_up(&mut self, member: &str, link: u16) {
        let Some(at) = self.seat_at(member) else { return };
        let tunnel = self.seats[at].member.tunnel.clone();
        tracing::info!(tunnel, link, "link up");
        let had_links = self.cloud.registry().has_links(&self.id);
        self.cloud.registry().link_up(&tunnel, link, unix_now());
        if !had_links {
            self.dark_since = None;
            self.written(ledger::linked(&self.cloud.store, &self.id, true, None).await);
        }
        let seat = &mut self.seats[at];
        if !self.cloud.registry().awaits_probe(&tunnel) || seat.probe.as_ref().is_some_and(|p| !p.0.is_finished()) {
            return;
        }
        let (cloud, listener, member) = (Arc::clone(&self.cloud), Arc::clone(&self.listener), member.to_owned());
        seat.probe = Some(Task(tokio::spawn(async move {
            probe::run(listener, &member).await;
            tracing::info!(tunnel, "ready: a request has gone through the tunnel and back");
            cloud.registry().ready(&tunnel);
        })));
    }

    async fn link_down(&mut self, member: &str, link: u16, reason: &str) {
        let Some(at) = self.seat_at(member) else { return };
        let tunnel = &self.seats[at].member.tunnel;
        tracing::info!(tunnel, link, reason = messages::clean(reason), "link down");
        let had_links = self.cloud.registry().has_links(&self.id);
        self.cloud
            .registry()
            .link_down(tunnel, link, Instant::now(), unix_now());
        if had_links && !self.cloud.registry().has_links(&self.id) {
            self.dark().await;
        }
    }

    fn counted(&self, running: &mut Running, members: &[MemberCounts], errors: &BTreeMap<String, u64>) {
        for (tunnel, answer) in running.counts.drain(..) {
            let seat = self.seats.iter().find(|s| s.member.tunnel == tunnel);
            let name = seat.and_then(Seat::name);
            let counted = members.iter().find(|m| Some(m.member.as_str()) == name);
            let counts = Counts {
                errors: errors.clone(),
                ..counted.map_or_else(Counts::default, |m| m.counts.clone())
            };
            // Whoever asked may have gone.
            let _ = answer.send(counts);
        }
    }

    /// What the rest of the cloud wants of the endpoint.
    async fn told(&mut self, running: &mut Running, command: Command) -> Result<(), String> {
        match command {
            Command::Join(member) => {
                let seat = Seat::new(member);
                self.joins(running, &seat.member.tunnel).await;
                let attach = seat.attach();
                self.seats.push(seat);
                match attach {
                    Some(attach) => tell(running, &attach, None).await,
                    None => Ok(()),
                }
            }
            Command::Link {
                tunnel,
                link,
                socket,
                first,
            } => {
                let seat = self.seats.iter().find(|s| s.member.tunnel == tunnel);
                let Some(name) = seat.and_then(Seat::name) else {
                    return Ok(());
                };
                let message = ToEndpoint::Link {
                    member: name.to_owned(),
                    link,
                    first: messages::encode(&first),
                };
                tell(running, &message, Some(socket)).await
            }
            Command::Drain { tunnel, limit } => self.drain(running, &tunnel, limit).await,
            Command::Counts { tunnel, answer } => {
                running.counts.retain(|(_, waiting)| !waiting.is_closed());
                running.counts.push((tunnel, answer));
                tell(running, &ToEndpoint::Report, None).await
            }
        }
    }

    /// Takes a tunnel out of service, and the process with the last one.
    async fn drain(&mut self, running: &Running, tunnel: &str, limit: Duration) -> Result<(), String> {
        let Some(at) = self.seats.iter().position(|s| s.member.tunnel == tunnel) else {
            // One that was to join came to nothing, and nobody else is there.
            return match self.seats.is_empty() && self.is_ending() {
                true => tell(running, &ToEndpoint::Drain, None).await,
                false => Ok(()),
            };
        };
        let seat = &mut self.seats[at];
        let deadline = tokio::time::Instant::now() + limit;
        seat.deadline = Some(seat.deadline.map_or(deadline, |d| d.min(deadline)));
        seat.probe = None;
        match seat.name().map(str::to_owned) {
            Some(member) => tell(running, &ToEndpoint::Part { member }, None).await?,
            // It never had a link.
            None if !self.is_ending() => return self.detach(running, at).await,
            None => {}
        }
        if self.is_ending() {
            tell(running, &ToEndpoint::Drain, None).await?;
        }
        Ok(())
    }

    /// Cuts what is left of tunnels whose time is up.
    async fn cut(&mut self, running: &Running) -> Result<(), String> {
        let now = tokio::time::Instant::now();
        while let Some(at) = self.seats.iter().position(|s| s.deadline.is_some_and(|d| d <= now)) {
            if self.seats.len() == 1 && self.is_ending() {
                return Err("its streams were cut at the time limit".into());
            }
            self.detach(running, at).await?;
        }
        Ok(())
    }

    /// Ends one tunnel of several.
    async fn detach(&mut self, running: &Running, at: usize) -> Result<(), String> {
        let seat = self.seats.remove(at);
        if let Some(member) = seat.name() {
            let member = member.to_owned();
            tell(running, &ToEndpoint::Detach { member }, None).await?;
        }
        self.end(&seat.member.tunnel).await;
        Ok(())
    }

    /// Waits for the process, or ends it.
    async fn finish(&self, mut running: Running, text: String) -> End {
        let how = match tokio::time::timeout(EXIT_MAX, running.process.end()).await {
            Ok(how) => how,
            Err(_) => {
                running.process.kill().await;
                "killed".into()
            }
        };
        if self.is_ending() {
            return End::Finished;
        }
        End::Died(format!("{text} ({how})"))
    }
}

/// The rules were sound when they came in.
fn routes(rules: &[u8]) -> Routes {
    crate::api::routes(rules).unwrap_or_default()
}

async fn answer(running: &Running, Dialled { shard, id, outcome }: Dialled) -> Result<(), String> {
    let (outcome, socket) = match outcome {
        Ok((socket, address)) => (Ok(address), Some(socket)),
        Err((code, text)) => {
            let (code, text) = (code.name().to_owned(), messages::clean(&text));
            (Err(Unreached { code, text }), None)
        }
    };
    tell(running, &ToEndpoint::Dialled { shard, id, outcome }, socket).await
}

async fn tell(running: &Running, message: &ToEndpoint, socket: Option<OwnedFd>) -> Result<(), String> {
    let fds: Vec<_> = socket.iter().map(AsFd::as_fd).collect();
    match tokio::time::timeout(SEND_MAX, messages::send(&running.control, message, &fds)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("it takes no messages".into()),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn log(endpoint: &str, level: &str, text: &str) {
    match level {
        "error" => tracing::error!(endpoint, "{text}"),
        "warn" => tracing::warn!(endpoint, "{text}"),
        "info" => tracing::info!(endpoint, "{text}"),
        _ => tracing::debug!(endpoint, "{text}"),
    }
}
