//! The status checks and the console output of instances.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::{Listing, check_dry_run};
use super::resource::{Listed, id};
use crate::error::ApiError;
use cloud::instances::{Check, StatusChecks};
use ec2::api::Timestamp;
use ec2::id::Instance;
use ec2::state::InstanceState;
use store::InstanceRecord;

/// Maximum size of console output in bytes, as in EC2.
const CONSOLE_LIMIT: usize = 64 << 10;

const STATUSES: Listed = Listed {
    list: "InstanceStatuses",
    id: "InstanceId",
    filters: &[
        ("availability-zone", "AvailabilityZone"),
        ("instance-state-code", "InstanceState.Code"),
        ("instance-state-name", "InstanceState.Name"),
        ("instance-status.reachability", "InstanceStatus.Details.Status"),
        ("instance-status.status", "InstanceStatus.Status"),
        ("system-status.reachability", "SystemStatus.Details.Status"),
        ("system-status.status", "SystemStatus.Status"),
    ],
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeInstanceStatus {
    instance_ids: Vec<String>,
    include_all_instances: bool,
    #[serde(rename = "IncludeManagedResources")]
    _include_managed_resources: bool,
}

/// Lists the status of running instances, or of all instances if the request asks for them.
pub fn describe(context: &Context, input: DescribeInstanceStatus, listing: Listing) -> Result<Value, ApiError> {
    let mut records = context.cloud.instances().list()?;
    for text in &input.instance_ids {
        let asked = id::<Instance>(text)?;
        if records.iter().all(|record| record.meta.id != asked) {
            return Err(ec2::InstanceId::not_found(text).into());
        }
    }
    let is_asked = |record: &InstanceRecord| {
        let id = record.meta.id.to_string();
        (input.include_all_instances || record.status.state == InstanceState::Running)
            && (input.instance_ids.is_empty() || input.instance_ids.contains(&id))
    };
    records.retain(is_asked);
    let statuses =
        records.iter().zip(context.cloud.instances().check(&records)).map(|(record, checks)| status(record, checks));
    // The IDs were checked above: those of stopped instances are known, but not listed.
    let listed: Vec<String> = match input.instance_ids.is_empty() {
        true => Vec::new(),
        false => records.iter().map(|record| record.meta.id.to_string()).collect(),
    };
    STATUSES.respond::<Instance>(statuses.collect(), &listed, listing)
}

fn status(record: &InstanceRecord, checks: StatusChecks) -> Value {
    let summary = |check: Check| {
        let details = match check {
            Check::NotApplicable => json!([]),
            Check::Ok => json!([{"Name": "reachability", "Status": "passed"}]),
            Check::Impaired => json!([{"Name": "reachability", "Status": "failed"}]),
            other => json!([{"Name": "reachability", "Status": other.as_str()}]),
        };
        json!({"Details": details, "Status": check.as_str()})
    };
    let zone = record.status.network.as_ref().map(|network| network.zone).unwrap_or_default();
    json!({
        "AvailabilityZone": zone,
        "AvailabilityZoneId": zone.id(),
        "Events": [],
        "InstanceId": record.meta.id,
        "InstanceState": {"Code": record.status.state.code(), "Name": record.status.state.as_str()},
        "InstanceStatus": summary(checks.instance),
        "SystemStatus": summary(checks.system),
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetConsoleOutput {
    instance_id: String,
    /// The output is always the latest.
    #[serde(rename = "Latest", default)]
    _latest: bool,
    #[serde(default)]
    dry_run: bool,
}

pub fn console_output(context: &Context, input: GetConsoleOutput) -> Result<Value, ApiError> {
    let record = context.cloud.instances().find(&id::<Instance>(&input.instance_id)?.to_string())?;
    check_dry_run(input.dry_run)?;
    let bytes = context.cloud.dir(record.meta.id).console_output(CONSOLE_LIMIT);
    let bytes = bytes.map_err(|error| ApiError::new(crate::error::Code::InternalError, error.to_string()))?;
    let timestamp = super::respond(Timestamp::from_seconds(record.status.launch_time))?;
    Ok(json!({"InstanceId": record.meta.id, "Output": BASE64_STANDARD.encode(bytes), "Timestamp": timestamp}))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetPasswordData {
    instance_id: String,
    #[serde(default)]
    dry_run: bool,
}

/// Answers that the instance has no password, as EC2 does for Linux.
pub fn password(context: &Context, input: GetPasswordData) -> Result<Value, ApiError> {
    let record = context.cloud.instances().find(&id::<Instance>(&input.instance_id)?.to_string())?;
    check_dry_run(input.dry_run)?;
    let timestamp = super::respond(Timestamp::from_seconds(record.status.launch_time))?;
    Ok(json!({"InstanceId": record.meta.id, "PasswordData": "", "Timestamp": timestamp}))
}
