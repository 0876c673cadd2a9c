//! The output side of the serial console: a bounded log file and, if one is attached, a client.
//!
//! No function here blocks a vCPU: a client that reads too slowly loses bytes.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use machine::bounded_log::BoundedLog;
use machine::timeline::{Mark, Timeline};

/// At this size in bytes, the log is renamed to [`FULL_CONSOLE_LOG`](machine::files::FULL_CONSOLE_LOG) and a new log is
/// started.
pub const LOG_LIMIT: u64 = 1 << 20;

/// The console's output side, shared between the serial port and the event loop.
#[derive(Debug, Clone)]
pub struct Console(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    timeline: Arc<Timeline>,
    sinks: Mutex<Sinks>,
}

#[derive(Debug)]
struct Sinks {
    log: Option<Log>,
    terminal: Option<UnixStream>,
}

impl Console {
    pub fn new(log: Option<&Path>, timeline: Arc<Timeline>) -> io::Result<Console> {
        let log = log.map(Log::open).transpose()?;
        Ok(Console(Arc::new(Inner { timeline, sinks: Mutex::new(Sinks { log, terminal: None }) })))
    }

    /// Also sends all output to `stream`, until it is closed. Replaces an attached stream.
    pub fn attach(&self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        self.sinks().terminal = Some(stream);
        Ok(())
    }

    pub fn detach(&self) {
        self.sinks().terminal = None;
    }

    pub fn writer(&self) -> ConsoleWriter {
        ConsoleWriter(self.clone())
    }

    fn sinks(&self) -> std::sync::MutexGuard<'_, Sinks> {
        machine::sync::lock(&self.0.sinks)
    }
}

/// Writes to a [`Console`]. Never fails, so that a full disk does not disturb the guest.
#[derive(Debug)]
pub struct ConsoleWriter(Console);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.timeline.mark(Mark::FirstConsoleByte);
        let mut sinks = self.0.sinks();
        if let Some(log) = &mut sinks.log {
            log.write(bytes);
        }
        let result = sinks.terminal.as_mut().map(|terminal| terminal.write(bytes));
        if let Some(Err(error)) = result
            && error.kind() != io::ErrorKind::WouldBlock
        {
            sinks.terminal = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Log {
    file: BoundedLog,
    failed: bool,
}

impl Log {
    fn open(path: &Path) -> io::Result<Log> {
        Ok(Log { file: BoundedLog::open(path, LOG_LIMIT)?, failed: false })
    }

    fn write(&mut self, bytes: &[u8]) {
        match self.file.write(bytes) {
            Ok(_) => self.failed = false,
            Err(error) if !self.failed => {
                log::warn!("cannot write {}: {error}; console output is lost", self.file.path().display());
                self.failed = true;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn log_stays_within_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let console = Console::new(Some(&path), Arc::new(Timeline::default())).unwrap();
        let mut writer = console.writer();
        for _ in 0..80 {
            writer.write_all(&[b'x'; 65_536]).unwrap();
        }
        let size: u64 =
            std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(size <= 2 * LOG_LIMIT + 65_536, "{size}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn slow_reader_does_not_block_the_writer() {
        let console = Console::new(None, Arc::new(Timeline::default())).unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        console.attach(far).unwrap();
        let mut writer = console.writer();
        for _ in 0..100 {
            writer.write_all(&[b'x'; 65_536]).unwrap();
        }
        let mut buffer = [0; 16];
        near.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, [b'x'; 16]);
    }

    #[test]
    fn first_console_byte_is_marked_in_timeline() {
        let timeline = Arc::new(Timeline::default());
        let console = Console::new(None, Arc::clone(&timeline)).unwrap();
        assert_eq!(timeline.record().at(Mark::FirstConsoleByte), None);
        console.writer().write_all(b"L").unwrap();
        assert!(timeline.record().at(Mark::FirstConsoleByte).is_some());
    }
}
