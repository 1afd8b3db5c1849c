//! One TCP connection of a link, after its handshake: a reader and a writer.
//!
//! The writer takes what is ready once everything else that was woken in this turn has run, so that all of it goes into
//! one write. The reader's buffer is never dropped while the kernel may fill it: to end a connection the socket is
//! shut down, and the read awaited.

use std::cell::{Cell, RefCell};
use std::net::Shutdown;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::Shard;
use super::link::Link;
use super::mailbox::Level;
use super::runtime::{self, Socket};
use super::signal::Signal;
use crate::error::Error;
use crate::limits::{CLOSE_LINGER, LINK_READ_BYTES, LINK_READ_BYTES_MIN};
use crate::tls::{Opener, Record, Sealer};

/// One TCP connection of a link, after its handshake.
pub(super) struct Connection {
    socket: Socket,
    sealer: RefCell<Sealer>,
    /// Something may be ready to be written.
    pub dirty: Signal,
    answer_key_update: Cell<bool>,
    closing: Cell<Closing>,
    /// Why this side ends it: the end that the reader sees then is a consequence.
    cause: RefCell<Option<String>>,
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
            cause: RefCell::default(),
        })
    }

    /// Ends the connection: the read in flight completes, and what it brought still counts. The first `cause` is the one
    /// that is told.
    pub fn abort(&self, cause: &str) {
        self.because(cause);
        self.closing.set(Closing::Now);
        self.socket.shutdown(Shutdown::Both);
        self.dirty.raise();
    }

    /// Ends the connection once what is ready was written; at the latest after `CLOSE_LINGER`.
    pub fn flush(self: &Rc<Self>, cause: &'static str) {
        if self.closing.get() != Closing::No {
            return;
        }
        self.because(cause);
        self.closing.set(Closing::Flush);
        self.dirty.raise();
        let this = self.clone();
        runtime::spawn(async move {
            runtime::sleep(CLOSE_LINGER).await;
            this.abort(cause);
        });
    }

    fn because(&self, cause: &str) {
        self.cause.borrow_mut().get_or_insert_with(|| cause.to_owned());
    }
}

pub(super) async fn read(
    shard: Shard,
    link: Rc<Link>,
    connection: Rc<Connection>,
    mut opener: Opener,
    mut input: BytesMut,
) {
    let (clean, error) = loop {
        match open_records(&shard, &link, &connection, &mut opener, &mut input) {
            Ok(false) => {}
            Ok(true) => break (true, None),
            Err(e) => break (false, Some(e.to_string())),
        }
        if connection.closing.get() == Closing::Now {
            break (false, None);
        }
        if input.capacity() - input.len() < LINK_READ_BYTES_MIN {
            crate::copies::moved(input.len());
            input.reserve(LINK_READ_BYTES - input.len());
        }
        let (result, buffer) = connection.socket.read_link(input).await;
        input = buffer;
        match result {
            Ok(0) => break (false, None),
            Ok(_) => {}
            Err(e) => break (false, Some(e.to_string())),
        }
    };
    let plain = if clean {
        "closed by the other side"
    } else {
        "the connection was cut"
    };
    let reason = error.or_else(|| connection.cause.take());
    link.ended(&shard, &connection, clean, reason.unwrap_or_else(|| plain.to_owned()));
}

/// Opens all whole records of `input` and feeds them; true after close_notify.
fn open_records(
    shard: &Shard,
    link: &Rc<Link>,
    connection: &Connection,
    opener: &mut Opener,
    input: &mut BytesMut,
) -> Result<bool, Error> {
    let opened = link.with(shard, |session, budget, now| {
        while let Some(record) = opener.open(now, input)? {
            match record {
                Record::Data(bytes) => session.handle_bytes(now, budget, bytes),
                Record::KeyUpdate { respond: true } => connection.answer_key_update.set(true),
                Record::KeyUpdate { respond: false } => {}
                Record::Closed => return Ok(true),
            }
        }
        Ok(false)
    });
    shard.tell_turned_away();
    opened
}

pub(super) async fn write(shard: Shard, link: Rc<Link>, connection: Rc<Connection>) {
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
                connection.abort(&e.to_string());
                return;
            }
            if out.is_empty() {
                break;
            }
            let (written, buffer) = connection.socket.write_link(out).await;
            out = buffer;
            if let Err(e) = written {
                connection.abort(&e.to_string());
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
) -> Result<(), Error> {
    let mut sealer = connection.sealer.borrow_mut();
    if connection.answer_key_update.take() {
        sealer.key_update(out)?;
    }
    if link.carried_by(connection) {
        let replayed = link.ask(shard, |s, b, now| {
            let before = s.frames_replayed();
            s.poll_transmit(now, b, frames);
            s.frames_replayed() - before
        });
        shard.0.counters.frames_replayed.add(replayed);
        link.counters.frames_replayed.add(replayed);
    }
    if !frames.is_empty() {
        sealer.seal(frames, out)?;
    }
    drop(sealer);
    link.settle_quietly(shard);
    Ok(())
}
