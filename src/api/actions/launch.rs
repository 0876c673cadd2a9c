//! `RunInstances`.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Context;
use super::launch_templates;
use super::resource::{combination, id, missing};
use super::tags::{TagSpecification, tags_for_each};
use crate::error::{ApiError, Code};
use cloud::launch::LaunchSpec;
use cloud::network::NetworkSpec;
use cloud::shapes;
use ec2::block_device::DeviceName;
use ec2::capacity::InstanceSize;
use ec2::id::{Image, SecurityGroup, Snapshot, Subnet};
use ec2::image_alias::AliasReference;
use ec2::launch_template::LaunchTemplateData;
use ec2::metadata::MetadataChange;
use ec2::network::{NetworkMode, Zone};
use ec2::user_data::UserData;
use ec2::volume::{VolumeOption, VolumeSize, VolumeSource, VolumeSpec, VolumeType};
use ec2::{Ec2Error, ErrorCode, ImageId, catalog};

/// The instance type of requests without one. EC2's default, m1.small, is of the first generation.
const DEFAULT_TYPE: &str = "t2.micro";
/// The version of a launch template that is used if the request names none.
const DEFAULT_VERSION: &str = "$Default";

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunInstances {
    image_id: Option<String>,
    instance_type: Option<String>,
    min_count: u32,
    max_count: u32,
    key_name: Option<String>,
    user_data: Option<String>,
    client_token: Option<String>,
    tag_specifications: Vec<TagSpecification>,
    block_device_mappings: Vec<Mapping>,
    instance_initiated_shutdown_behavior: Option<String>,
    disable_api_termination: Option<bool>,
    credit_specification: Option<CreditSpecification>,
    hibernation_options: Option<HibernationOptions>,
    metadata_options: Option<MetadataOptions>,
    placement: Option<Placement>,
    security_group_ids: Vec<String>,
    security_groups: Vec<String>,
    subnet_id: Option<String>,
    private_ip_address: Option<String>,
    network_interfaces: Vec<Interface>,
    launch_template: Option<LaunchTemplateSpecification>,
    dry_run: bool,
}

/// EC2 API Reference, `LaunchTemplateSpecification`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct LaunchTemplateSpecification {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    version: Option<String>,
}

/// EC2 API Reference, `BlockDeviceMapping`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mapping {
    device_name: Option<String>,
    ebs: Option<Ebs>,
}

/// EC2 API Reference, `EbsBlockDevice`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Ebs {
    volume_size: Option<u64>,
    volume_type: Option<String>,
    iops: Option<u32>,
    throughput: Option<u32>,
    snapshot_id: Option<String>,
    delete_on_termination: Option<bool>,
}

/// EC2 API Reference, `CreditSpecificationRequest`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreditSpecification {
    cpu_credits: Option<String>,
}

/// EC2 API Reference, `HibernationOptionsRequest`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HibernationOptions {
    configured: bool,
}

/// EC2 API Reference, `InstanceMetadataOptionsRequest`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MetadataOptions {
    pub http_tokens: Option<String>,
    pub http_endpoint: Option<String>,
    pub http_put_response_hop_limit: Option<u32>,
    pub instance_metadata_tags: Option<String>,
}

impl MetadataOptions {
    /// Returns the change of the options, or `None` if the request has none.
    pub fn change(&self) -> Result<Option<MetadataChange>, Ec2Error> {
        let hop_limit = self.http_put_response_hop_limit.map(|limit| limit.to_string());
        let given = [
            ("HttpTokens", &self.http_tokens),
            ("HttpEndpoint", &self.http_endpoint),
            ("HttpPutResponseHopLimit", &hop_limit),
            ("InstanceMetadataTags", &self.instance_metadata_tags),
        ];
        let given: Vec<String> =
            given.iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?))).collect();
        if given.is_empty() { Ok(None) } else { given.join(",").parse().map(Some) }
    }
}

/// EC2 API Reference, `Placement`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Placement {
    availability_zone: Option<String>,
}

/// EC2 API Reference, `InstanceNetworkInterfaceSpecification`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Interface {
    device_index: u32,
    subnet_id: Option<String>,
    groups: Vec<String>,
    private_ip_address: Option<String>,
    private_ip_addresses: Vec<PrivateIpAddress>,
    associate_public_ip_address: Option<bool>,
}

/// EC2 API Reference, `PrivateIpAddressSpecification`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PrivateIpAddress {
    primary: bool,
    private_ip_address: Option<String>,
}

/// Launches instances, and responds before their guests have booted.
pub fn run(context: &Context, input: RunInstances) -> Result<Value, ApiError> {
    // The control plane reports a dry run itself, after all of its checks.
    let spec = input.spec_with_template(context)?;
    let launched = super::report(context.cloud.instances().launch(&spec, &|_| ())?);
    if launched.lacks_template
        && let Some(first) = launched.instances.first()
    {
        (context.prepare_template)(&first.spec.image_id.to_string(), &spec.size);
    }
    super::respond(shapes::reservation(&launched.instances, &context.cloud.security_groups().names()?))
}

impl RunInstances {
    /// Returns the launch. If the request names a launch template, its parameters replace or complete the template's.
    fn spec_with_template(self, context: &Context) -> Result<LaunchSpec, ApiError> {
        let Some(template) = &self.launch_template else { return self.spec(self.image(context)?) };
        let (id, name) = (template.launch_template_id.as_ref(), template.launch_template_name.as_ref());
        let found = launch_templates::find(context, id, name, "use")?;
        let version = template.version.as_deref().unwrap_or(DEFAULT_VERSION);
        let chosen = context.cloud.launch_templates().version(&format!("{}:{version}", found.meta.id))?;
        let merged = self.merged(chosen.version.data.clone())?;
        let mut spec = merged.spec(merged.image(context)?)?;
        spec.tags.extend(chosen.instance_tags());
        Ok(spec)
    }

    /// Merges the request with the data of a launch template.
    fn merged(mut self, template: LaunchTemplateData) -> Result<RunInstances, ApiError> {
        // A template has only one of the ways to state an interface's address.
        let private_ip_address = self.network()?.private_ip.map(|address| address.to_string());
        for interface in &mut self.network_interfaces {
            interface.private_ip_addresses.clear();
            interface.private_ip_address.clone_from(&private_ip_address);
        }
        let unreadable = |error| ApiError::new(Code::InternalError, format!("cannot use the launch template: {error}"));
        let request = serde_json::to_value(&self).and_then(serde_json::from_value).map_err(unreadable)?;
        let data = template.for_launch(request);
        let merged: RunInstances = serde_json::to_value(data).and_then(serde_json::from_value).map_err(unreadable)?;
        // These parameters are not part of a template.
        Ok(RunInstances {
            min_count: self.min_count,
            max_count: self.max_count,
            client_token: self.client_token,
            dry_run: self.dry_run,
            subnet_id: self.subnet_id,
            private_ip_address: if self.network_interfaces.is_empty() { private_ip_address } else { None },
            ..merged
        })
    }

    fn image(&self, context: &Context) -> Result<ImageId, ApiError> {
        let image = self.image_id.as_deref().ok_or_else(|| missing("ImageId"))?;
        match AliasReference::parse(image)? {
            Some(_) => Ok(context.cloud.images().find(image)?.meta.id),
            None => Ok(id::<Image>(image)?),
        }
    }

    fn spec(&self, image: ImageId) -> Result<LaunchSpec, ApiError> {
        let instance_type = catalog::find(self.instance_type.as_deref().unwrap_or(DEFAULT_TYPE))?;
        let user_data = self.user_data.as_deref().map(UserData::from_base64).transpose()?;
        let [tags, volume_tags] = tags_for_each(["instance", "volume"], &self.tag_specifications)?;
        let behavior = self.instance_initiated_shutdown_behavior.as_deref().map(str::parse).transpose()?;
        let credits = self.credit_specification.as_ref().and_then(|given| given.cpu_credits.as_deref());
        Ok(LaunchSpec {
            image: Some(image.to_string()),
            size: InstanceSize::of_type(instance_type),
            overridden: false,
            overcommit: false,
            count: self.max_count,
            min_count: self.min_count,
            key_name: self.key_name.clone(),
            user_data: user_data.filter(|data| !data.is_empty()).map(|data| data.to_base64()),
            tags,
            shutdown_behavior: behavior.unwrap_or_default(),
            termination_protection: self.disable_api_termination.unwrap_or(false),
            client_token: self.client_token.clone(),
            dry_run: self.dry_run,
            cold: false,
            hibernation: self.hibernation_options.as_ref().is_some_and(|options| options.configured),
            cmdline: None,
            volumes: self.block_device_mappings.iter().map(|one| one.option(image)).collect::<Result<_, _>>()?,
            volume_tags,
            network: self.network()?,
            cpu_credits: credits.map(str::parse).transpose()?,
            no_limits: false,
            first_boot_timeout: None,
        })
    }

    fn network(&self) -> Result<NetworkSpec, ApiError> {
        let placement = self.placement.as_ref().and_then(|placement| placement.availability_zone.as_deref());
        let zone: Option<Zone> = placement.map(str::parse).transpose()?;
        let metadata = match &self.metadata_options {
            Some(options) => options.change()?,
            None => None,
        };
        let placed = match &self.network_interfaces[..] {
            [] => self.flat_network()?,
            [interface] => self.network_of(interface)?,
            _ => {
                let what = "Wisp supports one network interface per instance.";
                return Err(Ec2Error::refused(ErrorCode::UnsupportedOperation, what, None).into());
            }
        };
        Ok(NetworkSpec { mode: NetworkMode::default(), zone, published: Vec::new(), metadata, ..placed })
    }

    fn flat_network(&self) -> Result<NetworkSpec, ApiError> {
        let subnet = self.subnet_id.as_deref().map(id::<Subnet>).transpose()?;
        if subnet.is_some() && !self.security_groups.is_empty() {
            return Err(combination("The parameter groupName cannot be used with the parameter subnet"));
        }
        let mut groups = group_ids(&self.security_group_ids)?;
        groups.extend(self.security_groups.iter().cloned());
        Ok(NetworkSpec {
            subnet: subnet.map(|id| id.to_string()),
            private_ip: self.private_ip_address.as_deref().map(address).transpose()?,
            security_groups: groups,
            ..NetworkSpec::default()
        })
    }

    fn network_of(&self, interface: &Interface) -> Result<NetworkSpec, ApiError> {
        let has_groups = !self.security_group_ids.is_empty() || !self.security_groups.is_empty();
        for (given, noun) in [(self.subnet_id.is_some(), "subnet ID"), (has_groups, "security groups")] {
            if given {
                let what =
                    format!("Network interfaces and an instance-level {noun} may not be specified on the same request");
                return Err(combination(&what));
            }
        }
        if interface.device_index != 0 {
            let rule = "Wisp supports one network interface per instance, with index 0.";
            return Err(Ec2Error::invalid_parameter("DeviceIndex", interface.device_index, rule).into());
        }
        let secondary = interface.private_ip_addresses.iter().any(|one| !one.primary);
        if secondary {
            let what = "Wisp does not support secondary private addresses.";
            return Err(Ec2Error::refused(ErrorCode::UnsupportedOperation, what, None).into());
        }
        let listed = interface.private_ip_addresses.iter().filter_map(|one| one.private_ip_address.as_ref());
        let given = [&self.private_ip_address, &interface.private_ip_address].into_iter().flatten().chain(listed);
        let mut addresses = given.map(|text| address(text)).collect::<Result<Vec<_>, _>>()?;
        addresses.dedup();
        if addresses.len() > 1 {
            return Err(combination("The request has several primary private addresses."));
        }
        Ok(NetworkSpec {
            subnet: interface.subnet_id.as_deref().map(id::<Subnet>).transpose()?.map(|id| id.to_string()),
            private_ip: addresses.pop(),
            public_ip: interface.associate_public_ip_address,
            security_groups: group_ids(&interface.groups)?,
            ..NetworkSpec::default()
        })
    }
}

fn group_ids(ids: &[String]) -> Result<Vec<String>, Ec2Error> {
    ids.iter().map(|text| Ok(id::<SecurityGroup>(text)?.to_string())).collect()
}

fn address(text: &str) -> Result<Ipv4Addr, Ec2Error> {
    text.parse().map_err(|_| Ec2Error::invalid_parameter("PrivateIpAddress", text, "it must be an IPv4 address."))
}

impl Mapping {
    /// Returns the volume of the mapping. `image` is the image of the launch.
    fn option(&self, image: ImageId) -> Result<VolumeOption, ApiError> {
        let device = self.device_name.as_deref().ok_or_else(|| missing("BlockDeviceMapping.DeviceName"))?;
        let ebs = self.ebs.as_ref().ok_or_else(|| missing("BlockDeviceMapping.Ebs"))?;
        // Clients repeat the snapshot that DescribeImages names: the root volume is created from it anyway.
        let of_image = image.with_prefix("snap");
        let snapshot = ebs.snapshot_id.as_deref().filter(|given| *given != of_image);
        let snapshot = snapshot.map(id::<Snapshot>).transpose()?;
        let size = |gib| VolumeSize::from_gib(gib).ok_or(gib);
        let size = ebs.volume_size.map(size).transpose().map_err(|gib| {
            let rule = "it must be a positive number of GiB.";
            Ec2Error::invalid_parameter("BlockDeviceMapping.Ebs.VolumeSize", gib, rule)
        })?;
        let device: DeviceName = device.parse()?;
        // A root volume has the type of the image's; others have the default of EC2's API.
        let default = if device.is_root() { VolumeType::default() } else { VolumeType::Gp2 };
        Ok(VolumeOption {
            source: VolumeSource::New {
                spec: VolumeSpec {
                    size,
                    volume_type: ebs.volume_type.as_deref().map_or(Ok(default), str::parse)?,
                    iops: ebs.iops,
                    throughput: ebs.throughput,
                },
                snapshot: snapshot.map(|id| id.to_string()),
                name: None,
            },
            device: Some(device),
            delete_on_termination: ebs.delete_on_termination,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const IMAGE: &str = "ami-0123456789abcdef0";

    fn spec(more: Value) -> Result<LaunchSpec, ApiError> {
        let mut input = json!({"ImageId": IMAGE, "MinCount": 1, "MaxCount": 2});
        if let (Some(input), Value::Object(more)) = (input.as_object_mut(), more) {
            input.extend(more);
        }
        super::super::input::read::<RunInstances>(input)?.spec(IMAGE.parse().unwrap())
    }

    fn merged(request: Value, template: Value) -> Result<LaunchSpec, ApiError> {
        let request = super::super::input::read::<RunInstances>(request)?;
        request.merged(serde_json::from_value(template).unwrap())?.spec(IMAGE.parse().unwrap())
    }

    #[test]
    fn parameters_of_request_replace_or_complete_those_of_template() {
        let tags = |key: &str| json!([{"ResourceType": "instance", "Tags": [{"Key": key, "Value": "v"}]}]);
        let template = json!({
            "ImageId": IMAGE, "InstanceType": "t3.nano", "KeyName": "k", "DisableApiTermination": true,
            "TagSpecifications": tags("ours"), "NetworkInterfaces": [{"SubnetId": "subnet-0123456789abcdef0"}],
        });
        let request = json!({
            "MinCount": 1, "MaxCount": 3, "InstanceType": "t3.micro", "ClientToken": "c", "TagSpecifications": tags("its"),
            "NetworkInterfaces": [{"PrivateIpAddresses": [{"Primary": true, "PrivateIpAddress": "172.31.0.9"}]}],
        });
        let spec = merged(request, template.clone()).unwrap();
        assert_eq!((spec.min_count, spec.count, spec.size.instance_type.name), (1, 3, "t3.micro"));
        assert_eq!((spec.key_name.as_deref(), spec.client_token.as_deref()), (Some("k"), Some("c")));
        assert!(spec.termination_protection);
        assert_eq!(spec.tags.keys().collect::<Vec<_>>(), ["its", "ours"]);
        assert_eq!(spec.network.private_ip, Some([172, 31, 0, 9].into()));
        assert_eq!(spec.network.subnet.as_deref(), Some("subnet-0123456789abcdef0"));

        let request = json!({"MinCount": 1, "MaxCount": 1, "DisableApiTermination": false});
        assert!(!merged(request, template).unwrap().termination_protection);
    }

    #[test]
    fn parameters_reach_the_launch() {
        let spec = spec(json!({
            "InstanceType": "t3.nano",
            "UserData": "IyEvYmluL3No",
            "DisableApiTermination": true,
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required", "HttpProtocolIpv6": "disabled"},
            "Placement": {"AvailabilityZone": "us-east-1b", "Tenancy": "default"},
            "SecurityGroupIds": ["sg-0123456789abcdef0"],
            "TagSpecifications": [{"ResourceType": "volume", "Tags": [{"Key": "a", "Value": "b"}]}],
            "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {
                "SnapshotId": "snap-0123456789abcdef0", "VolumeSize": 2, "VolumeType": "gp2",
                "DeleteOnTermination": false, "Encrypted": false,
            }}],
            "Monitoring": {"Enabled": false},
        }))
        .unwrap();
        assert_eq!((spec.min_count, spec.count, spec.size.instance_type.name), (1, 2, "t3.nano"));
        assert_eq!(spec.network.metadata, Some("HttpTokens=required".parse().unwrap()));
        assert_eq!(spec.network.security_groups, ["sg-0123456789abcdef0"]);
        assert_eq!(spec.network.zone, Some(Zone::B));
        assert_eq!(spec.volume_tags, [("a".to_string(), "b".to_string())].into());
        assert!(spec.termination_protection && spec.volumes[0].delete_on_termination == Some(false));
        assert!(matches!(&spec.volumes[0].source, VolumeSource::New { snapshot: None, .. }));
    }

    #[test]
    fn unsupported_values_are_refused_by_name() {
        for (input, name) in [
            (json!({"Monitoring": {"Enabled": true}}), "Monitoring.Enabled"),
            (json!({"EbsOptimized": true}), "EbsOptimized"),
            (json!({"Placement": {"GroupName": "a"}}), "Placement.GroupName"),
            (json!({"IamInstanceProfile": {"Name": "a"}}), "IamInstanceProfile.Name"),
            (json!({"NetworkInterfaces": [{"Ipv6AddressCount": 1}]}), "NetworkInterfaces.Ipv6AddressCount"),
            (
                json!({"BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"Encrypted": true}}]}),
                "BlockDeviceMappings.Ebs.Encrypted",
            ),
        ] {
            let error = spec(input).unwrap_err();
            assert!(error.message.contains(&format!(" {name} ")), "{}", error.message);
        }
    }

    #[test]
    fn interface_replaces_subnet_and_groups() {
        let interface = json!([{
            "DeviceIndex": 0, "SubnetId": "subnet-0123456789abcdef0", "AssociatePublicIpAddress": true,
            "PrivateIpAddresses": [{"Primary": true, "PrivateIpAddress": "172.31.0.9"}], "DeleteOnTermination": true,
        }]);
        let network = spec(json!({"NetworkInterfaces": interface})).unwrap().network;
        assert_eq!((network.public_ip, network.private_ip), (Some(true), Some([172, 31, 0, 9].into())));
        assert_eq!(network.subnet.as_deref(), Some("subnet-0123456789abcdef0"));
        let both = json!({"NetworkInterfaces": interface, "SubnetId": "subnet-0123456789abcdef0"});
        assert!(spec(both).unwrap_err().message.contains("subnet ID"));
    }
}
