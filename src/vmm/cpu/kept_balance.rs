//! What is left of a machine's CPU budget when it ends: `cpu-balance.json` in the VMM's directory, for the
//! machine that starts anew after a guest's reboot, and for a later start.

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::vmm::limits::CpuBalance;
use crate::vmm::untrusted;

/// The file's name.
const FILE: &str = "cpu-balance.json";

/// A balance, and when it was that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptBalance {
    /// What was left.
    pub balance: CpuBalance,
    /// In seconds since 1970.
    pub at: u64,
}

impl KeptBalance {
    /// The balance that is left now.
    pub fn now(balance: CpuBalance) -> KeptBalance {
        // A clock before 1970 is one that nobody has set.
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        KeptBalance { balance, at }
    }

    /// What the last machine in `folder` left; none if it had no budget or was killed.
    pub fn read(folder: &Path) -> io::Result<Option<KeptBalance>> {
        match untrusted::read(&folder.join(FILE), untrusted::RECORD_LIMIT) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        io::Write::write_all(&mut file, &serde_json::to_vec(self).expect("a balance is plain data"))?;
        file.persist(folder.join(FILE)).map(drop).map_err(|error| error.error)
    }

    /// Removes that of an earlier machine.
    pub fn clear(folder: &Path) -> io::Result<()> {
        untrusted::remove(&folder.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balance_is_read_back_and_cleared() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(KeptBalance::read(folder.path()).unwrap(), None);
        let kept = KeptBalance::now(CpuBalance { saved_ns: 7, ..CpuBalance::default() });
        kept.write(folder.path()).unwrap();
        assert_eq!(KeptBalance::read(folder.path()).unwrap(), Some(kept));
        KeptBalance::clear(folder.path()).unwrap();
        KeptBalance::clear(folder.path()).unwrap();
        assert_eq!(KeptBalance::read(folder.path()).unwrap(), None);
    }
}
