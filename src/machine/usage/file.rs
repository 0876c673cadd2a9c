//! The file with usage readings: at most [`MOST_LINES`] lines of JSON.
//!
//! Only the machine's VMM writes it. Readers skip an incomplete line, which a killed VMM or a full disk leaves.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Reading;
use crate::untrusted;

pub const FILE: &str = "usage.jsonl";

const MOST_LINES: usize = 2048;
/// A reading with twelve disks is shorter than 4 KiB.
const MOST_BYTES: u64 = (MOST_LINES as u64) << 12;
/// The minimum interval between readings in a thinned file, and their maximum age.
const APART_MS: u64 = 60_000;
const OLDEST_MS: u64 = 14 * 24 * 3600 * 1000;

/// Returns the readings in `dir`, oldest first; none if there is no file.
pub fn read(dir: &Path) -> io::Result<Vec<Reading>> {
    let text = bytes(&dir.join(FILE))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Reads a file; a missing file is empty.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    match untrusted::read(path, MOST_BYTES) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[derive(Debug)]
pub struct ReadingsFile {
    path: PathBuf,
    file: File,
    lines: usize,
    /// The last line may be incomplete.
    is_torn: bool,
}

impl ReadingsFile {
    pub fn open(dir: &Path) -> io::Result<ReadingsFile> {
        let path = dir.join(FILE);
        // A file that cannot be read is discarded.
        let text = bytes(&path).or_else(|error| {
            log::warn!("discarded the earlier usage readings, because {} cannot be read: {error}", path.display());
            untrusted::remove(&path).map(|()| Vec::new())
        })?;
        let lines = text.iter().filter(|byte| **byte == b'\n').count();
        let is_torn = text.last().is_some_and(|byte| *byte != b'\n');
        Ok(ReadingsFile { file: append_to(&path)?, path, lines, is_torn })
    }

    /// Appends a reading. After an error, the next reading starts on a new line.
    pub fn add(&mut self, reading: &Reading) -> io::Result<()> {
        if self.lines >= MOST_LINES {
            self.thin()?;
        }
        let mut line = if self.is_torn { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut line, reading)?;
        line.push(b'\n');
        self.is_torn = true;
        self.file.write_all(&line)?;
        self.is_torn = false;
        self.lines += 1;
        Ok(())
    }

    /// Rewrites the file with at most half of [`MOST_LINES`] readings.
    fn thin(&mut self) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let kept = thinned(read(dir)?, MOST_LINES / 2);
        let new = self.path.with_extension("new");
        let mut text = Vec::new();
        for reading in &kept {
            serde_json::to_writer(&mut text, reading)?;
            text.push(b'\n');
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        std::fs::rename(&new, &self.path)?;
        self.file = append_to(&self.path)?;
        (self.lines, self.is_torn) = (kept.len(), false);
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Returns at most `most` readings: drops those that are too old, and widens the interval between the others as needed.
/// Keeps the last reading of each run, unless there are more runs than `most`.
fn thinned(mut readings: Vec<Reading>, most: usize) -> Vec<Reading> {
    let newest = readings.last().map_or(0, |reading| reading.moment.at_ms);
    readings.retain(|reading| reading.moment.at_ms.saturating_add(OLDEST_MS) >= newest);
    let mut apart = APART_MS;
    while readings.len() > most && apart <= OLDEST_MS {
        let mut kept: Vec<Reading> = Vec::new();
        let mut rest = readings.into_iter().peekable();
        while let Some(reading) = rest.next() {
            let is_last = rest.peek().is_none_or(|next| next.moment.run != reading.moment.run);
            let before = kept.last().filter(|before| before.moment.run == reading.moment.run);
            let since = before.map_or(u64::MAX, |before| reading.moment.up_ms.saturating_sub(before.moment.up_ms));
            if is_last || since >= apart {
                kept.push(reading);
            }
        }
        readings = kept;
        apart *= 2;
    }
    readings.drain(..readings.len().saturating_sub(most));
    readings
}

#[cfg(test)]
mod tests {
    use super::super::SampleTime;
    use super::*;
    use proptest::prelude::*;

    fn reading(run: u64, up_ms: u64) -> Reading {
        Reading {
            moment: SampleTime { run, up_ms, at_ms: run / 1_000_000 + up_ms },
            cpu_ns: up_ms,
            ..Reading::default()
        }
    }

    fn moments(dir: &Path) -> Vec<(u64, u64)> {
        read(dir).unwrap().iter().map(|reading| (reading.moment.run, reading.moment.up_ms)).collect()
    }

    #[test]
    fn reopened_file_keeps_earlier_readings() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(moments(dir.path()), []);
        ReadingsFile::open(dir.path()).unwrap().add(&reading(1, 7)).unwrap();
        ReadingsFile::open(dir.path()).unwrap().add(&reading(2, 3)).unwrap();
        assert_eq!(moments(dir.path()), [(1, 7), (2, 3)]);
    }

    #[test]
    fn incomplete_line_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = ReadingsFile::open(dir.path()).unwrap();
        file.add(&reading(1, 7)).unwrap();
        file.add(&reading(1, 8)).unwrap();
        let path = dir.path().join(FILE);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        ReadingsFile::open(dir.path()).unwrap().add(&reading(2, 1)).unwrap();
        assert_eq!(moments(dir.path()), [(1, 7), (2, 1)]);
    }

    #[test]
    fn file_is_bounded_and_keeps_first_reading() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = ReadingsFile::open(dir.path()).unwrap();
        for number in 0..3 * MOST_LINES as u64 {
            file.add(&reading(5, number * 5000)).unwrap();
            assert!(file.lines <= MOST_LINES);
        }
        let readings = read(dir.path()).unwrap();
        assert!((MOST_LINES / 8..=MOST_LINES).contains(&readings.len()), "{}", readings.len());
        assert_eq!(readings[0].moment.up_ms, 0);
        let widest = readings.windows(2).map(|pair| pair[1].moment.up_ms - pair[0].moment.up_ms).max();
        assert!(widest <= Some(2 * APART_MS), "{widest:?}");
        assert!(std::fs::metadata(dir.path().join(FILE)).unwrap().len() < MOST_BYTES);
    }

    #[test]
    fn unreadable_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        File::create(&path).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert!(read(dir.path()).is_err());
        ReadingsFile::open(dir.path()).unwrap().add(&reading(1, 1)).unwrap();
        assert_eq!(moments(dir.path()), [(1, 1)]);
    }

    proptest! {
        #[test]
        fn thinning_keeps_order_last_reading_and_bound(
            runs in prop::collection::vec(prop::collection::vec(0_u64..10_000_000, 1..60), 1..40),
            most in 1_usize..100,
        ) {
            let mut all = Vec::new();
            for (run, steps) in (1..).zip(&runs) {
                let mut up = 0;
                for step in steps {
                    up += step;
                    all.push(reading(run, up));
                }
            }
            let kept = thinned(all.clone(), most);
            prop_assert!(!kept.is_empty() && kept.len() <= most);
            prop_assert_eq!(kept.last(), all.last());
            let mut rest = all.iter();
            prop_assert!(kept.iter().all(|reading| rest.any(|other| other == reading)));
        }
    }
}
