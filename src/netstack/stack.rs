//! The TCP stack for the VMM's own addresses in the guest's network, based on smoltcp. It takes and returns IP packets.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use machine::network::{METADATA_ADDRESS, NetstackConfig};

/// Maximum number of packets queued for the guest. While the queue is full, smoltcp sends nothing.
const WAITING: usize = 64;
/// The maximum including immediate replies. When it is reached, packets from the guest are dropped.
const WAITING_WITH_ANSWERS: usize = 2 * WAITING;
/// The minimum MTU that leaves room for TCP headers (RFC 791).
const LEAST_MTU: u16 = 576;

pub struct Stack {
    interface: Interface,
    pub sockets: SocketSet<'static>,
    retired: Vec<SocketHandle>,
    wire: Wire,
    began: Instant,
    router: Ipv4Addr,
}

/// The device of smoltcp's interface.
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
    pub fn new(config: &NetstackConfig, seed: u64) -> Stack {
        let mut wire = Wire { arrived: None, leaving: VecDeque::new(), mtu: config.mtu.max(LEAST_MTU).into() };
        let mut settings = Config::new(HardwareAddress::Ip);
        settings.random_seed = seed;
        let began = Instant::now();
        let mut interface = Interface::new(settings, &mut wire, StackInstant::ZERO);
        let router = config.router;
        interface.update_ip_addrs(|addresses| {
            // smoltcp accepts no other addresses for an interface.
            let is_sound = |address: &Ipv4Addr| !address.is_multicast() && !address.is_broadcast();
            for address in [METADATA_ADDRESS, router].into_iter().filter(is_sound) {
                // There is room for two addresses (smoltcp's `IFACE_MAX_ADDR_COUNT`).
                let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(address), 32));
            }
        });
        Stack { interface, sockets: SocketSet::new(Vec::new()), retired: Vec::new(), wire, began, router }
    }

    pub fn has(&self, address: Ipv4Addr) -> bool {
        address == METADATA_ADDRESS || address == self.router
    }

    /// Returns the parts that a socket needs to connect.
    pub fn parts(&mut self) -> (&mut Interface, &mut SocketSet<'static>) {
        (&mut self.interface, &mut self.sockets)
    }

    pub fn arrive(&mut self, packet: Vec<u8>, now: Instant) {
        if self.wire.leaving.len() >= WAITING_WITH_ANSWERS {
            return;
        }
        self.wire.arrived = Some(packet);
        self.poll(now);
        self.wire.arrived = None;
    }

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

    /// Releases a socket, which is removed once it has sent its remaining data.
    pub fn retire(&mut self, handle: SocketHandle) {
        self.retired.push(handle);
    }

    pub fn retired(&self) -> usize {
        self.retired.len()
    }

    pub fn next_packet(&mut self) -> Option<Vec<u8>> {
        self.wire.leaving.pop_front()
    }

    pub fn timeout(&mut self, now: Instant) -> Option<Duration> {
        if self.wire.leaving.len() >= WAITING {
            // Nothing is due before the guest takes its queued packets.
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
        // The guest offloads checksums to its device, so those of its packets are not verified.
        let mut checksums = ChecksumCapabilities::default();
        checksums.tcp = Checksum::Tx;
        checksums.udp = Checksum::Tx;
        checksums.icmpv4 = Checksum::Tx;
        capabilities.checksum = checksums;
        capabilities
    }
}
