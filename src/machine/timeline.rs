//! The boot timeline and the exit counters, kept in atomics.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The names of the VM exit counters, in the order of the index that the VMM assigns to each kind of exit.
pub const EXIT_KINDS: [&str; 12] = [
    "port read",
    "port write",
    "mmio read",
    "mmio write",
    "interrupted",
    "halt",
    "shutdown",
    "system event",
    "emulation failure",
    "internal error",
    "entry failure",
    "unexpected",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The user's `wisp` process executed its first instruction.
    ProcessStart,
    /// The VMM process executed its first instruction.
    VmmStart,
    /// Guest memory is mapped and registered with KVM.
    MemoryReady,
    KernelLoaded,
    StateRestored,
    /// The first vCPU is about to enter the guest for the first time.
    FirstInstruction,
    /// The guest wrote its first byte to the serial port.
    FirstConsoleByte,
    /// The guest's first process is running.
    InitStarted,
    /// The agent of a guest without an identity is ready, so that the guest can become a template.
    TemplateReady,
    /// The agent is ready, and the guest has its instance's identity.
    AgentReady,
}

impl Mark {
    pub const ALL: [Mark; 10] = [
        Mark::ProcessStart,
        Mark::VmmStart,
        Mark::MemoryReady,
        Mark::KernelLoaded,
        Mark::StateRestored,
        Mark::FirstInstruction,
        Mark::FirstConsoleByte,
        Mark::InitStarted,
        Mark::TemplateReady,
        Mark::AgentReady,
    ];

    /// The name of the phase that ends with this mark.
    pub fn phase(self) -> &'static str {
        match self {
            Mark::ProcessStart => "process start",
            Mark::VmmStart => "start the VMM process",
            Mark::MemoryReady => "create the VM, map memory",
            Mark::KernelLoaded => "attach devices, load the kernel",
            Mark::StateRestored => "restore the snapshot",
            Mark::FirstInstruction => "start vCPUs",
            Mark::FirstConsoleByte => "kernel, to the first console output",
            Mark::InitStarted => "kernel, to the first process",
            Mark::TemplateReady => "first process, to template ready",
            Mark::AgentReady => "first process, to agent ready",
        }
    }
}

/// Returns the time of `CLOCK_MONOTONIC` in nanoseconds. The clock is the same in all processes of a host.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The times at which a machine reached each mark. A mark is set at most once.
#[derive(Debug, Default)]
pub struct Timeline {
    marks: [AtomicU64; Mark::ALL.len()],
}

impl Timeline {
    /// Sets `mark` to the current time, unless it is already set.
    pub fn mark(&self, mark: Mark) {
        self.mark_at(mark, monotonic_ns());
    }

    /// Sets `mark` to a time of [`monotonic_ns`], unless it is already set. Returns true if this call has set it.
    pub fn mark_at(&self, mark: Mark, at: u64) -> bool {
        self.marks[mark as usize].compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub fn record(&self) -> TimelineRecord {
        let reached = Mark::ALL.into_iter().filter_map(|mark| {
            let at_ns = self.marks[mark as usize].load(Ordering::Relaxed);
            (at_ns != 0).then_some(MarkRecord { mark, at_ns })
        });
        TimelineRecord { marks: reached.collect() }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineRecord {
    /// In the order of [`Mark::ALL`].
    pub marks: Vec<MarkRecord>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkRecord {
    pub mark: Mark,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

impl TimelineRecord {
    /// Returns the time of `mark` in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn at(&self, mark: Mark) -> Option<u64> {
        self.marks.iter().find(|record| record.mark == mark).map(|record| record.at_ns)
    }

    pub fn is_restored(&self) -> bool {
        self.at(Mark::StateRestored).is_some()
    }

    /// Returns the nanoseconds between two marks, if both were reached in that order.
    pub fn between(&self, from: Mark, to: Mark) -> Option<u64> {
        self.at(to)?.checked_sub(self.at(from)?)
    }
}

#[derive(Debug, Default)]
pub struct ExitCounters {
    counts: [AtomicU64; EXIT_KINDS.len()],
}

impl ExitCounters {
    /// Counts an exit. `kind` is an index into [`EXIT_KINDS`].
    pub fn count(&self, kind: usize) {
        self.counts[kind].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counters that are not zero.
    pub fn record(&self) -> Vec<ExitRecord> {
        let counts = EXIT_KINDS.iter().zip(&self.counts);
        let counts = counts.map(|(reason, count)| (reason, count.load(Ordering::Relaxed)));
        counts
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| ExitRecord { reason: (*reason).into(), count })
            .collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// One of [`EXIT_KINDS`].
    pub reason: String,
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_keeps_first_time() {
        let timeline = Timeline::default();
        assert!(timeline.mark_at(Mark::AgentReady, 100));
        assert!(!timeline.mark_at(Mark::AgentReady, 200));
        assert_eq!(timeline.record().at(Mark::AgentReady), Some(100));
    }

    #[test]
    fn phase_needs_both_marks() {
        let timeline = Timeline::default();
        timeline.mark_at(Mark::ProcessStart, 10);
        assert_eq!(timeline.record().between(Mark::ProcessStart, Mark::InitStarted), None);
        timeline.mark_at(Mark::InitStarted, 35);
        assert_eq!(timeline.record().between(Mark::ProcessStart, Mark::InitStarted), Some(25));
        assert_eq!(timeline.record().between(Mark::InitStarted, Mark::ProcessStart), None);
    }

    #[test]
    fn mark_index_matches_all() {
        for (index, mark) in Mark::ALL.into_iter().enumerate() {
            assert_eq!(mark as usize, index);
        }
    }
}
