//! The endpoint's sandbox: what each layer refuses by itself, each with the same attempt outside that succeeds; and that
//! an endpoint goes on working under all of them, with no cost when it is idle.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use tests::cloud::{Cloud, CloudOptions, Driver, Tunnel, binary, command_as, fault_lasts, left_out};
use tests::origin::Origin;
use tests::process::{PATIENCE, Process, is_closed_to_us, open_fds};
use tests::relay::{Cut, Which};
use tests::{both_drivers, leave_out};

both_drivers![
    every_thread_is_sealed_in_an_empty_network,
    traffic_cuts_and_a_quiet_end,
    a_sealed_shard_survives_a_panic
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Worked,
    Refused(i32),
    /// By SIGSYS: seccomp's way of ending a process.
    Killed,
    /// There is no such layer here.
    NoLayer,
}

/// An ordinary user: nobody.
const ORDINARY: u32 = 65_534;

/// Has `captive` attempt something under a layer.
fn attempt(layer: &str, what: &str) -> Outcome {
    attempt_as(None, layer, what)
}

fn attempt_as(user: Option<u32>, layer: &str, what: &str) -> Outcome {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = match user {
        None => Command::new(binary("captive")),
        Some(user) => command_as(user, "captive", folder.path()),
    };
    command
        .args([layer, what])
        .arg(folder.path())
        .env("RUST_BACKTRACE", "1");
    let mut process = Process::start(&mut command);
    let status = process.end(PATIENCE);
    match (status.code(), status.signal()) {
        (Some(0), _) => Outcome::Worked,
        (Some(1), _) => Outcome::Refused(process.stdout().trim().parse().expect("an errno")),
        (Some(3), _) => Outcome::NoLayer,
        (_, Some(libc::SIGSYS)) => Outcome::Killed,
        _ => panic!("{layer}, {what}: {status}\n{}", process.stderr()),
    }
}

/// Each attempt works outside, and under `layer` ends as expected.
fn refuses(layer: &str, expected: Outcome, attempts: &[&str]) {
    for what in attempts {
        assert_eq!(attempt("none", what), Outcome::Worked, "the control of {what}");
        assert_eq!(attempt(layer, what), expected, "{layer}: {what}");
    }
}

#[test]
fn attacks_by_system_call_end_the_process() {
    let attacks = [
        "socket",
        "socketpair",
        "connect",
        "bind",
        "listen",
        "accept4",
        "sendmmsg",
        "execve",
        "ptrace",
        "process_vm_readv",
        "memfd_create",
        "pidfd_open",
        "pidfd_getfd",
        "unshare",
    ];
    refuses(
        "calls",
        Outcome::Killed,
        &attacks
            .map(|name| format!("call.{name}"))
            .each_ref()
            .map(String::as_str),
    );
    if !left_out(Driver::IoUring) {
        refuses(
            "calls",
            Outcome::Killed,
            &["call.io_uring_setup", "call.io_uring_register"],
        );
    }
}

/// As the suites are built they end the process, too; in a release build each is EPERM.
#[test]
fn whatever_is_not_on_the_list_is_refused() {
    let unforeseen = match cfg!(debug_assertions) {
        true => Outcome::Killed,
        false => Outcome::Refused(libc::EPERM),
    };
    let calls = [
        "sendto",
        "sendmsg",
        "clone",
        "thread",
        "mmap",
        "mprotect",
        "setsockopt",
        "ioctl",
        "kill",
        "mkdirat",
    ];
    refuses(
        "calls",
        unforeseen,
        &calls.map(|name| format!("call.{name}")).each_ref().map(String::as_str),
    );
    refuses("calls", Outcome::Refused(libc::EPERM), &["call.openat"]);
}

#[test]
fn the_ring_refuses_what_takes_a_path_or_an_address() {
    if left_out(Driver::IoUring) {
        return;
    }
    let opcodes = [
        "NOP",
        "OPENAT",
        "OPENAT2",
        "STATX",
        "UNLINKAT",
        "RENAMEAT",
        "MKDIRAT",
        "SOCKET",
        "CONNECT",
        "ACCEPT",
        "SEND",
        "SENDMSG",
        "SEND_ZC",
        "SENDMSG_ZC",
        "SHUTDOWN",
        "SPLICE",
        "TEE",
        "WRITE",
        "READV",
        "EPOLL_CTL",
        "PROVIDE_BUFFERS",
        "URING_CMD",
    ];
    let mut proven = 0;
    for name in opcodes {
        let what = format!("opcode.{name}");
        match attempt("none", &what) {
            Outcome::Refused(libc::EINVAL | libc::EOPNOTSUPP) => println!("left out: no {name} in this kernel"),
            control => {
                assert_eq!(control, Outcome::Worked, "the control of {name}");
                assert_eq!(attempt("ring", &what), Outcome::Refused(libc::EACCES), "{name}");
                proven += 1;
            }
        }
    }
    assert!(proven >= 15, "{proven} refusals");
    for name in ["WRITEV", "READ", "POLL_ADD"] {
        assert_eq!(attempt("ring", &format!("opcode.{name}")), Outcome::Worked, "{name}");
    }
}

fn network_is_empty_for(user: Option<u32>) {
    for (what, errno) in [
        ("call.dial", libc::ENETUNREACH),
        ("call.send anew", libc::ENETUNREACH),
        ("call.abstract socket", libc::ECONNREFUSED),
    ] {
        assert_eq!(attempt_as(user, "none", what), Outcome::Worked, "the control of {what}");
        assert_eq!(attempt_as(user, "network", what), Outcome::Refused(errno), "{what}");
    }
    // Sockets that were there before stay in the old one: that is how an endpoint lives.
    assert_eq!(attempt_as(user, "network", "call.connect"), Outcome::Worked);
}

#[test]
fn the_network_is_empty() {
    network_is_empty_for(None);
}

/// Root's own network namespace, and that of an ordinary user, which is inside a user namespace.
#[test]
fn an_ordinary_user_has_all_layers_too() {
    if !geteuid().is_root() {
        return println!("the other tests were run by an ordinary user");
    }
    if attempt_as(Some(ORDINARY), "network", "call.socket") == Outcome::NoLayer {
        return leave_out("no user namespaces for ordinary users");
    }
    network_is_empty_for(Some(ORDINARY));
    let options = CloudOptions {
        user: Some(ORDINARY),
        ..CloudOptions::new(Driver::Epoll)
    };
    let (cloud, origin) = (Cloud::with(options), Origin::start());
    let tunnel = cloud.start_tunnel();
    tunnel
        .client()
        .download(&origin.base(), 1, 1_000_000, "")
        .expect("a page");
    assert_sealed(cloud, tunnel);
}

#[test]
fn landlock_alone_holds() {
    let denied = ["openat", "mkdirat", "execve", "connect", "bind", "dial", "listen anew"];
    refuses(
        "landlock",
        Outcome::Refused(libc::EACCES),
        &denied.map(|name| format!("call.{name}")).each_ref().map(String::as_str),
    );
    refuses(
        "landlock",
        Outcome::Refused(libc::EPERM),
        &["call.kill", "call.abstract socket"],
    );
}

#[test]
fn root_is_nobody_without_capabilities() {
    if geteuid().is_root() {
        refuses("capabilities", Outcome::Refused(libc::EPERM), &["call.chroot"]);
    }
}

/// The generator behind TLS asks the kernel for more now and then, and aborts when that is refused: shown by the control.
#[test]
fn keys_are_drawn_for_ever() {
    for what in ["life.draws", "life.keys"] {
        assert_eq!(attempt("all", what), Outcome::Worked, "{what}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new(binary("captive"));
    command.args(["without getrandom", "life.draws"]).arg(folder.path());
    let status = Process::start(&mut command).end(PATIENCE);
    assert!(
        !status.success(),
        "100,000 draws asked the kernel for nothing: they prove nothing"
    );
}

fn a_sealed_shard_survives_a_panic(driver: Driver) {
    let what = format!("life.{}", driver.name());
    assert_eq!(attempt("none", &what), Outcome::Worked);
    assert_eq!(attempt("all", &what), Outcome::Worked);
}

fn every_thread_is_sealed_in_an_empty_network(driver: Driver) {
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_tunnel();
    assert_sealed(cloud, tunnel);
}

fn assert_sealed(mut cloud: Cloud, tunnel: Tunnel) {
    let (endpoint, outside) = (cloud.endpoint(), cloud.process.id());
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{endpoint}/task")).expect("procfs") {
        let status = fs::read_to_string(task.expect("procfs").path().join("status")).expect("procfs");
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in {status}"))
                .trim()
                .to_owned()
        };
        assert_eq!(
            (field("Seccomp"), field("NoNewPrivs")),
            ("2".into(), "1".into()),
            "{status}"
        );
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{status}");
        }
        threads += 1;
    }
    assert_eq!(threads, 2, "the control thread and a shard");
    // Of the network namespace of each: the sockets of TCP, below a line of headings.
    let sockets = |id: u32| {
        let table = fs::read_to_string(format!("/proc/{id}/net/tcp")).expect("procfs");
        table.lines().count() - 1
    };
    assert_eq!(sockets(endpoint), 0);
    assert!(sockets(outside) >= 2, "the control: the cloud's own listeners");
    if !is_closed_to_us(endpoint) {
        let namespace = |id: u32| fs::read_link(format!("/proc/{id}/ns/net")).expect("procfs");
        assert_ne!(namespace(endpoint), namespace(outside));
    }
    tunnel.stop();
    // Whatever this kernel refuses is said, and this one refuses nothing.
    let said = cloud.last_words();
    assert!(said.contains("running") && !said.contains("sandbox"), "{said}");
}

/// A kernel without this or that costs the layer, which is said, and no traffic.
#[test]
fn a_layer_that_is_refused_is_said_once() {
    let options = CloudOptions {
        refused: vec![libc::SYS_unshare, libc::SYS_landlock_create_ruleset, libc::SYS_seccomp],
        ..CloudOptions::new(Driver::Epoll)
    };
    let (mut cloud, origin) = (Cloud::with(options), Origin::start());
    let tunnel = cloud.start_tunnel();
    tunnel
        .client()
        .download(&origin.base(), 1, 100_000, "")
        .expect("a page");
    tunnel.stop();
    let said = cloud.last_words();
    for layer in ["a network namespace", "Landlock", "a filter of its system calls"] {
        let text = format!("its sandbox has a hole: the kernel refuses it {layer}");
        assert_eq!(said.matches(&text).count(), 1, "{layer}: {said}");
    }
    assert_eq!(said.matches("hole").count(), 3, "{said}");
}

const BULK_BYTES: u64 = 100_000_000;
const CONNECTIONS: u64 = 500;
const THREADS: u64 = 10;
/// Of processor time, of which a thread that spins uses 100 a second.
const IDLE_TICKS_MAX: u64 = 3;
const IDLE: Duration = Duration::from_secs(3);

/// A missing CLOSE or ASYNC_CANCEL in the ring's list shows as descriptors that stay, a missing READ or POLL_ADD as a
/// thread that spins; neither shows as an error.
fn traffic_cuts_and_a_quiet_end(driver: Driver) {
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    let endpoint = cloud.endpoint();
    let base = origin.base();
    tunnel.client().download(&base, 1, 10_000, "").expect("a page");
    let settled = settle(endpoint);
    thread::scope(|scope| {
        let (tunnel, base) = (&tunnel, &base);
        scope.spawn(move || tunnel.client().download(base, 2, BULK_BYTES, "").expect("100 MB down"));
        scope.spawn(move || tunnel.client().upload(base, 3, BULK_BYTES, false).expect("100 MB up"));
        for cut in 1..=3 {
            let mark = cut * BULK_BYTES / 2;
            cloud.relay.wait("traffic", |s| s.to_cloud + s.to_client >= mark);
            let how = if cut % 2 == 0 { Cut::Reset } else { Cut::Fin };
            assert!(cloud.relay.cut(Which::Links, how) > 0);
        }
    });
    thread::scope(|scope| {
        for first in 0..THREADS {
            let (tunnel, base) = (&tunnel, &base);
            scope.spawn(move || {
                for seed in (first..CONNECTIONS).step_by(THREADS as usize) {
                    tunnel.client().download(base, seed, 1_000, "").expect("a page");
                }
            });
        }
    });
    assert!(cloud.relay.stats().links > 1, "no cut was ever felt");
    let since = Instant::now();
    while open_fds(endpoint) > settled {
        assert!(
            since.elapsed() < PATIENCE,
            "{settled} descriptors before and {} after",
            open_fds(endpoint)
        );
        fault_lasts(Duration::from_millis(50));
    }
    let before = ticks(endpoint);
    fault_lasts(IDLE);
    let used = ticks(endpoint) - before;
    assert!(
        used <= IDLE_TICKS_MAX,
        "{used} ticks of processor time in {IDLE:?} without work"
    );
    assert_eq!(cloud.process.children()[..], [endpoint], "it is the same process still");
    tunnel.stop();
}

/// Descriptors once the browser of a moment ago is gone.
fn settle(endpoint: u32) -> usize {
    let since = Instant::now();
    let mut least = open_fds(endpoint);
    while since.elapsed() < Duration::from_secs(1) {
        fault_lasts(Duration::from_millis(20));
        least = least.min(open_fds(endpoint));
    }
    least
}

/// Processor time that a process has used, in 1/100 s.
fn ticks(id: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("procfs of a live process");
    // Behind the name, which may hold anything, comes field 3; 14 and 15 are user and system time.
    let (_, rest) = stat.rsplit_once(") ").expect("a name in parentheses");
    let fields: Vec<&str> = rest.split(' ').collect();
    [fields[11], fields[12]]
        .iter()
        .map(|n| n.parse::<u64>().expect("a number"))
        .sum()
}
