//! Locks image files against other Wisp processes and against QEMU.
//!
//! A writer locks its file against all other users; a reader locks it against writers. Each open file has two kinds of
//! locks, released when its last descriptor is closed. Both belong to the inode, so the file's name does not matter.
//!
//! - `flock(2)` excludes other Wisp processes.
//! - Byte-range locks of the open file description (`fcntl(2)`, `F_OFD_SETLK`) coordinate with QEMU's programs
//!   (`block/file-posix.c`). A shared lock on a byte from 100 up announces that its owner uses a kind of access. A
//!   shared lock on a byte from 200 up denies a kind of access to others.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::error::BlockError;

/// The first byte whose lock announces a kind of access (QEMU's `RAW_LOCK_PERM_BASE`).
const DOES: i64 = 100;
/// The first byte whose lock denies a kind of access to others (QEMU's `RAW_LOCK_SHARED_BASE`).
const FORBIDS: i64 = 200;
/// Kinds of access, as offsets from these bytes (QEMU's `BLK_PERM_*`).
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks a file, or converts the lock of the same open file. Fails with [`BlockError::InUse`] if another user holds a
/// conflicting lock.
pub(super) fn lock(file: &File, path: &Path, writable: bool) -> Result<(), BlockError> {
    let in_use = || BlockError::InUse(path.to_path_buf());
    let whole = if writable { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
    flock(file, whole).map_err(|_| in_use())?;
    match lock_ranges(file, writable) {
        Ok(true) => Ok(()),
        Ok(false) => Err(in_use()),
        // The file system does not support these locks. QEMU does without them, too.
        Err(error) => {
            log::debug!("{} does not support byte-range locks: {error}", path.display());
            Ok(())
        }
    }
}

/// Takes QEMU's locks, then returns true if no other process holds a conflicting lock. As in QEMU, this order ensures
/// that at most one of two concurrent processes succeeds.
fn lock_ranges(file: &File, writable: bool) -> io::Result<bool> {
    let does: &[i64] = if writable { &[READ, WRITE, RESIZE] } else { &[READ] };
    for byte in does {
        set(file, libc::F_RDLCK, DOES + byte)?;
    }
    for byte in [WRITE, RESIZE] {
        set(file, libc::F_RDLCK, FORBIDS + byte)?;
        if !writable {
            // Release the locks that this open file may have held as a writer.
            set(file, libc::F_UNLCK, DOES + byte)?;
        }
    }
    for byte in does {
        if is_locked(file, FORBIDS + byte)? {
            return Ok(false);
        }
    }
    Ok(!is_locked(file, DOES + WRITE)? && !is_locked(file, DOES + RESIZE)?)
}

fn set(file: &File, kind: libc::c_int, byte: i64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, &mut range(kind, byte))
}

fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = range(libc::F_WRLCK, byte);
    fcntl(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the kernel reads and writes the structure, which is valid for the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Image, open};
    use machine::config::DiskFormat;
    use machine::passed_files::FdTable;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, ChildStdin, Command, Output, Stdio};

    fn run(program: &str, arguments: &[&str], path: &Path) -> Output {
        Command::new(program).args(arguments).arg(path).output().unwrap_or_else(|error| {
            panic!("cannot run {program}, which this test needs (install Debian's qemu-utils): {error}")
        })
    }

    struct QemuIo {
        child: Child,
        input: Option<ChildStdin>,
    }

    impl QemuIo {
        fn open(arguments: &[&str], path: &Path) -> QemuIo {
            let mut command = Command::new("qemu-io");
            command.args(arguments).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("cannot run qemu-io (install Debian's qemu-utils)");
            let mut input = child.stdin.take().unwrap();
            input.write_all(b"length\n").unwrap();
            let mut answer = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut answer).unwrap();
            assert!(answer.contains("MiB"), "qemu-io did not open the image: {answer}");
            QemuIo { child, input: Some(input) }
        }
    }

    impl Drop for QemuIo {
        fn drop(&mut self) {
            // qemu-io exits at the end of its input.
            self.input = None;
            let _ = self.child.wait();
        }
    }

    fn open_image(path: &Path, writable: bool) -> Result<Image, BlockError> {
        open(path, DiskFormat::Raw, &[], writable, &FdTable::default())
    }

    fn image() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        (dir, path)
    }

    #[test]
    fn disk_open_for_writing_in_qemu_is_refused() {
        let (_dir, path) = image();
        let writer = QemuIo::open(&["-f", "raw"], &path);
        for writable in [true, false] {
            let opened = open_image(&path, writable);
            assert!(matches!(opened, Err(BlockError::InUse(_))), "writable: {writable}, {opened:?}");
        }
        drop(writer);
        open_image(&path, true).unwrap();
    }

    #[test]
    fn disk_read_by_qemu_opens_read_only() {
        let (_dir, path) = image();
        let _reader = QemuIo::open(&["-r", "-f", "raw"], &path);
        open_image(&path, false).unwrap();
    }

    #[test]
    fn qemu_cannot_open_written_disk_and_can_read_read_only_disk() {
        let (_dir, path) = image();
        let write = ["-f", "raw", "-c", "write -P 9 0 512"];
        let read = ["-r", "-f", "raw", "-c", "read -P 7 0 512"];
        let refused =
            |output: &Output| !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("lock");
        let writer = open_image(&path, true).unwrap();
        let output = run("qemu-io", &write, &path);
        assert!(refused(&output), "{output:?}");
        // Convert the lock to a reader's, as for a backing file.
        lock(&writer.file, &path, false).unwrap();
        let output = run("qemu-io", &write, &path);
        assert!(refused(&output), "{output:?}");
        let output = run("qemu-io", &read, &path);
        assert!(output.status.success(), "{output:?}");
        let reader = open_image(&path, false).unwrap();
        drop(writer);
        assert!(refused(&run("qemu-io", &write, &path)));
        drop(reader);
        let output = run("qemu-io", &write, &path);
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn linked_path_to_locked_file_is_refused() {
        let (dir, path) = image();
        let [hard, soft] = ["hard", "soft"].map(|name| dir.path().join(name));
        std::fs::hard_link(&path, &hard).unwrap();
        std::os::unix::fs::symlink(&path, &soft).unwrap();
        let writer = open_image(&path, true).unwrap();
        for name in [&hard, &soft] {
            for writable in [true, false] {
                assert!(matches!(open_image(name, writable), Err(BlockError::InUse(_))), "{}", name.display());
            }
        }
        drop(writer);
        let _reader = open_image(&path, false).unwrap();
        open_image(&hard, false).unwrap();
        assert!(matches!(open_image(&hard, true), Err(BlockError::InUse(_))));
    }
}
