//! What a new `serve` does with the endpoints of the last one: those that live it adopts, the others it starts again, and
//! tunnels that nobody can still want it leaves to history.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::adoption;
use super::history;
use super::launcher::{self, Life};
use super::ledger::{self, KeptEndpoint, KeptTunnel};
use super::{Cloud, unix_now};

/// The last sign of life of a `serve`: the time of its lock file.
pub struct Served(SystemTime);

impl Served {
    /// Reads it, before this process leaves one of its own.
    pub fn last(lock: &File) -> Self {
        let modified = lock.metadata().and_then(|m| m.modified());
        Self(modified.unwrap_or(SystemTime::UNIX_EPOCH))
    }

    /// Leaves one.
    pub fn note(lock: &File) {
        // Without it a tunnel whose endpoint has ended, too, counts as lost at the next start.
        let _ = lock.set_modified(SystemTime::now());
    }

    /// How long ago that was. A clock that was set back since then shows nothing.
    fn ago(&self) -> Duration {
        self.0.elapsed().unwrap_or_default()
    }
}

/// Goes on with what the last `serve` left.
///
/// # Errors
/// The store fails.
pub async fn take_over(cloud: &Arc<Cloud>, served: &Served) -> rusqlite::Result<()> {
    let (mut endpoints, mut going_on) = (Vec::new(), Vec::new());
    for (endpoint, tunnels) in ledger::load(&cloud.store).await? {
        let ids: Vec<_> = tunnels.iter().map(|t| t.id.clone()).collect();
        let id = endpoint.id.clone();
        if go_on(cloud, served, endpoint, tunnels) {
            endpoints.push(id);
            going_on.extend(ids);
        }
    }
    adoption::discard_others(&cloud.options.state, &endpoints);
    let lost = history::close_unfinished(&cloud.store, &going_on, unix_now()).await?;
    if lost > 0 {
        tracing::warn!("{lost} tunnels of an earlier run are lost");
    }
    Ok(())
}

/// False if these tunnels have ended.
fn go_on(cloud: &Arc<Cloud>, served: &Served, mut endpoint: KeptEndpoint, tunnels: Vec<KeptTunnel>) -> bool {
    let launched = endpoint.process.take();
    // Dropped on the way, it is killed: nobody would listen for it.
    let orphan = launched.and_then(|l| l.pid.open().zip(Some(l.key)));
    if tunnels.is_empty() || (orphan.is_none() && served.ago() >= cloud.options.lost_timeout) {
        return false;
    }
    let listener = match cloud.ports().listen_again(endpoint.proxy) {
        Ok(listener) => Arc::new(listener),
        Err(e) => {
            let proxy = endpoint.proxy;
            tracing::error!(endpoint = endpoint.id, %proxy, "ended: its port cannot be had: {e}");
            return false;
        }
    };
    let commands = cloud.registry().restore(&endpoint, &tunnels, Instant::now());
    let life = Life::restored(Arc::clone(cloud), endpoint, tunnels, orphan, listener, commands);
    tokio::spawn(launcher::run(life));
    true
}
