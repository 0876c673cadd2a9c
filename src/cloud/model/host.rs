//! A host in memory. It outlives the commands, which reach it through a [`FakeNode`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::reference::{EMBEDDED, Fault};
use ec2::state::InstanceState;
use ec2::{HostCapacity, ImageId, InstanceId, VolumeId};
use machine::config::{BootProtocol, DiskFormat};
use machine::control::{ClientError, VmmStatus};
use machine::end::End;
use machine::end_record::EndRecord;
use machine::kept_balance::KeptBalance;
use machine::launch::Restore;
use machine::limits::DiskLimits;
use machine::network::NetstackConfig;
use machine::usage::Reading;
use node::bundle::Verified;
use node::embedded;
use node::error::NodeError;
use node::host::{
    Ended, Guard, HostImages, HostInstance, ImageBuild, ImageHost, ImageImport, InstanceHost, InstanceLock,
    InstancePlan, Layer, Machine, NewFile, Node, Reboot, Savable, SavedMachine, Source, StopMode, UnfinishedImage,
    VolumeDisk, VolumeFiles, VolumeHost,
};
use node::image::{Image, KernelEntry, Manifest, RootEntry};
use node::import::ImportProgress;
use node::instance::{Failure, MachineError};
use node::local::VOLUMES;

/// Size of each image's root file system.
const ROOT_SIZE: u64 = 1 << 30;
const ROOT_FILE: &str = "root.ext4";

/// Ends a command like a killed process: no code of the command cleans up.
#[derive(Debug)]
pub(super) struct Killed;

/// The state of the host.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub instances: BTreeMap<InstanceId, HostedInstance>,
    /// The files of volumes and snapshots.
    pub files: BTreeMap<String, HostedFile>,
    /// The content of each image's root file system. The embedded image is always there.
    pub images: BTreeMap<ImageId, u64>,
    pub unfinished_images: u32,
    /// The locks that the current command holds.
    pub locks: BTreeSet<String>,
    /// The fault of a later call, and the number of calls before it.
    pub fault: Option<(u32, Fault)>,
}

#[derive(Debug, Default)]
pub(super) struct HostedInstance {
    pub machine: Option<HostedMachine>,
    pub is_hibernated: bool,
    pub last_end: Option<EndRecord>,
}

#[derive(Debug, Default)]
pub(super) struct HostedMachine {
    /// The file that each disk writes.
    pub disks: BTreeMap<VolumeId, String>,
    pub public_address: Option<String>,
}

#[derive(Debug)]
pub(super) struct HostedFile {
    pub size: u64,
    /// `None` if all data is in the backing file.
    pub content: Option<u64>,
    pub base: Option<Layer>,
}

impl Host {
    /// Returns the content of a volume or snapshot. Fails if a file is missing, or if the headers name others.
    pub fn content(&self, files: &VolumeFiles) -> Result<u64, String> {
        let mut layers = files.backing.iter();
        let mut name = files.file.as_str();
        let mut found = None;
        loop {
            let file = self.files.get(name).ok_or_else(|| format!("{name} is missing"))?;
            found = found.or(file.content);
            let layer = match (layers.next(), &file.base) {
                (None, None) => return Ok(found.unwrap_or_default()),
                (Some(layer), Some(base)) if layer == base => layer,
                (recorded, header) => return Err(format!("{name} is over {header:?}, not {recorded:?}")),
            };
            match layer.file.strip_prefix(VOLUMES) {
                Some(below) => name = below,
                None => return Ok(found.unwrap_or(self.image_content(&layer.file)?)),
            }
        }
    }

    fn image_content(&self, file: &str) -> Result<u64, String> {
        let id = file.split('/').nth(1).and_then(|id| id.parse::<ImageId>().ok());
        let id = id.ok_or_else(|| format!("{file} is not in an image"))?;
        if id == embedded::id() {
            return Ok(EMBEDDED);
        }
        self.images.get(&id).copied().ok_or_else(|| format!("{id} is missing"))
    }

    fn size(&self, layer: &Layer) -> Result<u64, String> {
        match layer.file.strip_prefix(VOLUMES) {
            Some(name) => self.files.get(name).map(|file| file.size).ok_or_else(|| format!("{name} is missing")),
            None => self.image_content(&layer.file).map(|_| ROOT_SIZE),
        }
    }

    fn machine(&mut self, id: InstanceId) -> Result<&mut HostedMachine, NodeError> {
        let machine = self.instances.get_mut(&id).and_then(|instance| instance.machine.as_mut());
        machine.ok_or_else(|| failed(id, Failure::Control(ClientError::Gone)))
    }

    /// Ends an instance's machine, if one is running.
    pub fn end(&mut self, id: InstanceId, end: Option<End>) {
        if let Some(instance) = self.instances.get_mut(&id).filter(|instance| instance.machine.is_some()) {
            instance.machine = None;
            instance.last_end = end.map(|end| EndRecord::ended(&end, &VmmStatus::default()));
        }
    }
}

fn failed(id: InstanceId, failure: Failure) -> NodeError {
    MachineError { instance: Some(id), failure }.into()
}

fn refused(why: impl Into<String>) -> NodeError {
    NodeError::Network(why.into())
}

#[derive(Debug, Clone, Default)]
pub(super) struct FakeNode(Arc<Mutex<Host>>);

impl FakeNode {
    pub fn host(&self) -> MutexGuard<'_, Host> {
        // A killed command leaves a consistent host.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a call, unless it has the command's fault.
    fn call<T>(&self, effect: impl FnOnce(&mut Host) -> Result<T, NodeError>) -> Result<T, NodeError> {
        let mut host = self.host();
        let fault = match &mut host.fault {
            Some((0, fault)) => Some(*fault),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        if fault.is_some() {
            host.fault = None;
        }
        match fault {
            Some(Fault::KilledBefore) => kill(host),
            Some(Fault::Failed) => Err(refused("the host failed")),
            Some(Fault::KilledAfter) => {
                // The result, which may be a lock, is dropped with the process.
                let result = effect(&mut host);
                drop(host);
                drop(result);
                std::panic::resume_unwind(Box::new(Killed))
            }
            None => effect(&mut host),
        }
    }

    fn take(&self, host: &mut Host, name: String) -> Option<Guard> {
        host.locks.insert(name.clone()).then(|| Guard::new(HeldLock { node: self.clone(), name }))
    }

    /// Takes a lock for which the command waits. Commands run one at a time, so the lock must be free.
    fn wait_for(&self, name: &str) -> Result<Guard, NodeError> {
        self.call(|host| Ok(self.take(host, name.into()).expect("a command does not wait for its own lock")))
    }
}

fn kill<T>(host: MutexGuard<Host>) -> T {
    drop(host);
    std::panic::resume_unwind(Box::new(Killed))
}

/// A lock of the current command.
#[derive(Debug)]
struct HeldLock {
    node: FakeNode,
    name: String,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.node.host().locks.remove(&self.name);
    }
}

#[derive(Debug)]
struct FakeMachine;

impl Machine for FakeMachine {
    fn wait_started(&mut self) -> Result<Vec<String>, MachineError> {
        Ok(Vec::new())
    }

    fn wait_ready(&mut self, _: Duration) -> Result<bool, MachineError> {
        Ok(true)
    }

    fn link_problems(&mut self) -> Result<Vec<String>, MachineError> {
        Ok(Vec::new())
    }

    fn not_ready(&self, state: InstanceState, _: Duration) -> MachineError {
        MachineError { instance: None, failure: Failure::NotDone(format!("the instance is {state}")) }
    }
}

impl Node for FakeNode {
    fn capacity(&self) -> HostCapacity {
        HostCapacity { cpus: 1 << 10, memory_mib: 1 << 30 }
    }

    fn address_origin(&self) -> u16 {
        0
    }

    fn check_vpc_network(&self) -> Result<(), NodeError> {
        Err(refused("there is no router"))
    }

    fn check_user_network(&self) -> Result<(), NodeError> {
        Ok(())
    }

    fn instances(&self) -> &dyn InstanceHost {
        self
    }

    fn volumes(&self) -> &dyn VolumeHost {
        self
    }

    fn images(&self) -> &dyn ImageHost {
        self
    }
}

impl VolumeHost for FakeNode {
    fn lock(&self) -> Result<Guard, NodeError> {
        self.wait_for("volumes")
    }

    fn lock_snapshots(&self) -> Result<Guard, NodeError> {
        self.wait_for("snapshots")
    }

    fn try_lock_snapshots(&self) -> Result<Option<Guard>, NodeError> {
        self.call(|host| Ok(self.take(host, "snapshots".into())))
    }

    fn create(&self, file: &str, content: &NewFile) -> Result<u64, NodeError> {
        self.call(|host| {
            let new = match content {
                NewFile::Empty { size } => HostedFile { size: *size, content: Some(0), base: None },
                NewFile::Overlay { base, size } => {
                    let least = host.size(base).map_err(refused)?;
                    let size = size.unwrap_or_default().max(least);
                    HostedFile { size, content: None, base: Some((*base).clone()) }
                }
            };
            let size = new.size;
            assert!(host.files.insert(file.into(), new).is_none(), "{file} exists already");
            Ok(size)
        })
    }

    fn grow(&self, files: &VolumeFiles, size: u64) -> Result<(), NodeError> {
        self.call(|host| {
            host.content(files).map_err(refused)?;
            let file = host.files.get_mut(&files.file).ok_or_else(|| refused("no such file"))?;
            file.size = size;
            Ok(())
        })
    }

    fn remove(&self, file: &str) -> Result<(), NodeError> {
        self.call(|host| host.files.remove(file).map(drop).ok_or_else(|| refused("no such file")))
    }

    fn list(&self) -> Result<Vec<String>, NodeError> {
        self.call(|host| Ok(host.files.keys().cloned().collect()))
    }

    fn sweep(&self, kept: &BTreeSet<String>) -> Result<(), NodeError> {
        self.call(|host| {
            host.files.retain(|name, _| kept.contains(name));
            Ok(())
        })
    }

    fn read_backing(&self, file: &str) -> Result<Vec<Layer>, String> {
        Err(format!("{file} was created by this version"))
    }
}

impl ImageHost for FakeNode {
    fn open(&self, id: ImageId) -> Result<Image, NodeError> {
        self.call(|host| {
            let known = id == embedded::id() || host.images.contains_key(&id);
            known.then(image).ok_or_else(|| refused(format!("{id} is missing")))
        })
    }

    fn import(&self, _: &ImageImport, _: &dyn ImportProgress) -> Result<UnfinishedImage, NodeError> {
        Err(refused("the model has no files to import"))
    }

    fn build(&self, build: &ImageBuild, lock: Guard) -> Result<UnfinishedImage, NodeError> {
        self.call(|host| {
            let content = host.content(build.root).map_err(refused)?;
            // A new image removes what killed commands left.
            host.unfinished_images = 1;
            let files = Guard::new(Scratch { node: self.clone(), content, _lock: lock, is_kept: false });
            Ok(UnfinishedImage { manifest: image().manifest, files })
        })
    }

    fn keep(&self, image: UnfinishedImage, id: ImageId) -> Result<Guard, NodeError> {
        let mut scratch: Scratch = image.files.downcast().expect("this node built the image");
        self.call(|host| {
            host.images.insert(id, scratch.content);
            host.unfinished_images = 0;
            scratch.is_kept = true;
            Ok(())
        })?;
        Ok(Guard::new(scratch))
    }

    fn export(&self, _: ImageId, _: &Path, _: &dyn ImportProgress) -> Result<(), NodeError> {
        Err(refused("the model has no files to export"))
    }

    fn verify(&self, _: ImageId, _: &dyn ImportProgress) -> Result<Vec<Verified>, NodeError> {
        Ok(Vec::new())
    }

    fn lock(&self) -> Result<Guard, NodeError> {
        self.wait_for("images")
    }

    fn try_lock(&self) -> Result<Option<Guard>, NodeError> {
        self.call(|host| Ok(self.take(host, "images".into())))
    }

    fn list(&self) -> Result<HostImages, NodeError> {
        self.call(|host| {
            let ids = host.images.keys().copied().collect();
            Ok(HostImages { ids, has_unfinished: host.unfinished_images > 0 })
        })
    }

    fn sweep(&self, kept: &[ImageId]) -> Result<(), NodeError> {
        self.call(|host| {
            host.images.retain(|id, _| kept.contains(id));
            host.unfinished_images = 0;
            Ok(())
        })
    }
}

/// An unfinished image. A killed command leaves it.
#[derive(Debug)]
struct Scratch {
    node: FakeNode,
    content: u64,
    _lock: Guard,
    is_kept: bool,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.is_kept && !std::thread::panicking() {
            self.node.host().unfinished_images = 0;
        }
    }
}

fn image() -> Image {
    let kernel = KernelEntry {
        file: "vmlinux".into(),
        sha256: String::new(),
        cmdline: String::new(),
        protocol: BootProtocol::Auto,
        software_kvm_aware: false,
    };
    let root = RootEntry {
        file: ROOT_FILE.into(),
        sha256: String::new(),
        format: DiskFormat::Raw,
        file_system: "ext4".into(),
    };
    let manifest = Manifest {
        name: "model".into(),
        description: String::new(),
        architecture: "x86_64".into(),
        default_user: "root".into(),
        cloud_init: false,
        imds_support: None,
        kernel,
        initrd: None,
        root: Some(root),
        components: Vec::new(),
    };
    Image { dir: PathBuf::from("/nonexistent"), manifest }
}

fn lock_name(id: InstanceId) -> String {
    format!("instance {id}")
}

impl InstanceHost for FakeNode {
    fn lock_all(&self) -> Result<Guard, NodeError> {
        self.wait_for("instances")
    }

    fn create(&self, id: InstanceId) -> Result<Guard, NodeError> {
        self.call(|host| {
            host.instances.insert(id, HostedInstance::default());
            Ok(self.take(host, lock_name(id)).expect("the instance is new"))
        })
    }

    fn remove(&self, id: InstanceId) -> Result<(), NodeError> {
        self.call(|host| {
            let removed = host.instances.remove(&id);
            assert!(removed.is_none_or(|instance| instance.machine.is_none()), "{id} is removed while it runs");
            Ok(())
        })
    }

    fn list(&self) -> Result<Vec<HostInstance>, NodeError> {
        let instance = |id: &InstanceId| HostInstance { id: *id, is_half_removed: false };
        self.call(|host| Ok(host.instances.keys().map(instance).collect()))
    }

    fn lock(&self, id: InstanceId, _: Duration) -> Result<InstanceLock, NodeError> {
        self.call(|host| match host.instances.get(&id).map(|instance| instance.machine.is_some()) {
            None => Ok(InstanceLock::Missing),
            Some(true) => Ok(InstanceLock::Held),
            Some(false) => Ok(self.take(host, lock_name(id)).map_or(InstanceLock::Held, InstanceLock::Taken)),
        })
    }

    fn lock_operation(&self, id: InstanceId) -> Result<Option<Guard>, NodeError> {
        self.call(|host| match host.instances.contains_key(&id) {
            true => Ok(self.take(host, format!("operation {id}"))),
            false => Ok(None),
        })
    }

    fn lock_disk(&self, id: InstanceId, volume: VolumeId) -> Result<InstanceLock, NodeError> {
        self.call(|host| match host.instances.contains_key(&id) {
            false => Ok(InstanceLock::Missing),
            true => Ok(self.take(host, format!("{volume} of {id}")).map_or(InstanceLock::Held, InstanceLock::Taken)),
        })
    }

    fn start(&self, plan: InstancePlan) -> Result<Box<dyn Machine>, NodeError> {
        self.call(|host| {
            let mut machine = HostedMachine::default();
            for disk in &plan.volumes {
                host.content(&disk.files).map_err(refused)?;
                machine.disks.insert(disk.volume, disk.files.file.clone());
            }
            machine.public_address = plan.network.as_ref().and_then(|network| public_address(&network.link));
            let instance = host.instances.get_mut(&plan.id).ok_or_else(|| refused("no such instance"))?;
            assert!(instance.machine.is_none(), "{} is started while it runs", plan.id);
            if matches!(plan.source, Source::Hibernated(_)) {
                assert!(std::mem::take(&mut instance.is_hibernated), "{} is not hibernated", plan.id);
            }
            assert!(!instance.is_hibernated, "{} boots while it is hibernated", plan.id);
            instance.last_end = None;
            instance.machine = Some(machine);
            Ok(Box::new(FakeMachine) as Box<dyn Machine>)
        })
    }

    fn end(&self, id: InstanceId, mode: StopMode) -> Result<Ended, NodeError> {
        self.call(|host| {
            let Some(instance) = host.instances.get_mut(&id) else { return Ok(Ended::default()) };
            if instance.machine.is_some() {
                instance.is_hibernated = mode == StopMode::Hibernate;
                host.end(id, Some(End::PowerOff));
            }
            let lock = self.take(host, lock_name(id)).expect("a command does not wait for its own lock");
            Ok(Ended { lock: Some(lock), warning: None })
        })
    }

    fn reboot(&self, id: InstanceId) -> Result<Reboot, NodeError> {
        self.call(|host| host.machine(id).map(|_| Reboot::Restarted(Box::new(FakeMachine))))
    }

    fn is_running(&self, id: InstanceId) -> Result<bool, NodeError> {
        self.call(|host| Ok(host.machine(id).is_ok()))
    }

    fn await_guest_end(&self, _: InstanceId) {}

    fn status(&self, id: InstanceId, _: Duration) -> Result<VmmStatus, NodeError> {
        self.call(|host| host.machine(id).map(|_| VmmStatus::default()))
    }

    fn last_end(&self, id: InstanceId) -> Option<EndRecord> {
        self.host().instances.get(&id).and_then(|instance| instance.last_end.clone())
    }

    fn forget_end(&self, id: InstanceId) -> Result<(), NodeError> {
        self.call(|host| {
            host.instances.entry(id).and_modify(|instance| instance.last_end = None);
            Ok(())
        })
    }

    fn hibernated(&self, id: InstanceId) -> Option<Restore> {
        let is_hibernated = self.host().instances.get(&id).is_some_and(|instance| instance.is_hibernated);
        is_hibernated.then(|| Restore { dir: PathBuf::new(), once: true })
    }

    fn forget_hibernated(&self, id: InstanceId) -> Result<(), NodeError> {
        self.call(|host| {
            host.instances.entry(id).and_modify(|instance| instance.is_hibernated = false);
            Ok(())
        })
    }

    fn clear_stopped(&self, _: InstanceId) -> Result<(), NodeError> {
        self.call(|_| Ok(()))
    }

    fn savable(&self, id: InstanceId) -> Result<Savable, NodeError> {
        self.call(|host| host.machine(id).map(|_| Savable::Yes))
    }

    fn sync(&self, id: InstanceId) -> Result<(), NodeError> {
        self.call(|host| host.machine(id).map(drop))
    }

    fn save(&self, id: InstanceId, disks: &[VolumeDisk]) -> Result<SavedMachine, NodeError> {
        self.call(|host| {
            let files = disks.iter().map(|disk| (disk.volume, disk.files.file.clone())).collect();
            host.machine(id)?.disks = files;
            let restore = Restore { dir: PathBuf::new(), once: false };
            Ok(SavedMachine { files: Guard::new(()), restore, paused: Duration::ZERO })
        })
    }

    fn attach_disk(&self, id: InstanceId, disk: &VolumeDisk) -> Result<(), NodeError> {
        self.call(|host| {
            host.content(&disk.files).map_err(refused)?;
            let before = host.machine(id)?.disks.insert(disk.volume, disk.files.file.clone());
            assert_eq!(before, None, "{} is attached twice", disk.volume);
            Ok(())
        })
    }

    fn detach_disk(&self, id: InstanceId, volume: VolumeId, _: bool) -> Result<(), NodeError> {
        self.call(|host| {
            host.machine(id)?.disks.remove(&volume);
            Ok(())
        })
    }

    fn resize_disk(&self, id: InstanceId, volume: VolumeId, size: u64) -> Result<(), NodeError> {
        self.call(|host| {
            let name = host.machine(id)?.disks.get(&volume).cloned().ok_or_else(|| refused("no such disk"))?;
            host.files.get_mut(&name).ok_or_else(|| refused("no such file"))?.size = size;
            Ok(())
        })
    }

    fn switch_disk(&self, id: InstanceId, _: &VolumeDisk, after: &VolumeDisk) -> Result<(), NodeError> {
        self.call(|host| {
            host.content(&after.files).map_err(refused)?;
            let disk = host.machine(id)?.disks.get_mut(&after.volume).ok_or_else(|| refused("no such disk"))?;
            disk.clone_from(&after.files.file);
            Ok(())
        })
    }

    fn limit_disk(&self, id: InstanceId, _: VolumeId, _: DiskLimits) -> Result<(), NodeError> {
        self.call(|host| host.machine(id).map(drop))
    }

    fn set_can_owe(&self, id: InstanceId, _: bool) -> Result<(), NodeError> {
        self.call(|host| host.machine(id).map(drop))
    }

    fn reload_link(&self, id: InstanceId, link: &NetstackConfig) -> Result<Vec<String>, NodeError> {
        self.call(|host| {
            host.machine(id)?.public_address = public_address(link);
            Ok(Vec::new())
        })
    }

    fn readings(&self, _: InstanceId) -> Vec<Reading> {
        Vec::new()
    }

    fn kept_balance(&self, _: InstanceId) -> Option<KeptBalance> {
        None
    }
}

/// Returns the public address that a guest reads from its metadata service.
fn public_address(link: &NetstackConfig) -> Option<String> {
    link.metadata.as_ref()?.tree.get("public-ipv4").cloned()
}
