//! Fuzzers of the multiplex: any bytes on a link, and any sequence of operations on a pair of sessions.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{self, Frame, Header};
use super::{Budget, BudgetConfig, Code, Config, Event, Hello, Kind, Open, Recv, Session, Side, StreamRef};
use crate::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, RESUME_WINDOW};
use crate::time::Time;

const START: Time = Time::from_micros(1_000_000);
const SIZES: BudgetConfig = BudgetConfig {
    pool_bytes: 256 * 1024,
    tx_bytes: 192 * 1024,
    streams_peer_max: 12,
    streams_own_max: 16,
};

/// One side: a session, its budget, what it has written to the link, its streams.
struct End {
    session: Session,
    budget: Budget,
    out: BytesMut,
    /// Bytes sent and received of each stream: content is the offset's low byte.
    streams: HashMap<StreamRef, (u64, u64)>,
    order: Vec<StreamRef>,
    wants_dial: bool,
    wants_close: bool,
    up: bool,
    /// Payload bytes read, over all streams.
    arrived: u64,
}

impl End {
    fn new(side: Side) -> Self {
        let config = Config {
            side,
            key: 0,
            link: 0,
            links: 1,
            member: [1; 16],
            seed: [5; 16],
            settings: 1,
            resume_window: RESUME_WINDOW,
        };
        Self {
            session: Session::new(config, START),
            budget: Budget::new(SIZES),
            out: BytesMut::new(),
            streams: HashMap::new(),
            order: Vec::new(),
            wants_dial: false,
            wants_close: false,
            up: false,
            arrived: 0,
        }
    }

    fn pick(&self, which: u8) -> Option<StreamRef> {
        self.order.get(usize::from(which) % self.order.len().max(1)).copied()
    }

    fn adopt(&mut self, r: StreamRef) {
        self.streams.insert(r, (0, 0));
        self.order.push(r);
    }

    fn forget(&mut self, r: StreamRef) {
        self.streams.remove(&r);
        self.order.retain(|x| *x != r);
    }

    /// Acts on events and collects what the session writes; whether honest peers quarrelled.
    fn turn(&mut self, now: Time) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Dial => self.wants_dial = true,
                Event::Close(_) => self.wants_close = true,
                Event::Opened(r, _) => self.adopt(r),
                Event::Withdrawn { stream, .. } => self.forget(stream),
                Event::Settings { version, .. } => self.session.settings_ack(version, true, ""),
                _ => {}
            }
        }
        while let Some((_, r)) = self.budget.next_unblocked() {
            self.session.unblock(r);
        }
        let mut frames = Vec::new();
        while self.up && self.session.poll_transmit(now, &mut self.budget, &mut frames) > 0 {}
        frames.iter().for_each(|f| self.out.extend_from_slice(f));
        assert!(self.budget.rx_outstanding() <= self.budget.rx_outstanding_max());
        assert!(self.budget.tx_held() <= self.budget.tx_held_max());
        assert!(self.budget.rx_held() <= self.budget.rx_outstanding());
    }

    fn write(&mut self, now: Time, r: StreamRef, wanted: usize) {
        let Ok(room) = self.session.room(now, &mut self.budget, r) else {
            return;
        };
        let take = room.min(wanted).min(FRAME_PAYLOAD_BYTES_MAX);
        if take > 0
            && let Some((sent, _)) = self.streams.get_mut(&r)
        {
            let mut frame = BytesMut::zeroed(FRAME_HEADER_BYTES);
            frame.extend((0..take as u64).map(|i| (*sent + i) as u8));
            *sent += take as u64;
            self.session.write(now, &mut self.budget, r, frame);
        }
    }

    fn read(&mut self, now: Time, r: StreamRef) {
        match self.session.recv(&mut self.budget, r) {
            Recv::Data(bytes) => {
                if let Some((_, received)) = self.streams.get_mut(&r) {
                    for b in &bytes {
                        assert_eq!(*b, *received as u8, "a byte out of place");
                        *received += 1;
                    }
                    self.arrived += bytes.len() as u64;
                }
                self.session.consumed(now, &mut self.budget, r, bytes.len());
            }
            Recv::Pending => {}
            Recv::Fin(_) | Recv::Reset(..) | Recv::Gone => self.release(now, r),
        }
    }

    fn release(&mut self, now: Time, r: StreamRef) {
        self.session.release(now, &mut self.budget, r);
        self.forget(r);
    }
}

/// Two sides and the link between them; index 0 is `sc`.
struct Pair {
    now: Time,
    ends: [End; 2],
}

impl Pair {
    fn new() -> Self {
        Self {
            now: START,
            ends: [End::new(Side::Client), End::new(Side::Endpoint)],
        }
    }

    fn settle(&mut self) {
        for side in [0, 1] {
            self.ends[side].turn(self.now);
            if std::mem::take(&mut self.ends[side].wants_close) {
                self.cut();
            }
        }
    }

    /// Connects if `sc` wants to, and hands the whole HELLO over.
    fn dial(&mut self) {
        let sc = &mut self.ends[0];
        if !std::mem::take(&mut sc.wants_dial) {
            return;
        }
        sc.session.connected(self.now, &mut sc.budget);
        sc.up = true;
        self.settle();
        let out = &mut self.ends[0].out;
        let Some(hello) = take_hello(out) else { return };
        let endpoint = &mut self.ends[1];
        if endpoint.session.check_hello(&hello).is_err() {
            return self.cut();
        }
        endpoint.session.begin_cut_over();
        endpoint.session.connected_by(self.now, &mut endpoint.budget, &hello);
        endpoint.up = true;
    }

    fn cut(&mut self) {
        for end in &mut self.ends {
            end.out.clear();
            if std::mem::replace(&mut end.up, false) {
                end.session.disconnected(self.now, &mut end.budget, false);
            }
            end.wants_close = false;
        }
    }

    /// Up to `bytes` of what `from` wrote reach the other side.
    fn deliver(&mut self, from: usize, bytes: usize) {
        if !self.ends[1 - from].up {
            return;
        }
        let n = bytes.min(self.ends[from].out.len());
        let piece = self.ends[from].out.split_to(n).freeze();
        let to = &mut self.ends[1 - from];
        to.session.handle_bytes(self.now, &mut to.budget, piece);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        for end in &mut self.ends {
            if end.session.poll_timeout().is_some_and(|t| t <= self.now) {
                end.session.handle_timeout(self.now, &mut end.budget);
            }
        }
    }

    fn operate(&mut self, op: u8, value: u8) {
        let side = usize::from(op & 1);
        let now = self.now;
        let end = &mut self.ends[side];
        let stream = end.pick(value);
        match (op >> 1) % 12 {
            0 => {
                let open = open_of(side);
                if let Ok(r) = end.session.open(now, &mut end.budget, open) {
                    end.adopt(r);
                }
            }
            1 | 2 => {
                if let Some(r) = stream {
                    end.write(now, r, usize::from(value) * 97 + 1);
                }
            }
            3 | 4 => {
                if let Some(r) = stream {
                    end.read(now, r);
                }
            }
            5 => {
                if let Some(r) = stream {
                    end.session.finish(now, r, None);
                }
            }
            6 => {
                if let Some(r) = stream {
                    end.session.reset(now, &mut end.budget, r, Code::Cancelled, "");
                }
            }
            7 => {
                if let Some(r) = stream {
                    end.release(now, r);
                }
            }
            8 | 9 => self.deliver(side, usize::from(value) * 31 + 1),
            10 => self.pass(Duration::from_micros(u64::from(value) * u64::from(value) * 10)),
            _ if value < 8 => self.cut(),
            _ if value < 16 => self.pass(Duration::from_secs(2)),
            _ if value < 20 => self.pass(Duration::from_secs(50)),
            _ if value < 64 && side == 0 => {
                let rules = Bytes::from(vec![b' '; usize::from(value) * 700]);
                end.session.send_settings(u32::from(value), rules);
            }
            _ => self.deliver(side, usize::MAX),
        }
    }

    /// Lets everything come to rest, then nothing may be held.
    fn come_to_rest(&mut self) {
        for _ in 0..400 {
            self.settle();
            self.dial();
            self.settle();
            for side in [0, 1] {
                self.deliver(side, usize::MAX);
                let end = &mut self.ends[side];
                for r in end.order.clone() {
                    end.release(self.now, r);
                }
            }
            self.pass(Duration::from_millis(50));
        }
        for end in &self.ends {
            assert_eq!(end.budget.streams(), (0, 0), "streams keep a place");
            assert_eq!(end.budget.rx_outstanding(), 0, "credit is outstanding");
            assert_eq!(end.budget.tx_held(), 0, "bytes are retained");
            assert_eq!(end.budget.rx_charged(), 0, "memory is charged");
        }
    }
}

fn open_of(side: usize) -> Open {
    let (kind, port, host) = if side == 0 {
        (Kind::Relay, 0, Bytes::new())
    } else {
        (Kind::Http, 80, Bytes::from_static(b"site.test"))
    };
    Open {
        kind,
        settings: 1,
        credit: 0,
        port,
        host,
        shown: None,
    }
}

/// Takes a whole HELLO off the front.
fn take_hello(bytes: &mut BytesMut) -> Option<Hello> {
    let header = Header::decode(bytes)?.ok()?;
    if bytes.len() < FRAME_HEADER_BYTES + header.length {
        return None;
    }
    bytes.advance(FRAME_HEADER_BYTES);
    match frame::decode(header, bytes.split_to(header.length).freeze()) {
        Ok(Frame::Hello(hello)) => Some(hello),
        _ => None,
    }
}

/// Any frames: what decodes is encoded and decoded to itself again, and a session that reads the bytes, split at
/// any place, keeps to its budgets.
///
/// # Panics
/// If it does not.
pub fn fuzz_frames(data: &[u8]) {
    let mut rest = Bytes::copy_from_slice(data);
    while let Some(Ok(header)) = Header::decode(&rest) {
        if rest.len() < FRAME_HEADER_BYTES + header.length {
            break;
        }
        rest.advance(FRAME_HEADER_BYTES);
        if let Ok(frame) = frame::decode(header, rest.split_to(header.length))
            && frame != Frame::Extension
        {
            let mut again = BytesMut::new();
            frame::encode(&frame, &mut again);
            let header = Header::decode(&again).and_then(Result::ok);
            let decoded = header.map(|h| frame::decode(h, again.freeze().slice(FRAME_HEADER_BYTES..)));
            assert_eq!(decoded, Some(Ok(frame)));
        }
    }
    let at = data.first().map_or(0, |b| usize::from(*b) % (data.len() + 1));
    for side in [0, 1] {
        let mut pair = Pair::new();
        pair.pass(Duration::from_millis(1));
        pair.settle();
        pair.dial();
        pair.settle();
        pair.deliver(1, usize::MAX);
        pair.settle();
        let end = &mut pair.ends[side];
        for piece in [&data[..at], &data[at..]] {
            end.session
                .handle_bytes(pair.now, &mut end.budget, Bytes::copy_from_slice(piece));
            end.turn(pair.now);
        }
        pair.pass(Duration::from_secs(1));
        pair.ends[side].turn(pair.now);
    }
}

/// Any sequence of operations on both sides of a link, two bytes each: every byte arrives in its place, budgets
/// hold, and nothing is left behind. Says how many payload bytes were read.
///
/// # Panics
/// If not.
pub fn fuzz_operations(data: &[u8]) -> u64 {
    let mut pair = Pair::new();
    pair.pass(Duration::from_millis(1));
    pair.settle();
    pair.dial();
    for op in data.chunks_exact(2).take(4_096) {
        pair.operate(op[0], op[1]);
        pair.settle();
        if op[0] & 0x40 == 0 {
            pair.dial();
            pair.settle();
        }
    }
    pair.come_to_rest();
    pair.ends.iter().map(|e| e.arrived).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*.
    struct Random(u64);

    impl Random {
        fn draw(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn below(&mut self, n: usize) -> usize {
            (self.draw() % n as u64) as usize
        }
    }

    fn seeds() -> std::ops::RangeInclusive<u64> {
        match std::env::var("SEED").ok().and_then(|s| s.parse().ok()) {
            Some(seed) => seed..=seed,
            None => 1..=1_000,
        }
    }

    /// A well-formed stretch of a link with a few bytes changed, cut or doubled.
    fn damaged_frames(r: &mut Random) -> Vec<u8> {
        let mut out = BytesMut::new();
        for _ in 0..=r.below(12) {
            let kind = r.below(0x13) as u8;
            let length = r.below(60);
            let id = r.below(6) as u64;
            let mut header = [0; FRAME_HEADER_BYTES];
            Header {
                length,
                kind: if kind > 0x10 { r.draw() as u8 } else { kind },
                stream: id,
            }
            .encode(&mut header);
            out.extend_from_slice(&header);
            out.extend((0..length).map(|_| if r.below(3) == 0 { r.draw() as u8 } else { 0 }));
        }
        let mut out = out.to_vec();
        for _ in 0..r.below(4) {
            let at = r.below(out.len());
            out[at] = r.draw() as u8;
        }
        out.truncate(out.len() - r.below(3).min(out.len()));
        out
    }

    #[test]
    fn seeded_frames() {
        for seed in seeds() {
            let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let data = damaged_frames(&mut r);
            let outcome = std::panic::catch_unwind(|| fuzz_frames(&data));
            assert!(outcome.is_ok(), "SEED={seed}");
        }
    }

    #[test]
    fn seeded_operations() {
        let mut arrived = 0;
        for seed in seeds() {
            let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let length = r.below(2_000);
            let data: Vec<u8> = (0..length).map(|_| r.draw() as u8).collect();
            let outcome = std::panic::catch_unwind(|| fuzz_operations(&data));
            assert!(outcome.is_ok(), "SEED={seed}");
            arrived += outcome.unwrap_or_default();
        }
        let seeds = seeds().count() as u64;
        assert!(
            arrived > seeds * 10_000,
            "the operations move too little: {arrived} bytes"
        );
    }
}
