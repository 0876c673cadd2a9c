//! Names of the files and sockets that a VMM creates in its directory.

/// The latest output of the serial console. When the file is full, it is renamed to [`FULL_CONSOLE_LOG`].
pub const CONSOLE_LOG: &str = "console.log";
pub const FULL_CONSOLE_LOG: &str = "console.log.1";
pub const CONSOLE_SOCKET: &str = "console.sock";
/// A guest's connection to a port of the host goes to the Unix socket `<socket>_<port>`, if that exists.
pub const VSOCK_SOCKET: &str = "vsock.sock";
