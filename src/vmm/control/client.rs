//! The other end of a control socket.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{FILES_AT_A_TIME, Message, Request};
use crate::unix_socket;
use crate::vmm::passed::PassedPath;

/// A connection to a machine.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    /// Bytes of messages that were not returned yet.
    received: Vec<u8>,
}

/// The longest message, in bytes: a status of a machine with every device has a few thousand.
const MESSAGE_LIMIT: usize = 1 << 20;

/// Why a machine did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed, timed out, or ended: the machine's process is gone, or hangs.
    #[error("the machine's control socket failed: {0}")]
    Io(#[from] io::Error),
    /// The machine ended without a word.
    #[error("the machine's process ended without saying why; its vmm.log may tell")]
    Gone,
    /// The machine's process does not end its message.
    #[error("the machine's process sent a message of more than {MESSAGE_LIMIT} bytes; `wisp stop --force` ends it")]
    TooLong,
    /// The machine said what this version does not understand.
    #[error("the machine said something that this version of wisp does not understand: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl ClientError {
    /// Returns whether no VMM listens on the socket: it has ended, or does not listen yet.
    pub fn is_absent(&self) -> bool {
        matches!(self, ClientError::Io(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }

    /// Returns whether the VMM has ended: the connection was closed, or nothing listens any more.
    pub fn is_gone(&self) -> bool {
        let is_closed =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        self.is_absent()
            || matches!(self, ClientError::Gone)
            || matches!(self, ClientError::Io(error) if is_closed(error))
    }

    /// Whether the machine's process is there, and did not answer in time.
    pub fn is_timeout(&self) -> bool {
        matches!(self, ClientError::Io(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}

impl ControlClient {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<ControlClient, ClientError> {
        ControlClient::new(unix_socket::connect(path)?)
    }

    /// Uses a connection that exists.
    pub fn new(stream: UnixStream) -> Result<ControlClient, ClientError> {
        Ok(ControlClient { stream, received: Vec::new() })
    }

    /// Sends a request, and the files that it is about. One that cannot be opened is the machine's to complain of.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let files = request.files();
        for paths in files.chunks(FILES_AT_A_TIME) {
            let open = paths.iter().filter_map(|path| Some((path.clone(), path.open().ok()?)));
            let (files, open): (Vec<PassedPath>, Vec<File>) = open.unzip();
            self.send_line(&Request::Files { files }, &open)?;
        }
        self.send_line(request, &[])
    }

    /// Sends a line, with files at its first byte.
    fn send_line(&mut self, request: &Request, files: &[File]) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        if files.is_empty() {
            return Ok(self.stream.write_all(&line)?);
        }
        let files: Vec<BorrowedFd> = files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_AT_A_TIME))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(&files));
        assert!(fits, "there is room for as many as are sent at a time");
        let pieces = [IoSlice::new(&line)];
        let sent = loop {
            match sendmsg(&self.stream, &pieces, &mut control, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => break sent.map_err(io::Error::from)?,
            }
        };
        Ok(self.stream.write_all(&line[sent..])?)
    }

    /// The next message; waits for `timeout` at most, or for ever.
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<Message, ClientError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut searched = 0;
        loop {
            if let Some(end) = self.received[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=searched + end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            searched = self.received.len();
            if searched > MESSAGE_LIMIT {
                return Err(ClientError::TooLong);
            }
            // Zero would mean for ever. What has come of a message stays for the next call.
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            self.stream.set_read_timeout(left.map(|left| left.max(Duration::from_millis(1))))?;
            let mut bytes = [0; 8192];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ClientError::Gone),
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ClientError::Gone),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (ControlClient, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (ControlClient::new(near).unwrap(), far)
    }

    #[test]
    fn message_without_end_is_refused_at_its_limit() {
        let (mut client, mut far) = pair();
        let writer = std::thread::spawn(move || {
            let chunk = vec![b' '; 64 << 10];
            // It is dropped, with all that it would still say.
            while far.write_all(&chunk).is_ok() {}
        });
        assert!(matches!(client.receive(Some(Duration::from_secs(60))), Err(ClientError::TooLong)));
        assert!(client.received.len() <= MESSAGE_LIMIT + 8192);
        drop(client);
        writer.join().unwrap();
    }

    #[test]
    fn message_in_pieces_survives_a_timeout_and_two_at_once_are_kept_apart() {
        let (mut client, mut far) = pair();
        far.write_all(b"{\"message\":").unwrap();
        assert!(client.receive(Some(Duration::from_millis(1))).is_err_and(|error| error.is_timeout()));
        far.write_all(b"\"done\"}\n{\"message\":\"ready\"}\n{\"message\"").unwrap();
        assert_eq!(client.receive(None).unwrap(), Message::Done);
        assert_eq!(client.receive(None).unwrap(), Message::Ready);
        drop(far);
        assert!(matches!(client.receive(None), Err(ClientError::Gone)));
    }
}
