//! Starts instances. Launches, starts and forks differ only in their start plans.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::error::CloudError;
use super::image::Image;
use super::instances::Instances;
use super::limits::limit;
use super::machine_config::{of_instance, volume_disk};
use super::network::is_in_vpc;
use ec2::catalog;
use ec2::id::VpcId;
use machine::launch::Restore;
use machine::timeline::monotonic_ns;
use node::instance::{Backend, MachineHandle, StartPlan};
use node::probe;
use store::{InstanceRecord, NetworkRecord, VolumeRecord};

/// Maximum time that the next start waits for a restored guest's agent.
const TURN: Duration = Duration::from_secs(10);

/// The state from which an instance's machine starts.
#[derive(Debug)]
pub(super) enum Source<'a> {
    Boot,
    /// The instance's own snapshot.
    Hibernated(Restore),
    /// The snapshot of another machine. Its disks with these IDs are replaced by the instance's volumes, in order.
    Copy {
        restore: Restore,
        disks: &'a [String],
    },
}

/// The start plan of an instance.
#[derive(Debug)]
pub(super) struct InstanceStart {
    plan: StartPlan,
    /// The interface, if it is connected to the router of its VPC.
    interface: Option<NetworkRecord>,
}

impl Instances<'_> {
    /// Plans the start of an instance whose lock is held. `volumes` are in the order of its block devices.
    pub(super) fn plan_start(
        &self,
        record: &InstanceRecord,
        lock: File,
        image: &Image,
        volumes: &[VolumeRecord],
        source: Source,
    ) -> Result<InstanceStart, CloudError> {
        let dir = self.cloud.dir(record.meta.id);
        let mut disks =
            volumes.iter().map(|volume| volume_disk(&self.cloud.home, volume)).collect::<Result<Vec<_>, _>>()?;
        disks.extend(dir.make_instance_store(&catalog::find(&record.spec.size.instance_type)?.instance_store())?);
        let mut plan = StartPlan::new(dir, lock, of_instance(record, image, disks), monotonic_ns());
        let is_copy = matches!(source, Source::Copy { .. });
        if let Some(seed) = self.seed_of(record, &image.manifest, is_copy)? {
            plan.set_seed(seed);
        }
        self.cloud.interfaces().plan(&mut plan, record)?;
        limit(&mut plan.machine, record, volumes);
        plan.restore = match source {
            Source::Boot => None,
            Source::Hibernated(restore) => Some(restore),
            Source::Copy { restore, disks } => {
                for (disk, replaced) in plan.machine.disks.iter_mut().zip(disks) {
                    disk.was = Some(replaced.clone());
                }
                Some(restore)
            }
        };
        let interface = record.status.network.clone().filter(is_in_vpc);
        Ok(InstanceStart { plan, interface })
    }

    /// Starts all machines, and returns when their guests run.
    pub(super) fn start_all(
        &self,
        starts: impl IntoIterator<Item = Result<InstanceStart, CloudError>>,
    ) -> Result<Vec<MachineHandle>, CloudError> {
        let mut starts = starts.into_iter().collect::<Result<Vec<_>, _>>()?;
        let vpcs = self.attach(&mut starts)?;
        let mut machines = Vec::new();
        for InstanceStart { plan, .. } in starts {
            if plan.restore.is_some() {
                await_turn(&mut machines)?;
            }
            machines.push(plan.start()?);
        }
        for machine in &mut machines {
            self.cloud.warnings.borrow_mut().extend(machine.wait_started()?);
        }
        // The routers have set up their packet filters meanwhile.
        for (vpc, addresses) in &vpcs {
            self.cloud.routers().settle(*vpc, addresses.clone())?;
        }
        self.cloud.routers().warn_missing_uplinks(vpcs.into_keys());
        Ok(machines)
    }

    /// Connects the instances to their VPCs. Returns their addresses by VPC.
    fn attach(&self, starts: &mut [InstanceStart]) -> Result<BTreeMap<VpcId, Vec<Ipv4Addr>>, CloudError> {
        let mut vpcs: BTreeMap<VpcId, Vec<&mut InstanceStart>> = BTreeMap::new();
        for start in starts {
            if let Some(interface) = &start.interface {
                vpcs.entry(interface.vpc_id).or_default().push(start);
            }
        }
        let mut attached = BTreeMap::new();
        for (vpc, starts) in vpcs {
            let interfaces = starts.iter().filter_map(|start| start.interface.as_ref());
            let addresses: Vec<Ipv4Addr> = interfaces.map(|interface| interface.private_ip).collect();
            let taps = self.cloud.routers().attach(vpc, &addresses)?;
            for (start, tap) in starts.into_iter().zip(taps) {
                start.plan.backend = Backend::Tap(tap);
            }
            attached.insert(vpc, addresses);
        }
        Ok(attached)
    }
}

/// Waits until the next VM can be restored. A waiting guest's timer ticks take CPU time from the others, so no more
/// guests start at once than the host has CPUs.
fn await_turn(machines: &mut [MachineHandle]) -> Result<(), CloudError> {
    let at_once = probe::resources().cpus as usize;
    match machines.len().checked_sub(at_once) {
        Some(index) => Ok(machines[index].wait_ready(TURN).map(drop)?),
        None => Ok(()),
    }
}
