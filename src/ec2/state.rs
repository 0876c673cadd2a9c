//! Instance states, and the actions that each state allows.
//!
//! Source: EC2 API Reference, `InstanceState` and `StateReason`; EC2 User Guide, "Instance lifecycle".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::Ec2Error;
use super::id::InstanceId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    Pending,
    /// The VMM is running. The guest may still be booting.
    Running,
    /// The instance is being terminated.
    ShuttingDown,
    /// The instance's record stays visible for an hour.
    Terminated,
    Stopping,
    Stopped,
}

impl InstanceState {
    pub const ALL: [InstanceState; 6] = [
        InstanceState::Pending,
        InstanceState::Running,
        InstanceState::ShuttingDown,
        InstanceState::Terminated,
        InstanceState::Stopping,
        InstanceState::Stopped,
    ];

    /// Returns the low byte of EC2's `InstanceState.Code`.
    pub fn code(self) -> u8 {
        match self {
            InstanceState::Pending => 0,
            InstanceState::Running => 16,
            InstanceState::ShuttingDown => 32,
            InstanceState::Terminated => 48,
            InstanceState::Stopping => 64,
            InstanceState::Stopped => 80,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            InstanceState::Pending => "pending",
            InstanceState::Running => "running",
            InstanceState::ShuttingDown => "shutting-down",
            InstanceState::Terminated => "terminated",
            InstanceState::Stopping => "stopping",
            InstanceState::Stopped => "stopped",
        }
    }

    /// Returns true if the instance has a VMM, or is about to get or lose one.
    pub fn has_machine(self) -> bool {
        !matches!(self, InstanceState::Terminated | InstanceState::Stopped)
    }

    pub fn can_become(self, next: InstanceState) -> bool {
        use InstanceState::*;
        match self {
            Pending => matches!(next, Running | ShuttingDown | Terminated | Stopped),
            Running => matches!(next, Stopping | Stopped | ShuttingDown | Terminated),
            Stopping => matches!(next, Stopped | ShuttingDown | Terminated),
            Stopped => matches!(next, Pending | ShuttingDown | Terminated),
            ShuttingDown => next == Terminated,
            Terminated => false,
        }
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start,
    Stop,
    /// Fork the instance: a Wisp extension.
    Fork,
    /// `StopInstances` with `Hibernate`.
    Hibernate,
    Reboot,
    Terminate,
    /// `ModifyInstanceAttribute` of an attribute that requires a stopped instance.
    ModifyStopped,
    Modify,
    /// An action that needs the guest, such as running a command or copying files.
    Reach,
    ChangeVolumes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    Do,
    /// The action is already done or in progress, so EC2 returns success.
    Already,
}

impl Action {
    pub fn allowed(self, instance: InstanceId, state: InstanceState) -> Result<Transition, Ec2Error> {
        use InstanceState::*;
        match (self, state) {
            (Action::Start, Stopped)
            | (Action::Stop, Pending | Running | Stopping)
            | (Action::Fork | Action::Hibernate | Action::Reboot | Action::Reach, Running)
            | (Action::Terminate, Pending | Running | Stopping | Stopped | ShuttingDown)
            | (Action::ModifyStopped, Stopped)
            | (Action::Modify, Pending | Running | Stopping | Stopped)
            | (Action::ChangeVolumes, Running | Stopped) => Ok(Transition::Do),
            (Action::Start, Pending | Running) | (Action::Stop, Stopped) | (Action::Terminate, Terminated) => {
                Ok(Transition::Already)
            }
            _ => Err(instance.incorrect_state(state.as_str(), self.participle())),
        }
    }

    fn participle(self) -> &'static str {
        match self {
            Action::Start => "started",
            Action::Stop => "stopped",
            Action::Fork => "forked",
            Action::Hibernate => "hibernated",
            Action::Reboot => "rebooted",
            Action::Terminate => "terminated",
            Action::ModifyStopped => "modified in this way. Stop it first",
            Action::Modify => "modified",
            Action::Reach => "reached",
            Action::ChangeVolumes => "used to attach or detach volumes",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StateReason {
    /// For example `Client.UserInitiatedShutdown`.
    pub code: String,
    /// The code, followed by a description.
    pub message: String,
}

impl StateReason {
    pub fn user_initiated() -> StateReason {
        StateReason::new("Client.UserInitiatedShutdown", "User initiated shutdown")
    }

    pub fn user_hibernated() -> StateReason {
        StateReason::new("Client.UserInitiatedHibernate", "User initiated hibernate")
    }

    /// The guest powered itself off.
    pub fn instance_initiated() -> StateReason {
        StateReason::new("Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
    }

    /// The guest's kernel, the VMM or the host failed.
    pub fn internal_error(what: &str) -> StateReason {
        StateReason::new("Server.InternalError", what)
    }

    /// The instance never ran.
    pub fn launch_failed(what: &str) -> StateReason {
        StateReason::new("Client.InternalError", what)
    }

    fn new(code: &str, what: &str) -> StateReason {
        StateReason { code: code.into(), message: format!("{code}: {what}") }
    }

    pub fn is_hibernation(&self) -> bool {
        self.code == "Client.UserInitiatedHibernate"
    }

    pub fn is_failure(&self) -> bool {
        self.code.ends_with("InternalError")
    }
}

/// The effect of the guest's own power-off (`InstanceInitiatedShutdownBehavior`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownBehavior {
    #[default]
    Stop,
    Terminate,
}

impl ShutdownBehavior {
    pub fn as_str(self) -> &'static str {
        match self {
            ShutdownBehavior::Stop => "stop",
            ShutdownBehavior::Terminate => "terminate",
        }
    }
}

impl FromStr for ShutdownBehavior {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        match text {
            "stop" => Ok(ShutdownBehavior::Stop),
            "terminate" => Ok(ShutdownBehavior::Terminate),
            _ => Err(Ec2Error::invalid_parameter(
                "InstanceInitiatedShutdownBehavior",
                text,
                "it must be stop or terminate.",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> InstanceId {
        "i-0123456789abcdef0".parse().expect("well formed")
    }

    #[test]
    fn state_codes_match_ec2() {
        let codes: Vec<u8> = InstanceState::ALL.iter().map(|state| state.code()).collect();
        assert_eq!(codes, [0, 16, 32, 48, 64, 80]);
    }

    #[test]
    fn terminated_is_final_and_reachable_from_all_states() {
        for state in InstanceState::ALL {
            assert!(!InstanceState::Terminated.can_become(state));
            assert_eq!(state.can_become(InstanceState::Terminated), state != InstanceState::Terminated);
        }
    }

    #[test]
    fn stopped_instance_is_pending_before_running() {
        assert!(!InstanceState::Stopped.can_become(InstanceState::Running));
        assert!(InstanceState::Stopped.can_become(InstanceState::Pending));
        assert!(InstanceState::Pending.can_become(InstanceState::Running));
    }

    #[test]
    fn action_already_done_succeeds() {
        assert_eq!(Action::Start.allowed(id(), InstanceState::Running).unwrap(), Transition::Already);
        assert_eq!(Action::Stop.allowed(id(), InstanceState::Stopped).unwrap(), Transition::Already);
        assert_eq!(Action::Terminate.allowed(id(), InstanceState::Terminated).unwrap(), Transition::Already);
    }

    #[test]
    fn disallowed_action_is_incorrect_instance_state() {
        for (action, state) in [
            (Action::Start, InstanceState::Terminated),
            (Action::Start, InstanceState::Stopping),
            (Action::Stop, InstanceState::Terminated),
            (Action::Reboot, InstanceState::Stopped),
            (Action::ModifyStopped, InstanceState::Running),
            (Action::Reach, InstanceState::Stopped),
        ] {
            let error = action.allowed(id(), state).unwrap_err().to_string();
            assert!(error.starts_with("IncorrectInstanceState: "), "{error}");
        }
    }
}
