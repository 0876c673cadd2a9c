//! The MMIO transport (specification, section 4.2): a device's registers, status and notifications.
//!
//! vCPUs access the registers under the device's bus lock. The device's thread changes only those in [`Interrupt`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::{Interrupt, status};
use super::queue::Virtqueue;
use super::{Activation, QueueState, VirtioDevice, register};
use crate::bus::BusDevice;
use crate::cpu::time::ThreadClock;
use crate::fault::GuestFaults;
use crate::irq::IrqLine;
use crate::memory::GuestMemory;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Guest physical address of the first register.
    pub address: u64,
    /// Input pin of the I/O APIC.
    pub irq: u32,
}

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// "WISP" in ASCII. Linux only shows it in sysfs.
const VENDOR: u32 = u32::from_le_bytes(*b"WISP");

/// The driver must accept this feature.
pub const VERSION_1: u64 = 1 << 32;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TransportState {
    device_type: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: usize,
    activated: bool,
    interrupt_status: u32,
    device_status: u32,
    config_generation: u32,
    queues: Vec<SavedQueue>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct SavedQueue(#[serde(with = "QueueFields")] QueueState);

#[derive(Serialize, Deserialize)]
#[serde(remote = "QueueState")]
struct QueueFields {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

#[derive(Debug)]
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    faults: Arc<GuestFaults>,
    clock: Arc<ThreadClock>,
    queues: Vec<Queue>,
    kicks: Vec<Arc<EventFd>>,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: usize,
    activated: bool,
}

impl MmioTransport {
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        line: IrqLine,
        faults: Arc<GuestFaults>,
    ) -> std::io::Result<MmioTransport> {
        let sizes = device.queue_sizes();
        let queues = sizes.iter().map(|size| Queue::new(*size).expect("queue sizes are powers of two")).collect();
        let kick = |_| Ok(Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?));
        let kicks = sizes.iter().map(kick).collect::<std::io::Result<_>>()?;
        Ok(MmioTransport {
            device,
            memory,
            interrupt: Arc::new(Interrupt::new(line)),
            faults,
            clock: Arc::default(),
            queues,
            kicks,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            activated: false,
        })
    }

    /// Returns the queues' notification eventfds in queue order, for registration with KVM.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    pub fn clock(&self) -> &Arc<ThreadClock> {
        &self.clock
    }

    /// Stops the device permanently. On return, its thread has ended, and a block device has tried to flush its disk.
    pub fn shut_down(&mut self) {
        self.device.reset();
    }

    /// Makes the device finish its work in progress and stop, and returns its state. The vCPUs must be paused already.
    pub fn pause(&mut self) -> TransportState {
        let live = if self.activated { self.device.pause() } else { Vec::new() };
        let queues = if live.is_empty() { self.queues.iter().map(Queue::state).collect() } else { live };
        TransportState {
            device_type: self.device.device_type(),
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            activated: self.activated,
            interrupt_status: self.interrupt.status.load(Ordering::SeqCst),
            device_status: self.status(),
            config_generation: self.interrupt.config_generation.load(Ordering::SeqCst),
            queues: queues.into_iter().map(SavedQueue).collect(),
        }
    }

    pub fn resume(&mut self) {
        if self.activated
            && let Err(error) = self.device.resume()
        {
            log::error!("{error}");
            self.interrupt.need_reset();
        }
    }

    /// Restores the state of a paused device. Fails if this device's type or queues differ, or a queue is invalid.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), String> {
        if state.device_type != self.device.device_type() || state.queues.len() != self.queues.len() {
            return Err(format!(
                "the snapshot has a device of type {} where this machine has a different device",
                state.device_type
            ));
        }
        for (queue, SavedQueue(saved)) in self.queues.iter_mut().zip(&state.queues) {
            if saved.max_size != queue.max_size() {
                return Err(format!(
                    "the snapshot has a queue with the maximum size {} instead of {}",
                    saved.max_size,
                    queue.max_size()
                ));
            }
            *queue = Queue::try_from(*saved).map_err(|error| error.to_string())?;
        }
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.interrupt.status.store(state.interrupt_status, Ordering::SeqCst);
        self.interrupt.config_generation.store(state.config_generation, Ordering::SeqCst);
        self.interrupt.device_status.store(state.device_status, Ordering::SeqCst);
        if state.activated {
            self.activate();
        }
        // KVM injects interrupts asynchronously, so the snapshot may lack the last one. A spurious one is harmless.
        if state.interrupt_status != 0 {
            self.interrupt.repeat();
        }
        Ok(())
    }

    fn status(&self) -> u32 {
        self.interrupt.device_status()
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.queue_select);
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device.device_type(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(self.device.features(), self.device_features_select),
            register::QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => queue.map_or(0, |queue| queue.ready().into()),
            register::INTERRUPT_STATUS => self.interrupt.status.load(Ordering::SeqCst),
            register::STATUS => self.status(),
            register::CONFIG_GENERATION => self.interrupt.config_generation.load(Ordering::Acquire),
            // There is no shared memory region: length and base read as -1 (section 4.2.2).
            register::SHM_SEL..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_select = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_select = value,
            register::DRIVER_FEATURES => self.take_features(value),
            register::QUEUE_SEL => self.queue_select = value as usize,
            register::QUEUE_NOTIFY => self.notify(value as usize),
            register::INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            register::STATUS => self.set_status(value),
            register::QUEUE_NUM..=register::QUEUE_DEVICE_HIGH => self.set_up_queue(offset, value),
            _ => {}
        }
    }

    fn take_features(&mut self, value: u32) {
        if self.status() & (status::FEATURES_OK | status::DRIVER) != status::DRIVER {
            return self.faults.record(&"feature bits were written outside of feature negotiation");
        }
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// Writes a register of the selected queue. This is valid only between `FEATURES_OK` and `DRIVER_OK` (section
    /// 3.1.1). While the queue is ready, only `QUEUE_READY` can be written.
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        if self.status() & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK {
            return self.faults.record(&"a queue register was written outside of device initialization");
        }
        let Some(queue) = self.queues.get_mut(self.queue_select) else {
            return self.faults.record(&"a register of a nonexistent queue was written");
        };
        if queue.ready() && offset != register::QUEUE_READY {
            return self.faults.record(&"a register of a ready queue was written");
        }
        match offset {
            register::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_READY => queue.set_ready(value == 1),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// Kicks the device's thread for a notification that KVM did not handle in the kernel.
    fn notify(&mut self, queue: usize) {
        if !self.activated || self.status() & status::DEVICE_NEEDS_RESET != 0 {
            return;
        }
        if let Some(kick) = self.kicks.get(queue) {
            // The write fails only if the counter is full, and then the thread wakes up anyway.
            let _ = kick.write(1);
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let before = self.status();
        // The driver may only set bits (section 2.1.1), and `DEVICE_NEEDS_RESET` belongs to the device.
        if before & !status::DEVICE_NEEDS_RESET & !value != 0 {
            return self.faults.record(&"a status bit was cleared without a reset");
        }
        let mut after = value & !status::DEVICE_NEEDS_RESET | before & status::DEVICE_NEEDS_RESET;
        let added = after & !before;
        if added & status::FEATURES_OK != 0 && !self.features_are_acceptable() {
            // The driver reads the status back and sees that the bit is not set (section 3.1.1, step 6).
            self.faults.record(&"the driver accepted a feature that was not offered, or rejected VIRTIO_F_VERSION_1");
            after &= !status::FEATURES_OK;
        }
        self.interrupt.device_status.fetch_or(after, Ordering::AcqRel);
        if added & status::DRIVER_OK != 0 && after & status::FEATURES_OK != 0 && !self.activated {
            self.activate();
        }
    }

    fn features_are_acceptable(&self) -> bool {
        self.driver_features & !self.device.features() == 0 && self.driver_features & VERSION_1 != 0
    }

    fn activate(&mut self) {
        let event_idx = self.driver_features & EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.set_event_idx(event_idx);
            if queue.ready() && !queue.is_valid(&self.memory) {
                self.faults.record(&format!("the rings of queue {index} are not within guest memory"));
                return self.interrupt.need_reset();
            }
            let own = Queue::try_from(queue.state()).expect("the state of a valid queue is valid");
            let interrupt = Arc::clone(&self.interrupt);
            queues.push(Virtqueue::new(index, own, self.memory.clone(), interrupt, Arc::clone(&self.kicks[index])));
        }
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: Arc::clone(&self.interrupt),
            features: self.driver_features,
            faults: Arc::clone(&self.faults),
            clock: Arc::clone(&self.clock),
        };
        match self.device.activate(activation) {
            Ok(()) => self.activated = true,
            Err(error) => {
                log::error!("{error}");
                self.interrupt.need_reset();
            }
        }
    }

    fn reset(&mut self) {
        if self.activated {
            self.device.reset();
        }
        self.activated = false;
        self.queues.iter_mut().for_each(QueueT::reset);
        // Discard notifications from before the reset: they are not for the new queues.
        self.kicks.iter().for_each(|kick| drop(kick.read()));
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.interrupt.status.store(0, Ordering::SeqCst);
        self.interrupt.device_status.store(0, Ordering::Release);
    }
}

/// Returns the low (0) or high (1) half of `value`. Other selectors read as 0 (section 4.2.2).
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= register::CONFIG {
            data.fill(0);
            self.device.read_config(offset - register::CONFIG, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        } else {
            self.faults.record(&"a register was read with the wrong width or alignment");
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            self.device.write_config(offset - register::CONFIG, data);
        } else if let (Ok(bytes), 0) = (<[u8; 4]>::try_from(data), offset % 4) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        } else {
            self.faults.record(&"a register was written with the wrong width or alignment");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use crate::virtio::ActivateError;
    use crate::virtio::interrupt::{CONFIG_CHANGE, USED_BUFFER};
    use proptest::prelude::*;

    #[derive(Debug, Default)]
    struct Probe {
        activations: usize,
        features: u64,
    }

    impl VirtioDevice for Probe {
        fn device_type(&self) -> u32 {
            4
        }
        fn queue_sizes(&self) -> &'static [u16] {
            &[256, 64]
        }
        fn features(&self) -> u64 {
            VERSION_1 | EVENT_IDX | 1
        }
        fn read_config(&self, offset: u64, data: &mut [u8]) {
            super::super::read_config_bytes(&[1, 2, 3, 4], offset, data);
        }
        fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
            assert_eq!(self.activations, 0, "activated twice without a reset");
            self.activations += 1;
            self.features = activation.features;
            Ok(())
        }
        fn pause(&mut self) -> Vec<QueueState> {
            Vec::new()
        }
        fn resume(&mut self) -> Result<(), ActivateError> {
            Ok(())
        }
        fn reset(&mut self) {
            self.activations = 0;
        }
    }

    fn transport() -> MmioTransport {
        let memory = memory::allocate(64).unwrap();
        let faults = Arc::new(GuestFaults::new("probe"));
        MmioTransport::new(Box::new(Probe::default()), memory, IrqLine::new().unwrap(), faults).unwrap()
    }

    fn read(transport: &mut MmioTransport, offset: u64) -> u32 {
        let mut data = [0; 4];
        transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(transport: &mut MmioTransport, offset: u64, value: u32) {
        transport.write(offset, &value.to_le_bytes());
    }

    /// Negotiates `features` and sets up both queues, as a driver does.
    fn bring_up(transport: &mut MmioTransport, features: u64) {
        use status::*;
        write(transport, register::STATUS, ACKNOWLEDGE);
        write(transport, register::STATUS, ACKNOWLEDGE | DRIVER);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            write(transport, register::DRIVER_FEATURES_SEL, select);
            write(transport, register::DRIVER_FEATURES, half);
        }
        write(transport, register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for queue in 0..2_u32 {
            let base = 0x10_0000 + queue * 0x1_0000;
            write(transport, register::QUEUE_SEL, queue);
            write(transport, register::QUEUE_NUM, 64);
            write(transport, register::QUEUE_DESC_LOW, base);
            write(transport, register::QUEUE_DRIVER_LOW, base + 0x1000);
            write(transport, register::QUEUE_DEVICE_LOW, base + 0x2000);
            write(transport, register::QUEUE_READY, 1);
        }
        write(transport, register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    #[test]
    fn driver_reads_device_identity() {
        let mut transport = transport();
        assert_eq!(read(&mut transport, register::MAGIC_VALUE), 0x7472_6976);
        assert_eq!(read(&mut transport, register::VERSION), 2);
        assert_eq!(read(&mut transport, register::DEVICE_ID), 4);
        assert_eq!(read(&mut transport, register::QUEUE_NUM_MAX), 256);
        assert_eq!(read(&mut transport, register::CONFIG), 0x0403_0201);
    }

    #[test]
    fn valid_driver_activates_device() {
        let mut transport = transport();
        bring_up(&mut transport, VERSION_1 | 1);
        assert!(transport.activated);
        assert_eq!(transport.driver_features, VERSION_1 | 1);
        assert_eq!(transport.faults.count(), 0);
    }

    #[test]
    fn unoffered_features_are_refused() {
        for features in [VERSION_1 | 2, 1] {
            let mut transport = transport();
            bring_up(&mut transport, features);
            assert!(!transport.activated);
            assert_eq!(read(&mut transport, register::STATUS) & status::FEATURES_OK, 0);
        }
    }

    #[test]
    fn rings_outside_memory_need_reset() {
        let mut transport = transport();
        write(&mut transport, register::STATUS, 1);
        write(&mut transport, register::STATUS, 3);
        write(&mut transport, register::DRIVER_FEATURES_SEL, 1);
        write(&mut transport, register::DRIVER_FEATURES, 1);
        write(&mut transport, register::STATUS, 11);
        write(&mut transport, register::QUEUE_NUM, 64);
        write(&mut transport, register::QUEUE_DESC_HIGH, 0xffff_ffff);
        write(&mut transport, register::QUEUE_DRIVER_LOW, 0x1000);
        write(&mut transport, register::QUEUE_DEVICE_LOW, 0x2000);
        write(&mut transport, register::QUEUE_READY, 1);
        write(&mut transport, register::STATUS, 15);
        assert_ne!(read(&mut transport, register::STATUS) & status::DEVICE_NEEDS_RESET, 0);
        assert!(!transport.activated);
    }

    #[test]
    fn reset_allows_new_activation() {
        let mut transport = transport();
        bring_up(&mut transport, VERSION_1);
        transport.interrupt.need_reset();
        write(&mut transport, register::STATUS, 0);
        assert_eq!(read(&mut transport, register::STATUS), 0);
        assert_eq!(read(&mut transport, register::INTERRUPT_STATUS), 0);
        bring_up(&mut transport, VERSION_1);
        assert!(transport.activated);
    }

    #[test]
    fn interrupt_status_holds_until_acknowledged() {
        let mut transport = transport();
        bring_up(&mut transport, VERSION_1);
        transport.interrupt.signal_used();
        transport.interrupt.change_config(|| {});
        assert_eq!(read(&mut transport, register::INTERRUPT_STATUS), USED_BUFFER | CONFIG_CHANGE);
        write(&mut transport, register::INTERRUPT_ACK, USED_BUFFER);
        assert_eq!(read(&mut transport, register::INTERRUPT_STATUS), CONFIG_CHANGE);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn arbitrary_accesses_never_panic(
            accesses in proptest::collection::vec((any::<bool>(), 0_u64..0x140, 1_usize..=8, any::<u64>(), any::<bool>()), 0..200),
            up in any::<bool>(),
        ) {
            let mut transport = transport();
            if up {
                bring_up(&mut transport, VERSION_1 | EVENT_IDX);
            }
            for (is_write, offset, width, value, tame) in accesses {
                let (offset, width) = if tame { (offset & !3, 4) } else { (offset, width) };
                let value = if tame { value & 0xff } else { value };
                let mut data = value.to_le_bytes();
                if is_write {
                    transport.write(offset, &data[..width]);
                } else {
                    transport.read(offset, &mut data[..width]);
                }
            }
        }
    }
}
