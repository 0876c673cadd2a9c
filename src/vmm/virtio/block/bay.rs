//! A place for a disk: shared between a device, its thread, and whoever puts disks in and takes them out.
//!
//! Requests are carried out one at a time, each with the disk locked. Who locks it meanwhile finds no request half done,
//! and none begins until it is given back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counters::DiskCounters;
use super::disk::Disk;

/// The place. Locks are taken in the order of its fields.
#[derive(Debug, Default)]
pub struct DiskBay {
    /// Taken before the disk. A thread with one request after the other lets go of the disk for an instant only, and would
    /// have it back before anybody who waits for it has woken; here it has to stand behind them.
    turnstile: Mutex<()>,
    disk: Mutex<Option<Disk>>,
    /// What is known of the disk without waiting for a request to end.
    label: Mutex<Option<Label>>,
}

/// What a disk is to those who only look at it.
#[derive(Debug, Clone)]
pub struct Label {
    /// The disk's name.
    pub id: String,
    /// Its size in sectors.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What was done to it.
    pub counters: Arc<DiskCounters>,
}

/// A disk on which nothing moves.
#[derive(Debug)]
pub struct Held<'a> {
    bay: &'a DiskBay,
    disk: MutexGuard<'a, Option<Disk>>,
}

impl DiskBay {
    /// A place with `disk` in it.
    pub fn with(disk: Disk) -> DiskBay {
        let bay = DiskBay::default();
        bay.hold().put(disk);
        bay
    }

    /// What is in it.
    pub fn label(&self) -> Option<Label> {
        lock(&self.label).clone()
    }

    /// Waits for the request that is being carried out, and keeps others from beginning.
    pub fn hold(&self) -> Held<'_> {
        let _turn = lock(&self.turnstile);
        Held { bay: self, disk: lock(&self.disk) }
    }
}

impl Held<'_> {
    /// The disk, if there is one.
    pub fn disk(&mut self) -> Option<&mut Disk> {
        self.disk.as_mut()
    }

    /// Puts a disk in.
    pub fn put(&mut self, disk: Disk) {
        *self.disk = Some(disk);
        self.relabel();
    }

    /// Takes the disk out.
    pub fn take(&mut self) -> Option<Disk> {
        let disk = self.disk.take();
        self.relabel();
        disk
    }

    /// Brings what is known of the disk up to date.
    pub fn relabel(&mut self) {
        *lock(&self.bay.label) = self.disk.as_ref().map(|disk| Label {
            id: disk.id().to_string(),
            sectors: disk.sectors(),
            read_only: disk.is_read_only(),
            counters: Arc::clone(disk.counters()),
        });
    }
}

/// A disk is as good after a panic as after any other failed request.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
