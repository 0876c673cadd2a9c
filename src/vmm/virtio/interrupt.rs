//! Interrupts and status of a device (specification, sections 2.1, 2.9 and 4.2.2). The state is atomic, because both
//! the vCPUs that access the registers and the device's thread use it.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::vmm::irq::IrqLine;

/// Device status bits (section 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The guest has a driver for the device.
    pub const DRIVER: u32 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u32 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u32 = 8;
    /// The device has met an unrecoverable error.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The driver has given up.
    pub const FAILED: u32 = 128;
}

/// Interrupt status bits.
pub(super) const USED_BUFFER: u32 = 1;
pub(super) const CONFIG_CHANGE: u32 = 2;

/// A device's interrupt and status, shared with the device's thread.
#[derive(Debug)]
pub struct Interrupt {
    line: IrqLine,
    pub(super) status: AtomicU32,
    pub(super) device_status: AtomicU32,
    pub(super) config_generation: AtomicU32,
}

impl Interrupt {
    /// Creates an interrupt on `line`.
    pub fn new(line: IrqLine) -> Interrupt {
        Interrupt {
            line,
            status: AtomicU32::new(0),
            device_status: AtomicU32::new(0),
            config_generation: AtomicU32::new(0),
        }
    }

    /// Raises an interrupt for used buffers.
    pub fn signal_used(&self) {
        self.signal(USED_BUFFER);
    }

    /// Calls `change` to change the configuration, and notifies an active driver.
    ///
    /// A driver reads the configuration field by field, and the generation before and after (section 2.5.1). The
    /// generation changes both before and after `change`, so that no driver mistakes a mix of two configurations for
    /// one.
    pub fn change_config<T>(&self, change: impl FnOnce() -> T) -> T {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        let result = change();
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        if self.device_status() & status::DRIVER_OK != 0 {
            self.signal(CONFIG_CHANGE);
        }
        result
    }

    /// Sets `DEVICE_NEEDS_RESET` (section 2.1.2), and notifies an active driver.
    pub fn need_reset(&self) {
        let before = self.device_status.fetch_or(status::DEVICE_NEEDS_RESET, Ordering::AcqRel);
        if before & status::DRIVER_OK != 0 {
            self.signal(CONFIG_CHANGE);
        }
    }

    /// Returns the device's status bits.
    pub fn device_status(&self) -> u32 {
        self.device_status.load(Ordering::Acquire)
    }

    /// Raises the line again, because an earlier interrupt may have been lost.
    pub(super) fn repeat(&self) {
        self.line.trigger();
    }

    fn signal(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        self.line.trigger();
    }
}
