//! Wisp's data directory (`$WISP_HOME`): who may read it, and what lies where in it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::probe;

/// Why there is no data directory.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// No variable says where it is.
    #[error("there is no place for wisp's data: set WISP_HOME to a directory, or HOME")]
    Nowhere,
    /// It cannot be made or used.
    #[error("wisp's data directory {} cannot be used: {source}. Set WISP_HOME to a directory that you can write", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It belongs to somebody else.
    #[error("wisp's data directory {} belongs to another user (uid {owner}). Set WISP_HOME to a directory of your own", path.display())]
    NotYours {
        /// Where.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
}

/// The data directory; it exists, is 0700 and this user's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The data directory of the environment, made where it does not exist.
    pub fn open() -> Result<Home, HomeError> {
        Home::at(&probe::data_directory().ok_or(HomeError::Nowhere)?)
    }

    /// The data directory at `path`.
    pub fn at(path: &Path) -> Result<Home, HomeError> {
        let failed = |source| HomeError::Unusable { path: path.to_path_buf(), source };
        make_private(path).map_err(failed)?;
        let root = path.canonicalize().map_err(failed)?;
        let owner = root.metadata().map_err(failed)?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(HomeError::NotYours { path: root, owner });
        }
        for folder in ["images", "instances", "networks", "runs", "volumes", "warm"] {
            make_private(&root.join(folder)).map_err(failed)?;
        }
        Ok(Home { root })
    }

    /// Where images are: a directory for each.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Where instances are: a directory for each.
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    /// Where networks are: a directory for each that has had a router.
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// Where the instances of `wisp run` are, which end with their command: a directory for each.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// Where the files of volumes and snapshots are.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Where warm snapshots are.
    pub fn warm(&self) -> PathBuf {
        self.root.join("warm")
    }

    /// The data directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The boot timeline of the last `wisp run`.
    pub fn last_timeline(&self) -> PathBuf {
        self.root.join("last-timeline.json")
    }

    /// Waits for the lock of one of the directories above; it is held until the file is dropped.
    pub fn lock(&self, folder: &Path) -> Result<File, HomeError> {
        let path = folder.join(LOCK);
        let failed = |source| HomeError::Unusable { path: path.clone(), source };
        lock_file(&path).map_err(failed)
    }

    /// The lock of one of the directories above, if nobody has it.
    pub fn try_lock(&self, folder: &Path) -> Result<Option<File>, HomeError> {
        let path = folder.join(LOCK);
        let failed = |source| HomeError::Unusable { path: path.clone(), source };
        try_lock_file(&path).map_err(failed)
    }
}

/// The lock of a directory.
const LOCK: &str = ".lock";
/// The lock of whoever takes a snapshot, among the volumes.
pub const SNAPSHOTS_LOCK: &str = ".snapshots";

/// Whether a file of that name is a lock, which stays.
pub fn is_lock(name: &str) -> bool {
    [LOCK, SNAPSHOTS_LOCK].contains(&name)
}

/// Waits for the lock of a file, which is made where it does not exist; it is held until the file is dropped.
pub fn lock_file(path: &Path) -> io::Result<File> {
    let file = private_file(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// The lock of a file, as [`lock_file`], if nobody has it.
pub fn try_lock_file(path: &Path) -> io::Result<Option<File>> {
    let file = private_file(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a directory that only this user can enter, and its parents; takes others' permissions away from one that exists.
fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = path.metadata()?;
    if metadata.permissions().mode() & 0o077 != 0 && metadata.uid() == rustix::process::geteuid().as_raw() {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Opens a file for reading and writing that only this user can read, and makes it where it does not exist.
pub fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Writes a file that only this user can read, whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut file, content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn everything_is_the_user_s_own() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(&folder.path().join("a/b")).unwrap();
        assert_eq!(mode(&home.root), 0o700);
        assert_eq!(mode(&home.instances()), 0o700);
        write_private(&home.last_timeline(), b"{}").unwrap();
        assert_eq!(mode(&home.last_timeline()), 0o600);
    }

    #[test]
    fn a_directory_that_others_can_read_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Home::at(folder.path()).unwrap();
        assert_eq!(mode(folder.path()), 0o700);
    }

    #[test]
    fn a_file_in_its_place_is_said_to_be_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Home::at(file.path()), Err(HomeError::Unusable { .. })));
    }
}
