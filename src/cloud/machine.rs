//! An instance's directory, its lock, and the client of its VMM.
//!
//! The lock in the directory shows whether the instance is running. The VMM and its supervisor hold it for as long as
//! they live; before that, the command that starts them holds it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::error::CloudError;
use super::image::Image;
use super::layers::{self, resolved};
use super::network::NetworkConnection;
use super::run::{ConsoleTail, console_tail, is_timeout};
use super::run_spec::{GUEST_CID, add_options, identity, image_kernel, name_host};
use ec2::InstanceId;
use ec2::catalog;
use ec2::state::InstanceState;
use machine::config::{CpuConfig, DiskAccess, DiskConfig, DiskFormat, MAX_DISKS, MachineConfig, VsockConfig};
use machine::control::{ClientError, ControlClient, ControlRequest, Message, SOCKET, VmmStatus};
use machine::end::End;
use machine::end_record::EndRecord;
use machine::files::{self, CONFIG, CONSOLE_LOG, FULL_CONSOLE_LOG, LOCK, VSOCK_SOCKET};
use machine::kept_balance::KeptBalance;
use machine::launch::{Launcher, Restore};
use machine::timeline::monotonic_ns;
use machine::untrusted;
use node::guest::Agent;
use node::home::{Home, lock_file, private_file, try_lock_file};
use node::vmm_process::{self, Inherited};
use store::{InstanceRecord, VolumeRecord};

/// Name prefix of a temporary directory with a snapshot for forks or for an image with memory.
const SAVED_FOR_OTHERS: &str = "saved-";
/// Name prefix of an instance directory that is being removed.
pub(super) const GONE: &str = ".gone-";
/// Lock file of the command that stops, terminates or freezes the instance.
const OPERATION_LOCK: &str = "operation.lock";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time for a guest to write its dirty pages to its disks.
pub(super) const SYNC_TIMEOUT: Duration = Duration::from_secs(300);
/// Bytes in a GB, the unit of EC2's instance-store sizes.
const GB: u64 = 1_000_000_000;

#[derive(Debug, Clone)]
pub struct InstanceDir {
    id: InstanceId,
    path: PathBuf,
}

impl InstanceDir {
    /// Returns the directory of the instance `id`, which need not exist.
    pub fn of(home: &Home, id: InstanceId) -> InstanceDir {
        InstanceDir { id, path: home.instances().join(id.to_string()) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn id(&self) -> InstanceId {
        self.id
    }

    pub fn create(&self) -> Result<(), CloudError> {
        DirBuilder::new().mode(0o700).create(&self.path).map_err(CloudError::file(&self.path, "create"))
    }

    pub fn vmm_directory(&self) -> PathBuf {
        files::vmm_directory(&self.path)
    }

    /// Creates two temporary directories for a snapshot that other instances will be restored from. The VMM writes it
    /// to the first one. The caller then moves it to the second one, where the VMM cannot write. The caller holds the
    /// operation lock, so existing ones were left by killed commands and are removed.
    pub(super) fn saved_for_others(&self) -> Result<[TempDir; 2], CloudError> {
        let [own, trusted] = [self.vmm_directory(), self.path.clone()].map(|parent| {
            let failed = || CloudError::file(&parent, "create a directory in");
            for entry in fs::read_dir(&parent).map_err(failed())? {
                let entry = entry.map_err(failed())?;
                if entry.file_name().to_string_lossy().starts_with(SAVED_FOR_OTHERS) {
                    untrusted::remove(&entry.path()).map_err(failed())?;
                }
            }
            let private = fs::Permissions::from_mode(0o700);
            tempfile::Builder::new().prefix(SAVED_FOR_OTHERS).permissions(private).tempdir_in(&parent).map_err(failed())
        });
        Ok([own?, trusted?])
    }

    /// Removes the directory. Renames it first, so that a command that tries its lock cannot create a file in it.
    pub fn remove(&self) -> Result<(), CloudError> {
        let gone = self.path.with_file_name(format!("{GONE}{}", self.id));
        for result in [fs::rename(&self.path, &gone), fs::remove_dir_all(&gone)] {
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CloudError::file(&self.path, "remove")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes the lock, or returns `None` if it is held. While the caller holds it, no VMM is running or starting.
    pub fn try_lock(&self) -> Result<Option<File>, CloudError> {
        self.try_lock_named(LOCK)
    }

    pub fn try_lock_operation(&self) -> Result<Option<File>, CloudError> {
        self.try_lock_named(OPERATION_LOCK)
    }

    pub fn lock_within(&self, timeout: Duration) -> Result<Option<File>, CloudError> {
        let path = self.path.join(LOCK);
        let (sender, receiver) = mpsc::channel();
        let file = path.clone();
        // A lock acquired after the timeout has no receiver and is released at once.
        std::thread::spawn(move || sender.send(lock_file(&file)));
        match receiver.recv_timeout(timeout) {
            Ok(lock) => lock.map(Some).map_err(CloudError::file(path, "lock")),
            Err(_) => Ok(None),
        }
    }

    /// Replaces an error with the default value if the directory no longer exists: while the lock is not held, another
    /// command may terminate the instance and remove its directory.
    pub(super) fn unless_gone<T: Default>(&self, result: Result<T, CloudError>) -> Result<T, CloudError> {
        match result {
            Err(_) if !self.path.exists() => Ok(T::default()),
            other => other,
        }
    }

    fn try_lock_named(&self, name: &str) -> Result<Option<File>, CloudError> {
        let path = self.path.join(name);
        try_lock_file(&path).map_err(CloudError::file(path, "lock"))
    }

    /// Returns how the last machine ended, or `None` if that is unknown, usually because its VMM was killed.
    pub fn end(&self) -> Option<EndRecord> {
        EndRecord::read(&self.vmm_directory()).unwrap_or_else(|error| {
            log::warn!("{}: cannot read how its machine ended: {error}", self.id);
            None
        })
    }

    pub fn console_tail(&self) -> ConsoleTail {
        console_tail(&self.vmm_directory())
    }

    /// Returns the last `limit` bytes that the guest wrote to its console.
    pub fn console_output(&self, limit: usize) -> Result<Vec<u8>, CloudError> {
        let mut bytes = Vec::new();
        for path in [FULL_CONSOLE_LOG, CONSOLE_LOG].map(|name| self.vmm_directory().join(name)) {
            match untrusted::read_tail(&path, limit as u64) {
                Ok(more) => bytes.extend(more),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(CloudError::file(path, "read")(error)),
            }
        }
        Ok(bytes.split_off(bytes.len().saturating_sub(limit)))
    }

    pub fn agent(&self, timeout: Duration) -> Result<Agent, CloudError> {
        Agent::connect(&self.vmm_directory().join(VSOCK_SOCKET), timeout)
            .map_err(|source| CloudError::Guest { instance: self.id, source })
    }

    /// Makes the running guest write its dirty pages to its disks. `answer` is the timeout for connecting to the agent.
    pub fn sync(&self, answer: Duration) -> Result<(), CloudError> {
        let synced = self.agent(answer)?.sync(SYNC_TIMEOUT);
        synced.map_err(|source| CloudError::Guest { instance: self.id, source })
    }

    pub fn connect(&self) -> Result<MachineHandle, CloudError> {
        let client = ControlClient::connect(&self.vmm_directory().join(SOCKET)).map_err(self.control_error())?;
        Ok(MachineHandle { dir: self.clone(), client, ready: false, ended: None, reported: Vec::new() })
    }

    fn control_error(&self) -> impl Fn(ClientError) -> CloudError {
        let instance = self.id;
        move |source| CloudError::Control { instance, source }
    }

    /// Starts the VMM, which inherits `lock` and the device's end of `network`.
    pub(super) fn spawn(
        &self,
        config: &MachineConfig,
        lock: File,
        network: Option<NetworkConnection>,
        restore: Option<&Restore>,
    ) -> Result<MachineHandle, CloudError> {
        self.write_config(config)?;
        let own = self.vmm_directory();
        let cleared = EndRecord::clear(&own).and_then(|()| KeptBalance::clear(&own));
        cleared.map_err(CloudError::file(&self.path, "clean up"))?;
        let spawn_error = |source| CloudError::Spawn { instance: self.id, source };
        let (near, far) = UnixStream::pair().map_err(spawn_error)?;
        let (network, backend) = network.map(NetworkConnection::split).unzip();
        let inherited = Inherited { lock, launcher: Launcher::Watcher(far), console: None, network };
        // The child is not reaped: it outlives this short-lived process.
        vmm_process::spawn(&self.path, inherited, restore, monotonic_ns()).map_err(spawn_error)?;
        if let Err(error) = backend.unwrap_or_default().start() {
            vmm_process::kill(&self.path).map_err(spawn_error)?;
            return Err(error);
        }
        let client = ControlClient::new(near).map_err(self.control_error())?;
        Ok(MachineHandle { dir: self.clone(), client, ready: false, ended: None, reported: Vec::new() })
    }

    /// Changes the machine configuration file, which the next VMM reads after a guest reboot.
    pub fn change_config(&self, change: impl FnOnce(&mut MachineConfig)) -> Result<(), CloudError> {
        let mut config = files::read_config(&self.path).map_err(CloudError::file(self.path.join(CONFIG), "read"))?;
        change(&mut config);
        self.write_config(&config)
    }

    fn write_config(&self, config: &MachineConfig) -> Result<(), CloudError> {
        vmm_process::write_config(&self.path, config).map_err(CloudError::file(self.path.join(CONFIG), "write"))
    }

    /// Returns an instance's machine configuration, without a network device and limits. `volumes` are in the order of
    /// its block devices.
    pub fn config(
        &self,
        home: &Home,
        record: &InstanceRecord,
        image: &Image,
        volumes: &[VolumeRecord],
        seed: Option<PathBuf>,
    ) -> Result<MachineConfig, CloudError> {
        let mut kernel = image_kernel(image);
        add_options(&mut kernel, record.cmdline.as_deref());
        name_host(&mut kernel, &record.id);
        if seed.is_some() {
            kernel.cmdline.push_str(" wisp.seed");
        }
        let mut disks =
            volumes.iter().map(|volume| volume_disk(home, volume)).collect::<Result<Vec<DiskConfig>, _>>()?;
        if let Some(root) = disks.first_mut() {
            root.root = true;
        }
        disks.extend(self.instance_store(record)?);
        let disk_slots = (disks.len() + FREE_SLOTS).min(MAX_DISKS);
        let cpus = CpuConfig { count: record.vcpus, threads_per_core: record.threads_per_core };
        let vsock = Some(VsockConfig { cid: GUEST_CID, seed });
        let memory_mib = with_kernel_share(record.memory_mib);
        Ok(MachineConfig {
            cpus,
            memory_mib,
            kernel,
            disks,
            disk_slots,
            vsock,
            net: None,
            identity: Some(identity(record.id, &record.instance_type)),
            cpu_budget: None,
            disk_limits: None,
        })
    }

    /// Creates empty instance-store disks of the type's sizes as sparse files.
    fn instance_store(&self, record: &InstanceRecord) -> Result<Vec<DiskConfig>, CloudError> {
        self.remove_instance_store()?;
        let sizes = catalog::find(&record.instance_type)?.instance_store();
        let disk = |(index, gb): (usize, u64)| {
            let path = self.path.join(format!("{EPHEMERAL}{index}"));
            let file = private_file(&path).map_err(CloudError::file(&path, "create"))?;
            file.set_len(gb * GB).map_err(CloudError::file(&path, "create"))?;
            let id = format!("ephemeral{index}");
            Ok(DiskConfig {
                id,
                path,
                format: DiskFormat::Raw,
                access: DiskAccess::ReadWrite,
                root: false,
                backing: Vec::new(),
                was: None,
                limits: None,
            })
        };
        sizes.into_iter().enumerate().map(disk).collect()
    }

    /// Removes the instance-store disks, which do not survive a stop.
    pub fn remove_instance_store(&self) -> Result<(), CloudError> {
        let failed = || CloudError::file(&self.path, "clean up");
        let Ok(entries) = fs::read_dir(&self.path) else { return Ok(()) };
        for entry in entries {
            let entry = entry.map_err(failed())?;
            if entry.file_name().to_string_lossy().starts_with(EPHEMERAL) {
                fs::remove_file(entry.path()).map_err(failed())?;
            }
        }
        Ok(())
    }
}

/// Number of free disk slots for hot-plugged volumes. Each adds a few thousand instructions to the guest's boot.
pub(super) const FREE_SLOTS: usize = 4;
const EPHEMERAL: &str = "ephemeral";

/// Returns a volume's disk ID: `vol` and 17 digits, as in EC2. It fits into the 20 bytes of a virtio-blk serial number.
pub fn disk_id(volume: &VolumeRecord) -> String {
    volume.id.to_string().replace('-', "")
}

pub fn volume_disk(home: &Home, volume: &VolumeRecord) -> Result<DiskConfig, CloudError> {
    Ok(DiskConfig {
        id: disk_id(volume),
        path: resolved(home.volumes().join(&volume.file)),
        format: DiskFormat::Qcow2,
        backing: layers::backing_files(home, &volume.id, volume.backing.as_deref())?,
        access: DiskAccess::ReadWrite,
        root: false,
        was: None,
        limits: None,
    })
}

/// A connection to an instance's VMM.
#[derive(Debug)]
pub struct MachineHandle {
    dir: InstanceDir,
    client: ControlClient,
    ready: bool,
    ended: Option<(End, VmmStatus)>,
    /// Netstack problems that were reported already.
    reported: Vec<String>,
}

impl MachineHandle {
    pub fn not_ready(&self, state: InstanceState, after: Duration) -> CloudError {
        CloudError::NotReady {
            instance: self.dir.id,
            state: state.as_str(),
            seconds: after.as_secs(),
            console: self.dir.console_tail(),
        }
    }

    /// Waits until the guest is running, and returns the netstack's problems as sentences. The error says why the VMM
    /// could not start the guest.
    pub fn wait_started(&mut self) -> Result<Vec<String>, CloudError> {
        self.link_problems().map_err(|error| match error {
            // The VMM's log is removed with the directory, so the error must contain the cause.
            CloudError::Control { instance, source: ClientError::Gone } => {
                match vmm_process::last_violation(&self.dir.path) {
                    Some(why) => CloudError::Refused { instance, why: format!("the VMM could not start: {why}") },
                    None => CloudError::Control { instance, source: ClientError::Gone },
                }
            }
            error => error,
        })
    }

    /// Returns the netstack problems that were not reported yet, as sentences.
    pub fn link_problems(&mut self) -> Result<Vec<String>, CloudError> {
        let mut problems = self.status()?.link_problems;
        problems.retain(|problem| !self.reported.contains(problem));
        self.reported.extend(problems.iter().cloned());
        Ok(problems.into_iter().map(|problem| format!("{}: {problem}", self.dir.id)).collect())
    }

    pub fn status(&mut self) -> Result<VmmStatus, CloudError> {
        self.status_within(ANSWER_TIMEOUT)
    }

    pub(super) fn status_within(&mut self, timeout: Duration) -> Result<VmmStatus, CloudError> {
        match self.ask_within(&ControlRequest::Status, timeout)? {
            Message::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Subscribes to the events that [`Self::wait_ready`] and [`Self::wait_ended`] wait for.
    pub fn subscribe(&mut self) -> Result<(), CloudError> {
        self.demand(&ControlRequest::Subscribe)
    }

    pub fn demand(&mut self, request: &ControlRequest) -> Result<(), CloudError> {
        match self.ask(request)? {
            Message::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Sends a request that ends the machine, and waits for the end. If the machine did not end, the error says why.
    pub fn end_with(&mut self, request: &ControlRequest, timeout: Duration) -> Result<(), CloudError> {
        self.send(request)?;
        let instance = self.dir.id;
        match self.wait_ended(timeout) {
            Ok(true) => Ok(()),
            Ok(false) => Err(CloudError::NotDone {
                instance,
                why: format!("the VMM did not finish within {} s", timeout.as_secs()),
            }),
            Err(CloudError::Refused { why, .. }) => Err(CloudError::NotDone { instance, why }),
            Err(error) => Err(error),
        }
    }

    pub fn kill(&mut self, by: &str) -> Result<(), CloudError> {
        self.send(&ControlRequest::Kill { by: by.into() })
    }

    /// Waits up to `timeout` until the agent is ready, and returns true if it is. Fails if the machine ends first.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<bool, CloudError> {
        let early = |dir: &InstanceDir, end: String| {
            Err(CloudError::EndedEarly { instance: dir.id, end, console: dir.console_tail() })
        };
        match self.wait(timeout, |machine| machine.ready || machine.ended.is_some()) {
            Err(CloudError::Control { source: ClientError::Gone, .. }) => {
                return early(&self.dir, "the VMM process ended unexpectedly".into());
            }
            waited => waited?,
        }
        match &self.ended {
            Some((end, _)) if !self.ready => early(&self.dir, end.to_string()),
            _ => Ok(self.ready),
        }
    }

    /// Waits up to `timeout` until the machine has ended, and returns true if it has.
    pub fn wait_ended(&mut self, timeout: Duration) -> Result<bool, CloudError> {
        match self.wait(timeout, |machine| machine.ended.is_some()) {
            Ok(()) => Ok(self.ended.is_some()),
            // The VMM process has exited, and its machine ended with it.
            Err(CloudError::Control { source: ClientError::Gone, .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn wait(&mut self, timeout: Duration, done: impl Fn(&MachineHandle) -> bool) -> Result<(), CloudError> {
        let deadline = Instant::now() + timeout;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            match self.client.receive(Some(left)) {
                Ok(message) => self.note(message)?,
                Err(ClientError::Io(error)) if is_timeout(&error) => return Ok(()),
                Err(source) => return Err(self.dir.control_error()(source)),
            }
        }
        Ok(())
    }

    pub(super) fn ask(&mut self, request: &ControlRequest) -> Result<Message, CloudError> {
        self.ask_within(request, ANSWER_TIMEOUT)
    }

    pub(super) fn ask_within(&mut self, request: &ControlRequest, timeout: Duration) -> Result<Message, CloudError> {
        let deadline = Instant::now() + timeout;
        self.send(request)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.client.receive(Some(left)).map_err(self.dir.control_error())?;
            match message {
                Message::Ready | Message::Ended { .. } => self.note(message)?,
                Message::Failed { why } => return Err(CloudError::Refused { instance: self.dir.id, why }),
                answer => return Ok(answer),
            }
        }
    }

    fn send(&mut self, request: &ControlRequest) -> Result<(), CloudError> {
        match self.client.send(request) {
            // A last message from the VMM explains more than the broken connection.
            Err(ClientError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                match self.client.receive(Some(ANSWER_TIMEOUT)) {
                    Ok(message) => self.note(message),
                    Err(source) => Err(self.dir.control_error()(source)),
                }
            }
            result => result.map_err(self.dir.control_error()),
        }
    }

    fn note(&mut self, message: Message) -> Result<(), CloudError> {
        match message {
            Message::Ready => self.ready = true,
            Message::Ended { end, status } => self.ended = Some((end, *status)),
            Message::Failed { why } => return Err(CloudError::Refused { instance: self.dir.id, why }),
            Message::Status(_)
            | Message::Done
            | Message::Attached { .. }
            | Message::Reloaded { .. }
            | Message::Saved { .. } => {}
        }
        Ok(())
    }

    pub(super) fn unexpected(&self, message: &Message) -> CloudError {
        let why = format!("unexpected response from the VMM: {message:?}");
        CloudError::Refused { instance: self.dir.id, why }
    }
}

/// Adds 8 MiB for the kernel to sizes from 512 MiB to below 1 GiB. This keeps `MemTotal` within 3% of the type's
/// memory; larger sizes need no correction.
pub(super) fn with_kernel_share(memory_mib: u64) -> u64 {
    if (512..1024).contains(&memory_mib) { memory_mib + 8 } else { memory_mib }
}
