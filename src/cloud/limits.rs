//! Converts an instance's EC2 limits for CPU, disks and network to the VMM's rate limits.

use super::error::CloudError;
use super::instances::Instances;
use super::lookup::figures_of;
use super::now;
use ec2::credits::{CreditBalance, CreditMode, CreditRules, KeptCredits};
use ec2::instance_type::InstanceType;
use ec2::performance::{Performance, Speed};
use ec2::state::InstanceState;
use ec2::volume::{Role, VolumeSize, VolumeSpec};
use ec2::{ErrorCode, InstanceId, catalog};
use machine::MachineConfig;
use machine::control::VmmStatus;
use machine::kept_balance::KeptBalance;
use machine::limits::{CpuBalance, CpuBudgetConfig, DiskLimits, NetLimits, Rate};
use node::host::MachineLimits;
use store::{InstanceRecord, VolumeRecord};

/// Returns the limits of an instance's type, or none if the instance is exempt.
pub(super) fn limits_of(record: &InstanceRecord) -> MachineLimits {
    let Some(instance_type) = limited_type(record) else { return MachineLimits::default() };
    let cpu_budget = CreditRules::of(instance_type, record.spec.size.vcpus).map(|rules| {
        let mode = mode_of(record, &rules);
        budget(&rules, mode, rules.at_start(mode, record.status.credits.as_ref(), now()))
    });
    MachineLimits { cpu_budget, ..device_limits(instance_type) }
}

/// Applies the limits of an instance type to the VM of an ephemeral instance, which has no record.
pub(super) fn limit_as(config: &mut MachineConfig, instance_type: &InstanceType) {
    config.cpu_budget = CreditRules::of(instance_type, config.cpus.count).map(|rules| {
        let mode = rules.default_mode();
        budget(&rules, mode, rules.at_launch(mode))
    });
    let limits = device_limits(instance_type);
    config.disk_limits = limits.disks;
    if let Some(net) = &mut config.net {
        net.limits = limits.network;
    }
    // The disks are not EBS volumes and have no volume type, so they get the limits of a default volume.
    let plain = VolumeSpec { size: VolumeSize::from_gib(1), ..VolumeSpec::default() };
    if let Ok(figures) = plain.figures(None, Role::Root) {
        config.disks.iter_mut().for_each(|disk| disk.limits = Some(disk_limits(figures.performance())));
    }
}

fn device_limits(instance_type: &InstanceType) -> MachineLimits {
    MachineLimits {
        cpu_budget: None,
        disks: instance_type.ebs_performance().map(disk_limits),
        network: Some(NetLimits { bytes: rate(instance_type.network_speed()) }),
    }
}

/// Returns a volume's limits, or `None` if its recorded parameters are no longer valid.
pub(super) fn volume_limits(volume: &VolumeRecord) -> Option<DiskLimits> {
    figures_of(volume).ok().map(|figures| disk_limits(figures.performance()))
}

fn limited_type(record: &InstanceRecord) -> Option<&'static InstanceType> {
    if record.spec.no_limits { None } else { catalog::find(&record.spec.size.instance_type).ok() }
}

/// Returns an instance's credit rules, or `None` if it is not burstable.
pub fn credit_rules(record: &InstanceRecord) -> Option<CreditRules> {
    CreditRules::of(catalog::find(&record.spec.size.instance_type).ok()?, record.spec.size.vcpus)
}

pub fn mode_of(record: &InstanceRecord, rules: &CreditRules) -> CreditMode {
    record.spec.cpu_credits.unwrap_or_else(|| rules.default_mode())
}

/// Refuses a credit mode for an instance type without credits.
pub(super) fn check_credits(mode: Option<CreditMode>, instance_type: &InstanceType) -> Result<(), CloudError> {
    if mode.is_none() || instance_type.credits.is_some() {
        return Ok(());
    }
    Err(CloudError::refused(
        ErrorCode::InvalidParameterCombination,
        format!("The instance type '{}' is not burstable and has no CPU credits.", instance_type.name),
        Some("`wisp types burstable` lists the burstable types.".into()),
    ))
}

fn budget(rules: &CreditRules, mode: CreditMode, balance: CreditBalance) -> CpuBudgetConfig {
    let CreditBalance { saved_ns, launch_ns, surplus_ns, charged_ns } = balance;
    CpuBudgetConfig {
        earned_ppm: rules.earned_ppm(),
        cap_ns: rules.limit_ns(),
        can_owe: mode == CreditMode::Unlimited,
        owed_cap_ns: rules.limit_ns(),
        balance: CpuBalance { saved_ns, extra_ns: launch_ns, owed_ns: surplus_ns, overdrawn_ns: 0, charged_ns },
    }
}

pub fn credits_of(balance: &CpuBalance) -> CreditBalance {
    let CpuBalance { saved_ns, extra_ns, owed_ns, charged_ns, .. } = *balance;
    CreditBalance { saved_ns, launch_ns: extra_ns, surplus_ns: owed_ns, charged_ns }
}

/// Time for which a VM has been throttled since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThrottledTime {
    /// Sum over all vCPUs.
    pub cpus_ns: u64,
    /// Sum over all disks.
    pub disks_ns: u64,
    pub network_ns: u64,
}

pub fn throttled_time(status: &VmmStatus) -> ThrottledTime {
    ThrottledTime {
        cpus_ns: status.cpu_budget.as_ref().map_or(0, |now| now.throttled_ns),
        disks_ns: status.disks.iter().map(|disk| disk.throttled_ns).fold(0, u64::saturating_add),
        network_ns: status.net.as_ref().map_or(0, |net| net.throttled_ns),
    }
}

fn rate(Speed { baseline, peak, savings }: Speed) -> Rate {
    Rate { baseline, peak, savings }
}

fn disk_limits(Performance { bytes, operations, operation_bytes }: Performance) -> DiskLimits {
    DiskLimits { bytes: Some(rate(bytes)), operations: Some(rate(operations)), operation_bytes }
}

impl Instances<'_> {
    /// Returns the CPU credits of an instance at its stop, or `None` if its VMM was killed and could not save them.
    pub(super) fn kept_credits(&self, id: InstanceId) -> Option<KeptCredits> {
        let kept = self.cloud.node.instances().kept_balance(id);
        kept.map(|KeptBalance { balance, at }| KeptCredits { balance: credits_of(&balance), at })
    }

    pub(super) fn apply_credit_mode(&self, record: &InstanceRecord) -> Result<(), CloudError> {
        let Some(rules) = credit_rules(record).filter(|_| !record.spec.no_limits && record.status.state.has_machine())
        else {
            return Ok(());
        };
        let can_owe = mode_of(record, &rules) == CreditMode::Unlimited;
        Ok(self.cloud.node.instances().set_can_owe(record.meta.id, can_owe)?)
    }

    pub(super) fn apply_volume_limits(&self, volume: &VolumeRecord) -> Result<(), CloudError> {
        let Some(attachment) = &volume.status.attachment else { return Ok(()) };
        let record = self.find(&attachment.instance_id.to_string())?;
        let limits = volume_limits(volume).filter(|_| !record.spec.no_limits);
        let (Some(limits), InstanceState::Running) = (limits, record.status.state) else { return Ok(()) };
        Ok(self.cloud.node.instances().limit_disk(record.meta.id, volume.meta.id, limits)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::credits::{CREDIT_NS, in_credits};
    use machine::limits::CpuBudget;

    const SECOND: u64 = 1_000_000_000;
    const HOUR: u64 = 3600;

    /// A VM with the CPU budget of an instance type, in simulated time.
    struct SimulatedVm {
        budget: CpuBudget,
        vcpus: u64,
    }

    impl SimulatedVm {
        fn of(name: &str, mode: Option<CreditMode>) -> SimulatedVm {
            let known = catalog::find(name).unwrap();
            let rules = CreditRules::of(known, known.vcpus).unwrap();
            let mode = mode.unwrap_or(rules.default_mode());
            let budget = CpuBudget::new(budget(&rules, mode, rules.at_launch(mode)));
            SimulatedVm { budget, vcpus: known.vcpus.into() }
        }

        /// Simulates a guest that tries to use `percent` of all vCPUs. Returns the percentage that it got.
        fn wants(&mut self, percent: u64, seconds: u64) -> f64 {
            let (mut passed, mut used) = (0, 0);
            let until = seconds * SECOND;
            while passed < until {
                let wait = self.budget.wait_ns().min(until - passed);
                self.budget.pass(wait, 0);
                passed += wait;
                // All vCPUs run at `percent` until the slice is used up.
                let slice = self.budget.slice_ns(self.vcpus as u32);
                let left = until - passed;
                let elapsed = (slice * 100).checked_div(percent).unwrap_or(left).clamp(1, left.max(1));
                self.budget.pass(elapsed, elapsed * percent / 100 * self.vcpus);
                passed += elapsed;
                used += elapsed * percent / 100 * self.vcpus;
            }
            used as f64 * 100.0 / (until * self.vcpus) as f64
        }

        fn credits(&self) -> CreditBalance {
            credits_of(&self.budget.config().balance)
        }
    }

    fn about(value: f64, expected: f64) {
        assert!((value - expected).abs() < 0.05, "{value} for {expected}");
    }

    #[test]
    fn t2_micro_falls_to_baseline_after_launch_credits() {
        let mut micro = SimulatedVm::of("t2.micro", None);
        about(micro.wants(100, 1800), 100.0);
        about(micro.credits().credits(), 3.0);
        assert_eq!(micro.credits().launch_ns, 0);
        // Uses up the remaining three credits and those earned meanwhile.
        micro.wants(100, 300);
        about(micro.wants(100, HOUR), 10.0);
        about(micro.credits().credits(), 0.0);
        // EC2 documents 6 credits an hour, and at most 144.
        micro.wants(0, 10 * HOUR);
        about(micro.credits().credits(), 60.0);
        micro.wants(0, 100 * HOUR);
        about(micro.credits().credits(), 144.0);
    }

    #[test]
    fn launch_credits_do_not_count_toward_limit() {
        let mut micro = SimulatedVm::of("t2.micro", None);
        micro.wants(0, 30 * HOUR);
        about(micro.credits().credits(), 174.0);
        micro.wants(100, 1800);
        about(micro.credits().credits(), 144.0);
    }

    #[test]
    fn credits_are_constant_at_baseline() {
        let mut large = SimulatedVm::of("t3.large", Some(CreditMode::Standard));
        large.wants(0, HOUR);
        about(large.credits().credits(), 36.0);
        about(large.wants(30, 24 * HOUR), 30.0);
        about(large.credits().credits(), 36.0);
    }

    #[test]
    fn burstable_type_runs_at_baseline_without_credits() {
        for known in catalog::all() {
            let Some(credits) = known.credits else { continue };
            let mut vm = SimulatedVm::of(known.name, Some(CreditMode::Standard));
            vm.budget.pass(0, credits_of(&vm.budget.config().balance).launch_ns);
            let share = vm.wants(100, 600);
            assert!((share - credits.baseline_percent).abs() < 0.5, "{}: {share}", known.name);
        }
    }

    #[test]
    fn unlimited_t3_runs_on_surplus_and_repays() {
        let mut nano = SimulatedVm::of("t3.nano", None);
        about(nano.wants(100, HOUR), 100.0);
        // 120 credits were spent and 6 earned.
        about(in_credits(nano.credits().surplus_ns), 114.0);
        nano.wants(0, 19 * HOUR);
        about(in_credits(nano.credits().surplus_ns), 0.0);
        nano.wants(0, HOUR);
        about(nano.credits().credits(), 6.0);
        // A day's earnings (144) can be paid back; the rest is charged.
        nano.wants(100, 2 * HOUR);
        about(in_credits(nano.credits().surplus_ns), 144.0);
        about(in_credits(nano.credits().charged_ns), 240.0 - 12.0 - 6.0 - 144.0);
        assert_eq!(CREDIT_NS, 60 * SECOND);
    }
}
