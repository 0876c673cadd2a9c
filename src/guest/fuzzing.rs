//! Entry points for fuzzing what guest and host say to each other: frames, and the host's end against a guest that says
//! anything.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use wisp_agent::protocol::frame::{decode, encode, locate};
use wisp_agent::protocol::{Connection, Hello, ToGuest, ToHost, VERSION};
use wisp_agent::seed::Seed;

use super::exec::{self, Shared};
use super::{Agent, Streams};

/// A guest that sent all that it sends has its time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes for either end: the frames that they are, and what is in those.
pub(crate) fn frames(data: &[u8]) {
    let mut rest = data;
    while let Ok(Ok(range)) = locate(rest) {
        let (frame, end) = (&rest[range.clone()], range.end);
        let _ = (decode::<Hello>(frame), decode::<ToGuest>(frame), decode::<ToHost>(frame));
        rest = &rest[end..];
    }
    let _ = (decode::<ToGuest>(data), decode::<ToHost>(data), Seed::decode(data));
}

/// What a guest answers, to one of the host's operations.
pub(crate) fn host(data: &[u8]) {
    let Some((which, said)) = data.split_first() else { return };
    // Operations are behind the greeting.
    let greeting = if which % 8 < 6 { hello() } else { Vec::new() };
    let Some((host, guest)) = said_by_a_guest(&[&greeting, said].concat()) else { return };
    let agent = Agent { connection: Connection::new(host.into()), patience: TIMEOUT };
    match which % 8 {
        0..=2 => copy(agent),
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

/// What a guest says first.
fn hello() -> Vec<u8> {
    let mut greeting = Vec::new();
    encode(&Hello { version: VERSION }, &mut greeting).expect("it is short");
    greeting
}

/// A guest that sends so much and no more.
fn said_by_a_guest(said: &[u8]) -> Option<(UnixStream, UnixStream)> {
    let (host, mut guest) = UnixStream::pair().ok()?;
    // What is longer than a socket's buffer is a matter for other tests.
    guest.set_nonblocking(true).ok()?;
    guest.write_all(said).ok()?;
    guest.shutdown(std::net::Shutdown::Write).ok()?;
    Some((host, guest))
}

/// Copies from the guest: nothing is to be written but in the destination.
fn copy(agent: Agent) {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).expect("a folder");
    let _ = agent.copy_from_guest(OsStr::new("/etc"), &inside.join("copy"), &mut |_| {});
    let outside: Vec<_> =
        fs::read_dir(folder.path()).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(outside, ["inside"], "a guest writes nothing outside");
    let copied: Vec<_> = fs::read_dir(&inside).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert!(copied.iter().all(|name| name == "copy"), "a guest writes nothing beside: {copied:?}");
}

/// A command's output and its end.
fn output(mut agent: Agent) {
    let (Ok(null), Ok(shared)) = (fs::File::options().read(true).write(true).open("/dev/null"), Shared::new(false))
    else {
        return;
    };
    let streams = Streams { input: null.as_fd(), output: null.as_fd(), error: null.as_fd() };
    let _ = exec::receive(&shared, &mut agent.connection.reader, streams);
}
