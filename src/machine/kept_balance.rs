//! The CPU credit balance at the end of a machine (`cpu-balance.json`), for use after a guest reboot or at a later
//! start.

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::fs::write_private;
use crate::limits::CpuBalance;
use crate::untrusted;

const FILE: &str = "cpu-balance.json";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptBalance {
    pub balance: CpuBalance,
    /// In seconds since 1970.
    pub at: u64,
}

impl KeptBalance {
    pub fn now(balance: CpuBalance) -> KeptBalance {
        // Tolerates a host clock set to a time before 1970.
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        KeptBalance { balance, at }
    }

    /// Reads the last machine's balance. Returns none if the machine had no CPU budget or was killed.
    pub fn read(dir: &Path) -> io::Result<Option<KeptBalance>> {
        match untrusted::read(&dir.join(FILE), untrusted::RECORD_LIMIT) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the file atomically.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).expect("a balance serializes to JSON");
        write_private(&dir.join(FILE), &bytes)
    }

    pub fn clear(dir: &Path) -> io::Result<()> {
        untrusted::remove(&dir.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_round_trips_and_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(KeptBalance::read(dir.path()).unwrap(), None);
        let kept = KeptBalance::now(CpuBalance { saved_ns: 7, ..CpuBalance::default() });
        kept.write(dir.path()).unwrap();
        assert_eq!(KeptBalance::read(dir.path()).unwrap(), Some(kept));
        KeptBalance::clear(dir.path()).unwrap();
        KeptBalance::clear(dir.path()).unwrap();
        assert_eq!(KeptBalance::read(dir.path()).unwrap(), None);
    }
}
