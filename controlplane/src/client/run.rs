//! The life of `sc`: start, "up" once it is true, keep, and end.
//!
//! ```text
//!  files ─► tunnel ─► links ─► ready ─► watch ─┬─ signal ─► wait for jobs ─► drain ─► DELETE ─► gone ─► 0
//!             ▲                                ├─ ended by someone ──────────────────────────────────► 6
//!             └────────────────────────────────┴─ lost by the cloud
//! ```

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dataplane::limits::{
    CUT_AFTER, DELETE_MAX, DELETE_NOW_MAX, FIRST_DIAL_MAX, GONE_MAX, HEARTBEAT_INTERVAL, JOBS_MAX, LOST_AFTER,
    READY_MAX, STATE_INTERVAL, STATE_INTERVAL_DOWN, WRONG_KEY_MAX,
};
use dataplane::tls::Identity;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::files::{PidFile, ReadyFile};
use super::link::Links;
use super::provision::{self, Endpoint, Life};
use super::rest::{Rest, RestError};
use super::{Failure, say};
use crate::api::{Heartbeat, Tunnel};
use crate::config::Config;

/// A lost tunnel is made anew after these pauses, the last one for ever.
const RENEW_PAUSES_S: [u64; 5] = [1, 2, 5, 10, 30];

/// How a tunnel's life ended without an error.
enum End {
    /// A signal came.
    Stopped,
    /// The cloud lost the tunnel: make a new one.
    Lost(String),
}

/// Runs until a signal or a failure.
///
/// # Errors
/// [`Failure`], which has the exit code.
pub async fn run(config: Config) -> Result<(), Failure> {
    let _pid = PidFile::take(&config.pidfile)?;
    let mut ready = ReadyFile::prepare(config.readyfile.clone())?;
    let mut signals = Signals::new()?;
    say(&format!("Starting up; pid {}", std::process::id()));
    let rest = Rest::new(&config)?;
    let mut sc = Sc {
        config: &config,
        rest: &rest,
        signals: &mut signals,
        ready: &mut ready,
    };
    let mut end = sc.tunnel().await?;
    let mut renewals = 0;
    while let End::Lost(why) = end {
        tracing::warn!("the tunnel is lost: {why}; making a new one");
        let last = RENEW_PAUSES_S.len() - 1;
        let pause = Duration::from_secs(RENEW_PAUSES_S[renewals.min(last)]);
        renewals += 1;
        if sc.unless_signal(sleep(pause)).await.is_none() {
            break;
        }
        let started = Instant::now();
        end = match sc.tunnel().await {
            Err(Failure::Unreachable(why)) => End::Lost(why),
            other => other?,
        };
        if started.elapsed() > LOST_AFTER {
            renewals = 0;
        }
    }
    say("Goodbye.");
    Ok(())
}

/// SIGINT and SIGTERM, which mean the same.
struct Signals {
    int: Signal,
    term: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let make = |kind| signal(kind).map_err(|e| Failure::Internal(format!("signals: {e}")));
        Ok(Self {
            int: make(SignalKind::interrupt())?,
            term: make(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => tracing::info!("SIGINT"),
            _ = self.term.recv() => tracing::info!("SIGTERM"),
        }
    }
}

struct Sc<'a> {
    config: &'a Config,
    rest: &'a Rest,
    signals: &'a mut Signals,
    ready: &'a mut ReadyFile,
}

/// A tunnel that the cloud has made for us.
struct Held {
    id: String,
    /// When REST last answered about it.
    answered: Instant,
    /// When a link was last seen up.
    linked: Instant,
    /// When its state was last asked for.
    asked: Instant,
}

impl Sc<'_> {
    /// Waits for `work`, but not longer than until a signal; none if one came first.
    async fn unless_signal<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.signals.next() => None,
        }
    }

    /// One tunnel from its request to its end.
    async fn tunnel(&mut self) -> Result<End, Failure> {
        let internal = |e| Failure::Internal(format!("key: {e}"));
        let identity = Arc::new(Identity::generate().map_err(internal)?);
        let request = provision::request(self.config, &identity.fingerprint());
        let mut create = std::pin::pin!(provision::create(self.rest, &request));
        let created = self.unless_signal(&mut create).await;
        let Some(created) = created else {
            // The request may have reached the cloud: a tunnel that nobody knows would stay until it is reaped.
            if let Some(Ok((id, _))) = self.unless_signal(create).await {
                self.delete_now(&id).await;
            }
            return Ok(End::Stopped);
        };
        let (id, tunnel) = created?;
        say(&format!("Provisioned tunnel: {id}"));
        let mut held = Held::new(id);
        let mut links = None;
        let rules = request.settings_json();
        let mut result = self.bring_up(&mut held, tunnel, identity, rules, &mut links).await;
        if let (Ok(None), Some(links)) = (&result, links.as_mut()) {
            result = self.watch(&mut held, links).await.map(Some);
        }
        self.ready.remove();
        match &result {
            Ok(Some(End::Lost(_))) | Err(Failure::Gone(_)) => {}
            Ok(_) => self.shut_down(&held, links.as_mut()).await,
            Err(_) => self.delete_now(&held.id).await,
        }
        if let Some(links) = links {
            links.stop();
        }
        result.map(|end| end.unwrap_or(End::Stopped))
    }

    /// Until "up" is true. None means that it is; a signal or a loss ends it before.
    async fn bring_up(
        &mut self,
        held: &mut Held,
        tunnel: Tunnel,
        identity: Arc<Identity>,
        rules: Vec<u8>,
        links: &mut Option<Links>,
    ) -> Result<Option<End>, Failure> {
        let running = provision::running(self.rest, &held.id, tunnel);
        let Some(endpoint) = self.unless_signal(running).await else {
            return Ok(Some(End::Stopped));
        };
        let endpoint = endpoint?;
        say(&format!("Tunnel ID: {}", held.id));
        let starting = Links::start(self.config, identity, endpoint, rules);
        let Some(started) = self.unless_signal(starting).await else {
            return Ok(Some(End::Stopped));
        };
        let links = links.insert(started?);
        if let Some(end) = self.until_ready(held, links).await? {
            return Ok(Some(end));
        }
        say("Sauce Connect is connected.");
        self.ready.touch()?;
        say("Sauce Connect is up, you may start your tests.");
        Ok(None)
    }

    /// Polls until the cloud's own request has gone through the tunnel and back.
    async fn until_ready(&mut self, held: &mut Held, links: &mut Links) -> Result<Option<End>, Failure> {
        let started = Instant::now();
        for n in 0.. {
            match self.unless_signal(self.rest.tunnel(&held.id)).await {
                None => return Ok(Some(End::Stopped)),
                Some(Ok(tunnel)) => match held.judge(&tunnel)? {
                    Some(end) => return Ok(Some(end)),
                    None if tunnel.is_ready == Some(true) => return Ok(None),
                    None => held.follow(links, &tunnel).await,
                },
                Some(Err(error)) => {
                    if let Some(end) = held.unanswered(&error, links) {
                        return Ok(Some(end));
                    }
                }
            }
            held.note_links(links);
            if let Some(text) = links.failed() {
                return Err(Failure::Internal(text.into()));
            }
            let patience = if links.wrong_key() {
                WRONG_KEY_MAX
            } else {
                FIRST_DIAL_MAX * links.addresses()
            };
            let silent = held.linked < started && started.elapsed() >= patience;
            if silent || started.elapsed() >= READY_MAX {
                break;
            }
            let pause = timeout(provision::poll_pause(n), async {
                loop {
                    links.changed().await;
                }
            });
            if self.unless_signal(pause).await.is_none() {
                return Ok(Some(End::Stopped));
            }
        }
        let (address, up) = (links.address(), links.up());
        let why = match (up, links.last_down()) {
            (0, Some(reason)) => format!("cannot reach the tunnel at {address}: {reason}"),
            (0, None) => format!("cannot reach the tunnel at {address}: no link comes up"),
            _ => format!("no request goes through the tunnel at {address} and back"),
        };
        Err(Failure::Unreachable(why))
    }

    /// Keeps the tunnel until a signal or its end.
    async fn watch(&mut self, held: &mut Held, links: &mut Links) -> Result<End, Failure> {
        let mut state = ticks(STATE_INTERVAL);
        let mut beat = ticks(HEARTBEAT_INTERVAL);
        loop {
            let rest = self.rest;
            let ask = tokio::select! {
                () = self.signals.next() => return Ok(End::Stopped),
                () = links.changed() => {
                    links.up() == 0 && held.asked.elapsed() >= STATE_INTERVAL_DOWN
                }
                _ = beat.tick() => {
                    let call = held.beat(rest, links);
                    match self.unless_signal(call).await {
                        None => return Ok(End::Stopped),
                        Some(alive) => !alive,
                    }
                }
                _ = state.tick() => true,
            };
            held.note_links(links);
            if let Some(text) = links.failed() {
                return Err(Failure::Internal(text.into()));
            }
            if !ask {
                continue;
            }
            held.asked = Instant::now();
            let Some(answer) = self.unless_signal(rest.tunnel(&held.id)).await else {
                return Ok(End::Stopped);
            };
            let end = match answer {
                Ok(tunnel) => {
                    let end = held.judge(&tunnel)?;
                    held.follow(links, &tunnel).await;
                    end
                }
                Err(error) => held.unanswered(&error, links),
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    /// The end that a signal asks for. A second one cuts it short.
    async fn shut_down(&mut self, held: &Held, links: Option<&mut Links>) {
        say("Will wait for up to 300s for jobs using this tunnel to finish");
        say("Press Ctrl-C again to shut down immediately.");
        let rest = self.rest;
        let patient = async {
            let started = Instant::now();
            if let Some(links) = links {
                held.wait_for_jobs(rest, links, started + JOBS_MAX).await;
                let left = JOBS_MAX.saturating_sub(started.elapsed());
                if timeout(left.max(CUT_AFTER), links.drain()).await.is_err() {
                    tracing::warn!("{} streams are cut", links.streams());
                }
            }
            delete(rest, &held.id).await
        };
        match self.unless_signal(patient).await {
            Some(Ok(())) => {}
            Some(Err(error)) => say(&format!(
                "The cloud was not told ({error}); it removes the tunnel by itself."
            )),
            None => self.delete_now(&held.id).await,
        }
    }

    /// Tells the cloud without waiting for what comes of it.
    async fn delete_now(&mut self, id: &str) {
        let call = timeout(DELETE_NOW_MAX, self.rest.delete(id, "sigterm"));
        match self.unless_signal(call).await {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => tracing::warn!("DELETE: {error}"),
            _ => tracing::warn!("DELETE: no answer in time"),
        }
    }
}

impl Held {
    fn new(id: String) -> Self {
        let now = Instant::now();
        Self {
            id,
            answered: now,
            linked: now,
            asked: now,
        }
    }

    fn note_links(&mut self, links: &Links) {
        if links.up() > 0 {
            self.linked = Instant::now();
        }
    }

    /// What an answer means: none to go on.
    fn judge(&mut self, tunnel: &Tunnel) -> Result<Option<End>, Failure> {
        self.answered = Instant::now();
        match provision::life(tunnel) {
            Life::Running | Life::Starting => Ok(None),
            Life::Lost(why) => Ok(Some(End::Lost(why))),
            Life::Ended(why) => Err(Failure::Gone(why)),
        }
    }

    /// What a missing answer means. Trouble of REST alone never ends a tunnel whose links are up.
    fn unanswered(&self, error: &RestError, links: &Links) -> Option<End> {
        tracing::debug!("the tunnel's state: {error}");
        if matches!(error, RestError::Status(404, _)) {
            return Some(End::Lost("the cloud does not know it".into()));
        }
        let alone = self.answered.elapsed().min(self.linked.elapsed());
        (links.up() == 0 && alone >= LOST_AFTER).then(|| {
            let seconds = alone.as_secs();
            End::Lost(format!("no link and no REST for {seconds} s: {error}"))
        })
    }

    async fn follow(&self, links: &mut Links, tunnel: &Tunnel) {
        match Endpoint::of(tunnel) {
            Ok(Some(endpoint)) => links.follow(endpoint).await,
            Ok(None) => {}
            Err(why) => tracing::warn!("the tunnel's endpoint: {why}"),
        }
    }

    /// False if the cloud says that the tunnel is gone; errors say nothing.
    fn beat<'a>(&'a self, rest: &'a Rest, links: &Links) -> impl Future<Output = bool> + 'a {
        let connected = links.up() > 0;
        let since = self.linked.elapsed().as_secs_f64();
        let beat = Heartbeat {
            kgp_is_connected: Some(connected),
            kgp_seconds_since_last_status_change: Some(since),
            memory: None,
        };
        async move {
            match rest.heartbeat(&self.id, &beat).await {
                Ok(alive) => alive,
                Err(error) => {
                    tracing::debug!("heartbeat: {error}");
                    !matches!(error, RestError::Status(404, _))
                }
            }
        }
    }

    /// Until no job runs and no stream is open, or the tunnel is gone, or `deadline`.
    async fn wait_for_jobs(&self, rest: &Rest, links: &mut Links, deadline: Instant) {
        let mut beat = ticks(HEARTBEAT_INTERVAL);
        loop {
            let jobs = match rest.jobs_running(&self.id).await {
                Ok(jobs) => jobs,
                Err(RestError::Status(404, _)) => return,
                Err(error) => {
                    tracing::debug!("jobs are unknown: {error}");
                    0
                }
            };
            let streams = links.streams();
            if jobs == 0 && streams == 0 || Instant::now() >= deadline {
                return;
            }
            tracing::info!("waiting for {jobs} jobs, {streams} streams");
            let pause = Instant::now() + Duration::from_secs(1);
            tokio::select! {
                () = sleep_until(pause.min(deadline)) => {}
                () = async { loop { links.changed().await } } => {}
                _ = beat.tick() => { self.beat(rest, links).await; }
            }
        }
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    ticks
}

/// Deletes the tunnel and polls until it is gone.
async fn delete(rest: &Rest, id: &str) -> Result<(), RestError> {
    let slow = |what: &str| RestError::Unreachable(format!("{what} takes too long"));
    match timeout(DELETE_MAX, rest.delete(id, "sigterm")).await {
        Ok(Ok(())) => {}
        Ok(Err(RestError::Status(404, _))) => return Ok(()),
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(slow("DELETE")),
    }
    let polling = async {
        for n in 0.. {
            match rest.tunnel(id).await {
                Ok(tunnel) if tunnel.status.as_deref() == Some("terminated") => return,
                Err(RestError::Status(404, _)) => return,
                Ok(_) | Err(_) => sleep(provision::poll_pause(n)).await,
            }
        }
    };
    timeout(GONE_MAX, polling).await.map_err(|_| slow("the tunnel's end"))
}
