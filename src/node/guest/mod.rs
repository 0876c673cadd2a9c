//! The host's side of the guest agent: commands, copies and shutdown over vsock.
//!
//! [`Agent::connect`] uses the Unix socket on which a VMM exposes its guest's vsock ports. One connection carries one
//! operation, so each operation consumes the [`Agent`]:
//!
//! ```no_run
//! # use std::{path::Path, time::Duration};
//! # use node::guest::{Agent, ExecRequest, Streams};
//! let agent = Agent::connect(Path::new("vsock.sock"), Duration::from_secs(10))?;
//! let request = ExecRequest { argv: vec!["uname".into(), "-r".into()], ..Default::default() };
//! let code = agent.exec(request, Streams::own())?.exit_code();
//! # Ok::<(), node::guest::Error>(())
//! ```
//!
//! `wisp_agent::protocol` defines the wire format. The guest is not trusted: it can make an operation fail, but it
//! cannot crash this process.

mod capture;
mod connect;
mod copy;
mod error;
mod exec;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod shutdown;
mod signals;
pub mod terminal;
mod user;

#[cfg(test)]
mod testing;

pub use capture::{Captured, CommandEnd, RunningCommand};
pub use connect::Agent;
pub use error::Error;
pub use exec::Streams;
pub use signals::Signals;
pub use user::{check_user_name, parse_user_name};
pub use wisp_agent::protocol::{ExecRequest, ExitStatus, Facts, TerminalRequest, WindowSize};
pub use wisp_agent::protocol::{UserDataState, UserDataStatus};
pub use wisp_agent::resumed::FEATURE;
pub use wisp_agent::seed::{MAX_SEED, Seed};
pub use wisp_agent::tree::{Holes, Summary};
