//! `CreateImage`: images of instances.

use super::error::CloudError;
use super::fork::Frozen;
use super::layers::{self, volume_files};
use super::registry::{Images, check_name, new_record};
use ec2::state::{Action, InstanceState};
use ec2::{ErrorCode, InstanceId};
use machine::config::CpuConfig;
use node::host::{Guard, ImageBuild, SavedMachine, VolumeFiles};
use node::image::Image;
use node::image_memory::ImageMemory;
use node::machine_config::disk_id;
use store::{ImageRecord, InstanceRecord};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageConsistency {
    /// A running guest first writes its dirty pages to its disk.
    Written,
    /// Crash-consistent, as after a power failure.
    Now,
    /// Like `Written`, including the guest's memory.
    WithMemory,
}

impl Images<'_> {
    /// Creates an image of an instance's root volume, with the kernel that the instance boots. Except with
    /// [`ImageConsistency::Now`], a running guest first writes its dirty pages to its disks. The data of a running
    /// instance is copied from a snapshot, so its guest can continue to write.
    pub fn create(
        &self,
        instance: InstanceId,
        name: &str,
        description: &str,
        moment: ImageConsistency,
    ) -> Result<ImageRecord, CloudError> {
        check_name(name)?;
        self.check_name_is_free(name)?;
        let record = self.cloud.instances().find(&instance.to_string())?;
        Action::ChangeVolumes.allowed(instance, record.status.state)?;
        let source = self.open_by_id(record.spec.image_id)?;
        let (Some(root), Some(_)) = (self.cloud.volumes().of(&record)?.into_iter().next(), &source.manifest.root)
        else {
            return Err(CloudError::refused(
                ErrorCode::Unsupported,
                format!("Cannot create an image of the instance '{instance}': it has no root volume."),
                None,
            ));
        };
        let of_source = self
            .cloud
            .store
            .read::<_, CloudError>(|tx| Ok(tx.get::<ImageRecord>(&record.spec.image_id.to_string())?))?;
        let imds_support = of_source.and_then(|image| image.spec.imds_support);
        let mut new = new_record(name, description);
        new.spec.source_instance = Some(instance);
        new.spec.imds_support = imds_support;
        if moment == ImageConsistency::WithMemory {
            return self.create_with_memory(new, &record, &source);
        }
        let running = record.status.state == InstanceState::Running;
        if running && moment == ImageConsistency::Written {
            self.cloud.node.instances().sync(instance)?;
        }
        let lock = self.cloud.node.images().lock()?;
        let snapshot = if running { Some(self.cloud.snapshots().create_for_image(root.meta.id)?) } else { None };
        let (file, backing) = match &snapshot {
            Some(snapshot) => (&snapshot.status.file, &snapshot.status.backing),
            None => (&root.status.file, &root.status.backing),
        };
        let made = layers::files(&root.meta.id, file, backing.as_deref())
            .and_then(|root| self.build(new, &source, &root, None, lock));
        if let Some(snapshot) = snapshot {
            self.cloud.snapshots().delete(snapshot.meta.id)?;
        }
        made
    }

    /// Creates an image of a running instance's root volume and memory, both captured at the same time.
    fn create_with_memory(
        &self,
        new: ImageRecord,
        record: &InstanceRecord,
        source: &Image,
    ) -> Result<ImageRecord, CloudError> {
        self.cloud.instances().check_freezable(record)?;
        if self.cloud.volumes().of(record)?.len() > 1 {
            return Err(CloudError::refused(
                ErrorCode::UnsupportedOperation,
                format!(
                    "The instance '{}' has volumes other than its root volume. An image with memory can contain only \
                     the root volume.",
                    record.meta.id
                ),
                Some("Detach the other volumes first: `wisp volume detach`.".into()),
            ));
        }
        // The image can also be cold-booted, so the disk must be consistent.
        self.cloud.node.instances().sync(record.meta.id)?;
        let Frozen { saved, volumes, sweeping, _changing, .. } = self.cloud.instances().freeze(record)?;
        drop(sweeping);
        let memory = ImageMemory {
            cpus: CpuConfig { count: record.spec.size.vcpus, threads_per_core: record.spec.size.threads_per_core },
            memory_mib: record.spec.size.memory_mib,
            instance_type: record.spec.size.instance_type.clone(),
            overridden: record.spec.size.overridden,
            root: disk_id(volumes[0].meta.id),
        };
        let lock = self.cloud.node.images().lock()?;
        self.build(new, source, &volume_files(&volumes[0])?, Some((&saved, &memory)), lock)
    }

    /// Builds and registers an image from a root volume, and from the other files of `source`. Holds `lock`, the lock of
    /// images, meanwhile.
    fn build(
        &self,
        record: ImageRecord,
        source: &Image,
        root: &VolumeFiles,
        memory: Option<(&SavedMachine, &ImageMemory)>,
        lock: Guard,
    ) -> Result<ImageRecord, CloudError> {
        let (name, description) = (&record.spec.name, &record.spec.description);
        let build = ImageBuild { name, description, source, root, memory };
        let image = self.cloud.node.images().build(&build, lock)?;
        self.register(record, image)
    }
}
