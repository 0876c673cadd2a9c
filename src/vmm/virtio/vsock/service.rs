//! The vsock device's thread, which connects the guest's queues to Unix sockets.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use wisp_agent::PRIVILEGED_PORTS;
use wisp_agent::resumed::SENTINEL_PORT;
use wisp_agent::seed::{MAX_SEED, SEED_PORT};

use super::connection::{Key, VsockConnection};
use super::handshake::{Handshake, HandshakeProgress};
use super::packet::{HEADER_SIZE, HOST_CID, Header, MAX_DATA, TYPE_STREAM, op};
use crate::memory::GuestMemory;
use crate::sandbox::calls::ThreadKind;
use crate::virtio::iovec::IoVecs;
use crate::virtio::queue::{self, Buffer, QueueError};
use crate::virtio::worker::{Serve, Wakeups};
use crate::virtio::{Activation, QueueState};
use machine::config::VsockConfig;
use netstack::broker::VsockConnector;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (section 5.10.6.7): all connections are lost.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// Sockets use the event tokens from [`FIRST_SOCKET`] on.
const LISTENER: u64 = 0;
const RECEIVE_KICK: u64 = 1;
const TRANSMIT_KICK: u64 = 2;
const EVENT_KICK: u64 = 3;
const RELEASED: u64 = 4;
const FIRST_SOCKET: u64 = 16;

/// First port for the host's ends of connections that clients request. Guests connect to lower ports of the host.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Limits on connections, and on clients that have not requested a port yet. At a limit, the device rejects new ones.
const MAX_CONNECTIONS: usize = 1024;
const MAX_HANDSHAKES: usize = 64;
/// Maximum number of pending resets for packets without a connection. The thread drops further ones.
const MAX_STRAY_RESETS: usize = 128;
/// Maximum number of packets, in both directions, before the thread checks its sockets and a pause request.
const BATCH: usize = 128;

#[derive(Debug)]
pub(super) struct VsockService {
    cid: u64,
    path: PathBuf,
    /// File with the instance's seed, which is served at [`SEED_PORT`].
    seed: Option<PathBuf>,
    listener: UnixListener,
    connector: VsockConnector,
    activation: Activation,
    wakeups: Arc<Wakeups>,
    connections: HashMap<Key, ConnectionEntry>,
    handshakes: HashMap<u64, Handshake>,
    sockets: HashMap<u64, Key>,
    /// Connections that may have packets for the guest, in round-robin order. None is in it twice (`is_queued`).
    ready: VecDeque<Key>,
    stray_resets: VecDeque<Header>,
    next_token: u64,
    next_port: u32,
    /// Present until a restored guest is ready for clients.
    resume_gate: Option<ResumeGate>,
    /// Set for a restored guest. Written whenever its agent reports that it is ready.
    released: Option<EventFd>,
    /// The connection whose loss tells the guest's agent about a restore.
    sentinel: Option<Sentinel>,
    /// Set once a refused request for the seed was logged.
    has_refused_seed: bool,
}

/// The host's end of a connection to [`SENTINEL_PORT`]. The device keeps it open, so that only a restore breaks it.
#[derive(Debug)]
struct Sentinel {
    _stream: UnixStream,
    /// Set if the guest's end is bound to a privileged port.
    is_privileged: bool,
}

#[derive(Debug)]
struct ConnectionEntry {
    connection: VsockConnection,
    token: u64,
    /// Set while the connection is in [`VsockService::ready`].
    is_queued: bool,
}

/// Keeps clients of a restored guest waiting: the guest drops all connections when it handles the transport reset.
#[derive(Debug)]
struct ResumeGate {
    /// Number of event buffers left after the transport reset was sent. The guest adds one once it has handled it.
    buffers_left: Option<u16>,
    has_reset: bool,
    /// Set once the guest's agent has reported that it is ready.
    is_released: bool,
    /// Deadline for guests without an agent.
    deadline: Instant,
}

/// Maximum time that clients wait for the agent of a restored guest.
const RESUME_TIMEOUT: Duration = Duration::from_secs(60);

impl ResumeGate {
    fn new() -> ResumeGate {
        ResumeGate {
            buffers_left: None,
            has_reset: false,
            is_released: false,
            deadline: Instant::now() + RESUME_TIMEOUT,
        }
    }
}

impl VsockService {
    pub(super) fn new(
        config: VsockConfig,
        path: PathBuf,
        listener: UnixListener,
        connector: VsockConnector,
        activation: Activation,
        wakeups: Arc<Wakeups>,
        released: Option<EventFd>,
    ) -> io::Result<VsockService> {
        let service = VsockService {
            cid: config.cid.into(),
            path,
            seed: config.seed,
            listener,
            connector,
            activation,
            wakeups,
            connections: HashMap::new(),
            handshakes: HashMap::new(),
            sockets: HashMap::new(),
            ready: VecDeque::new(),
            stray_resets: VecDeque::new(),
            next_token: FIRST_SOCKET,
            next_port: FIRST_HOST_PORT + random_offset(),
            resume_gate: released.as_ref().map(|_| ResumeGate::new()),
            released,
            sentinel: None,
            has_refused_seed: false,
        };
        service.listen()?;
        Ok(service)
    }

    /// Sends the transport reset to a restored guest, and starts accepting clients once it and its agent are ready.
    fn advance_resume_gate(&mut self) -> Result<(), QueueError> {
        let Some(resume_gate) = &mut self.resume_gate else { return Ok(()) };
        let events = &mut self.activation.queues[EVENT];
        if resume_gate.buffers_left.is_none()
            && let Some(chain) = events.pop()?
        {
            events.enable_notification_of_more()?;
            resume_gate.buffers_left = Some(events.available()?);
            let written = queue::write_to(&self.activation.memory, &chain.writable, &TRANSPORT_RESET);
            events.add_used(chain.head, written as u32)?;
            events.notify()?;
        }
        if let Some(left) = resume_gate.buffers_left {
            resume_gate.has_reset |= events.available()? != left;
        }
        if resume_gate.has_reset && resume_gate.is_released || resume_gate.deadline <= Instant::now() {
            self.resume_gate = None;
            if let Err(error) = self.wakeups.add(self.listener.as_raw_fd(), EventSet::IN, LISTENER) {
                log::error!("polling the vsock socket failed: {error}");
            }
        }
        Ok(())
    }

    /// Returns the timeout for events in milliseconds, or -1 for none.
    fn timeout(&self, has_more: bool) -> i32 {
        if has_more {
            return 0;
        }
        let left = |resume_gate: &ResumeGate| {
            resume_gate.deadline.saturating_duration_since(Instant::now()).as_millis() as i32 + 1
        };
        self.resume_gate.as_ref().map_or(-1, left)
    }

    fn listen(&self) -> io::Result<()> {
        let kick = |queue: usize| self.activation.queues[queue].kick().as_raw_fd();
        self.wakeups.add(kick(RECEIVE), EventSet::IN, RECEIVE_KICK)?;
        self.wakeups.add(kick(TRANSMIT), EventSet::IN, TRANSMIT_KICK)?;
        self.wakeups.add(kick(EVENT), EventSet::IN, EVENT_KICK)?;
        match &self.released {
            None => self.wakeups.add(self.listener.as_raw_fd(), EventSet::IN, LISTENER),
            Some(released) => self.wakeups.add(released.as_raw_fd(), EventSet::IN, RELEASED),
        }
    }

    fn handle(&mut self, token: u64, kinds: EventSet) {
        match token {
            LISTENER => self.accept(),
            RECEIVE_KICK | TRANSMIT_KICK | EVENT_KICK => {
                let queue = (token - RECEIVE_KICK) as usize;
                // Reset the counter. Every round serves all queues anyway.
                let _ = self.activation.queues[queue].kick().read();
            }
            RELEASED => {
                let _ = self.released.as_ref().map(EventFd::read);
                if let Some(resume_gate) = &mut self.resume_gate {
                    resume_gate.is_released = true;
                }
            }
            socket => self.handle_socket(socket, kinds),
        }
    }

    /// Accepts one client. The listener stays readable if more are waiting.
    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if self.handshakes.len() >= MAX_HANDSHAKES || self.connections.len() >= MAX_CONNECTIONS {
            log::warn!("rejected a vsock client: too many connections");
            return;
        }
        if let Some(token) = self.watch(&stream) {
            self.advance_handshake(token, Handshake::new(stream));
        }
    }

    /// Adds a host socket to the epoll set, edge-triggered: the thread must read and write it until it would block.
    fn watch(&mut self, stream: &UnixStream) -> Option<u64> {
        let token = self.next_token;
        self.next_token += 1;
        let kinds = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let watched = stream.set_nonblocking(true).and_then(|()| self.wakeups.add(stream.as_raw_fd(), kinds, token));
        match watched {
            Ok(()) => Some(token),
            Err(error) => {
                log::warn!("polling the socket of a vsock connection failed: {error}");
                None
            }
        }
    }

    fn advance_handshake(&mut self, token: u64, handshake: Handshake) {
        match handshake.advance() {
            HandshakeProgress::Waiting(handshake) => {
                self.handshakes.insert(token, handshake);
            }
            HandshakeProgress::Refused => {}
            HandshakeProgress::Connect(stream, guest_port) => self.connect_to_guest(token, stream, guest_port),
        }
    }

    fn connect_to_guest(&mut self, token: u64, stream: UnixStream, guest_port: u32) {
        let key = Key { guest_port, host_port: self.free_host_port(guest_port) };
        self.add(key, VsockConnection::from_host(key, self.cid, stream), token);
    }

    fn add(&mut self, key: Key, connection: VsockConnection, token: u64) {
        self.sockets.insert(token, key);
        self.connections.insert(key, ConnectionEntry { connection, token, is_queued: false });
        self.queue_if_ready(key);
    }

    fn free_host_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host_port = self.next_port;
            self.next_port = self.next_port.checked_add(1).filter(|port| *port < u32::MAX).unwrap_or(FIRST_HOST_PORT);
            if !self.connections.contains_key(&Key { guest_port, host_port }) {
                return host_port;
            }
        }
    }

    fn handle_socket(&mut self, token: u64, kinds: EventSet) {
        if let Some(handshake) = self.handshakes.remove(&token) {
            return self.advance_handshake(token, handshake);
        }
        let Some(key) = self.sockets.get(&token).copied() else { return };
        let Some(ConnectionEntry { connection, .. }) = self.connections.get_mut(&key) else { return };
        if kinds.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            connection.set_hung_up();
        }
        if kinds.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
            connection.set_readable();
        }
        if kinds.contains(EventSet::OUT) {
            connection.flush();
        }
        self.queue_if_ready(key);
    }

    /// Queues a connection that has packets for the guest, and removes a closed connection.
    fn queue_if_ready(&mut self, key: Key) {
        let Some(entry) = self.connections.get_mut(&key) else { return };
        if entry.connection.is_closed() {
            let (token, is_queued) = (entry.token, entry.is_queued);
            self.connections.remove(&key);
            self.sockets.remove(&token);
            if is_queued {
                self.ready.retain(|other| *other != key);
            }
        } else if entry.connection.wants_to_send() && !entry.is_queued {
            entry.is_queued = true;
            self.ready.push_back(key);
        }
    }

    /// Moves one batch of packets. Returns true if there may be more.
    fn serve_guest(&mut self) -> Result<bool, QueueError> {
        let mut left = BATCH;
        loop {
            let taken = self.take_packets(&mut left)?;
            let given = self.give_packets(&mut left)?;
            if left == 0 || !taken && !given {
                return Ok(left == 0);
            }
        }
    }

    /// Receives packets from the guest until the batch has none `left`. Returns true if there were any.
    fn take_packets(&mut self, left: &mut usize) -> Result<bool, QueueError> {
        let mut any = false;
        loop {
            self.activation.queues[TRANSMIT].disable_notifications()?;
            while *left > 0
                && let Some(chain) = self.activation.queues[TRANSMIT].pop()?
            {
                any = true;
                *left -= 1;
                if let Some(Buffer { address, .. }) = chain.writable.first() {
                    return Err(QueueError::WrongDirection { queue: TRANSMIT, address: address.0 });
                }
                self.take_packet(&chain.readable)?;
                self.activation.queues[TRANSMIT].add_used(chain.head, 0)?;
            }
            self.activation.queues[TRANSMIT].notify()?;
            // When the batch is used up, the thread serves the queue again without a notification.
            if *left == 0 || !self.activation.queues[TRANSMIT].enable_notifications()? {
                return Ok(any);
            }
        }
    }

    fn take_packet(&mut self, buffers: &[Buffer]) -> Result<(), QueueError> {
        let mut bytes = [0; HEADER_SIZE];
        let length = queue::read_from(&self.activation.memory, buffers, &mut bytes);
        if length < HEADER_SIZE {
            let (length, needed) = (length as u64, HEADER_SIZE as u64);
            return Err(QueueError::TooShort { queue: TRANSMIT, length, needed });
        }
        let header = Header::from_bytes(&bytes);
        let total = queue::total_length(buffers) - HEADER_SIZE as u64;
        let data_length = if header.op == op::RW { header.len } else { 0 };
        if data_length > MAX_DATA || u64::from(data_length) > total {
            self.activation.faults.record(&format!("a vsock packet with the invalid length {}", header.len));
            self.reset_stray(&header);
            return Ok(());
        }
        let data_buffers = queue::subrange(buffers, HEADER_SIZE as u64, data_length.into());
        let mut data = vec![0; data_length as usize];
        queue::read_from(&self.activation.memory, &data_buffers, &mut data);
        self.dispatch(&header, &data);
        Ok(())
    }

    fn dispatch(&mut self, header: &Header, data: &[u8]) {
        if header.src_cid != self.cid || header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.reset_stray(header);
        }
        let key = Key { guest_port: header.src_port, host_port: header.dst_port };
        if header.op == op::REQUEST {
            return self.connect_to_host(key, header);
        }
        match self.connections.get_mut(&key) {
            Some(ConnectionEntry { connection, .. }) => {
                connection.receive(header, data);
                self.queue_if_ready(key);
            }
            None => self.reset_stray(header),
        }
    }

    fn connect_to_host(&mut self, key: Key, request: &Header) {
        if self.connections.contains_key(&key) || self.connections.len() >= MAX_CONNECTIONS {
            return self.reset_stray(request);
        }
        // Only privileged processes in the guest can bind such a port.
        let is_privileged = PRIVILEGED_PORTS.contains(&key.guest_port);
        let stream = match &self.seed {
            Some(seed) if key.host_port == SEED_PORT && is_privileged => offer(seed),
            Some(_) if key.host_port == SEED_PORT => {
                if !std::mem::replace(&mut self.has_refused_seed, true) {
                    log::warn!(
                        "did not send the instance's key and user data to unprivileged port {} of the guest. If the \
                         agent requested them, it is older than this wisp: import the image again",
                        key.guest_port
                    );
                }
                return self.reset_stray(request);
            }
            _ if key.host_port == SENTINEL_PORT => {
                // Older agents use an unprivileged port. It is accepted until an agent has used a privileged one.
                if self.sentinel.as_ref().is_some_and(|sentinel| sentinel.is_privileged) && !is_privileged {
                    return self.reset_stray(request);
                }
                UnixStream::pair().map(|(near, far)| {
                    // There is only one agent, so a new sentinel connection replaces the last one.
                    self.sentinel = Some(Sentinel { _stream: near, is_privileged });
                    far
                })
            }
            _ => self.connector.connect(&self.path, key.host_port),
        };
        let Ok(stream) = stream else { return self.reset_stray(request) };
        let Some(token) = self.watch(&stream) else { return self.reset_stray(request) };
        self.add(key, VsockConnection::from_guest(request, stream), token);
    }

    /// Queues a reset as the answer to a packet that has no connection or is refused, unless it is a reset itself.
    fn reset_stray(&mut self, header: &Header) {
        if header.op != op::RST && self.stray_resets.len() < MAX_STRAY_RESETS {
            self.stray_resets.push_back(header.reset_for());
        }
    }

    /// Sends packets to the guest until the batch has none `left`. Returns true if there were any.
    fn give_packets(&mut self, left: &mut usize) -> Result<bool, QueueError> {
        let mut any = false;
        while *left > 0 && !(self.ready.is_empty() && self.stray_resets.is_empty()) {
            let Some(chain) = self.activation.queues[RECEIVE].pop()? else {
                // There are no receive buffers. The thread continues on the driver's next notification.
                if self.activation.queues[RECEIVE].enable_notifications()? {
                    continue;
                }
                break;
            };
            if let Some(Buffer { address, .. }) = chain.readable.first() {
                return Err(QueueError::WrongDirection { queue: RECEIVE, address: address.0 });
            }
            let (length, needed) = (queue::total_length(&chain.writable), HEADER_SIZE as u64 + 1);
            if length < needed {
                return Err(QueueError::TooShort { queue: RECEIVE, length, needed });
            }
            *left -= 1;
            match self.next_packet(&chain.writable) {
                Some(header) => {
                    any = true;
                    queue::write_to(&self.activation.memory, &chain.writable, &header.to_bytes());
                    let written = HEADER_SIZE as u32 + header.len;
                    self.activation.queues[RECEIVE].add_used(chain.head, written)?;
                }
                None => self.activation.queues[RECEIVE].undo_pop(),
            }
        }
        if any {
            self.activation.queues[RECEIVE].notify()?;
        }
        Ok(any)
    }

    /// Returns the header of the next packet in turn. Its payload is already in `buffers`, after room for the header.
    fn next_packet(&mut self, buffers: &[Buffer]) -> Option<Header> {
        if let Some(reset) = self.stray_resets.pop_front() {
            return Some(reset);
        }
        let key = self.ready.pop_front()?;
        let memory = &self.activation.memory;
        let ConnectionEntry { connection, is_queued, .. } = self.connections.get_mut(&key)?;
        *is_queued = false;
        let packet = connection.next_packet(|stream, limit| {
            let buffers = queue::subrange(buffers, HEADER_SIZE as u64, limit.into());
            read_into_guest(memory, stream, &buffers)
        });
        self.queue_if_ready(key);
        packet
    }
}

impl Serve for VsockService {
    const KIND: ThreadKind = ThreadKind::Vsock;

    fn queue_states(&self) -> Vec<QueueState> {
        self.activation.queue_states()
    }

    fn run(&mut self) {
        loop {
            let has_more = match self.advance_resume_gate().and_then(|()| self.serve_guest()) {
                Ok(has_more) => has_more,
                Err(error) => {
                    self.activation.faults.record(&error);
                    return self.activation.interrupt.need_reset();
                }
            };
            let mut events = Vec::new();
            let is_running = self.wakeups.wait(self.timeout(has_more), |token, kinds| events.push((token, kinds)));
            for (token, kinds) in events {
                self.handle(token, kinds);
            }
            if !is_running {
                return;
            }
        }
    }
}

/// A restored guest may still use a port from before the snapshot, so the first host port is random.
fn random_offset() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(()) as u32) % (1 << 29)
}

/// Returns a stream that yields the file at `path` and then ends. A whole seed fits into the socket's buffer.
fn offer(path: &Path) -> io::Result<UnixStream> {
    let mut content = Vec::new();
    File::open(path)?.take(MAX_SEED as u64).read_to_end(&mut content)?;
    let (mut near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    near.write_all(&content)?;
    Ok(far)
}

fn read_into_guest(memory: &GuestMemory, stream: &UnixStream, buffers: &[Buffer]) -> io::Result<usize> {
    let mut pieces = IoVecs::default();
    pieces.extend_guest(&queue::volatile_slices(memory, buffers));
    pieces.read_from(stream.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::GuestFaults;
    use crate::irq::IrqLine;
    use crate::memory;
    use crate::virtio::interrupt::Interrupt;
    use crate::virtio::queue::tests::{endless_queue, queue_at};
    use netstack::broker;
    use vm_memory::{Bytes, GuestAddress};

    const CID: u32 = 3;
    const PACKET: u64 = 0x10_0000;

    fn packet(op: u16, src_port: u32) -> Header {
        let (src_cid, dst_cid, kind) = (CID.into(), HOST_CID, TYPE_STREAM);
        let (dst_port, buf_alloc) = (SENTINEL_PORT, 1 << 16);
        Header { src_cid, dst_cid, src_port, dst_port, len: 0, kind, op, flags: 0, buf_alloc, fwd_cnt: 0 }
    }

    /// Creates a device whose guest offers no receive buffers and sends the packet at [`PACKET`] endlessly.
    fn service(dir: &Path) -> VsockService {
        let memory = memory::allocate(64).unwrap();
        let path = dir.join("v");
        let listener = UnixListener::bind(&path).unwrap();
        let transmit = endless_queue(&memory, TRANSMIT, (PACKET, HEADER_SIZE as u32, 0));
        let activation = Activation {
            memory: memory.clone(),
            queues: vec![queue_at(&memory, 0, RECEIVE, &[], &[]), transmit, queue_at(&memory, 0x3000, EVENT, &[], &[])],
            interrupt: Arc::new(Interrupt::new(IrqLine::new().unwrap())),
            features: 0,
            faults: Arc::new(GuestFaults::new("vsock")),
            clock: Arc::default(),
        };
        let config = VsockConfig { cid: CID, seed: None };
        let connector = broker::in_thread(None, None).vsock;
        VsockService::new(config, path, listener, connector, activation, Wakeups::for_test(), None).unwrap()
    }

    #[test]
    fn connect_and_reset_pairs_leave_ready_queue_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut service = service(dir.path());
        for port in 0..5000 {
            // Use privileged ports, like the agent's sentinel.
            let port = 1 + port % 7;
            service.dispatch(&packet(op::REQUEST, port), &[]);
            assert_eq!(service.ready.len(), 1);
            service.dispatch(&packet(op::RST, port), &[]);
            assert_eq!((service.ready.len(), service.connections.len(), service.sockets.len()), (0, 0, 0));
        }
    }

    #[test]
    fn ready_queue_has_each_connection_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut service = service(dir.path());
        for port in 0..5000_u32 {
            service.dispatch(&packet(op::REQUEST, port), &[]);
            service.dispatch(&packet(op::CREDIT_REQUEST, port % 100), &[]);
        }
        assert!(service.ready.len() <= MAX_CONNECTIONS, "{}", service.ready.len());
        assert_eq!(service.ready.len(), service.connections.len());
        assert!(service.stray_resets.len() <= MAX_STRAY_RESETS);
    }

    #[test]
    fn endless_packets_are_taken_in_batches() {
        let dir = tempfile::tempdir().unwrap();
        let mut service = service(dir.path());
        let memory = service.activation.memory.clone();
        memory.write_slice(&packet(op::RST, 1).to_bytes(), GuestAddress(PACKET)).unwrap();
        for turn in 1..=3 {
            assert_eq!(service.serve_guest(), Ok(true));
            assert_eq!(usize::from(service.activation.queue_states()[TRANSMIT].next_avail), turn * BATCH);
        }
        assert_eq!((service.timeout(true), service.timeout(false)), (0, -1));
    }
}
