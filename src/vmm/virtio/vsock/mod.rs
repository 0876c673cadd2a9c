//! The vsock device (specification, section 5.10): streams between guest and host, on the host's side through Unix
//! sockets, without a network and without a kernel module.
//!
//! - **Host to guest**: a client connects to the device's socket and writes `CONNECT <port>\n`. When the guest
//!   accepts, it reads `OK <its own port>\n`, and the stream is the guest's; when nobody listens, it reads the end.
//! - **Guest to host**: a connection to port *n* of the host (context id 2) goes to the Unix socket
//!   `<the device's socket>_<n>`, and is refused where there is none.
//!
//! One thread has everything; [`connection`] is one stream's state.

mod connection;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod handshake;
mod packet;
mod service;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::mmio::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use super::worker::{self, Worker};
use super::{ActivateError, Activation, QueueState, VirtioDevice, read_config_bytes};
use crate::unix_socket;
use crate::vmm::broker::VsockConnector;
use crate::vmm::config::VsockConfig;
use service::Service;

/// The device's socket in the VMM's directory. The guest reaches the host at `<socket>_<port>`.
pub const SOCKET: &str = "vsock.sock";

/// The device's id (section 5).
const DEVICE_TYPE: u32 = 19;
/// Receive, transmit, event. Linux fills the whole receive queue with buffers while it boots, so that a long queue
/// costs boot time: filling 256 took 0.33 s where the guest's kernel was emulated.
const QUEUE_SIZES: &[u16] = &[64, 128, 16];

/// Why the device cannot be.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The socket on which the host reaches the guest could not be made.
    #[error("the vsock socket {} cannot be made: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The device.
#[derive(Debug)]
pub struct Vsock {
    config: VsockConfig,
    path: PathBuf,
    listener: UnixListener,
    connector: VsockConnector,
    worker: Option<Worker<Service>>,
    /// If the connections that the guest knows of were another machine's: written when its agent has heard of it.
    released: Option<EventFd>,
}

impl Vsock {
    /// Makes the device and its socket at `path`; the socket's file is removed when the device is dropped. A device that is
    /// to be restored has the guest forget its connections, and takes no client until `released` is written. `connector` makes
    /// the guest's connections to the host.
    pub fn new(
        config: &VsockConfig,
        path: &Path,
        connector: VsockConnector,
        released: Option<EventFd>,
    ) -> Result<Vsock, VsockError> {
        let failed = |source| VsockError::Listen { path: path.to_path_buf(), source };
        let listener = unix_socket::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Vsock { config: config.clone(), path: path.to_path_buf(), listener, connector, worker: None, released })
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.worker = None;
        // It may be gone with its folder.
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
        let released = self.released.take();
        let worker = Worker::spawn("vsock", Arc::clone(&activation.clock), |wakeups| {
            Service::new(config, path, UnixListener::from(listener), connector, activation, wakeups, released)
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
