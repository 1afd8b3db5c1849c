//! Timers that are not just waited for: one that is put off again and again ([`Alarm`]), and a limit on any other wait
//! ([`timeout`]).

use std::cell::{OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::runtime::{Sleep, now, sleep};
use crate::time::Time;

/// A timer that is put off with each request and hardly ever rings: monoio's stays where it was set first, and is set
/// again only when it has rung too early.
#[derive(Default)]
pub struct Alarm {
    set: RefCell<Option<(Time, Sleep)>>,
    bell: OnceCell<(Arc<Bell>, Waker)>,
}

/// Who waits for an alarm now. monoio's timer wakes the task that asked it first, and an alarm goes with its connection
/// from one task to another.
#[derive(Default)]
struct Bell {
    waiter: Mutex<Option<Waker>>,
    /// The timer is worth a look: it has rung, or was not asked yet.
    rang: AtomicBool,
}

impl Bell {
    fn waiter(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rang.store(true, Relaxed);
        let waiter = self.waiter().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

/// Forgets the waiter: it would keep the memory of its task.
struct Waits<'a>(&'a OnceCell<(Arc<Bell>, Waker)>);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Some((bell, _)) = self.0.get() {
            bell.waiter().take();
        }
    }
}

impl Alarm {
    /// Waits until a moment. One waiter at a time; may be dropped, and waited for by another task then.
    pub async fn until(&self, moment: Time) {
        let _waits = Waits(&self.bell);
        poll_fn(|cx| self.poll(cx.waker(), moment)).await;
    }

    fn poll(&self, waiter: &Waker, moment: Time) -> Poll<()> {
        let (bell, waker) = self.bell.get_or_init(|| {
            let bell = Arc::<Bell>::default();
            (bell.clone(), bell.into())
        });
        let mut waits = bell.waiter();
        if !waits.as_ref().is_some_and(|waits| waits.will_wake(waiter)) {
            *waits = Some(waiter.clone());
        }
        drop(waits);
        let cx = &mut Context::from_waker(waker);
        let mut set = self.set.borrow_mut();
        loop {
            match &mut *set {
                Some((at, sleep)) if *at <= moment => {
                    if !bell.rang.swap(false, Relaxed) || Pin::new(sleep).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    *set = None;
                }
                _ => {
                    let now = now();
                    if now >= moment {
                        return Poll::Ready(());
                    }
                    *set = Some((moment, sleep(moment.since(now))));
                    bell.rang.store(true, Relaxed);
                }
            }
        }
    }
}

// A struct and no `async fn`, as those of `pair.rs` are.
pin_project! {
    /// See [`timeout`].
    pub struct Timeout<F> {
        #[pin]
        future: F,
        time: Duration,
        sleep: Option<Sleep>,
    }
}

/// Waits for `future` at most `time` from the first poll on; what is ready at once costs no timer. Only for futures that
/// may be dropped: never a link's read or write.
pub fn timeout<F: Future>(time: Duration, future: F) -> Timeout<F> {
    Timeout {
        future,
        time,
        sleep: None,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Option<F::Output>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Some(output));
        }
        let sleep = this.sleep.get_or_insert_with(|| sleep(*this.time));
        Pin::new(sleep).poll(cx).map(|()| None)
    }
}
