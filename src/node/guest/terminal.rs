//! The host's terminal: its size, and raw mode with guaranteed restoration.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, Once};

use machine::sync::lock;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use wisp_agent::protocol::{TerminalRequest, WindowSize};

/// Size to assume for a terminal that does not report its own.
const DEFAULT_SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

/// Returns a request for a terminal like the one that `fd` refers to, or `None` if `fd` is not a terminal.
#[must_use]
pub fn request(fd: impl AsFd) -> Option<TerminalRequest> {
    if !isatty(&fd) {
        return None;
    }
    let term = std::env::var_os("TERM").filter(|term| !term.is_empty()).unwrap_or_else(|| OsString::from("linux"));
    Some(TerminalRequest { size: window_size(fd).unwrap_or(DEFAULT_SIZE), term })
}

/// Returns the terminal's size, or `None` if the terminal does not report it.
#[must_use]
pub fn window_size(fd: impl AsFd) -> Option<WindowSize> {
    let size = tcgetwinsize(fd).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// The terminal in raw mode, if any.
static SAVED: Mutex<Option<Saved>> = Mutex::new(None);

struct Saved {
    terminal: OwnedFd,
    modes: Termios,
}

/// Restores the terminal's modes when dropped. A panic hook does so too, because release builds abort on panic without
/// dropping anything.
#[derive(Debug)]
#[must_use]
pub struct RawMode(());

impl RawMode {
    /// Puts the terminal into raw mode, so that every key reaches the guest, including Ctrl-C. Fails if a terminal is
    /// already in raw mode.
    pub fn enter(fd: BorrowedFd<'_>) -> io::Result<Self> {
        static PANIC_HOOK: Once = Once::new();
        PANIC_HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                next(info);
            }));
        });
        let modes = tcgetattr(fd)?;
        let mut raw = modes.clone();
        raw.make_raw();
        let mut saved = lock(&SAVED);
        if saved.is_some() {
            return Err(io::Error::other("a terminal is already in raw mode"));
        }
        *saved = Some(Saved { terminal: fd.try_clone_to_owned()?, modes });
        drop(saved);
        let mode = Self(());
        tcsetattr(fd, OptionalActions::Drain, &raw)?;
        Ok(mode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // `lock` could deadlock: this thread may panic while it holds the lock.
    let saved = match SAVED.try_lock() {
        Ok(mut saved) => saved.take(),
        Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner().take(),
        Err(std::sync::TryLockError::WouldBlock) => None,
    };
    if let Some(saved) = saved {
        let _ = tcsetattr(&saved.terminal, OptionalActions::Drain, &saved.modes);
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::LocalModes;

    use super::*;

    #[test]
    fn raw_mode_ends_with_guard_or_panic() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        unlockpt(&master).expect("unlocked");
        let terminal = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("the terminal side");
        let echoes = || tcgetattr(&terminal).expect("modes").local_modes.contains(LocalModes::ECHO);
        assert!(echoes());

        let guard = RawMode::enter(terminal.as_fd()).expect("raw");
        assert!(!echoes());
        drop(guard);
        assert!(echoes());

        let guard = RawMode::enter(terminal.as_fd()).expect("raw");
        let _ = std::thread::spawn(|| panic!("on purpose")).join();
        assert!(echoes(), "the panic hook did not restore the modes");
        drop(guard);
    }
}
