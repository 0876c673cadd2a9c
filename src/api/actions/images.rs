//! Images.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::{Listing, check_dry_run};
use super::resource::{AttributeValue, Listed, combination, id, missing};
use super::tags::{TagSpecification, tags_for};
use crate::error::{ApiError, Code};
use cloud::create_image::ImageConsistency;
use cloud::shapes::{self, RootVolume};
use ec2::api::ACCOUNT_ID;
use ec2::block_device::DeviceName;
use ec2::id::{Image, Instance};
use ec2::tag::Tag;
use ec2::{Ec2Error, ErrorCode};
use store::{ImageRecord, Visibility};

const IMAGES: Listed = Listed {
    list: "Images",
    id: "ImageId",
    filters: &[
        ("architecture", "Architecture"),
        ("block-device-mapping.delete-on-termination", "BlockDeviceMappings.Ebs.DeleteOnTermination"),
        ("block-device-mapping.device-name", "BlockDeviceMappings.DeviceName"),
        ("block-device-mapping.encrypted", "BlockDeviceMappings.Ebs.Encrypted"),
        ("block-device-mapping.snapshot-id", "BlockDeviceMappings.Ebs.SnapshotId"),
        ("block-device-mapping.volume-size", "BlockDeviceMappings.Ebs.VolumeSize"),
        ("block-device-mapping.volume-type", "BlockDeviceMappings.Ebs.VolumeType"),
        ("creation-date", "CreationDate"),
        ("description", "Description"),
        ("ena-support", "EnaSupport"),
        ("hypervisor", "Hypervisor"),
        ("image-id", "ImageId"),
        ("image-type", "ImageType"),
        ("is-public", "Public"),
        ("manifest-location", "ImageLocation"),
        ("name", "Name"),
        ("owner-alias", "ImageOwnerAlias"),
        ("owner-id", "OwnerId"),
        ("platform", "Platform"),
        ("root-device-name", "RootDeviceName"),
        ("root-device-type", "RootDeviceType"),
        ("source-instance-id", "SourceInstanceId"),
        ("state", "State"),
        ("virtualization-type", "VirtualizationType"),
    ],
};

fn shape(context: &Context, record: &ImageRecord) -> Result<Value, ApiError> {
    let bundle = context.cloud.images().open_by_id(record.meta.id).ok();
    super::respond(shapes::image(record, bundle.as_ref().and_then(RootVolume::of)))
}

/// Finds an image by its ID. Commands also take names, which the API does not.
fn find(context: &Context, text: &str) -> Result<ImageRecord, ApiError> {
    Ok(context.cloud.images().find(&id::<Image>(text)?.to_string())?)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeImages {
    image_ids: Vec<String>,
    owners: Vec<String>,
    executable_users: Vec<String>,
    /// Images are never deprecated or disabled.
    #[serde(rename = "IncludeDeprecated")]
    _include_deprecated: bool,
    #[serde(rename = "IncludeDisabled")]
    _include_disabled: bool,
}

pub fn describe(context: &Context, input: DescribeImages, listing: Listing) -> Result<Value, ApiError> {
    let mut images = Vec::new();
    for record in context.cloud.images().list()? {
        let is_asked = input.image_ids.is_empty() || input.image_ids.contains(&record.meta.id.to_string());
        if is_asked && (!input.image_ids.is_empty() || input.selects(&record)) {
            images.push(shape(context, &record)?);
        }
    }
    let mut response = IMAGES.respond::<Image>(images, &input.image_ids, listing)?;
    if let Some(images) = response["Images"].as_array_mut()
        && !input.image_ids.is_empty()
    {
        // An ID of another owner is known, but not selected.
        let owned = |image: &Value| {
            let alias = image["ImageOwnerAlias"].as_str().unwrap_or_default();
            input.owners.is_empty() || is_owner(&input.owners, alias)
        };
        images.retain(owned);
    }
    Ok(response)
}

impl DescribeImages {
    fn selects(&self, record: &ImageRecord) -> bool {
        let is_public = record.spec.visibility == Visibility::Public;
        let can_execute = |user: &String| match user.as_str() {
            "all" => is_public,
            // The account can launch all of its images.
            user => user == "self" || user == ACCOUNT_ID,
        };
        (self.owners.is_empty() || is_owner(&self.owners, &record.status.owner))
            && (self.executable_users.is_empty() || self.executable_users.iter().any(can_execute))
    }
}

/// Returns true if one of the `owners` of a request means the owner with an alias. All images are of one account.
fn is_owner(owners: &[String], alias: &str) -> bool {
    owners.iter().any(|owner| owner == "self" || owner == ACCOUNT_ID || owner == alias)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateImage {
    instance_id: String,
    name: String,
    description: Option<String>,
    no_reboot: bool,
    block_device_mappings: Vec<Mapping>,
    tag_specifications: Vec<TagSpecification>,
    dry_run: bool,
}

/// EC2 API Reference, `BlockDeviceMapping`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mapping {
    device_name: Option<String>,
    /// If set, the image does not contain the instance's volume of this name.
    no_device: Option<String>,
}

/// Creates an image of the root volume. The instance is not rebooted: unless the request has `NoReboot`, its guest
/// writes its dirty pages first.
pub fn create(context: &Context, input: CreateImage) -> Result<Value, ApiError> {
    let instance = context.cloud.instances().find(&id::<Instance>(&input.instance_id)?.to_string())?;
    let excluded = input.excluded()?;
    let root = instance.root().map(|root| root.device_name.clone());
    let is_excluded = |name: &str| {
        name.parse::<DeviceName>().is_ok_and(|name| excluded.iter().any(|excluded| excluded.same_place(&name)))
    };
    let devices = instance.status.block_devices.iter().map(|device| device.device_name.as_str());
    if let Some(other) = devices.filter(|name| Some(*name) != root.as_deref()).find(|name| !is_excluded(name)) {
        let what = format!(
            "Wisp does not support images of volumes other than the root volume. Exclude {other} with NoDevice in \
             BlockDeviceMappings."
        );
        return Err(ApiError::new(Code::Ec2(ErrorCode::UnsupportedOperation), what));
    }
    let tags = tags_for("image", &input.tag_specifications)?;
    let tags = tags.iter().map(|(key, value)| Tag::new(key, value)).collect::<Result<Vec<_>, _>>()?;
    check_dry_run(input.dry_run)?;
    let moment = if input.no_reboot { ImageConsistency::Now } else { ImageConsistency::Written };
    let description = input.description.as_deref().unwrap_or_default();
    let record = context.cloud.images().create(instance.meta.id, &input.name, description, moment)?;
    if !tags.is_empty() {
        let resource = context.cloud.tags().find_by_id(&record.meta.id.to_string())?;
        super::report(context.cloud.tags().change(resource, &tags, &[])?);
    }
    Ok(json!({"ImageId": record.meta.id}))
}

impl CreateImage {
    /// Returns the devices whose volumes the request excludes. Other changes of the mappings are refused.
    fn excluded(&self) -> Result<Vec<DeviceName>, ApiError> {
        let mut excluded = Vec::new();
        for mapping in &self.block_device_mappings {
            let name = mapping.device_name.as_deref().ok_or_else(|| missing("BlockDeviceMapping.DeviceName"))?;
            if mapping.no_device.is_none() {
                let what = format!(
                    "Wisp does not support the parameter BlockDeviceMappings of {name} without NoDevice: the image has \
                     a copy of the root volume."
                );
                return Err(ApiError::new(Code::Ec2(ErrorCode::UnsupportedOperation), what));
            }
            let device: DeviceName = name.parse()?;
            if device.is_root() {
                let rule = "an image has a root volume.";
                return Err(Ec2Error::invalid_parameter("BlockDeviceMapping.NoDevice", name, rule).into());
            }
            excluded.push(device);
        }
        Ok(excluded)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeregisterImage {
    image_id: String,
    /// The snapshot of an image is deleted with it.
    #[serde(rename = "DeleteAssociatedSnapshots", default)]
    _delete_associated_snapshots: bool,
    #[serde(default)]
    dry_run: bool,
}

pub fn deregister(context: &Context, input: DeregisterImage) -> Result<Value, ApiError> {
    let record = find(context, &input.image_id)?;
    check_dry_run(input.dry_run)?;
    context.cloud.images().deregister(&record.meta.id.to_string())?;
    Ok(json!({"Return": true}))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeImageAttribute {
    image_id: String,
    attribute: String,
    #[serde(default)]
    dry_run: bool,
}

pub fn attribute(context: &Context, input: DescribeImageAttribute) -> Result<Value, ApiError> {
    let record = find(context, &input.image_id)?;
    check_dry_run(input.dry_run)?;
    let image = shape(context, &record)?;
    let value = |value: &Value| if value.is_null() { json!({}) } else { json!({"Value": value}) };
    let (member, value) = match input.attribute.as_str() {
        "blockDeviceMapping" => ("BlockDeviceMappings", image["BlockDeviceMappings"].clone()),
        "bootMode" => ("BootMode", value(&image["BootMode"])),
        "deregistrationProtection" => ("DeregistrationProtection", json!({"Value": "disabled"})),
        "description" => ("Description", value(&image["Description"])),
        "imdsSupport" => ("ImdsSupport", value(&image["ImdsSupport"])),
        "kernel" => ("KernelId", json!({})),
        "lastLaunchedTime" => ("LastLaunchedTime", json!({})),
        "launchPermission" => {
            let public = record.spec.visibility == Visibility::Public;
            ("LaunchPermissions", if public { json!([{"Group": "all"}]) } else { json!([]) })
        }
        "productCodes" => ("ProductCodes", json!([])),
        "ramdisk" => ("RamdiskId", json!({})),
        "sriovNetSupport" => ("SriovNetSupport", json!({})),
        "tpmSupport" => ("TpmSupport", json!({})),
        other => {
            let what = format!("Wisp does not support the attribute {other} of images.");
            return Err(ApiError::new(Code::Ec2(ErrorCode::UnsupportedOperation), what));
        }
    };
    Ok(json!({"ImageId": record.meta.id, member: value}))
}

/// EC2 API Reference, `LaunchPermissionModifications`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct LaunchPermissions {
    add: Vec<LaunchPermission>,
    remove: Vec<LaunchPermission>,
}

/// EC2 API Reference, `LaunchPermission`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct LaunchPermission {
    group: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ModifyImageAttribute {
    image_id: String,
    attribute: Option<String>,
    value: Option<String>,
    operation_type: Option<String>,
    user_groups: Vec<String>,
    description: Option<AttributeValue>,
    imds_support: Option<AttributeValue>,
    launch_permission: Option<LaunchPermissions>,
    dry_run: bool,
}

impl ModifyImageAttribute {
    /// Returns the visibility that the request sets, with one of the two forms for launch permissions.
    fn visibility(&self) -> Result<Option<Visibility>, ApiError> {
        let all = |groups: &[LaunchPermission]| groups.iter().any(|one| one.group.as_deref() == Some("all"));
        let (add, remove) = match &self.launch_permission {
            Some(given) => (all(&given.add), all(&given.remove)),
            None => {
                let named = self.user_groups.iter().any(|group| group == "all");
                match self.operation_type.as_deref() {
                    _ if !named => (false, false),
                    Some("add") => (true, false),
                    Some(_) => (false, true),
                    None => return Err(missing("OperationType")),
                }
            }
        };
        match (add, remove) {
            (true, true) => Err(combination("A permission cannot be added and removed by one request.")),
            (true, false) => Ok(Some(Visibility::Public)),
            (false, true) => Ok(Some(Visibility::Private)),
            (false, false) => Ok(None),
        }
    }
}

pub fn modify_attribute(context: &Context, input: ModifyImageAttribute) -> Result<Value, ApiError> {
    let record = find(context, &input.image_id)?;
    let visibility = input.visibility()?;
    let named = |name: &str| input.value.clone().filter(|_| input.attribute.as_deref() == Some(name));
    let text = |given: &Option<AttributeValue>| given.as_ref().and_then(|given| given.value.clone());
    let description = text(&input.description).or_else(|| named("description"));
    let imds_support = text(&input.imds_support).or_else(|| named("imdsSupport"));
    let imds_support = imds_support.map(|text| text.parse()).transpose()?;
    if visibility.is_none() && description.is_none() && imds_support.is_none() {
        return Err(combination("Wisp can change the description, the launch permission 'all' and ImdsSupport only."));
    }
    check_dry_run(input.dry_run)?;
    context.cloud.images().modify(&record.meta.id.to_string(), visibility, description, imds_support)?;
    Ok(Value::Null)
}
