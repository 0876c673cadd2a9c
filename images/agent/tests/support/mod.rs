//! The host's end of a connection to an agent in this process. Every wait has a deadline.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use wisp_agent::agent::Agent;
use wisp_agent::protocol::{
    AgentConnection, Bytes, ExecFailure, ExecRequest, ExitStatus, OutputStream, ProtocolError, ToGuest, ToHost,
};

/// Timeout for each wait, far longer than any operation here takes.
pub const DEADLINE: Duration = Duration::from_secs(60);

static AGENT: LazyLock<Agent> = LazyLock::new(|| Agent::new(false));

/// Creates a socket to an agent, before any frame, and the thread that serves it.
pub fn raw_connection() -> (UnixStream, JoinHandle<Result<(), ProtocolError>>) {
    let (host, guest) = UnixStream::pair().expect("a socket pair");
    set_socket_timeout(host.as_fd(), Timeout::Recv, Some(DEADLINE)).expect("a deadline");
    set_socket_timeout(host.as_fd(), Timeout::Send, Some(DEADLINE)).expect("a deadline");
    (host, thread::spawn(move || AGENT.serve(guest.into())))
}

pub struct Host {
    pub connection: AgentConnection,
    server: JoinHandle<Result<(), ProtocolError>>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub end: End,
}

#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Status(ExitStatus),
    NotStarted(ExecFailure, String),
}

impl Host {
    pub fn connect() -> Self {
        let (socket, server) = raw_connection();
        let mut connection = AgentConnection::new(socket.into());
        connection.greet().expect("hello");
        Self { connection, server }
    }

    pub fn send(&mut self, message: &ToGuest<'_>) {
        self.connection.writer.send(message).expect("sent");
    }

    pub fn receive(&mut self) -> ToHost<'_> {
        self.connection.reader.receive().expect("an answer")
    }

    pub fn exec(request: ExecRequest) -> Self {
        let mut host = Self::connect();
        host.send(&ToGuest::Exec(request));
        host
    }

    pub fn shell(script: &str) -> Self {
        Self::exec(shell(script))
    }

    pub fn stdin(&mut self, bytes: &[u8]) {
        self.send(&ToGuest::Stdin(Bytes(bytes)));
    }

    /// Reads output until it contains `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.receive() {
                ToHost::Output(_, bytes) => seen += &String::from_utf8_lossy(bytes.0),
                other => panic!("{other:?} before {text:?}, after {seen:?}"),
            }
        }
        seen
    }

    pub fn finish(&mut self) -> Outcome {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let end = loop {
            match self.receive() {
                ToHost::Output(OutputStream::Stdout, bytes) => stdout.extend_from_slice(bytes.0),
                ToHost::Output(OutputStream::Stderr, bytes) => stderr.extend_from_slice(bytes.0),
                ToHost::StdinCredit(_) => {}
                ToHost::Exited(status) => break End::Status(status),
                ToHost::ExecFailed { cause, message } => break End::NotStarted(cause, message),
                other => panic!("{other:?} while a command is running"),
            }
        };
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Outcome { stdout: text(stdout), stderr: text(stderr), end }
    }

    /// Closes the connection and waits until the agent has finished with it.
    pub fn leave(self) -> Result<(), ProtocolError> {
        drop(self.connection);
        self.server.join().expect("the agent does not panic")
    }
}

pub fn shell(script: &str) -> ExecRequest {
    command(&["sh", "-c", script])
}

pub fn command(argv: &[&str]) -> ExecRequest {
    ExecRequest { argv: argv.iter().map(OsString::from).collect(), ..Default::default() }
}

pub fn exited(code: i32) -> End {
    End::Status(ExitStatus::Exited(code))
}
