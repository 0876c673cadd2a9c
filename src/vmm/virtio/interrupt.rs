//! Interrupts and status of a device (sections 2.1, 2.9 and 4.2.2), shared by the vCPUs and the device's thread.

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

pub(super) const USED_BUFFER: u32 = 1;
pub(super) const CONFIG_CHANGE: u32 = 2;

#[derive(Debug)]
pub struct Interrupt {
    line: IrqLine,
    pub(super) status: AtomicU32,
    pub(super) device_status: AtomicU32,
    pub(super) config_generation: AtomicU32,
}

impl Interrupt {
    pub fn new(line: IrqLine) -> Interrupt {
        Interrupt {
            line,
            status: AtomicU32::new(0),
            device_status: AtomicU32::new(0),
            config_generation: AtomicU32::new(0),
        }
    }

    pub fn signal_used(&self) {
        self.signal(USED_BUFFER);
    }

    /// Applies `change` to the configuration, and notifies an active driver. The generation changes before and after it
    /// (section 2.5.1), so that the driver detects a read that mixes two configurations.
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
