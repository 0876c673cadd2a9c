//! How an instance's metadata can be asked for (EC2 API Reference, `InstanceMetadataOptionsRequest`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::Ec2Error;

/// The most hops that an answer may go.
const MAX_HOPS: u8 = 64;

/// The options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataOptions {
    /// Whether the service answers (`HttpEndpoint`).
    pub endpoint: bool,
    /// Whether only those with a token are answered (`HttpTokens`): version 2 of the service alone.
    pub tokens_required: bool,
    /// How many hops an answer with a token may go (`HttpPutResponseHopLimit`).
    pub hop_limit: u8,
    /// Whether the instance's tags are part of it (`InstanceMetadataTags`).
    pub tags: bool,
}

impl Default for MetadataOptions {
    /// Both versions, from the instance itself, without its tags: as EC2 has it where nobody says otherwise.
    fn default() -> MetadataOptions {
        MetadataOptions { endpoint: true, tokens_required: false, hop_limit: 1, tags: false }
    }
}

/// Some of them, to be changed: `HttpTokens=required,HttpPutResponseHopLimit=2`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MetadataChange {
    endpoint: Option<bool>,
    tokens_required: Option<bool>,
    hop_limit: Option<u8>,
    tags: Option<bool>,
}

impl MetadataChange {
    /// The options with what is to be changed.
    pub fn applied(self, to: MetadataOptions) -> MetadataOptions {
        MetadataOptions {
            endpoint: self.endpoint.unwrap_or(to.endpoint),
            tokens_required: self.tokens_required.unwrap_or(to.tokens_required),
            hop_limit: self.hop_limit.unwrap_or(to.hop_limit),
            tags: self.tags.unwrap_or(to.tags),
        }
    }
}

impl FromStr for MetadataChange {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<MetadataChange, Ec2Error> {
        let refused = |rule: &str| Ec2Error::InvalidParameterValue {
            parameter: "MetadataOptions",
            given: text.to_string(),
            rule: rule.to_string(),
        };
        let mut change = MetadataChange::default();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let switch = |on: &str, off: &str| match value {
                _ if value == on => Ok(Some(true)),
                _ if value == off => Ok(Some(false)),
                _ => Err(refused(&format!("{key} is {on} or {off}."))),
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "httpendpoint" | "endpoint" => change.endpoint = switch("enabled", "disabled")?,
                "httptokens" | "tokens" => change.tokens_required = switch("required", "optional")?,
                "instancemetadatatags" | "tags" => change.tags = switch("enabled", "disabled")?,
                "httpputresponsehoplimit" | "hop-limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_HOPS).contains(limit));
                    change.hop_limit = Some(limit.ok_or_else(|| refused("the hop limit is 1 to 64."))?);
                }
                _ => {
                    return Err(refused(
                        "it is KEY=VALUE with commas between them: HttpTokens, HttpEndpoint, \
                         HttpPutResponseHopLimit, InstanceMetadataTags.",
                    ));
                }
            }
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_by_ec2s_names_and_by_short_ones() {
        let change: MetadataChange = "HttpTokens=required,HttpPutResponseHopLimit=2".parse().unwrap();
        let options = change.applied(MetadataOptions::default());
        let expected = MetadataOptions { tokens_required: true, hop_limit: 2, ..MetadataOptions::default() };
        assert_eq!(options, expected);
        assert_eq!("tokens=required,hop-limit=2".parse::<MetadataChange>().unwrap(), change);
        let off: MetadataChange = "endpoint=disabled,tags=enabled".parse().unwrap();
        assert!(!off.applied(options).endpoint && off.applied(options).tags && off.applied(options).tokens_required);
    }

    #[test]
    fn others_are_refused() {
        for text in ["", "x=1", "tokens=yes", "hop-limit=0", "hop-limit=65", "endpoint"] {
            assert!(matches!(text.parse::<MetadataChange>(), Err(Ec2Error::InvalidParameterValue { .. })), "{text}");
        }
    }
}
