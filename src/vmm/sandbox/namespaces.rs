//! The monitor's process, in namespaces of its own (namespaces(7), user_namespaces(7)).
//!
//! A user namespace needs no privilege, and takes all of it away: who is root in it is nobody on the host, and what belongs to
//! the host's root takes orders only from the host's root. The process is the first of its process namespace, so that there
//! is no other to be seen or signalled. Its user is mapped to itself: files belong to who started it, as ever.
//!
//! Its network namespace is empty. The ports of the host that lead to the guest are opened by the supervisor's
//! [broker](crate::vmm::broker).
//!
//! A process cannot enter a process namespace, it can only be born in one: so there are two, the monitor and its keeper.

use std::fs;
use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, getegid, geteuid, set_parent_process_death_signal};

/// What a process is that [`split`] returned to.
#[derive(Debug)]
pub enum Side {
    /// The one that was there. The other is its child, which ends when it does, and `alive` with it.
    Keeper {
        /// The other.
        child: Pid,
        /// Held for as long as the keeper lives.
        alive: OwnedFd,
    },
    /// The new one.
    Monitor(Monitor),
}

/// What the new process knows of how it came to be.
#[derive(Debug)]
pub struct Monitor {
    /// Why it is in no namespaces of its own, if it is not.
    pub refused: Option<io::Error>,
    /// The reason why it is in the host's network namespace, if it has the others.
    pub network_refused: Option<io::Error>,
    keeper: OwnedFd,
}

/// How a child exits that cannot have its user mapped.
const NOT_MAPPED: i32 = 200;

/// Copies the process, as fork(2), the copy in namespaces of its own. Where the host does not allow it any, it is without; and
/// without the network's alone, where only that is not allowed.
///
/// The process must have no threads but this.
pub fn split() -> io::Result<Side> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let error = match attempt(flags | libc::CLONE_NEWNET) {
        Ok(side) => return Ok(side),
        Err(error) => error,
    };
    if let Ok(side) = attempt(flags) {
        return Ok(match side {
            Side::Monitor(monitor) => Side::Monitor(Monitor { network_refused: Some(error), ..monitor }),
            keeper => keeper,
        });
    }
    Ok(match attempt(0)? {
        Side::Monitor(monitor) => Side::Monitor(Monitor { refused: Some(error), ..monitor }),
        keeper => keeper,
    })
}

/// Copies the process with these flags of clone(2).
fn attempt(flags: libc::c_int) -> io::Result<Side> {
    let (keeper, alive) = pipe_with(PipeFlags::CLOEXEC)?;
    let (mapped, is_mapped) = pipe_with(PipeFlags::CLOEXEC)?;
    let user = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: without CLONE_VM, and with no stack of its own, the child is a copy as fork(2) makes it; the process has no
    // other threads whose locks the copy could have taken along.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop((alive, mapped));
            if flags & libc::CLONE_NEWUSER != 0
                && let Err(error) = map_user(user)
            {
                // SAFETY: it ends this process, a copy that has nothing to put in order; the other takes note.
                unsafe { libc::_exit(error.raw_os_error().unwrap_or(NOT_MAPPED)) }
            }
            // The other waits for it, or is gone.
            let _ = rustix::io::write(&is_mapped, &[1]);
            Ok(Side::Monitor(Monitor { refused: None, network_refused: None, keeper }))
        }
        child => {
            drop((keeper, is_mapped));
            let child = Pid::from_raw(child as i32).expect("a child has a process id");
            if rustix::io::read(&mapped, &mut [0; 1])? == 1 {
                return Ok(Side::Keeper { child, alive });
            }
            let status = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
            let code = status.and_then(|(_, status)| status.exit_status());
            Err(io::Error::from_raw_os_error(code.unwrap_or(libc::EPERM)))
        }
    }
}

/// Has the namespace's user be the one outside it, and nobody else there.
fn map_user((user, group): (u32, u32)) -> io::Result<()> {
    // Else a group could be left, which may be what keeps a file from somebody.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

impl Monitor {
    /// Has this process end when its keeper does, from now on. To be called when it has given up its privileges, which
    /// takes that back.
    pub fn end_with_keeper(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before.
        let mut keeper = [PollFd::new(&self.keeper, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut keeper, Some(&now))? {
            0 => Ok(()),
            _ => Err(io::Error::other("the monitor's keeper is gone")),
        }
    }
}
