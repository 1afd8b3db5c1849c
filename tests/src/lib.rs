//! Harness of the suites: real binaries on ports of their own, readiness instead of sleeps, bodies that are checked
//! byte by byte, a site with counters, a relay that cuts, browsers.
//!
//! Everything here blocks on plain threads, on purpose: nothing of the harness shares code with what it tests.

pub mod body;
pub mod browser;
pub mod bumping;
pub mod certificate;
pub mod cloud;
pub mod deaf;
pub mod http;
pub mod memory;
pub mod namespace;
pub mod origin;
pub mod process;
pub mod relay;
pub mod seccomp;
pub mod simulation;
pub mod socket;
pub mod tls;
pub mod trial;
pub mod watch;
pub mod websocket;

/// `CULVERT_LONG=1`: the suites run in their long forms.
pub fn is_long() -> bool {
    std::env::var_os("CULVERT_LONG").is_some()
}

/// Says that a test, or a part of one, is left out on this machine, and why; with `CI=true` that is a failure.
pub fn leave_out(why: &str) {
    println!("left out: {why}");
    let in_ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(!in_ci, "left out in CI: {why}");
}
