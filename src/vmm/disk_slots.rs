//! A machine's slots for disks: what is put in and taken out, grown and continued in layers while the guest runs.
//!
//! A slot is a virtio-mmio device that the guest's kernel knows from the beginning. Linux passes over an empty one, and
//! looks again when its driver is bound to it, which somebody in the guest has to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::{ConfigError, DiskConfig};
use super::control::{DiskRecord, Message};
use super::limits::DiskLimits;
use super::passed::PassedFiles;
use super::virtio::block::{BlockError, Disk, DiskBay, Label};
use super::virtio::interrupt::{Interrupt, status};

/// All of them.
#[derive(Debug, Default)]
pub struct DiskSlots {
    /// One change at a time.
    slots: Mutex<Vec<DiskSlot>>,
    /// Where the layers of ephemeral disks go.
    folder: PathBuf,
}

/// One slot.
#[derive(Debug)]
pub struct DiskSlot {
    /// What the device is made of.
    pub bay: Arc<DiskBay>,
    /// How its driver is told something.
    pub interrupt: Arc<Interrupt>,
}

/// Why a disk could not be put in, taken out or changed.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// There is no such disk.
    #[error("the machine has no disk {0:?}")]
    Unknown(String),
    /// There is one by that name.
    #[error("the machine has a disk {0:?} already")]
    Taken(String),
    /// No slot is free.
    #[error("all {0} disk slots of the machine are taken, or the guest's driver has not left them")]
    Full(usize),
    /// The driver is there.
    #[error(
        "the guest's driver still uses the disk {0:?}; it must be unbound in the guest first, or the disk detached by force"
    )]
    InUse(String),
    /// The disk's description is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The disk cannot be opened or changed.
    #[error(transparent)]
    Disk(#[from] BlockError),
    /// It could not be written out.
    #[error("the disk {id:?} could not be written out: {source}")]
    Flush {
        /// Which disk.
        id: String,
        /// Why.
        source: io::Error,
    },
}

impl DiskSlot {
    fn label(&self) -> Option<Label> {
        self.bay.label()
    }

    /// Whether a driver has set the device up.
    fn is_driven(&self) -> bool {
        self.interrupt.device_status() & status::DRIVER_OK != 0
    }
}

impl DiskSlots {
    /// Slots in the order in which the guest knows them; ephemeral disks have their layers in `folder`.
    pub fn new(slots: Vec<DiskSlot>, folder: &Path) -> DiskSlots {
        DiskSlots { slots: Mutex::new(slots), folder: folder.to_path_buf() }
    }

    /// Puts a disk into the first free slot. Returns which that is.
    pub fn attach(&self, config: &DiskConfig) -> Result<usize, SlotError> {
        self.attach_among(config, &PassedFiles::default())
    }

    /// The same, of which the files may be among `files`.
    pub fn attach_among(&self, config: &DiskConfig, files: &PassedFiles) -> Result<usize, SlotError> {
        config.validate()?;
        let slots = self.slots();
        if find(&slots, &config.id).is_ok() {
            return Err(SlotError::Taken(config.id.clone()));
        }
        let free = slots.iter().position(|slot| slot.label().is_none() && !slot.is_driven());
        let index = free.ok_or(SlotError::Full(slots.len()))?;
        let disk = Disk::open_among(config, &self.folder, files)?;
        let slot = &slots[index];
        slot.interrupt.change_config(|| slot.bay.hold().put(disk));
        log::info!("disk {} is in slot {index}", config.id);
        Ok(index)
    }

    /// Takes a disk out, with everything written to its file. While the guest's driver is there, only by `force`.
    pub fn detach(&self, id: &str, force: bool) -> Result<(), SlotError> {
        let slots = self.slots();
        let (index, slot) = find(&slots, id)?;
        if slot.is_driven() && !force {
            return Err(SlotError::InUse(id.to_string()));
        }
        let mut bay = slot.bay.hold();
        let flushed = bay.disk().map_or(Ok(()), |disk| disk.flush());
        if let Err(source) = flushed
            && !force
        {
            return Err(SlotError::Flush { id: id.to_string(), source });
        }
        let disk = slot.interrupt.change_config(|| bay.take());
        drop(bay);
        // Its files are closed, and their locks with them.
        drop(disk);
        log::info!("disk {id} is out of slot {index}");
        Ok(())
    }

    /// Which slot a disk is in.
    pub fn slot_of(&self, id: &str) -> Result<usize, SlotError> {
        find(&self.slots(), id).map(|(index, _)| index)
    }

    /// Gives a disk `size` bytes, and tells the guest.
    pub fn resize(&self, id: &str, size: u64) -> Result<(), SlotError> {
        let slots = self.slots();
        let (_, slot) = find(&slots, id)?;
        let mut bay = slot.bay.hold();
        if let Some(disk) = bay.disk() {
            disk.grow(size)?;
        }
        slot.interrupt.change_config(|| bay.relabel());
        Ok(())
    }

    /// Has a disk go by those limits from now on.
    pub fn limit(&self, id: &str, limits: Option<DiskLimits>) -> Result<(), SlotError> {
        if !limits.iter().all(DiskLimits::is_sound) {
            return Err(ConfigError::Limits("a disk").into());
        }
        find(&self.slots(), id)?.1.bay.hold().limit(limits);
        Ok(())
    }

    /// Has the host write what it holds of a disk, while the guest may write more.
    pub fn write_out(&self, id: &str) -> Result<(), SlotError> {
        let file = find(&self.slots(), id)?.1.bay.hold().disk().map(|disk| disk.file());
        let Some(file) = file else { return Ok(()) };
        let flush = |source| SlotError::Flush { id: id.to_string(), source };
        file.map_err(flush)?.sync_data().map_err(flush)
    }

    /// Has a disk written to `layer` from now on; what it was written to is durable and does not change any more.
    pub fn switch(&self, id: &str, layer: &Path) -> Result<(), SlotError> {
        self.switch_among(id, layer, &PassedFiles::default())
    }

    /// The same, of which the files may be among `files`.
    pub fn switch_among(&self, id: &str, layer: &Path, files: &PassedFiles) -> Result<(), SlotError> {
        // Most of the writing out happens here, with the guest writing on.
        self.write_out(id)?;
        let slots = self.slots();
        let (_, slot) = find(&slots, id)?;
        let mut bay = slot.bay.hold();
        let before = bay.disk().map(|disk| disk.sectors());
        if let Some(disk) = bay.disk() {
            disk.switch(layer, files)?;
        }
        if bay.disk().map(|disk| disk.sectors()) != before {
            slot.interrupt.change_config(|| bay.relabel());
        }
        log::info!("disk {id} is continued in {}", layer.display());
        Ok(())
    }

    /// The id of the disk in each slot.
    pub fn ids(&self) -> Vec<Option<String>> {
        self.slots().iter().map(|slot| slot.label().map(|label| label.id)).collect()
    }

    /// What was done to the disks.
    pub fn records(&self) -> Vec<DiskRecord> {
        let record = |slot: &DiskSlot| {
            let Label { counters, limits, .. } = slot.label()?;
            let saved_percent = limits.map(|_| slot.bay.saved_percent());
            Some(DiskRecord { limits, saved_percent, ..counters.record() })
        };
        self.slots().iter().filter_map(record).collect()
    }

    fn slots(&self) -> MutexGuard<'_, Vec<DiskSlot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer about a disk in the slot `index`. Linux counts the devices of its command line from 0 in decimal, and those
/// of ACPI in hexadecimal.
pub fn attached(index: usize) -> Message {
    Message::Attached {
        slot: index,
        bus_device: format!("virtio-mmio.{index}"),
        acpi_device: format!("LNRO0005:{index:02x}"),
    }
}

fn find<'a>(slots: &'a [DiskSlot], id: &str) -> Result<(usize, &'a DiskSlot), SlotError> {
    let mut taken = slots.iter().enumerate();
    taken
        .find(|(_, slot)| slot.label().is_some_and(|label| label.id == id))
        .ok_or_else(|| SlotError::Unknown(id.to_string()))
}
