//! Planted faults: each must be seen by an oracle of the simulator within the ordinary seeds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use dataplane::mux::planted;
use tests::simulation::run;

/// As many as the ordinary run has.
const SEEDS: u64 = 2_000;
const PLANTED_MIN: usize = 15;

/// The first seed whose oracle notices, and how many seeds died by a panic before it.
fn caught(name: &'static str) -> Option<(u64, &'static str, u64)> {
    let mut panics = 0;
    for seed in 1..=SEEDS {
        planted::activate(Some(name));
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, false)));
        planted::activate(None);
        match outcome {
            Ok(Ok(_)) => {}
            Ok(Err(failure)) => return Some((seed, failure.oracle, panics)),
            Err(_) => panics += 1,
        }
    }
    None
}

#[test]
fn every_planted_fault_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for name in planted::ALL {
        match caught(name) {
            Some((seed, oracle, 0)) => println!("{name:<32} SEED={seed:<6} {oracle}"),
            Some((seed, oracle, n)) => println!("{name:<32} SEED={seed:<6} {oracle} ({n} panics before)"),
            None => missed.push(*name),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not noticed by any oracle: {missed:?}");
    assert!(planted::ALL.len() >= PLANTED_MIN);
}
