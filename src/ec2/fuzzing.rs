//! Entry points for fuzzing the parsers of user input: sizes, IDs, names and options.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use super::block_device::DeviceName;
use super::id::{Id, ImageId, InstanceId, KeyPairId, SnapshotId, VolumeId};
use super::key::{KeyFormat, KeyName, KeyType};
use super::metadata::MetadataChange;
use super::network::{NetworkMode, PublishedPort, Traffic, check_group_name, parse_range};
use super::size::MemorySize;
use super::state::ShutdownBehavior;
use super::tag::Tag;
use super::type_name::TypeName;
use super::user_data::UserData;
use super::volume::{VolumeOption, VolumeSize, VolumeType};
use super::{Ec2Error, catalog};

pub fn words(data: &[u8]) {
    let _ = UserData::read(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    check_round_trip::<MemorySize>(text);
    check_round_trip::<VolumeSize>(text);
    check_round_trip::<DeviceName>(text);
    if let Ok(range) = parse_range(text) {
        assert_eq!(parse_range(&range.to_string()), Ok(range), "{text:?}");
    }
    check_round_trip::<InstanceId>(text);
    let _ = (ImageId::from_str(text), SnapshotId::from_str(text), VolumeId::from_str(text), KeyPairId::from_str(text));
    let _ = (KeyName::from_str(text), KeyType::from_str(text), KeyFormat::from_str(text), Tag::from_str(text));
    let _ = (MetadataChange::from_str(text), NetworkMode::from_str(text), ShutdownBehavior::from_str(text));
    let _ = (VolumeType::from_str(text), VolumeOption::from_str(text), PublishedPort::from_str(text));
    let (first, rest) = text.split_once(' ').map_or((text, None), |(first, rest)| (first, Some(rest)));
    let _ = (Traffic::parse(Some(first), rest), Traffic::parse(None, rest), check_group_name(text));
    if let Some(name) = TypeName::parse(text) {
        let _ = (name.reading(), name.family_reading());
    }
    check_error(catalog::find(text));
    check_error(catalog::select(text));
    let known = [InstanceId::from_random([0x1a; 9]), InstanceId::from_random([0x1b; 9])];
    check_error(Id::find(text, known));
}

fn check_error<T>(result: Result<T, Ec2Error>) {
    if let Err(error) = result {
        assert!(!error.to_string().is_empty());
        let _ = (error.code(), error.hint());
    }
}

fn check_round_trip<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let printed = value.to_string();
        assert_eq!(
            printed.parse::<T>().expect("a displayed value can be parsed"),
            value,
            "{text:?} is displayed as {printed:?}"
        );
    }
}
