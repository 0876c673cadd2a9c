//! Files that are passed to a VMM as open descriptors.
//!
//! A VMM opens the files of its disks before it enters the sandbox (`vmm/sandbox`), and can open none afterwards. To
//! attach a disk or switch to an overlay, the client opens the files and passes them through the control socket.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::DiskConfig;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedFile {
    /// The path at which the sender opened the file.
    pub path: PathBuf,
    pub writable: bool,
}

impl PassedFile {
    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(self.writable).open(&self.path)
    }
}

#[derive(Debug, Default)]
pub struct FdTable(RefCell<Vec<(PassedFile, File)>>);

impl FdTable {
    /// Opens the files of `disks`. Skips a file that cannot be opened; opening the disk reports the error.
    #[must_use]
    pub fn of(disks: &[DiskConfig]) -> FdTable {
        let mut files: Vec<(PassedFile, File)> = Vec::new();
        for (path, writable) in disks.iter().flat_map(DiskConfig::files) {
            let path = PassedFile { path: path.to_path_buf(), writable };
            // Each writer has its own descriptor, so that the locks of two disks with the same file conflict.
            if !writable && files.iter().any(|(known, _)| *known == path) {
                continue;
            }
            files.extend(path.open().ok().map(|file| (path, file)));
        }
        FdTable(RefCell::new(files))
    }

    pub fn extend(&mut self, files: impl IntoIterator<Item = (PassedFile, File)>) {
        self.0.get_mut().extend(files);
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// Returns the passed file, or opens it. Moves out a writable descriptor, so that its lock ends with the disk.
    pub fn open(&self, path: &Path, writable: bool) -> io::Result<File> {
        let wanted = PassedFile { path: path.to_path_buf(), writable };
        let mut files = self.0.borrow_mut();
        match files.iter().position(|(passed, _)| *passed == wanted) {
            Some(index) if writable => Ok(files.remove(index).1),
            Some(index) => files[index].1.try_clone(),
            None => wanted.open(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskAccess, DiskFormat};

    #[test]
    fn writable_descriptor_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, "x").unwrap();
        let disk = DiskConfig::new("disk", path.clone(), DiskFormat::Raw, DiskAccess::ReadWrite);
        let files = FdTable::of(&[disk.clone(), disk]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(files.count(), 2);
        files.open(&path, true).unwrap();
        files.open(&path, true).unwrap();
        assert!(files.open(&path, true).is_err());
    }
}
