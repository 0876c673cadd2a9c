//! The server of a machine's control socket: connections, partial lines and subscriptions.
//!
//! No function here blocks: the event loop reports readable sockets, and a client that reads no messages is
//! disconnected.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{ControlError, ControlRequest, FILES_AT_A_TIME, LINE_LIMIT, Message};
use crate::passed_files::FdTable;
use crate::unix_socket;

const MAX_CLIENTS: usize = 64;
/// Maximum number of files that a client can pass with a request: enough for all files of a machine's disks.
const FILES_LIMIT: usize = 1024;

#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    clients: HashMap<i32, Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
    /// Descriptors whose line is not complete yet; `files` holds those whose request has not arrived.
    descriptors: Vec<OwnedFd>,
    files: FdTable,
    subscribed: bool,
    owner: bool,
}

#[derive(Debug)]
pub struct Incoming {
    /// Complete requests in order, with their files. Invalid lines have already been answered.
    pub requests: Vec<(ControlRequest, FdTable)>,
    /// The client has closed the connection or must be disconnected.
    pub closed: bool,
    pub owner: bool,
}

impl ControlServer {
    /// Listens before it renames the socket to `path`, so that a client that sees the socket can connect.
    pub fn bind(path: &Path) -> Result<ControlServer, ControlError> {
        let failed = |source| ControlError::Listen { path: path.to_path_buf(), source };
        let unnamed = path.with_extension("new");
        let listener = unix_socket::bind(&unnamed).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        std::fs::rename(&unnamed, path).map_err(failed)?;
        Ok(ControlServer { listener, clients: HashMap::new() })
    }

    pub fn listener(&self) -> i32 {
        self.listener.as_raw_fd()
    }

    /// Adds and subscribes the process that started the machine. Returns the descriptor to wait on.
    pub fn adopt_launcher(&mut self, stream: UnixStream, owner: bool) -> io::Result<i32> {
        self.insert(stream, true, owner)
    }

    /// Returns the descriptor to wait on.
    pub fn accept(&mut self) -> io::Result<i32> {
        let (stream, _) = self.listener.accept()?;
        if self.clients.len() >= MAX_CLIENTS {
            return Err(io::Error::other("too many clients on the control socket"));
        }
        self.insert(stream, false, false)
    }

    fn insert(&mut self, stream: UnixStream, subscribed: bool, owner: bool) -> io::Result<i32> {
        stream.set_nonblocking(true)?;
        let fd = stream.as_raw_fd();
        self.clients.insert(
            fd,
            Client { stream, line: Vec::new(), descriptors: Vec::new(), files: FdTable::default(), subscribed, owner },
        );
        Ok(fd)
    }

    pub fn read(&mut self, fd: i32) -> Incoming {
        let Some(client) = self.clients.get_mut(&fd) else {
            return Incoming { requests: Vec::new(), closed: true, owner: false };
        };
        let owner = client.owner;
        let mut buffer = [0; 4096];
        let closed = loop {
            match receive(&client.stream, &mut buffer, &mut client.descriptors) {
                Ok(0) => break true,
                Ok(count) => client.line.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
            if client.line.len() > LINE_LIMIT {
                log::warn!("disconnected a control client: its request is longer than {LINE_LIMIT} bytes");
                break true;
            }
            if client.descriptors.len() + client.files.count() > FILES_LIMIT {
                log::warn!("disconnected a control client: it passed more than {FILES_LIMIT} files");
                break true;
            }
        };
        let requests = self.take_requests(fd);
        Incoming { requests, closed, owner }
    }

    fn take_requests(&mut self, fd: i32) -> Vec<(ControlRequest, FdTable)> {
        let mut requests = Vec::new();
        while let Some(client) = self.clients.get_mut(&fd) {
            let Some(end) = client.line.iter().position(|byte| *byte == b'\n') else { break };
            let line: Vec<u8> = client.line.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(ControlRequest::Files { files }) => {
                    let here = files.len().min(client.descriptors.len());
                    let open = client.descriptors.drain(..here).map(File::from);
                    client.files.extend(files.into_iter().zip(open));
                }
                Ok(request) => requests.push((request, std::mem::take(&mut client.files))),
                Err(error) => self.send(fd, &Message::Failed { why: format!("invalid request: {error}") }),
            }
        }
        requests
    }

    pub fn has_owner(&self) -> bool {
        self.clients.values().any(|client| client.owner)
    }

    /// Ends the ownership of all clients: the machine no longer ends when one of them disconnects.
    pub fn release_owners(&mut self) {
        self.clients.values_mut().for_each(|client| client.owner = false);
    }

    /// Sends a message to the machine's owners only.
    pub fn send_to_owners(&mut self, message: &Message) {
        let owners: Vec<i32> = self.clients.iter().filter(|(_, client)| client.owner).map(|(fd, _)| *fd).collect();
        owners.into_iter().for_each(|fd| self.send(fd, message));
    }

    pub fn subscribe(&mut self, fd: i32) {
        if let Some(client) = self.clients.get_mut(&fd) {
            client.subscribed = true;
        }
    }

    pub fn send(&mut self, fd: i32, message: &Message) {
        let Some(client) = self.clients.get_mut(&fd) else { return };
        let mut line = serde_json::to_vec(message).expect("a message serializes to JSON");
        line.push(b'\n');
        if client.stream.write_all(&line).is_err() {
            // The client is not reading its messages, or is gone. The shutdown makes the event loop remove it.
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }

    /// Removes a client that [`read`](ControlServer::read) reported as closed. The caller must have stopped waiting on
    /// its descriptor.
    pub fn remove(&mut self, fd: i32) {
        self.clients.remove(&fd);
    }

    pub fn broadcast(&mut self, message: &Message) {
        let subscribed: Vec<i32> =
            self.clients.iter().filter(|(_, client)| client.subscribed).map(|(fd, _)| *fd).collect();
        subscribed.into_iter().for_each(|fd| self.send(fd, message));
    }
}

fn receive(stream: &UnixStream, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_AT_A_TIME))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    use super::super::ControlClient;
    use crate::config::{DiskAccess, DiskConfig, DiskFormat};

    fn requests(incoming: &Incoming) -> Vec<&ControlRequest> {
        incoming.requests.iter().map(|(request, _)| request).collect()
    }

    #[test]
    fn passed_file_belongs_to_next_request_only() {
        let (mut server, dir) = server();
        let path = dir.path().join("disk");
        std::fs::write(&path, [7; 512]).unwrap();
        let mut client = ControlClient::connect(&dir.path().join("control.sock")).unwrap();
        let fd = server.accept().unwrap();
        let (access, format) = (DiskAccess::ReadWrite, DiskFormat::Raw);
        let disk = DiskConfig::new("disk", path.clone(), format, access);
        client.send(&ControlRequest::AttachDisk { disk: disk.clone() }).unwrap();
        client.send(&ControlRequest::Status).unwrap();
        std::fs::remove_file(&path).unwrap();
        let incoming = server.read(fd);
        assert_eq!(requests(&incoming), [&ControlRequest::AttachDisk { disk }, &ControlRequest::Status]);
        let mut bytes = Vec::new();
        incoming.requests[0].1.open(&path, true).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 512]);
        assert!(incoming.requests[1].1.open(&path, true).is_err(), "the file belongs to the first request");
    }

    fn server() -> (ControlServer, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (ControlServer::bind(&dir.path().join("control.sock")).unwrap(), dir)
    }

    #[test]
    fn split_request_is_assembled() {
        let (mut server, dir) = server();
        let mut client = UnixStream::connect(dir.path().join("control.sock")).unwrap();
        let fd = server.accept().unwrap();
        client.write_all(b"{\"op\":\"sta").unwrap();
        assert_eq!(requests(&server.read(fd)), [] as [&ControlRequest; 0]);
        client.write_all(b"tus\"}\n{\"op\":\"subscribe\"}\n").unwrap();
        assert_eq!(requests(&server.read(fd)), [&ControlRequest::Status, &ControlRequest::Subscribe]);
    }

    #[test]
    fn malformed_request_is_answered_and_client_stays() {
        let (mut server, dir) = server();
        let mut client = UnixStream::connect(dir.path().join("control.sock")).unwrap();
        let fd = server.accept().unwrap();
        client.write_all(b"hello\n{\"op\":\"status\"}\n").unwrap();
        assert_eq!(requests(&server.read(fd)), [&ControlRequest::Status]);
        let mut answer = [0; 512];
        let count = client.read(&mut answer).unwrap();
        assert!(std::str::from_utf8(&answer[..count]).unwrap().contains("invalid request"));
    }

    #[test]
    fn overlong_line_disconnects_client() {
        let (mut server, dir) = server();
        let mut client = UnixStream::connect(dir.path().join("control.sock")).unwrap();
        let fd = server.accept().unwrap();
        let mut closed = false;
        client.set_nonblocking(true).unwrap();
        for _ in 0..64 {
            let _ = client.write(&[b'x'; 4096]);
            closed |= server.read(fd).closed;
        }
        assert!(closed);
    }

    #[test]
    fn launcher_receives_broadcasts() {
        let (mut server, _dir) = server();
        let (mut owner, stream) = UnixStream::pair().unwrap();
        server.adopt_launcher(stream, true).unwrap();
        server.broadcast(&Message::Ready);
        let mut line = [0; 64];
        let count = owner.read(&mut line).unwrap();
        assert_eq!(&line[..count], b"{\"message\":\"ready\"}\n");
    }

    #[test]
    fn closed_owner_is_reported_as_owner() {
        let (mut server, _dir) = server();
        let (owner, stream) = UnixStream::pair().unwrap();
        let fd = server.adopt_launcher(stream, true).unwrap();
        drop(owner);
        let Incoming { requests, closed: true, owner: true } = server.read(fd) else { panic!("not closed") };
        assert!(requests.is_empty());
    }
}
