//! Short requests to the agent. Each fails with [`Error::TimedOut`] or the reason why the connection ended.

use std::time::Duration;

use wisp_agent::protocol::{Facts, ProtocolError, ToGuest, ToHost, UserDataStatus};

use super::{Agent, Error};

impl Agent {
    /// Checks that the agent is ready, and returns its facts about the guest.
    pub fn ping(mut self, timeout: Duration) -> Result<Facts, Error> {
        match self.ask(&ToGuest::Ping, timeout)? {
            ToHost::Pong(facts) => Ok(facts),
            _ => Err(ProtocolError::Unexpected("it does not answer a ping").into()),
        }
    }

    /// Flushes all of the guest's file systems to their disks.
    pub fn sync(self, timeout: Duration) -> Result<(), Error> {
        self.demand(&ToGuest::Sync, timeout)
    }

    /// Sets the guest's host name until its next boot. The guest's kernel accepts an empty name, and refuses one over
    /// 64 bytes ([`Error::Guest`]).
    pub fn set_hostname(self, name: &str, timeout: Duration) -> Result<(), Error> {
        self.demand(&ToGuest::SetHostname(name.to_owned()), timeout)
    }

    /// Shuts down or reboots the guest. Returns when that has started. The VMM's exit shows that the guest is off.
    pub fn shutdown(self, reboot: bool, timeout: Duration) -> Result<(), Error> {
        self.demand(&ToGuest::Shutdown { reboot }, timeout)
    }

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
