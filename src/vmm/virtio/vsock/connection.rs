//! A vsock stream: a Unix socket on the host, packets on the guest's side (specification, section 5.10.6).
//!
//! Both directions use credit-based flow control. The guest may send [`BUFFER`] bytes beyond those that the host's
//! socket has taken. The host's bytes stay in its socket until the guest has room. A stalled reader costs one bounded
//! buffer, and blocks only its own connection.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::packet::{HOST_CID, Header, MAX_DATA, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};

/// Bytes that the device buffers until the host's socket takes them. This is the credit granted to the guest.
pub const BUFFER: u32 = 256 << 10;
/// Number of newly freed buffer bytes after which the guest gets a credit update.
const CREDIT_STEP: u32 = BUFFER / 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub guest_port: u32,
    pub host_port: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A client on the host has requested a connection, and the guest has not answered yet.
    Requested,
    Established,
    Resetting,
    Closed,
}

#[derive(Debug, Default)]
struct Due {
    request: bool,
    response: bool,
    credit_update: bool,
}

#[derive(Debug)]
pub struct VsockConnection {
    key: Key,
    guest_cid: u64,
    stream: UnixStream,
    state: State,
    due: Due,

    /// Bytes from the guest that the host's socket has not taken.
    outgoing: VecDeque<u8>,
    /// Bytes received from the guest, and bytes that the host's socket has taken. Both wrap, like the guest's counters.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// The value of `forwarded` in the last packet to the guest.
    forwarded_sent: Wrapping<u32>,
    guest_shutdown: u32,

    /// The guest's buffer size, the number of bytes that it has consumed, and the number of bytes sent to it.
    peer_buffer: u32,
    peer_forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
    /// Set while a credit request is outstanding.
    credit_requested: bool,
    /// Set if the host's socket may have data to read.
    readable: bool,
    /// Shutdown flags for the guest, set at the end of the host's stream, and the flags already sent to the guest.
    host_end: Option<u32>,
    host_end_sent: u32,
    /// Set if the host's socket is closed in both directions.
    hung_up: bool,
}

impl VsockConnection {
    pub fn from_host(key: Key, guest_cid: u64, stream: UnixStream) -> VsockConnection {
        let due = Due { request: true, ..Due::default() };
        VsockConnection::new(key, guest_cid, stream, State::Requested, due)
    }

    pub fn from_guest(request: &Header, stream: UnixStream) -> VsockConnection {
        let key = Key { guest_port: request.src_port, host_port: request.dst_port };
        let due = Due { response: true, ..Due::default() };
        let mut connection = VsockConnection::new(key, request.src_cid, stream, State::Established, due);
        connection.take_credit(request);
        connection
    }

    fn new(key: Key, guest_cid: u64, stream: UnixStream, state: State, due: Due) -> VsockConnection {
        VsockConnection {
            key,
            guest_cid,
            stream,
            state,
            due,
            outgoing: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            forwarded_sent: Wrapping(0),
            guest_shutdown: 0,
            peer_buffer: 0,
            peer_forwarded: Wrapping(0),
            sent: Wrapping(0),
            credit_requested: false,
            readable: true,
            host_end: None,
            host_end_sent: 0,
            hung_up: false,
        }
    }

    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    pub fn set_hung_up(&mut self) {
        self.hung_up = true;
        self.readable = true;
        if self.host_end.is_some() {
            self.end_of_host();
        }
    }

    pub fn receive(&mut self, header: &Header, data: &[u8]) {
        self.take_credit(header);
        match (header.op, self.state) {
            (op::RST, _) => self.state = State::Closed,
            (_, State::Resetting | State::Closed) => {}
            (op::RESPONSE, State::Requested) => self.established(),
            (op::RW, State::Established) => self.take_data(data),
            (op::SHUTDOWN, State::Established) => self.take_shutdown(header.flags),
            (op::CREDIT_UPDATE, State::Established) => {}
            (op::CREDIT_REQUEST, State::Established) => self.due.credit_update = true,
            // An unexpected packet: the guest and the host disagree about the connection's state.
            _ => self.state = State::Resetting,
        }
    }

    fn take_credit(&mut self, header: &Header) {
        self.peer_buffer = header.buf_alloc;
        self.peer_forwarded = Wrapping(header.fwd_cnt);
        self.credit_requested &= self.credit() == 0;
    }

    fn established(&mut self) {
        self.state = State::Established;
        let answer = format!("OK {}\n", self.key.host_port);
        self.outgoing.extend(answer.as_bytes());
        // The device sends this line, so it must not be counted as data from the guest.
        self.forwarded -= answer.len() as u32;
        self.forwarded_sent = Wrapping(0) - Wrapping(answer.len() as u32);
        self.flush();
    }

    fn take_data(&mut self, data: &[u8]) {
        let used = (self.received - self.forwarded).0;
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || u64::from(used) + data.len() as u64 > u64::from(BUFFER) + 64 {
            // Data beyond the credit, or after a shutdown (section 5.10.6.3). The 64 extra bytes cover the `OK` line.
            self.state = State::Resetting;
            return;
        }
        self.received += data.len() as u32;
        self.outgoing.extend(data);
        self.flush();
    }

    fn take_shutdown(&mut self, flags: u32) {
        self.guest_shutdown |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        self.flush();
    }

    pub fn flush(&mut self) {
        while !self.outgoing.is_empty() && !self.is_closed() {
            let (front, _) = self.outgoing.as_slices();
            match self.stream.write(front) {
                Ok(count) => {
                    self.outgoing.drain(..count);
                    self.forwarded += count as u32;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The host's socket is closed. Bytes that it did not take are lost, and a reset notifies the guest.
                    self.outgoing.clear();
                    self.state = State::Resetting;
                }
            }
        }
        if (self.forwarded - self.forwarded_sent).0 >= CREDIT_STEP {
            self.due.credit_update = true;
        }
        if self.outgoing.is_empty() && self.state == State::Established {
            self.after_flush();
        }
    }

    /// Applies the guest's shutdown, now that the host's socket has taken all data.
    fn after_flush(&mut self) {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            // Fails only if the socket is already closed.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.guest_shutdown == SHUTDOWN_SEND | SHUTDOWN_RECEIVE {
            self.state = State::Resetting;
        }
    }

    /// Returns the number of bytes that the guest can receive.
    fn credit(&self) -> u32 {
        let in_flight = (self.sent - self.peer_forwarded).0;
        self.peer_buffer.saturating_sub(in_flight)
    }

    fn may_send_data(&self) -> bool {
        self.state == State::Established
            && self.readable
            && self.host_end.is_none()
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Returns true if [`VsockConnection::next_packet`] may return a packet.
    pub fn wants_to_send(&self) -> bool {
        match self.state {
            State::Closed => false,
            State::Resetting => true,
            State::Requested => self.due.request,
            State::Established => {
                let Due { request, response, credit_update } = self.due;
                request
                    || response
                    || credit_update
                    || self.host_end.is_some_and(|flags| flags & !self.host_end_sent != 0)
                    || (self.may_send_data() && (self.credit() > 0 || !self.credit_requested))
            }
        }
    }

    /// Returns the header of the next packet, if any. `read` moves bytes, up to a limit, from the host's socket
    /// directly into the guest's buffer, and returns their number.
    pub fn next_packet(&mut self, read: impl FnOnce(&mut UnixStream, u32) -> io::Result<usize>) -> Option<Header> {
        match self.state {
            State::Closed => return None,
            State::Resetting => {
                self.state = State::Closed;
                return Some(self.header(op::RST, 0, 0));
            }
            State::Requested | State::Established => {}
        }
        if std::mem::take(&mut self.due.request) {
            return Some(self.header(op::REQUEST, 0, 0));
        }
        if std::mem::take(&mut self.due.response) {
            return Some(self.header(op::RESPONSE, 0, 0));
        }
        if self.may_send_data() {
            let limit = self.credit().min(MAX_DATA);
            if limit == 0 {
                let asked = std::mem::replace(&mut self.credit_requested, true);
                return if asked { self.credit_update_if_due() } else { Some(self.header(op::CREDIT_REQUEST, 0, 0)) };
            }
            match read(&mut self.stream, limit) {
                Ok(0) => self.end_of_host(),
                Ok(count) => {
                    self.sent += count as u32;
                    return Some(self.header(op::RW, 0, count as u32));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.state = State::Closed;
                    return Some(self.header(op::RST, 0, 0));
                }
            }
        }
        if let Some(flags) = self.host_end.filter(|flags| flags & !self.host_end_sent != 0) {
            self.host_end_sent |= flags;
            return Some(self.header(op::SHUTDOWN, flags, 0));
        }
        self.credit_update_if_due()
    }

    fn credit_update_if_due(&mut self) -> Option<Header> {
        std::mem::take(&mut self.due.credit_update).then(|| self.header(op::CREDIT_UPDATE, 0, 0))
    }

    fn end_of_host(&mut self) {
        self.readable = false;
        // A closed socket, unlike one that is only shut down, cannot receive either.
        let flags = if self.hung_up { SHUTDOWN_SEND | SHUTDOWN_RECEIVE } else { SHUTDOWN_SEND };
        self.host_end = Some(flags);
    }

    fn header(&mut self, op: u16, flags: u32, len: u32) -> Header {
        self.forwarded_sent = self.forwarded;
        self.due.credit_update = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const KEY: Key = Key { guest_port: 1024, host_port: 5000 };

    fn guest(op: u16, flags: u32, len: u32, fwd_cnt: u32) -> Header {
        Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: KEY.guest_port,
            dst_port: KEY.host_port,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: 1000,
            fwd_cnt,
        }
    }

    fn established() -> (VsockConnection, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut connection = VsockConnection::from_guest(&guest(op::REQUEST, 0, 0, 0), near);
        assert_eq!(next(&mut connection).unwrap().op, op::RESPONSE);
        (connection, far)
    }

    fn next(connection: &mut VsockConnection) -> Option<Header> {
        connection.next_packet(|stream, limit| {
            let mut buffer = vec![0; limit as usize];
            stream.read(&mut buffer)
        })
    }

    fn drain(stream: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }

    #[test]
    fn host_request_is_answered_with_ok_and_port() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut connection = VsockConnection::from_host(KEY, 3, near);
        assert_eq!(next(&mut connection).unwrap().op, op::REQUEST);
        assert!(!connection.wants_to_send());
        connection.receive(&guest(op::RESPONSE, 0, 0, 0), &[]);
        assert_eq!(drain(&mut far), b"OK 5000\n");
    }

    #[test]
    fn delivered_data_returns_credit() {
        let (mut connection, mut far) = established();
        let chunk = vec![b'x'; CREDIT_STEP as usize];
        connection.receive(&guest(op::RW, 0, chunk.len() as u32, 0), &chunk);
        assert_eq!(drain(&mut far).len(), chunk.len());
        let update = next(&mut connection).unwrap();
        assert_eq!((update.op, update.fwd_cnt), (op::CREDIT_UPDATE, CREDIT_STEP));
    }

    #[test]
    fn guest_sending_beyond_credit_is_reset() {
        let (mut connection, _far) = established();
        let chunk = vec![b'x'; MAX_DATA as usize];
        for _ in 0..32 {
            connection.receive(&guest(op::RW, 0, chunk.len() as u32, 0), &chunk);
        }
        assert!(connection.outgoing.len() <= BUFFER as usize + 64);
        assert_eq!(next(&mut connection).unwrap().op, op::RST);
        assert!(connection.is_closed());
    }

    #[test]
    fn host_data_waits_for_guest_credit() {
        let (mut connection, mut far) = established();
        far.write_all(&[b'y'; 1500]).unwrap();
        connection.set_readable();
        assert_eq!(next(&mut connection).unwrap().len, 1000);
        assert_eq!(next(&mut connection).unwrap().op, op::CREDIT_REQUEST);
        assert!(!connection.wants_to_send());
        connection.receive(&guest(op::CREDIT_UPDATE, 0, 0, 400), &[]);
        assert_eq!(next(&mut connection).unwrap().len, 400);
    }

    #[test]
    fn half_close_works_in_both_directions() {
        let (mut connection, mut far) = established();
        far.write_all(b"last words").unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        connection.set_readable();
        assert_eq!(next(&mut connection).unwrap().len, 10);
        let shutdown = next(&mut connection).unwrap();
        assert_eq!((shutdown.op, shutdown.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
        connection.receive(&guest(op::RW, 0, 3, 10), b"yes");
        assert_eq!(drain(&mut far), b"yes");
        connection.receive(&guest(op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, 0, 10), &[]);
        assert_eq!(next(&mut connection).unwrap().op, op::RST);
        assert!(connection.is_closed());
    }

    #[test]
    fn closed_host_socket_resets_guest() {
        let (mut connection, far) = established();
        drop(far);
        connection.set_hung_up();
        let shutdown = next(&mut connection).unwrap();
        assert_eq!((shutdown.op, shutdown.flags), (op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE));
        connection.receive(&guest(op::RW, 0, 3, 0), b"yes");
        assert_eq!(next(&mut connection).unwrap().op, op::RST);
    }

    #[test]
    fn unexpected_packet_resets_connection() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut connection = VsockConnection::from_host(KEY, 3, near);
        connection.receive(&guest(op::RW, 0, 3, 0), b"abc");
        assert_eq!(next(&mut connection).unwrap().op, op::RST);
    }
}
