//! Seeds of faults on a virtual clock. `SEED=n` replays one with a trace, `SEEDS=n` runs more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use tests::simulation::{Coverage, run};

const SEEDS: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn seeds_of_faults() {
    if let Some(seed) = number("SEED") {
        match run(seed, true) {
            Ok(coverage) => println!("{}", coverage.table()),
            Err(failure) => panic!("SEED={seed}: {failure}"),
        }
        return;
    }
    let started = Instant::now();
    let mut coverage = Coverage::default();
    let mut failures = 0;
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    for seed in 1..=seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed, false))) {
            Ok(Ok(of_seed)) => {
                assert!(of_seed.total("streams") >= 8, "SEED={seed}: too few streams");
                assert!(of_seed.total("cuts") >= 2, "SEED={seed}: too few cuts");
                assert!(of_seed.total("replayed frames") >= 1, "SEED={seed}: no replay");
                coverage.add(&of_seed);
            }
            Ok(Err(failure)) => {
                failures += 1;
                println!("SEED={seed} {failure}");
            }
            Err(_) => {
                failures += 1;
                println!("SEED={seed} panicked");
            }
        }
        assert!(failures < 20, "{failures} of {seed} seeds failed");
    }
    println!("{}\n{seeds} seeds in {:.1?}", coverage.table(), started.elapsed());
    assert_eq!(failures, 0, "seeds failed");
    assert_eq!(coverage.total("seeds"), seeds);
    for rare in [
        "old epochs refused",
        "cut-overs of a living connection",
        "streams withdrawn",
        "sessions ended",
        "sessions ended by a flood",
        "restarts of sc",
        "restarts of the endpoint",
        "settings changes",
        "TLS shaken on a tcp stream",
    ] {
        assert!(coverage.total(rare) > 0 || seeds < SEEDS, "no seed had: {rare}");
    }
    let holes = coverage.holes();
    assert!(holes.is_empty() || seeds < SEEDS, "no cut reached {holes:?}");
}
