//! An agent that runs in the test's process, connected by a socket pair.

use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use wisp_agent::protocol::AgentConnection;

use super::{Agent, ExecRequest};

pub fn agent() -> Agent {
    static GUEST: LazyLock<wisp_agent::agent::Agent> = LazyLock::new(|| wisp_agent::agent::Agent::new(false));
    let (host, guest) = UnixStream::pair().expect("a socket pair");
    thread::spawn(move || GUEST.serve(guest.into()));
    Agent { connection: AgentConnection::new(host.into()), patience: Duration::from_secs(60), silence: None }
}

pub fn shell(script: &str) -> ExecRequest {
    ExecRequest { argv: vec!["sh".into(), "-c".into(), script.into()], ..Default::default() }
}
