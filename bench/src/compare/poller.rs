//! epoll, level-triggered, one token a descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

pub use rustix::event::epoll::EventFlags as Interest;

const EVENTS_PER_WAIT: usize = 256;

pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// A descriptor leaves by being closed, or by `delete`.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), interest)?)
    }

    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            interest,
        )?)
    }

    pub fn delete(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Tokens of what is ready; none after `limit`.
    pub fn wait(&self, limit: Option<Duration>, ready: &mut Vec<(u64, Interest)>) -> io::Result<()> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); EVENTS_PER_WAIT];
        let limit = limit.map(|limit| Timespec::try_from(limit).expect("a short time"));
        ready.clear();
        match epoll::wait(&self.epoll, &mut events[..], limit.as_ref()) {
            Ok((events, _)) => ready.extend(events.iter().map(|event| {
                let (data, flags) = (event.data, event.flags);
                (data.u64(), flags)
            })),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

/// Lets the time pass that a measurement lasts, or that lies between two looks at something outside this process.
pub fn pass(time: Duration) {
    let limit = Timespec::try_from(time).expect("a short time");
    // An early end by a signal is as good.
    let _ = rustix::event::poll(&mut [], Some(&limit));
}
