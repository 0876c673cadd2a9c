//! The agent's protocol: what host and guest say to each other over one vsock stream.
//!
//! A stream starts with a [`Hello`] from each end, which carries the version. Then the host sends one
//! request ([`ToGuest`]), the two exchange the frames that belong to it, and the stream ends: one
//! connection, one operation. How frames look is told in [`frame`].
//!
//! Flow control is the stream's own, with one addition: standard input travels under a window
//! ([`STDIN_WINDOW`]), so that a command that doesn't read its input never keeps a signal from it.

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

/// The version both ends must have in common. It grows when a message changes its shape or meaning.
pub const VERSION: u32 = 2;

/// How many bytes of standard input may be under way to a command that has not read them, at most.
///
/// The agent holds up to this many; it gives the host credit for more as the command takes them.
pub const STDIN_WINDOW: usize = 64 * 1024;
