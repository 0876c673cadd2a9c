//! Device names of block device mappings, for example `/dev/sdf`. The guest's kernel chooses its own name for the disk.
//!
//! Source: EC2 User Guide, "Device names for volumes on Amazon EC2 instances", the row for HVM.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Ec2Error, ErrorCode};

/// A device name: `/dev/sda1` or `/dev/xvda` for the root volume; `/dev/sdb` to `/dev/sdz`, `/dev/xvdb` to `/dev/xvdz`
/// and `/dev/xvdaa` to `/dev/xvddz` for other volumes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DeviceName(String);

impl DeviceName {
    /// Returns the root device's name in most images, `/dev/sda1`. Amazon Linux uses `/dev/xvda`.
    pub fn root() -> DeviceName {
        DeviceName("/dev/sda1".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.slot() == "a"
    }

    /// Returns true if both names denote one slot: in the guest, `/dev/sdf` and `/dev/xvdf` are links to the same disk.
    pub fn same_place(&self, other: &DeviceName) -> bool {
        self.slot() == other.slot()
    }

    pub fn unless_used<'a>(self, in_use: impl IntoIterator<Item = &'a DeviceName>) -> Result<DeviceName, Ec2Error> {
        match in_use.into_iter().find(|used| self.same_place(used)) {
            Some(_) => {
                let name = self.0;
                Err(Ec2Error::refused(
                    ErrorCode::InvalidParameterValue,
                    format!("Invalid value '{name}' for device: attachment point {name} is already in use."),
                    Some("Use another device name, or omit it to use the next free one.".into()),
                ))
            }
            None => Ok(self),
        }
    }

    /// Returns the first free name. Prefers EC2's recommendation for EBS volumes, `/dev/sdf` to `/dev/sdp`; then the
    /// rest of the alphabet; then the names of instance-store disks, `/dev/sdb` to `/dev/sde`; then long names.
    pub fn next_free<'a>(in_use: impl IntoIterator<Item = &'a DeviceName>) -> Result<DeviceName, Ec2Error> {
        let used: Vec<&str> = in_use.into_iter().map(DeviceName::slot).collect();
        let short = ('f'..='z').chain('b'..='e').map(|letter| format!("/dev/sd{letter}"));
        let long = ('a'..='d').flat_map(|first| ('a'..='z').map(move |second| format!("/dev/xvd{first}{second}")));
        short.chain(long).map(DeviceName).find(|name| !used.contains(&name.slot())).ok_or_else(|| {
            let what = "All device names of the instance are in use.";
            Ec2Error::refused(ErrorCode::AttachmentLimitExceeded, what, Some("Detach a volume first.".into()))
        })
    }

    fn slot(&self) -> &str {
        slot(&self.0).unwrap_or(&self.0)
    }
}

/// Returns the letters that identify the slot (`a` for `/dev/sda1`), or none if `name` is not a valid device name.
fn slot(name: &str) -> Option<&str> {
    let device = name.strip_prefix("/dev/")?;
    let (letters, long_ones) = match (device.strip_prefix("xvd"), device.strip_prefix("sd")) {
        (Some("a"), _) | (_, Some("a1")) => return Some("a"),
        (Some(letters), _) => (letters, true),
        (_, Some(letters)) => (letters, false),
        _ => return None,
    };
    match letters.as_bytes() {
        [b'b'..=b'z'] => Some(letters),
        [b'a'..=b'd', b'a'..=b'z'] if long_ones => Some(letters),
        _ => None,
    }
}

impl FromStr for DeviceName {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        match slot(text) {
            Some(_) => Ok(DeviceName(text.to_owned())),
            None => Err(Ec2Error::refused(
                ErrorCode::InvalidParameterValue,
                format!("Invalid value '{text}' for device: it is not a valid EBS device name."),
                Some("Use /dev/sdf to /dev/sdp. /dev/sda1 and /dev/xvda are reserved for root volumes.".into()),
            )),
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = Ec2Error;

    fn try_from(text: String) -> Result<Self, Ec2Error> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> String {
        name.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> DeviceName {
        text.parse().expect(text)
    }

    #[test]
    fn ec2_device_names_are_accepted() {
        for text in
            ["/dev/sda1", "/dev/xvda", "/dev/sdb", "/dev/sdz", "/dev/xvdb", "/dev/xvdz", "/dev/xvdaa", "/dev/xvddz"]
        {
            assert_eq!(name(text).to_string(), text);
        }
    }

    #[test]
    fn other_device_names_are_refused_with_hint() {
        for text in [
            "",
            "sdf",
            "/dev/",
            "/dev/sda",
            "/dev/sdf1",
            "/dev/sdF",
            "/dev/sdaa",
            "/dev/xvdea",
            "/dev/xvdaaa",
            "/dev/vda",
        ] {
            let error = text.parse::<DeviceName>().expect_err(text);
            assert_eq!(error.code(), ErrorCode::InvalidParameterValue, "{text}");
            assert!(error.hint().is_some_and(|hint| hint.contains("/dev/sdf")), "{text}");
        }
    }

    #[test]
    fn sd_and_xvd_names_share_a_slot() {
        assert!(name("/dev/sdf").same_place(&name("/dev/xvdf")));
        assert!(name("/dev/sda1").same_place(&name("/dev/xvda")));
        assert!(name("/dev/xvda").is_root() && !name("/dev/sdb").is_root());
        let error = name("/dev/xvdf").unless_used(&[name("/dev/sdf")]).expect_err("the slot is in use");
        assert!(error.to_string().starts_with("InvalidParameterValue: "), "{error}");
        assert_eq!(name("/dev/sdg").unless_used(&[name("/dev/sdf")]), Ok(name("/dev/sdg")));
    }

    #[test]
    fn next_free_prefers_recommended_names() {
        let next = |used: &[DeviceName]| DeviceName::next_free(used).expect("one is free").to_string();
        assert_eq!(next(&[DeviceName::root()]), "/dev/sdf");
        assert_eq!(next(&[name("/dev/sdf"), name("/dev/xvdg")]), "/dev/sdh");
    }

    #[test]
    fn next_free_returns_every_name_once() {
        let mut used = vec![DeviceName::root()];
        while let Ok(next) = DeviceName::next_free(&used) {
            let next = name(next.as_str()).unless_used(&used).expect("it is free");
            used.push(next);
        }
        assert_eq!(used.len(), 1 + 25 + 4 * 26);
        let error = DeviceName::next_free(&used).expect_err("all are used");
        assert_eq!(error.code(), ErrorCode::AttachmentLimitExceeded);
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in ".*") {
            let _ = text.parse::<DeviceName>();
        }
    }
}
