//! Who takes the exit status of which child.
//!
//! Each command's session waits for its own child. The guest's first process also gets every orphan
//! of the system as a child, and must reap those, but never a command. Both look under one lock: a
//! command is registered before a sweep can see it, and a sweep that meets a registered child stops
//! there (`waitid` shows the dead in an order of its own, one at a time); the session that reaps
//! that child then sweeps again. So no zombie stays, and no status goes to the wrong place.

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

/// The children that have somebody who waits for them.
#[derive(Debug)]
pub struct Children {
    registered: Mutex<Vec<Pid>>,
    adopts_orphans: bool,
    /// While the guest stops: its first process wants a SIGCHLD for each child that is gone.
    stopping: AtomicBool,
}

/// A running command, the leader of its own session and process group.
///
/// Its process id stays its own until [`Children::reap`].
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Sends a signal to the command's process group; one that is gone already is no error.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }
}

impl AsFd for Child {
    /// Readable once the command has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Children {
    /// An empty register; `adopts_orphans` where this process is the guest's first one.
    #[must_use]
    pub fn new(adopts_orphans: bool) -> Self {
        Self { registered: Mutex::new(Vec::new()), adopts_orphans, stopping: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pid>> {
        // Every change to the list is one call, so that it is whole even after a panic.
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child by `spawn` and registers it, so that only [`reap`](Self::reap) takes its status.
    ///
    /// # Errors
    /// What `spawn` returned, or that no descriptor for the child could be had.
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

    /// Waits for the child's end and takes its status.
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
            // Only somebody who reaps our children behind our back brings this about.
            return ExitStatus::Signaled(libc::SIGKILL);
        };
        match status.terminating_signal() {
            Some(signal) => ExitStatus::Signaled(signal),
            None => ExitStatus::Exited(status.exit_status().unwrap_or(0)),
        }
    }

    /// Reaps every dead child that nobody waits for. Does nothing unless this is the first process.
    ///
    /// Returns whether there are any children left, dead or alive.
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
                // ECHILD: none at all.
                Err(_) => return false,
            }
        }
    }

    /// Whether the machine is coming to its end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// From now on each child reaped anywhere shows as a SIGCHLD to this process.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }
}

/// A child that has ended, which stays one that can be waited for. (rustix's `waitid` hides whose status it is.)
fn look_for_dead_child() -> io::Result<Option<Pid>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is memory for one `siginfo_t`.
    if unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid `siginfo_t`, and the call wrote a valid one over it, if any. The
    // process id is zero where there is no dead child.
    Ok(Pid::from_raw(unsafe { info.assume_init().si_pid() }))
}
