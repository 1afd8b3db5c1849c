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

use dataplane::bump::Trust;
use dataplane::limits::{
    CUT_AFTER, DELETE_NOW_MAX, FIRST_DIAL_MAX, READY_MAX, STATE_INTERVAL, STATE_INTERVAL_DOWN, WRONG_KEY_MAX,
};
use dataplane::tls::Identity;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::files::{PidFile, ReadyFile};
use super::held::{End, Held, delete, ticks};
use super::link::Links;
use super::provision;
use super::rest::Rest;
use super::{Failure, say, trust};
use crate::api::Tunnel;
use crate::config::Config;

/// A lost tunnel is made anew after these pauses, the last one for ever.
const RENEW_PAUSES_S: [u64; 5] = [1, 2, 5, 10, 30];

/// Runs until a signal or a failure.
///
/// # Errors
/// [`Failure`], which has the exit code.
pub async fn run(config: Config) -> Result<(), Failure> {
    let _pid = PidFile::take(&config.pidfile)?;
    let mut ready = ReadyFile::prepare(config.readyfile.clone())?;
    let mut signals = Signals::new()?;
    say(&format!("Starting up; pid {}", std::process::id()));
    let system = trust::system();
    let rest = Rest::new(&config, &system)?;
    let trust = trust::of_sites(&config, system)?;
    let mut sc = Sc {
        config: &config,
        rest: &rest,
        trust: &trust,
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
        if started.elapsed() > config.lost_timeout {
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
    trust: &'a Trust,
    signals: &'a mut Signals,
    ready: &'a mut ReadyFile,
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
        let mut held = Held::new(id, self.config.lost_timeout);
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
        let starting = Links::start(self.config, self.trust.clone(), identity, endpoint, rules);
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
            let patience = if links.wrong_keys() > 0 {
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
        let mut beat = ticks(held.heartbeat_interval());
        loop {
            let rest = self.rest;
            let question = held.question(links);
            let ask = tokio::select! {
                () = self.signals.next() => return Ok(End::Stopped),
                () = sleep_until(question.unwrap_or_else(Instant::now)), if question.is_some() => true,
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
            held.questioned(links);
            let Some(answer) = self.unless_signal(rest.tunnel(&held.id)).await else {
                return Ok(End::Stopped);
            };
            let end = match answer {
                Ok(tunnel) => {
                    let end = match held.judge(&tunnel) {
                        // The cloud gives its streams some time, and then cuts them.
                        Err(Failure::Gone(_)) if provision::is_halting(&tunnel) && links.streams() > 0 => None,
                        judged => judged?,
                    };
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
        let drain = self.config.drain_timeout;
        let seconds = drain.as_secs_f32();
        say(&format!(
            "Will wait for up to {seconds}s for jobs using this tunnel to finish"
        ));
        say("Press Ctrl-C again to shut down immediately.");
        let rest = self.rest;
        let patient = async {
            let started = Instant::now();
            if let Some(links) = links {
                links.dismiss();
                // Others of the pool carry on what begins from now on; else the jobs need this tunnel to their end.
                if !(self.config.tunnel_pool && held.has_peers(rest).await) {
                    held.wait_for_jobs(rest, links, started + drain).await;
                }
                let left = drain.saturating_sub(started.elapsed());
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
