//! Signals to this process as bytes in a pipe, while a command runs in the guest.
//!
//! Handlers, not a blocked set and a signalfd: that would need every thread of the process to block
//! them, and not all threads are ours.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};

/// The pipe's writing end, or -1 while nobody wants signals.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// The signals that are taken instead of what they would do; gives the old ways back when dropped.
pub struct Signals {
    reader: OwnedFd,
    /// Kept open for the handler.
    _writer: OwnedFd,
    previous: Vec<(i32, libc::sigaction)>,
}

impl Signals {
    /// Takes these signals. Those that this process ignores (under `nohup`) stay ignored.
    ///
    /// # Errors
    /// Where another command of this process has them.
    pub fn take(signals: &[i32]) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        if PIPE.compare_exchange(-1, writer.as_raw_fd(), Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Err(io::Error::other("another command of this process takes the signals"));
        }
        let mut taken = Self { reader, _writer: writer, previous: Vec::new() };
        for &signal in signals {
            let mut previous = MaybeUninit::zeroed();
            // SAFETY: a null new action only asks; `previous` has room for the answer.
            if unsafe { libc::sigaction(signal, std::ptr::null(), previous.as_mut_ptr()) } != 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the call succeeded and filled it.
            let previous: libc::sigaction = unsafe { previous.assume_init() };
            if previous.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            // SAFETY: all zeroes is a valid action with an empty mask.
            let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            action.sa_sigaction = handle as extern "C" fn(i32) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: the handler only does what signal-safety(7) allows.
            if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
                return Err(io::Error::last_os_error());
            }
            taken.previous.push((signal, previous));
        }
        Ok(taken)
    }

    /// The next signal that has come, if any.
    pub fn next(&self) -> Option<i32> {
        let mut byte = [0];
        match rustix::io::read(&self.reader, &mut byte) {
            Ok(1) => Some(byte[0].into()),
            _ => None,
        }
    }
}

impl AsFd for Signals {
    /// Readable when a signal has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (signal, previous) in &self.previous {
            // SAFETY: `previous` is what sigaction reported for this signal.
            unsafe { libc::sigaction(*signal, previous, std::ptr::null_mut()) };
        }
        PIPE.store(-1, Ordering::Release);
    }
}

extern "C" fn handle(signal: i32) {
    let pipe = PIPE.load(Ordering::Acquire);
    // Signal numbers are below 65.
    let byte = signal as u8;
    // SAFETY: write(2) is safe in a handler, and so is errno's location, which is put back: the
    // interrupted code may be about to read it. A full pipe loses a signal, and holds thousands.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(pipe, (&raw const byte).cast(), 1);
        *libc::__errno_location() = errno;
    }
}
