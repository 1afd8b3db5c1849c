//! Local sockets: how they are read into a stream and written from one.

use bytes::{Bytes, BytesMut};
use dataplane::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};
use dataplane::mux::{Kind, Recv, StreamRef, Timings, WriteError};

use super::prng;
use super::scenario::{EndPlan, Way};
use super::traffic::{Sent, State, key_of};
use super::world::{Wake, World};
use super::{CLIENT, Side};

impl World {
    // ── Writing ───────────────────────────────────────────────────────────────────────────────────────────────

    pub fn pump_writer(&mut self, n: u32, side: Side) {
        let p = self.streams[n as usize].ends[side].pair;
        loop {
            let stream = &self.streams[n as usize];
            let (local, flow, way) = (&stream.ends[side], &stream.ways[side], stream.way(side));
            let Some(r) = local.r.filter(|_| local.state == State::Open) else {
                return;
            };
            if flow.end != Sent::Open || !stream.may_write(side) {
                break;
            }
            if self.end_writing(n, side, r) {
                break;
            }
            let there = self.available(n, side, way);
            let now = self.time();
            let end = &mut self.pairs[p].ends[side];
            let budget = &mut self.hosts[end.host].budget;
            let room = match end.session.room(now, budget, r) {
                Ok(room) => room,
                Err(WriteError::Stopped(code)) => {
                    self.on_stopped(n, side, code);
                    break;
                }
                Err(WriteError::Gone) => {
                    self.gone.push((n, side, r));
                    return;
                }
            };
            let max = room.min(there).min(FRAME_PAYLOAD_BYTES_MAX);
            if room == 0 {
                self.note_refusal(n, side);
            }
            if max == 0 {
                break;
            }
            let short = self.rng.chance(10);
            let take = if short {
                self.rng.between(1, max as u64) as usize
            } else {
                max
            };
            self.write(n, side, r, take);
        }
        self.touch(p, side);
        self.release_if_over(n, side);
    }

    fn write(&mut self, n: u32, side: Side, r: StreamRef, take: usize) {
        let now = self.time();
        self.check_stream_share(n, side, take);
        let flow = &mut self.streams[n as usize].ways[side];
        let mut frame = BytesMut::zeroed(FRAME_HEADER_BYTES + take);
        prng::fill(key_of(n, side), flow.sent, &mut frame[FRAME_HEADER_BYTES..]);
        flow.sent += take as u64;
        let p = self.streams[n as usize].ends[side].pair;
        let end = &mut self.pairs[p].ends[side];
        let budget = &mut self.hosts[end.host].budget;
        end.session.write(now, budget, r, frame);
    }

    /// Bytes that the local socket has ready; more come after a pause.
    fn available(&mut self, n: u32, side: Side, way: Way) -> usize {
        let flow = self.streams[n as usize].ways[side];
        let local = &mut self.streams[n as usize].ends[side];
        let stop = match way.end {
            EndPlan::ResetAt(at, _) => at,
            _ => way.bytes,
        };
        if local.may_send_until <= flow.sent {
            let first = local.may_send_until == 0;
            let due = first || way.pause_us == 0 || flow.moved_at + way.pause_us <= self.now;
            if due {
                local.may_send_until = flow.sent.saturating_add(way.burst);
                self.streams[n as usize].ways[side].moved_at = self.now;
            } else {
                self.push(flow.moved_at + way.pause_us, Wake::Writer(n, side));
            }
        }
        let local = &self.streams[n as usize].ends[side];
        (local.may_send_until.min(stop) - flow.sent).min(1 << 30) as usize
    }

    /// Ends the direction if its plan is done.
    fn end_writing(&mut self, n: u32, side: Side, r: StreamRef) -> bool {
        let now = self.time();
        let stream = &mut self.streams[n as usize];
        let (way, p) = (stream.way(side), stream.ends[side].pair);
        let flow = &mut stream.ways[side];
        let end = &mut self.pairs[p].ends[side];
        let budget = &mut self.hosts[end.host].budget;
        match way.end {
            EndPlan::ResetAt(at, code) if flow.sent >= at => {
                flow.end = Sent::Reset(code);
                end.session.reset(now, budget, r, code, "planned");
            }
            EndPlan::Fin | EndPlan::FinThenReset(_) if flow.sent >= way.bytes => {
                flow.end = Sent::Fin;
                let timed = side == CLIENT && matches!(stream.plan.kind, Kind::Http | Kind::Https);
                end.session.finish(now, r, timed.then(Timings::default));
                if let EndPlan::FinThenReset(code) = way.end {
                    flow.then_reset = Some(code);
                    end.session.reset(now, budget, r, code, "enough");
                }
            }
            _ => return false,
        }
        true
    }

    // ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────

    pub fn reader_due(&mut self, n: u32, side: Side) {
        self.streams[n as usize].ends[side].reader_due = false;
        self.consume(n, side);
        self.pump_reader(n, side);
    }

    /// The local socket takes what was read.
    fn consume(&mut self, n: u32, side: Side) {
        let now = self.time();
        let stream = &mut self.streams[n as usize];
        let local = &mut stream.ends[side];
        let Some(r) = local.r.filter(|_| local.state == State::Open) else {
            return;
        };
        let p = local.pair;
        let unread = std::mem::take(&mut local.unread);
        let end = &mut self.pairs[p].ends[side];
        for length in unread {
            let flow = &mut stream.ways[1 - side];
            flow.consumed += length as u64;
            flow.moved_at = self.now;
            let first = if length > 3 { length / 3 } else { length };
            let budget = &mut self.hosts[end.host].budget;
            end.session.consumed(now, budget, r, first);
            if length > first {
                end.session.consumed(now, budget, r, length - first);
            }
        }
        self.touch(p, side);
    }

    pub fn pump_reader(&mut self, n: u32, side: Side) {
        loop {
            let stream = &self.streams[n as usize];
            let (local, flow, way) = (&stream.ends[side], &stream.ways[1 - side], stream.way(1 - side));
            let Some(r) = local.r.filter(|_| local.state == State::Open) else {
                return;
            };
            if local.read_over || local.reader_due {
                break;
            }
            if let Some((from, until)) = way.stall
                && flow.received >= from
                && self.now < until
            {
                self.read_later(n, side, until);
                break;
            }
            let end = &mut self.pairs[local.pair].ends[side];
            let budget = &mut self.hosts[end.host].budget;
            match end.session.recv(budget, r) {
                Recv::Pending => break,
                Recv::Data(bytes) => self.on_data(n, side, &bytes, way.read_us),
                Recv::Fin(_) => self.on_fin(n, side),
                Recv::Reset(code, _) => self.on_reset(n, side, code),
                Recv::Gone => {
                    self.gone.push((n, side, r));
                    return;
                }
            }
        }
        if self.streams[n as usize].may_write(side) {
            self.pump_writer(n, side);
        }
        self.touch(self.streams[n as usize].ends[side].pair, side);
        self.release_if_over(n, side);
    }

    fn read_later(&mut self, n: u32, side: Side, at: u64) {
        self.streams[n as usize].ends[side].reader_due = true;
        self.push(at, Wake::Reader(n, side));
    }

    fn on_data(&mut self, n: u32, side: Side, bytes: &Bytes, read_us: u64) {
        self.check_data(n, side, bytes);
        let stream = &mut self.streams[n as usize];
        stream.ways[1 - side].received += bytes.len() as u64;
        stream.ends[side].unread.push_back(bytes.len());
        if read_us == 0 {
            self.consume(n, side);
        } else {
            self.read_later(n, side, self.now + read_us);
        }
    }

    /// Whether `bytes` are what the other side wrote at this place.
    pub fn is_content(&self, n: u32, side: Side, bytes: &[u8]) -> bool {
        let at = self.streams[n as usize].ways[1 - side].received;
        prng::matches(key_of(n, 1 - side), at, bytes)
    }

    /// Both directions are over here: the local socket closes.
    pub fn release_if_over(&mut self, n: u32, side: Side) {
        let stream = &mut self.streams[n as usize];
        let local = &mut stream.ends[side];
        let flow = stream.ways[side];
        let cut = matches!(flow.end, Sent::Reset(_)) || flow.then_reset.is_some();
        let over = cut || (local.read_over && flow.end != Sent::Open);
        if local.state != State::Open || !over || (!cut && !local.unread.is_empty()) {
            return;
        }
        let Some(r) = local.r else { return };
        local.state = State::Done;
        let (p, now) = (local.pair, self.time());
        let end = &mut self.pairs[p].ends[side];
        end.streams.remove(&r);
        let budget = &mut self.hosts[end.host].budget;
        end.session.release(now, budget, r);
        self.touch(p, side);
    }
}
