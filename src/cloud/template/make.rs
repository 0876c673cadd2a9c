//! Makes templates from first guests: guests that booted without an identity, and whose agents are ready.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::task::Task;
use super::{
    FACTS, LIMIT_VARIABLE, TemplateKey, TemplateRecord, UNFINISHED, copy_layer, evict, limit, list, paths, remove,
};
use crate::error::CloudError;
use crate::now;
use crate::run::{Boot, RunSpec};
use disk::disk_image;
use machine::snapshot_files;
use node::home::{Home, write_private};
use node::image::Image;

/// Boots a guest of the task's image and size, and saves it as a template when its agent is ready. Replaces an existing
/// template, and fails if that one is in use.
pub fn make(task: &Task, image: &Image, boot_timeout: Duration, began_ns: u64) -> Result<TemplateRecord, CloudError> {
    if image.manifest.root.is_none() {
        return Err(CloudError::NotWarm("the image has no root file system".into()));
    }
    if image.manifest.cloud_init {
        return Err(CloudError::NotWarm(
            "the image has cloud-init, which reads the instance's identity at boot".into(),
        ));
    }
    let spec = RunSpec {
        cpus: task.cpus,
        memory_mib: task.memory_mib,
        boot: Boot::Image(Box::new(image.clone())),
        disks: Vec::new(),
        cmdline: None,
        console: false,
        network: None,
        limits: None,
    };
    let mut guest = spec.start_first(&task.home, began_ns)?;
    guest.prepare(task, boot_timeout)?;
    guest.save(task)
}

impl Task {
    /// Makes the template of a snapshot in the directory `saved`, in which `root` is the ID of the root disk. `layer` is
    /// the disk's overlay over the image, which must not change any more.
    pub(crate) fn install(&self, saved: &Path, root: &str, layer: &Path) -> Result<TemplateRecord, CloudError> {
        let home = &self.home;
        let warm = home.warm();
        let [dir, final_layer, _] = paths(home, &self.key);
        let unfinished = unfinished_directory(home)?;
        let name = unfinished.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let new_layer = Unfinished(warm.join(format!("{name}.qcow2")));
        copy_layer(layer, &new_layer.0)?;
        disk_image::rename_backing(&new_layer.0, layer)?;
        snapshot_files::take(saved, unfinished.path()).map_err(CloudError::file(unfinished.path(), "create"))?;
        let (image, made) = (self.image.clone(), now());
        let facts = TemplateKey { image, cpus: self.cpus, memory_mib: self.memory_mib, made, root: root.into() };
        let path = unfinished.path().join(FACTS);
        let text = serde_json::to_vec_pretty(&facts).expect("facts are plain data");
        write_private(&path, &text).map_err(CloudError::file(&path, "write"))?;

        let _lock = home.lock(&warm)?;
        remove(home, &self.key)?;
        if dir.exists() {
            return Err(CloudError::NotWarm("the existing template is in use".into()));
        }
        fs::rename(&new_layer.0, &final_layer).map_err(CloudError::file(&final_layer, "create"))?;
        fs::rename(unfinished.path(), &dir).map_err(CloudError::file(&dir, "create"))?;
        evict(home)?;
        let exceeds =
            || CloudError::NotWarm(format!("it exceeds the limit of {} MiB ({LIMIT_VARIABLE})", limit() >> 20));
        list(home)?.into_iter().find(|record| record.key == self.key).ok_or_else(exceeds)
    }
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
