//! The check that a snapshot can be restored on this host.
//!
//! Only the VMM can read its snapshots, and this crate and the control plane do not link it. The binary links both, and
//! registers the VMM's check when it starts.

use std::path::Path;
use std::sync::OnceLock;

/// Fails with a sentence if the snapshot in a directory cannot be restored on this host.
pub type SnapshotCheck = fn(&Path) -> Result<(), String>;

static CHECK: OnceLock<SnapshotCheck> = OnceLock::new();

/// Registers the VMM's check. Only the first call has an effect.
pub fn register(check: SnapshotCheck) {
    let _ = CHECK.set(check);
}

/// Checks a snapshot, as far as possible without restoring it. In a process without a VMM, no snapshot can be restored.
pub fn check(dir: &Path) -> Result<(), String> {
    let check = CHECK.get().ok_or_else(|| format!("{}: this process has no VMM to restore it", dir.display()))?;
    check(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_needs_registration_and_keeps_the_first() {
        let dir = Path::new("/snapshot");
        assert_eq!(check(dir), Err("/snapshot: this process has no VMM to restore it".into()));
        register(|_| Ok(()));
        register(|_| Err("another".into()));
        assert_eq!(check(dir), Ok(()));
    }
}
