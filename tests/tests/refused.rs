//! A kernel that refuses io_uring costs no feature: everything runs on epoll, and that is said once; who wants nothing else
//! is told at the start. And one that lets a process lock no memory, which rings once counted as.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

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
    assert!(said.contains("Operation not permitted"), "{said}");
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
    let said = cloud.last_words();
    assert!(!said.contains("new tunnel"), "{said}");
}

/// The program, and what it starts, may lock no memory, and is not excused from that as root is.
fn lock_nothing(command: &mut Command) {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: between fork and exec only system calls are made, on memory that was ready before.
    unsafe {
        command.pre_exec(move || {
            if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const none) != 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK) == 0 {
                return Ok(());
            }
            // Who may not give it up has not got it.
            let error = io::Error::last_os_error();
            (error.raw_os_error() == Some(libc::EPERM)).then_some(()).ok_or(error)
        });
    }
}

fn locks_nothing(process: u32) {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max locked memory"));
    assert_eq!(
        limit.and_then(|line| line.split_whitespace().nth(3)),
        Some("0"),
        "{limits}"
    );
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    assert_eq!(
        u64::from_str_radix(effective.trim(), 16).unwrap() & 1 << 14,
        0,
        "{status}"
    );
}

#[test]
fn f20_without_locked_memory_everything_goes_on() {
    let options = CloudOptions {
        prepare: Some(lock_nothing),
        ..CloudOptions::new(Driver::Auto)
    };
    let (mut cloud, origin) = (Cloud::with(options), Origin::start());
    let tunnel = cloud.start_tunnel_with(&["--shards", "2"]);
    locks_nothing(tunnel.process.id());
    locks_nothing(cloud.process.children()[0]);
    let mut client = tunnel.client();
    client.download(&origin.base(), 1, 3_000_000, "").unwrap();
    client.upload(&origin.base(), 2, 3_000_000, true).unwrap();
    drop(client);
    let log = tunnel.log();
    tunnel.stop();
    // Since Linux 5.12 a ring is no locked memory; before that both do without one, and say so.
    for said in [log, cloud.last_words()] {
        let rings = said.contains("IoUring");
        assert!(rings || said.contains("epoll") || said.contains("Epoll"), "{said}");
        println!("with a ring: {rings}");
    }
}
