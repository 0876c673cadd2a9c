//! Keeps a guest busy with arithmetic, file writes and timers until /run/busy.stop exists. Then prints the amount of
//! work and the number of errors. `busy stream` prints consecutive numbers without end.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

static WRONG: AtomicU64 = AtomicU64::new(0);

/// The constants of Knuth's linear congruential generator.
const FACTOR: u64 = 6364136223846793005;
const TERM: u64 = 1442695040888963407;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

fn main() {
    if std::env::args().nth(1).as_deref() == Some("stream") {
        return stream();
    }
    let workers: [(&str, fn() -> u64); 3] = [("sums", arithmetic), ("blocks", disk), ("timers", timers)];
    let threads = workers.map(|(name, work)| (name, thread::spawn(work)));
    let done = threads.map(|(name, thread)| format!("{name}={}", thread.join().unwrap()));
    println!("{} wrong={}", done.join(" "), WRONG.load(Ordering::SeqCst));
}

fn is_over() -> bool {
    Path::new("/run/busy.stop").exists()
}

fn check(right: bool) {
    WRONG.fetch_add(u64::from(!right), Ordering::SeqCst);
}

/// Advances a generator by single steps, and compares its state with a computed jump of as many steps.
fn arithmetic() -> u64 {
    const STEPS: u64 = 1 << 22;
    let (mut factor, mut term) = (FACTOR, TERM);
    for _ in 0..STEPS.trailing_zeros() {
        term = term.wrapping_mul(factor.wrapping_add(1));
        factor = factor.wrapping_mul(factor);
    }
    let (mut state, mut sums) = (1_u64, 0);
    while !is_over() {
        let expected = state.wrapping_mul(factor).wrapping_add(term);
        for _ in 0..STEPS {
            state = std::hint::black_box(state.wrapping_mul(FACTOR).wrapping_add(TERM));
        }
        check(state == expected);
        sums += 1;
    }
    sums
}

/// Writes blocks with fsync and reads each back. At the end, drops the page cache and reads the last blocks from disk.
fn disk() -> u64 {
    let block = |number: u64| {
        let mut bytes = [0; BLOCK];
        for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(number * 1000 + index as u64).wrapping_mul(FACTOR).to_le_bytes());
        }
        bytes
    };
    let file = File::options().read(true).write(true).create(true).truncate(true).open("/root/busy").unwrap();
    let is_there = |number: u64| {
        let mut bytes = [0; BLOCK];
        file.read_exact_at(&mut bytes, number % BLOCKS * BLOCK as u64).is_ok() && bytes == block(number)
    };
    let mut number = 0;
    while !is_over() {
        check(file.write_all_at(&block(number), number % BLOCKS * BLOCK as u64).is_ok());
        check(file.sync_all().is_ok());
        check(is_there(number));
        number += 1;
    }
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    (number.saturating_sub(BLOCKS)..number).for_each(|number| check(is_there(number)));
    number
}

fn timers() -> u64 {
    const DELAY: Duration = Duration::from_millis(20);
    let mut count = 0;
    while !is_over() {
        let began = Instant::now();
        thread::sleep(DELAY);
        check(began.elapsed() >= DELAY);
        count += 1;
    }
    count
}

fn stream() {
    let mut output = BufWriter::new(std::io::stdout());
    let mut number = 0_u64;
    while writeln!(output, "{number}").is_ok() {
        number += 1;
    }
}
