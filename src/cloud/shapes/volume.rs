use super::GIB;
use ec2::api::volume::{Volume, VolumeAttachment, VolumeModification};
use ec2::api::{Tag, Timestamp};
use ec2::volume::{Role, VolumeSize, VolumeSpec};
use store::{AttachmentRecord, FiguresRecord, VolumeRecord};

pub fn volume(record: &VolumeRecord) -> Volume {
    let (iops, throughput) = performance(&FiguresRecord::of(&record.spec));
    Volume {
        attachments: record.status.attachment.iter().map(|attachment| attachment_of(record, attachment)).collect(),
        availability_zone: record.spec.zone,
        create_time: Timestamp::from_seconds(record.meta.created),
        encrypted: false,
        iops,
        multi_attach_enabled: false,
        size: record.spec.size.div_ceil(GIB),
        snapshot_id: record.spec.snapshot_id.map_or_else(String::new, |id| id.to_string()),
        state: record.status.state.as_str(),
        tags: Tag::list(&record.meta.tags),
        throughput,
        volume_id: record.meta.id,
        volume_type: record.spec.volume_type.clone(),
    }
}

fn attachment_of(record: &VolumeRecord, attachment: &AttachmentRecord) -> VolumeAttachment {
    VolumeAttachment {
        attach_time: Timestamp::from_seconds(attachment.attach_time),
        delete_on_termination: attachment.delete_on_termination,
        device: attachment.device_name.clone(),
        instance_id: attachment.instance_id,
        state: attachment.state.as_str(),
        volume_id: record.meta.id,
    }
}

/// Returns a volume's latest modification, if there was one.
pub fn volume_modification(record: &VolumeRecord) -> Option<VolumeModification> {
    let modification = record.status.modification.as_ref()?;
    let (original, target) = (&modification.original, &modification.target);
    let (original_performance, target_performance) = (performance(original), performance(target));
    Some(VolumeModification {
        end_time: Timestamp::from_seconds(modification.end_time),
        modification_state: "completed",
        original_iops: original_performance.0,
        original_multi_attach_enabled: false,
        original_size: original.size.div_ceil(GIB),
        original_throughput: original_performance.1,
        original_volume_type: original.volume_type.clone(),
        progress: 100,
        start_time: Timestamp::from_seconds(modification.start_time),
        target_iops: target_performance.0,
        target_multi_attach_enabled: false,
        target_size: target.size.div_ceil(GIB),
        target_throughput: target_performance.1,
        target_volume_type: target.volume_type.clone(),
        volume_id: record.meta.id,
    })
}

/// Returns a volume's IOPS and throughput. The record of a root volume has none: they are the type's defaults.
fn performance(figures: &FiguresRecord) -> (Option<u32>, Option<u32>) {
    let (iops, throughput) = (figures.iops, figures.throughput);
    let spec = figures.volume_type.parse().ok().map(|volume_type| {
        let size = VolumeSize::that_holds(figures.size);
        VolumeSpec { size, volume_type, iops, throughput }
    });
    let figures = spec.and_then(|spec| spec.figures(None, Role::Data).ok());
    figures.map_or((iops, throughput), |figures| (figures.iops, figures.throughput))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::volume::{AttachmentState, VolumeState};
    use serde_json::json;
    use store::Meta;

    fn record() -> VolumeRecord {
        let tags = [("Name".to_string(), "data".to_string())].into();
        VolumeRecord {
            meta: Meta::new("vol-0123456789abcdef0".parse().unwrap(), 0, tags),
            spec: store::volume::Spec {
                size: 512 << 20,
                volume_type: "gp3".into(),
                iops: None,
                throughput: Some(250),
                snapshot_id: None,
                zone: None,
            },
            status: store::volume::Status {
                state: VolumeState::InUse,
                image_id: None,
                file: "data".into(),
                file_number: 0,
                backing: None,
                attachment: Some(AttachmentRecord {
                    instance_id: "i-0123456789abcdef0".parse().unwrap(),
                    device_name: "/dev/sdf".into(),
                    attach_time: 60,
                    delete_on_termination: false,
                    state: AttachmentState::Attached,
                }),
                modification: None,
            },
        }
    }

    #[test]
    fn volume_has_members_of_ec2() {
        assert_eq!(
            serde_json::to_value(volume(&record())).unwrap(),
            json!({
                "Attachments": [{
                    "AttachTime": "1970-01-01T00:01:00.000Z",
                    "DeleteOnTermination": false,
                    "Device": "/dev/sdf",
                    "InstanceId": "i-0123456789abcdef0",
                    "State": "attached",
                    "VolumeId": "vol-0123456789abcdef0",
                }],
                "CreateTime": "1970-01-01T00:00:00.000Z",
                "Encrypted": false,
                "Iops": 3000,
                "MultiAttachEnabled": false,
                "Size": 1,
                "SnapshotId": "",
                "State": "in-use",
                "Tags": [{"Key": "Name", "Value": "data"}],
                "Throughput": 250,
                "VolumeId": "vol-0123456789abcdef0",
                "VolumeType": "gp3",
            })
        );
    }

    #[test]
    fn modification_has_figures_before_and_after() {
        let mut modified = record();
        assert_eq!(volume_modification(&modified), None);
        let target = FiguresRecord::of(&modified.spec);
        let original = FiguresRecord { size: 1, iops: None, throughput: None, ..target.clone() };
        modified.status.modification =
            Some(store::ModificationRecord { original, target, start_time: 60, end_time: 120 });
        let shape = volume_modification(&modified).unwrap();
        assert_eq!((shape.original_iops, shape.original_throughput), (Some(3000), Some(125)));
        assert_eq!((shape.target_iops, shape.target_throughput), (Some(3000), Some(250)));
        assert_eq!(shape.end_time.to_string(), "1970-01-01T00:02:00.000Z");
    }

    #[test]
    fn hdd_volume_has_no_iops_and_no_throughput() {
        let mut hdd = record();
        hdd.spec.volume_type = "standard".into();
        hdd.spec.throughput = None;
        let shape = serde_json::to_value(volume(&hdd)).unwrap();
        assert_eq!((shape.get("Iops"), shape.get("Throughput")), (None, None));
    }
}
