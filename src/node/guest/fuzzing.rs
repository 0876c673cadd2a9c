//! Entry points for fuzzing the agent protocol: frames, and the host's side against an arbitrary guest.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use wisp_agent::protocol::frame::{decode, encode, locate};
use wisp_agent::protocol::{AgentConnection, Hello, ToGuest, ToHost, VERSION};
use wisp_agent::seed::Seed;
use wisp_agent::tree::Holes;

use super::exec::{self, Shared};
use super::{Agent, Streams};

/// Never expires, because everything that the guest says is sent before the operation starts.
const TIMEOUT: Duration = Duration::from_secs(10);

pub fn frames(data: &[u8]) {
    let mut rest = data;
    while let Ok(Ok(range)) = locate(rest) {
        let (frame, end) = (&rest[range.clone()], range.end);
        let _ = (decode::<Hello>(frame), decode::<ToGuest>(frame), decode::<ToHost>(frame));
        rest = &rest[end..];
    }
    let _ = (decode::<ToGuest>(data), decode::<ToHost>(data), Seed::decode(data));
}

/// Runs an operation of the host. The first byte of `data` selects it, and the guest sends the rest.
pub fn host(data: &[u8]) {
    let Some((which, said)) = data.split_first() else { return };
    // Operations require a greeting first.
    let greeting = if which % 8 < 6 { hello() } else { Vec::new() };
    let Some((host, guest)) = connection_to_guest(&[&greeting, said].concat()) else { return };
    let agent = Agent { connection: AgentConnection::new(host.into()), patience: TIMEOUT, silence: None };
    match which % 8 {
        0 => copy(agent, "new"),
        1 => copy(agent, "."),
        2 => copy(agent, "link/"),
        3 => drop(agent.ping(TIMEOUT)),
        4 => drop(agent.user_data(TIMEOUT)),
        5 => drop(agent.shutdown(false, TIMEOUT)),
        6 => {
            let mut connection = agent.connection;
            let _ = connection.greet();
        }
        _ => output(agent),
    }
    drop(guest);
}

fn hello() -> Vec<u8> {
    let mut greeting = Vec::new();
    encode(&Hello { version: VERSION }, &mut greeting).expect("it is short");
    greeting
}

/// Returns both ends of a connection on which the guest has sent `said` and then closed its side.
fn connection_to_guest(said: &[u8]) -> Option<(UnixStream, UnixStream)> {
    let (host, mut guest) = UnixStream::pair().ok()?;
    // Gives up on input that does not fit into the socket's buffer.
    guest.set_nonblocking(true).ok()?;
    guest.write_all(said).ok()?;
    guest.shutdown(std::net::Shutdown::Write).ok()?;
    Some((host, guest))
}

/// Checks that only the copy of `/etc` appears, whatever the guest sends. One of the user's links points back to the
/// destination's directory, and another one points outside.
fn copy(agent: Agent, destination: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
    for path in [&inside.join("etc"), &outside] {
        fs::create_dir_all(path).expect("a directory");
    }
    symlink(".", inside.join("link")).expect("a link");
    symlink(&outside, inside.join("etc/a")).expect("a link");
    let _ = agent.copy_from_guest(OsStr::new("/etc"), &inside.join(destination), Holes::Keep, &mut |_| {});
    let names = |dir: &Path| -> BTreeSet<OsString> {
        fs::read_dir(dir).expect("a directory").flatten().map(|entry| entry.file_name()).collect()
    };
    let only = |names: &[&str]| names.iter().map(OsString::from).collect::<BTreeSet<_>>();
    assert_eq!(names(dir.path()), only(&["inside", "outside"]), "the guest wrote outside the destination");
    assert_eq!(names(&outside), only(&[]), "the guest wrote through a link");
    let copied = names(&inside);
    let wanted = if destination == "new" { only(&["etc", "link", "new"]) } else { only(&["etc", "link"]) };
    assert!(copied.is_subset(&wanted), "the guest wrote next to the copy: {copied:?}");
    assert!(copied.contains(OsStr::new("link")), "the guest removed a link");
}

fn output(mut agent: Agent) {
    let (Ok(null), Ok(shared)) = (fs::File::options().read(true).write(true).open("/dev/null"), Shared::new(false))
    else {
        return;
    };
    let streams = Streams { input: null.as_fd(), output: null.as_fd(), error: null.as_fd() };
    let _ = exec::receive(&shared, &mut agent.connection.reader, streams);
}
