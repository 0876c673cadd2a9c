//! The seed that a new instance receives over vsock: its identity, its public key and its user data.
//!
//! A guest with cloud-init gets no seed when it boots: cloud-init asks the metadata service, and user data must not run
//! twice. A restored guest gets its host name and key in a seed even then, because cloud-init runs only at boot.

use super::error::CloudError;
use super::instances::Instances;
use ec2::InstanceId;
use ec2::user_data::UserData;
use node::guest::Seed;
use node::image::Manifest;
use node::machine_config::host_name;
use store::{InstanceRecord, KeyPairRecord};

impl Instances<'_> {
    /// Returns the seed, if the instance needs one. An instance whose guest boots without its identity, or is restored
    /// from another machine's snapshot, always does (`needs_identity`).
    pub(super) fn seed_of(
        &self,
        record: &InstanceRecord,
        image: &Manifest,
        needs_identity: bool,
    ) -> Result<Option<Seed>, CloudError> {
        let key = match &record.spec.key_name {
            // The key pair may have been deleted. EC2 also starts such an instance: its disk already has the key.
            Some(name) => self.cloud.store.read::<_, CloudError>(|tx| Ok(tx.get::<KeyPairRecord>(name)?))?,
            None => None,
        };
        let needs_seed = !image.cloud_init && (key.is_some() || record.spec.user_data.is_some());
        if !needs_seed && !needs_identity {
            return Ok(None);
        }
        let user_data = record.spec.user_data.as_ref().filter(|_| !image.cloud_init);
        Ok(Some(Seed {
            public_keys: key.into_iter().map(|key| key.spec.public_key).collect(),
            user_data: user_data.map(|text| unwrapped(text)).transpose()?,
            ..identity_seed(record.meta.id, image)
        }))
    }
}

/// Returns the seed of an instance without a key and user data.
pub(super) fn identity_seed(id: InstanceId, image: &Manifest) -> Seed {
    Seed {
        instance_id: id.to_string(),
        hostname: Some(host_name(&id)),
        default_user: image.default_user.clone(),
        ..Seed::default()
    }
}

/// Refuses user data that the agent cannot unwrap. cloud-init unwraps user data itself.
pub(super) fn check_user_data(has_cloud_init: bool, user_data: Option<&String>) -> Result<(), CloudError> {
    user_data.filter(|_| !has_cloud_init).map_or(Ok(()), |text| unwrapped(text).map(drop))
}

fn unwrapped(text: &str) -> Result<Vec<u8>, CloudError> {
    Ok(UserData::from_base64(text)?.unwrapped()?)
}
