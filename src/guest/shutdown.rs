//! Short requests: is it there, sync, its name, its end.

use std::time::Duration;

use wisp_agent::protocol::{Facts, ProtocolError, ToGuest, ToHost, UserDataStatus};

use super::{Agent, Error};

impl Agent {
    /// Asks the agent whether it is there, and for what it tells about its guest.
    ///
    /// # Errors
    /// [`Error::TimedOut`], or what ended the connection.
    pub fn ping(mut self, timeout: Duration) -> Result<Facts, Error> {
        match self.ask(&ToGuest::Ping, timeout)? {
            ToHost::Pong(facts) => Ok(facts),
            _ => Err(ProtocolError::Unexpected("it does not answer a ping").into()),
        }
    }

    /// Has the guest write all its file systems to their disks; returns when they are written.
    ///
    /// # Errors
    /// [`Error::TimedOut`], or what ended the connection.
    pub fn sync(self, timeout: Duration) -> Result<(), Error> {
        self.demand(&ToGuest::Sync, timeout)
    }

    /// Sets the guest's host name, until its next boot.
    ///
    /// # Errors
    /// [`Error::Guest`] for a name the guest's kernel refuses (empty is fine, over 64 bytes is not).
    pub fn set_hostname(self, name: &str, timeout: Duration) -> Result<(), Error> {
        self.demand(&ToGuest::SetHostname(name.to_owned()), timeout)
    }

    /// Has the guest stop in an orderly way, and start again where `reboot`.
    ///
    /// Returns when the guest has begun to; that the machine is off shows at its monitor.
    ///
    /// # Errors
    /// [`Error::TimedOut`], or what ended the connection.
    pub fn shutdown(self, reboot: bool, timeout: Duration) -> Result<(), Error> {
        self.demand(&ToGuest::Shutdown { reboot }, timeout)
    }

    /// How far the guest's user data is.
    ///
    /// # Errors
    /// [`Error::TimedOut`], or what ended the connection.
    pub fn user_data(mut self, timeout: Duration) -> Result<UserDataStatus, Error> {
        match self.ask(&ToGuest::UserData, timeout)? {
            ToHost::UserData(status) => Ok(status),
            _ => Err(ProtocolError::Unexpected("it does not answer the request").into()),
        }
    }

    fn demand(mut self, request: &ToGuest<'_>, timeout: Duration) -> Result<(), Error> {
        match self.ask(request, timeout)? {
            ToHost::Done => Ok(()),
            ToHost::Failed(message) => Err(Error::Guest(message)),
            _ => Err(ProtocolError::Unexpected("it does not answer the request").into()),
        }
    }

    fn ask(&mut self, request: &ToGuest<'_>, timeout: Duration) -> Result<ToHost<'_>, Error> {
        self.begin(request)?;
        self.limit(Some(timeout))?;
        self.connection.reader.receive().map_err(Error::within(timeout))
    }
}
