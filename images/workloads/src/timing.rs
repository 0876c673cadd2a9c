//! Work for about as long as was asked for.

use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Into how many parts the time is cut at least: the clock is looked at after each.
const PARTS: u128 = 16;

/// What was done.
pub struct Done {
    /// How much, in the measure's unit.
    pub amount: u64,
    /// In how long.
    pub elapsed: Duration,
    /// By how many threads.
    pub threads: usize,
    /// In how many bytes of memory or file.
    pub bytes: u64,
}

/// Says to whoever runs this that all is ready, and the measuring begins.
pub fn begin() -> Result<(), String> {
    let mut output = io::stdout();
    output.write_all(b"begin\n").and_then(|()| output.flush()).map_err(|error| format!("standard output: {error}"))
}

/// Calls `work` with numbers of units to do until `target` has passed. Returns how many that were, and how long they took.
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
        next = following(target, elapsed, done, next);
    }
}

/// How many units to do next: a part of the time's worth, by what was done so far; never more than twice as many as before,
/// for the first ones are the slowest.
fn following(target: Duration, elapsed: Duration, done: u64, before: u64) -> u64 {
    let part = target.as_nanos() / PARTS;
    let units = u128::from(done) * part / elapsed.as_nanos().max(1);
    u64::try_from(units).unwrap_or(u64::MAX).clamp(1, before.saturating_mul(2))
}

/// Random numbers that are the same each time (xorshift64*, with its published constants).
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_to_their_share_of_the_time_and_no_faster_than_twofold() {
        let (target, ms) = (Duration::from_millis(160), Duration::from_millis);
        // 100 units in 10 ms: a part is 10 ms.
        assert_eq!(following(target, ms(10), 100, 60), 100);
        assert_eq!(following(target, ms(10), 100, 10), 20);
        assert_eq!(following(target, ms(1000), 1, 1), 1);
    }

    #[test]
    fn work_goes_on_until_its_time_has_passed() {
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
    fn random_numbers_stay_below_their_end() {
        let mut random = Random::new(9);
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert_eq!(random.below(1), 0);
    }
}
