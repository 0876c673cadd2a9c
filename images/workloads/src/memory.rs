//! Memory workloads on one vCPU. They report their memory (`bytes`), which depends on the speed of allocation.

use std::convert::Infallible;
use std::hint::black_box;

use crate::Options;
use crate::pages::{Memory, STEP};
use crate::timing::{Done, Random, begin, repeat};

/// Size of a cache line, in bytes and in words.
const LINE: usize = 64;
const WORDS: usize = LINE / size_of::<u64>();

/// Counts the bytes read and written while one half of the memory is copied to the other.
pub fn bandwidth(options: &Options) -> Result<Done, String> {
    let mut memory = Memory::get(STEP, options.bytes)?;
    let bytes = memory.bytes() as u64;
    let words = memory.words();
    let (left, right) = words.split_at_mut(words.len() / 2);
    // Copy 1 MiB at a time, so that slow memory exceeds the target time only slightly.
    const PIECE: usize = (1 << 20) / size_of::<u64>();
    let pieces = left.len() / PIECE;
    let mut next = 0;
    begin()?;
    let Ok((copied, elapsed)) = repeat(options.target, |count| {
        for _ in 0..count {
            let piece = next * PIECE..(next + 1) * PIECE;
            right[piece.clone()].copy_from_slice(black_box(&left[piece]));
            next = (next + 1) % pieces;
        }
        Ok::<(), Infallible>(())
    });
    Ok(Done { amount: (copied * 2) << 20, elapsed, threads: 1, bytes })
}

/// Counts loads, each of which yields the next one's address.
pub fn latency(options: &Options) -> Result<Done, String> {
    let mut memory = Memory::get(STEP, options.bytes)?;
    let bytes = memory.bytes() as u64;
    let words = memory.words();
    link(words);
    let mut at = 0;
    begin()?;
    let Ok((amount, elapsed)) = repeat(options.target, |count| {
        for _ in 0..count {
            at = words[at] as usize;
        }
        black_box(at);
        Ok::<(), Infallible>(())
    });
    Ok(Done { amount, elapsed, threads: 1, bytes })
}

/// Links all lines into a ring in random order: the first word of each is the index of the next (Sattolo's shuffle).
fn link(words: &mut [u64]) {
    let lines = words.len() / WORDS;
    (0..lines).for_each(|line| words[line * WORDS] = (line * WORDS) as u64);
    let mut random = Random::new(1);
    for line in (1..lines).rev() {
        let other = random.below(line as u64) as usize;
        words.swap(line * WORDS, other * WORDS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_visits_every_line_once() {
        let mut words = vec![0; 100 * WORDS];
        link(&mut words);
        let (mut at, mut seen) = (0, 0);
        loop {
            at = words[at] as usize;
            seen += 1;
            if at == 0 {
                break;
            }
        }
        assert_eq!(seen, 100);
    }
}
