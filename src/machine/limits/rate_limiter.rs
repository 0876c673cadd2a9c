//! Rate limiters for a [`Rate`] and for a disk's rates. Callers pass the time and do the waiting.

use std::sync::{Arc, Mutex, MutexGuard};

use super::token_bucket::TokenBucket;
use super::{DiskLimits, Rate};
use crate::sync::lock;

/// A twentieth of a second's peak may pass at once, so that a device thread that wakes up late can catch up.
const AT_ONCE: u64 = 20;

/// A rate limiter: throttles above the peak rate, and above the baseline rate when the burst bucket is empty.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    rate: Rate,
    peak: TokenBucket,
    /// The burst bucket; none if the peak equals the baseline.
    savings: Option<TokenBucket>,
}

impl RateLimiter {
    pub fn new(rate: Rate, now_ns: u64) -> RateLimiter {
        let peak = TokenBucket::full(rate.peak, rate.peak / AT_ONCE, now_ns);
        let savings = (rate.peak > rate.baseline)
            .then(|| TokenBucket::full(rate.baseline, rate.savings.max(rate.baseline / AT_ONCE), now_ns));
        RateLimiter { rate, peak, savings }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Returns the nanoseconds until a request may pass; 0 if one may pass now.
    pub fn wait_ns(&mut self, now_ns: u64) -> u64 {
        let savings = self.savings.as_mut().map_or(0, |savings| savings.wait_ns(now_ns));
        self.peak.wait_ns(now_ns).max(savings)
    }

    pub fn take(&mut self, amount: u64, now_ns: u64) {
        self.peak.take(amount, now_ns);
        if let Some(savings) = &mut self.savings {
            savings.take(amount, now_ns);
        }
    }

    /// Returns the burst balance in percent.
    pub fn burst_percent(&mut self, now_ns: u64) -> u64 {
        let all = self.rate.savings.max(1);
        self.savings.as_mut().map_or(100, |savings| savings.tokens(now_ns).min(all).saturating_mul(100) / all)
    }
}

#[derive(Debug, Clone, Default)]
pub struct DiskLimiter {
    limits: DiskLimits,
    bytes: Option<RateLimiter>,
    operations: Option<RateLimiter>,
}

impl DiskLimiter {
    pub fn new(limits: DiskLimits, now_ns: u64) -> DiskLimiter {
        let limiter = |rate: Option<Rate>| rate.map(|rate| RateLimiter::new(rate, now_ns));
        DiskLimiter { limits, bytes: limiter(limits.bytes), operations: limiter(limits.operations) }
    }

    pub fn limits(&self) -> DiskLimits {
        self.limits
    }

    pub fn wait_ns(&mut self, now_ns: u64) -> u64 {
        self.both().map(|limiter| limiter.wait_ns(now_ns)).max().unwrap_or(0)
    }

    pub fn take(&mut self, bytes: u64, now_ns: u64) {
        let operations = bytes
            .checked_div(self.limits.operation_bytes)
            .map_or(1, |_| bytes.div_ceil(self.limits.operation_bytes).max(1));
        if let Some(limiter) = &mut self.bytes {
            limiter.take(bytes, now_ns);
        }
        if let Some(limiter) = &mut self.operations {
            limiter.take(operations, now_ns);
        }
    }

    /// Returns the burst balance in percent: the lower of those of bytes and operations.
    pub fn burst_percent(&mut self, now_ns: u64) -> u64 {
        self.both().map(|limiter| limiter.burst_percent(now_ns)).min().unwrap_or(100)
    }

    fn both(&mut self) -> impl Iterator<Item = &mut RateLimiter> {
        self.bytes.iter_mut().chain(&mut self.operations)
    }
}

/// The limiter that all limited disks of a machine share. Its lock is the last in the lock order.
#[derive(Debug, Clone, Default)]
pub struct SharedDiskLimiter(Option<Arc<Mutex<DiskLimiter>>>);

impl SharedDiskLimiter {
    pub fn new(limits: Option<DiskLimits>, now_ns: u64) -> SharedDiskLimiter {
        SharedDiskLimiter(limits.map(|limits| Arc::new(Mutex::new(DiskLimiter::new(limits, now_ns)))))
    }

    pub fn lock(&self) -> Option<MutexGuard<'_, DiskLimiter>> {
        self.0.as_ref().map(|limiter| lock(limiter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    /// Returns the amount that passes between `from` and `to` in requests of `size`, if each wake-up is late by `late`.
    fn passes(limiter: &mut RateLimiter, size: u64, (from, to): (u64, u64), late: u64) -> u64 {
        let (mut now, mut passed) = (from, 0);
        loop {
            match limiter.wait_ns(now) {
                0 => {
                    limiter.take(size, now);
                    passed += size;
                }
                wait if now + wait + late < to => now += wait + late,
                _ => return passed,
            }
        }
    }

    #[test]
    fn peak_lasts_until_bucket_is_empty_then_baseline() {
        // 100 per second, and 300 per second for ten seconds.
        let rate = Rate { baseline: 100, peak: 300, savings: 2000 };
        let mut limiter = RateLimiter::new(rate, 0);
        let first = passes(&mut limiter, 1, (0, 5 * SECOND), 0);
        assert!((1490..=1520).contains(&first), "{first}");
        assert_eq!(limiter.burst_percent(5 * SECOND), 49);
        passes(&mut limiter, 1, (5 * SECOND, 12 * SECOND), 0);
        let later = passes(&mut limiter, 1, (20 * SECOND, 30 * SECOND), 0);
        // Includes the tokens accrued during eight idle seconds.
        assert!((1790..=1810).contains(&later), "{later}");
    }

    #[test]
    fn late_wakeup_keeps_rate() {
        let mut limiter = RateLimiter::new(Rate::constant(1_000_000), 0);
        let passed = passes(&mut limiter, 1000, (0, 10 * SECOND), 3_000_000);
        assert!((9_900_000..=10_100_000).contains(&passed), "{passed}");
    }

    #[test]
    fn large_request_counts_as_several_operations() {
        let operations = Some(Rate::constant(100));
        let limits = DiskLimits { bytes: None, operations, operation_bytes: 256 << 10 };
        let mut limiter = DiskLimiter::new(limits, 0);
        // Five requests may pass at once.
        for _ in 0..4 {
            limiter.take(4096, 0);
        }
        assert_eq!(limiter.wait_ns(0), 0);
        limiter.take(1 << 20, 0);
        let wait = limiter.wait_ns(0);
        assert!((30_000_000..=30_000_001).contains(&wait), "{wait}");
    }

    #[test]
    fn no_limits_never_wait() {
        let mut limiter = DiskLimiter::default();
        limiter.take(u64::MAX, 0);
        assert_eq!((limiter.wait_ns(0), limiter.burst_percent(0)), (0, 100));
        assert!(SharedDiskLimiter::default().lock().is_none());
    }

    proptest! {
        #[test]
        fn throughput_never_exceeds_peak_and_savings(
            baseline in 1_u64..1000,
            above in 0_u64..1000,
            savings in 0_u64..5000,
            size in 1_u64..50,
            late in 0_u64..5_000_000,
        ) {
            let rate = Rate { baseline, peak: baseline + above, savings };
            let mut limiter = RateLimiter::new(rate, 0);
            let passed = passes(&mut limiter, size, (0, 20 * SECOND), late);
            let at_once = rate.peak / AT_ONCE + size + 1;
            prop_assert!(passed <= 20 * rate.peak + at_once);
            prop_assert!(passed <= 20 * baseline + savings.max(baseline / AT_ONCE) + at_once);
        }
    }
}
