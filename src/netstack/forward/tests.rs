use std::io::Read;
use std::net::{Shutdown, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp;
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber,
};

use crate::packet;
use crate::tests::{ADDRESS, Bench, DEADLINE, GUEST, bench, config, forwarding};
use crate::{GATEWAY_MAC, Services, Transport};

/// A connection of a guest that chooses each of its segments.
struct RawGuest {
    services: Services,
    now: Instant,
    /// The next sequence number to send and to receive.
    next: TcpSeqNumber,
    expected: TcpSeqNumber,
    router_port: u16,
    window_shift: u8,
}

impl RawGuest {
    /// Accepts the connection that is waiting at a published port.
    fn accept(services: Services) -> RawGuest {
        let (now, next, expected) = (Instant::now(), TcpSeqNumber(1000), TcpSeqNumber(0));
        let mut guest = RawGuest { services, now, next, expected, router_port: 0, window_shift: 0 };
        let deadline = Instant::now() + DEADLINE;
        let syn = loop {
            if let Some(syn) = guest.poll() {
                break syn;
            }
            assert!(Instant::now() < deadline, "no connection arrived");
        };
        (guest.router_port, guest.expected) = (syn.src_port, syn.seq_number + 1);
        guest.window_shift = syn.window_scale.unwrap_or(0);
        guest.send(TcpControl::Syn, &[]);
        guest
    }

    /// Lets the netstack work, and returns its last segment.
    fn poll(&mut self) -> Option<TcpRepr<'static>> {
        self.services.poll(self.now);
        let mut last = None;
        while let Some(frame) = self.services.next_frame() {
            let ip = Ipv4Packet::new_checked(&frame[ETHERNET_HEADER_LEN..]).unwrap();
            let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
            let (from, to) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
            let segment = TcpRepr::parse(&tcp, &from, &to, &ChecksumCapabilities::default()).unwrap();
            last = Some(TcpRepr { payload: &[], ..segment });
        }
        last
    }

    fn send(&mut self, control: TcpControl, payload: &[u8]) {
        let is_syn = control == TcpControl::Syn;
        let segment = TcpRepr {
            src_port: 80,
            dst_port: self.router_port,
            control,
            seq_number: self.next,
            ack_number: Some(self.expected),
            window_len: u16::MAX,
            window_scale: is_syn.then_some(0),
            max_seg_size: is_syn.then_some(8960),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        self.next += segment.segment_len();
        let (checksums, router) = (ChecksumCapabilities::default(), config().router);
        let ip = Ipv4Repr {
            src_addr: ADDRESS,
            dst_addr: router,
            next_header: IpProtocol::Tcp,
            payload_len: segment.buffer_len(),
            hop_limit: 64,
        };
        let mut bytes = vec![0; ip.buffer_len() + segment.buffer_len()];
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &checksums);
        let place = &mut TcpPacket::new_unchecked(&mut bytes[ip.buffer_len()..]);
        segment.emit(place, &IpAddress::Ipv4(ADDRESS), &IpAddress::Ipv4(router), &checksums);
        self.services.accept(&packet::frame(GATEWAY_MAC, GUEST, EthernetProtocol::Ipv4, &bytes), self.now);
    }
}

#[test]
fn last_byte_before_fin_fills_announced_window() {
    let (config, host) = forwarding(Transport::Tcp, 80);
    let services = bench(config).services;
    let mut client = connect(host);
    let mut guest = RawGuest::accept(services);
    let ack = guest.poll().unwrap();
    let window = usize::from(ack.window_len) << guest.window_shift;
    let bytes: Vec<u8> = (0..window).map(|index| (index % 251) as u8).collect();
    let (first, second) = bytes.split_at(1001);
    guest.send(TcpControl::None, first);
    // The time after which smoltcp acknowledges the first segment, and announces a window of odd length.
    guest.now += Duration::from_millis(20);
    assert_eq!(guest.poll().unwrap().ack_number, Some(guest.next));
    guest.send(TcpControl::Fin, second);
    guest.now += Duration::from_millis(20);
    assert_eq!(guest.poll().unwrap().ack_number, Some(guest.next));
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert!(received == bytes, "{} of {window} bytes were received", received.len());
}

fn connect(host: SocketAddrV4) -> TcpStream {
    let client = TcpStream::connect(host).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client
}

#[derive(Clone, Copy)]
enum ClosesFirst {
    Guest,
    Client,
}

/// Lets the guest send until the client's socket is full and a part waits in the netstack. Both then close their
/// sending sides, TIME-WAIT passes, and the client reads at last.
fn check_slow_client_gets_everything(first: ClosesFirst) {
    let (config, host) = forwarding(Transport::Tcp, 80);
    let mut bench = bench(config);
    let listener = bench.listen(80);
    let mut client = connect(host);
    // Fills soon.
    rustix::net::sockopt::set_socket_recv_buffer_size(&client, 256 << 10).unwrap();
    bench.until("the client is connected", |bench| bench.socket(listener).can_send().then_some(()));
    if let ClosesFirst::Client = first {
        client.shutdown(Shutdown::Write).unwrap();
        await_state(&mut bench, listener, tcp::State::CloseWait);
    }
    let piece: Vec<u8> = (0..32 << 10).map(|index| (index % 251) as u8).collect();
    let mut pieces = 0;
    while waiting(&bench) == 0 {
        assert_eq!(bench.socket(listener).send_slice(&piece), Ok(piece.len()));
        pieces += 1;
        bench.until("the piece has arrived", |bench| (bench.socket(listener).send_queue() == 0).then_some(()));
    }
    bench.socket(listener).close();
    if let ClosesFirst::Guest = first {
        await_state(&mut bench, listener, tcp::State::FinWait2);
        client.shutdown(Shutdown::Write).unwrap();
        await_state(&mut bench, listener, tcp::State::TimeWait);
    } else {
        await_state(&mut bench, listener, tcp::State::Closed);
    }
    bench.services.poll(Instant::now() + Duration::from_secs(30));
    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        client.read_to_end(&mut received).map(|_| received)
    });
    bench.until("the client finishes", |_| reader.is_finished().then_some(()));
    let received = reader.join().unwrap().unwrap();
    assert!(received == piece.repeat(pieces), "{} of {} bytes were received", received.len(), pieces * piece.len());
    bench.until("the connection is removed", |bench| (bench.services.stack.sockets.iter().count() == 0).then_some(()));
}

fn await_state(bench: &mut Bench, handle: smoltcp::iface::SocketHandle, state: tcp::State) {
    bench.until("the guest's socket reaches its state", |bench| (bench.socket(handle).state() == state).then_some(()));
}

/// Returns the number of bytes that wait in the netstack for its only client.
fn waiting(bench: &Bench) -> usize {
    let sockets = bench.services.stack.sockets.iter();
    sockets
        .map(|(_, socket)| match socket {
            smoltcp::socket::Socket::Tcp(socket) => socket.recv_queue(),
        })
        .sum()
}

#[test]
fn slow_client_that_closes_first_gets_everything() {
    check_slow_client_gets_everything(ClosesFirst::Client);
}

#[test]
fn slow_client_that_closes_last_gets_everything() {
    check_slow_client_gets_everything(ClosesFirst::Guest);
}
