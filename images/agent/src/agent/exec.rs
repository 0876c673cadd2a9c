//! A command's session: its streams and the connection, between which one thread pumps.
//!
//! Nothing is read that cannot be passed on: output is read only when the output before it has been
//! sent, and standard input arrives within its window. So the session holds at most a window of input
//! and a frame or two of output, a host that reads slowly slows the command down, and a signal is
//! seen at once whatever else is stuck.
//!
//! The status is reported when the command itself has ended and the pipes (or the terminal) hold
//! nothing more. Processes it left behind in the background don't keep the session open.
//!
//! When the host goes away, the command's process group gets SIGHUP, and after [`GRACE`] SIGKILL.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::process::Signal;

use super::children::{Child, Children};
use super::start::{Running, resize, start};
use crate::poll::{Interest, poll};
use crate::protocol::{
    Bytes, Connection, ExecRequest, ExitStatus, Fill, MAX_DATA, OutputStream, ProtocolError, STDIN_WINDOW, ToGuest,
    ToHost,
};

/// How long a command has to end by itself after its host went away.
const GRACE: Duration = Duration::from_secs(2);

/// Credit is given back in portions of this size at least: a frame for each keystroke would be waste.
/// As long as it is well below the window, the host never starves.
const CREDIT_PORTION: usize = STDIN_WINDOW / 4;

/// What is passed on after the command's end, at most: more than it can have left in its pipes (a
/// mebibyte in each, if it enlarged them), and an end to it where something in the background goes on writing.
const DRAIN_LIMIT: usize = 2 * 1024 * 1024;

/// What a terminal takes for the end of input (VEOF, control-D).
const END_OF_TRANSMISSION: u8 = 4;

/// Runs a command and serves its connection until either ends.
///
/// # Errors
/// What ended the connection, where that came first.
pub fn run(children: &Children, connection: &mut Connection, request: &ExecRequest) -> Result<(), ProtocolError> {
    let Running { child, input, output, error } = match start(children, request) {
        Ok(running) => running,
        Err(error) => {
            return connection.writer.send(&ToHost::ExecFailed { cause: error.cause, message: error.to_string() });
        }
    };
    let mut session = Session {
        children,
        connection,
        child: Some(child),
        status: None,
        input: Input::new(input, request.terminal.is_some()),
        output: Some(output),
        error,
        buffer: Vec::new(),
        drained: 0,
    };
    let outcome = session.pump();
    session.hang_up();
    outcome
}

struct Session<'a> {
    children: &'a Children,
    connection: &'a mut Connection,
    /// Until it is reaped.
    child: Option<Child>,
    status: Option<ExitStatus>,
    input: Input,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
    buffer: Vec<u8>,
    /// Bytes passed on since the command ended.
    drained: usize,
}

/// The way to the command's standard input.
struct Input {
    /// A terminal's stays open for the command's whole life, whatever becomes of its other end: to
    /// close the last descriptor of it would hang the command up while it is exiting.
    fd: Option<OwnedFd>,
    is_terminal: bool,
    /// The command takes no more.
    closed: bool,
    pending: Vec<u8>,
    written: usize,
    /// No more comes from the host.
    ended: bool,
    /// Bytes written that the host has not been told of.
    credit: usize,
}

impl Session<'_> {
    fn pump(&mut self) -> Result<(), ProtocolError> {
        // Some may have come along with the request, in one read: no poll tells of those.
        let mut host_is_there = self.act_on_frames()?;
        while host_is_there {
            let sending = self.connection.writer.pending() > 0;
            // The command has ended: only what its pipes hold now is still waited for.
            let draining = self.status.filter(|_| !sending);
            let slots = [
                Some((self.connection.reader.as_fd(), if sending { Interest::Both } else { Interest::Read })),
                self.child.as_ref().map(|child| (child.as_fd(), Interest::Read)),
                self.input.fd.as_ref().filter(|_| self.input.is_pending()).map(|fd| (fd.as_fd(), Interest::Write)),
                self.output.as_ref().filter(|_| !sending).map(|fd| (fd.as_fd(), Interest::Read)),
                self.error.as_ref().filter(|_| !sending).map(|fd| (fd.as_fd(), Interest::Read)),
            ];
            let [connection, child, input, output, error] = poll(slots, draining.map(|_| Duration::ZERO))?;
            if let Some(status) = draining
                && (!(output.read || error.read) || self.drained >= DRAIN_LIMIT)
            {
                // A command that the machine's end has killed did not end by itself: the host sees the guest go.
                if self.children.is_stopping() && matches!(status, ExitStatus::Signaled(_)) {
                    return Ok(());
                }
                return self.connection.writer.send(&ToHost::Exited(status));
            }
            if connection.read {
                let fill = self.connection.reader.fill_now()?;
                host_is_there = self.act_on_frames()? && fill != Fill::End;
            }
            if child.read {
                self.status = self.child.take().map(|child| self.children.reap(child));
            }
            if input.write {
                self.input.write();
            }
            self.give_credit()?;
            if output.read {
                self.forward(OutputStream::Stdout)?;
            }
            if error.read {
                self.forward(OutputStream::Stderr)?;
            }
            self.connection.writer.flush_now()?;
        }
        Err(ProtocolError::Closed)
    }

    /// Acts on the frames that have been read; `false` where the session ends by one.
    fn act_on_frames(&mut self) -> Result<bool, ProtocolError> {
        while let Some(frame) = self.connection.reader.next_buffered()? {
            match frame {
                ToGuest::Stdin(bytes) => self.input.take(bytes.0)?,
                ToGuest::StdinEnd => self.input.end(),
                // A terminal that is gone has no size.
                ToGuest::Resize(size) if self.input.is_terminal => {
                    let _ = self.output.as_ref().map(|terminal| resize(terminal, size));
                }
                ToGuest::Resize(_) => {}
                ToGuest::Signal(number) => {
                    let signal = Signal::from_named_raw(number).ok_or(ProtocolError::Unexpected("no such signal"))?;
                    let _ = self.child.as_ref().map(|child| child.signal(signal));
                }
                // A terminal without a reader is hung up, as one whose window was closed.
                ToGuest::OutputClosed(OutputStream::Stdout) if self.input.is_terminal => return Ok(false),
                ToGuest::OutputClosed(OutputStream::Stdout) => self.output = None,
                ToGuest::OutputClosed(OutputStream::Stderr) => self.error = None,
                _ => return Err(ProtocolError::Unexpected("it does not belong to a running command")),
            }
        }
        Ok(true)
    }

    fn forward(&mut self, stream: OutputStream) -> Result<(), ProtocolError> {
        let source = match stream {
            OutputStream::Stdout => &mut self.output,
            OutputStream::Stderr => &mut self.error,
        };
        let Some(fd) = source else { return Ok(()) };
        self.buffer.clear();
        self.buffer.reserve_exact(MAX_DATA);
        match rustix::io::read(fd, spare_capacity(&mut self.buffer)) {
            // EIO: no process has the terminal open any more (pty(7)).
            Ok(0) | Err(Errno::IO) => *source = None,
            Ok(count) => {
                if self.status.is_some() {
                    self.drained += count;
                }
                for part in self.buffer.chunks(MAX_DATA) {
                    self.connection.writer.queue(&ToHost::Output(stream, Bytes(part)))?;
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    fn give_credit(&mut self) -> Result<(), ProtocolError> {
        if self.input.credit >= CREDIT_PORTION {
            let credit = u32::try_from(std::mem::take(&mut self.input.credit)).unwrap_or(u32::MAX);
            self.connection.writer.queue(&ToHost::StdinCredit(credit))?;
        }
        Ok(())
    }

    /// Ends a command that still runs, because nobody is there to hear of it.
    fn hang_up(&mut self) {
        let Some(child) = self.child.take() else { return };
        // Closing the terminal hangs it up for whoever has it open.
        (self.input.fd, self.output, self.error) = (None, None, None);
        child.signal(Signal::HUP);
        // A stopped process gets the first signal when it goes on.
        child.signal(Signal::CONT);
        let _ = poll([Some((child.as_fd(), Interest::Read))], Some(GRACE));
        // Before it is reaped, while the group's id is certainly still its own.
        child.signal(Signal::KILL);
        self.children.reap(child);
    }
}

impl Input {
    fn new(fd: OwnedFd, is_terminal: bool) -> Self {
        Self { fd: Some(fd), is_terminal, closed: false, pending: Vec::new(), written: 0, ended: false, credit: 0 }
    }

    fn is_pending(&self) -> bool {
        self.written < self.pending.len()
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        if self.ended {
            return Err(ProtocolError::Unexpected("standard input after its end"));
        }
        if self.pending.len() - self.written + bytes.len() > STDIN_WINDOW {
            return Err(ProtocolError::Unexpected("more standard input than its window"));
        }
        // A command that closed its input gets no more, and the host no more credit.
        if !self.closed {
            self.pending.drain(..self.written);
            self.written = 0;
            self.pending.extend_from_slice(bytes);
            self.write();
        }
        Ok(())
    }

    fn end(&mut self) {
        self.ended = true;
        if self.is_terminal && !self.closed {
            self.pending.push(END_OF_TRANSMISSION);
        }
        self.write();
    }

    /// Writes what can be written without waiting.
    fn write(&mut self) {
        let Some(fd) = &self.fd else { return };
        while self.is_pending() {
            match rustix::io::write(fd, &self.pending[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    self.credit += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The command closed its input, or is gone.
                Err(_) => return self.close(),
            }
        }
        self.pending.clear();
        self.written = 0;
        if self.ended {
            self.close();
        }
    }

    fn close(&mut self) {
        self.closed = true;
        self.pending.clear();
        self.written = 0;
        if !self.is_terminal {
            self.fd = None;
        }
    }
}
