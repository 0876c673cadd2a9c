//! Measures the block device without a guest (`scripts/bench --device`). This process is the driver. It notifies the
//! device only on request (`EVENT_IDX`) and waits for interrupts, like Linux, and keeps `depth` requests in the queue.
//! Runs alternate between a device with io_uring and a device without it, which serves one request at a time.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use disk::disk_image;
use disk::{Disk, SECTOR};
use machine::config::{BackingFile, DiskAccess, DiskConfig, DiskFormat};
use machine::limits::rate_limiter::SharedDiskLimiter;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Advice, fadvise};
use serde_json::{Value, json};
use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress};
use vmm::fault::GuestFaults;
use vmm::irq::IrqLine;
use vmm::memory::{self, GuestMemory, MIB};
use vmm::virtio::block::{Block, DiskHandle, Ring};
use vmm::virtio::interrupt::Interrupt;
use vmm::virtio::queue::Virtqueue;
use vmm::virtio::{Activation, EVENT_IDX, VirtioDevice};
use vmm_sys_util::eventfd::EventFd;

/// Addresses of the driver's structures in guest memory.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADERS: u64 = 0x10_000;
const STATUSES: u64 = 0x20_000;
const DATA: u64 = 1 << 20;
const MEMORY_MIB: u64 = 64;
const QUEUE_SIZE: u16 = 256;

/// Descriptor flags (virtio specification, section 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Request types (section 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

/// Measure the block device and print a table
#[derive(Debug, Parser)]
struct Options {
    /// Directory for the disks, on the file system to measure
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Size of the disks in MiB
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// Time in seconds during which each run submits requests
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Number of runs per measurement; the table shows the median
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Run only the measurements whose names contain this text
    #[arg(long, default_value = "")]
    only: String,
    /// Also write the figures to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Ignored; cargo passes it to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    /// A run ends with a flush, which is included in its time.
    Write,
    /// 56 reads, 7 writes and one flush in each 64 requests.
    Mixed,
}

#[derive(Debug, Clone, Copy)]
struct Measure {
    kind: Access,
    is_random: bool,
    length: u32,
    depth: u16,
    is_cold: bool,
}

impl Measure {
    fn all() -> Vec<Measure> {
        let mut all = Vec::new();
        for (kind, is_random, length) in [
            (Access::Read, true, 4096),
            (Access::Read, true, 65_536),
            (Access::Read, false, 4096),
            (Access::Read, false, 131_072),
            (Access::Write, true, 4096),
            (Access::Write, false, 131_072),
            (Access::Mixed, true, 4096),
        ] {
            for depth in [1, 32] {
                let caches: &[bool] = if kind == Access::Write { &[true] } else { &[true, false] };
                all.extend(caches.iter().map(|&is_cold| Measure { kind, is_random, length, depth, is_cold }));
            }
        }
        all
    }

    fn name(&self, disk: &str) -> String {
        let kind = match self.kind {
            Access::Read => "read",
            Access::Write => "write and flush",
            Access::Mixed => "mixed",
        };
        let order = if self.is_random { "random" } else { "sequential" };
        let cache = if self.is_cold { "cold" } else { "warm" };
        format!("{disk}: {order} {kind}, {} KiB, depth {}, {cache}", self.length >> 10, self.depth)
    }
}

#[derive(Debug, Clone, Copy)]
struct Figures {
    per_second: f64,
    mib_per_second: f64,
    median_us: f64,
    p99_us: f64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let dir = tempfile::tempdir_in(&options.dir).context("cannot create a directory for the disks")?;
    let disks = disks(dir.path(), options.size)?;
    let mut figures = serde_json::Map::new();
    println!("{:62} {:^31} {:^31}", "", "with io_uring", "one request at a time");
    let heads = format!("{:>11} {:>9} {:>9}", "per second", "median,µs", "p99,µs");
    println!("{:62} {heads} {heads}", "");
    for disk in &disks {
        for measure in Measure::all() {
            let name = measure.name(disk.name);
            if !name.contains(&options.only) {
                continue;
            }
            let mut runs = [Vec::new(), Vec::new()];
            for _ in 0..options.runs {
                runs[0].push(disk.measure(
                    &measure,
                    Some(Ring::new().context("io_uring is not available")?),
                    &options,
                )?);
                runs[1].push(disk.measure(&measure, None, &options)?);
            }
            let [with, without] = runs.map(median);
            println!("{name:62} {with} {without}");
            figures.insert(name, json!({ "io_uring": with.json(), "one_at_a_time": without.json() }));
        }
    }
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_string_pretty(&figures)?)?;
    }
    Ok(())
}

fn median(mut runs: Vec<Figures>) -> Figures {
    runs.sort_by(|one, other| one.per_second.total_cmp(&other.per_second));
    runs[runs.len() / 2]
}

impl Figures {
    fn json(&self) -> Value {
        json!({
            "requests_per_second": self.per_second,
            "mib_per_second": self.mib_per_second,
            "median_us": self.median_us,
            "p99_us": self.p99_us,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:11.0} {:9.1} {:9.1}", self.per_second, self.median_us, self.p99_us)
    }
}

/// A disk to measure. The first file is the image to open, and the others are its backing files.
struct TestDisk {
    name: &'static str,
    files: Vec<PathBuf>,
    format: DiskFormat,
}

/// Creates a raw disk with data, a qcow2 disk with the same data, and an empty overlay with a raw backing file.
fn disks(dir: &Path, size_mib: u64) -> Result<Vec<TestDisk>> {
    let [raw, whole, base, layer] = ["raw", "qcow2", "base", "layer"].map(|name| dir.join(name));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for path in [&raw, &base] {
        let mut file = File::create_new(path)?;
        for _ in 0..size_mib {
            let chunk: Vec<u8> = (0..MIB / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            file.write_all(&chunk)?;
        }
        file.sync_all()?;
    }
    disk_image::convert(&raw, DiskFormat::Raw, &[], &whole, DiskFormat::Qcow2)?;
    disk_image::create_layer(&layer, &base, DiskFormat::Raw, None)?;
    Ok(vec![
        TestDisk { name: "raw", files: vec![raw], format: DiskFormat::Raw },
        TestDisk { name: "qcow2", files: vec![whole], format: DiskFormat::Qcow2 },
        TestDisk { name: "qcow2 overlay on raw", files: vec![layer, base], format: DiskFormat::Qcow2 },
    ])
}

impl TestDisk {
    fn measure(&self, measure: &Measure, ring: Option<Ring>, options: &Options) -> Result<Figures> {
        for path in &self.files {
            let file = File::open(path)?;
            if measure.is_cold {
                file.sync_all()?;
                fadvise(&file, 0, None, Advice::DontNeed)?;
            } else {
                std::io::copy(&mut &file, &mut std::io::sink())?;
            }
        }
        let backing = self.files[1..].iter();
        let backing = backing.map(|path| BackingFile { path: path.clone(), format: DiskFormat::Raw }).collect();
        let config = DiskConfig {
            id: "disk".into(),
            path: self.files[0].clone(),
            format: self.format,
            access: DiskAccess::ReadWrite,
            root: false,
            backing,
            was: None,
            limits: None,
        };
        let disk = Disk::open(&config, Path::new("/"))?;
        let blocks = disk.sectors() * SECTOR / u64::from(measure.length);
        let disk = DiskHandle::new(Some(disk), SharedDiskLimiter::default());
        let mut driver = Driver::new(Block::with_ring(Arc::new(disk), 0, ring))?;
        let figures = driver.run(measure, blocks, Duration::from_secs_f64(options.seconds));
        driver.device.reset();
        figures
    }
}

struct Driver {
    device: Block,
    memory: GuestMemory,
    kick: Arc<EventFd>,
    line: IrqLine,
    available: u16,
    used: u16,
    began: Vec<Instant>,
    is_flush: Vec<bool>,
}

impl Driver {
    fn new(mut device: Block) -> Result<Driver> {
        let memory = memory::allocate(MEMORY_MIB)?;
        let line = IrqLine::new()?;
        let interrupt = Arc::new(Interrupt::new(line.try_clone()?));
        let state = QueueState {
            max_size: QUEUE_SIZE,
            size: QUEUE_SIZE,
            ready: true,
            event_idx_enabled: true,
            desc_table: DESCRIPTORS,
            avail_ring: AVAILABLE,
            used_ring: USED,
            ..QueueState::default()
        };
        let kick = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let queue = Queue::try_from(state)?;
        let queue = Virtqueue::new(0, queue, memory.clone(), Arc::clone(&interrupt), Arc::clone(&kick));
        let features = device.features();
        assert_ne!(features & EVENT_IDX, 0);
        let faults = Arc::new(GuestFaults::new("bench"));
        let clock = Arc::default();
        device.activate(Activation {
            memory: memory.clone(),
            queues: vec![queue],
            interrupt,
            features,
            faults,
            clock,
        })?;
        let began = vec![Instant::now(); usize::from(QUEUE_SIZE)];
        let is_flush = vec![false; usize::from(QUEUE_SIZE)];
        Ok(Driver { device, memory, kick, line, available: 0, used: 0, began, is_flush })
    }

    fn run(&mut self, measure: &Measure, blocks: u64, at_most: Duration) -> Result<Figures> {
        let mut random = Random(u64::from(std::process::id()) << 32 | 1);
        let began = Instant::now();
        let (mut put, mut in_queue) = (0_u64, 0);
        let mut took = Vec::new();
        let mut free: Vec<u16> = (0..measure.depth).rev().collect();
        let kind_of = |put: u64| match measure.kind {
            Access::Read => IN,
            Access::Write => OUT,
            Access::Mixed if put % 64 == 63 => FLUSH,
            Access::Mixed if put % 8 == 7 => OUT,
            Access::Mixed => IN,
        };
        loop {
            let old = self.available;
            while began.elapsed() < at_most
                && let Some(slot) = free.pop()
            {
                let block = if measure.is_random { random.next() } else { put } % blocks;
                self.put(slot, kind_of(put), block * u64::from(measure.length) / SECTOR, measure.length)?;
                put += 1;
                in_queue += 1;
            }
            self.notify(old)?;
            if in_queue == 0 {
                break;
            }
            for slot in self.wait()? {
                if !self.is_flush[usize::from(slot)] {
                    took.push(self.began[usize::from(slot)].elapsed());
                }
                free.push(slot);
                in_queue -= 1;
            }
        }
        if measure.kind == Access::Write {
            let old = self.available;
            self.put(0, FLUSH, 0, 0)?;
            self.notify(old)?;
            self.wait()?;
        }
        let seconds = began.elapsed().as_secs_f64();
        took.sort();
        let at = |part: f64| took[(took.len() as f64 * part) as usize].as_secs_f64() * 1e6;
        let per_second = took.len() as f64 / seconds;
        let mib_per_second = per_second * f64::from(measure.length) / MIB as f64;
        Ok(Figures { per_second, mib_per_second, median_us: at(0.5), p99_us: at(0.99) })
    }

    /// Writes a request into `slot`, which has three descriptors, and makes it available.
    fn put(&mut self, slot: u16, kind: u32, sector: u64, length: u32) -> Result<()> {
        let header = HEADERS + 16 * u64::from(slot);
        self.memory.write_obj(u64::from(kind), GuestAddress(header))?;
        self.memory.write_obj(sector, GuestAddress(header + 8))?;
        self.memory.write_obj(0xee_u8, GuestAddress(STATUSES + u64::from(slot)))?;
        let head = slot * 3;
        let status = head + 2;
        let is_flush = kind == FLUSH;
        self.describe(head, header, 16, NEXT, if is_flush { status } else { head + 1 })?;
        let data = DATA + u64::from(slot) * u64::from(length);
        self.describe(head + 1, data, length, NEXT | if kind == IN { WRITE } else { 0 }, status)?;
        self.describe(status, STATUSES + u64::from(slot), 1, WRITE, 0)?;
        self.is_flush[usize::from(slot)] = is_flush;
        self.began[usize::from(slot)] = Instant::now();
        let place = AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE_SIZE);
        self.memory.write_obj(head, GuestAddress(place))?;
        self.available = self.available.wrapping_add(1);
        self.memory.store(self.available, GuestAddress(AVAILABLE + 2), Ordering::Release)?;
        Ok(())
    }

    fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) -> Result<()> {
        let place = DESCRIPTORS + 16 * u64::from(index);
        self.memory.write_obj(address, GuestAddress(place))?;
        let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
        Ok(self.memory.write_obj(rest, GuestAddress(place + 8))?)
    }

    /// Notifies the device if it wants a notification for a request made available since `old` (section 2.7.10).
    fn notify(&self, old: u16) -> Result<()> {
        fence(Ordering::SeqCst);
        let event: u16 = self.memory.load(GuestAddress(USED + 4 + 8 * u64::from(QUEUE_SIZE)), Ordering::Relaxed)?;
        if self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old) {
            self.kick.write(1)?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<Vec<u16>> {
        let mut slots = Vec::new();
        loop {
            let end: u16 = self.memory.load(GuestAddress(USED + 2), Ordering::Acquire)?;
            while self.used != end {
                let place = USED + 4 + 8 * u64::from(self.used % QUEUE_SIZE);
                let head: u32 = self.memory.read_obj(GuestAddress(place))?;
                let slot = (head / 3) as u16;
                let status: u8 = self.memory.read_obj(GuestAddress(STATUSES + u64::from(slot)))?;
                ensure!(status == 0, "a request failed with status {status}");
                slots.push(slot);
                self.used = self.used.wrapping_add(1);
            }
            if !slots.is_empty() {
                return Ok(slots);
            }
            // Request an interrupt for the next completion, then check again: it may have happened already.
            self.memory.store(self.used, GuestAddress(AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE)), Ordering::Relaxed)?;
            fence(Ordering::SeqCst);
            if self.memory.load::<u16>(GuestAddress(USED + 2), Ordering::Acquire)? == self.used {
                let fd = self.line.eventfd();
                // SAFETY: the eventfd is open as long as the line.
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) };
                poll(&mut [PollFd::new(&fd, PollFlags::IN)], None)?;
                let _ = self.line.eventfd().read();
            }
        }
    }
}

/// A xorshift generator, whose numbers have no pattern that a disk could exploit.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
