//! Interrupts and status of a device (sections 2.1 and 2.9), shared by the vCPUs and the device's thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::irq::IrqLine;

/// Device status bits (section 2.1).
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// A transport's interrupts. A transport may have one for each queue and one for the configuration, or a single line.
pub trait VirtioInterrupt: Send + Sync + fmt::Debug {
    /// Notifies the driver of used buffers in the queue with this index.
    fn signal_queue(&self, queue: usize);

    /// Notifies the driver of a change of the configuration or the device status.
    fn signal_config(&self);
}

/// A bare line, for tests: the driver cannot tell the reason for an interrupt.
impl VirtioInterrupt for IrqLine {
    fn signal_queue(&self, _queue: usize) {
        self.trigger();
    }

    fn signal_config(&self) {
        self.trigger();
    }
}

impl<T: VirtioInterrupt> VirtioInterrupt for Arc<T> {
    fn signal_queue(&self, queue: usize) {
        (**self).signal_queue(queue);
    }

    fn signal_config(&self) {
        (**self).signal_config();
    }
}

/// A device's interrupts, with the state that decides when to raise one.
#[derive(Debug)]
pub struct Interrupt {
    transport: Box<dyn VirtioInterrupt>,
    pub(super) device_status: AtomicU32,
    pub(super) config_generation: AtomicU32,
}

impl Interrupt {
    pub fn new(transport: impl VirtioInterrupt + 'static) -> Interrupt {
        let transport = Box::new(transport);
        Interrupt { transport, device_status: AtomicU32::new(0), config_generation: AtomicU32::new(0) }
    }

    pub fn signal_queue(&self, queue: usize) {
        self.transport.signal_queue(queue);
    }

    /// Applies `change` to the configuration, and notifies an active driver. The generation changes before and after it
    /// (section 2.5.1), so that the driver detects a read that mixes two configurations.
    pub fn change_config<T>(&self, change: impl FnOnce() -> T) -> T {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        let result = change();
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        if self.device_status() & status::DRIVER_OK != 0 {
            self.transport.signal_config();
        }
        result
    }

    /// Sets `DEVICE_NEEDS_RESET` (section 2.1.2), and notifies an active driver.
    pub fn need_reset(&self) {
        let before = self.device_status.fetch_or(status::DEVICE_NEEDS_RESET, Ordering::AcqRel);
        if before & status::DRIVER_OK != 0 {
            self.transport.signal_config();
        }
    }

    pub fn device_status(&self) -> u32 {
        self.device_status.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Records the queue of each interrupt, or `None` for the configuration.
    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<Option<usize>>>);

    impl VirtioInterrupt for Recorder {
        fn signal_queue(&self, queue: usize) {
            self.0.lock().unwrap().push(Some(queue));
        }

        fn signal_config(&self) {
            self.0.lock().unwrap().push(None);
        }
    }

    #[test]
    fn only_active_driver_is_notified_of_configuration() {
        let recorder = Arc::new(Recorder::default());
        let interrupt = Interrupt::new(Arc::clone(&recorder));
        interrupt.change_config(|| {});
        interrupt.need_reset();
        assert!(recorder.0.lock().unwrap().is_empty());
        interrupt.device_status.store(status::DRIVER_OK, Ordering::SeqCst);
        interrupt.signal_queue(1);
        interrupt.change_config(|| {});
        interrupt.need_reset();
        assert_eq!(*recorder.0.lock().unwrap(), [Some(1), None, None]);
        assert_eq!(interrupt.config_generation.load(Ordering::SeqCst), 4);
    }
}
