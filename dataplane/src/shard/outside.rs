//! Endpoint: connections to sites that are reached without the tunnel. The broker dials them; the endpoint itself makes
//! no socket.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::mailbox::Event;
use super::runtime::Socket;
use super::signal::Signal;
use super::{Shard, timers};
use crate::limits::DIRECT_DIAL_MAX;
use crate::mux::Code;

/// What became of a dial: the connected socket and where it leads, or why there is none, with text for people.
pub type Outcome = Result<(OwnedFd, SocketAddr), (Code, String)>;

/// The dials of one shard that the broker has not answered.
#[derive(Default)]
pub(super) struct Dials {
    next: Cell<u64>,
    pending: RefCell<HashMap<u64, Rc<Pending>>>,
}

#[derive(Default)]
struct Pending {
    outcome: RefCell<Option<Outcome>>,
    answered: Signal,
}

impl Shard {
    /// Asks the broker for a connection. May be dropped: a socket that comes later is closed.
    ///
    /// # Errors
    /// Why there is none, with text for people.
    pub async fn dial_outside(&self, host: &str, port: u16) -> Result<(Socket, SocketAddr), (Code, String)> {
        let dials = &self.0.dials;
        let id = dials.next.get();
        dials.next.set(id + 1);
        let pending = Rc::new(Pending::default());
        dials.pending.borrow_mut().insert(id, pending.clone());
        let _asked = Asked(dials, id);
        let dial = Event::Dial {
            shard: self.0.index,
            id,
            host: host.to_owned(),
            port,
        };
        if self.0.events.send(dial).is_err() {
            return Err((Code::Limit, "the endpoint is too busy to dial".to_owned()));
        }
        let answered = timers::timeout(DIRECT_DIAL_MAX, pending.answered.wait()).await;
        match answered.and_then(|()| pending.outcome.take()) {
            None => Err((
                Code::ConnectTimeout,
                format!("{host}:{port}: the cloud did not connect in time"),
            )),
            Some(Err(unreached)) => Err(unreached),
            Some(Ok((fd, address))) => match Socket::new(fd) {
                Ok(socket) => Ok((socket, address)),
                Err(e) => Err((Code::Limit, format!("{host}:{port}: taking its socket: {e}"))),
            },
        }
    }

    /// The broker's answer; nobody may wait for it any more.
    pub(super) fn dialled(&self, id: u64, outcome: Outcome) {
        if let Some(pending) = self.0.dials.pending.borrow().get(&id) {
            pending.outcome.replace(Some(outcome));
            pending.answered.raise();
        }
    }
}

struct Asked<'a>(&'a Dials, u64);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.pending.borrow_mut().remove(&self.1);
    }
}
