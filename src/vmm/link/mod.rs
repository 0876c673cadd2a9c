//! What a guest finds on its link that is not another machine.

mod config;

pub use config::{
    Cidr, Filter, FilterProtocol, FilterRule, Forward, GATEWAY_MAC, LinkConfig, METADATA_ADDRESS, MacAddress,
    MetadataConfig, ParseError, Transport,
};
