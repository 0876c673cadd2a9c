//! Settings of the region, which apply to all launches.

use super::Cloud;
use super::error::CloudError;
use ec2::metadata::MetadataChange;
use store::{MetadataDefaults, Transaction};

#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Settings<'_> {
    /// Returns the default metadata options of launches (`GetInstanceMetadataDefaults`).
    pub fn metadata_defaults(&self) -> Result<MetadataChange, CloudError> {
        self.cloud.store.read(metadata_defaults)
    }

    /// Replaces the default metadata options of launches (`ModifyInstanceMetadataDefaults`).
    pub fn set_metadata_defaults(&self, options: MetadataChange) -> Result<(), CloudError> {
        self.cloud.store.write(|tx| Ok(tx.set(&MetadataDefaults { options })?))
    }
}

pub(super) fn metadata_defaults(tx: &Transaction) -> Result<MetadataChange, CloudError> {
    Ok(tx.get::<MetadataDefaults>(MetadataDefaults::KEY)?.unwrap_or_default().options)
}
