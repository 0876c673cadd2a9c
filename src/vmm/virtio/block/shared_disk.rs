//! A disk slot, shared between a device, its thread, and the code that attaches and detaches disks. The thread holds
//! the slot until no request is in flight, so another holder never sees a partly completed request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use disk::Disk;
use disk::DiskCounters;
use machine::limits::rate_limiter::SharedDiskLimiter;
use machine::limits::{DiskLimiter, DiskLimits};
use machine::timeline::monotonic_ns;

/// A thread that takes several of the locks takes them in the order of the fields.
#[derive(Debug, Default)]
pub struct SharedDisk {
    /// Taken before the disk, so that a thread with back-to-back requests queues behind the waiters.
    turnstile: Mutex<()>,
    disk: Mutex<Option<Disk>>,
    /// Properties of the disk, which can be read without waiting for requests in flight.
    label: Mutex<Option<Label>>,
    limiter: Mutex<Option<DiskLimiter>>,
    /// Limiter shared by all throttled disks of the VM.
    shared: SharedDiskLimiter,
}

#[derive(Debug, Clone)]
pub struct Label {
    pub id: String,
    pub sectors: u64,
    pub read_only: bool,
    pub counters: Arc<DiskCounters>,
    pub limits: Option<DiskLimits>,
}

/// Exclusive access to a disk slot. The device's thread keeps it while it has requests in flight.
#[derive(Debug)]
pub struct DiskGuard<'a> {
    shared_disk: &'a SharedDisk,
    disk: MutexGuard<'a, Option<Disk>>,
}

impl SharedDisk {
    pub fn new(disk: Option<Disk>, shared: SharedDiskLimiter) -> SharedDisk {
        let shared_disk = SharedDisk { shared, ..SharedDisk::default() };
        if let Some(disk) = disk {
            shared_disk.hold().put(disk);
        }
        shared_disk
    }

    /// Returns the time until the next request may start, or 0 if it may start now.
    pub fn wait_ns(&self) -> u64 {
        let mut limiter = lock(&self.limiter);
        let Some(limiter) = limiter.as_mut() else { return 0 };
        let now = monotonic_ns();
        let shared = self.shared.lock().map_or(0, |mut limiter| limiter.wait_ns(now));
        limiter.wait_ns(now).max(shared)
    }

    pub fn take(&self, bytes: u64) {
        let mut limiter = lock(&self.limiter);
        let Some(limiter) = limiter.as_mut() else { return };
        let now = monotonic_ns();
        limiter.take(bytes, now);
        if let Some(mut limiter) = self.shared.lock() {
            limiter.take(bytes, now);
        }
    }

    pub fn burst_percent(&self) -> u64 {
        lock(&self.limiter).as_mut().map_or(100, |limiter| limiter.burst_percent(monotonic_ns()))
    }

    /// Returns `None` if the slot is empty.
    pub fn label(&self) -> Option<Label> {
        lock(&self.label).clone()
    }

    pub fn is_wanted(&self) -> bool {
        matches!(self.turnstile.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Waits until no request is in flight, and blocks new requests until the guard is dropped.
    pub fn hold(&self) -> DiskGuard<'_> {
        let _turn = lock(&self.turnstile);
        DiskGuard { shared_disk: self, disk: lock(&self.disk) }
    }
}

impl DiskGuard<'_> {
    pub fn disk(&mut self) -> Option<&mut Disk> {
        self.disk.as_mut()
    }

    /// Attaches a disk with a full burst balance.
    pub fn put(&mut self, disk: Disk) {
        let limits = disk.limits();
        *self.disk = Some(disk);
        self.limit(limits);
    }

    /// Applies `limits` from the next request on, with a full burst balance.
    pub fn limit(&mut self, limits: Option<DiskLimits>) {
        if let Some(disk) = self.disk.as_mut() {
            disk.set_limits(limits);
        }
        *lock(&self.shared_disk.limiter) = limits.map(|limits| DiskLimiter::new(limits, monotonic_ns()));
        self.relabel();
    }

    pub fn take(&mut self) -> Option<Disk> {
        let disk = self.disk.take();
        self.relabel();
        disk
    }

    pub fn relabel(&mut self) {
        *lock(&self.shared_disk.label) = self.disk.as_ref().map(|disk| Label {
            id: disk.id().to_string(),
            sectors: disk.sectors(),
            read_only: disk.is_read_only(),
            counters: Arc::clone(disk.counters()),
            limits: disk.limits(),
        });
    }
}

/// Ignores poisoning: after a panic, a disk is as usable as after any failed request.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
