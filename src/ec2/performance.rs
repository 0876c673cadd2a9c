//! Baseline and burst performance of volumes, EBS bandwidth and networks.
//!
//! Sources: Amazon EBS User Guide, "Amazon EBS volume types" and "Amazon EBS-optimized instances"; EC2 User Guide,
//! "Amazon EC2 instance network bandwidth".

use super::instance_type::InstanceType;
use super::volume::{VolumeFigures, VolumeType};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Maximum size of an I/O operation. A larger request counts as several operations.
const SSD_OPERATION: u64 = 256 * KIB;
const HDD_OPERATION: u64 = MIB;

/// gp2: burst IOPS of small volumes, and the size of their I/O credit bucket.
const GP2_BURST: u64 = 3_000;
const GP2_SAVINGS: u64 = 5_400_000;
/// gp2: maximum size in GiB of volumes with the lower throughput limit.
const GP2_SMALL: u64 = 170;
const GP2_THROUGHPUT: (u64, u64) = (128 * MIB, 250 * MIB);

/// Seconds for which a full bucket allows the maximum EBS bandwidth: half an hour, once a day.
const EBS_BURST: u64 = 1_800;
/// Seconds for which a full bucket allows the peak network bandwidth: the shortest of EC2's "5 to 60 minutes".
const NETWORK_BURST: u64 = 300;

/// A rate limit per second, in bytes or operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    pub baseline: u64,
    pub peak: u64,
    /// Size of the burst bucket, in bytes or operations.
    pub savings: u64,
}

/// Performance limits of a volume, or of an instance's EBS bandwidth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Performance {
    /// Bytes per second.
    pub bytes: Speed,
    /// Operations per second.
    pub operations: Speed,
    /// Maximum size of one operation.
    pub operation_bytes: u64,
}

impl Speed {
    fn constant(speed: u64) -> Speed {
        let speed = speed.max(1);
        Speed { baseline: speed, peak: speed, savings: 0 }
    }

    /// Returns a rate limit whose full bucket allows `peak` for `seconds`.
    fn bursting(baseline: u64, peak: u64, seconds: u64) -> Speed {
        let baseline = baseline.max(1);
        let peak = peak.max(baseline);
        Speed { baseline, peak, savings: (peak - baseline) * seconds }
    }
}

impl VolumeFigures {
    pub fn performance(&self) -> Performance {
        let default_iops = self.volume_type.limits().iops.and_then(|limits| limits.default).unwrap_or(100);
        let iops = u64::from(self.iops.unwrap_or(default_iops));
        let ssd = |bytes, operations| Performance { bytes, operations, operation_bytes: SSD_OPERATION };
        match self.volume_type {
            VolumeType::Gp3 => {
                let default = self.volume_type.limits().throughput.map_or(125, |limits| limits.default);
                let throughput = u64::from(self.throughput.unwrap_or(default));
                ssd(Speed::constant(throughput * MIB), Speed::constant(iops))
            }
            VolumeType::Gp2 => {
                let (small, large) = GP2_THROUGHPUT;
                let bytes = if self.size.gib() <= GP2_SMALL { small } else { large };
                let baseline = u64::from(self.iops.unwrap_or(100));
                let peak = baseline.max(GP2_BURST);
                let savings = if peak > baseline { GP2_SAVINGS } else { 0 };
                ssd(Speed::constant(bytes), Speed { baseline, peak, savings })
            }
            VolumeType::Io1 => {
                // 256 KiB per operation up to 500 MiB/s. From 32,000 IOPS, 16 KiB per operation, up to 1,000 MiB/s.
                let bytes = (iops * SSD_OPERATION).min(500 * MIB).max(iops * 16 * KIB).min(1_000 * MIB);
                ssd(Speed::constant(bytes), Speed::constant(iops))
            }
            VolumeType::Io2 => ssd(Speed::constant((iops * SSD_OPERATION).min(4_000 * MIB)), Speed::constant(iops)),
            VolumeType::St1 => self.rotating((40, 500), (250, 500), 500),
            VolumeType::Sc1 => self.rotating((12, 192), (80, 250), 250),
            VolumeType::Standard => Performance {
                bytes: Speed::constant(90 * MIB),
                operations: Speed::constant(200),
                operation_bytes: HDD_OPERATION,
            },
        }
    }

    /// `baseline` and `peak` are pairs: MiB/s per TiB of the volume's size, and the upper limit in MiB/s. The burst
    /// bucket is as large as the volume.
    fn rotating(&self, baseline: (u64, u64), peak: (u64, u64), iops: u64) -> Performance {
        let of_size = |(per_tib, most): (u64, u64)| (self.size.gib() * per_tib * MIB / 1024).min(most * MIB).max(1);
        let (baseline, peak) = (of_size(baseline), of_size(peak));
        let savings = if peak > baseline { self.size.gib() * GIB } else { 0 };
        Performance {
            bytes: Speed { baseline, peak: peak.max(baseline), savings },
            operations: Speed::constant(iops),
            operation_bytes: HDD_OPERATION,
        }
    }
}

impl InstanceType {
    /// Returns the limits of the instance's EBS bandwidth, or none if EC2 does not specify any.
    pub fn ebs_performance(&self) -> Option<Performance> {
        let ebs = self.ebs?;
        let bytes = |mbps: u32| u64::from(mbps) * 1_000_000 / 8;
        Some(Performance {
            bytes: Speed::bursting(bytes(ebs.baseline_mbps), bytes(ebs.maximum_mbps), EBS_BURST),
            operations: Speed::bursting(ebs.baseline_iops.into(), ebs.maximum_iops.into(), EBS_BURST),
            operation_bytes: SSD_OPERATION,
        })
    }

    /// Returns the network bandwidth in bytes per second, which applies to each direction separately.
    pub fn network_speed(&self) -> Speed {
        let bytes = |gbps: f64| (gbps * 1e9 / 8.0).round() as u64;
        Speed::bursting(bytes(self.network.baseline_gbps), bytes(self.network.peak_gbps), NETWORK_BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::volume::{Role, VolumeSize, VolumeSpec};

    fn volume(volume_type: VolumeType, gib: u64, iops: Option<u32>, throughput: Option<u32>) -> Performance {
        let spec = VolumeSpec { size: VolumeSize::from_gib(gib), volume_type, iops, throughput };
        spec.figures(None, Role::Data).unwrap().performance()
    }

    #[test]
    fn gp3_has_provisioned_figures() {
        let plain = volume(VolumeType::Gp3, 8, None, None);
        assert_eq!((plain.operations, plain.bytes), (Speed::constant(3_000), Speed::constant(125 * MIB)));
        let fast = volume(VolumeType::Gp3, 100, Some(16_000), Some(1_000));
        assert_eq!((fast.operations, fast.bytes), (Speed::constant(16_000), Speed::constant(1_000 * MIB)));
        // An image's root volume has no provisioned figures.
        let root = VolumeFigures {
            size: VolumeSize::from_gib(1).unwrap(),
            volume_type: VolumeType::Gp3,
            iops: None,
            throughput: None,
        };
        assert_eq!(root.performance(), plain);
    }

    #[test]
    fn gp2_bursts_unless_large() {
        let small = volume(VolumeType::Gp2, 100, None, None);
        assert_eq!(small.operations, Speed { baseline: 300, peak: 3_000, savings: 5_400_000 });
        assert_eq!(small.bytes, Speed::constant(128 * MIB));
        // "3,000 IOPS for 30 minutes" holds for the smallest volume, whose baseline adds little to the bucket.
        let tiny = volume(VolumeType::Gp2, 1, None, None).operations;
        assert_eq!(tiny.savings / tiny.peak, 1_800);
        assert_eq!(volume(VolumeType::Gp2, 1_000, None, None).operations, Speed::constant(3_000));
        assert_eq!(volume(VolumeType::Gp2, 334, None, None).bytes, Speed::constant(250 * MIB));
    }

    #[test]
    fn provisioned_iops_determine_throughput() {
        let bytes = |volume_type, iops| volume(volume_type, 2_000, Some(iops), None).bytes.peak / MIB;
        assert_eq!(bytes(VolumeType::Io1, 100), 25);
        assert_eq!(bytes(VolumeType::Io1, 2_000), 500);
        assert_eq!(bytes(VolumeType::Io1, 32_000), 500);
        assert_eq!(bytes(VolumeType::Io1, 64_000), 1_000);
        assert_eq!(bytes(VolumeType::Io2, 1_000), 250);
        assert_eq!(bytes(VolumeType::Io2, 256_000), 4_000);
    }

    #[test]
    fn hdd_throughput_grows_with_size() {
        let st1 = volume(VolumeType::St1, 1_024, None, None).bytes;
        assert_eq!(st1, Speed { baseline: 40 * MIB, peak: 250 * MIB, savings: 1 << 40 });
        assert_eq!(volume(VolumeType::St1, 12_800, None, None).bytes.baseline, 500 * MIB);
        let sc1 = volume(VolumeType::Sc1, 125, None, None).bytes;
        assert_eq!((sc1.baseline, sc1.peak), (125 * 12 * MIB / 1024, 125 * 80 * MIB / 1024));
    }

    #[test]
    fn ebs_and_network_speeds_of_every_type_are_consistent() {
        for row in catalog::all() {
            let speeds = row.ebs_performance().map(|path| [path.bytes, path.operations]);
            for speed in speeds.into_iter().flatten().chain([row.network_speed()]) {
                assert!(speed.baseline > 0 && speed.baseline <= speed.peak, "{}", row.name);
                assert_eq!(speed.savings > 0, speed.peak > speed.baseline, "{}", row.name);
            }
        }
        let nano = catalog::find("t3.nano").unwrap();
        assert_eq!(nano.network_speed().baseline, 4_000_000);
    }
}
