//! Errors of a machine: its directory, its VMM and its guest.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::console::ConsoleTail;
use crate::guest;
use crate::home::HomeError;
use crate::passt::PasstError;
use ec2::InstanceId;
use machine::control::ClientError;
use machine::end::End;

/// A failed operation on a machine.
#[derive(Debug)]
pub struct MachineError {
    /// `None` for an ephemeral instance, which the user knows by its command.
    pub instance: Option<InstanceId>,
    pub failure: Failure,
}

#[derive(Debug)]
pub enum Failure {
    Home(HomeError),
    File {
        path: PathBuf,
        /// Verb for the message, such as `read`.
        action: &'static str,
        source: io::Error,
    },
    Spawn(io::Error),
    Passt(PasstError),
    /// The VMM could not build the VM, or refused a request.
    Refused(String),
    /// The VMM did not complete a request.
    NotDone(String),
    Control(ClientError),
    Guest(guest::Error),
    /// The machine ended before its agent was ready. `None` if the VMM exited without a message.
    EndedEarly {
        end: Option<Box<End>>,
        console: ConsoleTail,
    },
    NotReady {
        /// The instance's state.
        state: &'static str,
        seconds: u64,
        console: ConsoleTail,
    },
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.failure, self.instance) {
            (Failure::Home(error), _) => return error.fmt(f),
            (Failure::Passt(error), _) => return error.fmt(f),
            (Failure::File { path, action, source }, _) => {
                return write!(f, "cannot {action} {}: {source}", path.display());
            }
            (Failure::NotReady { state, seconds, console }, Some(id)) => {
                return write!(
                    f,
                    "{id} is {state}, but its agent was not ready after {seconds} s{console}\n\
                     The guest may still be booting. Watch its console with `wisp console {id} --follow`"
                );
            }
            (_, Some(id)) => write!(f, "{id}: ")?,
            (_, None) => {}
        }
        match &self.failure {
            Failure::Spawn(error) => write!(f, "cannot start the VMM: {error}"),
            Failure::Refused(why) | Failure::NotDone(why) => f.write_str(why),
            Failure::Control(error) => error.fmt(f),
            Failure::Guest(error) => error.fmt(f),
            Failure::EndedEarly { end: Some(end), console } => write!(f, "{end} before its agent was ready{console}"),
            Failure::EndedEarly { end: None, console } => {
                write!(f, "the VMM process ended unexpectedly before its agent was ready{console}")
            }
            Failure::NotReady { seconds, console, .. } => write!(
                f,
                "the guest is running, but its agent was not ready after {seconds} s{console}\n\
                 Wait longer with --timeout, or watch its console with --console"
            ),
            Failure::Home(_) | Failure::Passt(_) | Failure::File { .. } => Ok(()),
        }
    }
}

impl std::error::Error for MachineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.failure {
            Failure::Home(error) => error.source(),
            Failure::Passt(error) => error.source(),
            Failure::File { source, .. } | Failure::Spawn(source) => Some(source),
            Failure::Control(source) => Some(source),
            Failure::Guest(source) => Some(source),
            Failure::Refused(_) | Failure::NotDone(_) | Failure::EndedEarly { .. } | Failure::NotReady { .. } => None,
        }
    }
}

impl From<HomeError> for MachineError {
    fn from(error: HomeError) -> MachineError {
        MachineError { instance: None, failure: Failure::Home(error) }
    }
}

impl MachineError {
    /// Returns a closure that converts an I/O error on `path`. `action` is a verb, such as `read`.
    pub fn file(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> MachineError {
        let path = path.into();
        move |source| MachineError { instance: None, failure: Failure::File { path, action, source } }
    }

    /// Returns a hint for an error whose message does not say what to do.
    pub fn hint(&self) -> Option<String> {
        match (&self.failure, self.instance) {
            (Failure::Control(source), Some(instance)) if source.is_timeout() => {
                Some(format!("The VMM is running but does not respond. Kill it with `wisp stop --force {instance}`."))
            }
            _ => None,
        }
    }

    /// Returns true if the error can mean that the machine's VMM or guest has ended.
    pub fn is_lost_vmm(&self) -> bool {
        match &self.failure {
            Failure::Control(source) => source.is_gone(),
            Failure::Guest(source) => matches!(
                source,
                guest::Error::GuestGone | guest::Error::NotListening { .. } | guest::Error::Connect { .. }
            ),
            _ => false,
        }
    }
}
