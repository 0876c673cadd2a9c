//! The launch parameters of a version, in the shape of EC2's API.

use serde::{Deserialize, Serialize};

use crate::state::ShutdownBehavior;

/// EC2 API Reference, `RequestLaunchTemplateData` and `ResponseLaunchTemplateData`, with the members that a launch
/// supports, and members for which only EC2's default is supported (see [`LaunchTemplateData::check`]).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LaunchTemplateData {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub block_device_mappings: Vec<BlockDeviceMapping>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit_specification: Option<CreditSpecification>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_api_stop: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_api_termination: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ebs_optimized: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enclave_options: Option<Enabled>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hibernation_options: Option<HibernationOptions>,
    /// An ID, or `resolve:ssm:` and the path of an image alias. Commands also accept an image's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_initiated_shutdown_behavior: Option<ShutdownBehavior>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata_options: Option<MetadataOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<Enabled>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkInterface>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_group_ids: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tag_specifications: Vec<TagSpecification>,
    /// In Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
}

/// EC2 API Reference, `LaunchTemplateBlockDeviceMapping`. A mapping without a device name gets the next free one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BlockDeviceMapping {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ebs: Option<EbsBlockDevice>,
}

/// EC2 API Reference, `LaunchTemplateEbsBlockDevice`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EbsBlockDevice {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_on_termination: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// In MiB/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throughput: Option<u32>,
    /// In GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_type: Option<String>,
}

/// EC2 API Reference, `CreditSpecification`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreditSpecification {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_credits: Option<String>,
}

/// EC2 API Reference, `LaunchTemplatesMonitoring` and `LaunchTemplateEnclaveOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Enabled {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// EC2 API Reference, `LaunchTemplateHibernationOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HibernationOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configured: Option<bool>,
}

/// EC2 API Reference, `LaunchTemplateInstanceMetadataOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MetadataOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_protocol_ipv6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_put_response_hop_limit: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_tokens: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_metadata_tags: Option<String>,
}

/// EC2 API Reference, `LaunchTemplateInstanceNetworkInterfaceSpecification`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkInterface {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub associate_public_ip_address: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_on_termination: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_index: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_ip_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet_id: Option<String>,
}

/// EC2 API Reference, `LaunchTemplatePlacement`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Placement {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability_zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenancy: Option<String>,
}

/// EC2 API Reference, `LaunchTemplateTagSpecification`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TagSpecification {
    pub resource_type: String,
    pub tags: Vec<TemplateTag>,
}

/// EC2 API Reference, `Tag`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TemplateTag {
    pub key: String,
    pub value: String,
}

impl LaunchTemplateData {
    /// Returns the data of a new version that is based on this one: every member of `changes` replaces this one's.
    #[must_use]
    pub fn with(self, changes: LaunchTemplateData) -> LaunchTemplateData {
        let has_groups = changes.has_groups();
        let groups = |ours: Vec<String>, theirs: Vec<String>| if has_groups { theirs } else { ours };
        LaunchTemplateData {
            block_device_mappings: unless_empty(changes.block_device_mappings, self.block_device_mappings),
            credit_specification: changes.credit_specification.or(self.credit_specification),
            disable_api_stop: changes.disable_api_stop.or(self.disable_api_stop),
            disable_api_termination: changes.disable_api_termination.or(self.disable_api_termination),
            ebs_optimized: changes.ebs_optimized.or(self.ebs_optimized),
            enclave_options: changes.enclave_options.or(self.enclave_options),
            hibernation_options: changes.hibernation_options.or(self.hibernation_options),
            image_id: changes.image_id.or(self.image_id),
            instance_initiated_shutdown_behavior: changes
                .instance_initiated_shutdown_behavior
                .or(self.instance_initiated_shutdown_behavior),
            instance_type: changes.instance_type.or(self.instance_type),
            key_name: changes.key_name.or(self.key_name),
            metadata_options: changes.metadata_options.or(self.metadata_options),
            monitoring: changes.monitoring.or(self.monitoring),
            network_interfaces: unless_empty(changes.network_interfaces, self.network_interfaces),
            placement: changes.placement.or(self.placement),
            security_group_ids: groups(self.security_group_ids, changes.security_group_ids),
            security_groups: groups(self.security_groups, changes.security_groups),
            tag_specifications: unless_empty(changes.tag_specifications, self.tag_specifications),
            user_data: changes.user_data.or(self.user_data),
        }
    }

    /// Returns the parameters of a launch from this data, where `request` are those of the request. A parameter of the
    /// request replaces the template's. Tags are merged by key, and the interface's members one by one.
    #[must_use]
    pub fn for_launch(mut self, mut request: LaunchTemplateData) -> LaunchTemplateData {
        if request.has_groups() {
            self.network_interfaces.iter_mut().for_each(|interface| interface.groups.clear());
        }
        if let (Some(ours), Some(theirs)) = (self.network_interfaces.first(), request.network_interfaces.first_mut()) {
            *theirs = ours.clone().with(std::mem::take(theirs));
        }
        if !request.tag_specifications.is_empty() {
            request.tag_specifications = merged_tags(&self.tag_specifications, &request.tag_specifications);
        }
        let mut launch = self.with(request);
        if let Some(interface) = launch.network_interfaces.first_mut() {
            // The groups of a launch with an interface are those of the interface.
            interface.groups.append(&mut launch.security_group_ids);
            interface.groups.append(&mut launch.security_groups);
        }
        launch
    }

    fn has_groups(&self) -> bool {
        let has_interface_groups = self.network_interfaces.iter().any(|interface| !interface.groups.is_empty());
        has_interface_groups || !self.security_group_ids.is_empty() || !self.security_groups.is_empty()
    }
}

impl NetworkInterface {
    fn with(self, changes: NetworkInterface) -> NetworkInterface {
        NetworkInterface {
            associate_public_ip_address: changes.associate_public_ip_address.or(self.associate_public_ip_address),
            delete_on_termination: changes.delete_on_termination.or(self.delete_on_termination),
            device_index: changes.device_index.or(self.device_index),
            groups: unless_empty(changes.groups, self.groups),
            private_ip_address: changes.private_ip_address.or(self.private_ip_address),
            subnet_id: changes.subnet_id.or(self.subnet_id),
        }
    }
}

impl TagSpecification {
    /// The resource type of the tags of instances.
    pub const INSTANCE: &str = "instance";

    /// Returns the tags of instances as a list of specifications, which is empty without tags.
    pub fn of_instance<'a>(tags: impl IntoIterator<Item = (&'a String, &'a String)>) -> Vec<TagSpecification> {
        let tag = |(key, value): (&String, &String)| TemplateTag { key: key.clone(), value: value.clone() };
        let tags: Vec<TemplateTag> = tags.into_iter().map(tag).collect();
        if tags.is_empty() {
            return Vec::new();
        }
        vec![TagSpecification { resource_type: Self::INSTANCE.into(), tags }]
    }
}

/// Merges tag specifications of the same resource type. For equal keys, `later` wins.
fn merged_tags(earlier: &[TagSpecification], later: &[TagSpecification]) -> Vec<TagSpecification> {
    let mut merged: Vec<TagSpecification> = later.to_vec();
    for specification in earlier {
        match merged.iter_mut().find(|known| known.resource_type == specification.resource_type) {
            Some(known) => {
                let is_new = |tag: &&TemplateTag| known.tags.iter().all(|other| other.key != tag.key);
                let new: Vec<TemplateTag> = specification.tags.iter().filter(is_new).cloned().collect();
                known.tags.extend(new);
            }
            None => merged.push(specification.clone()),
        }
    }
    merged
}

fn unless_empty<T>(list: Vec<T>, default: Vec<T>) -> Vec<T> {
    if list.is_empty() { default } else { list }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn data(value: Value) -> LaunchTemplateData {
        serde_json::from_value(value).expect("data")
    }

    fn launch(template: Value, request: Value) -> Value {
        serde_json::to_value(data(template).for_launch(data(request))).expect("plain data")
    }

    #[test]
    fn data_is_returned_as_requested() {
        let given = json!({
            "BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 8, "VolumeType": "gp3"}}],
            "ImageId": "ami-def456", "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpProtocolIpv6": "disabled", "HttpTokens": "required"},
            "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "test", "Value": "value"}]}],
        });
        assert_eq!(serde_json::to_value(data(given.clone())).expect("plain data"), given);
        assert_eq!(serde_json::to_value(LaunchTemplateData::default()).expect("plain data"), json!({}));
    }

    #[test]
    fn new_version_replaces_whole_members() {
        let source = json!({"ImageId": "tiny", "InstanceType": "t3.nano", "SecurityGroups": ["web"],
            "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "1"}]}]});
        let changes = json!({"InstanceType": "t3.micro", "SecurityGroupIds": ["sg-1"],
            "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "b", "Value": "2"}]}]});
        let new = serde_json::to_value(data(source).with(data(changes.clone()))).expect("plain data");
        assert_eq!((&new["ImageId"], &new["InstanceType"]), (&json!("tiny"), &json!("t3.micro")));
        assert_eq!(new["TagSpecifications"], changes["TagSpecifications"]);
        assert_eq!((&new["SecurityGroupIds"], new.get("SecurityGroups")), (&json!(["sg-1"]), None));
    }

    #[test]
    fn request_overrides_template_and_merges_tags() {
        let template = json!({"ImageId": "tiny", "InstanceType": "t3.nano", "TagSpecifications": [
            {"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "1"}]}]});
        let request = json!({"InstanceType": "t3.micro", "TagSpecifications": [
            {"ResourceType": "instance", "Tags": [{"Key": "b", "Value": "2"}]}]});
        assert_eq!(
            launch(template, request),
            json!({"ImageId": "tiny", "InstanceType": "t3.micro", "TagSpecifications": [
                {"ResourceType": "instance", "Tags": [{"Key": "b", "Value": "2"}, {"Key": "a", "Value": "1"}]}]})
        );
    }

    #[test]
    fn request_overrides_members_of_the_interface() {
        let template = json!({"NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": "front", "Groups": ["web"]}]});
        let subnet = json!({"NetworkInterfaces": [{"SubnetId": "back"}]});
        let interface = |request: Value| launch(template.clone(), request)["NetworkInterfaces"].clone();
        assert_eq!(interface(subnet), json!([{"DeviceIndex": 0, "SubnetId": "back", "Groups": ["web"]}]));
        let groups = json!({"SecurityGroups": ["db"]});
        assert_eq!(interface(groups), json!([{"DeviceIndex": 0, "SubnetId": "front", "Groups": ["db"]}]));
        let both = json!({"NetworkInterfaces": [{"Groups": ["db"]}]});
        assert_eq!(interface(both), json!([{"DeviceIndex": 0, "SubnetId": "front", "Groups": ["db"]}]));
    }

    #[test]
    fn groups_of_the_request_replace_those_of_the_template() {
        let template = json!({"SecurityGroupIds": ["sg-1"]});
        assert_eq!(launch(template.clone(), json!({"SecurityGroups": ["db"]})), json!({"SecurityGroups": ["db"]}));
        let interface = json!({"NetworkInterfaces": [{"SubnetId": "back"}]});
        assert_eq!(
            launch(template, interface),
            json!({"NetworkInterfaces": [{"Groups": ["sg-1"], "SubnetId": "back"}]})
        );
    }
}
