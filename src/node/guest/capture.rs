//! Runs a command in a guest and captures its output, for callers without a terminal or pipe.

use std::time::{Duration, Instant};

use wisp_agent::protocol::{ExecRequest, ExitStatus, FrameReader, OutputStream, ToGuest, ToHost};

use super::{Agent, Error};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub status: ExitStatus,
    /// First bytes of the standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// First bytes of the standard error, up to the limit.
    pub stderr: Vec<u8>,
}

/// A command that runs in the guest.
#[derive(Debug)]
pub struct RunningCommand(Agent);

/// The end of a [`RunningCommand`], with the first bytes of its output.
#[derive(Debug)]
pub struct CommandEnd {
    /// [`Error::TimedOut`] if the command was still running at the deadline.
    pub status: Result<ExitStatus, Error>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Agent {
    /// Runs a command without input until it exits, and keeps the first `limit` bytes of each output. Calls `on_output`
    /// with the captured standard output after each part that is received.
    ///
    /// Unlike [`exec`](Self::exec), this does not change the handling of signals. Errors are those of `exec`, except
    /// [`Error::Interrupted`].
    pub fn capture(
        self,
        request: ExecRequest,
        limit: usize,
        mut on_output: impl FnMut(&[u8]),
    ) -> Result<Captured, Error> {
        let silence = self.silence;
        let RunningCommand(mut agent) = self.start(request)?;
        let mut output = Output::new(limit);
        loop {
            match output.receive(&mut agent.connection.reader).map_err(|error| error.of_silence(silence))? {
                Received::Stdout => on_output(&output.stdout),
                Received::Other => {}
                Received::Exited(status) => {
                    return Ok(Captured { status, stdout: output.stdout, stderr: output.stderr });
                }
            }
        }
    }

    /// Starts a command without input. Fails if the guest does not accept the request.
    pub fn start(mut self, request: ExecRequest) -> Result<RunningCommand, Error> {
        self.begin(&ToGuest::Exec(request))?;
        // Fails if the agent has already responded, for example that there is no such command. The response is still read.
        let _ = self.connection.writer.send(&ToGuest::StdinEnd);
        Ok(RunningCommand(self))
    }
}

impl RunningCommand {
    /// Waits until the command exits, at most for `timeout`, and keeps the first `limit` bytes of each output. At the
    /// timeout, the connection ends, and the agent kills the command.
    #[must_use]
    pub fn wait(mut self, limit: usize, timeout: Duration) -> CommandEnd {
        let deadline = Instant::now() + timeout;
        let mut output = Output::new(limit);
        let status = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(Error::TimedOut(timeout));
            }
            let received = self.0.limit(Some(left)).and_then(|()| output.receive(&mut self.0.connection.reader));
            match received {
                Ok(Received::Exited(status)) => break Ok(status),
                Ok(Received::Stdout | Received::Other) => {}
                Err(error) => break Err(error.of_silence(Some(timeout))),
            }
        };
        CommandEnd { status, stdout: output.stdout, stderr: output.stderr }
    }
}

/// The first bytes of a command's output.
struct Output {
    limit: usize,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

enum Received {
    Stdout,
    Other,
    Exited(ExitStatus),
}

impl Output {
    fn new(limit: usize) -> Output {
        Output { limit, stdout: Vec::new(), stderr: Vec::new() }
    }

    fn receive(&mut self, reader: &mut FrameReader) -> Result<Received, Error> {
        let limit = self.limit;
        let keep = |kept: &mut Vec<u8>, bytes: &[u8]| {
            let room = limit.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        };
        match reader.receive()? {
            ToHost::Output(OutputStream::Stdout, bytes) => {
                keep(&mut self.stdout, bytes.0);
                Ok(Received::Stdout)
            }
            ToHost::Output(OutputStream::Stderr, bytes) => {
                keep(&mut self.stderr, bytes.0);
                Ok(Received::Other)
            }
            ToHost::StdinCredit(_) => Ok(Received::Other),
            ToHost::Exited(status) => Ok(Received::Exited(status)),
            message => Err(Error::instead_of_output(message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::testing::{agent, shell};

    #[test]
    fn capture_keeps_start_of_output() {
        let mut seen = Vec::new();
        let script = "echo first; cat; echo wrong >&2; head -c 100000 /dev/zero; exit 3";
        let captured = agent().capture(shell(script), 10, |output| seen = output.to_vec()).expect("it runs");
        assert_eq!(captured.status, ExitStatus::Exited(3));
        assert_eq!((&captured.stdout[..], &captured.stderr[..]), (&b"first\n\0\0\0\0"[..], &b"wrong\n"[..]));
        assert_eq!(seen, captured.stdout);
    }

    #[test]
    fn silent_command_times_out() {
        let limit = std::time::Duration::from_millis(50);
        let error = agent().with_silence_limit(limit).capture(shell("echo up; exec sleep 1000"), 10, |_| ());
        assert!(matches!(error, Err(Error::TimedOut(after)) if after == limit), "{error:?}");
    }

    #[test]
    fn running_command_ends_with_status_or_timeout() {
        let wait = |script: &str, timeout| agent().start(shell(script)).expect("it starts").wait(3, timeout);
        let end = wait("echo first; echo wrong >&2; exit 3", Duration::from_secs(60));
        assert_eq!(end.status.expect("it exits"), ExitStatus::Exited(3));
        assert_eq!((&end.stdout[..], &end.stderr[..]), (&b"fir"[..], &b"wro"[..]));
        let end = wait("exec sleep 1000", Duration::from_millis(50));
        assert!(matches!(end.status, Err(Error::TimedOut(_))), "{:?}", end.status);
    }

    #[test]
    fn missing_command_is_an_error() {
        let request = ExecRequest { argv: vec!["/no/such".into()], ..ExecRequest::default() };
        let error = agent().capture(request, 10, |_| ()).expect_err("unknown");
        assert!(matches!(error, Error::CommandNotFound(_)), "{error}");
    }
}
