//! I/O counters of a disk, and its last host error.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use machine::control::DiskRecord;
use machine::sync::lock;

/// Minimum time between two log lines. A full file system fails every write, which would flood the log.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The counters of one disk. Other threads can read them while the disk is busy.
#[derive(Debug)]
pub struct DiskCounters {
    id: String,
    reads: AtomicU64,
    writes: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    errors: AtomicU64,
    throttled_ns: AtomicU64,
    last: Mutex<LastError>,
}

#[derive(Debug, Default)]
struct LastError {
    sentence: Option<String>,
    logged: Option<Instant>,
}

impl DiskCounters {
    pub fn new(id: &str) -> DiskCounters {
        let zero = AtomicU64::default;
        DiskCounters {
            id: id.to_string(),
            reads: zero(),
            writes: zero(),
            read_bytes: zero(),
            written_bytes: zero(),
            errors: zero(),
            throttled_ns: zero(),
            last: Mutex::default(),
        }
    }

    pub fn read(&self, length: u64, result: io::Result<()>) -> io::Result<()> {
        if result.is_ok() {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.read_bytes.fetch_add(length, Ordering::Relaxed);
        }
        self.other("read", result)
    }

    pub fn write(&self, length: u64, result: io::Result<()>) -> io::Result<()> {
        if result.is_ok() {
            self.writes.fetch_add(1, Ordering::Relaxed);
            self.written_bytes.fetch_add(length, Ordering::Relaxed);
        }
        self.other("write", result)
    }

    pub fn throttled(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.throttled_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Counts a failure and logs it, unless one was logged within the last [`LOG_INTERVAL`]. Returns `result`.
    pub fn other(&self, what: &str, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result {
            let count = self.errors.fetch_add(1, Ordering::Relaxed) + 1;
            let sentence = format!("the {what} failed on the host: {error}");
            let mut last = lock(&self.last);
            if last.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                last.logged = Some(Instant::now());
                log::error!("disk {}: {sentence} ({count} errors so far)", self.id);
            }
            last.sentence = Some(sentence);
        }
        result
    }

    pub fn record(&self) -> DiskRecord {
        DiskRecord {
            id: self.id.clone(),
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            throttled_ns: self.throttled_ns.load(Ordering::Relaxed),
            limits: None,
            burst_percent: None,
            last_error: lock(&self.last).sentence.clone(),
        }
    }
}
