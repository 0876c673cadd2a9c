//! Fuzz targets for virtio devices: a driver that writes arbitrary data into rings, buffers and registers.
//!
//! A device's thread serves its queues at least once after every resume, and is idle after every pause, so each input
//! has a deterministic result.

use std::sync::Arc;

use arbitrary::Unstructured;
use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::block::{Block, DiskHandle};
use super::interrupt::{Interrupt, status};
use super::mmio::MmioTransport;
use super::queue::Virtqueue;
use super::rng::Rng;
use super::transport::{Transport, TransportState};
use super::{Activation, EVENT_IDX, INDIRECT_DESC, VirtioDevice};
use crate::bus::BusDevice;
use crate::fault::GuestFaults;
use crate::irq::IrqLine;
use crate::memory::GuestMemory;

/// Memory size. An input can write only to the first 64 KiB, but place buffers anywhere.
const MEMORY: usize = 1 << 20;
/// The size of each queue. Its available ring is at offset 0x100, and its used ring at 0x200.
const SIZE: u16 = 16;
const RINGS: u64 = 0x400;

pub fn rng(data: &[u8]) {
    drive(&mut Rng::default(), data, &mut |_| {});
}

pub fn registers(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let memory = memory();
    let mut devices = [
        transport(Box::new(Rng::default()), &memory),
        transport(Box::new(Block::new(Arc::new(DiskHandle::default()), 0)), &memory),
    ];
    let mut access = |input: &mut Unstructured| {
        let [which, offset]: [u8; 2] = input.arbitrary()?;
        let width = 1 + usize::from(which >> 2 & 7);
        let offset = u64::from(offset) << (which >> 5 & 2);
        let device = &mut devices[usize::from(which & 1)];
        if which & 2 == 0 {
            device.read(offset, &mut [0xff; 8][..width]);
            return Ok(());
        }
        if which & 0x80 != 0 {
            return write_memory(input, &memory);
        }
        // Half of the writes are aligned words, like those of a real driver.
        let value: [u8; 8] = input.arbitrary::<u32>().map(|value| u64::from(value).to_le_bytes())?;
        let (offset, width) = if which & 0x10 == 0 { (offset & !3, 4) } else { (offset, width) };
        device.write(offset, &value[..width]);
        arbitrary::Result::Ok(())
    };
    while !input.is_empty() && access(&mut input).is_ok() {}
    devices.iter_mut().for_each(MmioTransport::shut_down);
}

pub fn restore(state: &TransportState) {
    let memory = memory();
    let mut device = transport(Box::new(Rng::default()), &memory);
    if device.restore(state).is_ok() {
        device.write(super::register::QUEUE_NOTIFY, &[0; 4]);
        device.pause();
        device.resume();
    }
    device.shut_down();
}

fn transport(device: Box<dyn VirtioDevice>, memory: &GuestMemory) -> MmioTransport {
    let line = IrqLine::new().expect("out of file descriptors");
    let faults = Arc::new(GuestFaults::new("fuzzed"));
    MmioTransport::new(device, memory.clone(), line, faults).expect("out of file descriptors")
}

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("cannot map guest memory")
}

/// Executes the actions in `data`: write to guest memory, serve the queues, call `host` to act as the host's side, or
/// reset the device.
pub(super) fn drive(device: &mut dyn VirtioDevice, data: &[u8], host: &mut dyn FnMut(&[u8])) {
    let mut input = Unstructured::new(data);
    let mut driver = Driver { memory: memory(), taken: input.arbitrary().unwrap_or(0), device };
    let mut faults = driver.activate();
    let mut act = |input: &mut Unstructured| {
        match input.arbitrary::<u8>()? % 8 {
            0..=4 => return write_memory(input, &driver.memory),
            5 => host(some_bytes(input)?),
            6 => {}
            _ => {
                driver.device.reset();
                faults = driver.activate();
                return Ok(());
            }
        }
        driver.serve(&mut faults);
        arbitrary::Result::Ok(())
    };
    while !input.is_empty() && act(&mut input).is_ok() {}
    driver.serve(&mut faults);
    driver.device.reset();
}

/// Takes a length byte and up to that many bytes.
fn some_bytes<'a>(input: &mut Unstructured<'a>) -> arbitrary::Result<&'a [u8]> {
    let length = usize::from(input.arbitrary::<u8>()?).min(input.len());
    input.bytes(length)
}

fn write_memory(input: &mut Unstructured, memory: &GuestMemory) -> arbitrary::Result<()> {
    let address = input.arbitrary::<u16>()?;
    let _ = memory.write_slice(some_bytes(input)?, GuestAddress(address.into()));
    Ok(())
}

struct Driver<'a> {
    memory: GuestMemory,
    /// Bits that select the features to accept.
    taken: u8,
    device: &'a mut dyn VirtioDevice,
}

impl Driver<'_> {
    fn activate(&mut self) -> Arc<Interrupt> {
        let interrupt = Arc::new(Interrupt::new(IrqLine::new().expect("out of file descriptors")));
        let mut features = self.device.features();
        for (bit, feature) in [(1, EVENT_IDX), (2, INDIRECT_DESC), (4, 1 << 15)] {
            features &= if self.taken & bit == 0 { !feature } else { u64::MAX };
        }
        let queue = |(index, max_size): (usize, &u16)| {
            let start = index as u64 * RINGS;
            let state = QueueState {
                max_size: *max_size,
                size: SIZE,
                ready: true,
                event_idx_enabled: features & EVENT_IDX != 0,
                desc_table: start,
                avail_ring: start + 0x100,
                used_ring: start + 0x200,
                ..QueueState::default()
            };
            let queue = Queue::try_from(state).expect("the queue state is invalid");
            let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("out of file descriptors");
            Virtqueue::new(index, queue, self.memory.clone(), Arc::clone(&interrupt), Arc::new(kick))
        };
        let activation = Activation {
            memory: self.memory.clone(),
            queues: self.device.queue_sizes().iter().enumerate().map(queue).collect(),
            interrupt: Arc::clone(&interrupt),
            features,
            faults: Arc::new(GuestFaults::new("fuzzed")),
            clock: Arc::default(),
        };
        self.device.activate(activation).expect("out of threads or file descriptors");
        interrupt
    }

    fn serve(&mut self, interrupt: &mut Arc<Interrupt>) {
        assert!(!self.device.pause().is_empty(), "the device's thread panicked");
        self.device.resume().expect("out of threads");
        assert!(!self.device.pause().is_empty(), "the device's thread panicked");
        if interrupt.device_status() & status::DEVICE_NEEDS_RESET != 0 {
            self.device.reset();
            *interrupt = self.activate();
        } else {
            self.device.resume().expect("out of threads");
        }
    }
}
