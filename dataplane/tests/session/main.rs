//! Two sessions back to back, without a network: the shortest way to see the multiplex work.

mod budgets;
mod noise;
mod order;
mod pair;
mod replay;

use std::time::Duration;

use bytes::Bytes;
use dataplane::mux::frame::{self, Frame};
use dataplane::mux::{Budget, BudgetConfig, Cause, Code, Event, GoAwayReason, Hello, Recv, Reject, Side, Timings};

use pair::{Pair, host};

#[test]
fn bytes_cross_both_ways_and_end() {
    let mut p = Pair::new();
    p.connect();
    let (e, s) = p.open();
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
    let (mut sent, mut got) = (0, Vec::new());
    for _ in 0..10_000 {
        while sent < body.len() {
            match p.sc.write(p.now, s, &body[sent..]) {
                0 => break,
                n => sent += n,
            }
        }
        if sent == body.len() {
            p.sc.session.finish(p.now, s, None);
        }
        p.exchange();
        if let Some(end) = p.endpoint.read(p.now, e, &mut got) {
            assert_eq!(end, Recv::Fin(None));
            break;
        }
    }
    assert!(got == body, "{} of {} bytes", got.len(), body.len());
    p.endpoint.session.finish(p.now, e, None);
    p.exchange();
    assert_eq!(p.sc.read(p.now, s, &mut Vec::new()), Some(Recv::Fin(None)));
    p.sc.session.release(p.now, &mut p.sc.budget, s);
    p.endpoint.session.release(p.now, &mut p.endpoint.budget, e);
    p.settle();
    for host in [&p.sc, &p.endpoint] {
        let b = &host.budget;
        assert_eq!(
            (b.tx_held(), b.rx_outstanding(), b.rx_charged(), b.streams()),
            (0, 0, 0, (0, 0))
        );
    }
}

#[test]
fn a_cut_loses_and_doubles_nothing() {
    let mut p = Pair::new();
    p.connect();
    let (e, s) = p.open();
    assert_eq!(p.endpoint.write(p.now, e, b"before "), 7);
    p.endpoint.transmit(p.now);
    p.endpoint.write(p.now, e, b"lost on the way");
    p.endpoint.session.finish(p.now, e, None);
    p.endpoint.transmit(p.now);
    p.cut();
    p.now = p.now + Duration::from_secs(3);
    p.connect();
    let mut got = Vec::new();
    assert_eq!(p.sc.read(p.now, s, &mut got), Some(Recv::Fin(None)));
    assert_eq!(got, b"before lost on the way");
    assert!(p.endpoint.session.frames_replayed() >= 3);
}

#[test]
fn a_restarted_peer_ends_the_streams_by_name() {
    let mut p = Pair::new();
    p.connect();
    let (_, s) = p.open();
    p.cut();
    p.endpoint = host(Side::Endpoint);
    p.now = p.now + Duration::from_secs(3);
    p.connect();
    assert_eq!(
        p.sc.read(p.now, s, &mut Vec::new()),
        Some(Recv::Reset(Code::PeerRestarted, Bytes::new()))
    );
}

#[test]
fn a_stream_kept_from_an_ended_session_does_not_touch_its_namesake_in_the_next() {
    let mut p = Pair::new();
    p.connect();
    let (_, kept) = p.open();
    p.cut();
    p.endpoint = host(Side::Endpoint);
    p.now = p.now + Duration::from_secs(3);
    p.connect();
    assert_eq!(p.sc.session.streams_open(), 0);
    let (e, s) = p.open();
    assert_eq!(p.sc.session.streams_open(), 1);
    p.sc.session.release(p.now, &mut p.sc.budget, kept);
    assert_eq!(p.sc.session.streams_open(), 1);
    p.endpoint.write(p.now, e, b"for the new one");
    p.exchange();
    let mut got = Vec::new();
    assert_eq!(p.sc.read(p.now, s, &mut got), None);
    assert_eq!(got, b"for the new one");
}

/// How long `sc` waits before it dials again after a cut now; afterwards it dials.
fn redial_after(p: &mut Pair) -> Duration {
    let cut_at = p.now;
    p.sc.events.clear();
    p.cut();
    for _ in 0..1_000 {
        p.tick(Duration::ZERO);
        if p.sc.saw(|e| *e == Event::Dial) {
            return p.now.since(cut_at);
        }
        p.now = p.now + Duration::from_millis(50);
    }
    panic!("no dial");
}

#[test]
fn old_session_errors_do_not_slow_a_later_redial() {
    let mut p = Pair::new();
    p.connect();
    for _ in 0..3 {
        p.endpoint
            .feed(p.now, &Frame::Data(9, Bytes::from_static(b"never opened")));
        p.exchange();
        assert!(p.sc.saw(|e| matches!(e, Event::SessionEnded { .. })));
        redial_after(&mut p);
        p.connect();
    }
    for _ in 0..100 {
        p.tick(Duration::from_secs(1));
        p.exchange();
    }
    assert_eq!(redial_after(&mut p), Duration::ZERO);
}

#[test]
fn goaway_moves_streams_whose_open_is_still_queued_whatever_it_names_as_last() {
    let mut p = Pair::new();
    p.connect();
    p.settle();
    let queued = p.open_here();
    let text = Bytes::new();
    let reason = GoAwayReason::Drain;
    p.endpoint.feed(
        p.now,
        &Frame::GoAway {
            last: u64::MAX,
            reason,
            text,
        },
    );
    assert!(
        p.endpoint
            .saw(|e| matches!(e, Event::Withdrawn { stream, .. } if *stream == queued))
    );
    assert_eq!(p.endpoint.budget.streams(), (0, 0));
}

#[test]
fn a_second_goaway_is_a_session_error() {
    let mut p = Pair::new();
    p.connect();
    p.open();
    let goaway = Frame::GoAway {
        last: 2,
        reason: GoAwayReason::Drain,
        text: Bytes::new(),
    };
    p.endpoint.feed(p.now, &goaway);
    p.endpoint.feed(p.now, &goaway);
    assert!(p.endpoint.saw(|e| matches!(
        e,
        Event::SessionEnded {
            peer_at_fault: true,
            ..
        }
    )));
}

#[test]
fn a_fresh_session_needs_a_name() {
    let p = Pair::new();
    let hello = Hello {
        version_min: frame::VERSION,
        version_max: frame::VERSION,
        link: 0,
        links: 1,
        member: [7; 16],
        session: [0; 16],
        fresh: [0; 16],
        epoch: 1,
        received: 0,
        first_credit: 0,
    };
    assert_eq!(p.endpoint.session.check_hello(&hello), Err(Reject::Mismatch));
}

#[test]
fn a_ping_answered_after_a_suspension_says_nothing_of_the_round_trip() {
    let mut p = Pair::new();
    p.connect();
    p.tick(Duration::from_secs(16));
    let ping = p.sc.transmit(p.now);
    assert!(!ping.is_empty());
    p.now = p.now + Duration::from_secs(8 * 3_600);
    p.endpoint
        .session
        .handle_bytes(p.now, &mut p.endpoint.budget, ping.freeze());
    p.exchange();
    assert!(p.sc.session.srtt().expect("known") < Duration::from_secs(1));
    assert_eq!(p.sc.session.dial_time_max(), Duration::from_secs(3));
}

#[test]
fn a_drained_session_without_a_connection_is_over_with_its_last_stream() {
    let mut p = Pair::new();
    p.connect();
    let (e, s) = p.open();
    p.endpoint.session.finish(p.now, e, None);
    p.sc.session.finish(p.now, s, None);
    p.sc.session.go_away(p.now, GoAwayReason::Shutdown, "");
    p.exchange();
    p.settle();
    p.cut();
    assert!(!p.endpoint.saw(|e| *e == Event::Finished));
    for (host, r) in [(&mut p.sc, s), (&mut p.endpoint, e)] {
        assert_eq!(host.read(p.now, r, &mut Vec::new()), Some(Recv::Fin(None)));
        host.session.release(p.now, &mut host.budget, r);
        assert!(host.saw(|e| *e == Event::Finished));
    }
    p.tick(Duration::from_secs(2));
    assert_eq!(p.sc.session.poll_timeout(), None, "it does not dial again");
    assert_eq!(p.endpoint.session.poll_timeout(), None);
}

/// A HELLO would leave a session behind at the endpoint, which nobody comes back for.
#[test]
fn what_ends_before_its_hello_has_left_says_nothing() {
    let mut p = Pair::new();
    p.sc.session.handle_timeout(p.now, &mut p.sc.budget);
    assert!(p.sc.saw(|e| *e == Event::Dial));
    p.sc.session.connected(p.now, &mut p.sc.budget);
    p.sc.session.go_away(p.now, GoAwayReason::Shutdown, "");
    assert!(p.sc.saw(|e| *e == Event::Close(Cause::Unwanted)));
    assert!(p.sc.transmit(p.now).is_empty());
}

#[test]
fn a_drained_session_does_not_dial_to_say_goaway_back() {
    let mut p = Pair::new();
    p.connect();
    let (e, s) = p.open();
    p.endpoint.session.finish(p.now, e, None);
    p.sc.session.finish(p.now, s, None);
    p.endpoint.session.go_away(p.now, GoAwayReason::Drain, "");
    p.exchange();
    p.settle();
    p.cut();
    p.sc.session.go_away(p.now, GoAwayReason::Shutdown, "");
    assert_eq!(p.sc.read(p.now, s, &mut Vec::new()), Some(Recv::Fin(None)));
    p.sc.session.release(p.now, &mut p.sc.budget, s);
    assert!(p.sc.saw(|e| *e == Event::Finished));
    p.tick(Duration::from_secs(2));
    assert_eq!(p.sc.session.poll_timeout(), None, "it does not dial again");
}

#[test]
fn short_whole_answers_whose_requests_are_cut_off_are_no_flood() {
    let mut p = Pair::new();
    p.connect();
    let instant = p.now;
    for _ in 0..20_000 {
        p.now = instant;
        let (e, s) = p.open();
        p.sc.write(p.now, s, b"204");
        p.sc.session.finish(p.now, s, None);
        p.exchange();
        assert_eq!(p.endpoint.read(p.now, e, &mut Vec::new()), Some(Recv::Fin(None)));
        p.endpoint
            .session
            .reset(p.now, &mut p.endpoint.budget, e, Code::Cancelled, "");
        p.endpoint.session.release(p.now, &mut p.endpoint.budget, e);
        p.exchange();
        p.sc.session.release(p.now, &mut p.sc.budget, s);
        p.sc.events.clear();
        p.endpoint.events.clear();
    }
    assert!(p.sc.session.is_live());
}

#[test]
fn an_end_that_was_not_taken_does_not_outlive_the_own_reset() {
    let mut p = Pair::new();
    p.connect();
    let (e, s) = p.open();
    p.endpoint.write(p.now, e, b"half of it is thrown away by the reset");
    p.endpoint.session.finish(p.now, e, None);
    p.exchange();
    p.sc.session.reset(p.now, &mut p.sc.budget, s, Code::SiteReset, "");
    assert_eq!(p.sc.session.recv(&mut p.sc.budget, s), Recv::Gone);
}

#[test]
fn what_outlives_its_session_moves_out_of_the_read_buffer_too() {
    let mut p = Pair::new();
    p.connect();
    let (e, s) = p.open();
    p.endpoint.write(p.now, e, b"short");
    p.endpoint.session.finish(p.now, e, Some(Timings::default()));
    p.exchange();
    let charged = p.sc.budget.rx_charged();
    assert!(charged > 5, "with the frames around it");
    p.sc.feed(p.now, &Frame::Data(999, Bytes::from_static(b"never opened")));
    p.tick(Duration::from_millis(10));
    assert_eq!((p.sc.budget.rx_held(), p.sc.budget.rx_charged()), (5, 5));
    let mut got = Vec::new();
    p.sc.read(p.now, s, &mut got);
    assert_eq!(got, b"short");
}

#[test]
fn long_rules_do_not_hold_up_the_streams() {
    let mut p = Pair::new();
    p.connect();
    let (e, s) = p.open();
    let bulk = vec![7; 12_000];
    assert_eq!(p.sc.write(p.now, s, &bulk), bulk.len());
    p.sc.session.send_settings(2, Bytes::from(vec![b' '; 1 << 20]));
    let rules = p.sc.transmit(p.now);
    assert!(rules.len() > 200 << 10, "the reserve is full");
    let more: usize = (0..3).map(|_| p.sc.write(p.now, s, &bulk)).sum();
    assert!(more > 2 * dataplane::limits::QUANTUM_BYTES);
    let rest = p.sc.transmit(p.now);
    for bytes in [rules, rest] {
        p.endpoint
            .session
            .handle_bytes(p.now, &mut p.endpoint.budget, bytes.freeze());
    }
    let mut got = Vec::new();
    p.endpoint.read(p.now, e, &mut got);
    assert_eq!(got.len(), bulk.len() + more);
    p.exchange();
    assert!(
        p.endpoint
            .saw(|e| matches!(e, Event::Settings { version: 2, json } if json.len() == 1 << 20))
    );
}

#[test]
fn rules_that_nobody_has_looked_at_are_bounded() {
    let mut p = Pair::new();
    p.connect();
    let rules = Bytes::from(vec![b' '; 16_000]);
    for version in 2..1_200 {
        let frame = Frame::Settings {
            version,
            part: 0,
            parts: 1,
            bytes: rules.clone(),
        };
        p.endpoint.feed(p.now, &frame);
    }
    p.endpoint.saw(|_| false);
    let settings = p.endpoint.events.iter().filter(|e| matches!(e, Event::Settings { .. }));
    assert!(settings.count() * rules.len() <= dataplane::limits::SETTINGS_UNANSWERED_BYTES_MAX);
    assert!(p.endpoint.saw(|e| matches!(
        e,
        Event::SessionEnded {
            code: Code::Limit,
            peer_at_fault: true,
            ..
        }
    )));
}

#[test]
fn a_refusal_that_has_not_left_keeps_a_draining_session() {
    let mut p = Pair::new();
    p.connect();
    p.sc.budget = Budget::new(BudgetConfig {
        pool_bytes: 8 << 20,
        tx_bytes: 8 << 20,
        streams_peer_max: 0,
        streams_own_max: 0,
    });
    let refused = p.open_here();
    let open = p.endpoint.transmit(p.now);
    p.sc.session.handle_bytes(p.now, &mut p.sc.budget, open.freeze());
    let goaway = Frame::GoAway {
        last: 0,
        reason: GoAwayReason::Drain,
        text: Bytes::new(),
    };
    p.sc.feed(p.now, &goaway);
    assert!(!p.sc.saw(|e| *e == Event::Finished));
    p.exchange();
    let end = p.endpoint.read(p.now, refused, &mut Vec::new());
    assert!(matches!(end, Some(Recv::Reset(Code::Limit, _))));
}
