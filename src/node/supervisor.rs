//! Supervisor of a VMM: starts the VMM, waits for it, writes its log and cleans up after it.
//!
//! The VMM's sandbox prevents it from executing itself again after a guest reboot and from removing its directory. The
//! supervisor holds the instance's lock together with the VMM and forwards termination signals. Neither process
//! outlives the other. The supervisor also opens host sockets for the VMM ([`broker`](netstack::broker)).

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use rustix::stdio::dup2_stderr;

use machine::bounded_log::BoundedLog;
use netstack::broker::Broker;

const END_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// Size in bytes at which the log is rotated. Otherwise, a guest that provokes messages could fill the disk.
const LOG_LIMIT: u64 = 1 << 20;
/// Maximum bytes copied to the log in one call. A pipe holds less, so one call after the VMM's exit copies all.
const COPIED_AT_A_TIME: usize = 2 << 20;
/// A VMM that ran for less than this may be part of a guest's reboot loop.
const SHORT_RUN: Duration = Duration::from_secs(10);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(16);

/// Returns the number of consecutive short runs, including one of length `run`. `before` is the number without it.
#[must_use]
pub fn count_short_runs(before: u32, run: Duration) -> u32 {
    if run < SHORT_RUN { before.saturating_add(1) } else { 0 }
}

/// Returns the delay before a restart. One short run causes no delay: a user may reboot a guest right after its start.
#[must_use]
pub fn restart_delay(short_runs: u32) -> Duration {
    match short_runs {
        0 | 1 => Duration::ZERO,
        more => Duration::from_secs(1 << (more - 2).min(16)).min(MAX_RESTART_DELAY),
    }
}

/// Pipe from the VMM's standard error to the log. The VMM has no access to the log itself, so it cannot overfill it.
#[derive(Debug)]
pub struct LogPipe {
    reader: OwnedFd,
    log: BoundedLog,
    is_open: bool,
}

impl LogPipe {
    /// Redirects this process's standard error to the log. Returns the pipe and its write end, for the VMM.
    pub fn new(path: &Path) -> io::Result<(LogPipe, OwnedFd)> {
        let (pipe, writer) = LogPipe::to(BoundedLog::open(path, LOG_LIMIT)?)?;
        dup2_stderr(pipe.log.file())?;
        Ok((pipe, writer))
    }

    fn to(log: BoundedLog) -> io::Result<(LogPipe, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&reader, fcntl_getfl(&reader)? | OFlags::NONBLOCK)?;
        Ok((LogPipe { reader, log, is_open: true }, writer))
    }

    /// Copies pending output to the log. After a rotation, redirects this process's standard error to the new log.
    fn copy(&mut self) {
        if self.copy_available() {
            // A failure cannot be logged.
            let _ = dup2_stderr(self.log.file());
        }
    }

    /// Copies output, or drops it if writing fails: the VMM must not block. Returns true if the log was rotated.
    fn copy_available(&mut self) -> bool {
        let mut buffer = vec![0; 64 << 10];
        let (mut copied, mut rotated) = (0, false);
        while self.is_open && copied < COPIED_AT_A_TIME {
            match rustix::io::read(&self.reader, &mut buffer) {
                Ok(0) => self.is_open = false,
                Ok(count) => {
                    copied += count;
                    rotated |= self.log.write(&buffer[..count]).unwrap_or(false);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.is_open = false,
            }
        }
        rotated
    }
}

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
            if log.is_open {
                watched.push(PollFd::from_borrowed_fd(log.reader.as_fd(), PollFlags::IN));
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    #[test]
    fn log_pipe_flood_is_bounded_and_keeps_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmm.log");
        let (mut pipe, writer) = LogPipe::to(BoundedLog::open(&path, LOG_LIMIT).unwrap()).unwrap();
        let writer = std::thread::spawn(move || {
            let mut writer = File::from(writer);
            for _ in 0..200 {
                writer.write_all(&[b'x'; 64 << 10]).unwrap();
            }
            writer.write_all(b"\nthe last words\n").unwrap();
        });
        while pipe.is_open {
            poll(&mut [PollFd::new(&pipe.reader, PollFlags::IN)], None).unwrap();
            pipe.copy_available();
        }
        writer.join().unwrap();
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap()).collect();
        let size: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(files.len() == 2 && size <= 2 * (LOG_LIMIT + (64 << 10)), "{size}");
        assert!(std::fs::read_to_string(path).unwrap().ends_with("x\nthe last words\n"));
    }

    #[test]
    fn restart_delay_grows_with_short_runs_up_to_maximum() {
        let delays: Vec<u64> = (0..=7).map(|runs| restart_delay(runs).as_secs()).collect();
        assert_eq!(delays, [0, 0, 1, 2, 4, 8, 16, 16]);
        assert_eq!(restart_delay(u32::MAX), MAX_RESTART_DELAY);
        assert_eq!(count_short_runs(0, Duration::from_secs(1)), 1);
        assert_eq!(count_short_runs(u32::MAX, Duration::ZERO), u32::MAX);
        assert_eq!(count_short_runs(7, SHORT_RUN), 0);
    }
}
