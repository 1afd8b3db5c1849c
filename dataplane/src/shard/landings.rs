//! Who waits here for a request that another shard may have sent. No waker of the runtime leaves its thread: what others
//! wake rings this shard's mailbox.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Wake, Waker};

use super::mailbox::{Command, Outbox};
use crate::cache::{Follow, Outcome};

pub(super) struct Landings {
    bell: Arc<Bell>,
    /// What others wake: `bell`.
    waker: Waker,
    /// The tasks that wait, and for what; each is one of a bounded number of followers.
    waiting: RefCell<HashMap<u64, (Waker, Rc<Follow>)>>,
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
    pub async fn landed(&self, follow: Follow) -> Outcome {
        let follow = Rc::new(follow);
        let place = Place {
            landings: self,
            id: self.next.replace(self.next.get() + 1),
        };
        poll_fn(|cx| match follow.poll(&self.waker) {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                let waiter = (cx.waker().clone(), Rc::clone(&follow));
                self.waiting.borrow_mut().insert(place.id, waiter);
                Poll::Pending
            }
        })
        .await
    }

    /// To be called when the mailbox has rung: wakes those whose request has landed.
    pub fn call(&self) {
        if self.bell.rung.swap(false, Ordering::AcqRel) {
            let mut waiting = self.waiting.borrow_mut();
            let landed: Vec<_> = waiting.extract_if(|_, (_, follow)| follow.has_landed()).collect();
            drop(waiting);
            landed.into_iter().for_each(|(_, (waker, _))| waker.wake());
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

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::hash::RandomState;
    use std::pin::pin;
    use std::task::Context;

    use super::*;
    use crate::cache::{Asked, Cache, Look, Now, Site};
    use crate::http::{Request, Scheme};
    use crate::shard::mailbox::mailbox;
    use crate::time::Time;
    use crate::wakes::Wakes;

    #[test]
    fn only_those_are_woken_whose_request_has_landed() {
        let cache = Cache::new(1 << 20, RandomState::new());
        let look_up = |path: &str| {
            let head = format!("GET http://a.test/{path} HTTP/1.1\r\nHost: a.test\r\n\r\n");
            let request = Request::parse(head.as_bytes()).unwrap();
            let site = Site {
                scheme: Scheme::Http,
                trusted: true,
                authorized: false,
            };
            let now = Now {
                time: Time::default(),
                wall: 0,
            };
            cache.look_up(&Asked::read(&request, site).unwrap(), None, now)
        };
        let (Look::Ask(one), Look::Ask(other)) = (look_up("one"), look_up("other")) else {
            panic!("they are the first");
        };
        let (Look::Follow(of_one), Look::Follow(of_other)) = (look_up("one"), look_up("other")) else {
            panic!("they are not the first");
        };
        let (outbox, _inbox) = mailbox(1).unwrap();
        let landings = Landings::new(outbox);
        let (mut of_one, mut of_other) = (pin!(landings.landed(of_one)), pin!(landings.landed(of_other)));
        let counts = [Arc::new(Wakes::default()), Arc::new(Wakes::default())];
        let wakers: [Waker; 2] = counts.clone().map(Waker::from);
        assert!(of_one.as_mut().poll(&mut Context::from_waker(&wakers[0])).is_pending());
        assert!(
            of_other
                .as_mut()
                .poll(&mut Context::from_waker(&wakers[1]))
                .is_pending()
        );

        let woken = || counts.each_ref().map(|count| count.count());
        landings.call();
        assert_eq!(woken(), [0, 0]);
        drop(one);
        landings.call();
        assert_eq!(woken(), [1, 0]);
        let polled = of_one.as_mut().poll(&mut Context::from_waker(&wakers[0]));
        assert_eq!(polled, Poll::Ready(Outcome::Alone));
        drop(other);
        landings.call();
        assert_eq!(woken(), [1, 1]);
        assert!(of_other.as_mut().poll(&mut Context::from_waker(&wakers[1])).is_ready());
        assert!(landings.waiting.borrow().is_empty());
    }
}
