//! What a machine used over time: readings of its counters, in a file in its folder, for who judges its size later.
//!
//! No clock has them taken, but use: one when the machine begins, one when its agent is ready, one each time that it had so
//! much of the host's CPUs (`recorder.rs`), one at its end. An idle machine is one long interval between two readings, and
//! costs nothing.
//!
//! A reading holds sums since the machine began, not differences. So one that is lost, by a kill or a full disk, takes nothing
//! away but detail: the next has all of it.

mod file;
mod recorder;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::control::{DiskRecord, Status};
use super::timeline::Mark;
use super::virtio::net::NetRecord;

pub use file::{FILE, read};
pub(super) use recorder::Recorder;

/// When a machine without an agent is taken to be up, in milliseconds.
const UP_AFTER_MS: u64 = 10 * 60 * 1000;

/// When something is so, in a machine's life and in the world.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Which machine: when it began, in nanoseconds since 1970. A guest that reboots goes on in another.
    pub run: u64,
    /// How long that was ago, in milliseconds; a host that sleeps does not count.
    pub up_ms: u64,
    /// The time of day, in milliseconds since 1970. It may have been set meanwhile.
    pub at_ms: u64,
}

/// A machine's own clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    run: u64,
    began: Instant,
}

impl Clock {
    /// It begins now.
    pub(super) fn start() -> Clock {
        let run = u64::try_from(since_1970().as_nanos()).unwrap_or(u64::MAX);
        Clock { run, began: Instant::now() }
    }

    /// Now.
    pub(super) fn now(&self) -> Moment {
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Moment { run: self.run, up_ms: ms(self.began.elapsed()), at_ms: ms(since_1970()) }
    }
}

/// A clock before 1970 is one that nobody has set.
fn since_1970() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A machine's counters at one moment: sums since it began, unless it says another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// When.
    #[serde(flatten)]
    pub moment: Moment,
    /// Whether its guest has booted.
    pub is_up: bool,
    /// What its vCPUs had of the host's CPUs, in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes of guest memory that the host holds in RAM, now.
    pub resident_bytes: u64,
    /// Its disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskReading>,
    /// Its network device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetRecord>,
    /// Its CPU budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_budget: Option<BudgetReading>,
}

/// A disk's counters, since it was put into the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReading {
    /// The disk's name.
    pub id: String,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// For how long requests were held back, in nanoseconds.
    pub held_ns: u64,
}

/// A CPU budget, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetReading {
    /// Earned and saved, now.
    pub saved_ns: u64,
    /// Given besides, now.
    pub extra_ns: u64,
    /// Owed, now.
    pub owed_ns: u64,
    /// Charged, of this machine and those before.
    pub charged_ns: u64,
    /// For how long vCPUs were held out of the guest, all together.
    pub held_ns: u64,
}

impl Reading {
    /// What a machine's status says of it.
    pub fn of(status: &Status) -> Reading {
        let is_ready = status.timeline.at(Mark::AgentReady).is_some();
        let cpu_budget = status.cpu_budget.as_ref().map(|now| BudgetReading {
            saved_ns: now.budget.balance.saved_ns,
            extra_ns: now.budget.balance.extra_ns,
            owed_ns: now.budget.balance.owed_ns,
            charged_ns: now.budget.balance.charged_ns,
            held_ns: now.held_ns,
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
            held_ns: record.held_ns,
        }
    }
}
