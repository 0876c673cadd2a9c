//! The device of an instance's network, and its backend on the host.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::super::error::CloudError;
use super::link::FILE;
use super::spec::MTU;
use ec2::network::{NetworkMode, mac_address};
use ec2::{ErrorCode, InstanceId};
use machine::config::{MachineConfig, NetConfig};
use machine::network::{MacAddress, NetstackConfig};
use node::home::write_private;
use node::passt::{self, PasstConfig};

const LOG: &str = "passt.log";

#[derive(Debug)]
pub(crate) struct NetworkConnection {
    /// A tap, or the socket of a user-mode network.
    pub(super) device: OwnedFd,
    /// passt, if it is used. It is started after the VMM, so that the VMM need not wait for it.
    pub(super) user_mode: Option<passt::Prepared>,
}

impl NetworkConnection {
    /// Returns the device's file descriptor, and the backend to start after the VMM.
    pub fn split(self) -> (OwnedFd, DeferredPasst) {
        (self.device, DeferredPasst(self.user_mode))
    }
}

#[derive(Debug, Default)]
pub(crate) struct DeferredPasst(Option<passt::Prepared>);

impl DeferredPasst {
    pub fn start(self) -> Result<(), CloudError> {
        self.0.map_or(Ok(()), |passt| passt.start().map_err(unsupported))
    }
}

fn unsupported(error: passt::PasstError) -> CloudError {
    let hint = "Use `--network none`, or run `wisp doctor` to check the host.";
    CloudError::refused(ErrorCode::Unsupported, format!("{error}."), Some(hint.into()))
}

pub(crate) fn device(id: InstanceId, link: Option<&Path>) -> NetConfig {
    let link = link.map(Path::to_path_buf);
    NetConfig { mac: MacAddress(mac_address(id)), mtu: MTU, link, limits: None }
}

/// Gives a machine its network device, and adds the network's settings to its kernel command line.
pub(super) fn add_device(
    id: InstanceId,
    dir: &Path,
    link: &NetstackConfig,
    machine: &mut MachineConfig,
) -> Result<(), CloudError> {
    let path = write_link(dir, link)?;
    let device = device(id, Some(&path));
    machine.kernel.cmdline.push_str(&format!(" {}", link.network(device.mac).to_option()));
    machine.net = Some(device);
    Ok(())
}

/// Connects a machine that is not in a VPC. Returns `None` in the mode `None`, and in the mode `Auto` if passt is not
/// available.
pub(crate) fn connect(
    id: InstanceId,
    dir: &Path,
    link: &NetstackConfig,
    mode: NetworkMode,
    machine: &mut MachineConfig,
) -> Result<Option<NetworkConnection>, CloudError> {
    if mode == NetworkMode::Vpc {
        let what = "An ephemeral instance cannot be in a VPC.";
        let hint = "Use `wisp launch --network vpc` to launch an instance in a VPC.";
        return Err(CloudError::refused(ErrorCode::InvalidParameterCombination, what, Some(hint.into())));
    }
    add_device(id, dir, link, machine)?;
    if mode == NetworkMode::None || mode == NetworkMode::Auto && passt::check().is_err() {
        return Ok(None);
    }
    let NetstackConfig { address, prefix_length, router, ref dns, mtu, .. } = *link;
    let dns = dns.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
    let config = PasstConfig { address, prefix_length, router, dns, mtu, log: dir.join(LOG) };
    let (device, passt) = passt::prepare(&config).map_err(unsupported)?;
    Ok(Some(NetworkConnection { device, user_mode: Some(passt) }))
}

pub(super) fn write_link(dir: &Path, link: &NetstackConfig) -> Result<PathBuf, CloudError> {
    let path = dir.join(FILE);
    let text = serde_json::to_vec_pretty(link).expect("a link is plain data");
    write_private(&path, &text).map_err(CloudError::file(&path, "write"))?;
    Ok(path)
}
