//! Requests that wait while no link is up: in order, bounded, released a few a turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::signal::Signal;
use super::timers;

/// The queue of one shard.
pub(super) struct Waiting {
    queue: RefCell<VecDeque<Rc<Ticket>>>,
    capacity: usize,
}

#[derive(Default)]
struct Ticket {
    called: Signal,
    left: Cell<bool>,
}

/// Whose wait was dropped leaves the queue.
struct Place<'a>(&'a Waiting, Rc<Ticket>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.1.left.set(true);
        let mut queue = self.0.queue.borrow_mut();
        while queue.front().is_some_and(|t| t.left.get()) {
            queue.pop_front();
        }
        // Those in the middle go when they reach the front, unless they would crowd the waiting out.
        if queue.len() == self.0.capacity {
            queue.retain(|t| !t.left.get());
        }
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Called,
    TimedOut,
    /// The queue is full.
    Full,
}

impl Waiting {
    pub fn new(capacity: usize) -> Self {
        Self {
            queue: RefCell::default(),
            capacity,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Waits to be called, at most `time`: behind the others, or before them after a call that came to nothing.
    pub async fn wait(&self, first: bool, time: Duration) -> Wait {
        let ticket = Rc::new(Ticket::default());
        {
            let mut queue = self.queue.borrow_mut();
            if first {
                queue.push_front(ticket.clone());
            } else if queue.len() >= self.capacity {
                return Wait::Full;
            } else {
                queue.push_back(ticket.clone());
            }
        }
        let place = Place(self, ticket);
        match timers::timeout(time, place.1.called.wait()).await {
            Some(()) => Wait::Called,
            None => Wait::TimedOut,
        }
    }

    /// Calls the next `count` and returns how many there were.
    pub fn call(&self, count: usize) -> usize {
        let mut called = 0;
        while called < count {
            let Some(ticket) = self.queue.borrow_mut().pop_front() else {
                break;
            };
            if !ticket.left.get() {
                ticket.called.raise();
                called += 1;
            }
        }
        called
    }
}
