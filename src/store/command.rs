//! Records of commands (Run Command) in the store: one per command, and one per invocation on an instance.

use serde::{Deserialize, Serialize};

use super::{Meta, Record, Resource, Unversioned};
use ec2::InstanceId;
use ec2::command::{CommandId, InvocationState, ShellScript, Target};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandRecord {
    pub meta: Meta<CommandId>,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub script: ShellScript,
    pub comment: String,
    pub instance_ids: Vec<InstanceId>,
    pub targets: Vec<Target>,
    /// Time for the delivery in seconds.
    pub timeout: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Identity of the process that runs the invocations. If it has ended, unfinished invocations have failed.
    pub runner: String,
}

impl Record for CommandRecord {
    const TABLE: &'static str = "commands";

    fn key(&self) -> String {
        self.meta.id.to_string()
    }
}

impl Resource for CommandRecord {
    type Id = CommandId;

    fn meta(&self) -> &Meta<CommandId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<CommandId> {
        &mut self.meta
    }
}

/// A command on one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvocationRecord {
    pub command_id: CommandId,
    pub instance_id: InstanceId,
    /// Value of the instance's Name tag when the command was sent.
    pub instance_name: String,
    pub state: InvocationState,
    /// Start of the execution in seconds since 1970.
    #[serde(default)]
    pub started: Option<u64>,
    /// The result, once the invocation has finished.
    #[serde(default)]
    pub result: Option<InvocationResult>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvocationResult {
    /// The exit code, or none if the command did not exit.
    pub exit_code: Option<i32>,
    pub stdout: String,
    /// Also has the reason why Wisp could not run the command.
    pub stderr: String,
    pub elapsed_milliseconds: u64,
}

impl InvocationRecord {
    pub fn key_of(command: CommandId, instance: InstanceId) -> String {
        format!("{command}/{instance}")
    }
}

impl Record for InvocationRecord {
    const TABLE: &'static str = "invocations";

    fn key(&self) -> String {
        InvocationRecord::key_of(self.command_id, self.instance_id)
    }
}

impl Unversioned for InvocationRecord {}
