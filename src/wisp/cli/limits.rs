//! Limits and balances of an instance for `wisp show` and `wisp top`.

use serde::Serialize;

use super::output;
use cloud::limits::{ThrottledTime, credit_rules, credits_of, mode_of, throttled_time};
use ec2::credits::{CreditBalance, in_credits};
use machine::control::{DiskRecord, VmmStatus};
use machine::limits::{DiskLimits, Rate};
use store::InstanceRecord;

/// Returns the credit balance of the running VMM or, if the instance is stopped, the balance saved at the stop.
fn credits(record: &InstanceRecord, status: Option<&VmmStatus>) -> Option<CreditBalance> {
    let running = status.and_then(|status| status.cpu_budget.as_ref()).map(|now| credits_of(&now.budget.balance));
    running.or(record.status.credits.filter(|_| !record.status.state.has_machine()).map(|kept| kept.balance))
}

/// Formats the credit balance for a table. Surplus credits are subtracted.
pub fn credit_cell(status: &VmmStatus) -> String {
    let Some(now) = &status.cpu_budget else { return "-".into() };
    let credits = credits_of(&now.budget.balance);
    format!("{:.1}", credits.credits() - in_credits(credits.surplus_ns))
}

/// Returns the sum of the throttled times of vCPUs, disks and network since the VMM started, in nanoseconds.
pub fn throttled_ns(status: &VmmStatus) -> u64 {
    let ThrottledTime { cpus_ns, disks_ns, network_ns } = throttled_time(status);
    cpus_ns.saturating_add(disks_ns).saturating_add(network_ns)
}

/// Formats nanoseconds as seconds for a table.
pub fn seconds(ns: u64) -> String {
    format!("{:.1} s", ns as f64 / 1e9)
}

/// Returns labels and texts for an instance's limits.
pub fn lines(record: &InstanceRecord, status: Option<&VmmStatus>) -> Vec<(&'static str, String)> {
    if record.spec.no_limits {
        return vec![("Limits", "none".into())];
    }
    let mut lines = Vec::new();
    if let Some(rules) = credit_rules(record) {
        let mut text = mode_of(record, &rules).to_string();
        if let Some(credits) = credits(record, status) {
            text = format!("{text}; {:.2} of {:.0}", credits.credits(), in_credits(rules.limit_ns()));
            for (ns, what) in [(credits.surplus_ns, "surplus"), (credits.charged_ns, "charged")] {
                if ns > 0 {
                    text = format!("{text}, {:.2} {what}", in_credits(ns));
                }
            }
        }
        if let Some(now) = status.and_then(|status| status.cpu_budget.as_ref()) {
            text = format!("{text}; throttled for {}", seconds(now.throttled_ns));
        }
        lines.push(("CPU credits", text));
    }
    let Some(status) = status else { return lines };
    if let Some(limits) = &status.disk_limits {
        lines.push(("All volumes", disk_text(limits)));
    }
    for DiskRecord { id, limits, burst_percent, throttled_ns, .. } in &status.disks {
        let Some(limits) = limits else { continue };
        let saved = burst_percent.filter(|_| bursts(limits)).map(|percent| format!("; burst balance {percent}%"));
        let throttled = seconds(*throttled_ns);
        // The guest's serial number of a volume is its ID without the hyphen (EC2 User Guide, NVMe EBS volumes).
        let id = id.strip_prefix("vol").map_or_else(|| id.clone(), |digits| format!("vol-{digits}"));
        lines.push((
            "Disk",
            format!("{id}: {}{}; throttled for {throttled}", disk_text(limits), saved.unwrap_or_default()),
        ));
    }
    if let (Some(limits), Some(net)) = (&status.net_limits, &status.net) {
        let text = rate_text(&limits.bytes, |bytes| format!("{}/s", output::bytes(bytes)));
        lines.push(("Network speed", format!("{text} each way; throttled for {}", seconds(net.throttled_ns))));
    }
    lines
}

fn bursts(limits: &DiskLimits) -> bool {
    limits.bytes.iter().chain(&limits.operations).any(|rate| rate.peak > rate.baseline)
}

fn rate_text(rate: &Rate, unit: impl Fn(u64) -> String) -> String {
    if rate.peak > rate.baseline {
        format!("{} (burst {})", unit(rate.baseline), unit(rate.peak))
    } else {
        unit(rate.baseline)
    }
}

fn disk_text(limits: &DiskLimits) -> String {
    let bytes = limits.bytes.iter().map(|rate| rate_text(rate, |bytes| format!("{}/s", output::bytes(bytes))));
    let operations = limits.operations.iter().map(|rate| rate_text(rate, |count| format!("{count} IOPS")));
    operations.chain(bytes).collect::<Vec<_>>().join("; ")
}

/// An instance's limits and balances as JSON, with EC2's and CloudWatch's names where they exist.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct LimitsShape<'a> {
    limited: bool,
    #[serde(flatten)]
    balance: Option<CreditMetrics>,
    #[serde(flatten)]
    running: Option<RunningShape<'a>>,
}

/// CloudWatch's metrics of a credit balance.
#[derive(Serialize)]
pub struct CreditMetrics {
    #[serde(rename = "CPUCreditBalance")]
    credits: f64,
    #[serde(rename = "CPUSurplusCreditBalance")]
    surplus: f64,
    #[serde(rename = "CPUSurplusCreditsCharged")]
    charged: f64,
}

/// The limits that the VMM of a running instance enforces.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RunningShape<'a> {
    #[serde(rename = "CPUCreditUsage", skip_serializing_if = "Option::is_none")]
    credit_usage: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_throttled_seconds: Option<f64>,
    ebs: Option<DiskLimitsShape>,
    volumes: Vec<VolumeShape<'a>>,
    network: NetworkShape,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct VolumeShape<'a> {
    id: &'a str,
    #[serde(flatten)]
    limits: Option<DiskLimitsShape>,
    burst_balance: Option<u64>,
    throttled_seconds: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkShape {
    bytes_per_second: Option<RateShape>,
    throttled_seconds: Option<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DiskLimitsShape {
    bytes_per_second: Option<RateShape>,
    iops: Option<RateShape>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RateShape {
    baseline: u64,
    peak: u64,
}

impl From<&Rate> for RateShape {
    fn from(rate: &Rate) -> Self {
        RateShape { baseline: rate.baseline, peak: rate.peak }
    }
}

impl From<&DiskLimits> for DiskLimitsShape {
    fn from(limits: &DiskLimits) -> Self {
        DiskLimitsShape {
            bytes_per_second: limits.bytes.as_ref().map(RateShape::from),
            iops: limits.operations.as_ref().map(RateShape::from),
        }
    }
}

impl<'a> From<&'a DiskRecord> for VolumeShape<'a> {
    fn from(disk: &'a DiskRecord) -> Self {
        VolumeShape {
            id: &disk.id,
            limits: disk.limits.as_ref().map(DiskLimitsShape::from),
            burst_balance: disk.burst_percent,
            throttled_seconds: in_seconds(disk.throttled_ns),
        }
    }
}

impl From<&CreditBalance> for CreditMetrics {
    fn from(balance: &CreditBalance) -> Self {
        CreditMetrics {
            credits: balance.credits(),
            surplus: in_credits(balance.surplus_ns),
            charged: in_credits(balance.charged_ns),
        }
    }
}

pub fn shape<'a>(record: &InstanceRecord, status: Option<&'a VmmStatus>) -> LimitsShape<'a> {
    LimitsShape {
        limited: !record.spec.no_limits,
        balance: credits(record, status).as_ref().map(CreditMetrics::from),
        running: status.map(running_shape),
    }
}

fn running_shape(status: &VmmStatus) -> RunningShape<'_> {
    let budget = status.cpu_budget.as_ref();
    RunningShape {
        credit_usage: budget.map(|now| in_credits(now.used_ns)),
        cpu_throttled_seconds: budget.map(|now| in_seconds(now.throttled_ns)),
        ebs: status.disk_limits.as_ref().map(DiskLimitsShape::from),
        volumes: status.disks.iter().map(VolumeShape::from).collect(),
        network: NetworkShape {
            bytes_per_second: status.net_limits.as_ref().map(|limits| RateShape::from(&limits.bytes)),
            throttled_seconds: status.net.as_ref().map(|net| in_seconds(net.throttled_ns)),
        },
    }
}

/// Converts nanoseconds to seconds for JSON.
pub fn in_seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::limits::{CpuBalance, CpuBudgetConfig, CpuBudgetRecord};

    #[test]
    fn surplus_credits_are_shown_as_negative_balance() {
        let balance = CpuBalance { owed_ns: 90_000_000_000, ..CpuBalance::default() };
        let budget = CpuBudgetConfig { earned_ppm: 100_000, cap_ns: 0, can_owe: true, owed_cap_ns: 1 << 40, balance };
        let now = CpuBudgetRecord { budget, used_ns: 0, throttled_ns: 2_500_000_000 };
        let status = VmmStatus { cpu_budget: Some(now), ..VmmStatus::default() };
        assert_eq!(credit_cell(&status), "-1.5");
        assert_eq!(seconds(throttled_ns(&status)), "2.5 s");
        assert_eq!(credit_cell(&VmmStatus::default()), "-");
    }

    #[test]
    fn disk_text_shows_baseline_and_burst() {
        let limits = DiskLimits {
            bytes: Some(Rate::constant(125 << 20)),
            operations: Some(Rate { baseline: 100, peak: 3000, savings: 1 }),
            operation_bytes: 0,
        };
        assert_eq!(disk_text(&limits), "100 IOPS (burst 3000 IOPS); 125 MiB/s");
    }
}
