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
use crate::ec2::user_data::{Kind, UserData};
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
            // What is in the store was checked when it came in.
            user_data: user_data.and_then(|text| UserData::from_base64(text).ok()).map(unpack),
        };
        let path = folder.path().join(FILE);
        write_private(&path, &seed.encode()).map_err(CloudError::file(&path, "written"))?;
        Ok(Some(path))
    }
}

/// User data without its compression; what is no sound gzip stays as it is.
fn unpack(data: UserData) -> Vec<u8> {
    use std::io::Read;
    if data.kind() != Kind::Gzip {
        return data.into_bytes();
    }
    let mut unpacked = Vec::new();
    // What it unpacks to has to fit into a seed with all else.
    let limit = (crate::guest::MAX_SEED - 16 * 1024) as u64;
    match flate2::read::GzDecoder::new(data.bytes()).take(limit).read_to_end(&mut unpacked) {
        Ok(_) => unpacked,
        Err(_) => data.into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn unpacked(bytes: &[u8]) -> Vec<u8> {
        unpack(UserData::raw(bytes.to_vec()).unwrap())
    }

    #[test]
    fn compressed_user_data_is_unpacked_and_other_is_not() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"#!/bin/sh\n").unwrap();
        assert_eq!(unpacked(&encoder.finish().unwrap()), b"#!/bin/sh\n");
        assert_eq!(unpacked(b"plain"), b"plain");
        assert_eq!(unpacked(&[0x1f, 0x8b, 0]), [0x1f, 0x8b, 0]);
    }
}
