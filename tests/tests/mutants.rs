//! Planted faults: each must be seen by an oracle of the simulator within the ordinary seeds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use dataplane::mux::planted;
use tests::simulation::throughput::{self, Outcome};
use tests::simulation::{Failure, run};

/// As many as the ordinary run has.
const SEEDS: u64 = 2_000;
const PLANTED_MIN: usize = 15;

/// Where a fault shows that only costs time.
fn slow(name: &str) -> Option<fn() -> Outcome> {
    match name {
        "refill-when-empty" | "growth-mark-stays" => Some(|| throughput::bulk(1_000)),
        "never-recall" => Some(throughput::beside_idle_streams),
        _ => None,
    }
}

/// What the oracles say of a fault: where, which one, and how many seeds died by a panic before it.
struct Caught {
    place: String,
    failure: Failure,
    panics: u32,
}

/// Runs with the fault planted; an error if it panicked.
fn faulty<T>(name: &'static str, run: impl FnOnce() -> T) -> Result<T, ()> {
    planted::activate(Some(name));
    let outcome = catch_unwind(AssertUnwindSafe(run));
    planted::activate(None);
    outcome.map_err(drop)
}

/// The first place whose oracle notices.
fn caught(name: &'static str) -> Option<Caught> {
    if let Some(slow) = slow(name) {
        let failure = faulty(name, slow).ok()?.err()?;
        let place = "throughput".to_owned();
        return Some(Caught {
            place,
            failure,
            panics: 0,
        });
    }
    let mut panics = 0;
    for seed in 1..=SEEDS {
        match faulty(name, || run(seed, false)) {
            Ok(Ok(_)) => {}
            Ok(Err(failure)) => {
                let place = format!("SEED={seed}");
                return Some(Caught { place, failure, panics });
            }
            Err(()) => panics += 1,
        }
    }
    None
}

#[test]
fn every_planted_fault_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for name in planted::ALL {
        let started = Instant::now();
        match caught(name) {
            Some(c) => {
                let took = started.elapsed().as_secs_f32();
                println!(
                    "{name:<28} {:<12} {took:>5.1} s  {} ({} panics before)",
                    c.place, c.failure, c.panics
                );
            }
            None => missed.push(*name),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not noticed by any oracle: {missed:?}");
    assert!(planted::ALL.len() >= PLANTED_MIN);
}
