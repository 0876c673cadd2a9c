//! Finds the bound of a figure: a limit of the instance type, or this host.
//!
//! A type's limit is named if it was observed: its limiter throttled the guest, or the figure is within a tenth of the
//! rate. A figure below all limits is bounded by the host.

use super::measure::{About, Measure};
use super::statistics::median;
use crate::ec2::InstanceType;
use crate::ec2::credits::CreditMode;
use crate::vmm::limits::{DiskLimits, Rate};

/// The share of a rate from which a figure counts as bounded by it.
const NEAR: f64 = 0.9;
/// The share of throttled time from which a guest counts as bounded.
const HELD: f64 = 0.05;
/// The minimum share of a CPU that a vCPU gets if it has the CPU to itself.
const WHOLE: f64 = 0.8;
/// The maximum ratio between the largest and the smallest figure of an otherwise idle CPU.
const STEADY: f64 = 1.25;
const MIB: f64 = 1_048_576.0;

/// The owner of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The instance type or its volume: the limit would be the same in EC2.
    Type,
    /// This host: the limit would differ elsewhere.
    Host,
}

/// The bound of a measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The owner of the limit.
    pub by: By,
    /// The limit, in a phrase.
    pub why: String,
}

/// Observations from outside during a measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Observed {
    /// CPU time of the vCPUs as a share of the time available to the workload's threads. Above 1 if other threads ran.
    pub cpu_share: f64,
    /// The share of time for which vCPUs were throttled.
    pub cpu_held: f64,
    /// The share of time for which disks were throttled.
    pub disk_held: f64,
    /// The share of time for which the network was throttled.
    pub net_held: f64,
}

/// The figure of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The figure in the measure's unit.
    pub figure: f64,
    /// The size in bytes of the memory or file that was measured; 0 where it does not matter.
    pub bytes: u64,
    /// The observations during the run.
    pub observed: Observed,
}

/// The limits of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// The root volume's limits.
    pub volume: Option<DiskLimits>,
    /// The limits of the path to all volumes.
    pub path: Option<DiskLimits>,
    /// The network's limit.
    pub network: Option<Rate>,
    /// The credit mode, if the type has CPU credits.
    pub credits: Option<CreditMode>,
}

/// Facts about the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    /// The CPU's name.
    pub cpu: String,
    /// Usable CPUs.
    pub cpus: u32,
    /// True on software KVM.
    pub software_kvm: bool,
    /// The size of the last-level cache in bytes.
    pub cache: Option<u64>,
}

/// Judges the bound of a measure from its samples, of which there must be at least one.
pub fn judge(measure: &Measure, of: &InstanceType, limits: &Limits, host: &HostFacts, samples: &[Sample]) -> Bound {
    let middle = |part: fn(&Sample) -> f64| median(samples.iter().map(part));
    let figure = middle(|sample| sample.figure);
    let seen = Observed {
        cpu_share: middle(|sample| sample.observed.cpu_share),
        cpu_held: middle(|sample| sample.observed.cpu_held),
        disk_held: middle(|sample| sample.observed.disk_held),
        net_held: middle(|sample| sample.observed.net_held),
    };
    if seen.cpu_held > HELD {
        let baseline = of.credits.map_or(100.0, |credits| credits.baseline_percent);
        let held = seen.cpu_held * 100.0;
        return type_s(format!(
            "its CPU credits are spent: {baseline} % of each vCPU (throttled {held:.0} % of the time)"
        ));
    }
    match measure.about {
        About::OneCpu => cpu(&seen, 1, host)
            .or_else(|| unsteady(samples))
            .unwrap_or_else(|| host_s("one CPU of it is as fast as that")),
        About::AllCpus => cpu(&seen, of.vcpus, host).or_else(|| unsteady(samples)).unwrap_or_else(|| {
            let vcpus = of.vcpus;
            type_s(format!("its {}, each as fast as a CPU of this host", plural(vcpus, "vCPU")))
        }),
        About::Memory => cpu(&seen, 1, host).unwrap_or_else(|| memory(middle(|sample| sample.bytes as f64), host)),
        About::DiskBytes | About::DiskOperations => disk(measure, figure, seen.disk_held, limits, host),
        About::Network => network(figure, seen.net_held, limits, host),
        About::NetworkLatency => host_s(&format!("no limit of the type delays a packet{}", emulation(host))),
        About::Start if host.software_kvm => host_s("it emulates guest kernels (software KVM)"),
        About::Start => host_s("no limit of the type was reached"),
        About::Command => command(&seen, of, host),
    }
}

/// Names the host as the bound if work on this many vCPUs did not get its CPUs.
fn cpu(seen: &Observed, threads: u32, host: &HostFacts) -> Option<Bound> {
    if threads > host.cpus {
        return Some(host_s(&format!("it has {} for {threads} vCPUs", plural(host.cpus, "CPU"))));
    }
    let percent = seen.cpu_share * 100.0;
    (seen.cpu_share < WHOLE)
        .then(|| host_s(&format!("its CPUs were busy with others: vCPUs had {percent:.0} % of one")))
}

/// Names the host as the bound if figures vary more than CPU-bound work does. A host that is a virtual machine cannot
/// observe steal time.
fn unsteady(samples: &[Sample]) -> Option<Bound> {
    let figures = samples.iter().map(|sample| sample.figure);
    let (smallest, largest) = (figures.clone().fold(f64::INFINITY, f64::min), figures.fold(0.0, f64::max));
    let ratio = largest / smallest;
    let percent = (ratio - 1.0) * 100.0;
    (ratio > STEADY).then(|| host_s(&format!("its speed changes: from run to run, figures differ by {percent:.0} %")))
}

fn memory(bytes: f64, host: &HostFacts) -> Bound {
    let mib = bytes / MIB;
    match host.cache.map(|cache| cache as f64) {
        Some(cache) if bytes <= cache => {
            host_s(&format!("its caches: {mib:.0} MiB were measured, and the last one has {:.0}", cache / MIB))
        }
        _ => host_s(&format!("its memory ({mib:.0} MiB were measured)")),
    }
}

/// A rate that may bound a figure: its name, its text and its maximum.
struct Candidate {
    whose: &'static str,
    text: String,
    most: f64,
    always: f64,
}

fn disk(measure: &Measure, figure: f64, held: f64, limits: &Limits, host: &HostFacts) -> Bound {
    let bytes = measure.about == About::DiskBytes;
    let unit = if bytes { "MiB/s" } else { "IOPS" };
    let candidate = |whose, limits: Option<DiskLimits>| {
        let rate = if bytes { limits?.bytes } else { limits?.operations }?;
        let scale = if bytes { MIB } else { 1.0 };
        let (most, always) = (rate.peak as f64 / scale, rate.baseline as f64 / scale);
        Some(Candidate { whose, text: format!("{} {unit}", number(most)), most, always })
    };
    let candidates = [candidate("root volume", limits.volume), candidate("EBS path", limits.path)];
    rated(candidates, figure, held, unit).unwrap_or_else(|(lowest, percent)| match lowest {
        Some(Candidate { whose, text, .. }) => {
            host_s(&format!("it did {percent:.0} % of the {text} that the {whose} has{}", emulation(host)))
        }
        None => host_s(&format!("the instance has no limits{}", emulation(host))),
    })
}

fn network(figure: f64, held: f64, limits: &Limits, host: &HostFacts) -> Bound {
    let candidate = limits.network.map(|rate| {
        let mbits = |bytes: u64| bytes as f64 / 125_000.0;
        let (most, always) = (mbits(rate.peak), mbits(rate.baseline));
        Candidate { whose: "network", text: format!("{} Mbit/s", number(most)), most, always }
    });
    rated([candidate, None], figure, held, "Mbit/s").unwrap_or_else(|(lowest, percent)| match lowest {
        Some(Candidate { text, .. }) => {
            let percent = if percent < 1.0 { "less than 1".into() } else { format!("{percent:.0}") };
            host_s(&format!("it did {percent} % of the type's {text}{}", emulation(host)))
        }
        None => host_s(&format!("the instance has no limits{}", emulation(host))),
    })
}

/// The lowest of the rates if it bounded the figure; otherwise that rate, with the figure as a percentage of it.
fn rated(
    candidates: [Option<Candidate>; 2],
    figure: f64,
    held: f64,
    unit: &str,
) -> Result<Bound, (Option<Candidate>, f64)> {
    let lowest = candidates.into_iter().flatten().min_by(|one, other| one.most.total_cmp(&other.most));
    let Some(lowest) = lowest else { return Err((None, 0.0)) };
    if held <= HELD && figure < NEAR * lowest.most {
        let percent = figure / lowest.most * 100.0;
        return Err((Some(lowest), percent));
    }
    let Candidate { whose, text, most, always } = lowest;
    let while_saved = (always < most).then(|| format!(" while its burst lasts, {} {unit} after", number(always)));
    Ok(type_s(format!("its {whose} has {text}{}", while_saved.unwrap_or_default())))
}

fn command(seen: &Observed, of: &InstanceType, host: &HostFacts) -> Bound {
    if seen.disk_held > HELD {
        return type_s(format!("its volumes (throttled {:.0} % of the time)", seen.disk_held * 100.0));
    }
    if seen.net_held > HELD {
        return type_s(format!("its network (throttled {:.0} % of the time)", seen.net_held * 100.0));
    }
    let busy = seen.cpu_share * 100.0;
    if seen.cpu_share >= WHOLE && of.vcpus <= host.cpus {
        return type_s(format!("its {}: {busy:.0} % busy", plural(of.vcpus, "vCPU")));
    }
    host_s(&format!("no limit of the type was reached; its vCPUs had {busy:.0} % of their time{}", emulation(host)))
}

fn type_s(why: String) -> Bound {
    Bound { by: By::Type, why }
}

fn host_s(why: &str) -> Bound {
    Bound { by: By::Host, why: why.into() }
}

fn emulation(host: &HostFacts) -> &'static str {
    if host.software_kvm { "; it emulates guest kernels (software KVM)" } else { "" }
}

fn plural(count: u32, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Formats with three significant digits.
fn number(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::super::measure::{COMMAND, chosen};
    use super::*;
    use crate::ec2::catalogue;

    const IDLE: Observed = Observed { cpu_share: 1.0, cpu_held: 0.0, disk_held: 0.0, net_held: 0.0 };

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
        judge(
            measure,
            catalogue::find(of).unwrap(),
            &limits(),
            &host(),
            &[Sample { figure, bytes: 64 << 20, observed }],
        )
    }

    #[track_caller]
    fn is(bound: Bound, by: By, text: &str) {
        assert!(bound.by == by && bound.why.contains(text), "{bound:?}");
    }

    #[test]
    fn credits_that_are_spent_are_the_types_whatever_is_measured() {
        let held = Observed { cpu_held: 0.8, ..IDLE };
        for name in ["integer-one", "disk-read-1", "command"] {
            is(verdict(name, "t3.micro", 1.0, held), By::Type, "10 % of each vCPU");
        }
    }

    #[test]
    fn vcpus_are_the_types_where_they_have_their_cpus() {
        is(verdict("integer-one", "m5.large", 1.0, IDLE), By::Host, "one CPU");
        is(verdict("integer-all", "m5.large", 1.0, IDLE), By::Type, "2 vCPUs");
        is(verdict("integer-all", "m5.xlarge", 1.0, IDLE), By::Host, "2 CPUs for 4 vCPUs");
        let crowded = Observed { cpu_share: 0.5, ..IDLE };
        is(verdict("integer-all", "m5.large", 1.0, crowded), By::Host, "busy with others");
    }

    #[test]
    fn figures_that_differ_much_are_no_type_s() {
        let measure = chosen(["integer-all"]).unwrap()[0];
        let of = catalogue::find("m5.large").unwrap();
        let samples = |figures: [f64; 3]| figures.map(|figure| Sample { figure, bytes: 0, observed: IDLE });
        is(judge(measure, of, &limits(), &host(), &samples([100.0, 90.0, 150.0])), By::Host, "differ by 67 %");
        is(judge(measure, of, &limits(), &host(), &samples([100.0, 90.0, 110.0])), By::Type, "2 vCPUs");
    }

    #[test]
    fn the_lowest_limit_counts_where_a_figure_is_near_it_or_it_held_back() {
        is(verdict("disk-random-read-32", "t3.micro", 2800.0, IDLE), By::Type, "root volume has 3000 IOPS");
        is(
            verdict("disk-read-32", "t3.micro", 95.0, IDLE),
            By::Type,
            "EBS path has 100 MiB/s while its burst lasts, 10",
        );
        is(verdict("disk-read-32", "t3.micro", 50.0, IDLE), By::Host, "50 % of the 100 MiB/s that the EBS path has");
        let held = Observed { disk_held: 0.5, ..IDLE };
        is(verdict("disk-read-32", "t3.micro", 50.0, held), By::Type, "EBS path");
        is(verdict("network-throughput", "t3.micro", 4900.0, IDLE), By::Type, "5000 Mbit/s while");
        is(verdict("network-throughput", "t3.micro", 5.0, IDLE), By::Host, "less than 1 % of the type's 5000");
    }

    #[test]
    fn what_fits_into_a_cache_is_said_to() {
        is(verdict("memory-latency", "t3.micro", 1.0, IDLE), By::Host, "its memory (64 MiB");
        let host = HostFacts { cache: Some(96 << 20), ..host() };
        let sample = Sample { figure: 1.0, bytes: 64 << 20, observed: IDLE };
        let of = catalogue::find("t3.micro").unwrap();
        let bound = judge(chosen(["memory-latency"]).unwrap()[0], of, &limits(), &host, &[sample]);
        is(bound, By::Host, "64 MiB were measured, and the last one has 96");
    }

    #[test]
    fn a_command_is_bounded_by_what_it_used_up() {
        is(verdict("command", "m5.large", 1.0, IDLE), By::Type, "2 vCPUs: 100 % busy");
        is(verdict("command", "m5.large", 1.0, Observed { cpu_share: 0.4, ..IDLE }), By::Host, "no limit");
        is(verdict("command", "m5.large", 1.0, Observed { net_held: 0.4, ..IDLE }), By::Type, "network");
        is(verdict("command", "m5.large", 1.0, Observed { disk_held: 0.4, ..IDLE }), By::Type, "volumes");
    }
}
