//! The other end of a control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{Message, Request};

/// A connection to a machine.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

/// Why a machine did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed, timed out, or ended: the machine's process is gone, or hangs.
    #[error("the machine's control socket failed: {0}")]
    Io(#[from] io::Error),
    /// The machine ended without a word.
    #[error("the machine's process ended without saying why; its vmm.log may tell")]
    Gone,
    /// The machine said what this version does not understand.
    #[error("the machine said something that this version of wisp does not understand: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl ControlClient {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<ControlClient, ClientError> {
        ControlClient::new(UnixStream::connect(path)?)
    }

    /// Uses a connection that exists.
    pub fn new(stream: UnixStream) -> Result<ControlClient, ClientError> {
        let reader = BufReader::new(stream.try_clone()?);
        Ok(ControlClient { stream, reader })
    }

    /// Sends a request.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        Ok(self.stream.write_all(line.as_bytes())?)
    }

    /// The next message; waits for `timeout` at most, or for ever.
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<Message, ClientError> {
        self.stream.set_read_timeout(timeout)?;
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err(ClientError::Gone),
            Ok(_) => Ok(serde_json::from_str(&line)?),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(ClientError::Gone),
            Err(error) => Err(error.into()),
        }
    }
}
