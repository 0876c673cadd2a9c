//! Times of a machine's usage readings and status.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time, in a machine's life and in wall-clock time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleTime {
    /// Identifies the run: its start in nanoseconds since 1970. A guest's reboot begins a new run.
    pub run: u64,
    /// Milliseconds since the start, excluding time for which the host was suspended.
    pub up_ms: u64,
    /// Wall-clock time in milliseconds since 1970. It can jump if the host's clock is set.
    pub at_ms: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Clock {
    run: u64,
    began: Instant,
}

impl Clock {
    pub fn start() -> Clock {
        let run = u64::try_from(since_1970().as_nanos()).unwrap_or(u64::MAX);
        Clock { run, began: Instant::now() }
    }

    pub fn now(&self) -> SampleTime {
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        SampleTime { run: self.run, up_ms: ms(self.began.elapsed()), at_ms: ms(since_1970()) }
    }
}

/// Returns the time since 1970, or zero if the host's clock is set to an earlier time.
fn since_1970() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
