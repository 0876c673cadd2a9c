//! The saved memory that a machine went on from. A snapshot of that machine has only what has changed since, beside a link
//! to the file that has the rest.
//!
//! Nothing has to be tracked while the guest runs: its memory is mapped privately, so that what it has not changed still is
//! the file's.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};
use serde::{Deserialize, Serialize};

use super::{BASE, MEMORY, MachineState, SnapshotError, written};
use crate::vmm::memory::{self, GuestMemory, MemoryError, PAGE, PageRun, pages};
use crate::vmm::untrusted;

/// More runs than these cost more to map than their pages are worth.
const MAX_RUNS: usize = 4096;

/// What of a snapshot's memory is in its own file; the rest is in its base.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Differences {
    /// When the base's file was written: seconds and nanoseconds since 1970.
    pub base_written: (i64, i64),
    /// The pages.
    pub runs: Vec<PageRun>,
}

/// The files of the saved memory, and what comes from which.
#[derive(Debug)]
pub struct Origin {
    base: File,
    /// What is not from the base.
    differences: Option<(File, Vec<PageRun>)>,
}

/// The name, in the folder of a machine that goes on from a saved one, of the file that most of its memory is from.
pub const KEPT: &str = "origin";

/// Gives the file that most of the memory saved in `saved` is in a name in the folder `own` of the machine that goes on from
/// it: there it can be linked from, when that is saved itself, by a process that may not change anything in `saved`.
pub fn keep(saved: &Path, own: &Path) {
    let is_file = |path: &PathBuf| path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    let base = [BASE, MEMORY].map(|name| saved.join(name)).into_iter().find(is_file);
    let kept = base.map_or(Ok(()), |base| fs::hard_link(base, own.join(KEPT)));
    if let Err(error) = kept {
        log::info!("all of the machine's memory will be saved, if it is, not only what has changed: {error}");
    }
}

/// Takes that name away. It need not have been there.
pub fn forget(own: &Path) -> io::Result<()> {
    untrusted::remove(&own.join(KEPT))
}

impl Origin {
    /// Opens the files beside `state` in `folder`, of which the folder `own` may have one as well.
    pub fn open(folder: &Path, own: &Path, state: &MachineState) -> Result<Origin, SnapshotError> {
        let open = |name| {
            let path = folder.join(name);
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

    /// Maps the memory: pages come from the files as they are touched, and what is written stays with the machine.
    pub fn map(&self, memory_mib: u64) -> Result<GuestMemory, MemoryError> {
        let over = self.differences.as_ref().map(|(file, runs)| (file, runs.as_slice()));
        memory::map_file(memory_mib, &self.base, over)
    }

    /// What a snapshot in `folder` has to have of `memory`, which was mapped here: nothing, if it is better off with all of
    /// it. Sees to it that the base is there.
    pub(super) fn differences(&self, memory: &GuestMemory, folder: &Path) -> Option<Differences> {
        let find = || -> io::Result<Option<Differences>> {
            let known = self.differences.as_ref().map_or(&[][..], |(_, runs)| runs);
            let runs = pages::join(memory, pages::changed(memory)?, known);
            let changed: u64 = runs.iter().map(|run| run.count * PAGE).sum();
            let base = self.base.metadata()?;
            if runs.len() > MAX_RUNS || changed > base.blocks() * 512 {
                return Ok(None);
            }
            self.link(folder)?;
            Ok(Some(Differences { base_written: written(&base), runs }))
        };
        find().unwrap_or_else(|error| {
            log::info!("all of the memory is saved, not only what has changed: {error}");
            None
        })
    }

    /// Gives the base its name in `folder`, if it does not have it.
    fn link(&self, folder: &Path) -> io::Result<()> {
        let path = folder.join(BASE);
        match untrusted::open(&path) {
            Ok(there) if is_same(&there, &self.base) => return Ok(()),
            Ok(_) => fs::remove_file(&path)?,
            Err(_) => {}
        }
        // A file whose last name is gone gets none any more: that fails.
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
