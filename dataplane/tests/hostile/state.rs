//! States of a session and of a stream in it, and how to get there.

use std::time::Duration;

use bytes::Bytes;
use dataplane::mux::frame::Frame;
use dataplane::mux::{Code, GoAwayReason, Opened, Recv, Side, StreamRef};

use super::shard::{Shard, open_from, other};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A session without a connection; `sc` is dialling.
    Down,
    /// The victim's HELLO is on its way (`sc`), or not even written (the endpoint).
    Greeting,
    /// Up, no stream.
    Idle,
    /// A stream of the peer is open in both directions.
    Peer,
    /// The same, of kind `tcp`, before OPENED was written.
    Opening,
    /// The same as `Peer`; DATA has come.
    PeerData,
    /// An own stream is open, no answer has come.
    Own,
    /// An own `tcp` stream: OPENED has come, START_TLS was written.
    TlsAsked,
    /// The peer's FIN was read; its holder has not come for it.
    FinRead,
    FinTaken,
    /// Own FIN was written.
    FinWritten,
    /// FIN in both directions; the holder has not come for the peer's.
    BothFins,
    OwnReset,
    OwnResetReleased,
    PeerReset,
    PeerResetReleased,
    /// RECALL was written on an own stream.
    Recalled,
    /// A stream of the peer is open.
    GoAwaySent,
    GoAwayRead,
    /// Resumed; frames of the earlier connection are still to be written.
    Replaying,
}

impl State {
    pub const ALL: [Self; 20] = [
        Self::Down,
        Self::Greeting,
        Self::Idle,
        Self::Peer,
        Self::Opening,
        Self::PeerData,
        Self::Own,
        Self::TlsAsked,
        Self::FinRead,
        Self::FinTaken,
        Self::FinWritten,
        Self::BothFins,
        Self::OwnReset,
        Self::OwnResetReleased,
        Self::PeerReset,
        Self::PeerResetReleased,
        Self::Recalled,
        Self::GoAwaySent,
        Self::GoAwayRead,
        Self::Replaying,
    ];

    pub fn exists(self, side: Side) -> bool {
        match self {
            Self::Opening => side == Side::Client,
            Self::TlsAsked => side == Side::Endpoint,
            _ => true,
        }
    }

    /// Nothing of any stream is left at the victim.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::Idle | Self::OwnResetReleased | Self::PeerResetReleased)
    }
}

/// First id that the peer, and that the victim opens.
pub fn first_ids(side: Side) -> (u64, u64) {
    match side {
        Side::Client => (2, 1),
        Side::Endpoint => (1, 2),
    }
}

fn peer_opens(shard: &mut Shard) -> (u64, StreamRef) {
    let id = first_ids(shard.side).0;
    shard.say(&Frame::Open(id, open_from(other(shard.side))));
    (id, shard.refs[0])
}

/// A stream of the peer; a `tcp` one is connected.
fn peer_stream(shard: &mut Shard) -> (u64, StreamRef) {
    let (id, r) = peer_opens(shard);
    if shard.side == Side::Client {
        shard.victim.opened(r, Opened::default());
    }
    shard.acknowledge();
    (id, r)
}

fn own_stream(shard: &mut Shard) -> (u64, StreamRef) {
    let open = open_from(shard.side);
    let r = shard.victim.open(shard.now, &mut shard.budget, open).expect("live");
    shard.refs.push(r);
    shard.acknowledge();
    (first_ids(shard.side).1, r)
}

/// A shard whose victim is in that state, and the id of the stream in question.
pub fn reach(side: Side, state: State) -> (Shard, Option<u64>) {
    let mut shard = Shard::new(side);
    shard.live();
    let id = reach_on(&mut shard, state);
    if state != State::Replaying && state != State::Greeting {
        shard.look();
    }
    shard.forget_news();
    (shard, id)
}

fn reach_on(shard: &mut Shard, state: State) -> Option<u64> {
    match state {
        State::Down => {
            shard.cut();
            shard.dials();
            return None;
        }
        State::Greeting => {
            shard.cut();
            shard.greet();
            return None;
        }
        State::Idle => return None,
        State::Own => return Some(own_stream(shard).0),
        State::TlsAsked => return Some(tls_asked(shard)),
        State::Recalled => return Some(recalled(shard)),
        State::Opening => {
            let (id, _) = peer_opens(shard);
            return Some(id);
        }
        _ => {}
    }
    let (id, r) = peer_stream(shard);
    reach_with(shard, state, id, r);
    Some(id)
}

/// States of a stream that the peer opened.
fn reach_with(shard: &mut Shard, state: State, id: u64, r: StreamRef) {
    let now = shard.now;
    let drain = Frame::GoAway {
        last: u64::MAX,
        reason: GoAwayReason::Drain,
        text: Bytes::new(),
    };
    match state {
        State::PeerData => {
            shard.say(&Frame::Data(id, Bytes::from_static(b"first")));
            assert_eq!(shard.read(r), Recv::Pending);
        }
        State::FinRead => shard.say(&Frame::Fin(id, None)),
        State::FinTaken => {
            shard.say(&Frame::Fin(id, None));
            assert_eq!(shard.read(r), Recv::Fin(None));
        }
        State::FinWritten | State::BothFins => {
            shard.victim.finish(now, r, None);
            shard.acknowledge();
            if state == State::BothFins {
                shard.say(&Frame::Fin(id, None));
            }
        }
        State::OwnReset | State::OwnResetReleased => {
            shard.victim.reset(now, &mut shard.budget, r, Code::SiteReset, "");
            shard.acknowledge();
        }
        State::PeerReset | State::PeerResetReleased => {
            shard.say(&Frame::Reset(id, Code::Cancelled, Bytes::new()));
        }
        State::GoAwaySent => {
            shard.victim.go_away(now, GoAwayReason::Drain, "");
            shard.acknowledge();
        }
        State::GoAwayRead => shard.say(&drain),
        State::Replaying => replaying(shard, r),
        _ => {}
    }
    if matches!(state, State::OwnResetReleased | State::PeerResetReleased) {
        shard.victim.release(now, &mut shard.budget, r);
    }
}

fn tls_asked(shard: &mut Shard) -> u64 {
    let (id, r) = own_stream(shard);
    shard.say(&Frame::Opened(id, Opened::default()));
    shard.victim.start_tls(r, Bytes::from_static(b"site"), Bytes::new());
    shard.acknowledge();
    id
}

/// More than one write is retained when the connection is cut; the next one has carried a part of it.
fn replaying(shard: &mut Shard, r: StreamRef) {
    for _ in 0..14 {
        shard.write(r, 16_372);
    }
    shard.look();
    shard.cut();
    shard.up();
    shard.look_once();
}

/// An own stream that has received something falls silent while others hold the pool.
fn recalled(shard: &mut Shard) -> u64 {
    let (id, r) = own_stream(shard);
    if shard.side == Side::Endpoint {
        shard.say(&Frame::Opened(id, Opened::default()));
    }
    for _ in 0..24 {
        own_stream(shard);
    }
    shard.say(&Frame::Data(id, Bytes::from(vec![0; 1_000])));
    assert_eq!(shard.read(r), Recv::Pending);
    shard.wait(Duration::from_millis(600));
    shard.acknowledge();
    let recalled = shard
        .said
        .iter()
        .any(|f| matches!(f, Frame::Recall(of, _) if *of == id));
    assert!(recalled, "RECALL of stream {id}");
    id
}
