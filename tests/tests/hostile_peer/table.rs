//! What a hostile peer says, in which state of its link, and what the protocol says of it. Written from the protocol's
//! text: every frame type, known or not, at both sides of each bound of its payload, for each stream that it may name.
//! `side` is whose place the hostile peer takes.

use bytes::{BufMut, Bytes, BytesMut};
use dataplane::limits::{CLIENT_STREAMS_MAX, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, FRAME_TEXT_BYTES_MAX};
use dataplane::mux::frame::{self, Frame, kind};
use dataplane::mux::{Hello, Kind, Side};

/// States that a peer can bring the other side's session into. Streams are what browsers ask for: the endpoint opens them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// TLS is up, nothing was said.
    Silent,
    /// HELLO and the frame arrive in one record: before the endpoint has answered, or as the first of all to `sc`.
    Greeting,
    /// Both HELLOs are exchanged, no stream.
    Idle,
    /// A stream that it opened has been refused; `sc` is reset what leads nowhere.
    Refused,
    /// A browser's CONNECT is under way, and is not answered.
    Asked,
    /// The same, after OPENED.
    Opened,
    /// Its own FIN followed.
    FinSaid,
    /// The other side's FIN followed.
    FinHeard,
    /// Its own RESET followed.
    ResetSaid,
    /// A browser's request was said whole, and is not answered.
    Requested,
    /// FIN in both directions.
    BothFins,
    /// As `Opened`, after its GOAWAY.
    Draining,
    /// As `Opened`, and `sc` offers the session over a second connection, on which nothing was said. Of HELLOs alone.
    Resuming,
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
    fn row(self, side: Side) -> &'static [u8; 9] {
        match (side, self) {
            (_, Self::Silent | Self::Greeting | Self::Idle | Self::Resuming) => b"eeeeeeeee",
            (_, Self::Refused | Self::ResetSaid | Self::BothFins) => b"ddddddddd",
            (Side::Client, Self::Asked) => b"eeaaaeeae",
            (Side::Endpoint, Self::Asked) => b"aaaaeeeae",
            (_, Self::FinSaid) | (Side::Endpoint, Self::Requested) => b"eeaaeeeae",
            (Side::Endpoint, Self::Opened | Self::Draining | Self::Resumed) => b"aaaaeaeae",
            // What came before the site's FIN was a request: too late for START_TLS.
            (_, Self::FinHeard) => b"aaaaeeeae",
            (Side::Client, Self::Opened | Self::Requested | Self::Draining | Self::Resumed) => b"aaaaeeeae",
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
    /// The connection ends without a word: there is no session yet.
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
type Says = Box<dyn Fn(&Known) -> Vec<Bytes> + Send + Sync>;

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
    /// One that the other side could open, above all that were.
    NextOther,
    None,
}

/// A stream that this side could open, above all that were.
fn next_of(side: Side) -> u64 {
    match side {
        Side::Client => 101,
        Side::Endpoint => 102,
    }
}

/// A kind of streams without a site that this side may open.
fn siteless_of(side: Side) -> Kind {
    match side {
        Side::Client => Kind::Relay,
        Side::Endpoint => Kind::Probe,
    }
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
fn payload(side: Side, kind: u8, length: usize, known: &Known) -> BytesMut {
    let mut out = BytesMut::new();
    match kind {
        kind::HELLO => {
            frame::encode(&Frame::Hello(known.hello.clone()), &mut out);
            out = out.split_off(FRAME_HEADER_BYTES);
        }
        kind::OPEN => out.put_slice(&open(siteless_of(side) as u8, 0, b"", 0, b"")),
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

/// A payload of OPEN.
fn open(kind: u8, flags: u8, host: &[u8], port: u16, tlvs: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, flags, 0, 0, 0, 1, 0, 1, 0, 0];
    out.put_u16(port);
    out.put_u8(host.len() as u8);
    [&out, host, tlvs].concat()
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

fn expected(side: Side, state: State, kind: u8, reserved: u8, target: Target, length: usize) -> Expected {
    let of_session = matches!(kind, kind::HELLO | kind::ACK..=kind::GOAWAY);
    let named = kind >= kind::EXTENSIONS || of_session == (target == Target::None);
    let fits = length <= FRAME_PAYLOAD_BYTES_MAX && reserved == 0 && fits(kind, length) && named;
    match (state, kind) {
        (State::Silent, kind::HELLO) if fits => return Expected::GoesOn,
        (State::Silent, _) => return Expected::Unanswered,
        (State::Greeting, _) if side == Side::Client => return Expected::Unanswered,
        _ if !fits => return PROTOCOL,
        (State::Draining, kind::OPEN | kind::GOAWAY) => return PROTOCOL,
        (_, kind::EXTENSIONS..) => return Expected::GoesOn,
        (_, kind::HELLO) => return PROTOCOL,
        (_, kind::SETTINGS_ACK) if side == Side::Client => return PROTOCOL,
        (_, kind::SETTINGS) if side == Side::Endpoint => return PROTOCOL,
        (_, kind::GOAWAY) => return Expected::MayEnd,
        _ if of_session => return Expected::GoesOn,
        _ => {}
    }
    match (target, COLUMNS.iter().position(|k| *k == kind)) {
        (Target::NextOwn, None) => Expected::GoesOn,
        (Target::Stream, Some(column)) if state.row(side)[column] == b'e' => PROTOCOL,
        // Its last stream: nothing keeps the link. A site answers a FIN with its own, a browser need not.
        (Target::Stream, Some(_)) if state == State::Draining && kind == kind::RESET => Expected::MayEnd,
        (Target::Stream, Some(_)) if state == State::Draining && kind == kind::FIN && side == Side::Endpoint => {
            Expected::MayEnd
        }
        (Target::Stream, Some(_)) => Expected::GoesOn,
        _ => PROTOCOL,
    }
}

/// Everything that a frame's type, length and stream can be, in every state.
pub fn cells(side: Side) -> Vec<Case> {
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
                    expected: expected(side, state, kind, reserved, target, length),
                    frames: Box::new(move |known| {
                        let stream = match target {
                            Target::Stream => known.stream,
                            Target::NextOwn => next_of(side),
                            // Of two neighbours one is each side's.
                            Target::NextOther => next_of(side) ^ 3,
                            Target::None => 0,
                        };
                        let payload = match length {
                            n if n > FRAME_PAYLOAD_BYTES_MAX => BytesMut::new(),
                            n => payload(side, kind, n, known),
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
    frames: impl Fn(&Known) -> Vec<(u8, u64, Vec<u8>)> + Send + Sync + 'static,
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

/// HELLO after `change`, which the other side must not take.
fn hello(what: &str, change: fn(&mut Hello)) -> Case {
    hello_in(State::Silent, what, Expected::Unanswered, change)
}

fn hello_in(state: State, what: &str, expected: Expected, change: fn(&mut Hello)) -> Case {
    wrong(state, what, expected, move |known| {
        let mut hello = known.hello.clone();
        change(&mut hello);
        let mut out = BytesMut::new();
        frame::encode(&Frame::Hello(hello), &mut out);
        vec![(kind::HELLO, 0, out[FRAME_HEADER_BYTES..].to_vec())]
    })
}

/// More than a session may say for nothing at once, and in the time that it takes.
const FLOOD: usize = 3_000;

/// Payloads of the right length that say what nobody may say, or too much of what one may.
pub fn values(side: Side) -> Vec<Case> {
    let mut out = values_of_both(side);
    match side {
        Side::Client => out.extend(values_of_a_client()),
        Side::Endpoint => out.extend(values_of_an_endpoint()),
    }
    out
}

/// One frame, on the state's stream, on the next one if it is OPEN, or on none.
fn says(side: Side, state: State, what: &str, expected: Expected, kind: u8, payload: &[u8]) -> Case {
    let (on_stream, payload) = (COLUMNS.contains(&kind), payload.to_vec());
    wrong(state, what, expected, move |known| {
        let stream = match kind {
            kind::OPEN => next_of(side),
            _ => known.stream * u64::from(on_stream),
        };
        vec![(kind, stream, payload.clone())]
    })
}

fn values_of_both(side: Side) -> Vec<Case> {
    use State::{Draining, Idle, Opened};
    let says = |state, what: &str, kind, payload: &[u8]| says(side, state, what, PROTOCOL, kind, payload);
    let opens = |what: &str, payload: Vec<u8>| says(Idle, what, kind::OPEN, &payload);
    let acks = |what: &str, change: fn(u64) -> u64| {
        wrong(Opened, what, PROTOCOL, move |known| {
            vec![(kind::ACK, 0, change(known.received).to_be_bytes().to_vec())]
        })
    };
    let all = u64::MAX.to_be_bytes();
    let goodbye = move |reason: u8| [&all[..], &[0, reason]].concat();
    let may = siteless_of(side) as u8;
    let other = match side {
        Side::Client => open(Kind::Tcp as u8, 0, b"site", 22, b""),
        Side::Endpoint => open(Kind::Relay as u8, 0, b"", 0, b""),
    };
    vec![
        hello("another member", |h| h.member[0] ^= 1),
        hello("another link", |h| (h.link, h.links) = (h.link + 1, h.links + 1)),
        hello("a link beyond all", |h| h.link = h.links),
        hello("more links than before", |h| h.links += 1),
        hello("no epoch", |h| h.epoch = 0),
        hello("versions to come", |h| (h.version_min, h.version_max) = (2, u8::MAX)),
        hello("no version", |h| (h.version_min, h.version_max) = (1, 0)),
        wrong(State::Silent, "HELLO with flags", Expected::Unanswered, move |known| {
            let mut payload = payload(side, kind::HELLO, 76, known).to_vec();
            payload[3] = 1;
            vec![(kind::HELLO, 0, payload)]
        }),
        wrong(
            State::Silent,
            "HELLO with a TLV that may not be ignored",
            Expected::Unanswered,
            move |known| {
                let mut payload = payload(side, kind::HELLO, 79, known).to_vec();
                payload[76] = 2;
                vec![(kind::HELLO, 0, payload)]
            },
        ),
        acks("ACK of what was never sent", |received| received + 1_000_000),
        acks("ACK within a frame", |received| received - 1),
        acks("ACK that goes back", |_| 1),
        opens("OPEN of no kind", vec![0; 13]),
        opens("OPEN of a kind to come", open(6, 0, b"", 0, b"")),
        opens("OPEN of a kind that only the other side opens", other),
        opens("OPEN with flags", open(may, 1, b"", 0, b"")),
        opens("OPEN of no site at a port", open(may, 0, b"", 22, b"")),
        opens("OPEN with a TLV cut short", open(may, 0, b"", 0, &[2, 0, 33])),
        wrong(Idle, "OPEN below an earlier one", PROTOCOL, move |known| {
            let open = payload(side, kind::OPEN, 13, known).to_vec();
            let id = next_of(side);
            vec![(kind::OPEN, id + 2, open.clone()), (kind::OPEN, id, open)]
        }),
        wrong(Idle, "GOAWAY of a reason to come", PROTOCOL, move |_| {
            vec![(kind::GOAWAY, 0, goodbye(5))]
        }),
        wrong(
            Opened,
            "GOAWAY that blames the other side",
            Expected::MayEnd,
            move |_| vec![(kind::GOAWAY, 0, goodbye(2))],
        ),
        wrong(
            Draining,
            "GOAWAY that blames the other side",
            Expected::MayEnd,
            move |_| vec![(kind::GOAWAY, 0, goodbye(3))],
        ),
        says(Opened, "RESET without a code", kind::RESET, &[0, 0]),
        says(Opened, "RESET of a code to come", kind::RESET, &[0, 18]),
        says(State::Asked, "OPENED of a family to come", kind::OPENED, &[5; 27]),
        wrong(Opened, "DATA up to the credit", Expected::GoesOn, |known| {
            data(known, known.credit)
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

fn values_of_a_client() -> Vec<Case> {
    use State::{Idle, Opened};
    /// More than the browser, which reads nothing, and the sockets before it make room for, and the window with that.
    const BEYOND_CREDIT_BYTES: u64 = 64 << 20;
    let settings = |what: &str, payload| says(Side::Client, Idle, what, PROTOCOL, kind::SETTINGS, payload);
    vec![
        hello("an old epoch", |h| h.epoch = 1),
        hello("no name for a fresh session", |h| h.fresh = [0; 16]),
        settings("SETTINGS of version 0", &[0, 0, 0, 0, 0, 0, 0, 1]),
        settings("SETTINGS in no parts", &[0, 0, 0, 2, 0, 0, 0, 0]),
        settings("SETTINGS without their first part", &[0, 0, 0, 2, 0, 1, 0, 2]),
        wrong(Idle, "SETTINGS that are too long", PROTOCOL, |_| {
            let part = |n: u16| {
                let head = [&[0, 0, 0, 2][..], &n.to_be_bytes(), &[255, 255]].concat();
                (kind::SETTINGS, 0, [head, vec![b' '; 16_000]].concat())
            };
            (0..300).map(part).collect()
        }),
        wrong(Opened, "DATA beyond every credit", PROTOCOL, |known| {
            data(known, BEYOND_CREDIT_BYTES)
        }),
    ]
}

fn values_of_an_endpoint() -> Vec<Case> {
    use State::{Asked, Idle, Opened, Resuming, Silent};
    /// In one write: enough to overflow a stack, were each acted on within the one before.
    const AT_ONCE: usize = 900;
    const NAMES: [&[u8]; 12] = [
        &[b'a'; 255],
        &[b'.'; 255],
        &[0; 255],
        &[0xff; 255],
        b"a b",
        b"http://a",
        b"..",
        b"[::1",
        b"::1%lo",
        b"0x7f.1",
        b"\xe2\x80\xae",
        b"169.254.169.254",
    ];
    let says =
        |state, what: &str, expected, kind, payload: &[u8]| says(Side::Endpoint, state, what, expected, kind, payload);
    let acks = |what: &str, version: u8, n: usize| {
        wrong(Idle, what, Expected::GoesOn, move |_| {
            vec![(kind::SETTINGS_ACK, 0, vec![0, 0, 0, version, 0]); n]
        })
    };
    let flood = |state, what: &str, kind| {
        wrong(state, what, Expected::GoesOn, move |known| {
            let on_stream = u64::from(COLUMNS.contains(&kind));
            vec![(kind, known.stream * on_stream, vec![0; 8]); FLOOD]
        })
    };
    let shakes = |name: &[u8]| [&[name.len() as u8], name, b"\x02h2"].concat();
    let tcp = Kind::Tcp as u8;
    let mut out = vec![
        hello("an epoch to come", |h| h.epoch += 1),
        hello("a session that nobody named", |h| h.session[0] ^= 1),
        hello("no session", |h| h.session = [0; 16]),
        hello_in(
            Silent,
            "HELLO of a fresh session that has received something",
            PROTOCOL,
            |h| {
                h.received = 1;
            },
        ),
        hello_in(Resuming, "HELLO that has received what was never sent", PROTOCOL, |h| {
            h.received += 1_000_000;
        }),
        hello_in(Resuming, "HELLO that has received half a frame", PROTOCOL, |h| {
            h.received -= 1
        }),
        hello_in(Resuming, "HELLO that has received nothing", Expected::GoesOn, |h| {
            h.received = 0;
        }),
        hello_in(Resuming, "HELLO of another member", Expected::Unanswered, |h| {
            h.member[0] ^= 1;
        }),
        acks("SETTINGS_ACKs of rules before the first", 0, AT_ONCE),
        acks("SETTINGS_ACK of rules to come", u8::MAX, 1),
        says(
            Idle,
            "SETTINGS_ACK of no status",
            PROTOCOL,
            kind::SETTINGS_ACK,
            &[0, 0, 0, 1, 2],
        ),
        says(
            Idle,
            "SETTINGS_ACK that refuses the first rules, in no text",
            Expected::GoesOn,
            kind::SETTINGS_ACK,
            b"\0\0\0\x01\x01\xff\0\r\n\x1b[2J",
        ),
        flood(Idle, "PONGs that nobody asked for", kind::PONG),
        flood(Idle, "extensions without end", u8::MAX),
        flood(Opened, "RECALLs without end", kind::RECALL),
        wrong(Asked, "DATA beyond the credit", PROTOCOL, |known| {
            data(known, known.credit + 1)
        }),
        says(
            Idle,
            "OPEN of a site at no port",
            PROTOCOL,
            kind::OPEN,
            &open(tcp, 0, b"site", 0, b""),
        ),
        says(
            Idle,
            "OPEN of no site",
            PROTOCOL,
            kind::OPEN,
            &open(tcp, 0, b"", 80, b""),
        ),
        says(
            Idle,
            "OPEN that shows too much",
            PROTOCOL,
            kind::OPEN,
            &open(
                Kind::Https as u8,
                0,
                b"site",
                443,
                &[&[2, 0, 34][..], &[0; 34]].concat(),
            ),
        ),
        wrong(Idle, "OPENs of names that are none", Expected::GoesOn, move |_| {
            let kinds = [Kind::Tcp, Kind::Http, Kind::Https].map(|kind| kind as u8);
            let opens = NAMES
                .iter()
                .flat_map(|name| kinds.map(|kind| open(kind, 0, name, u16::MAX, b"")));
            let ids = (1..).map(|n| 2 * n);
            ids.zip(opens).map(|(id, open)| (kind::OPEN, id, open)).collect()
        }),
        says(
            Opened,
            "START_TLS with protocols cut short",
            PROTOCOL,
            kind::START_TLS,
            &[0, 9, b'h'],
        ),
        says(
            Opened,
            "START_TLS with a name cut short",
            PROTOCOL,
            kind::START_TLS,
            &[9, b'h'],
        ),
    ];
    out.extend(NAMES.iter().chain([&b"127.0.0.1"[..]].iter()).map(|name| {
        let what = format!("START_TLS to {}", name.escape_ascii());
        says(Opened, &what, Expected::GoesOn, kind::START_TLS, &shakes(name))
    }));
    out
}

/// As many as it may have open, in one write.
pub fn all_streams_at_once() -> Case {
    wrong(State::Idle, "all streams at once", Expected::GoesOn, |known| {
        let open = payload(Side::Client, kind::OPEN, 13, known).to_vec();
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
