//! Opaque bytes both ways between a local socket and a stream, each direction with an end of its own.

use std::cell::Cell;
use std::io;

use bytes::Bytes;

use super::flow::{Activity, End, Inlet, Outlet, TURN_BYTES, cut_at_end, linger};
use crate::limits::{DRAIN_SILENCE_MAX, FRAME_PAYLOAD_BYTES_MAX};
use crate::mux::Code;
use crate::shard::Stream;
use crate::shard::pair::both;
use crate::shard::runtime::{self, READ_BUFFERS_MAX};
use crate::shard::timers::Alarm;
use crate::shard::transport::Transport;

/// What broke a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The local socket.
    Local,
    /// The stream was reset.
    Peer,
}

/// Relays until both directions have ended, then closes the socket: cleanly, or with a reset if a direction was cut.
/// `early` came from the socket before; `gone` tells the peer that the local side broke off. Whether it did before its end.
pub async fn relay(
    socket: &Transport,
    stream: &Stream,
    early: Bytes,
    inlet: &mut Inlet<'_>,
    gone: Code,
    activity: &Activity,
) -> bool {
    cut_at_end(socket);
    socket.socket().set_relay(true);
    let ended = Cell::new(false);
    let up = upload(socket, stream, early, activity, &ended);
    let down = download(socket, inlet, activity);
    let relayed = both(up, down).await;
    match relayed {
        Ok(()) => linger(socket).await,
        Err(Cut::Local) => stream.reset(gone, BROKEN_OFF),
        Err(Cut::Peer) => {}
    }
    relayed == Err(Cut::Local) && !ended.get()
}

/// What was begun as a relay and has carried nothing carries HTTP from now on.
pub fn undo(socket: &Transport) {
    let _ = socket2::SockRef::from(socket).set_linger(None);
    socket.socket().set_relay(false);
}

/// What a relay's other side is told if the local one broke off.
pub(super) const BROKEN_OFF: &str = "the connection was broken off";

/// What a relay's other side is told that a drain has ended.
pub(super) const DISMISSED: &str = "the tunnel shuts down, and nothing moved any more";

/// Waits until the stream's link drains and nothing has moved on the stream since for as long as is waited for it.
pub(super) async fn dismissed(stream: &Stream, activity: &Activity) {
    stream.draining().await;
    activity.restart();
    let alarm = Alarm::default();
    activity.silence(&alarm, DRAIN_SILENCE_MAX, || DRAIN_SILENCE_MAX).await;
}

/// Socket to stream, until the socket's end, which is told, or until the peer wants no more.
async fn upload(
    socket: &Transport,
    stream: &Stream,
    early: Bytes,
    activity: &Activity,
    ended: &Cell<bool>,
) -> Result<(), Cut> {
    if stream.send(&early).await.is_err() {
        return Ok(());
    }
    drop(early);
    let mut turn = 0;
    loop {
        let Ok(room) = stream.room().await else { return Ok(()) };
        match stream.shard().buffers().read(socket, room, |frame| stream.write(frame)) {
            Ok(0) => {
                stream.finish(None);
                ended.set(true);
                return Ok(());
            }
            Ok(read) => {
                activity.touch();
                turn += read;
                if read < full_read(room) {
                    turn = 0;
                    socket.readable().await.map_err(|_| Cut::Local)?;
                } else if turn >= TURN_BYTES {
                    turn = 0;
                    runtime::yield_now().await;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                turn = 0;
                socket.readable().await.map_err(|_| Cut::Local)?;
            }
            Err(_) => return Err(Cut::Local),
        }
    }
}

/// A read that brings less than this has emptied the socket.
pub fn full_read(room: usize) -> usize {
    room.min(READ_BUFFERS_MAX * FRAME_PAYLOAD_BYTES_MAX)
}

/// Stream to socket, until the peer's end.
async fn download(socket: &Transport, inlet: &mut Inlet<'_>, activity: &Activity) -> Result<(), Cut> {
    let mut outlet = Outlet::default();
    loop {
        inlet.fill().await;
        let mut moves = false;
        while !outlet.is_full() && inlet.fill_now() {
            outlet.push(inlet.take(inlet.slice().len()));
            moves = true;
        }
        outlet.flush(socket, inlet).await.map_err(|_| Cut::Local)?;
        if moves {
            activity.touch();
        }
        match inlet.end() {
            Some(End::Fin) => {
                socket.finish().await;
                return Ok(());
            }
            Some(End::Cut(..)) => return Err(Cut::Peer),
            None => {}
        }
    }
}
