//! A command's session. One thread moves data between the command's streams and the connection.
//!
//! The session reads output only after it has sent the previous output, and standard input arrives within its window.
//! So it buffers at most a window of input and two frames of output. A slow host slows down the command, but signals
//! are handled immediately.
//!
//! The session ends when the command has ended and its pipes (or terminal) are empty, even if background processes
//! still have them open.
//!
//! When the host disconnects, the command's process group gets SIGHUP, and SIGKILL after [`GRACE`].

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::process::Signal;

use super::children::{Child, Children};
use super::start::{Running, resize, start};
use crate::poll::{Interest, poll};
use crate::protocol::{
    AgentConnection, Bytes, ExecRequest, ExitStatus, Fill, MAX_DATA, OutputStream, ProtocolError, STDIN_WINDOW,
    ToGuest, ToHost,
};

/// Time for a command to end after the host has disconnected.
const GRACE: Duration = Duration::from_secs(2);

/// Minimum credit to return in one frame, well below the window: a frame for each keystroke would be wasteful.
const CREDIT_PORTION: usize = STDIN_WINDOW / 4;

/// Maximum output to forward after the command's end. It exceeds the capacity of the pipes (1 MiB each, if the command
/// enlarged them), and bounds the session if a background process keeps writing.
const DRAIN_LIMIT: usize = 2 * 1024 * 1024;

/// Character that a terminal treats as the end of input (VEOF, control-D).
const END_OF_TRANSMISSION: u8 = 4;

pub fn run(children: &Children, connection: &mut AgentConnection, request: &ExecRequest) -> Result<(), ProtocolError> {
    let Running { child, input, output, error, held: _held } = match start(children, request) {
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
    connection: &'a mut AgentConnection,
    /// `None` once reaped.
    child: Option<Child>,
    status: Option<ExitStatus>,
    input: Input,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
    buffer: Vec<u8>,
    /// Bytes forwarded since the command ended.
    drained: usize,
}

struct Input {
    /// A terminal stays open for the command's whole life: closing its last descriptor would hang up the command.
    fd: Option<OwnedFd>,
    is_terminal: bool,
    /// True once the command accepts no more input.
    closed: bool,
    pending: Vec<u8>,
    written: usize,
    /// True once the host sends no more input.
    ended: bool,
    /// Bytes written but not yet credited to the host.
    credit: usize,
}

impl Session<'_> {
    fn pump(&mut self) -> Result<(), ProtocolError> {
        // Some frames may have arrived in the same read as the request, and `poll` does not report those.
        let mut is_connected = self.handle_frames()?;
        while is_connected {
            let sending = self.connection.writer.pending() > 0;
            // The command has ended: forward only the current contents of its pipes.
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
                // The guest's shutdown killed the command, so report no status. The host sees the connection end.
                if self.children.is_stopping() && matches!(status, ExitStatus::Signaled(_)) {
                    return Ok(());
                }
                return self.connection.writer.send(&ToHost::Exited(status));
            }
            if connection.read {
                let fill = self.connection.reader.fill_now()?;
                is_connected = self.handle_frames()? && fill != Fill::End;
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

    /// Handles the frames that have been read. Returns false if a frame ends the session.
    fn handle_frames(&mut self) -> Result<bool, ProtocolError> {
        while let Some(frame) = self.connection.reader.next_buffered()? {
            match frame {
                ToGuest::Stdin(bytes) => self.input.take(bytes.0)?,
                ToGuest::StdinEnd => self.input.end(),
                // Ignore an error: the terminal may be closed already.
                ToGuest::Resize(size) if self.input.is_terminal => {
                    let _ = self.output.as_ref().map(|terminal| resize(terminal, size));
                }
                ToGuest::Resize(_) => {}
                ToGuest::Signal(number) => {
                    let signal = Signal::from_named_raw(number).ok_or(ProtocolError::Unexpected("unknown signal"))?;
                    let _ = self.child.as_ref().map(|child| child.signal(signal));
                }
                // If nothing reads a terminal's output anymore, hang up, as if the terminal's window had been closed.
                ToGuest::OutputClosed(OutputStream::Stdout) if self.input.is_terminal => return Ok(false),
                ToGuest::OutputClosed(OutputStream::Stdout) => self.output = None,
                ToGuest::OutputClosed(OutputStream::Stderr) => self.error = None,
                _ => return Err(ProtocolError::Unexpected("not valid while a command is running")),
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
            // EIO: no process has the terminal open anymore (pty(7)).
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

    /// Ends a command that is still running after the host disconnected.
    fn hang_up(&mut self) {
        let Some(child) = self.child.take() else { return };
        // Closing the terminal hangs it up for every process that has it open.
        (self.input.fd, self.output, self.error) = (None, None, None);
        child.signal(Signal::HUP);
        // A stopped process only receives SIGHUP after it continues.
        child.signal(Signal::CONT);
        let _ = poll([Some((child.as_fd(), Interest::Read))], Some(GRACE));
        // The group's ID cannot have been reused before the child is reaped.
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
            return Err(ProtocolError::Unexpected("standard input exceeds its window"));
        }
        // Input that the command no longer accepts is dropped, and the host gets no more credit.
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
                // The command closed its input or ended.
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
