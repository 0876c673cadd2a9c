//! Errors of volume requests, by cause.

use super::{VolumeSize, VolumeType};
use crate::ec2::ErrorCode;

/// The reason why a volume or a modification is refused. It converts to an [`Ec2Error`](crate::ec2::Ec2Error).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// The volume type is unknown.
    #[error("Unsupported volume type '{given}' for volume creation.")]
    Type {
        /// The given type.
        given: String,
    },
    /// The size cannot be parsed.
    #[error("Invalid value '{given}' for size: it is not a volume's size.")]
    Size {
        /// The given size.
        given: String,
    },
    /// No size was given, and there is no source to take it from.
    #[error("The request must contain the parameter size or snapshotId.")]
    NoSize,
    /// The size is below the type's minimum.
    #[error("Volume of {size} is too small for {volume_type}; minimum is {minimum} GiB.")]
    TooSmall {
        /// The volume type.
        volume_type: VolumeType,
        /// The requested size.
        size: VolumeSize,
        /// The minimum in GiB.
        minimum: u64,
    },
    /// The size is above the type's maximum.
    #[error("Volume of {size} is too large for {volume_type}; maximum is {maximum} GiB.")]
    TooLarge {
        /// The volume type.
        volume_type: VolumeType,
        /// The requested size.
        size: VolumeSize,
        /// The maximum in GiB.
        maximum: u64,
    },
    /// The size is smaller than the snapshot's or image's.
    #[error("Volume of {size} is smaller than its snapshot or image, expect size >= {source_size}.")]
    SmallerThanSource {
        /// The requested size.
        size: VolumeSize,
        /// The size of the snapshot or image.
        source_size: VolumeSize,
    },
    /// The type does not support this parameter.
    #[error("The parameter {parameter} is not supported for {volume_type} volumes.")]
    NotSupported {
        /// The volume type.
        volume_type: VolumeType,
        /// The parameter.
        parameter: &'static str,
    },
    /// The type requires `iops`.
    #[error("The request must contain the parameter iops: {volume_type} volumes have no default.")]
    IopsRequired {
        /// The volume type.
        volume_type: VolumeType,
        /// The minimum and maximum for this size.
        range: (u32, u32),
    },
    /// A parameter is below the type's minimum.
    #[error("Volume {parameter} of {given} is too low for {volume_type}; minimum is {minimum}.")]
    TooLow {
        /// The volume type.
        volume_type: VolumeType,
        /// The parameter: `iops` or `throughput`.
        parameter: &'static str,
        /// The given value.
        given: u32,
        /// The minimum.
        minimum: u32,
    },
    /// A parameter is above the type's maximum.
    #[error("Volume {parameter} of {given} is too high for {volume_type}; maximum is {maximum}.")]
    TooHigh {
        /// The volume type.
        volume_type: VolumeType,
        /// The parameter: `iops` or `throughput`.
        parameter: &'static str,
        /// The given value.
        given: u32,
        /// The maximum.
        maximum: u32,
    },
    /// The ratio of IOPS to size is too high.
    #[error("Iops to volume size ratio is too high: {size} of {volume_type} have at most {most} iops, not {given}.")]
    IopsRatio {
        /// The volume type.
        volume_type: VolumeType,
        /// The volume's size.
        size: VolumeSize,
        /// The given IOPS.
        given: u32,
        /// The maximum for this size.
        most: u32,
    },
    /// The ratio of throughput to IOPS is too high.
    #[error("Throughput (MiBps) to iops ratio is too high: {iops} iops carry at most {most} MiB/s, not {given}.")]
    ThroughputRatio {
        /// The volume's IOPS.
        iops: u32,
        /// The given throughput.
        given: u32,
        /// The maximum for these IOPS.
        most: u32,
    },
    /// The type does not support root volumes.
    #[error("A {volume_type} volume cannot be a root volume.")]
    NotBootable {
        /// The volume type.
        volume_type: VolumeType,
    },
    /// The size would shrink.
    #[error("New size of {given} cannot be smaller than existing size of {current}.")]
    Shrinks {
        /// The current size.
        current: VolumeSize,
        /// The requested size.
        given: VolumeSize,
    },
    /// The modification changes nothing.
    #[error("The request must contain at least one of size, type, iops and throughput.")]
    NothingToModify,
    /// The device name is invalid.
    #[error("Invalid value '{given}' for device: it is not a valid EBS device name.")]
    DeviceName {
        /// The given name.
        given: String,
    },
    /// The device name is in use.
    #[error("Invalid value '{name}' for device: attachment point {name} is already in use.")]
    DeviceInUse {
        /// The name.
        name: String,
    },
    /// All device names are in use.
    #[error("The instance has a volume under every device name there is.")]
    NoDeviceLeft,
    /// A part of the volume option cannot be parsed.
    #[error("Invalid value '{given}' for volume: {what}.")]
    Option {
        /// The part.
        given: String,
        /// The problem.
        what: &'static str,
    },
    /// Two keys of the volume option exclude each other.
    #[error("The parameter {one} cannot be combined with {other}.")]
    Combination {
        /// The first key.
        one: &'static str,
        /// The second key.
        other: &'static str,
    },
}

impl VolumeError {
    /// EC2's error code.
    pub fn code(&self) -> ErrorCode {
        match self {
            VolumeError::Type { .. } => ErrorCode::UnknownVolumeType,
            VolumeError::NoSize | VolumeError::IopsRequired { .. } => ErrorCode::MissingParameter,
            VolumeError::NotSupported { .. }
            | VolumeError::IopsRatio { .. }
            | VolumeError::ThroughputRatio { .. }
            | VolumeError::NothingToModify
            | VolumeError::Combination { .. } => ErrorCode::InvalidParameterCombination,
            VolumeError::NotBootable { .. } => ErrorCode::InvalidBlockDeviceMapping,
            VolumeError::NoDeviceLeft => ErrorCode::AttachmentLimitExceeded,
            VolumeError::Size { .. }
            | VolumeError::TooSmall { .. }
            | VolumeError::TooLarge { .. }
            | VolumeError::SmallerThanSource { .. }
            | VolumeError::TooLow { .. }
            | VolumeError::TooHigh { .. }
            | VolumeError::Shrinks { .. }
            | VolumeError::DeviceName { .. }
            | VolumeError::DeviceInUse { .. }
            | VolumeError::Option { .. } => ErrorCode::InvalidParameterValue,
        }
    }

    /// The advice for the user as one line; none if the message suffices.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            VolumeError::Type { .. } => {
                format!("The types are {}.", VolumeType::ALL.map(VolumeType::as_str).join(", "))
            }
            VolumeError::Size { .. } => {
                "Write GiB, such as 8, or a number and a unit, such as 512M, 20G or 1T.".to_owned()
            }
            VolumeError::NoSize => "Write its size in GiB: `size=8`.".to_owned(),
            VolumeError::NotSupported { parameter: "throughput", .. } => {
                "Only gp3 volumes have a throughput to choose.".to_owned()
            }
            VolumeError::NotSupported { .. } => "Types with iops to choose are gp3, io1 and io2.".to_owned(),
            VolumeError::IopsRequired { range: (fewest, most), .. } => {
                format!("Write `iops=`, {fewest} to {most} for this size; gp3 has a default.")
            }
            VolumeError::IopsRatio { most, .. } => {
                format!("Ask for at most {most} iops, or for a larger volume.")
            }
            VolumeError::ThroughputRatio { given, .. } => {
                format!("Ask for at least {} iops with it.", u64::from(*given) * 4)
            }
            VolumeError::NotBootable { .. } => "Root volumes are gp3, gp2, io1, io2 or standard.".to_owned(),
            VolumeError::Shrinks { .. } => {
                "Volumes only grow; copy what is on it to a new, smaller volume instead.".to_owned()
            }
            VolumeError::DeviceName { .. } => {
                "Use /dev/sdf to /dev/sdp; /dev/sda1 and /dev/xvda are root volumes'.".to_owned()
            }
            VolumeError::DeviceInUse { .. } => {
                "Use another device name, or none: the next free one is taken.".to_owned()
            }
            VolumeError::NoDeviceLeft => "Detach a volume first.".to_owned(),
            VolumeError::Option { .. } => {
                "Write SIZE in GiB, or KEY=VALUE,... with the keys size, type, iops, throughput, \
                                           device, snapshot, volume, delete-on-termination, name."
                    .to_owned()
            }
            VolumeError::Combination { one: "volume", .. } => {
                "An existing volume is attached as it is: only device and delete-on-termination go with it.".to_owned()
            }
            _ => return None,
        })
    }
}
