//! Names of devices and volume files.

use ec2::VolumeId;

/// Device name of the root volume of EC2's Linux images.
pub const ROOT_DEVICE: &str = "/dev/xvda";

pub(super) fn volume_file(id: VolumeId, number: u32) -> String {
    format!("{id}.{number}.qcow2")
}
