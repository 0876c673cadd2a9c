//! Instances on this host: their directories, their start plans, and the clients of their VMMs.

mod console;
mod dir;
mod ephemeral;
mod error;
mod handle;
mod pinning;
mod snapshot;
mod start;
mod template;
mod watch;

pub use console::ConsoleTail;
pub use dir::{GONE, InstanceDir, LINK, SYNC_TIMEOUT};
pub use ephemeral::EphemeralInstance;
pub use error::{Failure, MachineError};
pub use handle::MachineHandle;
pub use pinning::PinError;
pub use start::{Backend, StartPlan};
pub use watch::Awaited;
