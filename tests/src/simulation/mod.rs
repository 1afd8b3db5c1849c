//! Two sides of the multiplex on one virtual clock, with seeded faults and oracles.
//!
//! ```text
//!  scenario ─► world ─► host (the shell's contract) ─► mux::Session      world: clock, queue of wakes
//!                │         │  ▲                                          traffic, local: streams and their sockets
//!                ├─ network (pipes) ── wire (what an onlooker checks)    faults: what breaks when
//!                └─ oracle (with budgets, progress) ── coverage          throughput: what only costs time
//! ```

mod budgets;
mod connection;
pub mod coverage;
mod faults;
mod host;
mod local;
pub mod network;
mod oracle;
pub mod prng;
mod progress;
pub mod scenario;
mod shell;
pub mod throughput;
mod traffic;
mod wire;
mod world;

pub use coverage::Coverage;
pub use scenario::Scenario;
pub use world::World;

/// Which end of a link.
pub type Side = usize;
pub const CLIENT: Side = 0;
pub const ENDPOINT: Side = 1;

pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;

/// An oracle that did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    pub oracle: &'static str,
    pub text: String,
    /// Virtual time in µs.
    pub at: u64,
}

impl Failure {
    pub fn new(oracle: &'static str, text: String) -> Self {
        Self { oracle, text, at: 0 }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = self.at as f64 / SECOND as f64;
        write!(f, "oracle `{}` at {at:.6} s: {}", self.oracle, self.text)
    }
}

/// Runs one seed to its end.
///
/// # Errors
/// The first oracle that failed.
pub fn run(seed: u64, verbose: bool) -> Result<Coverage, Failure> {
    let mut world = World::new(Scenario::draw(seed), seed);
    world.verbose = verbose;
    world.run()
}
