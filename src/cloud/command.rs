//! Run Command: `SendCommand`, `ListCommands`, `ListCommandInvocations`, `GetCommandInvocation`.
//!
//! The process that sends a command runs it, in a thread per instance. Its identity is in the command's record, so that
//! another process can find invocations that a killed process left unfinished.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::error::CloudError;
use super::instances::Check;
use super::{Cloud, ids, now};
use ec2::api::ACCOUNT_ID;
use ec2::command::{CommandId, InvocationState, STDERR_LIMIT, STDOUT_LIMIT, ShellScript, Target};
use ec2::network::REGION;
use ec2::state::InstanceState;
use ec2::{Ec2Error, ErrorCode, InstanceId};
use node::guest::{self, Agent, CommandEnd, ExecRequest, Facts};
use node::instance::{Failure, MachineError};
use node::process_identity;
use store::command::{InvocationResult, Spec, Status};
use store::{CommandRecord, InstanceRecord, InvocationRecord, Meta, Transaction};

/// Time that a command is kept after it was sent, in seconds: 30 days, as in Systems Manager.
const RETENTION: u64 = 30 * 24 * 3_600;
/// Maximum number of invocations that are kept. Older ones are removed, unless they are running.
const MAX_INVOCATIONS: usize = 1_000;
/// Maximum number of invocations that run at a time. Each has a thread.
const MAX_RUNNING: usize = 100;
/// Time for an agent to answer a ping. A busy guest can take longer than the time of a status check.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of a character in UTF-8.
const MAX_CHARACTER: usize = 4;

/// A command with its invocations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub record: CommandRecord,
    /// Ordered by instance ID.
    pub invocations: Vec<InvocationRecord>,
}

impl Command {
    fn is_finished(&self) -> bool {
        self.invocations.iter().all(|invocation| invocation.state.is_finished())
    }
}

/// A request to run a script on instances.
#[derive(Debug, Clone)]
pub struct CommandRequest {
    pub script: ShellScript,
    pub comment: String,
    pub instance_ids: Vec<String>,
    pub targets: Vec<Target>,
    /// Time for the delivery in seconds.
    pub timeout: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Commands<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Commands<'_> {
    /// Returns all commands, newest first.
    pub fn list(&self) -> Result<Vec<Command>, CloudError> {
        let commands = self.cloud.store.read(list)?;
        if commands.iter().all(|command| !is_abandoned(command)) {
            return Ok(commands);
        }
        self.cloud.store.write(|tx| {
            fail_abandoned(tx)?;
            list(tx)
        })
    }

    /// Adds a command with pending invocations. The caller calls [`run`](Self::run) for each of them.
    pub fn send(&self, request: CommandRequest) -> Result<Command, CloudError> {
        let instances = self.select(&request)?;
        let runner = process_identity::own().map_err(|error| self.no_identity(&error))?;
        let ids: Vec<InstanceId> = instances.iter().map(|record| record.meta.id).collect();
        let CommandRequest { script, comment, instance_ids, targets, timeout } = request;
        let instance_ids = if instance_ids.is_empty() { Vec::new() } else { ids };
        let mut record = CommandRecord {
            meta: Meta::new(CommandId::from_random(ids::random_bytes()), now(), BTreeMap::new()),
            spec: Spec { script, comment, instance_ids, targets, timeout },
            status: Status { runner },
        };
        let invocations: Vec<InvocationRecord> =
            instances.iter().map(|instance| pending(record.meta.id, instance)).collect();
        self.cloud.store.write::<_, CloudError>(|tx| {
            fail_abandoned(tx)?;
            let commands = list(tx)?;
            check_running(&commands, invocations.len())?;
            for command in superfluous(&commands, now()) {
                remove(tx, command)?;
            }
            tx.insert(&mut record)?;
            Ok(invocations.iter().try_for_each(|invocation| tx.set(invocation))?)
        })?;
        Ok(Command { record, invocations })
    }

    fn no_identity(&self, error: &std::io::Error) -> CloudError {
        let what = format!("The host does not show the start time of this process: {error}.");
        CloudError::refused(ErrorCode::Unsupported, what, None)
    }

    /// Returns the running instances that a request names or targets.
    fn select(&self, request: &CommandRequest) -> Result<Vec<InstanceRecord>, CloudError> {
        let mut records = self.cloud.instances().list()?;
        records.retain(|record| record.status.state == InstanceState::Running);
        let chosen = choose(&records, &request.instance_ids, &request.targets)?;
        let checks = self.cloud.instances().check(&chosen);
        let (ready, others): (Vec<_>, Vec<_>) =
            chosen.into_iter().zip(checks).partition(|(_, checks)| has_agent(checks.instance));
        match others.as_slice() {
            [(instance, _), ..] if request.targets.is_empty() => Err(not_valid(&instance.meta.id.to_string()).into()),
            _ => Ok(ready.into_iter().map(|(instance, _)| instance).collect()),
        }
    }

    /// Runs a pending invocation until it finishes.
    pub fn run(&self, command: CommandId, instance: InstanceId) -> Result<(), CloudError> {
        let found = self.cloud.store.read::<_, CloudError>(|tx| Ok(tx.get::<CommandRecord>(&command.to_string())?))?;
        let Some(record) = found else { return Ok(()) };
        let mut clock = Instant::now();
        let Finished { state, mut result } = match self.deliver(&record, instance) {
            Err(error) => undelivered(&error),
            Ok(running) => {
                clock = Instant::now();
                let started = now();
                self.change(command, instance, |invocation| {
                    invocation.state = InvocationState::InProgress;
                    invocation.started = Some(started);
                })?;
                let timeout = Duration::from_secs(record.spec.script.execution_timeout);
                finished(running.wait(STDOUT_LIMIT * MAX_CHARACTER, timeout))
            }
        };
        result.elapsed_milliseconds = clock.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        self.change(command, instance, |invocation| {
            invocation.state = state;
            invocation.result = Some(result);
        })
    }

    fn deliver(&self, command: &CommandRecord, instance: InstanceId) -> Result<guest::RunningCommand, CloudError> {
        let timeout = Duration::from_secs(command.spec.timeout);
        let (_, agent) = self.cloud.instances().agent(&instance.to_string(), timeout)?;
        let dir = self.cloud.dir(instance);
        Ok(agent.start(exec_request(&command.spec.script, instance)).map_err(dir.guest_error())?)
    }

    /// Changes an invocation, unless another process has finished or removed it.
    fn change(
        &self,
        command: CommandId,
        instance: InstanceId,
        change: impl FnOnce(&mut InvocationRecord),
    ) -> Result<(), CloudError> {
        self.cloud.store.write(|tx| {
            let key = InvocationRecord::key_of(command, instance);
            if let Some(mut invocation) = tx.get::<InvocationRecord>(&key)?.filter(|record| !record.state.is_finished())
            {
                change(&mut invocation);
                tx.set(&invocation)?;
            }
            Ok(())
        })
    }

    /// Returns the running instances whose agents answer, with what they answer.
    pub fn agents(&self) -> Result<Vec<(InstanceRecord, Facts)>, CloudError> {
        let mut records = self.cloud.instances().list()?;
        records.retain(|record| record.status.state == InstanceState::Running);
        let checks = self.cloud.instances().check(&records);
        let answering = records.into_iter().zip(checks).filter(|(_, checks)| has_agent(checks.instance));
        let facts = |record: &InstanceRecord| {
            let agent: Agent = self.cloud.dir(record.meta.id).agent(PING_TIMEOUT).ok()?;
            agent.ping(PING_TIMEOUT).ok()
        };
        Ok(answering
            .filter_map(|(record, _)| Some((facts(&record)?, record)))
            .map(|(facts, record)| (record, facts))
            .collect())
    }
}

/// Returns true if the guest's agent has started. It need not have answered the status check in time.
fn has_agent(check: Check) -> bool {
    !matches!(check, Check::NotApplicable | Check::Initializing)
}

fn pending(command_id: CommandId, instance: &InstanceRecord) -> InvocationRecord {
    InvocationRecord {
        command_id,
        instance_id: instance.meta.id,
        instance_name: instance.meta.name().unwrap_or_default().to_string(),
        state: InvocationState::Pending,
        started: None,
        result: None,
    }
}

/// Returns the instances with the IDs, or those that all targets match.
fn choose(records: &[InstanceRecord], ids: &[String], targets: &[Target]) -> Result<Vec<InstanceRecord>, Ec2Error> {
    match (ids.is_empty(), targets.is_empty()) {
        (false, true) => {
            let mut chosen: Vec<InstanceRecord> = Vec::new();
            for id in ids {
                let record = records.iter().find(|record| record.meta.id.to_string() == *id);
                let record = record.ok_or_else(|| not_valid(id))?;
                if chosen.iter().all(|known| known.meta.id != record.meta.id) {
                    chosen.push(record.clone());
                }
            }
            Ok(chosen)
        }
        (true, false) => {
            let mut chosen = records.to_vec();
            for target in targets {
                // An unsupported key is refused even if no instance runs.
                target.matches("", &BTreeMap::new())?;
                chosen.retain(|record| {
                    target.matches(&record.meta.id.to_string(), &record.meta.tags).unwrap_or_default()
                });
            }
            Ok(chosen)
        }
        _ => {
            let what = "The request must contain either the parameter InstanceIds or the parameter Targets.";
            Err(Ec2Error::refused(ErrorCode::InvalidParameters, what, None))
        }
    }
}

/// Returns Systems Manager's error for an instance that cannot run commands.
fn not_valid(id: &str) -> Ec2Error {
    let id: String = id.chars().take(100).collect();
    let what = format!("Instances [[{id}]] not in a valid state for account {ACCOUNT_ID}");
    Ec2Error::refused(ErrorCode::InvalidInstanceId, what, None)
}

fn exec_request(script: &ShellScript, instance: InstanceId) -> ExecRequest {
    ExecRequest {
        argv: vec!["/bin/sh".into(), "-c".into(), script.text().into()],
        env: vec![
            ("AWS_SSM_INSTANCE_ID".into(), instance.to_string().into()),
            ("AWS_SSM_REGION_NAME".into(), REGION.into()),
        ],
        cwd: script.working_directory.clone().map(Into::into),
        ..ExecRequest::default()
    }
}

struct Finished {
    state: InvocationState,
    result: InvocationResult,
}

fn result(exit_code: Option<i32>, stdout: String, stderr: String) -> InvocationResult {
    InvocationResult { exit_code, stdout, stderr, elapsed_milliseconds: 0 }
}

fn undelivered(error: &CloudError) -> Finished {
    let is_timeout = matches!(
        error,
        CloudError::Node(node::error::NodeError::Machine(MachineError {
            failure: Failure::Guest(guest::Error::TimedOut(_)),
            ..
        }))
    );
    let state = if is_timeout { InvocationState::DeliveryTimedOut } else { InvocationState::Undeliverable };
    Finished { state, result: result(None, String::new(), characters(error.to_string().as_bytes(), STDERR_LIMIT)) }
}

fn finished(end: CommandEnd) -> Finished {
    let stdout = characters(&end.stdout, STDOUT_LIMIT);
    let stderr = |reason: &str| {
        let mut bytes = end.stderr.clone();
        if !reason.is_empty() {
            // The reason is at the start, where the limit does not remove it.
            bytes.splice(0..0, format!("{reason}\n").into_bytes());
        }
        characters(&bytes, STDERR_LIMIT)
    };
    let (state, exit_code, stderr) = match &end.status {
        Ok(status) => {
            let code = status.exit_code();
            let state = if code == 0 { InvocationState::Success } else { InvocationState::Failed };
            (state, Some(code), stderr(""))
        }
        Err(guest::Error::TimedOut(_)) => (InvocationState::ExecutionTimedOut, None, stderr("")),
        // The agent could not start the shell, for example because the working directory does not exist.
        Err(error @ (guest::Error::Guest(_) | guest::Error::CommandNotFound(_) | guest::Error::NotExecutable(_))) => {
            (InvocationState::Failed, Some(error.exit_code()), stderr(&error.to_string()))
        }
        Err(error) => (InvocationState::Failed, None, stderr(&error.to_string())),
    };
    Finished { state, result: result(exit_code, stdout, stderr) }
}

/// Returns the first characters of a guest's output.
fn characters(bytes: &[u8], limit: usize) -> String {
    String::from_utf8_lossy(bytes).chars().take(limit).collect()
}

/// Returns all commands, newest first.
fn list(tx: &Transaction) -> Result<Vec<Command>, CloudError> {
    let mut invocations: BTreeMap<CommandId, Vec<InvocationRecord>> = BTreeMap::new();
    for invocation in tx.list::<InvocationRecord>()? {
        invocations.entry(invocation.command_id).or_default().push(invocation);
    }
    let mut records = tx.list::<CommandRecord>()?;
    records.sort_by_key(|record| std::cmp::Reverse(record.meta.created));
    let command = |record: CommandRecord| {
        let invocations = invocations.remove(&record.meta.id).unwrap_or_default();
        Command { record, invocations }
    };
    Ok(records.into_iter().map(command).collect())
}

/// Returns true if the process that ran the command ended before the command did.
fn is_abandoned(command: &Command) -> bool {
    !command.is_finished() && !process_identity::is_running(&command.record.status.runner)
}

/// Sets the unfinished invocations of ended processes to failed.
fn fail_abandoned(tx: &Transaction) -> Result<(), CloudError> {
    for command in list(tx)?.into_iter().filter(is_abandoned) {
        for mut invocation in command.invocations.into_iter().filter(|invocation| !invocation.state.is_finished()) {
            let reason = "The API server ended before the command did. The command may have run.".to_string();
            invocation.state = InvocationState::Failed;
            invocation.result = Some(result(None, String::new(), reason));
            tx.set(&invocation)?;
        }
    }
    Ok(())
}

fn check_running(commands: &[Command], added: usize) -> Result<(), Ec2Error> {
    let states = commands.iter().flat_map(|command| &command.invocations).map(|invocation| invocation.state);
    let running = states.filter(|state| !state.is_finished()).count();
    if running + added > MAX_RUNNING {
        let what = format!("Up to {MAX_RUNNING} invocations of commands can run at a time; {running} are running.");
        return Err(Ec2Error::refused(ErrorCode::ThrottlingException, what, None));
    }
    Ok(())
}

/// Returns the finished commands that are too old or too many. `commands` are ordered from new to old.
fn superfluous(commands: &[Command], now: u64) -> Vec<&Command> {
    let mut kept = 0;
    let is_superfluous = |command: &&Command| {
        kept += command.invocations.len().max(1);
        let is_old = command.record.meta.created.saturating_add(RETENTION) < now;
        command.is_finished() && (is_old || kept > MAX_INVOCATIONS)
    };
    commands.iter().filter(is_superfluous).collect()
}

fn remove(tx: &Transaction, command: &Command) -> Result<(), CloudError> {
    for invocation in &command.invocations {
        let key = InvocationRecord::key_of(invocation.command_id, invocation.instance_id);
        tx.remove::<InvocationRecord>(&key)?;
    }
    Ok(tx.remove::<CommandRecord>(&command.record.meta.id.to_string())?)
}

#[cfg(test)]
mod tests;
