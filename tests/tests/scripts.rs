//! `scripts/run` is what a newcomer sees first.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use tests::cloud::binary;
use tests::process::{PATIENCE, Process};

fn run(arguments: &[&str]) -> Process {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/run");
    let binaries = binary("sc").parent().expect("a folder").to_owned();
    Process::start(Command::new(script).args(arguments).env("CULVERT_BIN_DIR", binaries))
}

#[test]
fn once_checks_and_leaves() {
    let mut process = run(&["--once"]);
    assert_eq!(
        process.exit_code(PATIENCE * 2),
        0,
        "{}\n{}",
        process.stdout(),
        process.stderr()
    );
    assert!(
        process.stdout().contains("counts of requests agree"),
        "{}",
        process.stdout()
    );
}

#[test]
fn it_stays_until_ctrl_c_and_leaves_nothing_behind() {
    let mut process = run(&[]);
    let state = process.line("its folder", |line| {
        Some(line.strip_prefix("State folder: ")?.to_owned())
    });
    process.line("the end of its checks", |line| line.contains("Ctrl-C").then_some(()));
    assert!(process.is_running() && Path::new(&state).exists());
    process.signal(Signal::INT);
    process.exit_code(PATIENCE);
    assert!(!Path::new(&state).exists());
}
