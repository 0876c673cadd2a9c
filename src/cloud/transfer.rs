//! Import, export and verification of images.

use std::path::Path;

use super::error::CloudError;
use super::import::root::{RootOptions, agent_of, import_root};
use super::import::{ImportError, ImportProgress};
use super::registry::{Images, check_name, new_record};
use super::{bundle, embedded};
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

/// Parameters for the import of a root file system. A bundle contains its own.
#[derive(Debug, Clone)]
pub struct RootChoices {
    pub default_user: String,
    pub cmdline: String,
    /// Size in bytes of a file system created from an archive.
    pub size: Option<u64>,
    /// Declares that the root file system contains cloud-init, in case the import cannot detect it.
    pub cloud_init: bool,
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
        let is_bundle = bundle::is_one(source)?;
        let named = |what: &str| ImportError::unusable(source, what);
        let name = match &new.name {
            Some(name) => name.clone(),
            None if is_bundle => String::new(),
            None => return Err(named("a root file system has no name: specify one with --name").into()),
        };
        let kernel = self.open_by_id(embedded::id())?;
        let (_lock, scratch) = self.scratch()?;
        let manifest = if is_bundle {
            bundle::import_bundle(source, scratch.path(), &kernel.manifest.kernel.sha256, progress)?
        } else {
            let options = RootOptions {
                name,
                description: new.description.clone().unwrap_or_default(),
                default_user: new.root.default_user.clone(),
                cmdline: new.root.cmdline.clone(),
                size: new.root.size,
                cloud_init: new.root.cloud_init,
            };
            import_root(source, &options, &kernel, &agent_of(&kernel)?, scratch.path(), progress)?
        };
        let name = new.name.clone().unwrap_or(manifest.name);
        check_name(&name)?;
        let description = new.description.as_ref().unwrap_or(&manifest.description);
        let mut record = new_record(&name, description);
        record.spec.visibility = new.visibility;
        record.spec.imds_support = manifest.imds_support;
        self.register(record, scratch)
    }

    pub fn export(
        &self,
        reference: &str,
        destination: &Path,
        progress: &dyn ImportProgress,
    ) -> Result<ImageRecord, CloudError> {
        let (record, image) = self.open(Some(reference))?;
        bundle::export(&image.dir, destination, progress)?;
        Ok(record)
    }

    pub fn verify(&self, reference: &str, progress: &dyn ImportProgress) -> Result<Vec<bundle::Verified>, CloudError> {
        let (_, image) = self.open(Some(reference))?;
        Ok(bundle::verify(&image.dir, progress)?)
    }
}
