//! Hibernation: the checks before an instance is hibernated or changed. [`node::instance`] saves the memory.

use std::time::Duration;

use super::error::CloudError;
use super::instances::Instances;
use super::lookup::get;
use ec2::state::Action;
use ec2::{ErrorCode, InstanceId};
use machine::timeline::Mark;
use node::guest::FEATURE;
use node::home::Home;
use node::instance::{InstanceDir, MachineHandle};
use store::InstanceRecord;

const AGENT_TIMEOUT: Duration = Duration::from_secs(60);

impl Instances<'_> {
    /// Checks that all these instances have hibernation enabled and that their guests are ready.
    pub fn check_hibernation(&self, ids: &[InstanceId]) -> Result<(), CloudError> {
        for id in ids {
            let record = self.cloud.store.read::<_, CloudError>(|tx| get(tx, *id))?;
            if !record.spec.hibernation {
                return Err(CloudError::refused(
                    ErrorCode::UnsupportedHibernationConfiguration,
                    format!("The instance '{id}' is not configured for hibernation."),
                    Some("Enable it at launch: `wisp launch --hibernation`.".into()),
                ));
            }
            Action::Hibernate.allowed(*id, record.status.state)?;
            let checked = check_savable(&self.cloud.dir(*id));
            checked.map_err(|error| self.unless_ended(*id, "it was hibernated", error))?;
        }
        Ok(())
    }
}

/// Checks that the guest is ready and that its agent detects a restore.
pub(super) fn check_savable(dir: &InstanceDir) -> Result<(), CloudError> {
    let id = dir.id();
    let refused = |what: String, hint: &str| {
        Err(CloudError::refused(ErrorCode::UnsupportedOperation, what, Some(hint.to_string())))
    };
    if MachineHandle::connect(dir)?.status()?.timeline.at(Mark::AgentReady).is_none() {
        let what = format!("The instance '{id}' cannot be saved yet: its guest is still booting.");
        return refused(what, "Try again when its status check in `wisp ls` is ok.");
    }
    let facts = dir.agent(AGENT_TIMEOUT)?.ping(AGENT_TIMEOUT).map_err(dir.guest_error())?;
    if facts.agent_version.contains(FEATURE) {
        return Ok(());
    }
    let what = format!("The agent of the instance '{id}' ({}) does not support snapshots.", facts.agent_version);
    refused(what, "Import the image again to get the current agent, then launch a new instance from it.")
}

/// Refuses changes to a hibernated instance, which must resume with the same size and volumes.
pub(super) fn refuse_hibernated(home: &Home, record: &InstanceRecord) -> Result<(), CloudError> {
    let id = record.meta.id;
    if record.status.state.has_machine() || !InstanceDir::of(home, id).is_hibernated() {
        return Ok(());
    }
    Err(CloudError::refused(
        ErrorCode::IncorrectInstanceState,
        format!("The size and volumes of the instance '{id}' cannot be changed while it is hibernated."),
        Some(format!("Start it with `wisp start {id}`, then stop it with `wisp stop {id}`.")),
    ))
}
