//! Nothing stands still without a reason, and at the end nothing is left.

use dataplane::limits::RESUME_WINDOW;

use super::traffic::{Sent, State};
use super::world::World;
use super::{CLIENT, ENDPOINT, Failure, SECOND, Side};

/// A stream on a healthy link, with bytes to send and a reader awake, moves within this.
const MOVES_WITHIN_US: u64 = 20 * SECOND;
/// A link whose path is healthy takes streams within this.
const LIVE_WITHIN_US: u64 = 25 * SECOND;
/// A session lost for the window and the last dial beyond it has ended.
const EXPIRES_WITHIN_US: u64 = RESUME_WINDOW.as_micros() as u64 + 20 * SECOND;

impl World {
    // ── Progress ──────────────────────────────────────────────────────────────────────────────────────────────

    pub fn check(&mut self) {
        self.check_budgets_outside();
        self.check_moves();
        self.check_links();
        if self.now > self.calm_at + self.scenario.patience_us {
            let text = format!("{}; {}", self.open_text(), self.quiet_text());
            self.fail(Failure::new("progress", text));
        }
    }

    fn check_moves(&mut self) {
        for n in 0..self.streams.len() {
            for to in [CLIENT, ENDPOINT] {
                if let Some(text) = self.stuck(n, to) {
                    self.fail(Failure::new("progress", text));
                }
            }
        }
    }

    /// Why the bytes towards side `to` should have moved, if they did not.
    fn stuck(&self, n: usize, to: Side) -> Option<String> {
        let stream = &self.streams[n];
        let flow = stream.ways[1 - to];
        let both_open = stream.ends.iter().all(|e| e.state == State::Open);
        let waits = flow.end == Sent::Open && stream.may_write(1 - to) && flow.sent == flow.received;
        let wanted = flow.received < flow.sent || flow.end == Sent::Fin || waits;
        if !both_open || flow.over || !wanted || stream.ends[0].pair != stream.ends[1].pair {
            return None;
        }
        let way = stream.plan.ways[1 - to];
        let pair = &self.pairs[stream.ends[to].pair];
        let up = pair.ends.iter().all(|e| e.live_since.is_some());
        if !up || !pair.path.healthy || pair.ends[to].ended_at.is_some() {
            return None;
        }
        let awake = way.stall.map_or(0, |(_, until)| until);
        let live = pair.ends.iter().filter_map(|e| e.live_since).max()?;
        let since = [flow.moved_at, awake, live, pair.path.healthy_since];
        let since = since.into_iter().max().unwrap_or_default() + way.pause_us + way.read_us;
        (self.now > since + MOVES_WITHIN_US)
            .then(|| format!("stream {n} to side {to} stands at {}: {flow:?}, {way:?}", flow.received))
    }

    fn check_links(&mut self) {
        for p in 0..self.pairs.len() {
            for side in [CLIENT, ENDPOINT] {
                let pair = &mut self.pairs[p];
                let end = &mut pair.ends[side];
                if !end.alive || end.finished || self.hosts[end.host].suspended_until > self.now {
                    continue;
                }
                let silent = end.conn.and_then(|c| self.conns[c].silent_since[side]);
                let open = end.session.streams_open() > 0;
                let srtt = end.session.srtt().map_or(0, |d| d.as_micros() as u64);
                let patience = (if open { 2 } else { 15 } + 3) * SECOND + 4 * srtt + 3 * SECOND;
                let awake = pair.path.healthy_since;
                end.quiet_since = if open { end.quiet_since } else { self.now };
                let since = silent.map(|at| at.max(awake).max(end.quiet_since));
                if since.is_some_and(|at| self.now > at + patience) {
                    let text = format!("link {p} side {side} has heard nothing since {since:?}");
                    self.fail(Failure::new("a dead path is noticed", text));
                    return;
                }
                let live = end.conn.is_some() && end.session.is_live();
                end.live_since = match live {
                    true => end.live_since.or(Some(self.now)),
                    false => None,
                };
                let lost = end
                    .lost_since
                    .filter(|_| end.ended_at.is_none() && end.track.sessions > 0);
                if lost.is_some_and(|at| self.now > at + EXPIRES_WITHIN_US) && !pair.draining {
                    let text = format!("link {p} side {side} lives on without progress");
                    self.fail(Failure::new("resume window", text));
                    return;
                }
                let usable = pair.path.healthy && !pair.draining && !pair.retired;
                if live || !usable {
                    pair.path.live_at[side] = self.now;
                } else if self.now > pair.path.live_at[side].max(pair.path.healthy_since) + LIVE_WITHIN_US {
                    let text = format!("link {p} side {side} takes no streams on a healthy path");
                    self.fail(Failure::new("progress", text));
                    return;
                }
            }
        }
    }

    // ── The end ───────────────────────────────────────────────────────────────────────────────────────────────

    pub fn streams_over(&self) -> bool {
        self.waiting.is_empty()
            && self
                .streams
                .iter()
                .all(|s| s.ends[s.plan.opener].state == State::Done && s.ends[1 - s.plan.opener].state != State::Open)
    }

    fn open_text(&self) -> String {
        let open = self.streams.iter().enumerate().filter(|(_, s)| {
            s.ends.iter().any(|e| e.state == State::Open) || s.ends[s.plan.opener].state == State::Idle
        });
        let text: Vec<String> = open
            .take(3)
            .map(|(n, s)| {
                let states = s.ends.iter().map(|e| e.state).collect::<Vec<_>>();
                format!("stream {n} {states:?} on link {}: {:?}", s.ends[0].pair, s.ways)
            })
            .collect();
        text.join("; ")
    }

    /// Nothing is held any more by a process whose links are all up, and the rules are agreed.
    pub fn is_quiet(&self) -> bool {
        let held = (0..self.hosts.len()).all(|h| {
            let host = &self.hosts[h];
            let b = &host.budget;
            !host.alive || (b.streams() == (0, 0) && b.rx_outstanding() == 0 && b.tx_held() == 0)
        });
        held && self.slots.iter().all(|s| s.known_version >= s.client_version)
    }

    fn quiet_text(&self) -> String {
        let hosts = self.hosts.iter().enumerate().filter(|(_, h)| h.alive);
        let text: Vec<String> = hosts
            .map(|(i, h)| {
                let b = &h.budget;
                format!(
                    "host {i}: streams {:?} rx {} tx {}",
                    b.streams(),
                    b.rx_outstanding(),
                    b.tx_held()
                )
            })
            .collect();
        let rules = self.slots.iter().map(|s| (s.client_version, s.known_version));
        format!("{}, rules {:?}", text.join(", "), rules.collect::<Vec<_>>())
    }
}
