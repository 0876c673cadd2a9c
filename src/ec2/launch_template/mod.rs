//! Launch templates: named launch parameters in numbered versions.
//!
//! Source: EC2 API Reference, `CreateLaunchTemplate`; EC2 User Guide, "Store instance launch parameters in Amazon EC2
//! launch templates".

mod check;
mod data;
mod reference;

pub use check::MAX_DESCRIPTION;
pub use data::{
    BlockDeviceMapping, CreditSpecification, EbsBlockDevice, Enabled, HibernationOptions, LaunchTemplateData,
    MetadataOptions, NetworkInterface, Placement, TagSpecification, TemplateTag,
};
pub use reference::{VersionReference, check_description, check_name, not_found, split_reference, version_not_found};

/// Tags of an instance that name the launch template and the version from which it was launched.
pub const ID_TAG: &str = "aws:ec2launchtemplate:id";
pub const VERSION_TAG: &str = "aws:ec2launchtemplate:version";
/// Maximum number of versions of a template. EC2 allows more, but here they share one record.
pub const MAX_VERSIONS: usize = 500;
