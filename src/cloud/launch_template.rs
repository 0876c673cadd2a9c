//! Launch templates: `CreateLaunchTemplate` and the like, and the launch from a template.

use std::collections::BTreeMap;

use super::error::CloudError;
use super::launch::LaunchSpec;
use super::lookup::{volumes_of, with_token};
use super::network::NetworkSpec;
use super::{Cloud, new_id, now, resolve};
use ec2::block_device::DeviceName;
use ec2::capacity::InstanceSize;
use ec2::launch_template::{
    BlockDeviceMapping, CreditSpecification, EbsBlockDevice, Enabled, HibernationOptions, ID_TAG, LaunchTemplateData,
    MAX_VERSIONS, NetworkInterface, Placement, TagSpecification, VERSION_TAG, VersionReference, check_description,
    check_name, split_reference, version_not_found,
};
use ec2::metadata::MetadataChange;
use ec2::tag::is_reserved;
use ec2::volume::VolumeOption;
use ec2::{Ec2Error, ErrorCode};
use store::{InstanceRecord, LaunchTemplateRecord, LaunchTemplateVersion, Meta, VolumeRecord};

const GIB: u64 = 1 << 30;

#[derive(Debug, Clone, Copy)]
pub struct LaunchTemplates<'a> {
    pub(crate) cloud: &'a Cloud,
}

#[derive(Debug, Clone, Default)]
pub struct NewLaunchTemplate {
    pub name: String,
    /// Description of the first version.
    pub description: Option<String>,
    pub data: LaunchTemplateData,
    pub tags: BTreeMap<String, String>,
    /// Two requests with the same token create one template.
    pub client_token: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct NewVersion {
    /// The version that provides the parameters that `data` omits.
    pub source: Option<VersionReference>,
    pub description: Option<String>,
    pub data: LaunchTemplateData,
    /// Two requests with the same token add one version.
    pub client_token: Option<String>,
}

/// The versions that a request asks for. Without any condition, it asks for all versions.
#[derive(Debug, Clone, Default)]
pub struct VersionSelection {
    pub versions: Vec<VersionReference>,
    /// The first number of a range.
    pub min: Option<u64>,
    /// The last number of a range.
    pub max: Option<u64>,
}

/// The result of `DeleteLaunchTemplateVersions`, which fails for each version separately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedVersions {
    pub template: LaunchTemplateRecord,
    pub deleted: Vec<u64>,
    pub failed: Vec<(u64, Ec2Error)>,
}

/// A version of a template, from which a launch takes its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenVersion {
    pub template: LaunchTemplateRecord,
    pub version: LaunchTemplateVersion,
}

impl LaunchTemplates<'_> {
    /// Returns all templates, oldest first.
    pub fn list(&self) -> Result<Vec<LaunchTemplateRecord>, CloudError> {
        let mut records: Vec<LaunchTemplateRecord> = self.cloud.records()?;
        records.sort_by(|a, b| (a.meta.created, &a.spec.name).cmp(&(b.meta.created, &b.spec.name)));
        Ok(records)
    }

    /// Finds a template by its name, its ID or a unique prefix of its ID.
    pub fn find(&self, reference: &str) -> Result<LaunchTemplateRecord, CloudError> {
        self.cloud.store.read(|tx| resolve::launch_template(tx, reference))
    }

    /// Finds a version. `reference` is `TEMPLATE` or `TEMPLATE:VERSION`; the default is the default version.
    pub fn version(&self, reference: &str) -> Result<ChosenVersion, CloudError> {
        let (template, version) = split_reference(reference)?;
        let template = self.find(template)?;
        let version = chosen(&template, version.unwrap_or_default())?.clone();
        Ok(ChosenVersion { template, version })
    }

    /// Returns the selected versions of a template, latest first. Fails for a number that no version has, but not for
    /// an empty range.
    pub fn versions(
        &self,
        reference: &str,
        selection: &VersionSelection,
    ) -> Result<(LaunchTemplateRecord, Vec<LaunchTemplateVersion>), CloudError> {
        let template = self.find(reference)?;
        let numbers: Result<Vec<u64>, Ec2Error> =
            selection.versions.iter().map(|version| chosen(&template, *version).map(|found| found.number)).collect();
        let numbers = numbers?;
        let is_selected = |version: &&LaunchTemplateVersion| {
            (numbers.is_empty() || numbers.contains(&version.number))
                && selection.min.is_none_or(|min| version.number >= min)
                && selection.max.is_none_or(|max| version.number <= max)
        };
        let versions = template.spec.versions.iter().rev().filter(is_selected).cloned().collect();
        Ok((template, versions))
    }

    /// Creates a template with one version, which is the default version.
    pub fn create(&self, new: &NewLaunchTemplate) -> Result<LaunchTemplateRecord, CloudError> {
        check_name(&new.name)?;
        let version = new_version(1, new.description.as_ref(), new.data.clone())?;
        self.cloud.store.write(|tx| {
            let token = new.client_token.as_deref();
            if let Some(existing) = with_token(tx, token, "launch template", |known| Ok(is_repeated(known, new)))? {
                return Ok(existing);
            }
            if tx.list::<LaunchTemplateRecord>()?.iter().any(|known| known.spec.name == new.name) {
                let code = ErrorCode::InvalidLaunchTemplateNameAlreadyExists;
                return Err(CloudError::refused(code, "Launch template name already in use.", None));
            }
            let meta = Meta::new(new_id(), now(), new.tags.clone());
            let mut record = LaunchTemplateRecord {
                meta: Meta { client_token: new.client_token.clone(), ..meta },
                spec: store::launch_template::Spec {
                    name: new.name.clone(),
                    default_version: 1,
                    versions: vec![version.clone()],
                },
                status: store::launch_template::Status { last_version: 1 },
            };
            tx.insert(&mut record)?;
            Ok(record)
        })
    }

    /// Adds a version, which does not become the default version.
    pub fn create_version(&self, reference: &str, new: &NewVersion) -> Result<ChosenVersion, CloudError> {
        self.cloud.store.write(|tx| {
            let mut template = resolve::launch_template(tx, reference)?;
            let source = new.source.map(|source| chosen(&template, source)).transpose()?;
            let data = source.map(|source| source.data.clone()).unwrap_or_default().with(new.data.clone());
            if let Some(version) = version_with_token(&template, new, &data)? {
                return Ok(ChosenVersion { template, version });
            }
            if template.spec.versions.len() >= MAX_VERSIONS {
                let what = format!("The launch template has the maximum number of versions, {MAX_VERSIONS}.");
                let hint = "Delete a version with `wisp template rm TEMPLATE:VERSION`.";
                return Err(CloudError::refused(ErrorCode::VersionLimitExceeded, what, Some(hint.into())));
            }
            let number = template.status.last_version.saturating_add(1);
            let version = new_version(number, new.description.as_ref(), data)?;
            let version = LaunchTemplateVersion { client_token: new.client_token.clone(), ..version };
            template.status.last_version = number;
            template.spec.versions.push(version.clone());
            tx.put(&mut template)?;
            Ok(ChosenVersion { template, version })
        })
    }

    pub fn set_default(&self, reference: &str, version: VersionReference) -> Result<LaunchTemplateRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let mut template = resolve::launch_template(tx, reference)?;
            let Some(found) = template.version(version) else {
                let what =
                    format!("The launch template version {version} is not found for the specified launch template.");
                let code = ErrorCode::InvalidLaunchTemplateVersionNotFound;
                return Err(CloudError::refused(code, what, None));
            };
            template.spec.default_version = found.number;
            tx.put(&mut template)?;
            Ok(template)
        })
    }

    /// Deletes a template with all versions. Instances that were launched from it are not affected.
    pub fn delete(&self, reference: &str) -> Result<LaunchTemplateRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let template = resolve::launch_template(tx, reference)?;
            tx.remove::<LaunchTemplateRecord>(&template.meta.id.to_string())?;
            Ok(template)
        })
    }

    /// Deletes versions. A failure for one version, such as the default version, does not affect the others.
    pub fn delete_versions(&self, reference: &str, numbers: &[u64]) -> Result<DeletedVersions, CloudError> {
        self.cloud.store.write(|tx| {
            let mut template = resolve::launch_template(tx, reference)?;
            let (mut deleted, mut failed) = (Vec::new(), Vec::new());
            for number in numbers {
                match check_deletion(&template, *number) {
                    Ok(()) => {
                        template.spec.versions.retain(|version| version.number != *number);
                        deleted.push(*number);
                    }
                    Err(error) => failed.push((*number, error)),
                }
            }
            if !deleted.is_empty() {
                tx.put(&mut template)?;
            }
            Ok(DeletedVersions { template, deleted, failed })
        })
    }

    /// Returns the parameters of a launch of instances like an existing one (`GetLaunchTemplateData`).
    pub fn data_of_instance(&self, reference: &str) -> Result<LaunchTemplateData, CloudError> {
        self.cloud.store.read(|tx| {
            let record = resolve::instance(tx, reference)?;
            Ok(data_of(&record, &volumes_of(tx, &record)?))
        })
    }
}

impl ChosenVersion {
    /// Returns the tags of instances that are launched from the version.
    pub fn instance_tags(&self) -> [(String, String); 2] {
        [(ID_TAG.into(), self.template.meta.id.to_string()), (VERSION_TAG.into(), self.version.number.to_string())]
    }
}

impl LaunchSpec {
    /// Returns the launch of one instance with the parameters of a template.
    pub fn of_template(data: &LaunchTemplateData, size: InstanceSize) -> Result<LaunchSpec, Ec2Error> {
        data.check_values()?;
        let interface = data.interface();
        Ok(LaunchSpec {
            image: data.image_id.clone(),
            size,
            overridden: false,
            overcommit: false,
            count: 1,
            min_count: 1,
            key_name: data.key_name.clone(),
            user_data: data.user_data.clone(),
            tags: data.tags()?,
            shutdown_behavior: data.instance_initiated_shutdown_behavior.unwrap_or_default(),
            termination_protection: data.disable_api_termination.unwrap_or(false),
            client_token: None,
            dry_run: false,
            cold: false,
            hibernation: data.hibernation_options.as_ref().and_then(|options| options.configured).unwrap_or(false),
            cmdline: None,
            volumes: data.volumes()?,
            volume_tags: BTreeMap::new(),
            network: NetworkSpec {
                subnet: interface.subnet_id,
                zone: data.zone()?,
                private_ip: data.private_ip()?,
                public_ip: interface.associate_public_ip_address,
                security_groups: data.groups(),
                metadata: data.metadata()?,
                ..NetworkSpec::default()
            },
            cpu_credits: data.credits()?,
            no_limits: false,
            first_boot_timeout: None,
        })
    }

    /// Adds volumes of the request to those of a template. A device name of the request replaces the template's volume.
    pub fn add_volumes(&mut self, volumes: Vec<VolumeOption>) {
        let devices: Vec<&DeviceName> = volumes.iter().filter_map(|volume| volume.device.as_ref()).collect();
        self.volumes.retain(|volume| {
            !volume.device.as_ref().is_some_and(|device| devices.iter().any(|other| device.same_place(other)))
        });
        self.volumes.extend(volumes);
    }
}

fn chosen(template: &LaunchTemplateRecord, version: VersionReference) -> Result<&LaunchTemplateVersion, Ec2Error> {
    template.version(version).ok_or_else(|| version_not_found(template.meta.id, version))
}

fn new_version(
    number: u64,
    description: Option<&String>,
    data: LaunchTemplateData,
) -> Result<LaunchTemplateVersion, Ec2Error> {
    description.map_or(Ok(()), |description| check_description(description))?;
    data.check()?;
    Ok(LaunchTemplateVersion { number, description: description.cloned(), created: now(), data, client_token: None })
}

/// Returns the version that an earlier request with the same client token added. Fails if that request differed.
fn version_with_token(
    template: &LaunchTemplateRecord,
    new: &NewVersion,
    data: &LaunchTemplateData,
) -> Result<Option<LaunchTemplateVersion>, CloudError> {
    let Some(token) = &new.client_token else { return Ok(None) };
    let existing = template.spec.versions.iter().find(|version| version.client_token.as_ref() == Some(token));
    match existing {
        Some(existing) if (&existing.data, &existing.description) != (data, &new.description) => {
            let what = format!("The client token '{token}' was used before, for a version with other parameters.");
            Err(CloudError::refused(ErrorCode::IdempotentParameterMismatch, what, None))
        }
        existing => Ok(existing.cloned()),
    }
}

/// Returns true if a request asks for the template that an earlier one created.
fn is_repeated(existing: &LaunchTemplateRecord, new: &NewLaunchTemplate) -> bool {
    let first = existing.spec.versions.iter().find(|version| version.number == 1);
    let is_same = first.is_none_or(|first| (&first.data, &first.description) == (&new.data, &new.description));
    existing.spec.name == new.name && is_same
}

fn check_deletion(template: &LaunchTemplateRecord, number: u64) -> Result<(), Ec2Error> {
    chosen(template, VersionReference::Number(number))?;
    if number != template.spec.default_version {
        return Ok(());
    }
    let what = format!("The version {number} is the default version of the launch template and cannot be deleted.");
    let hint = "Make another version the default with `wisp template set-default`, or delete the template.";
    Err(Ec2Error::refused(ErrorCode::OperationNotPermitted, what, Some(hint.into())))
}

fn data_of(record: &InstanceRecord, volumes: &[VolumeRecord]) -> LaunchTemplateData {
    let network = record.status.network.as_ref();
    let tags = record.meta.tags.iter().filter(|(key, _)| !is_reserved(key));
    let interface = network.map(|network| NetworkInterface {
        associate_public_ip_address: Some(network.wants_public_ip),
        delete_on_termination: Some(true),
        device_index: Some(0),
        groups: network.security_groups.iter().map(ToString::to_string).collect(),
        private_ip_address: None,
        subnet_id: Some(network.subnet_id.to_string()),
    });
    let root = record.root().map(|root| root.volume_id);
    let data_volumes = volumes.iter().filter(|volume| Some(volume.meta.id) != root);
    LaunchTemplateData {
        block_device_mappings: data_volumes.filter_map(mapping).collect(),
        credit_specification: record
            .spec
            .cpu_credits
            .map(|mode| CreditSpecification { cpu_credits: Some(mode.as_str().into()) }),
        disable_api_stop: Some(false),
        disable_api_termination: Some(record.spec.termination_protection),
        ebs_optimized: Some(false),
        enclave_options: Some(Enabled { enabled: Some(false) }),
        hibernation_options: Some(HibernationOptions { configured: Some(record.spec.hibernation) }),
        image_id: Some(record.spec.image_id.to_string()),
        instance_initiated_shutdown_behavior: Some(record.spec.shutdown_behavior),
        instance_type: Some(record.spec.size.instance_type.clone()),
        key_name: record.spec.key_name.clone(),
        metadata_options: network.map(|network| MetadataChange::from(network.metadata_options).into()),
        monitoring: Some(Enabled { enabled: Some(false) }),
        network_interfaces: interface.into_iter().collect(),
        placement: network.map(|network| Placement {
            availability_zone: Some(network.zone.to_string()),
            tenancy: Some("default".into()),
        }),
        security_group_ids: Vec::new(),
        security_groups: Vec::new(),
        tag_specifications: TagSpecification::of_instance(tags),
        user_data: record.spec.user_data.clone(),
    }
}

/// Returns the mapping of a new volume like an attached one.
fn mapping(volume: &VolumeRecord) -> Option<BlockDeviceMapping> {
    let attachment = volume.status.attachment.as_ref()?;
    Some(BlockDeviceMapping {
        device_name: Some(attachment.device_name.clone()),
        ebs: Some(EbsBlockDevice {
            delete_on_termination: Some(attachment.delete_on_termination),
            encrypted: Some(false),
            iops: volume.spec.iops,
            snapshot_id: volume.spec.snapshot_id.map(|id| id.to_string()),
            throughput: volume.spec.throughput,
            volume_size: Some(volume.spec.size.div_ceil(GIB)),
            volume_type: Some(volume.spec.volume_type.clone()),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::catalog;
    use node::home::Home;
    use serde_json::{Value, json};

    fn cloud() -> (Cloud, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        (Cloud::at(home).unwrap(), dir)
    }

    fn data(value: Value) -> LaunchTemplateData {
        serde_json::from_value(value).unwrap()
    }

    fn new(name: &str, value: Value) -> NewLaunchTemplate {
        NewLaunchTemplate { name: name.into(), data: data(value), ..NewLaunchTemplate::default() }
    }

    fn code<T: std::fmt::Debug>(result: Result<T, CloudError>) -> ErrorCode {
        match result {
            Err(CloudError::Ec2(error)) => error.code(),
            other => panic!("{other:?}"),
        }
    }

    /// Creates the template `web` with three versions, of which the first is the default.
    fn web(cloud: &Cloud) -> LaunchTemplateRecord {
        let templates = cloud.launch_templates();
        templates.create(&new("web", json!({"ImageId": "tiny", "InstanceType": "t3.nano"}))).unwrap();
        for instance_type in ["t3.micro", "t3.small"] {
            let source = Some(VersionReference::Default);
            let data = data(json!({"InstanceType": instance_type}));
            templates.create_version("web", &NewVersion { source, data, ..NewVersion::default() }).unwrap();
        }
        templates.find("web").unwrap()
    }

    fn numbers(cloud: &Cloud, selection: VersionSelection) -> Vec<u64> {
        let (_, versions) = cloud.launch_templates().versions("web", &selection).unwrap();
        versions.iter().map(|version| version.number).collect()
    }

    #[test]
    fn name_is_unique_until_the_template_is_deleted() {
        let (cloud, _dir) = cloud();
        let templates = cloud.launch_templates();
        let request = new("web", json!({"ImageId": "tiny"}));
        templates.create(&request).unwrap();
        assert_eq!(code(templates.create(&request)), ErrorCode::InvalidLaunchTemplateNameAlreadyExists);
        templates.delete("web").unwrap();
        assert_eq!(code(templates.find("web")), ErrorCode::InvalidLaunchTemplateNameNotFound);
        templates.create(&request).unwrap();
    }

    #[test]
    fn template_is_found_by_name_id_and_prefix() {
        let (cloud, _dir) = cloud();
        let templates = cloud.launch_templates();
        let id = templates.create(&new("web", json!({"ImageId": "tiny"}))).unwrap().meta.id.to_string();
        for reference in ["web", &id, &id[..id.len() - 1]] {
            assert_eq!(templates.find(reference).unwrap().meta.id.to_string(), id, "{reference}");
        }
        assert_eq!(code(templates.find("lt-fffffffffffffffff")), ErrorCode::InvalidLaunchTemplateIdNotFound);
        assert_eq!(code(templates.find("lt-zz")), ErrorCode::InvalidLaunchTemplateIdMalformed);
    }

    #[test]
    fn repeated_request_with_client_token_creates_one_template() {
        let (cloud, _dir) = cloud();
        let templates = cloud.launch_templates();
        let request = |name: &str| NewLaunchTemplate {
            client_token: Some("token".into()),
            ..new(name, json!({"ImageId": "tiny"}))
        };
        let first = templates.create(&request("web")).unwrap();
        assert_eq!(templates.create(&request("web")).unwrap(), first);
        assert_eq!(code(templates.create(&request("other"))), ErrorCode::IdempotentParameterMismatch);
    }

    #[test]
    fn version_inherits_parameters_of_its_source() {
        let (cloud, _dir) = cloud();
        web(&cloud);
        let templates = cloud.launch_templates();
        let expected = json!({"ImageId": "tiny", "InstanceType": "t3.small"});
        assert_eq!(templates.version("web:$Latest").unwrap().version.data, data(expected));
        let token = Some("once".to_string());
        let alone = NewVersion { data: data(json!({"KeyName": "me"})), client_token: token, ..NewVersion::default() };
        let chosen = templates.create_version("web", &alone).unwrap();
        assert_eq!(templates.create_version("web", &alone).unwrap(), chosen);
        let other = NewVersion { data: data(json!({"KeyName": "you"})), ..alone.clone() };
        assert_eq!(code(templates.create_version("web", &other)), ErrorCode::IdempotentParameterMismatch);
        assert_eq!((chosen.version.number, chosen.version.data), (4, data(json!({"KeyName": "me"}))));
        let source = Some(VersionReference::Number(9));
        let unknown = NewVersion { source, client_token: None, ..alone };
        assert_eq!(code(templates.create_version("web", &unknown)), ErrorCode::InvalidLaunchTemplateVersionNotFound);
    }

    #[test]
    fn versions_are_selected_by_number_alias_and_range() {
        let (cloud, _dir) = cloud();
        web(&cloud);
        let by = |versions: &[VersionReference]| VersionSelection {
            versions: versions.to_vec(),
            ..VersionSelection::default()
        };
        let (latest, default) = (VersionReference::Latest, VersionReference::Default);
        assert_eq!(numbers(&cloud, VersionSelection::default()), [3, 2, 1]);
        assert_eq!(numbers(&cloud, by(&[latest, default])), [3, 1]);
        assert_eq!(numbers(&cloud, by(&[default, VersionReference::Number(1)])), [1]);
        assert_eq!(numbers(&cloud, VersionSelection { min: Some(2), ..VersionSelection::default() }), [3, 2]);
        assert_eq!(numbers(&cloud, VersionSelection { max: Some(2), ..VersionSelection::default() }), [2, 1]);
        assert_eq!(numbers(&cloud, VersionSelection { min: Some(9), ..VersionSelection::default() }), [] as [u64; 0]);
        let unknown = cloud.launch_templates().versions("web", &by(&[VersionReference::Number(9)]));
        assert_eq!(code(unknown), ErrorCode::InvalidLaunchTemplateVersionNotFound);
    }

    #[test]
    fn default_version_can_be_changed_but_not_deleted() {
        let (cloud, _dir) = cloud();
        web(&cloud);
        let templates = cloud.launch_templates();
        assert_eq!(templates.set_default("web", VersionReference::Latest).unwrap().spec.default_version, 3);
        let unknown = templates.set_default("web", VersionReference::Number(9));
        assert_eq!(code(unknown), ErrorCode::InvalidLaunchTemplateVersionNotFound);
        let result = templates.delete_versions("web", &[3, 2, 9]).unwrap();
        assert_eq!(result.deleted, [2]);
        let failed: Vec<_> = result.failed.iter().map(|(number, error)| (*number, error.code())).collect();
        let expected = [(3, ErrorCode::OperationNotPermitted), (9, ErrorCode::InvalidLaunchTemplateVersionNotFound)];
        assert_eq!(failed, expected);
    }

    #[test]
    fn number_of_deleted_version_is_not_used_again() {
        let (cloud, _dir) = cloud();
        web(&cloud);
        let templates = cloud.launch_templates();
        let template = templates.delete_versions("web", &[3]).unwrap().template;
        assert_eq!(template.latest_version(), 2);
        let next = NewVersion { data: data(json!({"KeyName": "me"})), ..NewVersion::default() };
        assert_eq!(templates.create_version("web", &next).unwrap().version.number, 4);
    }

    #[test]
    fn too_many_versions_are_refused() {
        let (cloud, _dir) = cloud();
        let templates = cloud.launch_templates();
        let mut template = web(&cloud);
        let version = template.spec.versions[0].clone();
        let number = |number| LaunchTemplateVersion { number, ..version.clone() };
        template.spec.versions = (1..=MAX_VERSIONS as u64).map(number).collect();
        cloud.store.write::<_, CloudError>(|tx| Ok(tx.put(&mut template)?)).unwrap();
        let new = NewVersion { data: version.data.clone(), ..NewVersion::default() };
        assert_eq!(code(templates.create_version("web", &new)), ErrorCode::VersionLimitExceeded);
    }

    #[test]
    fn launch_takes_all_parameters_of_the_template() {
        let data = data(json!({
            "BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 8}}],
            "CreditSpecification": {"CpuCredits": "standard"}, "DisableApiTermination": true,
            "HibernationOptions": {"Configured": true}, "ImageId": "debian",
            "InstanceInitiatedShutdownBehavior": "terminate", "KeyName": "me",
            "MetadataOptions": {"HttpTokens": "required"},
            "NetworkInterfaces": [{"AssociatePublicIpAddress": false, "DeviceIndex": 0, "Groups": ["sg-1"],
                "PrivateIpAddress": "10.0.1.10", "SubnetId": "front"}],
            "Placement": {"AvailabilityZone": "us-east-1b"},
            "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web"}]}],
            "UserData": "ZGF0YQ==",
        }));
        let size = InstanceSize::of_type(catalog::find("t3.nano").unwrap());
        let mut spec = LaunchSpec::of_template(&data, size).unwrap();
        assert_eq!((spec.image.as_deref(), spec.key_name.as_deref()), (Some("debian"), Some("me")));
        assert_eq!((spec.user_data.as_deref(), spec.tags["Name"].as_str()), (Some("ZGF0YQ=="), "web"));
        assert_eq!(spec.shutdown_behavior.as_str(), "terminate");
        assert!(spec.termination_protection && spec.hibernation);
        assert_eq!(spec.cpu_credits, Some(ec2::credits::CreditMode::Standard));
        let network = &spec.network;
        assert_eq!((network.subnet.as_deref(), network.public_ip), (Some("front"), Some(false)));
        assert_eq!((network.zone, network.private_ip), ("us-east-1b".parse().ok(), Some([10, 0, 1, 10].into())));
        assert_eq!((&network.security_groups[..], network.metadata.is_some()), (&["sg-1".to_string()][..], true));
        let volumes = ["size=9,device=/dev/sdf", "2"].map(|text| text.parse::<VolumeOption>().unwrap());
        spec.add_volumes(volumes.to_vec());
        assert_eq!(spec.volumes, volumes);
    }
}
