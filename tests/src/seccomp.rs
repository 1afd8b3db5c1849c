//! A kernel that refuses a system call, as the seccomp profiles of containers make it: for one program and its children.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The program starts with `io_uring_setup` answered by EPERM.
pub fn refuse_io_uring(command: &mut Command) -> &mut Command {
    refuse_in(command, libc::SYS_io_uring_setup)
}

/// The program starts with this system call answered by EPERM.
pub fn refuse_in(command: &mut Command, call: libc::c_long) -> &mut Command {
    // SAFETY: between fork and exec only two system calls are made, on memory that was ready before.
    unsafe { command.pre_exec(move || refuse(call)) }
}

/// From now on this thread, and what it starts, gets EPERM for one system call.
///
/// # Errors
/// The kernel has no seccomp.
pub fn refuse(call: libc::c_long) -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let mut filter = [
        // The number of the system call lies at offset 0 of `seccomp_data`.
        statement(LOAD, 0),
        libc::sock_filter {
            code: JUMP_IF_EQUAL,
            jt: 0,
            jf: 1,
            k: call as u32,
        },
        statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(RETURN, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: plain numbers, and a program that outlives the call.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
    };
    if refused {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
