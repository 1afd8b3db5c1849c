//! See `bench::compare`; `scripts/bench` builds what it needs and starts it.

use clap::Parser;

fn main() -> std::io::Result<()> {
    bench::compare::main(&bench::compare::Options::parse())
}
