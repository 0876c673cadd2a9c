//! A place for a disk: shared between a device, its thread, and whoever puts disks in and takes them out.
//!
//! Requests are carried out with the disk locked, until none is in flight. Who locks it meanwhile finds no request half
//! done, and none begins until it is given back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::counters::DiskCounters;
use super::disk::Disk;
use crate::vmm::limits::rate_limiter::SharedDiskLimiter;
use crate::vmm::limits::{DiskLimiter, DiskLimits};
use crate::vmm::timeline::monotonic_ns;

/// The place. Locks are taken in the order of its fields.
#[derive(Debug, Default)]
pub struct DiskBay {
    /// Taken before the disk. A thread with one request after the other lets go of the disk for an instant only, and would
    /// have it back before anybody who waits for it has woken; here it has to stand behind them.
    turnstile: Mutex<()>,
    disk: Mutex<Option<Disk>>,
    /// What is known of the disk without waiting for a request to end.
    label: Mutex<Option<Label>>,
    /// What the disk may do, if that is limited.
    limiter: Mutex<Option<DiskLimiter>>,
    /// What those of the machine's disks that are limited may do together.
    shared: SharedDiskLimiter,
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
    /// What it may do, if that is limited.
    pub limits: Option<DiskLimits>,
}

/// A disk on which nothing moves.
#[derive(Debug)]
pub struct Held<'a> {
    bay: &'a DiskBay,
    disk: MutexGuard<'a, Option<Disk>>,
}

impl DiskBay {
    /// A place with `disk` in it, if there is one, and what all disks of the machine may do.
    pub fn new(disk: Option<Disk>, shared: SharedDiskLimiter) -> DiskBay {
        let bay = DiskBay { shared, ..DiskBay::default() };
        if let Some(disk) = disk {
            bay.hold().put(disk);
        }
        bay
    }

    /// How long until another request may be carried out, in nanoseconds; 0 if one may now.
    pub fn wait_ns(&self) -> u64 {
        let mut limiter = lock(&self.limiter);
        let Some(limiter) = limiter.as_mut() else { return 0 };
        let now = monotonic_ns();
        let shared = self.shared.lock().map_or(0, |mut limiter| limiter.wait_ns(now));
        limiter.wait_ns(now).max(shared)
    }

    /// A request that moves so many bytes is carried out.
    pub fn take(&self, bytes: u64) {
        let mut limiter = lock(&self.limiter);
        let Some(limiter) = limiter.as_mut() else { return };
        let now = monotonic_ns();
        limiter.take(bytes, now);
        if let Some(mut limiter) = self.shared.lock() {
            limiter.take(bytes, now);
        }
    }

    /// What is left of what the disk has saved, in per cent.
    pub fn saved_percent(&self) -> u64 {
        lock(&self.limiter).as_mut().map_or(100, |limiter| limiter.saved_percent(monotonic_ns()))
    }

    /// What is in it.
    pub fn label(&self) -> Option<Label> {
        lock(&self.label).clone()
    }

    /// Whether somebody waits for who holds it.
    pub fn is_wanted(&self) -> bool {
        matches!(self.turnstile.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Waits for the requests that are being carried out, and keeps others from beginning.
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

    /// Puts a disk in, with all that it can save for times above its baseline.
    pub fn put(&mut self, disk: Disk) {
        let limits = disk.limits();
        *self.disk = Some(disk);
        self.limit(limits);
    }

    /// Has the disk go by those limits from its next request on.
    pub fn limit(&mut self, limits: Option<DiskLimits>) {
        if let Some(disk) = self.disk.as_mut() {
            disk.set_limits(limits);
        }
        *lock(&self.bay.limiter) = limits.map(|limits| DiskLimiter::new(limits, monotonic_ns()));
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
            limits: disk.limits(),
        });
    }
}

/// A disk is as good after a panic as after any other failed request.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
