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
    /// The way to it can be changed by others.
    #[error("wisp's data directory {} is reached through {}, which {why}: somebody else could put another in its place. Set WISP_HOME to a directory of your own", path.display(), through.display())]
    Unsafe {
        /// Where it is to be.
        path: PathBuf,
        /// What can be changed.
        through: PathBuf,
        /// By whom, in a few words.
        why: String,
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
        check_way(path)?;
        make_private(path).map_err(failed)?;
        let root = path.canonicalize().map_err(failed)?;
        check_own(&root)?;
        for folder in ["images", "instances", NETWORKS, "runs", "volumes", "warm"] {
            let folder = root.join(folder);
            // Whoever could write here before it was closed may have put something else in its place.
            check_own(&folder)?;
            make_private(&folder).map_err(failed)?;
            check_own(&folder)?;
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
        self.root.join(NETWORKS)
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

/// The directory of networks.
pub(super) const NETWORKS: &str = "networks";
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

/// Refuses what is another user's, or a link that is: where a link of one's own leads is one's own business, if that is
/// one's own. What is not there is nobody's.
fn check_own(path: &Path) -> Result<(), HomeError> {
    for metadata in [path.symlink_metadata(), path.metadata()].into_iter().flatten() {
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(HomeError::NotYours { path: path.to_path_buf(), owner: metadata.uid() });
        }
    }
    Ok(())
}

/// Refuses a way that somebody else can change: through another user's link, or a directory in which everybody may rename
/// what is not theirs.
fn check_way(path: &Path) -> Result<(), HomeError> {
    let unsafe_way = |through: &Path, why: String| HomeError::Unsafe {
        path: path.to_path_buf(),
        through: through.to_path_buf(),
        why,
    };
    let mine = rustix::process::geteuid().as_raw();
    let absolute = std::path::absolute(path).map_err(|source| HomeError::Unusable { path: path.into(), source })?;
    for part in absolute.ancestors() {
        let Ok(metadata) = part.symlink_metadata() else { continue };
        let (owner, mode) = (metadata.uid(), metadata.mode());
        if metadata.is_symlink() && owner != 0 && owner != mine {
            return Err(unsafe_way(part, format!("is a link of another user's (uid {owner})")));
        }
        if metadata.is_dir() && part != absolute && mode & 0o1002 == 0o002 {
            return Err(unsafe_way(part, "everybody may write to".into()));
        }
    }
    Ok(())
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
    fn a_way_that_everybody_can_change_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        std::fs::create_dir(&open).unwrap();
        let set = |mode| std::fs::set_permissions(&open, std::fs::Permissions::from_mode(mode)).unwrap();
        set(0o777);
        let refused = Home::at(&open.join("home"));
        assert!(matches!(&refused, Err(HomeError::Unsafe { through, .. }) if *through == open), "{refused:?}");
        // As `/tmp` is.
        set(0o1777);
        Home::at(&open.join("home")).unwrap();
    }

    /// Only root can make what is another user's.
    #[test]
    fn links_and_directories_of_another_user_s_are_refused() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        const NOBODY: u32 = 65534;
        let folder = tempfile::tempdir().unwrap();
        let (theirs, mine) = (folder.path().join("theirs"), folder.path().join("mine"));
        std::fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(NOBODY), None).unwrap();
        assert!(matches!(Home::at(&theirs), Err(HomeError::NotYours { owner: NOBODY, .. })));
        // A part of it, as somebody may have put it there while the directory was open.
        Home::at(&mine).unwrap();
        std::fs::remove_dir(mine.join("volumes")).unwrap();
        std::os::unix::fs::symlink(&theirs, mine.join("volumes")).unwrap();
        assert!(matches!(Home::at(&mine), Err(HomeError::NotYours { owner: NOBODY, .. })));
        // The way to it.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&mine, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(NOBODY), None).unwrap();
        assert!(matches!(Home::at(&link.join("home")), Err(HomeError::Unsafe { .. })));
    }

    #[test]
    fn a_file_in_its_place_is_said_to_be_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Home::at(file.path()), Err(HomeError::Unusable { .. })));
    }
}
