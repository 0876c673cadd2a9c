//! The console socket: one client at a time connects to `console.sock` and uses the serial port as its terminal.
//!
//! The client's bytes are the port's input, and the port's output goes to the client (see
//! [`Console`](super::devices::console::Console)). A client may shut down its sending side and keep receiving; it is
//! detached when it closes the connection. Nothing here waits: the event loop reports readable sockets.

use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use vmm_sys_util::epoll::EventSet;

use super::devices::console::Console;
use super::devices::serial::Serial;
use crate::unix_socket;

/// The name of the socket in the machine's directory.
pub const SOCKET: &str = "console.sock";
/// The message to a second client.
const OCCUPIED: &[u8] = b"another terminal is attached to this machine's console\n";

/// The console socket cannot be created.
#[derive(Debug, thiserror::Error)]
#[error("the console's socket {} cannot be made: {source}", path.display())]
pub struct ConsoleSocketError {
    /// The path.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// The listening socket and the attached client.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    console: Console,
    terminal: Option<Terminal>,
}

#[derive(Debug)]
struct Terminal {
    stream: UnixStream,
    input: Input,
}

/// The state of a client's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// Input is read when it arrives.
    Awaited,
    /// The serial port's buffer is full.
    Held,
    /// The client has shut down its sending side.
    Ended,
}

/// The change of the events to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// No change.
    Same,
    /// Wait for these events of the client's descriptor.
    For(i32, EventSet),
}

impl ConsoleSocket {
    /// Creates the socket at `path`; clients are attached to `console`.
    pub fn bind(path: &Path, console: Console) -> Result<ConsoleSocket, ConsoleSocketError> {
        let failed = |source| ConsoleSocketError { path: path.to_path_buf(), source };
        let listener = unix_socket::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(ConsoleSocket { listener, console, terminal: None })
    }

    /// The listening socket's descriptor.
    pub fn listener(&self) -> i32 {
        self.listener.as_raw_fd()
    }

    /// The client's descriptor, if one is attached.
    pub fn terminal(&self) -> Option<i32> {
        self.terminal.as_ref().map(|terminal| terminal.stream.as_raw_fd())
    }

    /// Accepts a client, unless another one is attached. Returns the descriptor to wait on for input.
    pub fn accept(&mut self) -> io::Result<Option<i32>> {
        let (mut stream, _) = self.listener.accept()?;
        if self.terminal.is_some() {
            stream.set_nonblocking(true)?;
            // The message fits into a new connection's buffer, unless the other end is closed.
            let _ = stream.write_all(OCCUPIED);
            return Ok(None);
        }
        self.attach(stream).map(Some)
    }

    /// Attaches `stream`. Returns the descriptor to wait on for input.
    pub fn attach(&mut self, stream: UnixStream) -> io::Result<i32> {
        self.console.attach(stream.try_clone()?)?;
        let fd = stream.as_raw_fd();
        self.terminal = Some(Terminal { stream, input: Input::Awaited });
        Ok(fd)
    }

    /// Handles the client's `events`: reads as much input as the serial port accepts. A client that has closed the
    /// connection is detached, and its descriptor is no longer waited for.
    pub fn serve(&mut self, events: EventSet, serial: &mut Serial) -> Wait {
        let Some(terminal) = &mut self.terminal else { return Wait::Same };
        let before = terminal.input;
        if events.contains(EventSet::IN) {
            terminal.take_input(serial);
        }
        // Input sent before the connection was closed is accepted up to the free space.
        let goes_on = terminal.input == Input::Awaited && events.contains(EventSet::IN);
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) && !goes_on {
            self.console.detach();
            self.terminal = None;
            return Wait::Same;
        }
        if terminal.input == before { Wait::Same } else { terminal.wait() }
    }

    /// The serial port has free space again.
    pub fn resume(&mut self) -> Wait {
        match &mut self.terminal {
            Some(terminal) if terminal.input == Input::Held => {
                terminal.input = Input::Awaited;
                terminal.wait()
            }
            _ => Wait::Same,
        }
    }
}

impl Terminal {
    fn take_input(&mut self, serial: &mut Serial) {
        let mut buffer = [0; 1024];
        let room = serial.input_room().min(buffer.len());
        if room == 0 {
            self.input = Input::Held;
            return;
        }
        match self.stream.read(&mut buffer[..room]) {
            Ok(count) if count > 0 => {
                serial.input(&buffer[..count]);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Ok(_) | Err(_) => self.input = Input::Ended,
        }
    }

    /// Without input to read, wait only for the close, which epoll always reports.
    fn wait(&self) -> Wait {
        let events = if self.input == Input::Awaited { EventSet::IN } else { EventSet::empty() };
        Wait::For(self.stream.as_raw_fd(), events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::bus::BusDevice;
    use crate::vmm::irq::IrqLine;
    use crate::vmm::timeline::Timeline;
    use std::sync::Arc;
    use vmm_sys_util::eventfd::EventFd;

    struct Bench {
        dir: tempfile::TempDir,
        socket: ConsoleSocket,
        console: Console,
        serial: Serial,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::new(None, Arc::new(Timeline::default())).unwrap();
        let socket = ConsoleSocket::bind(&dir.path().join(SOCKET), console.clone()).unwrap();
        let room = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let serial = Serial::new(IrqLine::new().unwrap(), console.writer(), room);
        Bench { dir, socket, console, serial }
    }

    impl Bench {
        fn connect(&mut self) -> (UnixStream, Option<i32>) {
            let stream = UnixStream::connect(self.dir.path().join(SOCKET)).unwrap();
            let fd = self.socket.accept().unwrap();
            (stream, fd)
        }

        /// Reads the input as the guest does.
        fn typed(&mut self) -> String {
            let mut register = |offset| {
                let mut byte = [0];
                self.serial.read(offset, &mut byte);
                byte[0]
            };
            let mut typed = String::new();
            // The data-ready bit of the line status register.
            while register(5) & 1 != 0 {
                typed.push(register(0).into());
            }
            typed
        }
    }

    fn read(stream: &mut UnixStream) -> String {
        let mut bytes = [0; 256];
        let count = stream.read(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[test]
    fn whoever_connects_is_the_terminal() {
        let mut bench = bench();
        let (mut terminal, fd) = bench.connect();
        assert_eq!(bench.socket.terminal(), fd);
        assert!(fd.is_some());
        bench.console.writer().write_all(b"login: ").unwrap();
        assert_eq!(read(&mut terminal), "login: ");
        terminal.write_all(b"root\n").unwrap();
        assert_eq!(bench.socket.serve(EventSet::IN, &mut bench.serial), Wait::Same);
        assert_eq!(bench.typed(), "root\n");
        let mode = bench.dir.path().join(SOCKET).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_second_terminal_is_told_and_sent_away() {
        let mut bench = bench();
        let (mut first, _) = bench.connect();
        let (mut second, fd) = bench.connect();
        assert_eq!(fd, None);
        assert_eq!(read(&mut second), "another terminal is attached to this machine's console\n");
        assert_eq!(read(&mut second), "");
        bench.console.writer().write_all(b"x").unwrap();
        assert_eq!(read(&mut first), "x");
    }

    #[test]
    fn a_terminal_that_leaves_makes_room_even_when_its_input_is_not_taken() {
        let mut bench = bench();
        let (mut first, fd) = bench.connect();
        while bench.serial.input_room() > 0 {
            first.write_all(b"a flood of keys").unwrap();
            bench.socket.serve(EventSet::IN, &mut bench.serial);
        }
        first.write_all(b"more").unwrap();
        let held = bench.socket.serve(EventSet::IN, &mut bench.serial);
        assert_eq!(held, Wait::For(fd.unwrap(), EventSet::empty()));
        drop(first);
        bench.socket.serve(EventSet::HANG_UP, &mut bench.serial);
        let (mut next, fd) = bench.connect();
        assert!(fd.is_some());
        bench.console.writer().write_all(b"x").unwrap();
        assert_eq!(read(&mut next), "x");
    }

    #[test]
    fn a_terminal_without_more_input_goes_on_listening() {
        let mut bench = bench();
        let (mut terminal, fd) = bench.connect();
        terminal.shutdown(std::net::Shutdown::Write).unwrap();
        let wait = bench.socket.serve(EventSet::IN, &mut bench.serial);
        assert_eq!(wait, Wait::For(fd.unwrap(), EventSet::empty()));
        bench.console.writer().write_all(b"x").unwrap();
        assert_eq!(read(&mut terminal), "x");
        assert_eq!(bench.connect().1, None);
    }

    #[test]
    fn what_was_typed_before_leaving_arrives() {
        let mut bench = bench();
        let (mut terminal, _) = bench.connect();
        terminal.write_all(b"halt\n").unwrap();
        drop(terminal);
        bench.socket.serve(EventSet::IN | EventSet::HANG_UP, &mut bench.serial);
        assert_eq!(bench.typed(), "halt\n");
        bench.socket.serve(EventSet::IN | EventSet::HANG_UP, &mut bench.serial);
        assert!(bench.connect().1.is_some());
    }
}
