//! How an instance is reached by SSH: by whom, where, with which key.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use super::Cloud;
use super::error::CloudError;
use super::machine::Folder;
use super::network::FILE;
use crate::ec2::InstanceId;
use crate::vmm::link::{Forward, LinkConfig, Transport};

/// The port of SSH.
const PORT: u16 = 22;
/// The instance's host keys, as they were seen first.
const KNOWN_HOSTS: &str = "known_hosts";

/// What is known of it.
#[derive(Debug)]
pub struct SshTarget {
    /// Which instance.
    pub instance: InstanceId,
    /// Its folder.
    pub folder: Folder,
    /// The user of its image.
    pub user: String,
    /// The name of its key pair.
    pub key_name: Option<String>,
    /// Where its port 22 is reached, if it is.
    pub endpoint: Option<SocketAddrV4>,
    /// Where its host keys are kept.
    pub known_hosts: PathBuf,
}

impl Cloud {
    /// How the instance that `reference` stands for is reached.
    pub fn ssh_target(&mut self, reference: &str) -> Result<SshTarget, CloudError> {
        let (record, folder) = self.reachable(reference)?;
        let user = self.open_image(record.image_id)?.manifest.default_user;
        let link = LinkConfig::read(&folder.path().join(FILE)).ok();
        Ok(SshTarget {
            instance: record.id,
            user,
            key_name: record.key_name,
            endpoint: link.and_then(|link| endpoint(&link.forwards)),
            known_hosts: folder.path().join(KNOWN_HOSTS),
            folder,
        })
    }
}

/// Where port 22 of a guest is reached: at its public address rather than at a port that was published.
fn endpoint(forwards: &[Forward]) -> Option<SocketAddrV4> {
    let leads = |forward: &&Forward| forward.transport == Transport::Tcp && forward.guest_port == PORT;
    let leading = || forwards.iter().filter(leads).map(|forward| forward.host);
    leading().find(|host| host.port() == PORT).or_else(|| leading().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_address_comes_before_a_published_port() {
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
