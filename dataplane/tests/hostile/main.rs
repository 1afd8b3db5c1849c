//! A hostile peer against one session of a shard: every frame type × state × boundary length ends that session or
//! connection exactly when the protocol says so, and never anything else.

mod neighbour;
mod payload;
mod shard;
mod state;
mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dataplane::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};
use dataplane::mux::frame::{Frame, Header, kind};
use dataplane::mux::{Cause, Code, Event, GoAwayReason, Side};

use payload::{Known, layout};
use shard::{Shard, frame_bytes};
use state::{State, first_ids, reach};
use table::{Cell, Expected, Target, expected};

/// Every cell of this kind of frame in this state.
fn cells(side: Side, state: State, kind: u8) -> Vec<Cell> {
    let known = kind <= kind::RETURN;
    let targets: &[Target] = match state {
        State::Down | State::Greeting | State::Idle => &[Target::NextPeer, Target::NextOwn, Target::None],
        _ if known => &[Target::Stream, Target::NextPeer, Target::NextOwn, Target::None],
        _ => &[Target::Stream, Target::None],
    };
    let mut lengths: Vec<(usize, u8)> = layout(kind).boundaries().into_iter().map(|n| (n, 0)).collect();
    lengths.push((FRAME_PAYLOAD_BYTES_MAX + 1, 0));
    lengths.extend(known.then_some((8, 1)));
    let cell = |target: Target, (length, reserved): (usize, u8)| Cell {
        side,
        state,
        kind,
        length,
        reserved,
        target,
    };
    (targets.iter())
        .flat_map(|t| lengths.iter().map(move |l| cell(*t, *l)))
        .collect()
}

/// The bytes of a cell's frame; of a payload that is too long only the header.
fn bytes_of(cell: &Cell, shard: &Shard, id: Option<u64>) -> Bytes {
    let (peer, own) = first_ids(cell.side);
    let stream = match cell.target {
        Target::Stream => id.unwrap_or_default(),
        Target::NextPeer => peer + 100,
        Target::NextOwn => own + 100,
        Target::None => 0,
    };
    let known = Known {
        open: if cell.side == Side::Client { 5 } else { 4 },
        acked: shard.acked(),
        sent: if cell.state == State::Recalled { 1_000 } else { 0 },
        hello: frame_bytes(&Frame::Hello(shard.hello())).slice(FRAME_HEADER_BYTES..),
    };
    let payload = match cell.length {
        n if n > FRAME_PAYLOAD_BYTES_MAX => Bytes::new(),
        n => payload::payload(cell.kind, n, &known),
    };
    payload::frame(cell.length, cell.kind, cell.reserved, stream, &payload)
}

/// What a shard did, apart from ACKs.
#[derive(Debug, PartialEq)]
struct Done {
    events: Vec<Event>,
    said: Vec<Frame>,
}

/// Lets the time of an ACK pass; what was done, and the last ACK.
fn done(shard: &mut Shard) -> (Done, Option<u64>) {
    shard.look();
    shard.wait(Duration::from_millis(30));
    shard.look();
    let (acks, said) = std::mem::take(&mut shard.said)
        .into_iter()
        .partition::<Vec<_>, _>(|f| matches!(f, Frame::Ack(_)));
    let last = acks.last().map(|f| if let Frame::Ack(n) = f { *n } else { 0 });
    let events = std::mem::take(&mut shard.events);
    (Done { events, said }, last)
}

fn judge(cell: &Cell, control: &Done) {
    let (mut shard, id) = reach(cell.side, cell.state);
    let (fed, held) = (shard.fed, shard.holds());
    let bytes = bytes_of(cell, &shard, id);
    // Every other cell arrives in two reads.
    let at = (cell.length + cell.kind as usize) % 2 * (bytes.len() / 2);
    shard.feed(&[bytes.slice(..at), bytes.slice(at..)]);
    let counted = Header::decode(&bytes).is_some_and(|h| h.is_ok_and(Header::counted));
    match expected(cell) {
        Expected::Unheard => {
            assert_eq!((shard.events.len(), shard.holds()), (0, held));
            shard.resumes_at(fed);
        }
        Expected::ConnectionError => {
            assert_eq!(shard.events, [Event::Close(Cause::WrongHello)]);
            shard.feed(&[frame_bytes(&Frame::Ping([0; 8]))]);
            shard.look();
            assert_eq!((shard.said.len(), shard.events.len()), (0, 1), "it says nothing more");
            shard.resumes_at(fed);
        }
        Expected::SessionError => session_error(&mut shard),
        Expected::Dropped => {
            let holds = shard.holds();
            let (done, ack) = done(&mut shard);
            assert_eq!(done, *control);
            assert_eq!(holds, held);
            assert_eq!(ack, Some(fed + bytes.len() as u64));
        }
        Expected::Accepted => {
            let ack = accepted(cell, &mut shard, control);
            let counts = if counted { bytes.len() as u64 } else { 0 };
            assert_eq!(ack.unwrap_or(fed), fed + counts);
        }
    }
    shard.neighbour_carries();
    shard.nothing_is_left();
}

fn session_error(shard: &mut Shard) {
    let ended = |e: &&Event| {
        matches!(
            e,
            Event::SessionEnded {
                code: Code::Protocol,
                peer_at_fault: true,
                ..
            }
        )
    };
    assert_eq!(shard.events.iter().filter(ended).count(), 1, "{:?}", shard.events);
    assert_eq!(shard.events.last(), Some(&Event::Close(Cause::Failed)));
    shard.feed(&[frame_bytes(&Frame::Ping([0; 8]))]);
    shard.look();
    let [Frame::GoAway { reason, .. }] = &shard.said[..] else {
        panic!("its last words: {:?}", shard.said)
    };
    assert_eq!(*reason, GoAwayReason::Protocol);
}

/// The events and frames that a frame brings about, beyond what `control` shows.
/// Gives the last ACK.
fn accepted(cell: &Cell, shard: &mut Shard, control: &Done) -> Option<u64> {
    let (now, ack) = done(shard);
    if cell.kind == kind::HELLO {
        assert_eq!(now.events, [Event::Up { resumed: true }]);
        return ack;
    }
    let fits = |e: &Event| match cell.kind {
        kind::OPEN => matches!(e, Event::Opened(..)),
        kind::DATA | kind::FIN => matches!(e, Event::Readable(_)),
        kind::RESET => matches!(e, Event::Readable(_) | Event::Writable(_)),
        kind::SETTINGS => matches!(e, Event::Settings { version: 2, .. }),
        kind::SETTINGS_ACK => matches!(
            e,
            Event::SettingsAck {
                version: 1,
                accepted: true,
                ..
            }
        ),
        kind::OPENED => matches!(e, Event::Accepted(..)),
        kind::START_TLS => matches!(e, Event::StartTls(..)),
        kind::TLS_REPORT => matches!(e, Event::TlsReport(..)),
        kind::GOAWAY if cell.state.is_empty() => {
            matches!(e, Event::GoAway { .. } | Event::Finished | Event::Close(Cause::Drained))
        }
        kind::GOAWAY => matches!(e, Event::GoAway { .. }),
        _ => false,
    };
    let quiet = matches!(
        cell.kind,
        kind::CREDIT | kind::ACK | kind::PING | kind::PONG | kind::RECALL | kind::RETURN
    );
    assert!(now.events.iter().all(fits), "{:?}", now.events);
    assert_eq!(now.events.is_empty(), quiet, "{:?}", now.events);
    let answers = |f: &Frame| match cell.kind {
        kind::PING => matches!(f, Frame::Pong(_)),
        kind::RECALL => matches!(f, Frame::Return(..)),
        // What the pool allows again after a RETURN.
        kind::RETURN => matches!(f, Frame::Credit(..)),
        _ => false,
    };
    let more: Vec<&Frame> = now.said.iter().filter(|f| !control.said.contains(f)).collect();
    assert!(more.iter().all(|f| answers(f)), "{more:?}");
    let answered = matches!(cell.kind, kind::PING | kind::RECALL);
    assert!(!answered || more.len() == 1, "one answer: {more:?}");
    assert_eq!(now.said.len() - more.len(), control.said.len());
    ack
}

/// What a panic said.
fn words(panic: &dyn std::any::Any) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_default()
}

#[test]
fn f7_every_frame_in_every_state_at_every_boundary() {
    let started = Instant::now();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (mut count, mut failed, mut ends) = (0, Vec::new(), [0; 5]);
    for side in [Side::Client, Side::Endpoint] {
        for state in State::ALL.into_iter().filter(|s| s.exists(side)) {
            let control = done(&mut reach(side, state).0).0;
            for cell in (0..=u8::MAX).flat_map(|kind| cells(side, state, kind)) {
                count += 1;
                ends[expected(&cell) as usize] += 1;
                if let Err(why) = catch_unwind(AssertUnwindSafe(|| judge(&cell, &control))) {
                    failed.push((cell, expected(&cell), words(why.as_ref())));
                }
            }
        }
    }
    std::panic::set_hook(hook);
    println!(
        "{count} cells in {:.1?}: unheard, connection error, session error, accepted, dropped {ends:?}",
        started.elapsed()
    );
    for (cell, expected, why) in failed.iter().take(20) {
        println!("{cell:?}: {expected:?} expected: {why}");
    }
    assert!(ends.iter().all(|n| *n > 0));
    assert!(failed.is_empty(), "{} cells", failed.len());
}
