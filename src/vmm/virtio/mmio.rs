//! The MMIO transport (specification, section 4.2): a device's registers and its interrupt line.
//!
//! vCPUs access the registers under the device's bus lock. The device's thread changes only those in [`Interrupt`] and
//! [`MmioInterrupt`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::{Interrupt, VirtioInterrupt};
use super::transport::{DeviceState, Half, QueueField, Transport, TransportState};
use super::{VirtioDevice, register};
use crate::bus::BusDevice;
use crate::cpu::time::ThreadClock;
use crate::fault::GuestFaults;
use crate::irq::IrqLine;
use crate::memory::GuestMemory;

/// The address and interrupt of a device, by which the guest's kernel finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioResources {
    /// Guest physical address of the first register.
    pub address: u64,
    /// Input pin of the I/O APIC.
    pub irq: u32,
}

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// "WISP" in ASCII. Linux only shows it in sysfs.
const VENDOR: u32 = u32::from_le_bytes(*b"WISP");

/// Bits of the interrupt status register.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// One interrupt line for all queues and the configuration. A register holds the reasons until the driver clears them.
#[derive(Debug)]
struct MmioInterrupt {
    line: IrqLine,
    status: AtomicU32,
}

impl MmioInterrupt {
    fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    fn signal(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        self.line.trigger();
    }
}

impl VirtioInterrupt for MmioInterrupt {
    fn signal_queue(&self, _queue: usize) {
        self.signal(USED_BUFFER);
    }

    fn signal_config(&self) {
        self.signal(CONFIG_CHANGE);
    }
}

#[derive(Debug)]
pub struct MmioTransport {
    state: DeviceState,
    interrupt: Arc<MmioInterrupt>,
}

impl MmioTransport {
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        line: IrqLine,
        faults: Arc<GuestFaults>,
    ) -> std::io::Result<MmioTransport> {
        let interrupt = Arc::new(MmioInterrupt { line, status: AtomicU32::new(0) });
        let state = DeviceState::new(device, memory, Arc::clone(&interrupt), faults)?;
        Ok(MmioTransport { state, interrupt })
    }

    /// Returns the queues' notification eventfds in queue order, for registration with KVM.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.state.kicks
    }

    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.state.interrupt
    }

    pub fn clock(&self) -> &Arc<ThreadClock> {
        &self.state.clock
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.state.selected_queue();
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.state.device.device_type(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => self.state.device_features(),
            register::QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => queue.map_or(0, |queue| queue.ready().into()),
            register::INTERRUPT_STATUS => self.interrupt.status(),
            register::STATUS => self.state.status(),
            register::CONFIG_GENERATION => self.state.config_generation(),
            // There is no shared memory region: length and base read as -1 (section 4.2.2).
            register::SHM_SEL..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.state.device_features_select = value,
            register::DRIVER_FEATURES_SEL => self.state.driver_features_select = value,
            register::DRIVER_FEATURES => self.state.take_features(value),
            register::QUEUE_SEL => self.state.queue_select = value as usize,
            register::QUEUE_NOTIFY => self.state.notify(value as usize),
            register::INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            register::STATUS => self.set_status(value),
            _ => {
                if let Some(field) = queue_field(offset, value) {
                    self.state.set_up_queue(field);
                }
            }
        }
    }

    fn set_status(&mut self, value: u32) {
        self.state.set_status(value);
        // The driver has reset the device, whose thread has ended.
        if value == 0 {
            self.interrupt.status.store(0, Ordering::SeqCst);
        }
    }
}

fn queue_field(offset: u64, value: u32) -> Option<QueueField> {
    let (low, high) = (Half::Low(value), Half::High(value));
    Some(match offset {
        register::QUEUE_NUM => QueueField::Size(value),
        register::QUEUE_READY => QueueField::Ready(value),
        register::QUEUE_DESC_LOW => QueueField::Descriptors(low),
        register::QUEUE_DESC_HIGH => QueueField::Descriptors(high),
        register::QUEUE_DRIVER_LOW => QueueField::Available(low),
        register::QUEUE_DRIVER_HIGH => QueueField::Available(high),
        register::QUEUE_DEVICE_LOW => QueueField::Used(low),
        register::QUEUE_DEVICE_HIGH => QueueField::Used(high),
        _ => return None,
    })
}

impl Transport for MmioTransport {
    fn pause(&mut self) -> TransportState {
        // The device raises its last interrupts before it stops.
        self.state.pause(|| self.interrupt.status())
    }

    fn resume(&mut self) {
        self.state.resume();
    }

    fn restore(&mut self, state: &TransportState) -> Result<(), String> {
        self.interrupt.status.store(state.interrupt_status(), Ordering::SeqCst);
        self.state.restore(state)?;
        // KVM injects interrupts asynchronously, so the snapshot may lack the last one. A spurious one is harmless.
        if state.interrupt_status() != 0 {
            self.interrupt.line.trigger();
        }
        Ok(())
    }

    fn shut_down(&mut self) {
        self.state.device.reset();
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= register::CONFIG {
            data.fill(0);
            self.state.device.read_config(offset - register::CONFIG, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        } else {
            self.state.faults.record(&"a register was read with the wrong width or alignment");
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            self.state.device.write_config(offset - register::CONFIG, data);
        } else if let (Ok(bytes), 0) = (<[u8; 4]>::try_from(data), offset % 4) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        } else {
            self.state.faults.record(&"a register was written with the wrong width or alignment");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use crate::virtio::interrupt::status;
    use crate::virtio::{ActivateError, Activation, EVENT_IDX, QueueState, VERSION_1};
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
        assert!(transport.state.activated);
        assert_eq!(transport.state.driver_features, VERSION_1 | 1);
        assert_eq!(transport.state.faults.count(), 0);
    }

    #[test]
    fn unoffered_features_are_refused() {
        for features in [VERSION_1 | 2, 1] {
            let mut transport = transport();
            bring_up(&mut transport, features);
            assert!(!transport.state.activated);
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
        assert!(!transport.state.activated);
    }

    #[test]
    fn reset_allows_new_activation() {
        let mut transport = transport();
        bring_up(&mut transport, VERSION_1);
        transport.interrupt().need_reset();
        write(&mut transport, register::STATUS, 0);
        assert_eq!(read(&mut transport, register::STATUS), 0);
        assert_eq!(read(&mut transport, register::INTERRUPT_STATUS), 0);
        bring_up(&mut transport, VERSION_1);
        assert!(transport.state.activated);
    }

    #[test]
    fn interrupt_status_holds_until_acknowledged() {
        let mut transport = transport();
        bring_up(&mut transport, VERSION_1);
        transport.interrupt().signal_queue(0);
        transport.interrupt().change_config(|| {});
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
