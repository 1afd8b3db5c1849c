//! `sc`'s end, between TLS and its sites' sockets.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use dataplane::http::Body;
use dataplane::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, LINK_WRITE_BYTES_MAX};
use dataplane::mux::{Event, Open, Recv, StreamRef, Timings};
use dataplane::shard::runtime::READ_BUFFERS_MAX;
use dataplane::time::Time;

use super::sites::{Read, Sites};
use super::transmit;
use crate::core::Host;
use crate::heads;
use crate::records::Wire;

pub struct Sc {
    pub host: Host,
    exchanges: HashMap<StreamRef, Exchange>,
    /// Requests on their way to the sites.
    pub requests: Vec<(StreamRef, Bytes)>,
    /// Streams whose site has more to read, and which are not known to lack room.
    ready: VecDeque<StreamRef>,
    pub reads: Vec<Read>,
    frames: Vec<Bytes>,
}

struct Exchange {
    open: Open,
    /// Once the head of the answer was read.
    body: Option<Body>,
}

impl Sc {
    pub fn new(host: Host) -> Self {
        Self {
            host,
            exchanges: HashMap::new(),
            requests: Vec::new(),
            ready: VecDeque::new(),
            reads: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// Takes what has arrived.
    pub fn receive(&mut self, now: Time, from_endpoint: &mut Wire) {
        while let Some(frames) = from_endpoint.open(now) {
            self.host.session.handle_bytes(now, &mut self.host.budget, frames);
        }
        self.host.settle(now);
        while let Some(event) = self.host.session.poll_event() {
            match event {
                Event::Opened(stream, open) => {
                    self.exchanges.insert(stream, Exchange { open, body: None });
                }
                Event::Readable(stream) => self.read_request(now, stream),
                Event::Writable(stream) => self.ready.push_back(stream),
                Event::SessionEnded { text, .. } => panic!("{text}"),
                _ => {}
            }
        }
    }

    fn read_request(&mut self, now: Time, stream: StreamRef) {
        let Some(exchange) = self.exchanges.get(&stream) else {
            return;
        };
        let (session, budget) = (&mut self.host.session, &mut self.host.budget);
        loop {
            match session.recv(budget, stream) {
                Recv::Data(bytes) => {
                    let host = std::str::from_utf8(&exchange.open.host).map(str::to_ascii_lowercase);
                    let head = heads::receive(&bytes, &host.expect("a name"), exchange.open.port);
                    assert_eq!(head.len(), bytes.len(), "a request is its head");
                    session.consumed(now, budget, stream, bytes.len());
                    self.requests.push((stream, head));
                    self.ready.push_back(stream);
                }
                Recv::Pending | Recv::Fin(_) => return,
                cut => panic!("{cut:?}"),
            }
        }
    }

    /// Prepares as many reads of sites as one write to the link takes: the sites are as fast as the link.
    pub fn prepare(&mut self, now: Time, sites: &Sites) {
        let mut wanted = 0;
        while wanted < LINK_WRITE_BYTES_MAX {
            let Some(stream) = self.ready.pop_front() else {
                return;
            };
            let room = self.host.session.room(now, &mut self.host.budget, stream);
            let room = room.expect("nobody gives an answer up");
            let mut left = room
                .min(READ_BUFFERS_MAX * FRAME_PAYLOAD_BYTES_MAX)
                .min(sites.left(stream));
            wanted += left;
            while left > 0 {
                let wanted = left.min(FRAME_PAYLOAD_BYTES_MAX);
                left -= wanted;
                let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES + wanted);
                frame.resize(FRAME_HEADER_BYTES, 0);
                self.reads.push(Read {
                    stream,
                    frame,
                    wanted,
                    last: left == 0,
                });
            }
        }
    }

    /// Passes on what was read, and writes what is ready.
    pub fn send(&mut self, now: Time, to_endpoint: &mut Wire) {
        let (session, budget) = (&mut self.host.session, &mut self.host.budget);
        for Read {
            stream, frame, last, ..
        } in self.reads.drain(..)
        {
            let Some(exchange) = self.exchanges.get_mut(&stream) else {
                continue;
            };
            let done = exchange.follow(&frame[FRAME_HEADER_BYTES..]);
            session.write(now, budget, stream, frame);
            if done {
                session.finish(now, stream, Some(Timings::default()));
                session.release(now, budget, stream);
                self.exchanges.remove(&stream);
            } else if last {
                self.ready.push_back(stream);
            }
        }
        transmit(now, &mut self.host, &mut self.frames, to_endpoint);
    }
}

impl Exchange {
    /// Follows the answer; whether it is done.
    fn follow(&mut self, read: &[u8]) -> bool {
        let mut at = 0;
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let (length, body) = heads::follow(read);
                at = length;
                self.body.insert(body)
            }
        };
        let all = body.advance(&read[at..]).expect("a valid body");
        assert_eq!(at + all.bytes, read.len(), "bytes after the answer");
        all.done
    }
}
