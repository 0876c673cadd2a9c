//! The addresses on a link that are the monitor's own, with smoltcp's TCP behind them: IP packets in, IP packets out.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::config::{LinkConfig, METADATA_ADDRESS};

/// Packets that wait for the guest to take them; smoltcp sends what there is no room for again.
const WAITING: usize = 64;
/// Those that answer a packet at once come on top, up to here; beyond it, what the guest sends is lost on the way.
const WAITING_WITH_ANSWERS: usize = 2 * WAITING;
/// The least MTU that a link with IPv4 is sure to have room in for TCP's headers (RFC 791).
const LEAST_MTU: u16 = 576;

/// The stack and its sockets.
pub struct Stack {
    interface: Interface,
    /// The sockets of all services.
    pub sockets: SocketSet<'static>,
    /// Sockets that have a last word to say.
    retired: Vec<SocketHandle>,
    wire: Wire,
    began: Instant,
    router: Ipv4Addr,
}

/// What smoltcp takes for its interface.
pub(super) struct Wire {
    pub arrived: Option<Vec<u8>>,
    pub leaving: VecDeque<Vec<u8>>,
    pub mtu: usize,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("leaving", &self.wire.leaving.len()).finish_non_exhaustive()
    }
}

impl Stack {
    pub fn new(config: &LinkConfig, seed: u64) -> Stack {
        let mut wire = Wire { arrived: None, leaving: VecDeque::new(), mtu: config.mtu.max(LEAST_MTU).into() };
        let mut settings = Config::new(HardwareAddress::Ip);
        settings.random_seed = seed;
        let began = Instant::now();
        let mut interface = Interface::new(settings, &mut wire, StackInstant::ZERO);
        let router = config.router;
        interface.update_ip_addrs(|addresses| {
            // smoltcp takes no other than these for an address of its own.
            let is_sound = |address: &Ipv4Addr| !address.is_multicast() && !address.is_broadcast();
            for address in [METADATA_ADDRESS, router].into_iter().filter(is_sound) {
                // There is room for two (smoltcp's `IFACE_MAX_ADDR_COUNT`).
                let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(address), 32));
            }
        });
        Stack { interface, sockets: SocketSet::new(Vec::new()), retired: Vec::new(), wire, began, router }
    }

    /// Whether an address is the monitor's own.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        address == METADATA_ADDRESS || address == self.router
    }

    /// What sockets need to connect.
    pub fn parts(&mut self) -> (&mut Interface, &mut SocketSet<'static>) {
        (&mut self.interface, &mut self.sockets)
    }

    /// A packet of the guest's.
    pub fn arrive(&mut self, packet: Vec<u8>, now: Instant) {
        if self.wire.leaving.len() >= WAITING_WITH_ANSWERS {
            return;
        }
        self.wire.arrived = Some(packet);
        self.poll(now);
        self.wire.arrived = None;
    }

    /// Does what is due.
    pub fn poll(&mut self, now: Instant) {
        let now = self.time(now);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        let sockets = &mut self.sockets;
        self.retired.retain(|handle| {
            let state = sockets.get::<tcp::Socket>(*handle).state();
            let is_over = matches!(state, tcp::State::Closed | tcp::State::TimeWait);
            if is_over {
                sockets.remove(*handle);
            }
            !is_over
        });
    }

    /// Nobody uses this socket any more: it goes when it has said its last word.
    pub fn retire(&mut self, handle: SocketHandle) {
        self.retired.push(handle);
    }

    /// How many sockets still have a last word to say.
    pub fn retired(&self) -> usize {
        self.retired.len()
    }

    /// A packet for the guest.
    pub fn next_packet(&mut self) -> Option<Vec<u8>> {
        self.wire.leaving.pop_front()
    }

    /// How long until something is due.
    pub fn timeout(&mut self, now: Instant) -> Option<Duration> {
        if self.wire.leaving.len() >= WAITING {
            // Nothing can be done before the guest takes what waits for it.
            return None;
        }
        let now = self.time(now);
        self.interface.poll_delay(now, &self.sockets).map(|delay| Duration::from_micros(delay.total_micros()))
    }

    fn time(&self, now: Instant) -> StackInstant {
        StackInstant::from_micros(now.saturating_duration_since(self.began).as_micros() as i64)
    }
}

pub(super) struct Arrived(Vec<u8>);

pub(super) struct Leaving<'a>(&'a mut VecDeque<Vec<u8>>);

impl smoltcp::phy::RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl smoltcp::phy::TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _now: StackInstant) -> Option<(Arrived, Leaving<'_>)> {
        self.arrived.take().map(|packet| (Arrived(packet), Leaving(&mut self.leaving)))
    }

    fn transmit(&mut self, _now: StackInstant) -> Option<Leaving<'_>> {
        (self.leaving.len() < WAITING).then_some(Leaving(&mut self.leaving))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // A guest leaves checksums to its device.
        let mut checksums = ChecksumCapabilities::default();
        checksums.tcp = Checksum::Tx;
        checksums.udp = Checksum::Tx;
        checksums.icmpv4 = Checksum::Tx;
        capabilities.checksum = checksums;
        capabilities
    }
}
