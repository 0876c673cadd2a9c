//! An image's memory: a snapshot of the instance that the image was created from, taken at the same moment as its root
//! file system. A launch with the same vCPUs and memory is restored from it if this version and host support that. The
//! snapshot is in the bundle's directory, but it is not exported, because other hosts could not restore it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::NodeError;
use crate::home::write_private;
use crate::image::Image;
use machine::config::CpuConfig;
use machine::snapshot_files::{self, BASE, MEMORY, STATE};

const DIRECTORY: &str = "memory";
const FACTS: &str = "memory.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMemory {
    pub cpus: CpuConfig,
    /// In MiB, excluding the kernel's share that `machine_config` adds.
    pub memory_mib: u64,
    pub instance_type: String,
    /// The vCPUs or the memory differ from the instance type's.
    pub overridden: bool,
    /// ID of the root disk in the VM.
    pub root: String,
}

impl ImageMemory {
    /// Reads the metadata of an image's snapshot, if the image has one.
    pub fn of(image: &Image) -> Option<ImageMemory> {
        serde_json::from_slice(&fs::read(dir(image).join(FACTS)).ok()?).ok()
    }

    pub fn is_of(&self, cpus: CpuConfig, memory_mib: u64) -> bool {
        (self.cpus, self.memory_mib) == (cpus, memory_mib)
    }

    /// Moves the snapshot in `saved` into the directory of a new image's bundle.
    pub fn put(&self, saved: &Path, bundle: &Path) -> Result<(), NodeError> {
        let dir = bundle.join(DIRECTORY);
        let failed = || NodeError::file(&dir, "create");
        DirBuilder::new().mode(0o700).create(&dir).map_err(failed())?;
        for name in [MEMORY, BASE, STATE] {
            if saved.join(name).exists() {
                fs::rename(saved.join(name), dir.join(name)).map_err(failed())?;
            }
        }
        let text = serde_json::to_vec_pretty(self).expect("facts are plain data");
        write_private(&dir.join(FACTS), &text).map_err(failed())
    }
}

/// Returns the directory of an image's snapshot. It exists only if the image has one.
pub fn dir(image: &Image) -> PathBuf {
    image.dir.join(DIRECTORY)
}

pub fn bytes(image: &Image) -> u64 {
    snapshot_files::bytes(&dir(image))
}
