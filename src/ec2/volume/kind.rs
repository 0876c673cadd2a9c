//! Volume types and their limits.
//!
//! Source: Amazon EBS User Guide, "Amazon EBS volume types"; EC2 API Reference, `CreateVolume`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::VolumeSize;
use crate::{Ec2Error, ErrorCode};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    /// General purpose SSD with performance independent of its size. The default of Wisp and EC2's console; EC2's API
    /// defaults to gp2.
    #[default]
    Gp3,
    /// General purpose SSD with performance that grows with its size.
    Gp2,
    /// Provisioned IOPS SSD, first generation.
    Io1,
    /// Provisioned IOPS SSD, on Block Express.
    Io2,
    /// Throughput optimized HDD.
    St1,
    /// Cold HDD.
    Sc1,
    /// Magnetic, the previous generation.
    Standard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub min_gib: u64,
    pub max_gib: u64,
    /// None if IOPS cannot be provisioned.
    pub iops: Option<IopsLimits>,
    /// None if throughput cannot be provisioned.
    pub throughput: Option<ThroughputLimits>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IopsLimits {
    pub min: u32,
    pub max: u32,
    /// Maximum IOPS per GiB; [`IopsLimits::min`] is allowed at any size.
    pub per_gib: u32,
    /// None if a value is required.
    pub default: Option<u32>,
}

/// In MiB/s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThroughputLimits {
    pub min: u32,
    pub max: u32,
    /// IOPS required per MiB/s.
    pub iops_per_mib: u32,
    pub default: u32,
}

impl IopsLimits {
    pub fn most(&self, size: VolumeSize) -> u32 {
        let by_size = size.gib().saturating_mul(self.per_gib.into());
        u32::try_from(by_size).unwrap_or(u32::MAX).clamp(self.min, self.max)
    }
}

impl VolumeType {
    pub const ALL: [VolumeType; 7] = [
        VolumeType::Gp3,
        VolumeType::Gp2,
        VolumeType::Io1,
        VolumeType::Io2,
        VolumeType::St1,
        VolumeType::Sc1,
        VolumeType::Standard,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            VolumeType::Gp3 => "gp3",
            VolumeType::Gp2 => "gp2",
            VolumeType::Io1 => "io1",
            VolumeType::Io2 => "io2",
            VolumeType::St1 => "st1",
            VolumeType::Sc1 => "sc1",
            VolumeType::Standard => "standard",
        }
    }

    /// Returns the type's limits. Those of io2 apply to Nitro-based instances: with others, EC2 supports fewer IOPS.
    pub fn limits(self) -> Limits {
        let sized = |min_gib, max_gib| Limits { min_gib, max_gib, iops: None, throughput: None };
        match self {
            VolumeType::Gp3 => Limits {
                iops: Some(IopsLimits { min: 3_000, max: 16_000, per_gib: 500, default: Some(3_000) }),
                throughput: Some(ThroughputLimits { min: 125, max: 1_000, iops_per_mib: 4, default: 125 }),
                ..sized(1, 16_384)
            },
            VolumeType::Gp2 => sized(1, 16_384),
            VolumeType::Io1 => Limits {
                iops: Some(IopsLimits { min: 100, max: 64_000, per_gib: 50, default: None }),
                ..sized(4, 16_384)
            },
            VolumeType::Io2 => Limits {
                iops: Some(IopsLimits { min: 100, max: 256_000, per_gib: 500, default: None }),
                ..sized(4, 65_536)
            },
            VolumeType::St1 | VolumeType::Sc1 => sized(125, 16_384),
            VolumeType::Standard => sized(1, 1_024),
        }
    }

    pub fn bootable(self) -> bool {
        !matches!(self, VolumeType::St1 | VolumeType::Sc1)
    }
}

impl fmt::Display for VolumeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for VolumeType {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        VolumeType::ALL.into_iter().find(|known| known.as_str() == text).ok_or_else(|| {
            let what = format!("Unsupported volume type '{text}' for volume creation.");
            let hint = format!("The volume types are {}.", VolumeType::ALL.map(VolumeType::as_str).join(", "));
            Ec2Error::refused(ErrorCode::UnknownVolumeType, what, Some(hint))
        })
    }
}
