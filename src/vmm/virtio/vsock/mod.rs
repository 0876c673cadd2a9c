//! The vsock device (specification, section 5.10): streams between the guest and Unix sockets on the host. It needs
//! no network and no kernel module on the host. One thread serves all streams.
//!
//! - **Host to guest**: a client connects to the device's socket and writes `CONNECT <port>\n`. If the guest accepts,
//!   the client reads `OK <its own port>\n` and then the guest's stream. Otherwise, it reads the end of the stream.
//! - **Guest to host**: a connection to port *n* of the host (context ID 2) goes to the Unix socket
//!   `<the device's socket>_<n>`, or is refused if there is none. The device itself serves two ports: one sends the
//!   instance's seed, and a connection to the other breaks when the guest is restored.

mod connection;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod handshake;
mod packet;
mod service;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::worker::{self, Worker};
use super::{
    ActivateError, Activation, EVENT_IDX, INDIRECT_DESC, QueueState, VERSION_1, VirtioDevice, read_config_bytes,
};
use machine::config::VsockConfig;
use machine::sync::lock;
use machine::unix_socket;
use netstack::broker::VsockConnector;
use service::VsockService;

const DEVICE_TYPE: u32 = 19;
/// Sizes of the receive, transmit and event queues. The receive queue is short because Linux fills it while it boots:
/// 256 entries took 0.33 s under software KVM.
const QUEUE_SIZES: &[u16] = &[64, 128, 16];

#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    #[error("cannot create the vsock socket {}: {source}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

#[derive(Debug)]
pub struct Vsock {
    config: VsockConfig,
    path: PathBuf,
    listener: UnixListener,
    connector: VsockConnector,
    worker: Option<Worker<VsockService>>,
    control: VsockControl,
}

/// Prepares the next activation of a device.
#[derive(Debug, Clone, Default)]
pub struct VsockControl {
    /// Set for a guest with connections that it must drop. Written when its agent is ready.
    released: Arc<Mutex<Option<EventFd>>>,
}

impl VsockControl {
    /// From its next activation on, the device makes the guest drop its connections. It accepts clients once the guest
    /// has done so and `released` was written, or after a timeout.
    pub fn hold_clients_until(&self, released: EventFd) {
        *lock(&self.released) = Some(released);
    }
}

impl Vsock {
    /// Creates the device and its socket, which is removed on drop.
    pub fn new(config: &VsockConfig, path: &Path, connector: VsockConnector) -> Result<Vsock, VsockError> {
        let failed = |source| VsockError::Listen { path: path.to_path_buf(), source };
        let listener = unix_socket::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let (config, path, control) = (config.clone(), path.to_path_buf(), VsockControl::default());
        Ok(Vsock { config, path, listener, connector, worker: None, control })
    }

    pub fn control(&self) -> VsockControl {
        self.control.clone()
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.worker = None;
        // The file may be gone together with its directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VERSION_1 | EVENT_IDX | INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&u64::from(self.config.cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let failed = |source| ActivateError { device: "vsock", source };
        let listener: OwnedFd = self.listener.try_clone().map_err(failed)?.into();
        let (config, path) = (self.config.clone(), self.path.clone());
        let connector = self.connector.try_clone().map_err(failed)?;
        let released = lock(&self.control.released).take();
        let worker = Worker::spawn("vsock", Arc::clone(&activation.clock), |wakeups| {
            VsockService::new(config, path, UnixListener::from(listener), connector, activation, wakeups, released)
        });
        self.worker = Some(worker.map_err(failed)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<QueueState> {
        worker::pause(&mut self.worker)
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        worker::resume(&mut self.worker, "vsock")
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}
