//! `CreateKeyPair`, `ImportKeyPair`, `DescribeKeyPairs`, `DeleteKeyPair`. The store holds only public keys.

use std::collections::BTreeMap;
use std::path::Path;

use zeroize::Zeroizing;

use super::error::CloudError;
use super::{Cloud, new_id, now};
use ec2::key::{self, KeyFormat, KeyName, KeyType};
use node::key::{NewKeyPair, PublicKey, create, import, write_private};
use store::{KeyPairRecord, Meta};

#[derive(Debug, Clone, Copy)]
pub struct KeyPairs<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl KeyPairs<'_> {
    /// Returns all key pairs, ordered by name.
    pub fn list(&self) -> Result<Vec<KeyPairRecord>, CloudError> {
        self.cloud.records()
    }

    /// Creates a key pair, and returns it with its private key, of which Wisp keeps no copy.
    pub fn create(
        &self,
        name: &KeyName,
        key_type: KeyType,
        format: KeyFormat,
        tags: BTreeMap<String, String>,
    ) -> Result<(KeyPairRecord, Zeroizing<String>), CloudError> {
        self.check_free(name)?;
        let NewKeyPair { public, private } = create(name, key_type, format)?;
        Ok((self.keep(name, public, tags)?, private))
    }

    /// Creates a key pair and writes the private key to the new file `path`.
    pub fn create_in_file(
        &self,
        name: &KeyName,
        key_type: KeyType,
        format: KeyFormat,
        path: &Path,
    ) -> Result<KeyPairRecord, CloudError> {
        self.check_free(name)?;
        let pair = create(name, key_type, format)?;
        // The private key is written before the pair is registered, because a pair without its private key is useless.
        write_private(path, &pair.private)?;
        self.keep(name, pair.public, BTreeMap::new()).inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        })
    }

    pub fn import(
        &self,
        name: &KeyName,
        material: &[u8],
        tags: BTreeMap<String, String>,
    ) -> Result<KeyPairRecord, CloudError> {
        let public = import(name, material)?;
        self.keep(name, public, tags)
    }

    fn check_free(&self, name: &KeyName) -> Result<(), CloudError> {
        let known = self.cloud.store.read::<_, CloudError>(|tx| Ok(tx.get::<KeyPairRecord>(name.as_str())?))?;
        if known.is_some() { Err(key::duplicate(name).into()) } else { Ok(()) }
    }

    fn keep(
        &self,
        name: &KeyName,
        public: PublicKey,
        tags: BTreeMap<String, String>,
    ) -> Result<KeyPairRecord, CloudError> {
        let mut record = KeyPairRecord {
            meta: Meta::new(new_id(), now(), tags),
            spec: store::key_pair::Spec {
                name: name.as_str().into(),
                key_type: public.key_type.as_str().into(),
                public_key: public.line,
            },
            status: store::key_pair::Status { fingerprint: public.fingerprint },
        };
        self.cloud.store.write(|tx| {
            if tx.get::<KeyPairRecord>(name.as_str())?.is_some() {
                return Err(key::duplicate(name).into());
            }
            tx.insert(&mut record)?;
            Ok(record)
        })
    }

    /// Deletes a key pair. Instances that were launched with it still accept the private key.
    pub fn delete(&self, name: &str) -> Result<KeyPairRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let record = tx.get::<KeyPairRecord>(name)?.ok_or_else(|| key::not_found(name))?;
            tx.remove::<KeyPairRecord>(name)?;
            Ok(record)
        })
    }
}
