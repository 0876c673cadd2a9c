//! Drops inherited descriptors and capabilities, and sets resource limits that cannot be raised again.

use std::io;
use std::os::fd::RawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

/// Enough for 12 disks with 64 files each, 256 forwarded connections, 1024 vsock connections, 64 clients and 64 vCPUs.
const DESCRIPTORS: u64 = 4096;

/// Enough for a machine with 12 disks when it starts.
const DESCRIPTORS_AT_START: RawFd = 256;

/// More than the kernel has. Dropping a capability that the kernel does not know has no effect.
const CAPABILITIES: libc::c_ulong = 64;

/// Closes all descriptors except `kept` and the standard streams.
pub fn close_others(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        // The range ends before the descriptor to keep. No descriptor has the last number, `u32::MAX`.
        if first < fd {
            // SAFETY: the process has just started, so nothing in it owns the descriptors in the range.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0_u32) };
            if closed == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Grows the descriptor table to the size that a machine needs. Must be called while the process has one thread: with
/// more, the kernel waits for an RCU grace period of milliseconds. A failure costs only this time.
pub fn grow_descriptor_table() {
    drop(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), DESCRIPTORS_AT_START - 1));
}

pub fn no_new_privileges() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// Drops all capabilities except `kept`. Root has capabilities, and so does the first process in a user namespace.
pub fn only_capabilities(kept: CapabilitySet) -> io::Result<()> {
    // Errors are ignored: dropping a capability from the bounding set requires a capability itself. The set matters
    // only for executed programs, which cannot gain capabilities anyway.
    for capability in 0..CAPABILITIES {
        // SAFETY: the call takes numbers only.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Forbids core dumps (which would contain guest memory), locked memory, message queues and raised priorities.
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

/// Limits processes and threads. Useful only in a user namespace: elsewhere, all processes of the user count.
pub fn processes(count: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::Nproc, Rlimit { current: Some(count), maximum: Some(count) })?)
}
