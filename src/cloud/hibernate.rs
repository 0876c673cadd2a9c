//! Hibernation: the checks before an instance is hibernated or changed. The node saves the memory.

use super::Cloud;
use super::error::CloudError;
use super::instances::Instances;
use super::lookup::get;
use ec2::state::Action;
use ec2::{ErrorCode, InstanceId};
use node::host::Savable;
use store::InstanceRecord;

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
            let checked = check_savable(self.cloud, *id);
            checked.map_err(|error| self.unless_ended(*id, "it was hibernated", error))?;
        }
        Ok(())
    }
}

/// Checks that the guest is ready and that its agent detects a restore.
pub(super) fn check_savable(cloud: &Cloud, id: InstanceId) -> Result<(), CloudError> {
    let refused = |what: String, hint: &str| {
        Err(CloudError::refused(ErrorCode::UnsupportedOperation, what, Some(hint.to_string())))
    };
    match cloud.node.instances().savable(id)? {
        Savable::Yes => Ok(()),
        Savable::Booting => {
            let what = format!("The instance '{id}' cannot be saved yet: its guest is still booting.");
            refused(what, "Try again when its status check in `wisp ls` is ok.")
        }
        Savable::OldAgent(version) => {
            let what = format!("The agent of the instance '{id}' ({version}) does not support snapshots.");
            refused(what, "Import the image again to get the current agent, then launch a new instance from it.")
        }
    }
}

/// Refuses changes to a hibernated instance, which must resume with the same size and volumes.
pub(super) fn refuse_hibernated(cloud: &Cloud, record: &InstanceRecord) -> Result<(), CloudError> {
    let id = record.meta.id;
    if record.status.state.has_machine() || cloud.node.instances().hibernated(id).is_none() {
        return Ok(());
    }
    Err(CloudError::refused(
        ErrorCode::IncorrectInstanceState,
        format!("The size and volumes of the instance '{id}' cannot be changed while it is hibernated."),
        Some(format!("Start it with `wisp start {id}`, then stop it with `wisp stop {id}`.")),
    ))
}
