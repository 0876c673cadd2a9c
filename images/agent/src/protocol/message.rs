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

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest<'a> {
    /// Are you there? Answered by [`ToHost::Pong`].
    Ping,
    /// Run a command. Answered by its output and [`ToHost::Exited`], or by [`ToHost::ExecFailed`].
    Exec(ExecRequest),
    /// Bytes for the command's standard input, within the window.
    #[serde(borrow)]
    Stdin(Bytes<'a>),
    /// No more standard input.
    StdinEnd,
    /// The host's terminal has a new size.
    Resize(WindowSize),
    /// Send this signal to the command's process group.
    Signal(i32),
    /// Nobody reads this output any more: let the command meet SIGPIPE when it writes to it.
    OutputClosed(OutputStream),
    /// Write the tree that follows to this path. Answered by [`ToHost::Copied`] or [`ToHost::Failed`].
    Write {
        /// Where; an existing directory takes the tree inside it, under its own name.
        destination: OsString,
    },
    /// Send the file or directory at this path. Answered by [`ToHost::Tree`] frames or [`ToHost::Failed`].
    Read {
        /// What to send.
        source: OsString,
    },
    /// One entry of the tree being written.
    Tree(Entry<'a>),
    /// Write all file systems to their disks. Answered by [`ToHost::Done`].
    Sync,
    /// Set the host name. Answered by [`ToHost::Done`] or [`ToHost::Failed`].
    SetHostname(String),
    /// Stop the guest in an orderly way. Answered by [`ToHost::Done`] when it begins.
    Shutdown {
        /// Start it again.
        reboot: bool,
    },
    /// How far is the user data? Answered by [`ToHost::UserData`].
    UserData,
    /// As [`ToGuest::Read`], with [`Entry::Hole`] for holes. Only for agents whose version has [`HOLES_FEATURE`].
    ReadSparse {
        /// What to send.
        source: OsString,
    },
}

/// What the guest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost<'a> {
    /// The answer to a ping.
    Pong(Facts),
    /// The command could not be started.
    ExecFailed {
        /// What kind of failure, for the exit code.
        cause: ExecFailure,
        /// A sentence for people.
        message: String,
    },
    /// Bytes of the command's output.
    Output(
        /// Which of its outputs.
        OutputStream,
        /// The bytes.
        #[serde(borrow)]
        Bytes<'a>,
    ),
    /// The command took this many bytes of standard input: as many more may be sent.
    StdinCredit(u32),
    /// The command ended, and all it wrote has been sent.
    Exited(ExitStatus),
    /// One entry of the tree asked for.
    Tree(Entry<'a>),
    /// The tree is written.
    Copied(Summary),
    /// Done.
    Done,
    /// The request failed: a sentence that names what it failed on.
    Failed(String),
    /// How far the user data is.
    UserData(UserDataStatus),
}

/// How far the user data is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDataStatus {
    /// Its state.
    pub state: UserDataState,
    /// Its exit code, as a shell would give it, once it has one.
    pub exit: Option<i32>,
}

/// The states of user data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserDataState {
    /// There is none.
    #[default]
    None,
    /// It is no script: it was only stored.
    Stored,
    /// The script runs.
    Running,
    /// The script ended with success.
    Finished,
    /// The script ended otherwise, could not be run, or did not end before the machine did.
    Failed,
}

impl UserDataState {
    /// Its name.
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
    /// The program and its arguments. A program without a slash is looked for in `PATH`.
    pub argv: Vec<OsString>,
    /// Variables set on top of the agent's own (`PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`).
    pub env: Vec<(OsString, OsString)>,
    /// Where it starts; else the user's home where a user is named, else `/`.
    pub cwd: Option<OsString>,
    /// Run it on a terminal of its own: then standard output and error are one stream.
    pub terminal: Option<TerminalRequest>,
    /// Run it as this user of the guest (a name, or a number); else as the agent's.
    pub user: Option<String>,
}

/// The terminal a command is to run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalRequest {
    /// Its size.
    pub size: WindowSize,
    /// The value of `TERM`.
    pub term: OsString,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
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

/// Why a command could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecFailure {
    /// There is no such program.
    NotFound,
    /// There is one, but it cannot be executed.
    NotExecutable,
    /// Anything else: no such user, no such directory, no memory ...
    Other,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl ExitStatus {
    /// The code a shell would give: the command's own, or 128 and the signal.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}

/// What an agent tells about its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The guest's host name.
    pub hostname: String,
    /// How long the guest's kernel runs.
    pub uptime: Duration,
    /// The agent's package version.
    pub agent_version: String,
    /// Whether the agent is the guest's first process.
    pub is_init: bool,
}

impl Facts {
    /// Whether files can be copied to and from this agent with their holes.
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

    /// Agents of earlier releases know the messages by these numbers.
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
