//! A tunnel that the cloud has made for us: what its answers mean, its heartbeat, and its end.

use std::future::Future;
use std::time::Duration;

use dataplane::limits::{
    DELETE_MAX, GONE_MAX, HEARTBEATS_PER_LOSS, STATE_INTERVAL_DOWN, WRONG_KEY_BACKOFF_MAX, WRONG_KEY_BACKOFF_MIN,
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::Failure;
use super::link::Links;
use super::provision::{self, Endpoint, Life};
use super::rest::{Rest, RestError};
use crate::api::{Heartbeat, Tunnel};

/// How a tunnel's life ended without an error.
pub enum End {
    /// A signal came.
    Stopped,
    /// The cloud lost the tunnel: make a new one.
    Lost(String),
}

/// A tunnel that the cloud has made for us.
pub struct Held {
    pub id: String,
    /// When REST last answered about it.
    answered: Instant,
    /// When a link was last seen up.
    pub linked: Instant,
    /// When its state was last asked for.
    pub asked: Instant,
    /// Dials with a wrong key that were followed by a question.
    answered_for: u32,
    /// Questions for the key of a relaunched endpoint, one after the other.
    questions: u32,
    /// Before this no further one is asked.
    next_question: Instant,
    lost_timeout: Duration,
}

impl Held {
    pub fn new(id: String, lost_timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            id,
            answered: now,
            linked: now,
            asked: now,
            answered_for: 0,
            questions: 0,
            next_question: now,
            lost_timeout,
        }
    }

    /// When REST is to be asked whether the endpoint is another one: once after all links were lost; at once after a
    /// dial that met another key, and with growing pauses after further ones. None as long as nothing points to it.
    pub fn question(&mut self, links: &Links) -> Option<Instant> {
        let wrong = links.wrong_keys();
        if wrong < self.answered_for || wrong == 0 {
            (self.answered_for, self.questions) = (0, 0);
        }
        let dark = links.up() == 0 && links.lost().is_some_and(|lost| lost > self.asked);
        let after_loss = dark.then(|| self.asked + STATE_INTERVAL_DOWN);
        let after_dial = (wrong > self.answered_for).then_some(self.next_question);
        after_loss.into_iter().chain(after_dial).min()
    }

    /// The question is asked now.
    pub fn questioned(&mut self, links: &Links) {
        self.answered_for = links.wrong_keys();
        if self.answered_for > 0 {
            let pause = WRONG_KEY_BACKOFF_MIN * 2u32.pow(self.questions.min(8));
            self.questions = self.questions.saturating_add(1);
            self.next_question = Instant::now() + jittered(pause.min(WRONG_KEY_BACKOFF_MAX));
        }
    }

    pub fn heartbeat_interval(&self) -> Duration {
        self.lost_timeout / HEARTBEATS_PER_LOSS
    }

    pub fn note_links(&mut self, links: &Links) {
        if links.up() > 0 {
            self.linked = Instant::now();
        }
    }

    /// What an answer means: none to go on.
    pub fn judge(&mut self, tunnel: &Tunnel) -> Result<Option<End>, Failure> {
        self.answered = Instant::now();
        match provision::life(tunnel) {
            Life::Running | Life::Starting => Ok(None),
            Life::Lost(why) => Ok(Some(End::Lost(why))),
            Life::Ended(why) => Err(Failure::Gone(why)),
        }
    }

    /// What a missing answer means. Trouble of REST alone never ends a tunnel whose links are up.
    pub fn unanswered(&self, error: &RestError, links: &Links) -> Option<End> {
        tracing::debug!("the tunnel's state: {error}");
        if matches!(error, RestError::Status(404, _)) {
            return Some(End::Lost("the cloud does not know it".into()));
        }
        let alone = self.answered.elapsed().min(self.linked.elapsed());
        (links.up() == 0 && alone >= self.lost_timeout).then(|| {
            let seconds = alone.as_secs();
            End::Lost(format!("no link and no REST for {seconds} s: {error}"))
        })
    }

    pub async fn follow(&self, links: &mut Links, tunnel: &Tunnel) {
        match Endpoint::of(tunnel) {
            Ok(Some(endpoint)) => links.follow(endpoint).await,
            Ok(None) => {}
            Err(why) => tracing::warn!("the tunnel's endpoint: {why}"),
        }
    }

    /// False if the cloud says that the tunnel is gone; errors say nothing.
    pub fn beat<'a>(&'a self, rest: &'a Rest, links: &Links) -> impl Future<Output = bool> + 'a {
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

    /// Whether another tunnel of the same pool is ready. Not known counts as no.
    pub async fn has_peers(&self, rest: &Rest) -> bool {
        let Ok(tunnels) = rest.tunnels().await else {
            return false;
        };
        let own = |t: &&Tunnel| t.id.as_deref() == Some(&self.id);
        let Some(own) = tunnels.iter().find(own) else {
            return false;
        };
        tunnels.iter().any(|t| {
            let pooled = t.tunnel_pool == Some(true) && t.tunnel_identifier == own.tunnel_identifier;
            pooled && t.id != own.id && t.status.as_deref() == Some("running") && t.is_ready == Some(true)
        })
    }

    /// Until no job runs and no stream is open, or the tunnel is gone, or `deadline`.
    pub async fn wait_for_jobs(&self, rest: &Rest, links: &mut Links, deadline: Instant) {
        let mut beat = ticks(self.heartbeat_interval());
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

/// Between a half and the whole of `pause`: many `sc` whose cloud was hurt do not ask in step.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness they do.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    pause.mul_f64(0.5 + f64::from(byte[0]) / 512.0)
}

/// A clock that skips what it missed, and first ticks after `every`.
pub fn ticks(every: Duration) -> Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    ticks
}

/// Deletes the tunnel and polls until it is gone.
pub async fn delete(rest: &Rest, id: &str) -> Result<(), RestError> {
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
