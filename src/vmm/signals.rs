//! The signal that interrupts a vCPU, and signals that are read from a descriptor (signalfd(2)).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Returns the signal that makes a vCPU thread leave KVM_RUN.
pub(super) fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Blocks signals for the calling thread and all threads that it starts later. Returns a descriptor to read them from.
pub(super) fn read_from_descriptor(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialized by sigemptyset before it is used; signalfd returns a new descriptor that nothing
    // else owns.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}
