//! That one connection at a time takes over a link.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// The turns of a link's new connections.
#[derive(Default)]
pub(super) struct CutOver {
    underway: Cell<bool>,
    /// How many have come, modulo 2³²: the last is the one that waits.
    comers: Cell<u32>,
    waiter: Cell<Option<Waker>>,
}

impl CutOver {
    /// Waits until no cut-over is under way, and begins one. None if another connection has come since: that one goes
    /// before, for the other side has given up this one. May be dropped.
    pub async fn begin(&self) -> Option<Turn<'_>> {
        let own = self.comers.get().wrapping_add(1);
        self.comers.set(own);
        self.wake();
        poll_fn(|cx| {
            if self.comers.get() != own {
                return Poll::Ready(None);
            }
            if self.underway.replace(true) {
                self.waiter.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            Poll::Ready(Some(Turn(self)))
        })
        .await
    }

    pub fn is_underway(&self) -> bool {
        self.underway.get()
    }

    fn wake(&self) {
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }
}

/// A cut-over, which ends as this is dropped.
pub(super) struct Turn<'a>(&'a CutOver);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.underway.set(false);
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::Context;

    use super::*;
    use crate::wakes::Wakes;

    #[test]
    fn the_last_to_come_goes_next_and_whom_it_displaces_is_told() {
        let turns = CutOver::default();
        let wakes: [Arc<Wakes>; 3] = Default::default();
        let wakers = wakes.clone().map(Waker::from);
        let woken = || wakes.each_ref().map(|wakes| wakes.count());
        let [mut first, mut second, mut third] = wakers.each_ref().map(Context::from_waker);

        let (mut a, mut b, mut c) = (pin!(turns.begin()), pin!(turns.begin()), pin!(turns.begin()));
        let Poll::Ready(Some(turn)) = a.as_mut().poll(&mut first) else {
            panic!("nobody else is there");
        };
        assert!(b.as_mut().poll(&mut second).is_pending() && turns.is_underway());
        assert!(c.as_mut().poll(&mut third).is_pending());
        assert_eq!(woken(), [0, 1, 0]);
        assert!(matches!(b.as_mut().poll(&mut second), Poll::Ready(None)));
        drop(turn);
        assert_eq!(woken(), [0, 1, 1]);
        let Poll::Ready(Some(turn)) = c.as_mut().poll(&mut third) else {
            panic!("it is its turn");
        };
        assert!(turns.is_underway());
        drop(turn);
        assert!(!turns.is_underway());
    }
}
