//! Who waits here for a request that another shard may have sent. No waker of the runtime leaves its thread: what others
//! wake rings this shard's mailbox.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Wake, Waker};

use super::mailbox::{Command, Outbox};
use crate::cache::{Follow, Outcome};

pub(super) struct Landings {
    bell: Arc<Bell>,
    /// What others wake: `bell`.
    waker: Waker,
    /// The tasks that wait; each is one of a bounded number of followers.
    waiting: RefCell<HashMap<u64, Waker>>,
    next: Cell<u64>,
}

struct Bell {
    rung: AtomicBool,
    mailbox: Outbox<Command>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // Many land in one turn.
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.mailbox.ring();
        }
    }
}

impl Landings {
    pub fn new(mailbox: Outbox<Command>) -> Self {
        let rung = AtomicBool::new(false);
        let bell = Arc::new(Bell { rung, mailbox });
        Self {
            waker: bell.clone().into(),
            bell,
            waiting: RefCell::default(),
            next: Cell::new(0),
        }
    }

    /// Waits for the outcome. May be dropped.
    pub async fn landed(&self, follow: &Follow) -> Outcome {
        let place = Place {
            landings: self,
            id: self.next.replace(self.next.get() + 1),
        };
        poll_fn(|cx| match follow.poll(&self.waker) {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                self.waiting.borrow_mut().insert(place.id, cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// To be called when the mailbox has rung: lets all look again if anything landed.
    pub fn call(&self) {
        if self.bell.rung.swap(false, Ordering::AcqRel) {
            let wakers: Vec<_> = self.waiting.borrow_mut().drain().collect();
            wakers.into_iter().for_each(|(_, waker)| waker.wake());
        }
    }
}

/// A waiter's place, free when it is dropped.
struct Place<'a> {
    landings: &'a Landings,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.landings.waiting.borrow_mut().remove(&self.id);
    }
}
