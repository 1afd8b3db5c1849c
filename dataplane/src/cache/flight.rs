//! Requests for the same URL at the same time: one goes, the others wait for what it brings (RFC 9111 section 4).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::limits::CACHE_FOLLOWERS_MAX;

/// How the request ended that others waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its answer is stored and good for others.
    Shared,
    /// It brought nothing for anybody else: each asks the site itself.
    Alone,
}

/// A request on its way.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// Of the moment that it was sent: an invalidation since then makes what it brings worthless for others.
    pub stamp: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    followers: usize,
    wakers: Vec<(u64, Waker)>,
    next: u64,
}

impl Flight {
    pub fn new(stamp: u64) -> Arc<Self> {
        let state = Mutex::default();
        Arc::new(Self { stamp, state })
    }

    /// Joins those who wait; nothing if they are too many.
    pub fn follow(self: &Arc<Self>) -> Option<Follow> {
        let mut state = self.state();
        if state.followers == CACHE_FOLLOWERS_MAX {
            return None;
        }
        state.followers += 1;
        state.next += 1;
        Some(Follow {
            id: state.next,
            flight: Arc::clone(self),
        })
    }

    /// Lets all go. Only the first outcome counts.
    pub fn land(&self, outcome: Outcome) {
        let mut state = self.state();
        state.outcome.get_or_insert(outcome);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        // Each may run at once and ask for the same lock.
        for (_, waker) in wakers {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait; given up when it is dropped.
#[derive(Debug)]
pub struct Follow {
    id: u64,
    flight: Arc<Flight>,
}

impl Follow {
    /// The outcome, or `None` and `waker` is woken once there is one; the last waker given counts.
    pub fn poll(&self, waker: &Waker) -> Option<Outcome> {
        let mut state = self.flight.state();
        if state.outcome.is_none() {
            match state.wakers.iter_mut().find(|(id, _)| *id == self.id) {
                Some((_, place)) => place.clone_from(waker),
                None => state.wakers.push((self.id, waker.clone())),
            }
        }
        state.outcome
    }

    /// Whether there is an outcome.
    pub fn has_landed(&self) -> bool {
        self.flight.state().outcome.is_some()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let mut state = self.flight.state();
        state.followers -= 1;
        state.wakers.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wakes::Wakes;

    #[test]
    fn all_who_wait_are_woken_once() {
        let flight = Arc::new(Flight::default());
        let counts: Vec<_> = (0..3).map(|_| Arc::new(Wakes::default())).collect();
        let follows: Vec<_> = (0..3).map(|_| flight.follow().unwrap()).collect();
        for (follow, count) in follows.iter().zip(&counts) {
            assert_eq!(follow.poll(&Arc::clone(count).into()), None);
            assert_eq!(follow.poll(&Arc::clone(count).into()), None);
        }
        flight.land(Outcome::Shared);
        flight.land(Outcome::Alone);
        assert!(counts.iter().all(|c| c.count() == 1));
        assert_eq!(follows[0].poll(Waker::noop()), Some(Outcome::Shared));
        assert_eq!(flight.follow().unwrap().poll(Waker::noop()), Some(Outcome::Shared));
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let flight = Arc::new(Flight::default());
        let mut follows: Vec<_> = (0..CACHE_FOLLOWERS_MAX).map(|_| flight.follow().unwrap()).collect();
        let gone = Arc::new(Wakes::default());
        follows.last().unwrap().poll(&Arc::clone(&gone).into());
        assert!(flight.follow().is_none());
        follows.pop();
        assert!(flight.follow().is_some());
        flight.land(Outcome::Alone);
        assert_eq!(gone.count(), 0, "who left is not woken");
    }
}
