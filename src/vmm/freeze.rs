//! Pauses, saves, forks and resumes a machine, and gives its guest an identity.
//!
//! The vCPUs pause first, so that devices get no new requests. Then the devices complete their requests in flight, and
//! raise the resulting interrupts. The interrupts are part of the vCPUs' state, which is therefore saved last.

use std::path::Path;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip};
use kvm_ioctls::VmFd;

use super::cpu::vcpu::{VcpuContext, VcpuHandle};
use super::error::Error;
use super::resume_message::ResumeMessage;
use super::snapshot::cancellation::Cancellation;
use super::snapshot::copy::NewCopy;
use super::snapshot::memory::Content;
use super::snapshot::origin::Origin;
use super::snapshot::{self, MachineState, SnapshotError};
use super::virtio::balloon::BalloonControl;
use super::virtio::transport::TransportState;
use super::wiring::Devices;
use machine::config::MachineConfig;
use machine::control::NewOverlay;
use machine::passed_files::FdTable;
use machine::snapshot_files::{MEMORY, STATE};
use machine::sync::lock;

/// The parts of a running machine whose state is saved.
pub(super) struct Freezer<'a> {
    pub vm: &'a VmFd,
    pub config: &'a MachineConfig,
    pub context: &'a VcpuContext,
    pub vcpus: &'a [VcpuHandle],
    pub devices: &'a Devices,
    /// The snapshot that the machine was restored from.
    pub origin: Option<&'a Origin>,
    pub cancellation: &'a Cancellation,
}

impl Freezer<'_> {
    /// Saves the machine into `dir` and leaves it paused, or resumes it on failure. Returns false if the machine is
    /// ending anyway.
    pub fn save(&self, dir: &Path) -> Result<bool, Error> {
        let Some(virtio) = self.pause() else { return Ok(false) };
        let saved = snapshot::memory::write(&self.context.memory, self.origin, dir, self.cancellation)
            .map_err(Error::from)
            .and_then(|differences| Ok(self.state(virtio)?.write(differences, dir)?));
        if saved.is_err() {
            // The resumed machine changes its disks, so the state file no longer matches them and must not be used.
            let _ = std::fs::remove_file(dir.join(STATE));
            self.resume();
        }
        saved.map(|()| true)
    }

    /// Saves the machine into `dir` at one instant, and resumes it. From that instant, the disks in `layers` write to
    /// their new overlays. Returns the duration of the pause, or `None` if the machine is ending anyway.
    pub fn fork(&self, dir: &Path, layers: &[NewOverlay], files: &FdTable) -> Result<Option<Duration>, Error> {
        let disks = &self.devices.disks;
        // Most of the data is written back here, while the guest is running.
        layers.iter().try_for_each(|layer| disks.write_out(&layer.disk))?;
        let memory = &self.context.memory;
        let copy = NewCopy::create(memory, dir)?;
        let began = Instant::now();
        let Some(virtio) = self.pause() else { return Ok(None) };
        // A page that the balloon releases now would be missing in the list of pages to copy.
        let pages_held = self.devices.balloon.as_ref().map(BalloonControl::hold_pages);
        let copied =
            copy.begin(self.cancellation).map_err(Error::from).and_then(|copy| Ok((self.state(virtio)?, copy)));
        let switched = copied.and_then(|copied| {
            layers.iter().try_for_each(|layer| disks.switch_with_fds(&layer.disk, &layer.path, files))?;
            Ok(copied)
        });
        let paused = self.resume() - began;
        let (state, copy) = switched?;
        let content = Content::of(memory, self.origin, dir).map_err(SnapshotError::file(&dir.join(MEMORY), "write"))?;
        drop(pages_held);
        copy.finish(&content)?;
        state.write(content.differences, dir)?;
        Ok(Some(paused))
    }

    /// Gives the guest its identity while it is paused. Returns false if the machine is ending anyway.
    pub fn personalize(&self, mut identity: ResumeMessage) -> Result<bool, Error> {
        let Some(virtio) = self.pause() else { return Ok(false) };
        identity.renew_generation(&self.context.memory, lock(&self.devices.generation).address());
        let personalized = self.devices.personalize(identity, &virtio);
        self.resume();
        personalized.map(|()| true)
    }

    /// Pauses the vCPUs, waits for the devices' requests in flight, and returns the devices' states. Returns `None` if
    /// the machine is ending anyway.
    fn pause(&self) -> Option<Vec<TransportState>> {
        if !self.context.gate.pause(|| self.vcpus.iter().for_each(VcpuHandle::kick)) {
            self.context.gate.open();
            return None;
        }
        Some(self.devices.virtio.iter().map(|device| lock(device).pause()).collect())
    }

    /// Resumes the vCPUs, then the devices, and returns when the vCPUs were resumed. To a driver, a paused device is like
    /// a busy one: it serves the requests when its thread has started. A driver can reset it before that.
    fn resume(&self) -> Instant {
        self.context.gate.open();
        let resumed = Instant::now();
        self.devices.virtio.iter().for_each(|device| lock(device).resume());
        resumed
    }

    /// Returns the paused machine's state, excluding its memory.
    fn state(&self, virtio: Vec<TransportState>) -> Result<MachineState, Error> {
        let devices = self.devices;
        Ok(MachineState {
            identity: self.context.identity.clone(),
            counter: snapshot::counter(),
            cpus: self.config.cpus,
            memory_mib: self.config.memory_mib,
            memory_written: None,
            differences: None,
            vcpus: self.context.gate.save()?,
            interrupt_controllers: save_controllers(self.vm)?,
            timer: self.vm.get_pit2().map_err(Error::kvm("read the timer state"))?,
            clock: self.vm.get_clock().map_err(Error::kvm("read the guest's clock"))?,
            serial: lock(&devices.serial).state(),
            i8042: lock(&devices.i8042).state(),
            rtc: lock(&devices.rtc).state(),
            acpi_pm: lock(&devices.acpi_pm).state(),
            generation: lock(&devices.generation).address(),
            disks: devices.disks.ids(),
            virtio,
        })
    }
}

fn save_controllers(vm: &VmFd) -> Result<Vec<kvm_irqchip>, Error> {
    let save = |chip_id| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(Error::kvm("read the state of an interrupt controller"))?;
        Ok(chip)
    };
    [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC].into_iter().map(save).collect()
}

/// Restores the interrupt controllers, the timer, the clock and the PC devices' state of a new machine. The serial port
/// already has its state, so only its pending interrupt is raised again.
pub(super) fn restore(vm: &VmFd, devices: &Devices, state: &MachineState) -> Result<(), Error> {
    for chip in &state.interrupt_controllers {
        vm.set_irqchip(chip).map_err(Error::kvm("set the state of an interrupt controller"))?;
    }
    vm.set_pit2(&state.timer).map_err(Error::kvm("set the timer state"))?;
    let clock = kvm_clock_data { clock: state.clock.clock, ..Default::default() };
    vm.set_clock(&clock).map_err(Error::kvm("set the guest's clock"))?;
    lock(&devices.serial).repeat_interrupt();
    lock(&devices.i8042).restore(&state.i8042);
    lock(&devices.rtc).restore(&state.rtc);
    lock(&devices.acpi_pm).restore(&state.acpi_pm);
    if devices.virtio.len() != state.virtio.len() {
        let (saved, wanted) = (state.virtio.len(), devices.virtio.len());
        let [saved, wanted] = [saved, wanted].map(|count| format!("{count} virtio devices"));
        return Err(SnapshotError::OtherMachine { saved, wanted }.into());
    }
    Ok(())
}

/// Restores the virtio devices and starts their threads. Must be called after the seccomp filters are enabled, so that
/// each thread gets one.
pub(super) fn restore_virtio(devices: &Devices, states: &[TransportState], dir: &Path) -> Result<(), Error> {
    let unusable = |reason| SnapshotError::Unusable { path: dir.join(STATE), reason };
    for (device, state) in devices.virtio.iter().zip(states) {
        lock(device).restore(state).map_err(unusable)?;
    }
    Ok(())
}
