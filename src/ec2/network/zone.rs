//! Availability zones. There is one machine; zones are labels, as in EC2.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ec2::Ec2Error;

/// The region.
pub const REGION: &str = "us-east-1";

/// A zone of the region, named by its letter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Zone {
    /// `us-east-1a`.
    #[default]
    A,
    /// `us-east-1b`.
    B,
    /// `us-east-1c`.
    C,
    /// `us-east-1d`.
    D,
    /// `us-east-1e`.
    E,
    /// `us-east-1f`.
    F,
}

impl Zone {
    /// All zones in order.
    pub const ALL: [Zone; 6] = [Zone::A, Zone::B, Zone::C, Zone::D, Zone::E, Zone::F];

    /// The zone id, which is the same for all accounts in EC2, for example `use1-az1`.
    pub fn id(self) -> String {
        format!("use1-az{}", self as u8 + 1)
    }

    fn letter(self) -> char {
        char::from(b'a' + self as u8)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{REGION}{}", self.letter()))
    }
}

impl FromStr for Zone {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Zone, Ec2Error> {
        Zone::ALL.into_iter().find(|zone| zone.to_string() == text).ok_or_else(|| Ec2Error::InvalidParameterValue {
            parameter: "AvailabilityZone",
            given: text.to_string(),
            rule: format!("the zones are {REGION}a to {REGION}f."),
        })
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> String {
        zone.to_string()
    }
}

impl TryFrom<String> for Zone {
    type Error = Ec2Error;

    fn try_from(text: String) -> Result<Zone, Ec2Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_has_a_name_and_an_identifier() {
        for zone in Zone::ALL {
            assert_eq!(zone.to_string().parse(), Ok(zone));
        }
        assert_eq!((Zone::B.to_string().as_str(), Zone::B.id().as_str()), ("us-east-1b", "use1-az2"));
        assert!("us-east-1g".parse::<Zone>().is_err() && "a".parse::<Zone>().is_err());
    }
}
