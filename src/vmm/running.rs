//! A machine with running vCPUs.

use std::path::Path;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{VcpuFd, VmFd};

use super::cpu::vcpu::{VcpuContext, VcpuHandle};
use super::disk_slots::{SlotError, attached};
use super::error::Error;
use super::event_loop::{ControlledMachine, Job, Outcome};
use super::freeze::Freezer;
use super::memory;
use super::resume_message::ResumeMessage;
use super::sandbox;
use super::snapshot::cancellation::Cancellation;
use super::snapshot::origin::Origin;
use super::virtio::balloon::BalloonControl;
use super::virtio::net::NetControl;
use super::wiring::Devices;
use machine::config::MachineConfig;
use machine::control::{GuestFaultRecord, Message, NewOverlay, VmmStatus};
use machine::end::End;
use machine::kept_balance::KeptBalance;
use machine::passed_files::FdTable;
use machine::sync::lock;
use machine::usage::Clock;

const ALREADY_STOPPING: &str = "the machine is already stopping";

#[derive(Debug)]
pub(super) struct RunningMachine {
    pub config: MachineConfig,
    /// The VMM's process ID outside the sandbox's PID namespace.
    pub pid: u32,
    pub vm: VmFd,
    pub context: Arc<VcpuContext>,
    pub vcpus: Vec<VcpuHandle>,
    pub devices: Devices,
    /// The snapshot that the machine was restored from.
    pub origin: Option<Origin>,
    /// The name of its directory.
    pub restored_from: Option<String>,
    /// The identity that the guest has not been given yet.
    pub identity: Mutex<Option<ResumeMessage>>,
    pub clock: Clock,
    pub cancellation: Cancellation,
}

impl RunningMachine {
    pub fn start(&mut self, vcpus: Vec<VcpuFd>) -> Result<(), Error> {
        for (id, vcpu) in (0..).zip(vcpus) {
            self.vcpus.push(VcpuHandle::spawn(id, vcpu, Arc::clone(&self.context))?);
        }
        Ok(())
    }

    /// Stops the vCPUs, then shuts down the devices.
    pub fn stop(&mut self) {
        self.context.gate.stop();
        self.vcpus.iter().for_each(VcpuHandle::kick);
        self.vcpus.drain(..).for_each(VcpuHandle::join);
        for device in &self.devices.virtio {
            lock(device).shut_down();
        }
    }

    fn freezer(&self) -> Freezer<'_> {
        Freezer {
            vm: &self.vm,
            config: &self.config,
            context: &self.context,
            vcpus: &self.vcpus,
            devices: &self.devices,
            origin: self.origin.as_ref(),
            cancellation: &self.cancellation,
        }
    }

    fn press_ctrl_alt_del(&self) -> Message {
        let mut i8042 = lock(&self.devices.i8042);
        if i8042.press_ctrl_alt_del() {
            Message::Done
        } else {
            failed("the guest has no keyboard driver for Ctrl-Alt-Del")
        }
    }

    fn set_can_owe(&self, can_owe: bool) -> Message {
        if !self.context.set_can_owe(can_owe) {
            return failed("the machine has no CPU limit");
        }
        // Running vCPUs still have time slices that were granted under the previous setting.
        self.vcpus.iter().for_each(VcpuHandle::kick);
        Message::Done
    }

    fn reload_link(&self, link: &Path, files: &FdTable) -> Message {
        let reloaded = match &self.devices.net {
            Some(net) => net.reload(link, files).map(|problems| Message::Reloaded { problems }),
            None => Err("the machine has no network device".into()),
        };
        reloaded.unwrap_or_else(failed)
    }

    fn save(&self, dir: &Path) -> Outcome {
        match self.freezer().save(dir) {
            Ok(true) => Outcome::End(End::Saved),
            Ok(false) => Outcome::Answer(failed(ALREADY_STOPPING)),
            Err(error) => Outcome::Answer(failed(error)),
        }
    }

    fn fork(&self, dir: &Path, layers: &[NewOverlay], files: &FdTable) -> Message {
        match self.freezer().fork(dir, layers, files) {
            Ok(Some(paused)) => Message::Saved { paused_ns: paused.as_nanos() as u64 },
            Ok(None) => failed(ALREADY_STOPPING),
            Err(error) => failed(error),
        }
    }

    fn personalize(&self) -> Message {
        let Some(identity) = lock(&self.identity).take() else { return failed("the guest has its identity already") };
        match self.freezer().personalize(identity) {
            Ok(true) => Message::Done,
            Ok(false) => failed(ALREADY_STOPPING),
            Err(error) => failed(error),
        }
    }

    /// Saves the CPU credit balance for the machine's next run.
    pub fn keep_balance(&self, dir: &Path) {
        let Some(record) = self.context.cpu_budget() else { return };
        if let Err(error) = KeptBalance::now(record.budget.balance).write(dir) {
            log::error!("cannot save the CPU credit balance: {error}");
        }
    }
}

fn failed(why: impl ToString) -> Message {
    Message::Failed { why: why.to_string() }
}

impl ControlledMachine for RunningMachine {
    fn perform(&self, job: Job) -> Outcome {
        let disks = &self.devices.disks;
        let answer = |result: Result<Message, SlotError>| result.unwrap_or_else(failed);
        let done = |()| Message::Done;
        Outcome::Answer(match job {
            Job::CtrlAltDel => self.press_ctrl_alt_del(),
            Job::AttachDisk { disk, files } => answer(disks.attach_with_fds(&disk, &files).map(attached)),
            Job::DetachDisk { id, force } => answer(disks.detach(&id, force).map(done)),
            Job::FindDisk { id } => answer(disks.slot_of(&id).map(attached)),
            Job::ResizeDisk { id, size } => answer(disks.resize(&id, size).map(done)),
            Job::SetDiskLimits { id, limits } => answer(disks.limit(&id, limits).map(done)),
            Job::SwitchDisk { id, layer, files } => answer(disks.switch_with_fds(&id, &layer, &files).map(done)),
            Job::SetCanOwe { can_owe } => self.set_can_owe(can_owe),
            Job::ReloadLink { link, files } => self.reload_link(&link, &files),
            Job::Save { dir } => return self.save(&dir),
            Job::Fork { dir, layers, files } => self.fork(&dir, &layers, &files),
            Job::Personalize => self.personalize(),
        })
    }

    fn cancel(&self) {
        self.cancellation.cancel();
    }

    fn awaits_identity(&self) -> bool {
        lock(&self.identity).is_some()
    }

    fn request_statistics(&self) {
        self.devices.balloon.iter().for_each(BalloonControl::request_statistics);
    }

    fn status(&self) -> VmmStatus {
        let guest = memory::resident_bytes(&self.context.memory).unwrap_or(0);
        let faults = self.devices.faults.iter().filter(|(_, faults)| faults.count() > 0);
        VmmStatus {
            pid: self.pid,
            moment: self.clock.now(),
            sandbox: sandbox::record(),
            is_ending: false,
            is_owned: false,
            restored_from: self.restored_from.clone(),
            vcpus: self.config.cpus.count,
            memory_mib: self.config.memory_mib,
            software_kvm: self.context.software_kvm,
            timeline: self.context.timeline.record(),
            exits: self.context.exits.record(),
            cpu_time_ns: self.context.cpu_time.total_ns(),
            cpu_budget: self.context.cpu_budget(),
            disks: self.devices.disks.records(),
            net: self.devices.net.as_ref().map(NetControl::record),
            net_limits: self.config.net.as_ref().and_then(|net| net.limits),
            disk_limits: self.config.disk_limits,
            link_problems: self.devices.net.as_ref().map(NetControl::problems).unwrap_or_default(),
            guest_faults: faults
                .map(|(device, faults)| GuestFaultRecord { device: device.clone(), count: faults.count() })
                .collect(),
            guest_resident_bytes: guest,
            vmm_resident_bytes: memory::process_resident_bytes().saturating_sub(guest),
            guest_memory: self.devices.balloon.as_ref().and_then(BalloonControl::statistics),
        }
    }
}
