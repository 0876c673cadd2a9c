//! The network device (specification, section 5.1): the guest's `eth0`.
//!
//! Frames pass between guest memory and a [`Backend`]. The netstack's [`Services`] inspect a copy of each frame's head,
//! and answer some frames themselves. Without a backend, the guest reaches only these services.
//!
//! Every backend has the same checksum and segmentation offloads, so that a guest can be restored with a different one.
//! A tap's kernel implements the offloads. A user-mode network terminates TCP, so it accepts large segments.

mod backend;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod header;
mod receiver;
mod service;
mod stream;
mod tap;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::worker::{self, Worker};
use super::{
    ActivateError, Activation, EVENT_IDX, INDIRECT_DESC, QueueState, VERSION_1, VirtioDevice, read_config_bytes,
};
pub use backend::Backend;
use machine::config::NetConfig;
use machine::limits::{NetLimits, RateLimiter};
use machine::passed_files::FdTable;
use machine::sync::lock;
use machine::timeline::monotonic_ns;
use netstack::broker::{LinkSockets, PortsClient};
use netstack::{NetstackConfig, Services};
use service::NetService;

const DEVICE_TYPE: u32 = 1;
/// Sizes of the receive and transmit queues (section 5.1.2).
const QUEUE_SIZES: &[u16] = &[256, 256];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Feature bits (section 5.1.3).
mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
}

/// Bit of the status field in the configuration (section 5.1.4).
const LINK_UP: u16 = 1;

#[derive(Debug, Default)]
struct Counters {
    received_frames: AtomicU64,
    received_bytes: AtomicU64,
    sent_frames: AtomicU64,
    sent_bytes: AtomicU64,
    dropped_frames: AtomicU64,
    throttled_ns: AtomicU64,
}

impl Counters {
    fn received(&self, bytes: usize) {
        self.received_frames.fetch_add(1, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn sent(&self, bytes: usize) {
        self.sent_frames.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn dropped(&self) {
        self.dropped_frames.fetch_add(1, Ordering::Relaxed);
    }

    fn throttled(&self, duration: Duration) {
        self.throttled_ns.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// State that survives resets by the driver.
#[derive(Debug)]
struct Port {
    backend: Backend,
    services: Option<Services>,
    /// One rate limiter for frames to the guest, and one for frames from the guest.
    limits: Option<[RateLimiter; 2]>,
}

/// State that a device, its thread and [`NetControl`] share.
#[derive(Debug)]
struct Shared {
    port: Mutex<Port>,
    /// Opens the host's sockets for published ports.
    ports: Option<PortsClient>,
    /// Written to wake the device's thread when another thread has changed the services.
    changed: EventFd,
    is_up: AtomicBool,
    /// Set when the backend has hung up or failed.
    is_cut_off: AtomicBool,
    counters: Counters,
}

impl Port {
    /// Returns the time until a frame may pass in `direction`, or `None` if one may pass now.
    fn wait(&mut self, direction: usize) -> Option<Duration> {
        let limiter = &mut self.limits.as_mut()?[direction];
        Some(limiter.wait_ns(monotonic_ns())).filter(|wait| *wait > 0).map(Duration::from_nanos)
    }

    fn take(&mut self, direction: usize, bytes: usize) {
        if let Some(limits) = &mut self.limits {
            limits[direction].take(bytes as u64, monotonic_ns());
        }
    }
}

impl Shared {
    fn port(&self) -> MutexGuard<'_, Port> {
        lock(&self.port)
    }
}

/// Controls a device's link from outside the guest.
#[derive(Debug, Clone)]
pub struct NetControl {
    shared: Arc<Shared>,
}

impl NetControl {
    /// Applies the configuration in the file `link`, which `files` may hold open, to the netstack's services. Returns
    /// messages about the parts that were not applied. Fails with one message if nothing was applied.
    pub fn reload(&self, link: &Path, files: &FdTable) -> Result<Vec<String>, String> {
        let none = || "the network device has no netstack".to_string();
        let ports = self.shared.ports.as_ref().map_or(Ok(Vec::new()), PortsClient::request);
        let ports = ports.map_err(|error| format!("cannot open the published ports: {error}"))?;
        let failed = |error| format!("cannot read {}: {error}", link.display());
        let config = files.open(link, false).and_then(NetstackConfig::read_from).map_err(failed)?;
        let mut port = self.shared.port();
        let services = port.services.as_mut().ok_or_else(none)?;
        services.reload(config);
        services.set_ports(ports);
        // The counter cannot overflow: that would take 2^64 reloads.
        let _ = self.shared.changed.write(1);
        Ok(services.problems())
    }

    /// Returns messages about parts of the configuration that could not be applied, and about a lost uplink.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.shared.port().services.as_ref().map(Services::problems).unwrap_or_default();
        if self.shared.is_cut_off.load(Ordering::Acquire) {
            problems.push("the network backend exited: no outbound connectivity".into());
        }
        problems
    }

    pub fn record(&self) -> NetRecord {
        let Counters { received_frames, received_bytes, sent_frames, sent_bytes, dropped_frames, throttled_ns } =
            &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetRecord {
            received_frames: read(received_frames),
            received_bytes: read(received_bytes),
            sent_frames: read(sent_frames),
            sent_bytes: read(sent_bytes),
            dropped_frames: read(dropped_frames),
            throttled_ns: read(throttled_ns),
        }
    }
}

#[derive(Debug)]
pub struct Net {
    config: NetConfig,
    shared: Arc<Shared>,
    worker: Option<Worker<NetService>>,
}

impl Net {
    /// `link` configures the netstack's services; without it, the device has none. `sockets` opens published ports.
    pub fn new(
        config: &NetConfig,
        backend: Backend,
        link: Option<NetstackConfig>,
        sockets: Option<LinkSockets>,
    ) -> std::io::Result<Net> {
        let (ports, datagrams) = sockets.map(|LinkSockets { ports, datagrams }| (ports, datagrams)).unzip();
        let mut services = link.map(|link| Services::new(config.mac, link, datagrams)).transpose()?;
        if let (Some(services), Some(ports)) = (&mut services, &ports) {
            services.set_ports(ports.request()?);
        }
        // The link is up even without a backend: services may answer, and a template's guest must not notice that it
        // gets a backend after a restore.
        let is_up = AtomicBool::new(true);
        let changed = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let limiter = |limits: NetLimits| RateLimiter::new(limits.bytes, monotonic_ns());
        let limits = config.limits.map(|limits| [RECEIVE, TRANSMIT].map(|_| limiter(limits)));
        let port = Mutex::new(Port { backend, services, limits });
        let (is_cut_off, counters) = (AtomicBool::new(false), Counters::default());
        let shared = Shared { port, ports, changed, is_up, is_cut_off, counters };
        Ok(Net { config: config.clone(), shared: Arc::new(shared), worker: None })
    }

    pub fn control(&self) -> NetControl {
        NetControl { shared: Arc::clone(&self.shared) }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let offloads = feature::CSUM | feature::HOST_TSO4 | feature::HOST_ECN;
        let guest_offloads = feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_ECN;
        let own = feature::MAC | feature::MTU | feature::STATUS | feature::MRG_RXBUF;
        VERSION_1 | EVENT_IDX | INDIRECT_DESC | own | offloads | guest_offloads
    }

    /// Layout: MAC address, status, number of queue pairs, MTU (section 5.1.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 12];
        let status = if self.shared.is_up.load(Ordering::Acquire) { LINK_UP } else { 0 };
        space[..6].copy_from_slice(&self.config.mac.0);
        space[6..8].copy_from_slice(&status.to_le_bytes());
        space[8..10].copy_from_slice(&1_u16.to_le_bytes());
        space[10..].copy_from_slice(&self.config.mtu.to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let shared = Arc::clone(&self.shared);
        let worker =
            Worker::spawn("net", Arc::clone(&activation.clock), |wakeups| NetService::new(shared, activation, wakeups));
        self.worker = Some(worker.map_err(|source| ActivateError { device: "net", source })?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<QueueState> {
        worker::pause(&mut self.worker)
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        worker::resume(&mut self.worker, "net")
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

#[cfg(test)]
mod tests;
use machine::control::NetRecord;
