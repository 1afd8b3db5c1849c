//! Two sessions back to back, without a network.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dataplane::limits::{FRAME_HEADER_BYTES, RECORD_BYTES_MAX, RESUME_WINDOW};
use dataplane::mux::frame::{self, Frame, Header, decode};
use dataplane::mux::{Budget, BudgetConfig, Config, Event, Kind, Open, Recv, Session, Side, StreamRef};
use dataplane::time::Time;

pub struct Host {
    pub session: Session,
    pub budget: Budget,
    pub events: Vec<Event>,
}

pub struct Pair {
    pub now: Time,
    /// A frame's way, and so the round trip that a PING finds.
    pub way: Duration,
    pub sc: Host,
    pub endpoint: Host,
}

pub fn host(side: Side) -> Host {
    let now = Time::from_micros(1_000_000);
    let config = Config {
        side,
        key: 0,
        link: 0,
        links: 1,
        member: [7; 16],
        seed: [3; 16],
        settings: 1,
        resume_window: RESUME_WINDOW,
    };
    let budget = Budget::new(BudgetConfig {
        pool_bytes: 8 << 20,
        tx_bytes: 8 << 20,
        streams_peer_max: 64,
        streams_own_max: 64,
    });
    Host {
        session: Session::new(config, now),
        budget,
        events: Vec::new(),
    }
}

impl Host {
    /// Feeds one frame as if the peer had sent it.
    pub fn feed(&mut self, now: Time, f: &Frame) {
        let mut bytes = BytesMut::new();
        frame::encode(f, &mut bytes);
        self.session.handle_bytes(now, &mut self.budget, bytes.freeze());
    }

    pub fn open(&mut self, now: Time, kind: Kind) -> StreamRef {
        let (host, port) = if kind == Kind::Relay { ("", 0) } else { ("site", 80) };
        let open = Open {
            kind,
            settings: 1,
            credit: 0,
            port,
            host: Bytes::from_static(host.as_bytes()),
            shown: None,
        };
        self.session.open(now, &mut self.budget, open).expect("live")
    }

    /// Everything that leaves now, frame by frame.
    pub fn frames(&mut self, now: Time) -> Vec<Frame> {
        let mut bytes = self.transmit(now).freeze();
        let mut frames = Vec::new();
        while let Some(header) = Header::decode(&bytes) {
            let header = header.expect("a header");
            let mut whole = bytes.split_to(FRAME_HEADER_BYTES + header.length);
            frames.push(decode(header, whole.split_off(FRAME_HEADER_BYTES)).expect("a frame"));
        }
        frames
    }

    pub fn room(&mut self, now: Time, r: StreamRef) -> usize {
        self.session.room(now, &mut self.budget, r).expect("open")
    }

    pub fn saw(&mut self, wanted: impl Fn(&Event) -> bool) -> bool {
        while let Some(event) = self.session.poll_event() {
            self.events.push(event);
        }
        self.events.iter().any(wanted)
    }

    pub fn transmit(&mut self, now: Time) -> BytesMut {
        let mut frames = Vec::new();
        let mut out = BytesMut::new();
        while self.session.poll_transmit(now, &mut self.budget, &mut frames) > 0 {
            for frame in frames.drain(..) {
                out.extend_from_slice(&frame);
            }
        }
        while let Some(event) = self.session.poll_event() {
            self.events.push(event);
        }
        out
    }

    pub fn write(&mut self, now: Time, r: StreamRef, payload: &[u8]) -> usize {
        let room = self
            .session
            .room(now, &mut self.budget, r)
            .unwrap_or(0)
            .min(16_372)
            .min(payload.len());
        if room > 0 {
            let mut frame = BytesMut::zeroed(FRAME_HEADER_BYTES);
            frame.extend_from_slice(&payload[..room]);
            self.session.write(now, &mut self.budget, r, frame);
        }
        room
    }

    /// Writes DATA frames of so many bytes together.
    pub fn write_framed(&mut self, now: Time, r: StreamRef, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let frame = left.min(RECORD_BYTES_MAX);
            assert_eq!(
                self.write(now, r, &vec![0; frame - FRAME_HEADER_BYTES]),
                frame - FRAME_HEADER_BYTES
            );
            left -= frame;
        }
    }

    pub fn read(&mut self, now: Time, r: StreamRef, into: &mut Vec<u8>) -> Option<Recv> {
        loop {
            match self.session.recv(&mut self.budget, r) {
                Recv::Data(bytes) => {
                    into.extend_from_slice(&bytes);
                    self.session.consumed(now, &mut self.budget, r, bytes.len());
                }
                Recv::Pending => return None,
                end => return Some(end),
            }
        }
    }
}

impl Pair {
    pub fn new() -> Self {
        Self {
            now: Time::from_micros(1_000_000),
            way: Duration::from_micros(500),
            sc: host(Side::Client),
            endpoint: host(Side::Endpoint),
        }
    }

    pub fn tick(&mut self, d: Duration) {
        self.now = self.now + d;
        self.sc.session.handle_timeout(self.now, &mut self.sc.budget);
        self.endpoint
            .session
            .handle_timeout(self.now, &mut self.endpoint.budget);
    }

    pub fn connect(&mut self) {
        self.greet();
        self.exchange();
    }

    /// A new connection: HELLO of both, and what the endpoint writes behind its own.
    pub fn greet(&mut self) {
        self.tick(Duration::from_millis(1));
        self.sc.transmit(self.now);
        assert!(self.sc.events.contains(&Event::Dial));
        self.sc.session.connected(self.now, &mut self.sc.budget);
        let mut hello = self.sc.transmit(self.now).freeze();
        let header = Header::decode(&hello).and_then(Result::ok).expect("a header");
        let Ok(Frame::Hello(h)) = decode(header, hello.split_off(FRAME_HEADER_BYTES)) else {
            panic!("not HELLO")
        };
        self.endpoint.session.check_hello(&h).expect("accepted");
        self.endpoint
            .session
            .connected_by(self.now, &mut self.endpoint.budget, &h);
        let answer = self.endpoint.transmit(self.now).freeze();
        self.sc.session.handle_bytes(self.now, &mut self.sc.budget, answer);
    }

    pub fn exchange(&mut self) {
        for _ in 0..1_000 {
            self.now = self.now + self.way;
            let a = self.sc.transmit(self.now);
            let b = self.endpoint.transmit(self.now);
            if a.is_empty() && b.is_empty() {
                return;
            }
            self.endpoint
                .session
                .handle_bytes(self.now, &mut self.endpoint.budget, a.freeze());
            self.sc.session.handle_bytes(self.now, &mut self.sc.budget, b.freeze());
        }
        panic!("the two never fall silent");
    }

    /// Late ACKs leave too.
    pub fn settle(&mut self) {
        self.tick(Duration::from_millis(30));
        self.exchange();
    }

    pub fn cut(&mut self) {
        self.sc.session.disconnected(self.now, &mut self.sc.budget, false);
        self.endpoint
            .session
            .disconnected(self.now, &mut self.endpoint.budget, false);
    }

    /// Opens at the endpoint; the OPEN has not left yet.
    pub fn open_here(&mut self) -> StreamRef {
        self.endpoint.open(self.now, Kind::Http)
    }

    pub fn open(&mut self) -> (StreamRef, StreamRef) {
        let here = self.open_here();
        self.exchange();
        (here, self.opened_there())
    }

    /// The stream that was opened last, at `sc`.
    pub fn opened_there(&self) -> StreamRef {
        let there = self.sc.events.iter().rev().find_map(|e| match e {
            Event::Opened(r, _) => Some(*r),
            _ => None,
        });
        there.expect("opened at sc")
    }
}
