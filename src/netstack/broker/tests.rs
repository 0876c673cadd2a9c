use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::{Forward, NetstackConfig, Transport};

const DEADLINE: Duration = Duration::from_secs(20);
const GUEST_PORT: u16 = 53;

/// Returns an address that no other test uses: each test process has its own loopback address.
fn forward(transport: Transport) -> Forward {
    static NEXT: AtomicU16 = AtomicU16::new(20000);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let host = SocketAddrV4::new(Ipv4Addr::new(127, 64 | a, b, c), NEXT.fetch_add(1, Ordering::Relaxed));
    Forward { transport, host, guest_port: GUEST_PORT }
}

fn publish(file: &Path, forwards: &[Forward]) {
    let config = NetstackConfig {
        address: Ipv4Addr::new(172, 31, 0, 4),
        prefix_length: 20,
        router: Ipv4Addr::new(172, 31, 0, 1),
        dns: Vec::new(),
        mtu: 1500,
        hostname: "host".into(),
        domain: "internal".into(),
        forwards: forwards.to_vec(),
        filter: None,
        metadata: None,
    };
    std::fs::write(file, serde_json::to_vec(&config).unwrap()).unwrap();
}

fn link_file(forwards: &[Forward]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    publish(file.path(), forwards);
    file
}

/// Returns the next datagram for the guest: the peer's number and the payload.
fn receive(channel: &DatagramChannel) -> (u16, Vec<u8>) {
    let mut room = vec![0; 64 << 10];
    loop {
        if let Some((peer, port, payload)) = channel.receive(&mut room) {
            assert_eq!(port, GUEST_PORT);
            return (peer, payload.to_vec());
        }
        let deadline = Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&deadline)).unwrap();
        assert_eq!(ready, 1, "no datagram came");
    }
}

fn client() -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client
}

fn heard(client: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut room = vec![0; 64 << 10];
    let (length, from) = client.recv_from(&mut room).unwrap();
    (room[..length].to_vec(), from)
}

#[test]
fn listener_of_new_port_is_passed_once() {
    let tcp = forward(Transport::Tcp);
    let file = link_file(&[tcp]);
    let client = in_thread(Some(file.path().into()), None);
    let ports = client.link.ports.request().unwrap();
    let [(of, HostPort::Passed(listener))] = &ports[..] else { panic!("{ports:?}") };
    assert_eq!(*of, tcp);
    let mut stream = TcpStream::connect(tcp.host).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    let again = client.link.ports.request().unwrap();
    assert!(matches!(again[..], [(_, HostPort::Open)]), "{again:?}");
}

#[test]
fn removed_port_stops_listening_despite_vmm_copy() {
    let tcp = forward(Transport::Tcp);
    let file = link_file(&[tcp]);
    let client = in_thread(Some(file.path().into()), None);
    let kept = client.link.ports.request().unwrap();
    let established = TcpStream::connect(tcp.host).unwrap();
    let [(_, HostPort::Passed(listener))] = &kept[..] else { panic!("{kept:?}") };
    let (mut accepted, _) = listener.accept().unwrap();

    publish(file.path(), &[]);
    assert!(client.link.ports.request().unwrap().is_empty());
    assert_eq!(TcpStream::connect(tcp.host).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(listener.accept().is_err());
    // The port is free for another program, and established connections stay open.
    TcpListener::bind(tcp.host).unwrap();
    (&established).write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
}

#[test]
fn ports_beyond_one_message_are_all_opened() {
    let forwards: Vec<Forward> = (0..120).map(|_| forward(Transport::Tcp)).collect();
    let file = link_file(&forwards);
    let client = in_thread(Some(file.path().into()), None);
    let ports = client.link.ports.request().unwrap();
    assert_eq!(ports.iter().map(|(forward, _)| *forward).collect::<Vec<_>>(), forwards);
    for (forward, port) in &ports {
        let HostPort::Passed(listener) = port else { panic!("{port:?}") };
        assert_eq!(listener.local_addr().unwrap(), forward.host.into(), "descriptors are in the order of their ports");
    }
}

#[test]
fn taken_port_is_reported_and_opened_when_it_is_free() {
    let tcp = forward(Transport::Tcp);
    let taken = TcpListener::bind(tcp.host).unwrap();
    let file = link_file(&[tcp]);
    let client = in_thread(Some(file.path().into()), None);
    let ports = client.link.ports.request().unwrap();
    let [(_, HostPort::Failed(why))] = &ports[..] else { panic!("{ports:?}") };
    assert!(why.contains(&tcp.host.to_string()), "{why}");
    drop(taken);
    assert!(matches!(client.link.ports.request().unwrap()[..], [(_, HostPort::Passed(_))]));
}

#[test]
fn unreadable_configuration_is_an_error_and_closes_nothing() {
    let tcp = forward(Transport::Tcp);
    let file = link_file(&[tcp]);
    let client = in_thread(Some(file.path().into()), None);
    let _listener = client.link.ports.request().unwrap();
    std::fs::write(file.path(), "not a link").unwrap();
    let error = client.link.ports.request().unwrap_err();
    assert!(error.to_string().contains("cannot read"), "{error}");
    TcpStream::connect(tcp.host).unwrap();
}

#[test]
fn datagrams_are_relayed_both_ways() {
    let udp = forward(Transport::Udp);
    let file = link_file(&[udp]);
    let LinkSockets { ports, datagrams } = in_thread(Some(file.path().into()), None).link;
    assert!(matches!(ports.request().unwrap()[..], [(_, HostPort::Open)]));
    let clients = [client(), client()];
    let long = vec![7; 65507];
    let mut peers = Vec::new();
    for (client, payload) in clients.iter().zip([&b"one"[..], &long]) {
        client.send_to(payload, udp.host).unwrap();
        let (peer, received) = receive(&datagrams);
        assert!(received == payload);
        peers.push(peer);
    }
    assert_ne!(peers[0], peers[1]);
    for (client, peer) in clients.iter().zip(&peers).rev() {
        datagrams.send(*peer, &peer.to_le_bytes());
        assert_eq!(heard(client), (peer.to_le_bytes().to_vec(), udp.host.into()));
    }
    // An empty reply is sent. A reply that is too long is dropped.
    datagrams.send(peers[0], &[]);
    assert_eq!(heard(&clients[0]).0, b"");
    datagrams.send(peers[0], &[0; 65508]);
    datagrams.send(peers[0], b"last");
    assert_eq!(heard(&clients[0]).0, b"last");
}

#[test]
fn datagram_to_peer_that_has_sent_nothing_is_dropped() {
    let udp = forward(Transport::Udp);
    let file = link_file(&[udp]);
    let LinkSockets { ports, datagrams } = in_thread(Some(file.path().into()), None).link;
    ports.request().unwrap();
    let (known, stranger) = (client(), client());
    known.send_to(b"hello", udp.host).unwrap();
    let (peer, _) = receive(&datagrams);
    for number in (0..=u16::MAX).filter(|number| *number != peer) {
        datagrams.send(number, b"from nowhere");
        // Leaves room for the next datagram.
        if number % 32 == 0 {
            datagrams.send(peer, b"turn");
            assert_eq!(heard(&known).0, b"turn");
        }
    }
    // A message that is too short for a peer's number is dropped as well.
    rustix::io::write(&datagrams, &[1]).unwrap();
    datagrams.send(peer, b"last");
    assert_eq!(heard(&known).0, b"last");
    stranger.set_nonblocking(true).unwrap();
    assert_eq!(stranger.recv_from(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn peers_of_removed_port_are_removed() {
    let udp = forward(Transport::Udp);
    let file = link_file(&[udp]);
    let LinkSockets { ports, datagrams } = in_thread(Some(file.path().into()), None).link;
    ports.request().unwrap();
    let first = client();
    first.send_to(b"hello", udp.host).unwrap();
    let (peer, _) = receive(&datagrams);
    publish(file.path(), &[]);
    ports.request().unwrap();
    UdpSocket::bind(udp.host).unwrap();
    publish(file.path(), &[udp]);
    ports.request().unwrap();
    datagrams.send(peer, b"of before");
    let second = client();
    second.send_to(b"hello", udp.host).unwrap();
    let (peer, _) = receive(&datagrams);
    datagrams.send(peer, b"now");
    assert_eq!(heard(&second).0, b"now");
    first.set_nonblocking(true).unwrap();
    assert_eq!(first.recv_from(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn full_channel_does_not_block_broker() {
    let (udp, tcp) = (forward(Transport::Udp), forward(Transport::Tcp));
    let file = link_file(&[udp, tcp]);
    let LinkSockets { ports, datagrams } = in_thread(Some(file.path().into()), None).link;
    ports.request().unwrap();
    let client = client();
    for _ in 0..64 {
        client.send_to(&[7; 16 << 10], udp.host).unwrap();
    }
    // The broker still responds, and relays again when the channel has room.
    assert_eq!(ports.request().unwrap().len(), 2);
    let (peer, _) = receive(&datagrams);
    datagrams.send(peer, b"here");
    assert_eq!(heard(&client).0, b"here");
    let mut room = vec![0; 64 << 10];
    while datagrams.receive(&mut room).is_some() {}
    // The broker's socket drops datagrams while it is full of earlier ones, which are then received here.
    loop {
        client.send_to(b"again", udp.host).unwrap();
        if receive(&datagrams).1 == b"again" {
            break;
        }
    }
}

#[test]
fn vsock_connection_is_passed_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vsock.sock");
    let server = UnixListener::bind(dir.path().join("vsock.sock_80")).unwrap();
    let connector = in_thread(None, Some(socket.clone())).vsock;
    for _ in 0..3 {
        assert!(connector.connect(&socket, 81).is_err());
        let mut stream = connector.connect(&socket, 80).unwrap();
        stream.write_all(b"x").unwrap();
        server.accept().unwrap().0.read_exact(&mut [0]).unwrap();
    }
    drop(server);
    assert_eq!(connector.connect(&socket, 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
