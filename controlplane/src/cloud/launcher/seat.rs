//! What the launcher knows of one tunnel of an endpoint.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::cloud::ledger::KeptTunnel;
use crate::cloud::messages::{self, ToEndpoint};
use crate::cloud::registry::Member;
use crate::cloud::unix_now;

/// A tunnel, and what is under way for it.
pub struct Seat {
    pub member: Member,
    pub probe: Option<Task>,
    /// When its streams that are still open are cut.
    pub deadline: Option<tokio::time::Instant>,
}

impl Seat {
    pub fn new(member: Member) -> Self {
        Self {
            member,
            probe: None,
            deadline: None,
        }
    }

    /// As the last `serve` left it.
    pub fn restored(kept: KeptTunnel) -> Self {
        let left = kept.cut_at.map(|at| Duration::from_secs(at.saturating_sub(unix_now())));
        Self {
            member: Member {
                fingerprint: kept.request.culvert.and_then(|c| c.fingerprint),
                tunnel: kept.id,
                index: kept.index,
            },
            probe: None,
            deadline: left.map(|left| tokio::time::Instant::now() + left),
        }
    }

    /// What it is called between broker and endpoint.
    pub fn name(&self) -> Option<&str> {
        self.member.fingerprint.as_deref().map(messages::member)
    }

    /// What lets it in there; none if it has no key.
    pub fn attach(&self) -> Option<ToEndpoint> {
        Some(ToEndpoint::Attach {
            fingerprint: self.member.fingerprint.clone()?,
            index: self.member.index,
        })
    }
}

/// A task that ends with its owner.
pub struct Task(pub JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
