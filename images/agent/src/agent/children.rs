//! Reaps children, so that each session gets the exit status of its own command.
//!
//! Process 1 also inherits orphans. It reaps them in sweeps, which must not reap the sessions' commands. Starting a
//! command and sweeping take the same lock, so a command is registered before a sweep can see it. A sweep that finds a
//! dead registered child stops there, because `waitid` reports dead children one at a time, in its own order. The
//! session that reaps that child sweeps again. So no zombie remains, and each status goes to the right waiter.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open, waitid,
};

use crate::protocol::ExitStatus;

#[derive(Debug)]
pub struct Children {
    registered: Mutex<Vec<Pid>>,
    adopts_orphans: bool,
    /// True while the guest is stopping. Process 1 then needs a SIGCHLD for each reaped child.
    stopping: AtomicBool,
}

/// A running command, the leader of its own session and process group. Its PID is not reused before [`Children::reap`].
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Sends a signal to the process group, if it still exists.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }
}

impl AsFd for Child {
    /// Returns a descriptor that is readable once the command has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Children {
    /// `adopts_orphans` is true in process 1.
    #[must_use]
    pub fn new(adopts_orphans: bool) -> Self {
        Self { registered: Mutex::new(Vec::new()), adopts_orphans, stopping: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pid>> {
        // Each change of the list is one call, so the list is consistent even after a panic.
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child with `spawn` and registers it, so that only [`reap`](Self::reap) takes its status.
    pub fn spawn(&self, spawn: impl FnOnce() -> io::Result<Pid>) -> io::Result<Child> {
        let pid = {
            let mut registered = self.lock();
            let pid = spawn()?;
            registered.push(pid);
            pid
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Child { pid, pidfd }),
            Err(errno) => {
                let _ = kill_process_group(pid, Signal::KILL);
                self.take(pid);
                Err(errno.into())
            }
        }
    }

    pub fn reap(&self, child: Child) -> ExitStatus {
        self.take(child.pid)
    }

    fn take(&self, pid: Pid) -> ExitStatus {
        let status = loop {
            match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        self.lock().retain(|registered| *registered != pid);
        self.reap_orphans();
        if self.stopping.load(Ordering::Acquire) {
            let _ = kill_process(rustix::process::getpid(), Signal::CHILD);
        }
        let Ok(Some(status)) = status else {
            // Only possible if code outside this module reaps our children.
            return ExitStatus::Signaled(libc::SIGKILL);
        };
        match status.terminating_signal() {
            Some(signal) => ExitStatus::Signaled(signal),
            None => ExitStatus::Exited(status.exit_status().unwrap_or(0)),
        }
    }

    /// In process 1, reaps dead children that no session waits for, and returns false if no child is left. In another
    /// process, does nothing and returns true.
    pub fn reap_orphans(&self) -> bool {
        if !self.adopts_orphans {
            return true;
        }
        let registered = self.lock();
        loop {
            match look_for_dead_child() {
                Ok(Some(pid)) if !registered.contains(&pid) => {
                    let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
                }
                Ok(_) => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ECHILD: no children.
                Err(_) => return false,
            }
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Marks the guest as stopping: every child reaped from now on causes a SIGCHLD.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }
}

/// Finds a dead child without reaping it. rustix's `waitid` hides the child's process ID.
fn look_for_dead_child() -> io::Result<Option<Pid>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is memory for one `siginfo_t`.
    if unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid `siginfo_t` without a dead child, and the call may have written another over it.
    Ok(Pid::from_raw(unsafe { info.assume_init().si_pid() }))
}
