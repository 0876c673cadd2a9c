//! Instances: listing, and their states.

use serde::Deserialize;
use serde_json::{Value, json};

use super::filter::{self, Name};
use super::input::{Listing, check_dry_run};
use super::resource::id;
use super::{Context, page};
use crate::error::ApiError;
use cloud::shapes;
use cloud::stop::StateChange;
use ec2::InstanceId;
use ec2::id::Instance;
use ec2::state::Action;
use node::host::StopMode;

const FILTERS: &[Name] = &[
    ("architecture", "Architecture"),
    ("availability-zone", "Placement.AvailabilityZone"),
    ("block-device-mapping.attach-time", "BlockDeviceMappings.Ebs.AttachTime"),
    ("block-device-mapping.delete-on-termination", "BlockDeviceMappings.Ebs.DeleteOnTermination"),
    ("block-device-mapping.device-name", "BlockDeviceMappings.DeviceName"),
    ("block-device-mapping.status", "BlockDeviceMappings.Ebs.Status"),
    ("block-device-mapping.volume-id", "BlockDeviceMappings.Ebs.VolumeId"),
    ("client-token", "ClientToken"),
    ("dns-name", "PublicDnsName"),
    ("group-id", "SecurityGroups.GroupId"),
    ("group-name", "SecurityGroups.GroupName"),
    ("hypervisor", "Hypervisor"),
    ("image-id", "ImageId"),
    ("instance-id", "InstanceId"),
    ("instance-state-code", "State.Code"),
    ("instance-state-name", "State.Name"),
    ("instance-type", "InstanceType"),
    ("instance.group-id", "SecurityGroups.GroupId"),
    ("instance.group-name", "SecurityGroups.GroupName"),
    ("ip-address", "PublicIpAddress"),
    ("key-name", "KeyName"),
    ("launch-index", "AmiLaunchIndex"),
    ("launch-time", "LaunchTime"),
    ("network-interface.addresses.association.public-ip", "NetworkInterfaces.Association.PublicIp"),
    ("network-interface.addresses.private-ip-address", "NetworkInterfaces.PrivateIpAddresses.PrivateIpAddress"),
    ("network-interface.group-id", "NetworkInterfaces.Groups.GroupId"),
    ("network-interface.network-interface-id", "NetworkInterfaces.NetworkInterfaceId"),
    ("network-interface.subnet-id", "NetworkInterfaces.SubnetId"),
    ("network-interface.vpc-id", "NetworkInterfaces.VpcId"),
    ("placement-group-name", "Placement.GroupName"),
    ("private-dns-name", "PrivateDnsName"),
    ("private-ip-address", "PrivateIpAddress"),
    ("reservation-id", "ReservationId"),
    ("root-device-name", "RootDeviceName"),
    ("root-device-type", "RootDeviceType"),
    ("source-dest-check", "SourceDestCheck"),
    ("state-reason-code", "StateReason.Code"),
    ("subnet-id", "SubnetId"),
    ("tenancy", "Placement.Tenancy"),
    ("virtualization-type", "VirtualizationType"),
    ("vpc-id", "VpcId"),
];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeInstances {
    instance_ids: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeInstances, listing: Listing) -> Result<Value, ApiError> {
    let DescribeInstances { instance_ids } = input;
    check_dry_run(listing.dry_run)?;
    let records = match &instance_ids[..] {
        [] => context.cloud.instances().list()?,
        ids => context.cloud.instances().find_all(&checked(ids)?)?,
    };
    let groups = context.cloud.security_groups().names()?;
    // The reservation's ID is a member for the filter only.
    let mut instances: Vec<Value> = Vec::new();
    for record in &records {
        let mut instance = super::respond(shapes::instance(record, &groups))?;
        instance["ReservationId"] = super::respond(record.status.launch.reservation_id)?;
        instances.push(instance);
    }
    filter::apply(&mut instances, &listing.filters, FILTERS)?;
    let by_id = !instance_ids.is_empty();
    let (instances, next) = page::page(instances, listing.max_results, listing.next_token.as_deref(), by_id)?;
    Ok(json!({"Reservations": reservations(instances), "NextToken": next}))
}

/// Groups instances by their reservations, in the order of the first instance of each.
fn reservations(instances: Vec<Value>) -> Vec<Value> {
    let mut reservations: Vec<Value> = Vec::new();
    for mut instance in instances {
        let id = instance.as_object_mut().and_then(|members| members.remove("ReservationId")).unwrap_or_default();
        let known = reservations.iter_mut().find(|reservation| reservation["ReservationId"] == id);
        match known.and_then(|reservation| reservation["Instances"].as_array_mut()) {
            Some(others) => others.push(instance),
            None => reservations.push(json!({
                "Groups": [], "Instances": [instance], "OwnerId": ec2::api::ACCOUNT_ID, "ReservationId": id,
            })),
        }
    }
    reservations
}

/// Returns the IDs if all are well-formed. Commands also take names, which the API does not.
fn checked(ids: &[String]) -> Result<Vec<String>, ApiError> {
    ids.iter().map(|text| Ok(id::<Instance>(text)?.to_string())).collect()
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ChangeState {
    instance_ids: Vec<String>,
    force: bool,
    hibernate: bool,
    dry_run: bool,
}

impl ChangeState {
    fn ids(&self, context: &Context, action: Action) -> Result<Vec<InstanceId>, ApiError> {
        let records = context.cloud.instances().find_all(&checked(&self.instance_ids)?)?;
        // A request changes either all instances or none.
        for record in &records {
            action.allowed(record.meta.id, record.status.state)?;
        }
        check_dry_run(self.dry_run)?;
        Ok(records.iter().map(|record| record.meta.id).collect())
    }
}

fn changes(member: &str, changes: &[StateChange]) -> Result<Value, ApiError> {
    Ok(json!({member: super::respond(changes.iter().map(shapes::state_change).collect::<Vec<_>>())?}))
}

pub fn start(context: &Context, input: ChangeState) -> Result<Value, ApiError> {
    let mut done = Vec::new();
    for id in input.ids(context, Action::Start)? {
        done.push(super::report(context.cloud.instances().start(id, false, false)?).change);
    }
    changes("StartingInstances", &done)
}

pub fn stop(context: &Context, input: ChangeState) -> Result<Value, ApiError> {
    let ids = input.ids(context, if input.hibernate { Action::Hibernate } else { Action::Stop })?;
    if input.hibernate {
        context.cloud.instances().check_hibernation(&ids)?;
    }
    let mode = match (input.hibernate, input.force) {
        (true, _) => StopMode::Hibernate,
        (_, true) => StopMode::Force,
        _ => StopMode::Orderly,
    };
    let operation = context.cloud.instances().begin_stop(&ids)?;
    let response = changes("StoppingInstances", &operation.changes)?;
    context.background.run("stop", move |cloud| cloud.instances().finish_stop(operation, mode));
    Ok(response)
}

pub fn terminate(context: &Context, input: ChangeState) -> Result<Value, ApiError> {
    let ids = input.ids(context, Action::Terminate)?;
    let operation = context.cloud.instances().begin_terminate(&ids)?;
    let response = changes("TerminatingInstances", &operation.changes)?;
    context.background.run("terminate", move |cloud| cloud.instances().finish_terminate(operation));
    Ok(response)
}

pub fn reboot(context: &Context, input: ChangeState) -> Result<Value, ApiError> {
    for id in input.ids(context, Action::Reboot)? {
        context.background.run("reboot", move |cloud| cloud.instances().reboot(id).map(drop).into());
    }
    Ok(Value::Null)
}
