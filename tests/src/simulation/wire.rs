//! What an onlooker inside TLS sees, and the rules of resume that it can check: the order of HELLOs, `received` exact,
//! replays byte for byte, the order of frames within a stream.

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, Bytes, BytesMut};
use dataplane::limits::{BASE_CREDIT_PEER_BYTES, FRAME_HEADER_BYTES};
use dataplane::mux::Hello;
use dataplane::mux::frame::{self, Frame, Header, kind};

use super::{CLIENT, ENDPOINT, Failure, Side};

/// A frame written to a connection, by its place in the direction's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub start: u64,
    pub end: u64,
    pub kind: u8,
    pub replayed: bool,
}

/// One direction of one connection.
#[derive(Default)]
pub struct Line {
    /// The HELLO that its sender wrote.
    pub hello: Option<Hello>,
    /// Whether its receiver has read it.
    pub hello_read: bool,
    /// Counted offset of the next frame; none before both HELLOs.
    next: Option<u64>,
    written: u64,
    pub marks: VecDeque<Mark>,
    partial: BytesMut,
    /// Frames here that had been written on an earlier connection.
    pub replays: u64,
    /// Counted offset at which the replay ends.
    pub replay_end: u64,
}

impl Line {
    /// The frame that holds byte `at` of this direction, and whether that byte lies in its header.
    pub fn frame_at(&self, at: u64) -> Option<(Mark, bool)> {
        let mark = self.marks.iter().find(|m| m.start < at && at < m.end)?;
        Some((*mark, at - mark.start < FRAME_HEADER_BYTES as u64))
    }

    /// Whether bytes of a replay had still to arrive at byte `at`.
    pub fn replaying_at(&self, at: u64) -> bool {
        self.marks.iter().any(|m| m.replayed && m.end > at)
    }

    fn forget_before(&mut self, at: u64) {
        while self.marks.front().is_some_and(|m| m.end <= at) {
            self.marks.pop_front();
        }
    }
}

#[derive(Default)]
struct Spoken {
    fin: bool,
    reset: bool,
}

/// A counted frame that was written.
struct Logged {
    /// Counted offset behind it.
    end: u64,
    digest: u64,
    /// Its bytes, if it is DATA.
    data: u64,
    stream: u64,
}

/// What one end of a link has said and heard in its current session.
#[derive(Default)]
pub struct Track {
    pub session: [u8; 16],
    log: Vec<Logged>,
    pub sent: u64,
    pub acked: u64,
    /// Frames of `log` that are acknowledged.
    log_acked: usize,
    /// DATA frames written and not acknowledged, headers included.
    pub data_retained: u64,
    /// The part of all DATA frames of a stream that is acknowledged, headers included.
    pub data_acked: HashMap<u64, u64>,
    /// Offset up to which the other end lets a stream send, as last heard; `BASE_CREDIT_PEER_BYTES` until then.
    pub limits: HashMap<u64, u64>,
    /// Offset up to which this end lets a stream send, as last said or agreed.
    pub granted: HashMap<u64, u64>,
    /// GOAWAY was written or read.
    pub draining: bool,
    pub received: u64,
    pub epoch: u64,
    spoken: HashMap<u64, Spoken>,
    /// Simulated stream of a wire id, for ids that this end opened.
    pub numbers: HashMap<u64, u32>,
    settings_version: u32,
    pub sessions: u32,
}

impl Track {
    fn start(&mut self, session: [u8; 16]) {
        *self = Self {
            session,
            epoch: self.epoch,
            sessions: self.sessions + 1,
            ..Self::default()
        };
    }

    /// Bytes written and not acknowledged.
    pub fn retained(&self) -> u64 {
        self.sent.saturating_sub(self.acked)
    }

    fn acknowledge(&mut self, offset: u64) {
        self.acked = self.acked.max(offset);
        while let Some(frame) = self.log.get(self.log_acked).filter(|f| f.end <= offset) {
            self.data_retained -= frame.data;
            *self.data_acked.entry(frame.stream).or_default() += frame.data;
            self.log_acked += 1;
        }
    }

    /// Offset up to which this end may send on its stream `id`, whose OPEN may not have left yet.
    pub fn limit(&self, id: Option<u64>) -> u64 {
        let heard = id.and_then(|id| self.limits.get(&id));
        heard.copied().unwrap_or(BASE_CREDIT_PEER_BYTES as u64)
    }
}

/// What a whole frame told the end that read it.
pub enum Heard {
    Hello(Hello),
    Data(u64, u64),
    Fin(u64),
    /// The acknowledged offset rose, or a PONG came while nothing was retained.
    Progress,
    Other,
}

fn broken(oracle: &'static str, text: String) -> Failure {
    Failure::new(oracle, text)
}

/// Checks one frame that `side` writes and records it.
///
/// # Errors
/// The rule that it breaks.
pub fn said(side: Side, track: &mut Track, lines: &mut [Line; 2], bytes: &Bytes) -> Result<Header, Failure> {
    let Some(Ok(header)) = Header::decode(bytes) else {
        return Err(broken("frames", "an undecodable header".into()));
    };
    if bytes.len() != FRAME_HEADER_BYTES + header.length {
        return Err(broken("frames", "poll_transmit split a frame".into()));
    }
    let frame = frame::decode(header, bytes.slice(FRAME_HEADER_BYTES..))
        .map_err(|v| broken("frames", format!("{v}: {header:?}")))?;
    let mut replayed = false;
    if let Frame::Hello(hello) = &frame {
        said_hello(side, track, lines, hello)?;
    } else {
        if lines[side].hello.is_none() || !lines[1 - side].hello_read {
            let text = format!("{header:?} before both HELLOs");
            return Err(broken("hello first", text));
        }
        if let Frame::Ack(value) = frame
            && value > track.received
        {
            let text = format!("ACK {value} but {} received", track.received);
            return Err(broken("received", text));
        }
        if header.counted() {
            replayed = said_counted(side, track, lines, bytes, header, &frame)?;
        }
    }
    let line = &mut lines[side];
    let start = line.written;
    line.written += bytes.len() as u64;
    line.marks.push_back(Mark {
        start,
        end: line.written,
        kind: header.kind,
        replayed,
    });
    Ok(header)
}

fn said_hello(side: Side, track: &mut Track, lines: &mut [Line; 2], hello: &Hello) -> Result<(), Failure> {
    if lines[side].hello.is_some() {
        return Err(broken("hello first", "a second HELLO".into()));
    }
    if side == CLIENT {
        if hello.epoch <= track.epoch {
            return Err(broken("epoch", format!("epoch {} again", hello.epoch)));
        }
        track.epoch = hello.epoch;
    } else {
        let Some(asked) = lines[CLIENT].hello.as_ref().filter(|_| lines[0].hello_read) else {
            return Err(broken("hello first", "the endpoint spoke first".into()));
        };
        let resumed = asked.session == hello.session;
        let from = if resumed { asked.received } else { 0 };
        if hello.session != asked.session && hello.session != asked.fresh {
            return Err(broken("resume", "a session nobody offered".into()));
        }
        if hello.session != track.session {
            track.start(hello.session);
        }
        start_line(track, &mut lines[ENDPOINT], from)?;
    }
    if hello.session == track.session && hello.received != track.received {
        let text = format!(
            "HELLO of side {side} says {}, it has read {}",
            hello.received, track.received
        );
        return Err(broken("received", text));
    }
    lines[side].hello = Some(hello.clone());
    Ok(())
}

fn start_line(track: &mut Track, line: &mut Line, from: u64) -> Result<(), Failure> {
    if from < track.acked || from > track.sent {
        let text = format!("resume at {from}, acked {}, sent {}", track.acked, track.sent);
        return Err(broken("resume", text));
    }
    track.acknowledge(from);
    line.next = Some(from);
    line.replay_end = track.sent;
    Ok(())
}

fn said_counted(
    side: Side,
    track: &mut Track,
    lines: &mut [Line; 2],
    bytes: &Bytes,
    header: Header,
    frame: &Frame,
) -> Result<bool, Failure> {
    let line = &mut lines[side];
    let Some(at) = line.next else {
        return Err(broken("hello first", "a counted frame before HELLO".into()));
    };
    let end = at + bytes.len() as u64;
    line.next = Some(end);
    let digest = super::prng::digest(bytes);
    if at < track.sent {
        let index = track.log.partition_point(|f| f.end < end);
        if track.log.get(index).is_none_or(|f| (f.end, f.digest) != (end, digest)) {
            let text = format!("side {side} at {at}: {header:?} is not what stood there");
            return Err(broken("replay", text));
        }
        line.replays += 1;
        return Ok(true);
    }
    let data = if header.kind == kind::DATA { end - at } else { 0 };
    let stream = header.stream;
    track.log.push(Logged {
        end,
        digest,
        data,
        stream,
    });
    track.data_retained += data;
    track.sent = end;
    if side == ENDPOINT && at == 0 && header.kind != kind::SETTINGS_ACK {
        let text = format!("the first counted frame is {header:?}");
        return Err(broken("settings", text));
    }
    in_order(track, header, frame)?;
    Ok(false)
}

/// Order within a stream, and of SETTINGS_ACK among OPENs.
fn in_order(track: &mut Track, header: Header, frame: &Frame) -> Result<(), Failure> {
    match frame {
        Frame::SettingsAck {
            version,
            accepted: true,
            ..
        } => track.settings_version = *version,
        Frame::Open(id, open) => {
            let number = super::traffic::number_of(open);
            if !open.host.is_empty() && open.settings < track.settings_version {
                let text = format!(
                    "OPEN under {} behind SETTINGS_ACK {}",
                    open.settings, track.settings_version
                );
                return Err(broken("settings", text));
            }
            track.numbers.insert(*id, number);
            track.granted.insert(*id, u64::from(open.credit));
        }
        Frame::GoAway { .. } => track.draining = true,
        _ => {}
    }
    if header.stream == 0 {
        return Ok(());
    }
    let spoken = track.spoken.entry(header.stream).or_default();
    let late = match header.kind {
        kind::DATA | kind::FIN => spoken.fin || spoken.reset,
        kind::RESET => spoken.reset,
        _ => false,
    };
    if late {
        let text = format!("{header:?} after the stream's end");
        return Err(broken("order within a stream", text));
    }
    spoken.fin |= header.kind == kind::FIN;
    spoken.reset |= header.kind == kind::RESET;
    Ok(())
}

/// Bytes that side `to` reads: updates what it has heard and tells what the whole frames said.
pub fn heard(to: Side, track: &mut Track, lines: &mut [Line; 2], bytes: &[u8]) -> Vec<Heard> {
    let mut out = Vec::new();
    let from = 1 - to;
    lines[from].partial.extend_from_slice(bytes);
    loop {
        let partial = &mut lines[from].partial;
        let Some(Ok(header)) = Header::decode(partial) else {
            break;
        };
        if partial.len() < FRAME_HEADER_BYTES + header.length {
            break;
        }
        partial.advance(FRAME_HEADER_BYTES);
        let payload = partial.split_to(header.length).freeze();
        if header.counted() {
            track.received += (FRAME_HEADER_BYTES + header.length) as u64;
        }
        let Ok(frame) = frame::decode(header, payload) else {
            continue;
        };
        out.push(heard_frame(to, track, lines, frame));
    }
    out
}

fn heard_frame(to: Side, track: &mut Track, lines: &mut [Line; 2], frame: Frame) -> Heard {
    match frame {
        Frame::Hello(hello) => {
            lines[1 - to].hello_read = true;
            if to == CLIENT {
                if hello.session != track.session {
                    track.start(hello.session);
                }
                let line = &mut lines[CLIENT];
                line.next = Some(hello.received);
                line.replay_end = track.sent;
                track.acknowledge(hello.received);
            } else if hello.session == track.session {
                track.acknowledge(hello.received);
            }
            Heard::Hello(hello)
        }
        Frame::Data(id, b) => Heard::Data(id, b.len() as u64),
        Frame::Fin(id, _) => Heard::Fin(id),
        Frame::Ack(value) if value > track.acked => {
            track.acknowledge(value);
            Heard::Progress
        }
        Frame::Open(id, open) => {
            track.granted.insert(id, BASE_CREDIT_PEER_BYTES as u64);
            track.limits.insert(id, u64::from(open.credit));
            Heard::Other
        }
        Frame::Credit(id, offset) => {
            let before = track.limit(Some(id));
            track.limits.insert(id, before.max(offset));
            Heard::Other
        }
        Frame::Recall(id, offset) => {
            let before = track.limit(Some(id));
            track.limits.insert(id, before.min(offset));
            Heard::Other
        }
        Frame::Return(id, limit) => {
            track.granted.insert(id, limit);
            Heard::Other
        }
        Frame::GoAway { .. } => {
            track.draining = true;
            Heard::Other
        }
        Frame::Pong(_) if track.retained() == 0 => Heard::Progress,
        _ => Heard::Other,
    }
}

impl Line {
    /// Forgets frames that have arrived whole.
    pub fn arrived(&mut self, delivered: u64) {
        self.forget_before(delivered);
    }
}
