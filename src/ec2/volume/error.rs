//! Errors of volume requests, by cause.

use super::{VolumeSize, VolumeType};
use crate::ErrorCode;

/// An invalid volume request. Converts to an [`Ec2Error`](crate::Ec2Error).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    #[error("Unsupported volume type '{given}' for volume creation.")]
    Type { given: String },
    #[error("Invalid value '{given}' for size: it is not a valid volume size.")]
    Size { given: String },
    #[error("The request must contain the parameter size or snapshotId.")]
    NoSize,
    #[error("Volume of {size} is too small for {volume_type}; minimum is {minimum} GiB.")]
    TooSmall {
        volume_type: VolumeType,
        size: VolumeSize,
        /// In GiB.
        minimum: u64,
    },
    #[error("Volume of {size} is too large for {volume_type}; maximum is {maximum} GiB.")]
    TooLarge {
        volume_type: VolumeType,
        size: VolumeSize,
        /// In GiB.
        maximum: u64,
    },
    #[error("Volume of {size} is smaller than its snapshot or image, expect size >= {source_size}.")]
    SmallerThanSource { size: VolumeSize, source_size: VolumeSize },
    #[error("The parameter {parameter} is not supported for {volume_type} volumes.")]
    NotSupported { volume_type: VolumeType, parameter: &'static str },
    #[error("The request must contain the parameter iops: {volume_type} volumes have no default IOPS.")]
    IopsRequired {
        volume_type: VolumeType,
        /// Minimum and maximum for this size.
        range: (u32, u32),
    },
    #[error("Volume {parameter} of {given} is too low for {volume_type}; minimum is {minimum}.")]
    TooLow {
        volume_type: VolumeType,
        /// `iops` or `throughput`.
        parameter: &'static str,
        given: u32,
        minimum: u32,
    },
    #[error("Volume {parameter} of {given} is too high for {volume_type}; maximum is {maximum}.")]
    TooHigh {
        volume_type: VolumeType,
        /// `iops` or `throughput`.
        parameter: &'static str,
        given: u32,
        maximum: u32,
    },
    #[error(
        "Iops to volume size ratio is too high: {volume_type} volumes of {size} support at most {most} IOPS, \
         not {given}."
    )]
    IopsRatio {
        volume_type: VolumeType,
        size: VolumeSize,
        given: u32,
        /// Maximum for this size.
        most: u32,
    },
    #[error("Throughput (MiBps) to iops ratio is too high: the maximum for {iops} IOPS is {most} MiBps, not {given}.")]
    ThroughputRatio {
        iops: u32,
        given: u32,
        /// Maximum for these IOPS.
        most: u32,
    },
    #[error("A {volume_type} volume cannot be a root volume.")]
    NotBootable { volume_type: VolumeType },
    #[error("New size of {given} cannot be smaller than existing size of {current}.")]
    Shrinks { current: VolumeSize, given: VolumeSize },
    #[error("The request must contain at least one of size, type, iops and throughput.")]
    NothingToModify,
    #[error("Invalid value '{given}' for device: it is not a valid EBS device name.")]
    DeviceName { given: String },
    #[error("Invalid value '{name}' for device: attachment point {name} is already in use.")]
    DeviceInUse { name: String },
    #[error("All device names of the instance are in use.")]
    NoDeviceLeft,
    #[error("Invalid value '{given}' for volume: {what}.")]
    Option { given: String, what: &'static str },
    #[error("The parameter {one} cannot be combined with {other}.")]
    Combination { one: &'static str, other: &'static str },
}

impl VolumeError {
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

    /// Returns a one-line hint, or none if the message needs no hint.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            VolumeError::Type { .. } => {
                format!("The volume types are {}.", VolumeType::ALL.map(VolumeType::as_str).join(", "))
            }
            VolumeError::Size { .. } => {
                "Specify a number of GiB, such as 8, or a number and a unit, such as 512M, 20G or 1T.".to_owned()
            }
            VolumeError::NoSize => "Specify a size in GiB, such as 8, or a snapshot.".to_owned(),
            VolumeError::NotSupported { parameter: "throughput", .. } => {
                "You can specify the throughput only for gp3 volumes.".to_owned()
            }
            VolumeError::NotSupported { .. } => "You can specify IOPS only for gp3, io1 and io2 volumes.".to_owned(),
            VolumeError::IopsRequired { range: (fewest, most), .. } => {
                format!(
                    "Specify `iops=` with a value from {fewest} to {most} for this size, or use gp3 (default: 3000)."
                )
            }
            VolumeError::IopsRatio { most, .. } => {
                format!("Request at most {most} IOPS, or a larger volume.")
            }
            VolumeError::ThroughputRatio { given, .. } => {
                format!("Request at least {} IOPS as well.", u64::from(*given) * 4)
            }
            VolumeError::NotBootable { .. } => "A root volume must be gp3, gp2, io1, io2 or standard.".to_owned(),
            VolumeError::Shrinks { .. } => {
                "Volumes can only grow. Copy the data to a new, smaller volume instead.".to_owned()
            }
            VolumeError::DeviceName { .. } => {
                "Use /dev/sdf to /dev/sdp. /dev/sda1 and /dev/xvda are reserved for root volumes.".to_owned()
            }
            VolumeError::DeviceInUse { .. } => {
                "Use another device name, or omit it to use the next free one.".to_owned()
            }
            VolumeError::NoDeviceLeft => "Detach a volume first.".to_owned(),
            VolumeError::Option { .. } => {
                "Specify SIZE in GiB, or KEY=VALUE,... with the keys size, type, iops, throughput, \
                                           device, snapshot, volume, delete-on-termination, name."
                    .to_owned()
            }
            VolumeError::Combination { one: "volume", .. } => {
                "An existing volume is attached unchanged. Combine it only with device and delete-on-termination."
                    .to_owned()
            }
            _ => return None,
        })
    }
}
