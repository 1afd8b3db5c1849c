//! `sc`: see `controlplane::client`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    controlplane::allocator::share();
    controlplane::client::main().into()
}
