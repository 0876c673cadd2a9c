//! Forks the VMM process into new namespaces (see [`sandbox::namespaces`](crate::sandbox::namespaces)).
//!
//! Only a child can be in a new PID namespace, so there are two processes: the VMM and its supervisor.

use std::fs;
use std::io;

use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, getegid, geteuid};

use crate::sandbox::namespaces::SandboxedChild;

#[derive(Debug)]
pub enum Side {
    /// The original process. The VMM is its child and is killed when the supervisor exits.
    Supervisor {
        child: Pid,
        /// The write end of a pipe, which closes when the supervisor exits. The VMM holds the other end.
        alive: OwnedFd,
    },
    Child(SandboxedChild),
}

/// The exit code of a child that cannot map its user, if there is no error number.
const NOT_MAPPED: i32 = 200;

/// Forks a child into new namespaces. If the host does not allow that, the child has no network namespace, or no
/// namespaces at all. The process must have a single thread.
pub fn split() -> io::Result<Side> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let error = match attempt(flags | libc::CLONE_NEWNET) {
        Ok(side) => return Ok(side),
        Err(error) => error,
    };
    if let Ok(side) = attempt(flags) {
        return Ok(match side {
            Side::Child(child) => Side::Child(SandboxedChild { network_refused: Some(error), ..child }),
            supervisor => supervisor,
        });
    }
    Ok(match attempt(0)? {
        Side::Child(child) => Side::Child(SandboxedChild { refused: Some(error), ..child }),
        supervisor => supervisor,
    })
}

fn attempt(flags: libc::c_int) -> io::Result<Side> {
    let (supervisor, alive) = pipe_with(PipeFlags::CLOEXEC)?;
    let (mapped, is_mapped) = pipe_with(PipeFlags::CLOEXEC)?;
    let user = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: without CLONE_VM and a stack, the child is a copy of the process, as with fork(2). The process has no
    // other threads, so no lock can be held in the copy.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop((alive, mapped));
            if flags & libc::CLONE_NEWUSER != 0
                && let Err(error) = map_user(user)
            {
                // SAFETY: this ends the process, a copy without anything to clean up. The supervisor gets the code.
                unsafe { libc::_exit(error.raw_os_error().unwrap_or(NOT_MAPPED)) }
            }
            // The supervisor waits for this byte, unless it has exited.
            let _ = rustix::io::write(&is_mapped, &[1]);
            Ok(Side::Child(SandboxedChild { refused: None, network_refused: None, supervisor }))
        }
        child => {
            drop((supervisor, is_mapped));
            let child = Pid::from_raw(child as i32).expect("a child's process ID is positive");
            if rustix::io::read(&mapped, &mut [0; 1])? == 1 {
                return Ok(Side::Supervisor { child, alive });
            }
            let status = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
            let code = status.and_then(|(_, status)| status.exit_status());
            Err(io::Error::from_raw_os_error(code.unwrap_or(libc::EPERM)))
        }
    }
}

fn map_user((user, group): (u32, u32)) -> io::Result<()> {
    // The kernel requires this before the group map is written. It also prevents dropping a supplementary group that is
    // denied access to a file.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}
