//! Makes templates: boots a guest without an identity, and saves it when its agent is ready.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::{
    AGENT_TIMEOUT, FACTS, LIMIT_VARIABLE, SAVE_TIMEOUT, TemplateKey, TemplateRecord, UNFINISHED, evict, key, limit,
    list, paths, relative_image, remove,
};
use crate::error::CloudError;
use crate::now;
use crate::run::{Boot, RunSpec};
use disk::disk_image;
use machine::config::CpuConfig;
use node::guest::{self, Agent, ExecRequest, FEATURE, Streams};
use node::home::{Home, write_private};
use node::image::Image;

/// Boots a guest of the image and size, saves it as a template when its agent is ready, and evicts old templates.
/// Replaces an existing template, and fails if that one is in use.
pub fn make(
    home: &Home,
    image: &Image,
    cpus: CpuConfig,
    memory_mib: u64,
    boot_timeout: Duration,
    began_ns: u64,
) -> Result<TemplateRecord, CloudError> {
    let Some(root) = &image.manifest.root else {
        return Err(CloudError::NotWarm("the image has no root file system".into()));
    };
    if image.manifest.cloud_init {
        return Err(CloudError::NotWarm(
            "the image has cloud-init, which reads the instance's identity at boot".into(),
        ));
    }
    let key = key(home, image, cpus, memory_mib);
    let [dir, layer, _] = paths(home, &key);
    let warm = home.warm();
    let unfinished = unfinished_directory(home)?;
    let name = unfinished.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let new_layer = Unfinished(warm.join(format!("{name}.qcow2")));
    disk_image::create_layer(&new_layer.0, &image.dir.join(&root.file), root.format, None)?;
    let spec = RunSpec {
        cpus,
        memory_mib,
        boot: Boot::Template { image: Box::new(image.clone()), layer: new_layer.0.clone() },
        disks: Vec::new(),
        cmdline: None,
        console: false,
        network: None,
        limits: None,
    };
    save(home, &spec, unfinished.path(), boot_timeout, began_ns)?;
    let facts = TemplateKey { image: relative_image(home, &image.dir), cpus, memory_mib, made: now() };
    let path = unfinished.path().join(FACTS);
    let text = serde_json::to_vec_pretty(&facts).expect("facts are plain data");
    write_private(&path, &text).map_err(CloudError::file(&path, "write"))?;

    let _lock = home.lock(&warm)?;
    remove(home, &key)?;
    if dir.exists() {
        return Err(CloudError::NotWarm("the existing template is in use".into()));
    }
    fs::rename(&new_layer.0, &layer).map_err(CloudError::file(&layer, "create"))?;
    fs::rename(unfinished.path(), &dir).map_err(CloudError::file(&dir, "create"))?;
    evict(home)?;
    list(home)?
        .into_iter()
        .find(|record| record.key == key)
        .ok_or_else(|| CloudError::NotWarm(format!("it exceeds the limit of {} MiB ({LIMIT_VARIABLE})", limit() >> 20)))
}

/// Creates a directory for a snapshot, which is removed on drop unless it was moved to its final path.
fn unfinished_directory(home: &Home) -> Result<TempDir, CloudError> {
    let warm = home.warm();
    let private = fs::Permissions::from_mode(0o700);
    let dir = tempfile::Builder::new().prefix(UNFINISHED).permissions(private).tempdir_in(&warm);
    dir.map_err(CloudError::file(&warm, "create a directory in"))
}

/// A file that is removed on drop unless it was moved to its final path.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn save(home: &Home, spec: &RunSpec, dir: &Path, boot_timeout: Duration, began_ns: u64) -> Result<(), CloudError> {
    let mut instance = spec.start(home, None, began_ns)?;
    if !instance.wait_ready(boot_timeout)? {
        return Err(instance.not_ready(boot_timeout).into());
    }
    // The agent answers the ping only after finishing the work that follows its ready message. The sync then writes
    // dirty pages.
    let guest = instance.dir().guest_error();
    let facts = instance.dir().agent(AGENT_TIMEOUT)?.ping(AGENT_TIMEOUT).map_err(&guest)?;
    if !facts.agent_version.contains(FEATURE) {
        return Err(CloudError::NotWarm("the image's agent is too old to support templates".into()));
    }
    if let Err(error) = preload_shell(instance.dir().agent(AGENT_TIMEOUT)?) {
        log::info!("cannot preload a shell for the template: {error}");
    }
    instance.dir().agent(AGENT_TIMEOUT)?.sync(AGENT_TIMEOUT).map_err(&guest)?;
    drop(guest);
    Ok(instance.save(dir, SAVE_TIMEOUT)?)
}

/// Loads a shell into the guest's page cache, so that the first command after a restore need not read it from the disk.
/// Runs it twice: its pages are then on the kernel's active list, and no later command moves them there.
fn preload_shell(agent: Agent) -> Result<(), guest::Error> {
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|source| guest::Error::Local { action: "open /dev/null", source })?;
    let streams = Streams { input: null.as_fd(), output: null.as_fd(), error: null.as_fd() };
    let request = ExecRequest { argv: ["sh", "-c", "exec sh -c :"].map(Into::into).into(), ..ExecRequest::default() };
    agent.with_silence_limit(AGENT_TIMEOUT).exec(request, streams).map(drop)
}
