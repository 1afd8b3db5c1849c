//! The seeded runner of the fuzzer.

use super::fuzz_open;

/// xorshift64*: reproducible, and no dependency.
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// `SEED=n` replays one seed.
#[test]
fn fuzz_open_with_seeds() {
    let only = std::env::var("SEED").ok().map(|text| text.parse().unwrap());
    let seeds = only.map_or(1..=400, |seed: u64| seed..=seed);
    for seed in seeds {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let length = next(&mut state) as usize % 600;
        let data: Vec<u8> = (0..length)
            .map(|_| {
                let word = next(&mut state);
                // Small values are the ones with a meaning.
                if word & 3 == 0 {
                    (word >> 8) as u8
                } else {
                    (word >> 8) as u8 & 31
                }
            })
            .collect();
        println!("SEED={seed}");
        fuzz_open(&data);
    }
}
