//! What a new instance is told over vsock: its identity, the key pair's public key, its user data.
//!
//! A guest with cloud-init is not told: cloud-init asks the metadata service, which has the same, and user data is not to
//! run twice. Only one that goes on from another's machine is told its name and its key, for cloud-init comes with a boot.

use std::path::PathBuf;

use super::Cloud;
use super::error::CloudError;
use super::image::Manifest;
use super::machine::Folder;
use super::run_spec::host_name;
use crate::ec2::Ec2Error;
use crate::ec2::user_data::UserData;
use crate::guest::Seed;
use crate::host::home::write_private;
use crate::store::{InstanceRecord, KeyPairRecord};

/// The seed's name in an instance's folder.
const FILE: &str = "seed";

impl Cloud {
    /// Writes the seed of an instance that has something to be told: always, if it goes on from a `copied` machine. Returns
    /// where it is.
    pub(super) fn write_seed(
        &mut self,
        folder: &Folder,
        record: &InstanceRecord,
        image: &Manifest,
        copied: bool,
    ) -> Result<Option<PathBuf>, CloudError> {
        let key = match &record.key_name {
            // A key pair that was deleted since is no obstacle: EC2 starts the instance, and its disk has the key.
            Some(name) => self.store.read::<_, CloudError>(|tx| Ok(tx.get::<KeyPairRecord>(name)?))?,
            None => None,
        };
        let is_told = !image.cloud_init && (key.is_some() || record.user_data.is_some());
        if !is_told && !copied {
            return Ok(None);
        }
        let user_data = record.user_data.as_ref().filter(|_| !image.cloud_init);
        let seed = Seed {
            instance_id: record.id.to_string(),
            hostname: Some(host_name(&record.id)),
            default_user: image.default_user.clone(),
            public_keys: key.into_iter().map(|key| key.public_key).collect(),
            user_data: user_data.map(|text| unwrapped(text)).transpose()?,
        };
        let path = folder.path().join(FILE);
        write_private(&path, &seed.encode()).map_err(CloudError::file(&path, "written"))?;
        Ok(Some(path))
    }
}

/// Refuses user data that the agent cannot unwrap. cloud-init, in an image that has it, unwraps user data itself.
pub(super) fn check_user_data(has_cloud_init: bool, user_data: Option<&String>) -> Result<(), CloudError> {
    user_data.filter(|_| !has_cloud_init).map_or(Ok(()), |text| unwrapped(text).map(drop))
}

/// User data from the store, as the agent gets it.
fn unwrapped(text: &str) -> Result<Vec<u8>, CloudError> {
    let data = UserData::from_base64(text).and_then(|data| data.unwrapped());
    Ok(data.map_err(Ec2Error::from)?)
}
