//! The first that a restored guest hears: that it was saved, what time it is, and who it is now.
//!
//! Its agent is told over vsock before anybody else reaches it. That it has answered is the machine's ready.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::rand::{GetRandomFlags, getrandom};
use wisp_agent::protocol::{Connection, Hello, ProtocolError, Resumed, ToGuest, ToHost, VERSION};
use wisp_agent::seed::MAX_SEED;

/// How long the guest may take: with its kernel emulated and the host busy, too.
const TIMEOUT: Duration = Duration::from_secs(60);
/// What the kernel's generator takes as a new beginning.
const ENTROPY: usize = 32;

/// Why a guest does not know.
#[derive(Debug, thiserror::Error)]
enum ResumeError {
    #[error("it has no agent, or one that does not listen")]
    NoAgent,
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("its agent: {0}")]
    Agent(String),
    #[error("{0}")]
    Host(#[from] io::Error),
}

/// Tells the agent at the other end of `stream` in a thread of its own, with the seed at `seed` if there is one, and calls
/// `on_ready` when it has answered.
pub(super) fn spawn(
    stream: UnixStream,
    seed: Option<PathBuf>,
    on_ready: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("resume".into()).stack_size(128 << 10).spawn(move || {
        match tell(stream, seed.as_deref()) {
            Ok(()) => on_ready(),
            Err(error) => log::warn!("the guest does not know that it was restored: {error}"),
        }
    })
}

fn tell(mut stream: UnixStream, seed: Option<&Path>) -> Result<(), ResumeError> {
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&stream, direction, Some(TIMEOUT)).map_err(io::Error::from)?;
    }
    let seed = seed.map(read_seed).transpose()?;
    await_agent(&mut stream)?;
    let mut connection = Connection::new(stream.into());
    let mut entropy = vec![0; ENTROPY];
    getrandom(&mut entropy[..], GetRandomFlags::empty()).map_err(io::Error::from)?;
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Both at once, so that the guest need not be woken twice.
    connection.writer.queue(&Hello { version: VERSION })?;
    connection.writer.send(&ToGuest::Resumed(Resumed { time, entropy, seed }))?;
    match connection.reader.receive::<Hello>()? {
        Hello { version: VERSION } => {}
        Hello { version } => return Err(ProtocolError::VersionMismatch { ours: VERSION, theirs: version }.into()),
    }
    match connection.reader.receive()? {
        ToHost::Done => Ok(()),
        ToHost::Failed(why) => Err(ResumeError::Agent(why)),
        _ => Err(ProtocolError::Unexpected("it does not answer the request").into()),
    }
}

fn read_seed(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_SEED as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The vsock device says by a line that the guest has accepted, and closes the stream if it does not.
fn await_agent(stream: &mut UnixStream) -> Result<(), ResumeError> {
    let mut byte = [0];
    while byte[0] != b'\n' {
        if stream.read(&mut byte)? == 0 {
            return Err(ResumeError::NoAgent);
        }
    }
    Ok(())
}
