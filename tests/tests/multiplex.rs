//! Particular cases of the multiplex on the virtual clock: many stalled streams, big settings, throughput.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dataplane::limits::{EARLY_RESETS_BURST, IDLE_FRAMES_BURST, IDLE_FRAMES_PER_SECOND, REFUSALS_PENDING_MAX};
use dataplane::mux::frame::{Frame, encode};
use dataplane::mux::{Budget, BudgetConfig, Code, Config, Event, Hello, Kind, Open, Session, Side, StreamRef};
use dataplane::time::Time;
use tests::simulation::network::{Profile, bare_transfer_us};
use tests::simulation::scenario::{Plan, Way};
use tests::simulation::{CLIENT, ENDPOINT, MS, SECOND, Scenario, World};

const MIB: usize = 1 << 20;
const NEVER: u64 = u64::MAX / 4;

/// One shard with the sizes that the programs have by default.
fn sizes(pool_bytes: usize, peer: usize, own: usize) -> BudgetConfig {
    BudgetConfig {
        pool_bytes,
        tx_bytes: 64 * MIB,
        streams_peer_max: peer,
        streams_own_max: own,
    }
}

fn world(path: Profile) -> World {
    let client = sizes(64 * MIB, 8_192, 1_024);
    let endpoint = sizes(128 * MIB, 1_024, 8_192);
    let mut scenario = Scenario::plain(client, endpoint, path);
    scenario.calm_at = NEVER;
    World::new(scenario, 1)
}

/// Runs until `until` holds.
fn go(world: &mut World, until: impl FnMut(&World) -> bool) {
    let reached = world.run_until(until);
    assert!(
        reached,
        "{}",
        world.failure.as_ref().map_or(String::new(), ToString::to_string)
    );
}

fn go_on(world: &mut World, for_us: u64) {
    let end = world.now + for_us;
    go(world, |w| w.now >= end);
}

/// A request of nothing and an answer of so many bytes, whose reader stalls from an offset on.
fn download(at: u64, bytes: u64, stall: Option<u64>) -> Plan {
    let mut plan = Plan::exchange(at, ENDPOINT, [bytes, 0]);
    plan.ways[CLIENT].stall = stall.map(|from| (from, NEVER));
    plan
}

#[test]
fn eight_thousand_grown_streams_that_stall_leave_room_for_one_more() {
    let delay = 10 * MS;
    let mut path = Profile::new(delay, 1_250_000, 8 * MIB);
    path.segment_bytes_max = 65_536;
    let mut w = world(path);
    go_on(&mut w, SECOND);
    for i in 0..8_000 {
        // The first ones grow to what the pool has, one after the other; the others to what that leaves them.
        let from = if i < 16 { 40_000_000 } else { 24_000 };
        let at = if i < 16 { i * 600 * MS } else { 10 * SECOND + i * MS };
        w.add_stream(download(at, from + 64 * MIB as u64, Some(from)));
    }
    go(&mut w, |w| {
        w.now > 20 * SECOND && w.hosts[0].budget.streams().1 == 8_000
    });
    for stream in &mut w.streams {
        stream.plan.ways[CLIENT].stall = Some((0, NEVER));
    }
    go_on(&mut w, 2 * SECOND);
    let endpoint = &w.hosts[0].budget;
    assert!(
        endpoint.rx_outstanding() > 100 * MIB,
        "the pool is in use: {}",
        endpoint.rx_outstanding()
    );
    let started = w.now;
    let n = w.add_stream(download(0, MIB as u64, None));
    go(&mut w, |w| w.has_read(n, ENDPOINT));
    let round_trips = (w.now - started) / (2 * delay);
    println!("1 MiB beside 8,000 stalled streams: {round_trips} round trips");
    assert!(round_trips <= 300, "{round_trips} round trips");
}

#[test]
fn a_stalled_stream_with_one_small_frame_costs_at_most_four_kib() {
    let mut path = Profile::new(5 * MS, 12_500, 65_536);
    path.segment_bytes_max = 65_536;
    let mut w = world(path);
    go_on(&mut w, SECOND);
    for i in 0..5_000 {
        let mut plan = download(i * 100, 1_000_000, Some(0));
        plan.ways[CLIENT].burst = 16;
        plan.ways[CLIENT].pause_us = NEVER / 2;
        w.add_stream(plan);
    }
    go(&mut w, |w| {
        w.now > 3 * SECOND && w.hosts[0].budget.rx_held() == 5_000 * 16
    });
    go_on(&mut w, 100 * MS);
    let charged = w.hosts[0].budget.rx_charged();
    println!("5,000 stalled streams of 16 bytes: {charged} bytes charged");
    assert!(charged <= 5_000 * 4_096, "{charged} charged");
}

#[test]
fn ten_thousand_rules_arrive_whole_beside_traffic_and_a_cut() {
    let mut w = world(Profile::new(20 * MS, 12_500, 200_000));
    go_on(&mut w, SECOND);
    let mut json = String::from("{\"fast_fail_regexps\":[");
    for i in 0..10_000 {
        let _ = write!(json, "\"^https?://[a-z]+{i}\\\\.ads\\\\.example\\\\.test/.*\",");
    }
    json.push_str("\"^$\"]}");
    w.settings_json.insert(2, json.into_bytes().into());
    w.add_stream(download(0, 3_000_000, None));
    w.change_settings(0);
    go(&mut w, |w| w.conns[0].pipes[CLIENT].delivered > 300_000);
    w.break_conn(0, ENDPOINT, tests::simulation::network::Ending::Reset);
    go(&mut w, |w| w.slots[0].known_version == 2 && w.has_read(0, ENDPOINT));
    assert_eq!(w.slots[0].endpoint_version, 2);
}

// ── Throughput, as a share of what the same path carries without flow control ──────────────────────────────────

const BULK_BYTES: u64 = 100_000_000;

fn long_path(mbit: u64) -> Profile {
    let rate = mbit * 125;
    let delay = 40 * MS;
    let mut path = Profile::new(delay, rate, (rate * 80) as usize);
    path.slow_start = true;
    path.segment_bytes_max = 65_536;
    path
}

/// Percent of the bare path that moving `bytes` within `took_us` comes to.
fn share(path: Profile, bytes: u64, took_us: u64, warm: bool) -> u64 {
    let bare = bare_transfer_us(path, bytes, warm);
    println!(
        "{} MB in {} ms, bare path {} ms",
        bytes / 1_000_000,
        took_us / MS,
        bare / MS
    );
    bare * 100 / took_us
}

fn timed(w: &mut World, bytes: u64) -> u64 {
    let started = w.now;
    let n = w.add_stream(download(0, bytes, None));
    go(w, |w| w.has_read(n, ENDPOINT));
    w.now - started
}

#[test]
fn bulk_reaches_four_fifths_of_the_bare_path() {
    for mbit in [100, 1_000] {
        let path = long_path(mbit);
        let mut w = world(path);
        go_on(&mut w, SECOND);
        let took = timed(&mut w, BULK_BYTES);
        let cold = share(path, BULK_BYTES, took, false);
        go_on(&mut w, 500 * MS);
        let took = timed(&mut w, BULK_BYTES);
        let warm = share(path, BULK_BYTES, took, true);
        println!("{mbit} Mbit/s: cold {cold} %, warm {warm} %");
        assert!(cold >= 80 && warm >= 80, "{mbit} Mbit/s: cold {cold} %, warm {warm} %");
    }
}

#[test]
fn bulk_beside_two_thousand_idle_streams_keeps_a_third() {
    let path = long_path(1_000);
    let mut w = world(path);
    go_on(&mut w, SECOND);
    for i in 0..2_000 {
        // Each once had its window, then falls silent.
        let mut plan = download(i * 2 * MS, 1_000_000, None);
        plan.ways[CLIENT].burst = 90_000;
        plan.ways[CLIENT].pause_us = NEVER / 2;
        w.add_stream(plan);
    }
    go_on(&mut w, 8 * SECOND);
    let took = timed(&mut w, BULK_BYTES);
    let share = share(path, BULK_BYTES, took, true);
    println!("beside 2,000 idle streams: {share} %");
    assert!(share >= 30, "{share} %");
}

#[test]
fn a_hundred_staggered_streams_of_which_half_stall_keep_a_fifth() {
    let path = long_path(1_000);
    let mut w = world(path);
    go_on(&mut w, SECOND);
    let started = w.now;
    let each = 2_000_000;
    let stalls_at = 500_000;
    for i in 0..100 {
        let stall = (i % 2 == 1).then_some(stalls_at);
        w.add_stream(download(i * 20 * MS, each, stall));
    }
    go(&mut w, |w| (0..100).step_by(2).all(|n| w.has_read(n, ENDPOINT)));
    let bytes = 50 * (each + stalls_at);
    let share = share(path, bytes, w.now - started, false);
    println!("100 staggered streams, half of them stalled: {share} %");
    assert!(share >= 20, "{share} %");
}

/// Small exchanges do not wait behind a bulk stream of the same link.
#[test]
fn a_small_exchange_overtakes_bulk() {
    let mut w = world(Profile::new(20 * MS, 12_500, 64_000));
    go_on(&mut w, SECOND);
    w.add_stream(download(0, BULK_BYTES / 4, None));
    go_on(&mut w, SECOND);
    let started = w.now;
    let mut plan = Plan::exchange(0, ENDPOINT, [2_000, 300]);
    plan.ways[CLIENT] = Way {
        after: 300,
        ..Way::plain(2_000)
    };
    let n = w.add_stream(plan);
    go(&mut w, |w| w.has_read(n, ENDPOINT));
    let took = w.now - started;
    println!("small exchange beside bulk: {} ms", took / MS);
    assert!(took < 100 * MS, "{took} µs");
}

// ── Floods: at the limit all is well, one above it ends the session ────────────────────────────────────────────

/// An endpoint's session whose peer is written by hand.
struct Flooded {
    session: Session,
    budget: Budget,
    now: Time,
    ended: Option<Code>,
    held: Vec<StreamRef>,
}

impl Flooded {
    fn new(streams: usize) -> Self {
        let now = Time::from_micros(SECOND);
        let config = Config {
            side: Side::Endpoint,
            key: 0,
            link: 0,
            links: 1,
            member: [1; 16],
            seed: [2; 16],
            settings: 1,
        };
        let mut f = Self {
            session: Session::new(config, now),
            budget: Budget::new(sizes(MIB, streams, 16)),
            now,
            ended: None,
            held: Vec::new(),
        };
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            link: 0,
            links: 1,
            member: [1; 16],
            session: [0; 16],
            fresh: [3; 16],
            epoch: 1,
            received: 0,
            first_credit: 16_384,
        };
        assert_eq!(f.session.check_hello(&hello), Ok(()));
        f.session.begin_cut_over();
        f.session.connected_by(now, &mut f.budget, &hello);
        f.turn(true);
        f
    }

    fn turn(&mut self, writes: bool) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::SessionEnded { code, .. } => self.ended = Some(code),
                Event::Opened(r, _) => self.held.push(r),
                _ => {}
            }
        }
        let mut out = Vec::new();
        while writes && self.session.poll_transmit(self.now, &mut self.budget, &mut out) > 0 {}
    }

    fn read(&mut self, frame: &Frame, writes: bool) {
        let mut bytes = BytesMut::new();
        encode(frame, &mut bytes);
        self.session.handle_bytes(self.now, &mut self.budget, bytes.freeze());
        self.turn(writes);
    }

    fn open(&mut self, id: u64, writes: bool) {
        let open = Open {
            kind: Kind::Relay,
            settings: 1,
            credit: 4_096,
            port: 0,
            host: Bytes::new(),
            shown: None,
        };
        self.read(&Frame::Open(id, open), writes);
    }
}

#[test]
fn pings_are_limited() {
    let mut f = Flooded::new(4);
    for _ in 0..IDLE_FRAMES_BURST {
        f.read(&Frame::Ping([0; 8]), true);
    }
    assert_eq!(f.ended, None, "at the limit");
    f.now = f.now + Duration::from_secs(1);
    for _ in 0..IDLE_FRAMES_PER_SECOND {
        f.read(&Frame::Ping([0; 8]), true);
    }
    assert_eq!(f.ended, None, "at the limit a second later");
    f.read(&Frame::Ping([0; 8]), true);
    assert_eq!(f.ended, Some(Code::Limit));
}

#[test]
fn credits_that_raise_nothing_are_limited() {
    let mut f = Flooded::new(4);
    f.open(1, true);
    for _ in 0..IDLE_FRAMES_BURST {
        f.read(&Frame::Credit(1, 4_096), true);
    }
    f.read(&Frame::Credit(1, 4_097), true);
    assert_eq!(f.ended, None, "at the limit, and a CREDIT that raises is free");
    f.read(&Frame::Credit(1, 4_097), true);
    assert_eq!(f.ended, Some(Code::Limit));
}

#[test]
fn early_resets_are_limited() {
    let mut f = Flooded::new(4);
    let one = |f: &mut Flooded, n: u64| {
        f.open(2 * n + 1, true);
        f.read(&Frame::Reset(2 * n + 1, Code::Cancelled, Bytes::new()), true);
        for r in std::mem::take(&mut f.held) {
            f.session.release(f.now, &mut f.budget, r);
        }
    };
    for n in 0..u64::from(EARLY_RESETS_BURST) {
        one(&mut f, n);
    }
    assert_eq!(f.ended, None, "at the limit");
    assert_eq!(f.budget.streams(), (0, 0));
    one(&mut f, u64::from(EARLY_RESETS_BURST));
    assert_eq!(f.ended, Some(Code::Limit));
}

#[test]
fn refusals_that_cannot_leave_are_limited() {
    let mut f = Flooded::new(4);
    let refused = REFUSALS_PENDING_MAX as u64;
    for n in 0..4 + refused {
        f.open(2 * n + 1, false);
    }
    assert_eq!(f.ended, None, "at the limit");
    f.turn(true);
    for n in 0..refused {
        f.open(2 * (4 + refused + n) + 1, false);
    }
    assert_eq!(f.ended, None, "written refusals are not pending");
    f.open(2 * (4 + 2 * refused) + 1, false);
    assert_eq!(f.ended, Some(Code::Limit));
}
