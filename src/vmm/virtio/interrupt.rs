//! How a device tells its driver something (specification, sections 2.1, 2.9 and 4.2.2): made of atomics, for the vCPUs that
//! access its registers and for its own thread.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::vmm::irq::IrqLine;

/// Device status bits (section 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u32 = 4;
    /// Features are settled.
    pub const FEATURES_OK: u32 = 8;
    /// The device has met an error from which it cannot recover.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The driver has given up.
    pub const FAILED: u32 = 128;
}

/// Interrupt status bits.
pub(super) const USED_BUFFER: u32 = 1;
pub(super) const CONFIG_CHANGE: u32 = 2;

/// How a device tells its driver something; shared with the device's thread.
#[derive(Debug)]
pub struct Interrupt {
    line: IrqLine,
    pub(super) status: AtomicU32,
    pub(super) device_status: AtomicU32,
    pub(super) config_generation: AtomicU32,
}

impl Interrupt {
    /// Interrupts go to `line`.
    pub fn new(line: IrqLine) -> Interrupt {
        Interrupt {
            line,
            status: AtomicU32::new(0),
            device_status: AtomicU32::new(0),
            config_generation: AtomicU32::new(0),
        }
    }

    /// "Buffers were used."
    pub fn signal_used(&self) {
        self.signal(USED_BUFFER);
    }

    /// Has `change` change the configuration, and tells a driver that listens. A driver reads the configuration piece by
    /// piece, and the generation before and after (section 2.5.1): that changes on both sides of the change, so that
    /// nobody takes pieces of two configurations for one.
    pub fn change_config<T>(&self, change: impl FnOnce() -> T) -> T {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        let result = change();
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        if self.device_status() & status::DRIVER_OK != 0 {
            self.signal(CONFIG_CHANGE);
        }
        result
    }

    /// The device cannot go on (section 2.1.2): says so in its status, and to a driver that listens.
    pub fn need_reset(&self) {
        let before = self.device_status.fetch_or(status::DEVICE_NEEDS_RESET, Ordering::AcqRel);
        if before & status::DRIVER_OK != 0 {
            self.signal(CONFIG_CHANGE);
        }
    }

    /// The device's status bits.
    pub fn device_status(&self) -> u32 {
        self.device_status.load(Ordering::Acquire)
    }

    /// Raises the line again: what it told may not have arrived.
    pub(super) fn repeat(&self) {
        self.line.trigger();
    }

    fn signal(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        self.line.trigger();
    }
}
