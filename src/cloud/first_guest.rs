//! The first guest of an image and a size, as an ephemeral instance: it becomes the template, then gets its identity.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::CloudError;
use super::template::{IDENTITY_TIMEOUT, Task, TemplateRecord};
use disk::disk_image;
use machine::config::{BackingFile, DiskAccess, DiskFormat};
use machine::control::NewOverlay;
use node::image::Image;
use node::instance::EphemeralInstance;
use node::machine_config::{ROOT, layer_disk};

/// Names of the root disk's overlays in the instance's directory: until the snapshot, and after it.
pub(super) const LAYER: &str = "root.qcow2";
const NEXT_LAYER: &str = "root-2.qcow2";

#[derive(Debug)]
pub struct FirstGuest {
    pub(super) instance: EphemeralInstance,
    pub(super) image: Image,
    /// The root disk's overlay (qcow2).
    pub(super) layer: PathBuf,
}

impl FirstGuest {
    /// Waits until the agent is ready, makes the template, and gives the guest its identity. Returns a warning if the
    /// template could not be made.
    pub fn complete(
        mut self,
        task: Task,
        boot_timeout: Duration,
    ) -> Result<(EphemeralInstance, Option<String>), CloudError> {
        self.prepare(&task, boot_timeout)?;
        let warning = self.save(&task).err().map(|error| error.to_string());
        // Commands that wait for the template continue from here.
        drop(task);
        if !self.instance.personalize(IDENTITY_TIMEOUT)? {
            return Err(self.instance.not_ready(IDENTITY_TIMEOUT).into());
        }
        Ok((self.instance, warning))
    }

    /// Waits until the agent is ready, and prepares the guest for the snapshot.
    pub(super) fn prepare(&mut self, task: &Task, boot_timeout: Duration) -> Result<(), CloudError> {
        let ready = match self.instance.wait_ready(boot_timeout) {
            Ok(true) => self.instance.dir().prepare_template(),
            Ok(false) => Err(self.instance.not_ready(boot_timeout)),
            Err(error) => Err(error),
        };
        ready.map_err(CloudError::from).inspect_err(|error| task.boot_failed(error))
    }

    /// Saves the prepared guest as the template.
    pub(super) fn save(&mut self, task: &Task) -> Result<TemplateRecord, CloudError> {
        let saved = self.fork().and_then(|saved| task.install(saved.path(), ROOT, &self.layer));
        saved.inspect_err(|_| task.save_failed())
    }

    /// Takes a snapshot. The guest continues in a new overlay over the previous one.
    fn fork(&mut self) -> Result<tempfile::TempDir, CloudError> {
        let path = self.instance.dir().path().join(NEXT_LAYER);
        disk_image::create_layer(&path, &self.layer, DiskFormat::Qcow2, None)?;
        let before = layer_disk(&self.image, &self.layer, DiskAccess::ReadWrite);
        let backing = [vec![BackingFile { path: before.path, format: before.format }], before.backing].concat();
        Ok(self.instance.fork(NewOverlay { disk: ROOT.into(), path, backing })?)
    }
}

/// Creates an empty overlay over the image's root file system.
pub(super) fn create_root_layer(image: &Image, path: &Path) -> Result<(), CloudError> {
    let Some(root) = &image.manifest.root else {
        return Err(CloudError::NotWarm("the image has no root file system".into()));
    };
    Ok(disk_image::create_layer(path, &image.dir.join(&root.file), root.format, None)?)
}
