//! The life of a tunnel: one endpoint process, started, spoken to, restarted when it dies, and ended.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use tokio::process::{Child, Command as Process};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;

use super::broker::{self, Listener, ShardSender};
use super::bucket::Bucket;
use super::limits::{
    BOOT_MAX, DEATHS_MAX, DEATHS_SPAN, EXIT_MAX, LINES_BURST, LINES_PER_SECOND, RELAUNCH_PAUSE, RULES_PART_BYTES_MAX,
    SEND_MAX, STDERR_FILES_MAX,
};
use super::messages::{self, FromEndpoint, ToEndpoint};
use super::registry::{Command, Counts, State};
use super::seqpacket::{self, Seqpacket};
use super::{Cloud, history, probe, unix_now};

/// A tunnel and everything that outlives its endpoint processes.
pub struct Life {
    pub cloud: Arc<Cloud>,
    pub id: String,
    /// The member's pinned key; without it no link can be accepted.
    pub fingerprint: Option<String>,
    /// The rules of settings version 1, as JSON.
    pub rules: Vec<u8>,
    pub listener: Arc<Listener>,
    pub commands: Receiver<Command>,
}

/// Why an endpoint process is no more.
enum End {
    /// It was told to go.
    Finished,
    Died(String),
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs the tunnel to its end and leaves it in the history.
pub async fn run(mut life: Life) {
    let mut deaths: Vec<Instant> = Vec::new();
    loop {
        let died = match life.endpoint().await {
            End::Finished => break,
            End::Died(text) => text,
        };
        tracing::warn!(tunnel = life.id, "its endpoint ended: {died}");
        life.cloud.registry().endpoint_lost(&life.id, Instant::now());
        if life.is_halting() {
            break;
        }
        deaths.retain(|death| death.elapsed() < DEATHS_SPAN);
        deaths.push(Instant::now());
        if deaths.len() > DEATHS_MAX {
            tracing::error!(tunnel = life.id, "given up: its endpoints keep dying");
            life.cloud.registry().halt(&life.id, "endpoint", false, unix_now());
            break;
        }
        tokio::time::sleep(RELAUNCH_PAUSE).await;
    }
    let ended = life.cloud.registry().ended(&life.id, unix_now());
    if let Some(tunnel) = ended {
        tracing::info!(tunnel = life.id, reason = tunnel.shutdown_reason, "terminated");
        if let Err(e) = history::save(&life.cloud.store, &tunnel).await {
            tracing::error!(tunnel = life.id, "the store: {e}");
        }
    }
    // Only now: whoever waits for the end finds it in the history.
    life.cloud.registry().remove(&life.id);
    discard_if_empty(&stderr_file(&life.cloud.options.state, &life.id));
}

/// One endpoint process with what belongs to it.
struct Running {
    child: Child,
    control: Seqpacket,
    lines: Bucket,
    probe: Option<Task>,
    /// When streams that are still open are cut.
    deadline: Option<tokio::time::Instant>,
    counts: Vec<tokio::sync::oneshot::Sender<Counts>>,
}

impl Life {
    fn is_halting(&self) -> bool {
        !matches!(
            self.cloud.registry().state(&self.id),
            Some(State::New | State::Booting | State::Running)
        )
    }

    /// One process, from its start to its end.
    async fn endpoint(&mut self) -> End {
        if self.is_halting() {
            return End::Finished;
        }
        let booted = tokio::time::timeout(BOOT_MAX, self.boot()).await;
        let (mut running, shards) = match booted {
            Ok(Ok(booted)) => booted,
            Ok(Err(e)) => return End::Died(format!("it did not start: {e}")),
            Err(_) => return End::Died("it was not ready in time".into()),
        };
        // It goes on while the endpoint drains: new browsers are told so by the endpoint.
        let broker = Task(tokio::spawn(broker::run(Arc::clone(&self.listener), shards)));
        loop {
            if self.is_halting() {
                running.probe = None;
            }
            let deadline = running.deadline;
            let result = tokio::select! {
                message = messages::receive(&running.control) => match message {
                    Ok(Some((message, _))) => self.heard(&mut running, message),
                    Ok(None) => Err("it closed its control socket".to_owned()),
                    Err(e) => Err(format!("it said what no endpoint says: {e}")),
                },
                Some(command) = self.commands.recv() => self.told(&mut running, command).await,
                () = tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    Err("its streams were cut at the time limit".to_owned())
                }
            };
            if let Err(text) = result {
                drop(broker);
                return self.finish(running, text).await;
            }
        }
    }

    /// Starts the process, gives it its configuration and waits for its key.
    async fn boot(&self) -> Result<(Running, Vec<ShardSender>), String> {
        let options = &self.cloud.options;
        let (own, theirs) = seqpacket::pair().map_err(|e| e.to_string())?;
        let pairs: Result<Vec<_>, _> = (0..options.endpoint_shards)
            .map(|_| ShardSender::pair(options.endpoint_shards))
            .collect();
        let (shards, browsers): (Vec<_>, Vec<_>) = pairs.map_err(|e| e.to_string())?.into_iter().unzip();
        let child = spawn(&options.state, &self.id, theirs).map_err(|e| e.to_string())?;
        let control = Seqpacket::new(own).map_err(|e| e.to_string())?;
        self.cloud.registry().booting(&self.id);
        self.configure(&control, &browsers).await.map_err(|e| e.to_string())?;
        drop(browsers);
        let now = Instant::now();
        let mut running = Running {
            child,
            control,
            lines: Bucket::new(LINES_BURST, LINES_PER_SECOND, now),
            probe: None,
            deadline: None,
            counts: Vec::new(),
        };
        loop {
            match messages::receive(&running.control).await {
                Ok(Some((FromEndpoint::Ready { fingerprint, driver }, _))) => {
                    if crate::secret::unhex::<32>(&fingerprint).is_none() {
                        return Err("it named no key".into());
                    }
                    let proxy = self.listener.address;
                    tracing::info!(tunnel = self.id, %proxy, driver = messages::clean(&driver), "running");
                    self.cloud
                        .registry()
                        .running(&self.id, &fingerprint, Instant::now(), unix_now());
                    return Ok((running, shards));
                }
                Ok(Some((message, _))) => self.heard(&mut running, message)?,
                Ok(None) => {
                    return Err(format!("see {}", stderr_file(&options.state, &self.id).display()));
                }
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    async fn configure(&self, control: &Seqpacket, browsers: &[OwnedFd]) -> std::io::Result<()> {
        for part in self.rules.chunks(RULES_PART_BYTES_MAX) {
            let part = messages::encode(part);
            messages::send(control, &ToEndpoint::Rules { part }, &[]).await?;
        }
        let options = &self.cloud.options;
        let start = ToEndpoint::Start {
            tunnel: self.id.clone(),
            shards: options.endpoint_shards,
            driver: options.driver.name().to_owned(),
            max_streams: options.max_streams,
            version: 1,
        };
        let fds: Vec<_> = browsers.iter().map(AsFd::as_fd).collect();
        messages::send(control, &start, &fds).await?;
        if let Some(fingerprint) = self.fingerprint.clone() {
            messages::send(control, &ToEndpoint::Attach { fingerprint, index: 0 }, &[]).await?;
        }
        Ok(())
    }

    /// What the endpoint says. It may have been taken over: it is believed about its own tunnel only.
    fn heard(&self, running: &mut Running, message: FromEndpoint) -> Result<(), String> {
        let tunnel = self.id.as_str();
        match message {
            FromEndpoint::LinkUp { link } => {
                tracing::info!(tunnel, link, "link up");
                self.cloud.registry().link_up(tunnel, link, unix_now());
                if self.cloud.registry().awaits_probe(tunnel)
                    && running.probe.as_ref().is_none_or(|p| p.0.is_finished())
                {
                    running.probe = Some(Task(tokio::spawn(self.probe())));
                }
            }
            FromEndpoint::LinkDown { link, reason } => {
                tracing::info!(tunnel, link, reason = messages::clean(&reason), "link down");
                self.cloud
                    .registry()
                    .link_down(tunnel, link, Instant::now(), unix_now());
            }
            FromEndpoint::Log { level, text } => {
                if running.lines.take(Instant::now()).is_ok() {
                    log(tunnel, &level, &messages::clean(&text));
                }
            }
            FromEndpoint::Report { requests, streams } => {
                for waiting in running.counts.drain(..) {
                    // Whoever asked may have gone.
                    let _ = waiting.send(Counts { requests, streams });
                }
            }
            FromEndpoint::Failed { text } => return Err(messages::clean(&text)),
            FromEndpoint::Drained => tracing::debug!(tunnel, "drained"),
            FromEndpoint::Ready { .. } => {}
        }
        Ok(())
    }

    fn probe(&self) -> impl Future<Output = ()> + Send + 'static {
        let (cloud, id, listener) = (Arc::clone(&self.cloud), self.id.clone(), Arc::clone(&self.listener));
        async move {
            probe::run(listener).await;
            tracing::info!(tunnel = id, "ready: a request has gone through the tunnel and back");
            cloud.registry().ready(&id);
        }
    }

    /// What the rest of the cloud wants of the endpoint.
    async fn told(&self, running: &mut Running, command: Command) -> Result<(), String> {
        let sent = match command {
            Command::Link { link, socket, first } => {
                let Some(fingerprint) = self.fingerprint.clone() else {
                    return Ok(());
                };
                let first = messages::encode(&first);
                let message = ToEndpoint::Link {
                    fingerprint,
                    link,
                    first,
                };
                tokio::time::timeout(SEND_MAX, messages::send(&running.control, &message, &[socket.as_fd()])).await
            }
            Command::Drain { limit } => {
                let deadline = tokio::time::Instant::now() + limit;
                running.deadline = Some(running.deadline.map_or(deadline, |d| d.min(deadline)));
                tokio::time::timeout(SEND_MAX, messages::send(&running.control, &ToEndpoint::Drain, &[])).await
            }
            Command::Counts(answer) => {
                running.counts.retain(|waiting| !waiting.is_closed());
                running.counts.push(answer);
                tokio::time::timeout(SEND_MAX, messages::send(&running.control, &ToEndpoint::Report, &[])).await
            }
        };
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("it takes no messages".into()),
        }
    }

    /// Waits for the process, or ends it.
    async fn finish(&self, mut running: Running, text: String) -> End {
        let closed = tokio::time::timeout(EXIT_MAX, running.child.wait()).await;
        let status = match closed {
            Ok(Ok(status)) => status.to_string(),
            _ => {
                // It may have gone in this moment.
                let _ = running.child.kill().await;
                "killed".into()
            }
        };
        if self.is_halting() {
            return End::Finished;
        }
        End::Died(format!("{text} ({status})"))
    }
}

fn log(tunnel: &str, level: &str, text: &str) {
    match level {
        "error" => tracing::error!(tunnel, "{text}"),
        "warn" => tracing::warn!(tunnel, "{text}"),
        "info" => tracing::info!(tunnel, "{text}"),
        _ => tracing::debug!(tunnel, "{text}"),
    }
}

/// Starts this program again as an endpoint. Its control socket is its standard input: nothing secret, and nothing
/// else, goes by argument, environment or file.
fn spawn(state: &Path, id: &str, control: OwnedFd) -> std::io::Result<Child> {
    let stderr = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(stderr_file(state, id))?;
    Process::new("/proc/self/exe")
        .arg0("sc-cloud")
        .arg("endpoint")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(control))
        .stdout(Stdio::null())
        .stderr(stderr)
        // Ctrl-C in a terminal is for the cloud alone: it drains the endpoints.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

fn stderr_file(state: &Path, id: &str) -> PathBuf {
    state.join("endpoints").join(format!("{id}.stderr"))
}

fn discard_if_empty(path: &Path) {
    if fs::metadata(path).is_ok_and(|m| m.len() == 0) {
        // Left behind it costs a name only.
        let _ = fs::remove_file(path);
    }
}

/// Makes the folder of the endpoints' files and keeps the newest of them.
///
/// # Errors
/// The folder cannot be made or read.
pub fn prepare(state: &Path) -> std::io::Result<()> {
    let folder = state.join("endpoints");
    fs::create_dir_all(&folder)?;
    let mut files: Vec<_> = fs::read_dir(&folder)?
        .flatten()
        .filter_map(|f| Some((f.metadata().ok()?.modified().ok()?, f.path())))
        .collect();
    files.sort();
    let old = files.len().saturating_sub(STDERR_FILES_MAX);
    for (_, path) in &files[..old] {
        // One that stays is tried again at the next start.
        let _ = fs::remove_file(path);
    }
    Ok(())
}
