//! Where a boot's time went, and how often and why the guest left: kept from the start, by atomics, for nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::cpu::exit::KINDS;

/// The boot's milestones, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The `wisp` process that the user started took its first instruction.
    ProcessStart,
    /// The monitor's own process took its first.
    MonitorStart,
    /// Guest memory is mapped and registered with KVM.
    MemoryReady,
    /// The kernel and all that it needs are in guest memory.
    KernelLoaded,
    /// Or the vCPUs and devices have the state of a saved machine.
    StateRestored,
    /// The first vCPU is about to enter the guest for the first time.
    FirstInstruction,
    /// The guest wrote its first byte to the serial port.
    FirstConsoleByte,
    /// The guest's first process runs.
    InitStarted,
    /// The guest's agent answers.
    AgentReady,
}

impl Mark {
    /// All marks, in their order.
    pub const ALL: [Mark; 9] = [
        Mark::ProcessStart,
        Mark::MonitorStart,
        Mark::MemoryReady,
        Mark::KernelLoaded,
        Mark::StateRestored,
        Mark::FirstInstruction,
        Mark::FirstConsoleByte,
        Mark::InitStarted,
        Mark::AgentReady,
    ];

    /// What the phase that ends with this mark is called.
    pub fn phase(self) -> &'static str {
        match self {
            Mark::ProcessStart => "process start",
            Mark::MonitorStart => "start the monitor",
            Mark::MemoryReady => "create the machine, map memory",
            Mark::KernelLoaded => "attach devices, load the kernel",
            Mark::StateRestored => "restore the saved state",
            Mark::FirstInstruction => "start vCPUs",
            Mark::FirstConsoleByte => "kernel, to its first console byte",
            Mark::InitStarted => "kernel, to the first process",
            Mark::AgentReady => "first process, to the agent's ready",
        }
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`: the same in every process of a host.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// When each mark was reached; a mark is set once.
#[derive(Debug, Default)]
pub struct Timeline {
    marks: [AtomicU64; Mark::ALL.len()],
}

impl Timeline {
    /// Sets `mark` to now, unless it is set.
    pub fn mark(&self, mark: Mark) {
        self.mark_at(mark, monotonic_ns());
    }

    /// Sets `mark` to a time of [`monotonic_ns`], unless it is set. Returns whether it was set now.
    pub fn mark_at(&self, mark: Mark, at: u64) -> bool {
        self.marks[mark as usize].compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The marks that were reached.
    pub fn record(&self) -> TimelineRecord {
        let reached = Mark::ALL.into_iter().filter_map(|mark| {
            let at_ns = self.marks[mark as usize].load(Ordering::Relaxed);
            (at_ns != 0).then_some(MarkRecord { mark, at_ns })
        });
        TimelineRecord { marks: reached.collect() }
    }
}

/// A timeline as data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineRecord {
    /// Marks that were reached, in the order of [`Mark::ALL`].
    pub marks: Vec<MarkRecord>,
}

/// One mark and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkRecord {
    /// Which.
    pub mark: Mark,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

impl TimelineRecord {
    /// When `mark` was reached, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn at(&self, mark: Mark) -> Option<u64> {
        self.marks.iter().find(|record| record.mark == mark).map(|record| record.at_ns)
    }

    /// Whether the machine goes on from a saved one, and did not boot.
    pub fn is_restored(&self) -> bool {
        self.at(Mark::StateRestored).is_some()
    }

    /// Nanoseconds from one mark to another, where both were reached in that order.
    pub fn between(&self, from: Mark, to: Mark) -> Option<u64> {
        self.at(to)?.checked_sub(self.at(from)?)
    }
}

/// How often the guest left, by reason.
#[derive(Debug, Default)]
pub struct ExitCounters {
    counts: [AtomicU64; KINDS.len()],
}

impl ExitCounters {
    /// Counts an exit of this [kind](super::cpu::exit::Exit::kind).
    pub fn count(&self, kind: usize) {
        self.counts[kind].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts of the reasons that occurred.
    pub fn record(&self) -> Vec<ExitRecord> {
        let counts = KINDS.iter().zip(&self.counts);
        let counts = counts.map(|(reason, count)| (reason, count.load(Ordering::Relaxed)));
        counts
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| ExitRecord { reason: (*reason).into(), count })
            .collect()
    }
}

/// How often the guest left for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The reason's name, see [`KINDS`].
    pub reason: String,
    /// How often.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_keeps_its_first_time() {
        let timeline = Timeline::default();
        assert!(timeline.mark_at(Mark::AgentReady, 100));
        assert!(!timeline.mark_at(Mark::AgentReady, 200));
        assert_eq!(timeline.record().at(Mark::AgentReady), Some(100));
    }

    #[test]
    fn phases_need_both_of_their_marks() {
        let timeline = Timeline::default();
        timeline.mark_at(Mark::ProcessStart, 10);
        assert_eq!(timeline.record().between(Mark::ProcessStart, Mark::InitStarted), None);
        timeline.mark_at(Mark::InitStarted, 35);
        assert_eq!(timeline.record().between(Mark::ProcessStart, Mark::InitStarted), Some(25));
        assert_eq!(timeline.record().between(Mark::InitStarted, Mark::ProcessStart), None);
    }

    #[test]
    fn marks_stand_in_the_order_of_their_list() {
        for (index, mark) in Mark::ALL.into_iter().enumerate() {
            assert_eq!(mark as usize, index);
        }
    }
}
