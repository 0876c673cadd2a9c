//! The VMM's sandbox: a guest that compromises its VMM gains no further access. See `docs/security.md`.
//!
//! `wisp vmm` closes inherited descriptors and forks the VMM into namespaces
//! ([`process::split`](mod@crate::process::split), [`namespaces`]). Before it builds the machine, the VMM sets resource
//! limits ([`limits`]), enters its own root directory ([`root`]), restricts access to files ([`landlock`]) and drops
//! capabilities, in this order. Right before the guest's first instruction, it restricts the system calls of each thread
//! ([`calls`], [`seccomp`], [`threads`]). The thread that starts the others is restricted before that.
//!
//! Only the namespaces, the root directory and Landlock are optional: if the host does not support one, the VMM reports
//! that and runs without it.

pub mod calls;
pub mod files;
pub mod landlock;
pub mod limits;
pub mod namespaces;
pub mod root;
pub mod seccomp;
pub mod threads;

use std::io;
use std::sync::OnceLock;

use calls::ThreadKind;
use files::Grants;
use machine::sandbox_record::{SandboxLayer, SandboxRecord};
use namespaces::SandboxedChild;
use rustix::thread::CapabilitySet;
use threads::PendingStarter;

#[derive(Debug, thiserror::Error)]
#[error("the VMM does not run without its sandbox: cannot {what}: {source}")]
pub struct SandboxError {
    what: &'static str,
    source: io::Error,
}

fn cannot(what: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |source| SandboxError { what, source }
}

static RECORD: OnceLock<SandboxRecord> = OnceLock::new();

pub fn record() -> SandboxRecord {
    RECORD.get().cloned().unwrap_or_default()
}

/// Enters all layers except seccomp. Must be called before the machine is built. Limits the process to `threads`
/// threads, if it is in new namespaces and the kernel supports that. Returns the thread that starts the others.
pub fn enter(child: &SandboxedChild, grants: &Grants, threads: u64) -> Result<PendingStarter, SandboxError> {
    let mut record = SandboxRecord {
        pid: own_pid(),
        layers: vec![SandboxLayer::NoNewPrivileges, SandboxLayer::Seccomp],
        missing: vec![],
    };
    limits::resources().map_err(cannot("set resource limits"))?;
    record.layers.push(SandboxLayer::Limits);
    match &child.refused {
        Some(error) => record.missing.push(format!("no namespaces: {error}")),
        None => enter_namespaces(child, grants, threads, &mut record)?,
    }
    match landlock::enter(grants) {
        Ok(Some(is_whole)) => {
            record.layers.push(SandboxLayer::Landlock);
            if !is_whole {
                record.missing.push("the kernel supports only some of the Landlock rules".into());
            }
        }
        Ok(None) => record.missing.push("no Landlock: the kernel does not support it, or it is disabled".into()),
        Err(error) => record.missing.push(format!("no Landlock: {error}")),
    }
    limits::only_capabilities(CapabilitySet::empty()).map_err(cannot("drop capabilities"))?;
    limits::no_new_privileges().map_err(cannot("set no_new_privs"))?;
    child.end_with_supervisor().map_err(cannot("tie the VMM to its supervisor"))?;
    if record.missing.is_empty() {
        log::info!("sandbox: {record}");
    } else {
        log::warn!("sandbox: {record}");
    }
    let _ = RECORD.set(record);
    let failed = cannot("filter system calls");
    seccomp::prepare().map_err(&failed)?;
    // All other layers apply to the calling thread and the threads that it starts, so the starter is in all of them.
    threads::begin().map_err(failed)
}

fn enter_namespaces(
    child: &SandboxedChild,
    grants: &Grants,
    threads: u64,
    record: &mut SandboxRecord,
) -> Result<(), SandboxError> {
    record.layers.push(SandboxLayer::Namespaces);
    match &child.network_refused {
        None => record.layers.push(SandboxLayer::NetworkNamespace),
        Some(error) => record.missing.push(format!("no network namespace: {error}")),
    }
    // On older kernels, the limit counts all processes of the user.
    if kernel_is_at_least(5, 14) {
        limits::processes(threads).map_err(cannot("limit the number of processes"))?;
    }
    match root::enter(grants) {
        Ok(()) => record.layers.push(SandboxLayer::Files),
        Err(error) => record.missing.push(format!("the host's files are visible: {error}")),
    }
    Ok(())
}

/// Filters the main thread's system calls. Must be called by this thread, right before the guest runs.
pub fn seal(starter: PendingStarter) -> Result<(), SandboxError> {
    let failed = cannot("filter system calls");
    starter.finish().map_err(&failed)?;
    seccomp::enter(ThreadKind::Main).map_err(failed)
}

/// Returns this process's ID in the host's `/proc`, even inside a PID namespace.
fn own_pid() -> u32 {
    let link = std::fs::read_link("/proc/self").ok();
    link.and_then(|link| link.to_str()?.parse().ok()).unwrap_or_else(std::process::id)
}

fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}
