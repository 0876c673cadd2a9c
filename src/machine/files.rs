//! Names of the files and sockets that a VMM creates in its directory.

/// The last output of the serial console. When it is full, it becomes [`FULL_CONSOLE_LOG`].
pub const CONSOLE_LOG: &str = "console.log";
pub const FULL_CONSOLE_LOG: &str = "console.log.1";
pub const CONSOLE_SOCKET: &str = "console.sock";
/// The guest reaches the host at `<socket>_<port>`.
pub const VSOCK_SOCKET: &str = "vsock.sock";
