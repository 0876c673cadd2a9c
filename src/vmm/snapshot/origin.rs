//! The snapshot's memory from which a machine was restored. A new snapshot can then contain only the pages that have
//! changed since, and a link to the file with the other pages.
//!
//! Guest memory is a private mapping of the file, so the kernel knows which pages have changed. Writes are not tracked.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};
use serde::{Deserialize, Serialize};

use super::{MachineState, SnapshotError, written};
use crate::memory::{self, GuestMemory, MemoryError, PAGE, PageRun, pages};
use machine::snapshot_files::{BASE, MEMORY};
use machine::untrusted;

/// With more runs of changed pages, mapping them would cost more than saving all pages.
const MAX_RUNS: usize = 4096;

/// The part of a snapshot's memory that its own file contains. The rest is in its base.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Differences {
    /// The base file's modification time, in seconds and nanoseconds since 1970.
    pub base_written: (i64, i64),
    pub runs: Vec<PageRun>,
}

#[derive(Debug)]
pub struct Origin {
    base: File,
    /// The file with the changed pages, and the runs of pages that it contains.
    differences: Option<(File, Vec<PageRun>)>,
}

/// The name of a link to the base file, in the directory of a restored machine.
pub const KEPT: &str = "origin";

/// Links the base file of the snapshot in `saved` into the directory `own` of the machine to restore. The VMM can
/// only read `saved`, but can link the file again from `own` when it saves the machine. A failure is only logged.
pub fn keep(saved: &Path, own: &Path) {
    let is_file = |path: &PathBuf| path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    let base = [BASE, MEMORY].map(|name| saved.join(name)).into_iter().find(is_file);
    let kept = base.map_or(Ok(()), |base| fs::hard_link(base, own.join(KEPT)));
    if let Err(error) = kept {
        log::info!("cannot keep the base snapshot, so the next snapshot will be full, not differential: {error}");
    }
}

pub fn forget(own: &Path) -> io::Result<()> {
    untrusted::remove(&own.join(KEPT))
}

impl Origin {
    /// Opens the memory files of the snapshot in `dir`. Opens the link in `own` instead, if it is the same file.
    pub fn open(dir: &Path, own: &Path, state: &MachineState) -> Result<Origin, SnapshotError> {
        let open = |name| {
            let path = dir.join(name);
            let file = untrusted::open(&path).map_err(SnapshotError::file(&path, "read"))?;
            Ok(match untrusted::open(&own.join(KEPT)) {
                Ok(kept) if is_same(&kept, &file) => kept,
                _ => file,
            })
        };
        Ok(match &state.differences {
            None => Origin { base: open(MEMORY)?, differences: None },
            Some(differences) => {
                Origin { base: open(BASE)?, differences: Some((open(MEMORY)?, differences.runs.clone())) }
            }
        })
    }

    /// Maps the files over `memory`. Pages are read on first access, and the guest's writes stay private.
    pub fn map(&self, memory: &GuestMemory) -> Result<(), MemoryError> {
        let over = self.differences.as_ref().map(|(file, runs)| (file, runs.as_slice()));
        memory::map_file(memory, &self.base, over)
    }

    /// Returns the changed pages and links the base into `dir`. Returns `None` if that fails or saving all is cheaper.
    pub(super) fn differences(&self, memory: &GuestMemory, dir: &Path) -> Option<Differences> {
        let find = || -> io::Result<Option<Differences>> {
            let known = self.differences.as_ref().map_or(&[][..], |(_, runs)| runs);
            let runs = pages::join(memory, pages::changed(memory)?, known);
            let changed: u64 = runs.iter().map(|run| run.count * PAGE).sum();
            let base = self.base.metadata()?;
            if runs.len() > MAX_RUNS || changed > base.blocks() * 512 {
                return Ok(None);
            }
            self.link(dir)?;
            Ok(Some(Differences { base_written: written(&base), runs }))
        };
        find().unwrap_or_else(|error| {
            log::info!("saving all memory, not only the changed pages: {error}");
            None
        })
    }

    /// Links the base into `dir`, unless it is there already.
    fn link(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(BASE);
        match untrusted::open(&path) {
            Ok(there) if is_same(&there, &self.base) => return Ok(()),
            Ok(_) => fs::remove_file(&path)?,
            Err(_) => {}
        }
        // Linking fails if all names of the file have been removed.
        let name = format!("/proc/self/fd/{}", self.base.as_raw_fd());
        Ok(linkat(CWD, name, CWD, &path, AtFlags::SYMLINK_FOLLOW)?)
    }
}

fn is_same(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}
