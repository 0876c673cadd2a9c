//! The VMM's log, which the supervisor writes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::dup2_stderr;

use machine::bounded_log::BoundedLog;

/// Size in bytes at which the log is rotated. Otherwise, a guest that provokes messages could fill the disk.
const LOG_LIMIT: u64 = 1 << 20;
/// Maximum bytes copied to the log in one call. A pipe holds less, so one call after the VMM's exit copies all.
const COPIED_AT_A_TIME: usize = 2 << 20;

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

    /// Returns the read end, until the VMM has closed the other end.
    pub fn reader(&self) -> Option<BorrowedFd<'_>> {
        self.is_open.then(|| self.reader.as_fd())
    }

    fn to(log: BoundedLog) -> io::Result<(LogPipe, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&reader, fcntl_getfl(&reader)? | OFlags::NONBLOCK)?;
        Ok((LogPipe { reader, log, is_open: true }, writer))
    }

    /// Copies pending output to the log. After a rotation, redirects this process's standard error to the new log.
    pub fn copy(&mut self) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
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
}
