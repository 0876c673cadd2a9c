//! Errors that a guest's driver causes. All are counted, but few are logged, so that a guest cannot fill the log.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The interval between the first two log lines. It doubles with each line, up to [`LAST_INTERVAL`].
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
const LAST_INTERVAL: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub struct GuestFaults {
    device: String,
    count: AtomicU64,
    schedule: Mutex<Schedule>,
}

#[derive(Debug)]
struct Schedule {
    next: Option<Instant>,
    interval: Duration,
}

impl Schedule {
    fn new() -> Schedule {
        Schedule { next: None, interval: FIRST_INTERVAL }
    }

    /// Returns true if a log line is due, and schedules the next one.
    fn is_due(&mut self, now: Instant) -> bool {
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.next = Some(now + self.interval);
        self.interval = (self.interval * 2).min(LAST_INTERVAL);
        true
    }
}

impl GuestFaults {
    pub fn new(device: impl Into<String>) -> GuestFaults {
        GuestFaults { device: device.into(), count: AtomicU64::new(0), schedule: Mutex::new(Schedule::new()) }
    }

    /// Counts `fault`. If a log line is due, logs it with the count so far.
    pub fn record(&self, fault: &dyn fmt::Display) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut schedule = machine::sync::lock(&self.schedule);
        if schedule.is_due(Instant::now()) {
            log::warn!("{}: guest driver error: {fault} ({count} errors so far)", self.device);
        }
    }

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

    #[test]
    fn faults_without_pause_are_logged_at_doubling_intervals() {
        let (start, day) = (Instant::now(), 24 * 3600);
        let mut schedule = Schedule::new();
        let lines: Vec<u64> = (0..day).filter(|second| schedule.is_due(start + Duration::from_secs(*second))).collect();
        assert_eq!(lines[..6], [0, 1, 3, 7, 15, 31]);
        let gaps = lines.windows(2).map(|pair| pair[1] - pair[0]);
        assert_eq!(gaps.max(), Some(LAST_INTERVAL.as_secs()));
        // There are 12 lines until the longest interval is reached, then one line an hour.
        assert!(lines.len() < 12 + 24, "{}", lines.len());
        assert!(schedule.is_due(start + Duration::from_secs(10 * day)));
    }
}
