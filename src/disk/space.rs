//! Free space of a file system, watched while files of unknown size are written.
//!
//! A compressed archive or a sparse image may need more space than its file size. A writer therefore requests space
//! before each write. The request fails if less than [`RESERVE`] would be left for the rest of the host.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Free space in bytes that is reserved for the rest of the host.
pub const RESERVE: u64 = 128 << 20;
/// Bytes after which the file system is queried again, because other programs also write to it.
const STEP: u64 = 16 << 20;

pub struct FreeSpace {
    directory: PathBuf,
    free: Box<dyn Fn(u64) -> io::Result<u64>>,
    /// Bytes that may be written before the next query.
    allowance: Cell<u64>,
    written: Cell<u64>,
}

/// Error of a write that would use the [`RESERVE`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} has {} MiB free, but {} MiB are reserved for the rest of the host: stopped after writing {} MiB",
    directory.display(), free >> 20, RESERVE >> 20, written >> 20
)]
pub struct SpaceExhausted {
    pub directory: PathBuf,
    pub free: u64,
    pub written: u64,
}

impl FreeSpace {
    pub fn of(directory: &Path) -> FreeSpace {
        let place = directory.to_path_buf();
        FreeSpace::measured_by(directory, move |_| {
            let stat = rustix::fs::statvfs(&place)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        })
    }

    /// Returns unlimited space, for files of a known size.
    pub fn unwatched() -> FreeSpace {
        FreeSpace::measured_by(Path::new(""), |_| Ok(u64::MAX))
    }

    /// Measures the space with `free`, whose argument is the number of bytes written so far.
    pub fn measured_by(directory: &Path, free: impl Fn(u64) -> io::Result<u64> + 'static) -> FreeSpace {
        let (allowance, written) = (Cell::new(0), Cell::new(0));
        FreeSpace { directory: directory.to_path_buf(), free: Box::new(free), allowance, written }
    }

    /// Returns the number of bytes that can be written now without using the reserve.
    pub fn usable(&self) -> io::Result<u64> {
        Ok((self.free)(self.written.get())?.saturating_sub(RESERVE))
    }

    /// Reserves space for a write. Fails with `StorageFull` and a [`SpaceExhausted`] if there is not enough.
    pub fn take(&self, bytes: u64) -> io::Result<()> {
        let left = match self.allowance.get().checked_sub(bytes) {
            Some(left) => left,
            None => {
                let free = (self.free)(self.written.get())?;
                let Some(left) = free.saturating_sub(RESERVE).checked_sub(bytes) else {
                    let (directory, written) = (self.directory.clone(), self.written.get());
                    let error = SpaceExhausted { directory, free, written };
                    return Err(io::Error::new(io::ErrorKind::StorageFull, error));
                };
                left.min(STEP)
            }
        };
        self.allowance.set(left);
        self.written.set(self.written.get() + bytes);
        Ok(())
    }
}

impl fmt::Debug for FreeSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreeSpace").field("directory", &self.directory).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    const MIB: u64 = 1 << 20;

    #[test]
    fn write_into_the_reserve_is_refused() {
        let space = FreeSpace::measured_by(Path::new("/data"), |written| Ok(RESERVE + 100 * MIB - written));
        let written = (0..).take_while(|_| space.take(MIB).is_ok()).count();
        let error = space.take(MIB).unwrap_err();
        assert_eq!((written, error.kind()), (100, io::ErrorKind::StorageFull));
        let exhausted = error.get_ref().unwrap().downcast_ref::<SpaceExhausted>().unwrap();
        assert_eq!((exhausted.free, exhausted.written), (RESERVE, 100 * MIB));
    }

    #[test]
    fn space_used_by_other_programs_is_noticed() {
        let free = Rc::new(Cell::new(1 << 40));
        let seen = free.clone();
        let space = FreeSpace::measured_by(Path::new("/data"), move |_| Ok(seen.get()));
        space.take(MIB).unwrap();
        free.set(RESERVE);
        assert!((0..20).any(|_| space.take(MIB).is_err()));
    }

    #[test]
    fn free_space_of_directory_is_measured() {
        let directory = tempfile::tempdir().unwrap();
        FreeSpace::of(directory.path()).usable().unwrap();
        assert!(FreeSpace::of(Path::new("/no/such/directory")).take(1).is_err());
    }
}
