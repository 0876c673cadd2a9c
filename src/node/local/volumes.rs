//! The volumes directory: qcow2 files of volumes and snapshots.
//!
//! Overlay headers are not trusted: a compromised VMM could name any file of the user there. Only the control plane's
//! records decide which files are opened for a disk, passed to a VMM, copied into an image, or kept.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::LocalNode;
use crate::error::NodeError;
use crate::home::{Home, SNAPSHOTS_LOCK, is_lock, lock_file, try_lock_file};
use crate::host::{Guard, Layer, NewFile, VolumeFiles, VolumeHost};
use crate::machine_config::{backing_files, resolved};
use disk::MAX_LAYERS;
use disk::disk_image;
use machine::config::DiskFormat;

/// Directories in the data directory that contain disk images.
pub const VOLUMES: &str = "volumes/";
pub const IMAGES: &str = "images/";

impl VolumeHost for LocalNode {
    fn lock(&self) -> Result<Guard, NodeError> {
        Ok(Guard::new(self.home.lock(&self.home.volumes())?))
    }

    fn lock_snapshots(&self) -> Result<Guard, NodeError> {
        let path = self.home.volumes().join(SNAPSHOTS_LOCK);
        lock_file(&path).map(Guard::new).map_err(NodeError::file(path, "lock"))
    }

    fn try_lock_snapshots(&self) -> Result<Option<Guard>, NodeError> {
        let path = self.home.volumes().join(SNAPSHOTS_LOCK);
        Ok(try_lock_file(&path).map_err(NodeError::file(path, "lock"))?.map(Guard::new))
    }

    fn create(&self, file: &str, content: &NewFile) -> Result<u64, NodeError> {
        let path = self.home.volumes().join(file);
        match *content {
            NewFile::Empty { size } => {
                disk_image::create(&path, DiskFormat::Qcow2, size)?;
                Ok(size)
            }
            NewFile::Overlay { base, size } => {
                let below = self.home.root().join(&base.file);
                let least = disk::virtual_size(&below, base.format).map_err(disk_image::ImageError::from)?;
                let size = size.filter(|size| *size >= least);
                disk_image::create_layer(&path, &below, base.format, size)?;
                match size {
                    Some(size) => Ok(size),
                    None => Ok(disk_image::information(&path, DiskFormat::Qcow2)?.virtual_size),
                }
            }
        }
    }

    fn grow(&self, files: &VolumeFiles, size: u64) -> Result<(), NodeError> {
        let path = resolved(self.home.volumes().join(&files.file));
        Ok(disk_image::grow(&path, DiskFormat::Qcow2, &backing_files(&self.home, files), size)?)
    }

    fn remove(&self, file: &str) -> Result<(), NodeError> {
        let path = self.home.volumes().join(file);
        fs::remove_file(&path).map_err(NodeError::file(path, "remove"))
    }

    fn list(&self) -> Result<Vec<String>, NodeError> {
        let dir = self.home.volumes();
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(NodeError::file(&dir, "read"))? {
            let name = entry.map_err(NodeError::file(&dir, "read"))?.file_name();
            names.extend(name.into_string().ok().filter(|name| !is_lock(name)));
        }
        Ok(names)
    }

    fn sweep(&self, kept: &BTreeSet<String>) -> Result<(), NodeError> {
        let swept = VolumeHost::list(self)?.into_iter().filter(|name| !kept.contains(name));
        swept.into_iter().try_for_each(|name| VolumeHost::remove(self, &name))
    }

    fn read_backing(&self, file: &str) -> Result<Vec<Layer>, String> {
        let mut layers = Vec::new();
        let mut path = self.home.volumes().join(file);
        loop {
            let information = disk_image::information(&path, DiskFormat::Qcow2).map_err(|error| error.to_string())?;
            let Some(backing) = information.backing else { return Ok(layers) };
            let file = name_in(&self.home, &backing.path).ok_or_else(|| {
                format!("{} refers to {:?}, which is not an image or a volume", path.display(), backing.name)
            })?;
            layers.push(Layer { file, format: backing.format });
            if layers.len() > MAX_LAYERS {
                return Err(format!("{} has more than {MAX_LAYERS} backing files", path.display()));
            }
            if backing.format == DiskFormat::Raw {
                return Ok(layers);
            }
            path = backing.path;
        }
    }
}

/// Returns the path relative to the data directory if the file is a volume or belongs to an image.
fn name_in(home: &Home, path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let inside = |dir: PathBuf, name: &str| {
        let rest = path.strip_prefix(dir.canonicalize().ok()?).ok()?.to_str()?.to_string();
        Some(format!("{name}{rest}"))
    };
    inside(home.volumes(), VOLUMES).or_else(|| inside(home.images(), IMAGES))
}
