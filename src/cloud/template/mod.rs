//! Templates: snapshots of booted guests without an identity, which a launch restores in milliseconds. Images with
//! cloud-init have none, because cloud-init reads the instance's identity at boot.
//!
//! The first guest of an image and a size becomes the template. It boots without an identity, and is saved when its agent
//! is ready. It then gets its identity as a restored guest does. The command that starts it has a [`Task`]; others wait.
//!
//! Each template has a directory with the snapshot and a file with the root file system's overlay, named by its key.
//! The directory is created last and removed first: without it, there is no template. A command that restores a
//! template holds a shared lock on it; a command that removes it takes the exclusive lock.

mod make;
mod task;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use make::make;
pub use task::{Start, Task};

use crate::error::CloudError;
use disk::disk_image;
use machine::config::{CpuConfig, DiskFormat};
use machine::fs::remove_if_exists;
use machine::launch::Restore;
use machine::snapshot_files;
use node::home::{Home, private_file};
use node::image::Image;
use node::image_memory::{self, ImageMemory};
use node::machine_config::ROOT;
use node::snapshot_check;
use task::{FAILED, failure_path};

/// Environment variable with the maximum disk space for all templates in MiB. At 0, no templates are created.
pub const LIMIT_VARIABLE: &str = "WISP_WARM_LIMIT";
/// Environment variable that disables templates if it is [`OFF`].
pub const SWITCH_VARIABLE: &str = "WISP_TEMPLATES";
const OFF: &str = "off";
const DEFAULT_LIMIT_MIB: u64 = 4096;
/// Name of the file with the [`TemplateKey`] in a template's directory.
const FACTS: &str = "warm.json";
/// Length of a template's name in hexadecimal digits.
const KEY_LENGTH: usize = 20;
/// Name prefix of unfinished files and directories.
const UNFINISHED: &str = ".new-";
/// Timeout for a ready agent to answer, and to write the guest's dirty pages.
const AGENT_TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout for the agent of a first guest to apply its identity.
pub(crate) const IDENTITY_TIMEOUT: Duration = AGENT_TIMEOUT;
const SAVE_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateKey {
    /// Path of the image in the images directory. It is relative, so the data directory can be moved or copied.
    pub image: PathBuf,
    pub cpus: CpuConfig,
    /// In MiB, excluding the kernel's share that `machine_config` adds.
    pub memory_mib: u64,
    /// Time of creation in seconds since 1970.
    pub made: u64,
    /// ID of the root disk in the snapshot.
    #[serde(default = "default_root")]
    pub root: String,
}

/// Returns the root disk's ID in templates whose file has none.
fn default_root() -> String {
    ROOT.into()
}

#[derive(Debug, Clone)]
pub struct TemplateRecord {
    pub facts: TemplateKey,
    /// Size on disk in bytes.
    pub bytes: u64,
    key: String,
    used: SystemTime,
}

impl TemplateRecord {
    /// Returns the template's name, which is also the name of its directory.
    pub fn name(&self) -> &str {
        &self.key
    }
}

/// A snapshot from which instances are restored: a template, which is locked until drop, or an image's memory.
#[derive(Debug)]
pub struct Template {
    dir: PathBuf,
    layer: Option<PathBuf>,
    root: String,
    _lock: Option<File>,
}

impl Template {
    pub fn restore(&self) -> Restore {
        Restore { dir: self.dir.clone(), once: false }
    }

    /// Returns the overlay (qcow2) with the guest's writes to the image's root file system, which must not be modified.
    /// An image's memory has none.
    pub fn layer(&self) -> Option<&Path> {
        self.layer.as_deref()
    }

    /// Returns the ID of the root disk in the snapshot.
    pub fn root(&self) -> &str {
        &self.root
    }
}

/// Returns the maximum disk space for all templates in bytes.
pub fn limit() -> u64 {
    let given = std::env::var(LIMIT_VARIABLE).ok();
    let mib = given.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(DEFAULT_LIMIT_MIB);
    mib.saturating_mul(1 << 20)
}

/// Returns the paths of a template's directory, overlay and lock.
fn paths(home: &Home, key: &str) -> [PathBuf; 3] {
    [key.to_string(), format!("{key}.qcow2"), format!("{key}.lock")].map(|name| home.warm().join(name))
}

/// Returns true if `text` has the form of a template's name.
pub fn is_name(text: &str) -> bool {
    text.len() == KEY_LENGTH && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn relative_image(home: &Home, dir: &Path) -> PathBuf {
    dir.strip_prefix(home.images()).unwrap_or(dir).to_path_buf()
}

fn key(home: &Home, image: &Image, cpus: CpuConfig, memory_mib: u64) -> String {
    let manifest = &image.manifest;
    let digests = [Some(&manifest.kernel.sha256), manifest.root.as_ref().map(|root| &root.sha256)];
    let initrd = manifest.initrd.as_ref().map(|initrd| &initrd.sha256);
    // The last part stands for the machine's devices: change it when they change, so that older templates are not used.
    let dir = relative_image(home, &image.dir);
    let parts = serde_json::json!([dir, digests, initrd, manifest.kernel.cmdline, cpus, memory_mib, "net, balloon"]);
    let mut key = disk::sparse::hex(&Sha256::digest(parts.to_string()));
    key.truncate(KEY_LENGTH);
    key
}

/// Returns false if templates are disabled by [`SWITCH_VARIABLE`] or [`LIMIT_VARIABLE`].
pub fn are_enabled() -> bool {
    limit() > 0 && std::env::var(SWITCH_VARIABLE).map_or(true, |text| text.trim() != OFF)
}

pub fn can_have(image: &Image) -> bool {
    image.manifest.root.is_some() && !image.manifest.cloud_init && are_enabled()
}

/// Returns the image's memory or a template with this size, if this version of Wisp can restore it on this host.
pub fn find(home: &Home, image: &Image, cpus: CpuConfig, memory_mib: u64) -> Option<Template> {
    if let Some(memory) = ImageMemory::of(image).filter(|memory| memory.is_of(cpus, memory_mib)) {
        let dir = image_memory::dir(image);
        match snapshot_check::check(&dir) {
            Ok(()) => return Some(Template { dir, layer: None, root: memory.root, _lock: None }),
            Err(error) => log::warn!("cannot restore the image's memory: {error}"),
        }
    }
    find_snapshot(home, image, cpus, memory_mib)
}

fn find_snapshot(home: &Home, image: &Image, cpus: CpuConfig, memory_mib: u64) -> Option<Template> {
    if !can_have(image) {
        return None;
    }
    let key = key(home, image, cpus, memory_mib);
    let [dir, layer, lock] = paths(home, &key);
    if !dir.exists() {
        return None;
    }
    let file = private_file(&lock).ok()?;
    flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
    match snapshot_check::check(&dir) {
        Ok(()) => {
            // The modification time records the last use, so that the least recently used template is removed first.
            let path = dir.join(FACTS);
            let _ = File::open(&path).and_then(|facts| facts.set_modified(SystemTime::now()));
            let facts: TemplateKey = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
            Some(Template { dir, layer: Some(layer), root: facts.root, _lock: Some(file) })
        }
        Err(error) => {
            log::info!("cannot use a template: {error}");
            drop(file);
            if let Err(error) = remove(home, &key) {
                log::warn!("{error}");
            }
            None
        }
    }
}

/// Lists all templates, most recently used first.
pub fn list(home: &Home) -> Result<Vec<TemplateRecord>, CloudError> {
    let warm = home.warm();
    let mut records = Vec::new();
    for entry in fs::read_dir(&warm).map_err(CloudError::file(&warm, "read"))?.flatten() {
        let Ok(key) = entry.file_name().into_string() else { continue };
        let path = entry.path().join(FACTS);
        let Ok(text) = fs::read(&path) else { continue };
        let Ok(facts) = serde_json::from_slice(&text) else { continue };
        let used = path.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        records.push(TemplateRecord { facts, bytes: size_on_disk(home, &key), key, used });
    }
    records.retain(|record| !record.key.starts_with(UNFINISHED));
    records.sort_by_key(|record| std::cmp::Reverse(record.used));
    Ok(records)
}

fn size_on_disk(home: &Home, key: &str) -> u64 {
    let [dir, layer, _] = paths(home, key);
    snapshot_files::bytes(&dir) + layer.metadata().map_or(0, |metadata| metadata.blocks() * 512)
}

pub fn list_of(home: &Home, dir: &Path) -> Result<Vec<TemplateRecord>, CloudError> {
    let mut records = list(home)?;
    records.retain(|record| record.facts.image == relative_image(home, dir));
    Ok(records)
}

pub fn remove_of(home: &Home, dir: &Path) -> Result<usize, CloudError> {
    let _lock = home.lock(&home.warm())?;
    let records = list_of(home, dir)?;
    records.iter().try_for_each(|record| remove(home, &record.key))?;
    Ok(records.len())
}

/// Removes the templates that exceed the limit. Keeps each one that still fits, starting with the most recently used.
fn evict(home: &Home) -> Result<(), CloudError> {
    let mut left = limit();
    for record in list(home)? {
        match left.checked_sub(record.bytes) {
            Some(rest) => left = rest,
            None => remove(home, &record.key)?,
        }
    }
    Ok(())
}

/// Removes a template, unless it is in use.
fn remove(home: &Home, key: &str) -> Result<(), CloudError> {
    let [dir, layer, lock] = paths(home, key);
    let file = private_file(&lock).map_err(CloudError::file(&lock, "create"))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    snapshot_files::remove(&dir).map_err(CloudError::file(&dir, "remove"))?;
    let failure = failure_path(home, key);
    for path in [&layer, &failure] {
        remove_if_exists(path).map_err(CloudError::file(path, "remove"))?;
    }
    remove_if_exists(&lock).map_err(CloudError::file(&lock, "remove"))
}

pub(super) fn sweep(home: &Home) -> Result<(), CloudError> {
    let warm = home.warm();
    for entry in fs::read_dir(&warm).map_err(CloudError::file(&warm, "read"))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let is_old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > AGENT_TIMEOUT + SAVE_TIMEOUT));
        if (name.starts_with(UNFINISHED) || name.ends_with(FAILED)) && is_old {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(CloudError::file(&path, "remove"))?;
        }
    }
    Ok(())
}

/// Copies a template's overlay. Returns the size of its disk in bytes.
pub(super) fn copy_layer(layer: &Path, destination: &Path) -> Result<u64, CloudError> {
    let failed = || CloudError::file(destination, "create");
    let mut source = File::open(layer).map_err(CloudError::file(layer, "read"))?;
    let mut file = private_file(destination).map_err(failed())?;
    // The file may be an empty overlay.
    file.set_len(0).map_err(failed())?;
    // The copy shares its data blocks with the source if the file system supports it.
    io::copy(&mut source, &mut file).map_err(failed())?;
    Ok(disk_image::information(destination, DiskFormat::Qcow2)?.virtual_size)
}
