//! Copies guest memory to a file while the guest is running.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::SnapshotError;
use super::cancellation::Cancellation;
use super::memory::{Content, MemoryExtent, create};
use crate::memory::GuestMemory;
use machine::snapshot_files::MEMORY;

/// A copy of guest memory at one instant, which a child process (fork(2)) writes to a file while the guest is running.
/// The child calls only async-signal-safe functions (signal-safety(7)).
///
/// The child has all memory of that instant. The parent sends it the list of extents through a pipe. The child cannot
/// read its page map in the sandbox, and listing takes milliseconds per GiB, so the parent does it after the pause.
#[derive(Debug)]
pub struct Copy<'a> {
    /// Zero once it has been waited for.
    child: libc::pid_t,
    /// The pipe to the child, until the list is complete.
    extents: Option<File>,
    cancellation: &'a Cancellation,
    file: File,
    path: PathBuf,
}

/// The file and the pipe of a copy that has not begun.
#[derive(Debug)]
pub struct NewCopy {
    file: File,
    path: PathBuf,
    /// The ends of the pipe for the child and for this process.
    extents: (File, File),
}

impl NewCopy {
    pub fn create(memory: &GuestMemory, dir: &Path) -> Result<NewCopy, SnapshotError> {
        let path = dir.join(MEMORY);
        let failed = SnapshotError::file(&path, "write");
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let file = create(memory, dir).map_err(&failed)?;
        Ok(NewCopy { file, path, extents: (reader.into(), writer.into()) })
    }

    /// Copies the process. The machine must be paused until this returns.
    pub fn begin(self, cancellation: &Cancellation) -> Result<Copy<'_>, SnapshotError> {
        let NewCopy { file, path, extents: (received, extents) } = self;
        // SAFETY: the child only calls `write_all`, which allocates nothing and takes no lock, and _exit.
        let child = unsafe { libc::fork() };
        match child {
            -1 => Err(SnapshotError::file(&path, "write")(io::Error::last_os_error())),
            0 => {
                let code = match write_all(&file, &received) {
                    Ok(()) => 0,
                    Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
                };
                // SAFETY: this ends the process, which is a copy without anything to clean up.
                unsafe { libc::_exit(code) }
            }
            child => {
                cancellation.register(child);
                Ok(Copy { child, extents: Some(extents), cancellation, file, path })
            }
        }
    }
}

impl Copy<'_> {
    /// Writes `content`, and waits until the file is complete and durable.
    pub fn finish(mut self, content: &Content) -> Result<(), SnapshotError> {
        let failed = SnapshotError::file(&self.path, "write");
        let sent = self.send(content);
        let code = self.wait();
        let copied = self.cancellation.check().and_then(|()| match code {
            0 => sent.and_then(|()| self.file.sync_all()),
            // The child's error is also the reason why the list could not be sent.
            code => Err(io::Error::from_raw_os_error(code)),
        });
        copied.map_err(failed)
    }

    /// Sends the list to the child, and ends it by closing the pipe.
    fn send(&mut self, content: &Content) -> io::Result<()> {
        let Some(extents) = self.extents.take() else { return Ok(()) };
        let mut extents = BufWriter::new(extents);
        content.pieces.iter().try_for_each(|extent| extents.write_all(&extent.to_bytes()))?;
        extents.flush()
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

/// Writes the extents that arrive in the pipe, until the pipe closes.
fn write_all(file: &File, extents: &File) -> io::Result<()> {
    // Close the parent's descriptors: otherwise, its sockets and locks would stay open until this process exits, and
    // the pipe would never close.
    let mut kept = [file.as_raw_fd() as u32, extents.as_raw_fd() as u32];
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if first < fd {
            // SAFETY: the call takes numbers; descriptors below 3 are the standard streams.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0_u32) };
        }
        first = fd.saturating_add(1);
    }
    while let Some(extent) = receive(extents)? {
        extent.write(file)?;
    }
    Ok(())
}

/// Returns the next extent, or `None` if the pipe closes.
fn receive(mut extents: &File) -> io::Result<Option<MemoryExtent>> {
    let (mut bytes, mut length) = ([0; MemoryExtent::SIZE], 0);
    while length < bytes.len() {
        match extents.read(&mut bytes[length..]) {
            Ok(0) if length == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(MemoryExtent::from_bytes(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use std::os::unix::fs::FileExt;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    #[test]
    fn copy_is_complete_and_canceled_copy_fails() {
        let dir = tempfile::tempdir().unwrap();
        let memory = allocate(64).unwrap();
        memory.write_slice(b"before", GuestAddress(0x1000)).unwrap();
        let cancellation = Cancellation::default();
        let begin = || NewCopy::create(&memory, dir.path()).unwrap().begin(&cancellation).unwrap();
        let content = || Content::of(&memory, None, dir.path()).unwrap();
        let copy = begin();
        for address in [0x1000, 0x20_0000] {
            memory.write_slice(b"after!", GuestAddress(address)).unwrap();
        }
        copy.finish(&content()).unwrap();
        let saved = std::fs::read(dir.path().join(MEMORY)).unwrap();
        assert_eq!((saved.len(), &saved[0x1000..0x1006]), (64 << 20, &b"before"[..]));
        assert_eq!(saved.iter().filter(|byte| **byte != 0).count(), 6);

        let copy = begin();
        cancellation.cancel();
        let error = copy.finish(&content()).unwrap_err();
        assert!(error.to_string().ends_with("memory: the machine is being stopped"), "{error}");
    }

    const SCATTERED_PAGES: u64 = 6000;

    fn scattered_address(page: u64) -> u64 {
        page * 20 * 4096
    }

    /// Returns memory whose list of extents does not fit into the pipe.
    fn memory_with_scattered_pages() -> GuestMemory {
        let memory = allocate(512).unwrap();
        // With huge pages, there would be one extent.
        memory.iter().for_each(|region| {
            // SAFETY: advice on the test's own memory.
            unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_NOHUGEPAGE) };
        });
        (0..SCATTERED_PAGES)
            .for_each(|page| memory.write_obj(page + 1, GuestAddress(scattered_address(page))).unwrap());
        memory
    }

    #[test]
    fn copy_of_many_scattered_pages_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let memory = memory_with_scattered_pages();
        let cancellation = Cancellation::default();
        let copy = NewCopy::create(&memory, dir.path()).unwrap().begin(&cancellation).unwrap();
        let content = Content::of(&memory, None, dir.path()).unwrap();
        assert!(content.pieces.len() * MemoryExtent::SIZE > 64 << 10, "{} extents", content.pieces.len());
        copy.finish(&content).unwrap();
        let saved = File::open(dir.path().join(MEMORY)).unwrap();
        for page in 0..SCATTERED_PAGES {
            let mut bytes = [0; 8];
            saved.read_exact_at(&mut bytes, scattered_address(page)).unwrap();
            assert_eq!(u64::from_ne_bytes(bytes), page + 1);
        }
    }

    #[test]
    fn full_disk_fails_copy_with_its_error() {
        let dir = tempfile::tempdir().unwrap();
        let memory = memory_with_scattered_pages();
        let cancellation = Cancellation::default();
        let mut new = NewCopy::create(&memory, dir.path()).unwrap();
        new.file = File::options().write(true).open("/dev/full").unwrap();
        let copy = new.begin(&cancellation).unwrap();
        let content = Content::of(&memory, None, dir.path()).unwrap();
        let error = copy.finish(&content).unwrap_err();
        assert!(error.to_string().contains("No space left on device"), "{error}");
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
        let path = dir.path().join(MEMORY);
        let mut copy = Copy { child, extents: None, cancellation: &cancellation, file, path };
        cancellation.cancel();
        assert_eq!(copy.wait(), libc::EIO);
    }
}
