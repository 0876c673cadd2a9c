//! The service for instances. Its operations are in modules of their own, such as `launch.rs`.

use std::time::Duration;

use super::error::CloudError;
use super::{Cloud, resolve};
use ec2::state::Action;
use node::guest::Agent;
use node::instance::InstanceDir;
use store::InstanceRecord;

#[derive(Debug, Clone, Copy)]
pub struct Instances<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Instances<'_> {
    pub fn find(&self, reference: &str) -> Result<InstanceRecord, CloudError> {
        self.cloud.store.read(|tx| resolve::instance(tx, reference))
    }

    /// Returns the instances that `references` name, without duplicates.
    pub fn find_all(&self, references: &[String]) -> Result<Vec<InstanceRecord>, CloudError> {
        self.cloud.store.read(|tx| {
            let mut records: Vec<InstanceRecord> = Vec::new();
            for reference in references {
                let record = resolve::instance(tx, reference)?;
                if records.iter().all(|known| known.meta.id != record.meta.id) {
                    records.push(record);
                }
            }
            Ok(records)
        })
    }

    /// Returns all instances, oldest first.
    pub fn list(&self) -> Result<Vec<InstanceRecord>, CloudError> {
        let mut records: Vec<InstanceRecord> = self.cloud.store.read::<_, CloudError>(|tx| Ok(tx.list()?))?;
        // Instances that an older version created have no sequence number.
        records.sort_by_key(|record| {
            (
                record.meta.created,
                record.status.launch.sequence,
                record.status.launch.reservation_id,
                record.status.launch.launch_index,
            )
        });
        Ok(records)
    }

    pub fn reachable(&self, reference: &str) -> Result<(InstanceRecord, InstanceDir), CloudError> {
        let record = self.find(reference)?;
        Action::Reach.allowed(record.meta.id, record.status.state)?;
        let dir = self.cloud.dir(record.meta.id);
        Ok((record, dir))
    }

    pub fn agent(&self, reference: &str, timeout: Duration) -> Result<(InstanceRecord, Agent), CloudError> {
        let (record, dir) = self.reachable(reference)?;
        let agent =
            dir.agent(timeout).map_err(|error| self.unless_ended(record.meta.id, "it could be reached", error))?;
        Ok((record, agent))
    }
}
