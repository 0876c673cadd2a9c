//! Messages. An enum's variants are numbered on the wire in this order, so a new one goes to the end.

use std::ffi::OsString;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Bytes;
use crate::tree::{HOLES_FEATURE, Holes, Summary, TreeEntry};

/// The first frame that each end sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest<'a> {
    /// Answered by [`ToHost::Pong`].
    Ping,
    /// Answered by [`ToHost::Output`] and [`ToHost::Exited`], or by [`ToHost::ExecFailed`].
    Exec(ExecRequest),
    /// Standard input of the command, within the window.
    #[serde(borrow)]
    Stdin(Bytes<'a>),
    StdinEnd,
    Resize(WindowSize),
    /// Signal for the command's process group.
    Signal(i32),
    /// Nothing on the host reads this output anymore. Close it, so that the command gets SIGPIPE when it writes.
    OutputClosed(OutputStream),
    /// Answered by [`ToHost::Copied`] or [`ToHost::Failed`]. The [`ToGuest::Tree`] frames follow.
    Write {
        /// If this is a directory, the tree is created inside it under its own name.
        destination: OsString,
    },
    /// Answered by [`ToHost::Tree`] frames or [`ToHost::Failed`].
    Read {
        source: OsString,
    },
    Tree(TreeEntry<'a>),
    /// Write back all file systems. Answered by [`ToHost::Done`].
    Sync,
    /// Answered by [`ToHost::Done`] or [`ToHost::Failed`].
    SetHostname(String),
    /// Orderly shutdown. Answered by [`ToHost::Done`] before the shutdown starts.
    Shutdown {
        reboot: bool,
    },
    /// Answered by [`ToHost::UserData`].
    UserData,
    /// Like [`ToGuest::Read`], with [`TreeEntry::Hole`] for holes. Only for agents with [`HOLES_FEATURE`].
    ReadSparse {
        source: OsString,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost<'a> {
    Pong(Facts),
    ExecFailed {
        /// Determines the exit code.
        cause: ExecFailure,
        message: String,
    },
    Output(OutputStream, #[serde(borrow)] Bytes<'a>),
    /// Bytes of standard input that the command consumed: the host may send as many more.
    StdinCredit(u32),
    /// The command ended, and all its output has been sent.
    Exited(ExitStatus),
    Tree(TreeEntry<'a>),
    Copied(Summary),
    Done,
    /// Error message that names the invalid file or value.
    Failed(String),
    UserData(UserDataStatus),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDataStatus {
    pub state: UserDataState,
    /// Exit code of the script, as a shell reports it. `None` until the script exits.
    pub exit: Option<i32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserDataState {
    #[default]
    None,
    /// The user data is not a script and was only stored.
    Stored,
    Running,
    Finished,
    /// The script failed, could not be run, or was interrupted when the guest stopped.
    Failed,
}

impl UserDataState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Stored => "stored",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments. A program without a slash is searched for in `PATH`.
    pub argv: Vec<OsString>,
    /// Variables that extend or override those of the user (`PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`).
    pub env: Vec<(OsString, OsString)>,
    /// Working directory. Defaults to the home directory if a user is named and it exists, otherwise to `/`.
    pub cwd: Option<OsString>,
    /// Run the command on a new terminal, with standard output and error as one stream.
    pub terminal: Option<TerminalRequest>,
    /// Guest user, by name or number. Defaults to the agent's user.
    pub user: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalRequest {
    pub size: WindowSize,
    pub term: OsString,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub rows: u16,
    pub columns: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecFailure {
    NotFound,
    NotExecutable,
    /// Any other cause, such as an unknown user, a missing directory or a lack of memory.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Exited(i32),
    Signaled(i32),
}

impl ExitStatus {
    /// Returns the exit code that a shell reports: the command's own, or 128 plus the signal.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub hostname: String,
    /// Time since the guest's kernel started.
    pub uptime: Duration,
    pub agent_version: String,
    /// True if the agent is PID 1.
    pub is_init: bool,
}

impl Facts {
    /// Returns the encoding of holes that this agent supports.
    #[must_use]
    pub fn holes(&self) -> Holes {
        if self.agent_version.contains(HOLES_FEATURE) { Holes::Keep } else { Holes::Fill }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::encode;

    fn bytes<M: Serialize>(message: &M) -> Vec<u8> {
        let mut frame = Vec::new();
        encode(message, &mut frame).expect("short");
        frame.split_off(4)
    }

    /// Agents of earlier releases identify the messages by these numbers.
    #[test]
    fn copy_messages_keep_their_numbers() {
        assert_eq!(bytes(&ToGuest::Write { destination: "d".into() }), [7, 0, 1, b'd']);
        assert_eq!(bytes(&ToGuest::Read { source: "s".into() }), [8, 0, 1, b's']);
        assert_eq!(bytes(&ToGuest::Tree(TreeEntry::Data(Bytes(b"x")))), [9, 3, 1, b'x']);
        assert_eq!(bytes(&ToGuest::Tree(TreeEntry::End)), [9, 7]);
        assert_eq!(bytes(&ToGuest::Tree(TreeEntry::Hole(1))), [9, 8, 1]);
        assert_eq!(bytes(&ToGuest::UserData), [13]);
        assert_eq!(bytes(&ToGuest::ReadSparse { source: "s".into() }), [14, 0, 1, b's']);
        assert_eq!(bytes(&ToHost::Tree(TreeEntry::End)), [5, 7]);
    }
}
