//! Reads the line with which a client on the host selects a port of the guest: `CONNECT <port>\n`.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

/// Length of the longest valid line, `CONNECT 4294967295\n`.
const LINE_LIMIT: usize = 19;

#[derive(Debug)]
pub struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

#[derive(Debug)]
pub enum HandshakeProgress {
    Waiting(Handshake),
    Connect(UnixStream, u32),
    /// The client disconnected or sent an invalid line.
    Refused,
}

impl Handshake {
    /// `stream` must be nonblocking.
    pub fn new(stream: UnixStream) -> Handshake {
        Handshake { stream, line: Vec::with_capacity(LINE_LIMIT) }
    }

    /// Reads the available part of the line, byte by byte, because the bytes after it are for the guest.
    pub fn advance(mut self) -> HandshakeProgress {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return HandshakeProgress::Refused,
                Ok(_) if byte[0] == b'\n' => {
                    return match parse(&self.line) {
                        Some(port) => HandshakeProgress::Connect(self.stream, port),
                        None => HandshakeProgress::Refused,
                    };
                }
                Ok(_) if self.line.len() == LINE_LIMIT => return HandshakeProgress::Refused,
                Ok(_) => self.line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return HandshakeProgress::Waiting(self),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return HandshakeProgress::Refused,
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let port = std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?;
    port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn advance(written: &[u8], rest: &mut Vec<u8>) -> HandshakeProgress {
        let (mut client, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        client.write_all(written).unwrap();
        let progress = Handshake::new(stream).advance();
        if let HandshakeProgress::Connect(stream, _) = &progress {
            let mut stream = stream.try_clone().unwrap();
            let mut buffer = [0; 64];
            if let Ok(count) = stream.read(&mut buffer) {
                rest.extend_from_slice(&buffer[..count]);
            }
        }
        progress
    }

    #[test]
    fn handshake_leaves_bytes_after_line() {
        let mut rest = Vec::new();
        assert!(matches!(advance(b"CONNECT 1024\nhello", &mut rest), HandshakeProgress::Connect(_, 1024)));
        assert_eq!(rest, b"hello");
    }

    #[test]
    fn partial_line_waits() {
        assert!(matches!(advance(b"CONNECT 10", &mut Vec::new()), HandshakeProgress::Waiting(_)));
    }

    #[test]
    fn invalid_line_is_refused() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "CONNECT \n",
            "CONNECT 4294967296\n",
            "CONNECT +5\n",
            "CONNECT 111111111111111111111",
        ] {
            assert!(matches!(advance(line.as_bytes(), &mut Vec::new()), HandshakeProgress::Refused), "{line}");
        }
    }
}
