//! The ring of a shard: restricted by the kernel itself to what a shard submits.
//!
//! An endpoint's seccomp filter does not see what a ring does: under one that refuses `openat`, a ring still opens
//! files. So the ring is made disabled, gets the list of its opcodes, and is enabled for good (io_uring_register(2),
//! `IORING_REGISTER_RESTRICTIONS`, Linux 5.10). After that it has no register operation and no flag of an entry either.

use std::io;
use std::os::fd::RawFd;
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

/// Has `build` make a ring on this thread, the only one that may submit to it, and restricts it. With it comes its
/// descriptor if completions wait in the kernel until they are asked for.
///
/// # Errors
/// What `build` said. Kernels before 5.10 refuse a ring that starts disabled, so none is ever had without its
/// restriction.
pub fn restricted<R>(build: impl Fn(Builder) -> io::Result<R>) -> io::Result<(R, Option<RawFd>)> {
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut oldest = IoUring::builder();
    oldest.setup_r_disabled();
    // SUBMIT_ALL: one entry that is refused must not hold up those behind it.
    let mut single = oldest.clone();
    single.setup_single_issuer().setup_submit_all();
    let (mut cooperative, mut deferred) = (single.clone(), single);
    cooperative.setup_coop_taskrun();
    deferred.setup_defer_taskrun();
    // Kernels before 6.1 do not know the last flag, those before 6.0 none but the first.
    for (flags, defers) in [(deferred, true), (cooperative, false), (oldest, false)] {
        match build(flags) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            built => {
                let (built, ring) = (built?, restrict()?);
                return Ok((built, defers.then_some(ring)));
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// Restricts and enables the disabled ring of this process: no other descriptor takes a list of restrictions.
fn restrict() -> io::Result<RawFd> {
    let restrictions = OPCODES.map(Restriction::sqe_op);
    let ring = (0..=RING_FD_MAX).find(|&fd| runtime::restrict_ring(fd, &restrictions).is_ok());
    let ring = ring.ok_or_else(|| io::Error::other("the kernel takes no restrictions of the ring"))?;
    runtime::enable_ring(ring)?;
    Ok(ring)
}
