//! Hibernation: saves an instance's memory when it is stopped, and resumes the instance from it later.
//!
//! The VMM writes a snapshot into a directory of the instance. On a restore, the VMM removes the state file before the
//! first instruction, so at most one VM ever resumes from a snapshot.
//!
//! If the state file is missing, either the snapshot is incomplete, or a VM was restored from it. In the latter case,
//! the next hibernation writes only the pages that have changed since.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use super::Cloud;
use super::error::CloudError;
use super::lookup::get;
use super::machine::{InstanceDir, MachineHandle};
use ec2::state::Action;
use ec2::{ErrorCode, InstanceId};
use machine::control::ControlRequest;
use machine::launch::Restore;
use machine::snapshot_files;
use machine::timeline::Mark;
use node::guest::FEATURE;
use node::home::Home;
use store::InstanceRecord;

const SAVED: &str = "hibernated";
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
    pub(super) fn hibernated(&self) -> Option<Restore> {
        self.is_hibernated().then(|| Restore { dir: self.saved(), once: true })
    }

    /// Checks that the guest is ready and that its agent detects a restore.
    pub(super) fn check_savable(&self) -> Result<(), CloudError> {
        let id = self.id();
        let refused = |what: String, hint: &str| {
            Err(CloudError::refused(ErrorCode::UnsupportedOperation, what, Some(hint.to_string())))
        };
        if self.connect()?.status()?.timeline.at(Mark::AgentReady).is_none() {
            let what = format!("The instance '{id}' cannot be saved yet: its guest is still booting.");
            return refused(what, "Try again when its status check in `wisp ls` is ok.");
        }
        let guest = |source| CloudError::Guest { instance: id, source };
        let facts = self.agent(AGENT_TIMEOUT)?.ping(AGENT_TIMEOUT).map_err(guest)?;
        if facts.agent_version.contains(FEATURE) {
            return Ok(());
        }
        let what = format!("The agent of the instance '{id}' ({}) does not support snapshots.", facts.agent_version);
        refused(what, "Import the image again to get the current agent, then launch a new instance from it.")
    }

    /// Removes the snapshot, complete or not.
    pub(super) fn forget_hibernated(&self) -> Result<(), CloudError> {
        let saved = self.saved();
        snapshot_files::remove(&saved).map_err(CloudError::file(&saved, "remove"))
    }

    /// Makes the instance's VMM save a snapshot and exit. The guest first writes its dirty pages to its disks, so that
    /// no data is lost if the snapshot is later discarded (`start --cold`). If the guest cannot write them, the
    /// snapshot is saved anyway.
    pub(super) fn hibernate(&self, machine: &mut MachineHandle) -> Result<(), CloudError> {
        if let Err(error) = self.sync(AGENT_TIMEOUT) {
            let id = self.id();
            log::warn!("{id}: cannot write the guest's dirty pages to its disks: {error}");
        }
        let dir = self.saved();
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(CloudError::file(&dir, "create"))?;
        let saved =
            machine.end_with(&ControlRequest::Save { dir }, SAVE_TIMEOUT).and_then(|()| match self.is_hibernated() {
                true => Ok(()),
                // The VMM may have been killed before it saved the memory.
                false => Err(CloudError::NotDone {
                    instance: self.id(),
                    why: "the VMM exited before it saved the memory".into(),
                }),
            });
        if saved.is_err() {
            self.forget_hibernated()?;
        }
        saved
    }
}

impl Cloud {
    /// Checks that all these instances have hibernation enabled and that their guests are ready.
    pub fn check_hibernation(&self, ids: &[InstanceId]) -> Result<(), CloudError> {
        for id in ids {
            let record = self.store.read::<_, CloudError>(|tx| get(tx, *id))?;
            if !record.hibernation {
                return Err(CloudError::refused(
                    ErrorCode::UnsupportedHibernationConfiguration,
                    format!("The instance '{id}' is not configured for hibernation."),
                    Some("Enable it at launch: `wisp launch --hibernation`.".into()),
                ));
            }
            Action::Hibernate.allowed(*id, record.state)?;
            let checked = self.dir(*id).check_savable();
            checked.map_err(|error| self.unless_ended(*id, "it was hibernated", error))?;
        }
        Ok(())
    }
}

/// Refuses changes to a hibernated instance, which must resume with the same size and volumes.
pub(super) fn refuse_hibernated(home: &Home, record: &InstanceRecord) -> Result<(), CloudError> {
    let id = record.id;
    if record.state.has_machine() || !InstanceDir::of(home, id).is_hibernated() {
        return Ok(());
    }
    Err(CloudError::refused(
        ErrorCode::IncorrectInstanceState,
        format!("The size and volumes of the instance '{id}' cannot be changed while it is hibernated."),
        Some(format!("Start it with `wisp start {id}`, then stop it with `wisp stop {id}`.")),
    ))
}
