//! Warm snapshots: guests of an image and a size that were saved right after they had started, before they were anybody's.
//! A launch that finds one goes on from it, in milliseconds, in place of booting. Images with cloud-init have none: it asks
//! at boot whose it is, and would have done so before it was anybody's.
//!
//! Each has a folder (the saved machine) and a file beside it (the layer of the root file system, as it was at that
//! moment), both named by its key. The folder comes last and goes first: what has none is nothing. Whoever uses one has a
//! shared lock of it; who removes it, the exclusive one.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::error::CloudError;
use super::image::Image;
use super::image_memory::{self, ImageMemory};
use super::now;
use super::run::{EphemeralInstance, RunError};
use super::run_spec::{Boot, RunSpec};
use crate::guest::{self, Agent, ExecRequest, FEATURE, Streams};
use crate::host::disk_image;
use crate::host::home::{Home, private_file, try_lock_file, write_private};
use crate::vmm::config::CpuConfig;
use crate::vmm::machine::Restore;
use crate::vmm::snapshot;

/// What a warm guest calls its root disk.
pub(super) const ROOT: &str = "root";
/// How much disk all warm snapshots may take together, in MiB; with 0 none is kept.
pub const LIMIT_VARIABLE: &str = "WISP_WARM_LIMIT";
const DEFAULT_LIMIT_MIB: u64 = 4096;
/// What there is to know about one, in its folder.
const FACTS: &str = "warm.json";
/// Begins the names of what is not finished.
const UNFINISHED: &str = ".new-";
/// How long an agent that is ready may take to answer and to write what it has.
const AGENT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long saving may take.
const SAVE_TIMEOUT: Duration = Duration::from_secs(600);

/// What a warm snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmFacts {
    /// The image's folder, as seen from the folder of the data directory's images: a data directory can be moved or copied.
    pub image: PathBuf,
    /// vCPUs and their topology.
    pub cpus: CpuConfig,
    /// Memory, in MiB, without the kernel's share.
    pub memory_mib: u64,
    /// When it was made, in seconds since 1970.
    pub made: u64,
}

/// A warm snapshot as it is listed.
#[derive(Debug, Clone)]
pub struct WarmRecord {
    /// What it is of.
    pub facts: WarmFacts,
    /// What it takes on disk.
    pub bytes: u64,
    key: String,
    used: SystemTime,
}

/// A saved machine that a launch goes on from: a warm snapshot, which stays for as long as this does, or an image's memory.
#[derive(Debug)]
pub struct Warm {
    folder: PathBuf,
    layer: Option<PathBuf>,
    root: String,
    _lock: Option<File>,
}

impl Warm {
    /// What a machine goes on from.
    pub fn restore(&self) -> Restore {
        Restore { folder: self.folder.clone(), once: false }
    }

    /// What its guest has written since the image's root file system was as it is (qcow2), if anything; it is not to be
    /// written.
    pub fn layer(&self) -> Option<&Path> {
        self.layer.as_deref()
    }

    /// What it calls its root disk.
    pub fn root(&self) -> &str {
        &self.root
    }
}

/// How much disk warm snapshots may take, in bytes.
pub fn limit() -> u64 {
    let given = std::env::var(LIMIT_VARIABLE).ok();
    let mib = given.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(DEFAULT_LIMIT_MIB);
    mib.saturating_mul(1 << 20)
}

/// Its folder, its layer and its lock.
fn paths(home: &Home, key: &str) -> [PathBuf; 3] {
    [key.to_string(), format!("{key}.qcow2"), format!("{key}.lock")].map(|name| home.warm().join(name))
}

/// An image's folder, as seen from the folder of images.
fn seen(home: &Home, folder: &Path) -> PathBuf {
    folder.strip_prefix(home.images()).unwrap_or(folder).to_path_buf()
}

fn key(home: &Home, image: &Image, cpus: CpuConfig, memory_mib: u64) -> String {
    let manifest = &image.manifest;
    let digests = [Some(&manifest.kernel.sha256), manifest.root.as_ref().map(|root| &root.sha256)];
    let initrd = manifest.initrd.as_ref().map(|initrd| &initrd.sha256);
    // What machines are made of besides: those of another time are not to be gone on from.
    let folder = seen(home, &image.folder);
    let parts = serde_json::json!([folder, digests, initrd, manifest.kernel.cmdline, cpus, memory_mib, "net"]);
    let mut key = crate::host::sparse::hex(&Sha256::digest(parts.to_string()));
    key.truncate(20);
    key
}

/// Whether there can be warm snapshots of an image.
pub fn can_have(image: &Image) -> bool {
    image.manifest.root.is_some() && !image.manifest.cloud_init && limit() > 0
}

/// What a launch of an image in a size goes on from, if there is anything that this wisp and this host can: the image's
/// memory, or a warm snapshot.
pub fn find(home: &Home, image: &Image, cpus: CpuConfig, memory_mib: u64) -> Option<Warm> {
    if let Some(memory) = ImageMemory::of(image).filter(|memory| memory.is_of(cpus, memory_mib)) {
        let folder = image_memory::folder(image);
        match snapshot::check(&folder) {
            Ok(()) => return Some(Warm { folder, layer: None, root: memory.root, _lock: None }),
            Err(error) => log::warn!("the image's memory cannot be gone on from: {error}"),
        }
    }
    find_snapshot(home, image, cpus, memory_mib)
}

fn find_snapshot(home: &Home, image: &Image, cpus: CpuConfig, memory_mib: u64) -> Option<Warm> {
    if !can_have(image) {
        return None;
    }
    let key = key(home, image, cpus, memory_mib);
    let [folder, layer, lock] = paths(home, &key);
    if !folder.exists() {
        return None;
    }
    let file = private_file(&lock).ok()?;
    flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
    match snapshot::check(&folder) {
        Ok(()) => {
            // The one that was not used for the longest time goes first.
            let _ = File::open(folder.join(FACTS)).and_then(|facts| facts.set_modified(SystemTime::now()));
            Some(Warm { folder, layer: Some(layer), root: ROOT.into(), _lock: Some(file) })
        }
        Err(error) => {
            log::info!("a warm snapshot is of no use: {error}");
            drop(file);
            if let Err(error) = remove(home, &key) {
                log::warn!("{error}");
            }
            None
        }
    }
}

/// The task of making a warm snapshot, which one of many launches at the same time has.
#[derive(Debug)]
pub struct Task {
    path: PathBuf,
    _lock: File,
}

impl Task {
    /// For a launch that had to boot; nothing if another launch's is at it, or has done it.
    pub fn take(home: &Home, image: &Image, cpus: CpuConfig, memory_mib: u64) -> Result<Option<Task>, CloudError> {
        let path = home.warm().join(format!("{}.making", key(home, image, cpus, memory_mib)));
        let lock = try_lock_file(&path).map_err(CloudError::file(&path, "locked"))?;
        let task = lock.map(|lock| Task { path, _lock: lock });
        Ok(task.filter(|_| find_snapshot(home, image, cpus, memory_mib).is_none()))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // Who locks it in this moment finds the snapshot.
        let _ = fs::remove_file(&self.path);
    }
}

/// Boots a guest of the image and size, saves it when its agent answers, and makes room for it. One that is there already
/// is made anew.
pub fn make(
    home: &Home,
    image: &Image,
    cpus: CpuConfig,
    memory_mib: u64,
    boot_timeout: Duration,
    began_ns: u64,
) -> Result<WarmRecord, CloudError> {
    let Some(root) = &image.manifest.root else { return Err(CloudError::NotWarm("the image has no root".into())) };
    if image.manifest.cloud_init {
        return Err(CloudError::NotWarm("the image has cloud-init, which asks at boot whose it is".into()));
    }
    let key = key(home, image, cpus, memory_mib);
    let [folder, layer, _] = paths(home, &key);
    let warm = home.warm();
    let unfinished = unfinished_folder(home)?;
    let name = unfinished.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let new_layer = Unfinished(warm.join(format!("{name}.qcow2")));
    disk_image::create_layer(&new_layer.0, &image.folder.join(&root.file), root.format, None)?;
    let spec = RunSpec {
        cpus,
        memory_mib,
        boot: Boot::Nobody { image: Box::new(image.clone()), layer: new_layer.0.clone() },
        disks: Vec::new(),
        cmdline: None,
        console: false,
        network: None,
        limits: None,
    };
    save(home, &spec, unfinished.path(), boot_timeout, began_ns)?;
    let facts = WarmFacts { image: seen(home, &image.folder), cpus, memory_mib, made: now() };
    let path = unfinished.path().join(FACTS);
    let text = serde_json::to_vec_pretty(&facts).expect("facts are plain data");
    write_private(&path, &text).map_err(CloudError::file(&path, "written"))?;

    let _lock = home.lock(&warm)?;
    remove(home, &key)?;
    if folder.exists() {
        return Err(CloudError::NotWarm("the one that there is, is in use now".into()));
    }
    fs::rename(&new_layer.0, &layer).map_err(CloudError::file(&layer, "made"))?;
    fs::rename(unfinished.path(), &folder).map_err(CloudError::file(&folder, "made"))?;
    make_room(home)?;
    list(home)?
        .into_iter()
        .find(|record| record.key == key)
        .ok_or_else(|| CloudError::NotWarm(format!("it is larger than {LIMIT_VARIABLE} allows, {} MiB", limit() >> 20)))
}

/// A folder for a machine that is about to be saved; it is removed unless it is moved to its place.
fn unfinished_folder(home: &Home) -> Result<TempDir, CloudError> {
    let warm = home.warm();
    let private = fs::Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().prefix(UNFINISHED).permissions(private).tempdir_in(&warm);
    folder.map_err(CloudError::file(&warm, "written"))
}

/// A file that is removed unless it was moved to its place.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Boots, and saves into `folder`.
fn save(home: &Home, spec: &RunSpec, folder: &Path, boot_timeout: Duration, began_ns: u64) -> Result<(), CloudError> {
    let mut instance = EphemeralInstance::start(home, spec, began_ns)?;
    instance.wait_ready(boot_timeout)?;
    // It answers when all that comes after its ready is done; what it wrote is in the layer, and not waiting in memory.
    let connect = || Agent::connect(&instance.vsock(), AGENT_TIMEOUT).map_err(RunError::from);
    let facts = connect()?.ping(AGENT_TIMEOUT).map_err(RunError::from)?;
    if !facts.agent_version.contains(FEATURE) {
        return Err(CloudError::NotWarm("the image's agent is of a time before there were any".into()));
    }
    if let Err(error) = read_a_shell(connect()?) {
        log::info!("the warm guest has no shell to have in memory: {error}");
    }
    connect()?.sync(AGENT_TIMEOUT).map_err(RunError::from)?;
    Ok(instance.save(folder, SAVE_TIMEOUT)?)
}

/// Has a guest run a shell that does nothing: the first command of whoever goes on from it need not read it from the disk.
fn read_a_shell(agent: Agent) -> Result<(), guest::Error> {
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|source| guest::Error::Local { action: "open /dev/null", source })?;
    let streams = Streams { input: null.as_fd(), output: null.as_fd(), error: null.as_fd() };
    let request = ExecRequest { argv: ["sh", "-c", ":"].map(Into::into).into(), ..ExecRequest::default() };
    agent.with_silence_limit(AGENT_TIMEOUT).exec(request, streams).map(drop)
}

/// All there are, those last used first.
pub fn list(home: &Home) -> Result<Vec<WarmRecord>, CloudError> {
    let warm = home.warm();
    let mut records = Vec::new();
    for entry in fs::read_dir(&warm).map_err(CloudError::file(&warm, "read"))?.flatten() {
        let Ok(key) = entry.file_name().into_string() else { continue };
        let path = entry.path().join(FACTS);
        let Ok(text) = fs::read(&path) else { continue };
        let Ok(facts) = serde_json::from_slice(&text) else { continue };
        let used = path.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        records.push(WarmRecord { facts, bytes: weigh(home, &key), key, used });
    }
    records.retain(|record| !record.key.starts_with(UNFINISHED));
    records.sort_by_key(|record| std::cmp::Reverse(record.used));
    Ok(records)
}

fn weigh(home: &Home, key: &str) -> u64 {
    let [folder, layer, _] = paths(home, key);
    snapshot::bytes(&folder) + layer.metadata().map_or(0, |metadata| metadata.blocks() * 512)
}

/// Those of the image in `folder`.
pub fn list_of(home: &Home, folder: &Path) -> Result<Vec<WarmRecord>, CloudError> {
    let mut records = list(home)?;
    records.retain(|record| record.facts.image == seen(home, folder));
    Ok(records)
}

/// Removes those of the image in `folder`. Returns how many those were.
pub fn remove_of(home: &Home, folder: &Path) -> Result<usize, CloudError> {
    let _lock = home.lock(&home.warm())?;
    let records = list_of(home, folder)?;
    records.iter().try_for_each(|record| remove(home, &record.key))?;
    Ok(records.len())
}

/// Removes those that were not used for the longest time, until the rest is within the limit.
fn make_room(home: &Home) -> Result<(), CloudError> {
    let mut left = limit();
    for record in list(home)? {
        match left.checked_sub(record.bytes) {
            Some(rest) => left = rest,
            None => remove(home, &record.key)?,
        }
    }
    Ok(())
}

/// Removes one, unless somebody uses it now.
fn remove(home: &Home, key: &str) -> Result<(), CloudError> {
    let [folder, layer, lock] = paths(home, key);
    let file = private_file(&lock).map_err(CloudError::file(&lock, "made"))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    snapshot::remove(&folder).map_err(CloudError::file(&folder, "removed"))?;
    gone(fs::remove_file(&layer)).map_err(CloudError::file(&layer, "removed"))?;
    gone(fs::remove_file(&lock)).map_err(CloudError::file(&lock, "removed"))
}

/// Removes what makers left that were killed.
pub(super) fn sweep(home: &Home) -> Result<(), CloudError> {
    let warm = home.warm();
    for entry in fs::read_dir(&warm).map_err(CloudError::file(&warm, "read"))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let is_old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > AGENT_TIMEOUT + SAVE_TIMEOUT));
        if name.starts_with(UNFINISHED) && is_old {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(CloudError::file(&path, "removed"))?;
        }
    }
    Ok(())
}

/// Copies a warm guest's layer for an instance of its own.
pub(super) fn copy_layer(layer: &Path, destination: &Path) -> Result<(), CloudError> {
    let failed = || CloudError::file(destination, "made");
    let mut source = File::open(layer).map_err(CloudError::file(layer, "read"))?;
    let mut file = private_file(destination).map_err(failed())?;
    // By reference where the file system can.
    io::copy(&mut source, &mut file).map_err(failed())?;
    Ok(())
}
