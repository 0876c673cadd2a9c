//! The record of how a machine ended: `end.json` in the VMM's directory. Commands that were not connected read it
//! later.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::control::VmmStatus;
use super::end::End;
use super::fs::replace;
use super::untrusted;

pub const FILE: &str = "end.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum EndRecord {
    Ended {
        end: End,
        status: Box<VmmStatus>,
        /// In seconds since 1970.
        #[serde(default)]
        ended_at: u64,
    },
    Failed {
        why: String,
    },
}

impl EndRecord {
    pub fn ended(end: &End, status: &VmmStatus) -> EndRecord {
        // Tolerates a host clock set to a time before 1970.
        let ended_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        EndRecord::Ended { end: end.clone(), status: Box::new(status.clone()), ended_at }
    }

    /// Returns none while the machine is running, or if the VMM was killed.
    pub fn read(dir: &Path) -> io::Result<Option<EndRecord>> {
        match untrusted::read(&dir.join(FILE), untrusted::RECORD_LIMIT) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the record atomically.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).expect("a record serializes to JSON");
        replace(&dir.join(FILE), &bytes, File::sync_all)?;
        File::open(dir)?.sync_all()
    }

    pub fn clear(dir: &Path) -> io::Result<()> {
        untrusted::remove(&dir.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_round_trips_and_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(EndRecord::read(dir.path()).unwrap(), None);
        let record = EndRecord::ended(&End::Panic, &VmmStatus::default());
        assert!(matches!(record, EndRecord::Ended { ended_at: 1.., .. }));
        record.write(dir.path()).unwrap();
        assert_eq!(EndRecord::read(dir.path()).unwrap(), Some(record));
        EndRecord::clear(dir.path()).unwrap();
        EndRecord::clear(dir.path()).unwrap();
        assert_eq!(EndRecord::read(dir.path()).unwrap(), None);
    }
}
