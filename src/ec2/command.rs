//! Run Command of Systems Manager: IDs, parameters and states of commands.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Ec2Error, ErrorCode};

/// The one document that Wisp can run.
pub const DOCUMENT: &str = "AWS-RunShellScript";
/// The one step of the document.
pub const PLUGIN: &str = "aws:runShellScript";

/// Maximum lengths of the kept output, in characters.
pub const STDOUT_LIMIT: usize = 24_000;
pub const STDERR_LIMIT: usize = 8_000;
/// Maximum length of the output in a list of invocations, in characters.
pub const LISTED_OUTPUT_LIMIT: usize = 2_500;

/// Default time for the delivery of a command, and for its execution, in seconds.
pub const DEFAULT_TIMEOUT: u64 = 3_600;
const MAX_EXECUTION_TIMEOUT: u64 = 172_800;
/// Maximum length of a script in bytes, so that it fits in a request to the agent.
const MAX_SCRIPT: usize = 60_000;
/// Maximum length of a path in bytes.
const MAX_PATH: usize = 4_095;

/// Identifier of a command: a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CommandId(u128);

impl CommandId {
    pub fn from_random(mut bytes: [u8; 16]) -> CommandId {
        // Version 4, variant 1 (RFC 9562, section 5.4).
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        CommandId(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:032x}", self.0);
        write!(f, "{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
    }
}

impl FromStr for CommandId {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<CommandId, Ec2Error> {
        let digits: String = text.chars().filter(|character| *character != '-').collect();
        let id = u128::from_str_radix(&digits, 16).ok().map(CommandId);
        id.filter(|id| id.to_string() == text).ok_or_else(|| unknown_command(text))
    }
}

impl TryFrom<String> for CommandId {
    type Error = Ec2Error;

    fn try_from(text: String) -> Result<CommandId, Ec2Error> {
        text.parse()
    }
}

impl From<CommandId> for String {
    fn from(id: CommandId) -> String {
        id.to_string()
    }
}

/// Returns the error for an ID that no command has.
pub fn unknown_command(id: &str) -> Ec2Error {
    let id: String = id.chars().take(100).collect();
    Ec2Error::refused(ErrorCode::InvalidCommandId, format!("The command '{id}' does not exist."), None)
}

/// Instances that a command is for, by a tag or by their IDs. Systems Manager API Reference, `Target`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Target {
    pub key: String,
    pub values: Vec<String>,
}

impl Target {
    /// Returns true if an instance with this ID and these tags is meant. An unsupported key is an error.
    pub fn matches(&self, id: &str, tags: &BTreeMap<String, String>) -> Result<bool, Ec2Error> {
        let is_value = |value: &str| self.values.iter().any(|known| known == value);
        match (self.key.as_str(), self.key.strip_prefix("tag:")) {
            ("InstanceIds", _) => Ok(is_value(id)),
            ("tag-key", _) => Ok(tags.keys().any(|key| is_value(key))),
            (_, Some(key)) => Ok(tags.get(key).is_some_and(|value| is_value(value))),
            (key, None) => {
                let what = format!("Wisp does not support the parameter Targets.Key with the value '{key}'.");
                Err(Ec2Error::refused(ErrorCode::UnsupportedOperation, what, None))
            }
        }
    }
}

/// Parameters of the document `AWS-RunShellScript`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellScript {
    /// Lines of the script.
    pub commands: Vec<String>,
    /// In seconds.
    pub execution_timeout: u64,
    pub working_directory: Option<String>,
}

impl ShellScript {
    /// Checks the parameters of a request. An unknown one is refused by name.
    pub fn parse(parameters: BTreeMap<String, Vec<String>>) -> Result<ShellScript, Ec2Error> {
        let mut script =
            ShellScript { commands: Vec::new(), execution_timeout: DEFAULT_TIMEOUT, working_directory: None };
        for (name, values) in parameters {
            match (name.as_str(), values.as_slice()) {
                ("commands", _) => script.commands = values,
                ("executionTimeout", [timeout]) => script.execution_timeout = execution_timeout(timeout)?,
                ("workingDirectory", [path]) if path.len() <= MAX_PATH => {
                    script.working_directory = Some(path.clone()).filter(|path| !path.is_empty());
                }
                ("executionTimeout" | "workingDirectory", _) => {
                    return Err(invalid(format!("The parameter {name} must have one value.")));
                }
                _ => return Err(invalid(format!("The document {DOCUMENT} does not have the parameter '{name}'."))),
            }
        }
        match script.text().len() {
            0 => Err(invalid("The parameter commands is required.".into())),
            length if length > MAX_SCRIPT => {
                Err(invalid(format!("The parameter commands must not exceed {MAX_SCRIPT} bytes.")))
            }
            _ => Ok(script),
        }
    }

    /// Returns the script.
    pub fn text(&self) -> String {
        self.commands.join("\n")
    }

    /// Returns the parameters as in a request.
    pub fn parameters(&self) -> BTreeMap<&'static str, Vec<String>> {
        let mut parameters = BTreeMap::from([
            ("commands", self.commands.clone()),
            ("executionTimeout", vec![self.execution_timeout.to_string()]),
        ]);
        if let Some(path) = &self.working_directory {
            parameters.insert("workingDirectory", vec![path.clone()]);
        }
        parameters
    }
}

fn execution_timeout(text: &str) -> Result<u64, Ec2Error> {
    let seconds = text.parse().ok().filter(|seconds| (1..=MAX_EXECUTION_TIMEOUT).contains(seconds));
    let rule = || format!("The parameter executionTimeout must be between 1 and {MAX_EXECUTION_TIMEOUT} seconds.");
    seconds.ok_or_else(|| invalid(rule()))
}

fn invalid(what: String) -> Ec2Error {
    Ec2Error::refused(ErrorCode::InvalidParameters, what, None)
}

/// The state of a command on one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InvocationState {
    Pending,
    InProgress,
    Success,
    Failed,
    /// The agent did not accept the command.
    Undeliverable,
    DeliveryTimedOut,
    ExecutionTimedOut,
}

impl InvocationState {
    pub fn is_finished(self) -> bool {
        !matches!(self, InvocationState::Pending | InvocationState::InProgress)
    }

    /// Returns the status, which has fewer values than [`details`](Self::details).
    pub fn status(self) -> &'static str {
        match self {
            InvocationState::Undeliverable => "Failed",
            InvocationState::DeliveryTimedOut | InvocationState::ExecutionTimedOut => "TimedOut",
            state => state.details(),
        }
    }

    pub fn details(self) -> &'static str {
        match self {
            InvocationState::Pending => "Pending",
            InvocationState::InProgress => "InProgress",
            InvocationState::Success => "Success",
            InvocationState::Failed => "Failed",
            InvocationState::Undeliverable => "Undeliverable",
            InvocationState::DeliveryTimedOut => "DeliveryTimedOut",
            InvocationState::ExecutionTimedOut => "ExecutionTimedOut",
        }
    }

    /// Returns the state of a command from those of its invocations, or `None` if it has none.
    pub fn of_command(states: &[InvocationState]) -> Option<InvocationState> {
        if states.iter().any(|state| !state.is_finished()) {
            let is_pending = states.iter().all(|state| *state == InvocationState::Pending);
            return Some(if is_pending { InvocationState::Pending } else { InvocationState::InProgress });
        }
        // The first failure decides.
        states.iter().copied().find(|state| *state != InvocationState::Success).or(states.first().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: &[(&str, &[&str])]) -> Result<ShellScript, Ec2Error> {
        let texts = |values: &[&str]| values.iter().map(|value| (*value).to_string()).collect();
        ShellScript::parse(parameters.iter().map(|(name, values)| ((*name).to_string(), texts(values))).collect())
    }

    #[test]
    fn command_id_is_a_uuid() {
        let id = CommandId::from_random([0xff; 16]);
        assert_eq!(id.to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "ffffffffffff4fffbfffffffffffffff", "FFFFFFFF-ffff-4fff-bfff-ffffffffffff", "i-1"] {
            assert_eq!(text.parse::<CommandId>().unwrap_err().code(), ErrorCode::InvalidCommandId, "{text}");
        }
    }

    #[test]
    fn script_has_commands_as_lines() {
        let script = parse(&[("commands", &["cd /tmp", "ls"]), ("executionTimeout", &["5"])]).unwrap();
        assert_eq!((script.text().as_str(), script.execution_timeout), ("cd /tmp\nls", 5));
        assert_eq!(script.working_directory, None);
        let script = parse(&[("commands", &["ls"]), ("workingDirectory", &["/srv"])]).unwrap();
        assert_eq!((script.working_directory.as_deref(), script.execution_timeout), (Some("/srv"), DEFAULT_TIMEOUT));
        assert_eq!(script.parameters()["workingDirectory"], ["/srv"]);
    }

    #[test]
    fn invalid_parameters_are_refused() {
        let long = "x".repeat(MAX_SCRIPT + 1);
        let refused: [&[(&str, &[&str])]; 7] = [
            &[],
            &[("commands", &[])],
            &[("commands", &[&long])],
            &[("commands", &["ls"]), ("executionTimeout", &["0"])],
            &[("commands", &["ls"]), ("executionTimeout", &["172801"])],
            &[("commands", &["ls"]), ("workingDirectory", &["/", "/srv"])],
            &[("commands", &["ls"]), ("whales", &["1"])],
        ];
        for parameters in refused {
            assert_eq!(parse(parameters).unwrap_err().code(), ErrorCode::InvalidParameters, "{parameters:?}");
        }
    }

    #[test]
    fn targets_match_tags_and_ids() {
        let tags = BTreeMap::from([("role".to_string(), "web".to_string())]);
        let matches = |key: &str, value: &str| {
            Target { key: key.into(), values: vec![value.into()] }.matches("i-0123456789abcdef0", &tags)
        };
        assert_eq!(matches("tag:role", "web"), Ok(true));
        assert_eq!(matches("tag:role", "db"), Ok(false));
        assert_eq!(matches("tag:other", "web"), Ok(false));
        assert_eq!(matches("tag-key", "role"), Ok(true));
        assert_eq!(matches("InstanceIds", "i-0123456789abcdef0"), Ok(true));
        assert_eq!(matches("resource-groups:Name", "web").unwrap_err().code(), ErrorCode::UnsupportedOperation);
    }

    #[test]
    fn state_of_command_is_that_of_its_invocations() {
        use InvocationState::{ExecutionTimedOut, Failed, InProgress, Pending, Success};
        for (states, expected) in [
            (&[] as &[InvocationState], None),
            (&[Pending, Pending], Some(Pending)),
            (&[Pending, Success], Some(InProgress)),
            (&[InProgress, Failed], Some(InProgress)),
            (&[Success, ExecutionTimedOut], Some(ExecutionTimedOut)),
            (&[Success, Success], Some(Success)),
        ] {
            assert_eq!(InvocationState::of_command(states), expected, "{states:?}");
        }
    }
}
