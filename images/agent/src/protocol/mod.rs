//! The agent's protocol between host and guest over one vsock stream.
//!
//! A stream starts with a [`Hello`] from each end, which carries the version. Then the host sends one request
//! ([`ToGuest`]), the two ends exchange its frames, and the stream ends. Each connection serves one operation.
//! [`frame`] describes the frame format.
//!
//! Flow control is the stream's own, with one addition: standard input has a window ([`STDIN_WINDOW`]). A command that
//! does not read its input therefore never delays a signal.

mod bytes;
mod connection;
pub mod frame;
mod message;

pub use bytes::Bytes;
pub use connection::{Connection, Fill, FrameReader, FrameWriter};
pub use frame::{MAX_DATA, MAX_FRAME, ProtocolError};
pub use message::{
    ExecFailure, ExecRequest, ExitStatus, Facts, Hello, OutputStream, TerminalRequest, ToGuest, ToHost, UserDataState,
    UserDataStatus, WindowSize,
};

/// The version, which both ends must share. It increases when a message changes its format or meaning.
pub const VERSION: u32 = 2;

/// The most bytes of standard input in transit to a command that has not read them.
///
/// The agent buffers up to this many. It grants the host more credit as the command reads.
pub const STDIN_WINDOW: usize = 64 * 1024;
