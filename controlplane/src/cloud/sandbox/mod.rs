//! What an endpoint process may do once bytes of strangers reach it: carry them between the sockets that the broker
//! passed, and nothing else. It assumes that the process is taken over, so each layer holds by itself:
//!
//! | layer | takes away | when |
//! |---|---|---|
//! | network namespace | every address, loopback included | before any thread |
//! | capabilities | what root could do | before any thread |
//! | Landlock | files, TCP ports, abstract sockets, signals to others | before any thread: threads inherit it |
//! | restricted rings (`dataplane`'s `shard/ring.rs`) | what seccomp does not see | each shard, as it is made |
//! | seccomp ([`calls`]) | system calls, new threads and rings | last, over all threads at once |
//!
//! A kernel or a container may refuse one. The endpoint then runs without it, and `sc-cloud` says so at each start.

mod calls;

use std::io;

use dataplane::time::Time;
use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope as LandlockScope,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, set_no_new_privs, unshare_unsafe};

pub use calls::forbid as calls;

/// The rights of Linux 6.12: later ones are of no use to a process that can open and connect nothing.
const LANDLOCK: ABI = ABI::V6;

type Layer = fn() -> io::Result<()>;

/// All layers but the last; for the only thread of the process. Returns what was refused, a sentence each.
pub fn enclose() -> Vec<String> {
    // The first look at the clock looks for the kernel's vDSO, which older kernels show in a file only.
    Time::now();
    let layers: [(&str, Layer); 4] = [
        ("a network namespace of its own", network),
        ("to be without capabilities", capabilities),
        ("Landlock", landlock),
        // After the others: each change of credentials may set it anew.
        ("to be closed to debuggers and core dumps", undumpable),
    ];
    layers
        .iter()
        .filter_map(|(name, layer)| Some(refused(name, &layer().err()?)))
        .collect()
}

/// The last layer, once every thread and every ring is made. Returns what was refused.
pub fn seal() -> Option<String> {
    Some(refused("a filter of its system calls", &calls().err()?))
}

fn refused(layer: &str, error: &io::Error) -> String {
    format!("the kernel refuses it {layer}: {error}")
}

/// A namespace with nothing but a loopback that is down. Sockets that are passed in stay in theirs.
///
/// # Errors
/// Neither root's way nor that of an ordinary user is open.
pub fn network() -> io::Result<()> {
    // SAFETY: neither flag touches the table of descriptors.
    let unshare = |flags| unsafe { unshare_unsafe(flags) };
    match unshare(UnshareFlags::NEWNET) {
        // Without root's rights a user namespace around it gives them, if there is no second thread.
        Err(rustix::io::Errno::PERM) => Ok(unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)?),
        result => Ok(result?),
    }
}

/// Gives up all capabilities, and the way to get any by exec.
///
/// # Errors
/// What the kernel said.
pub fn capabilities() -> io::Result<()> {
    set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    Ok(())
}

/// No file, no TCP port, no abstract socket and no signal outside: for this thread and those that it starts.
///
/// # Errors
/// The kernel has no Landlock, or one that knows only some of this; what it knows is in force.
pub fn landlock() -> io::Result<()> {
    let restrict = || -> Result<RulesetStatus, RulesetError> {
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(LandlockScope::from_all(LANDLOCK))?;
        Ok(ruleset.create()?.restrict_self()?.ruleset)
    };
    match restrict().map_err(io::Error::other)? {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced => Err(io::Error::other("this kernel knows only some of its rights")),
        RulesetStatus::NotEnforced => Err(io::Error::other("this kernel has it not, or not enabled")),
    }
}

fn undumpable() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
