use std::time::{Duration, Instant};

use super::request::BlockRequest;
use super::submitter::{CacheMode, Submitter, SyncSubmitter, Target};
use super::*;
use crate::fault::GuestFaults;
use crate::irq::IrqLine;
use crate::memory::{self, GuestMemory};
use crate::virtio::interrupt::{Interrupt, status};
use crate::virtio::queue::tests::{NEXT, WRITE, queue_with};
use crate::virtio::queue::{self, Virtqueue};
use disk::{Disk, open_to_read};
use imago::FormatCreateBuilder;
use machine::config::{DiskAccess, DiskConfig, DiskFormat};
use machine::limits::rate_limiter::SharedDiskLimiter;
use machine::limits::{DiskLimits, Rate};
use machine::timeline::monotonic_ns;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const HEADER_AT: u64 = 0x10_0000;
const DATA_AT: u64 = 0x20_0000;
const STATUS_AT: u64 = 0x30_0000;
const RING_AT: u64 = 0x100;

struct Bench {
    dir: tempfile::TempDir,
    memory: GuestMemory,
    disk: Disk,
}

fn bench(access: DiskAccess) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let content: Vec<u8> = (0..64 * 512_u32).map(|n| (n / 512) as u8).collect();
    std::fs::write(&path, content).unwrap();
    let config = DiskConfig::new("an-id", path, DiskFormat::Raw, access);
    let disk = Disk::open(&config, dir.path()).unwrap();
    Bench { dir, memory: memory::allocate(64).unwrap(), disk }
}

impl Bench {
    /// Executes a request and returns its status. `flags` sets the direction of the data.
    fn request(&mut self, kind: u32, sector: u64, length: u32, flags: u16) -> u8 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write_slice(&header, GuestAddress(HEADER_AT)).unwrap();
        self.memory.write_obj(0xee_u8, GuestAddress(STATUS_AT)).unwrap();
        let mut descriptors = vec![(HEADER_AT, 16, NEXT, 1)];
        if length > 0 {
            descriptors.push((DATA_AT, length, NEXT | flags, 2));
        }
        descriptors.push((STATUS_AT, 1, WRITE, 0));
        let mut queue = queue_with(&self.memory, &descriptors, &[0]);
        let chain = queue.pop().unwrap().unwrap();
        let request = BlockRequest::parse(&self.memory, 0, chain).unwrap();
        self.submit(request, &mut queue);
        self.memory.read_obj(GuestAddress(STATUS_AT)).unwrap()
    }

    fn submit(&mut self, request: BlockRequest, queue: &mut Virtqueue) {
        let faults = GuestFaults::new("test");
        let (memory, disk, cache) = (&self.memory, &mut self.disk, CacheMode::WriteBack);
        SyncSubmitter.submit(request, &mut Target { memory, disk, queue, cache, faults: &faults }).unwrap();
    }

    fn data(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(DATA_AT)).unwrap();
        bytes
    }
}

#[test]
fn reads_and_writes_move_whole_sectors() {
    let mut bench = bench(DiskAccess::ReadWrite);
    assert_eq!(bench.request(0, 3, 1024, WRITE), 0);
    assert_eq!(bench.data(1024), [[3; 512], [4; 512]].concat());
    bench.memory.write_slice(&[0xab; 512], GuestAddress(DATA_AT)).unwrap();
    assert_eq!(bench.request(1, 63, 512, 0), 0);
    assert_eq!(bench.request(4, 0, 0, 0), 0);
    let file = std::fs::read(bench.dir.path().join("disk")).unwrap();
    assert_eq!(file[63 * 512..], [0xab; 512]);
}

#[test]
fn requests_beyond_the_disk_fail_and_write_nothing() {
    let mut bench = bench(DiskAccess::ReadWrite);
    for (kind, sector, length, flags) in
        [(0, 64, 512, WRITE), (0, 63, 1024, WRITE), (1, u64::MAX, 512, 0), (1, 0, 100, 0)]
    {
        assert_eq!(bench.request(kind, sector, length, flags), 1, "kind {kind}, sector {sector}");
    }
    assert_eq!(std::fs::metadata(bench.dir.path().join("disk")).unwrap().len(), 64 * 512);
}

#[test]
fn read_only_disk_refuses_writes() {
    let mut bench = bench(DiskAccess::ReadOnly);
    assert_eq!(bench.request(1, 0, 512, 0), 1);
    assert_eq!(bench.request(11, 0, 16, 0), 1);
    assert_eq!(bench.request(0, 0, 512, WRITE), 0);
}

#[test]
fn get_id_returns_disk_id() {
    let mut bench = bench(DiskAccess::ReadOnly);
    assert_eq!(bench.request(8, 0, 20, WRITE), 0);
    assert_eq!(&bench.data(20)[..6], b"an-id\0");
}

#[test]
fn unknown_requests_are_unsupported() {
    assert_eq!(bench(DiskAccess::ReadOnly).request(99, 0, 0, 0), 2);
}

#[test]
fn ranges_are_zeroed_and_checked() {
    let mut bench = bench(DiskAccess::ReadWrite);
    let range = |sector: u64, count: u32, flags: u32| {
        [sector.to_le_bytes().to_vec(), count.to_le_bytes().to_vec(), flags.to_le_bytes().to_vec()].concat()
    };
    let cases = [(range(2, 2, 0), 0), (range(2, 2, 8), 2), (range(63, 2, 0), 1), (range(u64::MAX, 1, 0), 1)];
    for (bytes, expected) in cases {
        bench.memory.write_slice(&bytes, GuestAddress(DATA_AT)).unwrap();
        assert_eq!(bench.request(13, 0, 16, 0), expected);
    }
    assert_eq!(bench.request(0, 1, 2048, WRITE), 0);
    assert_eq!(bench.data(2048), [[1; 512], [0; 512], [0; 512], [4; 512]].concat());
}

#[test]
fn invalid_ring_needs_reset_and_ends_thread() {
    let Bench { dir: _dir, memory, disk } = bench(DiskAccess::ReadWrite);
    let interrupt = Arc::new(Interrupt::new(IrqLine::new().unwrap()));
    let faults = Arc::new(GuestFaults::new("test"));
    let mut device = Block::new(Arc::new(DiskHandle::new(Some(disk), SharedDiskLimiter::default())), 0);
    let activation = Activation {
        memory: memory.clone(),
        queues: vec![queue_with(&memory, &[(HEADER_AT, 16, NEXT, 0)], &[0])],
        interrupt: Arc::clone(&interrupt),
        features: VERSION_1,
        faults: Arc::clone(&faults),
        clock: Arc::default(),
    };
    device.activate(activation).unwrap();
    device.worker.take().unwrap().join_for_test();
    assert_eq!(faults.count(), 1);
    assert_ne!(interrupt.device_status() & status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn endless_reads_into_own_ring_do_not_block_pause() {
    // Sector n holds the header of a request for sector n + 1, and the ring index that makes it available.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let sector = |number: u16| {
        let mut bytes = [0; 512];
        bytes[8..10].copy_from_slice(&number.wrapping_add(1).to_le_bytes());
        bytes[18..20].copy_from_slice(&number.wrapping_add(2).to_le_bytes());
        bytes
    };
    std::fs::write(&path, (0..=u16::MAX).flat_map(sector).collect::<Vec<u8>>()).unwrap();
    let access = DiskAccess::ReadOnly;
    let config = DiskConfig::new("an-id", path, DiskFormat::Raw, access);
    let disk = Disk::open(&config, dir.path()).unwrap();
    let memory = memory::allocate(64).unwrap();
    let descriptors = [
        (HEADER_AT, 16, NEXT, 1),
        (HEADER_AT, 16, NEXT | WRITE, 2),
        (RING_AT, 4, NEXT | WRITE, 3),
        (DATA_AT, 492, NEXT | WRITE, 4),
        (STATUS_AT, 1, WRITE, 0),
    ];
    let activation = Activation {
        memory: memory.clone(),
        queues: vec![queue_with(&memory, &descriptors, &[0])],
        interrupt: Arc::new(Interrupt::new(IrqLine::new().unwrap())),
        features: VERSION_1,
        faults: Arc::new(GuestFaults::new("test")),
        clock: Arc::default(),
    };
    let mut device = Block::new(Arc::new(DiskHandle::new(Some(disk), SharedDiskLimiter::default())), 0);
    device.activate(activation).unwrap();
    for _ in 0..4 {
        let [state] = device.pause()[..] else { panic!("the device is not active") };
        let index: u16 = memory.read_obj(GuestAddress(RING_AT + 2)).unwrap();
        assert_eq!(index, state.next_avail.wrapping_add(1), "each request makes one more available");
        device.resume().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn arbitrary_requests_are_answered_or_refused(
        header in any::<[u8; 16]>(),
        kind in prop_oneof![Just(0_u32), Just(1), Just(4), Just(8), Just(11), Just(13), any::<u32>()],
        sector in prop_oneof![0_u64..70, any::<u64>()],
        lengths in proptest::collection::vec((1_u32..2000, any::<bool>()), 1..6),
    ) {
        let mut bench = bench(DiskAccess::Ephemeral);
        let mut header = header;
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        bench.memory.write_slice(&header, GuestAddress(HEADER_AT)).unwrap();
        let count = lengths.len() as u16;
        let mut descriptors = vec![(HEADER_AT, 16, NEXT, 1)];
        descriptors.extend(lengths.iter().enumerate().map(|(index, (length, write))| {
            let index = index as u16 + 1;
            let flags = if *write { WRITE } else { 0 } | if index < count { NEXT } else { 0 };
            (DATA_AT + u64::from(index) * 0x1000, *length, flags, index + 1)
        }));
        let mut queue = queue_with(&bench.memory, &descriptors, &[0]);
        let used = queue.state().used_ring;
        let Ok(Some(chain)) = queue.pop() else { return Ok(()) };
        let writable = queue::total_length(&chain.writable);
        if let Ok(request) = BlockRequest::parse(&bench.memory, 0, chain) {
            bench.submit(request, &mut queue);
            prop_assert_eq!(bench.memory.read_obj::<u16>(GuestAddress(used + 2)).unwrap(), 1);
            let written: u32 = bench.memory.read_obj(GuestAddress(used + 8)).unwrap();
            prop_assert!(u64::from(written) <= writable);
        }
    }
}

#[test]
fn throttled_requests_wait_in_ring_without_blocking_pause() {
    let Bench { dir: _dir, memory, disk } = bench(DiskAccess::ReadWrite);
    // At one byte per second, the first request passes. The next one would have to wait for over 15 minutes.
    let limits = DiskLimits { bytes: Some(Rate::constant(1)), ..DiskLimits::default() };
    let handle = Arc::new(DiskHandle::new(Some(disk), SharedDiskLimiter::new(Some(limits), monotonic_ns())));
    handle.borrow().limit(Some(DiskLimits::default()));
    let mut header = [0; 16];
    header[8] = 1;
    memory.write_slice(&header, GuestAddress(HEADER_AT)).unwrap();
    let request = |first: u16| {
        [(HEADER_AT, 16, NEXT, first + 1), (DATA_AT, 1024, NEXT | WRITE, first + 2), (STATUS_AT, 1, WRITE, 0)]
    };
    let queue = queue_with(&memory, &[request(0), request(3)].concat(), &[0, 3]);
    let used = GuestAddress(queue.state().used_ring + 2);
    let wait_for = |count: u16| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while memory.read_obj::<u16>(used).unwrap() != count {
            assert!(Instant::now() < deadline, "request {count} did not complete");
            std::thread::yield_now();
        }
    };
    let interrupt = Arc::new(Interrupt::new(IrqLine::new().unwrap()));
    let faults = Arc::new(GuestFaults::new("test"));
    let clock = Arc::default();
    let activation =
        Activation { memory: memory.clone(), queues: vec![queue], interrupt, features: VERSION_1, faults, clock };
    let mut device = Block::new(Arc::clone(&handle), 0);
    device.activate(activation).unwrap();
    wait_for(1);
    assert_eq!(device.pause()[0].next_avail, 1, "the throttled request was taken from the queue");
    assert!(wait_ns(&handle) > 900_000_000_000);
    device.resume().unwrap();
    assert_eq!(device.pause()[0].next_avail, 1, "resume took the throttled request from the queue");
    device.reset();

    // A disk's own limit throttles it like the VM's limit. A changed limit ends the wait of the thread.
    let Bench { dir: _other, disk, .. } = bench(DiskAccess::ReadWrite);
    let handle = Arc::new(DiskHandle::new(Some(disk), SharedDiskLimiter::default()));
    handle.borrow().limit(Some(limits));
    memory.write_obj(0_u16, used).unwrap();
    let queue = queue_with(&memory, &[request(0), request(3)].concat(), &[0, 3]);
    let interrupt = Arc::new(Interrupt::new(IrqLine::new().unwrap()));
    let faults = Arc::new(GuestFaults::new("test"));
    let clock = Arc::default();
    let activation =
        Activation { memory: memory.clone(), queues: vec![queue], interrupt, features: VERSION_1, faults, clock };
    let mut device = Block::new(Arc::clone(&handle), 0);
    device.activate(activation).unwrap();
    wait_for(1);
    assert!(wait_ns(&handle) > 900_000_000_000);
    assert_eq!(handle.info().unwrap().limits, Some(limits));
    handle.borrow().limit(None);
    assert_eq!(handle.info().unwrap().burst_percent(), None);
    wait_for(2);
    assert_eq!(wait_ns(&handle), 0);
}

fn wait_ns(handle: &DiskHandle) -> u64 {
    handle.borrow().attached().as_mut().unwrap().throttle.wait_ns()
}

/// Writes the first sector of a qcow2 disk through a device with these features, without a flush. Returns the sector
/// from a copy of the image file, made when the write completed.
fn file_after_write(features: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let [path, copy] = ["disk", "copy"].map(|name| dir.path().join(name));
    let file = imago::file::File::try_from(std::fs::File::create_new(&path).unwrap()).unwrap();
    let builder = imago::qcow2::Qcow2::<imago::file::File>::create_builder(file).size(1 << 20);
    builder.create().unwrap();
    let config = DiskConfig::new("disk", path.clone(), DiskFormat::Qcow2, DiskAccess::ReadWrite);
    let disk = Disk::open(&config, dir.path()).unwrap();
    let memory = memory::allocate(64).unwrap();
    memory.write_slice(&[0xab; 512], GuestAddress(DATA_AT)).unwrap();
    let mut header = [0; 16];
    header[0] = 1;
    memory.write_slice(&header, GuestAddress(HEADER_AT)).unwrap();
    let request = [(HEADER_AT, 16, NEXT, 1), (DATA_AT, 512, NEXT, 2), (STATUS_AT, 1, WRITE, 0)];
    let queue = queue_with(&memory, &request, &[0]);
    let used = GuestAddress(queue.state().used_ring + 2);
    let interrupt = Arc::new(Interrupt::new(IrqLine::new().unwrap()));
    let faults = Arc::new(GuestFaults::new("test"));
    let clock = Arc::default();
    let activation = Activation { memory: memory.clone(), queues: vec![queue], interrupt, features, faults, clock };
    let mut device = Block::new(Arc::new(DiskHandle::new(Some(disk), SharedDiskLimiter::default())), 0);
    device.activate(activation).unwrap();
    // The device's thread serves its queue at least once before it pauses.
    device.pause();
    assert_eq!(memory.read_obj::<u16>(used).unwrap(), 1, "the write did not complete");
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), 0);
    // The copy has the state that a power cut would leave.
    std::fs::copy(&path, &copy).unwrap();
    let image = open_to_read(&copy, DiskFormat::Qcow2, &[]).unwrap();
    let mut bytes = vec![0; 512];
    image.read(bytes.as_mut_slice(), 0).unwrap();
    bytes
}

#[test]
fn write_without_flush_feature_is_durable_on_completion() {
    assert_eq!(file_after_write(VERSION_1), [0xab; 512]);
    // This driver can send flushes, so the image's tables are not written before one.
    assert_eq!(file_after_write(VERSION_1 | feature::FLUSH), [0; 512]);
}
