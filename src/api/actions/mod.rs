//! The actions: the dispatch table, and one file of handlers per noun.
//!
//! A handler takes the members of the input that Wisp supports as a struct, and returns the output. A parameter that no
//! handler reads is refused by name, unless it states the default (`input`).

mod account;
mod addresses;
mod background;
mod commands;
mod empty_lists;
mod filter;
mod identity;
mod images;
mod input;
mod instance_attributes;
mod instance_information;
mod instance_status;
mod instance_types;
mod instances;
mod internet_gateways;
mod key_pairs;
mod launch;
mod launch_templates;
mod network_acls;
mod network_interfaces;
mod page;
mod parameters;
mod permission;
mod regions;
mod resource;
mod route_tables;
mod security_groups;
mod snapshots;
mod subnets;
#[cfg(test)]
mod table;
mod tags;
mod volumes;
mod vpcs;

use std::sync::Arc;

use cloud::{Cloud, CloudError, Outcome};
use serde::Serialize;
use serde_json::Value;

pub use background::Background;

use crate::error::{ApiError, Code};
use crate::service;
use ec2::ErrorCode;
use ec2::capacity::InstanceSize;

/// Context of a handler, created for each request.
pub struct Context {
    cloud: Cloud,
    background: Arc<Background>,
    prepare_template: PrepareTemplate,
}

/// Starts to create a template of an image for a size, so that later launches do not have to boot.
pub type PrepareTemplate = fn(image: &str, size: &InstanceSize);

type Handler = fn(&Context, Value) -> Result<Value, ApiError>;

/// The state of an action in the dispatch table.
#[derive(Clone, Copy)]
pub enum Entry {
    Handler(Handler),
    /// A list of resources that cannot exist in Wisp.
    EmptyList(&'static empty_lists::ResourceKind),
    /// The reason why Wisp does not support the action, as a sentence.
    Unsupported(&'static str),
}

/// Makes an [`Entry`] of a function from an input struct to a serializable output.
macro_rules! handler {
    ($function:path) => {
        Entry::Handler(|context, value| respond($function(context, input::read(value)?)?))
    };
}

/// Makes an [`Entry`] of a function from an input struct and a [`input::Listing`] to a serializable output.
macro_rules! listing {
    ($function:path) => {
        Entry::Handler(|context, value| {
            let (listing, rest) = input::split(value)?;
            respond($function(context, input::read(rest)?, listing)?)
        })
    };
}

/// Returns the entry of an action, or `None` if the table has no entry for it.
pub fn entry(service: &str, action: &str) -> Option<Entry> {
    let entry = match (service, action) {
        ("sts", "GetCallerIdentity") => handler!(identity::caller),
        ("iam", "GetUser") => handler!(identity::user),
        ("iam", "ListAccountAliases") => handler!(identity::aliases),
        ("ec2", "DescribeAccountAttributes") => handler!(account::attributes),
        ("ec2", "GetEbsEncryptionByDefault") => handler!(account::ebs_encryption),
        ("ec2", "DescribeRegions") => handler!(regions::regions),
        ("ec2", "DescribeAvailabilityZones") => handler!(regions::zones),
        ("ec2", "DescribeInstances") => listing!(instances::describe),
        ("ec2", "StartInstances") => handler!(instances::start),
        ("ec2", "StopInstances") => handler!(instances::stop),
        ("ec2", "RebootInstances") => handler!(instances::reboot),
        ("ec2", "TerminateInstances") => handler!(instances::terminate),
        ("ec2", "RunInstances") => handler!(launch::run),
        ("ec2", "DescribeInstanceStatus") => listing!(instance_status::describe),
        ("ec2", "GetConsoleOutput") => handler!(instance_status::console_output),
        ("ec2", "GetPasswordData") => handler!(instance_status::password),
        ("ec2", "DescribeInstanceAttribute") => handler!(instance_attributes::describe),
        ("ec2", "ModifyInstanceAttribute") => handler!(instance_attributes::modify),
        ("ec2", "ModifyInstanceMetadataOptions") => handler!(instance_attributes::modify_metadata),
        ("ec2", "DescribeInstanceCreditSpecifications") => listing!(instance_attributes::credits),
        ("ec2", "ModifyInstanceCreditSpecification") => handler!(instance_attributes::modify_credits),
        ("ec2", "MonitorInstances") => Entry::Unsupported("It collects no metrics for CloudWatch."),
        ("ec2", "UnmonitorInstances") => handler!(instance_attributes::unmonitor),
        ("ec2", "DescribeImages") => listing!(images::describe),
        ("ec2", "CreateImage") => handler!(images::create),
        ("ec2", "RegisterImage") => Entry::Unsupported("An image needs a kernel: use `wisp image import`."),
        ("ec2", "DeregisterImage") => handler!(images::deregister),
        ("ec2", "DescribeImageAttribute") => handler!(images::attribute),
        ("ec2", "ModifyImageAttribute") => handler!(images::modify_attribute),
        ("ec2", "DescribeInstanceTypes") => listing!(instance_types::describe),
        ("ec2", "DescribeInstanceTypeOfferings") => listing!(instance_types::offerings),
        ("ec2", "CreateTags") => handler!(tags::create),
        ("ec2", "DeleteTags") => handler!(tags::delete),
        ("ec2", "DescribeTags") => handler!(tags::describe),
        ("ec2", "CreateKeyPair") => handler!(key_pairs::create),
        ("ec2", "DeleteKeyPair") => handler!(key_pairs::delete),
        ("ec2", "DescribeKeyPairs") => handler!(key_pairs::describe),
        ("ec2", "ImportKeyPair") => handler!(key_pairs::import),
        ("ec2", "DescribeSecurityGroups") => listing!(security_groups::describe),
        ("ec2", "CreateSecurityGroup") => handler!(security_groups::create),
        ("ec2", "DeleteSecurityGroup") => handler!(security_groups::delete),
        ("ec2", "AuthorizeSecurityGroupIngress") => handler!(security_groups::authorize_ingress),
        ("ec2", "AuthorizeSecurityGroupEgress") => handler!(security_groups::authorize_egress),
        ("ec2", "RevokeSecurityGroupIngress") => handler!(security_groups::revoke_ingress),
        ("ec2", "RevokeSecurityGroupEgress") => handler!(security_groups::revoke_egress),
        ("ec2", "DescribeSecurityGroupRules") => listing!(security_groups::describe_rules),
        ("ec2", "ModifySecurityGroupRules") => handler!(security_groups::modify_rules),
        ("ec2", "UpdateSecurityGroupRuleDescriptionsIngress") => handler!(security_groups::describe_ingress),
        ("ec2", "UpdateSecurityGroupRuleDescriptionsEgress") => handler!(security_groups::describe_egress),
        ("ec2", "DescribeVpcs") => listing!(vpcs::describe),
        ("ec2", "CreateVpc") => handler!(vpcs::create),
        ("ec2", "CreateDefaultVpc") => handler!(vpcs::create_default),
        ("ec2", "DeleteVpc") => handler!(vpcs::delete),
        ("ec2", "DescribeVpcAttribute") => handler!(vpcs::attribute),
        ("ec2", "ModifyVpcAttribute") => handler!(vpcs::modify_attribute),
        ("ec2", "DescribeVpcClassicLink") => listing!(vpcs::classic_link),
        ("ec2", "DescribeDhcpOptions") => listing!(vpcs::dhcp_options),
        ("ec2", "DescribeSubnets") => listing!(subnets::describe),
        ("ec2", "CreateSubnet") => handler!(subnets::create),
        ("ec2", "DeleteSubnet") => handler!(subnets::delete),
        ("ec2", "ModifySubnetAttribute") => handler!(subnets::modify_attribute),
        ("ec2", "AllocateAddress") => handler!(addresses::allocate),
        ("ec2", "DescribeAddresses") => listing!(addresses::describe),
        ("ec2", "DescribeAddressesAttribute") => listing!(addresses::attributes),
        ("ec2", "AssociateAddress") => handler!(addresses::associate),
        ("ec2", "DisassociateAddress") => handler!(addresses::disassociate),
        ("ec2", "ReleaseAddress") => handler!(addresses::release),
        ("ec2", "DescribeNetworkInterfaces") => listing!(network_interfaces::describe),
        ("ec2", "DescribeNetworkAcls") => listing!(network_acls::describe),
        ("ec2", "DescribeVolumes") => listing!(volumes::describe),
        ("ec2", "CreateVolume") => handler!(volumes::create),
        ("ec2", "DeleteVolume") => handler!(volumes::delete),
        ("ec2", "AttachVolume") => handler!(volumes::attach),
        ("ec2", "DetachVolume") => handler!(volumes::detach),
        ("ec2", "ModifyVolume") => handler!(volumes::modify),
        ("ec2", "DescribeVolumesModifications") => listing!(volumes::modifications),
        ("ec2", "DescribeVolumeStatus") => listing!(volumes::status),
        ("ec2", "DescribeVolumeAttribute") => handler!(volumes::attribute),
        ("ec2", "DescribeSnapshots") => listing!(snapshots::describe),
        ("ec2", "CreateSnapshot") => handler!(snapshots::create),
        ("ec2", "DeleteSnapshot") => handler!(snapshots::delete),
        ("ec2", "DescribeLaunchTemplates") => listing!(launch_templates::describe),
        ("ec2", "DescribeLaunchTemplateVersions") => listing!(launch_templates::describe_versions),
        ("ec2", "CreateLaunchTemplate") => handler!(launch_templates::create),
        ("ec2", "CreateLaunchTemplateVersion") => handler!(launch_templates::create_version),
        ("ec2", "ModifyLaunchTemplate") => handler!(launch_templates::modify),
        ("ec2", "DeleteLaunchTemplate") => handler!(launch_templates::delete),
        ("ec2", "DeleteLaunchTemplateVersions") => handler!(launch_templates::delete_versions),
        ("ec2", "GetLaunchTemplateData") => handler!(launch_templates::data),
        ("ec2", "DescribeInternetGateways") => listing!(internet_gateways::describe),
        ("ec2", "CreateInternetGateway") => handler!(internet_gateways::create),
        ("ec2", "AttachInternetGateway") => handler!(internet_gateways::attach),
        ("ec2", "DetachInternetGateway") => handler!(internet_gateways::detach),
        ("ec2", "DeleteInternetGateway") => handler!(internet_gateways::delete),
        ("ec2", "DescribeRouteTables") => listing!(route_tables::describe),
        ("ec2", "CreateRouteTable") => handler!(route_tables::create),
        ("ec2", "DeleteRouteTable") => handler!(route_tables::delete),
        ("ec2", "CreateRoute") => handler!(route_tables::create_route),
        ("ec2", "ReplaceRoute") => handler!(route_tables::replace_route),
        ("ec2", "DeleteRoute") => handler!(route_tables::delete_route),
        ("ec2", "AssociateRouteTable") => handler!(route_tables::associate),
        ("ec2", "DisassociateRouteTable") => handler!(route_tables::disassociate),
        ("ec2", "ReplaceRouteTableAssociation") => handler!(route_tables::replace_association),
        ("ssm", "GetParameter") => handler!(parameters::parameter),
        ("ssm", "GetParameters") => handler!(parameters::parameters),
        ("ssm", "GetParametersByPath") => handler!(parameters::by_path),
        ("ssm", "SendCommand") => handler!(commands::send),
        ("ssm", "ListCommands") => handler!(commands::list),
        ("ssm", "ListCommandInvocations") => handler!(commands::list_invocations),
        ("ssm", "GetCommandInvocation") => handler!(commands::invocation),
        ("ssm", "DescribeInstanceInformation") => handler!(instance_information::describe),
        ("ec2", action) => Entry::EmptyList(empty_lists::find(action)?),
        _ => return None,
    };
    Some(entry)
}

/// Logs the warnings of a change, for which the API has no place, and returns its result.
fn report<T>(outcome: Outcome<T>) -> T {
    outcome.warnings.into_iter().for_each(|warning| log::warn!("{warning}"));
    outcome.value
}

fn respond(output: impl Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(output).map_err(|error| ApiError::new(Code::InternalError, error.to_string()))
}

/// Runs actions on the data directory. Every request opens it, as a command does.
pub struct LocalActions {
    background: Arc<Background>,
    prepare_template: PrepareTemplate,
}

impl LocalActions {
    pub fn new(background: Arc<Background>, prepare_template: PrepareTemplate) -> LocalActions {
        LocalActions { background, prepare_template }
    }
}

impl service::Actions for LocalActions {
    fn run(&self, service: &'static str, action: &str, input: Value) -> Result<Value, ApiError> {
        let unsupported = |why: &str| {
            let what = format!("Wisp does not support the action {action}. {why}");
            Err(ApiError::new(Code::Ec2(ErrorCode::UnsupportedOperation), what.trim_end()))
        };
        match entry(service, action) {
            Some(Entry::Handler(handler)) => {
                let cloud = report(Cloud::open()?);
                let background = Arc::clone(&self.background);
                handler(&Context { cloud, background, prepare_template: self.prepare_template }, input)
            }
            Some(Entry::EmptyList(kind)) => empty_lists::describe(kind, &input),
            Some(Entry::Unsupported(why)) => unsupported(why),
            None => unsupported(""),
        }
    }
}

impl From<CloudError> for ApiError {
    fn from(error: CloudError) -> ApiError {
        match error {
            CloudError::Ec2(refusal) => refusal.into(),
            other => ApiError::new(Code::InternalError, other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    #[test]
    fn empty_lists_name_members_of_model() {
        empty_lists::check(model::ec2());
    }
}
