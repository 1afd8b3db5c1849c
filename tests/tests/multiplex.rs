//! Particular cases of the multiplex on the virtual clock: throughput, stalled streams, big settings, floods.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dataplane::limits::{
    EARLY_RESETS_BURST, IDLE_FRAMES_BURST, IDLE_FRAMES_PER_SECOND, REFUSALS_PENDING_MAX, RESUME_WINDOW,
};
use dataplane::mux::frame::{Frame, encode};
use dataplane::mux::{Budget, Code, Config, Event, Hello, Kind, Open, Session, Side, StreamRef};
use dataplane::time::Time;
use tests::simulation::network::Profile;
use tests::simulation::throughput::{self, NEVER, Outcome, download, go, go_on, sizes, world};
use tests::simulation::{CLIENT, ENDPOINT, MS, SECOND};

const MIB: usize = 1 << 20;

#[test]
fn a_stalled_stream_with_one_small_frame_costs_at_most_four_kib() -> Outcome {
    let mut path = Profile::new(5 * MS, 12_500, 65_536);
    path.segment_bytes_max = 65_536;
    let mut w = world(path);
    go_on(&mut w, SECOND)?;
    for i in 0..5_000 {
        let mut plan = download(i * 100, 1_000_000, Some(0));
        plan.ways[CLIENT].burst = 16;
        plan.ways[CLIENT].pause_us = NEVER / 2;
        w.add_stream(plan);
    }
    go(&mut w, |w| {
        w.now > 3 * SECOND && w.hosts[0].budget.rx_held() == 5_000 * 16
    })?;
    go_on(&mut w, 100 * MS)?;
    let charged = w.hosts[0].budget.rx_charged();
    println!("5,000 stalled streams of 16 bytes: {charged} bytes charged");
    assert!(charged <= 5_000 * 4_096, "{charged} charged");
    Ok(())
}

#[test]
fn ten_thousand_rules_arrive_whole_beside_traffic_and_a_cut() -> Outcome {
    let mut w = world(Profile::new(20 * MS, 12_500, 200_000));
    go_on(&mut w, SECOND)?;
    let mut json = String::from("{\"fast_fail_regexps\":[");
    for i in 0..10_000 {
        let _ = write!(json, "\"^https?://[a-z]+{i}\\\\.ads\\\\.example\\\\.test/.*\",");
    }
    json.push_str("\"^$\"]}");
    w.settings_json.insert(2, json.into_bytes().into());
    w.add_stream(download(0, 3_000_000, None));
    w.change_settings(0);
    go(&mut w, |w| w.conns[0].pipes[CLIENT].delivered > 300_000)?;
    w.break_conn(0, ENDPOINT, tests::simulation::network::Ending::Reset);
    go(&mut w, |w| w.slots[0].known_version == 2 && w.has_read(0, ENDPOINT))?;
    assert_eq!(w.slots[0].endpoint_version, 2);
    Ok(())
}

// ── Throughput ────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn bulk_reaches_four_fifths_of_the_bare_path() -> Outcome {
    throughput::bulk(100)?;
    throughput::bulk(1_000)
}

#[test]
fn five_gigabits_a_second_at_eighty_milliseconds_fill_the_path() -> Outcome {
    throughput::far_and_fast()
}

#[test]
fn a_window_is_in_proportion_to_what_a_stream_moves() -> Outcome {
    throughput::windows_in_proportion()
}

#[test]
fn bulk_beside_two_thousand_idle_streams_keeps_a_third() -> Outcome {
    throughput::beside_idle_streams()
}

#[test]
fn a_hundred_staggered_streams_of_which_half_stall_keep_a_fifth() -> Outcome {
    throughput::staggered()
}

#[test]
fn eight_thousand_grown_streams_that_stall_leave_room_for_one_more() -> Outcome {
    throughput::beside_stalled_streams()
}

#[test]
fn a_small_exchange_overtakes_bulk() -> Outcome {
    throughput::small_beside_bulk()
}

#[test]
fn a_slow_link_leaves_the_send_budget_to_the_other() -> Outcome {
    throughput::beside_slow_link()
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
            resume_window: RESUME_WINDOW,
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
