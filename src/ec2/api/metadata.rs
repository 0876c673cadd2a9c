//! Options of the instance metadata service.

use serde::Serialize;

use crate::metadata::{MetadataChange, MetadataOptions};

/// EC2 API Reference, `InstanceMetadataOptionsResponse`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceMetadataOptionsResponse {
    pub http_endpoint: &'static str,
    pub http_protocol_ipv6: &'static str,
    pub http_put_response_hop_limit: u8,
    pub http_tokens: &'static str,
    pub instance_metadata_tags: &'static str,
    /// `applied`: a change has effect before the response to its request.
    pub state: &'static str,
}

impl From<&MetadataOptions> for InstanceMetadataOptionsResponse {
    fn from(options: &MetadataOptions) -> Self {
        InstanceMetadataOptionsResponse {
            http_endpoint: enabled(options.endpoint),
            http_protocol_ipv6: enabled(false),
            http_put_response_hop_limit: options.hop_limit,
            http_tokens: tokens(options.tokens_required),
            instance_metadata_tags: enabled(options.tags),
            state: "applied",
        }
    }
}

/// EC2 API Reference, `InstanceMetadataDefaultsResponse`. Options without a default are omitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceMetadataDefaultsResponse {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_endpoint: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_put_response_hop_limit: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_tokens: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_metadata_tags: Option<&'static str>,
}

impl From<MetadataChange> for InstanceMetadataDefaultsResponse {
    fn from(defaults: MetadataChange) -> Self {
        InstanceMetadataDefaultsResponse {
            http_endpoint: defaults.endpoint.map(enabled),
            http_put_response_hop_limit: defaults.hop_limit,
            http_tokens: defaults.tokens_required.map(tokens),
            instance_metadata_tags: defaults.tags.map(enabled),
        }
    }
}

fn enabled(on: bool) -> &'static str {
    if on { "enabled" } else { "disabled" }
}

fn tokens(required: bool) -> &'static str {
    if required { "required" } else { "optional" }
}
