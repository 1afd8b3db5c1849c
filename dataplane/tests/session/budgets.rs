//! Both budgets to the byte: what a stream is granted, what it may still write, and who is told when there is room.

use std::time::Duration;

use dataplane::limits::{
    BASE_CREDIT_OWN_BYTES, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, RECORD_BYTES_MAX, SLICES_IN_READ_BUFFERS_MAX,
};
use dataplane::mux::frame::Frame;
use dataplane::mux::{Budget, BudgetConfig, Code, Event, Kind, StreamRef};
use dataplane::time::Time;

use crate::pair::{Host, Pair};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn sizes(pool_bytes: usize, tx_bytes: usize) -> Budget {
    Budget::new(BudgetConfig {
        pool_bytes,
        tx_bytes,
        streams_peer_max: 64,
        streams_own_max: 64,
    })
}

/// Connected, its budgets of these sizes: the endpoint's pool, the send budget of `sc`.
fn pair(pool_bytes: usize, tx_bytes: usize) -> Pair {
    let mut p = Pair::new();
    p.endpoint.budget = sizes(pool_bytes, 8 * MIB);
    p.sc.budget = sizes(8 * MIB, tx_bytes);
    p.connect();
    p
}

/// What the last OPEN granted.
fn granted(p: &mut Pair) -> usize {
    let opens = p.sc.events.iter().rev();
    let open = opens.filter_map(|e| match e {
        Event::Opened(_, open) => Some(open.credit as usize),
        _ => None,
    });
    open.take(1).sum()
}

// ── Receiving ─────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn without_a_pool_every_stream_has_its_base_and_the_bound_is_reached() {
    let config = BudgetConfig {
        pool_bytes: 0,
        tx_bytes: MIB,
        streams_peer_max: 2,
        streams_own_max: 3,
    };
    let mut p = Pair::new();
    p.endpoint.budget = Budget::new(config);
    p.connect();
    p.settle();
    for _ in 0..config.streams_peer_max {
        p.sc.open(p.now, Kind::Relay);
    }
    for _ in 0..config.streams_own_max {
        p.open();
        assert_eq!(granted(&mut p), BASE_CREDIT_OWN_BYTES);
    }
    let budget = &p.endpoint.budget;
    assert_eq!(budget.streams(), (2, 3));
    assert_eq!(budget.rx_outstanding(), budget.rx_outstanding_max());
    let with_pool = Budget::new(BudgetConfig {
        pool_bytes: MIB,
        ..config
    });
    assert_eq!(with_pool.rx_outstanding_max(), budget.rx_outstanding_max() + MIB);
}

#[test]
fn a_first_grant_is_a_sixteenth_of_the_free_pool_and_at_most_64_kib() {
    for (pool, credit) in [
        (8 * MIB, 64 * KIB),
        (MIB, 64 * KIB),
        (512 * KIB, 32 * KIB),
        (32 * KIB, 4 * KIB),
    ] {
        let mut p = pair(pool, MIB);
        p.open();
        assert_eq!(granted(&mut p), credit, "a pool of {pool}");
    }
}

#[test]
fn a_refill_leaves_half_of_the_pool_and_a_low_pool_is_given_back() {
    let pool = 64 * KIB;
    // Half of the pool, half of the rest, and so on, each above the base.
    let refills = [36 * KIB, 20 * KIB, 12 * KIB];
    for (stalled, kept) in [(2, 36 * KIB), (3, BASE_CREDIT_OWN_BYTES)] {
        let mut p = pair(pool, MIB);
        let streams: Vec<_> = (0..stalled).map(|_| p.open()).collect();
        for ((e, s), refill) in streams.iter().zip(refills) {
            p.sc.write(p.now, *s, &[0; BASE_CREDIT_OWN_BYTES]);
            p.exchange();
            p.endpoint.read(p.now, *e, &mut Vec::new());
            p.exchange();
            assert_eq!(p.sc.room(p.now, *s), refill);
        }
        for _ in 0..10 {
            p.tick(Duration::from_millis(100));
            p.exchange();
        }
        // Exactly a quarter is not low.
        assert_eq!(p.sc.room(p.now, streams[0].1), kept, "{stalled} stalled");
    }
}

/// An endpoint whose peer is written by hand.
struct Reader {
    host: Host,
    streams: Vec<StreamRef>,
    /// When its streams were opened, at the latest.
    start: Time,
}

impl Reader {
    fn new(way: Duration, streams: usize) -> Self {
        let mut p = Pair::new();
        p.way = way;
        p.endpoint.budget = sizes(512 * MIB, MIB);
        p.connect();
        let mut start = p.now;
        let mut refs = Vec::new();
        for _ in 0..streams {
            start = p.now;
            refs.push(p.open().0);
        }
        Self {
            host: p.endpoint,
            streams: refs,
            start,
        }
    }

    /// Receives and reads bytes of a stream; the window of the last CREDIT that this brought.
    fn take(&mut self, now: Time, stream: usize, bytes: usize) -> Option<usize> {
        let id = 2 + 2 * stream as u64;
        let (mut window, mut left) = (None, bytes);
        while left > 0 {
            let n = left.min(16_000);
            left -= n;
            self.host.feed(now, &Frame::Data(id, vec![0; n].into()));
            let mut read = Vec::new();
            self.host.read(now, self.streams[stream], &mut read);
            assert_eq!(read.len(), n);
            let outstanding = self.host.budget.rx_outstanding();
            let credit = |f: &Frame| matches!(f, Frame::Credit(of, _) if *of == id);
            if self.host.frames(now).iter().any(credit) {
                window = Some(outstanding);
            }
        }
        window
    }
}

/// Microseconds that the reader takes for the first grant and for each window after it, and the window then, in KiB.
type Growth = [(u64, usize); 3];

fn grows(rtt_us: u64, steps: Growth) {
    let mut r = Reader::new(Duration::from_micros(rtt_us), 1);
    let (mut now, mut due, mut window) = (r.start, 64 * KIB, 128 * KIB);
    for (took, then) in steps {
        now = now + Duration::from_micros(took);
        let seen = r.take(now, 0, due - 1);
        assert!(seen.is_none_or(|w| w == window), "a byte too early: {seen:?}");
        window = r.take(now, 0, 1).unwrap_or(window);
        assert_eq!(window, then * KIB, "after {took} µs of {steps:?}");
        due = window;
    }
}

#[test]
fn a_window_doubles_for_a_reader_that_is_fast_and_faster_than_at_the_last_growth() {
    // A shorter round trip counts as one of 1,000 µs.
    for steps in [
        [(2_000, 128), (2_000, 256), (2_000, 512)],
        [(2_001, 128), (2_000, 256), (2_000, 512)],
        [(2_000, 128), (2_001, 128), (2_000, 256)],
        [(500, 128), (909, 256), (1_652, 512)],
        [(500, 128), (909, 256), (1_653, 256)],
        [(500, 128), (910, 128), (909, 256)],
    ] {
        grows(500, steps);
    }
}

#[test]
fn on_a_long_path_a_window_grows_fourfold_while_that_doubles_the_rate() {
    for steps in [
        [(6_250, 256), (6_250, 1_024), (6_250, 4_096)],
        [(6_251, 128), (6_250, 512), (6_250, 2_048)],
        [(1_000, 256), (2_000, 1_024), (4_000, 4_096)],
        [(1_000, 256), (2_001, 512), (3_638, 1_024)],
        [(1_000, 256), (3_636, 512), (6_610, 1_024)],
        [(1_000, 256), (3_637, 256), (3_636, 512)],
    ] {
        grows(5_000, steps);
    }
    // It is long from 5 ms of round trip on.
    grows(4_999, [(1_000, 128), (1_000, 256), (1_000, 512)]);
}

#[test]
fn a_first_grant_is_what_the_link_brings_a_stream_in_one_round_trip() {
    let tenth = Duration::from_millis(100);
    // (tenth of a second, stream, KiB received) …, when the next stream is opened, KiB that it is granted.
    type Row = (&'static [(u32, usize, usize)], u32, usize);
    let rows: [Row; 13] = [
        (&[(0, 0, 160)], 0, 160),
        (&[(0, 0, 160)], 1, 160),
        (&[(0, 0, 160), (1, 0, 80)], 1, 160),
        (&[(0, 0, 80), (1, 0, 160)], 1, 160),
        // Streams share it: those of this tenth of a second or of the one before.
        (&[(0, 0, 100), (0, 1, 100)], 0, 100),
        (&[(0, 0, 100), (0, 0, 100)], 0, 200),
        (&[(0, 0, 100), (0, 1, 100)], 1, 100),
        (&[(0, 0, 100), (0, 1, 100), (1, 0, 80)], 1, 100),
        (&[(0, 0, 100), (0, 1, 100)], 2, 200),
        // It is remembered for ten seconds.
        (&[(0, 0, 160)], 99, 160),
        (&[(0, 0, 160)], 100, 64),
        (&[(0, 0, 160), (50, 0, 80)], 120, 80),
        (&[(0, 0, 160), (1, 0, 160)], 230, 64),
    ];
    for rtt in [tenth, tenth / 2] {
        for (received, asked, granted) in rows {
            let mut r = Reader::new(rtt, 2);
            let start = Time::from_micros(r.start.as_micros().next_multiple_of(100_000) + 1_000_000);
            for (at, stream, kib) in received {
                r.take(start + tenth * *at, *stream, kib * KIB);
            }
            let now = start + tenth * asked;
            r.host.open(now, Kind::Http);
            let frames = r.host.frames(now);
            let credit = frames.iter().find_map(|f| match f {
                Frame::Open(_, open) => Some(open.credit as usize / KIB),
                _ => None,
            });
            let wanted = if rtt == tenth { granted } else { (granted / 2).max(64) };
            assert_eq!(credit, Some(wanted), "{received:?}, {asked}, {rtt:?}");
        }
    }
}

/// After a pause a link brings megabytes at once: a slice must not keep what came with it for as long as that takes.
#[test]
fn a_slice_leaves_its_read_buffer_once_much_has_come_behind_it() {
    let mut p = pair(8 * MIB, 8 * MIB);
    // Timers never ring here.
    let ((_, quiet), (busy_here, busy)) = (p.open(), p.open());
    p.sc.write(p.now, quiet, &[1; 16]);
    let mut passed = 0;
    let mut pass_on = |p: &mut Pair| {
        let mut read = Vec::new();
        while read.is_empty() {
            p.sc.write(p.now, busy, &[2; FRAME_PAYLOAD_BYTES_MAX]);
            p.exchange();
            p.endpoint.read(p.now, busy_here, &mut read);
        }
        passed += read.len() as u64;
        passed
    };
    while pass_on(&mut p) < SLICES_IN_READ_BUFFERS_MAX / 4 * 3 {
        assert!(
            p.endpoint.budget.rx_charged() > FRAME_PAYLOAD_BYTES_MAX,
            "with what came beside it"
        );
    }
    while pass_on(&mut p) < SLICES_IN_READ_BUFFERS_MAX + RECORD_BYTES_MAX as u64 {}
    assert_eq!(p.endpoint.budget.rx_charged(), 16, "by itself");
}

// ── Sending ───────────────────────────────────────────────────────────────────────────────────────────────────

/// Payload that fits so many bytes with its headers.
fn payload(bytes: usize) -> usize {
    bytes - FRAME_HEADER_BYTES * bytes.div_ceil(RECORD_BYTES_MAX)
}

/// Writes as much as there is room for; ends with a refusal.
fn fill(host: &mut Host, now: Time, r: StreamRef) {
    while host.write(now, r, &[0; FRAME_PAYLOAD_BYTES_MAX]) > 0 {}
}

/// Tells a host that its peer has so many counted bytes of it.
fn ack(host: &mut Host, now: Time, bytes: usize) {
    host.feed(now, &Frame::Ack(bytes as u64));
}

fn woken(host: &mut Host) -> Vec<StreamRef> {
    std::iter::from_fn(|| host.budget.next_unblocked())
        .map(|(_, r)| r)
        .collect()
}

#[test]
fn data_is_charged_with_its_header_until_it_is_acknowledged() {
    let mut p = pair(8 * MIB, MIB);
    let (_, s) = p.open();
    p.sc.write(p.now, s, &[0; 1_000]);
    assert_eq!(p.sc.budget.tx_held(), 1_012, "queued");
    p.sc.transmit(p.now);
    p.sc.write(p.now, s, &[0; 500]);
    assert_eq!(p.sc.budget.tx_held(), 1_012 + 512, "written and queued");
    ack(&mut p.sc, p.now, 1_012);
    assert_eq!(p.sc.budget.tx_held(), 512);
    p.sc.transmit(p.now);
    ack(&mut p.sc, p.now, 1_012 + 512);
    assert_eq!(p.sc.budget.tx_held(), 0);
}

#[test]
fn a_link_takes_at_most_three_quarters_of_what_the_others_leave() {
    let (mut p, mut q) = (pair(8 * MIB, 64 * KIB), pair(8 * MIB, 64 * KIB));
    let ((_, s), (_, other)) = (p.open(), q.open());
    assert_eq!(p.sc.room(p.now, s), payload(48 * KIB));
    p.sc.write(p.now, s, &[0; 10_000]);
    let held = 10_012;
    assert_eq!(p.sc.room(p.now, s), payload(48 * KIB - held));
    // Both are links of one shard.
    q.sc.budget = p.sc.budget;
    assert_eq!(q.sc.room(q.now, other), payload((64 * KIB - held) / 4 * 3));
    q.sc.write(q.now, other, &[0; 16_000]);
    p.sc.budget = q.sc.budget;
    assert_eq!(p.sc.room(p.now, s), payload((64 * KIB - 16_012) / 4 * 3 - held));
}

#[test]
fn a_stream_takes_at_most_an_eighth_while_another_was_refused() {
    let mut p = pair(8 * MIB, 64 * KIB);
    let ((_, a), (_, b)) = (p.open(), p.open());
    fill(&mut p.sc, p.now, a);
    p.sc.transmit(p.now);
    ack(&mut p.sc, p.now, RECORD_BYTES_MAX);
    let left = 16 * KIB;
    assert_eq!(p.sc.room(p.now, a), payload(left), "only it was refused");
    assert_eq!(p.sc.room(p.now, b), payload(8 * KIB));
    p.sc.write(p.now, b, &[0; 1_000]);
    assert_eq!(p.sc.room(p.now, b), payload(left - 1_012), "no other since");
}

#[test]
fn a_refused_stream_waits_in_one_place() {
    // A link's share is one frame.
    let mut p = pair(8 * MIB, RECORD_BYTES_MAX / 3 * 4 + 3);
    let (_, waiting) = p.open();
    for _ in 0..3 {
        let (_, writer) = p.open();
        p.sc.write(p.now, writer, &[0; FRAME_PAYLOAD_BYTES_MAX]);
        for _ in 0..3 {
            assert_eq!(p.sc.room(p.now, waiting), 0);
        }
        assert_eq!(woken(&mut p.sc), []);
        p.exchange();
        p.settle();
        assert_eq!(woken(&mut p.sc), [waiting]);
    }
}

#[test]
fn room_wakes_eight_streams_or_one_a_frame_and_an_empty_link_all() {
    let mut p = pair(8 * MIB, 64 * KIB);
    let streams: Vec<_> = (0..21).map(|_| p.open().1).collect();
    let refuse = |p: &mut Pair| {
        for r in &streams[1..] {
            assert_eq!(p.sc.room(p.now, *r), 0);
        }
    };
    fill(&mut p.sc, p.now, streams[0]);
    woken(&mut p.sc);
    refuse(&mut p);
    p.sc.transmit(p.now);
    ack(&mut p.sc, p.now, RECORD_BYTES_MAX);
    assert_eq!(woken(&mut p.sc), streams[..8]);
    ack(&mut p.sc, p.now, 3 * RECORD_BYTES_MAX);
    assert_eq!(
        woken(&mut p.sc),
        streams[8..],
        "nothing is held that could wake them later"
    );
}

#[test]
fn a_reset_wakes_one_stream_for_each_frame_that_it_drops() {
    // A link's share is 512 KiB.
    let mut p = pair(8 * MIB, 512 * KIB / 3 * 4 + 4);
    let streams: Vec<_> = (0..42).map(|_| p.open().1).collect();
    let (small, big) = (streams[0], streams[1]);
    p.sc.write(p.now, small, &[0; 1_000]);
    p.sc.feed(p.now, &Frame::Credit(4, MIB as u64));
    fill(&mut p.sc, p.now, big);
    for r in &streams[2..] {
        assert_eq!(p.sc.room(p.now, *r), 0);
    }
    let frames = (512 * KIB - 1_012) / FRAME_PAYLOAD_BYTES_MAX;
    p.sc.session.reset(p.now, &mut p.sc.budget, big, Code::SiteReset, "");
    assert_eq!(woken(&mut p.sc).len(), frames);
    p.exchange();
    p.settle();
    assert_eq!(p.sc.budget.tx_held(), 0);
    assert_eq!(woken(&mut p.sc), streams[1 + frames..]);
}
