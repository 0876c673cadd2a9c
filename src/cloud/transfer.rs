//! Import, export and verification of images.

use std::path::Path;

use super::error::CloudError;
use super::registry::{Images, check_name, new_record};
use node::bundle::Verified;
use node::host::{ImageImport, RootChoices};
use node::import::ImportProgress;
use store::{ImageRecord, Visibility};

#[derive(Debug, Clone)]
pub struct NewImage {
    /// Required for a root file system. The default is the bundle's name.
    pub name: Option<String>,
    /// One sentence. The default is the bundle's description.
    pub description: Option<String>,
    pub visibility: Visibility,
    pub root: RootChoices,
}

impl Images<'_> {
    /// Imports and registers a bundle or a root file system. The content of `source` determines which of them it is.
    pub fn import(
        &self,
        source: &Path,
        new: &NewImage,
        progress: &dyn ImportProgress,
    ) -> Result<ImageRecord, CloudError> {
        if let Some(name) = &new.name {
            check_name(name)?;
            self.check_name_is_free(name)?;
        }
        let (name, description) = (new.name.as_deref(), new.description.as_deref());
        let import = ImageImport { source, name, description, root: &new.root };
        let image = self.cloud.node.images().import(&import, progress)?;
        let manifest = &image.manifest;
        let name = new.name.as_ref().unwrap_or(&manifest.name);
        check_name(name)?;
        let description = new.description.as_ref().unwrap_or(&manifest.description);
        let mut record = new_record(name, description);
        record.spec.visibility = new.visibility;
        record.spec.imds_support = manifest.imds_support;
        self.register(record, image)
    }

    pub fn export(
        &self,
        reference: &str,
        destination: &Path,
        progress: &dyn ImportProgress,
    ) -> Result<ImageRecord, CloudError> {
        self.register_embedded()?;
        let record = self.find(reference)?;
        self.cloud.node.images().export(record.meta.id, destination, progress)?;
        Ok(record)
    }

    pub fn verify(&self, reference: &str, progress: &dyn ImportProgress) -> Result<Vec<Verified>, CloudError> {
        self.register_embedded()?;
        Ok(self.cloud.node.images().verify(self.find(reference)?.meta.id, progress)?)
    }
}
