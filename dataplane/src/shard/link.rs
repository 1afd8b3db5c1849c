//! A link: its session, and the connection that carries it now.
//!
//! ```text
//!            read_link ─► Opener ─► handle_bytes ┐
//!  socket                                        Session ─► events ─► streams' cells
//!            write_link ◄─ Sealer ◄─ poll_transmit ┘
//! ```
//!
//! One reader, one writer and one timer. Whoever calls the session marks the link; the writer takes what is ready
//! once everything else that was woken in this turn has run, so that all of it goes into one write. The reader's
//! buffer is never dropped while the kernel may fill it: to end a connection the socket is shut down, and the read awaited.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::Shutdown;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::Shard;
use super::mailbox::{Event, Level};
use super::runtime::{self, Either, Signal, Socket};
use super::stream::StreamCell;
use crate::limits::{CLOSE_LINGER, LINK_READ_BYTES, LINK_READ_BYTES_MIN};
use crate::mux::{self, Budget, Code, Open, Session, Side, StreamRef};
use crate::time::Time;
use crate::tls::{Opener, Record, Sealer};

pub(super) struct Link {
    pub key: u32,
    pub member: [u8; 16],
    pub number: u16,
    session: RefCell<Session>,
    cells: RefCell<HashMap<StreamRef, Rc<StreamCell>>>,
    connection: RefCell<Option<Rc<Connection>>>,
    /// Raised when the connection is gone: a cut-over waits for it.
    pub gone: Signal,
    /// A cut-over is under way; the next one waits for `cut_over_ended`.
    pub cutting: Cell<bool>,
    pub cut_over_ended: Signal,
    timer: Signal,
    /// What the timer waits for; `None`: for its signal only.
    armed: Cell<Option<Time>>,
    up: Cell<bool>,
    /// Nothing is left of its session.
    finished: Cell<bool>,
    /// It finished, or its member was detached: no dials, no new streams.
    retired: Cell<bool>,
}

/// One TCP connection of a link, after its handshake.
pub(super) struct Connection {
    socket: Socket,
    sealer: RefCell<Sealer>,
    /// Something may be ready to be written.
    dirty: Signal,
    answer_key_update: Cell<bool>,
    closing: Cell<Closing>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// What is ready is still written, then close_notify.
    Flush,
    /// The socket is shut down; nothing more is read or written.
    Now,
}

impl Connection {
    pub fn new(socket: Socket, sealer: Sealer) -> Rc<Self> {
        Rc::new(Self {
            socket,
            sealer: RefCell::new(sealer),
            dirty: Signal::new(),
            answer_key_update: Cell::new(false),
            closing: Cell::new(Closing::No),
        })
    }

    /// Ends the connection: the read in flight completes, and what it brought still counts.
    pub fn abort(&self) {
        self.closing.set(Closing::Now);
        self.socket.shutdown(Shutdown::Both);
        self.dirty.raise();
    }

    /// Ends the connection once what is ready was written; at the latest after `CLOSE_LINGER`.
    fn flush(self: &Rc<Self>) {
        if self.closing.get() != Closing::No {
            return;
        }
        self.closing.set(Closing::Flush);
        self.dirty.raise();
        let this = self.clone();
        runtime::spawn(async move {
            runtime::sleep(CLOSE_LINGER).await;
            this.abort();
        });
    }
}

impl Link {
    /// Makes a link without a connection and starts its timer.
    pub fn start(shard: &Shard, config: mux::Config) -> Rc<Self> {
        let link = Rc::new(Self {
            key: config.key,
            member: config.member,
            number: config.link,
            session: RefCell::new(Session::new(config, Time::now())),
            cells: RefCell::default(),
            connection: RefCell::default(),
            gone: Signal::new(),
            cutting: Cell::new(false),
            cut_over_ended: Signal::new(),
            timer: Signal::new(),
            armed: Cell::new(None),
            up: Cell::new(false),
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
            Time::now(),
        )
    }

    fn settle(self: &Rc<Self>, shard: &Shard) {
        self.settle_quietly(shard);
        if let Some(connection) = &*self.connection.borrow() {
            connection.dirty.raise();
        }
    }

    /// As `settle`, for the writer, which is about to look for more itself.
    fn settle_quietly(self: &Rc<Self>, shard: &Shard) {
        loop {
            let event = self.session.borrow_mut().poll_event();
            let Some(event) = event else { break };
            self.act(shard, event);
        }
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
            mux::Event::Close { abort } => self.close(abort),
            mux::Event::Up { resumed } => self.is_up(shard, resumed),
            mux::Event::Live => shard.link_is_live(),
            mux::Event::Opened(stream, open) => self.opened(shard, stream, open),
            mux::Event::Readable(stream) => self.cell(stream, |c| c.readable.raise()),
            mux::Event::Writable(stream) => self.cell(stream, StreamCell::is_writable),
            mux::Event::Accepted(stream, opened) => self.cell(stream, |c| {
                c.opened.set(Some(opened));
                c.accepted.raise();
            }),
            // Only a stream that an endpoint bumps is ever asked for TLS, and no endpoint of this version does so.
            mux::Event::StartTls(stream, ..) => self.with(shard, |s, b, now| {
                s.reset(
                    now,
                    b,
                    stream,
                    Code::Tls,
                    "this version does not shake hands for the endpoint",
                );
            }),
            mux::Event::TlsReport(..) => {}
            mux::Event::Withdrawn {
                stream,
                frames,
                finished,
            } => {
                if let Some(cell) = self.cells.borrow_mut().remove(&stream) {
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
        shard.0.counters.resumes.add(u64::from(resumed));
        if shard.is_draining() && !resumed {
            self.drain(shard, mux::GoAwayReason::Shutdown, super::DRAINING);
        }
        shard.tell(Event::LinkUp {
            member: self.member,
            link: self.number,
        });
    }

    fn opened(self: &Rc<Self>, shard: &Shard, stream: StreamRef, open: Open) {
        let cell = Rc::new(StreamCell::default());
        self.cells.borrow_mut().insert(stream, cell.clone());
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
        let opened = self.ask(shard, |s, b, now| s.open(now, b, open.clone()));
        if let Ok(stream) = opened {
            self.cells.borrow_mut().insert(stream, cell.clone());
        }
        self.settle(shard);
        opened
    }

    /// The holder of a stream is done with it.
    pub fn release(self: &Rc<Self>, shard: &Shard, stream: StreamRef) {
        if self.cells.borrow_mut().remove(&stream).is_some() {
            self.with(shard, |s, b, now| s.release(now, b, stream));
        }
    }

    fn settings_acked(self: &Rc<Self>, shard: &Shard, version: u32, accepted: bool, text: &Bytes) {
        let settings = shard.settings();
        if shard.side() == Side::Client && version < settings.version && accepted {
            let json = Bytes::copy_from_slice(&settings.json);
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

    fn close(&self, abort: bool) {
        if let Some(connection) = &*self.connection.borrow() {
            if abort { connection.abort() } else { connection.flush() }
        }
    }

    /// Ends the present connection at once.
    pub fn abort(&self) {
        self.close(true);
    }

    /// No dials and no new streams any more; what is left of the session ends by itself.
    pub fn retire(self: &Rc<Self>, shard: &Shard) {
        if self.retired.replace(true) {
            return;
        }
        self.close(false);
        self.timer.raise();
        shard.refresh_live();
    }

    /// Drains: serves what is open, opens nothing.
    pub fn drain(self: &Rc<Self>, shard: &Shard, reason: mux::GoAwayReason, text: &str) {
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
        shard.link_has_finished();
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
        runtime::spawn(write(shard.clone(), self.clone(), connection.clone()));
        runtime::spawn(read(shard.clone(), self.clone(), connection, opener, input));
    }

    fn ended(self: &Rc<Self>, shard: &Shard, connection: &Rc<Connection>, clean: bool, reason: String) {
        connection.abort();
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
            shard.log(
                Level::Debug,
                format!("{self}: connection ended before it was up: {reason}"),
            );
        }
        self.with(shard, |s, b, now| s.disconnected(now, b, clean));
        shard.refresh_live();
        self.gone.raise();
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
            None if link.retired.get() && !link.is_connected() => break,
            None => link.timer.wait().await,
            Some(deadline) => match runtime::select(link.timer.wait(), runtime::sleep_until(deadline)).await {
                Either::Left(()) => {}
                Either::Right(()) => {
                    link.with(&shard, |s, b, now| s.handle_timeout(now, b));
                    shard.refresh_live();
                    if shard.is_draining() && !link.finished.get() {
                        // A session that expired meanwhile has nothing left to drain.
                        link.drain(&shard, mux::GoAwayReason::Shutdown, super::DRAINING);
                    }
                }
            },
        }
    }
    shard.forget(&link);
}

async fn read(shard: Shard, link: Rc<Link>, connection: Rc<Connection>, mut opener: Opener, mut input: BytesMut) {
    let (clean, reason) = loop {
        match open_records(&shard, &link, &connection, &mut opener, &mut input) {
            Ok(false) => {}
            Ok(true) => break (true, "closed by the other side".to_owned()),
            Err(e) => break (false, e.to_string()),
        }
        if connection.closing.get() == Closing::Now {
            break (false, "closed here".to_owned());
        }
        if input.capacity() - input.len() < LINK_READ_BYTES_MIN {
            input.reserve(LINK_READ_BYTES - input.len());
        }
        let (result, buffer) = connection.socket.read_link(input).await;
        input = buffer;
        match result {
            Ok(0) => break (false, "the connection was cut".to_owned()),
            Ok(_) => {}
            Err(e) => break (false, e.to_string()),
        }
    };
    link.ended(&shard, &connection, clean, reason);
}

/// Opens all whole records of `input` and feeds them; true after close_notify.
fn open_records(
    shard: &Shard,
    link: &Rc<Link>,
    connection: &Connection,
    opener: &mut Opener,
    input: &mut BytesMut,
) -> Result<bool, crate::error::Error> {
    link.with(shard, |session, budget, now| {
        while let Some(record) = opener.open(now, input)? {
            match record {
                Record::Data(bytes) => session.handle_bytes(now, budget, bytes),
                Record::KeyUpdate { respond: true } => connection.answer_key_update.set(true),
                Record::KeyUpdate { respond: false } => {}
                Record::Closed => return Ok(true),
            }
        }
        Ok(false)
    })
}

async fn write(shard: Shard, link: Rc<Link>, connection: Rc<Connection>) {
    let mut frames = Vec::new();
    let mut out = Vec::new();
    loop {
        connection.dirty.wait().await;
        // Whoever was woken in this turn gets to queue first.
        runtime::yield_now().await;
        loop {
            let last = connection.closing.get();
            if last == Closing::Now {
                return;
            }
            let sealed = fill(&shard, &link, &connection, &mut frames, &mut out);
            let close = last == Closing::Flush && frames.is_empty();
            frames.clear();
            let sealed = sealed.and_then(|()| {
                if close {
                    connection.sealer.borrow_mut().close_notify(&mut out)
                } else {
                    Ok(())
                }
            });
            if let Err(e) = sealed {
                shard.log(Level::Error, format!("{link}: {e}"));
                connection.abort();
                return;
            }
            if out.is_empty() {
                break;
            }
            let (written, buffer) = connection.socket.write_link(out).await;
            out = buffer;
            if written.is_err() {
                connection.abort();
                return;
            }
            if close {
                connection.socket.shutdown(Shutdown::Write);
                return;
            }
        }
    }
}

/// Seals what is ready, at most one write, into `out`.
fn fill(
    shard: &Shard,
    link: &Rc<Link>,
    connection: &Rc<Connection>,
    frames: &mut Vec<Bytes>,
    out: &mut Vec<u8>,
) -> Result<(), crate::error::Error> {
    let mut sealer = connection.sealer.borrow_mut();
    if connection.answer_key_update.take() {
        sealer.key_update(out)?;
    }
    if link.carried_by(connection) {
        link.ask(shard, |s, b, now| s.poll_transmit(now, b, frames));
    }
    if !frames.is_empty() {
        sealer.seal(frames, out)?;
    }
    drop(sealer);
    link.settle_quietly(shard);
    Ok(())
}
