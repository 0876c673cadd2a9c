//! The shapes of EC2's API (response types), with the names of its members.
//!
//! One file per noun. Serialized, a shape is the JSON value that `aws ec2` prints for it. Members that EC2 omits if they
//! have no value are options. If Wisp lacks a feature, a member has the value that EC2 returns for a resource without
//! the feature.
//!
//! Source: EC2 API Reference. The documentation of each type names its shape.

pub mod address;
pub mod console;
pub mod image;
pub mod instance;
pub mod instance_type;
pub mod internet_gateway;
pub mod key_pair;
pub mod launch_template;
pub mod metadata;
pub mod network_interface;
pub mod parameter;
pub mod route_table;
pub mod security_group;
pub mod snapshot;
mod tag;
mod time;
pub mod volume;
pub mod vpc;

pub use tag::Tag;
pub use time::Timestamp;

use crate::network::REGION;

/// The account ID of all resources. There is only one account.
pub const ACCOUNT_ID: &str = "000000000000";

/// A list of resources that do not exist in Wisp.
pub type EmptyList = [(); 0];

/// The virtualization type that EC2 calls `hvm`: the guest uses the processor's virtualization.
pub const VIRTUALIZATION_TYPE: &str = "hvm";
/// `Hypervisor` of instances and images: `xen`, which EC2 returns for all hypervisors, because the other value is `ovm`.
pub const HYPERVISOR: &str = "xen";
/// `BootMode`: guests boot without UEFI.
pub const BOOT_MODE: &str = "legacy-bios";
/// `PlatformDetails` of Linux without a software license.
pub const PLATFORM_DETAILS: &str = "Linux/UNIX";
/// `UsageOperation` of [`PLATFORM_DETAILS`].
pub const USAGE_OPERATION: &str = "RunInstances";

/// Returns the ARN of an EC2 resource, for example `arn:aws:ec2:us-east-1:000000000000:subnet/subnet-…`.
pub fn arn(kind: &str, id: impl std::fmt::Display) -> String {
    format!("arn:aws:ec2:{REGION}:{ACCOUNT_ID}:{kind}/{id}")
}
