//! The `--volume` option: `8`, or `size=8,type=gp3,device=/dev/sdf`.

use std::str::FromStr;

use super::{VolumeSize, VolumeSpec, VolumeType, no_size};
use crate::block_device::DeviceName;
use crate::{Ec2Error, ErrorCode};

/// An entry of a block device mapping, as given with `--volume`: a size in GiB or with a unit, or a comma-separated
/// list of `KEY=VALUE`. In a list, the size may come first without its key. `name` sets the `Name` tag and cannot
/// contain a comma.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeOption {
    pub source: VolumeSource,
    /// None selects the next free device name.
    pub device: Option<DeviceName>,
    pub delete_on_termination: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    New {
        spec: VolumeSpec,
        /// An ID, a unique ID prefix, or a name.
        snapshot: Option<String>,
        /// Value of the `Name` tag.
        name: Option<String>,
    },
    /// An ID, a unique ID prefix, or a name.
    Existing(String),
}

impl VolumeOption {
    /// Returns true if the volume is deleted with its instance. By default, a new volume is, and an existing one is
    /// kept, as with EC2's command line. Source: EC2 User Guide, "Preserve data when an instance is terminated".
    pub fn deleted_on_termination(&self) -> bool {
        self.delete_on_termination.unwrap_or(matches!(self.source, VolumeSource::New { .. }))
    }
}

impl FromStr for VolumeOption {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        let mut parts = Parts::default();
        for (index, item) in text.split(',').enumerate() {
            match item.split_once('=') {
                Some((key, value)) => parts.put(item, key, value)?,
                None if index == 0 && item.starts_with(|c: char| c.is_ascii_digit()) => {
                    parts.put(item, "size", item)?
                }
                None => return Err(wrong(item, "it must be KEY=VALUE")),
            }
        }
        parts.option()
    }
}

#[derive(Default)]
struct Parts {
    size: Option<VolumeSize>,
    volume_type: Option<VolumeType>,
    iops: Option<u32>,
    throughput: Option<u32>,
    device: Option<DeviceName>,
    snapshot: Option<String>,
    volume: Option<String>,
    delete_on_termination: Option<bool>,
    name: Option<String>,
}

impl Parts {
    fn put(&mut self, item: &str, key: &str, value: &str) -> Result<(), Ec2Error> {
        match key {
            "size" => set(&mut self.size, value.parse()?, item),
            "type" => set(&mut self.volume_type, value.parse()?, item),
            "iops" => set(&mut self.iops, number(item, value)?, item),
            "throughput" => set(&mut self.throughput, number(item, value)?, item),
            "device" => set(&mut self.device, value.parse()?, item),
            "snapshot" => set(&mut self.snapshot, reference(item, value)?, item),
            "volume" => set(&mut self.volume, reference(item, value)?, item),
            "delete-on-termination" => set(&mut self.delete_on_termination, flag(item, value)?, item),
            "name" => set(&mut self.name, value.to_owned(), item),
            _ => Err(wrong(item, "unknown key")),
        }
    }

    fn option(self) -> Result<VolumeOption, Ec2Error> {
        let source = match self.volume {
            Some(volume) => {
                // Keys that apply to new volumes only, in the order of the documentation.
                let others = [
                    ("size", self.size.is_some()),
                    ("type", self.volume_type.is_some()),
                    ("iops", self.iops.is_some()),
                    ("throughput", self.throughput.is_some()),
                    ("snapshot", self.snapshot.is_some()),
                    ("name", self.name.is_some()),
                ];
                if let Some((other, _)) = others.into_iter().find(|(_, given)| *given) {
                    return Err(Ec2Error::refused(
                        ErrorCode::InvalidParameterCombination,
                        format!("The parameter volume cannot be combined with {other}."),
                        Some(
                            "An existing volume is attached unchanged. Combine it only with device and \
                             delete-on-termination."
                                .into(),
                        ),
                    ));
                }
                VolumeSource::Existing(volume)
            }
            None if self.size.is_none() && self.snapshot.is_none() => return Err(no_size()),
            None => VolumeSource::New {
                spec: VolumeSpec {
                    size: self.size,
                    volume_type: self.volume_type.unwrap_or_default(),
                    iops: self.iops,
                    throughput: self.throughput,
                },
                snapshot: self.snapshot,
                name: self.name,
            },
        };
        Ok(VolumeOption { source, device: self.device, delete_on_termination: self.delete_on_termination })
    }
}

fn set<T>(slot: &mut Option<T>, value: T, item: &str) -> Result<(), Ec2Error> {
    match slot.replace(value) {
        Some(_) => Err(wrong(item, "the key is specified twice")),
        None => Ok(()),
    }
}

fn number(item: &str, value: &str) -> Result<u32, Ec2Error> {
    value.parse().map_err(|_| wrong(item, "the value must be a whole number"))
}

fn flag(item: &str, value: &str) -> Result<bool, Ec2Error> {
    value.parse().map_err(|_| wrong(item, "the value must be true or false"))
}

fn reference(item: &str, value: &str) -> Result<String, Ec2Error> {
    if value.is_empty() {
        return Err(wrong(item, "the value is missing"));
    }
    Ok(value.to_owned())
}

fn wrong(item: &str, what: &str) -> Ec2Error {
    let hint = "Specify SIZE in GiB, or KEY=VALUE,... with the keys size, type, iops, throughput, device, snapshot, \
                volume, delete-on-termination, name.";
    let what = format!("Invalid value '{item}' for volume: {what}.");
    Ec2Error::refused(ErrorCode::InvalidParameterValue, what, Some(hint.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;
    use proptest::prelude::*;

    fn option(text: &str) -> VolumeOption {
        text.parse().expect(text)
    }

    #[test]
    fn size_alone_is_a_gp3_volume() {
        let spec = VolumeSpec { size: VolumeSize::from_gib(8), ..VolumeSpec::default() };
        let expected = VolumeOption {
            source: VolumeSource::New { spec, snapshot: None, name: None },
            device: None,
            delete_on_termination: None,
        };
        assert_eq!(option("8"), expected);
        assert_eq!(option("size=8"), expected);
        assert_eq!(option("8192M,type=gp3"), expected);
    }

    #[test]
    fn every_key_is_parsed() {
        let read = option(
            "size=8,type=gp3,iops=4000,throughput=200,device=/dev/sdf,snapshot=snap-0a1,\
             delete-on-termination=false,name=N",
        );
        let spec = VolumeSpec {
            size: VolumeSize::from_gib(8),
            volume_type: VolumeType::Gp3,
            iops: Some(4000),
            throughput: Some(200),
        };
        let source = VolumeSource::New { spec, snapshot: Some("snap-0a1".into()), name: Some("N".into()) };
        assert_eq!(read.source, source);
        assert_eq!(read.device.as_ref().map(DeviceName::as_str), Some("/dev/sdf"));
        assert_eq!(read.delete_on_termination, Some(false));
    }

    #[test]
    fn new_volume_is_deleted_on_termination_and_existing_is_kept() {
        assert!(option("8").deleted_on_termination());
        assert!(option("snapshot=snap-0a1").deleted_on_termination());
        assert!(!option("8,delete-on-termination=false").deleted_on_termination());
        assert!(!option("volume=vol-0a1").deleted_on_termination());
        assert!(option("volume=data,delete-on-termination=true").deleted_on_termination());
    }

    #[test]
    fn invalid_option_is_refused_with_its_part() {
        for (text, expected) in [
            ("", "InvalidParameterValue: Invalid value '' for volume: it must be KEY=VALUE."),
            ("8,gp3", "InvalidParameterValue: Invalid value 'gp3' for volume: it must be KEY=VALUE."),
            ("8,", "InvalidParameterValue: Invalid value '' for volume: it must be KEY=VALUE."),
            ("8,color=red", "InvalidParameterValue: Invalid value 'color=red' for volume: unknown key."),
            ("8,size=9", "InvalidParameterValue: Invalid value 'size=9' for volume: the key is specified twice."),
            (
                "8,iops=-1",
                "InvalidParameterValue: Invalid value 'iops=-1' for volume: the value must be a whole number.",
            ),
            ("volume=", "InvalidParameterValue: Invalid value 'volume=' for volume: the value is missing."),
            ("8X", "InvalidParameterValue: Invalid value '8X' for size: it is not a valid volume size."),
            ("type=gp3", "MissingParameter: The request must contain the parameter size or snapshotId."),
            (
                "volume=vol-0a1,size=8",
                "InvalidParameterCombination: The parameter volume cannot be combined with size.",
            ),
        ] {
            let error = text.parse::<VolumeOption>().expect_err(text);
            assert_eq!(error.to_string(), expected);
            assert!(error.hint().is_some(), "{text}");
        }
        let error = "8,device=/dev/vdb".parse::<VolumeOption>().expect_err("no such device");
        assert_eq!(error.code(), ErrorCode::InvalidParameterValue);
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in ".*") {
            let _ = text.parse::<VolumeOption>();
        }
    }
}
