//! How much of the host a machine may have: plain numbers of its configuration, and what counts by them.
//!
//! The numbers are of nobody's catalogue here: a CPU budget that is earned, saved and spent, and rates of bytes and
//! operations. [`rate_limiter`] says how long devices are to wait; CPUs are held by [`crate::vmm::cpu::quota`].
//! A machine without limits has no timers and no clocks for them.

pub mod cpu_budget;
pub mod rate_limiter;
pub mod token_bucket;

use serde::{Deserialize, Serialize};

pub use cpu_budget::{CpuBalance, CpuBudget, CpuBudgetConfig, CpuBudgetRecord};
pub use rate_limiter::{DiskLimiter, RateLimiter};

/// The most that a rate can be, by the second: sums of it and of centuries fit.
const MAX_RATE: u64 = 1 << 50;

/// How much may pass by the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// What may always pass.
    pub baseline: u64,
    /// What may pass while there are savings; no less than the baseline.
    pub peak: u64,
    /// What can be saved of the baseline, for times above it. A machine starts with all of it.
    pub savings: u64,
}

impl Rate {
    /// A rate that is the same at any time.
    pub fn constant(rate: u64) -> Rate {
        Rate { baseline: rate, peak: rate, savings: 0 }
    }

    /// Whether it is one that something can pass by.
    pub fn is_sound(&self) -> bool {
        (1..=MAX_RATE).contains(&self.baseline) && (self.baseline..=MAX_RATE).contains(&self.peak)
    }
}

/// What a disk may do, or all disks of a machine together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Bytes that are read and written.
    #[serde(default)]
    pub bytes: Option<Rate>,
    /// Operations.
    #[serde(default)]
    pub operations: Option<Rate>,
    /// The bytes that one operation moves at the most: a larger request counts as several. With 0, each is one.
    #[serde(default)]
    pub operation_bytes: u64,
}

impl DiskLimits {
    /// Whether something can pass by each of its rates.
    pub fn is_sound(&self) -> bool {
        self.bytes.iter().chain(&self.operations).all(Rate::is_sound)
    }
}

/// What a network device may do, in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// Bytes of frames.
    pub bytes: Rate,
}
