//! Delivers signals to this process as bytes in a pipe, while a command runs in the guest.
//!
//! A signalfd would require every thread to block the signals, including the threads that libraries start.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};

/// The write end of the pipe, or -1 while no signals are handled.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Handler for a set of signals. Dropping it restores the signals' previous actions.
pub struct Signals {
    reader: OwnedFd,
    /// Write end of the pipe, kept open for the signal handler.
    _writer: OwnedFd,
    previous: Vec<(i32, libc::sigaction)>,
}

impl Signals {
    /// Starts to handle `signals`. Those that this process ignores, for example under `nohup`, stay ignored. Fails if
    /// another command in this process already handles signals.
    pub fn take(signals: &[i32]) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        if PIPE.compare_exchange(-1, writer.as_raw_fd(), Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Err(io::Error::other("another command in this process already handles signals"));
        }
        let mut taken = Self { reader, _writer: writer, previous: Vec::new() };
        for &signal in signals {
            let mut previous = MaybeUninit::zeroed();
            // SAFETY: a null new action only queries the current one, and `previous` has room for it.
            if unsafe { libc::sigaction(signal, std::ptr::null(), previous.as_mut_ptr()) } != 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the call succeeded and initialized `previous`.
            let previous: libc::sigaction = unsafe { previous.assume_init() };
            if previous.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            // SAFETY: an all-zero action is valid and has an empty mask.
            let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            action.sa_sigaction = handle as extern "C" fn(i32) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: the handler does only what signal-safety(7) allows.
            if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
                return Err(io::Error::last_os_error());
            }
            taken.previous.push((signal, previous));
        }
        Ok(taken)
    }

    pub fn next(&self) -> Option<i32> {
        let mut byte = [0];
        match rustix::io::read(&self.reader, &mut byte) {
            Ok(1) => Some(byte[0].into()),
            _ => None,
        }
    }
}

impl AsFd for Signals {
    /// Returns a descriptor that is readable while a signal is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (signal, previous) in &self.previous {
            // SAFETY: `previous` is the action that sigaction reported for this signal.
            unsafe { libc::sigaction(*signal, previous, std::ptr::null_mut()) };
        }
        PIPE.store(-1, Ordering::Release);
    }
}

extern "C" fn handle(signal: i32) {
    let pipe = PIPE.load(Ordering::Acquire);
    // Signal numbers are below 65.
    let byte = signal as u8;
    // SAFETY: write(2) and errno's location are safe in a handler. errno is restored, because the interrupted code may
    // be about to read it. If the pipe, which holds thousands of signals, is full, the signal is lost.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(pipe, (&raw const byte).cast(), 1);
        *libc::__errno_location() = errno;
    }
}
