//! Adopting a process that an earlier `serve` has started.

use std::io;

use super::sockets::Sockets;
use super::{Life, Running, tell};
use crate::cloud::adoption::{self, Key};
use crate::cloud::broker::ShardSender;
use crate::cloud::limits::{ADOPT_MAX, OFFER_MAX, OFFER_PAUSE};
use crate::cloud::messages::{self, FromEndpoint, Present, ToEndpoint};
use crate::cloud::pid::Process;

impl Life {
    /// Takes over a process that an earlier `serve` has started, or ends it.
    pub(super) async fn adopt(&mut self, process: Process, key: &Key) -> Result<(Running, Vec<ShardSender>), String> {
        let first = Sockets::new(self.shards).map_err(|e| e.to_string())?;
        let mut running = Running::new(process, first.control);
        let shards = tokio::time::timeout(ADOPT_MAX, self.offer(&mut running, key)).await;
        match shards.unwrap_or_else(|_| Err("it does not let itself be adopted".into())) {
            Ok(shards) => Ok((running, shards)),
            Err(text) => {
                running.process.kill().await;
                Err(text)
            }
        }
    }

    /// Offers the process sockets, until it takes some.
    async fn offer(&mut self, running: &mut Running, key: &Key) -> Result<Vec<ShardSender>, String> {
        loop {
            let Sockets {
                control,
                shards,
                theirs,
            } = Sockets::new(self.shards).map_err(|e| e.to_string())?;
            running.control = control;
            running.rules.clear();
            let mut sockets = vec![theirs.control];
            sockets.extend(theirs.browsers);
            match adoption::offer(&self.cloud.options.state, &self.id, key, &sockets) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(OFFER_PAUSE).await;
                    continue;
                }
                Err(e) => return Err(format!("it cannot be adopted: {e}")),
            }
            drop(sockets);
            if let Ok(answered) = tokio::time::timeout(OFFER_MAX, self.answered(running)).await {
                return answered.map(|()| shards);
            }
        }
    }

    /// Waits until the process has taken an offer, and goes on where it stands.
    async fn answered(&mut self, running: &mut Running) -> Result<(), String> {
        loop {
            match messages::receive(&running.control).await {
                Ok(Some((
                    FromEndpoint::Adopted {
                        fingerprint,
                        driver,
                        members,
                        knows_strangers,
                    },
                    _,
                ))) => {
                    running.knows_strangers = knows_strangers;
                    let proxy = self.listener.address;
                    tracing::info!(endpoint = self.id, %proxy, driver = messages::clean(&driver), "adopted");
                    return self.resume(running, fingerprint, members).await;
                }
                Ok(Some((message, _))) => self.heard(running, message).await?,
                Ok(None) => return Err("it ended before it could be adopted".into()),
                Err(e) => return Err(format!("it said what no endpoint says: {e}")),
            }
        }
    }

    /// Brings the process and what is known of its tunnels together.
    async fn resume(
        &mut self,
        running: &mut Running,
        fingerprint: String,
        members: Vec<Present>,
    ) -> Result<(), String> {
        if crate::secret::unhex::<32>(&fingerprint).is_none() {
            return Err("it named no key".into());
        }
        if running.rules == self.rules {
            running.rules.clear();
        } else {
            self.heard(running, FromEndpoint::Switched).await?;
        }
        self.runs(running, fingerprint).await;
        for seat in &self.seats {
            if !members.iter().any(|m| seat.name() == Some(&m.member))
                && let Some(attach) = seat.attach()
            {
                tell(running, &attach, None).await?;
            }
        }
        for Present { member, links, parted } in members {
            if self.seat_at(&member).is_none() {
                tell(running, &ToEndpoint::Detach { member }, None).await?;
                continue;
            }
            for link in links {
                self.link_up(&member, link).await;
            }
            if parted {
                self.heard(running, FromEndpoint::Parted { member }).await?;
            }
        }
        let halting: Vec<_> = self
            .seats
            .iter()
            .filter_map(|s| Some((s.member.tunnel.clone(), s.deadline?)))
            .collect();
        for (tunnel, deadline) in halting {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            self.drain(running, &tunnel, left).await?;
        }
        Ok(())
    }
}
