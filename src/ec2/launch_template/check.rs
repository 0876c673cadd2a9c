//! Checks of a template's data, and conversions of its members to the types of a launch.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::data::{
    BlockDeviceMapping, EbsBlockDevice, Enabled, LaunchTemplateData, MetadataOptions, NetworkInterface,
    TagSpecification,
};
use crate::block_device::DeviceName;
use crate::catalog;
use crate::credits::CreditMode;
use crate::error::{Ec2Error, ErrorCode};
use crate::metadata::MetadataChange;
use crate::network::Zone;
use crate::tag::{Tag, with_tags};
use crate::volume::{VolumeOption, VolumeSize, VolumeSource, VolumeSpec};

/// Maximum length of a version's description in characters.
pub const MAX_DESCRIPTION: usize = 255;

impl LaunchTemplateData {
    /// Checks the data of a new version. Members with a value that Wisp does not support are refused by name. As in
    /// EC2, the resources that the data names need not exist.
    pub fn check(&self) -> Result<(), Ec2Error> {
        if *self == LaunchTemplateData::default() {
            let what = "The request must contain the parameter LaunchTemplateData with at least one launch parameter.";
            return Err(Ec2Error::refused(ErrorCode::MissingParameter, what, None));
        }
        self.check_values()
    }

    /// Checks the values of all members.
    pub fn check_values(&self) -> Result<(), Ec2Error> {
        self.check_defaults()?;
        self.check_interfaces()?;
        self.instance_type.as_deref().map(catalog::find).transpose()?;
        self.zone()?;
        self.private_ip()?;
        self.credits()?;
        self.metadata()?;
        self.volumes()?;
        self.tags().map(drop)
    }

    /// Refuses values other than EC2's default of members that have only this value in Wisp.
    fn check_defaults(&self) -> Result<(), Ec2Error> {
        let is_on = |option: &Option<Enabled>| option.as_ref().and_then(|option| option.enabled);
        let switches = [
            ("DisableApiStop", self.disable_api_stop),
            ("EbsOptimized", self.ebs_optimized),
            ("EnclaveOptions.Enabled", is_on(&self.enclave_options)),
            ("Monitoring.Enabled", is_on(&self.monitoring)),
        ];
        if let Some((name, _)) = switches.into_iter().find(|(_, given)| *given == Some(true)) {
            return Err(unsupported(name, "true"));
        }
        let tenancy = self.placement.as_ref().and_then(|placement| placement.tenancy.as_deref());
        if let Some(other) = tenancy.filter(|tenancy| *tenancy != "default") {
            return Err(unsupported("Placement.Tenancy", other));
        }
        let protocol = self.metadata_options.as_ref().and_then(|options| options.http_protocol_ipv6.as_deref());
        if let Some(other) = protocol.filter(|protocol| *protocol != "disabled") {
            return Err(unsupported("MetadataOptions.HttpProtocolIpv6", other));
        }
        Ok(())
    }

    fn check_interfaces(&self) -> Result<(), Ec2Error> {
        let Some(interface) = self.network_interfaces.first() else { return Ok(()) };
        if self.network_interfaces.len() > 1 {
            return Err(unsupported("NetworkInterfaces", format!("{} interfaces", self.network_interfaces.len())));
        }
        if let Some(other) = interface.device_index.filter(|index| *index != 0) {
            return Err(unsupported("NetworkInterfaces.DeviceIndex", other));
        }
        if interface.delete_on_termination == Some(false) {
            return Err(unsupported("NetworkInterfaces.DeleteOnTermination", false));
        }
        if !self.security_group_ids.is_empty() || !self.security_groups.is_empty() {
            let what =
                "Network interfaces and an instance-level security groups may not be specified on the same request";
            return Err(Ec2Error::refused(ErrorCode::InvalidParameterCombination, what, None));
        }
        Ok(())
    }

    pub fn interface(&self) -> NetworkInterface {
        self.network_interfaces.first().cloned().unwrap_or_default()
    }

    /// Returns the names and IDs of the security groups.
    pub fn groups(&self) -> Vec<String> {
        let interface = self.interface();
        match interface.groups.is_empty() {
            true => self.security_group_ids.iter().chain(&self.security_groups).cloned().collect(),
            false => interface.groups,
        }
    }

    pub fn private_ip(&self) -> Result<Option<Ipv4Addr>, Ec2Error> {
        let parse = |text: String| {
            text.parse().map_err(|_| Ec2Error::invalid_parameter("PrivateIpAddress", text, "it must be an address."))
        };
        self.interface().private_ip_address.map(parse).transpose()
    }

    pub fn zone(&self) -> Result<Option<Zone>, Ec2Error> {
        let zone = self.placement.as_ref().and_then(|placement| placement.availability_zone.as_deref());
        zone.map(str::parse).transpose()
    }

    pub fn credits(&self) -> Result<Option<CreditMode>, Ec2Error> {
        let credits = self.credit_specification.as_ref().and_then(|credits| credits.cpu_credits.as_deref());
        credits.map(str::parse).transpose()
    }

    pub fn metadata(&self) -> Result<Option<MetadataChange>, Ec2Error> {
        let Some(options) = &self.metadata_options else { return Ok(None) };
        let named = options.named();
        let text: Vec<String> = named.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if text.is_empty() { Ok(None) } else { text.join(",").parse().map(Some) }
    }

    /// Returns the tags of instances.
    pub fn tags(&self) -> Result<BTreeMap<String, String>, Ec2Error> {
        let mut tags = Vec::new();
        for specification in &self.tag_specifications {
            if specification.resource_type != TagSpecification::INSTANCE {
                return Err(unsupported("TagSpecifications.ResourceType", &specification.resource_type));
            }
            for tag in &specification.tags {
                tags.push(Tag::new(&tag.key, &tag.value)?);
            }
        }
        with_tags(&BTreeMap::new(), tags)
    }

    /// Returns the volumes that instances get in addition to the root volume.
    pub fn volumes(&self) -> Result<Vec<VolumeOption>, Ec2Error> {
        self.block_device_mappings.iter().map(BlockDeviceMapping::volume).collect()
    }
}

impl MetadataOptions {
    fn named(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("HttpEndpoint", self.http_endpoint.clone()),
            ("HttpTokens", self.http_tokens.clone()),
            ("HttpPutResponseHopLimit", self.http_put_response_hop_limit.map(|limit| limit.to_string())),
            ("InstanceMetadataTags", self.instance_metadata_tags.clone()),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

impl From<MetadataChange> for MetadataOptions {
    fn from(change: MetadataChange) -> MetadataOptions {
        let mut options = MetadataOptions::default();
        for (name, value) in change.named() {
            match name {
                "HttpEndpoint" => options.http_endpoint = Some(value),
                "HttpTokens" => options.http_tokens = Some(value),
                "HttpPutResponseHopLimit" => options.http_put_response_hop_limit = value.parse().ok(),
                _ => options.instance_metadata_tags = Some(value),
            }
        }
        options
    }
}

impl BlockDeviceMapping {
    fn volume(&self) -> Result<VolumeOption, Ec2Error> {
        let device: Option<DeviceName> = self.device_name.as_deref().map(str::parse).transpose()?;
        if let Some(root) = device.as_ref().filter(|device| device.is_root()) {
            return Err(unsupported("BlockDeviceMappings.DeviceName", root));
        }
        let Some(ebs) = &self.ebs else {
            let what = "The request must contain the parameter BlockDeviceMappings.Ebs.";
            return Err(Ec2Error::refused(ErrorCode::MissingParameter, what, None));
        };
        if ebs.encrypted == Some(true) {
            return Err(unsupported("BlockDeviceMappings.Ebs.Encrypted", true));
        }
        let size = ebs.volume_size.map(|gib| {
            let invalid = || Ec2Error::invalid_parameter("VolumeSize", gib, "it must be a number of GiB.");
            VolumeSize::from_gib(gib).ok_or_else(invalid)
        });
        let spec = VolumeSpec {
            size: size.transpose()?,
            volume_type: ebs.volume_type.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
            iops: ebs.iops,
            throughput: ebs.throughput,
        };
        let source = VolumeSource::New { spec, snapshot: ebs.snapshot_id.clone(), name: None };
        Ok(VolumeOption { source, device, delete_on_termination: ebs.delete_on_termination })
    }
}

impl TryFrom<&VolumeOption> for BlockDeviceMapping {
    type Error = Ec2Error;

    /// Fails for an option that EC2's mappings do not have.
    fn try_from(option: &VolumeOption) -> Result<BlockDeviceMapping, Ec2Error> {
        let refused = |what: &str| {
            let what = format!("A launch template cannot contain {what}.");
            Err(Ec2Error::refused(ErrorCode::InvalidParameterValue, what, None))
        };
        let (spec, snapshot) = match &option.source {
            VolumeSource::Existing(_) => return refused("an existing volume"),
            VolumeSource::New { name: Some(_), .. } => return refused("the name of a volume"),
            VolumeSource::New { spec, snapshot, name: None } => (spec, snapshot),
        };
        if spec.size.is_some_and(|size| size.extension().is_some()) {
            return refused("a volume size that is not a whole number of GiB");
        }
        let ebs = EbsBlockDevice {
            delete_on_termination: option.delete_on_termination,
            encrypted: None,
            iops: spec.iops,
            snapshot_id: snapshot.clone(),
            throughput: spec.throughput,
            volume_size: spec.size.map(VolumeSize::gib),
            volume_type: Some(spec.volume_type.as_str().into()),
        };
        Ok(BlockDeviceMapping { device_name: option.device.as_ref().map(DeviceName::to_string), ebs: Some(ebs) })
    }
}

fn unsupported(name: &str, value: impl std::fmt::Display) -> Ec2Error {
    let what = format!("Wisp does not support the parameter {name} with the value '{value}'.");
    Ec2Error::refused(ErrorCode::UnsupportedOperation, what, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn data(value: Value) -> LaunchTemplateData {
        serde_json::from_value(value).expect("data")
    }

    #[test]
    fn unsupported_values_are_refused_by_name() {
        for (value, name) in [
            (json!({"DisableApiStop": true}), "DisableApiStop"),
            (json!({"EbsOptimized": true}), "EbsOptimized"),
            (json!({"Monitoring": {"Enabled": true}}), "Monitoring.Enabled"),
            (json!({"EnclaveOptions": {"Enabled": true}}), "EnclaveOptions.Enabled"),
            (json!({"Placement": {"Tenancy": "host"}}), "Placement.Tenancy"),
            (json!({"MetadataOptions": {"HttpProtocolIpv6": "enabled"}}), "MetadataOptions.HttpProtocolIpv6"),
            (json!({"NetworkInterfaces": [{}, {}]}), "NetworkInterfaces"),
            (json!({"NetworkInterfaces": [{"DeviceIndex": 1}]}), "NetworkInterfaces.DeviceIndex"),
            (json!({"TagSpecifications": [{"ResourceType": "volume"}]}), "TagSpecifications.ResourceType"),
            (json!({"BlockDeviceMappings": [{"DeviceName": "/dev/xvda"}]}), "BlockDeviceMappings.DeviceName"),
        ] {
            let error = data(value).check().expect_err(name);
            assert_eq!(error.code(), ErrorCode::UnsupportedOperation, "{name}");
            assert!(error.to_string().contains(&format!("the parameter {name} with")), "{error}");
        }
    }

    #[test]
    fn defaults_are_accepted() {
        let defaults = json!({
            "DisableApiStop": false, "EbsOptimized": false, "EnclaveOptions": {"Enabled": false},
            "MetadataOptions": {"HttpProtocolIpv6": "disabled"}, "Monitoring": {"Enabled": false},
            "NetworkInterfaces": [{"DeviceIndex": 0, "DeleteOnTermination": true}],
            "Placement": {"AvailabilityZone": "us-east-1b", "Tenancy": "default"},
        });
        let data = data(defaults);
        data.check().expect("defaults");
        assert_eq!((data.zone(), data.metadata()), (Ok(Some(Zone::B)), Ok(None)));
    }

    #[test]
    fn invalid_data_is_refused_with_ec2_code() {
        let interface = json!([{"SubnetId": "subnet-1"}]);
        for (value, code) in [
            (json!({}), ErrorCode::MissingParameter),
            (json!({"InstanceType": "t3.huge"}), ErrorCode::InvalidParameterValue),
            (json!({"CreditSpecification": {"CpuCredits": "free"}}), ErrorCode::InvalidParameterValue),
            (json!({"Placement": {"AvailabilityZone": "moon-1a"}}), ErrorCode::InvalidParameterValue),
            (json!({"MetadataOptions": {"HttpPutResponseHopLimit": 65}}), ErrorCode::InvalidParameterValue),
            (json!({"NetworkInterfaces": [{"PrivateIpAddress": "x"}]}), ErrorCode::InvalidParameterValue),
            (json!({"NetworkInterfaces": interface, "SecurityGroups": ["a"]}), ErrorCode::InvalidParameterCombination),
            (json!({"BlockDeviceMappings": [{"DeviceName": "/dev/sdf"}]}), ErrorCode::MissingParameter),
            (
                json!({"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "aws:x"}]}]}),
                ErrorCode::InvalidTagKeyMalformed,
            ),
        ] {
            assert_eq!(data(value.clone()).check().expect_err("invalid").code(), code, "{value}");
        }
    }

    #[test]
    fn volume_options_convert_to_mappings_and_back() {
        for text in ["8", "size=8,type=gp2,device=/dev/sdf,delete-on-termination=false", "snapshot=snap-0a1,iops=4000"]
        {
            let option: VolumeOption = text.parse().expect(text);
            let mapping = BlockDeviceMapping::try_from(&option).expect(text);
            let data = LaunchTemplateData { block_device_mappings: vec![mapping], ..LaunchTemplateData::default() };
            assert_eq!(data.volumes(), Ok(vec![option]));
        }
        for text in ["volume=vol-0a1", "8,name=data", "512M"] {
            let error = BlockDeviceMapping::try_from(&text.parse().expect(text)).expect_err(text);
            assert_eq!(error.code(), ErrorCode::InvalidParameterValue);
        }
    }

    #[test]
    fn metadata_options_convert_to_members_and_back() {
        let change: MetadataChange =
            "HttpTokens=required,HttpPutResponseHopLimit=2,InstanceMetadataTags=enabled".parse().expect("options");
        let options = MetadataOptions::from(change);
        let data = LaunchTemplateData { metadata_options: Some(options), ..LaunchTemplateData::default() };
        assert_eq!(data.metadata(), Ok(Some(change)));
    }
}
