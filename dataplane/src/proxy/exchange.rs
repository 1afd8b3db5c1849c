//! One request and its answer on one connection to a site.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::pin::pin;

use bytes::BytesMut;

use super::answer::Answer;
use super::dial::Site;
use super::flow::{Activity, End, Inlet, Outlet, TURN_BYTES};
use super::relay::full_read;
use crate::bump::CLIENT_CERTIFICATE;
use crate::http::{BadBody, Body, Request};
use crate::limits::{FRAME_HEADER_BYTES, PEER_LOOK};
use crate::mux::Code;
use crate::shard::pair::{Either, select};
use crate::shard::transport::Transport;
use crate::shard::{Stream, runtime, timers};
use crate::time::Time;

/// How far an exchange has come.
#[derive(Default)]
pub struct Progress {
    /// The whole request was written.
    pub sent: Cell<bool>,
    /// More of the request is to come, and the site has taken what came: it owes nothing yet.
    pub wanting: Cell<bool>,
    /// When the first byte of an answer was read.
    pub first_byte: Cell<Option<Time>>,
    /// The site sent more than its answer.
    pub surplus: Cell<bool>,
}

/// Why an exchange failed.
#[derive(Debug)]
pub enum Fault {
    /// The site ended the connection, or broke it, before a byte of an answer.
    Silent,
    /// The site ended or broke the connection inside its answer.
    Cut,
    /// The site asked for another handshake, was refused it, and denies what it was asked for.
    Denied,
    /// The site's answer is not valid.
    Broken(&'static str),
    /// The site was silent for too long.
    TimedOut(Code),
    /// The endpoint gave the stream up.
    GivenUp,
    /// The endpoint broke the rules.
    Peer(&'static str),
}

impl Fault {
    /// The RESET that tells of it.
    pub fn reset(&self) -> (Code, &'static str) {
        match self {
            Self::Silent => (Code::SiteReset, "the site closed the connection before it answered"),
            Self::Cut => (Code::SiteReset, "the site broke its answer off"),
            Self::Denied => (Code::Tls, CLIENT_CERTIFICATE),
            Self::Broken(reason) => (Code::Protocol, reason),
            Self::TimedOut(code) => (*code, "the site was silent for too long"),
            Self::GivenUp => (Code::Cancelled, "the request was given up"),
            Self::Peer(reason) => (Code::Protocol, reason),
        }
    }
}

/// Sends the request (`head`, and its body from `inlet`) and brings the answer to the stream, up to its end or to 101.
/// Nothing of the stream's own end is said here.
pub async fn run(
    site: &Site,
    stream: &Stream,
    inlet: &mut Inlet<'_>,
    request: &Request<'_>,
    head: &[u8],
    answer: &mut Answer<'_>,
    progress: &Progress,
) -> Result<(), Fault> {
    let Site { socket, alarm, .. } = site;
    let activity = Activity::new();
    // Pinned where they are made: moved, each would be copied whole.
    let up = pin!(forward(socket, stream, inlet, request, head, progress, &activity));
    let down = pin!(receive(socket, stream, answer, progress, &activity));
    let times = stream.shard().times();
    let late = || match progress.first_byte.get() {
        None if !progress.wanting.get() => (Code::FirstByteTimeout, times.first_byte),
        _ => (Code::IdleTimeout, times.idle),
    };
    let silence = pin!(activity.silence(alarm, times.first_byte.min(times.idle), || late().1));
    match select(down, select(up, silence)).await {
        Either::Left(received) => received,
        Either::Right(Either::Left(fault)) => Err(fault),
        Either::Right(Either::Right(())) => Err(Fault::TimedOut(late().0)),
    }
}

/// Stream to site. Returns only what ends the exchange; once all is written it watches the endpoint.
async fn forward(
    site: &Transport,
    stream: &Stream,
    inlet: &mut Inlet<'_>,
    request: &Request<'_>,
    head: &[u8],
    progress: &Progress,
    activity: &Activity,
) -> Fault {
    let mut outlet = Outlet::default();
    outlet.push_own(head);
    let mut body = Body::new(request.framing);
    loop {
        while !body.is_done() && !outlet.is_full() && inlet.fill_now() {
            match body.advance(inlet.slice()) {
                Ok(all) => outlet.push(inlet.take(all.bytes)),
                Err(BadBody(reason)) => return Fault::Peer(reason),
            }
        }
        match timers::timeout(PEER_LOOK, outlet.flush(site, inlet)).await {
            None if stream.room_now().is_err() => return Fault::GivenUp,
            None => continue,
            // It does not read on; what it says, or its end, decides.
            Some(Err(_)) => return pending().await,
            Some(Ok(())) => activity.touch(),
        }
        if body.is_done() {
            break;
        }
        match inlet.end() {
            Some(End::Cut(..)) => return Fault::GivenUp,
            Some(End::Fin) => return Fault::Peer("the request ended before it was complete"),
            None => {
                progress.wanting.set(true);
                inlet.fill().await;
                progress.wanting.set(false);
                activity.touch();
            }
        }
    }
    progress.sent.set(true);
    inlet.fill().await;
    match inlet.end() {
        // What can still come, the stop of our own direction, shows there.
        Some(End::Fin) => pending().await,
        Some(End::Cut(..)) => Fault::GivenUp,
        None => Fault::Peer("bytes after the request"),
    }
}

/// Site to stream.
async fn receive(
    site: &Transport,
    stream: &Stream,
    answer: &mut Answer<'_>,
    progress: &Progress,
    activity: &Activity,
) -> Result<(), Fault> {
    let mut turn = 0;
    // A site says nothing before it was asked.
    let mut emptied = true;
    while !answer.is_done() && !answer.is_upgraded() {
        if std::mem::take(&mut emptied) {
            turn = 0;
            match select(site.readable(), stream.stopped()).await {
                Either::Left(ready) => ready.map_err(|_| lost(progress))?,
                Either::Right(_) => return Err(Fault::GivenUp),
            }
        }
        let room = stream.room().await.map_err(|_| Fault::GivenUp)?;
        // One byte more than is due: if it is there, the connection is good for nothing more.
        let limit = room.min(answer.wanted().saturating_add(1));
        let mut broken = None;
        let take = |frame: BytesMut| {
            if broken.is_none() {
                broken = pass_on(site, stream, answer, progress, frame).err();
            }
        };
        let read = stream.shard().buffers().read(site, limit, take);
        if let Some(fault) = broken {
            return Err(fault);
        }
        match read {
            Ok(0) if answer.clean_end() => return Ok(()),
            Ok(0) => return Err(lost(progress)),
            Ok(read) => {
                activity.touch();
                if progress.first_byte.get().is_none() {
                    progress.first_byte.set(Some(runtime::now()));
                }
                turn += read;
                if read < full_read(limit) {
                    emptied = true;
                } else if turn >= TURN_BYTES {
                    turn = 0;
                    runtime::yield_now().await;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => emptied = true,
            Err(_) => return Err(lost(progress)),
        }
    }
    Ok(())
}

fn lost(progress: &Progress) -> Fault {
    match progress.first_byte.get() {
        None => Fault::Silent,
        Some(_) => Fault::Cut,
    }
}

/// Whether the site has asked for another handshake on this connection.
pub fn was_asked_anew(site: &Transport) -> bool {
    site.tls().is_some_and(|tls| tls.borrow().was_asked_anew())
}

/// Writes what belongs to the answer.
fn pass_on(
    site: &Transport,
    stream: &Stream,
    answer: &mut Answer<'_>,
    progress: &Progress,
    mut frame: BytesMut,
) -> Result<(), Fault> {
    let headless = answer.status().is_none();
    let fed = answer.feed(&frame[FRAME_HEADER_BYTES..]).map_err(Fault::Broken)?;
    // Not passed on: only RESET has the endpoint forget the site, and what a browser gets that asks it itself, with the
    // certificate or without, is the site's true word.
    if headless && matches!(answer.status(), Some(401 | 403)) && was_asked_anew(site) {
        return Err(Fault::Denied);
    }
    let end = FRAME_HEADER_BYTES + fed;
    if end < frame.len() {
        progress.surplus.set(true);
        frame.truncate(end);
    }
    if end > FRAME_HEADER_BYTES {
        stream.write(frame);
    }
    Ok(())
}
