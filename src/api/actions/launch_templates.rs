//! Launch templates.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::{Listing, check_dry_run};
use super::resource::{Listed, combination, id, missing};
use super::tags::{TagSpecification, tags_for};
use crate::error::{ApiError, Code};
use cloud::launch_template::{NewLaunchTemplate, NewVersion, VersionSelection};
use cloud::shapes;
use ec2::id::{Instance, LaunchTemplate};
use ec2::image_alias::AliasReference;
use ec2::launch_template::{LaunchTemplateData, VersionReference, not_found};
use ec2::{Ec2Error, ErrorCode};
use store::{LaunchTemplateRecord, LaunchTemplateVersion};

const TEMPLATES: Listed = Listed {
    list: "LaunchTemplates",
    id: "LaunchTemplateId",
    filters: &[("create-time", "CreateTime"), ("launch-template-name", "LaunchTemplateName")],
};

const VERSIONS: Listed = Listed {
    list: "LaunchTemplateVersions",
    id: "VersionNumber",
    filters: &[
        ("create-time", "CreateTime"),
        ("ebs-optimized", "LaunchTemplateData.EbsOptimized"),
        ("http-endpoint", "LaunchTemplateData.MetadataOptions.HttpEndpoint"),
        ("http-tokens", "LaunchTemplateData.MetadataOptions.HttpTokens"),
        ("image-id", "LaunchTemplateData.ImageId"),
        ("instance-type", "LaunchTemplateData.InstanceType"),
        ("is-default-version", "DefaultVersion"),
        ("network-interface.subnet-id", "LaunchTemplateData.NetworkInterfaces.SubnetId"),
    ],
};

/// EC2's message for a request of versions that names no template.
const NO_TEMPLATE: &str = "To describe the launch template data for all your launch templates, for \u{2018}--versions\u{2019} specify \
    \u{2018}$Latest\u{2019}, \u{2018}$Default\u{2019}, or both, and omit \u{2018}--launch-template-id\u{2019}, \
    \u{2018}--launch-template-name\u{2019}, and version numbers. To describe the launch template data for a specific launch template, \
    specify \u{2018}--launch-template-id\u{2019} or \u{2018}--launch-template-name\u{2019}, and for \u{2018}--versions\u{2019} specify \
    one or more of the following values: \u{2018}$Latest\u{2019}, \u{2018}$Default\u{2019}, or one or more version numbers.";

/// Finds the template that a request names by its ID or by its name.
pub fn find(
    context: &Context,
    template_id: Option<&String>,
    name: Option<&String>,
    action: &str,
) -> Result<LaunchTemplateRecord, ApiError> {
    match (template_id, name) {
        (Some(_), Some(_)) => Err(combination(&format!(
            "Either provide launch template ID or launch template name to {action} the template."
        ))),
        (Some(text), None) => {
            let id = id::<LaunchTemplate>(text)?;
            Ok(context.cloud.launch_templates().find(&id.to_string())?)
        }
        (None, Some(name)) => by_name(context, name)?.ok_or_else(|| not_found(name).into()),
        (None, None) => Err(missing("LaunchTemplateId or LaunchTemplateName")),
    }
}

fn by_name(context: &Context, name: &str) -> Result<Option<LaunchTemplateRecord>, ApiError> {
    Ok(context.cloud.launch_templates().list()?.into_iter().find(|record| record.spec.name == name))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateLaunchTemplate {
    client_token: Option<String>,
    launch_template_name: String,
    version_description: Option<String>,
    launch_template_data: LaunchTemplateData,
    tag_specifications: Vec<TagSpecification>,
    dry_run: bool,
}

pub fn create(context: &Context, input: CreateLaunchTemplate) -> Result<Value, ApiError> {
    let new = NewLaunchTemplate {
        name: input.launch_template_name,
        description: input.version_description,
        data: input.launch_template_data,
        tags: tags_for("launch-template", &input.tag_specifications)?,
        client_token: input.client_token,
    };
    new.data.check()?;
    check_dry_run(input.dry_run)?;
    respond(&context.cloud.launch_templates().create(&new)?)
}

fn respond(record: &LaunchTemplateRecord) -> Result<Value, ApiError> {
    Ok(json!({"LaunchTemplate": super::respond(shapes::launch_template(record))?}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateLaunchTemplateVersion {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    source_version: Option<String>,
    version_description: Option<String>,
    launch_template_data: LaunchTemplateData,
    client_token: Option<String>,
    dry_run: bool,
}

pub fn create_version(context: &Context, input: CreateLaunchTemplateVersion) -> Result<Value, ApiError> {
    let (id, name) = (input.launch_template_id.as_ref(), input.launch_template_name.as_ref());
    let template = find(context, id, name, "create a version of")?;
    let new = NewVersion {
        source: input.source_version.as_deref().map(str::parse).transpose()?,
        description: input.version_description,
        data: input.launch_template_data,
        client_token: input.client_token,
    };
    check_dry_run(input.dry_run)?;
    let chosen = context.cloud.launch_templates().create_version(&template.meta.id.to_string(), &new)?;
    let shape = shapes::launch_template_version(&chosen.template, &chosen.version);
    Ok(json!({"LaunchTemplateVersion": super::respond(shape)?}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeLaunchTemplates {
    launch_template_ids: Vec<String>,
    launch_template_names: Vec<String>,
}

pub fn describe(context: &Context, input: DescribeLaunchTemplates, listing: Listing) -> Result<Value, ApiError> {
    let mut ids = input.launch_template_ids;
    for name in &input.launch_template_names {
        let record = by_name(context, name)?.ok_or_else(|| {
            let what = "At least one of the launch templates specified in the request does not exist.";
            ApiError::new(Code::Ec2(ErrorCode::InvalidLaunchTemplateNameNotFound), what)
        })?;
        ids.push(record.meta.id.to_string());
    }
    let templates = context.cloud.launch_templates().list()?;
    let templates = templates.iter().map(|record| super::respond(shapes::launch_template(record)));
    let unknown = |text: &str| id::<LaunchTemplate>(text).map_or_else(Into::into, |_| not_found(text).into());
    TEMPLATES.respond_by(templates.collect::<Result<_, _>>()?, &ids, unknown, listing)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeLaunchTemplateVersions {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    versions: Vec<String>,
    min_version: Option<String>,
    max_version: Option<String>,
    resolve_alias: bool,
}

pub fn describe_versions(
    context: &Context,
    input: DescribeLaunchTemplateVersions,
    listing: Listing,
) -> Result<Value, ApiError> {
    let versions: Vec<VersionReference> = input.versions.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let range = |name: &str, text: Option<&String>| text.map(|text| number(name, text)).transpose();
    let selection = VersionSelection {
        versions,
        min: range("MinVersion", input.min_version.as_ref())?,
        max: range("MaxVersion", input.max_version.as_ref())?,
    };
    let templates = match (&input.launch_template_id, &input.launch_template_name) {
        (None, None) => {
            check_aliases(&selection.versions)?;
            context.cloud.launch_templates().list()?
        }
        (id, name) => vec![find(context, id.as_ref(), name.as_ref(), "describe")?],
    };
    let mut shapes = Vec::new();
    for template in templates {
        let (template, versions) =
            context.cloud.launch_templates().versions(&template.meta.id.to_string(), &selection)?;
        for version in versions {
            let version = if input.resolve_alias { resolved(context, version)? } else { version };
            shapes.push(super::respond(shapes::launch_template_version(&template, &version))?);
        }
    }
    VERSIONS.respond_by(shapes, &[], |id| not_found(id).into(), listing)
}

/// Checks that a request for versions of all templates names no version by its number.
fn check_aliases(versions: &[VersionReference]) -> Result<(), ApiError> {
    let code = match versions {
        [] => ErrorCode::MissingParameter,
        some if some.iter().any(|version| matches!(version, VersionReference::Number(_))) => {
            ErrorCode::InvalidParameterValue
        }
        _ => return Ok(()),
    };
    Err(ApiError::new(Code::Ec2(code), NO_TEMPLATE))
}

/// Returns a version whose image alias is resolved to the image ID.
fn resolved(context: &Context, mut version: LaunchTemplateVersion) -> Result<LaunchTemplateVersion, ApiError> {
    if let Some(image) = &version.data.image_id
        && AliasReference::parse(image)?.is_some()
    {
        version.data.image_id = Some(context.cloud.images().find(image)?.meta.id.to_string());
    }
    Ok(version)
}

fn number(name: &str, text: &str) -> Result<u64, Ec2Error> {
    text.parse().map_err(|_| {
        let given: String = text.chars().take(100).collect();
        Ec2Error::invalid_parameter(name, given, "it must be a version number.")
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ModifyLaunchTemplate {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    default_version: Option<String>,
    /// A repeated request has the same effect, so the token does not matter.
    #[serde(rename = "ClientToken")]
    _client_token: Option<String>,
    dry_run: bool,
}

pub fn modify(context: &Context, input: ModifyLaunchTemplate) -> Result<Value, ApiError> {
    let (id, name) = (input.launch_template_id.as_ref(), input.launch_template_name.as_ref());
    let template = find(context, id, name, "modify")?;
    let version: VersionReference = input.default_version.ok_or_else(|| missing("DefaultVersion"))?.parse()?;
    check_dry_run(input.dry_run)?;
    respond(&context.cloud.launch_templates().set_default(&template.meta.id.to_string(), version)?)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeleteLaunchTemplate {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    dry_run: bool,
}

pub fn delete(context: &Context, input: DeleteLaunchTemplate) -> Result<Value, ApiError> {
    let (id, name) = (input.launch_template_id.as_ref(), input.launch_template_name.as_ref());
    let template = find(context, id, name, "delete")?;
    check_dry_run(input.dry_run)?;
    respond(&context.cloud.launch_templates().delete(&template.meta.id.to_string())?)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeleteLaunchTemplateVersions {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    versions: Vec<String>,
    dry_run: bool,
}

pub fn delete_versions(context: &Context, input: DeleteLaunchTemplateVersions) -> Result<Value, ApiError> {
    let (id, name) = (input.launch_template_id.as_ref(), input.launch_template_name.as_ref());
    let template = find(context, id, name, "delete versions of")?;
    let numbers: Vec<u64> =
        input.versions.iter().map(|text| number("LaunchTemplateVersion", text)).collect::<Result<_, _>>()?;
    check_dry_run(input.dry_run)?;
    let deleted = context.cloud.launch_templates().delete_versions(&template.meta.id.to_string(), &numbers)?;
    super::respond(shapes::deleted_launch_template_versions(&deleted))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GetLaunchTemplateData {
    instance_id: String,
    dry_run: bool,
}

pub fn data(context: &Context, input: GetLaunchTemplateData) -> Result<Value, ApiError> {
    let instance = id::<Instance>(&input.instance_id)?;
    check_dry_run(input.dry_run)?;
    let data = context.cloud.launch_templates().data_of_instance(&instance.to_string())?;
    Ok(json!({"LaunchTemplateData": super::respond(data)?}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::input;

    #[test]
    fn member_that_wisp_does_not_read_is_refused_by_name() {
        let given = json!({
            "LaunchTemplateName": "web",
            "LaunchTemplateData": {"ImageId": "ami-1", "InstanceRequirements": {"VCpuCount": {"Min": 2}}},
        });
        let error = input::read::<CreateLaunchTemplate>(given).unwrap_err();
        assert_eq!(error.code, Code::Ec2(ErrorCode::UnsupportedOperation));
        assert!(error.message.contains("LaunchTemplateData.InstanceRequirements.VCpuCount.Min"), "{}", error.message);
    }

    #[test]
    fn versions_of_all_templates_have_no_numbers() {
        let code = |versions: &[VersionReference]| check_aliases(versions).map_err(|error| error.code);
        assert_eq!(code(&[VersionReference::Latest, VersionReference::Default]), Ok(()));
        assert_eq!(code(&[]), Err(Code::Ec2(ErrorCode::MissingParameter)));
        assert_eq!(code(&[VersionReference::Number(1)]), Err(Code::Ec2(ErrorCode::InvalidParameterValue)));
    }
}
