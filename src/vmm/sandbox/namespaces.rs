//! Namespaces for the VMM process (namespaces(7), user_namespaces(7)).
//!
//! Creating a user namespace needs no privilege: root in the namespace is not root on the host, and the host root's
//! resources stay out of reach. The VMM is the first process of its PID namespace, so it cannot see or signal
//! others. The user is mapped to itself, so that file ownership is unchanged. The network namespace is empty; the
//! supervisor's [broker](netstack::broker) opens the published ports on the host.
//!
//! Only a child can enter a new PID namespace, so there are two processes: the VMM and its supervisor.

use std::fs;
use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, getegid, geteuid, set_parent_process_death_signal};

#[derive(Debug)]
pub enum Side {
    /// The original process. The VMM is its child and exits when the supervisor exits.
    Supervisor {
        child: Pid,
        /// Closed when the supervisor exits, which the VMM can detect.
        alive: OwnedFd,
    },
    Child(SandboxedChild),
}

#[derive(Debug)]
pub struct SandboxedChild {
    /// The reason why the process is not in namespaces.
    pub refused: Option<io::Error>,
    /// The reason why it has all namespaces except a network namespace.
    pub network_refused: Option<io::Error>,
    supervisor: OwnedFd,
}

/// The exit code of a child whose user cannot be mapped.
const NOT_MAPPED: i32 = 200;

/// Forks a child into new namespaces. If the host does not allow it, the child has no network namespace, or no
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
            // The supervisor waits for this byte, or has ended.
            let _ = rustix::io::write(&is_mapped, &[1]);
            Ok(Side::Child(SandboxedChild { refused: None, network_refused: None, supervisor }))
        }
        child => {
            drop((supervisor, is_mapped));
            let child = Pid::from_raw(child as i32).expect("the child has no process ID");
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
    // Keeps supplementary groups, which may deny access to a file. The kernel requires this for the group map.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

impl SandboxedChild {
    /// Must be called after dropping privileges, which resets the setting.
    pub fn end_with_supervisor(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The supervisor may have ended already.
        let mut supervisor = [PollFd::new(&self.supervisor, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut supervisor, Some(&now))? {
            0 => Ok(()),
            _ => Err(io::Error::other("the VMM's supervisor exited")),
        }
    }
}
