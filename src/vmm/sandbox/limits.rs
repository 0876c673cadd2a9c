//! What the process itself gives up: descriptors that nobody meant for it, capabilities, and limits that it cannot raise.

use std::io;
use std::os::fd::RawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

/// Descriptors: 12 disks with 64 files each, 256 forwarded connections, as many of vsock's, 64 clients, and what machines of
/// 64 vCPUs are made of.
const DESCRIPTORS: u64 = 4096;

/// Capabilities that a kernel may know: those that it does not, cannot be dropped.
const CAPABILITIES: libc::c_ulong = 64;

/// Closes every descriptor but the standard streams and `kept`.
pub fn close_others(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        // Up to, and not with, the one that stays; of the last, no descriptor has the number.
        if first < fd {
            // SAFETY: nothing in this process owns the descriptors in between: it has just begun.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0_u32) };
            if closed == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// No program that this process could execute, if it could execute one, has more rights than it.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// Gives up all capabilities but those `kept`: those of root, and those that a user namespace's first process has in it.
pub fn only_capabilities(kept: CapabilitySet) -> io::Result<()> {
    // The bounding set counts for executed programs only, which cannot gain any as it is; it needs a capability itself.
    for capability in 0..CAPABILITIES {
        // SAFETY: the call takes numbers only.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Sets limits, which cannot be raised again: no core with a guest's memory in it, no locked memory, no message queues, no
/// real-time priority.
pub fn resources() -> io::Result<()> {
    let at_most = |limit: u64, resource| {
        let limit = getrlimit(resource).maximum.map_or(limit, |present| present.min(limit));
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
    };
    at_most(DESCRIPTORS, Resource::Nofile)?;
    for resource in [Resource::Core, Resource::Memlock, Resource::Msgqueue, Resource::Rtprio, Resource::Nice] {
        at_most(0, resource)?;
    }
    Ok(())
}

/// Limits processes and threads to `count`. In a user namespace only: elsewhere all that the user has are counted.
pub fn processes(count: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::Nproc, Rlimit { current: Some(count), maximum: Some(count) })?)
}
