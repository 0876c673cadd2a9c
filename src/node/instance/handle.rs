//! The client of an instance's VMM.

use std::io;
use std::time::{Duration, Instant};

use super::dir::InstanceDir;
use super::error::{Failure, MachineError};
use crate::vmm_process;
use ec2::state::InstanceState;
use machine::control::{ClientError, ControlClient, ControlRequest, Message, SOCKET, VmmStatus};
use machine::end::End;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to an instance's VMM.
#[derive(Debug)]
pub struct MachineHandle {
    dir: InstanceDir,
    client: ControlClient,
    ready: bool,
    ended: Option<(End, VmmStatus)>,
    /// Netstack problems that were reported already.
    reported: Vec<String>,
}

impl MachineHandle {
    pub(super) fn new(dir: InstanceDir, client: ControlClient) -> MachineHandle {
        MachineHandle { dir, client, ready: false, ended: None, reported: Vec::new() }
    }

    pub fn connect(dir: &InstanceDir) -> Result<MachineHandle, MachineError> {
        let client = ControlClient::connect(&dir.vmm_directory().join(SOCKET)).map_err(dir.control_error())?;
        Ok(MachineHandle::new(dir.clone(), client))
    }

    pub fn dir(&self) -> &InstanceDir {
        &self.dir
    }

    pub fn not_ready(&self, state: InstanceState, after: Duration) -> MachineError {
        let (state, seconds) = (state.as_str(), after.as_secs());
        self.dir.error(Failure::NotReady { state, seconds, console: self.dir.console_tail() })
    }

    /// Waits until the guest is running, and returns the netstack's problems as sentences. The error says why the VMM
    /// could not start the guest.
    pub fn wait_started(&mut self) -> Result<Vec<String>, MachineError> {
        self.link_problems().map_err(|mut error| {
            // The VMM's log is removed with the directory, so the error must contain the cause.
            if matches!(error.failure, Failure::Control(ClientError::Gone))
                && let Some(why) = vmm_process::last_violation(self.dir.path())
            {
                error.failure = Failure::Refused(format!("the VMM could not start: {why}"));
            }
            error
        })
    }

    /// Returns the netstack problems that were not reported yet, as sentences.
    pub fn link_problems(&mut self) -> Result<Vec<String>, MachineError> {
        let mut problems = self.status()?.link_problems;
        problems.retain(|problem| !self.reported.contains(problem));
        self.reported.extend(problems.iter().cloned());
        Ok(problems.into_iter().map(|problem| format!("{}: {problem}", self.dir.id())).collect())
    }

    pub fn status(&mut self) -> Result<VmmStatus, MachineError> {
        self.status_within(ANSWER_TIMEOUT)
    }

    pub fn status_within(&mut self, timeout: Duration) -> Result<VmmStatus, MachineError> {
        match self.ask_within(&ControlRequest::Status, timeout)? {
            Message::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Subscribes to the events that [`Self::wait_ready`] and [`Self::wait_ended`] wait for.
    pub fn subscribe(&mut self) -> Result<(), MachineError> {
        self.demand(&ControlRequest::Subscribe)
    }

    pub fn demand(&mut self, request: &ControlRequest) -> Result<(), MachineError> {
        match self.ask(request)? {
            Message::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Sends a request that ends the machine, and waits for the end. If the machine did not end, the error says why.
    pub fn end_with(&mut self, request: &ControlRequest, timeout: Duration) -> Result<(), MachineError> {
        self.send(request)?;
        match self.wait_ended(timeout) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let why = format!("the VMM did not finish within {} s", timeout.as_secs());
                Err(self.dir.error(Failure::NotDone(why)))
            }
            Err(MachineError { failure: Failure::Refused(why), .. }) => Err(self.dir.error(Failure::NotDone(why))),
            Err(error) => Err(error),
        }
    }

    pub fn kill(&mut self, by: &str) -> Result<(), MachineError> {
        self.send(&ControlRequest::Kill { by: by.into() })
    }

    /// Waits up to `timeout` until the agent is ready, and returns true if it is. Fails if the machine ends first.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<bool, MachineError> {
        let end = match self.wait(timeout, |machine| machine.ready || machine.ended.is_some()) {
            Err(MachineError { failure: Failure::Control(ClientError::Gone), .. }) => None,
            waited => {
                waited?;
                match &self.ended {
                    Some((end, _)) if !self.ready => Some(Box::new(end.clone())),
                    _ => return Ok(self.ready),
                }
            }
        };
        Err(self.dir.error(Failure::EndedEarly { end, console: self.dir.console_tail() }))
    }

    /// Gives a guest that booted for a template its instance's identity, and waits up to `timeout` until its agent has
    /// applied it. Returns true if it has.
    pub fn personalize(&mut self, timeout: Duration) -> Result<bool, MachineError> {
        self.ready = false;
        self.demand(&ControlRequest::Personalize)?;
        self.wait_ready(timeout)
    }

    /// Waits up to `timeout` until the machine has ended, and returns true if it has.
    pub fn wait_ended(&mut self, timeout: Duration) -> Result<bool, MachineError> {
        match self.wait(timeout, |machine| machine.ended.is_some()) {
            Ok(()) => Ok(self.ended.is_some()),
            // The VMM process has exited, and its machine ended with it.
            Err(MachineError { failure: Failure::Control(ClientError::Gone), .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Waits for the machine's end, and returns how it ended and the last status. Fails if the VMM exits without
    /// reporting them, or after `timeout`.
    pub fn outcome(&mut self, timeout: Duration) -> Result<(End, VmmStatus), MachineError> {
        self.wait(timeout, |machine| machine.ended.is_some())?;
        self.ended
            .clone()
            .ok_or_else(|| self.dir.error(Failure::Control(ClientError::Io(io::ErrorKind::TimedOut.into()))))
    }

    fn wait(&mut self, timeout: Duration, done: impl Fn(&MachineHandle) -> bool) -> Result<(), MachineError> {
        let deadline = Instant::now() + timeout;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            match self.client.receive(Some(left)) {
                Ok(message) => self.note(message)?,
                Err(source) if source.is_timeout() => return Ok(()),
                Err(source) => return Err(self.dir.control_error()(source)),
            }
        }
        Ok(())
    }

    pub fn ask(&mut self, request: &ControlRequest) -> Result<Message, MachineError> {
        self.ask_within(request, ANSWER_TIMEOUT)
    }

    pub fn ask_within(&mut self, request: &ControlRequest, timeout: Duration) -> Result<Message, MachineError> {
        let deadline = Instant::now() + timeout;
        self.send(request)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.client.receive(Some(left)).map_err(self.dir.control_error())?;
            match message {
                Message::Ready | Message::Ended { .. } => self.note(message)?,
                Message::Failed { why } => return Err(self.dir.error(Failure::Refused(why))),
                answer => return Ok(answer),
            }
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn send(&mut self, request: &ControlRequest) -> Result<(), MachineError> {
        match self.client.send(request) {
            // A last message from the VMM explains more than the broken connection.
            Err(ClientError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                match self.client.receive(Some(ANSWER_TIMEOUT)) {
                    Ok(message) => self.note(message),
                    Err(source) => Err(self.dir.control_error()(source)),
                }
            }
            result => result.map_err(self.dir.control_error()),
        }
    }

    fn note(&mut self, message: Message) -> Result<(), MachineError> {
        match message {
            Message::Ready => self.ready = true,
            Message::Ended { end, status } => self.ended = Some((end, *status)),
            Message::Failed { why } => return Err(self.dir.error(Failure::Refused(why))),
            Message::Status(_)
            | Message::Done
            | Message::Attached { .. }
            | Message::Reloaded { .. }
            | Message::Saved { .. } => {}
        }
        Ok(())
    }

    pub fn unexpected(&self, message: &Message) -> MachineError {
        let why = format!("unexpected response from the VMM: {message:?}");
        self.dir.error(Failure::Refused(why))
    }
}
