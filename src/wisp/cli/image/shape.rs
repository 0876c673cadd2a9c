//! The JSON output of `wisp image`, apart from EC2's shapes.

use std::path::PathBuf;

use serde::Serialize;

use cloud::template::TemplateRecord;
use ec2::ImageId;
use ec2::api::{self, Timestamp};
use machine::config::CpuConfig;
use node::bundle::Verified;
use node::image::Image;
use node::image_memory::{self, ImageMemory};

/// The output of `image export`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Exported {
    pub image_id: ImageId,
    pub file: PathBuf,
}

/// The output of `image show`: EC2's shape, and the snapshots from which launches are restored.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ShownImage {
    #[serde(flatten)]
    pub image: api::image::Image,
    pub warm_snapshots: Vec<TemplateShape>,
    pub memory: Option<MemoryShape>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TemplateShape {
    name: String,
    #[serde(flatten)]
    size: SnapshotSize,
    made: Timestamp,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct MemoryShape {
    instance_type: String,
    #[serde(flatten)]
    size: SnapshotSize,
}

/// The size of the guest in a snapshot, and the disk space that the snapshot uses.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SnapshotSize {
    vcpus: u32,
    threads_per_core: u32,
    #[serde(rename = "MemoryMiB")]
    memory_mib: u64,
    bytes: u64,
}

impl SnapshotSize {
    fn new(cpus: CpuConfig, memory_mib: u64, bytes: u64) -> Self {
        SnapshotSize { vcpus: cpus.count, threads_per_core: cpus.threads_per_core, memory_mib, bytes }
    }
}

impl From<&TemplateRecord> for TemplateShape {
    fn from(record: &TemplateRecord) -> Self {
        let facts = &record.facts;
        TemplateShape {
            name: record.name().to_owned(),
            size: SnapshotSize::new(facts.cpus, facts.memory_mib, record.bytes),
            made: Timestamp::from_seconds(facts.made),
        }
    }
}

impl MemoryShape {
    pub fn new(memory: ImageMemory, image: &Image) -> Self {
        let size = SnapshotSize::new(memory.cpus, memory.memory_mib, image_memory::bytes(image));
        MemoryShape { instance_type: memory.instance_type, size }
    }
}

/// A file in the output of `image verify`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VerifiedFile<'a> {
    pub file: &'a str,
    error: Option<String>,
}

impl<'a> From<&'a Verified> for VerifiedFile<'a> {
    fn from(file: &'a Verified) -> Self {
        VerifiedFile { file: &file.file, error: file.result.as_ref().err().map(ToString::to_string) }
    }
}
