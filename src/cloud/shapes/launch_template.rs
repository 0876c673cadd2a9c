use ec2::api::launch_template::{
    CREATED_BY, DeletedLaunchTemplateVersion, DeletedLaunchTemplateVersions, LaunchTemplate, LaunchTemplateVersion,
    ResponseError,
};
use ec2::api::{Tag, Timestamp};
use ec2::{Ec2Error, ErrorCode};
use store::LaunchTemplateRecord;

use crate::launch_template::DeletedVersions;

pub fn launch_template(record: &LaunchTemplateRecord) -> LaunchTemplate {
    LaunchTemplate {
        create_time: Timestamp::from_seconds(record.meta.created),
        created_by: CREATED_BY,
        default_version_number: record.spec.default_version,
        latest_version_number: record.latest_version(),
        launch_template_id: record.meta.id,
        launch_template_name: record.spec.name.clone(),
        tags: Tag::list(&record.meta.tags),
    }
}

pub fn launch_template_version(
    record: &LaunchTemplateRecord,
    version: &store::LaunchTemplateVersion,
) -> LaunchTemplateVersion {
    LaunchTemplateVersion {
        create_time: Timestamp::from_seconds(version.created),
        created_by: CREATED_BY,
        default_version: version.number == record.spec.default_version,
        launch_template_data: version.data.clone(),
        launch_template_id: record.meta.id,
        launch_template_name: record.spec.name.clone(),
        version_description: version.description.clone(),
        version_number: version.number,
    }
}

pub fn deleted_launch_template_versions(result: &DeletedVersions) -> DeletedLaunchTemplateVersions {
    let item = |number: u64, error: Option<&Ec2Error>| DeletedLaunchTemplateVersion {
        launch_template_id: result.template.meta.id,
        launch_template_name: result.template.spec.name.clone(),
        response_error: error.map(response_error),
        version_number: number,
    };
    DeletedLaunchTemplateVersions {
        successfully_deleted_launch_template_versions: result
            .deleted
            .iter()
            .map(|number| item(*number, None))
            .collect(),
        unsuccessfully_deleted_launch_template_versions: result
            .failed
            .iter()
            .map(|(number, error)| item(*number, Some(error)))
            .collect(),
    }
}

/// EC2 has a set of codes of its own for the errors of versions.
fn response_error(error: &Ec2Error) -> ResponseError {
    let code = match error.code() {
        ErrorCode::InvalidLaunchTemplateVersionNotFound => "launchTemplateVersionDoesNotExist",
        _ => "unexpectedError",
    };
    ResponseError { code, message: error.message().to_owned() }
}
