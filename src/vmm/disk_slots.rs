//! A machine's disk slots. Disks are attached, detached, grown and switched to overlays while the guest is running.
//!
//! A slot is a virtio-mmio device that exists from boot. Linux's driver does not bind to an empty slot, so a process in
//! the guest must bind the driver again after a disk is attached.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::virtio::block::{DiskHandle, DiskInfo};
use super::virtio::interrupt::{Interrupt, status};
use disk::{BlockError, Disk};
use machine::config::{ConfigError, DiskConfig};
use machine::control::{DiskRecord, Message};
use machine::limits::DiskLimits;
use machine::passed_files::FdTable;
use machine::sync::lock;

#[derive(Debug, Default)]
pub struct DiskSlots {
    slots: Vec<DiskSlot>,
    /// Locked while a disk is attached, detached or changed. The properties of the disks can be read meanwhile.
    changes: Mutex<()>,
    /// Directory for the overlays of ephemeral disks.
    dir: PathBuf,
}

#[derive(Debug)]
pub struct DiskSlot {
    /// Shared with the slot's block device.
    pub disk: Arc<DiskHandle>,
    pub interrupt: Arc<Interrupt>,
}

#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error("the machine has no disk {0:?}")]
    Unknown(String),
    #[error("the machine already has a disk {0:?}")]
    Taken(String),
    #[error(
        "all {0} disk slots of the machine are in use; the slot of a detached disk stays in use until the guest's \
         driver releases it"
    )]
    Full(usize),
    #[error("the guest's driver is still using the disk {0:?}; unbind it in the guest first, or force the detachment")]
    InUse(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Disk(#[from] BlockError),
    #[error("cannot flush the disk {id:?}: {source}")]
    Flush { id: String, source: io::Error },
}

impl DiskSlot {
    fn info(&self) -> Option<Arc<DiskInfo>> {
        self.disk.info()
    }

    /// Returns true if the guest's driver has initialized the device.
    fn is_driven(&self) -> bool {
        self.interrupt.device_status() & status::DRIVER_OK != 0
    }
}

impl DiskSlots {
    /// `slots` must be in the order of the guest's virtio-mmio devices.
    pub fn new(slots: Vec<DiskSlot>, dir: &Path) -> DiskSlots {
        DiskSlots { slots, changes: Mutex::default(), dir: dir.to_path_buf() }
    }

    /// Attaches a disk to the first free slot. Returns the slot's index.
    pub fn attach(&self, config: &DiskConfig) -> Result<usize, SlotError> {
        self.attach_with_fds(config, &FdTable::default())
    }

    /// Like [`DiskSlots::attach`], with files that may have been passed as descriptors.
    pub fn attach_with_fds(&self, config: &DiskConfig, files: &FdTable) -> Result<usize, SlotError> {
        config.validate()?;
        let _change = self.begin_change();
        if self.find(&config.id).is_ok() {
            return Err(SlotError::Taken(config.id.clone()));
        }
        let free = self.slots.iter().position(|slot| slot.info().is_none() && !slot.is_driven());
        let index = free.ok_or(SlotError::Full(self.slots.len()))?;
        let disk = Disk::open_with_fds(config, &self.dir, files)?;
        let slot = &self.slots[index];
        slot.interrupt.change_config(|| slot.disk.borrow().attach(disk));
        log::info!("disk {} attached to slot {index}", config.id);
        Ok(index)
    }

    /// Flushes and detaches a disk. Without `force`, fails if the guest's driver is using the disk or the flush fails.
    pub fn detach(&self, id: &str, force: bool) -> Result<(), SlotError> {
        let _change = self.begin_change();
        let (index, slot) = self.find(id)?;
        if slot.is_driven() && !force {
            return Err(SlotError::InUse(id.to_string()));
        }
        let mut borrowed = slot.disk.borrow();
        let flushed = borrowed.disk().map_or(Ok(()), |disk| disk.flush());
        if let Err(source) = flushed
            && !force
        {
            return Err(SlotError::Flush { id: id.to_string(), source });
        }
        let disk = slot.interrupt.change_config(|| borrowed.detach());
        drop(borrowed);
        // Closes the disk's files, which releases their locks.
        drop(disk);
        log::info!("disk {id} detached from slot {index}");
        Ok(())
    }

    pub fn slot_of(&self, id: &str) -> Result<usize, SlotError> {
        self.find(id).map(|(index, _)| index)
    }

    /// Grows a disk to `size` bytes and notifies the guest.
    pub fn resize(&self, id: &str, size: u64) -> Result<(), SlotError> {
        let _change = self.begin_change();
        let (_, slot) = self.find(id)?;
        let mut borrowed = slot.disk.borrow();
        if let Some(disk) = borrowed.disk() {
            disk.grow(size)?;
        }
        slot.interrupt.change_config(|| borrowed.publish());
        Ok(())
    }

    pub fn limit(&self, id: &str, limits: Option<DiskLimits>) -> Result<(), SlotError> {
        if !limits.iter().all(DiskLimits::is_sound) {
            return Err(ConfigError::Limits("a disk").into());
        }
        let _change = self.begin_change();
        self.find(id)?.1.disk.borrow().limit(limits);
        Ok(())
    }

    /// Writes the host's cached data of a disk to storage. The guest may keep writing meanwhile.
    pub fn write_out(&self, id: &str) -> Result<(), SlotError> {
        let file = self.find(id)?.1.disk.borrow().disk().map(|disk| disk.file());
        let Some(file) = file else { return Ok(()) };
        let flush = |source| SlotError::Flush { id: id.to_string(), source };
        file.map_err(flush)?.sync_data().map_err(flush)
    }

    /// Switches a disk to the overlay `layer`. The disk's previous file is then durable and no longer changes.
    pub fn switch(&self, id: &str, layer: &Path) -> Result<(), SlotError> {
        self.switch_with_fds(id, layer, &FdTable::default())
    }

    /// Like [`DiskSlots::switch`], with files that may have been passed as descriptors.
    pub fn switch_with_fds(&self, id: &str, layer: &Path, files: &FdTable) -> Result<(), SlotError> {
        // Most of the data is written back here, without blocking the guest's writes.
        self.write_out(id)?;
        let _change = self.begin_change();
        let (_, slot) = self.find(id)?;
        let mut borrowed = slot.disk.borrow();
        let before = borrowed.disk().map(|disk| disk.sectors());
        if let Some(disk) = borrowed.disk() {
            disk.switch(layer, files)?;
        }
        if borrowed.disk().map(|disk| disk.sectors()) != before {
            slot.interrupt.change_config(|| borrowed.publish());
        }
        log::info!("disk {id} switched to the overlay {}", layer.display());
        Ok(())
    }

    pub fn ids(&self) -> Vec<Option<String>> {
        self.slots.iter().map(|slot| slot.info().map(|info| info.id.clone())).collect()
    }

    pub fn records(&self) -> Vec<DiskRecord> {
        let record = |slot: &DiskSlot| {
            let info = slot.info()?;
            let (limits, burst_percent) = (info.limits, info.burst_percent());
            Some(DiskRecord { limits, burst_percent, ..info.counters.record() })
        };
        self.slots.iter().filter_map(record).collect()
    }

    fn find(&self, id: &str) -> Result<(usize, &DiskSlot), SlotError> {
        let has_id = |(_, slot): &(usize, &DiskSlot)| slot.info().is_some_and(|info| info.id == id);
        self.slots.iter().enumerate().find(has_id).ok_or_else(|| SlotError::Unknown(id.to_string()))
    }

    fn begin_change(&self) -> MutexGuard<'_, ()> {
        lock(&self.changes)
    }
}

/// Returns the response for the disk in slot `index`, with its names in the guest. Linux numbers command-line devices
/// in decimal and ACPI devices in hexadecimal.
pub fn attached(index: usize) -> Message {
    Message::Attached {
        slot: index,
        bus_device: format!("virtio-mmio.{index}"),
        acpi_device: format!("LNRO0005:{index:02x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::IrqLine;
    use machine::config::{DiskAccess, DiskFormat};
    use machine::limits::rate_limiter::SharedDiskLimiter;

    #[test]
    fn disks_are_listed_and_found_during_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 4096]).unwrap();
        let config = DiskConfig::new("disk", path, DiskFormat::Raw, DiskAccess::ReadWrite);
        let disk = Disk::open(&config, dir.path()).unwrap();
        let disk = Arc::new(DiskHandle::new(Some(disk), SharedDiskLimiter::default()));
        let interrupt = Arc::new(Interrupt::new(IrqLine::new().unwrap()));
        let slots = DiskSlots::new(vec![DiskSlot { disk: Arc::clone(&disk), interrupt }], dir.path());
        let _change = slots.begin_change();
        let _borrowed = disk.borrow();
        // Each of these would deadlock if it waited for the change.
        assert_eq!(slots.ids(), [Some("disk".to_string())]);
        assert_eq!(slots.slot_of("disk").unwrap(), 0);
        assert_eq!(slots.records().len(), 1);
    }
}
