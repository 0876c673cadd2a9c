//! The host's end of the guest agent: commands, copies and the guest's end, over vsock.
//!
//! [`Agent::connect`] goes through the Unix socket at which a monitor offers its guest's vsock ports.
//! One connection carries one operation, so each operation takes the [`Agent`] it is called on:
//!
//! ```no_run
//! # use std::{path::Path, time::Duration};
//! # use wisp::guest::{Agent, ExecRequest, Streams};
//! let agent = Agent::connect(Path::new("vsock.sock"), Duration::from_secs(10))?;
//! let request = ExecRequest { argv: vec!["uname".into(), "-r".into()], ..Default::default() };
//! let code = agent.exec(request, Streams::own())?.exit_code();
//! # Ok::<(), wisp::guest::Error>(())
//! ```
//!
//! What is said on the wire is `wisp_agent::protocol`'s affair. The guest is not trusted: it can end
//! an operation with an error, never this process. Nothing here knows of instances or of KVM.

mod capture;
mod connect;
mod copy;
mod error;
mod exec;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod shutdown;
mod signals;
pub mod terminal;
mod user;

#[cfg(test)]
mod testing;

pub use capture::Captured;
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
