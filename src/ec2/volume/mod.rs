//! Volumes: requests, validation, and the resulting figures.
//!
//! Sources: EC2 API Reference, `CreateVolume` and `ModifyVolume`; Amazon EBS User Guide, "Amazon EBS volume types".
//! Extension: sizes are whole MiB, not whole GiB as in EC2 ([`VolumeSize::extension`]).

mod kind;
mod option;
mod size;
mod state;

pub use kind::{IopsLimits, Limits, ThroughputLimits, VolumeType};
pub use option::{VolumeOption, VolumeSource};
pub use size::VolumeSize;
pub use state::{AttachmentState, VolumeState};

use super::error::{Ec2Error, ErrorCode};

/// gp2's baseline IOPS per GiB, and the minimum and maximum baseline.
const GP2_IOPS_PER_GIB: u64 = 3;
const GP2_IOPS: (u64, u64) = (100, 16_000);

/// Default IOPS after a change to a type with provisioned IOPS.
const IOPS_OF_CHANGED_TYPE: u32 = 3_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Root,
    /// Any other volume, including an unattached one.
    Data,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Defaults to the size of the snapshot or image.
    pub size: Option<VolumeSize>,
    pub volume_type: VolumeType,
    pub iops: Option<u32>,
    /// In MiB/s.
    pub throughput: Option<u32>,
}

impl VolumeSpec {
    /// Validates the request and fills in the defaults. `source` is the size of the snapshot or image, if any.
    pub fn figures(&self, source: Option<VolumeSize>, role: Role) -> Result<VolumeFigures, Ec2Error> {
        let volume_type = self.volume_type;
        check_role(volume_type, role)?;
        let size = self.size.or(source).ok_or_else(no_size)?;
        check_size(volume_type, size)?;
        if let Some(source_size) = source
            && size < source_size
        {
            return Err(invalid(format!(
                "Volume of {size} is smaller than its snapshot or image, expect size >= {source_size}."
            )));
        }
        let iops = iops_for(volume_type, size, self.iops)?;
        let throughput = throughput_for(volume_type, iops, self.throughput)?;
        Ok(VolumeFigures { size, volume_type, iops, throughput })
    }
}

/// A volume's size and performance, as in `DescribeVolumes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeFigures {
    pub size: VolumeSize,
    pub volume_type: VolumeType,
    /// Provisioned IOPS, or gp2's baseline; none for HDD types.
    pub iops: Option<u32>,
    /// Provisioned throughput in MiB/s, for gp3.
    pub throughput: Option<u32>,
}

/// A `ModifyVolume` request. Unspecified values are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeChange {
    /// At least the current size.
    pub size: Option<VolumeSize>,
    pub volume_type: Option<VolumeType>,
    pub iops: Option<u32>,
    /// In MiB/s.
    pub throughput: Option<u32>,
}

impl VolumeFigures {
    /// Returns the figures after a change. Unspecified values are kept, unless the type changes: then, provisioned IOPS
    /// default to 3,000, or less for a small volume, and throughput to the new type's default.
    pub fn modified(&self, change: &VolumeChange, role: Role) -> Result<VolumeFigures, Ec2Error> {
        if *change == VolumeChange::default() {
            let what = "The request must contain at least one of size, type, iops and throughput.";
            return Err(Ec2Error::refused(ErrorCode::InvalidParameterCombination, what, None));
        }
        let volume_type = change.volume_type.unwrap_or(self.volume_type);
        check_role(volume_type, role)?;
        let size = change.size.unwrap_or(self.size);
        if size < self.size {
            let what = format!("New size of {size} cannot be smaller than existing size of {}.", self.size);
            let hint = "Volumes can only grow. Copy the data to a new, smaller volume instead.";
            return Err(Ec2Error::refused(ErrorCode::InvalidParameterValue, what, Some(hint.into())));
        }
        check_size(volume_type, size)?;
        let chosen = volume_type.limits().iops.map(|limits| {
            if volume_type == self.volume_type {
                self.iops
            } else {
                // EC2's documented default, or the maximum for the volume's size if that is lower.
                Some(IOPS_OF_CHANGED_TYPE.min(limits.most(size)))
            }
        });
        let kept = self.throughput.filter(|_| volume_type == self.volume_type);
        let iops = iops_for(volume_type, size, change.iops.or(chosen.flatten()))?;
        let throughput = throughput_for(volume_type, iops, change.throughput.or(kept))?;
        Ok(VolumeFigures { size, volume_type, iops, throughput })
    }
}

fn check_role(volume_type: VolumeType, role: Role) -> Result<(), Ec2Error> {
    if role == Role::Data || volume_type.bootable() {
        return Ok(());
    }
    let what = format!("A {volume_type} volume cannot be a root volume.");
    let hint = "A root volume must be gp3, gp2, io1, io2 or standard.";
    Err(Ec2Error::refused(ErrorCode::InvalidBlockDeviceMapping, what, Some(hint.into())))
}

/// Sizes below 1 GiB are a Wisp extension for types with a minimum of 1 GiB.
fn check_size(volume_type: VolumeType, size: VolumeSize) -> Result<(), Ec2Error> {
    let limits = volume_type.limits();
    if limits.min_gib > 1 && Some(size) < VolumeSize::from_gib(limits.min_gib) {
        let minimum = limits.min_gib;
        return Err(invalid(format!("Volume of {size} is too small for {volume_type}; minimum is {minimum} GiB.")));
    }
    if size.gib() > limits.max_gib {
        let maximum = limits.max_gib;
        return Err(invalid(format!("Volume of {size} is too large for {volume_type}; maximum is {maximum} GiB.")));
    }
    Ok(())
}

fn iops_for(volume_type: VolumeType, size: VolumeSize, asked: Option<u32>) -> Result<Option<u32>, Ec2Error> {
    let Some(limits) = volume_type.limits().iops else {
        return match asked {
            Some(_) => {
                let hint = "You can specify IOPS only for gp3, io1 and io2 volumes.";
                Err(not_supported(volume_type, "iops", hint))
            }
            None => Ok((volume_type == VolumeType::Gp2).then(|| gp2_baseline(size))),
        };
    };
    let most = limits.most(size);
    let given = asked.or(limits.default).ok_or_else(|| {
        let what = format!("The request must contain the parameter iops: {volume_type} volumes have no default IOPS.");
        let hint = format!(
            "Specify `iops=` with a value from {} to {most} for this size, or use gp3 (default: 3000).",
            limits.min
        );
        Ec2Error::refused(ErrorCode::MissingParameter, what, Some(hint))
    })?;
    check_range(volume_type, "iops", given, (limits.min, limits.max))?;
    if given > most {
        let what = format!(
            "Iops to volume size ratio is too high: {volume_type} volumes of {size} support at most {most} IOPS, not \
             {given}."
        );
        let hint = format!("Request at most {most} IOPS, or a larger volume.");
        return Err(Ec2Error::refused(ErrorCode::InvalidParameterCombination, what, Some(hint)));
    }
    Ok(Some(given))
}

fn throughput_for(volume_type: VolumeType, iops: Option<u32>, asked: Option<u32>) -> Result<Option<u32>, Ec2Error> {
    let Some(limits) = volume_type.limits().throughput else {
        return match asked {
            Some(_) => {
                let hint = "You can specify the throughput only for gp3 volumes.";
                Err(not_supported(volume_type, "throughput", hint))
            }
            None => Ok(None),
        };
    };
    let given = asked.unwrap_or(limits.default);
    check_range(volume_type, "throughput", given, (limits.min, limits.max))?;
    let iops = iops.unwrap_or_default();
    let most = iops / limits.iops_per_mib;
    if given > most {
        let what = format!(
            "Throughput (MiBps) to iops ratio is too high: the maximum for {iops} IOPS is {most} MiBps, not {given}."
        );
        let hint = format!("Request at least {} IOPS as well.", u64::from(given) * 4);
        return Err(Ec2Error::refused(ErrorCode::InvalidParameterCombination, what, Some(hint)));
    }
    Ok(Some(given))
}

fn check_range(volume_type: VolumeType, parameter: &str, given: u32, (min, max): (u32, u32)) -> Result<(), Ec2Error> {
    if given < min {
        Err(invalid(format!("Volume {parameter} of {given} is too low for {volume_type}; minimum is {min}.")))
    } else if given > max {
        Err(invalid(format!("Volume {parameter} of {given} is too high for {volume_type}; maximum is {max}.")))
    } else {
        Ok(())
    }
}

fn invalid(what: String) -> Ec2Error {
    Ec2Error::refused(ErrorCode::InvalidParameterValue, what, None)
}

fn not_supported(volume_type: VolumeType, parameter: &str, hint: &str) -> Ec2Error {
    let what = format!("The parameter {parameter} is not supported for {volume_type} volumes.");
    Ec2Error::refused(ErrorCode::InvalidParameterCombination, what, Some(hint.into()))
}

/// Returns the error for a volume without a size and a snapshot.
pub fn no_size() -> Ec2Error {
    let what = "The request must contain the parameter size or snapshotId.";
    let hint = "Specify a size in GiB, such as 8, or a snapshot.";
    Ec2Error::refused(ErrorCode::MissingParameter, what, Some(hint.into()))
}

fn gp2_baseline(size: VolumeSize) -> u32 {
    let (fewest, most) = GP2_IOPS;
    let iops = size.gib().saturating_mul(GP2_IOPS_PER_GIB).clamp(fewest, most);
    u32::try_from(iops).expect("it is at most 16,000")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gib(gib: u64) -> VolumeSize {
        VolumeSize::from_gib(gib).expect("some")
    }

    fn spec(volume_type: VolumeType, size: u64, iops: Option<u32>, throughput: Option<u32>) -> VolumeSpec {
        VolumeSpec { size: Some(gib(size)), volume_type, iops, throughput }
    }

    fn figures(spec: VolumeSpec) -> (Option<u32>, Option<u32>) {
        let figures = spec.figures(None, Role::Data).expect("allowed");
        (figures.iops, figures.throughput)
    }

    fn refused(spec: VolumeSpec) -> String {
        spec.figures(None, Role::Data).expect_err("refused").to_string()
    }

    #[test]
    fn gp3_figures_default_to_ec2_values() {
        assert_eq!(figures(spec(VolumeType::Gp3, 8, None, None)), (Some(3000), Some(125)));
        assert_eq!(figures(spec(VolumeType::Gp3, 8, Some(4000), Some(1000))), (Some(4000), Some(1000)));
        assert_eq!(figures(spec(VolumeType::Gp3, 32, Some(16_000), None)), (Some(16_000), Some(125)));
    }

    #[test]
    fn gp2_baseline_grows_with_size() {
        for (size, iops) in
            [(1, 100), (33, 100), (34, 102), (100, 300), (5333, 15_999), (5334, 16_000), (16_384, 16_000)]
        {
            assert_eq!(figures(spec(VolumeType::Gp2, size, None, None)), (Some(iops), None), "{size}");
        }
    }

    #[test]
    fn hdd_types_have_no_figures() {
        for (volume_type, size) in [(VolumeType::St1, 125), (VolumeType::Sc1, 125), (VolumeType::Standard, 1)] {
            assert_eq!(figures(spec(volume_type, size, None, None)), (None, None));
        }
    }

    #[test]
    fn provisioned_iops_are_required_and_bounded_by_size() {
        assert_eq!(figures(spec(VolumeType::Io1, 4, Some(200), None)), (Some(200), None));
        assert_eq!(figures(spec(VolumeType::Io1, 1280, Some(64_000), None)), (Some(64_000), None));
        assert_eq!(figures(spec(VolumeType::Io2, 512, Some(256_000), None)), (Some(256_000), None));
        let missing = spec(VolumeType::Io1, 4, None, None).figures(None, Role::Data).expect_err("no default");
        assert_eq!(missing.code(), ErrorCode::MissingParameter);
        assert!(missing.hint().is_some_and(|hint| hint.contains("100 to 200")));
    }

    #[test]
    fn invalid_spec_is_refused_with_its_limit() {
        for (given, expected) in [
            (
                spec(VolumeType::Gp3, 8, Some(2999), None),
                "InvalidParameterValue: Volume iops of 2999 is too low for gp3; minimum is 3000.",
            ),
            (
                spec(VolumeType::Gp3, 99, Some(16_001), None),
                "InvalidParameterValue: Volume iops of 16001 is too high for gp3; maximum is 16000.",
            ),
            (
                spec(VolumeType::Gp3, 8, Some(4001), None),
                "InvalidParameterCombination: Iops to volume size ratio is too high: gp3 volumes of 8 GiB \
                 support at most 4000 IOPS, not 4001.",
            ),
            (
                spec(VolumeType::Gp3, 8, None, Some(751)),
                "InvalidParameterCombination: Throughput (MiBps) to iops ratio is too high: the maximum for \
                 3000 IOPS is 750 MiBps, not 751.",
            ),
            (
                spec(VolumeType::Gp3, 8, None, Some(124)),
                "InvalidParameterValue: Volume throughput of 124 is too low for gp3; minimum is 125.",
            ),
            (
                spec(VolumeType::Gp2, 8, Some(100), None),
                "InvalidParameterCombination: The parameter iops is not supported for gp2 volumes.",
            ),
            (
                spec(VolumeType::Io2, 8, Some(100), Some(125)),
                "InvalidParameterCombination: The parameter throughput is not supported for io2 volumes.",
            ),
            (
                spec(VolumeType::Io1, 4, Some(201), None),
                "InvalidParameterCombination: Iops to volume size ratio is too high: io1 volumes of 4 GiB \
                 support at most 200 IOPS, not 201.",
            ),
            (
                spec(VolumeType::St1, 124, None, None),
                "InvalidParameterValue: Volume of 124 GiB is too small for st1; minimum is 125 GiB.",
            ),
            (
                spec(VolumeType::Standard, 1025, None, None),
                "InvalidParameterValue: Volume of 1025 GiB is too large for standard; maximum is 1024 GiB.",
            ),
        ] {
            assert_eq!(refused(given), expected);
        }
    }

    #[test]
    fn volume_below_1_gib_is_allowed_if_minimum_is_1_gib() {
        let half = VolumeSize::from_mib(512);
        for volume_type in VolumeType::ALL {
            let given = VolumeSpec { size: half, volume_type, iops: None, throughput: None };
            let allowed = given.figures(None, Role::Data).is_ok();
            assert_eq!(allowed, volume_type.limits().min_gib == 1, "{volume_type}");
        }
    }

    #[test]
    fn snapshot_size_is_default_and_minimum() {
        let without_size = VolumeSpec::default();
        assert_eq!(without_size.figures(Some(gib(9)), Role::Data).expect("allowed").size, gib(9));
        let code = |result: Result<VolumeFigures, Ec2Error>| result.expect_err("refused").code();
        assert_eq!(code(without_size.figures(None, Role::Data)), ErrorCode::MissingParameter);
        let small = spec(VolumeType::Gp3, 8, None, None);
        assert_eq!(code(small.figures(Some(gib(9)), Role::Data)), ErrorCode::InvalidParameterValue);
    }

    #[test]
    fn unbootable_type_is_refused_as_root() {
        for volume_type in VolumeType::ALL {
            let iops = volume_type.limits().iops.map(|limits| limits.min);
            let root = spec(volume_type, 500, iops, None).figures(None, Role::Root);
            match root {
                Ok(_) => assert!(volume_type.bootable(), "{volume_type}"),
                Err(error) => assert_eq!(error.code(), ErrorCode::InvalidBlockDeviceMapping, "{volume_type}"),
            }
        }
    }

    #[test]
    fn volume_type_round_trips() {
        for volume_type in VolumeType::ALL {
            assert_eq!(volume_type.to_string().parse::<VolumeType>(), Ok(volume_type));
            assert_eq!(serde_json::to_string(&volume_type).expect("a string"), format!("\"{volume_type}\""));
        }
        let error = "gp4".parse::<VolumeType>().expect_err("unknown");
        assert_eq!(error.to_string(), "UnknownVolumeType: Unsupported volume type 'gp4' for volume creation.");
        assert_eq!(error.hint(), Some("The volume types are gp3, gp2, io1, io2, st1, sc1, standard."));
    }

    #[test]
    fn modified_volume_grows_and_never_shrinks() {
        let old = spec(VolumeType::Gp3, 8, Some(4000), Some(500)).figures(None, Role::Data).expect("allowed");
        let to = |size| VolumeChange { size: Some(gib(size)), ..VolumeChange::default() };
        assert_eq!(old.modified(&to(9), Role::Data), Ok(VolumeFigures { size: gib(9), ..old }));
        assert_eq!(old.modified(&to(8), Role::Data), Ok(old));
        assert_eq!(
            old.modified(&to(7), Role::Data).expect_err("it shrinks").to_string(),
            "InvalidParameterValue: New size of 7 GiB cannot be smaller than existing size of 8 GiB."
        );
        let nothing = old.modified(&VolumeChange::default(), Role::Data).expect_err("no change");
        assert_eq!(nothing.code(), ErrorCode::InvalidParameterCombination);
    }

    #[test]
    fn modified_type_gets_its_own_defaults() {
        let old = spec(VolumeType::Gp3, 100, Some(16_000), Some(500)).figures(None, Role::Data).expect("allowed");
        let to = |volume_type| VolumeChange { volume_type: Some(volume_type), ..VolumeChange::default() };
        let changed = |volume_type| old.modified(&to(volume_type), Role::Data).map(|new| (new.iops, new.throughput));
        assert_eq!(changed(VolumeType::Gp2), Ok((Some(300), None)));
        assert_eq!(changed(VolumeType::Io1), Ok((Some(3000), None)));
        assert_eq!(changed(VolumeType::Gp3), Ok((Some(16_000), Some(500))));
        assert!(changed(VolumeType::St1).is_err(), "100 GiB is too small");
        let gp2 = spec(VolumeType::Gp2, 8, None, None).figures(None, Role::Data).expect("allowed");
        let gp3 = gp2.modified(&to(VolumeType::Gp3), Role::Root).expect("allowed");
        assert_eq!((gp3.iops, gp3.throughput), (Some(3000), Some(125)));
        assert_eq!(gp2.modified(&to(VolumeType::Io1), Role::Data).expect("allowed").iops, Some(400));
    }

    proptest! {
        #[test]
        fn modification_to_same_size_keeps_figures(
            kind in 0..VolumeType::ALL.len(),
            mib in 1..=MAX_MIB,
            iops: Option<u32>,
            throughput: Option<u32>,
        ) {
            let volume_type = VolumeType::ALL[kind];
            let spec = VolumeSpec { size: VolumeSize::from_mib(mib), volume_type, iops, throughput };
            if let Ok(made) = spec.figures(None, Role::Data) {
                let same = VolumeChange { size: Some(made.size), ..VolumeChange::default() };
                prop_assert_eq!(made.modified(&same, Role::Data), Ok(made));
            }
        }
    }

    const MAX_MIB: u64 = u64::MAX >> 20;
}
