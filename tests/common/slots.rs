//! Disk slots without a VM. The test acts as the guest's driver: there is guest memory, but no vCPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use disk::disk_image;
use machine::config::{DiskAccess, DiskConfig, DiskFormat};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};
use vmm::bus::BusDevice;
use vmm::disk_slots::{DiskSlot, DiskSlots};
use vmm::fault::GuestFaults;
use vmm::irq::IrqLine;
use vmm::memory::{self, GuestMemory};
use vmm::virtio::block::{Block, DiskHandle};
use vmm::virtio::interrupt::status;
use vmm::virtio::mmio::MmioTransport;
use vmm::virtio::transport::Transport;
use vmm::virtio::{VERSION_1, register};

pub const MIB: u64 = 1 << 20;
const DESCRIPTORS: u64 = 0x10_0000;
const AVAILABLE: u64 = 0x11_0000;
const USED: u64 = 0x12_0000;
const HEADER: u64 = 0x20_0000;
const STATUS: u64 = 0x20_1000;
const DATA: u64 = 0x21_0000;
const QUEUE_SIZE: u16 = 16;
/// Request types and status codes of virtio-blk.
pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
const FLUSH_FEATURE: u32 = 1 << 9;
pub const OK: u8 = 0;
pub const IO_ERROR: u8 = 1;
/// The interrupt status bit for a configuration change.
pub const CONFIG_CHANGE: u32 = 2;

pub struct Bench {
    pub dir: tempfile::TempDir,
    memory: GuestMemory,
    pub slots: DiskSlots,
    transports: Vec<(Arc<Mutex<MmioTransport>>, IrqLine)>,
}

pub fn bench(count: usize) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let memory = memory::allocate(64).unwrap();
    let (mut slots, mut transports) = (Vec::new(), Vec::new());
    for index in 0..count {
        let disk = Arc::new(DiskHandle::default());
        let line = IrqLine::new().unwrap();
        let device = Box::new(Block::new(Arc::clone(&disk), index));
        let faults = Arc::new(GuestFaults::new("block"));
        let transport = MmioTransport::new(device, memory.clone(), line.try_clone().unwrap(), faults).unwrap();
        slots.push(DiskSlot { disk, interrupt: Arc::clone(transport.interrupt()) });
        transports.push((Arc::new(Mutex::new(transport)), line));
    }
    let slots = DiskSlots::new(slots, dir.path());
    Bench { dir, memory, slots, transports }
}

impl Bench {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn disk(&self, name: &str, format: DiskFormat, size: u64) -> DiskConfig {
        disk_image::create(&self.path(name), format, size).unwrap();
        DiskConfig::new(name, self.path(name), format, DiskAccess::ReadWrite)
    }

    pub fn driver(&self, slot: usize) -> Driver {
        let (transport, line) = &self.transports[slot];
        let (transport, line) = (Arc::clone(transport), line.try_clone().unwrap());
        Driver { memory: self.memory.clone(), transport, line, available: 0 }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.transports.iter().for_each(|(transport, _)| transport.lock().unwrap().shut_down());
    }
}

pub struct Driver {
    memory: GuestMemory,
    pub transport: Arc<Mutex<MmioTransport>>,
    line: IrqLine,
    available: u16,
}

impl Driver {
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.lock().unwrap().read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.transport.lock().unwrap().write(offset, &value.to_le_bytes());
    }

    pub fn sectors(&self) -> u64 {
        u64::from(self.read(register::CONFIG)) | u64::from(self.read(register::CONFIG + 4)) << 32
    }

    /// Initializes the device. Returns false if the device rejects the features, as an empty slot does.
    pub fn bind(&mut self) -> bool {
        use status::*;
        self.unbind();
        self.write(register::STATUS, ACKNOWLEDGE | DRIVER);
        // Accept flushes if the device offers them. Otherwise each write is durable when it completes.
        self.write(register::DEVICE_FEATURES_SEL, 0);
        self.write(register::DRIVER_FEATURES_SEL, 0);
        self.write(register::DRIVER_FEATURES, self.read(register::DEVICE_FEATURES) & FLUSH_FEATURE);
        self.write(register::DRIVER_FEATURES_SEL, 1);
        self.write(register::DRIVER_FEATURES, (VERSION_1 >> 32) as u32);
        self.write(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.read(register::STATUS) & FEATURES_OK == 0 {
            return false;
        }
        self.memory.write_slice(&[0; 256], GuestAddress(AVAILABLE)).unwrap();
        self.memory.write_slice(&[0; 256], GuestAddress(USED)).unwrap();
        self.available = 0;
        self.write(register::QUEUE_NUM, QUEUE_SIZE.into());
        self.write(register::QUEUE_DESC_LOW, DESCRIPTORS as u32);
        self.write(register::QUEUE_DRIVER_LOW, AVAILABLE as u32);
        self.write(register::QUEUE_DEVICE_LOW, USED as u32);
        self.write(register::QUEUE_READY, 1);
        self.write(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        true
    }

    pub fn unbind(&self) {
        self.write(register::STATUS, 0);
    }

    pub fn request(&mut self, kind: u32, sector: u64, data: &mut [u8]) -> u8 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
        self.memory.write_slice(data, GuestAddress(DATA)).unwrap();
        self.memory.write_obj(0xee_u8, GuestAddress(STATUS)).unwrap();
        let written = if kind == IN { 2 } else { 0 };
        self.descriptor(0, HEADER, 16, 1, if data.is_empty() { 2 } else { 1 });
        self.descriptor(1, DATA, data.len() as u32, 1 | written, 2);
        self.descriptor(2, STATUS, 1, 2, 0);
        let ring = AVAILABLE + 4 + u64::from(self.available % QUEUE_SIZE) * 2;
        self.memory.write_obj(0_u16, GuestAddress(ring)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.store(self.available, GuestAddress(AVAILABLE + 2), Ordering::Release).unwrap();
        self.write(register::QUEUE_NOTIFY, 0);
        while self.memory.load::<u16>(GuestAddress(USED + 2), Ordering::Acquire).unwrap() != self.available {
            self.wait_for_interrupt();
        }
        self.memory.read_slice(data, GuestAddress(DATA)).unwrap();
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn descriptor(&self, index: u64, address: u64, length: u32, flags: u16, next: u16) {
        let at = |offset| GuestAddress(DESCRIPTORS + index * 16 + offset);
        self.memory.write_obj(address, at(0)).unwrap();
        self.memory.write_obj(length, at(8)).unwrap();
        self.memory.write_obj(flags, at(12)).unwrap();
        self.memory.write_obj(next, at(14)).unwrap();
    }

    pub fn wait_for_interrupt(&self) {
        let deadline = Timespec { tv_sec: 60, tv_nsec: 0 };
        // SAFETY: the eventfd belongs to the interrupt line, which outlives this borrow.
        let event =
            unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(self.line.eventfd())) };
        assert_ne!(poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&deadline)).unwrap(), 0, "no interrupt");
        self.line.eventfd().read().unwrap();
        self.write(register::INTERRUPT_ACK, self.read(register::INTERRUPT_STATUS) & !CONFIG_CHANGE);
    }
}

pub fn check(path: &Path) {
    let output = Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(path)
        .output()
        .unwrap_or_else(|error| panic!("cannot run qemu-img (Debian package qemu-utils): {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
