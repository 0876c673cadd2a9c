//! Conversions from the store's records to the shapes of EC2's API. Pure functions: a caller passes in everything that
//! is not in the record.

mod address;
mod image;
mod instance;
mod key_pair;
mod launch_template;
mod parameter;
mod route_table;
mod security_group;
mod snapshot;
mod volume;
mod vpc;

pub use address::address;
pub use image::{RootVolume, image};
pub use instance::{GroupNames, credit_specifications, instance, reservation, reservations, state_change};
pub use key_pair::key_pair;
pub use launch_template::{deleted_launch_template_versions, launch_template, launch_template_version};
pub use parameter::parameter;
pub use route_table::{internet_gateway, route_table};
pub use security_group::{revoked_rule, security_group, security_group_rule, security_group_rules};
pub use snapshot::snapshot;
pub use volume::{volume, volume_modification};
pub use vpc::{subnet, vpc};

const GIB: u64 = 1 << 30;
/// Prefix of network interface IDs.
const INTERFACE: &str = "eni";
