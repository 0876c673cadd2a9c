use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket};

use proptest::prelude::*;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{ETHERNET_HEADER_LEN, HardwareAddress, IPV4_HEADER_LEN, IpAddress, IpCidr, IpEndpoint};

use super::stack::Wire;
use super::*;
use crate::broker::{self, LinkSockets, PortsClient};

pub(super) const GUEST: MacAddress = MacAddress([6, 0, 0, 0, 0, 1]);
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 4);
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn config() -> NetstackConfig {
    NetstackConfig {
        address: ADDRESS,
        prefix_length: 20,
        router: Ipv4Addr::new(172, 31, 0, 1),
        dns: vec![Ipv4Addr::new(172, 31, 0, 2)],
        mtu: 9001,
        hostname: "ip-172-31-0-4".into(),
        domain: "ec2.internal".into(),
        forwards: Vec::new(),
        filter: None,
        metadata: Some(metadata::tests::config()),
    }
}

pub(super) struct Bench {
    pub(super) services: Services,
    /// The configuration from which the broker opens ports.
    file: tempfile::NamedTempFile,
    ports: PortsClient,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    began: Instant,
    /// The time to live of the last packet from the metadata service.
    ttl: u8,
    /// The maximum time to live of packets with a payload.
    ttl_of_data: u8,
}

pub(super) fn bench(config: NetstackConfig) -> Bench {
    let mut wire = Wire { arrived: None, leaving: VecDeque::new(), mtu: config.mtu.into() };
    let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut wire, StackInstant::ZERO);
    interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(IpAddress::Ipv4(ADDRESS), 20)).unwrap());
    let file = tempfile::NamedTempFile::new().unwrap();
    let LinkSockets { ports, datagrams } = broker::in_thread(Some(file.path().to_path_buf()), None).link;
    let services = Services::new(GUEST, config.clone(), Some(datagrams)).unwrap();
    let (sockets, began) = (SocketSet::new(Vec::new()), Instant::now());
    let mut bench = Bench { services, file, ports, interface, sockets, wire, began, ttl: 0, ttl_of_data: 0 };
    bench.reload(config);
    bench
}

impl Bench {
    /// Loads another configuration, as the network device does.
    fn reload(&mut self, config: NetstackConfig) {
        std::fs::write(self.file.path(), serde_json::to_vec(&config).unwrap()).unwrap();
        let ports = self.ports.request().unwrap();
        self.services.reload(config);
        self.services.set_ports(ports);
    }

    pub(super) fn turn(&mut self) {
        let now = Instant::now();
        let time = StackInstant::from_micros((now - self.began).as_micros() as i64);
        self.interface.poll(time, &mut self.wire, &mut self.sockets);
        while let Some(packet) = self.wire.leaving.pop_front() {
            let frame = packet::frame(GATEWAY_MAC, GUEST, EthernetProtocol::Ipv4, &packet);
            let head = &frame[..frame.len().min(HEAD_LENGTH)];
            if self.services.from_guest(head, now) == Route::Services {
                self.services.accept(&frame, now);
            }
        }
        self.services.poll(now);
        while let Some(frame) = self.services.next_frame() {
            let ethernet = packet::ethernet(&frame).unwrap();
            if Ipv4::parse(ethernet.payload()).is_some_and(|packet| packet.source == METADATA_ADDRESS) {
                self.ttl = ethernet.payload()[8];
                if ethernet.payload().len() > 100 {
                    self.ttl_of_data = self.ttl_of_data.max(self.ttl);
                }
            }
            self.wire.arrived = Some(ethernet.payload().to_vec());
            self.interface.poll(time, &mut self.wire, &mut self.sockets);
        }
    }

    pub(super) fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Bench) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.turn();
            if let Some(value) = done(self) {
                return value;
            }
            assert!(Instant::now() < deadline, "{what}");
        }
    }

    pub(super) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn add_socket(&mut self) -> SocketHandle {
        // A larger buffer would lose a byte before a FIN, like a forwarded connection's.
        let buffer = || tcp::SocketBuffer::new(vec![0; 65535]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.add_socket();
        self.socket(handle).listen(port).unwrap();
        handle
    }

    /// Returns the metadata service's output for `request`, up to the end of the connection.
    fn ask(&mut self, port: u16, request: &str) -> String {
        let handle = self.add_socket();
        let to = IpEndpoint { addr: IpAddress::Ipv4(METADATA_ADDRESS), port: 80 };
        let context = self.interface.context();
        self.sockets.get_mut::<tcp::Socket>(handle).connect(context, to, port).unwrap();
        let mut sent = false;
        let mut answer = Vec::new();
        let request = request.to_string();
        self.until("the connection ends", |bench| {
            let socket = bench.socket(handle);
            if !sent && socket.can_send() {
                socket.send_slice(request.as_bytes()).unwrap();
                sent = true;
            }
            answer.extend(socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap_or_default());
            (sent && !socket.may_recv()).then_some(())
        });
        self.socket(handle).abort();
        self.turn();
        self.sockets.remove(handle);
        String::from_utf8(answer).unwrap()
    }
}

fn get(path: &str, token: Option<&str>) -> String {
    let token = token.map_or(String::new(), |token| format!("X-aws-ec2-metadata-token: {token}\r\n"));
    format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{token}Connection: close\r\n\r\n")
}

#[test]
fn guest_gets_token_and_metadata() {
    let mut required = config();
    let metadata = required.metadata.as_mut().unwrap();
    (metadata.tokens_required, metadata.hop_limit) = (true, 3);
    let mut bench = bench(required);
    let put = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\nConnection: close\r\n\r\n";
    let answer = bench.ask(5000, put);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("X-aws-ec2-metadata-token-ttl-seconds: 60\r\n"), "{answer}");
    assert_eq!(bench.ttl, 3, "the response with the token has the configured hop limit");
    let token = answer.lines().last().unwrap().to_string();
    let answer = bench.ask(5001, &get("/latest/meta-data/instance-id", Some(&token)));
    assert!(answer.ends_with("\r\n\r\ni-1"), "{answer}");
    assert!(bench.ask(5002, &get("/latest/meta-data/instance-id", None)).starts_with("HTTP/1.1 401"));
    // Two pipelined requests are answered in order.
    let both =
        [get("/latest/meta-data/ami-id", Some(&token)).replace("Connection: close\r\n", ""), get("/x", Some(&token))];
    let answer = bench.ask(5003, &both.concat());
    assert!(answer.contains("\r\n\r\nami-1HTTP/1.1 404"), "{answer}");
}

#[test]
fn sequential_connections_leave_no_sockets() {
    let mut bench = bench(config());
    for port in 6000..6100 {
        assert!(bench.ask(port, &get("/latest/meta-data/ami-id", None)).ends_with("ami-1"));
    }
    bench.turn();
    let open = format!("{:?}", bench.services.server).matches("Connection {").count();
    assert!(open <= 2, "{open} connections are still open");
}

fn free_address(transport: Transport) -> SocketAddrV4 {
    let address = match transport {
        Transport::Tcp => TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        Transport::Udp => UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
    };
    address.to_string().parse().unwrap()
}

pub(super) fn forwarding(transport: Transport, guest_port: u16) -> (NetstackConfig, SocketAddrV4) {
    let host = free_address(transport);
    let forwards = vec![Forward { transport, host, guest_port }];
    (NetstackConfig { forwards, ..config() }, host)
}

#[test]
fn tcp_forward_carries_both_directions() {
    const LENGTH: usize = 2 << 20;
    let (config, host) = forwarding(Transport::Tcp, 80);
    let mut bench = bench(config);
    assert_eq!(bench.services.problems(), Vec::<String>::new());
    let listener = bench.listen(80);
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut writing = stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            let bytes: Vec<u8> = (0..LENGTH).map(|index| (index % 253) as u8).collect();
            writing.write_all(&bytes).unwrap();
            writing.shutdown(std::net::Shutdown::Write).unwrap();
            bytes
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        (writer.join().unwrap(), back)
    });
    // The guest echoes everything, and closes when the client has closed.
    let mut held: VecDeque<u8> = VecDeque::new();
    bench.until("all bytes are echoed", |bench| {
        let socket = bench.socket(listener);
        held.extend(socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap_or_default());
        let (front, _) = held.as_slices();
        let taken = socket.send_slice(front).unwrap_or(0);
        held.drain(..taken);
        if socket.state() == tcp::State::CloseWait && !socket.can_recv() && held.is_empty() {
            socket.close();
        }
        client.is_finished().then_some(())
    });
    let (sent, back) = client.join().unwrap();
    assert!(sent == back, "{} bytes came back, {} were sent", back.len(), sent.len());
    bench.until("all sockets are removed", |bench| (bench.services.stack.sockets.iter().count() == 0).then_some(()));
}

#[test]
fn tcp_forward_to_closed_guest_port_is_reset() {
    let (config, host) = forwarding(Transport::Tcp, 81);
    let mut bench = bench(config);
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.read(&mut [0])
    });
    bench.until("the client finishes", |_| client.is_finished().then_some(()));
    let error = client.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn stalled_client_does_not_block_other_connections() {
    let (config, host) = forwarding(Transport::Tcp, 82);
    let mut bench = bench(config);
    let listeners = [bench.listen(82), bench.listen(82)];
    let stalled = TcpStream::connect(host).unwrap();
    bench.until("the client is connected", |bench| bench.socket(listeners[0]).can_send().then_some(()));
    let filler = vec![7; 65536];
    let mut turns_without = 0;
    bench.until("the buffers are full", |bench| {
        let taken = bench.socket(listeners[0]).send_slice(&filler).unwrap_or(0);
        turns_without = if taken == 0 { turns_without + 1 } else { 0 };
        (turns_without > 500).then_some(())
    });
    let mut other = TcpStream::connect(host).unwrap();
    other.set_read_timeout(Some(DEADLINE)).unwrap();
    bench.until("the other client is connected", |bench| bench.socket(listeners[1]).can_send().then_some(()));
    bench.socket(listeners[1]).send_slice(b"hello").unwrap();
    let client = std::thread::spawn(move || {
        let mut bytes = [0; 5];
        other.read_exact(&mut bytes).map(|()| bytes)
    });
    bench.until("the other client is served", |_| client.is_finished().then_some(()));
    assert_eq!(&client.join().unwrap().unwrap(), b"hello");
    drop(stalled);
}

#[test]
fn udp_forward_carries_query_and_answer() {
    let (config, host) = forwarding(Transport::Udp, 53);
    let mut bench = bench(config);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(b"query", host).unwrap();
    let deadline = Instant::now() + DEADLINE;
    let frame = loop {
        bench.services.poll(Instant::now());
        if let Some(frame) = bench.services.next_frame() {
            break frame;
        }
        assert!(Instant::now() < deadline, "the guest received no datagram");
    };
    let ethernet = packet::ethernet(&frame).unwrap();
    let packet = Ipv4::parse(ethernet.payload()).unwrap();
    let query = Datagram::parse(&packet).unwrap();
    assert_eq!((query.payload, query.destination), (&b"query"[..], (ADDRESS, 53)));
    let answer = Datagram { source: query.destination, destination: query.source, payload: b"answer" };
    let frame = packet::frame(GATEWAY_MAC, GUEST, EthernetProtocol::Ipv4, &answer.packet().unwrap());
    assert_eq!(bench.services.from_guest(&frame, Instant::now()), Route::Services);
    bench.services.accept(&frame, Instant::now());
    let mut bytes = [0; 100];
    let (length, from) = client.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..length], from.to_string()), (&b"answer"[..], host.to_string()));
}

#[test]
fn port_in_use_is_reported_until_reload() {
    let (wanted, host) = forwarding(Transport::Tcp, 80);
    let taken = TcpListener::bind(host).unwrap();
    let mut bench = bench(wanted.clone());
    let problems = bench.services.problems();
    assert!(problems.len() == 1 && problems[0].contains(&host.to_string()), "{problems:?}");
    drop(taken);
    bench.reload(wanted.clone());
    assert_eq!(bench.services.problems(), Vec::<String>::new());
    TcpStream::connect(host).unwrap();
    bench.reload(NetstackConfig { forwards: Vec::new(), ..wanted });
    assert!(TcpStream::connect(host).is_err());
}

#[test]
fn frames_with_foreign_addresses_are_dropped() {
    let mut services = Services::new(GUEST, config(), None).unwrap();
    let now = Instant::now();
    let peer = Ipv4Addr::new(10, 0, 0, 9);
    let mut route = |mac, kind, from, to| {
        let datagram = Datagram { source: (from, 1), destination: (to, 2), payload: b"x" };
        services.from_guest(&packet::frame(GATEWAY_MAC, mac, kind, &datagram.packet().unwrap()), now)
    };
    assert_eq!(route(GUEST, EthernetProtocol::Ipv4, ADDRESS, peer), Route::Forward);
    assert_eq!(route(GATEWAY_MAC, EthernetProtocol::Ipv4, ADDRESS, peer), Route::Drop);
    assert_eq!(route(GUEST, EthernetProtocol::Ipv4, peer, ADDRESS), Route::Drop);
    assert_eq!(route(GUEST, EthernetProtocol::Ipv6, ADDRESS, peer), Route::Drop);
    assert_eq!(route(GUEST, EthernetProtocol::Arp, ADDRESS, peer), Route::Services);
    for group in [Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
        assert_eq!(route(GUEST, EthernetProtocol::Ipv4, ADDRESS, group), Route::Drop);
    }
    assert_eq!(route(GUEST, EthernetProtocol::Ipv4, ADDRESS, METADATA_ADDRESS), Route::Services);
}

#[test]
fn refused_frame_gets_icmp_unreachable() {
    let mut bench = bench(config());
    let away = Datagram { source: (ADDRESS, 1), destination: (Ipv4Addr::new(10, 0, 0, 9), 2), payload: b"x" };
    let frame = packet::frame(GATEWAY_MAC, GUEST, EthernetProtocol::Ipv4, &away.packet().unwrap());
    bench.services.refuse(&frame);
    let answer = bench.services.next_frame().unwrap();
    let packet = smoltcp::wire::Ipv4Packet::new_checked(&answer[ETHERNET_HEADER_LEN..]).unwrap();
    assert!(packet.verify_checksum());
    let message = smoltcp::wire::Icmpv4Packet::new_checked(packet.payload()).unwrap();
    assert!(message.verify_checksum());
    let kind = (message.msg_type(), message.msg_code());
    assert_eq!(kind, (smoltcp::wire::Icmpv4Message::DstUnreachable, 0));
    assert_eq!(message.data(), &frame[ETHERNET_HEADER_LEN..]);
    // An ICMP error must not cause another.
    bench.services.refuse(&answer);
    assert!(bench.services.next_frame().is_none());
}

#[test]
fn frames_from_service_addresses_are_dropped() {
    let mut services = Services::new(GUEST, config(), None).unwrap();
    let now = Instant::now();
    let mut passes = |from, to| {
        let datagram = Datagram { source: (from, 1), destination: (to, 2), payload: b"x" };
        services.to_guest(&packet::frame(GUEST, GATEWAY_MAC, EthernetProtocol::Ipv4, &datagram.packet().unwrap()), now)
    };
    assert!(passes(Ipv4Addr::new(10, 0, 0, 9), ADDRESS));
    assert!(!passes(METADATA_ADDRESS, ADDRESS));
    assert!(!passes(config().router, ADDRESS));
    assert!(!passes(Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(172, 31, 0, 5)));
}

fn datagram_to(to: Ipv4Addr, port: u16) -> Vec<u8> {
    let datagram = Datagram { source: (ADDRESS, 4000), destination: (to, port), payload: b"x" };
    packet::frame(GATEWAY_MAC, GUEST, EthernetProtocol::Ipv4, &datagram.packet().unwrap())
}

#[test]
fn replies_to_stalled_guest_are_limited() {
    let mut services = Services::new(GUEST, config(), None).unwrap();
    let now = Instant::now();
    let frames = [segment(2, 7, &[], &[(22, 9)]), datagram_to(config().router, 9), datagram_to(METADATA_ADDRESS, 9)];
    for frame in frames.iter().cycle().take(10_000) {
        assert_eq!(services.from_guest(frame, now), Route::Services);
        services.accept(frame, now);
        services.poll(now);
    }
    let waiting = std::iter::from_fn(|| services.next_frame()).count();
    assert!(waiting <= 2 * WAITING, "{waiting} frames");
}

#[test]
fn frame_to_other_mac_than_gateway_is_dropped() {
    let mut services = Services::new(GUEST, config(), None).unwrap();
    let mut frame = datagram_to(Ipv4Addr::new(172, 31, 0, 5), 80);
    assert_eq!(services.from_guest(&frame, Instant::now()), Route::Forward);
    frame[..6].copy_from_slice(&[6, 0, 0, 0, 0, 2]);
    assert_eq!(services.from_guest(&frame, Instant::now()), Route::Drop);
}

#[test]
fn host_and_reserved_addresses_are_dropped() {
    let mut services = Services::new(GUEST, config(), None).unwrap();
    for address in ["127.0.0.1", "127.18.0.5", "0.0.0.1", "169.254.170.2", "240.0.0.1", "172.31.15.255"] {
        let frame = datagram_to(address.parse().unwrap(), 80);
        assert_eq!(services.from_guest(&frame, Instant::now()), Route::Drop, "{address}");
    }
}

#[test]
fn pipelined_request_keeps_token_hop_limit() {
    let mut bench = bench(config());
    let put = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let mut farthest = 0;
    for port in 5000..5003 {
        let answer = bench.ask(port, &format!("{put}{}", get("/latest/meta-data/ami-id", None)));
        assert!(answer.ends_with("ami-1"), "{answer}");
        farthest = farthest.max(bench.ttl_of_data);
    }
    assert_eq!(farthest, 1);
}

#[test]
fn long_datagram_is_fragmented_to_mtu() {
    let (config, host) = forwarding(Transport::Udp, 53);
    let mtu = 1500;
    let mut bench = bench(NetstackConfig { mtu, ..config });
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sent: Vec<u8> = (0..20_000_u32).map(|index| index as u8).collect();
    client.send_to(&sent, host).unwrap();
    let deadline = Instant::now() + DEADLINE;
    let mut whole: Vec<u8> = Vec::new();
    let mut has_more = true;
    while has_more {
        assert!(Instant::now() < deadline, "only {} bytes arrived", whole.len());
        bench.services.poll(Instant::now());
        while let Some(frame) = bench.services.next_frame() {
            assert!(frame.len() <= usize::from(mtu) + ETHERNET_HEADER_LEN);
            let packet = smoltcp::wire::Ipv4Packet::new_checked(&frame[ETHERNET_HEADER_LEN..]).unwrap();
            assert!(packet.verify_checksum());
            assert_eq!(usize::from(packet.frag_offset()), whole.len());
            whole.extend(packet.payload());
            has_more = packet.more_frags();
        }
    }
    assert_eq!(whole[8..], sent);
}

#[test]
fn closed_client_is_removed_while_guest_stalls() {
    let (config, host) = forwarding(Transport::Tcp, 83);
    let mut bench = bench(config);
    let listener = bench.listen(83);
    let mut client = TcpStream::connect(host).unwrap();
    bench.until("the client is connected", |bench| bench.socket(listener).can_send().then_some(()));
    client.set_nonblocking(true).unwrap();
    let filler = vec![7; 65536];
    let mut turns_without = 0;
    bench.until("all buffers are full", |_| {
        turns_without = if client.write(&filler).is_ok() { 0 } else { turns_without + 1 };
        (turns_without > 500).then_some(())
    });
    // A close with unread data is a reset.
    bench.socket(listener).send_slice(b"unread").unwrap();
    for _ in 0..50 {
        bench.turn();
    }
    drop(client);
    bench.until("the connection is removed", |bench| (bench.services.stack.sockets.iter().count() == 0).then_some(()));
}

#[test]
fn connection_above_limit_gets_no_reset() {
    let mut services = Services::new(GUEST, config(), None).unwrap();
    let now = Instant::now();
    for port in 0..40 {
        let mut frame = segment(2, 7, &[], &[]);
        frame[34..36].copy_from_slice(&(4000_u16 + port).to_be_bytes());
        services.accept(&frame, now);
        services.poll(now);
    }
    let answers: Vec<_> = std::iter::from_fn(|| services.next_frame()).collect();
    assert_eq!(answers.len(), 16);
    for frame in answers {
        assert_eq!(frame[47], 0x12, "SYN and ACK, no reset");
    }
    // Incomplete connections time out.
    services.poll(now + Duration::from_secs(61));
    assert_eq!(format!("{:?}", services.server).matches("Connection {").count(), 0);
}

/// Feeds frames to the services. The guest reads the replies if `drains` is set.
fn throw(services: &mut Services, frames: Vec<Vec<u8>>, drains: bool) {
    for frame in frames {
        let now = Instant::now();
        let head = &frame[..frame.len().min(HEAD_LENGTH)];
        services.to_guest(head, now);
        if services.from_guest(head, now) == Route::Services {
            services.accept(&frame, now);
        }
        // The services must also withstand frames that are not routed to them.
        services.accept(&frame, now);
        services.poll(now);
        assert!(services.frames.len() <= WAITING);
        while drains && services.next_frame().is_some() {}
    }
    assert!(std::iter::from_fn(|| services.next_frame()).count() <= 2 * WAITING);
}

/// Builds a TCP segment to the metadata service that is valid except for the bytes in `changes`.
fn segment(flags: u8, sequence: u32, payload: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let datagram = Datagram { source: (ADDRESS, 4000), destination: (METADATA_ADDRESS, 80), payload: &[] };
    let mut packet = datagram.packet().unwrap();
    packet.truncate(IPV4_HEADER_LEN);
    packet[9] = IpProtocol::Tcp.into();
    let ports = [4000_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat();
    let rest = [&ports[..], &sequence.to_be_bytes(), &[0; 4], &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0], payload].concat();
    packet.extend(rest);
    let total = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&total);
    packet[10..12].fill(0);
    smoltcp::wire::Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
    for (at, byte) in changes {
        let length = packet.len();
        packet[at % length] = *byte;
    }
    packet::frame(GATEWAY_MAC, GUEST, EthernetProtocol::Ipv4, &packet)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn arbitrary_frames_never_panic(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20),
        kinds in proptest::collection::vec(0_usize..4, 20),
        drains: bool,
    ) {
        let mut services = Services::new(GUEST, NetstackConfig { filter: Some(Filter::default()), ..config() }, None).unwrap();
        let frames = frames.into_iter().zip(kinds).map(|(bytes, kind)| match kind {
            0 => bytes,
            1 => packet::frame(GATEWAY_MAC, GUEST, EthernetProtocol::Arp, &bytes),
            2 => packet::frame(GATEWAY_MAC, GUEST, EthernetProtocol::Ipv4, &bytes),
            _ => {
                let dhcp = Datagram { source: (ADDRESS, 68), destination: (Ipv4Addr::BROADCAST, 67), payload: &bytes };
                packet::frame(GATEWAY_MAC, GUEST, EthernetProtocol::Ipv4, &dhcp.packet().unwrap())
            }
        });
        throw(&mut services, frames.collect(), drains);
    }

    #[test]
    fn arbitrary_segments_never_panic(
        segments in proptest::collection::vec(
            (any::<u8>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..100),
             proptest::collection::vec((any::<usize>(), any::<u8>()), 0..3)), 0..40),
        drains: bool,
    ) {
        let mut services = Services::new(GUEST, config(), None).unwrap();
        let begin = segment(2, 7, &[], &[]);
        let frames = segments.into_iter().map(|(flags, sequence, payload, changes)| {
            segment(flags & 0x3f, sequence % 200, &payload, &changes)
        });
        throw(&mut services, std::iter::once(begin).chain(frames).collect(), drains);
    }

    #[test]
    fn arbitrary_requests_leave_service_working(
        pieces in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..300),
                Just(b"GET /latest/meta-data/ HTTP/1.1\r\n\r\n".to_vec()),
                Just(b"PUT /latest/api/token HTTP/1.1\r\n".to_vec()),
                Just(b"HEAD / HTTP/1.0\r\nContent-Length: 70\r\n".to_vec()),
                Just(vec![b'x'; 9000]),
                Just(b"\r\n\r\n".to_vec()),
            ], 1..12),
    ) {
        let mut bench = bench(config());
        let handle = bench.add_socket();
        let to = IpEndpoint { addr: IpAddress::Ipv4(METADATA_ADDRESS), port: 80 };
        bench.sockets.get_mut::<tcp::Socket>(handle).connect(bench.interface.context(), to, 5000).unwrap();
        bench.until("the client is connected", |bench| bench.socket(handle).can_send().then_some(()));
        for piece in pieces {
            let _ = bench.socket(handle).send_slice(&piece);
            bench.turn();
        }
        bench.socket(handle).close();
        bench.until("the connection ends", |bench| {
            let socket = bench.socket(handle);
            let _ = socket.recv(|bytes| (bytes.len(), ()));
            (!socket.may_recv()).then_some(())
        });
        prop_assert!(bench.ask(5001, &get("/latest/meta-data/ami-id", None)).ends_with("ami-1"));
    }
}
