//! A monitor's keeper: the process that starts it, waits for it, and puts things in order when it has ended.
//!
//! A monitor has given up what it would need for that: it cannot execute itself anew when its guest reboots, nor remove its
//! own folder. The keeper has no part in the machine: no socket, no file of the guest's. It holds the lock with the
//! monitor, passes on the signals that end a machine, and ends with its monitor, as that does with it.

use std::io;

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

/// Signals that end a machine.
const END_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The signals that a keeper waits for; blocked, so that none is lost.
#[derive(Debug)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them, before the monitor is there.
    pub fn block() -> io::Result<Signals> {
        // SAFETY: `set` is initialised by sigemptyset before it is used.
        let (set, error) = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in END_SIGNALS.into_iter().chain([libc::SIGCHLD]) {
                libc::sigaddset(&raw mut set, signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            (set, error)
        };
        if error == 0 { Ok(Signals(set)) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// Lets them come again, in the monitor and in a keeper that executes itself anew.
    pub fn unblock(&self) {
        // SAFETY: the set is initialised; that it cannot fail with these arguments, pthread_sigmask(3) says.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const self.0, std::ptr::null_mut()) };
    }

    /// Waits until the monitor has ended, passing signals on to it; returns how it did.
    pub fn wait(&self, monitor: Pid) -> io::Result<WaitStatus> {
        loop {
            if let Some((_, status)) = waitpid(Some(monitor), WaitOptions::NOHANG)? {
                if status.exited() || status.signaled() {
                    return Ok(status);
                }
                continue;
            }
            // SAFETY: the set is initialised; what the signal tells besides its number is not asked for.
            match unsafe { libc::sigwaitinfo(&raw const self.0, std::ptr::null_mut()) } {
                -1 | libc::SIGCHLD => {}
                // SAFETY: the monitor has not been waited for, so that its id is its own.
                signal => drop(unsafe { libc::kill(monitor.as_raw_nonzero().get(), signal) }),
            }
        }
    }
}
