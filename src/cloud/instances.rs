//! The service for instances. Its operations are in modules of their own, such as `launch.rs`.

use std::time::Duration;

use super::error::CloudError;
use super::{Cloud, resolve};
use ec2::state::{Action, InstanceState};
use machine::timeline::Mark;
use node::guest::Agent;
use node::host::Node;
use node::instance::InstanceDir;
use store::InstanceRecord;

/// Time for a VMM or an agent to answer a status check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Number of instances that are checked at a time.
const PARALLEL_CHECKS: usize = 16;

/// The result of an instance's status check, as in `DescribeInstanceStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    Ok,
    Impaired,
    Initializing,
    InsufficientData,
    /// The instance is not running.
    NotApplicable,
}

impl Check {
    pub fn as_str(self) -> &'static str {
        match self {
            Check::Ok => "ok",
            Check::Impaired => "impaired",
            Check::Initializing => "initializing",
            Check::InsufficientData => "insufficient-data",
            Check::NotApplicable => "not-applicable",
        }
    }
}

/// The status checks of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusChecks {
    /// The VMM answers.
    pub system: Check,
    /// The guest's agent answers.
    pub instance: Check,
}

fn check(node: &dyn Node, record: &InstanceRecord, dir: &InstanceDir) -> StatusChecks {
    let checks = |system, instance| StatusChecks { system, instance };
    if record.status.state != InstanceState::Running {
        return checks(Check::NotApplicable, Check::NotApplicable);
    }
    match node.instances().status(record.meta.id, CHECK_TIMEOUT) {
        Err(_) => checks(Check::Impaired, Check::InsufficientData),
        Ok(status) if status.timeline.at(Mark::AgentReady).is_none() => checks(Check::Ok, Check::Initializing),
        Ok(_) => match dir.agent(CHECK_TIMEOUT) {
            Ok(_) => checks(Check::Ok, Check::Ok),
            Err(_) => checks(Check::Ok, Check::Impaired),
        },
    }
}

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

    /// Checks the VMMs and the agents of instances, several at a time, because a guest may take long to answer.
    pub fn check(&self, records: &[InstanceRecord]) -> Vec<StatusChecks> {
        let node = self.cloud.node();
        let subjects: Vec<_> = records.iter().map(|record| (record, self.cloud.dir(record.meta.id))).collect();
        let mut checks = Vec::new();
        for group in subjects.chunks(PARALLEL_CHECKS) {
            std::thread::scope(|scope| {
                let start = group.iter().map(|(record, dir)| scope.spawn(move || check(node, record, dir)));
                let running: Vec<_> = start.collect();
                let failed = StatusChecks { system: Check::InsufficientData, instance: Check::InsufficientData };
                checks.extend(running.into_iter().map(|check| check.join().unwrap_or(failed)));
            });
        }
        checks
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
