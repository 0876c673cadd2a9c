use super::GIB;
use crate::names::ROOT_DEVICE;
use ec2::api::image::{BlockDeviceMapping, EbsBlockDevice, Image};
use ec2::api::{
    ACCOUNT_ID, BOOT_MODE, HYPERVISOR, PLATFORM_DETAILS, Tag, Timestamp, USAGE_OPERATION, VIRTUALIZATION_TYPE,
};
use ec2::volume::VolumeType;
use node::image::Image as Bundle;
use store::{ImageRecord, Visibility};

/// The root file system of an image, from which launches create root volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootVolume {
    pub bytes: u64,
}

impl RootVolume {
    /// Reads the size of an image's root file system. Returns `None` if the image has none or it cannot be read.
    pub fn of(image: &Bundle) -> Option<RootVolume> {
        let root = image.manifest.root.as_ref()?;
        let bytes = disk::virtual_size(&image.dir.join(&root.file), root.format);
        bytes.map(|bytes| RootVolume { bytes }).inspect_err(|error| log::warn!("{error}")).ok()
    }
}

pub fn image(record: &ImageRecord, root: Option<RootVolume>) -> Image {
    Image {
        architecture: "x86_64",
        block_device_mappings: root.iter().map(|root| root_mapping(record, root)).collect(),
        boot_mode: BOOT_MODE,
        creation_date: Timestamp::from_seconds(record.meta.created),
        description: record.spec.description.clone(),
        ena_support: false,
        hypervisor: HYPERVISOR,
        image_id: record.meta.id,
        image_location: format!("{}/{}", record.status.owner, record.spec.name),
        image_owner_alias: record.status.owner.clone(),
        image_type: "machine",
        imds_support: record.spec.imds_support,
        name: record.spec.name.clone(),
        owner_id: ACCOUNT_ID,
        platform_details: PLATFORM_DETAILS,
        public: record.spec.visibility == Visibility::Public,
        root_device_name: ROOT_DEVICE,
        root_device_type: "ebs",
        source_instance_id: record.spec.source_instance,
        state: "available",
        tags: Tag::list(&record.meta.tags),
        usage_operation: USAGE_OPERATION,
        virtualization_type: VIRTUALIZATION_TYPE,
    }
}

/// The snapshot is the image's own copy of the root file system, which lives and ends with the image.
fn root_mapping(record: &ImageRecord, root: &RootVolume) -> BlockDeviceMapping {
    BlockDeviceMapping {
        device_name: ROOT_DEVICE,
        ebs: EbsBlockDevice {
            delete_on_termination: true,
            encrypted: false,
            snapshot_id: record.meta.id.with_prefix("snap"),
            volume_size: root.bytes.div_ceil(GIB),
            volume_type: VolumeType::default().as_str(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use store::Meta;

    #[test]
    fn image_with_root_file_system_has_mapping() {
        let record = ImageRecord {
            meta: Meta::new("ami-0123456789abcdef0".parse().unwrap(), 0, Default::default()),
            spec: store::image::Spec {
                name: "web".into(),
                description: String::new(),
                visibility: Visibility::Private,
                source_instance: Some("i-0123456789abcdef0".parse().unwrap()),
                imds_support: None,
            },
            status: store::image::Status { owner: "me".into(), deregistered: None },
        };
        let shape = serde_json::to_value(image(&record, Some(RootVolume { bytes: GIB + 1 }))).unwrap();
        let ebs = &shape["BlockDeviceMappings"][0]["Ebs"];
        assert_eq!((&ebs["VolumeSize"], &ebs["SnapshotId"]), (&json!(2), &json!("snap-0123456789abcdef0")));
        assert_eq!(shape["ImageLocation"], "me/web");
        assert_eq!((&shape["SourceInstanceId"], shape.get("ImdsSupport")), (&json!("i-0123456789abcdef0"), None));
        assert_eq!(image(&record, None).block_device_mappings, []);
    }
}
