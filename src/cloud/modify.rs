//! `ModifyInstanceAttribute`: changes an instance's attributes.

use super::capacity::threads_per_core;
use super::error::CloudError;
use super::hibernate::refuse_hibernated;
use super::instances::Instances;
use super::limits::check_credits;
use super::lookup::get;
use super::network::{NetworkChange, chosen_groups};
use super::seed::check_user_data;
use super::{Outcome, Warnings};
use ec2::capacity::InstanceSize;
use ec2::credits::CreditMode;
use ec2::metadata::MetadataChange;
use ec2::state::{Action, ShutdownBehavior};
use ec2::tag::check_metadata_keys;
use ec2::{InstanceId, catalog};
use store::InstanceRecord;

/// Changes to an instance's attributes. `None` leaves an attribute unchanged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Modification {
    /// The new size, and true if it overrides the type's vCPUs or memory. The instance must be stopped.
    pub size: Option<(InstanceSize, bool)>,
    /// New user data in base64; `Some(None)` removes it. The instance must be stopped.
    pub user_data: Option<Option<String>>,
    pub shutdown_behavior: Option<ShutdownBehavior>,
    pub termination_protection: Option<bool>,
    /// Names or IDs of the new groups. An empty list leaves the groups unchanged.
    pub security_groups: Vec<String>,
    /// Takes effect immediately if the instance is running.
    pub cpu_credits: Option<CreditMode>,
    /// Takes effect immediately if the instance is running.
    pub metadata_options: Option<MetadataChange>,
}

impl Modification {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Modification::default()
    }
}

impl Instances<'_> {
    /// Changes an instance's attributes. If one change is refused, no attribute is changed.
    pub fn modify(&self, id: InstanceId, change: &Modification) -> Result<Outcome<InstanceRecord>, CloudError> {
        if let Some(user_data) = &change.user_data {
            let record = self.cloud.store.read::<_, CloudError>(|tx| get(tx, id))?;
            check_user_data(
                self.cloud.images().open_by_id(record.spec.image_id)?.manifest.cloud_init,
                user_data.as_ref(),
            )?;
        }
        let needs_stop = change.size.is_some() || change.user_data.is_some();
        let (record, network_change) = self.cloud.store.write::<_, CloudError>(|tx| {
            let mut record = get(tx, id)?;
            let action = if needs_stop { Action::ModifyStopped } else { Action::Modify };
            action.allowed(id, record.status.state)?;
            if needs_stop {
                refuse_hibernated(self.cloud, &record)?;
            }
            if let Some((size, overridden)) = &change.size {
                record.spec.size.instance_type = size.instance_type.name.to_string();
                (record.spec.size.vcpus, record.spec.size.memory_mib) = (size.vcpus, size.memory_mib);
                record.spec.size.threads_per_core = threads_per_core(size);
                record.spec.size.overridden = *overridden;
            }
            if change.cpu_credits.is_some() {
                record.spec.cpu_credits = change.cpu_credits;
            }
            let instance_type = catalog::find(&record.spec.size.instance_type)?;
            check_credits(change.cpu_credits, instance_type)?;
            // If the new type is not burstable, drop the credit mode that was set for the old one.
            record.spec.cpu_credits = record.spec.cpu_credits.filter(|_| instance_type.credits.is_some());
            if let Some(user_data) = &change.user_data {
                record.spec.user_data.clone_from(user_data);
            }
            if let Some(behavior) = change.shutdown_behavior {
                record.spec.shutdown_behavior = behavior;
            }
            if let Some(protection) = change.termination_protection {
                record.spec.termination_protection = protection;
            }
            if let (Some(options), Some(network)) = (change.metadata_options, &mut record.status.network) {
                network.metadata_options = options.applied(network.metadata_options);
            }
            if change.metadata_options.is_some() && record.serves_tags() {
                check_metadata_keys(record.meta.tags.keys().map(String::as_str))?;
            }
            if let (false, Some(network)) = (change.security_groups.is_empty(), &mut record.status.network) {
                network.security_groups = chosen_groups(tx, network.vpc_id, &change.security_groups)?;
            }
            tx.put(&mut record)?;
            let has_new_network = change.metadata_options.is_some() || !change.security_groups.is_empty();
            Ok((record, has_new_network.then(|| NetworkChange::begin(tx)).transpose()?))
        })?;
        if change.cpu_credits.is_some() {
            self.apply_credit_mode(&record)?;
        }
        let warnings = if !change.security_groups.is_empty() {
            self.cloud.security_groups().apply()?
        } else if change.metadata_options.is_some() {
            self.cloud.interfaces().push(&record)?
        } else {
            Warnings::default()
        };
        if let Some(change) = network_change {
            self.cloud.interfaces().finish(change)?;
        }
        Ok(Outcome { value: record, warnings })
    }
}
