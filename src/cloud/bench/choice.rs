//! Compares types in a measure, and chooses the cheapest type that is fast enough.
//!
//! A difference between two types is found only if the confidence intervals of their medians do not overlap. Without a
//! price for each type, types are ordered by baseline vCPUs and then memory, which is the order of EC2's prices within
//! a generation.

use std::cmp::Ordering;

use super::measure::{Better, Measure};
use super::statistics::Summary;
use ec2::InstanceType;

/// Comparison of a type with the fastest type in a measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Index of the instance type in the report.
    pub subject: usize,
    /// Slowdown of the median: 0.25 is a quarter slower.
    pub slowdown: f64,
    /// Largest slowdown that the intervals allow. `None` with too few runs.
    pub largest_slowdown: Option<f64>,
    pub difference: Difference,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// This type is the fastest, and at least one other is slower.
    Fastest,
    /// The intervals of this type and the fastest do not overlap.
    Slower,
    /// The intervals overlap. For the fastest type: they overlap with those of all other types.
    NotFound,
    /// One of the two types has no interval.
    TooFewRuns,
}

impl Standing {
    /// Returns true if the slowdown is at most `within`, or if no difference from the fastest type was found.
    fn is_fast_enough(&self, within: f64) -> bool {
        self.slowdown <= within || self.difference == Difference::NotFound
    }

    /// Returns true if the type may be slower than `within` allows.
    pub fn is_uncertain(&self, within: f64) -> bool {
        self.largest_slowdown.is_none_or(|slowdown| slowdown > within)
    }
}

/// Compares types in a measure, in the order given.
pub fn standings(measure: &Measure, types: &[(usize, Summary)]) -> Vec<Standing> {
    let is_better = |one: f64, other: f64| one != other && measure.better_of(one, other) == one;
    let mut others = types.iter();
    let Some(first) = others.next() else { return Vec::new() };
    let best = others.fold(first, |best, one| if is_better(one.1.median, best.1.median) { one } else { best });
    let mut standings: Vec<Standing> =
        types.iter().map(|(subject, summary)| standing(measure, *subject, summary, &best.1)).collect();
    let of_best = standings.iter().position(|standing| standing.subject == best.0);
    let others = || standings.iter().filter(|standing| standing.subject != best.0).map(|other| other.difference);
    let difference = if others().any(|difference| difference == Difference::Slower) || types.len() == 1 {
        Difference::Fastest
    } else if others().all(|difference| difference == Difference::NotFound) {
        Difference::NotFound
    } else {
        Difference::TooFewRuns
    };
    if let Some(index) = of_best {
        let largest_slowdown = standings[index].largest_slowdown.map(|_| 0.0);
        standings[index] = Standing { difference, largest_slowdown, ..standings[index] };
    }
    standings
}

fn standing(measure: &Measure, subject: usize, summary: &Summary, best: &Summary) -> Standing {
    let slowdown = measure.slowdown(summary.median, best.median);
    let intervals = summary.interval.zip(best.interval);
    let difference = match intervals {
        None => Difference::TooFewRuns,
        Some((own, fastest)) if own.overlaps(&fastest) => Difference::NotFound,
        Some(_) => Difference::Slower,
    };
    let largest_slowdown = intervals.map(|(own, fastest)| {
        let (worst, best) = match measure.better {
            Better::Higher => (own.low, fastest.high),
            Better::Lower => (own.high, fastest.low),
        };
        measure.slowdown(worst, best)
    });
    Standing { subject, slowdown, largest_slowdown, difference }
}

/// Returns the first type of `by_price` (indices, cheapest first) that is fast enough in all measures.
pub fn cheapest(by_price: &[usize], measures: &[Vec<Standing>], within: f64) -> Option<usize> {
    let is_fast = |subject: usize| {
        let in_measure = |standings: &Vec<Standing>| {
            standings.iter().any(|standing| standing.subject == subject && standing.is_fast_enough(within))
        };
        !measures.is_empty() && measures.iter().all(in_measure)
    };
    by_price.iter().copied().find(|subject| is_fast(*subject))
}

/// Orders types by price if both have one, else by size.
pub fn order(one: (&InstanceType, Option<f64>), other: (&InstanceType, Option<f64>)) -> Ordering {
    match (one.1, other.1) {
        (Some(price), Some(other_price)) => price.total_cmp(&other_price),
        _ => by_size(one.0).cmp(&by_size(other.0)),
    }
}

/// Returns a type's baseline CPU in hundredths of a percent of a vCPU, its memory in MiB, and true if it cannot burst.
fn by_size(instance_type: &InstanceType) -> (u64, u64, bool) {
    let percent = instance_type.credits.map_or(100.0, |credits| credits.baseline_percent);
    let share = (percent * 100.0) as u64 * u64::from(instance_type.vcpus);
    (share, instance_type.memory_mib, instance_type.credits.is_none())
}

#[cfg(test)]
mod tests {
    use super::super::measure::chosen;
    use super::super::statistics::Interval;
    use super::*;
    use ec2::catalog;
    use proptest::prelude::*;

    /// Returns types with these medians and without intervals.
    fn medians(medians: &[f64]) -> Vec<(usize, Summary)> {
        let of = |median: &f64| Summary { min: *median, median: *median, p95: *median, interval: None };
        medians.iter().map(of).enumerate().collect()
    }

    /// Returns types with these intervals, whose medians are in the middle.
    fn intervals(intervals: &[(f64, f64)]) -> Vec<(usize, Summary)> {
        let of = |(low, high): &(f64, f64)| {
            let (low, high) = (*low, *high);
            let interval = Some(Interval { low, high });
            Summary { min: low, median: f64::midpoint(low, high), p95: high, interval }
        };
        intervals.iter().map(of).enumerate().collect()
    }

    fn differences(standings: &[Standing]) -> Vec<Difference> {
        standings.iter().map(|standing| standing.difference).collect()
    }

    #[test]
    fn cheapest_type_is_within_slowdown_in_every_measure() {
        let measures = chosen(["integer-one", "boot"]).unwrap();
        let rate = standings(measures[0], &medians(&[50.0, 90.0, 100.0]));
        let time = standings(measures[1], &medians(&[1.0, 1.05, 1.2]));
        assert_eq!((rate[0].subject, rate[0].slowdown), (0, 1.0));
        let order = [0, 1, 2];
        assert_eq!(cheapest(&order, std::slice::from_ref(&rate), 0.25), Some(1));
        assert_eq!(cheapest(&order, std::slice::from_ref(&rate), 1.0), Some(0));
        assert_eq!(cheapest(&[2, 1, 0], std::slice::from_ref(&rate), 0.25), Some(2));
        assert_eq!(cheapest(&order, &[rate.clone(), time], 0.15), Some(1));
        // A type without results is not chosen; without any results, none is.
        assert_eq!(cheapest(&order, &[rate, standings(measures[1], &medians(&[1.0]))], 0.25), None);
        assert_eq!(cheapest(&order, &[], 0.25), None);
    }

    #[test]
    fn difference_needs_disjoint_intervals() {
        use Difference::{Fastest, NotFound, Slower, TooFewRuns};
        let [rate, time] = ["integer-one", "boot"].map(|name| chosen([name]).unwrap()[0]);
        let same = standings(rate, &intervals(&[(90.0, 110.0), (100.0, 130.0)]));
        assert_eq!(differences(&same), [NotFound, NotFound]);
        let three = standings(rate, &intervals(&[(90.0, 110.0), (100.0, 130.0), (50.0, 60.0)]));
        assert_eq!(differences(&three), [NotFound, Fastest, Slower]);
        let times = standings(time, &intervals(&[(1.0, 2.0), (2.5, 3.5)]));
        assert_eq!(differences(&times), [Fastest, Slower]);
        assert_eq!((times[0].largest_slowdown, times[1].largest_slowdown), (Some(0.0), Some(2.5)));
        assert_eq!(differences(&standings(rate, &medians(&[1.0, 2.0]))), [TooFewRuns, TooFewRuns]);
        assert_eq!(differences(&standings(rate, &medians(&[1.0]))), [Fastest]);
        assert_eq!(standings(rate, &[]), []);
    }

    #[test]
    fn type_without_found_difference_is_fast_enough_but_uncertain() {
        let rate = chosen(["integer-one"]).unwrap()[0];
        let same = standings(rate, &intervals(&[(40.0, 100.0), (90.0, 110.0)]));
        assert!(same[0].slowdown > 0.25);
        assert_eq!(cheapest(&[0, 1], std::slice::from_ref(&same), 0.25), Some(0));
        assert!(same[0].is_uncertain(0.25) && !same[1].is_uncertain(0.25) && !same[0].is_uncertain(2.0));
        assert!(standings(rate, &medians(&[1.0, 1.0]))[0].is_uncertain(9.0));
    }

    #[test]
    fn types_are_ordered_by_price_or_size() {
        let find = |name| catalog::find(name).unwrap();
        let mut types = ["m5.large", "t3.small", "c5.large", "t3.nano", "t3.large", "t3.micro"].map(find);
        types.sort_by(|one, other| order((one, None), (other, None)));
        let names = types.map(|known| known.name);
        assert_eq!(names, ["t3.nano", "t3.micro", "t3.small", "t3.large", "c5.large", "m5.large"]);
        let (nano, large) = (find("t3.nano"), find("m5.large"));
        assert_eq!(order((nano, Some(2.0)), (large, Some(1.0))), Ordering::Greater);
        assert_eq!(order((nano, Some(2.0)), (large, None)), Ordering::Less);
    }

    proptest! {
        #[test]
        fn wider_limit_never_chooses_dearer_type(
            figures in prop::collection::vec(0.1_f64..100.0, 1..8),
            within in 0.0_f64..2.0,
            more in 0.0_f64..2.0,
        ) {
            let measure = chosen(["integer-one"]).unwrap()[0];
            let order: Vec<usize> = (0..figures.len()).collect();
            let standings = [standings(measure, &medians(&figures))];
            // The fastest type always qualifies.
            let chosen = cheapest(&order, &standings, within).unwrap();
            prop_assert!(cheapest(&order, &standings, within + more).unwrap() <= chosen);
            prop_assert!(standings[0][chosen].slowdown <= within);
        }

        #[test]
        fn standings_follow_overlap_with_fastest(
            ends in prop::collection::vec((1.0_f64..100.0, 0.0_f64..50.0), 1..6),
            lower_is_better: bool,
        ) {
            let name = if lower_is_better { "boot" } else { "integer-one" };
            let measure = chosen([name]).unwrap()[0];
            let types = intervals(&ends.iter().map(|(low, width)| (*low, low + width)).collect::<Vec<_>>());
            let standings = standings(measure, &types);
            let best = standings.iter().find(|standing| standing.slowdown == 0.0).unwrap().subject;
            let fastest = types[best].1.interval.unwrap();
            for standing in standings.iter().filter(|standing| standing.subject != best) {
                let overlaps = types[standing.subject].1.interval.unwrap().overlaps(&fastest);
                let expected = if overlaps { Difference::NotFound } else { Difference::Slower };
                prop_assert_eq!(standing.difference, expected);
                prop_assert!(standing.largest_slowdown.unwrap() >= standing.slowdown);
            }
        }
    }
}
