//! Decides the order of the measurements and when they stop.

use std::time::Duration;

use ec2::capacity::InstanceSize;

/// Memory of a VMM beyond its guest's, rounded up, in MiB.
const VMM_MIB: u64 = 16;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Maximum number of rounds. In a round, each type runs once.
    pub runs: u32,
    /// No round starts that would probably end later. The first round always completes.
    pub time: Duration,
    /// A measure is precise if each interval extends at most this share of the median to each side.
    pub precision: f64,
}

/// Reason for the end of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// No measure needs more runs: all are precise, or have failed.
    Complete,
    /// The maximum number of runs was reached.
    Runs,
    /// The time was used up.
    Time,
}

impl Budget {
    /// Returns the reason to stop after `rounds` rounds, of which the last one took `last`.
    pub(super) fn stop(&self, rounds: u32, elapsed: Duration, last: Duration, is_complete: bool) -> Option<Stop> {
        if rounds == 0 {
            None
        } else if is_complete {
            Some(Stop::Complete)
        } else if rounds >= self.runs {
            Some(Stop::Runs)
        } else if elapsed.saturating_add(last) > self.time {
            Some(Stop::Time)
        } else {
            None
        }
    }
}

/// Returns the order of `count` types in a round: each round starts with another type.
pub(super) fn order(count: usize, round: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if count > 0 {
        order.rotate_left(round as usize % count);
    }
    order
}

/// Splits types into groups whose guests run at the same time: all types if their memory is available, else one each.
pub(super) fn groups(order: &[usize], types: &[InstanceSize], available_mib: u64) -> Vec<Vec<usize>> {
    let needed = order.iter().map(|index| types[*index].memory_mib.saturating_add(VMM_MIB));
    if needed.fold(0, u64::saturating_add) <= available_mib {
        vec![order.to_vec()]
    } else {
        order.iter().map(|index| vec![*index]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::catalog;

    #[test]
    fn bench_stops_when_complete_or_out_of_budget() {
        let seconds = Duration::from_secs;
        let budget = Budget { runs: 10, time: seconds(60), precision: 0.05 };
        assert_eq!(budget.stop(0, seconds(90), seconds(0), true), None);
        assert_eq!(budget.stop(3, seconds(30), seconds(10), false), None);
        assert_eq!(budget.stop(3, seconds(30), seconds(10), true), Some(Stop::Complete));
        assert_eq!(budget.stop(10, seconds(30), seconds(10), false), Some(Stop::Runs));
        assert_eq!(budget.stop(3, seconds(50), seconds(10), false), None);
        assert_eq!(budget.stop(3, seconds(51), seconds(10), false), Some(Stop::Time));
        assert_eq!(budget.stop(1, Duration::MAX, Duration::MAX, false), Some(Stop::Time));
    }

    #[test]
    fn each_round_starts_with_next_type() {
        assert_eq!([0, 1, 2, 3].map(|round| order(3, round)), [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
        assert!(order(0, 5).is_empty());
    }

    #[test]
    fn guests_run_together_if_memory_is_available() {
        let types = ["t3.nano", "t3.micro"].map(|name| InstanceSize::of_type(catalog::find(name).unwrap()));
        assert_eq!(groups(&[1, 0], &types, 2_000), [[1, 0]]);
        assert_eq!(groups(&[1, 0], &types, 1_536), [[1], [0]]);
        assert_eq!(groups(&[1], &types, 0), [[1]]);
    }
}
