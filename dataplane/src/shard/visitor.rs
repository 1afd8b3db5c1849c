//! Who connects to the proxy port, and who of them is served where.

use std::os::fd::OwnedFd;

use super::mailbox::{Command, Level};
use super::runtime::Socket;
use super::{Counted, Place, Shard};
use crate::limits::STRANGERS_MAX;

/// Who has connected to the proxy port, as the broker says with each socket: the byte of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visitor {
    Browser,
    /// The broker's own self-test.
    Probe,
    /// Of none of the networks that browsers may come from: is served nothing.
    Stranger,
}

impl Visitor {
    /// Of that byte. What nobody knows is given nothing.
    pub fn of(kind: u8) -> Self {
        match kind {
            0 => Self::Browser,
            1 => Self::Probe,
            _ => Self::Stranger,
        }
    }

    pub fn byte(self) -> u8 {
        self as u8
    }
}

impl Shard {
    /// Starts what serves a browser's connection, here or where a link is.
    pub(super) fn serve_browser(&self, browser: OwnedFd, visitor: Visitor) {
        let browser = if visitor == Visitor::Browser && self.is_dark() {
            match self.forward(browser) {
                Ok(()) => return,
                Err(browser) => browser,
            }
        } else {
            browser
        };
        self.serve_here(browser, visitor);
    }

    pub(super) fn serve_here(&self, browser: OwnedFd, visitor: Visitor) {
        match Socket::new(browser) {
            Ok(socket) => (self.0.services.browser)(self, socket, visitor),
            Err(e) => self.log(Level::Warn, format!("taking a browser's socket: {e}")),
        }
    }

    /// Passes a browser's descriptor, nothing of it read, to a shard that has a live link.
    ///
    /// # Errors
    /// The descriptor, if no shard can take it.
    fn forward(&self, browser: OwnedFd) -> Result<(), OwnedFd> {
        let Some(shard) = self.lit_shard() else {
            return Err(browser);
        };
        match self.0.shards[shard].send(Command::Browser(browser)) {
            Err(Command::Browser(browser)) => Err(browser),
            _ => Ok(()),
        }
    }

    /// Counts a connection to the proxy port, if it may have a place: a stranger has none that a browser could have.
    pub(super) fn admit(&self, visitor: Visitor) -> Option<Counted> {
        let place = match visitor {
            Visitor::Browser | Visitor::Probe => None,
            Visitor::Stranger if self.over_fd_mark() => return None,
            Visitor::Stranger => Some(Place::among(&self.0.strangers, STRANGERS_MAX)?),
        };
        Some(self.counted(place))
    }
}
