//! Finds the user, the key pair and the host address for an SSH connection to an instance.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use super::Cloud;
use super::error::CloudError;
use ec2::InstanceId;
use machine::network::{Forward, NetstackConfig, Transport};
use node::instance::{InstanceDir, LINK};

const PORT: u16 = 22;
/// Name of the file with the instance's SSH host keys, which are trusted on first use.
const KNOWN_HOSTS: &str = "known_hosts";

#[derive(Debug)]
pub struct SshTarget {
    pub instance: InstanceId,
    pub dir: InstanceDir,
    pub user: String,
    pub key_name: Option<String>,
    /// The host address that is forwarded to the guest's port 22, if any.
    pub endpoint: Option<SocketAddrV4>,
    pub known_hosts: PathBuf,
}

impl SshTarget {
    pub fn find(cloud: &Cloud, reference: &str) -> Result<SshTarget, CloudError> {
        let (record, dir) = cloud.instances().reachable(reference)?;
        let user = cloud.images().open_by_id(record.spec.image_id)?.manifest.default_user;
        let link = NetstackConfig::read(&dir.path().join(LINK)).ok();
        Ok(SshTarget {
            instance: record.meta.id,
            user,
            key_name: record.spec.key_name,
            endpoint: link.and_then(|link| endpoint(&link.forwards)),
            known_hosts: dir.path().join(KNOWN_HOSTS),
            dir,
        })
    }
}

/// Returns the host address that is forwarded to the guest's port 22. Prefers the public address to published ports.
fn endpoint(forwards: &[Forward]) -> Option<SocketAddrV4> {
    let is_ssh = |forward: &&Forward| forward.transport == Transport::Tcp && forward.guest_port == PORT;
    let ssh_hosts = || forwards.iter().filter(is_ssh).map(|forward| forward.host);
    ssh_hosts().find(|host| host.port() == PORT).or_else(|| ssh_hosts().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_prefers_public_address_to_published_port() {
        let forward =
            |transport, host: &str, guest_port| Forward { transport, host: host.parse().unwrap(), guest_port };
        let published = forward(Transport::Tcp, "127.0.0.1:2222", 22);
        let public = forward(Transport::Tcp, "127.18.0.5:22", 22);
        let others = [forward(Transport::Udp, "127.0.0.1:22", 22), forward(Transport::Tcp, "127.0.0.1:8080", 80)];
        assert_eq!(endpoint(&[published, public]), Some(public.host));
        assert_eq!(endpoint(&[others[0], published]), Some(published.host));
        assert_eq!(endpoint(&others), None);
    }
}
