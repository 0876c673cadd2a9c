//! Ownership of a slot's disk. The device's thread owns the disk while it runs, and lends it on request between
//! batches, when no request is in flight. While there is no thread, the disk is in the slot.
//!
//! Other threads read [`DiskInfo`], a copy of the disk's properties, so they do not wait for the disk.

use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard};

use disk::{Disk, DiskCounters};
use machine::limits::rate_limiter::SharedDiskLimiter;
use machine::limits::{DiskLimiter, DiskLimits};
use machine::sync::lock;
use machine::timeline::monotonic_ns;
use vmm_sys_util::eventfd::EventFd;

/// A slot's disk, shared by the device, its thread, and the code that attaches and detaches disks. A thread that takes
/// both locks takes them in the order of the fields. Neither is taken for a request.
#[derive(Debug, Default)]
pub struct DiskHandle {
    owner: Mutex<Owner>,
    info: Mutex<Option<Arc<DiskInfo>>>,
    /// Limiter shared by all throttled disks of the VM.
    shared: SharedDiskLimiter,
}

/// Locked while the disk in the slot is borrowed.
#[derive(Debug, Default)]
struct Owner {
    /// `None` also while the device has a thread.
    disk: Option<Box<AttachedDisk>>,
    thread: Option<Lender>,
}

/// The other end of [`OwnedDisk`].
#[derive(Debug)]
struct Lender {
    loans: Sender<Loan>,
    wake: Arc<EventFd>,
}

/// A request for the disk. The thread sends the disk, and waits for its return.
#[derive(Debug)]
struct Loan {
    lend: SyncSender<Option<Box<AttachedDisk>>>,
    give_back: Receiver<Option<Box<AttachedDisk>>>,
}

#[derive(Debug)]
pub(super) struct AttachedDisk {
    pub disk: Disk,
    pub throttle: Throttle,
}

/// A disk's rate limiters.
#[derive(Debug)]
pub(super) struct Throttle {
    limiter: Option<DiskLimiter>,
    shared: SharedDiskLimiter,
    info: Arc<DiskInfo>,
}

/// Properties of an attached disk. Each change of the disk publishes a new value.
#[derive(Debug)]
pub struct DiskInfo {
    pub id: String,
    pub sectors: u64,
    pub read_only: bool,
    pub counters: Arc<DiskCounters>,
    pub limits: Option<DiskLimits>,
    /// A copy of the limiter, which the device's thread updates after each batch.
    limiter: Option<Mutex<DiskLimiter>>,
}

impl DiskInfo {
    fn of(disk: &Disk, limiter: Option<&DiskLimiter>) -> DiskInfo {
        DiskInfo {
            id: disk.id().to_string(),
            sectors: disk.sectors(),
            read_only: disk.is_read_only(),
            counters: Arc::clone(disk.counters()),
            limits: disk.limits(),
            limiter: limiter.cloned().map(Mutex::new),
        }
    }

    /// Returns the burst balance, or `None` if the disk is not limited.
    pub fn burst_percent(&self) -> Option<u64> {
        self.limiter.as_ref().map(|limiter| lock(limiter).burst_percent(monotonic_ns()))
    }
}

impl AttachedDisk {
    /// Starts with a full burst balance.
    fn new(disk: Disk, shared: SharedDiskLimiter) -> AttachedDisk {
        let limiter = disk.limits().map(|limits| DiskLimiter::new(limits, monotonic_ns()));
        let info = Arc::new(DiskInfo::of(&disk, limiter.as_ref()));
        AttachedDisk { disk, throttle: Throttle { limiter, shared, info } }
    }
}

impl Throttle {
    /// Returns the time until the next request may start, or 0 if it may start now.
    pub fn wait_ns(&mut self) -> u64 {
        let Some(limiter) = self.limiter.as_mut() else { return 0 };
        let now = monotonic_ns();
        let shared = self.shared.lock().map_or(0, |mut limiter| limiter.wait_ns(now));
        limiter.wait_ns(now).max(shared)
    }

    /// Charges a request for `bytes` to the limits.
    pub fn charge(&mut self, bytes: u64) {
        let Some(limiter) = self.limiter.as_mut() else { return };
        let now = monotonic_ns();
        limiter.take(bytes, now);
        if let Some(mut limiter) = self.shared.lock() {
            limiter.take(bytes, now);
        }
    }

    pub fn publish_balance(&self) {
        if let (Some(limiter), Some(published)) = (&self.limiter, &self.info.limiter) {
            lock(published).clone_from(limiter);
        }
    }
}

impl DiskHandle {
    pub fn new(disk: Option<Disk>, shared: SharedDiskLimiter) -> DiskHandle {
        let handle = DiskHandle { shared, ..DiskHandle::default() };
        if let Some(disk) = disk {
            handle.borrow().attach(disk);
        }
        handle
    }

    /// Returns `None` if the slot is empty.
    pub fn info(&self) -> Option<Arc<DiskInfo>> {
        lock(&self.info).clone()
    }

    /// Waits until no request is in flight, and delays new requests until the disk is returned.
    pub fn borrow(&self) -> BorrowedDisk<'_> {
        loop {
            let owner = lock(&self.owner);
            let Some(Lender { loans, wake }) = &owner.thread else {
                return BorrowedDisk { handle: self, place: Place::Slot(owner) };
            };
            let ((lend, lent), (back, give_back)) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
            // Cannot fail: the thread keeps its end until it has moved the disk to the slot, which needs the lock.
            let _ = loans.send(Loan { lend, give_back });
            // Cannot fail: the counter would take centuries to overflow.
            let _ = wake.write(1);
            drop(owner);
            // Fails if the thread ended before it saw the request. The disk is then in the slot.
            if let Ok(disk) = lent.recv() {
                return BorrowedDisk { handle: self, place: Place::Lent { disk, back } };
            }
        }
    }

    /// Makes the calling thread the owner. It must call [`OwnedDisk::lend`] when `wake` becomes readable.
    pub(super) fn own(&self, wake: &Arc<EventFd>) -> OwnedDisk<'_> {
        let (loans, requests) = mpsc::channel();
        let mut owner = lock(&self.owner);
        owner.thread = Some(Lender { loans, wake: Arc::clone(wake) });
        let disk = owner.disk.take();
        OwnedDisk { handle: self, disk, requests }
    }
}

/// The disk as its device's thread owns it. Dropping it moves the disk to the slot.
#[derive(Debug)]
pub(super) struct OwnedDisk<'a> {
    handle: &'a DiskHandle,
    disk: Option<Box<AttachedDisk>>,
    requests: Receiver<Loan>,
}

impl OwnedDisk<'_> {
    /// Returns `None` if the slot is empty.
    pub fn get(&mut self) -> Option<&mut AttachedDisk> {
        self.disk.as_deref_mut()
    }

    /// Lends the disk to each thread that has asked for it. There must be no requests in flight.
    pub fn lend(&mut self) {
        for Loan { lend, give_back } in self.requests.try_iter() {
            match lend.send(self.disk.take()) {
                // A borrower returns the disk even if it panics.
                Ok(()) => self.disk = give_back.recv().unwrap_or_default(),
                Err(mpsc::SendError(disk)) => self.disk = disk,
            }
        }
    }
}

impl Drop for OwnedDisk<'_> {
    fn drop(&mut self) {
        *lock(&self.handle.owner) = Owner { disk: self.disk.take(), thread: None };
    }
}

/// Exclusive access to a slot's disk, which is `None` if the slot is empty. Dropping it returns the disk.
#[derive(Debug)]
pub struct BorrowedDisk<'a> {
    handle: &'a DiskHandle,
    place: Place<'a>,
}

#[derive(Debug)]
enum Place<'a> {
    Slot(MutexGuard<'a, Owner>),
    Lent { disk: Option<Box<AttachedDisk>>, back: SyncSender<Option<Box<AttachedDisk>>> },
}

impl BorrowedDisk<'_> {
    pub(super) fn attached(&mut self) -> &mut Option<Box<AttachedDisk>> {
        match &mut self.place {
            Place::Slot(owner) => &mut owner.disk,
            Place::Lent { disk, .. } => disk,
        }
    }

    pub fn disk(&mut self) -> Option<&mut Disk> {
        self.attached().as_mut().map(|attached| &mut attached.disk)
    }

    /// Attaches a disk with a full burst balance.
    pub fn attach(&mut self, disk: Disk) {
        let attached = AttachedDisk::new(disk, self.handle.shared.clone());
        *self.attached() = Some(Box::new(attached));
        self.publish();
    }

    pub fn detach(&mut self) -> Option<Disk> {
        let attached = self.attached().take();
        self.publish();
        attached.map(|attached| attached.disk)
    }

    /// Applies `limits` from the next request on, with a full burst balance.
    pub fn limit(&mut self, limits: Option<DiskLimits>) {
        if let Some(attached) = self.attached() {
            attached.disk.set_limits(limits);
            attached.throttle.limiter = limits.map(|limits| DiskLimiter::new(limits, monotonic_ns()));
        }
        self.publish();
    }

    /// Publishes the disk's properties after a change.
    pub fn publish(&mut self) {
        let info = self.attached().as_mut().map(|attached| {
            let info = Arc::new(DiskInfo::of(&attached.disk, attached.throttle.limiter.as_ref()));
            attached.throttle.info = Arc::clone(&info);
            info
        });
        *lock(&self.handle.info) = info;
    }
}

impl Drop for BorrowedDisk<'_> {
    fn drop(&mut self) {
        if let Place::Lent { disk, back } = &mut self.place {
            // Cannot fail: the thread waits for the disk.
            let _ = back.send(disk.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use machine::config::{DiskAccess, DiskConfig, DiskFormat};

    fn handle(dir: &std::path::Path) -> DiskHandle {
        let path = dir.join("disk");
        std::fs::write(&path, [0; 4096]).unwrap();
        let config = DiskConfig::new("disk", path, DiskFormat::Raw, DiskAccess::ReadWrite);
        DiskHandle::new(Some(Disk::open(&config, dir).unwrap()), SharedDiskLimiter::default())
    }

    fn wake() -> Arc<EventFd> {
        Arc::new(EventFd::new(libc::EFD_CLOEXEC).unwrap())
    }

    #[test]
    fn thread_lends_disk_and_gets_changed_disk_back() {
        let dir = tempfile::tempdir().unwrap();
        let (handle, wake) = (handle(dir.path()), wake());
        let mut owned = handle.own(&wake);
        thread::scope(|scope| {
            let borrower = scope.spawn(|| handle.borrow().detach().map(|disk| disk.id().to_string()));
            wake.read().unwrap();
            assert!(owned.get().is_some(), "the disk was taken without a loan");
            owned.lend();
            assert_eq!(borrower.join().unwrap().as_deref(), Some("disk"));
        });
        assert!(owned.get().is_none());
        assert!(handle.info().is_none());
    }

    #[test]
    fn ended_thread_leaves_disk_to_borrower() {
        let dir = tempfile::tempdir().unwrap();
        let (handle, wake) = (handle(dir.path()), wake());
        let owned = handle.own(&wake);
        thread::scope(|scope| {
            let borrower = scope.spawn(|| handle.borrow().disk().is_some());
            wake.read().unwrap();
            drop(owned);
            assert!(borrower.join().unwrap());
        });
    }

    #[test]
    fn thread_waits_for_borrowed_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (handle, wake) = (handle(dir.path()), wake());
        let borrowed = handle.borrow();
        let is_returned = AtomicBool::new(false);
        thread::scope(|scope| {
            let owner = scope.spawn(|| {
                let mut owned = handle.own(&wake);
                assert!(is_returned.load(Ordering::SeqCst), "two threads had the disk");
                owned.get().is_some()
            });
            is_returned.store(true, Ordering::SeqCst);
            drop(borrowed);
            assert!(owner.join().unwrap());
        });
    }

    #[test]
    fn concurrent_borrowers_take_turns() {
        const TURNS: u64 = 100;
        let dir = tempfile::tempdir().unwrap();
        let (handle, wake) = (handle(dir.path()), wake());
        let mut owned = handle.own(&wake);
        thread::scope(|scope| {
            let grow = || {
                (0..TURNS).for_each(|_| {
                    let mut borrowed = handle.borrow();
                    let disk = borrowed.disk().unwrap();
                    disk.grow((disk.sectors() + 1) * disk::SECTOR).unwrap();
                })
            };
            let borrowers = [scope.spawn(grow), scope.spawn(grow)];
            // The last change is part of the last loan, so no later event has to come.
            while owned.get().is_none_or(|attached| attached.disk.sectors() != 8 + 2 * TURNS) {
                wake.read().unwrap();
                owned.lend();
            }
            borrowers.into_iter().for_each(|borrower| borrower.join().unwrap());
        });
        assert_eq!(owned.get().unwrap().disk.sectors(), 8 + 2 * TURNS);
    }
}
