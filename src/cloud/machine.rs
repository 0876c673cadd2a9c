//! An instance's machine: its folder, its lock, the monitor's process, and talking to it.
//!
//! The lock in the folder tells the truth about who runs: the monitor holds it for as long as it lives, and before it
//! the command that starts it.

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
use super::network::Connection;
use super::run::{ConsoleTail, console_tail, is_timeout};
use super::run_spec::{GUEST_CID, add_options, identity, image_kernel, name_host};
use crate::ec2::InstanceId;
use crate::ec2::catalogue;
use crate::ec2::state::InstanceState;
use crate::guest::Agent;
use crate::host::home::{Home, lock_file, private_file, try_lock_file};
use crate::host::monitor_process::{self, CONFIG, Inherited};
use crate::store::{InstanceRecord, VolumeRecord};
use crate::vmm::config::{CpuConfig, DiskAccess, DiskConfig, DiskFormat, MAX_DISKS, MachineConfig, VsockConfig};
use crate::vmm::control::{ClientError, ControlClient, Message, Request, SOCKET, Status};
use crate::vmm::cpu::kept_balance::KeptBalance;
use crate::vmm::devices::console::{FULL_LOG, LOG};
use crate::vmm::end::End;
use crate::vmm::end_record::EndRecord;
use crate::vmm::machine::{Launcher, Restore};
use crate::vmm::timeline::monotonic_ns;
use crate::vmm::untrusted;
use crate::vmm::virtio::vsock;

/// Begins the name of a folder with a saved machine that is on its way.
const SAVED_FOR_OTHERS: &str = "saved-";
/// Begins the name of an instance's folder that is being removed.
pub(super) const GONE: &str = ".gone-";
/// Held by the command that stops or terminates the instance.
const OPERATION_LOCK: &str = "operation.lock";
/// How long a monitor may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a guest may take to write what waits in its memory to its disks.
pub(super) const SYNC_TIMEOUT: Duration = Duration::from_secs(300);
/// Bytes of a GB, in which EC2 gives the size of instance-store disks.
const GB: u64 = 1_000_000_000;

/// The folder of an instance.
#[derive(Debug, Clone)]
pub struct Folder {
    id: InstanceId,
    path: PathBuf,
}

impl Folder {
    /// The folder of the instance `id`, whether it exists or not.
    pub fn of(home: &Home, id: InstanceId) -> Folder {
        Folder { id, path: home.instances().join(id.to_string()) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// Makes it.
    pub fn create(&self) -> Result<(), CloudError> {
        DirBuilder::new().mode(0o700).create(&self.path).map_err(CloudError::file(&self.path, "made"))
    }

    /// The directory of the VMM's own files in it.
    pub fn vmm_directory(&self) -> PathBuf {
        monitor_process::vmm_directory(&self.path)
    }

    /// Two directories for the machine to be saved for others, which are removed when what is returned is dropped: one where its
    /// VMM can write, and a trusted one that the snapshot is moved to. The caller holds the lock of operations, and removes
    /// what killed commands left.
    pub(super) fn saved_for_others(&self) -> Result<[TempDir; 2], CloudError> {
        let [own, trusted] = [self.vmm_directory(), self.path.clone()].map(|parent| {
            let failed = || CloudError::file(&parent, "written");
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

    /// Removes it with all that is in it. It has another name first: whoever looks for a lock in it would make that anew.
    pub fn remove(&self) -> Result<(), CloudError> {
        let gone = self.path.with_file_name(format!("{GONE}{}", self.id));
        for result in [fs::rename(&self.path, &gone), fs::remove_dir_all(&gone)] {
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CloudError::file(&self.path, "removed")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The lock, if nobody has it: then no monitor runs, and none is being started.
    pub fn try_lock(&self) -> Result<Option<File>, CloudError> {
        self.try_lock_named(monitor_process::LOCK)
    }

    /// The lock of commands that stop or terminate the instance, if nobody has it.
    pub fn try_lock_operation(&self) -> Result<Option<File>, CloudError> {
        self.try_lock_named(OPERATION_LOCK)
    }

    /// Waits for the lock for so long; none if it is not free by then.
    pub fn lock_within(&self, timeout: Duration) -> Result<Option<File>, CloudError> {
        let path = self.path.join(monitor_process::LOCK);
        let (sender, receiver) = mpsc::channel();
        let file = path.clone();
        // A lock that comes too late finds nobody to take it, and is free again.
        std::thread::spawn(move || sender.send(lock_file(&file)));
        match receiver.recv_timeout(timeout) {
            Ok(lock) => lock.map(Some).map_err(CloudError::file(path, "locked")),
            Err(_) => Ok(None),
        }
    }

    /// What came of something that needs the folder. Another command may have terminated the instance, and removed the folder,
    /// at any moment without a lock: then there was nothing to be done.
    pub(super) fn unless_gone<T: Default>(&self, result: Result<T, CloudError>) -> Result<T, CloudError> {
        match result {
            Err(_) if !self.path.exists() => Ok(T::default()),
            other => other,
        }
    }

    fn try_lock_named(&self, name: &str) -> Result<Option<File>, CloudError> {
        let path = self.path.join(name);
        try_lock_file(&path).map_err(CloudError::file(path, "locked"))
    }

    /// How the last machine ended; none where its monitor was killed.
    pub fn end(&self) -> Option<EndRecord> {
        EndRecord::read(&self.vmm_directory()).unwrap_or_else(|error| {
            log::warn!("{}: how its machine ended cannot be read: {error}", self.id);
            None
        })
    }

    /// The last lines of its console.
    pub fn console_tail(&self) -> ConsoleTail {
        console_tail(&self.vmm_directory())
    }

    /// The last `limit` bytes that the guest wrote to its console.
    pub fn console_output(&self, limit: usize) -> Result<Vec<u8>, CloudError> {
        let mut bytes = Vec::new();
        for path in [FULL_LOG, LOG].map(|name| self.vmm_directory().join(name)) {
            match untrusted::read_tail(&path, limit as u64) {
                Ok(more) => bytes.extend(more),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(CloudError::file(path, "read")(error)),
            }
        }
        Ok(bytes.split_off(bytes.len().saturating_sub(limit)))
    }

    /// The agent of the instance's guest.
    pub fn agent(&self, timeout: Duration) -> Result<Agent, CloudError> {
        Agent::connect(&self.vmm_directory().join(vsock::SOCKET), timeout)
            .map_err(|source| CloudError::Guest { instance: self.id, source })
    }

    /// Has the running guest write to its disks what waits in its memory; `answer` is how long its agent may take to answer
    /// at all.
    pub fn sync(&self, answer: Duration) -> Result<(), CloudError> {
        let synced = self.agent(answer)?.sync(SYNC_TIMEOUT);
        synced.map_err(|source| CloudError::Guest { instance: self.id, source })
    }

    /// A connection to the instance's monitor.
    pub fn connect(&self) -> Result<Monitor, CloudError> {
        let client = ControlClient::connect(&self.vmm_directory().join(SOCKET)).map_err(self.control_error())?;
        Ok(Monitor { folder: self.clone(), client, ready: false, ended: None, told: Vec::new() })
    }

    fn control_error(&self) -> impl Fn(ClientError) -> CloudError {
        let instance = self.id;
        move |source| CloudError::Control { instance, source }
    }

    /// Starts the monitor with this configuration. `lock` becomes its lock, and `network` what its network device is
    /// connected to.
    pub(super) fn spawn(
        &self,
        config: &MachineConfig,
        lock: File,
        network: Option<Connection>,
        restore: Option<&Restore>,
    ) -> Result<Monitor, CloudError> {
        self.write_config(config)?;
        let own = self.vmm_directory();
        let cleared = EndRecord::clear(&own).and_then(|()| KeptBalance::clear(&own));
        cleared.map_err(CloudError::file(&self.path, "cleaned"))?;
        let spawn_error = |source| CloudError::Spawn { instance: self.id, source };
        let (near, far) = UnixStream::pair().map_err(spawn_error)?;
        let (network, beginning) = network.map(Connection::split).unzip();
        let inherited = Inherited { lock, launcher: Launcher::Watcher(far), console: None, network };
        // The child is not waited for: it outlives this process, which is short.
        monitor_process::spawn(&self.path, inherited, restore, monotonic_ns()).map_err(spawn_error)?;
        if let Err(error) = beginning.unwrap_or_default().start() {
            monitor_process::kill(&self.path).map_err(spawn_error)?;
            return Err(error);
        }
        let client = ControlClient::new(near).map_err(self.control_error())?;
        Ok(Monitor { folder: self.clone(), client, ready: false, ended: None, told: Vec::new() })
    }

    /// Changes the configuration in the folder, which a machine whose guest reboots starts anew with.
    pub fn change_config(&self, change: impl FnOnce(&mut MachineConfig)) -> Result<(), CloudError> {
        let mut config =
            monitor_process::read_config(&self.path).map_err(CloudError::file(self.path.join(CONFIG), "read"))?;
        change(&mut config);
        self.write_config(&config)
    }

    fn write_config(&self, config: &MachineConfig) -> Result<(), CloudError> {
        monitor_process::write_config(&self.path, config).map_err(CloudError::file(self.path.join(CONFIG), "written"))
    }

    /// The machine of an instance with these volumes, in the order of its block devices.
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

    /// Fresh, empty instance-store disks of the instance's type: sparse files, gone when it stops.
    fn instance_store(&self, record: &InstanceRecord) -> Result<Vec<DiskConfig>, CloudError> {
        self.remove_instance_store()?;
        let sizes = catalogue::find(&record.instance_type)?.instance_store();
        let disk = |(index, gb): (usize, u64)| {
            let path = self.path.join(format!("{EPHEMERAL}{index}"));
            let file = private_file(&path).map_err(CloudError::file(&path, "made"))?;
            file.set_len(gb * GB).map_err(CloudError::file(&path, "made"))?;
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

    /// Removes the instance-store disks, of which nothing outlives a stop.
    pub fn remove_instance_store(&self) -> Result<(), CloudError> {
        let failed = || CloudError::file(&self.path, "cleaned");
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

/// Slots for volumes that are attached while the instance runs. A free one costs a guest some thousand instructions.
pub(super) const FREE_SLOTS: usize = 4;
/// Begins the names of instance-store disks.
const EPHEMERAL: &str = "ephemeral";

/// What a machine calls a volume. virtio-blk has 20 bytes for its serial number: EC2's own, `vol` and the 17 digits.
pub fn disk_id(volume: &VolumeRecord) -> String {
    volume.id.to_string().replace('-', "")
}

/// A volume as a disk of a machine, with the backing files that are on record.
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

/// A connection to an instance's monitor.
#[derive(Debug)]
pub struct Monitor {
    folder: Folder,
    client: ControlClient,
    ready: bool,
    ended: Option<(End, Status)>,
    /// What of its link was told.
    told: Vec<String>,
}

impl Monitor {
    /// The error for a guest whose agent took too long; `state` is its instance's.
    pub fn not_ready(&self, state: InstanceState, after: Duration) -> CloudError {
        CloudError::NotReady {
            instance: self.folder.id,
            state: state.as_str(),
            seconds: after.as_secs(),
            console: self.folder.console_tail(),
        }
    }

    /// Waits until the machine is built: the guest runs. The error is why it could not be; what is wrong with its link is
    /// returned, in sentences.
    pub fn wait_started(&mut self) -> Result<Vec<String>, CloudError> {
        self.link_problems().map_err(|error| match error {
            // Its log goes with its folder.
            CloudError::Control { instance, source: ClientError::Gone } => {
                match monitor_process::last_violation(&self.folder.path) {
                    Some(why) => CloudError::Refused { instance, why },
                    None => CloudError::Control { instance, source: ClientError::Gone },
                }
            }
            error => error,
        })
    }

    /// What is wrong with the guest's link, in sentences; each is told once.
    pub fn link_problems(&mut self) -> Result<Vec<String>, CloudError> {
        let mut problems = self.status()?.link_problems;
        problems.retain(|problem| !self.told.contains(problem));
        self.told.extend(problems.iter().cloned());
        Ok(problems.into_iter().map(|problem| format!("{}: {problem}", self.folder.id)).collect())
    }

    /// The machine in figures, now.
    pub fn status(&mut self) -> Result<Status, CloudError> {
        self.status_within(ANSWER_TIMEOUT)
    }

    /// The machine in figures, if its VMM answers in time.
    pub(super) fn status_within(&mut self, timeout: Duration) -> Result<Status, CloudError> {
        match self.ask_within(&Request::Status, timeout)? {
            Message::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Has [`wait_ready`](Monitor::wait_ready) and [`wait_ended`](Monitor::wait_ended) told of the machine's life.
    pub fn subscribe(&mut self) -> Result<(), CloudError> {
        self.demand(&Request::Subscribe)
    }

    /// Carries out a request that is answered with nothing but that it was.
    pub fn demand(&mut self, request: &Request) -> Result<(), CloudError> {
        match self.ask(request)? {
            Message::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks for something that ends the machine, and waits until it has; the error is why the machine goes on.
    pub fn end_with(&mut self, request: &Request, timeout: Duration) -> Result<(), CloudError> {
        self.send(request)?;
        let instance = self.folder.id;
        match self.wait_ended(timeout) {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(CloudError::NotDone { instance, why: format!("it was not done after {} s", timeout.as_secs()) })
            }
            Err(CloudError::Refused { why, .. }) => Err(CloudError::NotDone { instance, why }),
            Err(error) => Err(error),
        }
    }

    /// Ends the machine now.
    pub fn kill(&mut self, by: &str) -> Result<(), CloudError> {
        self.send(&Request::Kill { by: by.into() })
    }

    /// Waits until the agent is ready; whether it is, at the end of `timeout`.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<bool, CloudError> {
        let early = |folder: &Folder, end: String| {
            Err(CloudError::EndedEarly { instance: folder.id, end, console: folder.console_tail() })
        };
        match self.wait(timeout, |monitor| monitor.ready || monitor.ended.is_some()) {
            Err(CloudError::Control { source: ClientError::Gone, .. }) => {
                return early(&self.folder, "the VMM process ended unexpectedly".into());
            }
            waited => waited?,
        }
        match &self.ended {
            Some((end, _)) if !self.ready => early(&self.folder, end.to_string()),
            _ => Ok(self.ready),
        }
    }

    /// Waits until the machine has ended; whether it has, at the end of `timeout`.
    pub fn wait_ended(&mut self, timeout: Duration) -> Result<bool, CloudError> {
        match self.wait(timeout, |monitor| monitor.ended.is_some()) {
            Ok(()) => Ok(self.ended.is_some()),
            // The monitor's process is gone: so is the machine.
            Err(CloudError::Control { source: ClientError::Gone, .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn wait(&mut self, timeout: Duration, done: impl Fn(&Monitor) -> bool) -> Result<(), CloudError> {
        let deadline = Instant::now() + timeout;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            match self.client.receive(Some(left)) {
                Ok(message) => self.note(message)?,
                Err(ClientError::Io(error)) if is_timeout(&error) => return Ok(()),
                Err(source) => return Err(self.folder.control_error()(source)),
            }
        }
        Ok(())
    }

    /// Asks for something, and returns the answer.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Message, CloudError> {
        self.ask_within(request, ANSWER_TIMEOUT)
    }

    /// The same, where the answer may take so long.
    pub(super) fn ask_within(&mut self, request: &Request, timeout: Duration) -> Result<Message, CloudError> {
        let deadline = Instant::now() + timeout;
        self.send(request)?;
        loop {
            // Zero would be no limit.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let message = self.client.receive(Some(left)).map_err(self.folder.control_error())?;
            match message {
                Message::Ready | Message::Ended { .. } => self.note(message)?,
                Message::Failed { why } => return Err(CloudError::Refused { instance: self.folder.id, why }),
                answer => return Ok(answer),
            }
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), CloudError> {
        match self.client.send(request) {
            // What it said before it went explains more than the broken connection.
            Err(ClientError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                match self.client.receive(Some(ANSWER_TIMEOUT)) {
                    Ok(message) => self.note(message),
                    Err(source) => Err(self.folder.control_error()(source)),
                }
            }
            result => result.map_err(self.folder.control_error()),
        }
    }

    fn note(&mut self, message: Message) -> Result<(), CloudError> {
        match message {
            Message::Ready => self.ready = true,
            Message::Ended { end, status } => self.ended = Some((end, *status)),
            Message::Failed { why } => return Err(CloudError::Refused { instance: self.folder.id, why }),
            Message::Status(_)
            | Message::Done
            | Message::Attached { .. }
            | Message::Reloaded { .. }
            | Message::Saved { .. } => {}
        }
        Ok(())
    }

    /// The error for an answer to something else.
    pub(super) fn unexpected(&self, message: &Message) -> CloudError {
        let why = format!("its monitor answered something else: {message:?}");
        CloudError::Refused { instance: self.folder.id, why }
    }
}
/// What a machine gets that was asked for so many MiB. The smallest types' gets a little more, for its kernel, so that what
/// programs see there (`MemTotal`) is within 3% of the type's memory; from 1 GiB on it is without that.
pub(super) fn with_kernel_share(memory_mib: u64) -> u64 {
    if (512..1024).contains(&memory_mib) { memory_mib + 8 } else { memory_mib }
}
