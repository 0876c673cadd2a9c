//! Errors between the host and an agent.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use wisp_agent::protocol::{ExecFailure, ProtocolError, ToHost};
use wisp_agent::tree::TreeError;

#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot connect to the guest's socket {}: {source}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("nothing in the guest is listening on vsock port {port}: the guest is still booting or has no agent")]
    NotListening { port: u32 },
    #[error("the guest's socket answered {answer:?} instead of OK and a port")]
    BadAnswer { answer: String },
    #[error("the guest's agent did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The connection failed, or the guest violated the protocol.
    #[error("the guest's agent: {0}")]
    Protocol(ProtocolError),
    /// The connection ended before the operation: the guest was stopped, or its agent exited.
    #[error("the guest closed the connection: it was stopped, or its agent exited")]
    GuestGone,
    #[error("the guest: {0}")]
    Guest(String),
    #[error("the guest: {0}")]
    CommandNotFound(String),
    #[error("the guest: {0}")]
    NotExecutable(String),
    /// A copy failed because of a file on the host or the received file stream.
    #[error(transparent)]
    Copy(TreeError),
    #[error("cannot {action}: {source}")]
    Local { action: &'static str, source: io::Error },
    /// A signal to this process ended a terminal session, and the guest's agent sends SIGHUP to the command.
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
}

impl Error {
    /// Returns the error for a message other than a running command's output or exit status.
    pub(super) fn instead_of_output(message: ToHost<'_>) -> Error {
        match message {
            ToHost::ExecFailed { cause, message } => match cause {
                ExecFailure::NotFound => Error::CommandNotFound(message),
                ExecFailure::NotExecutable => Error::NotExecutable(message),
                ExecFailure::Other => Error::Guest(message),
            },
            ToHost::Failed(message) => Error::Guest(message),
            _ => ProtocolError::Unexpected("it does not belong to a running command").into(),
        }
    }
}

impl Error {
    /// Returns the exit code that a shell would: 127 if the command was not found, 126 if it is not executable, 128
    /// plus the signal's number if it was interrupted, otherwise 1.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::CommandNotFound(_) => 127,
            Self::NotExecutable(_) => 126,
            Self::Interrupted(signal) => 128 + signal,
            _ => 1,
        }
    }

    /// Converts errors of a connection with a timeout: EAGAIN becomes [`Error::TimedOut`].
    pub(super) fn within(timeout: Duration) -> impl Fn(ProtocolError) -> Self {
        move |error| match error {
            // A socket with a timeout reports EAGAIN (socket(7)).
            ProtocolError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => Self::TimedOut(timeout),
            other => other.into(),
        }
    }

    /// Treats a socket timeout as an exceeded silence limit.
    pub(super) fn of_silence(self, limit: Option<Duration>) -> Self {
        match (self, limit) {
            (Self::Protocol(ProtocolError::Io(error)), Some(limit)) if error.kind() == io::ErrorKind::WouldBlock => {
                Self::TimedOut(limit)
            }
            (error, _) => error,
        }
    }

    pub(super) fn local(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Local { action, source: errno.into() }
    }
}

impl From<ProtocolError> for Error {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::Closed | ProtocolError::Truncated => Self::GuestGone,
            ProtocolError::Io(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) =>
            {
                Self::GuestGone
            }
            other => Self::Protocol(other),
        }
    }
}

impl From<TreeError> for Error {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Stream(error) => error.into(),
            TreeError::OtherEnd(message) => Self::Guest(message),
            other => Self::Copy(other),
        }
    }
}
