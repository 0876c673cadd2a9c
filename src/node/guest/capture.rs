//! Runs a command in a guest and captures its output, for callers without a terminal or pipe.

use wisp_agent::protocol::{AgentConnection, ExecRequest, ExitStatus, OutputStream, ToGuest, ToHost};

use super::{Agent, Error};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub status: ExitStatus,
    /// First bytes of the standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// First bytes of the standard error, up to the limit.
    pub stderr: Vec<u8>,
}

impl Agent {
    /// Runs a command without input until it exits, and keeps the first `limit` bytes of each output. Calls `on_output`
    /// with the captured standard output after each part that is received.
    ///
    /// Unlike [`exec`](Self::exec), this does not change the handling of signals. Errors are those of `exec`, except
    /// [`Error::Interrupted`].
    pub fn capture(
        mut self,
        request: ExecRequest,
        limit: usize,
        mut on_output: impl FnMut(&[u8]),
    ) -> Result<Captured, Error> {
        let silence = self.silence;
        self.begin(&ToGuest::Exec(request))?;
        let AgentConnection { writer, reader } = &mut self.connection;
        // Fails if the agent has already responded, for example that there is no such command. The response is still read.
        let _ = writer.send(&ToGuest::StdinEnd);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let keep = |kept: &mut Vec<u8>, bytes: &[u8]| {
            let room = limit.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        };
        loop {
            match reader.receive().map_err(|error| Error::from(error).of_silence(silence))? {
                ToHost::Output(OutputStream::Stdout, bytes) => {
                    keep(&mut stdout, bytes.0);
                    on_output(&stdout);
                }
                ToHost::Output(OutputStream::Stderr, bytes) => keep(&mut stderr, bytes.0),
                ToHost::StdinCredit(_) => {}
                ToHost::Exited(status) => return Ok(Captured { status, stdout, stderr }),
                message => return Err(Error::instead_of_output(message)),
            }
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
    fn missing_command_is_an_error() {
        let request = ExecRequest { argv: vec!["/no/such".into()], ..ExecRequest::default() };
        let error = agent().capture(request, 10, |_| ()).expect_err("unknown");
        assert!(matches!(error, Error::CommandNotFound(_)), "{error}");
    }
}
