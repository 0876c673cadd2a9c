//! Determines whether a figure is bounded by a limit of the instance type or by this host.
//!
//! A type's limit is the bound if its limiter throttled the guest, or if the figure is within a tenth of the rate. A
//! figure below all limits is bounded by the host.

use super::measure::{About, Measure};
use super::statistics::median;
use ec2::InstanceType;
use ec2::credits::CreditMode;
use machine::limits::{DiskLimits, Rate};

/// A figure of at least this share of a rate is bounded by the rate.
const NEAR: f64 = 0.9;
/// A guest that is throttled for more than this share of the time is bounded by the limiter.
const THROTTLED: f64 = 0.05;
/// A vCPU that gets less than this share of a CPU is assumed to compete with other work.
const WHOLE: f64 = 0.8;
/// Maximum ratio of the largest to the smallest figure if the host's CPUs are otherwise idle.
const STEADY: f64 = 1.25;
const MIB: f64 = 1_048_576.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The instance type or its volume: the limit would be the same in EC2.
    Type,
    /// This host: the limit would differ elsewhere.
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    pub by: By,
    /// The limit, without figures of the measurement: equal limits of several measures have equal texts.
    pub limit: String,
    /// Figures of this measurement.
    pub detail: Option<String>,
}

/// Observations of the VMM during a measurement. All fields except `cpu_share` are the shares of the time for which a
/// limiter throttled the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Observed {
    /// CPU time of the vCPUs as a share of the time available to the workload's threads. Above 1 if other guest threads
    /// also ran.
    pub cpu_share: f64,
    pub cpu_throttled: f64,
    pub disk_throttled: f64,
    pub net_throttled: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// In the measure's unit.
    pub figure: f64,
    /// Size of the measured memory or file in bytes, or 0 if the measure does not depend on it.
    pub bytes: u64,
    pub observed: Observed,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    pub volume: Option<DiskLimits>,
    /// Limits for all EBS volumes of the instance together.
    pub path: Option<DiskLimits>,
    pub network: Option<Rate>,
    /// `None` if the type has no CPU credits.
    pub credits: Option<CreditMode>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    pub cpu: String,
    pub cpus: u32,
    pub software_kvm: bool,
    /// Size of the last-level cache in bytes.
    pub cache: Option<u64>,
}

/// Determines the bound of a measure from its samples. There must be at least one sample.
pub fn judge(measure: &Measure, of: &InstanceType, limits: &Limits, host: &HostFacts, samples: &[Sample]) -> Bound {
    let median_of = |part: fn(&Sample) -> f64| median(samples.iter().map(part));
    let figure = median_of(|sample| sample.figure);
    let seen = Observed {
        cpu_share: median_of(|sample| sample.observed.cpu_share),
        cpu_throttled: median_of(|sample| sample.observed.cpu_throttled),
        disk_throttled: median_of(|sample| sample.observed.disk_throttled),
        net_throttled: median_of(|sample| sample.observed.net_throttled),
    };
    if seen.cpu_throttled > THROTTLED {
        let baseline = of.credits.map_or(100.0, |credits| credits.baseline_percent);
        return type_bound(format!("no CPU credits left, so {baseline}% of each vCPU"))
            .with(throttled(seen.cpu_throttled));
    }
    match measure.about {
        About::OneCpu => {
            cpu(&seen, 1, host).or_else(|| unsteady(samples)).unwrap_or_else(|| host_bound("speed of one CPU"))
        }
        About::AllCpus => cpu(&seen, of.vcpus, host).or_else(|| unsteady(samples)).unwrap_or_else(|| {
            let vcpus = of.vcpus;
            type_bound(format!("{}, each as fast as one of this host's CPUs", plural(vcpus, "vCPU")))
        }),
        About::Memory => cpu(&seen, 1, host).unwrap_or_else(|| memory(median_of(|sample| sample.bytes as f64), host)),
        About::DiskBytes | About::DiskOperations => disk(measure, figure, seen.disk_throttled, limits, host),
        About::Network => network(figure, seen.net_throttled, limits, host),
        About::NetworkLatency => speed(host, "network latency").with("the type does not limit latency".into()),
        About::Start => speed(host, "start of a VM"),
        About::Command => command(&seen, of, host),
    }
}

/// Returns the host as the bound if it has fewer CPUs than `threads`, or if the vCPUs competed with other work.
fn cpu(seen: &Observed, threads: u32, host: &HostFacts) -> Option<Bound> {
    if threads > host.cpus {
        return Some(host_bound(&format!("only {} for {threads} vCPUs", plural(host.cpus, "CPU"))));
    }
    let percent = seen.cpu_share * 100.0;
    let bound = || host_bound("CPUs busy with other work").with(format!("each vCPU got {percent:.0}% of a CPU"));
    (seen.cpu_share < WHOLE).then(bound)
}

/// Returns the host as the bound if the figures vary too much. This also detects steal time that the host cannot see.
fn unsteady(samples: &[Sample]) -> Option<Bound> {
    let figures = samples.iter().map(|sample| sample.figure);
    let (smallest, largest) = (figures.clone().fold(f64::INFINITY, f64::min), figures.fold(0.0, f64::max));
    let ratio = largest / smallest;
    let percent = (ratio - 1.0) * 100.0;
    let bound = || host_bound("unsteady CPU speed").with(format!("figures differ by {percent:.0}% between runs"));
    (ratio > STEADY).then(bound)
}

fn memory(bytes: f64, host: &HostFacts) -> Bound {
    let mib = bytes / MIB;
    match host.cache.map(|cache| cache as f64) {
        Some(cache) if bytes <= cache => {
            let detail = format!("{mib:.0} MiB were measured; the last-level cache has {:.0} MiB", cache / MIB);
            host_bound("CPU caches").with(detail)
        }
        _ => host_bound("memory").with(format!("{mib:.0} MiB were measured")),
    }
}

struct Candidate {
    whose: &'static str,
    text: String,
    most: f64,
    always: f64,
}

fn disk(measure: &Measure, figure: f64, throttled: f64, limits: &Limits, host: &HostFacts) -> Bound {
    let bytes = measure.about == About::DiskBytes;
    let unit = if bytes { "MiB/s" } else { "IOPS" };
    let candidate = |whose, limits: Option<DiskLimits>| {
        let rate = if bytes { limits?.bytes } else { limits?.operations }?;
        let scale = if bytes { MIB } else { 1.0 };
        let (most, always) = (rate.peak as f64 / scale, rate.baseline as f64 / scale);
        Some(Candidate { whose, text: format!("{} {unit}", number(most)), most, always })
    };
    let candidates = [candidate("root volume", limits.volume), candidate("EBS path", limits.path)];
    rated(candidates, figure, throttled, unit).unwrap_or_else(|(lowest, percent)| match lowest {
        Some(Candidate { whose, text, .. }) => {
            speed(host, "disk").with(format!("{percent:.0}% of the {whose}'s {text}"))
        }
        None => speed(host, "disk"),
    })
}

fn network(figure: f64, throttled: f64, limits: &Limits, host: &HostFacts) -> Bound {
    let candidate = limits.network.map(|rate| {
        let mbits = |bytes: u64| bytes as f64 / 125_000.0;
        let (most, always) = (mbits(rate.peak), mbits(rate.baseline));
        Candidate { whose: "network", text: format!("{} Mbit/s", number(most)), most, always }
    });
    rated([candidate, None], figure, throttled, "Mbit/s").unwrap_or_else(|(lowest, percent)| match lowest {
        Some(Candidate { text, .. }) => {
            let percent = if percent < 1.0 { "less than 1".into() } else { format!("{percent:.0}") };
            speed(host, "network").with(format!("{percent}% of the type's {text}"))
        }
        None => speed(host, "network"),
    })
}

/// Returns the lowest limit as the bound if it was reached. Otherwise, returns it and the figure as a percentage of it.
fn rated(
    candidates: [Option<Candidate>; 2],
    figure: f64,
    throttled: f64,
    unit: &str,
) -> Result<Bound, (Option<Candidate>, f64)> {
    let lowest = candidates.into_iter().flatten().min_by(|one, other| one.most.total_cmp(&other.most));
    let Some(lowest) = lowest else { return Err((None, 0.0)) };
    if throttled <= THROTTLED && figure < NEAR * lowest.most {
        let percent = figure / lowest.most * 100.0;
        return Err((Some(lowest), percent));
    }
    let Candidate { whose, text, most, always } = lowest;
    let while_saved = (always < most).then(|| format!(" during a burst, {} {unit} afterward", number(always)));
    Ok(type_bound(format!("{whose}: {text}{}", while_saved.unwrap_or_default())))
}

fn command(seen: &Observed, of: &InstanceType, host: &HostFacts) -> Bound {
    if seen.disk_throttled > THROTTLED {
        return type_bound("volumes".into()).with(throttled(seen.disk_throttled));
    }
    if seen.net_throttled > THROTTLED {
        return type_bound("network".into()).with(throttled(seen.net_throttled));
    }
    let busy = format!("the vCPUs were {:.0}% busy", seen.cpu_share * 100.0);
    if seen.cpu_share >= WHOLE && of.vcpus <= host.cpus {
        return type_bound(plural(of.vcpus, "vCPU")).with(busy);
    }
    speed(host, "no limit of the type was reached").with(busy)
}

impl Bound {
    fn with(self, detail: String) -> Bound {
        Bound { detail: Some(detail), ..self }
    }
}

fn type_bound(limit: String) -> Bound {
    Bound { by: By::Type, limit, detail: None }
}

fn host_bound(limit: &str) -> Bound {
    Bound { by: By::Host, limit: limit.into(), detail: None }
}

/// Returns the host's speed as the bound. On software KVM, the emulation of guest kernels is slower than all else.
fn speed(host: &HostFacts, of: &str) -> Bound {
    host_bound(if host.software_kvm { "emulated guest kernels (software KVM)" } else { of })
}

fn throttled(share: f64) -> String {
    format!("throttled {:.0}% of the time", share * 100.0)
}

fn plural(count: u32, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn number(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::super::measure::{COMMAND, chosen};
    use super::*;
    use ec2::catalog;

    const IDLE: Observed = Observed { cpu_share: 1.0, cpu_throttled: 0.0, disk_throttled: 0.0, net_throttled: 0.0 };

    fn host() -> HostFacts {
        HostFacts { cpu: "a processor".into(), cpus: 2, software_kvm: false, cache: None }
    }

    fn limits() -> Limits {
        let disk = |bytes: u64, operations: u64| DiskLimits {
            bytes: Some(Rate::constant(bytes << 20)),
            operations: Some(Rate::constant(operations)),
            operation_bytes: 0,
        };
        let burst = Rate { baseline: 10 << 20, peak: 100 << 20, savings: 1 };
        Limits {
            volume: Some(disk(125, 3000)),
            path: Some(DiskLimits { bytes: Some(burst), ..disk(0, 4000) }),
            network: Some(Rate { baseline: 4_000_000, peak: 625_000_000, savings: 1 }),
            credits: None,
        }
    }

    fn verdict(name: &str, of: &str, figure: f64, observed: Observed) -> Bound {
        let measure = if name == "command" { &COMMAND } else { chosen([name]).unwrap()[0] };
        judge(measure, catalog::find(of).unwrap(), &limits(), &host(), &[Sample { figure, bytes: 64 << 20, observed }])
    }

    #[track_caller]
    fn is(bound: Bound, by: By, limit: &str, detail: &str) {
        let is_as_expected =
            bound.by == by && bound.limit == limit && bound.detail.as_deref().unwrap_or_default() == detail;
        assert!(is_as_expected, "{bound:?}");
    }

    #[test]
    fn spent_credits_are_type_bound_for_every_measure() {
        let throttled = Observed { cpu_throttled: 0.8, ..IDLE };
        for name in ["integer-one", "disk-read-1", "command"] {
            let bound = verdict(name, "t3.micro", 1.0, throttled);
            is(bound, By::Type, "no CPU credits left, so 10% of each vCPU", "throttled 80% of the time");
        }
    }

    #[test]
    fn vcpus_are_type_bound_if_host_has_cpus() {
        is(verdict("integer-one", "m5.large", 1.0, IDLE), By::Host, "speed of one CPU", "");
        let limit = "2 vCPUs, each as fast as one of this host's CPUs";
        is(verdict("integer-all", "m5.large", 1.0, IDLE), By::Type, limit, "");
        is(verdict("integer-all", "m5.xlarge", 1.0, IDLE), By::Host, "only 2 CPUs for 4 vCPUs", "");
        let crowded = Observed { cpu_share: 0.5, ..IDLE };
        let bound = verdict("integer-all", "m5.large", 1.0, crowded);
        is(bound, By::Host, "CPUs busy with other work", "each vCPU got 50% of a CPU");
    }

    #[test]
    fn unsteady_figures_are_host_bound() {
        let measure = chosen(["integer-all"]).unwrap()[0];
        let of = catalog::find("m5.large").unwrap();
        let judged = |figures: [f64; 3]| {
            let samples = figures.map(|figure| Sample { figure, bytes: 0, observed: IDLE });
            judge(measure, of, &limits(), &host(), &samples)
        };
        let detail = "figures differ by 67% between runs";
        is(judged([100.0, 90.0, 150.0]), By::Host, "unsteady CPU speed", detail);
        assert_eq!(judged([100.0, 90.0, 110.0]).by, By::Type);
    }

    #[test]
    fn lowest_limit_is_bound_if_near_or_throttled() {
        let (kib, mib) = ("disk-random-read-32", "disk-read-32");
        is(verdict(kib, "t3.micro", 2800.0, IDLE), By::Type, "root volume: 3000 IOPS", "");
        let burst = "EBS path: 100 MiB/s during a burst, 10 MiB/s afterward";
        is(verdict(mib, "t3.micro", 95.0, IDLE), By::Type, burst, "");
        is(verdict(mib, "t3.micro", 50.0, IDLE), By::Host, "disk", "50% of the EBS path's 100 MiB/s");
        let throttled = Observed { disk_throttled: 0.5, ..IDLE };
        is(verdict(mib, "t3.micro", 50.0, throttled), By::Type, burst, "");
        let network = "network-throughput";
        let burst = "network: 5000 Mbit/s during a burst, 32 Mbit/s afterward";
        is(verdict(network, "t3.micro", 4900.0, IDLE), By::Type, burst, "");
        is(verdict(network, "t3.micro", 5.0, IDLE), By::Host, "network", "less than 1% of the type's 5000 Mbit/s");
    }

    #[test]
    fn emulation_is_bound_below_limits_on_software_kvm() {
        let host = HostFacts { software_kvm: true, ..host() };
        let of = catalog::find("t3.micro").unwrap();
        for name in ["disk-read-1", "network-throughput", "network-latency", "warm-launch", "boot"] {
            let sample = Sample { figure: 1.0, bytes: 0, observed: IDLE };
            let bound = judge(chosen([name]).unwrap()[0], of, &limits(), &host, &[sample]);
            assert_eq!((bound.by, bound.limit.as_str()), (By::Host, "emulated guest kernels (software KVM)"), "{name}");
        }
    }

    #[test]
    fn memory_within_cache_is_bound_by_cache() {
        is(verdict("memory-latency", "t3.micro", 1.0, IDLE), By::Host, "memory", "64 MiB were measured");
        let host = HostFacts { cache: Some(96 << 20), ..host() };
        let sample = Sample { figure: 1.0, bytes: 64 << 20, observed: IDLE };
        let of = catalog::find("t3.micro").unwrap();
        let bound = judge(chosen(["memory-latency"]).unwrap()[0], of, &limits(), &host, &[sample]);
        is(bound, By::Host, "CPU caches", "64 MiB were measured; the last-level cache has 96 MiB");
    }

    #[test]
    fn command_is_bound_by_throttled_resource() {
        is(verdict("command", "m5.large", 1.0, IDLE), By::Type, "2 vCPUs", "the vCPUs were 100% busy");
        let idle = verdict("command", "m5.large", 1.0, Observed { cpu_share: 0.4, ..IDLE });
        is(idle, By::Host, "no limit of the type was reached", "the vCPUs were 40% busy");
        let network = verdict("command", "m5.large", 1.0, Observed { net_throttled: 0.4, ..IDLE });
        is(network, By::Type, "network", "throttled 40% of the time");
        let disk = verdict("command", "m5.large", 1.0, Observed { disk_throttled: 0.4, ..IDLE });
        is(disk, By::Type, "volumes", "throttled 40% of the time");
    }
}
