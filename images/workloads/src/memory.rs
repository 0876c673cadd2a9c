//! What memory does, for one vCPU. How much memory it is depends on how fast the guest's kernel gives it, and is told
//! (`bytes`), for whoever wants to compare it with the processor's caches.

use std::convert::Infallible;
use std::hint::black_box;

use crate::Options;
use crate::pages::{Memory, STEP};
use crate::timing::{Done, Random, begin, repeat};

/// A cache's line, in bytes and in words.
const LINE: usize = 64;
const WORDS: usize = LINE / size_of::<u64>();

/// Bytes that are read and written by copying one half of the memory to the other.
pub fn bandwidth(options: &Options) -> Result<Done, String> {
    let mut memory = Memory::get(STEP, options.bytes)?;
    let bytes = memory.bytes() as u64;
    let words = memory.words();
    let (left, right) = words.split_at_mut(words.len() / 2);
    // A MiB at a time, so that slow memory is not copied for much longer than was asked for.
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

/// Loads of which each has the next one's address, all over the memory.
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

/// Makes one ring of all lines, in random order: the first word of each is the index of the next one's (Sattolo's shuffle).
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
    fn the_ring_passes_every_line_once() {
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
