//! Resource limits of a machine: CPU budget, and rates of bytes and operations.
//!
//! The values are plain numbers without knowledge of instance types. [`rate_limiter`] computes how long devices have to
//! wait; `vmm::cpu::quota` throttles vCPUs. A machine without limits has no timers for them.

pub mod cpu_budget;
pub mod rate_limiter;
pub mod token_bucket;

use serde::{Deserialize, Serialize};

pub use cpu_budget::{CpuBalance, CpuBudget, CpuBudgetConfig, CpuBudgetRecord};
pub use rate_limiter::{DiskLimiter, RateLimiter};

/// Maximum rate. The tokens of any number of nanoseconds then fit into the 128 bits of a [`token_bucket`].
const MAX_RATE: u64 = 1 << 50;

/// A rate limit per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub baseline: u64,
    /// The burst rate, at least the baseline rate.
    pub peak: u64,
    /// The size of the burst bucket, which is full at the start.
    pub savings: u64,
}

impl Rate {
    pub fn constant(rate: u64) -> Rate {
        Rate { baseline: rate, peak: rate, savings: 0 }
    }

    pub fn is_sound(&self) -> bool {
        (1..=MAX_RATE).contains(&self.baseline) && (self.baseline..=MAX_RATE).contains(&self.peak)
    }
}

/// The limits of a disk, or of all disks of a machine together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    #[serde(default)]
    pub bytes: Option<Rate>,
    #[serde(default)]
    pub operations: Option<Rate>,
    /// The maximum size of an operation: a larger request is charged as several operations. 0 means no maximum.
    #[serde(default)]
    pub operation_bytes: u64,
}

impl DiskLimits {
    pub fn is_sound(&self) -> bool {
        self.bytes.iter().chain(&self.operations).all(Rate::is_sound)
    }
}

/// Network limits, applied to each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    pub bytes: Rate,
}
