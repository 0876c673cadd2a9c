//! The types of volumes, and what volumes of each can be.
//!
//! Source: Amazon EBS User Guide, "Amazon EBS volume types"; EC2 API Reference, `CreateVolume`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{VolumeError, VolumeSize};
use crate::ec2::Ec2Error;

/// A volume's type (`VolumeType`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    /// General purpose SSD, whose figures are chosen apart from its size. EC2's console makes volumes of this type
    /// unless told otherwise, and so does Wisp; EC2's API makes [`VolumeType::Gp2`].
    #[default]
    Gp3,
    /// General purpose SSD, which is faster the larger it is.
    Gp2,
    /// Provisioned IOPS SSD, first generation.
    Io1,
    /// Provisioned IOPS SSD, on Block Express.
    Io2,
    /// Throughput optimised HDD.
    St1,
    /// Cold HDD.
    Sc1,
    /// Magnetic, the previous generation.
    Standard,
}

/// What volumes of a type can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The smallest, in GiB.
    pub min_gib: u64,
    /// The largest, in GiB.
    pub max_gib: u64,
    /// Their operations a second, where those are chosen.
    pub iops: Option<IopsLimits>,
    /// Their MiB a second, where those are chosen.
    pub throughput: Option<ThroughputLimits>,
}

/// The operations a second that a volume can be asked to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IopsLimits {
    /// The fewest.
    pub min: u32,
    /// The most.
    pub max: u32,
    /// The most for each GiB of the volume; the fewest are allowed whatever the size.
    pub per_gib: u32,
    /// What a new volume has unless asked; none where one must ask.
    pub default: Option<u32>,
}

/// The MiB a second that a volume can be asked to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThroughputLimits {
    /// The fewest.
    pub min: u32,
    /// The most.
    pub max: u32,
    /// The operations a second that each of them needs: at 0.25 MiB/s for each operation, four.
    pub iops_per_mib: u32,
    /// What a new volume has unless asked.
    pub default: u32,
}

impl IopsLimits {
    /// The most for a volume of that size.
    pub fn most(&self, size: VolumeSize) -> u32 {
        let by_size = size.gib().saturating_mul(self.per_gib.into());
        u32::try_from(by_size).unwrap_or(u32::MAX).clamp(self.min, self.max)
    }
}

impl VolumeType {
    /// All of them.
    pub const ALL: [VolumeType; 7] = [
        VolumeType::Gp3,
        VolumeType::Gp2,
        VolumeType::Io1,
        VolumeType::Io2,
        VolumeType::St1,
        VolumeType::Sc1,
        VolumeType::Standard,
    ];

    /// EC2's name for it.
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

    /// What its volumes can be. Of io2's operations EC2 delivers the upper ones on Nitro instances only.
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

    /// Whether an instance can boot from it.
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
        VolumeType::ALL
            .into_iter()
            .find(|known| known.as_str() == text)
            .ok_or_else(|| VolumeError::Type { given: text.to_owned() }.into())
    }
}
