//! Prepares a first guest for the snapshot that becomes a template.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use super::dir::InstanceDir;
use super::error::{Failure, MachineError};
use crate::guest::{self, Agent, ExecRequest, FEATURE, Streams};

/// Timeout for a ready agent to answer, and to write the guest's dirty pages.
const AGENT_TIMEOUT: Duration = Duration::from_secs(120);

impl InstanceDir {
    /// Prepares the guest, whose agent is ready.
    pub fn prepare_template(&self) -> Result<(), MachineError> {
        // The agent answers the ping only after finishing the work that follows its ready message. The sync then writes
        // dirty pages.
        let guest = self.guest_error();
        let facts = self.agent(AGENT_TIMEOUT)?.ping(AGENT_TIMEOUT).map_err(&guest)?;
        if !facts.agent_version.contains(FEATURE) {
            let why = "the image's agent is too old to support templates; use `--cold`";
            return Err(self.error(Failure::NotDone(why.into())));
        }
        if let Err(error) = preload_shell(self.agent(AGENT_TIMEOUT)?) {
            log::info!("cannot preload a shell for the template: {error}");
        }
        self.agent(AGENT_TIMEOUT)?.sync(AGENT_TIMEOUT).map_err(&guest)
    }
}

/// Loads a shell into the guest's page cache, so that the first command after a restore need not read it from the disk.
/// Runs it twice: its pages are then on the kernel's active list, and no later command moves them there.
fn preload_shell(agent: Agent) -> Result<(), guest::Error> {
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|source| guest::Error::Local { action: "open /dev/null", source })?;
    let streams = Streams { input: null.as_fd(), output: null.as_fd(), error: null.as_fd() };
    let request = ExecRequest { argv: ["sh", "-c", "exec sh -c :"].map(Into::into).into(), ..ExecRequest::default() };
    agent.with_silence_limit(AGENT_TIMEOUT).exec(request, streams).map(drop)
}
