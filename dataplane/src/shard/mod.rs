//! A shard: one thread, one runtime, its own links, connections, buffers and counters. On the path of a request nothing is
//! shared, locked or atomic between shards.

pub mod buffers;
pub mod runtime;
pub mod stream;

use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use crate::mux::{Code, Open, Side};
use crate::settings::Settings;
use buffers::Buffers;
pub use stream::Stream;

/// Handle of the shard that runs on this thread.
#[derive(Clone)]
pub struct Shard(Rc<Inner>);

struct Inner {
    side: Side,
    buffers: Buffers,
}

/// How loud a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// Counts a browser's or site's connection for as long as it lives.
pub struct Counted(Shard);

#[allow(clippy::todo)]
impl Shard {
    /// Which role this process has.
    pub fn side(&self) -> Side {
        self.0.side
    }

    /// The rules in force; fetch them anew for each request, and name their version in OPEN.
    pub fn settings(&self) -> Arc<Settings> {
        todo!()
    }

    /// The chunks that local sockets are read into.
    pub fn buffers(&self) -> &Buffers {
        &self.0.buffers
    }

    /// Starts a task on this shard.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        runtime::spawn(task);
    }

    /// Opens a stream on the least loaded live link (`open.credit` is set here). Waits while no link is up: in order,
    /// at most 45 s after the last loss; heads only, so read nothing of the body before.
    ///
    /// # Errors
    /// Why there is no stream, with text for people: `tunnel-down`, `limit`, `shutdown`.
    pub async fn open(&self, open: Open) -> Result<Stream, (Code, String)> {
        let _ = open;
        todo!()
    }

    /// Endpoint: carries `nonce` (at most 1 KiB) in a `probe` stream over each live link of every shard and compares the echo.
    ///
    /// # Errors
    /// Which link failed and how; `tunnel-down` without any.
    pub async fn probe(&self, nonce: &[u8]) -> Result<(), (Code, String)> {
        let _ = nonce;
        todo!()
    }

    /// Above the first mark of open descriptors: answer new connections with 503, Retry-After, and close.
    pub fn over_fd_mark(&self) -> bool {
        todo!()
    }

    /// Counts a local connection while the guard lives.
    pub fn count_connection(&self) -> Counted {
        Counted(self.clone())
    }

    /// Counts one request that goes through the tunnel (not the probe).
    pub fn count_request(&self) {
        todo!()
    }

    /// No new requests are to be taken: answer them with `shutdown`, close idle connections.
    pub fn is_draining(&self) -> bool {
        todo!()
    }

    /// This shard has no live link but another has.
    pub fn is_dark(&self) -> bool {
        todo!()
    }

    /// Passes a browser's descriptor, nothing of it read, to a shard that has a live link.
    pub fn forward(&self, browser: OwnedFd) {
        let _ = browser;
        todo!()
    }

    /// `sc`: this address is one of its own listening sockets and is denied to streams.
    pub fn is_own_listener(&self, address: SocketAddr) -> bool {
        let _ = address;
        todo!()
    }

    /// One line for the log, by way of the control thread; lost if it cannot keep up.
    pub fn log(&self, level: Level, text: String) {
        let _ = (level, text);
        todo!()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = &self.0;
    }
}
