//! CPU workloads, on one or several vCPUs.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use crate::Options;
use crate::sha256::{INITIAL, compress};
use crate::timing::{Done, begin, repeat};

/// Rows of each matrix. Three matrices fit into any first-level cache.
const N: usize = 32;
/// Operations of one multiplication: a product and a sum for each.
const MULTIPLICATION: u64 = 2 * (N * N * N) as u64;

type Matrix = [[f64; N]; N];

/// Counts KiB hashed by SHA-256.
pub fn integer(options: &Options) -> Result<Done, String> {
    on_each(options, 1024, |target| {
        let (mut state, block) = (INITIAL, [0x5a; 64]);
        repeat_infallible(target, |kib| {
            for _ in 0..kib * 16 {
                compress(&mut state, black_box(&block));
            }
            black_box(state);
        })
    })
}

/// Counts floating-point operations of matrix multiplications.
pub fn float(options: &Options) -> Result<Done, String> {
    let bytes = (3 * size_of::<Matrix>()) as u64;
    let mut done = on_each(options, bytes, |target| {
        let (left, right) = ([[1.000_001; N]; N], [[0.999_999; N]; N]);
        let mut product = [[0.0; N]; N];
        repeat_infallible(target, |count| {
            for _ in 0..count {
                multiply(black_box(&left), black_box(&right), &mut product);
                black_box(&product);
            }
        })
    })?;
    done.amount *= MULTIPLICATION;
    Ok(done)
}

fn multiply(left: &Matrix, right: &Matrix, product: &mut Matrix) {
    for (row, out) in left.iter().zip(product) {
        *out = [0.0; N];
        for (factor, line) in row.iter().zip(right) {
            for (sum, value) in out.iter_mut().zip(line) {
                *sum += factor * value;
            }
        }
    }
}

fn repeat_infallible(target: Duration, mut work: impl FnMut(u64)) -> (u64, Duration) {
    let Ok(done) = repeat(target, |units| {
        work(units);
        Ok::<(), Infallible>(())
    });
    done
}

/// Runs `work` on all threads at the same time. The slowest thread determines the time.
fn on_each(options: &Options, bytes: u64, work: impl Fn(Duration) -> (u64, Duration) + Sync) -> Result<Done, String> {
    let Options { target, threads, .. } = *options;
    let together = Barrier::new(threads);
    begin()?;
    let results: Vec<(u64, Duration)> = thread::scope(|scope| {
        let run = || {
            together.wait();
            work(target)
        };
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let own = run();
        others.into_iter().filter_map(|thread| thread.join().ok()).chain([own]).collect()
    });
    let amount = results.iter().map(|(amount, _)| amount).sum();
    let elapsed = results.iter().map(|(_, elapsed)| *elapsed).max().unwrap_or(target);
    Ok(Done { amount, elapsed, threads, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiply_by_identity_changes_nothing() {
        let mut identity = [[0.0; N]; N];
        (0..N).for_each(|index| identity[index][index] = 1.0);
        let mut matrix = [[0.0; N]; N];
        matrix.iter_mut().flatten().enumerate().for_each(|(index, value)| *value = index as f64);
        let mut product = [[7.0; N]; N];
        multiply(&matrix, &identity, &mut product);
        assert_eq!(product, matrix);
    }
}
