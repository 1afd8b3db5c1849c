//! Which link a stream goes to, and what waits while there is none.

use std::rc::Rc;

use super::link::Link;
use super::linked::StreamCell;
use super::waiting::Wait;
use super::{Shard, runtime};
use crate::limits::{OPEN_PACE, WAITING_STARTS_PER_TURN};
use crate::mux::{Code, Open, OpenError, StreamRef};

impl Shard {
    pub(super) fn has_live_link(&self) -> bool {
        self.0.links.borrow().iter().any(|l| l.is_live())
    }

    /// Opens a stream on some link, whenever one takes it.
    pub(super) async fn place(
        &self,
        open: &Open,
        cell: &Rc<StreamCell>,
    ) -> Result<(Rc<Link>, StreamRef), (Code, String)> {
        let mut called = false;
        let pace_end = runtime::now() + self.times().resume_window;
        loop {
            if self.is_draining() {
                return Err((Code::Shutdown, "the tunnel is shutting down".to_owned()));
            }
            let in_turn = called || self.0.waiting.is_empty();
            match if in_turn {
                self.try_place(open, cell)
            } else {
                Err(OpenError::NotLive)
            } {
                Ok(place) => return Ok(place),
                Err(OpenError::Limit) => {
                    return Err((Code::Limit, "the tunnel has as many streams open as it may".to_owned()));
                }
                Err(OpenError::Paced) if runtime::now() > pace_end => {
                    return Err((Code::Limit, "too many streams were reset early".to_owned()));
                }
                Err(OpenError::Paced) => runtime::sleep(OPEN_PACE).await,
                Err(OpenError::NotLive) => {
                    self.wait_for_link(called).await?;
                    called = true;
                }
            }
        }
    }

    pub(super) fn try_place(&self, open: &Open, cell: &Rc<StreamCell>) -> Result<(Rc<Link>, StreamRef), OpenError> {
        let prefers = cell.prefers.get();
        let link = self.least_loaded(|l| prefers.is_some_and(|member| member != l.member));
        let link = link.filter(|l| l.is_live()).ok_or(OpenError::NotLive)?;
        let stream = link.open(self, open, cell)?;
        self.take_turn(&link);
        Ok((link, stream))
    }

    /// The member of a pool whose turn it is, for streams that are to stay together; none if there has been no link. Not by
    /// load: what stays there has none yet, and a hundred browsers may come at once.
    pub fn next_member(&self) -> Option<[u8; 16]> {
        let links = self.0.links.borrow();
        let link = links.iter().min_by_key(|l| (!l.is_live(), l.counters.turn.value()))?;
        self.take_turn(link);
        Some(link.member)
    }

    /// Of the least loaded member the least loaded link; members of equal load take turns. One that is live goes before
    /// the others, and then one that is not to be `avoided`.
    fn least_loaded(&self, avoided: impl Fn(&Link) -> bool) -> Option<Rc<Link>> {
        let links = self.0.links.borrow();
        let key = |l: &&Rc<Link>| {
            let load = (l.counters.streams.value(), l.counters.turn.value(), l.load());
            (!l.is_live(), avoided(l), load)
        };
        links.iter().min_by_key(key).cloned()
    }

    fn take_turn(&self, link: &Link) {
        self.0.next_turn.set(self.0.next_turn.get() + 1);
        link.counters.turn.set(self.0.next_turn.get());
    }

    pub(super) async fn wait_for_link(&self, first: bool) -> Result<(), (Code, String)> {
        self.refresh_live();
        let down = |text: &str| Err((Code::TunnelDown, text.to_owned()));
        if !self.0.was_live.get() {
            return down("the tunnel has no connection yet");
        }
        let now = runtime::now();
        let deadline = self.0.dark_since.get().unwrap_or(now) + self.times().resume_window;
        if now >= deadline {
            return down("the tunnel lost its connection");
        }
        if self.has_live_link() {
            self.call_waiting();
        }
        match self.0.waiting.wait(first, deadline.since(now)).await {
            Wait::Called => Ok(()),
            Wait::TimedOut => down("the tunnel lost its connection and did not get it back in time"),
            Wait::Full => down("the tunnel lost its connection, and too many requests wait for it already"),
        }
    }

    /// Notes whether a link is live. To be called after whatever may have changed it.
    pub(super) fn refresh_live(&self) {
        let live = self.0.links.borrow().iter().filter(|l| l.is_live()).count();
        self.0.counters.links_live.set(live as u64);
        if live > 0 {
            self.0.was_live.set(true);
            self.0.left.set(false);
            self.0.dark_since.set(None);
        } else if self.0.dark_since.get().is_none() {
            self.0.dark_since.set(Some(runtime::now()));
        }
        self.forsake();
    }

    /// Tells the streams of members that are lost here when there is another member: what may be repeated moves on.
    fn forsake(&self) {
        let links = self.0.links.borrow();
        let live = |link: &Rc<Link>| link.is_live();
        for lost in links.iter().filter(|l| l.is_lost()) {
            let own = links.iter().any(|l| l.member == lost.member && live(l));
            if !own && links.iter().any(live) {
                lost.forsake();
            }
        }
    }

    /// Whether a stream that `member` does not answer could be placed with another one.
    pub(super) fn has_another_member(&self, member: [u8; 16]) -> bool {
        let links = self.0.links.borrow();
        links.iter().any(|l| l.member != member && l.is_live())
    }

    pub(super) fn link_is_live(&self) {
        self.refresh_live();
        self.call_waiting();
    }

    /// Calls who waits for a link, a few each turn, as long as one is live.
    pub(super) fn call_waiting(&self) {
        if self.0.calling.replace(true) {
            return;
        }
        let shard = self.clone();
        runtime::spawn(async move {
            // Once more after the last: whoever comes while others are called queues behind them.
            loop {
                runtime::yield_now().await;
                if !shard.has_live_link() || shard.0.waiting.call(WAITING_STARTS_PER_TURN) == 0 {
                    break;
                }
            }
            shard.0.calling.set(false);
        });
    }

    pub(super) fn wake_unblocked(&self) {
        loop {
            let next = self.0.budget.borrow_mut().next_unblocked();
            let Some((key, stream)) = next else { break };
            if let Some(link) = self.0.links.borrow().iter().find(|l| l.key == key) {
                link.unblock(stream);
            }
        }
    }
}
