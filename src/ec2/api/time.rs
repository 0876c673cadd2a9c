//! Times.

use std::fmt;

use serde::{Serialize, Serializer};

/// A time in the format of EC2's API: `2026-11-23T08:40:00.000Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// `seconds` is a number of seconds since 1970.
    pub fn from_seconds(seconds: u64) -> Timestamp {
        Timestamp(seconds)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0).unwrap_or(i64::MAX);
        let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{}", time.strftime("%Y-%m-%dT%H:%M:%S.000Z"))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_has_format_of_ec2_and_no_overflow() {
        assert_eq!(Timestamp::from_seconds(951_782_400).to_string(), "2000-02-29T00:00:00.000Z");
        assert_eq!(serde_json::to_value(Timestamp::from_seconds(0)).expect("text"), "1970-01-01T00:00:00.000Z");
        assert!(Timestamp::from_seconds(u64::MAX).to_string().starts_with("9999-12-"));
    }
}
