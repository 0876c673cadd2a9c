//! Usage of a machine over time: readings of its counters, from which right-sizing recommendations are made.
//!
//! Readings are taken at the start, when the agent is ready, after each quantum of CPU time (`vmm::usage_recorder`),
//! and at the end. An idle machine is one long interval between two readings and costs nothing.
//!
//! A reading holds sums since the start, so a reading lost through a kill or a full disk only costs detail.

mod file;

use serde::{Deserialize, Serialize};

use super::control::{DiskRecord, NetRecord, VmmStatus};
use super::timeline::Mark;

pub use super::sample_time::{Clock, SampleTime};
pub use file::{FILE, ReadingsFile, read};

/// The time after which a machine without an agent is considered booted.
const UP_AFTER_MS: u64 = 10 * 60 * 1000;

/// The counters of a machine: sums since its start, unless stated otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    #[serde(flatten)]
    pub moment: SampleTime,
    /// True if the agent is ready, or the machine has been running for [`UP_AFTER_MS`].
    pub is_up: bool,
    /// CPU time of the vCPUs.
    pub cpu_ns: u64,
    /// Guest memory currently resident on the host.
    pub resident_bytes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskReading>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_budget: Option<BudgetReading>,
}

/// A disk's counters since it was attached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReading {
    pub id: String,
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Time for which requests were throttled.
    pub throttled_ns: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetReading {
    pub saved_ns: u64,
    /// Unspent launch credits, as CPU time.
    pub extra_ns: u64,
    pub owed_ns: u64,
    /// Surplus charged, including earlier runs.
    pub charged_ns: u64,
    /// Throttled time, summed over the vCPUs.
    pub throttled_ns: u64,
}

impl Reading {
    pub fn of(status: &VmmStatus) -> Reading {
        let is_ready = status.timeline.at(Mark::AgentReady).is_some();
        let cpu_budget = status.cpu_budget.as_ref().map(|now| BudgetReading {
            saved_ns: now.budget.balance.saved_ns,
            extra_ns: now.budget.balance.extra_ns,
            owed_ns: now.budget.balance.owed_ns,
            charged_ns: now.budget.balance.charged_ns,
            throttled_ns: now.throttled_ns,
        });
        Reading {
            moment: status.moment,
            is_up: is_ready || status.moment.up_ms >= UP_AFTER_MS,
            cpu_ns: status.cpu_time_ns,
            resident_bytes: status.guest_resident_bytes,
            disks: status.disks.iter().map(DiskReading::of).collect(),
            net: status.net,
            cpu_budget,
        }
    }
}

impl DiskReading {
    fn of(record: &DiskRecord) -> DiskReading {
        DiskReading {
            id: record.id.clone(),
            reads: record.reads,
            writes: record.writes,
            read_bytes: record.read_bytes,
            written_bytes: record.written_bytes,
            throttled_ns: record.throttled_ns,
        }
    }
}
