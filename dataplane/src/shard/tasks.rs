//! What a shard's thread has under way: its tasks, and the operations whose buffers the kernel holds. A runtime can be
//! let go once there are none, and the end of one lets none be: nothing of a tunnel outlives it, in a process that goes on
//! to the next. Where most of many tasks have ended, the allocator is asked for what they had.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use super::signal::Signal;
use super::timers;
use crate::limits::{END_MAX, GIVE_BACK_TASKS_MIN};

thread_local! {
    /// Never dropped with its thread: a runtime that could not be let go has tasks that refer to it.
    static UNDERWAY: ManuallyDrop<Underway> = const {
        ManuallyDrop::new(Underway {
            wakers: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            give_back_at: Cell::new(0),
            operations: Cell::new(0),
            is_ending: Cell::new(false),
            rests: Signal::new(),
        })
    };
}

struct Underway {
    /// One place for each task, with its waker once it has been polled.
    wakers: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<u32>>,
    /// With fewer tasks left memory is given back: an eighth of those that there were at once, an eighth of these …
    give_back_at: Cell<usize>,
    operations: Cell<usize>,
    is_ending: Cell<bool>,
    /// Nothing is left of what is to end.
    rests: Signal,
}

impl Underway {
    fn note_rest(&self) {
        if self.is_ending.get() && self.is_at_rest() {
            self.rests.raise();
        }
    }

    fn tasks(&self) -> usize {
        self.wakers.borrow().len() - self.free.borrow().len()
    }

    fn is_at_rest(&self) -> bool {
        self.operations.get() == 0 && self.tasks() == 0
    }

    fn note_rise(&self) {
        let tasks = self.tasks();
        if tasks >= GIVE_BACK_TASKS_MIN {
            self.give_back_at.set(self.give_back_at.get().max(tasks / 8));
        }
    }

    /// What it costs is little beside what has ended: three times for a thousand tasks, five for sixty thousand.
    fn note_fall(&self) {
        let tasks = self.tasks();
        if tasks < self.give_back_at.get() {
            self.give_back_at.set(tasks / 8);
            GIVE_BACK.get().inspect(|give_back| give_back());
        }
    }
}

static GIVE_BACK: OnceLock<fn()> = OnceLock::new();

/// How this process's allocator gives back what the calling thread has freed. Unasked, mimalloc keeps what thousands of
/// connections had until ten thousand allocations have not found room at once: in an idle process for ever.
pub fn give_back_by(collect: fn()) {
    // The first one stays: there is one allocator.
    let _ = GIVE_BACK.set(collect);
}

/// Ends all tasks of this thread's runtime, those too that begin meanwhile, and waits until the kernel holds no buffer.
/// False if something is left after [`END_MAX`]: the runtime is not to be let go, nor another one that is run on this
/// thread.
pub(super) async fn end() -> bool {
    UNDERWAY.with(|u| u.is_ending.set(true));
    let wakers = UNDERWAY.with(|u| u.wakers.borrow().clone());
    wakers.into_iter().flatten().for_each(Waker::wake);
    if !UNDERWAY.with(|u| u.is_at_rest()) {
        timers::timeout(END_MAX, poll_fn(|cx| UNDERWAY.with(|u| u.rests.poll(cx)))).await;
    }
    UNDERWAY.with(|u| {
        u.is_ending.set(false);
        let rests = u.is_at_rest();
        if rests {
            u.wakers.take();
            u.free.take();
        }
        rests
    })
}

/// A task that its runtime's end ends, and whose panic ends nothing else: a bug met by one stream must not take the
/// shard's other streams with it.
pub(super) struct Task {
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    place: u32,
    /// Its waker is in its place.
    is_known: bool,
}

impl Task {
    pub fn new(future: impl Future<Output = ()> + 'static) -> Self {
        let place = UNDERWAY.with(|u| {
            u.free.borrow_mut().pop().unwrap_or_else(|| {
                let mut wakers = u.wakers.borrow_mut();
                wakers.push(None);
                (wakers.len() - 1) as u32
            })
        });
        UNDERWAY.with(|u| u.note_rise());
        Self {
            future: Some(Box::pin(future)),
            place,
            is_known: false,
        }
    }
}

impl Future for Task {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let is_ending = UNDERWAY.with(|u| {
            if !self.is_known {
                u.wakers.borrow_mut()[self.place as usize] = Some(cx.waker().clone());
                self.is_known = true;
            }
            u.is_ending.get()
        });
        let Some(future) = &mut self.future else {
            return Poll::Ready(());
        };
        let polled = catch_unwind(AssertUnwindSafe(|| match is_ending {
            true => Poll::Ready(()),
            false => future.as_mut().poll(cx),
        }))
        .unwrap_or(Poll::Ready(()));
        if polled.is_ready() {
            // Here, where what panics as it is dropped ends nothing else either.
            let future = self.future.take();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
        }
        polled
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        UNDERWAY.with(|u| {
            let waker = u.wakers.borrow_mut()[self.place as usize].take();
            drop(waker);
            u.free.borrow_mut().push(self.place);
            u.note_fall();
            u.note_rest();
        });
    }
}

/// An operation whose buffer the kernel holds. Belongs to the buffer, which outlives a future that is dropped.
pub(super) struct Operation(());

impl Operation {
    pub fn begin() -> Self {
        UNDERWAY.with(|u| u.operations.set(u.operations.get() + 1));
        Self(())
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        UNDERWAY.with(|u| {
            u.operations.set(u.operations.get() - 1);
            u.note_rest();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::shard::runtime::{self, Driver, Runtime};

    fn run(test: impl Future<Output = ()>) {
        Runtime::new(Driver::Epoll).unwrap().run(test);
    }

    #[test]
    fn an_end_waits_until_the_kernel_has_given_back_the_last_buffer() {
        run(async {
            let operations = [Operation::begin(), Operation::begin()];
            runtime::spawn(std::future::pending());
            let mut end = pin!(end());
            for operation in operations {
                let cx = &mut Context::from_waker(Waker::noop());
                assert!(end.as_mut().poll(cx).is_pending());
                drop(operation);
            }
            assert!(end.await);
        });
        // The second time nothing is under way any more.
        run(async { assert!(end().await) });
    }

    #[test]
    fn memory_is_given_back_where_most_of_many_tasks_have_ended() {
        thread_local! {
            static ASKED: Cell<u32> = const { Cell::new(0) };
        }
        give_back_by(|| ASKED.set(ASKED.get() + 1));
        let flood = |tasks: usize| (0..tasks).map(|_| Task::new(async {})).collect::<Vec<_>>();
        let end = |tasks: &mut Vec<Task>, left: usize| {
            tasks.truncate(left);
            ASKED.get()
        };
        let mut few = flood(GIVE_BACK_TASKS_MIN - 1);
        assert_eq!(end(&mut few, 0), 0);
        let mut many = flood(GIVE_BACK_TASKS_MIN);
        let eighth = GIVE_BACK_TASKS_MIN / 8;
        assert_eq!(end(&mut many, eighth), 0);
        assert_eq!(end(&mut many, eighth - 1), 1);
        many.extend(flood(eighth));
        assert_eq!(end(&mut many, eighth / 8), 1, "of the rest");
        assert_eq!(end(&mut many, 1), 2);
        many.extend(flood(eighth));
        assert_eq!(end(&mut many, 1), 2, "those were few");
    }

    #[test]
    fn an_end_does_not_wait_for_ever() {
        run(async {
            let held = Operation::begin();
            assert!(!end().await);
            drop(held);
        });
    }
}
