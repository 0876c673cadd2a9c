//! TCP connections of the metadata service.

use std::collections::HashMap;
use std::time::Instant;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::time::Duration;
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::Metadata;
use crate::http::{self, HEAD_LIMIT, Parsed};
use crate::stack::Stack;
use machine::network::METADATA_ADDRESS;

const PORT: u16 = 80;
/// Maximum number of connections. Further clients retransmit until a connection closes.
const CONNECTIONS: usize = 16;
/// Sizes of a connection's buffers in bytes.
const RECEIVE_BUFFER: usize = 4 << 10;
const SEND_BUFFER: usize = 8 << 10;
const IDLE: Duration = Duration::from_secs(60);

/// The sockets of the service, including the listening one.
#[derive(Debug, Default)]
pub struct Server {
    connections: HashMap<SocketHandle, MetadataConnection>,
}

#[derive(Debug, Default)]
struct MetadataConnection {
    /// The received part of a request.
    request: Vec<u8>,
    /// The unsent part of the response.
    answer: Vec<u8>,
    /// True if the connection closes after the response.
    ends: bool,
}

impl Server {
    pub fn is_for(port: u16) -> bool {
        port == PORT
    }

    /// Ensures that a socket is listening, because a connection is about to arrive. Returns false if there are too
    /// many.
    pub fn expect(&mut self, stack: &mut Stack) -> bool {
        let listens = |handle: &SocketHandle, stack: &Stack| {
            stack.sockets.get::<tcp::Socket>(*handle).state() == tcp::State::Listen
        };
        if self.connections.keys().any(|handle| listens(handle, stack)) {
            return true;
        }
        if self.connections.len() >= CONNECTIONS {
            return false;
        }
        let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
        let mut socket = tcp::Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let endpoint = IpEndpoint { addr: IpAddress::Ipv4(METADATA_ADDRESS), port: PORT };
        let listens = socket.listen(endpoint).is_ok();
        if listens {
            socket.set_timeout(Some(IDLE));
            self.connections.insert(stack.sockets.add(socket), MetadataConnection::default());
        }
        listens
    }

    pub fn serve(&mut self, stack: &mut Stack, metadata: &mut Metadata, now: Instant) {
        self.connections.retain(|handle, connection| {
            let socket = stack.sockets.get_mut::<tcp::Socket>(*handle);
            connection.serve(socket, metadata, now);
            let is_over = !socket.is_open() || socket.state() == tcp::State::TimeWait;
            if is_over {
                stack.sockets.remove(*handle);
            }
            !is_over
        });
    }

    pub fn close(&mut self, stack: &mut Stack) {
        self.connections.drain().for_each(|(handle, _)| drop(stack.sockets.remove(handle)));
    }
}

impl MetadataConnection {
    fn serve(&mut self, socket: &mut tcp::Socket, metadata: &mut Metadata, now: Instant) {
        loop {
            self.send(socket);
            if !self.answer.is_empty() {
                return;
            }
            if self.ends {
                return socket.close();
            }
            // Requests may arrive before the previous one is answered.
            match http::parse(&self.request) {
                Parsed::HttpRequest(request, length) => {
                    self.request.drain(..length);
                    // The limit is never lifted: the response may still be buffered or retransmitted when the next
                    // request is read.
                    if let Some(limit) = metadata.hop_limit(&request) {
                        socket.set_hop_limit(Some(limit));
                    }
                    let answer = metadata.answer(&request, now);
                    self.ends = !request.keeps_alive;
                    self.answer = answer.encode(request.keeps_alive, request.method == "HEAD");
                }
                Parsed::Bad(answer) => {
                    self.ends = true;
                    self.answer = answer.encode(false, false);
                }
                Parsed::Incomplete => {
                    let received = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap_or_default();
                    if received.is_empty() {
                        // The guest has closed its side.
                        if socket.state() == tcp::State::CloseWait {
                            socket.close();
                        }
                        return;
                    }
                    self.request.extend(received);
                }
            }
            debug_assert!(self.request.len() <= 10 * HEAD_LIMIT + RECEIVE_BUFFER, "the request is too long");
        }
    }

    fn send(&mut self, socket: &mut tcp::Socket) {
        if !self.answer.is_empty() {
            match socket.send_slice(&self.answer) {
                Ok(count) => drop(self.answer.drain(..count)),
                Err(_) => {
                    self.answer.clear();
                    self.ends = true;
                }
            }
        }
    }
}
