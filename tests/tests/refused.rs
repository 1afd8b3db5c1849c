//! A kernel that refuses io_uring costs no feature: everything runs on epoll, and that is said once. Nor does one that lets
//! a process lock no memory, which rings once counted as.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tests::cloud::{Cloud, CloudOptions, Driver};
use tests::origin::Origin;
use tests::process::limit;

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

/// The program, and what it starts, may lock no memory, and is not excused from that as root is.
fn lock_nothing(command: &mut Command) {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    limit(command, libc::RLIMIT_MEMLOCK, 0);
    // SAFETY: between fork and exec one system call is made, of plain numbers.
    unsafe {
        command.pre_exec(|| {
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
    locks_nothing(cloud.endpoint());
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
