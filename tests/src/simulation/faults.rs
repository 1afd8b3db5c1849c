//! What breaks, when, and how it is applied.

use dataplane::mux::GoAwayReason;
use dataplane::mux::frame::kind;

use super::coverage::{Cell, cells};
use super::network::Ending;
use super::prng::Prng;
use super::world::{Wake, World};
use super::{CLIENT, ENDPOINT, MS, SECOND, Side};

#[derive(Clone, Copy, Debug)]
pub enum FaultKind {
    /// The connection breaks so many bytes after what this direction has delivered.
    Cut {
        side: Side,
        after: u64,
        ending: Ending,
    },
    /// Only `sc` learns that the connection is gone: the endpoint meets the next one while it still holds the old.
    /// `again`: the new one breaks during the cut-over.
    HalfCut {
        again: bool,
    },
    /// The connection breaks inside the next such frame.
    Aim(Cell),
    /// Directions fall silent, for new connections too unless `old_only`.
    Dead {
        sides: [bool; 2],
        for_us: u64,
        old_only: bool,
    },
    /// HELLO passes, data does not.
    SmallOnly {
        for_us: u64,
    },
    /// Cut, and dials are refused or unanswered.
    Outage {
        for_us: u64,
        refuse: bool,
    },
    /// An outage that ends as the resume window does, with a HELLO on its way.
    Brink {
        for_us: u64,
        late_us: u64,
    },
    /// The next connections are so much later with their first byte.
    LateHello {
        late_us: u64,
        for_us: u64,
    },
    /// A process stands still while the network goes on; `both`: virtual suspension of everything.
    Suspend {
        side: Side,
        both: bool,
        for_us: u64,
    },
    RestartClient {
        same_key: bool,
    },
    RestartEndpoint,
    GoAway {
        side: Side,
    },
    Settings,
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub at: u64,
    /// Link (or member, for faults of processes) that it hits, modulo how many there are.
    pub target: usize,
    pub kind: FaultKind,
}

/// Two to five faults, at least two of them cuts.
pub fn draw(rng: &mut Prng, pairs: usize, members: usize, active: u64) -> Vec<Fault> {
    let mut out = Vec::new();
    let all = cells();
    for _ in 0..rng.between(2, 4) {
        let kind = match rng.below(12) {
            0..=6 => FaultKind::Aim(rng.pick(&all)),
            7 => FaultKind::HalfCut { again: rng.chance(50) },
            8 => FaultKind::Dead {
                sides: rng.pick(&[[true, true], [true, false], [false, true]]),
                for_us: rng.pick(&[500 * MS, 2 * SECOND, 5 * SECOND, 12 * SECOND]),
                old_only: rng.chance(40),
            },
            _ => cut(rng),
        };
        let at = rng.below(active);
        let target = rng.below(pairs as u64) as usize;
        out.push(Fault { at, target, kind });
        if let FaultKind::Aim(cell) = kind
            && let Some(kind) = cause(cell)
        {
            let at = at + rng.below(500 * MS);
            out.push(Fault { at, target, kind });
        }
    }
    for _ in 0..2 {
        if rng.chance(60) {
            let kind = rare(rng);
            out.push(Fault {
                at: rng.below(active),
                target: rng.below(pairs.max(members) as u64) as usize,
                kind,
            });
        }
    }
    if rng.chance(25) {
        again(rng, &mut out);
    }
    out
}

/// What makes a rare frame leave.
fn cause(cell: Cell) -> Option<FaultKind> {
    match cell.kind {
        kind::GOAWAY => Some(FaultKind::GoAway { side: cell.side }),
        kind::SETTINGS | kind::SETTINGS_ACK => Some(FaultKind::Settings),
        _ => None,
    }
}

fn cut(rng: &mut Prng) -> FaultKind {
    FaultKind::Cut {
        side: rng.pick(&[CLIENT, ENDPOINT]),
        after: rng.pick(&[0, 1, 30, 500, 20_000]),
        ending: rng.pick(&[Ending::Reset, Ending::Reset, Ending::Fin { notify: false }]),
    }
}

fn rare(rng: &mut Prng) -> FaultKind {
    match rng.below(13) {
        12 => FaultKind::Brink {
            for_us: rng.between(41_000, 45_000) * MS,
            late_us: rng.between(1_000, 2_800) * MS,
        },
        0 => FaultKind::SmallOnly {
            for_us: rng.pick(&[4, 20, 75]) * SECOND,
        },
        1 | 2 => FaultKind::Outage {
            for_us: rng.pick(&[1, 3, 12, 28, 60, 80]) * SECOND,
            refuse: rng.chance(50),
        },
        3 => FaultKind::LateHello {
            late_us: rng.pick(&[200 * MS, 2 * SECOND, 8 * SECOND]),
            for_us: 5 * SECOND,
        },
        4 => FaultKind::Suspend {
            side: rng.pick(&[CLIENT, ENDPOINT]),
            both: rng.chance(40),
            for_us: rng.pick(&[2, 10, 35, 70]) * SECOND,
        },
        5 => FaultKind::RestartClient {
            same_key: rng.chance(50),
        },
        6 => FaultKind::RestartEndpoint,
        7 | 8 => FaultKind::GoAway {
            side: rng.pick(&[CLIENT, ENDPOINT]),
        },
        _ => FaultKind::Settings,
    }
}

/// A second fault right behind the first one of a link: inside its replay, its cut-over or its settings change.
fn again(rng: &mut Prng, out: &mut Vec<Fault>) {
    let Some(first) = out.first().copied() else {
        return;
    };
    for _ in 0..2 {
        out.push(Fault {
            at: first.at + rng.below(1_500 * MS),
            target: first.target,
            kind: cut(rng),
        });
    }
}

impl World {
    pub fn apply(&mut self, fault: Fault) {
        let p = self.link_for(fault.target);
        self.note(|| format!("fault {:?} on link {p}", fault.kind));
        match fault.kind {
            FaultKind::Cut { side, after, ending } => self.cut_soon(p, side, after, ending),
            FaultKind::HalfCut { again } => self.half_cut(p, again),
            FaultKind::Aim(cell) => self.aims.push(cell),
            FaultKind::Dead {
                sides,
                for_us,
                old_only,
            } => self.silence(p, sides, for_us, old_only),
            FaultKind::SmallOnly { for_us } => self.small_only(p, for_us),
            FaultKind::Outage { for_us, refuse } => {
                self.pairs[p].path.refuse = refuse;
                self.silence(p, [true; 2], for_us, false);
                if refuse && let Some(c) = self.pairs[p].ends[CLIENT].conn {
                    self.break_conn(c, CLIENT, Ending::Reset);
                }
            }
            FaultKind::Brink { for_us, late_us } => {
                self.pairs[p].path.late_after_us = late_us;
                self.pairs[p].path.refuse = true;
                self.silence(p, [true; 2], for_us, false);
                if let Some(c) = self.pairs[p].ends[CLIENT].conn {
                    self.break_conn(c, CLIENT, Ending::Reset);
                }
            }
            FaultKind::LateHello { late_us, for_us } => {
                self.pairs[p].path.late_us = late_us;
                self.heal_later(p, for_us);
                self.cut_soon(p, CLIENT, 0, Ending::Reset);
            }
            FaultKind::Suspend { side, both, for_us } => self.suspend(p, side, both, for_us),
            FaultKind::RestartClient { same_key } => self.restart_client(p, same_key),
            FaultKind::RestartEndpoint => self.restart_endpoint(),
            FaultKind::GoAway { side } => self.go_away(p, side),
            FaultKind::Settings => self.change_settings(self.pairs[p].slot),
        }
    }

    fn go_away(&mut self, p: usize, side: Side) {
        let now = self.time();
        let end = &mut self.pairs[p].ends[side];
        if end.alive && !end.finished {
            end.session.go_away(now, GoAwayReason::Drain, "drain");
            self.pairs[p].draining = true;
            self.touch(p, side);
        }
    }

    /// The newest link in the place of the `target`th one.
    fn link_for(&self, target: usize) -> usize {
        let current: Vec<usize> = self.current_pairs().collect();
        current[target % current.len()]
    }

    fn cut_soon(&mut self, p: usize, side: Side, after: u64, ending: Ending) {
        let Some(c) = self.newest_conn(p) else {
            return;
        };
        let conn = &mut self.conns[c];
        conn.faulted = true;
        conn.cut_ending = ending;
        let pipe = &mut conn.pipes[side];
        pipe.cut_at = Some(pipe.delivered + after);
        if after == 0 {
            self.break_conn(c, 1 - side, ending);
        }
    }

    fn half_cut(&mut self, p: usize, again: bool) {
        self.pairs[p].break_cut_over |= again;
        if let Some(c) = self.pairs[p].ends[CLIENT].conn {
            self.conns[c].faulted = true;
            self.conns[c].open[CLIENT] = false;
            self.gone(c, CLIENT, false);
        }
    }

    fn silence(&mut self, p: usize, sides: [bool; 2], for_us: u64, old_only: bool) {
        let conn = self.newest_conn(p);
        for (side, dead) in sides.into_iter().enumerate() {
            if !dead {
                continue;
            }
            if !old_only {
                self.pairs[p].path.dead[side] = true;
            }
            if let Some(c) = conn {
                self.conns[c].pipes[side].dead = true;
                self.conns[c].silent_since[1 - side].get_or_insert(self.now);
            }
        }
        if let Some(c) = conn {
            self.conns[c].faulted = true;
            self.coverage.count("silences", 1);
        }
        self.heal_later(p, for_us);
    }

    fn small_only(&mut self, p: usize, for_us: u64) {
        self.pairs[p].path.small_only = true;
        if let Some(c) = self.newest_conn(p) {
            self.conns[c].faulted = true;
            for pipe in &mut self.conns[c].pipes {
                pipe.small_only = Some(super::world::SMALL_BYTES);
            }
        }
        self.heal_later(p, for_us);
    }

    fn heal_later(&mut self, p: usize, for_us: u64) {
        let path = &mut self.pairs[p].path;
        path.heals_at = path.heals_at.max(self.now + for_us);
        path.healthy = false;
        let at = path.heals_at;
        self.push(at, Wake::Heal(p));
    }

    pub fn heal(&mut self, p: usize) {
        if self.pairs[p].path.heals_at > self.now {
            return;
        }
        self.note(|| format!("link {p} heals"));
        let path = &mut self.pairs[p].path;
        path.dead = [false; 2];
        path.small_only = false;
        path.refuse = false;
        path.late_us = std::mem::take(&mut path.late_after_us);
        path.healthy = path.late_us == 0;
        path.healthy_since = path.healthy_since.max(self.now);
        if !path.healthy {
            path.heals_at = self.now + 4 * SECOND;
            self.push(self.now + 4 * SECOND, Wake::Heal(p));
        }
        for c in 0..self.conns.len() {
            if self.conns[c].pair == p {
                for side in [CLIENT, ENDPOINT] {
                    self.conns[c].pipes[side].revive(self.now);
                    self.conns[c].silent_since[side] = None;
                    self.after_pipe(c, side);
                }
            }
        }
    }

    fn suspend(&mut self, p: usize, side: Side, both: bool, for_us: u64) {
        let until = self.now + for_us;
        for s in [CLIENT, ENDPOINT] {
            if both || s == side {
                let h = self.pairs[p].ends[s].host;
                self.hosts[h].suspended_until = until;
            }
        }
        for q in 0..self.pairs.len() {
            let hosts = [0, 1].map(|s| self.pairs[q].ends[s].host);
            if hosts.iter().any(|h| self.hosts[*h].suspended_until == until) {
                let path = &mut self.pairs[q].path;
                path.healthy_since = path.healthy_since.max(until);
                for conn in self.conns.iter_mut().filter(|c| c.pair == q) {
                    conn.faulted = true;
                }
            }
        }
        self.calm_at = self.calm_at.max(until + SECOND);
    }
}
