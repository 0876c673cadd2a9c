//! A frame: a little-endian u32 length, then one message of that length in postcard's encoding.
//!
//! The length is checked against [`MAX_FRAME`] before any allocation, and trailing bytes are refused. Neither end
//! trusts the other here: every fault is an error that ends one connection.

use std::io;
use std::ops::Range;

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Maximum number of bytes in one data frame.
pub const MAX_DATA: usize = 64 * 1024;

/// Maximum size of a frame in bytes, excluding its length field: a full data frame and its header.
pub const MAX_FRAME: usize = MAX_DATA + 1024;

pub const LENGTH_BYTES: usize = 4;

#[derive(Debug, Error)]
pub enum ProtocolError {
    #[error("a frame of {length} bytes exceeds the limit of {MAX_FRAME} bytes")]
    TooLong { length: usize },
    #[error("the request exceeds the limit of {MAX_FRAME} bytes")]
    RequestTooLong,
    /// The frame is not a message, or has trailing bytes.
    #[error("malformed frame: {0}")]
    Malformed(postcard::Error),
    /// The frame is not valid in the connection's current state.
    #[error("unexpected frame: {0}")]
    Unexpected(&'static str),
    #[error("the connection closed in the middle of a frame")]
    Truncated,
    /// The stream ended where another frame was expected.
    #[error("the connection was closed by the other end")]
    Closed,
    #[error("protocol versions differ: {ours} at this end, {theirs} at the other")]
    VersionMismatch { ours: u32, theirs: u32 },
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for ProtocolError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Appends `message` to `output` as one frame. A message that is too long leaves `output` unchanged.
pub fn encode<M: Serialize>(message: &M, output: &mut Vec<u8>) -> Result<(), ProtocolError> {
    let start = output.len();
    output.extend_from_slice(&[0; LENGTH_BYTES]);
    let flavor = Limited { limit: start + LENGTH_BYTES + MAX_FRAME, output };
    if postcard::serialize_with_flavor(message, flavor).is_err() {
        output.truncate(start);
        return Err(ProtocolError::RequestTooLong);
    }
    let length = output.len() - start - LENGTH_BYTES;
    let length = u32::try_from(length).map_err(|_| ProtocolError::RequestTooLong)?;
    output[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// Decodes one frame, given without its length field. Fails if the bytes are not exactly one message.
pub fn decode<'a, M: Deserialize<'a>>(frame: &'a [u8]) -> Result<M, ProtocolError> {
    let (message, rest) = postcard::take_from_bytes(frame).map_err(ProtocolError::Malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(ProtocolError::Malformed(postcard::Error::DeserializeBadEncoding)) }
}

/// Locates the first frame. Returns `Ok(Ok(range))`, or `Ok(Err(n))` if at least `n` bytes are needed for that.
pub fn locate(bytes: &[u8]) -> Result<Result<Range<usize>, usize>, ProtocolError> {
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Ok(Err(LENGTH_BYTES));
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_FRAME {
        return Err(ProtocolError::TooLong { length });
    }
    let end = LENGTH_BYTES + length;
    Ok(if bytes.len() < end { Err(end) } else { Ok(LENGTH_BYTES..end) })
}

/// A vector that grows to at most `limit` bytes.
struct Limited<'a> {
    output: &'a mut Vec<u8>,
    limit: usize,
}

impl Flavor for Limited<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        if data.len() > self.limit - self.output.len() {
            return Err(postcard::Error::SerializeBufferFull);
        }
        self.output.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.try_extend(&[data])
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Bytes, ExecRequest, ToGuest, ToHost};

    fn round_trip(message: &ToGuest<'_>) {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).expect("fits");
        let range = locate(&bytes).expect("short enough").expect("complete");
        assert_eq!(range.end, bytes.len());
        assert_eq!(&decode::<ToGuest<'_>>(&bytes[range]).expect("decodes"), message);
    }

    #[test]
    fn full_data_frame_fits() {
        round_trip(&ToGuest::Stdin(Bytes(&[7; MAX_DATA])));
    }

    #[test]
    fn too_long_request_leaves_output_unchanged() {
        let request = ExecRequest { argv: vec![OsString::from("x".repeat(MAX_FRAME))], ..Default::default() };
        let mut output = b"before".to_vec();
        let error = encode(&ToGuest::Exec(request), &mut output).expect_err("too long");
        assert!(matches!(error, ProtocolError::RequestTooLong));
        assert_eq!(output, b"before");
    }

    #[test]
    fn length_over_limit_is_refused_before_frame_arrives() {
        assert!(matches!(locate(&u32::MAX.to_le_bytes()), Err(ProtocolError::TooLong { .. })));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = Vec::new();
        encode(&ToGuest::Ping, &mut bytes).expect("fits");
        bytes.push(0);
        assert!(decode::<ToGuest<'_>>(&bytes[LENGTH_BYTES..]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = locate(&bytes);
            let _ = decode::<ToGuest<'_>>(&bytes);
            let _ = decode::<ToHost<'_>>(&bytes);
        }

        #[test]
        fn requests_round_trip(
            argv in proptest::collection::vec("[ -~]{0,20}", 0..8),
            env in proptest::collection::vec(("[A-Z]{1,8}", "[ -~]{0,20}"), 0..8),
            user in proptest::option::of("[a-z]{1,8}"),
        ) {
            round_trip(&ToGuest::Exec(ExecRequest {
                argv: argv.into_iter().map(Into::into).collect(),
                env: env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
                cwd: None,
                terminal: None,
                user,
            }));
        }
    }
}
