//! The console socket: one client at a time connects to `console.sock` and uses the serial port as its terminal.
//!
//! A client that shuts down its sending side keeps receiving; it is detached when it closes the connection. No function
//! here blocks: the event loop reports when a socket is readable.

use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use vmm_sys_util::epoll::EventSet;

use super::devices::console::Console;
use super::devices::serial::Serial;
use machine::unix_socket;

/// Sent to a client that connects while another client is attached.
const OCCUPIED: &[u8] = b"another terminal is attached to this machine's console\n";

#[derive(Debug, thiserror::Error)]
#[error("cannot create the console socket {}: {source}", path.display())]
pub struct ConsoleSocketError {
    pub path: PathBuf,
    pub source: io::Error,
}

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Awaited,
    /// The serial port's buffer is full.
    Held,
    /// The client has shut down its sending side.
    Ended,
}

/// A change to the events that the event loop waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Same,
    /// The client's descriptor and its new events.
    For(i32, EventSet),
}

impl ConsoleSocket {
    pub fn bind(path: &Path, console: Console) -> Result<ConsoleSocket, ConsoleSocketError> {
        let failed = |source| ConsoleSocketError { path: path.to_path_buf(), source };
        let listener = unix_socket::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(ConsoleSocket { listener, console, terminal: None })
    }

    pub fn listener(&self) -> i32 {
        self.listener.as_raw_fd()
    }

    pub fn terminal(&self) -> Option<i32> {
        self.terminal.as_ref().map(|terminal| terminal.stream.as_raw_fd())
    }

    /// Accepts a client and returns the descriptor to wait on for input; returns `None` if another client is attached.
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

    /// Attaches a client. Returns the descriptor to wait on for input.
    pub fn attach(&mut self, stream: UnixStream) -> io::Result<i32> {
        self.console.attach(stream.try_clone()?)?;
        let fd = stream.as_raw_fd();
        self.terminal = Some(Terminal { stream, input: Input::Awaited });
        Ok(fd)
    }

    /// Reads input, up to the serial port's free space. Detaches a client that has closed the connection.
    pub fn serve(&mut self, events: EventSet, serial: &mut Serial) -> Wait {
        let Some(terminal) = &mut self.terminal else { return Wait::Same };
        let before = terminal.input;
        if events.contains(EventSet::IN) {
            terminal.take_input(serial);
        }
        // After the client has closed the connection, its remaining input is read first, as far as there is space.
        let may_have_input = terminal.input == Input::Awaited && events.contains(EventSet::IN);
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) && !may_have_input {
            self.console.detach();
            self.terminal = None;
            return Wait::Same;
        }
        if terminal.input == before { Wait::Same } else { terminal.wait() }
    }

    /// Waits for input again, once the serial port has free space.
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

    /// Without input to read, waits only for the close, which epoll always reports.
    fn wait(&self) -> Wait {
        let events = if self.input == Input::Awaited { EventSet::IN } else { EventSet::empty() };
        Wait::For(self.stream.as_raw_fd(), events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::devices::serial::SerialState;
    use crate::irq::IrqLine;
    use machine::files::CONSOLE_SOCKET;
    use machine::timeline::Timeline;
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
        let socket = ConsoleSocket::bind(&dir.path().join(CONSOLE_SOCKET), console.clone()).unwrap();
        let room = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let serial = Serial::new(&SerialState::default(), IrqLine::new().unwrap(), console.writer(), room).unwrap();
        Bench { dir, socket, console, serial }
    }

    impl Bench {
        fn connect(&mut self) -> (UnixStream, Option<i32>) {
            let stream = UnixStream::connect(self.dir.path().join(CONSOLE_SOCKET)).unwrap();
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
    fn connected_client_gets_output_and_sends_input() {
        let mut bench = bench();
        let (mut terminal, fd) = bench.connect();
        assert_eq!(bench.socket.terminal(), fd);
        assert!(fd.is_some());
        bench.console.writer().write_all(b"login: ").unwrap();
        assert_eq!(read(&mut terminal), "login: ");
        terminal.write_all(b"root\n").unwrap();
        assert_eq!(bench.socket.serve(EventSet::IN, &mut bench.serial), Wait::Same);
        assert_eq!(bench.typed(), "root\n");
        let mode = bench.dir.path().join(CONSOLE_SOCKET).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn second_terminal_is_refused() {
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
    fn closed_terminal_with_held_input_is_detached() {
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
    fn half_closed_terminal_keeps_receiving() {
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
    fn input_before_close_is_delivered() {
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
