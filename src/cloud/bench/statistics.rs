//! Statistics over several runs: minimum, median, 95th percentile, and a confidence interval of the median.
//!
//! The interval is a percentile bootstrap: the values are resampled with replacement, and the interval holds the middle
//! 95% of the resamples' medians. The generator has a fixed seed, so equal values have equal intervals.

/// Confidence of an [`Interval`], in percent.
pub const CONFIDENCE_PERCENT: u32 = 95;
/// Minimum number of values for an interval. Even the range of four values contains the median in only 7 of 8 cases.
pub const MIN_VALUES: usize = 5;

const RESAMPLES: usize = 2_000;
const SEED: u64 = 0x5769_7370_2042_656e;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub min: f64,
    /// The mean of the two middle values if the number of values is even.
    pub median: f64,
    /// By nearest rank: the smallest value that 95% of all values do not exceed. With fewer than 20, the maximum.
    pub p95: f64,
    /// Confidence interval of the median. `None` with fewer than [`MIN_VALUES`] values.
    pub interval: Option<Interval>,
}

/// A confidence interval, including both ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Interval {
    pub fn overlaps(&self, other: &Interval) -> bool {
        self.low <= other.high && other.low <= self.high
    }

    /// Returns half of the width as a share of `median`.
    fn half_width(&self, median: f64) -> f64 {
        (self.high - self.low) / 2.0 / median.abs()
    }
}

impl Summary {
    /// Summarizes values. Returns `None` if there are no values or one is not a number.
    pub fn of(values: &[f64]) -> Option<Summary> {
        let sorted = sorted(values)?;
        let interval = (sorted.len() >= MIN_VALUES).then(|| bootstrap(&sorted));
        Some(Summary { min: sorted[0], median: middle(&sorted), p95: sorted[nearest_rank(sorted.len(), 95)], interval })
    }

    /// Returns true if the interval extends at most `precision` (a share of the median) to each side on average.
    pub fn is_precise(&self, precision: f64) -> bool {
        self.interval.is_some_and(|interval| interval.half_width(self.median) <= precision)
    }
}

/// Returns the median, or 0 if there are no values or one is not a number.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    sorted(&values.into_iter().collect::<Vec<_>>()).map_or(0.0, |sorted| middle(&sorted))
}

/// Sorts values. Returns `None` if there are no values or one is not a number.
fn sorted(values: &[f64]) -> Option<Vec<f64>> {
    if values.is_empty() || values.iter().any(|value| value.is_nan()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

/// Returns the median of sorted values; there must be at least one.
fn middle(sorted: &[f64]) -> f64 {
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

/// Returns the index of a percentile in `count` sorted values; `count` must not be zero.
fn nearest_rank(count: usize, percent: usize) -> usize {
    (count * percent).div_ceil(100).max(1) - 1
}

/// Returns the confidence interval of the median of sorted values; there must be at least one.
fn bootstrap(values: &[f64]) -> Interval {
    let mut generator = SplitMix64(SEED);
    let mut counts = vec![0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            counts.fill(0);
            (0..values.len()).for_each(|_| counts[generator.below(values.len())] += 1);
            resampled_median(values, &counts)
        })
        .collect();
    medians.sort_unstable_by(f64::total_cmp);
    let outside = RESAMPLES * (100 - CONFIDENCE_PERCENT as usize) / 200;
    Interval { low: medians[outside], high: medians[RESAMPLES - 1 - outside] }
}

/// Returns the median of a resample that contains each of the sorted values as often as `counts` says.
fn resampled_median(values: &[f64], counts: &[usize]) -> f64 {
    let at_rank = |rank: usize| {
        let mut rest = rank;
        let is_past = |count: &usize| {
            let is_here = rest < *count;
            rest = rest.saturating_sub(*count);
            is_here
        };
        values[counts.iter().position(is_past).unwrap_or(values.len() - 1)]
    };
    f64::midpoint(at_rank((values.len() - 1) / 2), at_rank(values.len() / 2))
}

/// The SplitMix64 generator. Its sequence must not depend on a library's version, because reports are compared.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`. The bias of the multiplication is negligible for small limits.
    fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl SplitMix64 {
        /// Returns a uniformly distributed number above 0 and at most 1.
        fn uniform(&mut self) -> f64 {
            ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
        }

        /// Returns a number of the standard normal distribution (Box-Muller).
        fn normal(&mut self) -> f64 {
            (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
        }
    }

    /// Returns the share of `trials` in which the interval of `count` values of `draw` contains `median`.
    fn coverage(trials: u32, count: usize, median: f64, draw: fn(&mut SplitMix64) -> f64) -> f64 {
        let mut generator = SplitMix64(u64::from(trials) + count as u64);
        let contains = |interval: Interval| interval.low <= median && median <= interval.high;
        let mut covered = 0;
        for _ in 0..trials {
            let values: Vec<f64> = (0..count).map(|_| draw(&mut generator)).collect();
            covered += u32::from(contains(Summary::of(&values).unwrap().interval.unwrap()));
        }
        f64::from(covered) / f64::from(trials)
    }

    #[test]
    fn interval_covers_median_of_simulated_distributions() {
        // Symmetric noise, skewed noise, and a host that is slow in a third of the runs.
        let normal = |generator: &mut SplitMix64| 100.0 + 5.0 * generator.normal();
        let exponential = |generator: &mut SplitMix64| 1.0 - generator.uniform().ln();
        let slow_host = |generator: &mut SplitMix64| {
            let factor = if generator.uniform() < 1.0 / 3.0 { 1.5 } else { 1.0 };
            factor * (generator.uniform() + 9.0)
        };
        for count in [5, 8, 15, 30] {
            for (name, median, draw) in [
                ("normal", 100.0, normal as fn(&mut SplitMix64) -> f64),
                ("exponential", 1.0 + std::f64::consts::LN_2, exponential),
                ("slow host", 9.75, slow_host),
            ] {
                let share = coverage(400, count, median, draw);
                assert!((0.90..0.995).contains(&share), "{name}, {count} values: {share}");
            }
        }
    }

    #[test]
    fn intervals_of_equal_distributions_rarely_differ() {
        let mut generator = SplitMix64(1);
        let mut interval = |mean: f64, count: usize| {
            let values: Vec<f64> = (0..count).map(|_| mean * (1.0 + 0.2 * generator.normal())).collect();
            Summary::of(&values).unwrap().interval.unwrap()
        };
        for count in [5, 10, 20] {
            let found = (0..300).filter(|_| !interval(100.0, count).overlaps(&interval(100.0, count))).count();
            assert!(found <= 9, "{found} of 300 with {count} values");
        }
        // A difference that exceeds the noise is found.
        let found = (0..300).filter(|_| !interval(100.0, 10).overlaps(&interval(250.0, 10))).count();
        assert!(found >= 295, "{found} of 300");
    }

    #[test]
    fn median_is_middle_value() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN]), None);
        assert_eq!(Summary::of(&[3.0]), Some(Summary { min: 3.0, median: 3.0, p95: 3.0, interval: None }));
        let three = Summary { min: 1.0, median: 5.0, p95: 9.0, interval: None };
        assert_eq!(Summary::of(&[9.0, 1.0, 5.0]), Some(three));
        assert_eq!(median([4.0, 1.0, 2.0, 9.0]), 3.0);
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn percentile_95_is_nearest_rank() {
        let values = |count: u32| (1..=count).map(f64::from).collect::<Vec<_>>();
        assert_eq!(Summary::of(&values(19)).unwrap().p95, 19.0);
        assert_eq!(Summary::of(&values(20)).unwrap().p95, 19.0);
        assert_eq!(Summary::of(&values(100)).unwrap().p95, 95.0);
    }

    #[test]
    fn precision_is_half_of_the_interval() {
        let of = |interval| Summary { min: 80.0, median: 100.0, p95: 120.0, interval };
        let summary = of(Some(Interval { low: 96.0, high: 106.0 }));
        assert!(summary.is_precise(0.05) && !summary.is_precise(0.04));
        assert!(!of(None).is_precise(1.0));
        assert!(Summary::of(&[7.0; 5]).unwrap().is_precise(0.0));
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
            prop_assert_eq!(summary.interval.is_some(), values.len() >= MIN_VALUES);
            if let Some(Interval { low, high }) = summary.interval {
                prop_assert!(summary.min <= low && low <= summary.median && summary.median <= high);
            }
            values.reverse();
            prop_assert_eq!(Summary::of(&values), Some(summary));
        }

        #[test]
        fn interval_scales_with_values(values in prop::collection::vec(1.0..1e6, 5..20), exponent in -20..20) {
            // A power of two scales without rounding.
            let factor = 2_f64.powi(exponent);
            let scaled: Vec<f64> = values.iter().map(|value| value * factor).collect();
            let interval = |values: &[f64]| Summary::of(values).unwrap().interval.unwrap();
            let Interval { low, high } = interval(&values);
            prop_assert_eq!(interval(&scaled), Interval { low: low * factor, high: high * factor });
        }

        #[test]
        fn overlap_is_symmetric_and_needs_common_point(ends in prop::array::uniform4(-100.0..100.0)) {
            let interval = |one: f64, other: f64| Interval { low: one.min(other), high: one.max(other) };
            let (one, other) = (interval(ends[0], ends[1]), interval(ends[2], ends[3]));
            let has_common_point = one.low.max(other.low) <= one.high.min(other.high);
            prop_assert_eq!(one.overlaps(&other), has_common_point);
            prop_assert_eq!(other.overlaps(&one), has_common_point);
            prop_assert!(one.overlaps(&one));
        }
    }
}
