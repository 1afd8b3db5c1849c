//! A link: its session, and the connection that carries it now.
//!
//! ```text
//!            read_link ─► Opener ─► handle_bytes ┐
//!  socket                                        Session ─► events ─► streams' cells
//!            write_link ◄─ Sealer ◄─ poll_transmit ┘
//! ```
//!
//! One reader, one writer (`connection`) and one timer. Whoever calls the session also does what its events ask for, and
//! tells the writer to look.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::connection::{self, Connection};
use super::cut_over::CutOver;
use super::linked::{Shaken, StreamCell};
use super::mailbox::{Event, Level};
use super::pair::{self, Either};
use super::signal::Signal;
use super::{Shard, runtime};
use crate::error::Error;
use crate::limits::LINK_DOWN_GRACE;
use crate::mux::{self, Budget, Open, Session, Side, StreamRef};
use crate::stats::MemberCounters;
use crate::time::Time;
use crate::tls::{KEY_REFUSED, Opener};

pub(super) struct Link {
    pub key: u32,
    pub member: [u8; 16],
    pub number: u16,
    session: RefCell<Session>,
    cells: RefCell<HashMap<StreamRef, Rc<StreamCell>, mux::IdHash>>,
    connection: RefCell<Option<Rc<Connection>>>,
    /// Raised when the connection is gone: a cut-over waits for it.
    pub gone: Signal,
    pub cut_over: CutOver,
    /// Events are being acted on.
    settling: Cell<bool>,
    timer: Signal,
    /// What the timer waits for; `None`: for its signal only.
    armed: Cell<Option<Time>>,
    up: Cell<bool>,
    /// It drains, or is about to.
    draining: Cell<bool>,
    /// Nothing is left of its session.
    finished: Cell<bool>,
    /// It finished, or its member was detached: no dials, no new streams.
    retired: Cell<bool>,
    /// Since when it has no connection, after it had one.
    lost_since: Cell<Option<Time>>,
    /// Under which its member knows the rules in force; at `sc` the shard's settings say it.
    version: Cell<u32>,
    /// Of its member on this shard.
    pub counters: Arc<MemberCounters>,
}

/// Lowers its flag when it goes, in a panic too: a link that acts on no event any more would hang whatever it is given.
struct Settling<'a>(&'a Cell<bool>);

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Link {
    /// Makes a link without a connection and starts its timer.
    pub fn start(shard: &Shard, config: mux::Config, counters: Arc<MemberCounters>) -> Rc<Self> {
        let link = Rc::new(Self {
            version: Cell::new(config.settings),
            counters,
            lost_since: Cell::new(None),
            key: config.key,
            member: config.member,
            number: config.link,
            session: RefCell::new(Session::new(config, runtime::now())),
            cells: RefCell::default(),
            connection: RefCell::default(),
            gone: Signal::new(),
            cut_over: CutOver::default(),
            settling: Cell::new(false),
            timer: Signal::new(),
            armed: Cell::new(None),
            up: Cell::new(false),
            draining: Cell::new(false),
            finished: Cell::new(false),
            retired: Cell::new(false),
        });
        runtime::spawn(keep_time(shard.clone(), link.clone()));
        link.settle(shard);
        link
    }

    /// Calls the session, then does what its events ask for.
    pub fn with<R>(self: &Rc<Self>, shard: &Shard, call: impl FnOnce(&mut Session, &mut Budget, Time) -> R) -> R {
        let result = self.ask(shard, call);
        self.settle(shard);
        result
    }

    /// Calls the session for something that leaves no events and nothing to write.
    pub fn ask<R>(&self, shard: &Shard, call: impl FnOnce(&mut Session, &mut Budget, Time) -> R) -> R {
        call(
            &mut self.session.borrow_mut(),
            &mut shard.0.budget.borrow_mut(),
            runtime::now(),
        )
    }

    /// Calls the session for something that only leaves something to write.
    pub fn queue(&self, shard: &Shard, call: impl FnOnce(&mut Session, &mut Budget, Time)) {
        self.ask(shard, call);
        self.tell_writer();
    }

    /// Does what the session's events ask for, and tells the writer to look.
    pub fn settle(self: &Rc<Self>, shard: &Shard) {
        self.settle_quietly(shard);
        self.tell_writer();
    }

    fn tell_writer(&self) {
        if let Some(connection) = &*self.connection.borrow() {
            connection.dirty.raise();
        }
    }

    /// As `settle`, for the writer, which is about to look for more itself.
    pub fn settle_quietly(self: &Rc<Self>, shard: &Shard) {
        // What an event asks for may call the session again. Its events have their turn after this one: the peer decides
        // how many there are, and must not decide how deep the stack is.
        if self.settling.replace(true) {
            return;
        }
        let settling = Settling(&self.settling);
        loop {
            let event = self.session.borrow_mut().poll_event();
            let Some(event) = event else { break };
            self.act(shard, event);
        }
        drop(settling);
        shard.wake_unblocked();
        let next = self.session.borrow().poll_timeout();
        if let Some(next) = next
            && self.armed.get().is_none_or(|armed| next < armed)
        {
            self.armed.set(Some(next));
            self.timer.raise();
        }
    }

    fn act(self: &Rc<Self>, shard: &Shard, event: mux::Event) {
        match event {
            mux::Event::Dial => {
                if !self.retired.get() {
                    runtime::spawn(super::dial::dial(shard.clone(), self.clone()));
                }
            }
            mux::Event::Close(cause) => self.close(cause),
            mux::Event::Up { resumed } => self.is_up(shard, resumed),
            mux::Event::Live => {
                shard.log(Level::Debug, format!("{self} carries streams"));
                shard.link_is_live();
            }
            mux::Event::Opened(stream, open) => self.opened(shard, stream, open),
            mux::Event::Readable(stream) => self.cell(stream, |c| c.readable.raise()),
            mux::Event::Writable(stream) => self.cell(stream, StreamCell::is_writable),
            mux::Event::Accepted(stream, opened) => self.cell(stream, |c| {
                c.opened.set(Some(opened));
                c.accepted.raise();
            }),
            mux::Event::StartTls(stream, sni, _) => self.cell(stream, |c| c.shake(Shaken::Asked(sni))),
            mux::Event::TlsReport(stream, report) => self.cell(stream, |c| c.shake(Shaken::Reported(report))),
            mux::Event::Withdrawn {
                stream,
                frames,
                finished,
            } => {
                if let Some(cell) = self.forget_cell(stream) {
                    shard.0.counters.streams_withdrawn.add(1);
                    cell.withdraw(frames, finished);
                }
            }
            mux::Event::Settings { version, json } => {
                shard.tell(Event::Settings {
                    member: self.member,
                    link: self.number,
                    version,
                    json,
                });
            }
            mux::Event::SettingsAck {
                version,
                accepted,
                text,
            } => self.settings_acked(shard, version, accepted, &text),
            mux::Event::GoAway { reason, text } => {
                shard.log(
                    Level::Info,
                    format!("{self}: the other side drains ({reason:?}): {}", lossy(&text)),
                );
                shard.refresh_live();
                shard.note_goaway();
            }
            mux::Event::Finished => self.finished(shard),
            mux::Event::SessionEnded {
                code,
                peer_at_fault,
                text,
            } => {
                let who = if peer_at_fault {
                    "the other side broke the protocol"
                } else {
                    "ended"
                };
                shard.log(Level::Warn, format!("{self}: session {who}: {}: {text}", code.name()));
                shard.refresh_live();
            }
        }
    }

    fn keep_cell(&self, stream: StreamRef, cell: Rc<StreamCell>) {
        if self.draining.get() {
            cell.draining.raise();
        }
        self.cells.borrow_mut().insert(stream, cell);
        self.counters.streams.add(1);
    }

    fn forget_cell(&self, stream: StreamRef) -> Option<Rc<StreamCell>> {
        let cell = self.cells.borrow_mut().remove(&stream)?;
        self.counters.streams.sub(1);
        Some(cell)
    }

    /// Its streams get no answer for now, and another member could give one.
    pub fn forsake(&self) {
        self.cells.borrow().values().for_each(|cell| cell.forsaken.raise());
    }

    fn cell(&self, stream: StreamRef, act: impl FnOnce(&StreamCell)) {
        if let Some(cell) = self.cells.borrow().get(&stream) {
            act(cell);
        }
    }

    /// There is room again for a stream that was refused.
    pub fn unblock(&self, stream: StreamRef) {
        self.session.borrow_mut().unblock(stream);
        self.cell(stream, StreamCell::is_writable);
    }

    fn is_up(self: &Rc<Self>, shard: &Shard, resumed: bool) {
        if !self.up.replace(true) {
            shard.0.counters.links_up.add(1);
        }
        self.finished.set(false);
        self.lost_since.set(None);
        shard.0.counters.resumes.add(u64::from(resumed));
        self.counters.resumes.add(u64::from(resumed));
        if shard.is_leaving(self.member) && !resumed {
            self.drain(shard, mux::GoAwayReason::Shutdown, super::DRAINING);
        }
        shard.tell(Event::LinkUp {
            member: self.member,
            link: self.number,
        });
    }

    fn opened(self: &Rc<Self>, shard: &Shard, stream: StreamRef, open: Open) {
        let cell = Rc::new(StreamCell::default());
        self.keep_cell(stream, cell.clone());
        shard.serve(super::Stream::from_peer(
            shard.clone(),
            self.clone(),
            stream,
            cell,
            open,
        ));
    }

    /// Opens a stream here; its events go to `cell`.
    pub fn open(
        self: &Rc<Self>,
        shard: &Shard,
        open: &Open,
        cell: &Rc<StreamCell>,
    ) -> Result<StreamRef, mux::OpenError> {
        let mut open = open.clone();
        if shard.side() == Side::Endpoint {
            open.settings = self.version.get();
        }
        let opened = self.ask(shard, |s, b, now| s.open(now, b, open));
        if let Ok(stream) = opened {
            self.keep_cell(stream, cell.clone());
        }
        self.settle(shard);
        opened
    }

    /// The holder of a stream is done with it.
    pub fn release(self: &Rc<Self>, shard: &Shard, stream: StreamRef) {
        if self.forget_cell(stream).is_some() {
            self.with(shard, |s, b, now| s.release(now, b, stream));
        }
    }

    fn settings_acked(self: &Rc<Self>, shard: &Shard, version: u32, accepted: bool, text: &Bytes) {
        let settings = shard.settings();
        if shard.side() == Side::Client && version < settings.version && accepted {
            let json = settings.json.clone();
            self.with(shard, |s, _, _| s.send_settings(settings.version, json));
            return;
        }
        shard.tell(Event::SettingsAck {
            version,
            accepted,
            text: lossy(text),
        });
    }

    /// Takes new streams now.
    pub fn is_live(&self) -> bool {
        !self.retired.get() && self.session.borrow().is_live()
    }

    /// Its member takes no new streams, whatever becomes of the connection.
    pub fn is_left(&self) -> bool {
        self.retired.get() || self.session.borrow().peer_drains()
    }

    /// Has had no connection for so long that whatever can move on does.
    pub fn is_lost(&self) -> bool {
        let long = |since: Time| runtime::now() >= since + LINK_DOWN_GRACE;
        self.retired.get() || self.lost_since.get().is_some_and(long)
    }

    /// Endpoint: its member knows the rules in force under this version; it is told so.
    pub fn acknowledge(self: &Rc<Self>, shard: &Shard, version: u32) {
        self.version.set(version);
        self.with(shard, |s, _, _| s.settings_ack(version, true, ""));
    }

    /// Open streams.
    pub fn load(&self) -> usize {
        self.session.borrow().streams_open()
    }

    pub fn is_finished(&self) -> bool {
        self.finished.get()
    }

    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Whether a connection carries the session now.
    pub fn is_connected(&self) -> bool {
        self.connection.borrow().is_some()
    }

    fn close(&self, cause: mux::Cause) {
        if let Some(connection) = &*self.connection.borrow() {
            if cause.aborts() {
                connection.abort(cause.text());
            } else {
                connection.flush(cause.text());
            }
        }
    }

    /// Ends the present connection at once; `cause` is for the log.
    pub fn abort(&self, cause: &str) {
        if let Some(connection) = &*self.connection.borrow() {
            connection.abort(cause);
        }
    }

    /// No dials and no new streams any more; what is left of the session ends by itself.
    pub fn retire(self: &Rc<Self>, shard: &Shard) {
        if self.retired.replace(true) {
            return;
        }
        self.close(mux::Cause::Drained);
        self.timer.raise();
        shard.refresh_live();
    }

    /// Ends the session at once, and the link with it.
    pub fn abandon(self: &Rc<Self>, shard: &Shard, text: &str) {
        self.with(shard, |s, b, now| s.abandon(now, b, mux::GoAwayReason::Shutdown, text));
        self.finished(shard);
        self.retire(shard);
    }

    /// Its streams, and those that come, are ended once nothing moves on them.
    pub fn dismiss(&self) {
        if !self.draining.replace(true) {
            self.cells.borrow().values().for_each(|cell| cell.draining.raise());
        }
    }

    /// Drains: serves what is open, opens nothing.
    pub fn drain(self: &Rc<Self>, shard: &Shard, reason: mux::GoAwayReason, text: &str) {
        self.dismiss();
        let had_nothing = self.with(shard, |s, _, now| {
            s.go_away(now, reason, text);
            s.is_finished()
        });
        if had_nothing {
            self.finished(shard);
        }
    }

    /// Nothing is left of the session. `sc` does not dial again; at the endpoint the link waits for what its member does,
    /// and keeps the epoch meanwhile.
    fn finished(self: &Rc<Self>, shard: &Shard) {
        self.finished.set(true);
        if shard.side() == Side::Client {
            self.retire(shard);
        }
        shard.link_has_finished(self.member);
    }

    /// Puts the session on a new connection: `begin` tells the session. `input` is what was read and not yet opened.
    pub fn attach(
        self: &Rc<Self>,
        shard: &Shard,
        connection: Rc<Connection>,
        opener: Opener,
        input: BytesMut,
        begin: impl FnOnce(&mut Session, &mut Budget, Time),
    ) {
        self.connection.replace(Some(connection.clone()));
        self.with(shard, begin);
        runtime::spawn(connection::write(shard.clone(), self.clone(), connection.clone()));
        runtime::spawn(connection::read(shard.clone(), self.clone(), connection, opener, input));
    }

    /// A connection is gone, and all that it brought was fed.
    pub fn ended(self: &Rc<Self>, shard: &Shard, connection: &Rc<Connection>, clean: bool, reason: String) {
        connection.abort(&reason);
        if !self.carried_by(connection) {
            return;
        }
        self.connection.replace(None);
        if self.up.replace(false) {
            shard.0.counters.links_up.sub(1);
            shard.tell(Event::LinkDown {
                member: self.member,
                link: self.number,
                reason,
            });
        } else {
            // TLS 1.3: the endpoint looks at our key only after our handshake is done.
            let refused = reason == Error::Tls(KEY_REFUSED.to_owned()).to_string();
            super::dial::failed(
                shard,
                self,
                format!("connection ended before it was up: {reason}"),
                refused,
            );
        }
        self.lost_since.set(self.lost_since.get().or(Some(runtime::now())));
        self.with(shard, |s, b, now| s.disconnected(now, b, clean));
        shard.refresh_live();
        self.gone.raise();
        self.timer.raise();
    }

    /// Whether this connection carries the session now.
    pub fn carried_by(&self, connection: &Rc<Connection>) -> bool {
        self.connection
            .borrow()
            .as_ref()
            .is_some_and(|c| Rc::ptr_eq(c, connection))
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "link {}", self.number)
    }
}

/// Text of the peer, for people.
pub(super) fn lossy(text: &Bytes) -> String {
    String::from_utf8_lossy(text).into_owned()
}

async fn keep_time(shard: Shard, link: Rc<Link>) {
    loop {
        let deadline = link.session.borrow().poll_timeout();
        link.armed.set(deadline);
        match deadline {
            None if link.retired.get() && !link.is_connected() && !link.cut_over.is_underway() => break,
            None => link.timer.wait().await,
            Some(deadline) => match pair::select(link.timer.wait(), runtime::sleep_until(deadline)).await {
                Either::Left(()) => {}
                Either::Right(()) => {
                    link.with(&shard, |s, b, now| s.handle_timeout(now, b));
                    shard.refresh_live();
                    if shard.is_leaving(link.member) && !link.finished.get() {
                        // A session that expired meanwhile has nothing left to drain.
                        link.drain(&shard, mux::GoAwayReason::Shutdown, super::DRAINING);
                    }
                }
            },
        }
    }
    shard.forget(&link);
}
