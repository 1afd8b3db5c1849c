//! What a hostile `sc` says, in which state of its link, and what the protocol says of it. Written from the protocol's
//! text: every frame type, known or not, at both sides of each bound of its payload, for each stream that it may name.

use bytes::{BufMut, Bytes, BytesMut};
use dataplane::limits::{CLIENT_STREAMS_MAX, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, FRAME_TEXT_BYTES_MAX};
use dataplane::mux::Hello;
use dataplane::mux::frame::{self, Frame, kind};

/// States that a client can bring the endpoint's session into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// TLS is up, nothing was said.
    Silent,
    /// HELLO and the frame arrive in one record, before the endpoint has answered.
    Greeting,
    /// Both HELLOs are exchanged, no stream.
    Idle,
    /// A stream that it opened has been refused.
    Refused,
    /// A browser's CONNECT has come, and is not answered.
    Asked,
    /// The same, after OPENED.
    Opened,
    /// Its own FIN followed.
    FinSaid,
    /// The browser's FIN followed.
    FinHeard,
    /// Its own RESET followed.
    ResetSaid,
    /// A browser's request has come whole, and is not answered.
    Requested,
    /// FIN in both directions.
    BothFins,
    /// As `Opened`, after its GOAWAY.
    Draining,
    /// As `Opened`, and the session goes on over a second connection.
    Resumed,
}

impl State {
    pub const ALL: [Self; 13] = [
        Self::Silent,
        Self::Greeting,
        Self::Idle,
        Self::Refused,
        Self::Asked,
        Self::Opened,
        Self::FinSaid,
        Self::FinHeard,
        Self::ResetSaid,
        Self::Requested,
        Self::BothFins,
        Self::Draining,
        Self::Resumed,
    ];

    /// DATA FIN RESET CREDIT, OPENED START_TLS TLS_REPORT, RECALL RETURN on its stream: `a` accepted, `d` counted and
    /// dropped, `e` a violation.
    fn row(self) -> &'static [u8; 9] {
        match self {
            Self::Silent | Self::Greeting | Self::Idle => b"eeeeeeeee",
            Self::Refused | Self::ResetSaid | Self::BothFins => b"ddddddddd",
            Self::Asked => b"eeaaaeeae",
            Self::FinSaid => b"eeaaeeeae",
            Self::Opened | Self::FinHeard | Self::Requested | Self::Draining | Self::Resumed => b"aaaaeeeae",
        }
    }
}

/// Frames of a stream, in the order of the columns of a row; OPEN is told apart.
const COLUMNS: [u8; 9] = [
    kind::DATA,
    kind::FIN,
    kind::RESET,
    kind::CREDIT,
    kind::OPENED,
    kind::START_TLS,
    kind::TLS_REPORT,
    kind::RECALL,
    kind::RETURN,
];

/// Types that nobody has given a meaning: two that end the session, two that are skipped.
const UNKNOWN: [u8; 4] = [kind::RETURN + 1, kind::EXTENSIONS - 1, kind::EXTENSIONS, u8::MAX];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The connection ends without a word: the endpoint has not said HELLO.
    Unanswered,
    /// The link ends with GOAWAY of this reason.
    Violation(frame::GoAwayReason),
    /// The link goes on.
    GoesOn,
    /// The link ends in peace, or goes on as long as it carries something.
    MayEnd,
}

const PROTOCOL: Expected = Expected::Violation(frame::GoAwayReason::Protocol);
const LIMIT: Expected = Expected::Violation(frame::GoAwayReason::Limit);

/// What an honest peer would name in this place.
pub struct Known {
    /// The stream that the state speaks of.
    pub stream: u64,
    /// DATA that it may send there.
    pub credit: u64,
    /// Counted bytes that it has received.
    pub received: u64,
    pub hello: Hello,
}

/// The frames of a case, once it is known what they speak of.
type Says = Box<dyn Fn(&Known) -> Vec<Bytes>>;

pub struct Case {
    pub what: String,
    pub state: State,
    pub expected: Expected,
    pub frames: Says,
}

/// Which stream a frame names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// The one that the state speaks of.
    Stream,
    /// One that it could open, above all that were.
    NextOwn,
    /// One that the endpoint could open, above all that were.
    NextOther,
    None,
}

fn fits(kind: u8, length: usize) -> bool {
    let tlvs = |fixed| length == fixed || length >= fixed + 3;
    let text = |fixed| (fixed..=fixed + FRAME_TEXT_BYTES_MAX).contains(&length);
    match kind {
        kind::HELLO => tlvs(76),
        kind::OPEN => tlvs(13),
        kind::DATA | kind::START_TLS => length >= 1,
        kind::FIN => length == 0 || length == 16,
        kind::RESET => text(2),
        kind::CREDIT | kind::ACK | kind::PING | kind::PONG | kind::RECALL | kind::RETURN => length == 8,
        kind::SETTINGS => length >= 8,
        kind::SETTINGS_ACK => text(5),
        kind::GOAWAY => text(10),
        kind::OPENED => length == 27,
        kind::TLS_REPORT => tlvs(33),
        _ => kind >= kind::EXTENSIONS,
    }
}

/// The shortest, the longest, one more than that, and both sides of each bound.
fn lengths(kind: u8) -> Vec<usize> {
    let is_bound = |n: usize| n <= 1 || fits(kind, n) != fits(kind, n - 1) || fits(kind, n) != fits(kind, n + 1);
    let mut out: Vec<usize> = (0..FRAME_PAYLOAD_BYTES_MAX).filter(|n| is_bound(*n)).collect();
    out.extend([FRAME_PAYLOAD_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX + 1]);
    out
}

/// As right as its length allows.
fn payload(kind: u8, length: usize, known: &Known) -> BytesMut {
    let mut out = BytesMut::new();
    match kind {
        kind::HELLO => {
            frame::encode(&Frame::Hello(known.hello.clone()), &mut out);
            out = out.split_off(FRAME_HEADER_BYTES);
        }
        kind::OPEN => out.put_slice(&[4, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]),
        kind::RESET => out.put_u16(6),
        kind::CREDIT => out.put_u64(100_000_000),
        kind::ACK => out.put_u64(known.received),
        kind::SETTINGS => out.put_slice(&[0, 0, 0, 2, 0, 0, 0, 1]),
        kind::SETTINGS_ACK => out.put_slice(&[0, 0, 0, 1, 0]),
        kind::GOAWAY => {
            out.put_u64(u64::MAX);
            out.put_u16(0);
        }
        kind::OPENED => out.put_u8(4),
        kind::TLS_REPORT => out.put_bytes(0, 33),
        kind::RECALL | kind::RETURN => out.put_u64(0),
        _ => {}
    }
    let takes_tlvs = matches!(kind, kind::HELLO | kind::OPEN | kind::TLS_REPORT);
    if takes_tlvs && length >= out.len() + 3 {
        let left = length - out.len() - 3;
        out.put_u8(1);
        out.put_u16(left as u16);
    }
    // Names of no bytes, where names are.
    out.resize(length, if kind == kind::START_TLS { 0 } else { b'x' });
    out
}

/// Of what is too long only the header.
fn raw(kind: u8, reserved: u8, stream: u64, length: usize, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u16(length as u16);
    out.put_slice(&[kind, reserved]);
    out.put_u64(stream);
    out.put_slice(payload);
    out.freeze()
}

fn expected(state: State, kind: u8, reserved: u8, target: Target, length: usize) -> Expected {
    let of_session = matches!(kind, kind::HELLO | kind::ACK..=kind::GOAWAY);
    let named = kind >= kind::EXTENSIONS || of_session == (target == Target::None);
    let fits = length <= FRAME_PAYLOAD_BYTES_MAX && reserved == 0 && fits(kind, length) && named;
    match (state, kind) {
        (State::Silent, kind::HELLO) if fits => return Expected::GoesOn,
        (State::Silent | State::Greeting, _) => return Expected::Unanswered,
        _ if !fits => return PROTOCOL,
        (State::Draining, kind::OPEN | kind::GOAWAY) => return PROTOCOL,
        (_, kind::EXTENSIONS..) => return Expected::GoesOn,
        (_, kind::HELLO | kind::SETTINGS_ACK) => return PROTOCOL,
        (_, kind::GOAWAY) => return Expected::MayEnd,
        _ if of_session => return Expected::GoesOn,
        _ => {}
    }
    match (target, COLUMNS.iter().position(|k| *k == kind)) {
        (Target::NextOwn, None) => Expected::GoesOn,
        (Target::Stream, Some(column)) if state.row()[column] == b'e' => PROTOCOL,
        // Its last stream: nothing keeps the link.
        (Target::Stream, Some(_)) if state == State::Draining && kind == kind::RESET => Expected::MayEnd,
        (Target::Stream, Some(_)) => Expected::GoesOn,
        _ => PROTOCOL,
    }
}

/// Everything that a frame's type, length and stream can be, in every state.
pub fn cells() -> Vec<Case> {
    let mut out = Vec::new();
    for state in State::ALL {
        let targets: &[Target] = match state {
            State::Silent | State::Greeting => &[Target::NextOwn, Target::None],
            State::Idle => &[Target::NextOwn, Target::NextOther, Target::None],
            _ => &[Target::Stream, Target::NextOwn, Target::NextOther, Target::None],
        };
        for kind in (kind::HELLO..=kind::RETURN).chain(UNKNOWN) {
            let lengths = lengths(kind).into_iter().map(|n| (n, 0)).chain([(8, 1)]);
            // One record must hold HELLO too.
            let lengths = lengths.filter(|(n, _)| state != State::Greeting || *n != FRAME_PAYLOAD_BYTES_MAX);
            for (length, reserved) in lengths {
                out.extend(targets.iter().map(|&target| Case {
                    what: format!("{state:?}: type {kind:#04x}, {length} bytes, fourth byte {reserved}, {target:?}"),
                    state,
                    expected: expected(state, kind, reserved, target, length),
                    frames: Box::new(move |known| {
                        let stream = match target {
                            Target::Stream => known.stream,
                            Target::NextOwn => 101,
                            Target::NextOther => 102,
                            Target::None => 0,
                        };
                        let payload = match length {
                            n if n > FRAME_PAYLOAD_BYTES_MAX => BytesMut::new(),
                            n => payload(kind, n, known),
                        };
                        vec![raw(kind, reserved, stream, length, &payload)]
                    }),
                }));
            }
        }
    }
    out
}

fn wrong(
    state: State,
    what: &str,
    expected: Expected,
    frames: impl Fn(&Known) -> Vec<(u8, u64, Vec<u8>)> + 'static,
) -> Case {
    Case {
        what: format!("{state:?}: {what}"),
        state,
        expected,
        frames: Box::new(move |known| {
            let frames = frames(known);
            let raw = |(kind, stream, payload): &(u8, u64, Vec<u8>)| raw(*kind, 0, *stream, payload.len(), payload);
            frames.iter().map(raw).collect()
        }),
    }
}

/// HELLO after `change`, which the endpoint must not take.
fn hello(what: &str, change: fn(&mut Hello)) -> Case {
    wrong(State::Silent, what, Expected::Unanswered, move |known| {
        let mut hello = known.hello.clone();
        change(&mut hello);
        let mut out = BytesMut::new();
        frame::encode(&Frame::Hello(hello), &mut out);
        vec![(kind::HELLO, 0, out[FRAME_HEADER_BYTES..].to_vec())]
    })
}

/// Payloads of the right length that say what nobody may say, or too much of what one may.
pub fn values() -> Vec<Case> {
    use State::{Draining, Idle, Opened, Silent};
    /// More than a session may say for nothing at once, and in the time that it takes.
    const FLOOD: usize = 3_000;
    /// More than the browser, which reads nothing, and the sockets before it make room for, and the window with that.
    const BEYOND_CREDIT_BYTES: u64 = 64 << 20;
    let says = |state, what: &str, expected, kind, payload: &'static [u8]| {
        let on_stream = COLUMNS.contains(&kind);
        wrong(state, what, expected, move |known| {
            let stream = if kind == kind::OPEN {
                101
            } else {
                known.stream * u64::from(on_stream)
            };
            vec![(kind, stream, payload.to_vec())]
        })
    };
    let acks = |what: &str, change: fn(u64) -> u64| {
        wrong(Opened, what, PROTOCOL, move |known| {
            vec![(kind::ACK, 0, change(known.received).to_be_bytes().to_vec())]
        })
    };
    let all = u64::MAX.to_be_bytes();
    let goodbye = move |reason: u8| [&all[..], &[0, reason]].concat();
    vec![
        hello("another member", |h| h.member[0] ^= 1),
        hello("another link", |h| (h.link, h.links) = (1, 2)),
        hello("a link beyond all", |h| h.link = h.links),
        hello("more links than before", |h| h.links += 1),
        hello("an old epoch", |h| h.epoch = 1),
        hello("no epoch", |h| h.epoch = 0),
        hello("no name for a fresh session", |h| h.fresh = [0; 16]),
        hello("versions to come", |h| (h.version_min, h.version_max) = (2, u8::MAX)),
        hello("no version", |h| (h.version_min, h.version_max) = (1, 0)),
        wrong(Silent, "HELLO with flags", Expected::Unanswered, |known| {
            let mut payload = payload(kind::HELLO, 76, known).to_vec();
            payload[3] = 1;
            vec![(kind::HELLO, 0, payload)]
        }),
        wrong(
            Silent,
            "HELLO with a TLV that may not be ignored",
            Expected::Unanswered,
            |known| {
                let mut payload = payload(kind::HELLO, 79, known).to_vec();
                payload[76] = 2;
                vec![(kind::HELLO, 0, payload)]
            },
        ),
        acks("ACK of what was never sent", |received| received + 1_000_000),
        acks("ACK within a frame", |received| received - 1),
        acks("ACK that goes back", |_| 1),
        says(Idle, "OPEN of no kind", PROTOCOL, kind::OPEN, &[0; 13]),
        says(
            Idle,
            "OPEN of a kind to come",
            PROTOCOL,
            kind::OPEN,
            &[6, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ),
        says(
            Idle,
            "OPEN of a browser's kind",
            PROTOCOL,
            kind::OPEN,
            b"\x01\0\0\0\0\x01\0\0\0\0\0\x16\x04site",
        ),
        says(
            Idle,
            "OPEN with flags",
            PROTOCOL,
            kind::OPEN,
            &[4, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ),
        says(
            Idle,
            "OPEN of a relay to a port",
            PROTOCOL,
            kind::OPEN,
            &[4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 22, 0],
        ),
        says(
            Idle,
            "OPEN with a TLV cut short",
            PROTOCOL,
            kind::OPEN,
            &[4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 33],
        ),
        wrong(Idle, "OPEN below an earlier one", PROTOCOL, |known| {
            let open = payload(kind::OPEN, 13, known).to_vec();
            vec![(kind::OPEN, 103, open.clone()), (kind::OPEN, 101, open)]
        }),
        says(
            Idle,
            "SETTINGS of version 0",
            PROTOCOL,
            kind::SETTINGS,
            &[0, 0, 0, 0, 0, 0, 0, 1],
        ),
        says(
            Idle,
            "SETTINGS in no parts",
            PROTOCOL,
            kind::SETTINGS,
            &[0, 0, 0, 2, 0, 0, 0, 0],
        ),
        says(
            Idle,
            "SETTINGS without their first part",
            PROTOCOL,
            kind::SETTINGS,
            &[0, 0, 0, 2, 0, 1, 0, 2],
        ),
        wrong(Idle, "SETTINGS that are too long", PROTOCOL, |_| {
            let part = |n: u16| {
                let head = [&[0, 0, 0, 2][..], &n.to_be_bytes(), &[255, 255]].concat();
                (kind::SETTINGS, 0, [head, vec![b' '; 16_000]].concat())
            };
            (0..300).map(part).collect()
        }),
        wrong(Idle, "GOAWAY of a reason to come", PROTOCOL, move |_| {
            vec![(kind::GOAWAY, 0, goodbye(5))]
        }),
        wrong(Opened, "GOAWAY that blames the endpoint", Expected::MayEnd, move |_| {
            vec![(kind::GOAWAY, 0, goodbye(2))]
        }),
        wrong(
            Draining,
            "GOAWAY that blames the endpoint",
            Expected::MayEnd,
            move |_| vec![(kind::GOAWAY, 0, goodbye(3))],
        ),
        says(Opened, "RESET without a code", PROTOCOL, kind::RESET, &[0, 0]),
        says(Opened, "RESET of a code to come", PROTOCOL, kind::RESET, &[0, 18]),
        says(
            State::Asked,
            "OPENED of a family to come",
            PROTOCOL,
            kind::OPENED,
            &[5; 27],
        ),
        wrong(Opened, "DATA up to the credit", Expected::GoesOn, |known| {
            data(known, known.credit)
        }),
        wrong(Opened, "DATA beyond every credit", PROTOCOL, |known| {
            data(known, BEYOND_CREDIT_BYTES)
        }),
        wrong(Idle, "PINGs without end", LIMIT, |_| {
            vec![(kind::PING, 0, vec![0; 8]); FLOOD]
        }),
        wrong(Opened, "CREDITs that raise nothing", LIMIT, |known| {
            vec![(kind::CREDIT, known.stream, vec![0; 8]); FLOOD]
        }),
        wrong(Opened, "ACKs without end", Expected::GoesOn, |known| {
            vec![(kind::ACK, 0, known.received.to_be_bytes().to_vec()); FLOOD]
        }),
    ]
}

/// As many as it may have open, in one write.
pub fn all_streams_at_once() -> Case {
    wrong(State::Idle, "all streams at once", Expected::GoesOn, |known| {
        let open = payload(kind::OPEN, 13, known).to_vec();
        let ids = (0..CLIENT_STREAMS_MAX as u64).map(|n| 2 * n + 1);
        ids.map(|id| (kind::OPEN, id, open.clone())).collect()
    })
}

fn data(known: &Known, bytes: u64) -> Vec<(u8, u64, Vec<u8>)> {
    let whole = FRAME_PAYLOAD_BYTES_MAX as u64;
    let pieces = (0..bytes.div_ceil(whole)).map(|n| whole.min(bytes - n * whole));
    pieces
        .map(|n| (kind::DATA, known.stream, vec![b'x'; n as usize]))
        .collect()
}
