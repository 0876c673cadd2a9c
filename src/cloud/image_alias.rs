//! Image aliases: `PutParameter`, `GetParameter` and the like, for parameters whose value is an image ID.

use super::error::CloudError;
use super::{Cloud, now};
use ec2::image_alias::{AliasPath, AliasReference, not_found, version_not_found};
use ec2::{ErrorCode, ImageId};
use node::embedded;
use store::{ImageAlias, ImageRecord};

#[derive(Debug, Clone, Copy)]
pub struct ImageAliases<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl ImageAliases<'_> {
    /// Returns all aliases by path.
    pub fn list(&self) -> Result<Vec<ImageAlias>, CloudError> {
        let aliases: Vec<ImageAlias> = self.cloud.records()?;
        aliases.into_iter().map(|alias| self.current(alias)).collect()
    }

    /// Returns the aliases in a hierarchy, without those of deeper levels unless `recursive`.
    pub fn below(&self, path: &str, recursive: bool) -> Result<Vec<ImageAlias>, CloudError> {
        let mut aliases = self.list()?;
        aliases.retain(|alias| alias.path.is_below(path, recursive));
        Ok(aliases)
    }

    pub fn find(&self, path: &str) -> Result<ImageAlias, CloudError> {
        let alias = self.cloud.store.read::<_, CloudError>(|tx| Ok(tx.get::<ImageAlias>(path)?))?;
        self.current(alias.ok_or_else(|| not_found(path))?)
    }

    /// Resolves a reference to an image ID.
    pub(super) fn resolve(&self, AliasReference { path, version }: &AliasReference) -> Result<ImageId, CloudError> {
        let alias = self.find(path.as_str())?;
        match version.filter(|version| *version != alias.version) {
            Some(other) => Err(version_not_found(path, other).into()),
            None => Ok(alias.image_id),
        }
    }

    /// Adds an alias. An existing one is replaced only with `overwrite`, and gets a new version.
    pub fn set(&self, path: &AliasPath, image: &str, overwrite: bool) -> Result<ImageAlias, CloudError> {
        self.cloud.images().register_embedded()?;
        let image_id = self.cloud.images().find(image)?.meta.id;
        self.cloud.store.write(|tx| {
            let existing = tx.get::<ImageAlias>(path.as_str())?;
            if existing.is_some() && !overwrite {
                let what = format!("The parameter {path} already exists.");
                let hint = "Use --overwrite to replace its image.";
                return Err(CloudError::refused(ErrorCode::ParameterAlreadyExists, what, Some(hint.into())));
            }
            let version = existing.map_or(1, |existing| existing.version.saturating_add(1));
            let alias = ImageAlias { path: path.clone(), image_id, version, modified: now() };
            tx.set(&alias)?;
            Ok(alias)
        })
    }

    /// Removes an alias. Its image is not affected.
    pub fn remove(&self, path: &str) -> Result<ImageAlias, CloudError> {
        self.cloud.store.write(|tx| {
            let alias = tx.get::<ImageAlias>(path)?.ok_or_else(|| not_found(path))?;
            tx.remove::<ImageAlias>(path)?;
            Ok(alias)
        })
    }

    /// Replaces the embedded image of another version of Wisp by the one of this version.
    fn current(&self, alias: ImageAlias) -> Result<ImageAlias, CloudError> {
        let key = alias.image_id.to_string();
        let image = self.cloud.store.read::<_, CloudError>(|tx| Ok(tx.get::<ImageRecord>(&key)?))?;
        let is_embedded = image.is_some_and(|image| image.spec.name == embedded::NAME);
        Ok(if is_embedded { ImageAlias { image_id: embedded::id(), ..alias } } else { alias })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::home::Home;

    const PATH: &str = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64";

    fn cloud() -> (Cloud, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        (Cloud::at(home).unwrap(), dir)
    }

    fn path(text: &str) -> AliasPath {
        text.parse().unwrap()
    }

    fn code<T: std::fmt::Debug>(result: Result<T, CloudError>) -> ErrorCode {
        match result {
            Err(CloudError::Ec2(error)) => error.code(),
            other => panic!("{other:?}"),
        }
    }

    /// Adds an image to the store, without its files.
    fn add_image(cloud: &Cloud, name: &str) -> ImageId {
        let mut record = crate::registry::new_record(name, "");
        cloud.store.write::<_, CloudError>(|tx| Ok(tx.insert(&mut record)?)).unwrap();
        record.meta.id
    }

    #[test]
    fn alias_is_an_image_reference() {
        let (cloud, _dir) = cloud();
        let id = add_image(&cloud, "web");
        cloud.image_aliases().set(&path(PATH), "web", false).unwrap();
        let found = |reference: String| cloud.images().find(&reference).map(|image| image.meta.id);
        assert_eq!(found(format!("resolve:ssm:{PATH}")).unwrap(), id);
        assert_eq!(found(format!("resolve:ssm:{PATH}:1")).unwrap(), id);
        assert_eq!(code(found(format!("resolve:ssm:{PATH}:2"))), ErrorCode::ParameterVersionNotFound);
        assert_eq!(code(found("resolve:ssm:/none".into())), ErrorCode::ParameterNotFound);
        assert_eq!(code(found("resolve:ssm:none".into())), ErrorCode::InvalidParameterValue);
        cloud.images().deregister("web").unwrap();
        assert_eq!(code(found(format!("resolve:ssm:{PATH}"))), ErrorCode::InvalidAmiIdNotFound);
    }

    #[test]
    fn existing_alias_is_replaced_only_on_request() {
        let (cloud, _dir) = cloud();
        let aliases = cloud.image_aliases();
        let id = add_image(&cloud, "web");
        aliases.set(&path(PATH), "tiny", false).unwrap();
        assert_eq!(code(aliases.set(&path(PATH), "web", false)), ErrorCode::ParameterAlreadyExists);
        aliases.set(&path(PATH), "web", true).unwrap();
        let alias = aliases.find(PATH).unwrap();
        assert_eq!((alias.image_id, alias.version), (id, 2));
        assert_eq!(code(aliases.set(&path(PATH), "none", true)), ErrorCode::InvalidAmiIdNotFound);
        aliases.remove(PATH).unwrap();
        assert_eq!(code(aliases.remove(PATH)), ErrorCode::ParameterNotFound);
    }

    #[test]
    fn aliases_are_listed_by_hierarchy() {
        let (cloud, _dir) = cloud();
        let aliases = cloud.image_aliases();
        for text in ["/b/c", "/a/b/c", "/a/d"] {
            aliases.set(&path(text), "tiny", false).unwrap();
        }
        let paths = |found: Vec<ImageAlias>| found.iter().map(|alias| alias.path.to_string()).collect::<Vec<_>>();
        assert_eq!(paths(aliases.list().unwrap()), ["/a/b/c", "/a/d", "/b/c"]);
        assert_eq!(paths(aliases.below("/a", false).unwrap()), ["/a/d"]);
        assert_eq!(paths(aliases.below("/a", true).unwrap()), ["/a/b/c", "/a/d"]);
    }

    #[test]
    fn alias_of_embedded_image_resolves_to_current_version() {
        let (cloud, _dir) = cloud();
        let old = add_image(&cloud, embedded::NAME);
        let alias = ImageAlias { path: path(PATH), image_id: old, version: 1, modified: 1 };
        cloud.store.write::<_, CloudError>(|tx| Ok(tx.set(&alias)?)).unwrap();
        assert_eq!(cloud.image_aliases().find(PATH).unwrap().image_id, embedded::id());
        assert_eq!(cloud.images().find(&format!("resolve:ssm:{PATH}")).unwrap().meta.id, embedded::id());
    }
}
