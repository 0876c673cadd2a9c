//! What can be wrong with a volume that is asked for, by cause.

use super::{VolumeSize, VolumeType};
use crate::ec2::ErrorCode;

/// Why a volume, or a change of one, is refused. It becomes an [`Ec2Error`](crate::ec2::Ec2Error), which prints it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// There is no such type.
    #[error("Unsupported volume type '{given}' for volume creation.")]
    Type {
        /// What was given.
        given: String,
    },
    /// It is no size.
    #[error("Invalid value '{given}' for size: it is not a volume's size.")]
    Size {
        /// What was given.
        given: String,
    },
    /// No size was given, and there is nothing to take it from.
    #[error("The request must contain the parameter size or snapshotId.")]
    NoSize,
    /// The type has no volumes so small.
    #[error("Volume of {size} is too small for {volume_type}; minimum is {minimum} GiB.")]
    TooSmall {
        /// The type.
        volume_type: VolumeType,
        /// The size asked for.
        size: VolumeSize,
        /// The smallest, in GiB.
        minimum: u64,
    },
    /// The type has no volumes so large.
    #[error("Volume of {size} is too large for {volume_type}; maximum is {maximum} GiB.")]
    TooLarge {
        /// The type.
        volume_type: VolumeType,
        /// The size asked for.
        size: VolumeSize,
        /// The largest, in GiB.
        maximum: u64,
    },
    /// What the volume is made of does not fit.
    #[error("Volume of {size} is smaller than its snapshot or image, expect size >= {source_size}.")]
    SmallerThanSource {
        /// The size asked for.
        size: VolumeSize,
        /// The size of the snapshot or image.
        source_size: VolumeSize,
    },
    /// The type has no such figure to choose.
    #[error("The parameter {parameter} is not supported for {volume_type} volumes.")]
    NotSupported {
        /// The type.
        volume_type: VolumeType,
        /// The parameter.
        parameter: &'static str,
    },
    /// The type has no default for its operations a second.
    #[error("The request must contain the parameter iops: {volume_type} volumes have no default.")]
    IopsRequired {
        /// The type.
        volume_type: VolumeType,
        /// The fewest and the most that this size can have.
        range: (u32, u32),
    },
    /// A figure is below the type's range.
    #[error("Volume {parameter} of {given} is too low for {volume_type}; minimum is {minimum}.")]
    TooLow {
        /// The type.
        volume_type: VolumeType,
        /// The figure: `iops`, `throughput`.
        parameter: &'static str,
        /// What was given.
        given: u32,
        /// The least.
        minimum: u32,
    },
    /// A figure is above the type's range.
    #[error("Volume {parameter} of {given} is too high for {volume_type}; maximum is {maximum}.")]
    TooHigh {
        /// The type.
        volume_type: VolumeType,
        /// The figure: `iops`, `throughput`.
        parameter: &'static str,
        /// What was given.
        given: u32,
        /// The most.
        maximum: u32,
    },
    /// The volume is too small for so many operations a second.
    #[error("Iops to volume size ratio is too high: {size} of {volume_type} have at most {most} iops, not {given}.")]
    IopsRatio {
        /// The type.
        volume_type: VolumeType,
        /// The volume's size.
        size: VolumeSize,
        /// What was given.
        given: u32,
        /// The most that this size can have.
        most: u32,
    },
    /// The volume has too few operations a second for so many MiB.
    #[error("Throughput (MiBps) to iops ratio is too high: {iops} iops carry at most {most} MiB/s, not {given}.")]
    ThroughputRatio {
        /// The volume's operations a second.
        iops: u32,
        /// What was given.
        given: u32,
        /// The most that these operations carry.
        most: u32,
    },
    /// The type cannot hold an instance's root.
    #[error("A {volume_type} volume cannot be a root volume.")]
    NotBootable {
        /// The type.
        volume_type: VolumeType,
    },
    /// A volume cannot shrink.
    #[error("New size of {given} cannot be smaller than existing size of {current}.")]
    Shrinks {
        /// The size it has.
        current: VolumeSize,
        /// The size asked for.
        given: VolumeSize,
    },
    /// A change without anything to change.
    #[error("The request must contain at least one of size, type, iops and throughput.")]
    NothingToModify,
    /// It is no device name.
    #[error("Invalid value '{given}' for device: it is not a valid EBS device name.")]
    DeviceName {
        /// What was given.
        given: String,
    },
    /// Another volume has the device name.
    #[error("Invalid value '{name}' for device: attachment point {name} is already in use.")]
    DeviceInUse {
        /// The name.
        name: String,
    },
    /// Every device name is used.
    #[error("The instance has a volume under every device name there is.")]
    NoDeviceLeft,
    /// A part of the text that describes a volume is not understood.
    #[error("Invalid value '{given}' for volume: {what}.")]
    Option {
        /// The part.
        given: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Two parts of the text that describes a volume exclude each other.
    #[error("The parameter {one} cannot be combined with {other}.")]
    Combination {
        /// One key.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
}

impl VolumeError {
    /// EC2's code.
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

    /// What to do about it, as one line; none where the sentence says it all.
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
