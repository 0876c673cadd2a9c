//! Statistics over several runs: minimum, median and 95th percentile.

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub min: f64,
    /// The mean of the two middle values if the number of values is even.
    pub median: f64,
    /// By nearest rank: the smallest value that 95% of all values do not exceed. With fewer than 20, the maximum.
    pub p95: f64,
}

impl Summary {
    /// Summarizes values. Returns `None` if there are no values or one is not a number.
    pub fn of(values: &[f64]) -> Option<Summary> {
        if values.iter().any(|value| value.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let median = f64::midpoint(sorted[last / 2], sorted[sorted.len() / 2]);
        Some(Summary { min: sorted[0], median, p95: sorted[nearest_rank(sorted.len(), 95)] })
    }
}

/// Returns the index of a percentile in `count` sorted values; `count` must not be zero.
fn nearest_rank(count: usize, percent: usize) -> usize {
    (count * percent).div_ceil(100).max(1) - 1
}

/// Returns the median, or 0 if there are no values or one is not a number.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.into_iter().collect();
    Summary::of(&values).map_or(0.0, |summary| summary.median)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn median_is_middle_value() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN]), None);
        assert_eq!(Summary::of(&[3.0]), Some(Summary { min: 3.0, median: 3.0, p95: 3.0 }));
        assert_eq!(Summary::of(&[9.0, 1.0, 5.0]), Some(Summary { min: 1.0, median: 5.0, p95: 9.0 }));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
    }

    #[test]
    fn percentile_95_is_nearest_rank() {
        let values = |count: u32| (1..=count).map(f64::from).collect::<Vec<_>>();
        assert_eq!(Summary::of(&values(19)).unwrap().p95, 19.0);
        assert_eq!(Summary::of(&values(20)).unwrap().p95, 19.0);
        assert_eq!(Summary::of(&values(100)).unwrap().p95, 95.0);
    }

    proptest! {
        #[test]
        fn summary_is_ordered_for_any_value_order(
            mut values in prop::collection::vec(-1e9..1e9, 1..60),
        ) {
            let summary = Summary::of(&values).unwrap();
            prop_assert!(summary.min <= summary.median && summary.median <= summary.p95);
            let at_most = |bound: f64| values.iter().filter(|value| **value <= bound).count();
            prop_assert!(at_most(summary.p95) * 100 >= values.len() * 95);
            prop_assert!(at_most(summary.median) * 2 >= values.len());
            values.reverse();
            prop_assert_eq!(Summary::of(&values), Some(summary));
        }
    }
}
