//! The system calls of a sealed endpoint. Three filters, of which the kernel obeys the strictest:
//!
//! - *attacks*, which nothing of this program ever makes, end the process: whoever took it over gets one try;
//! - *look-ups* of files, which libraries try and can do without (a panic's backtrace), are refused;
//! - what is not on the list of a sealed endpoint is refused too: a library of another version goes on without it. A
//!   build with debug assertions, as the suites run it, ends there instead, so that nothing is missed in silence.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

/// New sockets and their addresses, other programs, new rings, executable memory from a file, other processes, the
/// kernel's own interfaces.
const ATTACKS: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendmmsg,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_memfd_create,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
];

const LOOKUPS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
];

/// What a sealed endpoint lives on. `sendto` and `sendmsg` take an address, and an address with MSG_FASTOPEN connects;
/// nothing here writes to a socket other than by `write` and `writev`.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_io_uring_enter,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_getcpu,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettid,
    libc::SYS_sched_yield,
    // How glibc counts processors before it makes a ninth arena.
    libc::SYS_sched_getaffinity,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // The generator of the TLS library asks for more every few thousand draws, and aborts if it gets none.
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const ALL_BITS: u32 = u32::MAX;

/// Options of the sockets that were passed: none makes another socket of one.
const OPTIONS: &[(libc::c_long, i32, i32)] = &[
    (libc::SYS_setsockopt, libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::SYS_setsockopt, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    // How a cut is shown to a browser.
    (libc::SYS_setsockopt, libc::SOL_SOCKET, libc::SO_LINGER),
    // How a browser that is gone is found.
    (libc::SYS_setsockopt, libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SYS_setsockopt, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::SYS_setsockopt, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::SYS_setsockopt, libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::SYS_getsockopt, libc::SOL_SOCKET, libc::SO_ERROR),
];

/// Call, number of an argument, mask, value: allowed if these bits of the argument are the value.
const CONDITIONAL: &[(libc::c_long, u8, u32, u32)] = &[
    // The allocator's and threads' memory, never code.
    (libc::SYS_mmap, 2, libc::PROT_EXEC as u32, 0),
    (libc::SYS_mprotect, 2, libc::PROT_EXEC as u32, 0),
    (libc::SYS_ioctl, 1, ALL_BITS, libc::FIONBIO as u32),
    // The standard library's check, in builds with debug assertions, that what it closes is open.
    (libc::SYS_fcntl, 1, ALL_BITS, libc::F_GETFD as u32),
    // A shard's second handle of its bell.
    (libc::SYS_fcntl, 1, ALL_BITS, libc::F_DUPFD_CLOEXEC as u32),
    // The allocator names its memory.
    (libc::SYS_prctl, 0, ALL_BITS, libc::PR_SET_VMA as u32),
];

/// Seals all threads of the process, for good.
///
/// # Errors
/// The kernel has no seccomp, or there is no list for this architecture.
pub fn forbid() -> io::Result<()> {
    let unforeseen = match cfg!(debug_assertions) {
        true => SeccompAction::KillProcess,
        false => SeccompAction::Errno(libc::EPERM as u32),
    };
    let mut allowed = whole(ALLOWED);
    allowed.extend(whole(LOOKUPS));
    for &(call, argument, mask, value) in CONDITIONAL {
        let rule = SeccompRule::new(vec![condition(argument, mask, value)?]);
        allowed.entry(call).or_default().push(rule.map_err(io::Error::other)?);
    }
    for &(call, level, name) in OPTIONS {
        let conditions = [(1, level), (2, name)].map(|(argument, value)| condition(argument, ALL_BITS, value as u32));
        let rule = SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?);
        allowed.entry(call).or_default().push(rule.map_err(io::Error::other)?);
    }
    let filters = [
        program(whole(ATTACKS), SeccompAction::Allow, SeccompAction::KillProcess)?,
        program(
            whole(LOOKUPS),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EPERM as u32),
        )?,
        // Last: it forbids filters, too.
        program(allowed, unforeseen, SeccompAction::Allow)?,
    ];
    filters
        .iter()
        .try_for_each(|filter| apply_filter_all_threads(filter).map_err(io::Error::other))
}

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

/// These calls with whatever arguments.
fn whole(calls: &[libc::c_long]) -> Rules {
    calls.iter().map(|&call| (call, Vec::new())).collect()
}

fn condition(argument: u8, mask: u32, value: u32) -> io::Result<SeccompCondition> {
    let operator = SeccompCmpOp::MaskedEq(mask.into());
    // All of these arguments are of 32 bits: the kernel does not look at the upper half.
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into()).map_err(io::Error::other)
}

fn program(rules: Rules, others: SeccompAction, these: SeccompAction) -> io::Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, others, these, arch).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}
