//! Repeats work for a given time.

use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Minimum number of parts into which the time is divided. The clock is read after each.
const PARTS: u128 = 16;

pub struct Done {
    /// Amount of work in the workload's unit.
    pub amount: u64,
    pub elapsed: Duration,
    pub threads: usize,
    /// Size of the memory or file in bytes.
    pub bytes: u64,
}

/// Notifies the caller that the measurement begins.
pub fn begin() -> Result<(), String> {
    let mut output = io::stdout();
    output
        .write_all(b"begin\n")
        .and_then(|()| output.flush())
        .map_err(|error| format!("cannot write to standard output: {error}"))
}

/// Calls `work` with a number of units to do until `target` has passed. Returns the sum of the units, and the time.
pub fn repeat<E>(target: Duration, mut work: impl FnMut(u64) -> Result<(), E>) -> Result<(u64, Duration), E> {
    let began = Instant::now();
    let (mut done, mut next) = (0, 1);
    loop {
        work(next)?;
        done = u64::saturating_add(done, next);
        let elapsed = began.elapsed();
        if elapsed >= target {
            return Ok((done, elapsed));
        }
        next = next_units(target, elapsed, done, next);
    }
}

/// Returns the units for one part of the time, at the rate so far. At most doubles: the first units are the slowest.
fn next_units(target: Duration, elapsed: Duration, done: u64, before: u64) -> u64 {
    let part = target.as_nanos() / PARTS;
    let units = u128::from(done) * part / elapsed.as_nanos().max(1);
    u64::try_from(units).unwrap_or(u64::MAX).clamp(1, before.saturating_mul(2))
}

/// Reproducible random numbers (xorshift64*, with its published constants).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `end`, which must not be zero.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_grow_to_one_part_and_at_most_double() {
        let (target, ms) = (Duration::from_millis(160), Duration::from_millis);
        // 100 units in 10 ms: a part is 10 ms.
        assert_eq!(next_units(target, ms(10), 100, 60), 100);
        assert_eq!(next_units(target, ms(10), 100, 10), 20);
        assert_eq!(next_units(target, ms(1000), 1, 1), 1);
    }

    #[test]
    fn work_repeats_until_target_time() {
        let mut calls = 0;
        let (done, elapsed) = repeat(Duration::from_millis(5), |_| {
            calls += 1;
            Ok::<(), ()>(())
        })
        .unwrap();
        assert!(calls > 1 && done >= calls && elapsed >= Duration::from_millis(5));
        assert_eq!(repeat(Duration::from_secs(1), |_| Err(7)), Err(7));
    }

    #[test]
    fn random_numbers_stay_below_end() {
        let mut random = Random::new(9);
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert_eq!(random.below(1), 0);
    }
}
