//! Local sockets of simulated streams: what they write, how they read, how they end.

use std::collections::VecDeque;

use bytes::Bytes;
use dataplane::limits::FRAME_HEADER_BYTES;
use dataplane::mux::{Code, Kind, Open, OpenError, Opened, Shown, StreamRef, TlsReport};

use super::prng;
use super::scenario::{Plan, Way};
use super::world::{Wake, World};
use super::{CLIENT, ENDPOINT, Failure, MS, Side};

/// One end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not opened here (yet).
    Idle,
    Open,
    Done,
}

/// How a direction was ended by its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Open,
    Fin,
    Reset(Code),
    /// The other side wants no more.
    Stopped,
}

/// The local socket at one end.
pub struct Local {
    pub state: State,
    pub r: Option<StreamRef>,
    pub pair: usize,
    /// Must not write before OPENED or TLS.
    pub held: bool,
    /// Lengths of slices read and not yet consumed.
    pub unread: VecDeque<usize>,
    pub read_over: bool,
    pub may_send_until: u64,
    /// A wake of the reader is on its way.
    pub reader_due: bool,
}

/// Bytes of one direction; index = the side that sends.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub sent: u64,
    pub end: Sent,
    /// FIN, then RESET of the other direction.
    pub then_reset: Option<Code>,
    /// Payload that the receiving session has parsed, that the reader got, and that its socket took.
    pub delivered: u64,
    pub received: u64,
    pub consumed: u64,
    /// FIN has been parsed by the receiving session.
    pub fin_heard: bool,
    /// The reader saw the end.
    pub over: bool,
    pub moved_at: u64,
    /// Bytes of all DATA frames handed to the session, headers included.
    pub framed: u64,
    /// Refusals in its process when it last wrote, and its own since.
    pub refusals_seen: u64,
    pub own_refusals: u64,
}

pub struct Stream {
    pub plan: Plan,
    pub ends: [Local; 2],
    pub ways: [Flow; 2],
    /// Codes that a lost session may have put on it.
    pub excused: u32,
    pub placements: u32,
    /// Its id on the wire, once OPEN has left.
    pub id: Option<u64>,
}

/// The simulated stream that an OPEN belongs to.
pub fn number_of(open: &Open) -> u32 {
    if open.host.is_empty() {
        return open.settings;
    }
    let text = std::str::from_utf8(&open.host[1..]).unwrap_or_default();
    text.parse().unwrap_or(u32::MAX)
}

pub fn key_of(n: u32, side: Side) -> u64 {
    u64::from(n) * 2 + side as u64 + 1
}

impl Stream {
    pub fn new(plan: Plan) -> Self {
        let local = || Local {
            state: State::Idle,
            r: None,
            pair: 0,
            held: false,
            unread: VecDeque::new(),
            read_over: false,
            may_send_until: 0,
            reader_due: false,
        };
        let flow = Flow {
            sent: 0,
            end: Sent::Open,
            then_reset: None,
            delivered: 0,
            received: 0,
            consumed: 0,
            fin_heard: false,
            over: false,
            moved_at: 0,
            framed: 0,
            refusals_seen: 0,
            own_refusals: 0,
        };
        Self {
            plan,
            ends: [local(), local()],
            ways: [flow; 2],
            excused: 0,
            placements: 0,
            id: None,
        }
    }

    pub fn excuse(&mut self, code: Code) {
        self.excused |= 1 << (code as u16);
    }

    /// The process of that side is gone.
    pub fn vanish(&mut self, side: Side) {
        self.ends[side].state = State::Done;
    }

    /// OPENED, TLS and the other side's first bytes are there.
    pub fn may_write(&self, side: Side) -> bool {
        let started = self.ways[1 - side].received >= self.plan.ways[side].after;
        !self.ends[side].held && started
    }

    pub fn way(&self, side: Side) -> Way {
        self.plan.ways[side]
    }
}

impl World {
    // ── Opening ───────────────────────────────────────────────────────────────────────────────────────────────

    pub fn place_waiting(&mut self) {
        for _ in 0..self.waiting.len() {
            let Some(n) = self.waiting.pop_front() else {
                break;
            };
            if self.streams[n as usize].ends[self.streams[n as usize].plan.opener].state == State::Idle
                && !self.place(n)
            {
                self.waiting.push_back(n);
            }
        }
        if !self.waiting.is_empty() && self.place_armed <= self.now {
            self.place_armed = self.now + 200 * MS;
            self.push(self.place_armed, Wake::Place);
        }
    }

    /// Opens the stream on the least loaded live link.
    fn place(&mut self, n: u32) -> bool {
        let plan = self.streams[n as usize].plan;
        let side = plan.opener;
        let mut links: Vec<usize> = self
            .current_pairs()
            .filter(|p| {
                let pair = &self.pairs[*p];
                let end = &pair.ends[side];
                let held = side == CLIENT || self.slots[pair.slot].endpoint_version > 0;
                let awake = self.hosts[end.host].suspended_until <= self.now;
                let slot = side == ENDPOINT || plan.slot == pair.slot;
                end.alive && awake && held && slot && end.session.is_live()
            })
            .collect();
        links.sort_by_key(|p| self.pairs[*p].ends[side].session.streams_open());
        let now = self.time();
        for p in links {
            let open = self.open_frame(n, p);
            let end = &mut self.pairs[p].ends[side];
            let budget = &mut self.hosts[end.host].budget;
            match end.session.open(now, budget, open) {
                Ok(r) => {
                    self.opened_at(n, p, side, r);
                    return true;
                }
                Err(OpenError::NotLive) => {
                    let text = format!("link {p} is live and takes no stream");
                    self.fail(Failure::new("placement", text));
                    return false;
                }
                Err(OpenError::Limit | OpenError::Paced) => {}
            }
        }
        false
    }

    fn open_frame(&self, n: u32, p: usize) -> Open {
        let kind = self.streams[n as usize].plan.kind;
        let siteless = matches!(kind, Kind::Relay | Kind::Probe);
        Open {
            kind,
            settings: match siteless {
                true => n,
                false => self.slots[self.pairs[p].slot].endpoint_version,
            },
            credit: 0,
            port: if siteless { 0 } else { 443 },
            host: match siteless {
                true => Bytes::new(),
                false => Bytes::from(format!("s{n}")),
            },
            shown: (kind == Kind::Https).then_some(Shown {
                verdict: 0,
                leaf: [7; 32],
            }),
        }
    }

    fn opened_at(&mut self, n: u32, p: usize, side: Side, r: StreamRef) {
        self.note(|| format!("stream {n} opened by side {side} on link {p}: {r:?}"));
        self.pairs[p].ends[side].streams.insert(r, n);
        self.pairs[p].placed.insert(n, r);
        let refusals = self.hosts[self.pairs[p].ends[side].host].refusals;
        let stream = &mut self.streams[n as usize];
        stream.placements += 1;
        stream.ways.iter_mut().for_each(|w| w.moved_at = self.now);
        stream.ways[side].refusals_seen = refusals;
        let held = stream.plan.wait;
        let local = &mut stream.ends[side];
        local.state = State::Open;
        local.r = Some(r);
        local.pair = p;
        local.may_send_until = 0;
        local.held = held;
        self.touch(p, side);
        self.pump_writer(n, side);
    }

    pub fn on_opened(&mut self, p: usize, side: Side, r: StreamRef, open: &Open) {
        let n = number_of(open);
        let known = self
            .streams
            .get(n as usize)
            .is_some_and(|s| s.ends[side].state == State::Idle && s.plan.opener != side && s.plan.kind == open.kind);
        if !known {
            let text = format!("stream {n} opened twice or never asked for");
            return self.fail(Failure::new("nothing doubled", text));
        }
        self.pairs[p].ends[side].streams.insert(r, n);
        let host = self.pairs[p].ends[side].host;
        self.check_stream_limit(host, side);
        let refusals = self.hosts[host].refusals;
        let stream = &mut self.streams[n as usize];
        stream.ways.iter_mut().for_each(|w| w.moved_at = self.now);
        stream.ways[side].refusals_seen = refusals;
        let plan = stream.plan;
        let local = &mut stream.ends[side];
        local.state = State::Open;
        local.r = Some(r);
        local.pair = p;
        local.held = plan.kind == Kind::Tcp;
        if plan.kind == Kind::Tcp {
            let wait = self.rng.below(50 * MS);
            self.push(self.now + wait, Wake::Answer(n));
        }
        self.pump_reader(n, side);
        self.pump_writer(n, side);
    }

    /// `sc`: the site of a `tcp` stream has answered.
    pub fn answer(&mut self, n: u32) {
        self.with_open(n, CLIENT, |s, r| s.opened(r, Opened::default()));
        if !self.streams[n as usize].plan.start_tls {
            self.ready(n, CLIENT);
        }
    }

    pub fn on_accepted(&mut self, n: u32, side: Side) {
        if self.streams[n as usize].plan.start_tls {
            let names = Bytes::from_static(b"\x08http/1.1");
            self.with_open(n, side, |s, r| {
                s.start_tls(r, Bytes::from_static(b"site.test"), names);
            });
        } else {
            self.ready(n, side);
        }
    }

    pub fn on_start_tls(&mut self, n: u32, side: Side) {
        let report = TlsReport {
            verdict: 0,
            leaf: [9; 32],
            tlvs: Bytes::from_static(b"\x05\x00\x02\x03\x04"),
        };
        self.with_open(n, side, |s, r| s.tls_report(r, report));
        self.ready(n, side);
    }

    pub fn on_tls_report(&mut self, n: u32, side: Side) {
        self.coverage.count("TLS shaken on a tcp stream", 1);
        self.ready(n, side);
    }

    fn ready(&mut self, n: u32, side: Side) {
        let stream = &mut self.streams[n as usize];
        stream.ends[side].held = false;
        stream.ways[side].moved_at = self.now;
        self.pump_writer(n, side);
    }

    /// The OPEN never left, or the peer never acted on it: begin again elsewhere. What was written comes back whole.
    pub fn on_withdrawn(&mut self, n: u32, side: Side, frames: &[Bytes], finished: bool) {
        let mut at = 0;
        for frame in frames {
            let payload = &frame[FRAME_HEADER_BYTES..];
            if !prng::matches(key_of(n, side), at, payload) {
                let text = format!("stream {n} comes back with other bytes at {at}");
                return self.fail(Failure::new("bytes exact", text));
            }
            at += payload.len() as u64;
        }
        let flow = self.streams[n as usize].ways[side];
        if at != flow.sent || finished != (flow.end == Sent::Fin) {
            let text = format!("stream {n} comes back with {at} bytes, finished {finished}: {flow:?}");
            return self.fail(Failure::new("bytes exact", text));
        }
        let stream = &mut self.streams[n as usize];
        let p = stream.ends[side].pair;
        let seen = stream.ends[1 - side].state != State::Idle;
        let written = stream.id.is_some();
        if seen || (written && !self.pairs[p].draining) {
            let text = format!("stream {n} withdrawn after its OPEN left");
            return self.fail(Failure::new("nothing doubled", text));
        }
        self.coverage.count("streams withdrawn", 1);
        if let Some(r) = stream.ends[side].r.take() {
            self.pairs[p].ends[side].streams.remove(&r);
        }
        let plan = stream.plan;
        let (placements, excused) = (stream.placements, stream.excused);
        *stream = Stream::new(plan);
        stream.placements = placements;
        stream.excused = excused;
        self.waiting.push_back(n);
        self.push(self.now, Wake::Place);
    }

    /// A dead ref is fine only while the event that tells so is on its way.
    pub fn check_gone(&mut self) {
        for (n, side, r) in std::mem::take(&mut self.gone) {
            let local = &self.streams[n as usize].ends[side];
            if local.state == State::Open && local.r == Some(r) {
                let text = format!("stream {n} is gone under its holder at side {side}");
                self.fail(Failure::new("ends", text));
            }
        }
    }

    fn with_open(&mut self, n: u32, side: Side, act: impl FnOnce(&mut dataplane::mux::Session, StreamRef)) {
        let local = &self.streams[n as usize].ends[side];
        if let (State::Open, Some(r)) = (local.state, local.r) {
            let p = local.pair;
            act(&mut self.pairs[p].ends[side].session, r);
            self.touch(p, side);
        }
    }

    /// Adds a stream that starts `plan.at` from now.
    pub fn add_stream(&mut self, plan: Plan) -> u32 {
        let n = self.streams.len() as u32;
        self.streams.push(Stream::new(plan));
        self.push(self.now + plan.at, Wake::Start(n));
        n
    }

    /// Whether side `to` has read the whole of stream `n`.
    pub fn has_read(&self, n: u32, to: Side) -> bool {
        self.streams[n as usize].ways[1 - to].over
    }
}
