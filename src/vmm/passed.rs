//! Files that come to a machine as open descriptors: whoever sends a request opens what it is about.
//!
//! A monitor opens the files of its disks before it gives up the rest (`vmm/sandbox`), and can open none of them later.
//! A disk that is attached, or a new layer of a disk, comes through the control socket with its backing files.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::DiskConfig;

/// What a file that is passed stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedPath {
    /// Where whoever sends it has found it.
    pub path: PathBuf,
    /// Whether it is open to be written, too.
    pub writable: bool,
}

impl PassedPath {
    /// Opens it.
    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(self.writable).open(&self.path)
    }
}

/// Files that were opened for disks: those that came with a request, or none.
#[derive(Debug, Default)]
pub struct PassedFiles(RefCell<Vec<(PassedPath, File)>>);

impl PassedFiles {
    /// Opens the files of these disks. One that cannot be opened is left out: the disk reports it.
    #[must_use]
    pub fn of(disks: &[DiskConfig]) -> PassedFiles {
        let mut files: Vec<(PassedPath, File)> = Vec::new();
        for (path, writable) in disks.iter().flat_map(DiskConfig::files) {
            let path = PassedPath { path: path.to_path_buf(), writable };
            // Each writer has a descriptor of its own, so that two disks with one file exclude each other by their locks.
            if !writable && files.iter().any(|(known, _)| *known == path) {
                continue;
            }
            files.extend(path.open().ok().map(|file| (path, file)));
        }
        PassedFiles(RefCell::new(files))
    }

    /// Adds some.
    pub fn extend(&mut self, files: impl IntoIterator<Item = (PassedPath, File)>) {
        self.0.get_mut().extend(files);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// Opens a file: the descriptor that was passed for it, or the file that the process finds at its path. A writable
    /// descriptor is given away once, so that none stays here.
    pub fn open(&self, path: &Path, writable: bool) -> io::Result<File> {
        let wanted = PassedPath { path: path.to_path_buf(), writable };
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
    use crate::vmm::config::{DiskAccess, DiskFormat};

    #[test]
    fn writable_descriptor_is_given_away_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, "x").unwrap();
        let disk = DiskConfig {
            id: "disk".into(),
            path: path.clone(),
            format: DiskFormat::Raw,
            backing: Vec::new(),
            access: DiskAccess::ReadWrite,
            root: false,
            was: None,
            limits: None,
        };
        let files = PassedFiles::of(&[disk.clone(), disk]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(files.count(), 2);
        files.open(&path, true).unwrap();
        files.open(&path, true).unwrap();
        assert!(files.open(&path, true).is_err());
    }
}
