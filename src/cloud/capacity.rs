//! The sizes of VMs, and the host's capacity for them.

use super::error::CloudError;
use ec2::capacity::{self, InstanceSize};
use machine::config::CpuConfig;
use node::host::Node;
use store::{InstanceRecord, Transaction};

pub fn cpus(size: &InstanceSize) -> CpuConfig {
    CpuConfig { count: size.vcpus, threads_per_core: threads_per_core(size) }
}

/// Returns the instance type's threads per core, or 1 if they do not divide an overridden number of vCPUs.
pub fn threads_per_core(size: &InstanceSize) -> u32 {
    let threads = size.instance_type.threads_per_core;
    if size.vcpus.is_multiple_of(threads) { threads } else { 1 }
}

/// Returns the total memory of all instances with a VM, in MiB.
pub(super) fn promised_memory(tx: &Transaction) -> Result<u64, CloudError> {
    let records: Vec<InstanceRecord> = tx.list()?;
    Ok(records
        .iter()
        .filter(|record| record.status.state.has_machine())
        .map(|record| record.spec.size.memory_mib)
        .sum())
}

/// Checks that the host has room for `count` more instances of `size`. The `promised` MiB of running instances are
/// treated as used, even if their guests have not touched them yet.
pub(super) fn check_capacity(
    node: &dyn Node,
    size: &InstanceSize,
    count: u32,
    promised: u64,
    overcommit: bool,
) -> Result<(), CloudError> {
    let mut free = node.capacity();
    free.memory_mib = free.memory_mib.saturating_sub(promised);
    let all = InstanceSize { memory_mib: size.memory_mib.saturating_mul(count.into()), ..*size };
    Ok(capacity::check(&all, free, overcommit)?)
}
