//! Changes of a running machine's disks. Each one also changes the machine's configuration file, which the VMM reads
//! again after a guest reboot.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::error::NodeError;
use crate::guest::{ExecRequest, ExitStatus, Streams};
use crate::instance::{Failure, InstanceDir, MachineError, MachineHandle};
use machine::config::{DiskConfig, MachineConfig};
use machine::control::{ControlRequest, Message};
use machine::limits::DiskLimits;

const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time for the guest's driver to bind or unbind a disk. The guest may have to write much data first.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(300);

impl InstanceDir {
    /// Hot-plugs a disk and binds the guest's driver to it.
    pub(super) fn plug(&self, disk: DiskConfig) -> Result<(), NodeError> {
        let mut machine = MachineHandle::connect(self)?;
        let slot = slot_of(&mut machine, &ControlRequest::AttachDisk { disk: disk.clone() })?;
        self.change_config(|config| config.disks.push(disk))?;
        self.run_driver_command("bind", &slot)
    }

    /// Unbinds the guest's driver from a disk and detaches the disk, if the machine has it.
    pub(super) fn unplug(&self, id: &str, force: bool) -> Result<(), NodeError> {
        let mut machine = MachineHandle::connect(self)?;
        // A command that was killed may have unplugged the disk, or may not have plugged it in.
        if !machine.status()?.disks.iter().any(|disk| disk.id == id) {
            return Ok(self.change_config(|config| config.disks.retain(|disk| disk.id != id))?);
        }
        let slot = slot_of(&mut machine, &ControlRequest::DiskSlot { id: id.into() })?;
        match self.run_driver_command("unbind", &slot) {
            Err(error) if !force => return Err(error),
            _ => {}
        }
        // If the guest reboots from now on, it must come up without the disk.
        self.change_config(|config| config.disks.retain(|disk| disk.id != id))?;
        Ok(machine.demand(&ControlRequest::DetachDisk { id: id.into(), force })?)
    }

    /// Switches a running VMM from the files of `before` to those of `after`, even if the guest reboots meanwhile.
    pub(super) fn switch_disk(&self, before: &DiskConfig, after: DiskConfig) -> Result<(), MachineError> {
        let mut machine = MachineHandle::connect(self)?;
        self.change_config(|config| continue_in(config, &after))?;
        let request = ControlRequest::SwitchDisk { id: after.id, layer: after.path, backing: after.backing };
        let switched = machine.demand(&request);
        if matches!(&switched, Err(MachineError { failure: Failure::Refused(_), .. })) {
            self.change_config(|config| continue_in(config, before))?;
        }
        switched
    }

    /// Changes a disk's limits. A VM that was started without limits gets them at the next start.
    pub(super) fn limit_disk(&self, id: &str, limits: DiskLimits) -> Result<(), MachineError> {
        let mut machine = MachineHandle::connect(self)?;
        if !machine.status()?.disks.iter().any(|disk| disk.id == id && disk.limits.is_some()) {
            return Ok(());
        }
        machine.demand(&ControlRequest::SetDiskLimits { id: id.into(), limits: Some(limits) })?;
        self.change_config(|config| {
            config.disks.iter_mut().filter(|disk| disk.id == id).for_each(|disk| disk.limits = Some(limits));
        })
    }

    /// Writes a slot's device name to `bind` or `unbind` of the guest's virtio-mmio driver. The name depends on whether
    /// the guest's kernel found the device on its command line or in ACPI.
    fn run_driver_command(&self, action: &'static str, [bus, acpi]: &[String; 2]) -> Result<(), NodeError> {
        let driver = "/sys/bus/platform/drivers/virtio-mmio";
        let script = format!(
            "cd {driver} && for name in {bus} {acpi}; do echo $name > {action} && exit 0; done 2>/dev/null; exit 1"
        );
        let request =
            ExecRequest { argv: ["/bin/sh", "-c", &script].map(OsString::from).to_vec(), ..ExecRequest::default() };
        let null =
            File::options().read(true).write(true).open("/dev/null").map_err(NodeError::file("/dev/null", "open"))?;
        let streams = Streams { input: null.as_fd(), output: null.as_fd(), error: null.as_fd() };
        let agent = self.agent(AGENT_TIMEOUT)?.with_silence_limit(DRIVER_TIMEOUT);
        let status = agent.exec(request, streams).map_err(self.guest_error())?;
        if status == ExitStatus::Exited(0) {
            return Ok(());
        }
        Err(NodeError::Driver { instance: self.id(), action })
    }
}

/// Gives the disk with the same ID the files of `disk`.
pub(super) fn continue_in(config: &mut MachineConfig, disk: &DiskConfig) {
    for known in config.disks.iter_mut().filter(|known| known.id == disk.id) {
        known.path.clone_from(&disk.path);
        known.format = disk.format;
        known.backing.clone_from(&disk.backing);
    }
}

fn slot_of(machine: &mut MachineHandle, request: &ControlRequest) -> Result<[String; 2], MachineError> {
    match machine.ask(request)? {
        Message::Attached { bus_device, acpi_device, .. } => Ok([bus_device, acpi_device]),
        other => Err(machine.unexpected(&other)),
    }
}
