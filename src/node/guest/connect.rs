//! Connects to a guest's agent through the VMM's socket.
//!
//! The VMM receives `CONNECT <port>\n`, answers `OK <host port>\n` when the guest has accepted the connection, and
//! forwards bytes in both directions. If the guest refuses, the VMM closes the connection.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use wisp_agent::AGENT_PORT;
use wisp_agent::protocol::{AgentConnection, ToGuest};

use super::Error;
use machine::unix_socket;

/// Longer than any valid answer, such as `OK 4294967295\n`.
const LONGEST_ANSWER: usize = 32;

/// A connection to a guest's agent, for one operation.
#[derive(Debug)]
pub struct Agent {
    pub(super) connection: AgentConnection,
    /// Timeout for the agent's greeting.
    pub(super) patience: Duration,
    /// Timeout for each wait for the guest during the operation.
    pub(super) silence: Option<Duration>,
}

impl Agent {
    /// Connects to a guest's agent through the VMM's `socket` within `timeout`, which applies again to the agent's
    /// greeting.
    ///
    /// Fails with [`Error::NotListening`] if no agent is running in the guest (yet), or [`Error::TimedOut`].
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Self, Error> {
        Self::connect_to_port(socket, AGENT_PORT, timeout)
    }

    /// Like [`connect`](Self::connect), but for a different vsock port.
    pub fn connect_to_port(socket: &Path, port: u32, timeout: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + timeout;
        let mut stream =
            unix_socket::connect(socket).map_err(|source| Error::Connect { socket: socket.to_owned(), source })?;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => Error::TimedOut(timeout),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Error::NotListening { port }
            }
            _ => Error::Connect { socket: socket.to_owned(), source: error },
        };
        request_port(&mut stream, port, deadline).map_err(failed)?.map_err(|answer| Error::BadAnswer { answer })?;
        Ok(Self { connection: AgentConnection::new(stream.into()), patience: timeout, silence: None })
    }

    /// Exchanges greetings and sends the request.
    pub(super) fn begin(&mut self, request: &ToGuest<'_>) -> Result<(), Error> {
        self.limit(Some(self.patience))?;
        self.connection.begin(request).map_err(Error::within(self.patience))?;
        self.limit(self.silence)
    }

    /// Sets the time after which an operation fails with [`Error::TimedOut`] if the guest sends nothing. By default, a
    /// command may be silent as long as it runs.
    #[must_use]
    pub fn with_silence_limit(self, limit: Duration) -> Self {
        Self { silence: Some(limit), ..self }
    }

    /// Sets the socket's timeouts. Raises zero to 1 ms, because zero would mean no timeout.
    pub(super) fn limit(&self, timeout: Option<Duration>) -> Result<(), Error> {
        let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(self.connection.reader.as_fd(), direction, timeout)
                .map_err(Error::local("set a timeout"))?;
        }
        Ok(())
    }
}

/// Asks the VMM to connect to a vsock port of the guest. Returns `Ok(Err(answer))` if the VMM's answer is invalid.
fn request_port(stream: &mut UnixStream, port: u32, deadline: Instant) -> io::Result<Result<(), String>> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = Vec::new();
    // Read single bytes: the bytes after the line belong to the agent.
    while answer.last() != Some(&b'\n') && answer.len() < LONGEST_ANSWER {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    let answer = String::from_utf8_lossy(&answer);
    let port = answer.strip_prefix("OK ").and_then(|rest| rest.strip_suffix('\n'));
    Ok(match port.map(str::parse::<u32>) {
        Some(Ok(_)) => Ok(()),
        _ => Err(answer.into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Accepts one connection and sends `answer`.
    fn fake_vmm(directory: &Path, answer: &'static [u8]) -> std::path::PathBuf {
        let path = directory.join("vsock.sock");
        let listener = UnixListener::bind(&path).expect("bound");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            let mut line = [0; 13];
            stream.read_exact(&mut line).expect("a line");
            assert_eq!(&line, b"CONNECT 1024\n");
            stream.write_all(answer).expect("answered");
        });
        path
    }

    fn connect(answer: &'static [u8]) -> Error {
        let home = tempfile::tempdir().expect("a directory");
        let socket = fake_vmm(home.path(), answer);
        let timeout = Duration::from_secs(20);
        Agent::connect(&socket, timeout).and_then(|agent| agent.ping(timeout)).expect_err("no agent")
    }

    #[test]
    fn connection_closed_without_answer_is_not_listening() {
        assert!(matches!(connect(b""), Error::NotListening { port: 1024 }));
    }

    #[test]
    fn unexpected_answer_is_bad_answer() {
        assert!(matches!(connect(b"HELLO\n"), Error::BadAnswer { .. }));
    }

    #[test]
    fn guest_that_closes_after_answer_is_gone() {
        assert!(matches!(connect(b"OK 1073741824\n"), Error::GuestGone));
    }

    #[test]
    fn connect_through_symlink_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let _listener = UnixListener::bind(home.path().join("other")).expect("bound");
        std::os::unix::fs::symlink(home.path().join("other"), home.path().join("vsock.sock")).expect("a link");
        let error = Agent::connect(&home.path().join("vsock.sock"), Duration::from_secs(1)).expect_err("a link");
        assert!(matches!(&error, Error::Connect { source, .. } if source.kind() == io::ErrorKind::InvalidData));
    }

    #[test]
    fn missing_socket_is_an_error_with_its_path() {
        let error = Agent::connect(Path::new("/no/such/vsock.sock"), Duration::from_secs(1)).expect_err("none");
        assert!(error.to_string().contains("/no/such/vsock.sock"), "{error}");
    }
}
