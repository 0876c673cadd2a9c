//! Names of devices, disks and volume files.

use ec2::VolumeId;
use store::VolumeRecord;

/// Device name of the root volume of EC2's Linux images.
pub const ROOT_DEVICE: &str = "/dev/xvda";

pub(super) fn volume_file(id: VolumeId, number: u32) -> String {
    format!("{id}.{number}.qcow2")
}

/// Returns a volume's disk ID: `vol` and 17 digits, as in EC2. It fits into the 20 bytes of a virtio-blk serial number.
pub(super) fn disk_id(volume: &VolumeRecord) -> String {
    volume.meta.id.to_string().replace('-', "")
}
