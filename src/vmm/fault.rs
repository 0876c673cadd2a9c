//! What a guest did wrong to a device: counted always, logged once a second at most, so that a hostile guest can
//! fill neither the log nor the disk under it.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The faults of one device.
#[derive(Debug)]
pub struct GuestFaults {
    device: String,
    count: AtomicU64,
    last_logged: Mutex<Option<Instant>>,
}

impl GuestFaults {
    /// `device` is the name under which the faults are logged.
    pub fn new(device: impl Into<String>) -> GuestFaults {
        GuestFaults { device: device.into(), count: AtomicU64::new(0), last_logged: Mutex::new(None) }
    }

    /// Counts `fault` and, if the last log line is a second old, logs it with the count so far.
    pub fn record(&self, fault: &dyn fmt::Display) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut last = self.last_logged.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if last.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            *last = Some(Instant::now());
            log::warn!("{}: the guest's driver is at fault: {fault} ({count} faults so far)", self.device);
        }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_counted() {
        let faults = GuestFaults::new("test");
        for _ in 0..1000 {
            faults.record(&"nonsense");
        }
        assert_eq!(faults.count(), 1000);
    }
}
