//! Availability zones, named as in EC2. There is only one machine, so a zone is just a label.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Ec2Error;

pub const REGION: &str = "us-east-1";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Zone {
    #[default]
    A,
    B,
    C,
    D,
    E,
    F,
}

impl Zone {
    pub const ALL: [Zone; 6] = [Zone::A, Zone::B, Zone::C, Zone::D, Zone::E, Zone::F];

    /// Returns the zone's ID, for example `use1-az1`. Unlike a name, it means the same zone in every EC2 account.
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
        Zone::ALL.into_iter().find(|zone| zone.to_string() == text).ok_or_else(|| {
            let rule = format!("it must be one of {REGION}a to {REGION}f.");
            Ec2Error::invalid_parameter("AvailabilityZone", text, rule)
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
    fn zone_name_round_trips_and_zone_has_id() {
        for zone in Zone::ALL {
            assert_eq!(zone.to_string().parse(), Ok(zone));
        }
        assert_eq!((Zone::B.to_string().as_str(), Zone::B.id().as_str()), ("us-east-1b", "use1-az2"));
        assert!("us-east-1g".parse::<Zone>().is_err() && "a".parse::<Zone>().is_err());
    }
}
