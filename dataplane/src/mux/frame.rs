//! Frames of the multiplex: exact layouts, strict decoding, encoding. A header of 12 bytes in network order,
//! `length u16 | type u8 | 0 u8 | stream u64`, then the payload. A TLS record holds whole frames only.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, FRAME_TEXT_BYTES_MAX};

/// The one version of the protocol that this release speaks.
pub const VERSION: u8 = 1;

/// Frame types.
pub mod kind {
    pub const HELLO: u8 = 0x00;
    pub const OPEN: u8 = 0x01;
    pub const DATA: u8 = 0x02;
    pub const FIN: u8 = 0x03;
    pub const RESET: u8 = 0x04;
    pub const CREDIT: u8 = 0x05;
    pub const ACK: u8 = 0x06;
    pub const PING: u8 = 0x07;
    pub const PONG: u8 = 0x08;
    pub const SETTINGS: u8 = 0x09;
    pub const SETTINGS_ACK: u8 = 0x0a;
    pub const GOAWAY: u8 = 0x0b;
    pub const OPENED: u8 = 0x0c;
    pub const START_TLS: u8 = 0x0d;
    pub const TLS_REPORT: u8 = 0x0e;
    pub const RECALL: u8 = 0x0f;
    pub const RETURN: u8 = 0x10;
    /// From here on a receiver counts and skips what it does not know.
    pub const EXTENSIONS: u8 = 0x80;
}

/// What a frame broke, in words for the log and for GOAWAY(protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation(pub &'static str);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Why a stream ended before its time: the same names in RESET, pages, headers, logs and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Code {
    Dns = 1,
    Refused = 2,
    ConnectTimeout = 3,
    Unreachable = 4,
    Tls = 5,
    SiteReset = 6,
    FirstByteTimeout = 7,
    IdleTimeout = 8,
    Denied = 9,
    Limit = 10,
    Protocol = 11,
    Cancelled = 12,
    PeerRestarted = 13,
    TunnelDown = 14,
    Shutdown = 15,
    UpstreamProxy = 16,
    VerdictChanged = 17,
}

impl Code {
    /// Every code with its name, in the order of its number, from 1.
    pub const ALL: [(Self, &'static str); 17] = [
        (Self::Dns, "dns"),
        (Self::Refused, "refused"),
        (Self::ConnectTimeout, "connect-timeout"),
        (Self::Unreachable, "unreachable"),
        (Self::Tls, "tls"),
        (Self::SiteReset, "site-reset"),
        (Self::FirstByteTimeout, "first-byte-timeout"),
        (Self::IdleTimeout, "idle-timeout"),
        (Self::Denied, "denied"),
        (Self::Limit, "limit"),
        (Self::Protocol, "protocol"),
        (Self::Cancelled, "cancelled"),
        (Self::PeerRestarted, "peer-restarted"),
        (Self::TunnelDown, "tunnel-down"),
        (Self::Shutdown, "shutdown"),
        (Self::UpstreamProxy, "upstream-proxy"),
        (Self::VerdictChanged, "verdict-changed"),
    ];

    /// The name that pages, headers, logs and counters show.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize - 1].1
    }

    /// The code of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own)| *own == name).map(|(code, _)| *code)
    }

    fn from_wire(value: u16) -> Option<Self> {
        Self::ALL.get(usize::from(value).checked_sub(1)?).map(|c| c.0)
    }
}

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Opaque bytes; OPENED answers.
    Tcp = 1,
    /// One HTTP/1.1 request and its answer.
    Http = 2,
    /// The same, to a site that `sc` speaks TLS with.
    Https = 3,
    /// Opened by `sc`: opaque bytes to the gateway.
    Relay = 4,
    /// Self-test: echoed.
    Probe = 5,
}

impl Kind {
    fn from_wire(value: u8) -> Option<Self> {
        [Self::Tcp, Self::Http, Self::Https, Self::Relay, Self::Probe]
            .get(usize::from(value).checked_sub(1)?)
            .copied()
    }
}

/// Reasons of GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum GoAwayReason {
    Drain = 0,
    Shutdown = 1,
    Protocol = 2,
    Limit = 3,
    Replaced = 4,
}

impl GoAwayReason {
    fn from_wire(value: u16) -> Option<Self> {
        [Self::Drain, Self::Shutdown, Self::Protocol, Self::Limit, Self::Replaced]
            .get(usize::from(value))
            .copied()
    }
}

/// First frame of a connection, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub version_min: u8,
    pub version_max: u8,
    pub link: u16,
    pub links: u16,
    /// First 16 bytes of SHA-256 of the member's public key.
    pub member: [u8; 16],
    /// The session to resume; zero at first contact.
    pub session: [u8; 16],
    /// The session to use otherwise.
    pub fresh: [u8; 16],
    /// Dials of this link since the process began.
    pub epoch: u64,
    /// Counted bytes parsed since the session began.
    pub received: u64,
    /// Credit that each stream opened towards the sender of this HELLO starts with.
    pub first_credit: u32,
}

/// The verdict and the leaf that a browser was shown before its request (TLV 2 of OPEN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    pub verdict: u8,
    pub leaf: [u8; 32],
}

/// Opens a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    pub kind: Kind,
    /// The rules' version that the stream was decided under.
    pub settings: u32,
    /// What the opener takes before its first CREDIT.
    pub credit: u32,
    pub port: u16,
    /// Name or address literal of the site; empty for `relay` and `probe`.
    pub host: Bytes,
    pub shown: Option<Shown>,
}

/// Answer to OPEN of kind `tcp`: the site is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// 4, 6, or 0 behind an upstream proxy.
    pub family: u8,
    pub address: [u8; 16],
    pub port: u16,
    pub dns_us: u32,
    pub connect_us: u32,
}

/// Times that `sc` reports with FIN of an http(s) stream, in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    pub dns_us: u32,
    pub connect_us: u32,
    pub tls_us: u32,
    pub first_byte_us: u32,
}

/// What `sc` saw when it shook hands with the site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsReport {
    /// A set of bits: 01 expired, 02 not yet valid, 04 wrong name, 08 untrusted, 40 opaque, 80 spoke first.
    pub verdict: u8,
    pub leaf: [u8; 32],
    /// `type u8 | length u16 | value` each, as received.
    pub tlvs: Bytes,
}

/// Any frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Hello(Hello),
    Open(u64, Open),
    Data(u64, Bytes),
    Fin(u64, Option<Timings>),
    Reset(u64, Code, Bytes),
    Credit(u64, u64),
    Ack(u64),
    Ping([u8; 8]),
    Pong([u8; 8]),
    Settings {
        version: u32,
        part: u16,
        parts: u16,
        bytes: Bytes,
    },
    SettingsAck {
        version: u32,
        accepted: bool,
        text: Bytes,
    },
    GoAway {
        last: u64,
        reason: GoAwayReason,
        text: Bytes,
    },
    Opened(u64, Opened),
    StartTls {
        stream: u64,
        sni: Bytes,
        alpn: Bytes,
    },
    TlsReport(u64, TlsReport),
    Recall(u64, u64),
    Return(u64, u64),
    /// A type from 80 on: counted and skipped.
    Extension,
}

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of payload.
    pub length: usize,
    pub kind: u8,
    pub stream: u64,
}

impl Header {
    /// Reads a header; `None` while fewer than 12 bytes are there.
    pub fn decode(bytes: &[u8]) -> Option<Result<Self, Violation>> {
        let h: &[u8; FRAME_HEADER_BYTES] = bytes.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([h[0], h[1]]));
        let stream = u64::from_be_bytes([h[4], h[5], h[6], h[7], h[8], h[9], h[10], h[11]]);
        if length > FRAME_PAYLOAD_BYTES_MAX {
            return Some(Err(Violation("a frame longer than 16,372 bytes")));
        }
        if h[3] != 0 {
            return Some(Err(Violation("a frame header whose fourth byte is not 0")));
        }
        Some(Ok(Self {
            length,
            kind: h[2],
            stream,
        }))
    }

    /// Writes the header into the 12 bytes of head-room before a payload.
    pub fn encode(self, out: &mut [u8; FRAME_HEADER_BYTES]) {
        out[..2].copy_from_slice(&(self.length as u16).to_be_bytes());
        out[2] = self.kind;
        out[3] = 0;
        out[4..].copy_from_slice(&self.stream.to_be_bytes());
    }

    /// Counted frames add 12 + length to the session's byte count and are replayed after a cut.
    pub fn counted(self) -> bool {
        counted(self.kind)
    }
}

/// Whether frames of this type count (HELLO, ACK, PING and PONG do not).
pub fn counted(kind: u8) -> bool {
    !matches!(kind, kind::HELLO | kind::ACK | kind::PING | kind::PONG)
}

const NEEDS_STREAM: Violation = Violation("a stream frame for stream 0");
const NEEDS_NO_STREAM: Violation = Violation("a session frame that names a stream");

/// Decodes one frame from its header and exactly its payload.
///
/// # Errors
/// What the frame broke; the session ends with GOAWAY(protocol).
pub fn decode(header: Header, payload: Bytes) -> Result<Frame, Violation> {
    let id = header.stream;
    let on_stream = matches!(header.kind, kind::OPEN..=kind::CREDIT | kind::OPENED..=kind::RETURN);
    if header.kind >= kind::EXTENSIONS {
        return Ok(Frame::Extension);
    }
    if on_stream != (id != 0) {
        return Err(if on_stream { NEEDS_STREAM } else { NEEDS_NO_STREAM });
    }
    match header.kind {
        kind::DATA if payload.is_empty() => Err(Violation("DATA of length 0")),
        kind::DATA => Ok(Frame::Data(id, payload)),
        kind::CREDIT => Ok(Frame::Credit(id, u64_alone(payload)?)),
        kind::ACK => Ok(Frame::Ack(u64_alone(payload)?)),
        kind::PING => Ok(Frame::Ping(u64_alone(payload)?.to_be_bytes())),
        kind::PONG => Ok(Frame::Pong(u64_alone(payload)?.to_be_bytes())),
        kind::RECALL => Ok(Frame::Recall(id, u64_alone(payload)?)),
        kind::RETURN => Ok(Frame::Return(id, u64_alone(payload)?)),
        kind::FIN => decode_fin(id, payload),
        kind::RESET => decode_reset(id, payload),
        kind::OPEN => decode_open(payload).map(|o| Frame::Open(id, o)),
        kind::OPENED => decode_opened(payload).map(|o| Frame::Opened(id, o)),
        kind::START_TLS => decode_start_tls(id, payload),
        kind::TLS_REPORT => decode_tls_report(payload).map(|r| Frame::TlsReport(id, r)),
        kind::SETTINGS => decode_settings(payload),
        kind::SETTINGS_ACK => decode_settings_ack(payload),
        kind::GOAWAY => decode_goaway(payload),
        kind::HELLO => decode_hello(payload).map(Frame::Hello),
        _ => Err(Violation("an unknown frame type")),
    }
}

const SHORT: Violation = Violation("a frame shorter than its layout");
const LONG: Violation = Violation("a frame longer than its layout");

/// Bounds-checked reader over a payload.
struct Fields(Bytes);

impl Fields {
    fn need(&self, n: usize) -> Result<(), Violation> {
        if self.0.len() < n { Err(SHORT) } else { Ok(()) }
    }
    fn u8(&mut self) -> Result<u8, Violation> {
        self.need(1).map(|()| self.0.get_u8())
    }
    fn u16(&mut self) -> Result<u16, Violation> {
        self.need(2).map(|()| self.0.get_u16())
    }
    fn u32(&mut self) -> Result<u32, Violation> {
        self.need(4).map(|()| self.0.get_u32())
    }
    fn u64(&mut self) -> Result<u64, Violation> {
        self.need(8).map(|()| self.0.get_u64())
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        self.need(N)?;
        let mut out = [0; N];
        self.0.copy_to_slice(&mut out);
        Ok(out)
    }
    fn bytes(&mut self, n: usize) -> Result<Bytes, Violation> {
        self.need(n).map(|()| self.0.split_to(n))
    }
    fn end(self) -> Result<(), Violation> {
        if self.0.is_empty() { Ok(()) } else { Err(LONG) }
    }
    /// A copy: what a stream keeps for its whole life must not keep the link's read buffer alive.
    fn kept(&mut self, n: usize) -> Result<Bytes, Violation> {
        self.bytes(n).map(|slice| Bytes::copy_from_slice(&slice))
    }
    fn text(mut self) -> Result<Bytes, Violation> {
        match self.0.len() {
            n if n > FRAME_TEXT_BYTES_MAX => Err(LONG),
            n => self.kept(n),
        }
    }
}

fn u64_alone(payload: Bytes) -> Result<u64, Violation> {
    let mut f = Fields(payload);
    let value = f.u64()?;
    f.end().map(|()| value)
}

fn decode_fin(id: u64, payload: Bytes) -> Result<Frame, Violation> {
    if payload.is_empty() {
        return Ok(Frame::Fin(id, None));
    }
    let mut f = Fields(payload);
    let t = Timings {
        dns_us: f.u32()?,
        connect_us: f.u32()?,
        tls_us: f.u32()?,
        first_byte_us: f.u32()?,
    };
    f.end().map(|()| Frame::Fin(id, Some(t)))
}

fn decode_reset(id: u64, payload: Bytes) -> Result<Frame, Violation> {
    let mut f = Fields(payload);
    let code = Code::from_wire(f.u16()?).ok_or(Violation("RESET with an unknown code"))?;
    Ok(Frame::Reset(id, code, f.text()?))
}

fn decode_open(payload: Bytes) -> Result<Open, Violation> {
    let mut f = Fields(payload);
    let kind = Kind::from_wire(f.u8()?).ok_or(Violation("OPEN of an unknown kind"))?;
    if f.u8()? != 0 {
        return Err(Violation("OPEN with unknown flags"));
    }
    let (settings, credit, port) = (f.u32()?, f.u32()?, f.u16()?);
    let host_length = usize::from(f.u8()?);
    let host = f.kept(host_length)?;
    let siteless = matches!(kind, Kind::Relay | Kind::Probe);
    if siteless != (host.is_empty() && port == 0) || (!siteless && (host.is_empty() || port == 0)) {
        return Err(Violation("OPEN whose host and port do not fit its kind"));
    }
    let mut shown = None;
    for_each_tlv(f.0, |kind, value| {
        if kind != 2 {
            return Err(Violation("OPEN with an unknown TLV that must not be ignored"));
        }
        let mut v = Fields(value);
        shown = Some(Shown {
            verdict: v.u8()?,
            leaf: v.array()?,
        });
        v.end()
    })?;
    Ok(Open {
        kind,
        settings,
        credit,
        port,
        host,
        shown,
    })
}

/// Calls `even` for each TLV of an even type; unknown odd ones are skipped.
fn for_each_tlv(bytes: Bytes, mut even: impl FnMut(u8, Bytes) -> Result<(), Violation>) -> Result<(), Violation> {
    let mut f = Fields(bytes);
    while !f.0.is_empty() {
        let kind = f.u8()?;
        let length = usize::from(f.u16()?);
        let value = f.bytes(length)?;
        if kind % 2 == 0 {
            even(kind, value)?;
        }
    }
    Ok(())
}

fn no_even_tlv(_: u8, _: Bytes) -> Result<(), Violation> {
    Err(Violation("an unknown TLV that must not be ignored"))
}

fn decode_opened(payload: Bytes) -> Result<Opened, Violation> {
    let mut f = Fields(payload);
    let opened = Opened {
        family: f.u8()?,
        address: f.array()?,
        port: f.u16()?,
        dns_us: f.u32()?,
        connect_us: f.u32()?,
    };
    if !matches!(opened.family, 0 | 4 | 6) {
        return Err(Violation("OPENED with an unknown address family"));
    }
    f.end().map(|()| opened)
}

fn decode_start_tls(stream: u64, payload: Bytes) -> Result<Frame, Violation> {
    let mut f = Fields(payload);
    let sni_length = usize::from(f.u8()?);
    let sni = f.bytes(sni_length)?;
    let alpn = f.0;
    let mut names = Fields(alpn.clone());
    while !names.0.is_empty() {
        let length = usize::from(names.u8()?);
        names.bytes(length)?;
    }
    Ok(Frame::StartTls { stream, sni, alpn })
}

fn decode_tls_report(payload: Bytes) -> Result<TlsReport, Violation> {
    let mut f = Fields(payload);
    let (verdict, leaf) = (f.u8()?, f.array()?);
    for_each_tlv(f.0.clone(), no_even_tlv)?;
    Ok(TlsReport {
        verdict,
        leaf,
        tlvs: f.0,
    })
}

fn decode_settings(payload: Bytes) -> Result<Frame, Violation> {
    let mut f = Fields(payload);
    let (version, part, parts) = (f.u32()?, f.u16()?, f.u16()?);
    if part >= parts || version == 0 {
        return Err(Violation("SETTINGS with a part out of range or version 0"));
    }
    Ok(Frame::Settings {
        version,
        part,
        parts,
        bytes: f.0,
    })
}

fn decode_settings_ack(payload: Bytes) -> Result<Frame, Violation> {
    let mut f = Fields(payload);
    let version = f.u32()?;
    let accepted = match f.u8()? {
        0 => true,
        1 => false,
        _ => return Err(Violation("SETTINGS_ACK with an unknown status")),
    };
    Ok(Frame::SettingsAck {
        version,
        accepted,
        text: f.text()?,
    })
}

fn decode_goaway(payload: Bytes) -> Result<Frame, Violation> {
    let mut f = Fields(payload);
    let last = f.u64()?;
    let reason = GoAwayReason::from_wire(f.u16()?).ok_or(Violation("GOAWAY with an unknown reason"))?;
    Ok(Frame::GoAway {
        last,
        reason,
        text: f.text()?,
    })
}

fn decode_hello(payload: Bytes) -> Result<Hello, Violation> {
    let mut f = Fields(payload);
    let (version_min, version_max) = (f.u8()?, f.u8()?);
    if f.u16()? != 0 {
        return Err(Violation("HELLO with unknown flags"));
    }
    let hello = Hello {
        version_min,
        version_max,
        link: f.u16()?,
        links: f.u16()?,
        member: f.array()?,
        session: f.array()?,
        fresh: f.array()?,
        epoch: f.u64()?,
        received: f.u64()?,
        first_credit: f.u32()?,
    };
    for_each_tlv(f.0, no_even_tlv)?;
    if hello.link >= hello.links || hello.version_min > hello.version_max {
        return Err(Violation("HELLO with a link or version out of range"));
    }
    Ok(hello)
}

/// Appends the whole frame, header first.
///
/// # Panics
/// If the payload would be longer than 16,372 bytes: callers bound what they put in.
pub fn encode(frame: &Frame, out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, FRAME_HEADER_BYTES);
    let (kind, stream) = encode_payload(frame, out);
    let length = out.len() - start - FRAME_HEADER_BYTES;
    assert!(length <= FRAME_PAYLOAD_BYTES_MAX, "frame payload of {length} bytes");
    if let Some(header) = out[start..].first_chunk_mut() {
        Header { length, kind, stream }.encode(header);
    }
}

fn encode_payload(frame: &Frame, out: &mut BytesMut) -> (u8, u64) {
    match frame {
        Frame::Hello(h) => encode_hello(h, out),
        Frame::Open(id, o) => return (kind::OPEN, encode_open(*id, o, out)),
        Frame::Data(id, bytes) => {
            out.put_slice(bytes);
            return (kind::DATA, *id);
        }
        Frame::Fin(id, timings) => {
            if let Some(t) = timings {
                for us in [t.dns_us, t.connect_us, t.tls_us, t.first_byte_us] {
                    out.put_u32(us);
                }
            }
            return (kind::FIN, *id);
        }
        Frame::Reset(id, code, text) => {
            out.put_u16(*code as u16);
            out.put_slice(text);
            return (kind::RESET, *id);
        }
        Frame::Credit(id, v) | Frame::Recall(id, v) | Frame::Return(id, v) => {
            out.put_u64(*v);
            let kind = match frame {
                Frame::Credit(..) => kind::CREDIT,
                Frame::Recall(..) => kind::RECALL,
                _ => kind::RETURN,
            };
            return (kind, *id);
        }
        Frame::Ack(v) => {
            out.put_u64(*v);
            return (kind::ACK, 0);
        }
        Frame::Ping(v) | Frame::Pong(v) => {
            out.put_slice(v);
            return (
                if matches!(frame, Frame::Ping(_)) {
                    kind::PING
                } else {
                    kind::PONG
                },
                0,
            );
        }
        Frame::Settings {
            version,
            part,
            parts,
            bytes,
        } => {
            out.put_u32(*version);
            out.put_u16(*part);
            out.put_u16(*parts);
            out.put_slice(bytes);
            return (kind::SETTINGS, 0);
        }
        Frame::SettingsAck {
            version,
            accepted,
            text,
        } => {
            out.put_u32(*version);
            out.put_u8(u8::from(!accepted));
            out.put_slice(text);
            return (kind::SETTINGS_ACK, 0);
        }
        Frame::GoAway { last, reason, text } => {
            out.put_u64(*last);
            out.put_u16(*reason as u16);
            out.put_slice(text);
            return (kind::GOAWAY, 0);
        }
        Frame::Opened(id, o) => {
            out.put_u8(o.family);
            out.put_slice(&o.address);
            out.put_u16(o.port);
            out.put_u32(o.dns_us);
            out.put_u32(o.connect_us);
            return (kind::OPENED, *id);
        }
        Frame::StartTls { stream, sni, alpn } => {
            out.put_u8(sni.len() as u8);
            out.put_slice(sni);
            out.put_slice(alpn);
            return (kind::START_TLS, *stream);
        }
        Frame::TlsReport(id, r) => {
            out.put_u8(r.verdict);
            out.put_slice(&r.leaf);
            out.put_slice(&r.tlvs);
            return (kind::TLS_REPORT, *id);
        }
        Frame::Extension => return (kind::EXTENSIONS, 0),
    }
    (kind::HELLO, 0)
}

fn encode_open(id: u64, o: &Open, out: &mut BytesMut) -> u64 {
    out.put_u8(o.kind as u8);
    out.put_u8(0);
    out.put_u32(o.settings);
    out.put_u32(o.credit);
    out.put_u16(o.port);
    out.put_u8(o.host.len() as u8);
    out.put_slice(&o.host);
    if let Some(shown) = &o.shown {
        out.put_u8(2);
        out.put_u16(33);
        out.put_u8(shown.verdict);
        out.put_slice(&shown.leaf);
    }
    id
}

fn encode_hello(h: &Hello, out: &mut BytesMut) {
    out.put_u8(h.version_min);
    out.put_u8(h.version_max);
    out.put_u16(0);
    out.put_u16(h.link);
    out.put_u16(h.links);
    out.put_slice(&h.member);
    out.put_slice(&h.session);
    out.put_slice(&h.fresh);
    out.put_u64(h.epoch);
    out.put_u64(h.received);
    out.put_u32(h.first_credit);
}

/// Cuts text for people to what a frame may carry.
pub fn short_text(text: &str) -> Bytes {
    let mut end = text.len().min(FRAME_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Bytes::copy_from_slice(&text.as_bytes()[..end])
}
