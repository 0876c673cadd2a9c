//! The other end of a control socket.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{FILES_AT_A_TIME, Message, Request};
use crate::vmm::passed::PassedPath;

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
        ControlClient::new(UnixStream::connect(path)?)
    }

    /// Uses a connection that exists.
    pub fn new(stream: UnixStream) -> Result<ControlClient, ClientError> {
        let reader = BufReader::new(stream.try_clone()?);
        Ok(ControlClient { stream, reader })
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
