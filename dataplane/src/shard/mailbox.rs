//! How threads talk to shards and shards to the control thread: a bounded queue and an eventfd as its bell. No waker
//! of the runtime ever leaves its thread.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use rustix::event::{EventfdFlags, eventfd};

use super::outside::Outcome;
use crate::mux::Code;
use crate::settings::Settings;
use crate::stats::MemberCounters;
use crate::tls::Fingerprint;

/// What the control thread is told.
#[derive(Debug)]
pub enum Event {
    /// Both HELLOs of a link's connection are exchanged.
    LinkUp { member: [u8; 16], link: u16 },
    /// The connection of a link that was up is gone.
    LinkDown {
        member: [u8; 16],
        link: u16,
        reason: String,
    },
    /// `sc`: a dial failed. `wrong_key`: the cloud proved another key than the one that REST named, or refused ours.
    DialFailed { link: u16, wrong_key: bool, text: String },
    /// Endpoint: a member sent rules. Parse them, then call `reload` or `refuse`.
    Settings {
        member: [u8; 16],
        link: u16,
        version: u32,
        json: Vec<u8>,
    },
    /// `sc`: the endpoint answered for the rules that it holds now.
    SettingsAck { version: u32, accepted: bool, text: String },
    /// Endpoint: connect to this site, which is reached without the tunnel, and answer this shard with `dialled`.
    Dial {
        shard: usize,
        id: u64,
        host: String,
        port: u16,
    },
    /// One line for the log.
    Log { level: Level, text: String },
    /// `drain` is done: nothing is left on any link.
    Drained,
    /// Endpoint: `part` is done: nothing is left on any link of this member.
    Parted { member: [u8; 16] },
    /// A shard died: the process is to end with this text.
    Failed(String),
}

/// How loud a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// What a shard is told by the control thread or by another shard.
pub(crate) enum Command {
    Attach(Attached),
    /// Drain one member.
    Part([u8; 16]),
    Detach([u8; 16]),
    /// A link's socket, and what the front has read of it.
    Link {
        member: [u8; 16],
        link: u16,
        fd: OwnedFd,
        first: Vec<u8>,
    },
    /// A browser's socket of which nothing was read, from a shard without links.
    Browser(OwnedFd),
    /// Endpoint: browsers come from this socket from now on.
    Browsers(OwnedFd),
    /// `sc`: new rules, to be sent to the endpoint.
    Settings(Arc<Settings>),
    /// Endpoint: the rules in force, and the version under which each member knows them.
    Rules(Arc<Settings>, Arc<[([u8; 16], u32)]>),
    /// Rules that a member sent are not taken.
    Refuse {
        member: [u8; 16],
        version: u32,
        text: String,
    },
    Cloud(SocketAddr, Arc<rustls::ClientConfig>),
    /// Carry this self-test over your links, and answer the shard `from`.
    Probe {
        /// Over the links of this member, or of all.
        member: Option<[u8; 16]>,
        nonce: Vec<u8>,
        from: usize,
        id: u64,
    },
    Probed {
        id: u64,
        result: Result<usize, (Code, String)>,
    },
    /// Endpoint: what became of a dial.
    Dialled {
        id: u64,
        outcome: Outcome,
    },
    Drain,
    /// Streams on which nothing moves any more are not waited for: a drain is to follow.
    Dismiss,
    Stop,
}

/// A member of the tunnel, as an endpoint's shard knows it.
#[derive(Clone)]
pub(crate) struct Attached {
    pub id: [u8; 16],
    pub fingerprint: Fingerprint,
    /// Accepts this member's key and no other.
    pub tls: Arc<rustls::ServerConfig>,
    /// Under which it knows the rules in force.
    pub version: u32,
    /// This shard's.
    pub counters: Arc<MemberCounters>,
    /// It takes no new streams.
    pub parting: bool,
    /// Shards on which it has something left, once it is parting.
    pub unparted: Arc<AtomicUsize>,
}

/// The sending end; any thread may hold one.
pub struct Outbox<T> {
    queue: Sender<T>,
    bell: Arc<OwnedFd>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            bell: self.bell.clone(),
        }
    }
}

/// The receiving end.
pub struct Inbox<T> {
    queue: Receiver<T>,
    bell: Arc<OwnedFd>,
}

/// Makes a queue of at most `capacity` messages, with its bell.
///
/// # Errors
/// No descriptor is left.
pub fn mailbox<T>(capacity: usize) -> io::Result<(Outbox<T>, Inbox<T>)> {
    let (sender, receiver) = bounded(capacity);
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    Ok((
        Outbox {
            queue: sender,
            bell: bell.clone(),
        },
        Inbox { queue: receiver, bell },
    ))
}

impl<T> Outbox<T> {
    /// Queues a message and rings.
    ///
    /// # Errors
    /// The message, if the queue is full or nobody reads it any more.
    pub fn send(&self, message: T) -> Result<(), T> {
        match self.queue.try_send(message) {
            Ok(()) => {
                self.ring();
                Ok(())
            }
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => Err(message),
        }
    }

    /// Rings without a message.
    pub fn ring(&self) {
        // Fails only when the counter is about to overflow: then the bell rings already.
        let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl<T> Inbox<T> {
    /// Takes the next message, if there is one.
    pub fn take(&self) -> Option<T> {
        self.queue.try_recv().ok()
    }

    /// The queue itself.
    pub fn queue(&self) -> &Receiver<T> {
        &self.queue
    }

    /// Readable while the bell has rung; read 8 bytes from it *before* emptying the queue.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Silences the bell.
    pub fn silence(&self) {
        let _ = rustix::io::read(&*self.bell, &mut [0_u8; 8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_rings() {
        let (out, inbox) = mailbox(2).unwrap();
        assert_eq!(out.send(1), Ok(()));
        assert_eq!(out.send(2), Ok(()));
        assert_eq!(out.send(3), Err(3), "the queue is bounded");
        let mut count = [0_u8; 8];
        assert_eq!(rustix::io::read(inbox.bell(), &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 2);
        assert_eq!((inbox.take(), inbox.take(), inbox.take()), (Some(1), Some(2), None));
        drop(inbox);
        assert_eq!(out.send(4), Err(4), "nobody reads");
    }
}
