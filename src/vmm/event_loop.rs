//! The event loop of the VMM's main thread: serves clients until the machine ends.
//!
//! The loop never busy-waits. It handles one request at a time, so a slow one (a snapshot) delays other clients.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, PoisonError};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::console_socket::{ConsoleSocket, Wait};
use super::cpu::vcpu::VcpuHandle;
use super::disk_slots::{SlotError, attached};
use super::error::Error;
use super::freeze::Freezer;
use super::memory;
use super::signals::read_from_descriptor;
use super::usage_recorder::Recorder;
use super::wiring::Devices;
use machine::control::{ControlRequest, ControlServer, Message, VmmStatus};
use machine::end::{End, EndReceiver};
use machine::launch::Launcher;
use machine::usage::Reading;

const AT_ITS_END: &str = "the machine is already stopping";
const END_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

pub(super) struct EventLoop<'a> {
    epoll: Epoll,
    control: ControlServer,
    console: ConsoleSocket,
    devices: &'a Devices,
    ends: &'a EndReceiver,
    ready: &'a EventFd,
    signals: OwnedFd,
    /// `None` for an ephemeral machine.
    recorder: Option<Recorder>,
    was_ready: bool,
    /// The client that asked to end the machine at the guest's next reboot.
    ends_at_reboot: Option<i32>,
}

impl<'a> EventLoop<'a> {
    /// Must be called before the machine's threads start, so that they inherit the signal mask.
    pub(super) fn new(
        mut control: ControlServer,
        launcher: Launcher,
        console: ConsoleSocket,
        devices: &'a Devices,
        ends: &'a EndReceiver,
        ready: &'a EventFd,
        recorder: Option<Recorder>,
    ) -> Result<EventLoop<'a>, Error> {
        let what = "set up the event loop";
        let epoll = Epoll::new().map_err(Error::host(what))?;
        let signals = read_from_descriptor(&END_SIGNALS).map_err(Error::host(what))?;
        let mut watched = vec![
            ends.event().as_raw_fd(),
            ready.as_raw_fd(),
            signals.as_raw_fd(),
            control.listener(),
            console.listener(),
            devices.serial_room.as_raw_fd(),
        ];
        watched.extend(recorder.as_ref().map(Recorder::expirations));
        let launcher = match launcher {
            Launcher::Owner(stream) => Some((stream, true)),
            Launcher::Watcher(stream) => Some((stream, false)),
            Launcher::Detached => None,
        };
        if let Some((stream, owner)) = launcher {
            watched.push(control.adopt_launcher(stream, owner).map_err(Error::host(what))?);
        }
        watched.extend(console.terminal());
        let (was_ready, ends_at_reboot) = (false, None);
        let event_loop =
            EventLoop { epoll, control, console, devices, ends, ready, signals, recorder, was_ready, ends_at_reboot };
        for fd in watched {
            event_loop.watch(fd).map_err(Error::host(what))?;
        }
        Ok(event_loop)
    }

    /// Serves clients until the machine ends. Returns the end, and the control server with the subscribers to notify.
    pub(super) fn run(mut self, status: &dyn Fn() -> VmmStatus, freezer: &Freezer) -> (End, ControlServer) {
        self.record(status);
        let end = self.serve(status, freezer);
        self.record(status);
        (end, self.control)
    }

    fn serve(&mut self, status: &dyn Fn() -> VmmStatus, freezer: &Freezer) -> End {
        loop {
            if let Some(end) = self.take_end() {
                return end;
            }
            let mut events = [EpollEvent::default(); 16];
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return End::Killed { by: format!("a host error: {error}") },
            };
            for event in &events[..count] {
                if let Some(end) = self.handle(event.fd(), event.event_set(), status, freezer) {
                    return end;
                }
            }
        }
    }

    fn take_end(&self) -> Option<End> {
        match self.ends.take()? {
            End::Reboot if self.ends_at_reboot.is_some() => {
                Some(End::Killed { by: "a stop request, when the guest rebooted".into() })
            }
            end => Some(end),
        }
    }

    fn handle(&mut self, fd: i32, events: EventSet, status: &dyn Fn() -> VmmStatus, freezer: &Freezer) -> Option<End> {
        if fd == self.ends.event().as_raw_fd() {
            return self.take_end();
        }
        if fd == self.signals.as_raw_fd() {
            return Some(End::Killed { by: "a signal".into() });
        }
        if fd == self.ready.as_raw_fd() {
            // Resets the counter.
            let _ = self.ready.read();
            self.was_ready = true;
            self.control.broadcast(&Message::Ready);
            // Separates usage during boot from later usage.
            self.record(status);
            // Start-up is over, so this thread has time to release pages.
            memory::program::release_start_up();
        } else if self.recorder.as_ref().is_some_and(|recorder| fd == recorder.expirations()) {
            self.recorder.iter().for_each(Recorder::take_expirations);
            self.record(status);
        } else if fd == self.control.listener() {
            match self.control.accept() {
                Ok(client) => self.watch_or_log(client),
                Err(error) => log::warn!("cannot accept a control client: {error}"),
            }
        } else if fd == self.devices.serial_room.as_raw_fd() {
            let _ = self.devices.serial_room.read();
            let wait = self.console.resume();
            self.wait_for(wait);
        } else if fd == self.console.listener() {
            match self.console.accept() {
                Ok(terminal) => terminal.into_iter().for_each(|fd| self.watch_or_log(fd)),
                Err(error) => log::warn!("cannot accept a console client: {error}"),
            }
        } else if self.console.terminal() == Some(fd) {
            let serial = Arc::clone(&self.devices.serial);
            let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = self.console.serve(events, &mut serial);
            self.wait_for(wait);
        } else {
            return self.serve_client(fd, status, freezer);
        }
        None
    }

    fn serve_client(&mut self, fd: i32, status: &dyn Fn() -> VmmStatus, freezer: &Freezer) -> Option<End> {
        let incoming = self.control.read(fd);
        let disks = &self.devices.disks;
        let done = |()| Message::Done;
        for (request, files) in incoming.requests {
            match request {
                ControlRequest::Status => self.control.send(fd, &Message::Status(Box::new(status()))),
                ControlRequest::Subscribe => {
                    self.control.subscribe(fd);
                    self.control.send(fd, &Message::Done);
                    if self.was_ready {
                        self.control.send(fd, &Message::Ready);
                    }
                }
                ControlRequest::CtrlAltDel => {
                    let answer = self.press_ctrl_alt_del();
                    self.control.send(fd, &answer);
                }
                ControlRequest::EndAtReboot => {
                    self.ends_at_reboot = Some(fd);
                    self.control.send(fd, &Message::Done);
                }
                ControlRequest::AttachDisk { disk } => {
                    self.answer(fd, disks.attach_with_fds(&disk, &files).map(attached))
                }
                ControlRequest::DetachDisk { id, force } => {
                    // Record now, because detaching the disk discards its counters.
                    self.record(status);
                    self.answer(fd, disks.detach(&id, force).map(done));
                }
                ControlRequest::DiskSlot { id } => self.answer(fd, disks.slot_of(&id).map(attached)),
                ControlRequest::ResizeDisk { id, size } => self.answer(fd, disks.resize(&id, size).map(done)),
                ControlRequest::SetDiskLimits { id, limits } => self.answer(fd, disks.limit(&id, limits).map(done)),
                ControlRequest::SwitchDisk { id, layer, .. } => {
                    self.answer(fd, disks.switch_with_fds(&id, &layer, &files).map(done))
                }
                ControlRequest::Save { dir } => match freezer.save(&dir) {
                    Ok(true) => return Some(End::Saved),
                    Ok(false) => self.control.send(fd, &Message::Failed { why: AT_ITS_END.into() }),
                    Err(error) => self.control.send(fd, &Message::Failed { why: error.to_string() }),
                },
                ControlRequest::Fork { dir, layers } => {
                    let answer = match freezer.fork(&dir, &layers, &files) {
                        Ok(Some(paused)) => Message::Saved { paused_ns: paused.as_nanos() as u64 },
                        Ok(None) => Message::Failed { why: AT_ITS_END.into() },
                        Err(error) => Message::Failed { why: error.to_string() },
                    };
                    self.control.send(fd, &answer);
                }
                ControlRequest::SetCanOwe { can_owe } => {
                    let answer = match freezer.context.set_can_owe(can_owe) {
                        true => {
                            // Running vCPUs still have time slices that were granted under the previous setting.
                            freezer.vcpus.iter().for_each(VcpuHandle::kick);
                            Message::Done
                        }
                        false => Message::Failed { why: "the machine has no CPU limit".into() },
                    };
                    self.control.send(fd, &answer);
                }
                ControlRequest::ReloadLink { link } => {
                    let message = match &self.devices.net {
                        Some(net) => net.reload(&link, &files).map(|problems| Message::Reloaded { problems }),
                        None => Err("the machine has no network device".into()),
                    };
                    self.control.send(fd, &message.unwrap_or_else(|why| Message::Failed { why }));
                }
                // The control server already keeps the files for the request that follows.
                ControlRequest::Files { .. } => {}
                ControlRequest::Kill { by } => return Some(End::Killed { by }),
            }
        }
        if incoming.closed {
            // Otherwise, epoll would keep reporting the connection if another descriptor still refers to it.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
            self.control.remove(fd);
            self.ends_at_reboot.take_if(|client| *client == fd);
        }
        (incoming.closed && incoming.owner)
            .then(|| End::Killed { by: "the exit of the command that started it".into() })
    }

    fn record(&mut self, status: &dyn Fn() -> VmmStatus) {
        if let Some(recorder) = &mut self.recorder {
            recorder.record(&Reading::of(&status()));
        }
    }

    fn press_ctrl_alt_del(&self) -> Message {
        let mut i8042 = self.devices.i8042.lock().unwrap_or_else(PoisonError::into_inner);
        if i8042.press_ctrl_alt_del() {
            Message::Done
        } else {
            Message::Failed { why: "the guest has no keyboard driver for Ctrl-Alt-Del".into() }
        }
    }

    fn answer(&mut self, fd: i32, outcome: Result<Message, SlotError>) {
        let message = outcome.unwrap_or_else(|error| Message::Failed { why: error.to_string() });
        self.control.send(fd, &message);
    }

    fn wait_for(&self, wait: Wait) {
        let Wait::For(fd, events) = wait else { return };
        if let Err(error) = self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(events, fd as u64)) {
            log::warn!("cannot wait for input from the console client: {error}");
        }
    }

    fn watch(&self, fd: i32) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))
    }

    fn watch_or_log(&self, fd: i32) {
        if let Err(error) = self.watch(fd) {
            log::warn!("cannot wait for input from a client: {error}");
        }
    }
}
