//! Browsers' connections that are closed while they ask for nothing, by a drain or by other rules. Each takes its seat once, not for each request:
//! a task has one waker for its life.

use std::future::poll_fn;
use std::task::{Poll, Waker};

use super::Shard;

/// The tasks of one shard that have a seat.
#[derive(Default)]
pub(super) struct Seats {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// A task's seat, until it is dropped.
pub struct Seat {
    shard: Shard,
    number: usize,
}

impl Shard {
    /// A seat for the task that asks. None once nobody serves any more: who comes then is told so when it asks for
    /// something.
    pub async fn take_seat(&self) -> Option<Seat> {
        if self.dismisses() {
            return None;
        }
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let mut seats = self.0.seats.borrow_mut();
        let number = seats.free.pop().unwrap_or_else(|| {
            seats.wakers.push(None);
            seats.wakers.len() - 1
        });
        seats.wakers[number] = Some(waker);
        Some(Seat {
            shard: self.clone(),
            number,
        })
    }

    /// Wakes everyone who has a seat, to look whether it is dismissed.
    pub(super) fn wake_seats(&self) {
        let wakers: Vec<_> = self.0.seats.borrow().wakers.iter().flatten().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Seat {
    /// Waits, in the task whose seat it is, until nobody serves any more, or not this one: `or` is asked again when the rules
    /// have changed. May be dropped.
    pub async fn is_dismissed(&self, or: impl Fn() -> bool) {
        poll_fn(|_| match self.shard.dismisses() || or() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.shard.0.seats.borrow_mut();
        seats.wakers[self.number] = None;
        seats.free.push(self.number);
    }
}
