//! Connects this terminal to a guest's serial console.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::Context;
use wisp_agent::poll::{Interest, poll};

use node::guest::terminal::RawMode;

/// Ctrl-], which detaches from the console.
const ESCAPE: u8 = 0x1d;

/// The reason why the console was detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The user typed the escape character.
    ByEscape,
    /// The VMM closed the connection.
    GuestEnded,
}

/// Connects standard input and output to a console, until the guest ends or the user types the escape character.
pub fn join(stream: UnixStream) -> anyhow::Result<Left> {
    let stdin = io::stdin();
    let is_terminal = io::IsTerminal::is_terminal(&stdin);
    let raw = is_terminal.then(|| RawMode::enter(rustix::stdio::stdin())).transpose();
    let _raw = raw.context("cannot put the terminal into raw mode")?;
    copy(&stream, rustix::stdio::stdin(), &mut io::stdout(), is_terminal)
}

fn copy(stream: &UnixStream, input: impl AsFd, output: &mut impl Write, is_terminal: bool) -> anyhow::Result<Left> {
    let mut buffer = [0; 4096];
    let mut input_open = true;
    loop {
        let waits = [Some((stream.as_fd(), Interest::Read)), input_open.then(|| (input.as_fd(), Interest::Read))];
        let [from_guest, from_user] = poll(waits, None).context("polling the console failed")?;
        if from_guest.read {
            match (&*stream).read(&mut buffer) {
                Ok(0) => return Ok(Left::GuestEnded),
                Ok(count) => {
                    output
                        .write_all(&buffer[..count])
                        .and_then(|()| output.flush())
                        .context("cannot write to standard output")?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(Left::GuestEnded),
            }
        }
        if from_user.read {
            let count = rustix::io::read(&input, &mut buffer).unwrap_or(0);
            let escape = if is_terminal { buffer[..count].iter().position(|byte| *byte == ESCAPE) } else { None };
            let typed = &buffer[..escape.unwrap_or(count)];
            // If writing fails because the guest has ended, the next read detects that.
            let _ = (&*stream).write_all(typed);
            if escape.is_some() {
                return Ok(Left::ByEscape);
            }
            if count == 0 {
                // Standard input has ended. Keep showing the guest's output.
                input_open = false;
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_shown_until_the_guest_ends() {
        let (mut guest, stream) = UnixStream::pair().unwrap();
        let (_keep_open, input) = UnixStream::pair().unwrap();
        guest.write_all(b"booting\r\n").unwrap();
        drop(guest);
        let mut shown = Vec::new();
        assert_eq!(copy(&stream, &input, &mut shown, false).unwrap(), Left::GuestEnded);
        assert_eq!(shown, b"booting\r\n");
    }

    #[test]
    fn escape_character_detaches_after_earlier_input_is_sent() {
        let (mut guest, stream) = UnixStream::pair().unwrap();
        let (mut keyboard, input) = UnixStream::pair().unwrap();
        keyboard.write_all(b"ls\r\x1dmore").unwrap();
        assert_eq!(copy(&stream, &input, &mut Vec::new(), true).unwrap(), Left::ByEscape);
        drop(stream);
        let mut typed = Vec::new();
        guest.read_to_end(&mut typed).unwrap();
        assert_eq!(typed, b"ls\r");
    }

    #[test]
    fn escape_character_from_pipe_is_sent_to_guest() {
        let (mut guest, stream) = UnixStream::pair().unwrap();
        let (mut keyboard, input) = UnixStream::pair().unwrap();
        keyboard.write_all(b"\x1d").unwrap();
        drop(keyboard);
        let reader = std::thread::spawn(move || {
            let mut typed = Vec::new();
            guest.read_to_end(&mut typed).unwrap();
            typed
        });
        assert_eq!(copy(&stream, &input, &mut Vec::new(), false).unwrap(), Left::GuestEnded);
        assert_eq!(reader.join().unwrap(), b"\x1d");
    }
}
