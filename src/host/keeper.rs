//! A VMM's supervisor: the process that starts it, waits for it, keeps its log, and puts things in order when it has ended.
//!
//! A VMM has given up what it would need for that: it cannot execute itself anew when its guest reboots, nor remove its
//! own folder. The supervisor holds the lock with the VMM, passes on the signals that end a machine, and ends with its VMM, as
//! that does with it. It opens sockets of the host for the VMM ([`broker`](crate::vmm::broker)).

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

use crate::vmm::bounded_log::BoundedLog;
use crate::vmm::broker::Broker;

/// Signals that end a machine.
const END_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// When the log has this many bytes, another begins: a guest that has the VMM complain cannot fill the disk.
const LOG_LIMIT: u64 = 1 << 20;
/// The most that is copied to the log at a time: more than a pipe can hold.
const COPIED_AT_A_TIME: usize = 2 << 20;
/// A machine whose guest reboots earlier than this may be in a loop.
const SHORT_RUN: Duration = Duration::from_secs(10);
/// The longest delay of a restart.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(16);

/// The number of consecutive short runs before a restart, of which `before` came before one that took `run`.
#[must_use]
pub fn count_short_runs(before: u32, run: Duration) -> u32 {
    if run < SHORT_RUN { before.saturating_add(1) } else { 0 }
}

/// The delay of the restart after so many consecutive short runs. One is no loop: a user may reboot a guest right after its
/// start.
#[must_use]
pub fn restart_delay(short_runs: u32) -> Duration {
    match short_runs {
        0 | 1 => Duration::ZERO,
        more => Duration::from_secs(1 << (more - 2).min(16)).min(MAX_RESTART_DELAY),
    }
}

/// The VMM's standard error, and the log that it is copied to. The VMM has no descriptor of the log, so that it can neither let
/// it grow nor change what is in it.
#[derive(Debug)]
pub struct LogPipe {
    reader: OwnedFd,
    log: BoundedLog,
    is_open: bool,
}

impl LogPipe {
    /// Makes the log at `path` this process's standard error, and returns what is to be the VMM's.
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

    /// Copies what there is, and has this process write to the same file.
    fn copy(&mut self) {
        if self.copy_available() {
            // What cannot be written there is lost.
            let _ = dup2_stderr(self.log.file());
        }
    }

    /// Copies what there is; says if a new file was begun. What cannot be written, as on a full disk, is lost: the VMM must not
    /// be held up.
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

/// The signals that a supervisor waits for; blocked, so that none is lost.
#[derive(Debug)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them, before the VMM is there.
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

    /// Lets them come again, in the VMM and in a supervisor that executes itself anew.
    pub fn unblock(&self) {
        // SAFETY: the set is initialised; that it cannot fail with these arguments, pthread_sigmask(3) says.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const self.0, std::ptr::null_mut()) };
    }

    /// Waits until the VMM has ended, passing signals on to it and its messages to the log, and serving `broker`; returns how it
    /// did. What it wrote is in the log by then.
    pub fn wait(&self, vmm: Pid, broker: &mut Broker, log: &mut LogPipe) -> io::Result<WaitStatus> {
        let came = self.descriptor()?;
        loop {
            if let Some((_, status)) = waitpid(Some(vmm), WaitOptions::NOHANG)?
                && (status.exited() || status.signaled())
            {
                log.copy();
                return Ok(status);
            }
            let mut watched =
                vec![PollFd::new(&came, PollFlags::IN), PollFd::from_borrowed_fd(broker.events(), PollFlags::IN)];
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
                    // SAFETY: the VMM has not been waited for, so that its id is its own.
                    unsafe { libc::kill(vmm.as_raw_nonzero().get(), signal) };
                }
            }
            if has_request {
                broker.serve();
            }
        }
    }

    /// Waits for `delay`, or until a signal comes that ends a machine; says if one came.
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

    /// A descriptor that can be read when a signal is pending.
    fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the set is initialised.
        match unsafe { libc::signalfd(-1, &raw const self.0, libc::SFD_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the kernel has just opened it for this process, and nothing else has it.
            fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        }
    }

    /// Takes a signal that is pending, or comes within `timeout`.
    fn next(&self, timeout: Duration) -> Option<i32> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: the set and the time are initialised; what the signal tells besides its number is not asked for.
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
    fn log_pipe_flood_stays_within_its_bound_and_keeps_the_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmm.log");
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
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap()).collect();
        let size: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(files.len() == 2 && size <= 2 * (LOG_LIMIT + (64 << 10)), "{size}");
        assert!(std::fs::read_to_string(path).unwrap().ends_with("x\nthe last words\n"));
    }

    #[test]
    fn restart_of_one_short_run_is_immediate_and_of_more_grows_up_to_a_bound() {
        let delays: Vec<u64> = (0..=7).map(|runs| restart_delay(runs).as_secs()).collect();
        assert_eq!(delays, [0, 0, 1, 2, 4, 8, 16, 16]);
        assert_eq!(restart_delay(u32::MAX), MAX_RESTART_DELAY);
        assert_eq!(count_short_runs(0, Duration::from_secs(1)), 1);
        assert_eq!(count_short_runs(u32::MAX, Duration::ZERO), u32::MAX);
        assert_eq!(count_short_runs(7, SHORT_RUN), 0);
    }
}
