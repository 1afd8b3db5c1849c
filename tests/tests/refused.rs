//! A kernel that refuses io_uring costs no feature: everything runs on epoll, and that is said once; who wants nothing else
//! is told at the start. And one that lets a process lock no memory, which rings once counted as.

use std::io;
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};
use tests::cloud::{Cloud, CloudOptions, Driver, binary};
use tests::origin::Origin;
use tests::process::{PATIENCE, Process};
use tests::seccomp::refuse_io_uring;

/// The exit code of both programs for what the machine does not give.
const LOCAL_RESOURCE: i32 = 7;

#[test]
fn f20_everything_runs_on_epoll() {
    let (mut cloud, origin) = (Cloud::start(Driver::Refused), Origin::start());
    let tunnel = cloud.start_tunnel_with(&["--shards", "2"]);
    let mut client = tunnel.client();
    client.download(&origin.base(), 1, 3_000_000, "").unwrap();
    client.upload(&origin.base(), 2, 3_000_000, true).unwrap();
    let said = tunnel
        .log()
        .matches("the kernel refuses io_uring: traffic runs on epoll")
        .count();
    assert_eq!(said, 1, "{}", tunnel.log());
    drop(client);
    tunnel.stop();
    let said = cloud.last_words();
    assert!(said.contains("Epoll"), "{said}");
}

/// One line that names the option and what to do instead.
fn is_told(command: &mut Command) {
    let mut process = Process::start(refuse_io_uring(command));
    let code = process.exit_code(PATIENCE);
    let said = process.stdout() + &process.stderr();
    let told = |line: &&str| line.contains("--driver io_uring") && line.contains("epoll");
    assert_eq!((code, said.lines().filter(told).count()), (LOCAL_RESOURCE, 1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn f20_who_wants_nothing_but_io_uring_is_told_at_the_start() {
    let mut cloud = Command::new(binary("sc-cloud"));
    let state = tempfile::tempdir().unwrap();
    cloud.args([
        "serve",
        "--driver",
        "io_uring",
        "--listen",
        "127.0.0.1:0",
        "--state-dir",
    ]);
    is_told(cloud.arg(state.path()));
    let mut cloud = Cloud::start(Driver::Epoll);
    cloud.options.driver = Driver::IoUring;
    let folder = tempfile::tempdir().unwrap();
    let mut sc = cloud.sc(&folder.path().join("sc.log"));
    is_told(sc.arg("--pidfile").arg(folder.path().join("sc.pid")));
}

/// What this thread starts may lock no memory, and is not excused from that as root is.
fn lock_nothing() {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Memlock, none).expect("a limit may be lowered");
    // SAFETY: plain numbers.
    let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK) };
    // Who may not give it up has not got it.
    let without = io::Error::last_os_error().raw_os_error() == Some(libc::EPERM);
    assert!(dropped == 0 || without, "CAP_IPC_LOCK stays");
}

#[test]
fn f20_without_locked_memory_everything_goes_on() {
    lock_nothing();
    let auto = CloudOptions {
        driver: Driver::Auto,
        ..CloudOptions::new(Driver::Epoll)
    };
    let (cloud, origin) = (Cloud::with(auto), Origin::start());
    let tunnel = cloud.start_tunnel_with(&["--shards", "2"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", tunnel.process.id())).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max locked memory"));
    assert_eq!(
        limit.and_then(|line| line.split_whitespace().nth(3)),
        Some("0"),
        "{limits}"
    );
    let mut client = tunnel.client();
    client.download(&origin.base(), 1, 3_000_000, "").unwrap();
    client.upload(&origin.base(), 2, 3_000_000, true).unwrap();
    drop(client);
    tunnel.stop();
}
