//! Where cuts fell: each cell must be reached at least once over a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dataplane::limits::{BASE_CREDIT_OWN_BYTES, BASE_CREDIT_PEER_BYTES};
use dataplane::mux::frame::kind;

use super::world::World;
use super::{CLIENT, ENDPOINT, Side};

/// Situations of a cut that have no frame.
pub const SITUATIONS: [&str; 10] = [
    "before HELLO",
    "between the HELLOs",
    "inside a replay",
    "second cut inside a replay",
    "receive budget nearly full",
    "send budget nearly full",
    "during cut-over",
    "during GOAWAY",
    "during a settings change",
    "bytes at the shutdown",
];

const NAMES: [(u8, &str); 17] = [
    (kind::HELLO, "HELLO"),
    (kind::OPEN, "OPEN"),
    (kind::DATA, "DATA"),
    (kind::FIN, "FIN"),
    (kind::RESET, "RESET"),
    (kind::CREDIT, "CREDIT"),
    (kind::ACK, "ACK"),
    (kind::PING, "PING"),
    (kind::PONG, "PONG"),
    (kind::SETTINGS, "SETTINGS"),
    (kind::SETTINGS_ACK, "SETTINGS_ACK"),
    (kind::GOAWAY, "GOAWAY"),
    (kind::OPENED, "OPENED"),
    (kind::START_TLS, "START_TLS"),
    (kind::TLS_REPORT, "TLS_REPORT"),
    (kind::RECALL, "RECALL"),
    (kind::RETURN, "RETURN"),
];

/// Name of a frame type.
pub fn name(kind: u8) -> &'static str {
    NAMES.iter().find(|n| n.0 == kind).map_or("?", |n| n.1)
}

/// Whether `side` sends this type, and with a payload that a cut can hit.
pub fn sends(side: Side, kind: u8, header: bool) -> bool {
    match kind {
        kind::SETTINGS | kind::OPENED | kind::TLS_REPORT => side == CLIENT,
        kind::SETTINGS_ACK | kind::START_TLS => side == ENDPOINT,
        kind::FIN => header || side == CLIENT,
        _ => true,
    }
}

/// A place where a cut can be aimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub kind: u8,
    pub side: Side,
    pub header: bool,
}

/// Every cell of frame × part × direction that exists.
pub fn cells() -> Vec<Cell> {
    let mut out = Vec::new();
    for (kind, _) in NAMES {
        for side in [CLIENT, ENDPOINT] {
            for header in [true, false] {
                if sends(side, kind, header) {
                    out.push(Cell { kind, side, header });
                }
            }
        }
    }
    out
}

/// Counts over a seed or a run.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    pub frames: BTreeMap<Cell, u64>,
    pub situations: BTreeMap<&'static str, u64>,
    pub totals: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub fn hit(&mut self, situation: &'static str) {
        *self.situations.entry(situation).or_default() += 1;
    }

    pub fn count(&mut self, what: &'static str, n: u64) {
        *self.totals.entry(what).or_default() += n;
    }

    pub fn total(&self, what: &str) -> u64 {
        self.totals.get(what).copied().unwrap_or_default()
    }

    pub fn add(&mut self, other: &Self) {
        for (cell, n) in &other.frames {
            *self.frames.entry(*cell).or_default() += n;
        }
        for (what, n) in &other.situations {
            *self.situations.entry(what).or_default() += n;
        }
        for (what, n) in &other.totals {
            *self.totals.entry(what).or_default() += n;
        }
    }

    /// Cells that no cut reached.
    pub fn holes(&self) -> Vec<String> {
        let frames = cells().into_iter().filter_map(|c| {
            let part = if c.header { "header" } else { "payload" };
            let hit = self.frames.get(&c).is_some_and(|n| *n > 0);
            (!hit).then(|| format!("{part} of {} from side {}", name(c.kind), c.side))
        });
        let situations = SITUATIONS.into_iter().filter_map(|s| {
            let hit = self.situations.get(s).is_some_and(|n| *n > 0);
            (!hit).then(|| s.to_owned())
        });
        frames.chain(situations).collect()
    }

    pub fn table(&self) -> String {
        let mut out = String::from("cut inside          sc header  sc payload   endpoint header  endpoint payload\n");
        for (kind, name) in NAMES {
            let _ = write!(out, "{name:<16}");
            for (side, header, width) in [
                (CLIENT, true, 13),
                (CLIENT, false, 12),
                (ENDPOINT, true, 18),
                (ENDPOINT, false, 18),
            ] {
                let n = self.frames.get(&Cell { kind, side, header });
                let text = match sends(side, kind, header) {
                    true => n.copied().unwrap_or_default().to_string(),
                    false => "-".to_owned(),
                };
                let _ = write!(out, "{text:>width$}");
            }
            out.push('\n');
        }
        for s in SITUATIONS {
            let n = self.situations.get(s).copied().unwrap_or_default();
            let _ = writeln!(out, "cut, {s:<30}{n:>8}");
        }
        for (what, n) in &self.totals {
            let _ = writeln!(out, "{what:<35}{n:>12}");
        }
        out
    }
}

impl World {
    pub fn classify_cut(&mut self, c: usize) {
        let conn = &self.conns[c];
        let p = conn.pair;
        let pair = &self.pairs[p];
        self.coverage.count("cuts", 1);
        let hello_in = conn.lines[CLIENT].hello_read || !conn.first.is_empty();
        if !hello_in {
            self.coverage.hit("before HELLO");
        } else if !conn.lines[ENDPOINT].hello_read {
            self.coverage.hit("between the HELLOs");
        }
        let at = [CLIENT, ENDPOINT].map(|s| conn.pipes[s].delivered);
        let replaying = [CLIENT, ENDPOINT].iter().any(|s| conn.lines[*s].replaying_at(at[*s]));
        if replaying {
            self.coverage.hit("inside a replay");
            if pair.cut_in_replay {
                self.coverage.hit("second cut inside a replay");
            }
        }
        for side in [CLIENT, ENDPOINT] {
            if let Some((mark, header)) = conn.lines[side].frame_at(at[side]) {
                let cell = Cell {
                    kind: mark.kind,
                    side,
                    header,
                };
                *self.coverage.frames.entry(cell).or_default() += 1;
            }
            let host = &self.hosts[pair.ends[side].host];
            // Each link may hold three quarters of what the others leave.
            let links = (self.pairs.iter()).filter(|q| q.ends[side].host == pair.ends[side].host && q.ends[side].alive);
            let reachable = host.config.tx_bytes - (host.config.tx_bytes >> (2 * links.count()).min(20));
            if host.budget.tx_held() * 10 >= reachable * 8 {
                self.coverage.hit("send budget nearly full");
            }
            let base =
                host.budget.streams().0 * BASE_CREDIT_PEER_BYTES + host.budget.streams().1 * BASE_CREDIT_OWN_BYTES;
            if host.budget.rx_outstanding().saturating_sub(base) * 4 >= host.config.pool_bytes * 3 {
                self.coverage.hit("receive budget nearly full");
            }
        }
        if pair.ends[ENDPOINT].cut_over.is_some() {
            self.coverage.hit("during cut-over");
        }
        if pair.draining {
            self.coverage.hit("during GOAWAY");
        }
        if self.slots[pair.slot].sent_on == Some(p) {
            self.coverage.hit("during a settings change");
        }
        self.pairs[p].cut_in_replay = replaying;
    }
}
