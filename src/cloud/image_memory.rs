//! An image's memory: the machine of the instance that it was made of, as it was at the moment of its root file system.
//! Launches of the image in that size go on from there.
//!
//! It is in a folder of its own in the image's, and is not part of the bundle: another host could not go on from it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::CloudError;
use super::image::Image;
use crate::host::home::write_private;
use crate::store::InstanceRecord;
use crate::vmm::config::CpuConfig;
use crate::vmm::snapshot::{self, BASE, MEMORY, STATE};

/// Its folder.
const FOLDER: &str = "memory";
/// What there is to know about it.
const FACTS: &str = "memory.json";

/// What an image's memory is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMemory {
    /// vCPUs and their topology.
    pub cpus: CpuConfig,
    /// Memory, in MiB, without the kernel's share.
    pub memory_mib: u64,
    /// The instance's type.
    pub instance_type: String,
    /// Whether vCPUs or memory are not the type's.
    pub overridden: bool,
    /// What the machine called its root disk.
    pub root: String,
}

impl ImageMemory {
    /// An image's, if it has one.
    pub fn of(image: &Image) -> Option<ImageMemory> {
        serde_json::from_slice(&fs::read(folder(image).join(FACTS)).ok()?).ok()
    }

    /// Whether it is of a machine of this size.
    pub fn is_of(&self, cpus: CpuConfig, memory_mib: u64) -> bool {
        (self.cpus, self.memory_mib) == (cpus, memory_mib)
    }

    /// That of an instance.
    pub(super) fn of_instance(record: &InstanceRecord, root: String) -> ImageMemory {
        ImageMemory {
            cpus: CpuConfig { count: record.vcpus, threads_per_core: record.threads_per_core },
            memory_mib: record.memory_mib,
            instance_type: record.instance_type.clone(),
            overridden: record.overridden,
            root,
        }
    }

    /// Moves the machine that was saved in `saved` into the bundle of an image that is being made.
    pub(super) fn put(&self, saved: &Path, bundle: &Path) -> Result<(), CloudError> {
        let folder = bundle.join(FOLDER);
        let failed = || CloudError::file(&folder, "made");
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed())?;
        for name in [MEMORY, BASE, STATE] {
            if saved.join(name).exists() {
                fs::rename(saved.join(name), folder.join(name)).map_err(failed())?;
            }
        }
        let text = serde_json::to_vec_pretty(self).expect("facts are plain data");
        write_private(&folder.join(FACTS), &text).map_err(failed())
    }
}

/// Where an image's memory is, if it has any.
pub fn folder(image: &Image) -> PathBuf {
    image.folder.join(FOLDER)
}

/// What an image's memory takes on disk, in bytes.
pub fn bytes(image: &Image) -> u64 {
    snapshot::bytes(&folder(image))
}
