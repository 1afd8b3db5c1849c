//! The clock, the queue of wakes, connections, and the loop.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use bytes::{Bytes, BytesMut};
use dataplane::mux::StreamRef;
use dataplane::time::Time;

use super::coverage::{Cell, Coverage};
use super::faults::Fault;
use super::host::{Host, Pair, Slot};
use super::network::{Ending, Pipe};
use super::prng::Prng;
use super::scenario::{Plan, Scenario};
use super::traffic::Stream;
use super::wire::Line;
use super::{CLIENT, ENDPOINT, Failure, MS, SECOND, Side};

/// A path that passes small packets only takes writes up to this length: a HELLO with a PING behind it.
pub const SMALL_BYTES: usize = 160;
const CHECK_US: u64 = 500 * MS;
/// Wakes at one moment; more is a busy loop.
const WAKES_AT_ONCE_MAX: u64 = 200_000;

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    Session(usize, Side),
    Pipe(usize, Side),
    Dialled(usize),
    DialDeadline(usize),
    Handshake(usize),
    CutOver(usize),
    Flush(usize, Side),
    Reader(u32, Side),
    Writer(u32, Side),
    Answer(u32),
    Start(u32),
    Place,
    Fault(usize),
    Heal(usize),
    Break(usize),
    Parsed(usize, u32),
    Check,
}

/// One TCP + TLS connection; index 0 of each pair is the client's.
pub struct Conn {
    pub pair: usize,
    /// `pipes[side]` carries what `side` writes.
    pub pipes: [Pipe; 2],
    pub lines: [Line; 2],
    /// The shell of that side still holds the socket.
    pub open: [bool; 2],
    /// TCP and TLS are done.
    pub up: bool,
    /// Bytes that the endpoint read before it knows the session.
    pub first: BytesMut,
    /// A fault touched it: its death is no surprise.
    pub faulted: bool,
    pub broken: bool,
    /// That side belongs to no session any more.
    pub deaf: [bool; 2],
    pub cut_ending: Ending,
    pub since: u64,
    /// Since when nothing can reach that side.
    pub silent_since: [Option<u64>; 2],
}

pub struct World {
    pub now: u64,
    pub seed: u64,
    pub rng: Prng,
    pub scenario: Scenario,
    pub verbose: bool,
    heap: BinaryHeap<Reverse<(u64, u64, Wake)>>,
    sequence: u64,
    pub hosts: Vec<Host>,
    pub pairs: Vec<Pair>,
    pub slots: Vec<Slot>,
    pub conns: Vec<Conn>,
    pub streams: Vec<Stream>,
    pub waiting: VecDeque<u32>,
    pub dirty: VecDeque<(usize, Side)>,
    pub aims: Vec<Cell>,
    /// Ends whose ref was found dead in this turn.
    pub gone: Vec<(u32, Side, StreamRef)>,
    pub coverage: Coverage,
    pub failure: Option<Failure>,
    pub calm_at: u64,
    pub settings_json: BTreeMap<u32, Bytes>,
    faults_done: usize,
    insisted: u32,
    wakes_now: u64,
    pub place_armed: u64,
}

impl World {
    pub fn new(scenario: Scenario, seed: u64) -> Self {
        let mut world = Self {
            now: SECOND,
            seed,
            rng: Prng::new(seed ^ 0x5157),
            verbose: false,
            heap: BinaryHeap::new(),
            sequence: 0,
            hosts: Vec::new(),
            pairs: Vec::new(),
            slots: Vec::new(),
            conns: Vec::new(),
            streams: Vec::new(),
            waiting: VecDeque::new(),
            dirty: VecDeque::new(),
            aims: Vec::new(),
            gone: Vec::new(),
            coverage: Coverage::default(),
            failure: None,
            calm_at: SECOND + scenario.calm_at,
            settings_json: BTreeMap::new(),
            faults_done: 0,
            insisted: 0,
            wakes_now: 0,
            place_armed: 0,
            scenario,
        };
        world.boot();
        for (i, plan) in world.scenario.streams.clone().into_iter().enumerate() {
            world.streams.push(Stream::new(plan));
            world.push(SECOND + plan.at, Wake::Start(i as u32));
        }
        for i in 0..world.scenario.faults.len() {
            world.push(SECOND + world.scenario.faults[i].at, Wake::Fault(i));
        }
        world.push(SECOND, Wake::Check);
        world
    }

    pub fn time(&self) -> Time {
        Time::from_micros(self.now)
    }

    pub fn push(&mut self, at: u64, wake: Wake) {
        self.sequence += 1;
        self.heap.push(Reverse((at.max(self.now), self.sequence, wake)));
    }

    pub fn note(&self, text: impl Fn() -> String) {
        if self.verbose {
            eprintln!("{:>13.6} {}", self.now as f64 / SECOND as f64, text());
        }
    }

    pub fn fail(&mut self, mut failure: Failure) {
        failure.at = self.now;
        self.note(|| failure.to_string());
        self.failure.get_or_insert(failure);
    }

    /// Runs until all is over.
    ///
    /// # Errors
    /// The first oracle that failed.
    pub fn run(&mut self) -> Result<Coverage, Failure> {
        while !self.step() {}
        match self.failure.take() {
            Some(failure) => Err(failure),
            None if self.scenario.floods && self.coverage.total("sessions ended by a flood") == 0 => {
                let text = "more streams were refused than may be pending".to_owned();
                Err(Failure::new("floods", text))
            }
            None => {
                self.count_totals();
                Ok(self.coverage.clone())
            }
        }
    }

    /// Runs until `until` holds; false if the run ended before.
    pub fn run_until(&mut self, mut until: impl FnMut(&Self) -> bool) -> bool {
        while !until(self) {
            if self.step() {
                return false;
            }
        }
        true
    }

    /// One wake; true at the end of the run.
    fn step(&mut self) -> bool {
        self.settle();
        if self.failure.is_some() || self.is_over() {
            return true;
        }
        let Some(Reverse((at, _, wake))) = self.heap.pop() else {
            return true;
        };
        if at > self.now {
            self.now = at;
            self.wakes_now = 0;
        }
        self.wakes_now += 1;
        if self.wakes_now > WAKES_AT_ONCE_MAX {
            self.fail(Failure::new("busy loop", format!("{wake:?}")));
            return true;
        }
        self.coverage.count("wakes", 1);
        if let Some(until) = self.suspended(wake) {
            self.push(until, wake);
        } else {
            self.dispatch(wake);
        }
        false
    }

    /// Until when the process that `wake` belongs to stands still.
    fn suspended(&self, wake: Wake) -> Option<u64> {
        let host = match wake {
            Wake::Session(p, side) => self.pairs[p].ends[side].host,
            Wake::Pipe(c, from) => self.pairs[self.conns[c].pair].ends[1 - from].host,
            Wake::Reader(n, side) | Wake::Writer(n, side) => {
                self.pairs[self.streams[n as usize].ends[side].pair].ends[side].host
            }
            Wake::Dialled(c) | Wake::DialDeadline(c) => self.pairs[self.conns[c].pair].ends[CLIENT].host,
            Wake::CutOver(p) | Wake::Parsed(p, _) => self.pairs[p].ends[ENDPOINT].host,
            Wake::Flush(c, side) => self.pairs[self.conns[c].pair].ends[side].host,
            _ => return None,
        };
        let until = self.hosts[host].suspended_until;
        (until > self.now).then_some(until)
    }

    fn dispatch(&mut self, wake: Wake) {
        match wake {
            Wake::Session(p, side) => self.session_due(p, side),
            Wake::Pipe(c, side) => {
                self.conns[c].pipes[side].armed = u64::MAX;
                self.after_pipe(c, side);
            }
            Wake::Dialled(c) => self.dialled(c),
            Wake::DialDeadline(c) => self.dial_deadline(c),
            Wake::Handshake(c) => self.handshake_deadline(c),
            Wake::CutOver(p) => self.cut_over_done(p),
            Wake::Flush(c, side) => self.flushed(c, side),
            Wake::Reader(n, side) => self.reader_due(n, side),
            Wake::Writer(n, side) => self.pump_writer(n, side),
            Wake::Answer(n) => self.answer(n),
            Wake::Start(n) => {
                self.waiting.push_back(n);
                self.place_waiting();
            }
            Wake::Place => self.place_waiting(),
            Wake::Fault(i) => {
                let fault: Fault = self.scenario.faults[i];
                self.faults_done += 1;
                self.apply(fault);
            }
            Wake::Heal(p) => self.heal(p),
            Wake::Break(c) => {
                let side = self.rng.pick(&[CLIENT, ENDPOINT]);
                self.break_conn(c, side, Ending::Reset);
            }
            Wake::Parsed(p, version) => self.settings_parsed(p, version),
            Wake::Check => {
                self.push(self.now + CHECK_US, Wake::Check);
                self.check();
                self.insist();
            }
        }
    }

    pub fn arm_pipe(&mut self, c: usize, side: Side) {
        let pipe = &mut self.conns[c].pipes[side];
        if let Some(at) = pipe.next()
            && at < pipe.armed
        {
            pipe.armed = at;
            self.push(at, Wake::Pipe(c, side));
        }
    }

    /// Hands on what `side`'s bytes have reached, and tells the writer of room.
    pub fn after_pipe(&mut self, c: usize, side: Side) {
        let to = 1 - side;
        let p = self.conns[c].pair;
        self.conns[c].pipes[side].pump(self.now);
        while let Some(bytes) = self.conns[c].pipes[side].arrived(self.now) {
            let delivered = self.conns[c].pipes[side].delivered;
            self.conns[c].lines[side].arrived(delivered);
            if !bytes.is_empty() {
                self.feed(c, to, bytes);
            }
            let conn = &self.conns[c];
            if conn.pipes[side].is_cut() && !conn.broken {
                self.break_conn(c, to, conn.cut_ending);
                break;
            }
        }
        let conn = &self.conns[c];
        let end = &mut self.pairs[p].ends[side];
        if end.conn == Some(c) && end.writing && conn.pipes[side].writable() {
            end.writing = false;
            self.touch(p, side);
        }
        if let Some(ending) = self.conns[c].pipes[side].ended(self.now) {
            self.lost(c, to, ending == Ending::Fin { notify: true });
        }
        self.arm_pipe(c, side);
    }

    /// The connection breaks, seen at side `at` first.
    pub fn break_conn(&mut self, c: usize, at: Side, ending: Ending) {
        if self.conns[c].broken || !self.conns[c].up {
            return;
        }
        self.note(|| format!("connection {c} breaks at side {at}: {ending:?}"));
        self.classify_cut(c);
        let conn = &mut self.conns[c];
        conn.broken = true;
        conn.faulted = true;
        conn.pipes[1 - at].ending = Some(ending);
        conn.pipes[1 - at].cut_at = Some(conn.pipes[1 - at].delivered);
        if conn.pipes[at].ending.is_none() {
            conn.pipes[at].ending = Some(ending);
        }
        if ending == Ending::Reset {
            conn.pipes[at].drop_unsent();
        }
        conn.pipes[at].pump(self.now);
        self.arm_pipe(c, at);
        self.lost(c, at, false);
    }

    fn is_over(&self) -> bool {
        self.now >= self.calm_at
            && self.faults_done == self.scenario.faults.len()
            && self.streams_over()
            && self.insisted_enough()
            && self.is_quiet()
    }

    fn insisted_enough(&self) -> bool {
        !self.scenario.insist || (self.coverage.total("cuts") >= 2 && self.coverage.total("replayed frames") >= 1)
    }

    /// Every seed must hold two cuts and a replay: makes what is still missing.
    fn insist(&mut self) {
        let early = self.now + 2 * SECOND < self.calm_at || self.insisted_enough();
        if early || !self.aims.is_empty() && !self.insisted.is_multiple_of(8) {
            self.insisted += u32::from(!early);
            return;
        }
        self.insisted += 1;
        if self.insisted > 200 {
            self.fail(Failure::new("progress", "no cut or replay could be had".into()));
            return;
        }
        self.aims.clear();
        self.aims.push(Cell {
            kind: dataplane::mux::frame::kind::DATA,
            side: self.rng.pick(&[CLIENT, ENDPOINT]),
            header: false,
        });
        self.add_stream(Plan::exchange(0, ENDPOINT, [40_000; 2]));
    }

    fn count_totals(&mut self) {
        self.coverage.count("seeds", 1);
        self.coverage.count("streams", self.streams.len() as u64);
        self.coverage.count("connections", self.conns.len() as u64);
        self.coverage.count("virtual seconds", self.now / SECOND);
        let bytes: u64 = self.streams.iter().flat_map(|s| s.ways).map(|w| w.received).sum();
        self.coverage.count("payload bytes", bytes);
    }
}
