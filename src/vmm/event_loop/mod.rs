//! The event loop of the VMM's main thread: serves clients until the machine ends.
//!
//! The loop never busy-waits, and never waits for work: a request that changes the machine is a [`job`] in a thread of
//! its own. Jobs run one at a time; status requests and stop requests are handled meanwhile.
//!
//! ```text
//!           the agent is ready          the guest, a client, a signal or a job ends the machine
//! Booting ──────────────────────► Ready ──────────────────────► Ending ────► the loop returns
//!    └────────────────────────────────────────────────────────►   │ waits for the running job
//! ```
//!
//! A machine that ends by itself waits for a running job, such as the copy of a fork. If it is killed, the job is
//! canceled. If a job completes a snapshot for hibernation meanwhile, the machine's end is [`End::Saved`].

mod clients;
mod job;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::console_socket::{ConsoleSocket, Wait};
use super::devices::serial::Serial;
use super::error::Error;
use super::memory;
use super::signals::read_from_descriptor;
use super::usage_recorder::Recorder;
use clients::{Clients, Progress};
pub(crate) use job::{ControlledMachine, Job, Outcome};
use job::{ImmediateRequest, JobThread, Request};
use machine::control::{ControlServer, Message, VmmStatus};
use machine::end::{End, EndReceiver};
use machine::launch::Launcher;
use machine::sync::lock;
use machine::usage::Reading;

const END_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
const STOPPED_AT_REBOOT: &str = "a stop request, when the guest rebooted";

/// The console socket, and the serial port to which it connects a client.
#[derive(Debug)]
pub(super) struct Terminal {
    pub socket: ConsoleSocket,
    pub serial: Arc<Mutex<Serial>>,
    /// Notified when the serial port's input buffer has free space again.
    pub serial_room: EventFd,
}

#[derive(Debug)]
pub(super) struct EventSources {
    pub control: ControlServer,
    pub launcher: Launcher,
    pub terminal: Terminal,
    pub ends: EndReceiver,
    /// Notified when the guest's agent is ready.
    pub ready: EventFd,
    /// `None` for an ephemeral machine.
    pub recorder: Option<Recorder>,
    /// The machine ends when its launcher disconnects before the guest has its identity and is ready.
    pub owner_until_ready: bool,
}

#[derive(Debug)]
enum Phase {
    Booting,
    /// The guest's agent is ready.
    Ready,
    Ending(End),
}

pub(super) struct EventLoop {
    epoll: Epoll,
    control: ControlServer,
    clients: Clients,
    job: JobThread,
    terminal: Terminal,
    ends: EndReceiver,
    ready: EventFd,
    signals: OwnedFd,
    recorder: Option<Recorder>,
    /// The launcher owns the machine only until the guest is ready.
    releases_owner: bool,
    phase: Phase,
}

impl EventLoop {
    /// Must be called before the machine's threads start, so that they inherit the signal mask.
    pub(super) fn new(sources: EventSources) -> Result<EventLoop, Error> {
        let failed = |error| Error::host("set up the event loop")(error);
        let EventSources { mut control, launcher, terminal, ends, ready, recorder, owner_until_ready } = sources;
        let releases_owner = owner_until_ready && matches!(launcher, Launcher::Watcher(_));
        let launcher = match launcher {
            Launcher::Owner(stream) => Some((stream, true)),
            Launcher::Watcher(stream) => Some((stream, owner_until_ready)),
            Launcher::Detached => None,
        };
        let launcher = launcher.map(|(stream, owner)| control.adopt_launcher(stream, owner));
        let launcher = launcher.transpose().map_err(failed)?;
        let event_loop = EventLoop {
            epoll: Epoll::new().map_err(failed)?,
            signals: read_from_descriptor(&END_SIGNALS).map_err(failed)?,
            job: JobThread::new().map_err(failed)?,
            control,
            clients: Clients::default(),
            terminal,
            ends,
            ready,
            recorder,
            releases_owner,
            phase: Phase::Booting,
        };
        event_loop.watched(launcher).try_for_each(|fd| event_loop.watch(fd)).map_err(failed)?;
        Ok(event_loop)
    }

    fn watched(&self, launcher: Option<i32>) -> impl Iterator<Item = i32> + use<> {
        let always = [
            self.ends.event().as_raw_fd(),
            self.ready.as_raw_fd(),
            self.signals.as_raw_fd(),
            self.job.completed().as_raw_fd(),
            self.control.listener(),
            self.terminal.socket.listener(),
            self.terminal.serial_room.as_raw_fd(),
        ];
        let expirations = self.recorder.as_ref().map(Recorder::expirations);
        always.into_iter().chain(expirations).chain(launcher).chain(self.terminal.socket.terminal())
    }

    /// Serves clients until the machine ends. Returns the end, and the control server with the subscribers to notify.
    /// No job is running then.
    pub(super) fn run(mut self, machine: &Arc<dyn ControlledMachine>) -> (End, ControlServer) {
        self.record(machine);
        let end = self.serve(machine);
        self.record(machine);
        (end, self.control)
    }

    fn serve(&mut self, machine: &Arc<dyn ControlledMachine>) -> End {
        loop {
            self.take_end();
            if let Some(end) = self.finished() {
                return end.clone();
            }
            let mut events = [EpollEvent::default(); 16];
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => {
                    self.kill(machine, format!("a host error: {error}"));
                    self.complete_job();
                    0
                }
            };
            for event in &events[..count] {
                self.handle(event.fd(), event.event_set(), machine);
                if let Some(end) = self.finished() {
                    return end.clone();
                }
            }
        }
    }

    /// Returns the machine's end, once there is one and no job is running.
    fn finished(&self) -> Option<&End> {
        match &self.phase {
            Phase::Ending(end) if !self.job.is_running() => Some(end),
            _ => None,
        }
    }

    /// Begins to end the machine, unless it is ending already. A kill replaces a reboot, because the supervisor would
    /// restart the machine.
    fn end(&mut self, end: End) {
        let is_effective = match &self.phase {
            Phase::Ending(earlier) => *earlier == End::Reboot && matches!(end, End::Killed { .. }),
            Phase::Booting | Phase::Ready => true,
        };
        if is_effective {
            self.phase = Phase::Ending(end);
        }
    }

    fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending(_))
    }

    fn kill(&mut self, machine: &Arc<dyn ControlledMachine>, by: String) {
        machine.cancel();
        self.end(End::Killed { by });
    }

    fn take_end(&mut self) {
        let Some(end) = self.ends.take().filter(|_| !self.is_ending()) else { return };
        self.end(match end {
            End::Reboot if self.clients.ends_at_reboot() => End::Killed { by: STOPPED_AT_REBOOT.into() },
            end => end,
        });
    }

    fn handle(&mut self, fd: i32, events: EventSet, machine: &Arc<dyn ControlledMachine>) {
        if fd == self.ends.event().as_raw_fd() {
            // The event is never reset.
            self.unwatch(fd);
            self.take_end();
        } else if fd == self.signals.as_raw_fd() {
            self.unwatch(fd);
            self.kill(machine, "a signal".into());
        } else if fd == self.ready.as_raw_fd() {
            self.handle_ready(machine);
        } else if fd == self.job.completed().as_raw_fd() {
            let turn = self.complete_job();
            self.take_turns(turn, machine);
        } else if self.recorder.as_ref().is_some_and(|recorder| fd == recorder.expirations()) {
            self.recorder.iter().for_each(Recorder::take_expirations);
            self.record(machine);
        } else if fd == self.control.listener() {
            match self.control.accept() {
                Ok(client) => self.watch_or_log(client),
                Err(error) => log::warn!("cannot accept a control client: {error}"),
            }
        } else if !self.handle_terminal(fd, events) {
            self.serve_client(fd, machine);
        }
    }

    fn handle_ready(&mut self, machine: &Arc<dyn ControlledMachine>) {
        // Resets the counter.
        let _ = self.ready.read();
        if machine.awaits_identity() {
            // Other clients wait for the instance, whose identity the guest does not have yet.
            return self.control.send_to_owners(&Message::Ready);
        }
        if !self.is_ending() {
            self.phase = Phase::Ready;
        }
        self.control.broadcast(&Message::Ready);
        if self.releases_owner {
            self.control.release_owners();
        }
        // Separates usage during boot from later usage.
        self.record(machine);
        // Start-up is over, so this thread has time to release pages.
        memory::program::release_start_up();
    }

    /// Returns false if `fd` does not belong to the console.
    fn handle_terminal(&mut self, fd: i32, events: EventSet) -> bool {
        let Terminal { socket, serial, serial_room } = &mut self.terminal;
        let wait = if fd == serial_room.as_raw_fd() {
            let _ = serial_room.read();
            socket.resume()
        } else if socket.terminal() == Some(fd) {
            socket.serve(events, &mut lock(serial))
        } else if fd == socket.listener() {
            match socket.accept() {
                Ok(terminal) => terminal.into_iter().for_each(|fd| self.watch_or_log(fd)),
                Err(error) => log::warn!("cannot accept a console client: {error}"),
            }
            Wait::Same
        } else {
            return false;
        };
        if let Wait::For(fd, events) = wait
            && let Err(error) = self.wait_for(fd, events)
        {
            log::warn!("cannot wait for input from the console client: {error}");
        }
        true
    }

    fn serve_client(&mut self, fd: i32, machine: &Arc<dyn ControlledMachine>) {
        let incoming = self.control.read(fd);
        let requests = incoming.requests.into_iter().filter_map(|(request, files)| Request::of(request, files));
        self.clients.add_requests(fd, requests);
        self.take_turns(Some(fd), machine);
        if incoming.closed {
            // Otherwise, epoll would keep reporting the connection while a job of the client is running.
            self.unwatch(fd);
            self.clients.close(fd);
            self.update(fd);
        }
        if incoming.closed && incoming.owner {
            self.kill(machine, "the exit of the command that started it".into());
        }
    }

    /// Handles the requests of the client `first` as far as possible, and starts the next job if none is running.
    fn take_turns(&mut self, first: Option<i32>, machine: &Arc<dyn ControlledMachine>) {
        let mut turns = VecDeque::from_iter(first);
        // Jobs of other clients have waited longer than the next request of this one.
        turns.extend(self.start_job(machine));
        while let Some(fd) = turns.pop_front() {
            while self.finished().is_none()
                && let Some(request) = self.clients.next(fd)
            {
                self.answer(fd, request, machine);
            }
            turns.extend(self.start_job(machine));
            self.update(fd);
        }
    }

    fn answer(&mut self, fd: i32, request: ImmediateRequest, machine: &Arc<dyn ControlledMachine>) {
        match request {
            ImmediateRequest::Status => {
                let is_ending = self.is_ending() || self.job.is_saving();
                let is_owned = self.control.has_owner();
                let status = VmmStatus { is_ending, is_owned, ..machine.status() };
                self.control.send(fd, &Message::Status(Box::new(status)));
            }
            ImmediateRequest::RefreshGuestMemory => {
                machine.request_statistics();
                self.control.send(fd, &Message::Done);
            }
            ImmediateRequest::Subscribe => self.subscribe(fd),
            ImmediateRequest::EndAtReboot => {
                self.clients.end_at_reboot(fd);
                // The guest may have rebooted already, while a job is still running.
                if matches!(self.phase, Phase::Ending(End::Reboot)) {
                    self.end(End::Killed { by: STOPPED_AT_REBOOT.into() });
                }
                self.control.send(fd, &Message::Done);
            }
            ImmediateRequest::Kill { by } => self.kill(machine, by),
        }
    }

    fn subscribe(&mut self, fd: i32) {
        self.control.subscribe(fd);
        self.control.send(fd, &Message::Done);
        if matches!(self.phase, Phase::Ready) {
            self.control.send(fd, &Message::Ready);
        }
    }

    /// Starts the next job, if none is running. Returns the clients whose jobs could not be started.
    fn start_job(&mut self, machine: &Arc<dyn ControlledMachine>) -> Vec<i32> {
        let mut failed = Vec::new();
        while !self.is_ending()
            && !self.job.is_running()
            && let Some((fd, job)) = self.clients.next_job()
        {
            if matches!(job, Job::DetachDisk { .. }) {
                // Record now, because detaching the disk discards its counters.
                self.record(machine);
            }
            if let Err(error) = self.job.start(machine, fd, job) {
                self.control.send(fd, &Message::Failed { why: format!("cannot start a thread: {error}") });
                self.clients.complete_job(fd);
                failed.push(fd);
            }
        }
        failed
    }

    /// Waits for the running job, and answers its client. Returns that client.
    fn complete_job(&mut self) -> Option<i32> {
        let (fd, outcome) = self.job.finish()?;
        self.clients.complete_job(fd);
        match outcome {
            Outcome::Answer(message) => self.control.send(fd, &message),
            // The job may have completed although the machine was being killed.
            Outcome::End(end) => self.phase = Phase::Ending(end),
        }
        Some(fd)
    }

    /// Reads from a client only while it has no job, and removes it once it is gone.
    fn update(&mut self, fd: i32) {
        let events = match self.clients.progress(fd) {
            Progress::Idle => EventSet::IN,
            // epoll always reports the end of the connection.
            Progress::Busy => EventSet::empty(),
            Progress::Gone => return self.control.remove(fd),
        };
        // A closed client is not watched any more.
        if let Err(error) = self.wait_for(fd, events)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("cannot wait for input from a client: {error}");
        }
    }

    fn record(&mut self, machine: &Arc<dyn ControlledMachine>) {
        if let Some(recorder) = &mut self.recorder {
            recorder.record(&Reading::of(&machine.status()));
        }
    }

    fn wait_for(&self, fd: i32, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(events, fd as u64))
    }

    fn watch(&self, fd: i32) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))
    }

    fn watch_or_log(&self, fd: i32) {
        if let Err(error) = self.watch(fd) {
            log::warn!("cannot wait for input from a client: {error}");
        }
    }

    fn unwatch(&self, fd: i32) {
        // Fails only if the descriptor is not watched.
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }
}
