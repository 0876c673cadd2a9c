//! Statistics over a series of datapoints.

use crate::usage::Datapoint;

/// Minimum period of datapoints in maxima and percentiles, unless all are shorter: a very short interval is often
/// either idle or fully busy.
const SHORT_MS: u64 = 10_000;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistic {
    pub average: f64,
    /// Weighted by time.
    pub p99: f64,
    pub maximum: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Observed time in seconds.
    pub observed: f64,
    /// Start of the observation, in milliseconds since 1970.
    pub since_ms: u64,
    /// Used vCPUs.
    pub cpu: Statistic,
    /// Demand: the used vCPUs plus those that were throttled.
    pub cpu_wanted: Statistic,
    /// Throttled share of the vCPUs' time.
    pub cpu_throttled: f64,
    /// Maximum of guest memory that the host held, over the series.
    pub touched_bytes: u64,
    /// EBS bytes per second.
    pub ebs_bytes: Statistic,
    /// EBS operations per second.
    pub ebs_operations: Statistic,
    /// Throttled seconds per second, summed over the EBS volumes.
    pub ebs_throttled: f64,
    /// Network bytes per second, in the busier direction.
    pub network: Statistic,
    /// Throttled seconds per second, for the network.
    pub network_throttled: f64,
}

impl Figures {
    pub fn of(points: &[&Datapoint]) -> Figures {
        let observed: f64 = points.iter().map(|point| point.seconds()).sum();
        let statistic = |amount: fn(&Datapoint) -> f64| statistic(points, amount);
        let share = |of: fn(&Datapoint) -> f64| {
            if observed > 0.0 { points.iter().map(|point| of(point)).sum::<f64>() / observed } else { 0.0 }
        };
        let vcpus = |point: &Datapoint| f64::from(point.vcpus.max(1));
        Figures {
            observed,
            since_ms: points.first().map_or(0, |point| point.start_ms()),
            cpu: statistic(used),
            cpu_wanted: statistic(|point| {
                let most = point.seconds() * f64::from(point.vcpus);
                (used(point) + point.cpu_throttled_ns as f64 / 1e9).min(most)
            }),
            cpu_throttled: share(|point| point.cpu_throttled_ns as f64 / 1e9)
                / points.last().map_or(1.0, |point| vcpus(point)),
            touched_bytes: points.iter().map(|point| point.touched_bytes).max().unwrap_or(0),
            ebs_bytes: statistic(|point| point.ebs.read_bytes.saturating_add(point.ebs.written_bytes) as f64),
            ebs_operations: statistic(|point| point.ebs.reads.saturating_add(point.ebs.writes) as f64),
            ebs_throttled: share(|point| point.ebs.throttled_ns as f64 / 1e9),
            network: statistic(|point| point.network.received_bytes.max(point.network.sent_bytes) as f64),
            network_throttled: share(|point| point.network.throttled_ns as f64 / 1e9),
        }
    }
}

/// Returns CPU seconds, clamped because CPU clocks and the wall clock are not read at the same instant.
fn used(point: &Datapoint) -> f64 {
    (point.cpu_ns as f64 / 1e9).min(point.seconds() * f64::from(point.vcpus))
}

/// Computes the statistic of `amount` per second.
fn statistic(points: &[&Datapoint], amount: fn(&Datapoint) -> f64) -> Statistic {
    let mut rates: Vec<(f64, u64)> = Vec::with_capacity(points.len());
    let (mut sum, mut seconds) = (0.0, 0.0);
    let all_are_short = points.iter().all(|point| point.period_ms < SHORT_MS);
    for point in points.iter().filter(|point| point.period_ms > 0) {
        sum += amount(point);
        seconds += point.seconds();
        if all_are_short || point.period_ms >= SHORT_MS {
            rates.push((amount(point) / point.seconds(), point.period_ms));
        }
    }
    rates.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let all: u64 = rates.iter().map(|(_, period)| period).sum();
    let mut passed = 0;
    let p99 = rates.iter().find(|(_, period)| {
        passed += period;
        u128::from(passed) * 100 >= u128::from(all) * 99
    });
    Statistic {
        average: if seconds > 0.0 { sum / seconds } else { 0.0 },
        p99: p99.map_or(0.0, |(rate, _)| *rate),
        maximum: rates.last().map_or(0.0, |(rate, _)| *rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(period_ms: u64, percent: u64) -> Datapoint {
        Datapoint { period_ms, vcpus: 1, cpu_ns: period_ms * 10_000 * percent, ..Datapoint::default() }
    }

    #[test]
    fn datapoints_are_weighted_by_length() {
        let points = [point(3_600_000, 1), point(60_000, 91)];
        let Statistic { average, p99, maximum } = Figures::of(&points.iter().collect::<Vec<_>>()).cpu;
        assert!((average - (36.0 + 54.6) / 3660.0).abs() < 1e-9, "{average}");
        assert_eq!((p99, maximum), (0.91, 0.91));
        let points = [point(36_000_000, 1), point(60_000, 91)];
        let Statistic { p99, maximum, .. } = Figures::of(&points.iter().collect::<Vec<_>>()).cpu;
        assert_eq!((p99, maximum), (0.01, 0.91));
    }

    #[test]
    fn short_datapoint_counts_only_if_all_are_short() {
        let points = [point(60_000, 10), point(500, 100)];
        assert_eq!(Figures::of(&points.iter().collect::<Vec<_>>()).cpu.maximum, 0.1);
        assert_eq!(Figures::of(&[&points[1]]).cpu.maximum, 1.0);
        assert_eq!(Figures::of(&[]), Figures::default());
    }
}
