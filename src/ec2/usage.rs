//! Usage of an instance over time, as CloudWatch records it: a bounded series of datapoints, finer for recent hours.
//!
//! A datapoint's period is the measured interval, which may be an idle hour. Short datapoints are merged, up to one
//! minute within the last three hours and up to five minutes before that. They are kept for fourteen days.

use serde::{Deserialize, Serialize};

use super::credits::CreditBalance;

/// Maximum period of a merged datapoint: within the last `DETAILED_FOR_MS`, and before that.
pub const DETAILED_MS: u64 = 60_000;
const COARSE_MS: u64 = 300_000;
const DETAILED_FOR_MS: u64 = 3 * 3600 * 1000;
/// Retention: fourteen days of five-minute datapoints, with some margin.
const KEPT_FOR_MS: u64 = 14 * 24 * 3600 * 1000;
const MOST: usize = 5000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapoint {
    /// The position in the series. The store keeps it in a separate column.
    #[serde(skip)]
    pub number: u64,
    /// Identifies one run of the VMM. A reboot of the guest begins a new run.
    pub run: u64,
    pub instance_type: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Milliseconds since 1970.
    pub end_ms: u64,
    pub period_ms: u64,
    /// True if the guest booted in the interval.
    #[serde(default, skip_serializing_if = "is_default")]
    pub booting: bool,
    /// CPU time of all vCPUs.
    pub cpu_ns: u64,
    /// Time for which vCPUs were throttled, summed over the vCPUs. Stored datapoints have it under its earlier name.
    #[serde(rename = "cpu_held_ns", default, skip_serializing_if = "is_default")]
    pub cpu_throttled_ns: u64,
    /// Maximum of guest memory that the host held.
    pub touched_bytes: u64,
    /// Sum over all EBS volumes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ebs: DiskUse,
    /// Sum over all instance-store disks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub instance_store: DiskUse,
    #[serde(default, skip_serializing_if = "is_default")]
    pub network: NetworkUse,
    /// Credit balance at the end of the interval, for burstable types.
    #[serde(default, skip_serializing_if = "is_default")]
    pub credits: Option<CreditBalance>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
    /// Time for which requests were throttled.
    pub throttled_ns: u64,
}

/// Network usage, with directions as seen by the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUse {
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub sent_packets: u64,
    /// Time for which frames were throttled.
    pub throttled_ns: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl DiskUse {
    pub fn add(&mut self, more: &DiskUse) {
        self.read_bytes = self.read_bytes.saturating_add(more.read_bytes);
        self.written_bytes = self.written_bytes.saturating_add(more.written_bytes);
        self.reads = self.reads.saturating_add(more.reads);
        self.writes = self.writes.saturating_add(more.writes);
        self.throttled_ns = self.throttled_ns.saturating_add(more.throttled_ns);
    }
}

impl NetworkUse {
    fn add(&mut self, more: &NetworkUse) {
        self.received_bytes = self.received_bytes.saturating_add(more.received_bytes);
        self.sent_bytes = self.sent_bytes.saturating_add(more.sent_bytes);
        self.received_packets = self.received_packets.saturating_add(more.received_packets);
        self.sent_packets = self.sent_packets.saturating_add(more.sent_packets);
        self.throttled_ns = self.throttled_ns.saturating_add(more.throttled_ns);
    }
}

impl Datapoint {
    /// Milliseconds since 1970.
    pub fn start_ms(&self) -> u64 {
        self.end_ms.saturating_sub(self.period_ms)
    }

    pub fn seconds(&self) -> f64 {
        self.period_ms as f64 / 1e3
    }

    /// `CPUUtilization`: CPU time as a percentage of the vCPUs' time.
    pub fn cpu_percent(&self) -> f64 {
        share(self.cpu_ns as f64, self.period_ms as f64 * 1e6 * f64::from(self.vcpus)) * 100.0
    }

    fn merges_with(&self, next: &Datapoint) -> bool {
        (self.run, self.booting, self.vcpus, self.memory_mib) == (next.run, next.booting, next.vcpus, next.memory_mib)
            && self.instance_type == next.instance_type
    }

    fn append(&mut self, next: &Datapoint) {
        self.end_ms = next.end_ms;
        self.period_ms = self.period_ms.saturating_add(next.period_ms);
        self.cpu_ns = self.cpu_ns.saturating_add(next.cpu_ns);
        self.cpu_throttled_ns = self.cpu_throttled_ns.saturating_add(next.cpu_throttled_ns);
        self.touched_bytes = self.touched_bytes.max(next.touched_bytes);
        self.ebs.add(&next.ebs);
        self.instance_store.add(&next.instance_store);
        self.network.add(&next.network);
        self.credits = next.credits;
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Drops expired datapoints, merges short ones, and bounds the length of the series. The sums over the remaining time
/// do not change. A merged datapoint keeps the number of its first one.
pub fn settled(points: Vec<Datapoint>, now_ms: u64) -> Vec<Datapoint> {
    let is_young = |point: &Datapoint| point.end_ms.saturating_add(KEPT_FOR_MS) >= now_ms;
    let mut kept: Vec<Datapoint> = Vec::with_capacity(points.len());
    for point in points.into_iter().filter(is_young) {
        let is_recent = point.end_ms.saturating_add(DETAILED_FOR_MS) >= now_ms;
        let longest = if is_recent { DETAILED_MS } else { COARSE_MS };
        match kept.last_mut() {
            Some(last) if last.merges_with(&point) && last.period_ms + point.period_ms <= longest => {
                last.append(&point)
            }
            _ => kept.push(point),
        }
    }
    kept.drain(..kept.len().saturating_sub(MOST));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3600 * 1000;

    fn point(number: u64, end_ms: u64, period_ms: u64) -> Datapoint {
        let ebs = DiskUse { written_bytes: 10, writes: 1, ..DiskUse::default() };
        let common = Datapoint { run: 1, instance_type: "t3.micro".into(), vcpus: 2, ..Datapoint::default() };
        Datapoint { number, end_ms, period_ms, cpu_ns: period_ms * 1_000_000, ebs, ..common }
    }

    fn busy(hours: u64) -> Vec<Datapoint> {
        (1..=hours * 720).map(|number| point(number, number * 5000, 5000)).collect()
    }

    #[test]
    fn recent_datapoints_merge_to_one_minute_and_older_to_five() {
        let kept = settled(busy(12), 12 * HOUR);
        let periods: Vec<u64> = kept.iter().map(|point| point.period_ms).collect();
        assert_eq!(periods[..9 * 12 - 1], [COARSE_MS; 9 * 12 - 1]);
        let (_, recent) = periods.split_at(periods.len() - 3 * 60);
        assert_eq!(recent[..3 * 60 - 1], [DETAILED_MS; 3 * 60 - 1]);
        assert_eq!((kept[0].number, kept[0].cpu_percent()), (1, 50.0));
    }

    #[test]
    fn idle_day_is_one_datapoint() {
        let kept = settled(vec![point(1, 1000, 1000), point(2, 24 * HOUR, 24 * HOUR - 1000)], 24 * HOUR);
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[1].start_ms(), 1000);
    }

    #[test]
    fn other_run_type_or_boot_is_not_merged() {
        let first = point(1, 1000, 1000);
        let others: [fn(&mut Datapoint); 4] = [
            |other| other.run = 2,
            |other| other.booting = true,
            |other| other.instance_type = "t3.small".into(),
            |other| other.vcpus = 1,
        ];
        for change in others {
            let mut second = point(2, 2000, 1000);
            assert_eq!(settled(vec![first.clone(), second.clone()], 2000).len(), 1);
            change(&mut second);
            assert_eq!(settled(vec![first.clone(), second], 2000).len(), 2);
        }
    }

    #[test]
    fn series_of_busy_instance_is_bounded() {
        let mut points = Vec::new();
        for hour in 0..20 * 24 {
            points.extend((1..=60).map(|minute| point(hour * 60 + minute, hour * HOUR + minute * 60_000, 60_000)));
            points = settled(points, (hour + 1) * HOUR);
        }
        assert!((14 * 288..=14 * 288 + 200).contains(&points.len()), "{}", points.len());
    }

    #[test]
    fn default_fields_are_not_serialized() {
        let text = serde_json::to_string(&point(7, 1, 1)).unwrap();
        assert!(!text.contains("network") && !text.contains("number"), "{text}");
        assert_eq!(serde_json::from_str::<Datapoint>(&text).unwrap(), Datapoint { number: 0, ..point(7, 1, 1) });
    }

    #[test]
    fn stored_throttled_time_has_its_earlier_name() {
        let throttled = Datapoint { number: 0, cpu_throttled_ns: 5, ..point(7, 1, 1) };
        let text = serde_json::to_string(&throttled).unwrap();
        assert!(text.contains("\"cpu_held_ns\":5"), "{text}");
        assert_eq!(serde_json::from_str::<Datapoint>(&text).unwrap(), throttled);
    }

    proptest! {
        /// Splitting and merging a series in any way keeps its sums and its order, and the result is bounded.
        #[test]
        fn settled_keeps_sums_and_order(
            periods in prop::collection::vec((1_u64..400_000, 0_u64..3), 1..300),
            every in 1_usize..50,
        ) {
            let (mut end, mut run) = (0, 0);
            let (mut points, mut all) = (Vec::new(), Vec::new());
            for (number, (period, new)) in periods.into_iter().enumerate() {
                end += period;
                run += u64::from(new == 0);
                all.push(Datapoint { run, ..point(number as u64, end, period) });
                points.push(all[number].clone());
                if number % every == 0 {
                    points = settled(points, end);
                }
            }
            let points = settled(points, end);
            let sum = |points: &[Datapoint]| {
                points.iter().fold((0, 0, 0), |(period, cpu, writes), point| {
                    (period + point.period_ms, cpu + point.cpu_ns, writes + point.ebs.writes)
                })
            };
            prop_assert_eq!(sum(&points), sum(&all));
            prop_assert!(points.windows(2).all(|pair| pair[0].number < pair[1].number));
            // Two neighboring datapoints of one run together last more than one minute.
            for pair in points.windows(2) {
                prop_assert!(pair[0].run != pair[1].run || pair[0].period_ms + pair[1].period_ms > DETAILED_MS);
            }
        }
    }
}
