//! The signals of a supervisor, and the wait for its VMM.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use super::log_pipe::LogPipe;
use netstack::broker::Broker;

const END_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Signals that a supervisor waits for. They are blocked, so that none is lost.
#[derive(Debug)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks the signals. Must be called before the VMM starts.
    pub fn block() -> io::Result<Signals> {
        // SAFETY: sigemptyset initializes `set` before it is used.
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

    /// Unblocks the signals. Must be called in the VMM, and before the supervisor executes itself again.
    pub fn unblock(&self) {
        // SAFETY: the set is initialized. The call cannot fail with these arguments (pthread_sigmask(3)).
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const self.0, std::ptr::null_mut()) };
    }

    /// Forwards signals, copies output and serves `broker` until the VMM exits. On return, the log has all its output.
    pub fn wait(&self, vmm: Pid, broker: &mut Broker, log: &mut LogPipe) -> io::Result<WaitStatus> {
        let signals = self.descriptor()?;
        loop {
            if let Some((_, status)) = waitpid(Some(vmm), WaitOptions::NOHANG)?
                && (status.exited() || status.signaled())
            {
                log.copy();
                return Ok(status);
            }
            let mut watched =
                vec![PollFd::new(&signals, PollFlags::IN), PollFd::from_borrowed_fd(broker.events(), PollFlags::IN)];
            watched.extend(log.reader().map(|reader| PollFd::from_borrowed_fd(reader, PollFlags::IN)));
            match poll(&mut watched, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let has_request = !watched[1].revents().is_empty();
            drop(watched);
            log.copy();
            while let Some(signal) = self.next(Duration::ZERO) {
                if signal != libc::SIGCHLD {
                    // SAFETY: the VMM has not been waited for, so its PID has not been reused.
                    unsafe { libc::kill(vmm.as_raw_nonzero().get(), signal) };
                }
            }
            if has_request {
                broker.serve();
            }
        }
    }

    /// Waits for `delay`, or until a termination signal arrives. Returns true for a signal.
    pub fn end_within(&self, delay: Duration) -> bool {
        let deadline = Instant::now() + delay;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(left) {
                Some(libc::SIGCHLD) => {}
                Some(_) => return true,
                None if left.is_zero() => return false,
                None => {}
            }
        }
    }

    /// Returns a descriptor that is readable while a signal is pending.
    fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the set is initialized.
        match unsafe { libc::signalfd(-1, &raw const self.0, libc::SFD_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the kernel has just opened this descriptor, and nothing else owns it.
            fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        }
    }

    /// Takes a signal that is pending or arrives within `timeout`.
    fn next(&self, timeout: Duration) -> Option<i32> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: the set and the timeout are initialized. The null pointer requests no further signal information.
        let signal = unsafe { libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), &raw const timeout) };
        (signal > 0).then_some(signal)
    }
}
