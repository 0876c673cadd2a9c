//! Options of the instance metadata service (EC2 API Reference, `InstanceMetadataOptionsRequest`).
//!
//! A new instance takes each option from the first source that specifies it: the launch request, `wisp
//! metadata-defaults` (`ModifyInstanceMetadataDefaults`), the image (`ImdsSupport`), EC2's defaults. This is EC2's
//! order (EC2 User Guide, "Order of precedence for instance metadata options").

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::Ec2Error;

const MAX_HOPS: u8 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataOptions {
    /// True if the service is enabled (`HttpEndpoint`).
    pub endpoint: bool,
    /// `HttpTokens`: the service refuses requests without a token, so only its version 2 can be used.
    pub tokens_required: bool,
    /// `HttpPutResponseHopLimit`: the hop limit of responses to token requests.
    pub hop_limit: u8,
    /// True if the instance's tags are part of its metadata (`InstanceMetadataTags`).
    pub tags: bool,
}

impl Default for MetadataOptions {
    /// Returns EC2's defaults: both versions, one hop, no tags.
    fn default() -> MetadataOptions {
        MetadataOptions { endpoint: true, tokens_required: false, hop_limit: 1, tags: false }
    }
}

/// The version of the service that an image requests (EC2 API Reference, `Image`, `ImdsSupport`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImdsSupport {
    /// The image's programs use tokens.
    #[serde(rename = "v2.0")]
    V2,
}

impl ImdsSupport {
    pub fn as_str(self) -> &'static str {
        match self {
            ImdsSupport::V2 => "v2.0",
        }
    }
}

impl FromStr for ImdsSupport {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<ImdsSupport, Ec2Error> {
        match text {
            "v2.0" => Ok(ImdsSupport::V2),
            _ => Err(Ec2Error::invalid_parameter("ImdsSupport", text, "it must be v2.0.")),
        }
    }
}

impl MetadataOptions {
    /// Returns the defaults for instances of an image. For `v2.0`, tokens are required and the hop limit is two, as in
    /// EC2: containers in the instance are one hop further away.
    pub fn of_image(support: Option<ImdsSupport>) -> MetadataOptions {
        match support {
            Some(ImdsSupport::V2) => {
                MetadataOptions { tokens_required: true, hop_limit: 2, ..MetadataOptions::default() }
            }
            None => MetadataOptions::default(),
        }
    }
}

/// A change of some of the options, for example `HttpTokens=required,HttpPutResponseHopLimit=2`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetadataChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tokens_required: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hop_limit: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tags: Option<bool>,
}

impl MetadataChange {
    /// Enables the service, with tokens required or optional.
    pub fn tokens(required: bool) -> MetadataChange {
        MetadataChange { endpoint: Some(true), tokens_required: Some(required), ..MetadataChange::default() }
    }

    /// Disables the service.
    pub fn disabled() -> MetadataChange {
        MetadataChange { endpoint: Some(false), ..MetadataChange::default() }
    }

    /// Combines two changes. If both set an option, `later` wins.
    #[must_use]
    pub fn then(self, later: MetadataChange) -> MetadataChange {
        MetadataChange {
            endpoint: later.endpoint.or(self.endpoint),
            tokens_required: later.tokens_required.or(self.tokens_required),
            hop_limit: later.hop_limit.or(self.hop_limit),
            tags: later.tags.or(self.tags),
        }
    }

    /// Returns the changed options by EC2's names, with EC2's values.
    pub fn named(self) -> Vec<(&'static str, String)> {
        let switch = |on: bool| if on { "enabled" } else { "disabled" }.to_string();
        let tokens = |required: bool| if required { "required" } else { "optional" }.to_string();
        let all = [
            ("HttpEndpoint", self.endpoint.map(switch)),
            ("HttpTokens", self.tokens_required.map(tokens)),
            ("HttpPutResponseHopLimit", self.hop_limit.map(|limit| limit.to_string())),
            ("InstanceMetadataTags", self.tags.map(switch)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    pub fn applied(self, to: MetadataOptions) -> MetadataOptions {
        MetadataOptions {
            endpoint: self.endpoint.unwrap_or(to.endpoint),
            tokens_required: self.tokens_required.unwrap_or(to.tokens_required),
            hop_limit: self.hop_limit.unwrap_or(to.hop_limit),
            tags: self.tags.unwrap_or(to.tags),
        }
    }
}

impl From<MetadataOptions> for MetadataChange {
    fn from(options: MetadataOptions) -> MetadataChange {
        let MetadataOptions { endpoint, tokens_required, hop_limit, tags } = options;
        MetadataChange {
            endpoint: Some(endpoint),
            tokens_required: Some(tokens_required),
            hop_limit: Some(hop_limit),
            tags: Some(tags),
        }
    }
}

impl FromStr for MetadataChange {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<MetadataChange, Ec2Error> {
        let refused = |rule: &str| Ec2Error::invalid_parameter("MetadataOptions", text, rule);
        let mut change = MetadataChange::default();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let switch = |on: &str, off: &str| match value {
                _ if value == on => Ok(Some(true)),
                _ if value == off => Ok(Some(false)),
                _ => Err(refused(&format!("{key} must be {on} or {off}."))),
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "httpendpoint" | "endpoint" => change.endpoint = switch("enabled", "disabled")?,
                "httptokens" | "tokens" => change.tokens_required = switch("required", "optional")?,
                "instancemetadatatags" | "tags" => change.tags = switch("enabled", "disabled")?,
                "httpputresponsehoplimit" | "hop-limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_HOPS).contains(limit));
                    change.hop_limit = Some(limit.ok_or_else(|| refused("the hop limit must be between 1 and 64."))?);
                }
                _ => {
                    return Err(refused(
                        "it must be a comma-separated list of KEY=VALUE with the keys HttpTokens, HttpEndpoint, \
                         HttpPutResponseHopLimit and InstanceMetadataTags.",
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
    use crate::ErrorCode;

    #[test]
    fn options_are_parsed_by_ec2_names_and_short_names() {
        let change: MetadataChange = "HttpTokens=required,HttpPutResponseHopLimit=2".parse().unwrap();
        let options = change.applied(MetadataOptions::default());
        let expected = MetadataOptions { tokens_required: true, hop_limit: 2, ..MetadataOptions::default() };
        assert_eq!(options, expected);
        assert_eq!("tokens=required,hop-limit=2".parse::<MetadataChange>().unwrap(), change);
        let off: MetadataChange = "endpoint=disabled,tags=enabled".parse().unwrap();
        assert!(!off.applied(options).endpoint && off.applied(options).tags && off.applied(options).tokens_required);
    }

    #[test]
    fn launch_overrides_defaults_and_defaults_override_image() {
        let image = MetadataOptions::of_image(Some(ImdsSupport::V2));
        assert_eq!((image.tokens_required, image.hop_limit), (true, 2));
        assert_eq!(MetadataOptions::of_image(None), MetadataOptions::default());
        let defaults: MetadataChange = "HttpTokens=optional".parse().unwrap();
        let defaults = defaults.then("hop-limit=3".parse().unwrap()).then("hop-limit=4".parse().unwrap());
        assert_eq!(
            defaults.named(),
            [("HttpTokens", "optional".to_string()), ("HttpPutResponseHopLimit", "4".to_string())]
        );
        let options = defaults.applied(image);
        assert_eq!((options.tokens_required, options.hop_limit), (false, 4));
        let launch: MetadataChange = "HttpTokens=required".parse().unwrap();
        assert!(launch.applied(options).tokens_required);
        let stored = serde_json::to_string(&defaults).unwrap();
        assert_eq!(serde_json::from_str::<MetadataChange>(&stored).unwrap(), defaults);
        assert!("v1.0".parse::<ImdsSupport>().is_err());
    }

    #[test]
    fn invalid_options_are_refused() {
        for text in ["", "x=1", "tokens=yes", "hop-limit=0", "hop-limit=65", "endpoint"] {
            let error = text.parse::<MetadataChange>().expect_err(text);
            assert_eq!(error.code(), ErrorCode::InvalidParameterValue, "{text}");
        }
    }
}
