//! The length of frames, and the results of sending and receiving one.

/// Maximum frame length: an IP packet of 65535 bytes after an Ethernet header.
pub const MAX_FRAME: usize = 65535 + 14;

#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// Sent, buffered for sending, or discarded because there is no backend.
    Done,
    Refused,
    Full,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Frame {
        length: usize,
    },
    /// A frame was rejected. Part of it may already be in the target.
    Refused {
        /// Number of bytes in the target, excluding the header.
        written: usize,
    },
    Nothing,
    Closed,
}
