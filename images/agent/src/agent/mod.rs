//! The guest's end: serves connections from the host, one operation each.
//!
//! [`Agent::serve`] takes any connected stream socket and returns when it is done with it; whoever
//! accepts connections gives each a thread of its own. A fault on a connection ends that connection.
//! The agent trusts the host, which owns the guest anyway; it accepts nobody else (see [`Listener`]).

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
pub use identity::{Moment, has_cloud_init, renew as renew_identity};
pub use interface::{bring_up as bring_up_interface, configure as configure_interface};
pub use interface::{bring_up_loopback, configure_all as configure_network, is_managed as network_is_managed};
pub use listener::Listener;
pub use resolver::configure as configure_resolver;
pub use resume::Sentinel;
pub use spawn::{Program, Stdio, spawn};
pub use users::User;

use crate::protocol::{Connection, ProtocolError, ToGuest, ToHost};
use crate::tree::{self, Entry, Holes, Links, TreeError, TreeWriter};

/// What all connections share.
#[derive(Debug)]
pub struct Agent {
    /// The commands that run, and who takes their exit status.
    pub children: Children,
    user_data: UserData,
    is_init: bool,
    /// Held while the guest's identity is renewed.
    identity: Mutex<()>,
}

impl Agent {
    /// An agent; `is_init` where this process is the guest's first one, which adopts orphans and
    /// is asked, by its signals, to stop the guest.
    #[must_use]
    pub fn new(is_init: bool) -> Self {
        Self { children: Children::new(is_init), user_data: UserData::default(), is_init, identity: Mutex::default() }
    }

    /// Waits until no renewal of the guest's identity is going on, and keeps one from beginning.
    pub fn hold_identity(&self) -> MutexGuard<'_, ()> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process is the guest's first one.
    #[must_use]
    pub fn is_init(&self) -> bool {
        self.is_init
    }

    /// Applies what the host tells a new instance, if it tells anything; returns when its user data has run.
    pub fn apply_seed(&self) {
        first_boot::apply_seed(&self.children, &self.user_data);
    }

    /// Serves one connection to its end.
    ///
    /// # Errors
    /// What was wrong with the connection. The other end has been told, where it could be.
    pub fn serve(&self, socket: OwnedFd) -> Result<(), ProtocolError> {
        let mut connection = Connection::new(socket);
        let outcome = connection.greet().and_then(|()| self.operate(&mut connection));
        match &outcome {
            // Nobody is there to be told.
            Ok(()) | Err(ProtocolError::Closed | ProtocolError::Truncated | ProtocolError::Io(_)) => {}
            Err(error) => {
                let _ = connection.writer.send(&ToHost::Failed(error.to_string()));
            }
        }
        outcome
    }

    fn operate(&self, connection: &mut Connection) -> Result<(), ProtocolError> {
        let request = match connection.reader.receive() {
            // A host that only looks whether the agent is there.
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
                // Before it begins: afterwards there may be nobody to answer.
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
            | ToGuest::Tree(_) => Err(ProtocolError::Unexpected("it belongs to no request")),
        }
    }
}

/// A path of the host's for this guest: a relative one starts at the agent's home, as scp's do.
fn from_home(path: &OsStr) -> PathBuf {
    Path::new(&User::own().home).join(path)
}

fn write_tree(connection: &mut Connection, destination: &Path) -> Result<(), ProtocolError> {
    let mut tree = TreeWriter::new(destination);
    while !tree.is_complete() {
        let ToGuest::Tree(entry) = connection.reader.receive()? else {
            return Err(ProtocolError::Unexpected("not part of a tree"));
        };
        if let Err(error) = tree.accept(entry) {
            connection.writer.send(&ToHost::Failed(error.to_string()))?;
            return pass_over_tree(connection);
        }
    }
    connection.writer.send(&ToHost::Copied(tree.summary()))
}

/// Reads on until the host has seen the answer and leaves: to close earlier could cost it the answer.
fn pass_over_tree(connection: &mut Connection) -> Result<(), ProtocolError> {
    loop {
        match connection.reader.receive() {
            Ok(ToGuest::Tree(Entry::End)) | Err(ProtocolError::Closed) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}

fn read_tree(connection: &mut Connection, source: &Path, holes: Holes) -> Result<(), ProtocolError> {
    let writer = &mut connection.writer;
    let sent = tree::send(source, Links::Follow, holes, &mut |entry| {
        writer.queue(&ToHost::Tree(entry))?;
        // Small entries share a system call.
        if writer.pending() >= crate::protocol::MAX_DATA { Ok(writer.flush()?) } else { Ok(()) }
    });
    match sent {
        Ok(()) => writer.flush(),
        Err(TreeError::Stream(error)) => Err(error),
        Err(error) => writer.send(&ToHost::Failed(error.to_string())),
    }
}
