//! Hibernation: an instance that is stopped with its memory, and started with it.
//!
//! The monitor saves the machine into a folder of the instance's, and removes its state from there when a machine goes on
//! from it, before the first instruction: so no two ever do. What is in that folder without a state is an unfinished save, or
//! the memory that the running machine went on from: if that is hibernated again, only what has changed is written.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use super::Cloud;
use super::error::CloudError;
use super::lifecycle::get;
use super::machine::{Folder, Monitor};
use crate::ec2::state::Action;
use crate::ec2::{ErrorCode, InstanceId};
use crate::guest::FEATURE;
use crate::host::home::Home;
use crate::store::InstanceRecord;
use crate::vmm::control::Request;
use crate::vmm::machine::Restore;
use crate::vmm::snapshot;
use crate::vmm::timeline::Mark;

/// The saved machine's place in the VMM's directory.
const SAVED: &str = "hibernated";
/// How long saving may take: the memory of the largest machine on a slow disk.
const SAVE_TIMEOUT: Duration = Duration::from_secs(1800);
/// How long an agent may take to answer.
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);

impl Folder {
    fn saved(&self) -> PathBuf {
        self.vmm_directory().join(SAVED)
    }

    /// Whether the instance was hibernated, and waits to go on.
    pub fn is_hibernated(&self) -> bool {
        self.saved().join(snapshot::STATE).symlink_metadata().is_ok_and(|metadata| metadata.is_file())
    }

    /// The saved machine, to be gone on from once.
    pub(super) fn hibernated(&self) -> Option<Restore> {
        self.is_hibernated().then(|| Restore { folder: self.saved(), once: true })
    }

    /// Whether the guest is up, and has an agent that notices when it goes on after it was saved.
    pub(super) fn check_savable(&self) -> Result<(), CloudError> {
        let id = self.id();
        let refused = |what: String, hint: &str| {
            Err(CloudError::refused(ErrorCode::UnsupportedOperation, what, Some(hint.to_string())))
        };
        if self.connect()?.status()?.timeline.at(Mark::AgentReady).is_none() {
            let what = format!("The instance '{id}' is not ready to be saved: its guest is still starting.");
            return refused(what, "`wisp ls` shows when it is.");
        }
        let guest = |source| CloudError::Guest { instance: id, source };
        let facts = self.agent(AGENT_TIMEOUT)?.ping(AGENT_TIMEOUT).map_err(guest)?;
        if facts.agent_version.contains(FEATURE) {
            return Ok(());
        }
        let what = format!("The instance '{id}' has an agent, {}, that does not know of it.", facts.agent_version);
        refused(what, "Import its image again: that brings the present one.")
    }

    /// Removes a saved machine, or what there is of one.
    pub(super) fn forget_hibernated(&self) -> Result<(), CloudError> {
        let saved = self.saved();
        snapshot::remove(&saved).map_err(CloudError::file(&saved, "removed"))
    }

    /// Has the instance's monitor save its machine, and end.
    ///
    /// Before, the guest writes to its disks what waits in its memory, as systems do that hibernate by themselves: so
    /// nothing is lost where the memory is not gone on from (`start --cold`). A guest that does not is saved as it is.
    pub(super) fn hibernate(&self, monitor: &mut Monitor) -> Result<(), CloudError> {
        if let Err(error) = self.sync(AGENT_TIMEOUT) {
            let id = self.id();
            log::warn!("{id}: its disks may lack what its memory has: {error}");
        }
        let folder = self.saved();
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(CloudError::file(&folder, "made"))?;
        let saved =
            monitor.end_with(&Request::Save { folder }, SAVE_TIMEOUT).and_then(|()| match self.is_hibernated() {
                true => Ok(()),
                // A VMM that is killed has ended, too.
                false => Err(CloudError::NotDone {
                    instance: self.id(),
                    why: "its VMM ended before the memory was saved".into(),
                }),
            });
        if saved.is_err() {
            self.forget_hibernated()?;
        }
        saved
    }
}

impl Cloud {
    /// Whether instances can be hibernated now: they were launched so, and their guests are up.
    pub fn check_hibernation(&mut self, ids: &[InstanceId]) -> Result<(), CloudError> {
        for id in ids {
            let record = self.store.read::<_, CloudError>(|tx| get(tx, *id))?;
            if !record.hibernation {
                return Err(CloudError::refused(
                    ErrorCode::UnsupportedHibernationConfiguration,
                    format!("The instance '{id}' is not configured for hibernation."),
                    Some("That is said when it is launched: `wisp launch --hibernation`.".into()),
                ));
            }
            Action::Hibernate.allowed(*id, record.state)?;
            let checked = self.folder(*id).check_savable();
            checked.map_err(|error| self.unless_ended(*id, "hibernated", error))?;
        }
        Ok(())
    }
}

/// Refuses what would change a machine that is to go on as it was.
pub(super) fn refuse_hibernated(home: &Home, record: &InstanceRecord) -> Result<(), CloudError> {
    let id = record.id;
    if record.state.has_machine() || !Folder::of(home, id).is_hibernated() {
        return Ok(());
    }
    Err(CloudError::refused(
        ErrorCode::IncorrectInstanceState,
        format!("The instance '{id}' is hibernated: it is to go on with the size and the volumes that it had."),
        Some(format!("`wisp start {id}` has it go on, and `wisp stop {id}` then stops it without its memory.")),
    ))
}
