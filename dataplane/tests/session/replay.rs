//! What is retained for a replay: how it leaves again, and what counts as progress.

use std::time::Duration;

use bytes::Bytes;
use dataplane::limits::LINK_WRITE_BYTES_MAX;
use dataplane::mux::Event;
use dataplane::mux::frame::Frame;

use crate::pair::Pair;

#[test]
fn a_peer_that_answers_and_acknowledges_nothing_ends_a_session_that_retains_much() {
    // Bytes that were acknowledged before, bytes that are not, with headers.
    for (acked, retained, ends) in [
        (0, 65_535, false),
        (0, 65_536, true),
        (40_000, 40_000, false),
        (60_000, 65_536, true),
    ] {
        let mut p = Pair::new();
        p.connect();
        let (_, s) = p.open();
        p.sc.feed(p.now, &Frame::Credit(2, 1 << 20));
        p.sc.write_framed(p.now, s, acked);
        p.sc.transmit(p.now);
        p.sc.feed(p.now, &Frame::Ack(acked as u64));
        p.sc.write_framed(p.now, s, retained);
        for _ in 0..40 {
            for frame in p.sc.frames(p.now) {
                if let Frame::Ping(token) = frame {
                    p.sc.feed(p.now, &Frame::Pong(token));
                }
            }
            p.now = p.now + Duration::from_secs(1);
            p.sc.session.handle_timeout(p.now, &mut p.sc.budget);
        }
        assert!(p.sc.session.is_connected());
        let ended = p.sc.saw(|e| {
            matches!(
                e,
                Event::SessionEnded {
                    peer_at_fault: true,
                    ..
                }
            )
        });
        assert_eq!(ended, ends, "{retained} retained");
    }
}

#[test]
fn a_replay_leaves_in_writes_of_the_usual_size() {
    let mut p = Pair::new();
    p.connect();
    let streams: Vec<_> = (0..10).map(|_| p.open().1).collect();
    for s in streams {
        p.sc.write_framed(p.now, s, 60_000);
    }
    p.sc.transmit(p.now);
    p.cut();
    p.now = p.now + Duration::from_secs(3);
    p.greet();
    let mut replayed = 0;
    loop {
        let mut frames: Vec<Bytes> = Vec::new();
        let bytes = p.sc.session.poll_transmit(p.now, &mut p.sc.budget, &mut frames);
        assert!(bytes <= LINK_WRITE_BYTES_MAX, "{bytes} in one write");
        assert_eq!(frames.iter().map(Bytes::len).sum::<usize>(), bytes);
        if bytes == 0 {
            break;
        }
        replayed += bytes;
    }
    assert!((600_000..600_100).contains(&replayed), "{replayed} with a PING");
}

#[test]
fn an_ack_that_does_not_rise_is_no_progress() {
    let mut p = Pair::new();
    p.connect();
    let (_, s) = p.open();
    p.sc.write_framed(p.now, s, 1_000);
    p.exchange();
    p.settle();
    p.sc.write_framed(p.now, s, 1_000);
    p.sc.transmit(p.now);
    p.cut();
    p.now = p.now + Duration::from_secs(3);
    p.greet();
    p.sc.feed(p.now, &Frame::Ack(1_000));
    assert!(!p.sc.session.is_live());
    p.sc.feed(p.now, &Frame::Ack(2_000));
    assert!(p.sc.session.is_live());
}
