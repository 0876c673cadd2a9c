//! Right sizing: is an instance's type too small, too large or fine for its usage, and which types fit?
//!
//! Terms and rules are those of AWS Compute Optimizer: a recommended type has 20% headroom above the 99th percentile of
//! the usage. For a throttled instance, demand is used instead of usage.

mod figures;

use super::credits::CreditRules;
use super::instance_type::InstanceType;
use super::performance::Speed;
use super::prices::PriceList;
use super::type_name::Category;
use super::{catalog, usage::Datapoint};

pub use figures::{Figures, Statistic};

/// Maximum load of a recommended type.
const HEADROOM: f64 = 0.8;
/// Load above which an instance is under-provisioned.
const TIGHT: f64 = 0.9;
/// Throttled share of the time above which the network is under-provisioned.
const THROTTLED: f64 = 0.01;
/// Maximum number of recommended types.
const OPTIONS: usize = 3;
/// Confidence thresholds in seconds: low up to the first, high from the second. Compute Optimizer requires 30 hours.
const LITTLE: f64 = 3600.0;
const MUCH: f64 = 30.0 * 3600.0;

/// An instance as input to a recommendation.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    pub instance_type: &'static InstanceType,
    /// From the instance type, unless overridden.
    pub vcpus: u32,
    /// From the instance type, unless overridden.
    pub memory_mib: u64,
    pub is_limited: bool,
    /// True if recommended types must support hibernation.
    pub hibernation: bool,
}

/// The finding about an instance's size (`InstanceRecommendation`, `finding`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Underprovisioned,
    Overprovisioned,
    Optimized,
}

impl Finding {
    pub fn as_str(self) -> &'static str {
        match self {
            Finding::Underprovisioned => "UNDER_PROVISIONED",
            Finding::Overprovisioned => "OVER_PROVISIONED",
            Finding::Optimized => "OPTIMIZED",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Finding::Underprovisioned => "Under-provisioned (too small)",
            Finding::Overprovisioned => "Over-provisioned (too large)",
            Finding::Optimized => "Optimized",
        }
    }
}

/// The reason for a finding (`findingReasonCodes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Too few vCPUs, or too low a baseline for a burstable type.
    CpuUnder,
    CpuOver,
    MemoryOver,
    EbsThroughputUnder,
    EbsIopsUnder,
    NetworkUnder,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::CpuUnder => "CPUUnderprovisioned",
            Reason::CpuOver => "CPUOverprovisioned",
            Reason::MemoryOver => "MemoryOverprovisioned",
            Reason::EbsThroughputUnder => "EBSThroughputUnderprovisioned",
            Reason::EbsIopsUnder => "EBSIOPSUnderprovisioned",
            Reason::NetworkUnder => "NetworkBandwidthUnderprovisioned",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confidence {
    Low,
    Medium,
    High,
}

impl Confidence {
    pub fn as_str(self) -> &'static str {
        match self {
            Confidence::Low => "low",
            Confidence::Medium => "medium",
            Confidence::High => "high",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Judgment {
    pub finding: Finding,
    pub reasons: Vec<Reason>,
    /// Types of the instance's own family come first. Empty if the size is fine or no type fits.
    pub options: Vec<&'static InstanceType>,
    pub confidence: Confidence,
    pub figures: Figures,
}

/// The observed time is too short for a finding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TooLittle {
    /// Observed seconds with the current type and size, excluding boots.
    pub observed: f64,
}

/// Judges an instance's size by its series, which must cover at least `least` seconds with that size.
pub fn judge(subject: &Subject, series: &[Datapoint], least: f64) -> Result<Judgment, TooLittle> {
    let of_size = |point: &&Datapoint| {
        let size = (point.instance_type.as_str(), point.vcpus, point.memory_mib);
        !point.booting && size == (subject.instance_type.name, subject.vcpus, subject.memory_mib)
    };
    let points: Vec<&Datapoint> = series.iter().filter(of_size).collect();
    let figures = Figures::of(&points);
    if figures.observed < least || figures.observed <= 0.0 {
        return Err(TooLittle { observed: figures.observed });
    }
    let current = Capacity::of_instance(subject);
    let mut reasons = current.shortages(&figures);
    let (finding, options) = if reasons.is_empty() {
        let smaller = options(subject, &figures, |other| is_smaller(other, subject));
        match smaller.first() {
            Some(first) => {
                reasons.extend(savings(first, subject));
                (Finding::Overprovisioned, smaller)
            }
            None => (Finding::Optimized, smaller),
        }
    } else {
        (Finding::Underprovisioned, options(subject, &figures, |other| !is_smaller(other, subject)))
    };
    let confidence = match figures.observed {
        ..LITTLE => Confidence::Low,
        ..MUCH => Confidence::Medium,
        _ => Confidence::High,
    };
    Ok(Judgment { finding, reasons, options, confidence, figures })
}

#[derive(Clone, Copy, Debug)]
struct Capacity {
    /// vCPUs at peak; `baseline` is the sustained number.
    vcpus: f64,
    baseline: f64,
    memory_bytes: f64,
    ebs_bytes: Option<Speed>,
    ebs_operations: Option<Speed>,
    network: Option<Speed>,
}

impl Capacity {
    fn of_type(instance_type: &InstanceType) -> Capacity {
        Capacity::new(instance_type, instance_type.vcpus, instance_type.memory_mib)
    }

    fn new(instance_type: &InstanceType, vcpus: u32, memory_mib: u64) -> Capacity {
        let rules = CreditRules::of(instance_type, vcpus);
        let ebs = instance_type.ebs_performance();
        Capacity {
            vcpus: f64::from(vcpus),
            baseline: rules.map_or(f64::from(vcpus), |rules| rules.earned_ppm() as f64 / 1e6),
            memory_bytes: memory_mib as f64 * f64::from(1 << 20),
            ebs_bytes: ebs.map(|ebs| ebs.bytes),
            ebs_operations: ebs.map(|ebs| ebs.operations),
            network: Some(instance_type.network_speed()),
        }
    }

    fn of_instance(subject: &Subject) -> Capacity {
        let own = Capacity::new(subject.instance_type, subject.vcpus, subject.memory_mib);
        if subject.is_limited {
            return own;
        }
        Capacity { baseline: own.vcpus, ebs_bytes: None, ebs_operations: None, network: None, ..own }
    }

    /// Returns the CPU load (1.0 is saturated): the average against the baseline or the 99th percentile against the
    /// vCPUs, whichever is higher.
    fn cpu_load(&self, figures: &Figures) -> f64 {
        (figures.cpu_wanted.average / self.baseline).max(figures.cpu_wanted.p99 / self.vcpus)
    }

    fn ebs_bytes_load(&self, figures: &Figures) -> f64 {
        speed_load(self.ebs_bytes, &figures.ebs_bytes)
    }

    fn ebs_operations_load(&self, figures: &Figures) -> f64 {
        speed_load(self.ebs_operations, &figures.ebs_operations)
    }

    fn network_load(&self, figures: &Figures) -> f64 {
        speed_load(self.network, &figures.network)
    }

    /// Returns a reason for each resource that is too small. Memory is not checked: held memory may be page cache.
    fn shortages(&self, figures: &Figures) -> Vec<Reason> {
        let network_is_throttled = self.network.is_some() && figures.network_throttled > THROTTLED;
        [
            (self.cpu_load(figures) > TIGHT, Reason::CpuUnder),
            (self.ebs_bytes_load(figures) > TIGHT, Reason::EbsThroughputUnder),
            (self.ebs_operations_load(figures) > TIGHT, Reason::EbsIopsUnder),
            (self.network_load(figures) > TIGHT || network_is_throttled, Reason::NetworkUnder),
        ]
        .into_iter()
        .filter_map(|(is_short, reason)| is_short.then_some(reason))
        .collect()
    }

    /// Returns true if the capacity is enough for the usage with headroom, and includes `memory_bytes` of memory.
    fn carries(&self, figures: &Figures, memory_bytes: f64) -> bool {
        let loads = [
            self.cpu_load(figures),
            self.ebs_bytes_load(figures),
            self.ebs_operations_load(figures),
            self.network_load(figures),
        ];
        self.memory_bytes >= memory_bytes && loads.into_iter().all(|load| load <= HEADROOM)
    }
}

fn speed_load(speed: Option<Speed>, used: &Statistic) -> f64 {
    speed.map_or(0.0, |speed| (used.average / speed.baseline as f64).max(used.p99 / speed.peak as f64))
}

/// Returns the smallest type of each family that carries the usage and satisfies `is_wanted`: the instance's own family
/// first, then the families with the cheapest types. Of two types at one price, the newer one is first.
fn options(
    subject: &Subject,
    figures: &Figures,
    is_wanted: impl Fn(&InstanceType) -> bool,
) -> Vec<&'static InstanceType> {
    let current = Capacity::of_instance(subject);
    // The instance's own memory is the upper bound: a guest that holds all of it may not need all of it.
    let memory_bytes = (figures.touched_bytes as f64 / HEADROOM).min(current.memory_bytes);
    let network_is_throttled = subject.is_limited && figures.network_throttled > THROTTLED;
    let is_fast_enough = |other: &InstanceType| {
        !network_is_throttled || other.network_speed().baseline > subject.instance_type.network_speed().baseline
    };
    let family = subject.instance_type.family();
    let mut all: Vec<&InstanceType> = catalog::all()
        .iter()
        .filter(|other| other.launchable().is_ok() && (other.hibernation || !subject.hibernation))
        .filter(|other| other.instance_store.is_some() == subject.instance_type.instance_store.is_some())
        // From other families, only types of the current platform are recommended.
        .filter(|other| other.family() == family || other.ec2_hypervisor() == Some("nitro"))
        .filter(|other| other.name != subject.instance_type.name && is_wanted(other) && is_fast_enough(other))
        .filter(|other| Capacity::of_type(other).carries(figures, memory_bytes))
        .collect();
    let price = |other: &InstanceType| PriceList::embedded().find(other.name).unwrap_or(f64::INFINITY);
    let order = |other: &InstanceType| {
        let age = std::cmp::Reverse(other.parts.generation);
        (other.memory_mib, other.vcpus, age, other.parts.attributes, other.name)
    };
    all.sort_by(|one, other| {
        let by_family = (one.family() != family).cmp(&(other.family() != family));
        by_family.then(price(one).total_cmp(&price(other))).then_with(|| order(one).cmp(&order(other)))
    });
    let mut families = Vec::new();
    all.retain(|other| {
        let is_first = !families.contains(&other.family());
        families.push(other.family());
        is_first
    });
    all.truncate(OPTIONS);
    all
}

/// Returns true if the type has at most the instance's vCPUs and memory, and either less of one of them or, unlike the
/// instance's type, a burstable CPU.
fn is_smaller(other: &InstanceType, subject: &Subject) -> bool {
    let has_no_more = other.vcpus <= subject.vcpus && other.memory_mib <= subject.memory_mib;
    let is_burstable = |known: &InstanceType| known.category == Category::Burstable;
    let has_less = other.vcpus < subject.vcpus
        || other.memory_mib < subject.memory_mib
        || is_burstable(other) && !is_burstable(subject.instance_type);
    has_no_more && has_less
}

fn savings(option: &InstanceType, subject: &Subject) -> Vec<Reason> {
    let baseline = |capacity: Capacity| capacity.baseline;
    let own = Capacity::new(subject.instance_type, subject.vcpus, subject.memory_mib);
    [
        (baseline(Capacity::of_type(option)) < own.baseline, Reason::CpuOver),
        (option.memory_mib < subject.memory_mib, Reason::MemoryOver),
    ]
    .into_iter()
    .filter_map(|(is_saved, reason)| is_saved.then_some(reason))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::usage::{DiskUse, NetworkUse};
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const LEAST: f64 = 300.0;

    fn subject(name: &str) -> Subject {
        let instance_type = catalog::find(name).expect(name);
        Subject {
            instance_type,
            vcpus: instance_type.vcpus,
            memory_mib: instance_type.memory_mib,
            is_limited: true,
            hibernation: false,
        }
    }

    fn minute(subject: &Subject, percent: u64, touched_mib: u64) -> Datapoint {
        Datapoint {
            instance_type: subject.instance_type.name.into(),
            vcpus: subject.vcpus,
            memory_mib: subject.memory_mib,
            period_ms: 60_000,
            cpu_ns: 600_000_000 * percent * u64::from(subject.vcpus),
            touched_bytes: touched_mib * MIB,
            ..Datapoint::default()
        }
    }

    fn judged(subject: &Subject, series: &[Datapoint]) -> (Finding, Vec<Reason>, Vec<&'static str>) {
        let judgment = judge(subject, series, LEAST).unwrap();
        (judgment.finding, judgment.reasons, judgment.options.iter().map(|option| option.name).collect())
    }

    fn steady(name: &str, percent: u64, touched_mib: u64) -> (Finding, Vec<Reason>, Vec<&'static str>) {
        let subject = subject(name);
        judged(&subject, &vec![minute(&subject, percent, touched_mib); 100])
    }

    #[test]
    fn idle_instance_is_overprovisioned_and_own_family_is_first() {
        let (finding, reasons, options) = steady("m5.4xlarge", 1, 2000);
        assert_eq!((finding, reasons), (Finding::Overprovisioned, vec![Reason::CpuOver, Reason::MemoryOver]));
        assert_eq!(options, ["m5.large", "t3a.medium", "t3.medium"]);
    }

    #[test]
    fn busy_instance_is_underprovisioned() {
        let (finding, reasons, options) = steady("c5.large", 99, 1000);
        assert_eq!((finding, reasons), (Finding::Underprovisioned, vec![Reason::CpuUnder]));
        assert_eq!(options[0], "c5.xlarge");
        // A type of the same size does not help, and no burstable type carries the load.
        let vcpus = |name: &&str| catalog::find(name).unwrap().vcpus;
        assert!(options.iter().all(|name| vcpus(name) >= 4 && !name.starts_with('t')), "{options:?}");
    }

    #[test]
    fn instance_of_right_size_is_optimized() {
        assert_eq!(steady("m5.large", 70, 6500), (Finding::Optimized, vec![], vec![]));
        assert_eq!(steady("t3.nano", 3, 500), (Finding::Optimized, vec![], vec![]));
    }

    #[test]
    fn touched_memory_is_not_a_shortage_but_limits_options() {
        assert_eq!(steady("r5.xlarge", 5, 32 * 1024).0, Finding::Optimized);
        let (finding, reasons, options) = steady("m5.xlarge", 5, 16 * 1024);
        assert_eq!((finding, reasons), (Finding::Overprovisioned, vec![Reason::CpuOver]));
        let sizes: Vec<_> = options.iter().map(|name| catalog::find(name).unwrap().memory_mib).collect();
        assert!(!sizes.is_empty() && sizes.iter().all(|mib| *mib == 16 * 1024), "{options:?}");
        assert_eq!(steady("t3.micro", 2, 1024).0, Finding::Optimized);
    }

    #[test]
    fn burstable_instance_above_baseline_is_underprovisioned() {
        let (finding, reasons, options) = steady("t3.micro", 30, 400);
        assert_eq!((finding, reasons), (Finding::Underprovisioned, vec![Reason::CpuUnder]));
        assert_eq!(options[0], "t3.xlarge");
        assert!(options[1..].iter().any(|name| name.ends_with(".large") && !name.starts_with('t')), "{options:?}");
        // Without limits there is no baseline.
        let free = Subject { is_limited: false, ..subject("t3.micro") };
        let series = vec![minute(&free, 30, 900); 100];
        assert_eq!(judged(&free, &series).0, Finding::Optimized);
    }

    #[test]
    fn throttled_cpu_time_counts_as_demand() {
        let subject = subject("t2.micro");
        let throttled = |throttled_ns| Datapoint { cpu_throttled_ns: throttled_ns, ..minute(&subject, 8, 700) };
        assert_eq!(judged(&subject, &vec![throttled(0); 100]).0, Finding::Optimized);
        let (finding, _, options) = judged(&subject, &vec![throttled(50_000_000_000); 100]);
        assert_eq!(finding, Finding::Underprovisioned);
        let judgment = judge(&subject, &vec![throttled(50_000_000_000); 100], LEAST).unwrap();
        assert!((judgment.figures.cpu_throttled - 50.0 / 60.0).abs() < 1e-9);
        assert!(options.iter().all(|name| catalog::find(name).unwrap().vcpus >= 2), "{options:?}");
    }

    #[test]
    fn ebs_or_network_limit_is_a_shortage() {
        let subject = subject("m5.large");
        // The EBS baseline is 650 Mbit/s (81 MB/s) and 3,600 operations; the network's is 750 Mbit/s.
        let ebs = DiskUse { written_bytes: 60 * 80_000_000, writes: 60 * 400, ..DiskUse::default() };
        let series = vec![Datapoint { ebs, ..minute(&subject, 20, 3000) }; 100];
        let (finding, reasons, options) = judged(&subject, &series);
        assert_eq!((finding, reasons), (Finding::Underprovisioned, vec![Reason::EbsThroughputUnder]));
        assert_eq!(options[0], "m5.xlarge");
        let ebs = DiskUse { reads: 60 * 3_500, ..DiskUse::default() };
        let series = vec![Datapoint { ebs, ..minute(&subject, 20, 3000) }; 100];
        assert_eq!(judged(&subject, &series).1, [Reason::EbsIopsUnder]);
        let network = NetworkUse { sent_bytes: 60 * 90_000_000, ..NetworkUse::default() };
        let series = vec![Datapoint { network, ..minute(&subject, 20, 3000) }; 100];
        assert_eq!(judged(&subject, &series).1, [Reason::NetworkUnder]);
        let network = NetworkUse { throttled_ns: 2_000_000_000, ..NetworkUse::default() };
        let series = vec![Datapoint { network, ..minute(&subject, 20, 3000) }; 100];
        let (_, reasons, options) = judged(&subject, &series);
        assert_eq!(reasons, [Reason::NetworkUnder]);
        assert_eq!(options[0], "m5.xlarge");
    }

    #[test]
    fn rare_peak_is_ignored_and_frequent_peak_counts() {
        let subject = subject("m5.xlarge");
        let mut series = vec![minute(&subject, 5, 3000); 995];
        series.extend(vec![minute(&subject, 100, 3000); 5]);
        let judgment = judge(&subject, &series, LEAST).unwrap();
        assert_eq!((judgment.finding, judgment.figures.cpu.maximum), (Finding::Overprovisioned, 4.0));
        series.extend(vec![minute(&subject, 100, 3000); 20]);
        assert_eq!(judged(&subject, &series).0, Finding::Underprovisioned);
    }

    #[test]
    fn boots_and_time_with_another_type_are_ignored() {
        let now = subject("m5.large");
        let before = subject("m5.xlarge");
        let mut series = vec![minute(&before, 99, 100); 1000];
        series.extend(vec![Datapoint { booting: true, ..minute(&now, 100, 100) }; 10]);
        series.extend(vec![minute(&now, 1, 100); 4]);
        assert_eq!(judge(&now, &series, LEAST), Err(TooLittle { observed: 240.0 }));
        series.push(minute(&now, 1, 100));
        let judgment = judge(&now, &series, LEAST).unwrap();
        assert_eq!((judgment.finding, judgment.confidence), (Finding::Overprovisioned, Confidence::Low));
        assert_eq!(judge(&now, &[], 0.0), Err(TooLittle { observed: 0.0 }));
    }

    #[test]
    fn options_keep_instance_store_and_hibernation() {
        let (_, _, options) = steady("i3.2xlarge", 2, 1000);
        let with_disks = |name: &&str| catalog::find(name).unwrap().instance_store.is_some();
        assert_eq!(options[0], "i3.large");
        assert!(options.iter().all(with_disks), "{options:?}");
        // The smallest types do not support hibernation.
        let subject = Subject { hibernation: true, ..subject("m5.2xlarge") };
        let judgment = judge(&subject, &vec![minute(&subject, 2, 100); 100], LEAST).unwrap();
        assert!(!judgment.options.is_empty() && judgment.options.iter().all(|option| option.hibernation));
    }

    proptest! {
        /// Recommended types can run here, carry the usage with headroom, and are larger or smaller as the finding
        /// requires.
        #[test]
        fn recommended_type_carries_usage(
            index in 0..catalog::all().len(),
            points in prop::collection::vec((10_000_u64..400_000, 0_u64..=100, 0_u64..=100, 0_u64..=100, 0_u64..1 << 36), 1..60),
            is_limited: bool,
        ) {
            let known = &catalog::all()[index];
            let subject = Subject { is_limited, ..subject(known.name) };
            let series: Vec<Datapoint> = points
                .iter()
                .map(|(period_ms, percent, throttled, memory, bytes)| Datapoint {
                    period_ms: *period_ms,
                    cpu_ns: period_ms * 10_000 * percent * u64::from(subject.vcpus),
                    cpu_throttled_ns: period_ms * 10_000 * throttled,
                    touched_bytes: subject.memory_mib * MIB / 100 * memory,
                    ebs: DiskUse { read_bytes: bytes / 8, reads: bytes >> 14, ..DiskUse::default() },
                    network: NetworkUse { sent_bytes: bytes / 9, ..NetworkUse::default() },
                    ..minute(&subject, 0, 0)
                })
                .collect();
            let judgment = judge(&subject, &series, 0.0).unwrap();
            prop_assert_eq!(judgment.finding == Finding::Optimized, judgment.reasons.is_empty());
            for option in &judgment.options {
                prop_assert!(option.launchable().is_ok());
                prop_assert_eq!(is_smaller(option, &subject), judgment.finding == Finding::Overprovisioned);
                let capacity = Capacity::of_type(option);
                let shortages = capacity.shortages(&Figures { network_throttled: 0.0, ..judgment.figures });
                prop_assert_eq!(shortages, vec![]);
                prop_assert!(capacity.vcpus >= judgment.figures.cpu_wanted.p99);
            }
            let Statistic { average, p99, maximum } = judgment.figures.cpu;
            prop_assert!(average <= maximum + 1e-9 && p99 <= maximum);
            prop_assert!(maximum <= f64::from(subject.vcpus) + 1e-9);
        }
    }
}
