//! The instances directory, and the VMMs of its instances.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::LocalNode;
use super::disks::continue_in;
use crate::error::NodeError;
use crate::guest::FEATURE;
use crate::host::{
    Connection, Ended, Guard, HostInstance, InstanceHost, InstanceLock, InstancePlan, Machine, Reboot, Savable,
    SavedMachine, Source, StopMode, VolumeDisk,
};
use crate::instance::SYNC_TIMEOUT;
use crate::instance::{Awaited, Backend, Failure, GONE, InstanceDir, MachineError, MachineHandle, StartPlan};
use crate::machine_config::{device, disk_id, of_instance, volume_disk};
use ec2::state::InstanceState;
use ec2::{InstanceId, VolumeId};
use machine::control::{ControlRequest, Message, NewOverlay, VmmStatus};
use machine::end_record::EndRecord;
use machine::kept_balance::KeptBalance;
use machine::launch::Restore;
use machine::limits::DiskLimits;
use machine::network::NetstackConfig;
use machine::snapshot_files;
use machine::timeline::Mark;
use machine::usage::{FILE, Reading, read};

const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for a snapshot of a running machine. The guest keeps running for most of this time.
const SAVE_TIMEOUT: Duration = Duration::from_secs(600);

impl LocalNode {
    fn dir(&self, id: InstanceId) -> InstanceDir {
        InstanceDir::of(&self.home, id)
    }

    fn connect(&self, id: InstanceId) -> Result<MachineHandle, MachineError> {
        MachineHandle::connect(&self.dir(id))
    }
}

impl InstanceHost for LocalNode {
    fn lock_all(&self) -> Result<Guard, NodeError> {
        Ok(Guard::new(self.home.lock(&self.home.instances())?))
    }

    fn create(&self, id: InstanceId) -> Result<Guard, NodeError> {
        let dir = self.dir(id);
        dir.create()?;
        let lock = dir.try_lock()?;
        // The directory is new and unknown to others, so the lock is free.
        lock.map(Guard::new).ok_or_else(|| dir.error(Failure::NotDone("a new instance is in use".into())).into())
    }

    fn remove(&self, id: InstanceId) -> Result<(), NodeError> {
        Ok(self.dir(id).remove()?)
    }

    fn list(&self) -> Result<Vec<HostInstance>, NodeError> {
        let dir = self.home.instances();
        let mut instances = Vec::new();
        for entry in fs::read_dir(&dir).map_err(NodeError::file(&dir, "read"))?.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let id = name.strip_prefix(GONE).unwrap_or(&name).parse().ok();
            instances.extend(id.map(|id| HostInstance { id, is_half_removed: name.starts_with(GONE) }));
        }
        Ok(instances)
    }

    fn lock(&self, id: InstanceId, timeout: Duration) -> Result<InstanceLock, NodeError> {
        let dir = self.dir(id);
        let lock = if timeout.is_zero() { dir.try_lock() } else { dir.lock_within(timeout) };
        instance_lock(&dir, lock)
    }

    fn lock_operation(&self, id: InstanceId) -> Result<Option<Guard>, NodeError> {
        let dir = self.dir(id);
        Ok(dir.unless_gone(dir.try_lock_operation())?.map(Guard::new))
    }

    fn lock_disk(&self, id: InstanceId, volume: VolumeId) -> Result<InstanceLock, NodeError> {
        let dir = self.dir(id);
        instance_lock(&dir, dir.try_lock_disk(&disk_id(volume)))
    }

    fn start(&self, plan: InstancePlan) -> Result<Box<dyn Machine>, NodeError> {
        Ok(Box::new(self.start_plan(plan)?.start()?))
    }

    fn end(&self, id: InstanceId, mode: StopMode) -> Result<Ended, NodeError> {
        Ok(self.dir(id).end_machine(mode)?)
    }

    fn reboot(&self, id: InstanceId) -> Result<Reboot, NodeError> {
        let (awaited, timeout) = self.dir(id).reboot()?;
        Ok(match awaited {
            Awaited::Listening(mut machine) => {
                machine.subscribe()?;
                Reboot::Restarted(machine)
            }
            Awaited::Ended(_) => Reboot::Ended,
            Awaited::TimedOut => Reboot::TimedOut(timeout),
        })
    }

    fn is_running(&self, id: InstanceId) -> Result<bool, NodeError> {
        Ok(self.dir(id).answers()?)
    }

    fn await_guest_end(&self, id: InstanceId) {
        self.dir(id).await_guest_end();
    }

    fn status(&self, id: InstanceId, timeout: Duration) -> Result<VmmStatus, NodeError> {
        Ok(self.connect(id)?.status_within(timeout)?)
    }

    fn last_end(&self, id: InstanceId) -> Option<EndRecord> {
        self.dir(id).end()
    }

    fn forget_end(&self, id: InstanceId) -> Result<(), NodeError> {
        let own = self.dir(id).vmm_directory();
        EndRecord::clear(&own).map_err(NodeError::file(own, "clean up"))
    }

    fn hibernated(&self, id: InstanceId) -> Option<Restore> {
        self.dir(id).hibernated()
    }

    fn forget_hibernated(&self, id: InstanceId) -> Result<(), NodeError> {
        Ok(self.dir(id).forget_hibernated()?)
    }

    fn clear_stopped(&self, id: InstanceId) -> Result<(), NodeError> {
        let dir = self.dir(id);
        dir.remove_instance_store()?;
        if !dir.is_hibernated() {
            dir.forget_hibernated()?;
        }
        Ok(())
    }

    fn savable(&self, id: InstanceId) -> Result<Savable, NodeError> {
        let dir = self.dir(id);
        if MachineHandle::connect(&dir)?.status()?.timeline.at(Mark::AgentReady).is_none() {
            return Ok(Savable::Booting);
        }
        let facts = dir.agent(AGENT_TIMEOUT)?.ping(AGENT_TIMEOUT).map_err(dir.guest_error())?;
        let has_feature = facts.agent_version.contains(FEATURE);
        Ok(if has_feature { Savable::Yes } else { Savable::OldAgent(facts.agent_version) })
    }

    fn sync(&self, id: InstanceId) -> Result<(), NodeError> {
        Ok(self.dir(id).sync(SYNC_TIMEOUT)?)
    }

    fn save(&self, id: InstanceId, disks: &[VolumeDisk]) -> Result<SavedMachine, NodeError> {
        let dir = self.dir(id);
        let [own, saved] = dir.saved_for_others()?;
        let disks: Vec<_> = disks.iter().map(|disk| volume_disk(&self.home, disk)).collect();
        dir.change_config(|config| disks.iter().for_each(|disk| continue_in(config, disk)))?;
        let layers = disks
            .into_iter()
            .map(|disk| NewOverlay { disk: disk.id, path: disk.path, backing: disk.backing })
            .collect();
        let request = ControlRequest::Fork { dir: own.path().to_path_buf(), layers };
        let mut machine = MachineHandle::connect(&dir)?;
        let paused = match machine.ask_within(&request, SAVE_TIMEOUT)? {
            Message::Saved { paused_ns } => Duration::from_nanos(paused_ns),
            other => return Err(machine.unexpected(&other).into()),
        };
        snapshot_files::take(own.path(), saved.path()).map_err(NodeError::file(saved.path(), "create"))?;
        let restore = Restore { dir: saved.path().to_path_buf(), once: false };
        Ok(SavedMachine { files: Guard::new(saved), restore, paused })
    }

    fn attach_disk(&self, id: InstanceId, disk: &VolumeDisk) -> Result<(), NodeError> {
        self.dir(id).plug(volume_disk(&self.home, disk))
    }

    fn detach_disk(&self, id: InstanceId, volume: VolumeId, force: bool) -> Result<(), NodeError> {
        self.dir(id).unplug(&disk_id(volume), force)
    }

    fn resize_disk(&self, id: InstanceId, volume: VolumeId, size: u64) -> Result<(), NodeError> {
        Ok(self.connect(id)?.demand(&ControlRequest::ResizeDisk { id: disk_id(volume), size })?)
    }

    fn switch_disk(&self, id: InstanceId, before: &VolumeDisk, after: &VolumeDisk) -> Result<(), NodeError> {
        Ok(self.dir(id).switch_disk(&volume_disk(&self.home, before), volume_disk(&self.home, after))?)
    }

    fn limit_disk(&self, id: InstanceId, volume: VolumeId, limits: DiskLimits) -> Result<(), NodeError> {
        Ok(self.dir(id).limit_disk(&disk_id(volume), limits)?)
    }

    fn set_can_owe(&self, id: InstanceId, can_owe: bool) -> Result<(), NodeError> {
        let mut machine = self.connect(id)?;
        // A VM that was started without a budget gets one at the next start.
        if machine.status()?.cpu_budget.is_none() {
            return Ok(());
        }
        machine.demand(&ControlRequest::SetCanOwe { can_owe })?;
        let change = |config: &mut machine::MachineConfig| {
            config.cpu_budget.iter_mut().for_each(|budget| budget.can_owe = can_owe);
        };
        Ok(self.dir(id).change_config(change)?)
    }

    fn reload_link(&self, id: InstanceId, link: &NetstackConfig) -> Result<Vec<String>, NodeError> {
        let link = self.dir(id).write_link(link)?;
        let reloaded = self.connect(id).and_then(|mut machine| machine.ask(&ControlRequest::ReloadLink { link }));
        Ok(match reloaded {
            Ok(Message::Reloaded { problems }) => problems,
            // An instance that is ending needs no new configuration.
            Ok(_) | Err(MachineError { failure: Failure::Control(_), .. }) => Vec::new(),
            Err(error) => vec![error.to_string()],
        })
    }

    fn readings(&self, id: InstanceId) -> Vec<Reading> {
        let own = self.dir(id).vmm_directory();
        read(&own).unwrap_or_else(|error| {
            log::warn!("{id}: cannot read its usage from {}: {error}", own.join(FILE).display());
            Vec::new()
        })
    }

    fn kept_balance(&self, id: InstanceId) -> Option<KeptBalance> {
        KeptBalance::read(&self.dir(id).vmm_directory()).unwrap_or_else(|error| {
            log::warn!("{id}: cannot read its CPU credits: {error}");
            None
        })
    }
}

/// `lock` is `None` if another command or a machine holds it.
fn instance_lock(dir: &InstanceDir, lock: Result<Option<File>, MachineError>) -> Result<InstanceLock, NodeError> {
    Ok(match dir.unless_gone(lock)? {
        Some(lock) => InstanceLock::Taken(Guard::new(lock)),
        None if dir.path().exists() => InstanceLock::Held,
        None => InstanceLock::Missing,
    })
}

impl LocalNode {
    /// Creates the instance-store disks, and returns the complete start plan.
    fn start_plan(&self, plan: InstancePlan) -> Result<StartPlan, NodeError> {
        let dir = self.dir(plan.id);
        let lock = plan.lock.downcast().map_err(|_| NodeError::ForeignHandle)?;
        let mut disks: Vec<_> = plan.volumes.iter().map(|disk| volume_disk(&self.home, disk)).collect();
        let has_root = !disks.is_empty();
        disks.extend(dir.make_instance_store(&plan.instance_store)?);
        let mut machine = of_instance(plan.id, &plan.shape, plan.image, disks, has_root);
        machine.cpu_budget = plan.limits.cpu_budget;
        machine.disk_limits = plan.limits.disks;
        machine.net = Some(device(plan.id));
        let mut start = StartPlan::new(dir, lock, machine, plan.began_ns);
        if let Some(seed) = plan.seed {
            start.set_seed(seed);
        }
        if let Some(network) = plan.network {
            let dns = network.link.dns.first().copied();
            start.set_link(device(plan.id), network.link);
            match network.connection {
                Connection::None => {}
                Connection::User => start.set_passt(dns.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED)),
                Connection::Vpc(tap) => {
                    let tap: OwnedFd = tap.downcast().map_err(|_| NodeError::ForeignHandle)?;
                    start.backend = Backend::Tap(tap);
                }
            }
        }
        if let Some(net) = &mut start.machine.net {
            net.limits = plan.limits.network;
        }
        start.is_template = matches!(plan.source, Source::First);
        start.restore = match plan.source {
            Source::Boot | Source::First => None,
            Source::Hibernated(restore) => Some(restore),
            Source::Copy { restore, disks } => {
                for (disk, replaced) in start.machine.disks.iter_mut().zip(disks) {
                    disk.was = Some(replaced.clone());
                }
                Some(restore)
            }
        };
        Ok(start)
    }
}

impl Machine for MachineHandle {
    fn wait_started(&mut self) -> Result<Vec<String>, MachineError> {
        MachineHandle::wait_started(self)
    }

    fn wait_ready(&mut self, timeout: Duration) -> Result<bool, MachineError> {
        MachineHandle::wait_ready(self, timeout)
    }

    fn prepare_template(&mut self) -> Result<(), MachineError> {
        self.dir().prepare_template()
    }

    fn personalize(&mut self, timeout: Duration) -> Result<bool, MachineError> {
        MachineHandle::personalize(self, timeout)
    }

    fn link_problems(&mut self) -> Result<Vec<String>, MachineError> {
        MachineHandle::link_problems(self)
    }

    fn not_ready(&self, state: InstanceState, after: Duration) -> MachineError {
        MachineHandle::not_ready(self, state, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::Home;

    #[test]
    fn lock_tells_if_instance_is_missing_held_or_free() {
        let dir = tempfile::tempdir().unwrap();
        let node = LocalNode::new(Home::at(dir.path()).unwrap());
        let instances: &dyn InstanceHost = &node;
        let id = InstanceId::from_random([1; 9]);
        assert!(matches!(instances.lock(id, Duration::ZERO).unwrap(), InstanceLock::Missing));
        let lock = instances.create(id).unwrap();
        assert!(matches!(instances.lock(id, Duration::ZERO).unwrap(), InstanceLock::Held));
        drop(lock);
        assert!(instances.lock(id, Duration::ZERO).unwrap().taken().is_some());
        assert_eq!(instances.list().unwrap(), [HostInstance { id, is_half_removed: false }]);
        instances.remove(id).unwrap();
        assert!(instances.lock_operation(id).unwrap().is_none());
        assert_eq!(instances.list().unwrap(), []);
    }
}
