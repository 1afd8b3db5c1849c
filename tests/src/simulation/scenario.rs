//! What a seed stands for: topology, budgets, paths, streams and faults.

use dataplane::mux::frame::kind;
use dataplane::mux::{BudgetConfig, Code, Kind};

use super::coverage::Cell;

use super::faults::{Fault, FaultKind};
use super::network::Profile;
use super::prng::Prng;
use super::{CLIENT, ENDPOINT, MS, SECOND, Side};

/// How a sender ends its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndPlan {
    Fin,
    /// Cut after so many bytes.
    ResetAt(u64, Code),
    /// All bytes and FIN, then RESET of the other direction.
    FinThenReset(Code),
}

/// One direction of a stream: its sender's plan and its receiver's habits.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub bytes: u64,
    /// Bytes that come at once, then so many after each pause.
    pub burst: u64,
    pub pause_us: u64,
    pub end: EndPlan,
    /// The reader takes so long for each slice; 0: at once.
    pub read_us: u64,
    /// From this offset on the reader stalls until then.
    pub stall: Option<(u64, u64)>,
    /// The sender starts once it has received so many bytes.
    pub after: u64,
}

impl Way {
    pub fn plain(bytes: u64) -> Self {
        Self {
            bytes,
            burst: u64::MAX,
            pause_us: 0,
            end: EndPlan::Fin,
            read_us: 0,
            stall: None,
            after: 0,
        }
    }
}

/// A stream to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub at: u64,
    pub opener: Side,
    pub kind: Kind,
    /// Client of an own (`relay`) stream; the endpoint chooses by load.
    pub slot: usize,
    /// Index = the side that sends.
    pub ways: [Way; 2],
    /// The opener of a `tcp` stream waits for OPENED, and then asks for TLS.
    pub wait: bool,
    pub start_tls: bool,
}

impl Plan {
    /// One exchange of so many bytes each way, both from the start.
    pub fn exchange(at: u64, opener: Side, bytes: [u64; 2]) -> Self {
        Self {
            at,
            opener,
            kind: if opener == CLIENT { Kind::Relay } else { Kind::Http },
            slot: 0,
            ways: bytes.map(Way::plain),
            wait: false,
            start_tls: false,
        }
    }
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub members: usize,
    pub links: u16,
    pub client: BudgetConfig,
    pub endpoint: BudgetConfig,
    /// Index = sending side.
    pub paths: [Profile; 2],
    pub streams: Vec<Plan>,
    pub faults: Vec<Fault>,
    /// All faults are over and all readers awake.
    pub calm_at: u64,
    /// Rules' version of the endpoint at the start.
    pub settings: u32,
    /// ≥ 2 cuts and ≥ 1 replay are made to happen.
    pub insist: bool,
    /// Calm time until everything must be over.
    pub patience_us: u64,
    /// One side opens more streams than the other can refuse in time.
    pub floods: bool,
}

impl Scenario {
    /// Healthy links, no streams, no faults.
    pub fn plain(client: BudgetConfig, endpoint: BudgetConfig, path: Profile) -> Self {
        Self {
            members: 1,
            links: 1,
            client,
            endpoint,
            paths: [path; 2],
            streams: Vec::new(),
            faults: Vec::new(),
            calm_at: 0,
            settings: 1,
            insist: false,
            patience_us: 600 * SECOND,
            floods: false,
        }
    }

    pub fn draw(seed: u64) -> Self {
        let mut rng = Prng::new(seed);
        let members = if rng.chance(20) { 3 } else { 1 };
        let links = rng.between(1, 3) as u16;
        let small = rng.chance(45);
        let few = rng.chance(15);
        let client = budget(&mut rng, small, few, CLIENT);
        let endpoint = budget(&mut rng, small, few, ENDPOINT);
        let paths = paths(&mut rng);
        let active = rng.between(4, 25) * SECOND;
        let calm_at = active + 2 * SECOND;
        let mut streams = streams(&mut rng, members, active, calm_at);
        let hoards = small && rng.chance(60);
        let hoarded = hoards.then(|| hoard(&mut rng, &mut streams, active));
        let pairs = members * usize::from(links);
        let mut faults = super::faults::draw(&mut rng, pairs, members, active);
        faults.extend(hoarded.into_iter().flatten());
        let mut scenario = Self {
            members,
            links,
            client,
            endpoint,
            paths,
            streams,
            faults,
            calm_at,
            settings: if rng.chance(20) { 0 } else { 1 },
            insist: true,
            patience_us: 200 * SECOND,
            floods: false,
        };
        if rng.chance(1) {
            flood(&mut scenario);
        } else if rng.chance(15) {
            bulk(&mut rng, &mut scenario);
        }
        scenario
    }
}

fn budget(rng: &mut Prng, small: bool, few: bool, side: Side) -> BudgetConfig {
    let (pool, tx) = if small {
        (rng.pick(&[96, 256, 1024]) * 1024, rng.pick(&[192, 512, 1024]) * 1024)
    } else {
        (16 << 20, 16 << 20)
    };
    let streams = if few { rng.between(5, 12) as usize } else { 256 };
    let own = if side == CLIENT { 64 } else { 256 };
    BudgetConfig {
        pool_bytes: pool,
        tx_bytes: tx,
        streams_peer_max: if side == CLIENT { streams } else { 64 },
        streams_own_max: own,
    }
}

/// Queues stay below 2 s, so that a healthy link is never silent for the 3 s that count as death.
fn paths(rng: &mut Prng) -> [Profile; 2] {
    [0, 1].map(|_| {
        let delay = rng.pick(&[200, 2_000, 20_000, 60_000, 150_000]) + rng.below(500);
        let rate = rng.pick(&[400, 1_000, 12_500, 125_000]);
        let deep = rng.chance(30);
        let queue = if deep { rate * 600 } else { rate * 50 };
        let mut path = Profile::new(delay, rate, queue.min(4 << 20) as usize);
        path.slow_start = rng.chance(30);
        path.ragged = rng.chance(30);
        path.segment_bytes_max = rng.pick(&[1_400, 4_096, 16_384, 65_536]);
        path
    })
}

fn length(rng: &mut Prng) -> u64 {
    match rng.below(10) {
        0 => 0,
        1..=4 => rng.between(1, 3_000),
        5..=7 => rng.between(1, 60_000),
        8 => rng.between(20_000, 300_000),
        _ => rng.pick(&[4_096, 16_372, 16_384, 32_744, 65_536]),
    }
}

fn way(rng: &mut Prng, active: u64, calm_at: u64) -> Way {
    let bytes = length(rng);
    let mut way = Way::plain(bytes);
    if rng.chance(30) {
        way.burst = rng.between(1, 20_000);
        way.pause_us = rng.between(10, 2_000) * MS;
        way.burst = way.burst.max(bytes / 12 + 1);
    }
    way.end = match rng.below(20) {
        0 => EndPlan::ResetAt(rng.between(0, bytes), Code::SiteReset),
        1 => EndPlan::ResetAt(rng.between(0, bytes), Code::IdleTimeout),
        2 => EndPlan::FinThenReset(Code::Cancelled),
        _ => EndPlan::Fin,
    };
    if rng.chance(20) {
        way.read_us = rng.between(1, 80) * MS;
    }
    if rng.chance(25) {
        let until = if rng.chance(50) {
            calm_at
        } else {
            rng.between(active / 2, calm_at)
        };
        way.stall = Some((rng.between(0, bytes), until));
    }
    way
}

fn streams(rng: &mut Prng, members: usize, active: u64, calm_at: u64) -> Vec<Plan> {
    let count = rng.between(8, 22);
    let crowd = rng.chance(50);
    (0..count)
        .map(|_| {
            let kind = rng.pick(&[
                Kind::Tcp,
                Kind::Tcp,
                Kind::Http,
                Kind::Http,
                Kind::Https,
                Kind::Relay,
                Kind::Probe,
            ]);
            let opener = if kind == Kind::Relay { CLIENT } else { ENDPOINT };
            let mut ways = [0, 1].map(|_| way(rng, active, calm_at));
            if rng.chance(50) {
                ways[1 - opener].after = ways[opener].bytes.min(rng.between(0, 2_000));
            }
            let wait = kind == Kind::Tcp && rng.chance(60);
            Plan {
                at: if crowd {
                    rng.below(2 * SECOND)
                } else {
                    rng.below(active)
                },
                opener,
                kind,
                slot: rng.below(members as u64) as usize,
                ways,
                wait,
                start_tls: wait && rng.chance(50),
            }
        })
        .collect()
}

/// Long streams that pause: they fill the budgets, and their idle credit is recalled. The recall is to be cut.
fn hoard(rng: &mut Prng, streams: &mut [Plan], active: u64) -> [Fault; 2] {
    let way = rng.pick(&[CLIENT, ENDPOINT]);
    for plan in streams.iter_mut().take(6) {
        let bytes = rng.between(120_000, 400_000);
        let mut long = Way::plain(bytes);
        long.burst = rng.between(50_000, 150_000);
        long.pause_us = rng.between(1, 4) * SECOND;
        if rng.chance(30) {
            long.stall = Some((rng.below(bytes), rng.between(active / 2, active)));
        }
        plan.ways[way] = long;
        plan.ways[1 - way].after = 0;
    }
    [(kind::RECALL, 1 - way), (kind::RETURN, way)].map(|(kind, side)| Fault {
        at: rng.below(active / 2),
        target: 0,
        kind: FaultKind::Aim(Cell {
            kind,
            side,
            header: rng.chance(50),
        }),
    })
}

/// Writes that stand in a slow path for long, opens and settings behind them, then silence.
fn bulk(rng: &mut Prng, scenario: &mut Scenario) {
    let way = rng.pick(&[CLIENT, ENDPOINT]);
    scenario.paths[way] = Profile::new(20 * MS, rng.pick(&[400, 800]), 60_000);
    scenario.client = budget(rng, false, false, CLIENT);
    scenario.endpoint = budget(rng, false, false, ENDPOINT);
    for plan in scenario.streams.iter_mut().take(7) {
        plan.at = rng.below(SECOND);
        plan.ways[way] = Way::plain(rng.between(200_000, 400_000));
        plan.ways[1 - way].after = 0;
    }
    for plan in scenario.streams.iter_mut().skip(7) {
        plan.at = rng.below(5 * SECOND);
    }
    for _ in 0..3 {
        scenario.faults.push(Fault {
            at: rng.between(500, 4_500) * MS,
            target: rng.below(9) as usize,
            kind: FaultKind::Settings,
        });
    }
    if rng.chance(60) {
        scenario.faults.push(Fault {
            at: rng.between(500, 3_000) * MS,
            target: rng.below(9) as usize,
            kind: FaultKind::Dead {
                sides: rng.pick(&[[true, true], [true, false], [false, true]]),
                for_us: 12 * SECOND,
                old_only: true,
            },
        });
    }
}

/// Streams that a full client must refuse while its own bytes stand still.
fn flood(scenario: &mut Scenario) {
    scenario.members = 1;
    scenario.links = 1;
    scenario.floods = true;
    scenario.client.streams_peer_max = 5;
    (scenario.client.pool_bytes, scenario.client.tx_bytes) = (16 << 20, 16 << 20);
    (scenario.endpoint.pool_bytes, scenario.endpoint.tx_bytes) = (16 << 20, 16 << 20);
    scenario.endpoint.streams_own_max = 4_096;
    scenario.paths = [Profile::new(5 * MS, 2_000, 20_000); 2];
    let plan = |at, bytes| Plan::exchange(at, ENDPOINT, [bytes, 10]);
    scenario.streams = (0..5).map(|_| plan(0, 400_000)).collect();
    scenario.streams.extend((0..1_400).map(|i| plan(1_000 * MS + i, 100)));
    scenario
        .faults
        .retain(|f| matches!(f.kind, FaultKind::Aim(_) | FaultKind::Cut { .. }));
    for fault in &mut scenario.faults {
        fault.at += 4 * SECOND;
    }
    scenario.faults.push(Fault {
        at: 900 * MS,
        target: 0,
        kind: FaultKind::Dead {
            sides: [true, false],
            for_us: 2 * SECOND,
            old_only: true,
        },
    });
}
