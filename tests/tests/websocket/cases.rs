//! What a client may say to a WebSocket server, rightly and wrongly (RFC 6455, RFC 7692).

use tests::body;
use tests::websocket::{BINARY, CLOSE, PING, PONG, TEXT};

use crate::Ended;

const CONTINUATION: u8 = 0;
const FIN: u8 = 0x80;
/// Of the first frame of a compressed message.
const RSV1: u8 = 0x40;
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// Both ends of each class of lengths, and of what the tunnel cuts into frames of its own.
const LENGTHS: [usize; 22] = [
    0,
    1,
    2,
    124,
    125,
    126,
    127,
    128,
    255,
    256,
    1_000,
    4_096,
    16_359,
    16_372,
    16_384,
    32_768,
    65_534,
    65_535,
    65_536,
    65_537,
    131_072,
    1 << 20,
];

/// After its last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client closes with 1000.
    Close,
    /// It has sent a Close.
    Closed,
    /// It ends its direction without.
    Cut,
}

pub struct Case {
    pub name: String,
    /// Further fields of the handshake; one that the usual ones have stands in its place, and goes if it has no value.
    pub fields: Vec<(&'static str, &'static str)>,
    /// Bytes, and how many frames of the server are waited for then. What the server should not stand has 1: it closes.
    pub steps: Vec<(Vec<u8>, usize)>,
    /// How many bytes are written at a time.
    pub piece: usize,
    pub end: End,
    /// How the server is told to end the connection, without a close frame.
    pub server_ends: Option<Ended>,
}

fn case(name: impl Into<String>, steps: Vec<(Vec<u8>, usize)>) -> Case {
    Case {
        name: name.into(),
        fields: Vec::new(),
        steps,
        piece: usize::MAX,
        end: End::Close,
        server_ends: None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
    Shortest,
    Of16Bits,
    Of64Bits,
}

fn encoded(first: u8, payload: &[u8], mask: Option<[u8; 4]>, length: Length) -> Vec<u8> {
    let mut frame = vec![first];
    let bit = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        n if n <= 125 && length == Length::Shortest => frame.push(bit | n as u8),
        n if n <= 65_535 && length != Length::Of64Bits => {
            frame.push(bit | 126);
            frame.extend((n as u16).to_be_bytes());
        }
        n => {
            frame.push(bit | 127);
            frame.extend((n as u64).to_be_bytes());
        }
    }
    frame.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    encoded(first, payload, Some(MASK), Length::Shortest)
}

/// Of what a message of this type may hold.
fn content(opcode: u8, length: usize) -> Vec<u8> {
    match opcode {
        TEXT => (0..length).map(|at| b' ' + (at % 95) as u8).collect(),
        _ => body::bytes(7, length),
    }
}

/// A message in so many frames. `between` follows the first.
fn fragments(opcode: u8, payload: &[u8], count: usize, between: &[u8]) -> Vec<u8> {
    let size = payload.len().div_ceil(count).max(1);
    let mut bytes = Vec::new();
    for number in 0..count {
        let part = &payload[(number * size).min(payload.len())..((number + 1) * size).min(payload.len())];
        let opcode = if number == 0 { opcode } else { CONTINUATION };
        let fin = if number + 1 == count { FIN } else { 0 };
        bytes.extend(frame(fin | opcode, part));
        if number == 0 {
            bytes.extend(between);
        }
    }
    bytes
}

/// Content of a compressed message: stored blocks, and what remains of the empty one at its end (RFC 7692 section 7.2.1).
fn stored(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in content.chunks(65_535) {
        let length = part.len() as u16;
        out.push(0);
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(part);
    }
    out.push(0);
    out
}

pub fn all() -> Vec<Case> {
    let groups = [
        messages(),
        fragmented(),
        control(),
        forbidden(),
        closing(),
        text(),
        compressed(),
        cut(),
        left(),
        handshakes(),
    ];
    groups.into_iter().flatten().collect()
}

fn messages() -> Vec<Case> {
    let mut cases = Vec::new();
    for opcode in [TEXT, BINARY] {
        for length in LENGTHS {
            let bytes = frame(FIN | opcode, &content(opcode, length));
            cases.push(case(format!("message {opcode} of {length}"), vec![(bytes, 1)]));
        }
        for mask in [[0; 4], [255; 4], [1, 0, 0, 0], [0, 0, 0, 128]] {
            for length in [5, 70_000] {
                let bytes = encoded(FIN | opcode, &content(opcode, length), Some(mask), Length::Shortest);
                cases.push(case(
                    format!("message {opcode} of {length}, mask {mask:?}"),
                    vec![(bytes, 1)],
                ));
            }
        }
        for (encoding, length, name) in [
            (Length::Of16Bits, 0, "16 bits"),
            (Length::Of16Bits, 125, "16 bits"),
            (Length::Of64Bits, 0, "64 bits"),
            (Length::Of64Bits, 125, "64 bits"),
            (Length::Of64Bits, 126, "64 bits"),
            (Length::Of64Bits, 65_535, "64 bits"),
        ] {
            let bytes = encoded(FIN | opcode, &content(opcode, length), Some(MASK), encoding);
            cases.push(case(
                format!("message {opcode}, length {length} in {name}"),
                vec![(bytes, 1)],
            ));
        }
        let many: Vec<u8> = (0..100)
            .flat_map(|n| frame(FIN | opcode, &content(opcode, n)))
            .collect();
        cases.push(case(format!("100 messages {opcode} at once"), vec![(many, 100)]));
        let turns = (0..10).map(|n| (frame(FIN | opcode, &content(opcode, n * 1_000)), 1));
        cases.push(case(format!("10 messages {opcode} in turn"), turns.collect()));
        for (length, piece) in [(3, 1), (300, 1), (300, 7), (70_000, 1_000)] {
            let bytes = frame(FIN | opcode, &content(opcode, length));
            cases.push(Case {
                piece,
                ..case(
                    format!("message {opcode} of {length} in pieces of {piece}"),
                    vec![(bytes, 1)],
                )
            });
        }
    }
    cases
}

fn fragmented() -> Vec<Case> {
    let mut cases = Vec::new();
    for opcode in [TEXT, BINARY] {
        for length in [0, 1, 125, 126, 70_000] {
            for count in [2, 3, 10] {
                for (between, frames, name) in [
                    (vec![], 1, "nothing"),
                    (frame(FIN | PING, b"between"), 2, "a ping"),
                    (frame(FIN | PONG, b"between"), 1, "a pong"),
                ] {
                    let bytes = fragments(opcode, &content(opcode, length), count, &between);
                    let name = format!("message {opcode} of {length} in {count}, {name} between");
                    cases.push(case(name, vec![(bytes, frames)]));
                }
            }
        }
        let bytes = fragments(opcode, &content(opcode, 1 << 20), 64, &[]);
        cases.push(case(format!("message {opcode} of 1 MiB in 64"), vec![(bytes, 1)]));
        let bytes = fragments(opcode, &content(opcode, 50), 5, &frame(FIN | PING, b"between"));
        cases.push(Case {
            piece: 1,
            ..case(format!("message {opcode} in 5, byte by byte"), vec![(bytes, 2)])
        });
    }
    cases
}

fn control() -> Vec<Case> {
    let mut cases = Vec::new();
    for length in [0, 1, 124, 125] {
        let payload = content(BINARY, length);
        cases.push(case(
            format!("ping of {length}"),
            vec![(frame(FIN | PING, &payload), 1)],
        ));
        cases.push(case(
            format!("pong of {length}"),
            vec![(frame(FIN | PONG, &payload), 0)],
        ));
    }
    let pings = (0..10).flat_map(|n| frame(FIN | PING, &[n; 3])).collect();
    cases.push(case("10 pings at once", vec![(pings, 10)]));
    let both = [frame(FIN | PONG, b"x"), frame(FIN | PING, b"y")].concat();
    cases.push(case("a pong and a ping", vec![(both, 1)]));
    cases
}

/// What no server should stand.
fn forbidden() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut fatal = |name: String, bytes: Vec<u8>| cases.push(case(name, vec![(bytes, 1)]));
    for opcode in (3..=7).chain(11..=15) {
        for (fin, length) in [(FIN, 0), (FIN, 5), (0, 5)] {
            let bytes = frame(fin | opcode, &content(BINARY, length));
            fatal(format!("opcode {opcode} of {length}, fin {}", fin != 0), bytes);
        }
    }
    for reserved in 1..=7u8 {
        for opcode in [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG] {
            let bytes = frame(FIN | reserved << 4 | opcode, b"");
            fatal(format!("opcode {opcode} with reserved bits {reserved}"), bytes);
        }
    }
    for opcode in [TEXT, BINARY, CLOSE, PING, PONG] {
        for length in [0, 5] {
            let bytes = encoded(FIN | opcode, &content(TEXT, length), None, Length::Shortest);
            fatal(format!("opcode {opcode} of {length} without a mask"), bytes);
        }
    }
    for opcode in [CLOSE, PING, PONG] {
        fatal(format!("control {opcode} in fragments"), frame(opcode, b"\x03\xe8"));
        fatal(format!("control {opcode} of 126"), frame(FIN | opcode, &[0; 126]));
        // Who stands it has to say something: the answer to the ping.
        let wide = |length| {
            let wide = encoded(FIN | opcode, b"\x03\xe8", Some(MASK), length);
            [wide, frame(FIN | PING, b"there?")].concat()
        };
        fatal(format!("control {opcode}, length in 16 bits"), wide(Length::Of16Bits));
        fatal(format!("control {opcode}, length in 64 bits"), wide(Length::Of64Bits));
    }
    let start = frame(TEXT, b"a");
    for (name, next) in [
        ("a message", frame(FIN | TEXT, b"b")),
        ("another type", frame(FIN | BINARY, b"b")),
        ("another start", frame(TEXT, b"b")),
    ] {
        fatal(format!("{name} within a message"), [&start[..], &next].concat());
    }
    for fin in [FIN, 0] {
        fatal(format!("a continuation of nothing, fin {}", fin != 0), frame(fin, b"x"));
    }
    for (name, length) in [
        ("too long", 1 << 40),
        ("half of all", 1u64 << 63),
        ("the longest", u64::MAX),
    ] {
        let mut bytes = vec![FIN | BINARY, 0x80 | 127];
        bytes.extend(length.to_be_bytes());
        bytes.extend(MASK);
        fatal(format!("a length that is {name}"), bytes);
    }
    let served = (frame(FIN | TEXT, b"first"), 1);
    cases.push(case("served before", vec![served, (frame(FIN | 3, b""), 1)]));
    cases
}

fn closing() -> Vec<Case> {
    let close = |name: String, bytes: Vec<u8>| Case {
        end: End::Closed,
        ..case(name, vec![(bytes, 1)])
    };
    let with = |code: u16, reason: &[u8]| frame(FIN | CLOSE, &[&code.to_be_bytes()[..], reason].concat());
    let mut cases = Vec::new();
    let codes = [
        0, 999, 1016, 1100, 1999, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65_535,
    ];
    for code in (1000..=1015).chain(codes) {
        cases.push(close(format!("close {code}"), with(code, b"")));
    }
    for length in [1, 2, 122, 123, 124] {
        let reason = content(TEXT, length);
        cases.push(close(format!("close with a reason of {length}"), with(1000, &reason)));
    }
    for (name, reason) in [
        ("text", "grün".as_bytes()),
        ("no text", b"\xff"),
        ("half a letter", b"\xc3"),
    ] {
        cases.push(close(format!("close with a reason that is {name}"), with(1000, reason)));
    }
    cases.push(close("close without a code".into(), frame(FIN | CLOSE, b"")));
    cases.push(close("close with half a code".into(), frame(FIN | CLOSE, b"\x03")));
    for (name, after) in [
        ("a message", frame(FIN | TEXT, b"late")),
        ("a ping", frame(FIN | PING, b"late")),
        ("another close", with(1001, b"")),
        ("no frame", vec![0xff; 100]),
    ] {
        cases.push(close(
            format!("{name} after a close"),
            [with(1000, b""), after].concat(),
        ));
    }
    let within = [frame(TEXT, b"a"), with(1000, b"")].concat();
    cases.push(close("close within a message".into(), within));
    cases
}

/// UTF-8 (RFC 3629), good and bad.
fn text() -> Vec<Case> {
    let good: [&[u8]; 10] = [
        "κόσμε".as_bytes(),
        b"\0",
        b"\x7f",
        b"\xc2\x80",
        b"\xdf\xbf",
        b"\xe0\xa0\x80",
        b"\xed\x9f\xbf\xee\x80\x80",
        b"\xef\xbf\xbf",
        b"\xf0\x90\x80\x80",
        b"\xf4\x8f\xbf\xbf",
    ];
    let bad: [&[u8]; 18] = [
        b"\x80",
        b"\xbf\xbf",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xc3",
        b"\xc3(",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xf0\x80\x80\x80",
        b"\xf0\x9f\x98",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xfc\x84\x80\x80\x80\x80",
        b"\xfe",
        b"\xff",
    ];
    let mut cases = Vec::new();
    for (kind, texts) in [("good", &good[..]), ("bad", &bad[..])] {
        for bytes in texts {
            let within = [b"before ", *bytes, b" after"].concat();
            for (place, payload) in [("alone", bytes.to_vec()), ("within", within)] {
                let name = format!("{kind} text {bytes:02x?} {place}");
                cases.push(case(name.clone(), vec![(frame(FIN | TEXT, &payload), 1)]));
                if place == "alone" && payload.len() > 1 {
                    let bytes = fragments(TEXT, &payload, payload.len(), &[]);
                    cases.push(case(format!("{name}, a frame each byte"), vec![(bytes, 1)]));
                }
            }
        }
    }
    cases
}

fn compressed() -> Vec<Case> {
    const OFFERS: [&str; 12] = [
        "permessage-deflate",
        "permessage-deflate; client_no_context_takeover",
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; server_max_window_bits=10",
        "permessage-deflate; client_max_window_bits=12; server_max_window_bits=12",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; unknown",
        "permessage-bzip2, permessage-deflate",
        "permessage-deflate; server_max_window_bits=10, permessage-deflate",
        "x-webkit-deflate-frame",
    ];
    /// "Hello", as RFC 7692 section 7.2.3.1 has it, again in the same context, and as a last block.
    const HELLO: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
    const AGAIN: &[u8] = b"\xf2\x00\x11\x00\x00";
    const FINAL: &[u8] = b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00";
    let mut cases = Vec::new();
    for offer in OFFERS {
        let mut with = |name: &str, steps| {
            cases.push(Case {
                fields: vec![("Sec-WebSocket-Extensions", offer)],
                ..case(format!("{name}, {offer}"), steps)
            });
        };
        let hello = || (frame(FIN | RSV1 | TEXT, HELLO), 1);
        with("Hello", vec![hello(), hello()]);
        with("nothing", vec![(frame(FIN | RSV1 | BINARY, &stored(b"")), 1)]);
        let long = stored(&content(BINARY, 100_000));
        with("a long message", vec![(frame(FIN | RSV1 | BINARY, &long), 1)]);
        let parts = fragments(RSV1 | TEXT, &stored(&content(TEXT, 1_000)), 3, &frame(FIN | PING, b"p"));
        with("in fragments with a ping", vec![(parts, 2)]);
        with("uncompressed", vec![(frame(FIN | TEXT, b"Hello"), 1)]);
    }
    let mut with = |name: &str, steps| {
        cases.push(Case {
            fields: vec![("Sec-WebSocket-Extensions", OFFERS[0])],
            ..case(format!("{name}, compressed"), steps)
        });
    };
    let taken_over = vec![
        (frame(FIN | RSV1 | TEXT, HELLO), 1),
        (frame(FIN | RSV1 | TEXT, AGAIN), 1),
    ];
    with("the same again", taken_over);
    with("a last block", vec![(frame(FIN | RSV1 | TEXT, FINAL), 1)]);
    with("no such block", vec![(frame(FIN | RSV1 | TEXT, b"\x07\xff\xff"), 1)]);
    with("no text", vec![(frame(FIN | RSV1 | TEXT, &stored(b"\xff")), 1)]);
    with("a ping", vec![(frame(FIN | RSV1 | PING, b""), 1)]);
    with("other bits", vec![(frame(FIN | 0x20 | TEXT, b""), 1)]);
    let second = [frame(RSV1 | TEXT, &HELLO[..3]), frame(FIN | RSV1, &HELLO[3..])].concat();
    with("a continuation that says so", vec![(second, 1)]);
    cases
}

/// The client leaves in the middle.
fn cut() -> Vec<Case> {
    let mut cases = vec![Case {
        end: End::Cut,
        ..case("cut before the first frame", vec![])
    }];
    for length in [5, 126, 65_536] {
        let whole = frame(FIN | BINARY, &content(BINARY, length));
        for at in [1, 2, 3, 5, 8, 10] {
            cases.push(Case {
                end: End::Cut,
                ..case(
                    format!("message of {length} cut after {at}"),
                    vec![(whole[..at].to_vec(), 0)],
                )
            });
        }
        cases.push(Case {
            end: End::Cut,
            ..case(format!("cut after a message of {length}"), vec![(whole, 1)])
        });
    }
    cases
}

/// The server leaves: what is written for it does what these messages say.
fn left() -> Vec<Case> {
    let mut cases = Vec::new();
    for (word, ended) in [("FIN", Ended::Cleanly), ("RST", Ended::ByReset)] {
        let told = frame(FIN | TEXT, word.as_bytes());
        for (name, before) in [
            ("at once", vec![]),
            (
                "after a message",
                vec![(frame(FIN | BINARY, &content(BINARY, 70_000)), 1)],
            ),
        ] {
            let steps = before.into_iter().chain([(told.clone(), 1)]).collect();
            cases.push(Case {
                end: End::Closed,
                server_ends: Some(ended),
                ..case(format!("{word} {name}"), steps)
            });
        }
    }
    cases
}

fn handshakes() -> Vec<Case> {
    let fields: [(&str, &[(&str, &str)]); 17] = [
        ("a protocol", &[("Sec-WebSocket-Protocol", "chat")]),
        ("two protocols", &[("Sec-WebSocket-Protocol", "chat, superchat")]),
        (
            "two lines of protocols",
            &[
                ("Sec-WebSocket-Protocol", "chat"),
                ("Sec-WebSocket-Protocol", "superchat"),
            ],
        ),
        ("an unknown protocol", &[("Sec-WebSocket-Protocol", "nobody-speaks-it")]),
        ("an origin", &[("Origin", "http://other.test")]),
        (
            "cookies and credentials",
            &[("Cookie", "a=b; c=d"), ("Authorization", "Basic eDp5")],
        ),
        ("an old version", &[("Sec-WebSocket-Version", "8")]),
        ("a version of the future", &[("Sec-WebSocket-Version", "14")]),
        ("no version", &[("Sec-WebSocket-Version", "")]),
        ("no key", &[("Sec-WebSocket-Key", "")]),
        ("a short key", &[("Sec-WebSocket-Key", "c2hvcnQ=")]),
        ("a key that is none", &[("Sec-WebSocket-Key", "not base64!")]),
        ("no Upgrade", &[("Upgrade", "")]),
        ("no Connection", &[("Connection", "")]),
        ("another case", &[("Upgrade", "WebSocket"), ("Connection", "upgrade")]),
        ("a list of options", &[("Connection", "keep-alive, Upgrade")]),
        (
            "a bad extension",
            &[("Sec-WebSocket-Extensions", "permessage-deflate; =")],
        ),
    ];
    let hello = || vec![(frame(FIN | TEXT, b"Hello"), 1)];
    let cases = fields.into_iter().map(|(name, fields)| Case {
        fields: fields.to_vec(),
        ..case(format!("handshake with {name}"), hello())
    });
    cases.collect()
}
