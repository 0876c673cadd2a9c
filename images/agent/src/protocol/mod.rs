//! The agent's protocol between host and guest over one vsock stream.
//!
//! A stream starts with a [`Hello`] from each end. Then the host sends one request ([`ToGuest`]), the two ends exchange
//! its frames, and the stream ends. [`frame`] describes the frame format.
//!
//! Standard input has a window ([`STDIN_WINDOW`]), so that a command that does not read it never delays a signal.

mod bytes;
mod connection;
pub mod frame;
mod message;

pub use bytes::Bytes;
pub use connection::{AgentConnection, Fill, FrameReader, FrameWriter};
pub use frame::{MAX_DATA, MAX_FRAME, ProtocolError};
pub use message::{
    ExecFailure, ExecRequest, ExitStatus, Facts, Hello, OutputStream, TerminalRequest, ToGuest, ToHost, UserDataState,
    UserDataStatus, WindowSize,
};

/// Version that both ends must share. It increases when a message changes its format or meaning.
pub const VERSION: u32 = 2;

/// Maximum bytes of standard input in transit. The agent buffers them, and grants more credit as the command reads.
pub const STDIN_WINDOW: usize = 64 * 1024;
