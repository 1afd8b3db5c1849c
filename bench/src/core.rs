//! Micro benches of the sans-IO core: two sessions in memory, without a network, a clock or encryption.

use bytes::{Bytes, BytesMut};
use dataplane::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, RESUME_WINDOW};
use dataplane::mux::frame::{Frame, Header, decode};
use dataplane::mux::{Budget, BudgetConfig, Config, Event, Kind, Open, Recv, Session, Side, StreamRef};
use dataplane::time::Time;

/// One end of a link in memory.
pub struct Host {
    pub(crate) session: Session,
    pub(crate) budget: Budget,
    opened: Option<StreamRef>,
}

impl Host {
    fn new(side: Side, now: Time) -> Self {
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
            pool_bytes: 64 << 20,
            tx_bytes: 64 << 20,
            streams_peer_max: 8_192,
            streams_own_max: 8_192,
        });
        Self {
            session: Session::new(config, now),
            budget,
            opened: None,
        }
    }

    /// What falls due, and streams that have room again.
    pub(crate) fn settle(&mut self, now: Time) {
        if self.session.poll_timeout().is_some_and(|due| due <= now) {
            self.session.handle_timeout(now, &mut self.budget);
        }
        while let Some((_, stream)) = self.budget.next_unblocked() {
            self.session.unblock(stream);
        }
    }

    fn drain_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            if let Event::Opened(stream, _) = event {
                self.opened = Some(stream);
            }
        }
    }

    fn send(&mut self, now: Time, stream: StreamRef, payload: &BytesMut) -> bool {
        let room = self.session.room(now, &mut self.budget, stream).unwrap_or(0);
        let fits = room >= payload.len() - FRAME_HEADER_BYTES;
        if fits {
            self.session.write(now, &mut self.budget, stream, payload.clone());
        }
        fits
    }

    /// Takes everything that waits on a stream; the bytes, and whether it ended.
    fn take(&mut self, now: Time, stream: StreamRef) -> (usize, bool) {
        let mut total = 0;
        loop {
            match self.session.recv(&mut self.budget, stream) {
                Recv::Data(bytes) => {
                    total += bytes.len();
                    self.session.consumed(now, &mut self.budget, stream, bytes.len());
                }
                Recv::Pending => return (total, false),
                Recv::Fin(_) | Recv::Reset(..) | Recv::Gone => return (total, true),
            }
        }
    }
}

/// Both ends, connected.
pub struct Pair {
    now: Time,
    sc: Host,
    endpoint: Host,
    frames: Vec<Bytes>,
}

impl Pair {
    /// Two sessions whose HELLOs are exchanged.
    ///
    /// # Panics
    /// If the core does not come up, which its own tests rule out.
    pub fn connected() -> Self {
        let now = Time::from_micros(1_000_000);
        let (sc, endpoint) = (Host::new(Side::Client, now), Host::new(Side::Endpoint, now));
        let mut pair = Self {
            now,
            sc,
            endpoint,
            frames: Vec::new(),
        };
        pair.sc.session.handle_timeout(now, &mut pair.sc.budget);
        pair.sc.session.connected(now, &mut pair.sc.budget);
        pair.sc
            .session
            .poll_transmit(now, &mut pair.sc.budget, &mut pair.frames);
        let mut hello = pair.frames.remove(0);
        let header = Header::decode(&hello).and_then(Result::ok).expect("a header");
        let Ok(Frame::Hello(hello)) = decode(header, hello.split_off(FRAME_HEADER_BYTES)) else {
            panic!("no HELLO")
        };
        pair.endpoint
            .session
            .connected_by(now, &mut pair.endpoint.budget, &hello);
        while pair.turn() > 0 {}
        assert!(
            pair.endpoint.session.is_live() && pair.sc.session.is_live(),
            "both ends are live"
        );
        pair
    }

    /// `sc`, the endpoint, and their clock, for another way to carry what they write.
    pub(crate) fn into_hosts(self) -> (Host, Host, Time) {
        (self.sc, self.endpoint, self.now)
    }

    /// One write in each direction; the bytes that moved.
    fn turn(&mut self) -> usize {
        self.now = self.now + std::time::Duration::from_micros(50);
        carry(self.now, &mut self.sc, &mut self.endpoint, &mut self.frames)
            + carry(self.now, &mut self.endpoint, &mut self.sc, &mut self.frames)
    }

    fn open(&mut self) -> (StreamRef, StreamRef) {
        let open = Open {
            kind: Kind::Http,
            settings: 1,
            credit: 0,
            port: 80,
            host: Bytes::from_static(b"site.test"),
            shown: None,
        };
        let here = self
            .endpoint
            .session
            .open(self.now, &mut self.endpoint.budget, open)
            .expect("a live link");
        self.turn();
        (here, self.sc.opened.take().expect("opened at sc"))
    }

    /// One exchange: a request of `request` bytes, an answer of `answer` bytes, each in frames of at most 16,372.
    ///
    /// # Panics
    /// If the answer does not arrive.
    pub fn exchange(&mut self, request: usize, answer: usize) {
        let (here, there) = self.open();
        let request = payload(request);
        assert!(
            self.endpoint.send(self.now, here, &request),
            "the request fits the first credit"
        );
        self.endpoint.session.finish(self.now, here, None);
        self.turn();
        self.sc.take(self.now, there);
        let (full, mut left) = (payload(FRAME_PAYLOAD_BYTES_MAX), answer);
        let mut got = 0;
        loop {
            while left > 0 {
                let frame = if left >= FRAME_PAYLOAD_BYTES_MAX {
                    full.clone()
                } else {
                    payload(left)
                };
                let bytes = frame.len() - FRAME_HEADER_BYTES;
                if !self.sc.send(self.now, there, &frame) {
                    break;
                }
                left -= bytes;
            }
            if left == 0 {
                self.sc.session.finish(self.now, there, None);
            }
            self.turn();
            let (bytes, ended) = self.endpoint.take(self.now, here);
            got += bytes;
            if ended {
                break;
            }
        }
        assert_eq!(got, answer);
        self.sc.session.release(self.now, &mut self.sc.budget, there);
        self.endpoint.session.release(self.now, &mut self.endpoint.budget, here);
        for host in [&mut self.sc, &mut self.endpoint] {
            host.session.handle_timeout(self.now, &mut host.budget);
        }
        self.turn();
    }
}

fn carry(now: Time, from: &mut Host, to: &mut Host, frames: &mut Vec<Bytes>) -> usize {
    let bytes = from.session.poll_transmit(now, &mut from.budget, frames);
    for frame in frames.drain(..) {
        to.session.handle_bytes(now, &mut to.budget, frame);
    }
    from.drain_events();
    to.drain_events();
    bytes
}

fn payload(bytes: usize) -> BytesMut {
    BytesMut::zeroed(FRAME_HEADER_BYTES + bytes)
}

#[cfg(test)]
mod tests {
    use super::Pair;

    #[test]
    fn an_exchange_runs_to_its_end() {
        let mut pair = Pair::connected();
        pair.exchange(300, 1_024);
        pair.exchange(300, 3_000_000);
    }
}
