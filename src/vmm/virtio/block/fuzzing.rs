//! Fuzz targets for the block device: requests and image files.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::{Block, DiskHandle};
use crate::virtio::fuzzing::drive;
use disk::{Disk, SECTOR, backing, fix_refcounts, open_alone, virtual_size};
use machine::config::{DiskAccess, DiskConfig, DiskFormat};
use machine::limits::rate_limiter::SharedDiskLimiter;

const SECTORS: u64 = 64;

pub fn requests(data: &[u8]) {
    let dir = tempfile::tempdir().expect("cannot create a directory");
    let path = dir.path().join("disk");
    fs::write(&path, [7; (SECTORS * SECTOR) as usize]).expect("cannot write the disk");
    let access =
        if data.first().is_some_and(|first| first & 0x80 != 0) { DiskAccess::ReadOnly } else { DiskAccess::ReadWrite };
    let disk = Disk::open(&config(&path, DiskFormat::Raw, access), dir.path()).expect("cannot open the disk");
    drive(&mut Block::new(Arc::new(DiskHandle::new(Some(disk), SharedDiskLimiter::default())), 0), data, &mut |_| {});
    let length = fs::metadata(&path).expect("cannot inspect the disk").len();
    assert_eq!(length, SECTORS * SECTOR, "the guest changed the size of its disk");
}

/// Inspects an untrusted qcow2 file, uses it as the backing file of an overlay, and repairs its refcounts.
pub fn images(data: &[u8]) {
    let dir = tempfile::tempdir().expect("cannot create a directory");
    let path = dir.path().join("disk");
    fs::write(&path, data).expect("cannot write the disk");
    let _ = (backing(&path), virtual_size(&path, DiskFormat::Qcow2));
    if open_alone(&path).is_ok()
        && let Ok(mut disk) = Disk::open(&config(&path, DiskFormat::Qcow2, DiskAccess::Ephemeral), dir.path())
    {
        let size = disk.sectors() * SECTOR;
        let mut bytes = [9; 2 * SECTOR as usize];
        for offset in [0, size / 2 / SECTOR * SECTOR, size.saturating_sub(2 * SECTOR)] {
            let _ = disk.read(&[VolatileSlice::from(bytes.as_mut_slice())], offset);
            let _ = disk.write(&[VolatileSlice::from(&mut bytes[..SECTOR as usize])], offset);
            let _ = disk.discard(offset, SECTOR);
            let _ = disk.write_zeroes(offset, SECTOR, true);
        }
        let _ = disk.flush();
    }
    if let Ok(file) = fs::File::options().read(true).write(true).open(&path) {
        let _ = fix_refcounts(&file);
    }
}

fn config(path: &Path, format: DiskFormat, access: DiskAccess) -> DiskConfig {
    DiskConfig::new("disk", path.to_path_buf(), format, access)
}
