//! Volume sizes, as people write them and as EC2's API returns them.

use std::fmt;
use std::str::FromStr;

use crate::{Ec2Error, ErrorCode, MemorySize};

const MIB_PER_GIB: u64 = 1024;
const BYTES_PER_MIB: u64 = 1024 * 1024;

/// A volume's size: a positive whole number of MiB. Parses `8` (GiB), `512M`, `20G` and `1T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeSize(MemorySize);

impl VolumeSize {
    /// Returns none for zero, or if the number of bytes does not fit in 64 bits.
    pub fn from_gib(gib: u64) -> Option<VolumeSize> {
        Self::from_mib(gib.checked_mul(MIB_PER_GIB)?)
    }

    /// Returns none for zero, or if the number of bytes does not fit in 64 bits.
    pub fn from_mib(mib: u64) -> Option<VolumeSize> {
        MemorySize::from_mib(mib).map(VolumeSize)
    }

    pub fn that_holds(bytes: u64) -> Option<VolumeSize> {
        Self::from_mib(bytes.div_ceil(BYTES_PER_MIB))
    }

    pub fn mib(self) -> u64 {
        self.0.mib()
    }

    pub fn bytes(self) -> u64 {
        self.0.bytes()
    }

    /// Returns the size in GiB, rounded up: the value in EC2's API responses, which also determines IOPS limits.
    pub fn gib(self) -> u64 {
        self.mib().div_ceil(MIB_PER_GIB)
    }

    /// Returns a note if EC2 does not support the size.
    pub fn extension(self) -> Option<String> {
        (!self.mib().is_multiple_of(MIB_PER_GIB)).then(|| {
            format!("EC2 volume sizes are whole GiB. JSON output shows this size ({self}) as {} GiB.", self.gib())
        })
    }
}

impl fmt::Display for VolumeSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VolumeSize {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        let size = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            text.parse().ok().and_then(VolumeSize::from_gib)
        } else {
            text.parse().ok().map(VolumeSize)
        };
        size.ok_or_else(|| {
            let what = format!("Invalid value '{text}' for size: it is not a valid volume size.");
            let hint = "Specify a number of GiB, such as 8, or a number and a unit, such as 512M, 20G or 1T.";
            Ec2Error::refused(ErrorCode::InvalidParameterValue, what, Some(hint.into()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mib(text: &str) -> u64 {
        text.parse::<VolumeSize>().expect(text).mib()
    }

    #[test]
    fn size_without_unit_is_gib() {
        for (text, expected) in
            [("8", 8192), ("8G", 8192), ("8GiB", 8192), ("512M", 512), ("1.5G", 1536), ("1T", 1 << 20)]
        {
            assert_eq!(mib(text), expected, "{text}");
        }
    }

    #[test]
    fn invalid_size_is_refused() {
        for text in ["", "0", "-1", "8GB", "many", "1.5", "+8", "99999999999999999999", "18446744073709551615"] {
            let error = text.parse::<VolumeSize>().expect_err(text);
            assert_eq!(error.code(), ErrorCode::InvalidParameterValue, "{text}");
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn size_not_in_whole_gib_returns_extension_note() {
        let small = VolumeSize::from_mib(512).expect("some");
        assert_eq!(small.gib(), 1);
        assert_eq!(
            small.extension().as_deref(),
            Some("EC2 volume sizes are whole GiB. JSON output shows this size (512 MiB) as 1 GiB.")
        );
        assert_eq!(VolumeSize::from_gib(8).expect("some").extension(), None);
    }

    #[test]
    fn that_holds_rounds_up_to_mib() {
        assert_eq!(VolumeSize::that_holds(1).map(VolumeSize::mib), Some(1));
        assert_eq!(VolumeSize::that_holds(BYTES_PER_MIB + 1).map(VolumeSize::bytes), Some(2 * BYTES_PER_MIB));
        assert_eq!(VolumeSize::that_holds(0), None);
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in ".*") {
            let _ = text.parse::<VolumeSize>();
        }

        #[test]
        fn displayed_size_is_parsed_back(mib in 1..=MemorySize::MAX.mib()) {
            let size = VolumeSize::from_mib(mib).expect("within the range");
            prop_assert_eq!(size.to_string().parse::<VolumeSize>(), Ok(size));
            let _ = (size.gib(), size.extension());
        }
    }
}
