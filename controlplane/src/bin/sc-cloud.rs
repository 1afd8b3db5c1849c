//! `sc-cloud`: see `controlplane::cloud`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    controlplane::allocator::share();
    controlplane::cloud::cli::main()
}
