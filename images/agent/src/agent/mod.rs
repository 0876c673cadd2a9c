//! The guest's end: serves connections from the host, one operation each.
//!
//! [`Agent::serve`] takes any connected stream socket, runs in its caller's thread, and returns when the operation is
//! complete. A fault ends only its connection. The agent trusts the host, which controls the guest anyway, and accepts
//! no other peer (see [`Listener`]).

mod children;
mod environment;
mod exec;
mod files;
mod first_boot;
mod identity;
mod interface;
mod listener;
mod netlink;
mod resolver;
mod resume;
mod spawn;
mod start;
mod system;
mod users;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use children::{Child, Children};
pub use environment::{PATH, for_user as environment_for, to_c_strings as environment_strings};
use first_boot::UserData;
pub use identity::{IdentityChange, has_cloud_init, prepare as prepare_identity, renew as renew_identity};
pub use interface::{bring_up as bring_up_interface, configure as configure_interface, quiet as quiet_interface};
pub use interface::{bring_up_loopback, configure_all as configure_network, is_managed as network_is_managed};
pub use listener::Listener;
pub use resolver::{configure as configure_resolver, prepare as prepare_resolver};
pub use resume::Sentinel;
pub use spawn::{Program, Stdio, spawn};
pub use users::User;

use crate::protocol::{AgentConnection, ProtocolError, ToGuest, ToHost};
use crate::tree::{self, Holes, Links, TreeEntry, TreeError, TreeWriter};

/// State that all connections share.
#[derive(Debug)]
pub struct Agent {
    pub children: Children,
    user_data: UserData,
    is_init: bool,
    /// Held while the guest's identity is renewed.
    identity: Mutex<()>,
}

impl Agent {
    /// `is_init` is true for process 1, which adopts orphans and stops the guest on signals.
    #[must_use]
    pub fn new(is_init: bool) -> Self {
        Self { children: Children::new(is_init), user_data: UserData::default(), is_init, identity: Mutex::default() }
    }

    /// Waits for a renewal of the guest's identity to finish, and blocks further ones until the guard is dropped.
    pub fn hold_identity(&self) -> MutexGuard<'_, ()> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn is_init(&self) -> bool {
        self.is_init
    }

    /// Applies the host's seed, if there is one. Returns after its user data has run.
    pub fn apply_seed(&self) {
        first_boot::apply_seed(&self.children, &self.user_data);
    }

    /// Serves one connection to its end. Reports a fault to the other end if possible.
    pub fn serve(&self, socket: OwnedFd) -> Result<(), ProtocolError> {
        let mut connection = AgentConnection::new(socket);
        let outcome = connection.greet().and_then(|()| self.operate(&mut connection));
        match &outcome {
            // The peer has disconnected, so the error cannot be reported.
            Ok(()) | Err(ProtocolError::Closed | ProtocolError::Truncated | ProtocolError::Io(_)) => {}
            Err(error) => {
                let _ = connection.writer.send(&ToHost::Failed(error.to_string()));
            }
        }
        outcome
    }

    fn operate(&self, connection: &mut AgentConnection) -> Result<(), ProtocolError> {
        let request = match connection.reader.receive() {
            // The host only checked that the agent is running.
            Err(ProtocolError::Closed) => return Ok(()),
            request => request?,
        };
        match request {
            ToGuest::Ping => connection.writer.send(&ToHost::Pong(system::facts(self.is_init))),
            ToGuest::Exec(request) => exec::run(&self.children, connection, &request),
            ToGuest::Write { destination } => write_tree(connection, &from_home(&destination)),
            ToGuest::Read { source } => read_tree(connection, &from_home(&source), Holes::Fill),
            ToGuest::ReadSparse { source } => read_tree(connection, &from_home(&source), Holes::Keep),
            ToGuest::Sync => {
                rustix::fs::sync();
                connection.writer.send(&ToHost::Done)
            }
            ToGuest::SetHostname(name) => connection.writer.send(&match system::set_hostname(&name) {
                Ok(()) => ToHost::Done,
                Err(error) => ToHost::Failed(format!("cannot set the host name to {name:?}: {error}")),
            }),
            ToGuest::Shutdown { reboot } => {
                // Answer first: the connection may not survive the shutdown.
                connection.writer.send(&ToHost::Done)?;
                system::shut_down(&self.children, self.is_init, reboot);
                Ok(())
            }
            ToGuest::UserData => connection.writer.send(&ToHost::UserData(self.user_data.status())),
            ToGuest::Stdin(_)
            | ToGuest::StdinEnd
            | ToGuest::Resize(_)
            | ToGuest::Signal(_)
            | ToGuest::OutputClosed(_)
            | ToGuest::Tree(_) => Err(ProtocolError::Unexpected("not a request")),
        }
    }
}

/// Resolves a path from the host. A relative one starts at the agent's home directory, as in scp.
fn from_home(path: &OsStr) -> PathBuf {
    Path::new(&User::own().home).join(path)
}

fn write_tree(connection: &mut AgentConnection, destination: &Path) -> Result<(), ProtocolError> {
    let mut tree = TreeWriter::new(destination);
    while !tree.is_complete() {
        let ToGuest::Tree(entry) = connection.reader.receive()? else {
            return Err(ProtocolError::Unexpected("not part of a tree"));
        };
        if let Err(error) = tree.accept(entry) {
            connection.writer.send(&ToHost::Failed(error.to_string()))?;
            return discard_tree(connection);
        }
    }
    connection.writer.send(&ToHost::Copied(tree.summary()))
}

/// Reads the rest of the tree, because closing the connection earlier could lose the answer.
fn discard_tree(connection: &mut AgentConnection) -> Result<(), ProtocolError> {
    loop {
        match connection.reader.receive() {
            Ok(ToGuest::Tree(TreeEntry::End)) | Err(ProtocolError::Closed) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}

fn read_tree(connection: &mut AgentConnection, source: &Path, holes: Holes) -> Result<(), ProtocolError> {
    let writer = &mut connection.writer;
    let sent = tree::send(source, Links::Follow, holes, &mut |entry| {
        writer.queue(&ToHost::Tree(entry))?;
        // Batch small entries into one system call.
        if writer.pending() >= crate::protocol::MAX_DATA { Ok(writer.flush()?) } else { Ok(()) }
    });
    match sent {
        Ok(()) => writer.flush(),
        Err(TreeError::Stream(error)) => Err(error),
        Err(error) => writer.send(&ToHost::Failed(error.to_string())),
    }
}
