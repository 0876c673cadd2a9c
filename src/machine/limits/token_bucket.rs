//! A token bucket that fills at a constant rate up to its capacity. Callers pass the time.
//!
//! A request passes while there is at least one token and takes its whole cost, so the bucket can go into debt. Nothing
//! passes until the debt is paid. Hence no capacity is too small for one large request.

/// Billionths of a token, so that a nanosecond at any rate is a whole number.
const WHOLE: i128 = 1_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBucket {
    per_second: u64,
    /// Capacity and tokens, in billionths.
    capacity: i128,
    tokens: i128,
    /// The time of the last refill.
    at_ns: u64,
}

impl TokenBucket {
    pub fn full(per_second: u64, capacity: u64, now_ns: u64) -> TokenBucket {
        let capacity = i128::from(capacity.max(1)) * WHOLE;
        TokenBucket { per_second: per_second.max(1), capacity, tokens: capacity, at_ns: now_ns }
    }

    /// Adds the tokens since the last refill. A clock that goes backwards adds none.
    fn fill(&mut self, now_ns: u64) {
        let elapsed = now_ns.saturating_sub(self.at_ns);
        self.at_ns = self.at_ns.max(now_ns);
        let earned = i128::from(elapsed).saturating_mul(i128::from(self.per_second));
        self.tokens = self.tokens.saturating_add(earned).min(self.capacity);
    }

    /// Returns the nanoseconds until a request may pass; 0 if one may pass now.
    pub fn wait_ns(&mut self, now_ns: u64) -> u64 {
        self.fill(now_ns);
        if self.tokens > 0 {
            return 0;
        }
        // One billionth above zero is enough.
        let wait = (1 - self.tokens).unsigned_abs().div_ceil(u128::from(self.per_second));
        u64::try_from(wait).unwrap_or(u64::MAX)
    }

    pub fn take(&mut self, amount: u64, now_ns: u64) {
        self.fill(now_ns);
        self.tokens = self.tokens.saturating_sub(i128::from(amount) * WHOLE);
    }

    /// Returns 0 while in debt.
    pub fn tokens(&mut self, now_ns: u64) -> u64 {
        self.fill(now_ns);
        u64::try_from(self.tokens.max(0) / WHOLE).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn bucket_gives_capacity_then_rate() {
        let mut bucket = TokenBucket::full(100, 50, 0);
        bucket.take(50, 0);
        assert_eq!(bucket.wait_ns(0), 1);
        assert_eq!(bucket.tokens(SECOND / 10), 10);
        assert_eq!(bucket.tokens(100 * SECOND), 50);
    }

    #[test]
    fn request_larger_than_bucket_passes_and_is_paid_back() {
        let mut bucket = TokenBucket::full(100, 10, 0);
        bucket.take(210, 0);
        assert_eq!(bucket.tokens(0), 0);
        assert_eq!(bucket.wait_ns(0).div_ceil(1000) * 1000, 2 * SECOND + 1000);
        assert_eq!(bucket.wait_ns(3 * SECOND), 0);
    }

    #[test]
    fn clock_going_backwards_adds_no_tokens() {
        let mut bucket = TokenBucket::full(100, 10, 5 * SECOND);
        bucket.take(10, 5 * SECOND);
        assert_eq!(bucket.tokens(4 * SECOND), 0);
        assert_eq!(bucket.tokens(5 * SECOND), 0);
    }

    /// A bucket that counts quarters of a token and fills nanosecond by nanosecond.
    struct Model {
        quarters_per_ns: i64,
        capacity: i64,
        level: i64,
        at_ns: u64,
    }

    impl Model {
        fn pass(&mut self, now_ns: u64) {
            while self.at_ns < now_ns {
                self.level = (self.level + self.quarters_per_ns).min(self.capacity);
                self.at_ns += 1;
            }
        }

        fn wait_ns(&self) -> u64 {
            (0..).find(|wait| self.level + *wait as i64 * self.quarters_per_ns > 0).unwrap()
        }
    }

    /// Checks a bucket with `quarters_per_ns` quarters of a token a nanosecond. Each request has a time and an amount.
    fn check_bucket(quarters_per_ns: u64, capacity: u64, start_ns: u64, requests: &[(u64, u64)]) {
        let mut bucket = TokenBucket::full(quarters_per_ns * SECOND / 4, capacity, start_ns);
        let full = 4 * capacity.max(1) as i64;
        let mut model = Model { quarters_per_ns: quarters_per_ns as i64, capacity: full, level: full, at_ns: start_ns };
        for (now_ns, amount) in requests {
            model.pass(*now_ns);
            assert_eq!(
                bucket.wait_ns(*now_ns),
                model.wait_ns(),
                "{quarters_per_ns}/4 per ns, capacity {capacity}, {requests:?}"
            );
            assert_eq!(
                bucket.tokens(*now_ns),
                (model.level.max(0) / 4) as u64,
                "{quarters_per_ns}/4 per ns, capacity {capacity}, {requests:?}"
            );
            bucket.take(*amount, *now_ns);
            model.level -= 4 * *amount as i64;
            assert_eq!(
                bucket.wait_ns(*now_ns),
                model.wait_ns(),
                "{quarters_per_ns}/4 per ns, capacity {capacity}, {requests:?}"
            );
        }
    }

    #[test]
    fn every_three_requests_to_small_buckets_match_model() {
        const START: u64 = 2;
        // The times are in any order, also before the start: the clock may go backwards.
        let requests: Vec<(u64, u64)> = (0..8).flat_map(|time| (0..4).map(move |amount| (time, amount))).collect();
        for (rate, capacity) in [(1, 0), (1, 1), (1, 3), (2, 2), (3, 1), (9, 2)] {
            for first in &requests {
                for second in &requests {
                    requests.iter().for_each(|third| check_bucket(rate, capacity, START, &[*first, *second, *third]));
                }
            }
        }
    }

    #[test]
    fn extreme_values_do_not_overflow() {
        let extremes = [0, 1, u64::MAX - 1, u64::MAX];
        for rate in extremes {
            for capacity in extremes {
                for amount in extremes {
                    let mut bucket = TokenBucket::full(rate, capacity, 0);
                    for now in extremes {
                        bucket.take(amount, now);
                        assert!(bucket.tokens(now) <= capacity.max(1));
                        assert!(bucket.tokens(now) == 0 || bucket.wait_ns(now) == 0);
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn waiting_requests_pass_within_rate_and_capacity(
            rate in 1_u64..1_000_000_000,
            capacity in 1_u64..1_000_000,
            requests in prop::collection::vec((0_u64..SECOND, 1_u64..100_000), 1..100),
        ) {
            let mut bucket = TokenBucket::full(rate, capacity, 0);
            let (mut now, mut passed, mut last) = (0, 0_u128, 0);
            for (pause, amount) in requests {
                now += pause;
                now += bucket.wait_ns(now);
                prop_assert_eq!(bucket.wait_ns(now), 0);
                bucket.take(amount, now);
                passed += u128::from(amount);
                last = amount;
            }
            let most = u128::from(capacity) + u128::from(now) * u128::from(rate) / u128::from(SECOND) + 1;
            prop_assert!(passed - u128::from(last) <= most);
        }
    }
}
