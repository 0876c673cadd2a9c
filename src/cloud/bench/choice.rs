//! Chooses the cheapest instance type that is fast enough.
//!
//! The user provides prices, because they change and differ by region. Without prices, types are ordered by baseline
//! vCPUs and then memory, which is the order of EC2's prices within a generation.

use std::cmp::Ordering;

use super::measure::Measure;
use ec2::InstanceType;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Index of the instance type in the report.
    pub subject: usize,
    pub median: f64,
}

/// Returns the slowdown of each type relative to the fastest in a measure, in the order of the types.
pub fn slowdowns(measure: &Measure, standings: &[Standing]) -> Vec<(usize, f64)> {
    let best = standings.iter().map(|standing| standing.median).reduce(|one, other| measure.better_of(one, other));
    let Some(best) = best else { return Vec::new() };
    standings.iter().map(|standing| (standing.subject, measure.slowdown(standing.median, best))).collect()
}

/// Returns the first type of `by_price` (indices, cheapest first) whose slowdown is at most `within` in all measures.
pub fn cheapest(by_price: &[usize], measures: &[Vec<(usize, f64)>], within: f64) -> Option<usize> {
    let fast = |subject: usize| {
        let is_fast = |slowdowns: &Vec<(usize, f64)>| {
            slowdowns.iter().any(|(other, slowdown)| *other == subject && *slowdown <= within)
        };
        !measures.is_empty() && measures.iter().all(is_fast)
    };
    by_price.iter().copied().find(|subject| fast(*subject))
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
    use super::*;
    use ec2::catalog;
    use proptest::prelude::*;

    fn standings(medians: &[f64]) -> Vec<Standing> {
        medians.iter().enumerate().map(|(subject, median)| Standing { subject, median: *median }).collect()
    }

    #[test]
    fn cheapest_type_is_within_slowdown_in_every_measure() {
        let measures = chosen(["integer-one", "boot"]).unwrap();
        let rate = slowdowns(measures[0], &standings(&[50.0, 90.0, 100.0]));
        let time = slowdowns(measures[1], &standings(&[1.0, 1.05, 1.2]));
        assert_eq!(rate[0], (0, 1.0));
        let order = [0, 1, 2];
        assert_eq!(cheapest(&order, std::slice::from_ref(&rate), 0.25), Some(1));
        assert_eq!(cheapest(&order, std::slice::from_ref(&rate), 1.0), Some(0));
        assert_eq!(cheapest(&[2, 1, 0], std::slice::from_ref(&rate), 0.25), Some(2));
        assert_eq!(cheapest(&order, &[rate.clone(), time], 0.15), Some(1));
        // A type without results is not chosen; without any results, none is.
        assert_eq!(cheapest(&order, &[rate, slowdowns(measures[1], &standings(&[1.0]))], 0.25), None);
        assert_eq!(cheapest(&order, &[], 0.25), None);
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
            medians in prop::collection::vec(0.1_f64..100.0, 1..8),
            within in 0.0_f64..2.0,
            more in 0.0_f64..2.0,
        ) {
            let measure = chosen(["integer-one"]).unwrap()[0];
            let order: Vec<usize> = (0..medians.len()).collect();
            let slowdowns = [slowdowns(measure, &standings(&medians))];
            // The fastest type always qualifies.
            let chosen = cheapest(&order, &slowdowns, within).unwrap();
            prop_assert!(cheapest(&order, &slowdowns, within + more).unwrap() <= chosen);
            prop_assert!(slowdowns[0][chosen].1 <= within);
        }
    }
}
