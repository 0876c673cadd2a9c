//! An instance's directory and its locks.
//!
//! The lock in the directory shows whether the instance is running. The VMM and its supervisor hold it for as long as
//! they live; before that, the command that starts them holds it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::console::ConsoleTail;
use super::error::{Failure, MachineError};
use crate::guest::{self, Agent};
use crate::home::{Home, lock_file, private_file, try_lock_file, write_private};
use crate::vmm_process;
use ec2::InstanceId;
use machine::config::{DiskAccess, DiskConfig, DiskFormat, MachineConfig};
use machine::control::ClientError;
use machine::end_record::EndRecord;
use machine::files::{self, CONFIG, CONSOLE_LOG, FULL_CONSOLE_LOG, LOCK, VSOCK_SOCKET};
use machine::network::NetstackConfig;
use machine::untrusted;

/// Name prefix of an instance directory that is being removed.
pub const GONE: &str = ".gone-";
/// Number of attempts to remove a directory in which another process may still create a file.
const REMOVE_ATTEMPTS: u32 = 10;
/// Name of the file with the netstack's configuration in an instance's directory.
pub const LINK: &str = "link.json";
/// Lock file of the command that stops, terminates or freezes the instance.
const OPERATION_LOCK: &str = "operation.lock";
/// Maximum time for a guest to write its dirty pages to its disks.
pub const SYNC_TIMEOUT: Duration = Duration::from_secs(300);
/// Name prefix of the files and IDs of instance-store disks.
const INSTANCE_STORE: &str = "ephemeral";
/// Bytes in a GB, the unit of EC2's instance-store sizes.
const GB: u64 = 1_000_000_000;

#[derive(Debug, Clone)]
pub struct InstanceDir {
    id: InstanceId,
    path: PathBuf,
    is_ephemeral: bool,
}

impl InstanceDir {
    /// Returns the directory of the instance `id`, which need not exist.
    pub fn of(home: &Home, id: InstanceId) -> InstanceDir {
        InstanceDir { id, path: home.instances().join(id.to_string()), is_ephemeral: false }
    }

    /// Returns the directory of the ephemeral instance `id`, which need not exist.
    pub(super) fn of_ephemeral(home: &Home, id: InstanceId) -> InstanceDir {
        InstanceDir { id, path: home.runs().join(id.to_string()), is_ephemeral: true }
    }

    pub fn error(&self, failure: Failure) -> MachineError {
        MachineError { instance: (!self.is_ephemeral).then_some(self.id), failure }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn id(&self) -> InstanceId {
        self.id
    }

    pub fn create(&self) -> Result<(), MachineError> {
        DirBuilder::new().mode(0o700).create(&self.path).map_err(MachineError::file(&self.path, "create"))
    }

    pub fn vmm_directory(&self) -> PathBuf {
        files::vmm_directory(&self.path)
    }

    /// Removes the directory. Renames it first, so that a command that tries its lock cannot create a file in it.
    pub fn remove(&self) -> Result<(), MachineError> {
        let gone = self.path.with_file_name(format!("{GONE}{}", self.id));
        let removed = unless_missing(fs::rename(&self.path, &gone)).and_then(|()| remove_all(&gone));
        removed.map_err(MachineError::file(&self.path, "remove"))
    }

    /// Takes the lock, or returns `None` if it is held. While the caller holds it, no VMM is running or starting.
    pub fn try_lock(&self) -> Result<Option<File>, MachineError> {
        self.try_lock_named(LOCK)
    }

    pub fn try_lock_operation(&self) -> Result<Option<File>, MachineError> {
        self.try_lock_named(OPERATION_LOCK)
    }

    /// Takes the lock of the command that plugs or unplugs a disk.
    pub fn try_lock_disk(&self, disk: &str) -> Result<Option<File>, MachineError> {
        self.try_lock_named(&format!("{disk}.lock"))
    }

    pub fn lock_within(&self, timeout: Duration) -> Result<Option<File>, MachineError> {
        let path = self.path.join(LOCK);
        let (sender, receiver) = mpsc::channel();
        let file = path.clone();
        // A lock acquired after the timeout has no receiver and is released at once.
        std::thread::spawn(move || sender.send(lock_file(&file)));
        match receiver.recv_timeout(timeout) {
            Ok(lock) => lock.map(Some).map_err(MachineError::file(path, "lock")),
            Err(_) => Ok(None),
        }
    }

    /// Replaces an error with the default value if the directory no longer exists: while the lock is not held, another
    /// command may terminate the instance and remove its directory.
    pub fn unless_gone<T: Default>(&self, result: Result<T, MachineError>) -> Result<T, MachineError> {
        match result {
            Err(_) if !self.path.exists() => Ok(T::default()),
            other => other,
        }
    }

    fn try_lock_named(&self, name: &str) -> Result<Option<File>, MachineError> {
        let path = self.path.join(name);
        try_lock_file(&path).map_err(MachineError::file(path, "lock"))
    }

    /// Returns how the last machine ended, or `None` if that is unknown, usually because its VMM was killed.
    pub fn end(&self) -> Option<EndRecord> {
        EndRecord::read(&self.vmm_directory()).unwrap_or_else(|error| {
            log::warn!("{}: cannot read how its machine ended: {error}", self.id);
            None
        })
    }

    pub fn console_tail(&self) -> ConsoleTail {
        ConsoleTail::read(&self.vmm_directory())
    }

    /// Returns the last `limit` bytes that the guest wrote to its console.
    pub fn console_output(&self, limit: usize) -> Result<Vec<u8>, MachineError> {
        let mut bytes = Vec::new();
        for path in [FULL_CONSOLE_LOG, CONSOLE_LOG].map(|name| self.vmm_directory().join(name)) {
            match untrusted::read_tail(&path, limit as u64) {
                Ok(more) => bytes.extend(more),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(MachineError::file(path, "read")(error)),
            }
        }
        Ok(bytes.split_off(bytes.len().saturating_sub(limit)))
    }

    pub fn agent(&self, timeout: Duration) -> Result<Agent, MachineError> {
        Agent::connect(&self.vsock(), timeout).map_err(self.guest_error())
    }

    /// Returns the socket of the guest's agent.
    pub fn vsock(&self) -> PathBuf {
        self.vmm_directory().join(VSOCK_SOCKET)
    }

    /// Makes the running guest write its dirty pages to its disks. `answer` is the timeout for connecting to the agent.
    pub fn sync(&self, answer: Duration) -> Result<(), MachineError> {
        self.agent(answer)?.sync(SYNC_TIMEOUT).map_err(self.guest_error())
    }

    pub fn guest_error(&self) -> impl Fn(guest::Error) -> MachineError {
        move |source| self.error(Failure::Guest(source))
    }

    pub(super) fn control_error(&self) -> impl Fn(ClientError) -> MachineError {
        move |source| self.error(Failure::Control(source))
    }

    /// Changes the machine configuration file, which the next VMM reads after a guest reboot.
    pub fn change_config(&self, change: impl FnOnce(&mut MachineConfig)) -> Result<(), MachineError> {
        let mut config = files::read_config(&self.path).map_err(MachineError::file(self.path.join(CONFIG), "read"))?;
        change(&mut config);
        self.write_config(&config)
    }

    /// Writes the configuration of the machine's netstack. Returns its path.
    pub fn write_link(&self, link: &NetstackConfig) -> Result<PathBuf, MachineError> {
        let path = self.path.join(LINK);
        let text = serde_json::to_vec_pretty(link).expect("a netstack configuration is plain data");
        write_private(&path, &text).map_err(MachineError::file(&path, "write"))?;
        Ok(path)
    }

    pub(super) fn write_config(&self, config: &MachineConfig) -> Result<(), MachineError> {
        vmm_process::write_config(&self.path, config).map_err(MachineError::file(self.path.join(CONFIG), "write"))
    }

    /// Replaces the instance-store disks by empty sparse files of the given sizes, in GB (10^9 bytes).
    pub fn make_instance_store(&self, sizes: &[u64]) -> Result<Vec<DiskConfig>, MachineError> {
        self.remove_instance_store()?;
        let disk = |(index, gb): (usize, &u64)| {
            let path = self.path.join(format!("{INSTANCE_STORE}{index}"));
            let file = private_file(&path).map_err(MachineError::file(&path, "create"))?;
            file.set_len(gb * GB).map_err(MachineError::file(&path, "create"))?;
            Ok(DiskConfig::new(format!("{INSTANCE_STORE}{index}"), path, DiskFormat::Raw, DiskAccess::ReadWrite))
        };
        sizes.iter().enumerate().map(disk).collect()
    }

    /// Removes the instance-store disks, which do not survive a stop.
    pub fn remove_instance_store(&self) -> Result<(), MachineError> {
        let failed = || MachineError::file(&self.path, "clean up");
        let Ok(entries) = fs::read_dir(&self.path) else { return Ok(()) };
        for entry in entries {
            let entry = entry.map_err(failed())?;
            if entry.file_name().to_string_lossy().starts_with(INSTANCE_STORE) {
                fs::remove_file(entry.path()).map_err(failed())?;
            }
        }
        Ok(())
    }
}

/// Removes a directory that no new process can find, together with its contents. Does nothing if it is missing.
fn remove_all(dir: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for _ in 0..REMOVE_ATTEMPTS {
        result = unless_missing(fs::remove_dir_all(dir));
        match &result {
            // A process that found the directory before it was renamed created a file meanwhile, or another process is
            // removing the same directory.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            _ => break,
        }
    }
    result
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
