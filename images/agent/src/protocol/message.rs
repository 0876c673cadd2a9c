//! The messages. Their order within an enum is part of the protocol's version.

use std::ffi::OsString;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Bytes;
use crate::tree::{Entry, HOLES_FEATURE, Holes, Summary};

/// The first frame from either end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender's [`VERSION`](super::VERSION).
    pub version: u32,
}

/// A message from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest<'a> {
    /// A liveness check. Answered by [`ToHost::Pong`].
    Ping,
    /// Run a command. Answered by its output and [`ToHost::Exited`], or by [`ToHost::ExecFailed`].
    Exec(ExecRequest),
    /// Bytes for the command's standard input, within the window.
    #[serde(borrow)]
    Stdin(Bytes<'a>),
    /// The end of standard input.
    StdinEnd,
    /// The new size of the host's terminal.
    Resize(WindowSize),
    /// Send this signal to the command's process group.
    Signal(i32),
    /// The host's reader of this output is gone: close it, so that the command gets SIGPIPE when it writes.
    OutputClosed(OutputStream),
    /// Write the tree that follows to this path. Answered by [`ToHost::Copied`] or [`ToHost::Failed`].
    Write {
        /// The destination. An existing directory takes the tree inside it, under the tree's own name.
        destination: OsString,
    },
    /// Send the file or directory at this path. Answered by [`ToHost::Tree`] frames or [`ToHost::Failed`].
    Read {
        /// The path to send.
        source: OsString,
    },
    /// One entry of the tree to write.
    Tree(Entry<'a>),
    /// Write all file systems to their disks. Answered by [`ToHost::Done`].
    Sync,
    /// Set the hostname. Answered by [`ToHost::Done`] or [`ToHost::Failed`].
    SetHostname(String),
    /// Shut the guest down in an orderly way. Answered by [`ToHost::Done`] before the shutdown starts.
    Shutdown {
        /// Restart the guest afterwards.
        reboot: bool,
    },
    /// Query the state of the user data. Answered by [`ToHost::UserData`].
    UserData,
    /// Like [`ToGuest::Read`], with [`Entry::Hole`] for holes. Only for agents whose version has [`HOLES_FEATURE`].
    ReadSparse {
        /// The path to send.
        source: OsString,
    },
}

/// A message from the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost<'a> {
    /// The answer to a ping.
    Pong(Facts),
    /// The command could not be started.
    ExecFailed {
        /// The kind of failure, which determines the exit code.
        cause: ExecFailure,
        /// A message for people.
        message: String,
    },
    /// Bytes of the command's output.
    Output(
        /// The output stream.
        OutputStream,
        /// The bytes.
        #[serde(borrow)]
        Bytes<'a>,
    ),
    /// The command took this many bytes of standard input: the host may send as many more.
    StdinCredit(u32),
    /// The command ended, and all its output has been sent.
    Exited(ExitStatus),
    /// One entry of the requested tree.
    Tree(Entry<'a>),
    /// The tree has been written.
    Copied(Summary),
    /// The request succeeded.
    Done,
    /// The request failed. The message names the file or value at fault.
    Failed(String),
    /// The state of the user data.
    UserData(UserDataStatus),
}

/// The state of the user data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDataStatus {
    /// The state.
    pub state: UserDataState,
    /// The script's exit code, as a shell reports it, once the script has ended.
    pub exit: Option<i32>,
}

/// States of user data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserDataState {
    /// There is no user data.
    #[default]
    None,
    /// The user data is not a script: it was only stored.
    Stored,
    /// The script is running.
    Running,
    /// The script succeeded.
    Finished,
    /// The script failed, could not be run, or was interrupted by the end of the guest.
    Failed,
}

impl UserDataState {
    /// Returns the state's name.
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

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program and its arguments. A program without a slash is searched for in `PATH`.
    pub argv: Vec<OsString>,
    /// Variables that extend or replace the agent's own (`PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`).
    pub env: Vec<(OsString, OsString)>,
    /// The working directory. The default is the home directory if a user is named, otherwise `/`.
    pub cwd: Option<OsString>,
    /// Run the command on a new terminal, where standard output and error are one stream.
    pub terminal: Option<TerminalRequest>,
    /// The guest user (a name or a number) to run the command as. The default is the agent's user.
    pub user: Option<String>,
}

/// The terminal for a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalRequest {
    /// The terminal's size.
    pub size: WindowSize,
    /// The value of `TERM`.
    pub term: OsString,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// The number of lines.
    pub rows: u16,
    /// The number of characters per line.
    pub columns: u16,
}

/// One of a command's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The reason that a command could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecFailure {
    /// The program does not exist.
    NotFound,
    /// The program exists but cannot be executed.
    NotExecutable,
    /// Any other reason, such as an unknown user, a missing directory or a lack of memory.
    Other,
}

/// The exit status of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// The command exited with this code.
    Exited(i32),
    /// This signal ended the command.
    Signaled(i32),
}

impl ExitStatus {
    /// Returns the exit code as a shell does: the command's own, or 128 plus the signal.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}

/// The agent's report about its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The guest's hostname.
    pub hostname: String,
    /// The time since the guest's kernel started.
    pub uptime: Duration,
    /// The agent's package version.
    pub agent_version: String,
    /// True if the agent is the guest's first process.
    pub is_init: bool,
}

impl Facts {
    /// Returns the way to send holes to and from this agent.
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
    fn messages_of_copies_keep_their_numbers() {
        assert_eq!(bytes(&ToGuest::Write { destination: "d".into() }), [7, 0, 1, b'd']);
        assert_eq!(bytes(&ToGuest::Read { source: "s".into() }), [8, 0, 1, b's']);
        assert_eq!(bytes(&ToGuest::Tree(Entry::Data(Bytes(b"x")))), [9, 3, 1, b'x']);
        assert_eq!(bytes(&ToGuest::Tree(Entry::End)), [9, 7]);
        assert_eq!(bytes(&ToGuest::Tree(Entry::Hole(1))), [9, 8, 1]);
        assert_eq!(bytes(&ToGuest::UserData), [13]);
        assert_eq!(bytes(&ToGuest::ReadSparse { source: "s".into() }), [14, 0, 1, b's']);
        assert_eq!(bytes(&ToHost::Tree(Entry::End)), [5, 7]);
    }
}
