//! Invariants between commands: the records and the host agree, and nothing is used twice.

use std::collections::BTreeSet;

use super::host::Host;
use crate::error::CloudError;
use crate::layers::volume_files;
use crate::{Cloud, layers};
use ec2::state::InstanceState;
use ec2::volume::{AttachmentState, VolumeState};
use node::embedded;
use store::{AddressRecord, ImageRecord, InstanceRecord, SnapshotRecord, SnapshotState, VolumeRecord};

/// All records that the invariants are about.
struct Records {
    instances: Vec<InstanceRecord>,
    volumes: Vec<VolumeRecord>,
    snapshots: Vec<SnapshotRecord>,
    images: Vec<ImageRecord>,
    addresses: Vec<AddressRecord>,
}

pub(super) fn check(cloud: &Cloud, host: &Host) {
    let records = cloud
        .store
        .read::<_, CloudError>(|tx| {
            Ok(Records {
                instances: tx.list()?,
                volumes: tx.list()?,
                snapshots: tx.list()?,
                images: tx.list()?,
                addresses: tx.list()?,
            })
        })
        .expect("the store can be read");
    assert_eq!(host.locks, BTreeSet::new(), "a command released its locks");
    check_instances(&records, host);
    check_attachments(&records);
    check_files(&records, host);
    check_images(&records, host);
    check_addresses(&records, host);
}

fn check_instances(records: &Records, host: &Host) {
    for record in &records.instances {
        let id = record.meta.id;
        let hosted = host.instances.get(&id);
        let machine = hosted.and_then(|hosted| hosted.machine.as_ref());
        match record.status.state {
            InstanceState::Running => {
                let machine = machine.unwrap_or_else(|| panic!("{id} is running without a machine"));
                for volume in records.volumes.iter().filter(|volume| is_attached_to(volume, record)) {
                    assert!(machine.disks.contains_key(&volume.meta.id), "{id} lacks {}", volume.meta.id);
                }
                for (volume, file) in &machine.disks {
                    let known =
                        records.volumes.iter().find(|known| known.meta.id == *volume && is_attached_to(known, record));
                    let known = known.unwrap_or_else(|| panic!("{id} has the disk {volume}"));
                    check_written_file(known, file, host);
                }
            }
            InstanceState::Stopped => {
                assert!(hosted.is_some() && machine.is_none(), "{id} is stopped, but its host has {hosted:?}");
            }
            InstanceState::Terminated => assert!(hosted.is_none(), "{id} is terminated, but its host has {hosted:?}"),
            state => panic!("{id} is {state} between commands"),
        }
    }
    for id in host.instances.keys() {
        assert!(records.instances.iter().any(|record| record.meta.id == *id), "{id} has no record");
    }
}

fn is_attached_to(volume: &VolumeRecord, instance: &InstanceRecord) -> bool {
    volume.status.attachment.as_ref().is_some_and(|attachment| attachment.instance_id == instance.meta.id)
}

/// Checks that what a machine writes reaches the volume. The files above the written one, which an interrupted command
/// created, must be empty.
fn check_written_file(volume: &VolumeRecord, file: &str, host: &Host) {
    let mut name = volume.status.file.clone();
    while name != file {
        let known = host.files.get(&name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(known.content, None, "{} is written below {name}", volume.meta.id);
        let base = known.base.as_ref().and_then(|base| base.file.strip_prefix(layers::VOLUMES));
        name = base.unwrap_or_else(|| panic!("{} is not written: {file}", volume.meta.id)).into();
    }
}

fn check_attachments(records: &Records) {
    for volume in &records.volumes {
        let holders = records
            .instances
            .iter()
            .filter(|record| record.status.block_devices.iter().any(|device| device.volume_id == volume.meta.id));
        let holders: Vec<_> = holders.map(|record| record.meta.id).collect();
        let attached: Vec<_> = volume.status.attachment.iter().map(|attachment| attachment.instance_id).collect();
        assert_eq!(holders, attached, "{} is attached where its record says", volume.meta.id);
        let state = if attached.is_empty() { VolumeState::Available } else { VolumeState::InUse };
        assert!(volume.status.attachment.iter().all(|attachment| attachment.state == AttachmentState::Attached));
        assert_eq!(volume.status.state, state, "{}", volume.meta.id);
    }
    for record in &records.instances {
        let names: BTreeSet<_> = record.status.block_devices.iter().map(|device| &device.device_name).collect();
        assert_eq!(names.len(), record.status.block_devices.len(), "{} uses each device name once", record.meta.id);
    }
}

fn check_files(records: &Records, host: &Host) {
    let mut kept = BTreeSet::new();
    for volume in &records.volumes {
        let files = volume_files(volume).expect("the backing files are recorded");
        host.content(&files).unwrap_or_else(|why| panic!("{}: {why}", volume.meta.id));
        assert!(
            host.files[&volume.status.file].size >= volume.spec.size,
            "{} is smaller than recorded",
            volume.meta.id
        );
        kept.extend(names(&files));
    }
    for snapshot in &records.snapshots {
        assert_eq!(snapshot.status.state, SnapshotState::Completed, "{}", snapshot.meta.id);
        let files = layers::files(&snapshot.meta.id, &snapshot.status.file, snapshot.status.backing.as_deref());
        let files = files.expect("the backing files are recorded");
        host.content(&files).unwrap_or_else(|why| panic!("{}: {why}", snapshot.meta.id));
        kept.extend(names(&files));
    }
    let found: BTreeSet<String> = host.files.keys().cloned().collect();
    assert_eq!(found, kept, "the host has the files of all volumes and snapshots, and no others");
}

fn names(files: &node::host::VolumeFiles) -> Vec<String> {
    let backing = files.backing.iter().filter_map(|layer| layer.file.strip_prefix(layers::VOLUMES));
    backing.map(String::from).chain([files.file.clone()]).collect()
}

fn check_images(records: &Records, host: &Host) {
    for record in records.images.iter().filter(|record| record.meta.id != embedded::id()) {
        assert!(host.images.contains_key(&record.meta.id), "{} has no files", record.meta.id);
    }
    for id in host.images.keys() {
        assert!(records.images.iter().any(|record| record.meta.id == *id), "{id} has no record");
    }
    for record in &records.instances {
        let id = record.spec.image_id;
        assert!(id == embedded::id() || host.images.contains_key(&id), "the image of {} has no files", record.meta.id);
    }
    assert_eq!(host.unfinished_images, 0, "no unfinished image is left");
}

fn check_addresses(records: &Records, host: &Host) {
    let mut public = BTreeSet::new();
    for address in &records.addresses {
        assert!(public.insert(address.status.public_ip), "{} is allocated twice", address.status.public_ip);
    }
    let mut private = BTreeSet::new();
    for record in &records.instances {
        let Some(network) = &record.status.network else { continue };
        assert!(private.insert(network.private_ip), "{} is used twice", network.private_ip);
        let elastic = records.addresses.iter().find(|address| address.instance() == Some(record.meta.id));
        assert_eq!(network.elastic_address, elastic.map(|address| address.meta.id), "{}", record.meta.id);
        match elastic {
            Some(address) => assert_eq!(network.public_ip, Some(address.status.public_ip), "{}", record.meta.id),
            None => {
                let fresh = network.public_ip.is_none_or(|address| public.insert(address));
                assert!(fresh, "{:?} is used twice", network.public_ip);
            }
        }
        if let Some(machine) = host.instances.get(&record.meta.id).and_then(|hosted| hosted.machine.as_ref()) {
            let address = network.public_ip.map(|address| address.to_string());
            assert_eq!(machine.public_address, address, "{} has its public address", record.meta.id);
        }
    }
}
