//! Credit, send budget and their shares, as the core counts them and as an onlooker does.

use dataplane::limits::{
    BASE_CREDIT_OWN_BYTES, BASE_CREDIT_PEER_BYTES, CONTROL_RESERVE_BYTES, CREDIT_STEP_BYTES, FRAME_HEADER_BYTES,
    LINK_SHARE,
};
use dataplane::mux::frame::{Header, kind};

use super::traffic::State;
use super::world::World;
use super::{Failure, Side};

const MIB: usize = 1 << 20;

impl World {
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

    /// No link retains more than its share of the send budget: what the others leave is never more than all of it.
    fn check_link_share(&mut self, p: usize, side: Side) {
        let end = &self.pairs[p].ends[side];
        let (held, budget) = (end.track.data_retained, self.hosts[end.host].config.tx_bytes as u64);
        let (part, whole) = LINK_SHARE;
        if held > budget / whole as u64 * part as u64 {
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

    /// CREDIT leaves when half the window is used up, a quarter of what a low pool allows, or a step: never for less.
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
        let step = (value.saturating_sub(consumed) / 4).min(CREDIT_STEP_BYTES as u64);
        let placed = stream.ends[side].pair == p && stream.ends[side].state == State::Open;
        if placed && !first && value.saturating_sub(before) < step {
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
