//! Throughput and fairness on the virtual clock, asserted as a share of what the same path carries without flow
//! control, or in round trips. An oracle of its own: rules that only cost time show here.

use super::network::{Profile, bare_transfer_us};
use super::prng::Prng;
use super::scenario::{Plan, Way};
use super::{CLIENT, ENDPOINT, Failure, MS, SECOND, Scenario, World};
use dataplane::limits::{CLIENT_TX_BYTES, ENDPOINT_TX_BYTES, FRAME_PAYLOAD_BYTES_MAX, RTT_MEMORY};
use dataplane::mux::BudgetConfig;

const MIB: usize = 1 << 20;
/// Later than any run.
pub const NEVER: u64 = u64::MAX / 4;
const BULK_BYTES: u64 = 100_000_000;
const ORACLE: &str = "throughput";

/// Fails if it was slower than it must be, or by another oracle on the way.
pub type Outcome = Result<(), Failure>;

/// One shard with the sizes that the programs have by default.
pub fn sizes(pool_bytes: usize, peer: usize, own: usize) -> BudgetConfig {
    BudgetConfig {
        pool_bytes,
        tx_bytes: ENDPOINT_TX_BYTES,
        streams_peer_max: peer,
        streams_own_max: own,
    }
}

fn plain(path: Profile) -> Scenario {
    let mut client = sizes(64 * MIB, 8_192, 1_024);
    client.tx_bytes = CLIENT_TX_BYTES;
    let endpoint = sizes(128 * MIB, 1_024, 8_192);
    let mut scenario = Scenario::plain(client, endpoint, path);
    scenario.calm_at = NEVER;
    scenario
}

/// A link with the default sizes on this path, without streams or faults.
pub fn world(path: Profile) -> World {
    World::new(plain(path), 1)
}

/// Runs until `until` holds.
///
/// # Errors
/// The oracle that failed before.
pub fn go(world: &mut World, until: impl FnMut(&World) -> bool) -> Outcome {
    if world.run_until(until) {
        return Ok(());
    }
    let nothing = || Failure::new(ORACLE, "the run ended before".into());
    Err(world.failure.clone().unwrap_or_else(nothing))
}

/// Runs for so long.
///
/// # Errors
/// As [`go`].
pub fn go_on(world: &mut World, for_us: u64) -> Outcome {
    let end = world.now + for_us;
    go(world, |w| w.now >= end)
}

/// A request of nothing and an answer of so many bytes, whose reader stalls from an offset on.
pub fn download(at: u64, bytes: u64, stall: Option<u64>) -> Plan {
    let mut plan = Plan::exchange(at, ENDPOINT, [bytes, 0]);
    plan.ways[CLIENT].stall = stall.map(|from| (from, NEVER));
    plan
}

fn at_most(what: &str, value: u64, max: u64, unit: &str) -> Outcome {
    println!("{what}: {value} {unit}");
    if value <= max {
        return Ok(());
    }
    Err(Failure::new(ORACLE, format!("{what}: {value} {unit}, at most {max}")))
}

// ── Shares of the bare path ───────────────────────────────────────────────────────────────────────────────────

fn long_path(mbit: u64) -> Profile {
    let rate = mbit * 125;
    let delay = 40 * MS;
    let mut path = Profile::new(delay, rate, (rate * 80) as usize);
    path.slow_start = true;
    path.segment_bytes_max = 65_536;
    path
}

/// Percent of the bare path that moving `bytes` within `took_us` comes to.
fn share(path: Profile, bytes: u64, took_us: u64, warm: bool) -> u64 {
    bare_transfer_us(path, bytes, warm) * 100 / took_us
}

/// An answer of so many bytes, from now on, takes at least `needed` percent of what the path carries.
fn carries(w: &mut World, what: &str, path: Profile, bytes: u64, warm: bool, needed: u64) -> Outcome {
    let started = w.now;
    let n = w.add_stream(download(0, bytes, None));
    let latest = started + bare_transfer_us(path, bytes, warm) * 100 / needed;
    go(w, |w| w.has_read(n, ENDPOINT) || w.now > latest)?;
    let arrived = w.streams[n as usize].ways[CLIENT].received;
    let share = share(path, bytes, w.now - started, warm);
    println!("{what}: {share} %");
    if arrived == bytes && share >= needed {
        return Ok(());
    }
    let text = format!("{what}: {arrived} of {bytes} bytes in the time of {needed} % of the bare path");
    Err(Failure::new(ORACLE, text))
}

/// 100 MB, on a fresh link and then on a warm one.
///
/// # Errors
/// Below four fifths of the bare path.
pub fn bulk(mbit: u64) -> Outcome {
    let path = long_path(mbit);
    let mut w = world(path);
    go_on(&mut w, SECOND)?;
    carries(&mut w, &format!("{mbit} Mbit/s, cold"), path, BULK_BYTES, false, 80)?;
    go_on(&mut w, 500 * MS)?;
    carries(&mut w, &format!("{mbit} Mbit/s, warm"), path, BULK_BYTES, true, 80)
}

/// A path of 5 Gbit/s and 80 ms between two processes that get the processor by turns, to a reader that is hardly faster
/// than the path: 100 MiB on a fresh link, then 1 GiB.
///
/// # Errors
/// The first takes half a second longer than the bare path, or the second, after its first second, comes to less than
/// four fifths of it.
pub fn far_and_fast() -> Outcome {
    let mut path = long_path(5_000);
    path.slow_start = false;
    let mut w = world(path);
    let mut turns = Prng::new(1);
    go_on(&mut w, SECOND)?;
    let mut plan = download(0, 100 * MIB as u64, None);
    plan.ways[CLIENT].read_us = 20;
    let bare = bare_transfer_us(path, 100 * MIB as u64, false);
    let started = w.now;
    let n = w.add_stream(plan);
    go_by_turns(&mut w, &mut turns, |w| w.has_read(n, ENDPOINT))?;
    let late = (w.now - started).saturating_sub(bare) / MS;
    at_most("5 Gbit/s at 80 ms, cold, later than the bare path", late, 500, "ms")?;

    go_on(&mut w, 500 * MS)?;
    plan.ways[CLIENT].bytes = 1024 * MIB as u64;
    let opened = w.now + SECOND;
    let n = w.add_stream(plan);
    let received = |w: &World| w.streams[n as usize].ways[CLIENT].received;
    go_by_turns(&mut w, &mut turns, |w| w.now >= opened)?;
    let (from, already) = (w.now, received(&w));
    go_by_turns(&mut w, &mut turns, |w| w.has_read(n, ENDPOINT))?;
    let percent = (received(&w) - already) * 100_000 / path.bytes_per_ms / (w.now - from);
    println!("5 Gbit/s at 80 ms, warm: {percent} %");
    if percent >= 80 {
        return Ok(());
    }
    let text = format!("5 Gbit/s at 80 ms, warm: {percent} % of the path, at least 80");
    Err(Failure::new(ORACLE, text))
}

/// As [`go`], while one process or the other stands still for up to two milliseconds every few.
fn go_by_turns(w: &mut World, turns: &mut Prng, until: impl Fn(&World) -> bool) -> Outcome {
    // A stream that is to be opened finds both processes awake.
    go_on(w, MS)?;
    while !until(w) {
        let host = turns.below(w.hosts.len() as u64) as usize;
        w.hosts[host].suspended_until = w.now + turns.below(2 * MS);
        let end = w.now + turns.between(MS, 5 * MS);
        go(w, |w| w.now >= end || until(w))?;
    }
    Ok(())
}

/// A window is in proportion to what moves in a round trip, whatever holds the stream up: a router with a deep queue,
/// for longer than a round trip is remembered, or the reader.
///
/// # Errors
/// More than five round trips' worth are outstanding.
pub fn windows_in_proportion() -> Outcome {
    let deep = |mbit: u64| {
        let mut path = long_path(mbit);
        path.window_bytes = 64 * MIB;
        path
    };
    let slices_per_second = 12_500_000 / FRAME_PAYLOAD_BYTES_MAX as u64;
    for (what, path, read_us) in [
        ("a router with a deep queue", deep(100), 0),
        ("a slow reader", deep(1_000), SECOND / slices_per_second),
    ] {
        let mut w = world(path);
        go_on(&mut w, SECOND)?;
        let mut plan = download(0, 500_000_000, None);
        plan.ways[CLIENT].read_us = read_us;
        w.add_stream(plan);
        let mut most = 0;
        let end = w.now + 3 * RTT_MEMORY.as_micros() as u64;
        while w.now < end {
            go_on(&mut w, 10 * MS)?;
            most = most.max(w.hosts[0].budget.rx_outstanding() as u64);
        }
        at_most(what, most / 10_000, 500, "% of a round trip's bytes outstanding")?;
    }
    Ok(())
}

/// 100 MB beside 2,000 streams that once had their window.
///
/// # Errors
/// Below three tenths of the bare path.
pub fn beside_idle_streams() -> Outcome {
    let path = long_path(1_000);
    let mut w = world(path);
    go_on(&mut w, SECOND)?;
    for i in 0..2_000 {
        // Each once had its window, then falls silent.
        let mut plan = download(i * 2 * MS, 1_000_000, None);
        plan.ways[CLIENT].burst = 90_000;
        plan.ways[CLIENT].pause_us = NEVER / 2;
        w.add_stream(plan);
    }
    go_on(&mut w, 8 * SECOND)?;
    carries(&mut w, "beside 2,000 idle streams", path, BULK_BYTES, true, 30)
}

/// 100 streams, one after the other, of which half stall and stay open.
///
/// # Errors
/// Below a fifth of the bare path.
pub fn staggered() -> Outcome {
    let path = long_path(1_000);
    let mut w = world(path);
    go_on(&mut w, SECOND)?;
    let started = w.now;
    let each = 2_000_000;
    let stalls_at = 500_000;
    for i in 0..100 {
        let stall = (i % 2 == 1).then_some(stalls_at);
        w.add_stream(download(i * 20 * MS, each, stall));
    }
    go(&mut w, |w| (0..100).step_by(2).all(|n| w.has_read(n, ENDPOINT)))?;
    let bytes = 50 * (each + stalls_at);
    let share = share(path, bytes, w.now - started, false);
    println!("100 staggered streams, half of them stalled: {share} %");
    if share >= 20 {
        return Ok(());
    }
    Err(Failure::new(
        ORACLE,
        format!("100 staggered streams: {share} % of 20 %"),
    ))
}

// ── Round trips ───────────────────────────────────────────────────────────────────────────────────────────────

/// 8,000 streams that hold what the pool had, and then one more.
///
/// # Errors
/// 1 MiB takes more than 300 round trips.
pub fn beside_stalled_streams() -> Outcome {
    let delay = 10 * MS;
    let mut path = Profile::new(delay, 1_250_000, 8 * MIB);
    path.segment_bytes_max = 65_536;
    let mut w = world(path);
    go_on(&mut w, SECOND)?;
    for i in 0..8_000 {
        // The first ones grow to what the pool has, one after the other; the others to what that leaves them.
        let from = if i < 16 { 40_000_000 } else { 24_000 };
        let at = if i < 16 { i * 600 * MS } else { 10 * SECOND + i * MS };
        w.add_stream(download(at, from + 64 * MIB as u64, Some(from)));
    }
    go(&mut w, |w| {
        w.now > 20 * SECOND && w.hosts[0].budget.streams().1 == 8_000
    })?;
    for stream in &mut w.streams {
        stream.plan.ways[CLIENT].stall = Some((0, NEVER));
    }
    go_on(&mut w, 2 * SECOND)?;
    let used = w.hosts[0].budget.rx_outstanding();
    if used <= 100 * MIB {
        return Err(Failure::new(
            ORACLE,
            format!("only {used} bytes of the pool are in use"),
        ));
    }
    let started = w.now;
    let n = w.add_stream(download(0, MIB as u64, None));
    go(&mut w, |w| w.has_read(n, ENDPOINT))?;
    let took = w.now - started;
    at_most(
        "1 MiB beside 8,000 stalled streams",
        took / (2 * delay),
        300,
        "round trips",
    )
}

/// A small exchange on a link that carries bulk.
///
/// # Errors
/// It takes more than 100 ms, two and a half round trips.
pub fn small_beside_bulk() -> Outcome {
    let mut w = world(Profile::new(20 * MS, 12_500, 64_000));
    go_on(&mut w, SECOND)?;
    w.add_stream(download(0, BULK_BYTES / 4, None));
    go_on(&mut w, SECOND)?;
    let started = w.now;
    let mut plan = Plan::exchange(0, ENDPOINT, [2_000, 300]);
    plan.ways[CLIENT] = Way {
        after: 300,
        ..Way::plain(2_000)
    };
    let n = w.add_stream(plan);
    go(&mut w, |w| w.has_read(n, ENDPOINT))?;
    at_most("small exchange beside bulk", (w.now - started) / MS, 100, "ms")
}

/// Streams of a slow link could keep the whole send budget of `sc` waiting; the other link must not notice.
///
/// # Errors
/// Below three fifths of the bare path.
pub fn beside_slow_link() -> Outcome {
    let path = Profile::new(5 * MS, 12_500, 64_000);
    let mut scenario = plain(path);
    scenario.links = 2;
    scenario.client.tx_bytes = MIB;
    let mut w = World::new(scenario, 1);
    w.pairs[0].path.profiles = [Profile::new(5 * MS, 100, 4_000); 2];
    go_on(&mut w, SECOND)?;
    for _ in 0..80 {
        w.add_stream(download(0, 200_000, None));
    }
    go_on(&mut w, SECOND)?;
    go(&mut w, |w| w.pairs[1].ends[CLIENT].session.streams_open() == 0)?;
    carries(&mut w, "a link beside a slow one", path, BULK_BYTES / 10, true, 60)
}
