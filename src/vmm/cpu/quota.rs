//! Enforces a machine's CPU budget: vCPUs run for time slices, and wait outside the guest while the budget is
//! overdrawn.
//!
//! A timer on the vCPU thread's CPU time ends a slice with the kick signal, so an idle guest causes no signals. All
//! vCPUs share one budget, wait until the same instant and get slices of the same length, so none can starve another. A
//! throttled vCPU waits at the [`Gate`], so it can be paused, saved and stopped at once.
//!
//! The budget is charged for vCPU threads, including exit handling, and for device threads. Device threads are never
//! throttled, because they become idle when throttled vCPUs submit no more requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::cpu_timer::CpuTimer;
use super::gate::Gate;
use super::time::CpuTime;
use crate::signals::kick_signal;
use machine::limits::{CpuBudget, CpuBudgetConfig, CpuBudgetRecord};
use machine::sync::lock;

/// Lock order: the account's lock is taken before those of [`CpuTime`].
#[derive(Debug)]
pub struct Quota {
    account: Mutex<Account>,
    vcpus: u32,
    /// Counts changes to the configuration. After each change, throttled vCPUs check their conditions again.
    changes: AtomicU64,
}

#[derive(Debug)]
struct Account {
    budget: CpuBudget,
    /// The time of the last settlement, and the CPU time charged until then.
    settled: Instant,
    used_ns: u64,
    throttled_ns: u64,
}

#[derive(Debug)]
pub struct Allowance<'a> {
    quota: &'a Quota,
    cpu_time: &'a CpuTime,
    timer: CpuTimer,
}

impl Quota {
    pub fn new(config: CpuBudgetConfig, vcpus: u32) -> Quota {
        let account = Account { budget: CpuBudget::new(config), settled: Instant::now(), used_ns: 0, throttled_ns: 0 };
        Quota { account: Mutex::new(account), vcpus, changes: AtomicU64::new(0) }
    }

    /// Must be called on a vCPU thread. If the timer cannot be created, the vCPU is charged but not throttled.
    pub fn allow_this_thread<'a>(&'a self, cpu_time: &'a CpuTime) -> Option<Allowance<'a>> {
        match CpuTimer::of_thread(kick_signal()) {
            Ok(timer) => Some(Allowance { quota: self, cpu_time, timer }),
            Err(error) => {
                log::error!("cannot create a CPU timer, so a vCPU is not throttled: {error}");
                None
            }
        }
    }

    /// Allows or forbids surplus credits, and wakes throttled vCPUs at the `gate`.
    pub fn set_can_owe(&self, can_owe: bool, cpu_time: &CpuTime, gate: &Gate) {
        self.settle(cpu_time).budget.set_can_owe(can_owe);
        self.changes.fetch_add(1, Ordering::SeqCst);
        gate.nudge();
    }

    pub fn record(&self, cpu_time: &CpuTime) -> CpuBudgetRecord {
        let account = self.settle(cpu_time);
        CpuBudgetRecord {
            budget: account.budget.config(),
            used_ns: account.used_ns,
            throttled_ns: account.throttled_ns,
        }
    }

    /// Settles the account up to now and returns it.
    fn settle(&self, cpu_time: &CpuTime) -> MutexGuard<'_, Account> {
        let mut account = lock(&self.account);
        let (now, used) = (Instant::now(), cpu_time.charged_ns());
        let elapsed = now.saturating_duration_since(account.settled);
        let spent = used.saturating_sub(account.used_ns);
        account.budget.pass(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), spent);
        (account.settled, account.used_ns) = (now, used);
        account
    }
}

impl Allowance<'_> {
    /// Returns true if the vCPU may run a slice now. Otherwise waits at `gate` and returns false: check the gate again.
    pub fn next_slice(&self, gate: &Gate) -> bool {
        let quota = self.quota;
        let changes = quota.changes.load(Ordering::SeqCst);
        let (wait, slice) = {
            let account = quota.settle(self.cpu_time);
            (account.budget.wait_ns(), account.budget.slice_ns(quota.vcpus))
        };
        if wait == 0 {
            if let Err(error) = self.timer.set(slice) {
                log::error!("cannot set a CPU timer, so a vCPU is not throttled: {error}");
            }
            return true;
        }
        let began = Instant::now();
        gate.hold(Duration::from_nanos(wait), || quota.changes.load(Ordering::SeqCst) == changes);
        let held = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut account = lock(&quota.account);
        account.throttled_ns = account.throttled_ns.saturating_add(held);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::time::ThreadClock;
    use machine::limits::CpuBalance;
    use std::sync::Arc;

    #[test]
    fn device_thread_time_is_charged_to_the_budget() {
        const SPENT: u64 = 5_000_000;
        let balance = CpuBalance { saved_ns: 1_000_000, ..CpuBalance::default() };
        // The rate is so low that almost nothing is earned during the test.
        let config = CpuBudgetConfig { earned_ppm: 1, cap_ns: 1 << 40, can_owe: false, owed_cap_ns: 0, balance };
        let device = Arc::new(ThreadClock::default());
        let time = CpuTime::new(1, vec![Arc::clone(&device)]);
        let quota = Quota::new(config, 1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _counted = device.count_this_thread().unwrap();
                let mut sum = 0_u64;
                while device.ns() < SPENT {
                    sum = std::hint::black_box(sum + 1);
                }
            });
        });
        let record = quota.record(&time);
        assert!(record.used_ns >= SPENT, "{record:?}");
        assert!(record.budget.balance.overdrawn_ns >= SPENT / 2, "{record:?}");
    }
}
