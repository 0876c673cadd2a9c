//! Tests of concurrent requests, with and without an io_uring.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use disk::{Disk, ImageFile};
use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;
use rustix::fs::{Advice, fadvise};
use test_support::{Capability, skip_without};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::request::Completion;
use super::submitter::Submitter;
use super::uring::UringSubmitter;
use super::*;
use crate::fault::GuestFaults;
use crate::irq::IrqLine;
use crate::memory::{self, GuestMemory};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::tests::{INDIRECT, NEXT, WRITE, queue_with};
use crate::virtio::queue::{Buffer, Virtqueue};
use disk::FileExtent;
use machine::config::{BackingFile, DiskAccess, DiskConfig, DiskFormat};
use machine::limits::rate_limiter::SharedDiskLimiter;

/// Offsets of the rings that `queue_with` sets up.
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;
const SIZE: u16 = 16;
/// Base addresses of the slots' descriptors, headers, statuses and data.
const TABLES: u64 = 0x1000;
const HEADERS: u64 = 0x2000;
const STATUSES: u64 = 0x3000;
const DATA: u64 = 0x10_0000;
const LENGTH: u64 = 4096;
/// Number of blocks of [`LENGTH`] on the disk. Each block is filled with its number.
const BLOCKS: u64 = 512;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;

fn content() -> Vec<u8> {
    (0..BLOCKS).flat_map(|block| (block as u16).to_le_bytes().repeat(LENGTH as usize / 2)).collect()
}

fn config(path: &Path, format: DiskFormat) -> DiskConfig {
    let access = DiskAccess::ReadWrite;
    let base = BackingFile { path: path.with_file_name("base"), format: DiskFormat::Raw };
    let backing = if path.ends_with("layer") { vec![base] } else { Vec::new() };
    DiskConfig {
        id: "disk".into(),
        path: path.to_path_buf(),
        format,
        access,
        root: false,
        backing,
        was: None,
        limits: None,
    }
}

/// Returns a raw disk, and an empty qcow2 overlay over another raw disk with the same content.
fn disks(dir: &Path) -> [Disk; 2] {
    let [raw, base, layer] = ["raw", "base", "layer"].map(|name| dir.join(name));
    for path in [&raw, &base] {
        fs::write(path, content()).unwrap();
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
    let file = ImageFile::try_from(File::create_new(&layer).unwrap()).unwrap();
    let builder = Qcow2::<ImageFile>::create_builder(file).size(BLOCKS * LENGTH);
    builder.backing("base".into(), "raw".into()).create().unwrap();
    [(raw, DiskFormat::Raw), (layer, DiskFormat::Qcow2)]
        .map(|(path, format)| Disk::open(&config(&path, format), dir).unwrap())
}

/// A driver with up to 16 requests in its queue.
struct Driver {
    device: Block,
    disk: Arc<DiskHandle>,
    memory: GuestMemory,
    kick: EventFd,
    available: u16,
}

impl Driver {
    fn new(disk: Disk, ring: Option<Ring>) -> Driver {
        let memory = memory::allocate(64).unwrap();
        let queue = queue_with(&memory, &[], &[]);
        let kick = queue.kick().try_clone().unwrap();
        let disk = Arc::new(DiskHandle::new(Some(disk), SharedDiskLimiter::default()));
        let mut device = Block::with_ring(Arc::clone(&disk), 0, ring);
        let interrupt = Arc::new(Interrupt::new(IrqLine::new().unwrap()));
        let faults = Arc::new(GuestFaults::new("test"));
        let queues = vec![queue];
        let clock = Arc::default();
        device
            .activate(Activation {
                memory: memory.clone(),
                queues,
                interrupt,
                features: VERSION_1 | feature::FLUSH,
                faults,
                clock,
            })
            .unwrap();
        Driver { device, disk, memory, kick, available: 0 }
    }

    /// Runs a test on each disk, with and without an io_uring.
    fn each(test: impl Fn(&mut Driver)) {
        for ring in [Ring::new as fn() -> Option<Ring>, || None] {
            let dir = tempfile::tempdir().unwrap();
            for disk in disks(dir.path()) {
                let mut driver = Driver::new(disk, ring());
                test(&mut driver);
                driver.device.reset();
            }
        }
    }

    /// Makes requests available in consecutive slots. Each has a kind and a block number.
    fn put(&mut self, requests: &[(u32, u64)]) {
        for &(kind, block) in requests {
            let slot = u64::from(self.available % SIZE);
            let header = [u64::from(kind), block * LENGTH / SECTOR];
            for (at, word) in (0..).zip(header) {
                self.memory.write_obj(word, GuestAddress(HEADERS + 16 * slot + 8 * at)).unwrap();
            }
            self.memory.write_obj(0xee_u8, GuestAddress(STATUSES + slot)).unwrap();
            let data = DATA + slot * LENGTH;
            let (length, flags) = match kind {
                IN => (LENGTH as u32, WRITE | NEXT),
                DISCARD => (16, NEXT),
                _ => (LENGTH as u32, NEXT),
            };
            let table = TABLES + 64 * slot;
            let next = if kind == FLUSH { 2 } else { 1 };
            self.describe(table, HEADERS + 16 * slot, 16, NEXT, next);
            self.describe(table + 16, data, length, flags, 2);
            self.describe(table + 32, STATUSES + slot, 1, WRITE, 0);
            self.describe(16 * slot, table, 48, INDIRECT, 0);
            self.memory.write_obj(slot as u16, GuestAddress(AVAILABLE + 4 + 2 * slot)).unwrap();
            self.available = self.available.wrapping_add(1);
        }
        self.memory.store(self.available, GuestAddress(AVAILABLE + 2), Ordering::Release).unwrap();
        self.kick.write(1).unwrap();
    }

    fn describe(&self, place: u64, address: u64, length: u32, flags: u16, next: u16) {
        self.memory.write_obj(address, GuestAddress(place)).unwrap();
        let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.write_obj(rest, GuestAddress(place + 8)).unwrap();
    }

    fn used(&self) -> u16 {
        self.memory.load(GuestAddress(USED + 2), Ordering::Acquire).unwrap()
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.used() != self.available {
            assert!(Instant::now() < deadline, "only {} of {} requests completed", self.used(), self.available);
            std::thread::yield_now();
        }
    }

    fn status(&self, slot: u64) -> u8 {
        self.memory.read_obj(GuestAddress(STATUSES + slot)).unwrap()
    }

    /// Returns the block number that fills the data in `slot`.
    fn block(&self, slot: u64) -> u64 {
        let mut bytes = vec![0; LENGTH as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(DATA + slot * LENGTH)).unwrap();
        assert!(bytes.chunks(2).all(|chunk| chunk == &bytes[..2]), "slot {slot} has data from several blocks");
        u64::from(u16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

#[test]
fn concurrent_reads_get_their_own_data() {
    Driver::each(|driver| {
        for round in 0..16 {
            let block = |slot: u64| (slot * 37 + round * 101) % BLOCKS;
            let requests: Vec<_> = (0..u64::from(SIZE)).map(|slot| (IN, block(slot))).collect();
            driver.put(&requests);
            driver.wait();
            for slot in 0..u64::from(SIZE) {
                assert_eq!((driver.status(slot), driver.block(slot)), (0, block(slot)));
            }
        }
        assert_eq!(driver.disk.info().unwrap().counters.record().reads, 256);
    });
}

#[test]
fn pause_with_requests_in_flight_loses_none() {
    Driver::each(|driver| {
        for round in 0..16 {
            let requests: Vec<_> = (0..u64::from(SIZE)).map(|slot| (IN, slot + round * 16)).collect();
            driver.put(&requests);
            // The number of requests taken before the pause varies, but all of them must be complete.
            let [state] = driver.device.pause()[..] else { panic!("the device is not active") };
            assert_eq!(driver.used(), state.next_avail);
            driver.device.resume().unwrap();
            driver.wait();
            assert!((0..u64::from(SIZE)).all(|slot| driver.block(slot) == slot + round * 16));
        }
    });
}

#[test]
fn failed_request_does_not_affect_others() {
    Driver::each(|driver| {
        let requests: Vec<_> = (0..16).map(|slot| (IN, if slot % 4 == 1 { BLOCKS } else { slot })).collect();
        driver.put(&requests);
        driver.wait();
        for slot in 0..16 {
            assert_eq!(driver.status(slot), u8::from(slot % 4 == 1), "slot {slot}");
            assert!(slot % 4 == 1 || driver.block(slot) == slot);
        }
    });
}

#[test]
fn writes_flushes_and_discards_among_reads_complete() {
    Driver::each(|driver| {
        driver.memory.write_slice(&[0xab; LENGTH as usize], GuestAddress(DATA + LENGTH)).unwrap();
        let range = [300 * LENGTH / SECTOR, LENGTH / SECTOR];
        for (at, word) in (0..).zip(range) {
            driver.memory.write_obj(word, GuestAddress(DATA + 4 * LENGTH + 8 * at)).unwrap();
        }
        driver.put(&[(IN, 9), (OUT, 200), (FLUSH, 0), (IN, 10), (DISCARD, 0), (FLUSH, 0), (IN, 200), (IN, 11)]);
        driver.wait();
        assert!((0..8).all(|slot| driver.status(slot) == 0));
        assert_eq!([0, 3, 6, 7].map(|slot| driver.block(slot)), [9, 10, 0xabab, 11]);
    });
}

#[test]
fn detach_waits_for_requests_in_flight() {
    Driver::each(|driver| {
        driver.put(&(0..16).map(|slot| (IN, slot * 31)).collect::<Vec<_>>());
        let taken = driver.disk.borrow().detach();
        let done = driver.used();
        drop(taken);
        driver.wait();
        for slot in 0..16 {
            let is_done = slot < u64::from(done);
            let status = driver.status(slot);
            assert!(!is_done || status == 0 || status == 1, "slot {slot}");
            assert!(status == 1 || driver.block(slot) == slot * 31, "slot {slot}");
        }
    });
}

struct Bench {
    _dir: tempfile::TempDir,
    memory: GuestMemory,
    disk: Disk,
    queue: Virtqueue,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let memory = memory::allocate(64).unwrap();
        let [disk, _] = disks(dir.path());
        let queue = queue_with(&memory, &[], &[]);
        Bench { _dir: dir, memory, disk, queue }
    }

    fn used(&self) -> Vec<u16> {
        let count: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        let head = |at: u16| self.memory.read_obj::<u32>(GuestAddress(USED + 4 + 8 * u64::from(at))).unwrap() as u16;
        (0..count).map(head).collect()
    }

    fn status(&self, slot: u16) -> u8 {
        self.memory.read_obj(GuestAddress(STATUSES + u64::from(slot))).unwrap()
    }
}

fn completion(head: u16) -> Completion {
    Completion { head, status: GuestAddress(STATUSES + u64::from(head)) }
}

fn buffers(slot: u64) -> Vec<Buffer> {
    vec![Buffer { address: GuestAddress(DATA + slot * LENGTH), length: LENGTH as u32 }]
}

#[test]
fn completed_requests_return_out_of_order() {
    let Some(mut ring) = Ring::new() else { return skip_without(Capability::IoUring) };
    let mut bench = Bench::new();
    let (reader, mut writer) = io::pipe().unwrap();
    let mut submitter = UringSubmitter::new(&mut ring, &bench.memory);
    let slow = FileExtent { fd: reader.as_raw_fd(), offset: 0, length: LENGTH };
    assert!(submitter.queue_read(completion(0), &mut buffers(0), 0, &[slow]));
    let quick = bench.disk.pieces(7 * LENGTH, LENGTH).unwrap();
    assert!(submitter.queue_read(completion(1), &mut buffers(1), 7 * LENGTH, &quick));
    while bench.used().is_empty() {
        submitter.complete(&bench.disk, &mut bench.queue).unwrap();
    }
    assert_eq!(bench.used(), [1]);
    writer.write_all(&[5; LENGTH as usize]).unwrap();
    submitter.drain(&bench.disk, &mut bench.queue).unwrap();
    assert_eq!(bench.used(), [1, 0]);
    assert_eq!([bench.status(0), bench.status(1)], [0, 0]);
    assert!(submitter.is_empty());
}

#[test]
fn drop_waits_for_requests_in_flight() {
    let Some(mut ring) = Ring::new() else { return skip_without(Capability::IoUring) };
    let bench = Bench::new();
    let (reader, mut writer) = io::pipe().unwrap();
    let mut submitter = UringSubmitter::new(&mut ring, &bench.memory);
    submitter.queue_read(
        completion(0),
        &mut buffers(0),
        0,
        &[FileExtent { fd: reader.as_raw_fd(), offset: 0, length: LENGTH }],
    );
    let late = std::thread::spawn(move || writer.write_all(&[5; LENGTH as usize]));
    drop(submitter);
    assert_eq!(ring.in_flight(), 0);
    assert_eq!(bench.memory.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 5);
    late.join().unwrap().unwrap();
}

#[test]
fn failed_read_is_retried_and_failed_flush_is_reported() {
    let Some(mut ring) = Ring::new() else { return skip_without(Capability::IoUring) };
    let mut bench = Bench::new();
    let mut submitter = UringSubmitter::new(&mut ring, &bench.memory);
    let (no_file, half) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    half.set_len(LENGTH / 2).unwrap();
    let pieces = [no_file.as_raw_fd(), half.as_raw_fd()].map(|fd| FileExtent { fd, offset: 0, length: LENGTH });
    let no_file = FileExtent { fd: -1, ..pieces[0] };
    for (head, piece) in (0..).zip([no_file, pieces[0], pieces[1]]) {
        assert!(submitter.queue_read(completion(head), &mut buffers(head.into()), u64::from(head) * LENGTH, &[piece]));
    }
    submitter.queue_flush(completion(3), -1);
    submitter.drain(&bench.disk, &mut bench.queue).unwrap();
    assert_eq!([0, 1, 2, 3].map(|slot| bench.status(slot)), [0, 0, 0, 1]);
    let first = |slot: u64| bench.memory.read_obj::<u16>(GuestAddress(DATA + slot * LENGTH + LENGTH - 2)).unwrap();
    assert_eq!([0, 1, 2].map(first), [0, 1, 2]);
    assert_eq!(bench.disk.counters().record().errors, 1);
}

#[test]
fn flush_error_reaches_concurrent_and_next_flush() {
    let Some(mut ring) = Ring::new() else { return skip_without(Capability::IoUring) };
    // The kernel may complete the second flush first. Then that flush was not in flight when the first one failed.
    assert!((0..1000).any(|_| flush_errors_are_shared(&mut ring)), "the flushes never completed in order");
}

/// Returns false if the kernel completed the flushes in the opposite order.
fn flush_errors_are_shared(ring: &mut Ring) -> bool {
    let mut bench = Bench::new();
    let mut submitter = UringSubmitter::new(ring, &bench.memory);
    let fd = bench.disk.begin_flush().unwrap();
    submitter.queue_flush(completion(0), -1);
    submitter.queue_flush(completion(1), fd);
    submitter.drain(&bench.disk, &mut bench.queue).unwrap();
    if bench.used() != [0, 1] {
        return false;
    }
    assert_eq!([bench.status(0), bench.status(1)], [1, 1]);
    // There was no concurrent write, so the next flush has nothing to report.
    submitter.note_write();
    assert!(submitter.take_deferred_error().is_none());

    submitter.queue_flush(completion(2), -1);
    submitter.note_write();
    submitter.drain(&bench.disk, &mut bench.queue).unwrap();
    assert_eq!(submitter.take_deferred_error().unwrap().raw_os_error(), Some(libc::EBADF));
    assert!(submitter.take_deferred_error().is_none());
    submitter.queue_flush(completion(3), fd);
    submitter.drain(&bench.disk, &mut bench.queue).unwrap();
    assert_eq!([bench.status(2), bench.status(3)], [1, 0]);
    true
}

#[test]
fn read_beyond_ring_depth_is_refused() {
    let Some(mut ring) = Ring::new() else { return skip_without(Capability::IoUring) };
    let mut bench = Bench::new();
    let mut submitter = UringSubmitter::new(&mut ring, &bench.memory);
    let piece = bench.disk.pieces(0, SECTOR).unwrap()[0];
    let many = vec![piece; ring::DEPTH + 1];
    assert!(!submitter.queue_read(completion(0), &mut buffers(0), 0, &many));
    let all: Vec<_> = (0..ring::DEPTH as u64).map(|at| FileExtent { offset: at * 64, length: 64, ..piece }).collect();
    assert!(submitter.queue_read(completion(0), &mut buffers(0), 0, &all));
    assert!(submitter.is_full());
    submitter.drain(&bench.disk, &mut bench.queue).unwrap();
    assert_eq!((bench.used(), bench.status(0)), (vec![0], 0));
}
