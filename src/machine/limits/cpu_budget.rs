//! A budget of CPU time: earned at a constant rate, saved up to a cap, spent by running. Callers pass the time.
//!
//! Unless surplus is allowed, CPU time beyond the balance is overdrawn: the vCPUs must wait for [`CpuBudget::wait_ns`].

use serde::{Deserialize, Serialize};

const PPM: u128 = 1_000_000;
/// Minimum slice: with a share of 5%, a vCPU runs five times a second. Shorter slices would be inaccurate, because the
/// kernel checks CPU timers once per tick (4 ms at 250 Hz).
const MIN_SLICE_NS: u64 = 10_000_000;
/// Maximum slice, so that the balance is settled at least once per second of CPU time.
const MAX_SLICE_NS: u64 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuBudgetConfig {
    /// The earning rate in millionths of wall-clock time: 100,000 is a tenth of one CPU.
    pub earned_ppm: u64,
    /// The maximum saved balance.
    pub cap_ns: u64,
    /// Allows surplus credits, so that vCPUs are never throttled.
    pub can_owe: bool,
    /// The maximum surplus that is paid back. Surplus beyond it is charged.
    pub owed_cap_ns: u64,
    pub balance: CpuBalance,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuBalance {
    pub saved_ns: u64,
    /// Unspent launch credits, which are spent first and do not count toward the cap.
    #[serde(default)]
    pub extra_ns: u64,
    /// Surplus that earnings pay back.
    #[serde(default)]
    pub owed_ns: u64,
    /// Overdrawn time, for which the vCPUs wait.
    #[serde(default)]
    pub overdrawn_ns: u64,
    /// Charged surplus, which is never paid back: above the cap, or owed when surplus was disabled.
    #[serde(default)]
    pub charged_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuBudgetRecord {
    pub budget: CpuBudgetConfig,
    /// CPU time of vCPU and device threads since the machine's start.
    pub used_ns: u64,
    /// Throttled time since then, summed over the vCPUs.
    pub throttled_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuBudget {
    config: CpuBudgetConfig,
    /// The earned fraction of a nanosecond, in millionths.
    rest: u128,
}

impl CpuBudgetConfig {
    /// Returns true if the rate is valid and not zero, and no sum can overflow.
    pub fn is_sound(&self) -> bool {
        const MOST: u64 = 1 << 60;
        let CpuBalance { saved_ns, extra_ns, owed_ns, overdrawn_ns, charged_ns } = self.balance;
        let sums = [self.cap_ns, self.owed_cap_ns, saved_ns, extra_ns, owed_ns, overdrawn_ns, charged_ns];
        (1..=1_000_000_000).contains(&self.earned_ppm) && sums.into_iter().all(|sum| sum <= MOST)
    }
}

impl CpuBudget {
    pub fn new(config: CpuBudgetConfig) -> CpuBudget {
        CpuBudget { config, rest: 0 }
    }

    /// Returns the configuration with the current balance.
    pub fn config(&self) -> CpuBudgetConfig {
        self.config
    }

    /// Earns for the elapsed wall-clock time, then spends the used CPU time.
    pub fn pass(&mut self, elapsed_ns: u64, used_ns: u64) {
        self.earn(elapsed_ns);
        self.spend(used_ns);
    }

    /// Pays back overdrawn time first and then surplus, and saves the rest.
    fn earn(&mut self, elapsed_ns: u64) {
        let earned = u128::from(elapsed_ns) * u128::from(self.config.earned_ppm) + self.rest;
        self.rest = earned % PPM;
        let mut earned = u64::try_from(earned / PPM).unwrap_or(u64::MAX);
        let CpuBudgetConfig { cap_ns, balance, .. } = &mut self.config;
        for debt in [&mut balance.overdrawn_ns, &mut balance.owed_ns] {
            let paid = earned.min(*debt);
            *debt -= paid;
            earned -= paid;
        }
        // A balance above the cap is kept: it was saved when the cap was higher.
        let room = cap_ns.saturating_sub(balance.saved_ns);
        balance.saved_ns += earned.min(room);
    }

    fn spend(&mut self, mut used: u64) {
        let CpuBudgetConfig { can_owe, owed_cap_ns, balance, .. } = &mut self.config;
        for source in [&mut balance.extra_ns, &mut balance.saved_ns] {
            let spent = used.min(*source);
            *source -= spent;
            used -= spent;
        }
        if !*can_owe {
            balance.overdrawn_ns = balance.overdrawn_ns.saturating_add(used);
            return;
        }
        let owed = used.min(owed_cap_ns.saturating_sub(balance.owed_ns));
        balance.owed_ns += owed;
        balance.charged_ns = balance.charged_ns.saturating_add(used - owed);
    }

    /// Returns the time for which the vCPUs must wait, if they use no CPU time meanwhile.
    pub fn wait_ns(&self) -> u64 {
        let missing = u128::from(self.config.balance.overdrawn_ns) * PPM;
        let wait = missing.saturating_sub(self.rest).div_ceil(u128::from(self.config.earned_ppm.max(1)));
        u64::try_from(wait).unwrap_or(u64::MAX)
    }

    /// Returns the CPU time that each of `vcpus` may run before the budget is settled again.
    pub fn slice_ns(&self, vcpus: u32) -> u64 {
        let CpuBudgetConfig { can_owe, balance, .. } = &self.config;
        if *can_owe {
            return MAX_SLICE_NS;
        }
        let left = balance.saved_ns.saturating_add(balance.extra_ns);
        (left / u64::from(vcpus.max(1))).clamp(MIN_SLICE_NS, MAX_SLICE_NS)
    }

    /// Allows or forbids surplus. When it is allowed, overdrawn time becomes surplus. When it is forbidden, the owed
    /// surplus is charged.
    pub fn set_can_owe(&mut self, can_owe: bool) {
        let CpuBudgetConfig { can_owe: could, balance, .. } = &mut self.config;
        *could = can_owe;
        let ended = if can_owe { &mut balance.overdrawn_ns } else { &mut balance.owed_ns };
        let ended = std::mem::take(ended);
        if can_owe {
            self.spend(ended);
        } else {
            balance.charged_ns = balance.charged_ns.saturating_add(ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn budget(saved: u64, can_owe: bool) -> CpuBudget {
        let balance = CpuBalance { saved_ns: saved, ..CpuBalance::default() };
        let config =
            CpuBudgetConfig { earned_ppm: 100_000, cap_ns: 100 * SECOND, can_owe, owed_cap_ns: 100 * SECOND, balance };
        CpuBudget::new(config)
    }

    fn balance(budget: &CpuBudget) -> CpuBalance {
        budget.config().balance
    }

    #[test]
    fn idle_machine_saves_up_to_cap() {
        let mut budget = budget(0, false);
        budget.pass(10 * SECOND, 0);
        assert_eq!(balance(&budget).saved_ns, SECOND);
        budget.pass(10_000 * SECOND, 0);
        assert_eq!(balance(&budget).saved_ns, 100 * SECOND);
    }

    #[test]
    fn launch_balance_is_spent_first_and_ignores_cap() {
        let mut budget = budget(100 * SECOND, false);
        budget.config.balance.extra_ns = 5 * SECOND;
        budget.pass(0, 7 * SECOND);
        assert_eq!(balance(&budget), CpuBalance { saved_ns: 98 * SECOND, ..CpuBalance::default() });
    }

    #[test]
    fn overdrawn_budget_waits_until_paid_back() {
        let mut budget = budget(SECOND, false);
        budget.pass(0, SECOND + 20_000_000);
        assert_eq!(balance(&budget).overdrawn_ns, 20_000_000);
        assert_eq!(budget.wait_ns(), 200_000_000);
        budget.pass(199_999_999, 0);
        assert_eq!(budget.wait_ns(), 1);
        budget.pass(1, 0);
        assert_eq!((budget.wait_ns(), balance(&budget)), (0, CpuBalance::default()));
    }

    #[test]
    fn surplus_never_throttles_and_is_paid_before_saving() {
        let mut budget = budget(SECOND, true);
        budget.pass(10 * SECOND, 10 * SECOND);
        assert_eq!((balance(&budget).owed_ns, budget.wait_ns()), (8 * SECOND, 0));
        budget.pass(90 * SECOND, 0);
        assert_eq!((balance(&budget).owed_ns, balance(&budget).saved_ns), (0, SECOND));
    }

    #[test]
    fn surplus_beyond_cap_or_when_disabled_is_charged() {
        let mut budget = budget(0, true);
        budget.pass(0, 103 * SECOND);
        assert_eq!((balance(&budget).owed_ns, balance(&budget).charged_ns), (100 * SECOND, 3 * SECOND));
        budget.set_can_owe(false);
        assert_eq!((balance(&budget).owed_ns, balance(&budget).charged_ns), (0, 103 * SECOND));
        budget.pass(0, SECOND);
        assert_eq!(budget.wait_ns(), 10 * SECOND);
        budget.set_can_owe(true);
        assert_eq!((budget.wait_ns(), balance(&budget).owed_ns), (0, SECOND));
    }

    #[test]
    fn slice_grows_with_balance() {
        assert_eq!(budget(0, false).slice_ns(2), MIN_SLICE_NS);
        assert_eq!(budget(SECOND, false).slice_ns(4), SECOND / 4);
        assert_eq!(budget(90 * SECOND, false).slice_ns(4), MAX_SLICE_NS);
        assert_eq!(budget(0, true).slice_ns(2), MAX_SLICE_NS);
    }

    proptest! {
        /// A machine gets at most its initial balance and its earnings, plus one slice.
        #[test]
        fn usage_never_exceeds_balance_and_earnings(
            saved in 0..3 * SECOND,
            ppm in 1_000_u64..2_000_000,
            pieces in prop::collection::vec((0_u64..2 * SECOND, 0_u32..=100), 1..200),
        ) {
            let mut budget = budget(saved, false);
            budget.config.earned_ppm = ppm;
            let (mut elapsed, mut used) = (0_u128, 0_u128);
            for (idle, percent) in pieces {
                budget.pass(idle, 0);
                elapsed += u128::from(idle);
                let wait = budget.wait_ns();
                budget.pass(wait, 0);
                elapsed += u128::from(wait);
                prop_assert_eq!(budget.wait_ns(), 0);
                let slice = budget.slice_ns(1) * u64::from(percent) / 100;
                budget.pass(slice, slice);
                elapsed += u128::from(slice);
                used += u128::from(slice);
            }
            let most = u128::from(saved) + elapsed * u128::from(ppm) / PPM + u128::from(MAX_SLICE_NS);
            prop_assert!(used <= most, "{} of {}", used, most);
            prop_assert!(balance(&budget).saved_ns <= 100 * SECOND);
        }

        #[test]
        fn surplus_conserves_cpu_time(
            pieces in prop::collection::vec((0_u64..10 * SECOND, 0_u64..10 * SECOND), 1..100),
        ) {
            let mut budget = budget(0, true);
            // Without caps, no nanosecond is dropped.
            (budget.config.cap_ns, budget.config.owed_cap_ns) = (1 << 60, 1 << 60);
            let (mut earned, mut used) = (0_i128, 0_i128);
            for (elapsed, spent) in pieces {
                budget.pass(elapsed, spent);
                earned += i128::from(elapsed) * 100_000;
                used += i128::from(spent);
            }
            let CpuBalance { saved_ns, owed_ns, charged_ns, .. } = balance(&budget);
            prop_assert_eq!(charged_ns, 0);
            prop_assert_eq!(i128::from(saved_ns) - i128::from(owed_ns), earned / 1_000_000 - used);
        }
    }
}
