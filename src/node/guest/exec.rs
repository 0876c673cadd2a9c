//! Runs a command in a guest with this process's streams, as if it ran here.
//!
//! The caller's thread receives frames and writes the output. A second thread, notified through [`Shared`], sends
//! input, signals and window sizes. Unread output, for example in a pager, therefore does not delay a signal to the
//! guest.
//!
//! Without a terminal, the signals in `FORWARDED` are forwarded to the command. With a terminal, control keys reach the
//! guest as bytes; a signal from elsewhere ends the session, and the guest sends SIGHUP to the command.
//!
//! Input is read at most 64 KiB ahead of the command, and not after the command has exited.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::termios::isatty;
use wisp_agent::poll::{Interest, poll};
use wisp_agent::protocol::{
    AgentConnection, Bytes, ExecRequest, ExitStatus, FrameReader, FrameWriter, MAX_DATA, OutputStream, ProtocolError,
    STDIN_WINDOW, ToGuest, ToHost,
};

use super::signals::Signals;
use super::terminal::{RawMode, window_size};
use super::{Agent, Error};

const FORWARDED: [i32; 6] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

const WITH_TERMINAL: [i32; 5] = [libc::SIGWINCH, libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

#[derive(Debug, Clone, Copy)]
pub struct Streams<'a> {
    /// Input of the command, put into raw mode if it is a terminal and the command gets one, too.
    pub input: BorrowedFd<'a>,
    pub output: BorrowedFd<'a>,
    pub error: BorrowedFd<'a>,
}

impl Streams<'static> {
    #[must_use]
    pub fn own() -> Self {
        Self { input: rustix::stdio::stdin(), output: rustix::stdio::stdout(), error: rustix::stdio::stderr() }
    }
}

impl Agent {
    /// Runs a command, connected to `streams`, until it exits.
    ///
    /// If the reader of an output stream closes it, the command receives SIGPIPE at its next write. A process can run
    /// only one such command at a time, because its signals can be forwarded to only one.
    ///
    /// # Errors
    /// [`Error::CommandNotFound`], [`Error::NotExecutable`] or [`Error::Guest`] if the command cannot be started;
    /// [`Error::GuestGone`] if the guest stops before the command exits; [`Error::Interrupted`].
    pub fn exec(mut self, request: ExecRequest, streams: Streams<'_>) -> Result<ExitStatus, Error> {
        let has_terminal = request.terminal.is_some();
        let wanted: &[i32] = if has_terminal { &WITH_TERMINAL } else { &FORWARDED };
        let signals = Signals::take(wanted).map_err(|source| Error::Local { action: "handle signals", source })?;
        let raw_mode = (has_terminal && isatty(streams.input)).then(|| RawMode::enter(streams.input)).transpose();
        let _raw_mode = raw_mode.map_err(|source| Error::Local { action: "put the terminal into raw mode", source })?;
        let shared = Shared::new(has_terminal)?;
        let silence = self.silence;
        self.begin(&ToGuest::Exec(request))?;
        let AgentConnection { writer, reader } = &mut self.connection;
        thread::scope(|scope| {
            let sender = Sender {
                shared: &shared,
                writer,
                signals: &signals,
                streams,
                window: STDIN_WINDOW,
                input_ended: false,
            };
            let sender = thread::Builder::new().name("guest-exec-input".into()).spawn_scoped(scope, || sender.run());
            let sender = sender.map_err(|source| Error::Local { action: "start a thread", source })?;
            let outcome = receive(&shared, reader, streams).map_err(|error| error.of_silence(silence));
            shared.finish();
            // The sender may be blocked on a write to the guest.
            let _ = rustix::net::shutdown(reader.as_fd(), Shutdown::Both);
            if sender.join().is_err() {
                log::error!("the thread that sends input to the guest panicked");
            }
            match shared.interrupted.load(Ordering::Acquire) {
                0 => outcome,
                signal => outcome.map_err(|_| Error::Interrupted(signal)),
            }
        })
    }
}

pub(super) struct Shared {
    has_terminal: bool,
    /// Input bytes that the guest has room for and that the sender has not added to its window yet.
    credit: AtomicUsize,
    output_closed: AtomicBool,
    error_closed: AtomicBool,
    finished: AtomicBool,
    /// The signal that ended a terminal session.
    interrupted: AtomicI32,
    /// An eventfd, readable after one of the other fields has changed.
    changed: OwnedFd,
}

impl Shared {
    pub(super) fn new(has_terminal: bool) -> Result<Self, Error> {
        let changed =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(Error::local("create an eventfd"))?;
        Ok(Self {
            has_terminal,
            credit: AtomicUsize::new(0),
            output_closed: AtomicBool::new(false),
            error_closed: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            interrupted: AtomicI32::new(0),
            changed,
        })
    }

    fn notify(&self) {
        // A write fails only if the counter is full, and then the eventfd is readable anyway.
        let _ = rustix::io::write(&self.changed, &1u64.to_ne_bytes());
    }

    fn finish(&self) {
        self.finished.store(true, Ordering::Release);
        self.notify();
    }
}

pub(super) fn receive(shared: &Shared, reader: &mut FrameReader, streams: Streams<'_>) -> Result<ExitStatus, Error> {
    loop {
        match reader.receive()? {
            ToHost::Output(stream, bytes) => {
                let (fd, closed) = match stream {
                    OutputStream::Stdout => (streams.output, &shared.output_closed),
                    OutputStream::Stderr => (streams.error, &shared.error_closed),
                };
                if closed.load(Ordering::Relaxed) {
                    continue;
                }
                match write_all(fd, bytes.0) {
                    Ok(()) => {}
                    Err(Errno::PIPE) => {
                        closed.store(true, Ordering::Release);
                        shared.notify();
                    }
                    Err(errno) => return Err(Error::local("write the command's output")(errno)),
                }
            }
            ToHost::StdinCredit(credit) => {
                shared.credit.fetch_add(credit as usize, Ordering::AcqRel);
                shared.notify();
            }
            ToHost::Exited(status) => return Ok(status),
            message => return Err(Error::instead_of_output(message)),
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // Another process has made the shared terminal or pipe non-blocking.
            Err(Errno::AGAIN) => {
                poll([Some((fd, Interest::Write))], None).map_err(|_| Errno::IO)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

struct Sender<'a> {
    shared: &'a Shared,
    writer: &'a mut FrameWriter,
    signals: &'a Signals,
    streams: Streams<'a>,
    /// Input bytes that may be sent now.
    window: usize,
    input_ended: bool,
}

impl Sender<'_> {
    fn run(mut self) {
        if let Err(error) = self.send() {
            // The receiving thread gets the same error and reports it.
            log::debug!("stopped sending input to the guest: {error}");
        }
    }

    fn send(&mut self) -> Result<(), ProtocolError> {
        let mut buffer = Vec::new();
        let (mut output_closed, mut error_closed) = (false, false);
        loop {
            self.writer.flush()?;
            let shared = self.shared;
            let wants_input = !self.input_ended && self.window > 0;
            let slots = [
                Some((shared.changed.as_fd(), Interest::Read)),
                Some((self.signals.as_fd(), Interest::Read)),
                wants_input.then_some((self.streams.input, Interest::Read)),
            ];
            let [changed, signal, input] = poll(slots, None)?;
            if changed.read {
                let mut count = [0; 8];
                let _ = rustix::io::read(&shared.changed, &mut count);
            }
            if shared.finished.load(Ordering::Acquire) {
                return Ok(());
            }
            // A guest that grants more credit than it has room for harms only itself.
            self.window = self.window.saturating_add(shared.credit.swap(0, Ordering::AcqRel)).min(STDIN_WINDOW);
            self.send_closed(&mut output_closed, &shared.output_closed, OutputStream::Stdout)?;
            self.send_closed(&mut error_closed, &shared.error_closed, OutputStream::Stderr)?;
            if signal.read {
                self.take_signals()?;
            }
            if input.read {
                self.take_input(&mut buffer)?;
            }
        }
    }

    fn send_closed(&mut self, sent: &mut bool, closed: &AtomicBool, stream: OutputStream) -> Result<(), ProtocolError> {
        if !*sent && closed.load(Ordering::Acquire) {
            *sent = true;
            self.writer.queue(&ToGuest::OutputClosed(stream))?;
        }
        Ok(())
    }

    fn take_signals(&mut self) -> Result<(), ProtocolError> {
        while let Some(signal) = self.signals.next() {
            if !self.shared.has_terminal {
                self.writer.queue(&ToGuest::Signal(signal))?;
            } else if signal == libc::SIGWINCH {
                if let Some(size) = window_size(self.streams.input) {
                    self.writer.queue(&ToGuest::Resize(size))?;
                }
            } else {
                self.shared.interrupted.store(signal, Ordering::Release);
                let _ = rustix::net::shutdown(self.writer.as_fd(), Shutdown::Both);
                return Err(ProtocolError::Closed);
            }
        }
        Ok(())
    }

    fn take_input(&mut self, buffer: &mut Vec<u8>) -> Result<(), ProtocolError> {
        buffer.resize(self.window.min(MAX_DATA), 0);
        match rustix::io::read(self.streams.input, &mut buffer[..]) {
            Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            // Input that cannot be read, for example from a closed terminal, is treated as ended.
            Ok(0) | Err(_) => {
                self.input_ended = true;
                self.writer.queue(&ToGuest::StdinEnd)
            }
            Ok(count) => {
                self.window -= count;
                self.writer.queue(&ToGuest::Stdin(Bytes(&buffer[..count])))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{PipeReader, Read, Write};
    use std::sync::{Mutex, MutexGuard};

    use rustix::process::{Signal, getpid, kill_process};
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

    use super::*;
    use crate::guest::terminal;
    use crate::guest::testing::{agent, shell};
    use machine::sync::lock;

    /// Serializes the commands: a process can run only one at a time.
    fn turn() -> MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        lock(&TURN)
    }

    fn null() -> File {
        File::options().read(true).write(true).open("/dev/null").expect("opened")
    }

    fn run(script: &str, input: impl AsFd) -> (Result<ExitStatus, Error>, String, String) {
        let _turn = turn();
        let (mut output, stdout) = std::io::pipe().expect("a pipe");
        let (mut error, stderr) = std::io::pipe().expect("a pipe");
        let read = |pipe: &mut PipeReader| {
            let mut text = String::new();
            pipe.read_to_string(&mut text).expect("UTF-8");
            text
        };
        thread::scope(|scope| {
            let output = scope.spawn(move || read(&mut output));
            let error = scope.spawn(move || read(&mut error));
            let streams = Streams { input: input.as_fd(), output: stdout.as_fd(), error: stderr.as_fd() };
            let status = agent().exec(shell(script), streams);
            drop((stdout, stderr));
            (status, output.join().expect("read"), error.join().expect("read"))
        })
    }

    #[test]
    fn exec_passes_on_streams_and_exit_code() {
        let (mut file, path) = tempfile::NamedTempFile::new().expect("a file").into_parts();
        file.write_all(&vec![b'x'; 1_000_000]).expect("written");
        let (status, output, error) = run("wc -c; echo err >&2; exit 9", File::open(&path).expect("there"));
        assert_eq!(status.expect("ran"), ExitStatus::Exited(9));
        assert_eq!((output.trim(), error.as_str()), ("1000000", "err\n"));
    }

    #[test]
    fn exec_with_empty_input_reads_end_of_file() {
        let (status, output, _) = run("cat; echo done", null());
        assert_eq!((status.expect("ran").exit_code(), output.as_str()), (0, "done\n"));
    }

    #[test]
    fn input_is_left_when_command_reads_nothing() {
        let (mut file, path) = tempfile::NamedTempFile::new().expect("a file").into_parts();
        file.write_all(&vec![b'x'; 1_000_000]).expect("written");
        let mut input = File::open(&path).expect("there");
        let (status, _, _) = run("exit 0", &input);
        assert_eq!(status.expect("ran").exit_code(), 0);
        let mut rest = Vec::new();
        input.read_to_end(&mut rest).expect("read");
        assert!(rest.len() >= 1_000_000 - 3 * STDIN_WINDOW, "{} left", rest.len());
    }

    #[test]
    fn missing_program_is_exit_code_127() {
        let _turn = turn();
        let null = null();
        let streams = Streams { input: null.as_fd(), output: null.as_fd(), error: null.as_fd() };
        let request = ExecRequest { argv: vec!["no-such-program".into()], ..Default::default() };
        let error = agent().exec(request, streams).expect_err("not there");
        assert_eq!(error.to_string(), "the guest: no-such-program: command not found");
        assert_eq!(error.exit_code(), 127);
    }

    #[test]
    fn closed_output_ends_command_with_sigpipe() {
        let _turn = turn();
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let null = null();
        let status = thread::scope(|scope| {
            scope.spawn(move || reader.read_exact(&mut [0; 2]).expect("some output"));
            agent()
                .exec(shell("exec yes"), Streams { input: null.as_fd(), output: writer.as_fd(), error: null.as_fd() })
        });
        assert_eq!(status.expect("ran"), ExitStatus::Signaled(libc::SIGPIPE));
    }

    #[test]
    fn signal_is_forwarded_to_command() {
        let _turn = turn();
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let null = null();
        let status = thread::scope(|scope| {
            scope.spawn(move || {
                reader.read_exact(&mut [0; 3]).expect("it runs");
                kill_process(getpid(), Signal::TERM).expect("sent");
            });
            let streams = Streams { input: null.as_fd(), output: writer.as_fd(), error: null.as_fd() };
            agent().exec(shell("echo up; exec sleep 1000"), streams)
        });
        assert_eq!(status.expect("ran").exit_code(), 128 + libc::SIGTERM);
    }

    #[test]
    fn terminal_is_raw_and_resized_during_command() {
        let _turn = turn();
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        unlockpt(&master).expect("unlocked");
        let tty = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("the terminal side");
        let resize = |rows, columns| {
            tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).expect("set");
        };
        let echoes = || tcgetattr(&tty).expect("modes").local_modes.contains(LocalModes::ECHO);
        let wait_for = |text: &str| {
            let mut seen = String::new();
            while !seen.contains(text) {
                let mut buffer = [0; 256];
                let count = rustix::io::read(&master, &mut buffer[..]).expect("output");
                seen += &String::from_utf8_lossy(&buffer[..count]);
            }
            seen
        };
        resize(30, 90);
        let request = ExecRequest {
            terminal: terminal::request(&tty),
            ..shell("stty size; trap 'stty size; exit 0' WINCH; echo trapped; while :; do read line; done")
        };
        let status = thread::scope(|scope| {
            scope.spawn(|| {
                assert!(wait_for("trapped").contains("30 90"));
                assert!(!echoes());
                resize(40, 120);
                // The kernel signals only the terminal's foreground process group, to which this test does not belong.
                kill_process(getpid(), Signal::WINCH).expect("sent");
                wait_for("40 120");
            });
            agent().exec(request, Streams { input: tty.as_fd(), output: tty.as_fd(), error: tty.as_fd() })
        });
        assert_eq!(status.expect("ran"), ExitStatus::Exited(0));
        assert!(echoes(), "the terminal's modes were not restored");
    }
}
