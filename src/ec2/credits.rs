//! CPU credits of burstable instances: earning rate, accrual limit, and the effect of a launch, a stop and a start.
//!
//! One credit is one vCPU for one minute. This module counts in nanoseconds of CPU time. The VMM updates the balance
//! while the instance is running.
//!
//! Source: EC2 User Guide, "Burstable performance instances".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::Ec2Error;
use super::instance_type::InstanceType;

pub const CREDIT_NS: u64 = 60_000_000_000;
/// Launch credits for each vCPU of a T2 instance in standard mode.
const LAUNCH_CREDITS: u64 = 30;
/// The accrual limit, in hours of earning. The surplus that later earnings pay back has the same limit.
const ACCRUAL_HOURS: u64 = 24;
/// Seconds for which a stopped T3 instance keeps its credits.
const KEPT_FOR: u64 = 7 * 24 * 3600;

/// The behavior when an instance has used up its credits (`CreditSpecification`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CreditMode {
    /// The instance is throttled to its baseline.
    Standard,
    /// The instance spends surplus credits. Later earnings pay them back, or EC2 charges for them.
    Unlimited,
}

impl CreditMode {
    pub fn as_str(self) -> &'static str {
        match self {
            CreditMode::Standard => "standard",
            CreditMode::Unlimited => "unlimited",
        }
    }
}

impl fmt::Display for CreditMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CreditMode {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        [CreditMode::Standard, CreditMode::Unlimited]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| Ec2Error::invalid_parameter("CpuCredits", text, "it must be standard or unlimited."))
    }
}

/// A credit balance in nanoseconds of CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreditBalance {
    /// Earned and unspent credits.
    pub saved_ns: u64,
    /// Unspent launch credits. They are spent first and do not count toward the accrual limit.
    pub launch_ns: u64,
    /// Credits spent before they were earned (`CPUSurplusCreditBalance`).
    pub surplus_ns: u64,
    /// Surplus credits that EC2 would charge for (`CPUSurplusCreditsCharged`).
    pub charged_ns: u64,
}

impl CreditBalance {
    /// Returns the balance in credits (`CPUCreditBalance`).
    pub fn credits(&self) -> f64 {
        in_credits(self.saved_ns.saturating_add(self.launch_ns))
    }
}

pub fn in_credits(ns: u64) -> f64 {
    ns as f64 / CREDIT_NS as f64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptCredits {
    pub balance: CreditBalance,
    /// Time of the stop, in seconds since 1970.
    pub at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditRules {
    vcpus: u64,
    /// T2 instances receive launch credits in standard mode, and lose all credits when they stop.
    is_t2: bool,
    /// The earning rate, in millionths of one vCPU's time.
    earned_ppm: u64,
}

impl CreditRules {
    /// Returns the rules for a type with `vcpus`, which may differ from the type's own number. None if it is not
    /// burstable.
    pub fn of(instance_type: &InstanceType, vcpus: u32) -> Option<CreditRules> {
        let credits = instance_type.credits?;
        let vcpus = u64::from(vcpus);
        let earned_ppm = (credits.baseline_percent * 10_000.0).round() as u64 * vcpus;
        Some(CreditRules { vcpus, is_t2: instance_type.family() == "t2", earned_ppm })
    }

    pub fn default_mode(&self) -> CreditMode {
        if self.is_t2 { CreditMode::Standard } else { CreditMode::Unlimited }
    }

    pub fn earned_ppm(&self) -> u64 {
        self.earned_ppm
    }

    /// Returns the accrual limit, which is also the limit of the surplus that is paid back, in nanoseconds.
    pub fn limit_ns(&self) -> u64 {
        // A millionth of a second is 1,000 nanoseconds.
        self.earned_ppm * 1_000 * 3_600 * ACCRUAL_HOURS
    }

    pub fn at_launch(&self, mode: CreditMode) -> CreditBalance {
        let gets_launch_credits = self.is_t2 && mode == CreditMode::Standard;
        let launch_ns = if gets_launch_credits { LAUNCH_CREDITS * self.vcpus * CREDIT_NS } else { 0 };
        CreditBalance { launch_ns, ..CreditBalance::default() }
    }

    /// Returns the balance at launch plus the credits kept at the stop, up to the type's accrual limit. T2 instances
    /// keep no credits; those of other types expire.
    pub fn at_start(&self, mode: CreditMode, kept: Option<&KeptCredits>, now: u64) -> CreditBalance {
        let mut balance = self.at_launch(mode);
        let Some(kept) = kept else { return balance };
        // The surplus was charged when the instance stopped.
        balance.charged_ns = kept.balance.charged_ns.saturating_add(kept.balance.surplus_ns);
        if !self.is_t2 && now.saturating_sub(kept.at) < KEPT_FOR {
            balance.saved_ns = kept.balance.saved_ns.min(self.limit_ns());
        }
        balance
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use proptest::prelude::*;

    fn rules(name: &str) -> CreditRules {
        let known = catalog::find(name).unwrap();
        CreditRules::of(known, known.vcpus).unwrap()
    }

    fn kept(saved: u64, at: u64) -> KeptCredits {
        let balance = CreditBalance { saved_ns: saved * CREDIT_NS, ..CreditBalance::default() };
        KeptCredits { balance, at }
    }

    #[test]
    fn earnings_and_limits_match_catalogue() {
        for row in catalog::all() {
            let rules = CreditRules::of(row, row.vcpus);
            assert_eq!(rules.is_some(), row.credits.is_some());
            let (Some(rules), Some(credits)) = (rules, row.credits) else { continue };
            let per_hour = rules.earned_ppm() as f64 * 60.0 / 1e6;
            assert!((per_hour - credits.per_hour).abs() < 1e-9, "{}", row.name);
            assert!((in_credits(rules.limit_ns()) - credits.maximum).abs() < 1e-9, "{}", row.name);
        }
    }

    #[test]
    fn t2_is_standard_with_launch_credits() {
        let micro = rules("t2.micro");
        assert_eq!(micro.default_mode(), CreditMode::Standard);
        assert_eq!(micro.at_launch(CreditMode::Standard).credits(), 30.0);
        assert_eq!(micro.at_launch(CreditMode::Unlimited).credits(), 0.0);
        assert_eq!(rules("t2.2xlarge").at_launch(CreditMode::Standard).credits(), 240.0);
    }

    #[test]
    fn t3_is_unlimited_without_launch_credits() {
        for name in ["t3.nano", "t3a.xlarge"] {
            assert_eq!(rules(name).default_mode(), CreditMode::Unlimited);
            assert_eq!(rules(name).at_launch(CreditMode::Standard), CreditBalance::default());
        }
    }

    #[test]
    fn stopped_t2_loses_credits_and_gets_launch_credits() {
        let balance = rules("t2.micro").at_start(CreditMode::Standard, Some(&kept(100, 1000)), 1001);
        assert_eq!((balance.saved_ns, balance.credits()), (0, 30.0));
    }

    #[test]
    fn stopped_t3_keeps_credits_for_seven_days() {
        let micro = rules("t3.micro");
        let after =
            |seconds: u64| micro.at_start(CreditMode::Standard, Some(&kept(100, 1000)), 1000 + seconds).credits();
        assert_eq!(after(0), 100.0);
        assert_eq!(after(7 * 86_400 - 1), 100.0);
        assert_eq!(after(7 * 86_400), 0.0);
        // A t3.nano accrues at most 144 credits.
        assert_eq!(rules("t3.nano").at_start(CreditMode::Standard, Some(&kept(200, 0)), 1).credits(), 144.0);
    }

    #[test]
    fn surplus_is_charged_at_stop() {
        let mut kept = kept(0, 0);
        (kept.balance.surplus_ns, kept.balance.charged_ns) = (5 * CREDIT_NS, CREDIT_NS);
        let balance = rules("t3.micro").at_start(CreditMode::Unlimited, Some(&kept), 1);
        assert_eq!((balance.surplus_ns, in_credits(balance.charged_ns)), (0, 6.0));
    }

    #[test]
    fn credit_mode_round_trips() {
        for mode in [CreditMode::Standard, CreditMode::Unlimited] {
            assert_eq!(mode.to_string().parse::<CreditMode>(), Ok(mode));
        }
        assert!("Unlimited".parse::<CreditMode>().is_err());
    }

    proptest! {
        #[test]
        fn start_never_exceeds_accrual_limit_and_launch_credits(saved in 0..1_000_u64, at: u64, now: u64) {
            for row in catalog::all() {
                let Some(rules) = CreditRules::of(row, row.vcpus) else { continue };
                for mode in [CreditMode::Standard, CreditMode::Unlimited] {
                    let balance = rules.at_start(mode, Some(&kept(saved, at)), now);
                    prop_assert!(balance.saved_ns <= rules.limit_ns());
                    prop_assert_eq!(balance.launch_ns, rules.at_launch(mode).launch_ns);
                }
            }
        }
    }
}
