//! Endpoint processes that are children, and those that an earlier `serve` has started.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::event::PollFlags;
use rustix::process::{Pid as Id, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

use crate::runtime::{has_now, watch};

/// One process of this machine, ever. Its id alone is given to others after its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pid {
    pub id: i32,
    /// The boot it belongs to, and its start in clock ticks since then.
    pub born: String,
}

impl Pid {
    /// The process that has this id now; none if there is none.
    pub fn of(id: i32) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name may hold anything, parentheses too. Behind it, the state is field 3 and the start field 22.
        let (_, fields) = stat.rsplit_once(") ")?;
        let start = fields.split(' ').nth(22 - 3)?;
        let born = format!("{} {start}", boot.trim());
        Some(Self { id, born })
    }

    /// A hold on this very process, as long as it is there.
    pub fn open(&self) -> Option<Process> {
        let fd = pidfd_open(Id::from_raw(self.id)?, PidfdFlags::NONBLOCK).ok()?;
        // In this order: what is the same after the opening has been opened. It may wait for its parent with nothing left.
        if Self::of(self.id)? != *self || has_ended(&fd) {
            return None;
        }
        watch(fd, Interest::READABLE).ok().map(Process::Adopted)
    }
}

/// A process that does not outlive this value.
pub enum Process {
    /// Killed by the runtime.
    Child(Child),
    /// A pidfd.
    Adopted(AsyncFd<OwnedFd>),
}

impl Process {
    /// Waits for its end, and says how it ended.
    pub async fn end(&mut self) -> String {
        match self {
            Self::Child(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(e) => e.to_string(),
            },
            // Whose child it is learns its status.
            Self::Adopted(pidfd) => match pidfd.readable().await {
                Ok(_) => "ended".into(),
                Err(e) => e.to_string(),
            },
        }
    }

    /// Kills it, and waits for its end.
    pub async fn kill(&mut self) {
        match self {
            // It may have gone in this moment.
            Self::Child(child) => drop(child.kill().await),
            Self::Adopted(pidfd) => {
                kill(pidfd.get_ref());
                self.end().await;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Self::Adopted(pidfd) = self {
            kill(pidfd.get_ref());
        }
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    has_now(pidfd, PollFlags::IN).unwrap_or(false)
}

fn kill(pidfd: &OwnedFd) {
    // It may be gone already.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_of_the_same_id_is_not_taken_for_the_first() {
        crate::runtime::Runtime::epoll().unwrap().block_on(async {
            let sleep = || std::process::Command::new("sleep").arg("60").spawn().unwrap();
            let mut child = sleep();
            let pid = Pid::of(child.id().cast_signed()).unwrap();
            let other = Pid {
                born: format!("{}1", pid.born),
                ..pid.clone()
            };
            assert!(other.open().is_none());
            assert!(child.try_wait().unwrap().is_none(), "the other one was not killed");
            let mut process = pid.open().unwrap();
            process.kill().await;
            assert!(pid.open().is_none(), "nobody has waited for it yet");
            child.wait().unwrap();
            assert!(pid.open().is_none());
            let mut child = sleep();
            drop(Pid::of(child.id().cast_signed()).unwrap().open().unwrap());
            assert!(!child.wait().unwrap().success(), "it ends with its holder");
        });
    }
}
