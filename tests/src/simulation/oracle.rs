//! What must hold at every step.

use bytes::Bytes;
use dataplane::limits::RESUME_WINDOW;
use dataplane::mux::Code;

use super::traffic::{Sent, State};
use super::wire::Heard;
use super::world::World;
use super::{CLIENT, ENDPOINT, Failure, SECOND, Side};

impl World {
    // ── Streams ───────────────────────────────────────────────────────────────────────────────────────────────

    pub fn check_data(&mut self, n: u32, side: Side, bytes: &Bytes) {
        let flow = self.streams[n as usize].ways[1 - side];
        if flow.received + bytes.len() as u64 > flow.sent {
            let text = format!("stream {n}: more bytes than were sent to side {side}");
            return self.fail(Failure::new("nothing doubled", text));
        }
        if !self.is_content(n, side, bytes) {
            let text = format!(
                "stream {n} to side {side}: other bytes at {}, {} long",
                flow.received,
                bytes.len()
            );
            self.fail(Failure::new("bytes exact", text));
        }
    }

    pub fn on_fin(&mut self, n: u32, side: Side) {
        let stream = &mut self.streams[n as usize];
        stream.ends[side].read_over = true;
        let flow = &mut stream.ways[1 - side];
        flow.over = true;
        flow.moved_at = self.now;
        if flow.end != Sent::Fin || flow.received != flow.sent {
            let text = format!(
                "stream {n} looks complete at side {side}: {:?}, {} of {}",
                flow.end, flow.received, flow.sent
            );
            self.fail(Failure::new("a cut never looks complete", text));
        }
    }

    pub fn on_reset(&mut self, n: u32, side: Side, code: Code) {
        self.note(|| format!("stream {n} side {side}: reset {}", code.name()));
        let stream = &mut self.streams[n as usize];
        stream.ends[side].read_over = true;
        let flow = &mut stream.ways[1 - side];
        flow.over = true;
        flow.moved_at = self.now;
        let planned = flow.end == Sent::Reset(code);
        if flow.fin_heard && !planned {
            let text = format!("stream {n}: its end had arrived, then {}", code.name());
            return self.fail(Failure::new("a received end is delivered", text));
        }
        if stream.ways[side].end == Sent::Open {
            stream.ways[side].end = Sent::Stopped;
        }
        self.check_code(n, side, code, planned);
    }

    pub fn on_stopped(&mut self, n: u32, side: Side, code: Code) {
        self.note(|| format!("stream {n} side {side}: stopped {}", code.name()));
        let stream = &mut self.streams[n as usize];
        stream.ways[side].end = Sent::Stopped;
        let other = stream.ways[1 - side];
        let planned = other.end == Sent::Reset(code) || other.then_reset == Some(code);
        self.check_code(n, side, code, planned);
        self.pump_reader(n, side);
    }

    fn check_code(&mut self, n: u32, side: Side, code: Code, planned: bool) {
        let excused = self.streams[n as usize].excused & (1 << (code as u16)) != 0;
        let refused = code == Code::Limit && self.refuses(1 - side);
        self.coverage.count("streams cut", 1);
        if !planned && !excused && !refused {
            let flow = self.streams[n as usize].ways[1 - side];
            let text = format!(
                "stream {n} ended as {} at side {side}, its sender: {:?}",
                code.name(),
                flow.end
            );
            self.fail(Failure::new("ends as the right code", text));
        }
    }

    /// Whether that side's limit of streams can be met here.
    fn refuses(&self, side: Side) -> bool {
        let (client, endpoint) = (&self.scenario.client, &self.scenario.endpoint);
        match side {
            CLIENT => client.streams_peer_max < endpoint.streams_own_max,
            _ => endpoint.streams_peer_max < client.streams_own_max * self.scenario.members,
        }
    }

    // ── Sessions ──────────────────────────────────────────────────────────────────────────────────────────────

    pub fn on_heard(&mut self, p: usize, to: Side, heard: Heard) {
        let end = &mut self.pairs[p].ends[to];
        let (id, bytes) = match heard {
            Heard::Progress => {
                end.lost_since = None;
                return;
            }
            Heard::Data(id, bytes) => (id, bytes),
            Heard::Fin(id) => (id, 0),
            Heard::Hello(_) | Heard::Other => return,
        };
        let opener = usize::from(id % 2 == 0);
        let number = self.pairs[p].ends[opener].track.numbers.get(&id);
        let Some(stream) = number.and_then(|n| self.streams.get_mut(*n as usize)) else {
            return;
        };
        let placed = &stream.ends[opener];
        if placed.pair != p || placed.r.is_none() {
            return;
        }
        let flow = &mut stream.ways[1 - to];
        flow.delivered += bytes;
        flow.fin_heard |= bytes == 0 && stream.ends[to].state == State::Open;
        if flow.delivered > flow.sent {
            let text = format!("{} bytes parsed of {} sent", flow.delivered, flow.sent);
            self.fail(Failure::new("nothing doubled", text));
        }
    }

    pub fn on_up(&mut self, p: usize, side: Side, resumed: bool) {
        self.coverage
            .count(if resumed { "resumes" } else { "fresh sessions" }, 1);
        let same = self.pairs[p].ends[CLIENT].track.session == self.pairs[p].ends[ENDPOINT].track.session;
        if !resumed {
            let end = &mut self.pairs[p].ends[side];
            end.lost_since = end.conn.is_none().then_some(self.now);
        }
        let just_ended = resumed && self.pairs[p].ends[CLIENT].ended_at == Some(self.now);
        if side == CLIENT && same && !just_ended {
            self.pairs[p].ends[CLIENT].ended_at = None;
            self.pairs[p].ends[ENDPOINT].ended_at = None;
        }
    }

    pub fn on_session_ended(&mut self, p: usize, side: Side, code: Code, peer_at_fault: bool, text: &str) {
        let now = self.now;
        let other_ended = self.pairs[p].ends[1 - side].ended_at.is_some();
        let end = &mut self.pairs[p].ends[side];
        let lost_us = end.lost_since.map_or(0, |at| now - at);
        let window = RESUME_WINDOW.as_micros() as u64;
        let fits = match code {
            Code::TunnelDown => lost_us >= window || (other_ended && lost_us >= 29 * SECOND),
            Code::PeerRestarted => other_ended && lost_us <= 31 * SECOND,
            Code::Shutdown => self.pairs[p].draining,
            Code::Limit => self.scenario.floods,
            _ => false,
        };
        let unfair = peer_at_fault && code != Code::Limit;
        if unfair || !fits {
            let text = format!(
                "link {p} side {side} ended as {} after {} s without, other ended {other_ended}: {text}",
                code.name(),
                lost_us / SECOND
            );
            return self.fail(Failure::new("sessions end rightly", text));
        }
        if code == Code::TunnelDown && self.is_offered(p, side) {
            let text = format!("link {p} side {side} expires while a HELLO offers it");
            return self.fail(Failure::new("resume window", text));
        }
        self.coverage.count("sessions ended", 1);
        if code == Code::Limit {
            self.coverage.count("sessions ended by a flood", 1);
        }
        let end = &mut self.pairs[p].ends[side];
        end.sessions_ended += 1;
        end.ended_at = Some(now);
        end.lost_since = end.conn.is_none().then_some(now);
        let hit: Vec<u32> = end.streams.values().copied().collect();
        for n in hit {
            let lost = [Code::TunnelDown, Code::PeerRestarted];
            let broken = (code == Code::Limit).then_some(Code::Protocol);
            for code in lost.into_iter().chain(broken) {
                self.streams[n as usize].excuse(code);
            }
        }
        self.excuse_late_opens(p);
        let slot = self.pairs[p].slot;
        if self.slots[slot].sent_on == Some(p) {
            self.slots[slot].sent_on = None;
            self.send_settings(slot);
        }
        self.replace_drained(p);
    }

    /// A HELLO that offers the session is on its way, or being taken over.
    fn is_offered(&self, p: usize, side: Side) -> bool {
        let end = &self.pairs[p].ends[side];
        if side == ENDPOINT {
            return end.cut_over.is_some();
        }
        end.conn.is_some_and(|c| {
            let conn = &self.conns[c];
            let asked = conn.lines[CLIENT].hello.as_ref();
            asked.is_some_and(|h| h.session == end.track.session)
                && !conn.lines[ENDPOINT].hello_read
                && !conn.deaf[CLIENT]
                && conn.open[CLIENT]
        })
    }

    /// A side closes its connection: only with a reason.
    pub fn check_close(&mut self, p: usize, c: usize, side: Side) {
        let conn = &self.conns[c];
        let pair = &self.pairs[p];
        let calm = pair.path.healthy && conn.since >= pair.path.healthy_since;
        if !conn.faulted && !pair.draining && calm {
            let text = format!("side {side} closes link {p} (connection {c})");
            self.fail(Failure::new("no kill of a healthy link", text));
        }
    }

    /// A link that GOAWAY has emptied forgets its session at a cut.
    pub fn check_dial(&mut self, p: usize) {
        let end = &self.pairs[p].ends[CLIENT];
        let empty = end.session.streams_open() == 0 && end.track.retained() == 0;
        // Where streams are refused, an answer that has not left is as good as a stream.
        if end.track.draining && empty && end.ended_at.is_none() && !self.refuses(CLIENT) {
            let text = format!("link {p} dials for a session that is drained");
            self.fail(Failure::new("drained links do not dial", text));
        }
    }

    /// A drained side is finished only once the other has all its bytes, or said so by its close_notify.
    pub fn check_finished(&mut self, p: usize, side: Side) {
        let end = &self.pairs[p].ends[side];
        let retained = end.track.retained();
        if retained > 0 && end.ended_at.is_none() && !end.closed_cleanly {
            let text = format!("link {p} side {side} is finished, {retained} bytes are not acknowledged");
            self.fail(Failure::new("a drained link loses nothing", text));
        }
    }
}
