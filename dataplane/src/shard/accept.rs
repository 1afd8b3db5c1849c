//! Endpoint: sockets that the broker accepted, of links and of browsers.

use std::cell::Cell;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};

use super::connection::Connection;
use super::dial::{Secured, read_more, shake_hands};
use super::link::Link;
use super::mailbox::Level;
use super::runtime::{self, Socket};
use super::{Shard, Visitor, timers};
use crate::error::Error;
use crate::limits::{
    ACCEPT_PAUSE, BROWSER_MESSAGES_PER_TURN, BROWSERS_PER_MESSAGE, HANDSHAKE_MAX, HANDSHAKES_MAX, LINKS_MAX,
};
use crate::mux::frame::{self, Frame, Header};
use crate::mux::{Hello, Reject, Side};
use crate::time::Time;
use crate::tls::{Handshake, Record};

/// Brings a link's new connection up to the cut-over. Every failure ends this connection and nothing else.
pub(super) async fn accept(shard: Shard, member: [u8; 16], number: u16, fd: OwnedFd, first: Vec<u8>) {
    let handshakes = &shard.0.handshakes;
    if handshakes.get() >= HANDSHAKES_MAX {
        shard.log(Level::Warn, format!("link {number}: too many handshakes at once"));
        return;
    }
    handshakes.set(handshakes.get() + 1);
    let _underway = Underway(handshakes);
    let greeted = timers::timeout(HANDSHAKE_MAX, greet(&shard, member, number, fd, first)).await;
    let result = match greeted {
        None => Err(Error::Peer(format!("no HELLO within {HANDSHAKE_MAX:?}"))),
        Some(Err(e)) => Err(e),
        Some(Ok((secured, hello, rest))) => take_over(&shard, secured, &hello, rest).await,
    };
    if let Err(e) = result {
        shard.log(Level::Info, format!("link {number}: connection refused: {e}"));
    }
}

struct Underway<'a>(&'a Cell<usize>);

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Handshake and HELLO.
async fn greet(
    shard: &Shard,
    member: [u8; 16],
    number: u16,
    fd: OwnedFd,
    first: Vec<u8>,
) -> Result<(Secured, Hello, Bytes), Error> {
    let attached = shard.attached(member).ok_or(Error::Closed("the member"))?;
    let socket = Socket::tcp(fd).map_err(|e| Error::Io("taking a link's socket", e))?;
    let handshake = Handshake::server(attached.tls)?;
    let mut secured = shake_hands(socket, handshake, BytesMut::from(&first[..])).await?;
    if secured.peer != attached.fingerprint {
        return Err(Error::Tls(crate::tls::WRONG_KEY.to_owned()));
    }
    let (hello, rest) = read_hello(&mut secured).await?;
    if hello.member != member || hello.link != number || hello.links > LINKS_MAX {
        return Err(Error::Peer("a HELLO for another member or link".to_owned()));
    }
    Ok((secured, hello, rest))
}

/// Reads the first frame; what follows it in its records comes back too.
async fn read_hello(secured: &mut Secured) -> Result<(Hello, Bytes), Error> {
    let violation = |v: frame::Violation| Error::Peer(v.to_string());
    let mut plain = BytesMut::new();
    loop {
        while let Some(record) = secured.opener.open(Time::now(), &mut secured.input)? {
            match record {
                Record::Data(bytes) => plain.extend_from_slice(&bytes),
                Record::KeyUpdate { .. } => return Err(Error::Peer("KeyUpdate before HELLO".to_owned())),
                Record::Closed => return Err(Error::Closed("the connection, before HELLO,")),
            }
            // One frame, and no more than the record around it: the peer may say nothing else yet.
            if let Some(header) = Header::decode(&plain).transpose().map_err(violation)?
                && plain.len() >= frame_bytes(header)
            {
                let mut bytes = plain.freeze();
                let mut whole = bytes.split_to(frame_bytes(header));
                let payload = whole.split_off(whole.len() - header.length);
                return match frame::decode(header, payload).map_err(violation)? {
                    Frame::Hello(hello) => Ok((hello, bytes)),
                    _ => Err(Error::Peer("a frame before HELLO".to_owned())),
                };
            }
        }
        let read = read_more(&secured.socket, &mut secured.input).await;
        if read.map_err(|e| Error::Io("reading HELLO", e))? == 0 {
            return Err(Error::Closed("the connection, before HELLO,"));
        }
    }
}

fn frame_bytes(header: Header) -> usize {
    crate::limits::FRAME_HEADER_BYTES + header.length
}

/// The cut-over: the old socket is shut down, its last read completes and is fed, and only then the session goes on.
async fn take_over(shard: &Shard, secured: Secured, hello: &Hello, rest: Bytes) -> Result<(), Error> {
    let link = shard.link_for(hello);
    let Some(_turn) = link.cut_over.begin().await else {
        return Err(Error::Peer("a newer connection of this link has come".to_owned()));
    };
    link.ask(shard, |s, _, _| s.check_hello(hello)).map_err(rejected)?;
    link.with(shard, |s, _, _| s.begin_cut_over());
    while link.is_connected() {
        link.abort("the other side has dialled anew");
        link.gone.wait().await;
    }
    let connection = Connection::new(secured.socket, secured.sealer);
    link.attach(shard, connection, secured.opener, secured.input, |s, b, now| {
        s.connected_by(now, b, hello);
        if !rest.is_empty() {
            s.handle_bytes(now, b, rest);
        }
    });
    Ok(())
}

fn rejected(reject: Reject) -> Error {
    Error::Peer(match reject {
        Reject::Version => "no common version of the protocol".to_owned(),
        Reject::OldEpoch => "an older connection of this link".to_owned(),
        Reject::Mismatch => "another member, link or number of links".to_owned(),
    })
}

impl Shard {
    /// The link that a HELLO speaks of; made at its first contact.
    fn link_for(&self, hello: &Hello) -> Rc<Link> {
        let known = |l: &&Rc<Link>| l.member == hello.member && l.number == hello.link && !l.is_retired();
        if let Some(link) = self.0.links.borrow().iter().find(known) {
            return link.clone();
        }
        self.start_link(Side::Endpoint, hello.member, hello.link, hello.links)
    }
}

/// Receives browsers' sockets until the broker hangs up, or another socket is there instead.
pub(super) async fn receive_browsers(shard: Shard, socket: Rc<Socket>) {
    loop {
        while shard.is_full() {
            runtime::sleep(ACCEPT_PAUSE).await;
        }
        if let Err(e) = socket.readable().await {
            return shard.log(Level::Error, format!("waiting for browsers: {e}"));
        }
        for _ in 0..BROWSER_MESSAGES_PER_TURN {
            if shard.is_full() {
                break;
            }
            match receive(&socket) {
                Ok(Some((kind, browsers, truncated))) => {
                    if truncated {
                        shard.log(
                            Level::Warn,
                            "some browsers were lost: no descriptor was left".to_owned(),
                        );
                    }
                    for browser in browsers {
                        shard.serve_browser(browser, Visitor::of(kind));
                    }
                }
                Ok(None) => return shard.log(Level::Debug, "the broker hung up".to_owned()),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(e) => return shard.log(Level::Error, format!("receiving browsers: {e}")),
            }
        }
        runtime::yield_now().await;
    }
}

/// One message: its kind, its descriptors, and whether the kernel closed some for want of room; `None` at the end.
fn receive(socket: &Socket) -> rustix::io::Result<Option<(u8, Vec<OwnedFd>, bool)>> {
    let mut kind = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BROWSERS_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut kind)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((kind[0], fds, received.flags.contains(ReturnFlags::CTRUNC))))
}
