//! Processes and their links: who holds which session and which budget, and what a restart replaces.

use std::collections::{BTreeMap, HashMap};

use dataplane::limits::RESUME_WINDOW;
use dataplane::mux::{Budget, BudgetConfig, Code, Config, Hello, Session, Side as MuxSide, StreamRef};

use super::network::{Ending, Profile};
use super::wire::Track;
use super::world::{Wake, World};
use super::{CLIENT, ENDPOINT, MS, Side};

/// A process: one shard, one budget.
pub struct Host {
    pub budget: Budget,
    pub config: BudgetConfig,
    pub suspended_until: u64,
    pub alive: bool,
    /// Times that a stream with credit was given no room.
    pub refusals: u64,
}

/// A member's place in the pool.
pub struct Slot {
    pub member: [u8; 16],
    /// Rules' version of `sc`, what the endpoint holds, and what `sc` knows that it holds.
    pub client_version: u32,
    pub endpoint_version: u32,
    pub known_version: u32,
    /// Link that carries a SETTINGS without an answer yet.
    pub sent_on: Option<usize>,
    pub sent_version: u32,
}

/// How the path of one link behaves for new connections.
pub struct Path {
    pub profiles: [Profile; 2],
    pub dead: [bool; 2],
    pub small_only: bool,
    pub refuse: bool,
    pub late_us: u64,
    /// Once healed, first bytes come so late for a while.
    pub late_after_us: u64,
    pub heals_at: u64,
    pub healthy: bool,
    pub healthy_since: u64,
    /// When each side last took streams, or could not be asked to.
    pub live_at: [u64; 2],
}

/// One side of a link.
pub struct End {
    pub session: Session,
    pub host: usize,
    pub alive: bool,
    pub conn: Option<usize>,
    pub dialing: Option<usize>,
    pub writing: bool,
    pub closing: bool,
    /// The last connection ended with the other side's close_notify.
    pub closed_cleanly: bool,
    pub cut_over: Option<(usize, Hello)>,
    pub queued: bool,
    pub finished: bool,
    pub armed: u64,
    pub streams: HashMap<StreamRef, u32>,
    pub track: Track,
    /// The first loss since the last progress.
    pub lost_since: Option<u64>,
    /// Its streams were ended (or the process is new): the other side's will end as well.
    pub ended_at: Option<u64>,
    pub live_since: Option<u64>,
    /// When it last had no stream open.
    pub quiet_since: u64,
    pub epoch_accepted: u64,
    pub sessions_ended: u32,
}

/// One link, both ends.
pub struct Pair {
    pub slot: usize,
    pub link: u16,
    pub ends: [End; 2],
    pub path: Path,
    /// GOAWAY was sent on it.
    pub draining: bool,
    /// Replaced: its endpoint end waits for its expiry.
    pub retired: bool,
    pub cut_in_replay: bool,
    /// The next connection breaks during its cut-over.
    pub break_cut_over: bool,
    /// Simulated stream → where its OPEN went.
    pub placed: BTreeMap<u32, StreamRef>,
}

impl World {
    pub fn boot(&mut self) {
        let endpoint = self.new_host(self.scenario.endpoint);
        for slot in 0..self.scenario.members {
            let member = self.rng.key();
            let held = self.scenario.settings;
            self.slots.push(Slot {
                member,
                client_version: 1,
                endpoint_version: held,
                known_version: 0,
                sent_on: None,
                sent_version: 0,
            });
            let client = self.new_host(self.scenario.client);
            for link in 0..self.scenario.links {
                self.new_pair(slot, link, client, endpoint);
            }
        }
    }

    fn new_host(&mut self, config: BudgetConfig) -> usize {
        self.hosts.push(Host {
            budget: Budget::new(config),
            config,
            suspended_until: 0,
            alive: true,
            refusals: 0,
        });
        self.hosts.len() - 1
    }

    fn new_end(&mut self, side: Side, key: usize, slot: usize, link: u16, host: usize) -> End {
        let config = Config {
            side: [MuxSide::Client, MuxSide::Endpoint][side],
            key: key as u32,
            link,
            links: self.scenario.links,
            member: self.slots[slot].member,
            seed: self.rng.key(),
            settings: [self.slots[slot].client_version, self.slots[slot].endpoint_version][side],
            resume_window: RESUME_WINDOW,
        };
        End {
            session: Session::new(config, self.time()),
            host,
            alive: true,
            conn: None,
            dialing: None,
            writing: false,
            closing: false,
            closed_cleanly: false,
            cut_over: None,
            queued: false,
            finished: false,
            armed: u64::MAX,
            streams: HashMap::new(),
            track: Track::default(),
            lost_since: None,
            ended_at: None,
            live_since: None,
            quiet_since: self.now,
            epoch_accepted: 0,
            sessions_ended: 0,
        }
    }

    fn new_pair(&mut self, slot: usize, link: u16, client: usize, endpoint: usize) -> usize {
        let key = self.pairs.len();
        let awake = self
            .now
            .max(self.hosts[client].suspended_until)
            .max(self.hosts[endpoint].suspended_until);
        let ends = [
            self.new_end(CLIENT, key, slot, link, client),
            self.new_end(ENDPOINT, key, slot, link, endpoint),
        ];
        self.pairs.push(Pair {
            slot,
            link,
            ends,
            path: Path {
                profiles: self.scenario.paths,
                dead: [false; 2],
                small_only: false,
                refuse: false,
                late_us: 0,
                late_after_us: 0,
                heals_at: 0,
                healthy: true,
                healthy_since: awake,
                live_at: [awake; 2],
            },
            draining: false,
            retired: false,
            cut_in_replay: false,
            break_cut_over: false,
            placed: BTreeMap::new(),
        });
        self.touch(key, CLIENT);
        self.touch(key, ENDPOINT);
        key
    }

    pub fn current_pairs(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.pairs.len()).filter(|p| !self.pairs[*p].retired)
    }

    /// The newest connection that either side of link `p` still holds.
    pub fn newest_conn(&self, p: usize) -> Option<usize> {
        let held = |c: &usize| {
            let conn = &self.conns[*c];
            conn.pair == p && conn.up && !conn.broken && (conn.open[0] || conn.open[1])
        };
        (0..self.conns.len()).rev().find(held)
    }

    pub fn touch(&mut self, p: usize, side: Side) {
        let end = &mut self.pairs[p].ends[side];
        if !end.queued {
            end.queued = true;
            self.dirty.push_back((p, side));
        }
    }

    /// The process of one side of link `p` is gone: the kernel resets its connections.
    fn kill_side(&mut self, p: usize, side: Side) {
        self.pairs[p].ends[side].alive = false;
        for c in 0..self.conns.len() {
            if self.conns[c].pair == p && self.conns[c].open[side] {
                let conn = &mut self.conns[c];
                conn.open[side] = false;
                conn.faulted = true;
                if conn.pipes[side].ending.is_none() {
                    conn.pipes[side].ending = Some(Ending::Reset);
                }
                conn.pipes[side].drop_unsent();
                conn.pipes[side].pump(self.now);
                self.arm_pipe(c, side);
            }
        }
        let now = self.now;
        let numbers: Vec<u32> = self.pairs[p].ends[side].streams.values().copied().collect();
        for n in numbers {
            self.streams[n as usize].vanish(side);
            for code in [Code::PeerRestarted, Code::TunnelDown] {
                self.streams[n as usize].excuse(code);
            }
        }
        self.pairs[p].ends[side].ended_at = Some(now);
        self.excuse_late_opens(p);
    }

    /// OPENs that are on their way when a session ends meet none.
    pub fn excuse_late_opens(&mut self, p: usize) {
        for n in self.pairs[p].placed.keys().copied().collect::<Vec<_>>() {
            for code in [Code::PeerRestarted, Code::TunnelDown] {
                self.streams[n as usize].excuse(code);
            }
        }
    }

    pub fn restart_client(&mut self, p: usize, same_key: bool) {
        let slot = self.pairs[p].slot;
        let host = self.new_host(self.scenario.client);
        self.hosts[self.pairs[p].ends[CLIENT].host].alive = false;
        self.coverage.count("restarts of sc", 1);
        if !same_key {
            self.slots[slot].member = self.rng.key();
        }
        self.slots[slot].sent_on = None;
        self.slots[slot].known_version = 0;
        let links: Vec<usize> = self.current_pairs().filter(|q| self.pairs[*q].slot == slot).collect();
        for q in links {
            self.kill_side(q, CLIENT);
            let link = self.pairs[q].link;
            if same_key && !self.pairs[q].draining {
                let end = self.new_end(CLIENT, q, slot, link, host);
                self.pairs[q].ends[CLIENT] = end;
                self.pairs[q].ends[CLIENT].ended_at = Some(self.now);
                let path = &mut self.pairs[q].path;
                path.healthy_since = path.healthy_since.max(self.now);
                self.touch(q, CLIENT);
            } else {
                self.pairs[q].retired = true;
                let endpoint = self.pairs[q].ends[ENDPOINT].host;
                self.new_pair(slot, link, host, endpoint);
            }
        }
    }

    pub fn restart_endpoint(&mut self) {
        let host = self.new_host(self.scenario.endpoint);
        self.coverage.count("restarts of the endpoint", 1);
        let version = self.scenario.settings;
        for slot in &mut self.slots {
            slot.endpoint_version = version;
        }
        for p in 0..self.pairs.len() {
            let old = self.pairs[p].ends[ENDPOINT].host;
            self.hosts[old].alive = false;
            self.kill_side(p, ENDPOINT);
            if self.pairs[p].retired {
                continue;
            }
            let (slot, link) = (self.pairs[p].slot, self.pairs[p].link);
            let end = self.new_end(ENDPOINT, p, slot, link, host);
            self.pairs[p].ends[ENDPOINT] = end;
            self.pairs[p].ends[ENDPOINT].ended_at = Some(self.now);
            let path = &mut self.pairs[p].path;
            path.healthy_since = path.healthy_since.max(self.now);
            self.touch(p, ENDPOINT);
        }
    }

    /// A drained link is over: a new one takes its place, as when a member attaches again.
    pub fn replace_drained(&mut self, p: usize) {
        if self.pairs[p].retired {
            return;
        }
        let ends = &self.pairs[p].ends;
        let strange = ends[CLIENT].ended_at.is_some() || ends[CLIENT].track.sessions == 0;
        let gone = ends[CLIENT].finished || (ends[ENDPOINT].finished && strange);
        if gone {
            self.pairs[p].retired = true;
            if self.pairs[p].ends[CLIENT].track.sessions == 0 {
                self.kill_side(p, CLIENT);
            }
            let (slot, link) = (self.pairs[p].slot, self.pairs[p].link);
            let hosts = [CLIENT, ENDPOINT].map(|s| self.pairs[p].ends[s].host);
            if self.slots[slot].sent_on == Some(p) {
                self.slots[slot].sent_on = None;
            }
            self.new_pair(slot, link, hosts[CLIENT], hosts[ENDPOINT]);
        }
    }

    // ── Settings ──────────────────────────────────────────────────────────────────────────────────────────────

    pub fn change_settings(&mut self, slot: usize) {
        self.slots[slot].client_version += 1;
        self.coverage.count("settings changes", 1);
        self.send_settings(slot);
    }

    /// Sends the newest rules on one live link, unless one reload is still in flight.
    pub fn send_settings(&mut self, slot: usize) {
        let version = self.slots[slot].client_version;
        if self.slots[slot].sent_on.is_some() || self.slots[slot].known_version >= version {
            return;
        }
        let live = self.current_pairs().find(|p| {
            let pair = &self.pairs[*p];
            let end = &pair.ends[CLIENT];
            pair.slot == slot && end.alive && end.session.is_live()
        });
        let Some(p) = live else { return };
        let bytes = self.rng.pick(&[2, 300, 20_000, 50_000]);
        let json = self.settings_json.entry(version).or_insert_with(|| {
            let mut json = vec![0; bytes];
            super::prng::fill(u64::from(version), 0, &mut json);
            json.into()
        });
        let json = json.clone();
        self.slots[slot].sent_on = Some(p);
        self.slots[slot].sent_version = version;
        self.pairs[p].ends[CLIENT].session.send_settings(version, json);
        self.touch(p, CLIENT);
    }

    /// The endpoint has parsed rules that came over link `p`: switches, then answers on every session of the member.
    pub fn settings_parsed(&mut self, p: usize, version: u32) {
        let slot = self.pairs[p].slot;
        if !self.pairs[p].ends[ENDPOINT].alive {
            return;
        }
        let newer = version > self.slots[slot].endpoint_version;
        if newer {
            self.slots[slot].endpoint_version = version;
        }
        let held = self.slots[slot].endpoint_version;
        for q in 0..self.pairs.len() {
            let pair = &mut self.pairs[q];
            if pair.slot != slot || !pair.ends[ENDPOINT].alive || (!newer && q != p) {
                continue;
            }
            pair.ends[ENDPOINT].session.settings_ack(held, true, "");
            self.touch(q, ENDPOINT);
        }
        self.push(self.now, Wake::Place);
    }

    pub fn settings_arrived(&mut self, p: usize, version: u32, json: &[u8]) {
        if self.settings_json.get(&version).is_none_or(|sent| sent != json) {
            let text = format!("SETTINGS {version} arrived as other bytes");
            self.fail(super::Failure::new("settings", text));
        }
        let at = self.now + self.rng.below(30 * MS);
        self.push(at, Wake::Parsed(p, version));
    }
}
