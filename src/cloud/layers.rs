//! Backing files of volumes and snapshots, as recorded in the store.
//!
//! A command that creates an overlay records its backing files. Only these records decide which files are opened for a
//! disk, passed to a VMM, copied into an image, or kept. Overlay headers are not trusted: a compromised VMM could name
//! any file of the user there.

use std::fmt::Display;

use super::error::CloudError;
use super::{Cloud, Warnings};
use ec2::{ErrorCode, ImageId};
use machine::config::DiskFormat;
use node::host::{Layer, VolumeDisk, VolumeFiles};
use node::image::RootEntry;
use node::local::IMAGES;
pub(super) use node::local::VOLUMES;
use store::{LayerFormat, LayerRecord, Resource, SnapshotRecord, VolumeRecord};

/// Returns a file in the volumes directory as the backing file of an overlay.
pub(super) fn below(file: &str) -> Layer {
    Layer { file: format!("{VOLUMES}{file}"), format: DiskFormat::Qcow2 }
}

/// Returns the backing files of an overlay over `file` in the volumes directory, if those of `file` are known.
pub(super) fn over(file: &str, backing: Option<&[LayerRecord]>) -> Option<Vec<LayerRecord>> {
    Some(std::iter::once(recorded(below(file))).chain(backing?.iter().cloned()).collect())
}

/// Returns an image's root file system as the backing file of an overlay.
pub(super) fn of_image(id: ImageId, root: &RootEntry) -> Layer {
    Layer { file: format!("{IMAGES}{id}/{}", root.file), format: root.format }
}

pub(super) fn recorded(Layer { file, format }: Layer) -> LayerRecord {
    let format = match format {
        DiskFormat::Raw => LayerFormat::Raw,
        DiskFormat::Qcow2 => LayerFormat::Qcow2,
    };
    LayerRecord { file, format }
}

/// Returns the files of the volume or snapshot `id` for a machine. Fails if its backing files are not recorded.
pub(super) fn files(id: &dyn Display, file: &str, backing: Option<&[LayerRecord]>) -> Result<VolumeFiles, CloudError> {
    let Some(backing) = backing else {
        let what = format!("The backing files of '{id}' are unknown: they could not be read from its file's header.");
        let hint = "Run `qemu-img check` on its file in the volumes directory to find out why.";
        return Err(CloudError::refused(ErrorCode::IncorrectState, what, Some(hint.into())));
    };
    let layer = |layer: &LayerRecord| {
        let format = match layer.format {
            LayerFormat::Raw => DiskFormat::Raw,
            LayerFormat::Qcow2 => DiskFormat::Qcow2,
        };
        Layer { file: layer.file.clone(), format }
    };
    Ok(VolumeFiles { file: file.into(), backing: backing.iter().map(layer).collect() })
}

pub(super) fn volume_files(volume: &VolumeRecord) -> Result<VolumeFiles, CloudError> {
    files(&volume.meta.id, &volume.status.file, volume.status.backing.as_deref())
}

/// Returns a volume as a disk without limits.
pub(super) fn volume_disk(volume: &VolumeRecord) -> Result<VolumeDisk, CloudError> {
    Ok(VolumeDisk { volume: volume.meta.id, files: volume_files(volume)?, limits: None })
}

/// Records the backing files of volumes and snapshots from an older store. Headers are trusted only here, and only if
/// they name files in the data directory's image and volume directories.
pub(super) fn record_missing(
    cloud: &Cloud,
    volumes: &[VolumeRecord],
    snapshots: &[SnapshotRecord],
    warnings: &mut Warnings,
) -> Result<(), CloudError> {
    let volumes = volumes.iter().filter(|volume| volume.status.backing.is_none());
    record_missing_of(cloud, volumes, warnings, |volume| (&volume.status.file, &mut volume.status.backing))?;
    let snapshots = snapshots.iter().filter(|snapshot| snapshot.status.backing.is_none());
    record_missing_of(cloud, snapshots, warnings, |snapshot| (&snapshot.status.file, &mut snapshot.status.backing))
}

/// Records the missing backing files of records of one kind. `parts` returns a record's file and its backing files.
fn record_missing_of<'a, R: Resource + Clone + 'a>(
    cloud: &Cloud,
    records: impl Iterator<Item = &'a R>,
    warnings: &mut Warnings,
    parts: fn(&mut R) -> (&str, &mut Option<Vec<LayerRecord>>),
) -> Result<(), CloudError> {
    for mut record in records.cloned() {
        let key = record.key();
        let (file, _) = parts(&mut record);
        let found = match read_backing_files(cloud, file) {
            Ok(found) => found,
            Err(why) => {
                warnings.push(format!("{key}: cannot be used because its backing files are unknown: {why}"));
                continue;
            }
        };
        cloud.store.write::<_, CloudError>(|tx| {
            let Some(mut record) = tx.get::<R>(&key)? else { return Ok(()) };
            match parts(&mut record) {
                (known, backing @ None) if known == file => *backing = Some(found),
                _ => return Ok(()),
            }
            Ok(tx.put(&mut record)?)
        })?;
    }
    Ok(())
}

/// Returns the backing files of `file` according to its header.
fn read_backing_files(cloud: &Cloud, file: &str) -> Result<Vec<LayerRecord>, String> {
    Ok(cloud.node.volumes().read_backing(file)?.into_iter().map(recorded).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::NewVolume;
    use disk::disk_image;
    use machine::config::DiskConfig;
    use node::home::Home;
    use node::machine_config;
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    fn cloud(dir: &Path) -> Cloud {
        Cloud::at(Home::at(dir).unwrap()).unwrap()
    }

    fn disk_of(cloud: &Cloud, volume: &VolumeRecord) -> Result<DiskConfig, CloudError> {
        Ok(machine_config::volume_disk(&cloud.home, &volume_disk(volume)?))
    }

    fn from_headers(cloud: &Cloud, file: &str) -> Option<Vec<LayerRecord>> {
        Some(cloud.node.volumes().read_backing(file).ok()?.into_iter().map(recorded).collect())
    }

    fn new_volume(cloud: &Cloud, snapshot: Option<&SnapshotRecord>) -> VolumeRecord {
        let mut new =
            NewVolume { snapshot: snapshot.map(|snapshot| snapshot.meta.id.to_string()), ..NewVolume::default() };
        new.spec.size = Some("1".parse().unwrap());
        cloud.volumes().create(&new).unwrap()
    }

    fn put<R: Resource>(cloud: &Cloud, mut record: R) {
        cloud.store.write::<_, CloudError>(|tx| Ok(tx.put(&mut record)?)).unwrap();
    }

    fn paths(disk: &DiskConfig) -> Vec<String> {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
        disk.files().map(|(path, _)| name(path)).collect()
    }

    #[test]
    fn new_volumes_and_snapshots_record_backing_files() {
        let dir = tempfile::tempdir().unwrap();
        let cloud = cloud(dir.path());
        let first = new_volume(&cloud, None);
        let snapshot = cloud.snapshots().create(first.meta.id, "", Default::default()).unwrap();
        let second = new_volume(&cloud, Some(&snapshot));
        let later = cloud.snapshots().create(second.meta.id, "", Default::default()).unwrap();
        let [first, second] = [first, second].map(|volume| cloud.volumes().find(&volume.meta.id.to_string()).unwrap());
        let base = format!("{}.1.qcow2", first.meta.id);
        let disk = |volume: &VolumeRecord| paths(&disk_of(&cloud, volume).unwrap());
        assert_eq!(disk(&first), [format!("{}.2.qcow2", first.meta.id), base.clone()]);
        let [lower, upper] = [1, 2].map(|generation| format!("{}.{generation}.qcow2", second.meta.id));
        assert_eq!(disk(&second), [upper, lower, base.clone()]);
        assert_eq!(later.status.backing.unwrap(), over(&base, Some(&[])).unwrap());
        // A VM can open all of these files, and the headers name the same ones.
        for volume in [&first, &second] {
            let disk = disk_of(&cloud, volume).unwrap();
            disk_image::grow(&disk.path, disk.format, &disk.backing, 2 << 30).unwrap();
            assert_eq!(from_headers(&cloud, &volume.status.file), volume.status.backing);
        }

        // The backing files of a deleted volume stay while another volume needs them.
        cloud.volumes().delete(first.meta.id).unwrap();
        cloud.snapshots().delete(snapshot.meta.id).unwrap();
        let path = |name: &str| cloud.home.volumes().join(name);
        assert!(path(&base).exists() && !path(&first.status.file).exists());
        let disk = disk_of(&cloud, &second).unwrap();
        disk_image::grow(&disk.path, disk.format, &disk.backing, 3 << 30).unwrap();
        assert_eq!(cloud.instances().reconcile(), Warnings::default());
    }

    #[test]
    fn forged_header_does_not_change_opened_or_kept_files() {
        let dir = tempfile::tempdir().unwrap();
        let cloud = cloud(dir.path());
        let volume = new_volume(&cloud, None);
        cloud.snapshots().create(volume.meta.id, "", Default::default()).unwrap();
        let volume = cloud.volumes().find(&volume.meta.id.to_string()).unwrap();
        let disk = disk_of(&cloud, &volume).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, vec![7; 1 << 20]).unwrap();
        let rebased = Command::new("qemu-img")
            .args(["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b"])
            .args([&secret, &disk.path])
            .output()
            .expect("qemu-img (Debian package qemu-utils) can be run");
        assert!(rebased.status.success(), "{}", String::from_utf8_lossy(&rebased.stderr));
        assert_eq!(disk_of(&cloud, &volume).unwrap(), disk);
        let grown = cloud.volumes().modify(
            volume.meta.id,
            &ec2::volume::VolumeChange { size: Some("2".parse().unwrap()), ..Default::default() },
        );
        assert!(grown.unwrap_err().to_string().contains("names"));
        cloud.sweep().volumes();
        assert!(disk.files().all(|(path, _)| path.exists()));
    }

    #[test]
    fn older_records_get_backing_files_from_headers_in_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let cloud = cloud(dir.path());
        let volume = new_volume(&cloud, None);
        let snapshot = cloud.snapshots().create(volume.meta.id, "", Default::default()).unwrap();
        let volume = cloud.volumes().find(&volume.meta.id.to_string()).unwrap();
        let outside = new_volume(&cloud, None);
        let unreadable = new_volume(&cloud, None);
        for volume in [&volume, &outside, &unreadable] {
            let mut older = volume.clone();
            older.status.backing = None;
            put(&cloud, older);
        }
        let mut older = snapshot.clone();
        older.status.backing = None;
        put(&cloud, older);
        let path = |cloud: &Cloud, volume: &VolumeRecord| cloud.home.volumes().join(&volume.status.file);
        fs::write(dir.path().join("secret"), vec![7; 1 << 20]).unwrap();
        fs::remove_file(path(&cloud, &outside)).unwrap();
        let secret = dir.path().join("secret");
        disk_image::create_layer(&path(&cloud, &outside), &secret, DiskFormat::Raw, Some(1 << 30)).unwrap();
        fs::write(path(&cloud, &unreadable), "torn").unwrap();
        fs::write(cloud.home.volumes().join("stray.qcow2"), "").unwrap();

        let warnings: Vec<String> = cloud.instances().reconcile().into_iter().collect();
        assert_eq!(cloud.volumes().find(&volume.meta.id.to_string()).unwrap().status, volume.status);
        assert_eq!(cloud.snapshots().find(&snapshot.meta.id.to_string()).unwrap().status, snapshot.status);
        for unknown in [&outside, &unreadable] {
            assert!(warnings.iter().any(|warning| warning.starts_with(&unknown.meta.id.to_string())), "{warnings:?}");
            let record = cloud.volumes().find(&unknown.meta.id.to_string()).unwrap();
            assert!(disk_of(&cloud, &record).is_err());
        }
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        // Nothing is removed while the backing files of some volumes are unknown.
        assert!(cloud.home.volumes().join("stray.qcow2").exists());
        for unknown in [outside.meta.id, unreadable.meta.id] {
            cloud.volumes().delete(unknown).unwrap();
        }
        assert!(!cloud.home.volumes().join("stray.qcow2").exists());
    }
}
