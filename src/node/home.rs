//! Layout, permissions and locks of Wisp's data directory (`$WISP_HOME`).

use std::ffi::OsString;
use std::fmt;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::probe;
pub use machine::fs::write_private;

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("no directory for wisp's data: set WISP_HOME or HOME")]
    Nowhere,
    #[error("cannot use wisp's data directory {}: {source}. Set WISP_HOME to a writable directory", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error(
        "wisp's data directory {} belongs to another user (UID {owner}). Set WISP_HOME to a directory that you own",
        path.display()
    )]
    NotYours { path: PathBuf, owner: u32 },
    /// Records store paths as JSON, which must be UTF-8.
    #[error("the path of wisp's data directory is not UTF-8: {}. Set WISP_HOME to another directory", path.display())]
    NotUtf8 { path: PathBuf },
    /// Paths inside the directory would exceed the kernel's limit.
    #[error(
        "the path of wisp's data directory is {length} bytes long, but the maximum is {LONGEST_PATH}: {}. \
         Set WISP_HOME to a shorter path",
        path.display()
    )]
    TooLong { path: PathBuf, length: usize },
    #[error(
        "another user could replace wisp's data directory {}, because {} {flaw}. {}",
        path.display(), through.display(), flaw.remedy(through)
    )]
    Unsafe {
        path: PathBuf,
        /// The unsafe directory or link.
        through: PathBuf,
        flaw: PathFlaw,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathFlaw {
    LinkOfAnotherUser {
        owner: u32,
    },
    /// The owner of a directory can rename everything in it.
    DirectoryOfAnotherUser {
        owner: u32,
    },
    /// A directory without the sticky bit that its group or all users can write to.
    WritableByOthers {
        mode: u32,
    },
}

impl fmt::Display for PathFlaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkOfAnotherUser { owner } => write!(f, "is a symbolic link owned by another user (UID {owner})"),
            Self::DirectoryOfAnotherUser { owner } => write!(f, "belongs to another user (UID {owner})"),
            Self::WritableByOthers { mode } => {
                let who = if mode & 0o002 != 0 { "all users" } else { "its group" };
                write!(f, "is writable by {who} (mode {mode:04o})")
            }
        }
    }
}

impl PathFlaw {
    fn remedy(self, through: &Path) -> String {
        match self {
            Self::WritableByOthers { .. } => {
                format!("Run `chmod go-w {}`, or set WISP_HOME to a directory that you own", through.display())
            }
            Self::LinkOfAnotherUser { .. } | Self::DirectoryOfAnotherUser { .. } => {
                "Set WISP_HOME to a directory that you own".to_string()
            }
        }
    }
}

/// The data directory, which belongs to this user and has mode 0700.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Opens or creates the data directory that the environment determines.
    pub fn open() -> Result<Home, HomeError> {
        Home::at(&probe::data_directory().ok_or(HomeError::Nowhere)?)
    }

    /// Opens or creates the data directory at `path`.
    pub fn at(path: &Path) -> Result<Home, HomeError> {
        let failed = |source| HomeError::Unusable { path: path.to_path_buf(), source };
        check_name(&std::path::absolute(path).map_err(failed)?)?;
        check_path(path)?;
        make_private(path).map_err(failed)?;
        let root = path.canonicalize().map_err(failed)?;
        // Resolving links can make the path longer.
        check_name(&root)?;
        // Check again: missing components have been created since, and the others may have been replaced.
        check_path(&root)?;
        check_own(&root)?;
        for dir in [AWS, "images", "instances", NETWORKS, "runs", "volumes", "warm"] {
            let dir = root.join(dir);
            // Another user who could write here before the permissions were restricted may have replaced the directory.
            check_own(&dir)?;
            make_private(&dir).map_err(failed)?;
            check_own(&dir)?;
        }
        Ok(Home { root })
    }

    /// Directory of what AWS's clients need: the access key, and endpoint rules.
    pub fn aws(&self) -> PathBuf {
        self.root.join(AWS)
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    /// Directory of routers, with a subdirectory for each VPC that has had one.
    pub fn networks(&self) -> PathBuf {
        self.root.join(NETWORKS)
    }

    /// Directory of ephemeral instances, with a subdirectory for each (`wisp run`).
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Directory of templates.
    pub fn warm(&self) -> PathBuf {
        self.root.join("warm")
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn last_timeline(&self) -> PathBuf {
        self.root.join("last-timeline.json")
    }

    /// Waits for the lock of one of the directories above. Dropping the file releases the lock.
    pub fn lock(&self, dir: &Path) -> Result<File, HomeError> {
        let path = dir.join(LOCK);
        let failed = |source| HomeError::Unusable { path: path.clone(), source };
        lock_file(&path).map_err(failed)
    }

    /// Takes the lock of one of the directories above. Returns `None` if another process holds it.
    pub fn try_lock(&self, dir: &Path) -> Result<Option<File>, HomeError> {
        let path = dir.join(LOCK);
        let failed = |source| HomeError::Unusable { path: path.clone(), source };
        try_lock_file(&path).map_err(failed)
    }
}

/// Maximum length of the directory's path in bytes. Paths in it are longer, and the kernel's limit is 4095.
const LONGEST_PATH: usize = 3072;

fn check_name(path: &Path) -> Result<(), HomeError> {
    let path = path.to_path_buf();
    let length = path.as_os_str().len();
    if path.to_str().is_none() {
        Err(HomeError::NotUtf8 { path })
    } else if length > LONGEST_PATH {
        Err(HomeError::TooLong { path, length })
    } else {
        Ok(())
    }
}

const AWS: &str = "aws";
pub(super) const NETWORKS: &str = "networks";
const LOCK: &str = ".lock";
/// Name of the lock file in the volumes directory. It is locked while a snapshot is taken.
pub const SNAPSHOTS_LOCK: &str = ".snapshots";

/// Returns true if `name` is a lock file's. Lock files are never removed.
pub fn is_lock(name: &str) -> bool {
    [LOCK, SNAPSHOTS_LOCK].contains(&name)
}

/// Creates a file if needed and waits for its lock. Dropping the file releases the lock.
pub fn lock_file(path: &Path) -> io::Result<File> {
    let file = private_file(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Like [`lock_file`], but returns `None` if another process holds the lock.
pub fn try_lock_file(path: &Path) -> io::Result<Option<File>> {
    let file = private_file(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Rejects a file or link that another user owns, and a link to such a file. Accepts a path that does not exist.
fn check_own(path: &Path) -> Result<(), HomeError> {
    for metadata in [path.symlink_metadata(), path.metadata()].into_iter().flatten() {
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(HomeError::NotYours { path: path.to_path_buf(), owner: metadata.uid() });
        }
    }
    Ok(())
}

/// Maximum number of symbolic links, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Rejects a path that another user can change, directly or through a symbolic link. Root or this user must own each
/// directory and link, and others may write only to sticky directories. [`check_own`] checks the last component.
fn check_path(path: &Path) -> Result<(), HomeError> {
    let failed = |source| HomeError::Unusable { path: path.to_path_buf(), source };
    let refused = |through: &Path, flaw| HomeError::Unsafe { path: path.into(), through: through.into(), flaw };
    let owners = TrustedOwners::of_this_process();
    let absolute = std::path::absolute(path).map_err(failed)?;
    let mut walked = PathBuf::from("/");
    let mut rest = reversed_components(&absolute);
    let mut links = 0;
    loop {
        // The last component is the data directory itself.
        if rest.is_empty() {
            return Ok(());
        }
        let Ok(directory) = walked.symlink_metadata() else { return Ok(()) };
        if let Some(flaw) = flaw_of_directory(&directory, &owners) {
            return Err(refused(&walked, flaw));
        }
        let Some(name) = rest.pop() else { return Ok(()) };
        if name == ".." {
            walked.pop();
            continue;
        }
        let next = walked.join(name);
        // This user will create missing components, in a directory that has just been checked.
        let Ok(metadata) = next.symlink_metadata() else { return Ok(()) };
        if !metadata.is_symlink() {
            walked = next;
            continue;
        }
        if !owners.contains(metadata.uid()) {
            return Err(refused(&next, PathFlaw::LinkOfAnotherUser { owner: metadata.uid() }));
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(failed(Errno::LOOP.into()));
        }
        let target = next.read_link().map_err(failed)?;
        if target.is_absolute() {
            walked = PathBuf::from("/");
        }
        rest.extend(reversed_components(&target));
    }
}

/// Returns the names in a path, last first, excluding the root and `.` components.
fn reversed_components(path: &Path) -> Vec<OsString> {
    let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().rev().filter(is_name).map(|part| part.as_os_str().to_owned()).collect()
}

fn flaw_of_directory(metadata: &Metadata, owners: &TrustedOwners) -> Option<PathFlaw> {
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if !metadata.is_dir() {
        return None;
    }
    if !owners.contains(owner) {
        return Some(PathFlaw::DirectoryOfAnotherUser { owner });
    }
    (mode & 0o022 != 0 && mode & 0o1000 == 0).then_some(PathFlaw::WritableByOthers { mode })
}

#[derive(Debug)]
struct TrustedOwners {
    mine: u32,
    /// In a user namespace, the overflow UID, which represents all unmapped users, including the host's root.
    unmapped: Option<u32>,
}

impl TrustedOwners {
    fn of_this_process() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let unmapped = unmapped_owner(&read("/proc/self/uid_map"), &read("/proc/sys/kernel/overflowuid"));
        Self { mine: rustix::process::geteuid().as_raw(), unmapped }
    }

    fn contains(&self, owner: u32) -> bool {
        owner == 0 || owner == self.mine || Some(owner) == self.unmapped
    }
}

/// Returns the overflow UID in a user namespace that does not map all users. It is usually the owner of `/` there.
fn unmapped_owner(uid_map: &str, overflow_uid: &str) -> Option<u32> {
    let maps_everything = |line: &str| line.split_whitespace().eq(["0", "0", "4294967295"]);
    if uid_map.is_empty() || uid_map.lines().any(maps_everything) {
        return None;
    }
    overflow_uid.trim().parse().ok()
}

/// Creates a directory and its missing parents with mode 0700. Restricts this user's existing directory to that mode.
fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = path.metadata()?;
    if metadata.permissions().mode() & 0o077 != 0 && metadata.uid() == rustix::process::geteuid().as_raw() {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Opens a file for reading and writing, or creates it with mode 0600.
pub fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_support::{Capability, skip_without};

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn home_and_files_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(&dir.path().join("a/b")).unwrap();
        assert_eq!(mode(&home.root), 0o700);
        assert_eq!(mode(&home.instances()), 0o700);
        write_private(&home.last_timeline(), b"{}").unwrap();
        assert_eq!(mode(&home.last_timeline()), 0o600);
    }

    #[test]
    fn unusable_path_is_refused_and_creates_nothing() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let bytes = dir.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
        assert!(matches!(Home::at(&bytes), Err(HomeError::NotUtf8 { .. })));
        let long = dir.path().join("directory/".repeat(310));
        let error = Home::at(&long).unwrap_err();
        assert!(error.to_string().contains("the maximum is 3072"), "{error}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        let name = "data directory ünïcödé ".repeat(9);
        Home::at(&dir.path().join(name.trim())).unwrap();
    }

    #[test]
    fn readable_home_is_made_private() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Home::at(dir.path()).unwrap();
        assert_eq!(mode(dir.path()), 0o700);
    }

    #[test]
    fn home_below_writable_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        // The user's own link leads to the same directory.
        std::os::unix::fs::symlink("open", dir.path().join("link")).unwrap();
        let set = |mode| std::fs::set_permissions(&open, std::fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o777, 0o770, 0o720, 0o702, 0o2775] {
            set(mode);
            for path in ["open/home", "open/a/b/home", "link/home", "open/../open/home"] {
                let refused = Home::at(&dir.path().join(path));
                let Err(HomeError::Unsafe { through, flaw, .. }) = &refused else { panic!("{path}: {refused:?}") };
                assert_eq!((through, *flaw), (&open, PathFlaw::WritableByOthers { mode }), "{path}");
                assert_eq!(open.read_dir().unwrap().count(), 0, "{path}: something was created");
            }
        }
        let error = Home::at(&open.join("home")).unwrap_err().to_string();
        assert!(error.contains(&format!("Run `chmod go-w {}`", open.display())), "{error}");
        // Modes of `/tmp`, of a group's `/tmp`, and of an ordinary directory.
        for mode in [0o1777, 0o1770, 0o755] {
            set(mode);
            Home::at(&open.join("home")).unwrap();
            Home::at(&dir.path().join("link/home")).unwrap();
        }
    }

    #[test]
    fn home_behind_symlink_loop_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        assert!(matches!(Home::at(&dir.path().join("loop/home")), Err(HomeError::Unusable { .. })));
    }

    #[test]
    fn unmapped_owner_exists_only_in_user_namespace() {
        assert_eq!(unmapped_owner("         0          0 4294967295\n", "65534\n"), None);
        assert_eq!(unmapped_owner("         0       1000          1\n", "65534\n"), Some(65534));
        assert_eq!(unmapped_owner("", "65534\n"), None);
    }

    /// Another user's directory is refused even for root. Only root can set up this test; otherwise, it is skipped.
    #[test]
    fn home_below_directory_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return skip_without(Capability::Root);
        }
        const NOBODY: u32 = 65534;
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        std::fs::create_dir_all(theirs.join("mine")).unwrap();
        std::os::unix::fs::chown(&theirs, Some(NOBODY), None).unwrap();
        std::os::unix::fs::symlink("theirs/mine", dir.path().join("link")).unwrap();
        for path in ["theirs/mine", "theirs/new", "theirs/mine/deeper/home", "link", "link/home"] {
            let refused = Home::at(&dir.path().join(path));
            let Err(HomeError::Unsafe { through, flaw, .. }) = &refused else { panic!("{path}: {refused:?}") };
            assert_eq!((through, *flaw), (&theirs, PathFlaw::DirectoryOfAnotherUser { owner: NOBODY }), "{path}");
            let created = theirs.read_dir().unwrap().count() + theirs.join("mine").read_dir().unwrap().count() - 1;
            assert_eq!(created, 0, "{path}: something was created");
        }
    }

    #[test]
    fn links_and_directories_of_another_user_are_refused() {
        if !rustix::process::geteuid().is_root() {
            return skip_without(Capability::Root);
        }
        const NOBODY: u32 = 65534;
        let dir = tempfile::tempdir().unwrap();
        let (theirs, mine) = (dir.path().join("theirs"), dir.path().join("mine"));
        std::fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(NOBODY), None).unwrap();
        assert!(matches!(Home::at(&theirs), Err(HomeError::NotYours { owner: NOBODY, .. })));
        // As if another user had replaced a directory while the data directory was writable.
        Home::at(&mine).unwrap();
        std::fs::remove_dir(mine.join("volumes")).unwrap();
        std::os::unix::fs::symlink(&theirs, mine.join("volumes")).unwrap();
        assert!(matches!(Home::at(&mine), Err(HomeError::NotYours { owner: NOBODY, .. })));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&mine, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(NOBODY), None).unwrap();
        assert!(matches!(Home::at(&link.join("home")), Err(HomeError::Unsafe { .. })));
    }

    #[test]
    fn file_instead_of_home_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Home::at(file.path()), Err(HomeError::Unusable { .. })));
    }
}
