//! Run Command of Systems Manager.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, page};
use crate::error::ApiError;
use cloud::command::{Command, CommandRequest};
use ec2::api::Timestamp;
use ec2::command::{
    self, CommandId, DOCUMENT, InvocationState, LISTED_OUTPUT_LIMIT, PLUGIN, ShellScript, Target, unknown_command,
};
use ec2::{Ec2Error, ErrorCode};
use store::InvocationRecord;

/// Default number of commands or invocations of a page, and the maximum.
const PAGE: usize = 50;
const DOCUMENT_VERSION: &str = "$DEFAULT";
/// The exit code of a command that did not exit.
const NO_EXIT_CODE: i32 = -1;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SendCommand {
    instance_ids: Vec<String>,
    targets: Vec<Target>,
    document_name: String,
    timeout_seconds: Option<u64>,
    comment: String,
    parameters: BTreeMap<String, Vec<String>>,
}

/// Adds a command, and runs it in the background on each instance.
pub fn send(context: &Context, input: SendCommand) -> Result<Value, ApiError> {
    let command = context.cloud.commands().send(request(input)?)?;
    for invocation in &command.invocations {
        let (command, instance) = (invocation.command_id, invocation.instance_id);
        context.background.run("command", move |cloud| cloud.commands().run(command, instance).into());
    }
    Ok(json!({"Command": command_shape(&command)}))
}

fn request(input: SendCommand) -> Result<CommandRequest, ApiError> {
    if input.document_name != DOCUMENT {
        let name: String = input.document_name.chars().take(100).collect();
        let what = format!("Wisp does not have the document '{name}'. It has {DOCUMENT}.");
        return Err(refused(ErrorCode::InvalidDocument, what));
    }
    Ok(CommandRequest {
        script: ShellScript::parse(input.parameters)?,
        comment: input.comment,
        instance_ids: input.instance_ids,
        targets: input.targets,
        timeout: input.timeout_seconds.unwrap_or(command::DEFAULT_TIMEOUT),
    })
}

fn refused(code: ErrorCode, what: impl Into<String>) -> ApiError {
    Ec2Error::refused(code, what, None).into()
}

/// Systems Manager API Reference, `CommandFilter`.
#[derive(Debug, Clone, Deserialize)]
pub struct Filter {
    key: String,
    value: String,
}

impl Filter {
    /// Returns true if a command that was sent at `created`, or one of its invocations, with a status matches.
    fn matches(&self, created: u64, status: &str) -> Result<bool, ApiError> {
        match self.key.as_str() {
            "DocumentName" => Ok(self.value == DOCUMENT),
            "Status" => Ok(self.value == status),
            "InvokedAfter" => Ok(created_at(created) > self.time()?),
            "InvokedBefore" => Ok(created_at(created) < self.time()?),
            key => {
                let what = format!("Wisp does not support the filter {key}.");
                Err(refused(ErrorCode::UnsupportedOperation, what))
            }
        }
    }

    fn time(&self) -> Result<jiff::Timestamp, ApiError> {
        let invalid = |_| Ec2Error::invalid_parameter(&self.key, &self.value, "it must be a time in ISO 8601.").into();
        self.value.parse().map_err(invalid)
    }
}

fn created_at(seconds: u64) -> jiff::Timestamp {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX)
}

fn match_all(filters: &[Filter], created: u64, status: &str) -> Result<bool, ApiError> {
    filters.iter().try_fold(true, |matches, filter| Ok(filter.matches(created, status)? && matches))
}

/// The members of a list of commands, or of their invocations.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ListCommands {
    command_id: Option<String>,
    instance_id: Option<String>,
    filters: Vec<Filter>,
    max_results: Option<usize>,
    next_token: Option<String>,
}

pub fn list(context: &Context, input: ListCommands) -> Result<Value, ApiError> {
    let mut commands = Vec::new();
    for command in find(context, input.command_id.as_deref(), input.instance_id.as_deref())? {
        if match_all(&input.filters, command.record.meta.created, status_of(&command).0)? {
            commands.push(command_shape(&command));
        }
    }
    let limit = Some(input.max_results.unwrap_or(PAGE));
    let (commands, next) = page::page(commands, limit, input.next_token.as_deref(), false)?;
    Ok(json!({"Commands": commands, "NextToken": next}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ListCommandInvocations {
    command_id: Option<String>,
    instance_id: Option<String>,
    filters: Vec<Filter>,
    max_results: Option<usize>,
    next_token: Option<String>,
    details: bool,
}

pub fn list_invocations(context: &Context, input: ListCommandInvocations) -> Result<Value, ApiError> {
    let mut shapes = Vec::new();
    for command in find(context, input.command_id.as_deref(), input.instance_id.as_deref())? {
        for invocation in &command.invocations {
            let is_asked = input.instance_id.as_ref().is_none_or(|id| *id == invocation.instance_id.to_string());
            if is_asked && match_all(&input.filters, command.record.meta.created, invocation.state.status())? {
                shapes.push(invocation_shape(&command, invocation, input.details));
            }
        }
    }
    let limit = Some(input.max_results.unwrap_or(PAGE));
    let (shapes, next) = page::page(shapes, limit, input.next_token.as_deref(), false)?;
    Ok(json!({"CommandInvocations": shapes, "NextToken": next}))
}

/// Returns the commands with an ID and on an instance, newest first. An unknown command ID is an error.
fn find(context: &Context, id: Option<&str>, instance: Option<&str>) -> Result<Vec<Command>, ApiError> {
    let wanted: Option<CommandId> = id.map(str::parse).transpose()?;
    let mut commands = context.cloud.commands().list()?;
    commands.retain(|command| wanted.is_none_or(|id| command.record.meta.id == id));
    if let (Some(id), []) = (id, commands.as_slice()) {
        return Err(unknown_command(id).into());
    }
    let is_on = |command: &Command, instance: &str| {
        command.invocations.iter().any(|invocation| invocation.instance_id.to_string() == instance)
    };
    commands.retain(|command| instance.is_none_or(|instance| is_on(command, instance)));
    Ok(commands)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GetCommandInvocation {
    command_id: String,
    instance_id: String,
    plugin_name: Option<String>,
}

pub fn invocation(context: &Context, input: GetCommandInvocation) -> Result<Value, ApiError> {
    if let Some(name) = input.plugin_name.filter(|name| name != PLUGIN) {
        let name: String = name.chars().take(100).collect();
        return Err(refused(ErrorCode::InvalidPluginName, format!("The plugin '{name}' does not exist.")));
    }
    let commands = context.cloud.commands().list()?;
    let command = commands.iter().find(|command| command.record.meta.id.to_string() == input.command_id);
    let is_asked = |record: &&InvocationRecord| record.instance_id.to_string() == input.instance_id;
    let found = command.and_then(|command| Some((command, command.invocations.iter().find(is_asked)?)));
    let (command, invocation) = found.ok_or_else(|| {
        let what = "The command ID and managed node ID you specified didn't match any invocations. Verify the command \
                    ID and the managed node ID and try again.";
        refused(ErrorCode::InvocationDoesNotExist, what)
    })?;
    Ok(result_shape(command, invocation))
}

/// Returns the status of a command, and its details.
fn status_of(command: &Command) -> (&'static str, &'static str) {
    let states: Vec<InvocationState> = command.invocations.iter().map(|invocation| invocation.state).collect();
    match InvocationState::of_command(&states) {
        Some(state) => (state.status(), state.details()),
        None => ("Success", "NoInstancesInTag"),
    }
}

/// Systems Manager API Reference, `Command`.
fn command_shape(command: &Command) -> Value {
    let (meta, spec) = (&command.record.meta, &command.record.spec);
    let (status, details) = status_of(command);
    let count = |is_counted: fn(InvocationState) -> bool| {
        command.invocations.iter().filter(|invocation| is_counted(invocation.state)).count()
    };
    let lifetime = spec.timeout.saturating_add(spec.script.execution_timeout);
    json!({
        "CommandId": meta.id,
        "Comment": spec.comment,
        "CompletedCount": count(InvocationState::is_finished),
        "DeliveryTimedOutCount": count(|state| state == InvocationState::DeliveryTimedOut),
        "DocumentName": DOCUMENT,
        "DocumentVersion": DOCUMENT_VERSION,
        "ErrorCount": count(|state| state.status() == "Failed" || state == InvocationState::ExecutionTimedOut),
        "ExpiresAfter": Timestamp::from_seconds(meta.created.saturating_add(lifetime)),
        "InstanceIds": spec.instance_ids,
        "MaxConcurrency": "50",
        "MaxErrors": "0",
        "Parameters": spec.script.parameters(),
        "RequestedDateTime": Timestamp::from_seconds(meta.created),
        "Status": status,
        "StatusDetails": details,
        "TargetCount": command.invocations.len(),
        "Targets": spec.targets,
        "TimeoutSeconds": spec.timeout,
    })
}

/// Systems Manager API Reference, `CommandInvocation`.
fn invocation_shape(command: &Command, invocation: &InvocationRecord, with_plugins: bool) -> Value {
    let plugins = if with_plugins { vec![plugin_shape(invocation)] } else { Vec::new() };
    json!({
        "CommandId": invocation.command_id,
        "CommandPlugins": plugins,
        "Comment": command.record.spec.comment,
        "DocumentName": DOCUMENT,
        "DocumentVersion": DOCUMENT_VERSION,
        "InstanceId": invocation.instance_id,
        "InstanceName": invocation.instance_name,
        "RequestedDateTime": Timestamp::from_seconds(command.record.meta.created),
        "Status": invocation.state.status(),
        "StatusDetails": invocation.state.details(),
        "TraceOutput": "",
    })
}

/// Systems Manager API Reference, `CommandPlugin`.
fn plugin_shape(invocation: &InvocationRecord) -> Value {
    let times = times(invocation);
    let output = match &invocation.result {
        Some(result) if result.stderr.is_empty() => result.stdout.clone(),
        Some(result) => format!("{}\n----------ERROR-------\n{}", result.stdout, result.stderr),
        None => String::new(),
    };
    json!({
        "Name": PLUGIN,
        "Output": output.chars().take(LISTED_OUTPUT_LIMIT).collect::<String>(),
        "ResponseCode": exit_code(invocation),
        "ResponseFinishDateTime": times.map(|times| times.end),
        "ResponseStartDateTime": invocation.started.map(Timestamp::from_seconds),
        "Status": invocation.state.status(),
        "StatusDetails": invocation.state.details(),
    })
}

/// Systems Manager API Reference, response of `GetCommandInvocation`.
fn result_shape(command: &Command, invocation: &InvocationRecord) -> Value {
    let times = times(invocation);
    let elapsed = |times: Times| format!("PT{}.{:03}S", times.elapsed / 1_000, times.elapsed % 1_000);
    let started = invocation.started.map(|started| Timestamp::from_seconds(started).to_string());
    let result = invocation.result.as_ref();
    json!({
        "CloudWatchOutputConfig": {"CloudWatchLogGroupName": "", "CloudWatchOutputEnabled": false},
        "CommandId": invocation.command_id,
        "Comment": command.record.spec.comment,
        "DocumentName": DOCUMENT,
        "DocumentVersion": DOCUMENT_VERSION,
        "ExecutionElapsedTime": times.map(elapsed).unwrap_or_default(),
        "ExecutionEndDateTime": times.map(|times| times.end.to_string()).unwrap_or_default(),
        "ExecutionStartDateTime": started.unwrap_or_default(),
        "InstanceId": invocation.instance_id,
        "PluginName": PLUGIN,
        "ResponseCode": exit_code(invocation),
        "StandardErrorContent": result.map_or("", |result| &result.stderr),
        "StandardErrorUrl": "",
        "StandardOutputContent": result.map_or("", |result| &result.stdout),
        "StandardOutputUrl": "",
        "Status": invocation.state.status(),
        "StatusDetails": invocation.state.details(),
    })
}

fn exit_code(invocation: &InvocationRecord) -> i32 {
    invocation.result.as_ref().and_then(|result| result.exit_code).unwrap_or(NO_EXIT_CODE)
}

#[derive(Clone, Copy)]
struct Times {
    end: Timestamp,
    /// In milliseconds.
    elapsed: u64,
}

/// Returns the times of an execution that has ended.
fn times(invocation: &InvocationRecord) -> Option<Times> {
    let elapsed = invocation.result.as_ref()?.elapsed_milliseconds;
    Some(Times { end: Timestamp::from_seconds(invocation.started?.saturating_add(elapsed / 1_000)), elapsed })
}

#[cfg(test)]
mod tests;
