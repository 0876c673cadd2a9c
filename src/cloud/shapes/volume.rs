use super::GIB;
use ec2::api::volume::{Volume, VolumeAttachment};
use ec2::api::{Tag, Timestamp};
use ec2::volume::{Role, VolumeSize, VolumeSpec};
use store::{AttachmentRecord, VolumeRecord};

pub fn volume(record: &VolumeRecord) -> Volume {
    let (iops, throughput) = performance(record);
    Volume {
        attachments: record.status.attachment.iter().map(|attachment| attachment_of(record, attachment)).collect(),
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

/// Returns the volume's IOPS and throughput. The record of a root volume has none: they are the type's defaults.
fn performance(record: &VolumeRecord) -> (Option<u32>, Option<u32>) {
    let (iops, throughput) = (record.spec.iops, record.spec.throughput);
    let spec = record.spec.volume_type.parse().ok().map(|volume_type| {
        let size = VolumeSize::that_holds(record.spec.size);
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
    fn hdd_volume_has_no_iops_and_no_throughput() {
        let mut hdd = record();
        hdd.spec.volume_type = "standard".into();
        hdd.spec.throughput = None;
        let shape = serde_json::to_value(volume(&hdd)).unwrap();
        assert_eq!((shape.get("Iops"), shape.get("Throughput")), (None, None));
    }
}
