//! Copies guest memory to a file while the guest is running.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::SnapshotError;
use super::cancellation::Cancellation;
use super::memory::{Content, create};
use machine::snapshot_files::MEMORY;

/// A copy of guest memory at one instant, which a child process (fork(2)) writes to a file while the guest is running.
/// The child calls only async-signal-safe functions (signal-safety(7)).
#[derive(Debug)]
pub struct Copy<'a> {
    /// Zero once it has been waited for.
    child: libc::pid_t,
    cancellation: &'a Cancellation,
    file: File,
    path: PathBuf,
}

impl Copy<'_> {
    /// Starts the copy. The machine must be paused until this returns.
    pub fn begin<'a>(content: &Content, dir: &Path, cancellation: &'a Cancellation) -> Result<Copy<'a>, SnapshotError> {
        let path = dir.join(MEMORY);
        let failed = SnapshotError::file(&path, "write");
        let file = create(content, dir).map_err(&failed)?;
        // SAFETY: the child only calls `write_all`, which allocates nothing and takes no lock, and _exit.
        let child = unsafe { libc::fork() };
        match child {
            -1 => Err(failed(io::Error::last_os_error())),
            0 => {
                let code = match write_all(&file, content) {
                    Ok(()) => 0,
                    Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
                };
                // SAFETY: this ends the process, which is a copy without anything to clean up.
                unsafe { libc::_exit(code) }
            }
            child => {
                cancellation.register(child);
                Ok(Copy { child, cancellation, file, path })
            }
        }
    }

    /// Waits until the copy is complete and durable.
    pub fn finish(mut self) -> Result<(), SnapshotError> {
        let failed = SnapshotError::file(&self.path, "write");
        let code = self.wait();
        let copied = self.cancellation.check().and_then(|()| match code {
            0 => self.file.sync_all(),
            code => Err(io::Error::from_raw_os_error(code)),
        });
        copied.map_err(failed)
    }

    /// Waits for the child. Returns its exit code: 0, or an error number.
    fn wait(&mut self) -> i32 {
        let child = std::mem::replace(&mut self.child, 0);
        self.await_exit(child);
        let mut status = 0;
        // SAFETY: it is a child of this process, and is waited for once.
        while child != 0 && unsafe { libc::waitpid(child, &raw mut status, 0) } == -1 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return error.raw_os_error().unwrap_or(libc::EIO);
            }
        }
        if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { libc::EIO }
    }

    /// Waits until the child has exited, and keeps its process ID in use until nothing can kill it any more.
    fn await_exit(&self, child: libc::pid_t) {
        if let Some(child) = Pid::from_raw(child) {
            let exited = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(child), exited), Err(Errno::INTR)) {}
            self.cancellation.unregister();
        }
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        if self.child != 0 {
            // SAFETY: it is a child of this process that has not been waited for.
            unsafe { libc::kill(self.child, libc::SIGKILL) };
            self.wait();
        }
    }
}

fn write_all(file: &File, content: &Content) -> io::Result<()> {
    // Close the parent's descriptors: otherwise, its sockets and locks would stay open until this process exits.
    let fd = file.as_raw_fd() as u32;
    // SAFETY: these calls take numbers; descriptors below 3 are the standard streams.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, fd - 1, 0_u32);
        libc::syscall(libc::SYS_close_range, fd + 1, u32::MAX, 0_u32);
    }
    content.pieces.iter().try_for_each(|piece| piece.write(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn copy_is_complete_and_canceled_copy_fails() {
        let dir = tempfile::tempdir().unwrap();
        let memory = allocate(64).unwrap();
        memory.write_slice(b"before", GuestAddress(0x1000)).unwrap();
        let (content, cancellation) = (Content::of(&memory, None, dir.path()), Cancellation::default());
        let copy = Copy::begin(&content, dir.path(), &cancellation).unwrap();
        memory.write_slice(b"after!", GuestAddress(0x1000)).unwrap();
        copy.finish().unwrap();
        let saved = std::fs::read(dir.path().join(MEMORY)).unwrap();
        assert_eq!((saved.len(), &saved[0x1000..0x1006]), (64 << 20, &b"before"[..]));

        let copy = Copy::begin(&content, dir.path(), &cancellation).unwrap();
        cancellation.cancel();
        let error = copy.finish().unwrap_err();
        assert!(error.to_string().ends_with("memory: the machine is being stopped"), "{error}");
    }

    #[test]
    fn child_of_canceled_copy_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let cancellation = Cancellation::default();
        // SAFETY: the child only waits for a signal and exits.
        let child = match unsafe { libc::fork() } {
            // SAFETY: both calls are async-signal-safe.
            0 => unsafe {
                libc::pause();
                libc::_exit(0)
            },
            child => child,
        };
        let file = File::create(dir.path().join(MEMORY)).unwrap();
        cancellation.register(child);
        let mut copy = Copy { child, cancellation: &cancellation, file, path: dir.path().join(MEMORY) };
        cancellation.cancel();
        assert_eq!(copy.wait(), libc::EIO);
    }
}
