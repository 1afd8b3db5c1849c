//! A shard with two links: one to a peer written by hand, one to an honest neighbour. Both share its budgets.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use dataplane::limits::{FRAME_HEADER_BYTES, RESUME_WINDOW};
use dataplane::mux::frame::{self, Frame, Header};
use dataplane::mux::{Budget, BudgetConfig, Config, Event, Hello, Kind, Open, Recv, Session, Side, StreamRef};
use dataplane::time::Time;

use super::neighbour::Neighbour;

/// What either side takes of a stream before its first CREDIT.
pub const FIRST_CREDIT: u64 = 16_384;
const POOL_BYTES: usize = 1 << 20;
const FRESH: [u8; 16] = [9; 16];

pub fn budget() -> Budget {
    Budget::new(BudgetConfig {
        pool_bytes: POOL_BYTES,
        tx_bytes: 8 << 20,
        streams_peer_max: 32,
        streams_own_max: 32,
    })
}

pub fn session(side: Side, link: u16, now: Time) -> Session {
    let config = Config {
        side,
        key: u32::from(link),
        link,
        links: 2,
        member: [7; 16],
        seed: [3; 16],
        settings: 1,
        resume_window: RESUME_WINDOW,
    };
    Session::new(config, now)
}

pub fn other(side: Side) -> Side {
    match side {
        Side::Client => Side::Endpoint,
        Side::Endpoint => Side::Client,
    }
}

/// A stream of the kind that this side opens: `tcp` from the endpoint, `relay` from `sc`.
pub fn open_from(side: Side) -> Open {
    let siteless = side == Side::Client;
    Open {
        kind: if siteless { Kind::Relay } else { Kind::Tcp },
        settings: 1,
        credit: 1 << 20,
        port: if siteless { 0 } else { 22 },
        host: if siteless {
            Bytes::new()
        } else {
            Bytes::from_static(b"site")
        },
        shown: None,
    }
}

pub fn frame_bytes(f: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    frame::encode(f, &mut out);
    out.freeze()
}

/// Whole frames of a stretch of a link.
fn frames(mut bytes: Bytes) -> Vec<(Header, Frame)> {
    let mut out = Vec::new();
    while let Some(Ok(header)) = Header::decode(&bytes) {
        bytes.advance(FRAME_HEADER_BYTES);
        let payload = bytes.split_to(header.length);
        out.push((
            header,
            frame::decode(header, payload).expect("what a session writes is right"),
        ));
    }
    out
}

pub fn transmit(session: &mut Session, now: Time, budget: &mut Budget) -> Bytes {
    let mut pieces = Vec::new();
    while session.poll_transmit(now, budget, &mut pieces) > 0 {}
    let mut out = BytesMut::new();
    pieces.iter().for_each(|p| out.extend_from_slice(p));
    out.freeze()
}

pub fn dial(session: &mut Session, now: Time, budget: &mut Budget) -> Hello {
    session.handle_timeout(now, budget);
    session.connected(now, budget);
    let out = frames(transmit(session, now, budget));
    match out.first() {
        Some((_, Frame::Hello(hello))) => hello.clone(),
        _ => panic!("sc speaks first"),
    }
}

pub struct Shard {
    pub now: Time,
    pub side: Side,
    pub budget: Budget,
    pub victim: Session,
    /// Streams that the victim's holders still have.
    pub refs: Vec<StreamRef>,
    pub events: Vec<Event>,
    /// Frames that the victim wrote since the last look.
    pub said: Vec<Frame>,
    /// Counted bytes that the victim was fed, and that it wrote.
    pub fed: u64,
    wrote: u64,
    /// Counted offset of what this connection carries next; replayed frames were written before.
    at: u64,
    /// What the peer has acknowledged of them.
    acked: u64,
    epoch: u64,
    session: [u8; 16],
    /// The victim's last HELLO.
    hello_said: Option<Hello>,
    neighbour: Neighbour,
}

impl Shard {
    /// The neighbour is up with one stream that carried data; the victim has no connection.
    pub fn new(side: Side) -> Self {
        let now = Time::from_micros(1_000_000);
        let mut budget = budget();
        let neighbour = Neighbour::new(side, now, &mut budget);
        Self {
            now,
            side,
            budget,
            victim: session(side, 0, now),
            refs: Vec::new(),
            events: Vec::new(),
            said: Vec::new(),
            fed: 0,
            at: 0,
            wrote: 0,
            acked: 0,
            epoch: 0,
            session: [0; 16],
            hello_said: None,
            neighbour,
        }
    }

    /// The neighbour's stream carries data as before.
    pub fn neighbour_carries(&mut self) {
        self.neighbour.carries(self.now, &mut self.budget);
    }

    /// Ends the neighbour's stream in peace and takes the victim's connection away; nothing may be held any more.
    pub fn nothing_is_left(mut self) {
        self.now = self.now + Duration::from_millis(30);
        self.neighbour.ends(self.now, &mut self.budget);
        self.victim.disconnected(self.now, &mut self.budget, false);
        self.now = self.now + Duration::from_secs(60);
        self.victim.handle_timeout(self.now, &mut self.budget);
        self.drain();
        for r in std::mem::take(&mut self.refs) {
            self.victim.release(self.now, &mut self.budget, r);
        }
        let b = &self.budget;
        let left = (
            b.streams(),
            b.rx_outstanding(),
            b.rx_held(),
            b.rx_charged(),
            b.tx_held(),
        );
        assert_eq!(left, ((0, 0), 0, 0, 0, 0), "budgets back to the baseline");
    }

    /// The peer's HELLO, or the one it answers with.
    pub fn hello(&self) -> Hello {
        let asks = self.side == Side::Endpoint;
        Hello {
            version_min: frame::VERSION,
            version_max: frame::VERSION,
            link: 0,
            links: 2,
            member: [7; 16],
            session: self.session,
            fresh: if asks { FRESH } else { [0; 16] },
            epoch: self.epoch,
            received: self.acked,
            first_credit: FIRST_CREDIT as u32,
        }
    }

    /// As far as the victim's own HELLO: written by `sc`, queued by the endpoint.
    pub fn greet(&mut self) {
        self.now = self.now + Duration::from_secs(3);
        self.epoch += 1;
        self.at = self.acked;
        match self.side {
            Side::Client => {
                let hello = dial(&mut self.victim, self.now, &mut self.budget);
                if self.session == [0; 16] {
                    self.session = hello.fresh;
                }
                self.hello_said = Some(hello);
            }
            Side::Endpoint => {
                let hello = self.hello();
                assert_eq!(self.victim.check_hello(&hello), Ok(()));
                self.victim.begin_cut_over();
                self.victim.connected_by(self.now, &mut self.budget, &hello);
                if self.session == [0; 16] {
                    self.session = FRESH;
                }
            }
        }
        self.drain();
    }

    /// Both HELLOs are exchanged.
    pub fn up(&mut self) {
        self.greet();
        if self.side == Side::Client {
            let hello = Frame::Hello(self.hello());
            self.say(&hello);
        }
    }

    /// Both HELLOs are exchanged, everything is acknowledged, the link takes streams.
    pub fn live(&mut self) {
        self.up();
        self.look();
        let ping = self
            .said
            .iter()
            .find_map(|f| if let Frame::Ping(p) = f { Some(*p) } else { None });
        self.say(&Frame::Pong(ping.expect("a PING at once")));
        self.acknowledge();
        assert!(self.victim.is_live());
    }

    pub fn acknowledge(&mut self) {
        self.look();
        self.acked = self.wrote;
        self.say(&Frame::Ack(self.acked));
        self.look();
    }

    pub fn cut(&mut self) {
        self.victim.disconnected(self.now, &mut self.budget, false);
        self.look();
    }

    /// Reads of the victim, one after the other.
    pub fn feed(&mut self, reads: &[Bytes]) {
        for bytes in reads {
            self.victim.handle_bytes(self.now, &mut self.budget, bytes.clone());
        }
        self.drain();
    }

    /// A frame of an honest peer.
    pub fn say(&mut self, f: &Frame) {
        let bytes = frame_bytes(f);
        if Header::decode(&bytes).is_some_and(|h| h.is_ok_and(Header::counted)) {
            self.fed += bytes.len() as u64;
        }
        self.feed(&[bytes]);
    }

    pub fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.victim.handle_timeout(self.now, &mut self.budget);
        self.drain();
    }

    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// `sc` dials; nothing happens at the endpoint.
    pub fn dials(&mut self) {
        if self.side == Side::Client {
            self.wait(Duration::from_secs(3));
        }
    }

    /// The connection goes, a new one comes: the same session, which has received so much.
    pub fn resumes_at(&mut self, received: u64) {
        self.cut();
        self.forget_news();
        self.greet();
        self.look();
        let hello = self.hello_said.take().expect("a HELLO");
        assert_eq!((hello.session, hello.received), (self.session, received));
    }

    fn drain(&mut self) {
        while let Some(event) = self.victim.poll_event() {
            if let Event::Opened(r, _) = event {
                self.refs.push(r);
            }
            self.events.push(event);
        }
    }

    /// What the victim writes now.
    pub fn look(&mut self) {
        let out = transmit(&mut self.victim, self.now, &mut self.budget);
        self.note(out);
    }

    /// One write of the victim.
    pub fn look_once(&mut self) {
        let mut pieces = Vec::new();
        self.victim.poll_transmit(self.now, &mut self.budget, &mut pieces);
        let mut out = BytesMut::new();
        pieces.iter().for_each(|p| out.extend_from_slice(p));
        self.note(out.freeze());
    }

    fn note(&mut self, out: Bytes) {
        for (header, f) in frames(out) {
            if header.counted() {
                self.at += (FRAME_HEADER_BYTES + header.length) as u64;
                self.wrote = self.wrote.max(self.at);
            }
            match f {
                Frame::Hello(hello) => self.hello_said = Some(hello),
                f => self.said.push(f),
            }
        }
        self.drain();
    }

    pub fn forget_news(&mut self) {
        self.events.clear();
        self.said.clear();
    }

    pub fn write(&mut self, r: StreamRef, bytes: usize) {
        let room = self.victim.room(self.now, &mut self.budget, r);
        assert!(room.is_ok_and(|room| room >= bytes), "room for {bytes}");
        let frame = BytesMut::zeroed(FRAME_HEADER_BYTES + bytes);
        self.victim.write(self.now, &mut self.budget, r, frame);
    }

    /// Takes everything that a stream has received.
    pub fn read(&mut self, r: StreamRef) -> Recv {
        loop {
            match self.victim.recv(&mut self.budget, r) {
                Recv::Data(bytes) => {
                    self.victim.consumed(self.now, &mut self.budget, r, bytes.len());
                }
                end => return end,
            }
        }
    }

    pub fn holds(&self) -> (usize, usize, usize, usize, (usize, usize)) {
        let b = &self.budget;
        (
            b.rx_outstanding(),
            b.rx_held(),
            b.rx_charged(),
            b.tx_held(),
            b.streams(),
        )
    }
}
