//! Files that come to a machine as open descriptors: whoever sends a request opens what it is about.
//!
//! A running monitor cannot open files that were not its machine's from the beginning (`vmm/sandbox`). A disk that is
//! attached, or a layer that a disk goes on in, comes through the control socket, and everything beneath it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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

/// The files that came with a request, or none.
#[derive(Debug, Default)]
pub struct PassedFiles(Vec<(PassedPath, File)>);

impl PassedFiles {
    /// Adds some.
    pub fn extend(&mut self, files: impl IntoIterator<Item = (PassedPath, File)>) {
        self.0.extend(files);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Opens a file: the one that was passed for it, or what the process finds at its path.
    pub fn open(&self, path: &Path, writable: bool) -> io::Result<File> {
        let wanted = PassedPath { path: path.to_path_buf(), writable };
        match self.0.iter().find(|(passed, _)| *passed == wanted) {
            Some((_, file)) => file.try_clone(),
            None => wanted.open(),
        }
    }
}
