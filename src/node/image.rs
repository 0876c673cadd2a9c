//! Image bundles: the files of an image (AMI). A bundle is a directory that contains `image.toml`, a kernel, and
//! optionally an initramfs and a root file system.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::guest::check_user_name;
use ec2::metadata::ImdsSupport;
use machine::config::{BootProtocol, DiskFormat};

pub const MANIFEST: &str = "image.toml";
/// Maximum size of a manifest in bytes.
pub(super) const MANIFEST_LIMIT: u64 = 256 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    /// Should be one sentence.
    #[serde(default)]
    pub description: String,
    /// Must be `x86_64`.
    pub architecture: String,
    pub default_user: String,
    /// The image contains cloud-init, which applies a new instance's host name, SSH key and user data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cloud_init: bool,
    /// If set, new instances require this version of the metadata service by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imds_support: Option<ImdsSupport>,
    pub kernel: KernelEntry,
    #[serde(default)]
    pub initrd: Option<FileEntry>,
    #[serde(default)]
    pub root: Option<RootEntry>,
    #[serde(default, rename = "component")]
    pub components: Vec<Component>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub file: String,
    pub sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelEntry {
    pub file: String,
    pub sha256: String,
    #[serde(default)]
    pub cmdline: String,
    #[serde(default)]
    pub protocol: BootProtocol,
    /// The kernel supports `wisp.software_kvm`, which makes it avoid operations that KVM cannot emulate.
    #[serde(default)]
    pub software_kvm_aware: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootEntry {
    pub file: String,
    pub sha256: String,
    pub format: DiskFormat,
    /// Name of the file system type in Linux, such as `ext4`.
    pub file_system: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    pub name: String,
    pub version: String,
    /// SPDX license identifier.
    pub license: String,
    /// Location of the source code.
    pub source: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{} is not an image bundle: cannot read its {MANIFEST}: {source}", dir.display())]
    NoManifest { dir: PathBuf, source: io::Error },
    #[error("{}: {reason}", path.display())]
    BadManifest { path: PathBuf, reason: String },
    #[error("the bundle {} has no file {file}, but its {MANIFEST} lists it", dir.display())]
    MissingFile { dir: PathBuf, file: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub dir: PathBuf,
    pub manifest: Manifest,
}

impl Image {
    /// Opens a bundle and checks that its files exist. Digests are not verified, since that means reading every file.
    pub fn open(dir: &Path) -> Result<Image, ImageError> {
        let unreadable = |source| ImageError::NoManifest { dir: dir.to_path_buf(), source };
        let path = dir.join(MANIFEST);
        if path.metadata().map_err(unreadable)?.len() > MANIFEST_LIMIT {
            let reason = format!("it is larger than {MANIFEST_LIMIT} bytes");
            return Err(ImageError::BadManifest { path, reason });
        }
        let text = std::fs::read_to_string(&path).map_err(unreadable)?;
        let manifest = Manifest::parse(&text).map_err(|reason| ImageError::BadManifest { path, reason })?;
        let dir = dir.canonicalize().map_err(unreadable)?;
        for file in manifest.files() {
            if !dir.join(file).is_file() {
                return Err(ImageError::MissingFile { dir, file: file.into() });
            }
        }
        Ok(Image { dir, manifest })
    }
}

impl Manifest {
    /// Parses and validates a manifest. The error is the reason for [`ImageError::BadManifest`].
    pub fn parse(text: &str) -> Result<Manifest, String> {
        let manifest: Manifest = toml::from_str(text).map_err(|error| error.to_string())?;
        if manifest.architecture != "x86_64" {
            return Err(format!("its architecture is {:?}; it must be x86_64", manifest.architecture));
        }
        check_user_name(&manifest.default_user).map_err(|error| format!("default_user: {error}"))?;
        if let Some(file) = manifest.files().find(|file| !is_plain_name(file)) {
            return Err(format!("invalid file name {file:?}: it must be a file at the top level of the bundle"));
        }
        let mut names: Vec<&str> = manifest.files().chain([MANIFEST]).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("{:?} is listed more than once", pair[0]));
        }
        Ok(manifest)
    }

    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.digests().map(|(file, _)| file)
    }

    /// Returns the files with their SHA-256 digests.
    pub fn digests(&self) -> impl Iterator<Item = (&str, &str)> {
        let kernel = (self.kernel.file.as_str(), self.kernel.sha256.as_str());
        let initrd = self.initrd.as_ref().map(|entry| (entry.file.as_str(), entry.sha256.as_str()));
        let root = self.root.as_ref().map(|entry| (entry.file.as_str(), entry.sha256.as_str()));
        std::iter::once(kernel).chain(initrd).chain(root)
    }
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        name = "test"
        architecture = "x86_64"
        default_user = "root"
        [kernel]
        file = "vmlinux"
        sha256 = "00"
        cmdline = "quiet"
        protocol = "linux64"
        [root]
        file = "root.ext4"
        sha256 = "11"
        format = "raw"
        file_system = "ext4"
    "#;

    fn bundle(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [(MANIFEST, text), ("vmlinux", "k"), ("root.ext4", "r")] {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[test]
    fn complete_bundle_is_opened() {
        let dir = bundle(TEXT);
        let image = Image::open(dir.path()).unwrap();
        assert_eq!(image.manifest.digests().collect::<Vec<_>>(), [("vmlinux", "00"), ("root.ext4", "11")]);
        assert_eq!(image.manifest.kernel.protocol, BootProtocol::Linux64);
    }

    #[test]
    fn missing_file_is_named() {
        let dir = bundle(TEXT);
        std::fs::remove_file(dir.path().join("root.ext4")).unwrap();
        let error = Image::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("no file root.ext4"), "{error}");
    }

    #[test]
    fn file_names_outside_bundle_are_refused() {
        for name in ["../vmlinux", "/etc/passwd", "..", ""] {
            let error = Manifest::parse(&TEXT.replace("\"vmlinux\"", &format!("{name:?}"))).unwrap_err();
            assert!(error.contains("at the top level of the bundle"), "{name}: {error}");
        }
    }

    #[test]
    fn default_user_like_ssh_option_is_refused() {
        for user in ["-oProxyCommand=touch x;", "a b", "", "a@b"] {
            let text = TEXT.replace("default_user = \"root\"", &format!("default_user = {user:?}"));
            let error = Manifest::parse(&text).unwrap_err();
            assert!(error.contains("default_user") && error.contains(&format!("{user:?}")), "{user}: {error}");
        }
    }

    #[test]
    fn duplicate_file_is_refused() {
        for name in ["vmlinux", MANIFEST] {
            let error = Manifest::parse(&TEXT.replace("root.ext4", name)).unwrap_err();
            assert!(error.contains("more than once"), "{name}: {error}");
        }
    }

    #[test]
    fn other_architectures_and_unknown_keys_are_refused() {
        assert!(Manifest::parse(&TEXT.replace("x86_64", "arm64")).unwrap_err().contains("arm64"));
        assert!(Manifest::parse(&format!("imds_support = \"v1.0\"\n{TEXT}")).is_err());
        let manifest = Manifest::parse(&format!("imds_support = \"v2.0\"\n{TEXT}")).unwrap();
        assert_eq!(manifest.imds_support, Some(ImdsSupport::V2));
        assert!(Manifest::parse(&format!("color = 1\n{TEXT}")).is_err());
    }
}
