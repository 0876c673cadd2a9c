//! Invalid connections, and requests other than commands and copies.

mod support;

use std::io::{Read, Write};

use support::{Host, command, exited, raw_connection};
use wisp_agent::protocol::{AgentConnection, Bytes, Hello, ProtocolError, ToGuest, ToHost, VERSION};

/// Sends `bytes` instead of a hello, and reads to the end of the connection.
fn speak(bytes: &[u8]) -> Result<(), ProtocolError> {
    let (mut socket, server) = raw_connection();
    // The agent may disconnect before it has read everything.
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let _ = socket.read_to_end(&mut Vec::new());
    server.join().expect("the agent does not panic")
}

#[test]
fn malformed_frame_ends_only_its_connection() {
    let mut other = Host::exec(command(&["cat"]));
    let hello = [1, 0, 0, 0, VERSION as u8];

    assert!(matches!(speak(b"GET / HTTP/1.1\r\n\r\n"), Err(ProtocolError::TooLong { .. })));
    assert!(matches!(speak(&[0xff; 64]), Err(ProtocolError::TooLong { .. })));
    assert!(matches!(speak(&[2, 0, 0, 0, 1, 1]), Err(ProtocolError::Malformed(_))));
    assert!(matches!(speak(&[&hello[..], &[1, 0, 0, 0, 0xee]].concat()), Err(ProtocolError::Malformed(_))));
    assert!(matches!(speak(&[&hello[..], &[9, 0, 0, 0, 1]].concat()), Err(ProtocolError::Truncated)));
    assert!(matches!(speak(&hello), Ok(())), "a connection without a request must not be an error");

    other.stdin(b"still here");
    other.send(&ToGuest::StdinEnd);
    let outcome = other.finish();
    assert_eq!((outcome.stdout.as_str(), outcome.end), ("still here", exited(0)));
}

#[test]
fn version_mismatch_is_answered_with_own_version() {
    let (socket, server) = raw_connection();
    let mut connection = AgentConnection::new(socket.into());
    connection.writer.send(&Hello { version: VERSION + 1 }).expect("sent");
    assert_eq!(connection.reader.receive::<Hello>().expect("a hello"), Hello { version: VERSION });
    let outcome = server.join().expect("the agent does not panic");
    assert!(matches!(outcome, Err(ProtocolError::VersionMismatch { ours: VERSION, .. })));
}

#[test]
fn unexpected_frame_is_refused_with_message() {
    let mut host = Host::connect();
    host.send(&ToGuest::Stdin(Bytes(b"?")));
    assert!(matches!(host.receive(), ToHost::Failed(message) if message.contains("unexpected frame")));
}

#[test]
fn ping_returns_guest_facts() {
    let mut host = Host::connect();
    host.send(&ToGuest::Ping);
    let ToHost::Pong(facts) = host.receive() else { panic!("no pong") };
    assert!(!facts.is_init && !facts.hostname.is_empty() && !facts.uptime.is_zero(), "{facts:?}");
    let version = concat!(env!("CARGO_PKG_VERSION"), "+resumes+holes");
    assert_eq!(facts.agent_version, version);
}

#[test]
fn invalid_hostname_is_refused() {
    let mut host = Host::connect();
    host.send(&ToGuest::SetHostname("x".repeat(65)));
    assert!(matches!(host.receive(), ToHost::Failed(_)));
}
