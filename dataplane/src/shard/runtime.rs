//! The runtime of a shard: the driver that it waits on, and the tasks on it. Only this file, `socket.rs` and `clock.rs`
//! name monoio, so that it can be replaced; only this one and `socket.rs` are `unsafe`.
//!
//! One io_uring (flags `DEFER_TASKRUN | SINGLE_ISSUER` where the kernel has them) or, where io_uring is refused or
//! epoll was asked for, monoio's epoll driver; everything above works the same on both.
//!
//! monoio stays sound under these rules: no `BufReader`/`BufWriter`, no listeners, no foreign wakers (threads talk by
//! eventfd), no runtime dropped while a link's read or write is in flight, [`yield_now`] by a helper task.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use io_uring::register::Restriction;
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::clock::{CLOCK, Clock};
use super::signal::Signal;
use super::{readiness, ring};
use crate::limits::TURNS_MAX;

/// Which kernel interface a shard waits on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// io_uring, else epoll.
    #[default]
    Auto,
    IoUring,
    Epoll,
}

/// A runtime that was built and not yet run; stays on its thread.
pub struct Runtime {
    built: Built,
    /// See [`readiness`].
    set: OwnedFd,
}

enum Built {
    IoUring {
        runtime: monoio::Runtime<TimeDriver<IoUringDriver>>,
        /// See [`DEFERS`].
        defers: Option<RawFd>,
    },
    Epoll(monoio::Runtime<TimeDriver<LegacyDriver>>),
}

impl Runtime {
    /// Builds the runtime of the current thread. A ring does nothing but what `ring.rs` lists; on a kernel that
    /// cannot restrict one there is none.
    ///
    /// # Errors
    /// The kernel refused io_uring while nothing else was allowed, or epoll.
    pub fn new(driver: Driver) -> io::Result<Self> {
        let built = match driver {
            Driver::Epoll => epoll()?,
            Driver::IoUring => io_uring()?,
            Driver::Auto => io_uring().or_else(|_| epoll())?,
        };
        let set = readiness::make()?;
        Ok(Self { built, set })
    }

    /// The driver in use: never `Auto`.
    pub fn driver(&self) -> Driver {
        match self.built {
            Built::IoUring { .. } => Driver::IoUring,
            Built::Epoll(_) => Driver::Epoll,
        }
    }

    /// Runs `main` to its end. All reads and writes of links must have ended by then.
    pub fn run<F: Future>(self, main: F) -> F::Output {
        let Self { mut built, set } = self;
        let main = async {
            spawn(pass_turns());
            spawn(readiness::keep(set));
            // The set is there before anything that goes by it.
            yield_now().await;
            main.await
        };
        let output = match &mut built {
            Built::IoUring { runtime, defers } => {
                DEFERS.set(*defers);
                runtime.block_on(main)
            }
            Built::Epoll(r) => r.block_on(main),
        };
        // Tasks may still wait for local sockets, and dropping a runtime under them is not sound: what it holds goes
        // with the process.
        std::mem::forget(built);
        output
    }
}

fn io_uring() -> io::Result<Built> {
    let build = |flags| {
        RuntimeBuilder::<IoUringDriver>::new()
            .uring_builder(flags)
            .enable_timer()
            .build()
    };
    let (runtime, defers) = ring::restricted(build)?;
    Ok(Built::IoUring { runtime, defers })
}

/// `IORING_REGISTER_RESTRICTIONS` on whatever `fd` is: only a ring that is still disabled takes them.
pub(super) fn restrict_ring(fd: RawFd, restrictions: &[Restriction]) -> io::Result<()> {
    const REGISTER_RESTRICTIONS: u32 = 11;
    // SAFETY: the kernel reads as many entries of 16 bytes as the slice has, and writes nothing.
    unsafe {
        register(
            fd,
            REGISTER_RESTRICTIONS,
            restrictions.as_ptr().cast(),
            restrictions.len(),
        )
    }
}

/// `IORING_REGISTER_ENABLE_RINGS`, on the thread that will submit to the ring.
pub(super) fn enable_ring(fd: RawFd) -> io::Result<()> {
    const REGISTER_ENABLE_RINGS: u32 = 12;
    // SAFETY: the operation takes no argument.
    unsafe { register(fd, REGISTER_ENABLE_RINGS, std::ptr::null(), 0) }
}

/// Has the kernel hand over what has completed. It does so by itself whenever a shard waits, but a shard whose tasks keep
/// waking each other never does.
fn collect(ring: RawFd) {
    const GETEVENTS: libc::c_uint = 1;
    // SAFETY: nothing is submitted, waited for or passed. What the kernel says is of no use: the next wait hears it too.
    unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring,
            0,
            0,
            GETEVENTS,
            std::ptr::null::<libc::sigset_t>(),
            0,
        )
    };
}

/// # Safety
/// `argument` and `count` are what the kernel expects of this operation.
unsafe fn register(fd: RawFd, operation: u32, argument: *const libc::c_void, count: usize) -> io::Result<()> {
    // SAFETY: promised by the caller.
    match unsafe { libc::syscall(libc::SYS_io_uring_register, fd, operation, argument, count) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn epoll() -> io::Result<Built> {
    RuntimeBuilder::<LegacyDriver>::new()
        .enable_timer()
        .build()
        .map(Built::Epoll)
}

/// Starts a task on this shard. A panic ends the task and nothing else.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    drop(monoio::spawn(Contained(Box::pin(future))));
}

/// Keeps a task's panic inside the task: a bug met by one stream must not take the shard's other streams with it.
struct Contained(Pin<Box<dyn Future<Output = ()>>>);

impl Future for Contained {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(ring) = DEFERS.get() {
            let polls = POLLS.get().wrapping_add(1);
            POLLS.set(polls);
            if polls.is_multiple_of(TURNS_MAX) {
                collect(ring);
            }
        }
        CLOCK.set(Clock::Unread);
        let polled = catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))).unwrap_or(Poll::Ready(()));
        CLOCK.set(Clock::NoTask);
        polled
    }
}

thread_local! {
    /// This thread's ring, if completions wait in the kernel until they are asked for.
    static DEFERS: Cell<Option<RawFd>> = const { Cell::new(None) };
    static POLLS: Cell<u32> = const { Cell::new(0) };
}

thread_local! {
    static YIELDED: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
    static TURN: Signal = const { Signal::new() };
}

/// Lets every task that is ready now run first. By way of a helper task: monoio puts a task that wakes itself
/// at the head of its queue, where it would starve the others.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        YIELDED.with_borrow_mut(|y| y.push(cx.waker().clone()));
        TURN.with(Signal::raise);
        Poll::Pending
    })
    .await;
}

async fn pass_turns() {
    loop {
        poll_fn(|cx| TURN.with(|t| t.poll(cx))).await;
        for waker in YIELDED.take() {
            waker.wake();
        }
    }
}
