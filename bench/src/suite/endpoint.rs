//! The endpoint's end, between its browsers' sockets and TLS.

use std::collections::HashMap;

use bytes::Bytes;
use dataplane::http::Body;
use dataplane::mux::{Event, Kind, Open, Recv, StreamRef};
use dataplane::shard::buffers;
use dataplane::time::Time;

use super::browsers::{Piece, Sent};
use super::transmit;
use crate::core::Host;
use crate::heads::{self, Asked, HOST};
use crate::records::Wire;

pub struct Endpoint {
    pub host: Host,
    exchanges: HashMap<StreamRef, Exchange>,
    /// What goes to which browser connection.
    pub delivered: Vec<(usize, Piece)>,
    frames: Vec<Bytes>,
}

struct Exchange {
    connection: usize,
    asked: Asked,
    /// Once the head of the answer was read.
    body: Option<Body>,
}

impl Endpoint {
    pub fn new(host: Host) -> Self {
        Self {
            host,
            exchanges: HashMap::new(),
            delivered: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// Takes what has arrived, and what the browsers sent, and writes what is ready.
    pub fn turn(&mut self, now: Time, sent: &mut Vec<Sent>, from_sc: &mut Wire, to_sc: &mut Wire) {
        while let Some(frames) = from_sc.open(now) {
            self.host.session.handle_bytes(now, &mut self.host.budget, frames);
        }
        self.host.settle(now);
        while let Some(event) = self.host.session.poll_event() {
            match event {
                Event::Readable(stream) => self.read(now, stream),
                Event::SessionEnded { text, .. } => panic!("{text}"),
                _ => {}
            }
        }
        for Sent { connection, request } in sent.drain(..) {
            self.ask(now, connection, &request);
        }
        transmit(now, &mut self.host, &mut self.frames, to_sc);
    }

    fn ask(&mut self, now: Time, connection: usize, request: &[u8]) {
        let mut head = Vec::with_capacity(1_024);
        let asked = heads::forward(request, &mut head);
        let (session, budget) = (&mut self.host.session, &mut self.host.budget);
        let open = Open {
            kind: Kind::Http,
            settings: 1,
            credit: 0,
            port: 80,
            host: Bytes::copy_from_slice(HOST.as_bytes()),
            shown: None,
        };
        let stream = session.open(now, budget, open).expect("a live link");
        let room = session.room(now, budget, stream);
        assert!(
            room.is_ok_and(|room| room >= head.len()),
            "a request fits the first credit"
        );
        session.write(now, budget, stream, buffers::frame(&head));
        session.finish(now, stream, None);
        let exchange = Exchange {
            connection,
            asked,
            body: None,
        };
        self.exchanges.insert(stream, exchange);
    }

    fn read(&mut self, now: Time, stream: StreamRef) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else {
            return;
        };
        let (session, budget) = (&mut self.host.session, &mut self.host.budget);
        loop {
            match session.recv(budget, stream) {
                Recv::Data(bytes) => {
                    let taken = bytes.len();
                    exchange.deliver(bytes, &mut self.delivered);
                    session.consumed(now, budget, stream, taken);
                }
                Recv::Pending => return,
                Recv::Fin(_) => break,
                cut => panic!("{cut:?}"),
            }
        }
        assert!(
            exchange.body.as_ref().is_some_and(Body::is_done),
            "an answer ends before its body"
        );
        self.delivered.push((exchange.connection, Piece::End));
        session.release(now, budget, stream);
        self.exchanges.remove(&stream);
    }
}

impl Exchange {
    fn deliver(&mut self, mut bytes: Bytes, delivered: &mut Vec<(usize, Piece)>) {
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let mut head = Vec::new();
                let (length, body) = heads::deliver(&bytes, self.asked, &mut head);
                drop(bytes.split_to(length));
                delivered.push((self.connection, Piece::Head(head)));
                self.body.insert(body)
            }
        };
        let all = body.advance(&bytes).expect("a valid body");
        assert_eq!(all.bytes, bytes.len(), "bytes after the answer");
        delivered.push((self.connection, Piece::Body(bytes)));
    }
}
