//! Test vectors: every frame of the multiplex in hex, and what is rejected at the edges of each layout.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use dataplane::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, FRAME_TEXT_BYTES_MAX};
use dataplane::mux::frame::{self, Frame, Header, Hello, decode, encode, kind};
use dataplane::mux::{Code, GoAwayReason, Kind, Open, Opened, Shown, Timings, TlsReport};

/// What may follow the fixed part of a payload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    Nothing,
    /// Text for people, at most 256 bytes.
    Text,
    /// Bytes up to the end of the frame.
    Bytes,
    /// `type | length | value`.
    Tlvs,
    /// A list of length-prefixed names.
    Names,
}

struct Vector {
    frame: Frame,
    /// Bytes of payload before the tail.
    fixed: usize,
    tail: Tail,
    hex: &'static str,
}

fn text(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

fn vector(frame: Frame, fixed: usize, tail: Tail, hex: &'static str) -> Vector {
    Vector {
        frame,
        fixed,
        tail,
        hex,
    }
}

fn hello() -> Frame {
    Frame::Hello(Hello {
        version_min: 1,
        version_max: 1,
        link: 1,
        links: 2,
        member: [0x11; 16],
        session: [0x22; 16],
        fresh: [0x33; 16],
        epoch: 7,
        received: 0x0102_0304,
        first_credit: 16_384,
    })
}

fn opens() -> [Vector; 3] {
    let https = Open {
        kind: Kind::Https,
        settings: 3,
        credit: 65_536,
        port: 443,
        host: text("site.test"),
        shown: Some(Shown {
            verdict: 0x08,
            leaf: [0x44; 32],
        }),
    };
    let tcp = Open {
        kind: Kind::Tcp,
        port: 8_080,
        host: text("::1"),
        shown: None,
        ..https.clone()
    };
    let probe = Open {
        kind: Kind::Probe,
        port: 0,
        host: Bytes::new(),
        ..tcp.clone()
    };
    [
        vector(
            Frame::Open(2, https),
            22,
            Tail::Tlvs,
            "003a 01 00 0000000000000002 \
             0300000000030001000001bb09736974652e74657374020021084444444444444444444444444444 \
             444444444444444444444444444444444444",
        ),
        vector(
            Frame::Open(4, tcp),
            16,
            Tail::Tlvs,
            "0010 01 00 0000000000000004 010000000003000100001f90033a3a31",
        ),
        vector(
            Frame::Open(6, probe),
            13,
            Tail::Tlvs,
            "000d 01 00 0000000000000006 05000000000300010000000000",
        ),
    ]
}

fn of_streams() -> Vec<Vector> {
    let timings = Timings {
        dns_us: 1,
        connect_us: 2,
        tls_us: 3,
        first_byte_us: 4,
    };
    let opened = Opened {
        family: 4,
        address: [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        port: 80,
        dns_us: 5,
        connect_us: 6,
    };
    let report = TlsReport {
        verdict: 0x0c,
        leaf: [0x55; 32],
        tlvs: Bytes::from_static(b"\x05\x00\x02\x03\x04"),
    };
    let start_tls = Frame::StartTls {
        stream: 2,
        sni: text("site.test"),
        alpn: text("\x08http/1.1"),
    };
    vec![
        vector(
            Frame::Data(2, text("hello")),
            1,
            Tail::Bytes,
            "0005 02 00 0000000000000002 68656c6c6f",
        ),
        vector(Frame::Fin(2, None), 0, Tail::Nothing, "0000 03 00 0000000000000002"),
        vector(
            Frame::Fin(2, Some(timings)),
            16,
            Tail::Nothing,
            "0010 03 00 0000000000000002 00000001000000020000000300000004",
        ),
        vector(
            Frame::Reset(2, Code::SiteReset, text("cut")),
            2,
            Tail::Text,
            "0005 04 00 0000000000000002 0006637574",
        ),
        vector(
            Frame::Credit(2, 0x0001_0000),
            8,
            Tail::Nothing,
            "0008 05 00 0000000000000002 0000000000010000",
        ),
        vector(
            Frame::Opened(4, opened),
            27,
            Tail::Nothing,
            "001b 0c 00 0000000000000004 047f00000100000000000000000000000000500000000500000006",
        ),
        vector(
            start_tls,
            10,
            Tail::Names,
            "0013 0d 00 0000000000000002 09736974652e7465737408687474702f312e31",
        ),
        vector(
            Frame::TlsReport(2, report),
            33,
            Tail::Tlvs,
            "0026 0e 00 0000000000000002 \
             0c55555555555555555555555555555555555555555555555555555555555555550500020304",
        ),
        vector(
            Frame::Recall(2, 4_096),
            8,
            Tail::Nothing,
            "0008 0f 00 0000000000000002 0000000000001000",
        ),
        vector(
            Frame::Return(2, 8_192),
            8,
            Tail::Nothing,
            "0008 10 00 0000000000000002 0000000000002000",
        ),
    ]
}

fn of_sessions() -> Vec<Vector> {
    let settings = Frame::Settings {
        version: 2,
        part: 0,
        parts: 1,
        bytes: text("{}"),
    };
    let settings_ack = Frame::SettingsAck {
        version: 2,
        accepted: false,
        text: text("no"),
    };
    let goaway = Frame::GoAway {
        last: 9,
        reason: GoAwayReason::Shutdown,
        text: text("bye"),
    };
    vec![
        vector(
            hello(),
            76,
            Tail::Tlvs,
            "004c 00 00 0000000000000000 \
             01010000000100021111111111111111111111111111111122222222222222222222222222222222 \
             333333333333333333333333333333330000000000000007000000000102030400004000",
        ),
        vector(
            Frame::Ack(65_536),
            8,
            Tail::Nothing,
            "0008 06 00 0000000000000000 0000000000010000",
        ),
        vector(
            Frame::Ping(*b"12345678"),
            8,
            Tail::Nothing,
            "0008 07 00 0000000000000000 3132333435363738",
        ),
        vector(
            Frame::Pong(*b"12345678"),
            8,
            Tail::Nothing,
            "0008 08 00 0000000000000000 3132333435363738",
        ),
        vector(
            settings,
            8,
            Tail::Bytes,
            "000a 09 00 0000000000000000 00000002000000017b7d",
        ),
        vector(
            settings_ack,
            5,
            Tail::Text,
            "0007 0a 00 0000000000000000 00000002016e6f",
        ),
        vector(
            goaway,
            10,
            Tail::Text,
            "000d 0b 00 0000000000000000 00000000000000090001627965",
        ),
    ]
}

fn vectors() -> Vec<Vector> {
    let mut all = of_sessions();
    all.extend(opens());
    all.extend(of_streams());
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |p: &[u8]| u8::from_str_radix(std::str::from_utf8(p).unwrap_or(""), 16);
    digits.chunks(2).map(|p| pair(p).expect("hex")).collect()
}

/// Header and payload of a vector.
fn parts(v: &Vector) -> (Header, Vec<u8>) {
    let bytes = unhex(v.hex);
    let header = Header::decode(&bytes).expect("a whole header").expect("a valid header");
    (header, bytes[FRAME_HEADER_BYTES..].to_vec())
}

/// Decodes a payload of another length under the same type and stream.
fn with_payload(header: Header, payload: &[u8]) -> Result<Frame, frame::Violation> {
    let length = payload.len();
    decode(Header { length, ..header }, Bytes::copy_from_slice(payload))
}

#[test]
fn every_frame_is_these_bytes() {
    let mut seen = Vec::new();
    for v in vectors() {
        let mut out = BytesMut::new();
        encode(&v.frame, &mut out);
        assert_eq!(hex(&out), v.hex.replace([' ', '\n'], ""), "{:?}", v.frame);
        let (header, payload) = parts(&v);
        assert_eq!(header.length, payload.len());
        assert_eq!(with_payload(header, &payload), Ok(v.frame));
        seen.push(header.kind);
    }
    assert!(
        (kind::HELLO..=kind::RETURN).all(|k| seen.contains(&k)),
        "a type has no vector"
    );
}

#[test]
fn shorter_payloads_are_rejected_at_every_length() {
    for v in vectors() {
        let (header, payload) = parts(&v);
        for n in 0..v.fixed {
            let empty_fin = header.kind == kind::FIN && n == 0;
            assert_eq!(
                with_payload(header, &payload[..n]).is_err(),
                !empty_fin,
                "{header:?} cut to {n}"
            );
        }
        let cut_tail = matches!(v.tail, Tail::Tlvs | Tail::Names);
        for n in v.fixed + 1..payload.len() {
            assert_eq!(
                with_payload(header, &payload[..n]).is_err(),
                cut_tail,
                "{header:?} cut to {n}"
            );
        }
    }
}

#[test]
fn longer_payloads_are_rejected_where_the_layout_ends() {
    for v in vectors() {
        let (header, payload) = parts(&v);
        let with = |tail: &[u8]| with_payload(header, &[&payload, tail].concat());
        match v.tail {
            Tail::Nothing if payload.is_empty() => assert!(with(&[0]).is_err()),
            Tail::Nothing => assert!(with(&[0]).is_err() && with(&[1, 0, 0]).is_err(), "{header:?}"),
            Tail::Text => {
                let room = FRAME_TEXT_BYTES_MAX - (payload.len() - v.fixed);
                assert!(with(&vec![b'x'; room]).is_ok(), "{header:?}");
                assert!(with(&vec![b'x'; room + 1]).is_err(), "{header:?}");
            }
            Tail::Bytes => {
                let room = FRAME_PAYLOAD_BYTES_MAX - payload.len();
                assert!(with(&vec![b'x'; room]).is_ok(), "{header:?}");
            }
            Tail::Tlvs => {
                assert!(with(&[1]).is_err() && with(&[1, 0]).is_err() && with(&[1, 0, 1]).is_err());
                assert!(with(&[0x81, 0, 1, 9]).is_ok(), "{header:?}: odd types may be ignored");
                assert!(with(&[0x80, 0, 1, 9]).is_err(), "{header:?}: even ones may not");
            }
            Tail::Names => assert!(with(&[2, b'h']).is_err() && with(&[2, b'h', b'2']).is_ok()),
        }
    }
}

#[test]
fn a_stream_is_named_exactly_where_it_belongs() {
    for v in vectors() {
        let (header, payload) = parts(&v);
        let other = Header {
            stream: u64::from(header.stream == 0),
            ..header
        };
        assert!(decode(other, Bytes::from(payload)).is_err(), "{other:?}");
    }
}

#[test]
fn headers_are_strict() {
    for n in 0..FRAME_HEADER_BYTES {
        assert!(Header::decode(&vec![0; n]).is_none(), "{n} bytes are no header");
    }
    let header = |length: u16, fourth: u8| {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..2].copy_from_slice(&length.to_be_bytes());
        bytes[3] = fourth;
        Header::decode(&bytes).expect("twelve bytes")
    };
    assert!(header(FRAME_PAYLOAD_BYTES_MAX as u16, 0).is_ok());
    assert!(header(FRAME_PAYLOAD_BYTES_MAX as u16 + 1, 0).is_err());
    assert!(header(u16::MAX, 0).is_err());
    assert!(header(0, 1).is_err());
}

#[test]
fn unknown_types_are_skipped_from_0x80_on_and_only_there() {
    let with = |kind: u8| {
        let header = Header {
            length: 3,
            kind,
            stream: 5,
        };
        decode(header, Bytes::from_static(b"abc"))
    };
    assert!((0x11..0x80).all(|k| with(k).is_err()));
    assert!((0x80..=0xff).all(|k| with(k) == Ok(Frame::Extension)));
    assert!(frame::counted(0x80) && frame::counted(kind::GOAWAY) && !frame::counted(kind::ACK));
}
