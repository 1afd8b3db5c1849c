//! What must hold at every step.

use bytes::Bytes;
use dataplane::limits::{
    BASE_CREDIT_OWN_BYTES, BASE_CREDIT_PEER_BYTES, CONTROL_RESERVE_BYTES, FRAME_HEADER_BYTES, RESUME_WINDOW,
};
use dataplane::mux::Code;
use dataplane::mux::frame::{Header, kind};

use super::traffic::{Sent, State};
use super::wire::Heard;
use super::world::World;
use super::{CLIENT, ENDPOINT, Failure, SECOND, Side};

const MIB: usize = 1 << 20;

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

    // ── Budgets ───────────────────────────────────────────────────────────────────────────────────────────────

    pub fn check_budgets(&mut self, host: usize) {
        let h = &self.hosts[host];
        let config = &h.config;
        let (peer, own) = h.budget.streams();
        let rx_max = config.pool_bytes + peer * BASE_CREDIT_PEER_BYTES + own * BASE_CREDIT_OWN_BYTES;
        let (rx, tx, charged) = (h.budget.rx_outstanding(), h.budget.tx_held(), h.budget.rx_charged());
        let tx_max = config.tx_bytes;
        let broken = if rx > rx_max {
            format!("rx {rx} of {rx_max}")
        } else if tx > tx_max {
            format!("tx {tx} of {tx_max}")
        } else if charged > h.budget.rx_outstanding_max() * 3 / 2 + 8 * MIB {
            format!("charged {charged}")
        } else {
            return;
        };
        self.fail(Failure::new("budgets", format!("host {host}: {broken}")));
    }

    /// Learns from a frame written for the first time, and checks what it says of both budgets.
    pub fn check_new_frame(&mut self, p: usize, side: Side, header: Header, frame: &[u8]) {
        match header.kind {
            kind::OPEN => {
                let number = self.pairs[p].ends[side].track.numbers.get(&header.stream);
                if let Some(stream) = number.and_then(|n| self.streams.get_mut(*n as usize)) {
                    stream.id = Some(header.stream);
                }
            }
            kind::DATA => self.check_link_share(p, side),
            kind::CREDIT => {
                let value = frame.last_chunk().map_or(0, |b| u64::from_be_bytes(*b));
                self.check_credit(p, side, header.stream, value);
            }
            _ => {}
        }
    }

    /// No link retains more than half of the send budget: what the others leave is never more than all of it.
    fn check_link_share(&mut self, p: usize, side: Side) {
        let end = &self.pairs[p].ends[side];
        let (held, budget) = (end.track.data_retained, self.hosts[end.host].config.tx_bytes as u64);
        if held > budget / 2 {
            let text = format!("link {p} side {side} retains {held} bytes of DATA, the budget is {budget}");
            self.fail(Failure::new("a link's share", text));
        }
    }

    /// Room was refused; credit is no reason if there is some.
    pub fn note_refusal(&mut self, n: u32, side: Side) {
        let stream = &mut self.streams[n as usize];
        let end = &self.pairs[stream.ends[side].pair].ends[side];
        let (id, flow) = (stream.id, &mut stream.ways[side]);
        if end.session.is_connected() && end.track.limit(id) > flow.sent {
            self.hosts[end.host].refusals += 1;
            flow.own_refusals += 1;
        }
    }

    /// A stream that takes `bytes` more: at most an eighth of the send budget while another was refused room.
    pub fn check_stream_share(&mut self, n: u32, side: Side, bytes: usize) {
        let stream = &mut self.streams[n as usize];
        let end = &self.pairs[stream.ends[side].pair].ends[side];
        let acked = stream.id.and_then(|id| end.track.data_acked.get(&id));
        let acked = acked.copied().unwrap_or_default();
        let host = &self.hosts[end.host];
        let flow = &mut stream.ways[side];
        flow.framed += (FRAME_HEADER_BYTES + bytes) as u64;
        let held = flow.framed - acked;
        let refused = host.refusals - flow.refusals_seen > flow.own_refusals;
        (flow.refusals_seen, flow.own_refusals) = (host.refusals, 0);
        if refused && held > host.config.tx_bytes as u64 / 8 {
            let text = format!("stream {n} side {side} holds {held} bytes of {}", host.config.tx_bytes);
            self.fail(Failure::new("a stream's share", text));
        }
    }

    /// CREDIT leaves when half the window is used up, or a quarter of what a low pool allows: never for less.
    fn check_credit(&mut self, p: usize, side: Side, id: u64, value: u64) {
        let opener = usize::from(id.is_multiple_of(2));
        let Some(before) = self.pairs[p].ends[side].track.granted.insert(id, value) else {
            return;
        };
        let number = self.pairs[p].ends[opener].track.numbers.get(&id);
        let Some(stream) = number.and_then(|n| self.streams.get(*n as usize)) else {
            return;
        };
        let consumed = stream.ways[1 - side].consumed;
        let first = opener != side && before == BASE_CREDIT_PEER_BYTES as u64;
        let placed = stream.ends[side].pair == p && stream.ends[side].state == State::Open;
        if placed && !first && value.saturating_sub(before) < value.saturating_sub(consumed) / 4 {
            let text = format!("stream {id} of link {p}: {before} → {value}, {consumed} consumed");
            self.fail(Failure::new("a CREDIT is worth its frame", text));
        }
    }

    /// No process serves more streams than it said.
    pub fn check_stream_limit(&mut self, host: usize, side: Side) {
        let max = self.hosts[host].config.streams_peer_max;
        let served = self
            .local_ends(host)
            .filter(|(n, _)| self.streams[*n as usize].plan.opener != side)
            .count();
        if served > max {
            let text = format!("host {host} serves {served} streams, its limit is {max}");
            self.fail(Failure::new("the limit of streams", text));
        }
    }

    /// The same from outside: what was parsed and not consumed, what was written and not acknowledged.
    pub fn check_budgets_outside(&mut self) {
        for host in 0..self.hosts.len() {
            let config = self.hosts[host].config;
            let held: u64 = self
                .local_ends(host)
                .map(|(n, side)| self.streams[n as usize].ways[1 - side])
                .map(|w| w.delivered.saturating_sub(w.consumed))
                .sum();
            let retained: u64 = (self.pairs.iter().flat_map(|p| &p.ends))
                .filter(|e| e.host == host && e.alive)
                .map(|e| e.track.retained())
                .sum();
            let rx_max = config.pool_bytes
                + config.streams_peer_max * BASE_CREDIT_PEER_BYTES
                + config.streams_own_max * BASE_CREDIT_OWN_BYTES;
            let links = self.pairs.len().max(1) * 2;
            let tx_max = config.tx_bytes + links * CONTROL_RESERVE_BYTES;
            let ended = self.local_ends(host).all(|(n, side)| {
                let flow = self.streams[n as usize].ways[1 - side];
                flow.fin_heard || flow.over
            });
            let rx = self.hosts[host].budget.rx_outstanding() as u64;
            if ended && self.hosts[host].alive && rx > held {
                let text = format!("host {host}: {rx} outstanding, but all streams have ended and {held} is held");
                self.fail(Failure::new("unused credit comes back", text));
            }
            let charged = self.hosts[host].budget.rx_charged();
            if held as usize > rx_max || retained as usize > tx_max {
                let text = format!("host {host}: {held} held, {retained} retained");
                self.fail(Failure::new("budgets", text));
            }
            if charged as u64 > held * 3 / 2 + 8 * MIB as u64 {
                let text = format!("host {host}: {charged} charged for {held} held");
                self.fail(Failure::new("charge", text));
            }
        }
    }

    /// (stream, side) of all streams open in that process.
    fn local_ends(&self, host: usize) -> impl Iterator<Item = (u32, Side)> + '_ {
        let ends = self.pairs.iter().flat_map(|p| p.ends.iter().enumerate());
        ends.filter(move |(_, e)| e.host == host && e.alive)
            .flat_map(|(side, e)| e.streams.values().map(move |n| (*n, side)))
    }
}
