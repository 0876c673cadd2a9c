//! Options that `wisp launch` and `wisp template` share: the parameters that a launch template can contain.

use std::path::{Path, PathBuf};

use super::args::{self, ADVANCED, MetadataArgs, NETWORK, STORAGE};
use super::network::PlacementArgs;
use cloud::network::NetworkSpec;
use ec2::Ec2Error;
use ec2::credits::CreditMode;
use ec2::id::SecurityGroupId;
use ec2::launch_template::{
    BlockDeviceMapping, CreditSpecification, HibernationOptions, LaunchTemplateData, NetworkInterface, Placement,
    TagSpecification,
};
use ec2::state::ShutdownBehavior;
use ec2::tag::Tag;
use ec2::user_data::UserData;
use ec2::volume::VolumeOption;

/// Launch parameters.
#[derive(Debug, Clone, clap::Args)]
pub struct LaunchParameters {
    /// Image name or ID, or resolve:ssm:ALIAS [default: tiny, the embedded image].
    #[arg(value_name = "IMAGE")]
    image: Option<String>,

    #[command(flatten)]
    placement: PlacementArgs,

    /// Security group (see `wisp sg`); can be repeated [default: the VPC's default group].
    #[arg(long = "security-group", value_name = "GROUP", help_heading = NETWORK)]
    security_groups: Vec<String>,

    #[command(flatten)]
    metadata: MetadataArgs,

    /// Add a volume; can be repeated.
    ///
    /// SIZE, or comma-separated KEY=VALUE pairs. The keys are size, type, iops, throughput, device, snapshot, volume,
    /// delete-on-termination and name.
    #[arg(long = "volume", value_name = "SPEC", help_heading = STORAGE)]
    pub volumes: Vec<VolumeOption>,

    /// Name tag.
    #[arg(long)]
    name: Option<String>,

    /// Key pair to install in the guest (see `wisp key`).
    #[arg(long, value_name = "NAME")]
    key: Option<String>,

    /// User data file, or - for standard input. A script (#!...) runs once, at the first boot.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,

    /// Tag; can be repeated.
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    tags: Vec<Tag>,

    /// Action when the guest powers off: stop or terminate [default: stop].
    #[arg(long, value_name = "BEHAVIOR", help_heading = ADVANCED)]
    shutdown_behavior: Option<ShutdownBehavior>,

    /// Enable termination protection.
    #[arg(long, help_heading = ADVANCED)]
    termination_protection: bool,

    /// Enable hibernation (`wisp stop --hibernate`).
    #[arg(long, help_heading = ADVANCED)]
    hibernation: bool,

    /// CPU credit mode: standard or unlimited.
    ///
    /// When an instance runs out of credits, it is throttled to its baseline (standard) or uses surplus credits
    /// (unlimited). The default is standard for T2, and unlimited for T3 and T3a. Other types have no CPU credits.
    #[arg(long, value_name = "MODE", help_heading = ADVANCED)]
    cpu_credits: Option<CreditMode>,
}

impl LaunchParameters {
    /// Returns the parameters except the volumes, which can have options that a launch template cannot contain.
    pub fn data(&self) -> anyhow::Result<LaunchTemplateData> {
        let network = self.placement.clone().placed(NetworkSpec::default());
        let interface = NetworkInterface {
            associate_public_ip_address: network.public_ip,
            device_index: Some(0),
            private_ip_address: network.private_ip.map(|address| address.to_string()),
            subnet_id: network.subnet.clone(),
            ..NetworkInterface::default()
        };
        let has_interface = network.subnet.is_some() || network.private_ip.is_some() || network.public_ip.is_some();
        let (ids, names): (Vec<_>, Vec<_>) =
            self.security_groups.iter().cloned().partition(|group| SecurityGroupId::looks_like(group));
        let data = LaunchTemplateData {
            credit_specification: self
                .cpu_credits
                .map(|mode| CreditSpecification { cpu_credits: Some(mode.as_str().into()) }),
            disable_api_termination: self.termination_protection.then_some(true),
            hibernation_options: self.hibernation.then_some(HibernationOptions { configured: Some(true) }),
            image_id: self.image.clone(),
            instance_initiated_shutdown_behavior: self.shutdown_behavior,
            key_name: self.key.clone(),
            metadata_options: self.metadata.change().map(Into::into),
            network_interfaces: has_interface.then_some(interface).into_iter().collect(),
            placement: network
                .zone
                .map(|zone| Placement { availability_zone: Some(zone.to_string()), ..Placement::default() }),
            security_group_ids: ids,
            security_groups: names,
            tag_specifications: TagSpecification::of_instance(&args::tags(self.tags.clone(), self.name.as_deref())?),
            user_data: self.user_data.as_deref().map(read_user_data).transpose()?.flatten(),
            ..LaunchTemplateData::default()
        };
        // Moves the groups to the interface, if there is one.
        Ok(LaunchTemplateData::default().for_launch(data))
    }

    /// Returns the parameters and the volumes. Fails for an option of a volume that a template cannot contain.
    pub fn template_data(&self, instance_type: Option<String>) -> anyhow::Result<LaunchTemplateData> {
        let mappings: Result<_, Ec2Error> = self.volumes.iter().map(BlockDeviceMapping::try_from).collect();
        Ok(LaunchTemplateData { block_device_mappings: mappings?, instance_type, ..self.data()? })
    }
}

/// Reads a user data file, raw or base64-encoded, and returns it in base64, as EC2's API expects it. Returns `None` for
/// an empty file.
pub fn read_user_data(path: &Path) -> anyhow::Result<Option<String>> {
    let data = UserData::read(&super::key::read(path)?)?;
    Ok(Some(data).filter(|data| !data.is_empty()).map(|data| data.to_base64()))
}
