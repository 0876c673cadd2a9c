//! Snapshots in an instance's directory: of a hibernated instance, and for forks and images with memory.
//!
//! The VMM writes a snapshot into a directory of the instance. On the restore of a hibernated instance, the VMM removes
//! the state file before the first instruction, so at most one VM ever resumes from a snapshot.
//!
//! If the state file is missing, either the snapshot is incomplete, or a VM was restored from it. In the latter case,
//! the next hibernation writes only the pages that have changed since.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::dir::InstanceDir;
use super::error::{Failure, MachineError};
use super::handle::MachineHandle;
use machine::control::ControlRequest;
use machine::launch::Restore;
use machine::snapshot_files;
use machine::untrusted;

const SAVED: &str = "hibernated";
/// Name prefix of a temporary directory with a snapshot for forks or for an image with memory.
const SAVED_FOR_OTHERS: &str = "saved-";
/// Long enough to write the memory of the largest VM to a slow disk.
const SAVE_TIMEOUT: Duration = Duration::from_secs(1800);
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);

impl InstanceDir {
    fn saved(&self) -> PathBuf {
        self.vmm_directory().join(SAVED)
    }

    pub fn is_hibernated(&self) -> bool {
        self.saved().join(snapshot_files::STATE).symlink_metadata().is_ok_and(|metadata| metadata.is_file())
    }

    /// Returns the snapshot of a hibernated instance, which can be restored once.
    pub fn hibernated(&self) -> Option<Restore> {
        self.is_hibernated().then(|| Restore { dir: self.saved(), once: true })
    }

    /// Removes the snapshot, complete or not.
    pub fn forget_hibernated(&self) -> Result<(), MachineError> {
        let saved = self.saved();
        snapshot_files::remove(&saved).map_err(MachineError::file(&saved, "remove"))
    }

    /// Makes the instance's VMM save a snapshot and exit. The guest first writes its dirty pages to its disks, so that
    /// no data is lost if the snapshot is later discarded (`start --cold`). If the guest cannot write them, the
    /// snapshot is saved anyway.
    pub fn hibernate(&self, machine: &mut MachineHandle) -> Result<(), MachineError> {
        if let Err(error) = self.sync(AGENT_TIMEOUT) {
            let id = self.id();
            log::warn!("{id}: cannot write the guest's dirty pages to its disks: {error}");
        }
        let dir = self.saved();
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(MachineError::file(&dir, "create"))?;
        let saved =
            machine.end_with(&ControlRequest::Save { dir }, SAVE_TIMEOUT).and_then(|()| match self.is_hibernated() {
                true => Ok(()),
                // The VMM may have been killed before it saved the memory.
                false => Err(self.error(Failure::NotDone("the VMM exited before it saved the memory".into()))),
            });
        if saved.is_err() {
            self.forget_hibernated()?;
        }
        saved
    }

    /// Creates two temporary directories for a snapshot that other instances will be restored from. The VMM writes it
    /// to the first one. The caller then moves it to the second one, where the VMM cannot write. The caller holds the
    /// operation lock, so existing ones were left by killed commands and are removed.
    pub fn saved_for_others(&self) -> Result<[TempDir; 2], MachineError> {
        let [own, trusted] = [self.vmm_directory(), self.path().to_path_buf()].map(|parent| {
            let failed = || MachineError::file(&parent, "create a directory in");
            for entry in fs::read_dir(&parent).map_err(failed())? {
                let entry = entry.map_err(failed())?;
                if entry.file_name().to_string_lossy().starts_with(SAVED_FOR_OTHERS) {
                    untrusted::remove(&entry.path()).map_err(failed())?;
                }
            }
            let private = fs::Permissions::from_mode(0o700);
            tempfile::Builder::new().prefix(SAVED_FOR_OTHERS).permissions(private).tempdir_in(&parent).map_err(failed())
        });
        Ok([own?, trusted?])
    }
}
