//! How one task of a shard tells another that there is something to do. It never leaves the shard's thread: between
//! threads there are mailboxes (`mailbox.rs`).

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// A flag that one task waits for and others raise. Raised twice counts once.
#[derive(Default)]
pub struct Signal {
    raised: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Signal {
    pub const fn new() -> Self {
        Self {
            raised: Cell::new(false),
            waker: Cell::new(None),
        }
    }

    /// Wakes the waiter, or the next one.
    pub fn raise(&self) {
        self.raised.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Takes the flag down; true if it was up.
    pub fn take(&self) -> bool {
        self.raised.take()
    }

    /// Ready once the flag is up, and takes it down.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.raised.take() {
            return Poll::Ready(());
        }
        self.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Waits until the flag is up, and takes it down. May be dropped.
    pub async fn wait(&self) {
        poll_fn(|cx| self.poll(cx)).await;
    }
}
