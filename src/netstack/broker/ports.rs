//! Opens and closes the published ports on the host, and sends the VMM their listeners.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown};
use serde::{Deserialize, Serialize};

use super::PORTS_AT_A_TIME;
use super::relay::Relay;
use crate::{Forward, NetstackConfig, Transport};
use machine::network::ALLOW_LOW_PORTS;

/// One message of a response, which can take several messages.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct PortsMessage {
    pub ports: Vec<PortRecord>,
    /// Set if the configuration cannot be read. The ports are then unchanged.
    pub failed: Option<String>,
    pub is_last: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PortRecord {
    pub forward: Forward,
    pub state: PortState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PortState {
    /// The message carries the listener.
    Passed,
    /// The listener was passed before, or the datagrams are relayed.
    Open,
    Failed(String),
}

/// The TCP listeners that were passed to the VMM. The [`Relay`] has the UDP sockets.
#[derive(Debug)]
pub(super) struct Ports {
    link: Option<PathBuf>,
    listeners: HashMap<Forward, TcpListener>,
}

impl Ports {
    pub fn new(link: Option<PathBuf>) -> Ports {
        Ports { link, listeners: HashMap::new() }
    }

    /// Opens and closes ports according to the current configuration, and sends the VMM their states.
    pub fn answer(&mut self, channel: impl AsFd, relay: &mut Relay) {
        let config = self
            .link
            .as_ref()
            .map(|path| NetstackConfig::read(path).map_err(|error| format!("cannot read {}: {error}", path.display())));
        let records = match config {
            Some(Ok(config)) => self.set(&config.forwards, relay),
            None => Vec::new(),
            Some(Err(why)) => {
                let message = PortsMessage { failed: Some(why), is_last: true, ..PortsMessage::default() };
                return self.send(channel, &message);
            }
        };
        let mut records = records.into_iter().peekable();
        loop {
            let ports: Vec<PortRecord> = records.by_ref().take(PORTS_AT_A_TIME).collect();
            let is_last = records.peek().is_none();
            self.send(&channel, &PortsMessage { ports, failed: None, is_last });
            if is_last {
                return;
            }
        }
    }

    /// Opens the ports in `wanted` and closes all others.
    fn set(&mut self, wanted: &[Forward], relay: &mut Relay) -> Vec<PortRecord> {
        self.listeners.retain(|forward, listener| {
            let stays = wanted.contains(forward);
            if !stays {
                // The VMM's descriptor refers to the same listener, so shutdown stops it as well.
                let _ = shutdown(listener, Shutdown::Both);
            }
            stays
        });
        relay.retain(wanted);
        let state = |forward: &Forward| PortRecord { forward: *forward, state: self.open(*forward, relay) };
        wanted.iter().map(state).collect()
    }

    fn open(&mut self, forward: Forward, relay: &mut Relay) -> PortState {
        let opened = match forward.transport {
            _ if self.listeners.contains_key(&forward) || relay.has(&forward) => return PortState::Open,
            Transport::Tcp => listen(forward).map(|listener| {
                self.listeners.insert(forward, listener);
                PortState::Passed
            }),
            Transport::Udp => {
                let bound = UdpSocket::bind(forward.host);
                bound.and_then(|socket| relay.add(forward, socket)).map(|()| PortState::Open)
            }
        };
        opened.unwrap_or_else(|error| PortState::Failed(problem(forward, &error)))
    }

    /// Sends a message with the listeners that it passes.
    fn send(&self, channel: impl AsFd, message: &PortsMessage) {
        let text = serde_json::to_vec(message).expect("ports serialize to JSON");
        let passed = message.ports.iter().filter(|record| record.state == PortState::Passed);
        let listeners: Vec<BorrowedFd> =
            passed.filter_map(|record| self.listeners.get(&record.forward)).map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PORTS_AT_A_TIME))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = listeners.is_empty() || control.push(SendAncillaryMessage::ScmRights(&listeners));
        debug_assert!(fits, "the buffer has space for PORTS_AT_A_TIME descriptors");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let Err(error) = sendmsg(channel, &[IoSlice::new(&text)], &mut control, flags) {
            log::warn!("cannot send the published ports to the VMM: {error}");
        }
    }
}

fn listen(forward: Forward) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(forward.host)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn problem(forward: Forward, error: &io::Error) -> String {
    let protocol = if forward.transport == Transport::Tcp { "TCP" } else { "UDP" };
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => format!("; to allow it, run `{ALLOW_LOW_PORTS}`"),
        _ => String::new(),
    };
    format!("cannot forward {protocol} port {} to guest port {}: {error}{advice}", forward.host, forward.guest_port)
}
