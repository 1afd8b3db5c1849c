//! The control thread's runtime: tokio-uring where the kernel allows it, else plain tokio on epoll.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Why a program does not start that was told to do nothing without io_uring, and got `error` for a ring.
pub fn refusal(error: &io::Error) -> String {
    format!("--driver io_uring: the kernel refuses io_uring here ({error}); auto and epoll do without it")
}

/// A runtime for the thread that made it. Its tasks see an ordinary tokio context on both kinds.
pub enum Runtime {
    /// tokio with an io_uring beside it, for file work.
    IoUring(tokio_uring::Runtime),
    /// No ring was asked for, or the kernel, or a container's seccomp profile, refuses one with this error.
    Epoll(tokio::runtime::Runtime, Option<io::Error>),
}

impl Runtime {
    /// Makes a runtime. `tokio_uring::start` would panic where io_uring is refused; this falls back, and
    /// [`Runtime::refused`] says so.
    ///
    /// # Errors
    /// What the system says when even epoll cannot be had.
    pub fn new() -> io::Result<Self> {
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => Ok(Self::IoUring(runtime)),
            Err(refused) => tokio_on_epoll().map(|runtime| Self::Epoll(runtime, Some(refused))),
        }
    }

    /// Plain tokio: for a process that must not have a ring of its own.
    ///
    /// # Errors
    /// What the system says.
    pub fn epoll() -> io::Result<Self> {
        tokio_on_epoll().map(|runtime| Self::Epoll(runtime, None))
    }

    /// What the kernel said when a ring was asked for and not given.
    pub fn refused(&self) -> Option<&io::Error> {
        match self {
            Self::IoUring(_) => None,
            Self::Epoll(_, refused) => refused.as_ref(),
        }
    }

    /// Runs `future` to its end on this thread, and every task that it spawned meanwhile.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::IoUring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime, _) => runtime.block_on(future),
        }
    }
}

fn tokio_on_epoll() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Watches a descriptor for readiness in the runtime of the calling task.
///
/// # Errors
/// What the reactor says.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns one descriptor, which stays open and the same until it is dropped, with the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Whether a descriptor has one of these now. Its end and its errors count as any.
///
/// # Errors
/// What poll(2) said, interruption included.
pub fn has_now(fd: &impl AsFd, flags: PollFlags) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(fd, flags)], Some(&Timespec::default()))? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_run_tasks_and_timers() {
        for runtime in [Runtime::new().unwrap(), Runtime::epoll().unwrap()] {
            let answer = runtime.block_on(async {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                tokio::spawn(async { 42 }).await.unwrap()
            });
            assert_eq!(answer, 42);
        }
    }
}
