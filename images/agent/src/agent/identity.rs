//! Renews the data that must be unique per instance: SSH host keys, machine ID and random seeds.
//!
//! The disk of a new instance may contain the data of the instance that it was created from. The first boot renews the
//! data, if possible before the guest's own init. A fork renews the data when it receives its identity. [`STAMP`]
//! records the instance, so that later boots keep the data.
//!
//! cloud-init renews SSH host keys when it boots as a new instance. If it is enabled, a boot leaves the keys to it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use rustix::rand::{GetRandomFlags, getrandom};

use super::children::Children;
use super::files;
use super::first_boot::STATE_DIRECTORY;
use super::system;

/// Symbolic link whose target is the ID of the instance for which the data was created. Creating a link is atomic and
/// journaled: after a crash, the link exists if any later change does.
const STAMP: &str = "instance";
const TEMPORARY_STAMP: &str = ".instance";
const MAX_ID: usize = 32;

/// The machine ID files of systemd and D-Bus (machine-id(5)).
const MACHINE_ID: (&str, &str) = ("etc", "machine-id");
const DBUS_MACHINE_ID: (&str, &str) = ("var/lib/dbus", "machine-id");
/// Number of digits of a machine ID. A file with other content is left to the guest's init, which creates an ID.
const ID_DIGITS: usize = 32;

/// Files in which systemd, sysvinit, older Alpine, OpenRC and busybox keep a random seed for the next boot.
const RANDOM_SEEDS: [&str; 5] = [
    "var/lib/systemd/random-seed",
    "var/lib/urandom/random-seed",
    "var/lib/misc/random-seed",
    "var/lib/seedrng/seed.credit",
    "var/lib/seedrng/seed.no-credit",
];

/// Directory of OpenSSH's host keys, and the one in the guest's state where new ones are created first.
const OPENSSH: &str = "etc/ssh";
const NEW_KEYS: &str = "new-host-keys";
const DROPBEAR: &str = "etc/dropbear";
const SSHD: &str = "sshd";
const SSHD_PID: &str = "/run/sshd.pid";

/// cloud-init's program, and the file that disables cloud-init.
const CLOUD_INIT: &str = "usr/bin/cloud-init";
const CLOUD_INIT_OFF: &str = "etc/cloud/cloud-init.disabled";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityChange {
    Boot,
    /// The guest was restored as an instance other than the one in the snapshot.
    Resume,
}

/// Renews the guest's identity, unless it was created for this instance. Reports problems on the console.
pub fn renew(children: &Children, instance_id: &str, moment: IdentityChange) {
    let guest = Guest { root: "/".into(), run: &|argv| system::run(children, argv) };
    if let Err(error) = guest.renew(instance_id, moment) {
        eprintln!("wisp-init: cannot renew the identity of {instance_id}: {error}");
    }
}

/// Prepares a guest without an identity, so that [`renew`] is fast after a restore: creates the directory of the stamp,
/// and has the kernel load the names and the inode bitmap that a renewal needs.
pub fn prepare() {
    let directories = [MACHINE_ID.0, DBUS_MACHINE_ID.0, OPENSSH, DROPBEAR];
    for path in directories.into_iter().chain(RANDOM_SEEDS) {
        let _ = rustix::fs::stat(Path::new("/").join(path));
    }
    let temporary = Path::new(STATE_DIRECTORY).join(TEMPORARY_STAMP);
    // Ignore errors: a read-only disk cannot record the instance later, either.
    let _ = fs::create_dir_all(STATE_DIRECTORY).and_then(|()| symlink("none", &temporary));
    let _ = remove(&temporary);
}

pub fn has_cloud_init(root: &Path) -> bool {
    root.join(CLOUD_INIT).exists() && !root.join(CLOUD_INIT_OFF).exists()
}

/// A guest's files, and a function that runs a program there and returns true on success.
struct Guest<'a> {
    root: PathBuf,
    run: &'a dyn Fn(&[&str]) -> bool,
}

impl Guest<'_> {
    fn renew(&self, instance_id: &str, moment: IdentityChange) -> io::Result<()> {
        let is_id = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if instance_id.is_empty() || instance_id.len() > MAX_ID || !instance_id.bytes().all(is_id) {
            return Err(io::Error::other("invalid instance ID"));
        }
        let state = self.root.join(STATE_DIRECTORY.trim_start_matches('/'));
        let stamp = state.join(STAMP);
        match fs::read_link(&stamp) {
            Ok(known) if known == Path::new(instance_id) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.renew_machine_id()?;
        for seed in RANDOM_SEEDS {
            remove(&self.root.join(seed))?;
        }
        if moment == IdentityChange::Resume || !has_cloud_init(&self.root) {
            self.renew_openssh_keys(&state)?;
            self.renew_dropbear_keys()?;
        }
        record_instance(&state, &stamp, instance_id)?;
        if moment == IdentityChange::Resume {
            reload_sshd();
        }
        Ok(())
    }

    fn renew_machine_id(&self) -> io::Result<()> {
        let mut new = None;
        for (directory, name) in [MACHINE_ID, DBUS_MACHINE_ID] {
            let Some(directory) = found(files::open_directory(&self.root.join(directory)))? else { continue };
            // The file of D-Bus is usually a link to systemd's.
            if !is_regular(&directory, name) {
                continue;
            }
            let Some((before, stat)) = files::read(&directory, name, 4096)? else { continue };
            let before = before.trim_ascii();
            if before.len() != ID_DIGITS || !before.iter().all(u8::is_ascii_hexdigit) {
                continue;
            }
            let id = match &new {
                Some(id) => id,
                None => new.insert(random_id()?),
            };
            let owner = Some((stat.st_uid, stat.st_gid));
            files::replace(&directory, name, format!("{id}\n").as_bytes(), stat.st_mode & 0o777, owner)?;
        }
        Ok(())
    }

    /// Creates new host keys before it removes the old ones: a guest that cannot create keys keeps the old ones.
    fn renew_openssh_keys(&self, state: &Path) -> io::Result<()> {
        let directory = self.root.join(OPENSSH);
        let old = names(&directory, |name| name.starts_with("ssh_host_") && name.contains("_key"))?;
        if old.is_empty() {
            return Ok(());
        }
        let prefix = state.join(NEW_KEYS);
        let made = prefix.join(OPENSSH);
        remove_all(&prefix)?;
        fs::create_dir_all(&made)?;
        let in_guest = Path::new("/").join(prefix.strip_prefix(&self.root).unwrap_or(&prefix));
        if !(self.run)(&["ssh-keygen", "-A", "-f", &in_guest.to_string_lossy()]) {
            return Err(io::Error::other(format!(
                "`ssh-keygen -A` failed: /{OPENSSH} still has the SSH host keys of another instance"
            )));
        }
        let new = names(&made, |_| true)?;
        if new.is_empty() {
            return Err(io::Error::other("`ssh-keygen -A` created no SSH host keys"));
        }
        for name in &new {
            fs::rename(made.join(name), directory.join(name))?;
        }
        // Remove certificates, and key types that `ssh-keygen` no longer creates.
        for name in old.iter().filter(|name| !new.contains(name)) {
            remove(&directory.join(name))?;
        }
        remove_all(&prefix)
    }

    /// Replaces dropbear's host keys. Without `dropbearkey` the server creates missing keys itself (`-R`).
    fn renew_dropbear_keys(&self) -> io::Result<()> {
        let directory = self.root.join(DROPBEAR);
        for name in names(&directory, |name| name.starts_with("dropbear_") && name.ends_with("_host_key"))? {
            remove(&directory.join(&name))?;
            let kind = name.trim_start_matches("dropbear_").trim_end_matches("_host_key");
            (self.run)(&["dropbearkey", "-t", kind, "-f", &format!("/{DROPBEAR}/{name}")]);
        }
        Ok(())
    }
}

fn record_instance(state: &Path, stamp: &Path, instance_id: &str) -> io::Result<()> {
    match symlink(instance_id, stamp) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(state)?;
            return symlink(instance_id, stamp);
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let temporary = state.join(TEMPORARY_STAMP);
    remove(&temporary)?;
    symlink(instance_id, &temporary)?;
    fs::rename(&temporary, stamp)
}

/// Returns a random ID with the version and variant bits of a UUID (machine-id(5)).
fn random_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn reload_sshd() {
    let Some(pid) = fs::read_to_string(SSHD_PID).ok().and_then(|text| text.trim().parse::<i32>().ok()) else { return };
    let is_sshd = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == SSHD);
    if let (true, Some(pid)) = (is_sshd, Pid::from_raw(pid)) {
        let _ = kill_process(pid, Signal::HUP);
    }
}

fn names(directory: &Path, is_chosen: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let Some(entries) = found(fs::read_dir(directory))? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok().filter(|name| is_chosen(name)));
    }
    Ok(names)
}

fn is_regular(directory: &std::os::fd::OwnedFd, name: &str) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile)
}

fn remove(path: &Path) -> io::Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn remove_all(path: &Path) -> io::Result<()> {
    found(fs::remove_dir_all(path)).map(drop)
}

/// Converts the error for a missing file to `None`.
fn found<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        outcome => outcome.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::os::unix::fs::PermissionsExt;

    const OLD_ID: &str = "0123456789abcdef0123456789abcdef";

    struct Root {
        dir: tempfile::TempDir,
        ran: RefCell<Vec<String>>,
        /// True if `ssh-keygen` is installed and works.
        makes_keys: bool,
    }

    impl Root {
        fn new(files: &[(&str, &str)]) -> Self {
            let root = Self { dir: tempfile::tempdir().unwrap(), ran: RefCell::default(), makes_keys: true };
            for (path, content) in files {
                let path = root.path(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            root
        }

        fn path(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.path(path)).unwrap_or_default()
        }

        fn renew(&self, id: &str, moment: IdentityChange) -> io::Result<()> {
            let run = |argv: &[&str]| {
                self.ran.borrow_mut().push(argv.join(" "));
                if argv[0] == "ssh-keygen" && self.makes_keys {
                    let made = self.path(&format!("{}/etc/ssh", argv[3].trim_start_matches('/')));
                    fs::write(made.join("ssh_host_ed25519_key"), "new").unwrap();
                    fs::write(made.join("ssh_host_ed25519_key.pub"), "new").unwrap();
                    return true;
                }
                false
            };
            Guest { root: self.dir.path().into(), run: &run }.renew(id, moment)
        }
    }

    fn full() -> Root {
        Root::new(&[
            ("etc/machine-id", &format!("{OLD_ID}\n")),
            ("var/lib/dbus/machine-id", OLD_ID),
            ("var/lib/systemd/random-seed", "seed"),
            ("var/lib/seedrng/seed.credit", "seed"),
            ("etc/ssh/sshd_config", "config"),
            ("etc/ssh/ssh_host_ed25519_key", "old"),
            ("etc/ssh/ssh_host_ed25519_key.pub", "old"),
            ("etc/ssh/ssh_host_dsa_key", "old"),
            ("etc/dropbear/dropbear_ed25519_host_key", "old"),
        ])
    }

    #[test]
    fn identity_is_renewed_once_per_instance() {
        let root = full();
        fs::set_permissions(root.path("etc/machine-id"), fs::Permissions::from_mode(0o444)).unwrap();
        root.renew("i-1", IdentityChange::Boot).unwrap();
        let id = root.read("etc/machine-id");
        assert!(id.len() == 33 && id.trim() != OLD_ID, "{id:?}");
        assert_eq!(root.read("var/lib/dbus/machine-id"), id);
        assert_eq!(root.path("etc/machine-id").metadata().unwrap().permissions().mode() & 0o777, 0o444);
        for gone in ["var/lib/systemd/random-seed", "var/lib/seedrng/seed.credit", "etc/ssh/ssh_host_dsa_key"] {
            assert!(!root.path(gone).exists(), "{gone}");
        }
        assert_eq!(root.read("etc/ssh/ssh_host_ed25519_key"), "new");
        assert_eq!(root.read("etc/ssh/sshd_config"), "config");
        assert!(!root.path("etc/dropbear/dropbear_ed25519_host_key").exists());
        let ran = root.ran.borrow().clone();
        let dropbearkey = "dropbearkey -t ed25519 -f /etc/dropbear/dropbear_ed25519_host_key";
        assert_eq!(ran, ["ssh-keygen -A -f /var/lib/wisp/new-host-keys", dropbearkey]);
        assert!(!root.path("var/lib/wisp/new-host-keys").exists());

        // The next boot of the same instance.
        fs::write(root.path("etc/ssh/ssh_host_ed25519_key"), "its own").unwrap();
        fs::write(root.path("var/lib/systemd/random-seed"), "its own").unwrap();
        root.renew("i-1", IdentityChange::Boot).unwrap();
        assert_eq!(root.read("etc/machine-id"), id);
        assert_eq!(root.read("etc/ssh/ssh_host_ed25519_key"), "its own");
        assert_eq!(root.read("var/lib/systemd/random-seed"), "its own");

        // Another instance, created from the first.
        root.renew("i-2", IdentityChange::Resume).unwrap();
        assert_ne!(root.read("etc/machine-id"), id);
        assert_eq!(root.read("etc/ssh/ssh_host_ed25519_key"), "new");
        assert_eq!(fs::read_link(root.path("var/lib/wisp/instance")).unwrap(), Path::new("i-2"));
    }

    #[test]
    fn guest_without_identity_gets_none() {
        for content in ["", "uninitialized\n"] {
            let root = Root::new(&[("etc/machine-id", content), ("etc/ssh/sshd_config", "config")]);
            root.renew("i-1", IdentityChange::Boot).unwrap();
            assert_eq!(root.read("etc/machine-id"), content);
            assert!(root.ran.borrow().is_empty());
        }
        Root::new(&[]).renew("i-1", IdentityChange::Boot).unwrap();
    }

    #[test]
    fn boot_with_cloud_init_keeps_host_keys() {
        let root = full();
        fs::create_dir_all(root.path("usr/bin")).unwrap();
        fs::write(root.path("usr/bin/cloud-init"), "").unwrap();
        root.renew("i-1", IdentityChange::Boot).unwrap();
        assert_eq!(root.read("etc/ssh/ssh_host_ed25519_key"), "old");
        assert_ne!(root.read("etc/machine-id").trim(), OLD_ID);
        // A fork resumes without a boot.
        root.renew("i-2", IdentityChange::Resume).unwrap();
        assert_eq!(root.read("etc/ssh/ssh_host_ed25519_key"), "new");
        // A disabled cloud-init does nothing.
        let root = full();
        for file in ["usr/bin/cloud-init", "etc/cloud/cloud-init.disabled"] {
            fs::create_dir_all(root.path(file).parent().unwrap()).unwrap();
            fs::write(root.path(file), "").unwrap();
        }
        root.renew("i-1", IdentityChange::Boot).unwrap();
        assert_eq!(root.read("etc/ssh/ssh_host_ed25519_key"), "new");
    }

    #[test]
    fn failed_key_generation_is_retried_at_next_boot() {
        let mut root = full();
        root.makes_keys = false;
        let error = root.renew("i-1", IdentityChange::Boot).unwrap_err().to_string();
        assert!(error.contains("ssh-keygen"), "{error}");
        assert_eq!(root.read("etc/ssh/ssh_host_ed25519_key"), "old", "an instance without keys cannot be reached");
        root.makes_keys = true;
        root.renew("i-1", IdentityChange::Boot).unwrap();
        assert_eq!(root.read("etc/ssh/ssh_host_ed25519_key"), "new");
    }

    #[test]
    fn invalid_instance_id_is_refused() {
        for id in ["", "../x", "i 1", &"i".repeat(33)] {
            full().renew(id, IdentityChange::Boot).unwrap_err();
        }
    }
}
