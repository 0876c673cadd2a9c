//! The client side of a control socket.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{ControlRequest, FILES_AT_A_TIME, Message};
use crate::passed_files::PassedFile;
use crate::unix_socket;

#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    /// Received bytes of messages that have not been returned yet.
    received: Vec<u8>,
}

/// Maximum length of a message in bytes. The status of a machine with all devices takes a few thousand.
const MESSAGE_LIMIT: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the VMM's control socket failed: {0}")]
    Io(#[from] io::Error),
    #[error("the VMM process exited unexpectedly; see its vmm.log")]
    Gone,
    #[error("the VMM process sent a message longer than {MESSAGE_LIMIT} bytes; stop it with `wisp stop --force`")]
    TooLong,
    #[error("the VMM process sent a message that this version of wisp does not understand: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl ClientError {
    /// Returns true if no VMM is listening on the socket: the VMM has ended, or is not listening yet.
    pub fn is_absent(&self) -> bool {
        matches!(self, ClientError::Io(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }

    /// Returns true if the connection was closed, or if no VMM is listening on the socket.
    pub fn is_gone(&self) -> bool {
        let is_closed =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        self.is_absent()
            || matches!(self, ClientError::Gone)
            || matches!(self, ClientError::Io(error) if is_closed(error))
    }

    pub fn is_timeout(&self) -> bool {
        matches!(self, ClientError::Io(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}

impl ControlClient {
    pub fn connect(path: &Path) -> Result<ControlClient, ClientError> {
        ControlClient::new(unix_socket::connect(path)?)
    }

    pub fn new(stream: UnixStream) -> Result<ControlClient, ClientError> {
        Ok(ControlClient { stream, received: Vec::new() })
    }

    /// Sends a request with its files. A file that cannot be opened is skipped, and the VMM reports it.
    pub fn send(&mut self, request: &ControlRequest) -> Result<(), ClientError> {
        let files = request.files();
        for paths in files.chunks(FILES_AT_A_TIME) {
            let open = paths.iter().filter_map(|path| Some((path.clone(), path.open().ok()?)));
            let (files, open): (Vec<PassedFile>, Vec<File>) = open.unzip();
            self.send_line(&ControlRequest::Files { files }, &open)?;
        }
        self.send_line(request, &[])
    }

    /// Sends a line, with the files attached to its first byte.
    fn send_line(&mut self, request: &ControlRequest, files: &[File]) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        if files.is_empty() {
            return Ok(self.stream.write_all(&line)?);
        }
        let files: Vec<BorrowedFd> = files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_AT_A_TIME))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(&files));
        assert!(fits, "the buffer has space for FILES_AT_A_TIME descriptors");
        let pieces = [IoSlice::new(&line)];
        let sent = loop {
            match sendmsg(&self.stream, &pieces, &mut control, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => break sent.map_err(io::Error::from)?,
            }
        };
        Ok(self.stream.write_all(&line[sent..])?)
    }

    /// Returns the next message. Waits at most `timeout` for it, or forever if `timeout` is none.
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
            // A timeout of zero would be invalid. A partial message stays for the next call.
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
    fn unterminated_message_is_refused_at_limit() {
        let (mut client, mut far) = pair();
        let writer = std::thread::spawn(move || {
            let chunk = vec![b' '; 64 << 10];
            // Fails once the client is dropped.
            while far.write_all(&chunk).is_ok() {}
        });
        assert!(matches!(client.receive(Some(Duration::from_secs(60))), Err(ClientError::TooLong)));
        assert!(client.received.len() <= MESSAGE_LIMIT + 8192);
        drop(client);
        writer.join().unwrap();
    }

    #[test]
    fn partial_message_survives_timeout() {
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
