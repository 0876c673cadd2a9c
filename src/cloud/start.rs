//! Starts instances. Launches, starts and forks differ only in their start plans.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::error::CloudError;
use super::instances::Instances;
use super::layers::volume_disk;
use super::limits::{limits_of, volume_limits};
use super::network::is_in_vpc;
use super::{Outcome, Warnings};
use ec2::catalog;
use ec2::id::VpcId;
use machine::config::CpuConfig;
use machine::timeline::monotonic_ns;
use node::host::{Connection, Guard, InstancePlan, Machine, MachineShape, Source, VolumeDisk};
use node::image::Image;
use store::{InstanceRecord, NetworkRecord, VolumeRecord};

/// Maximum time that the next start waits for a restored guest's agent.
const TURN: Duration = Duration::from_secs(10);

/// The start plan of an instance.
#[derive(Debug)]
pub(super) struct InstanceStart<'a> {
    plan: InstancePlan<'a>,
    /// The interface, if it is connected to the router of its VPC.
    interface: Option<NetworkRecord>,
    warnings: Warnings,
}

impl Instances<'_> {
    /// Plans the start of an instance whose lock is held. `volumes` are in the order of its block devices.
    pub(super) fn plan_start<'a>(
        &self,
        record: &InstanceRecord,
        lock: Guard,
        image: &'a Image,
        volumes: &[VolumeRecord],
        source: Source<'a>,
    ) -> Result<InstanceStart<'a>, CloudError> {
        let disk = |volume: &VolumeRecord| {
            let limits = volume_limits(volume).filter(|_| !record.spec.no_limits);
            Ok(VolumeDisk { limits, ..volume_disk(volume)? })
        };
        let is_copy = matches!(source, Source::Copy { .. });
        let Outcome { value: network, warnings } = self.cloud.interfaces().plan(record)?;
        let plan = InstancePlan {
            id: record.meta.id,
            lock,
            image,
            shape: MachineShape {
                cpus: CpuConfig { count: record.spec.size.vcpus, threads_per_core: record.spec.size.threads_per_core },
                memory_mib: record.spec.size.memory_mib,
                instance_type: record.spec.size.instance_type.clone(),
                cmdline: record.spec.cmdline.clone(),
            },
            volumes: volumes.iter().map(disk).collect::<Result<_, CloudError>>()?,
            instance_store: catalog::find(&record.spec.size.instance_type)?.instance_store(),
            limits: limits_of(record),
            seed: self.seed_of(record, &image.manifest, is_copy)?,
            network,
            source,
            began_ns: monotonic_ns(),
        };
        let interface = record.status.network.clone().filter(is_in_vpc);
        Ok(InstanceStart { plan, interface, warnings })
    }

    /// Starts all machines, and returns when their guests run.
    pub(super) fn start_all<'a>(
        &self,
        starts: impl IntoIterator<Item = Result<InstanceStart<'a>, CloudError>>,
    ) -> Result<Outcome<Vec<Box<dyn Machine>>>, CloudError> {
        let mut starts = starts.into_iter().collect::<Result<Vec<_>, _>>()?;
        let Outcome { value: vpcs, mut warnings } = self.attach(&mut starts)?;
        let mut machines = Vec::new();
        for InstanceStart { plan, warnings: of_plan, .. } in starts {
            warnings.extend(of_plan);
            if !matches!(plan.source, Source::Boot) {
                self.await_turn(&mut machines)?;
            }
            machines.push(self.cloud.node.instances().start(plan)?);
        }
        for machine in &mut machines {
            warnings.extend(machine.wait_started()?);
        }
        // The routers have set up their packet filters meanwhile.
        for (vpc, addresses) in &vpcs {
            self.cloud.routers().settle(*vpc, addresses.clone())?;
        }
        warnings.extend(self.cloud.routers().missing_uplinks(vpcs.into_keys()));
        Ok(Outcome { value: machines, warnings })
    }

    /// Connects the instances to their VPCs. Returns their addresses by VPC.
    fn attach(&self, starts: &mut [InstanceStart]) -> Result<Outcome<BTreeMap<VpcId, Vec<Ipv4Addr>>>, CloudError> {
        let mut vpcs: BTreeMap<VpcId, Vec<&mut InstanceStart>> = BTreeMap::new();
        for start in starts {
            if let Some(interface) = &start.interface {
                vpcs.entry(interface.vpc_id).or_default().push(start);
            }
        }
        let mut attached = Outcome::<BTreeMap<_, _>>::default();
        for (vpc, starts) in vpcs {
            let interfaces = starts.iter().filter_map(|start| start.interface.as_ref());
            let addresses: Vec<Ipv4Addr> = interfaces.map(|interface| interface.private_ip).collect();
            let taps = self.cloud.routers().attach(vpc, &addresses)?;
            attached.warnings.extend(taps.warnings);
            for (start, tap) in starts.into_iter().zip(taps.value) {
                if let Some(network) = &mut start.plan.network {
                    network.connection = Connection::Vpc(Guard::new(tap));
                }
            }
            attached.value.insert(vpc, addresses);
        }
        Ok(attached)
    }

    /// Waits until the next VM can be restored. A waiting guest's timer ticks take CPU time from the others, so no more
    /// guests start at once than the host has CPUs.
    fn await_turn(&self, machines: &mut [Box<dyn Machine>]) -> Result<(), CloudError> {
        let at_once = self.cloud.node.capacity().cpus as usize;
        match machines.len().checked_sub(at_once) {
            Some(index) => Ok(machines[index].wait_ready(TURN).map(drop)?),
            None => Ok(()),
        }
    }
}
