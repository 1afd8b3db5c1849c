//! The ring of an endpoint: restricted by the kernel itself to what a shard submits.
//!
//! A seccomp filter does not see what a ring does: under one that refuses `openat`, a ring still opens files. So the
//! ring is made disabled, gets the list of its opcodes, and is enabled for good (io_uring_register(2),
//! `IORING_REGISTER_RESTRICTIONS`, Linux 5.10). After that it has no register operation and no flag of an entry either.

use std::io;
use std::sync::{Mutex, PoisonError};

use io_uring::register::Restriction;
use io_uring::{Builder, IoUring, opcode};

use super::runtime;
use crate::limits::RING_FD_MAX;

/// What a shard submits, and nothing that takes a path or an address: SEND and SENDMSG would, so writes are WRITEV.
/// An opcode that is missing here fails silently: without READ or POLL_ADD a shard spins, without CLOSE or ASYNC_CANCEL
/// it leaks.
const OPCODES: [u8; 7] = [
    // The runtime's own eventfd.
    opcode::Read::CODE,
    opcode::Recv::CODE,
    opcode::Writev::CODE,
    opcode::PollAdd::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Close::CODE,
    // How the runtime waits for a time where io_uring_enter(2) takes none, before Linux 5.11.
    opcode::Timeout::CODE,
];

/// Rings are found by being the only disabled one of the process.
static BUILDING: Mutex<()> = Mutex::new(());

/// Has `build` make a ring on this thread, the only one that may submit to it, and restricts it.
///
/// # Errors
/// What `build` said. Kernels before 5.10 refuse a ring that starts disabled, so none is ever had without its
/// restriction.
pub fn restricted<R>(build: impl Fn(Builder) -> io::Result<R>) -> io::Result<R> {
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut flags = IoUring::builder();
    flags.setup_r_disabled();
    let oldest = flags.clone();
    // SUBMIT_ALL: one entry that is refused must not hold up those behind it.
    flags.setup_coop_taskrun().setup_single_issuer().setup_submit_all();
    let built = match build(flags) {
        // Kernels before 6.0 do not know these flags.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => build(oldest)?,
        built => built?,
    };
    restrict()?;
    Ok(built)
}

/// Restricts and enables the disabled ring of this process: no other descriptor takes a list of restrictions.
fn restrict() -> io::Result<()> {
    let restrictions = OPCODES.map(Restriction::sqe_op);
    let ring = (0..=RING_FD_MAX).find(|&fd| runtime::restrict_ring(fd, &restrictions).is_ok());
    match ring {
        Some(ring) => runtime::enable_ring(ring),
        None => Err(io::Error::other("the kernel takes no restrictions of the ring")),
    }
}
