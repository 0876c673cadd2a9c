//! Images (AMIs): bundles of a kernel, a root file system and their metadata.
//!
//! A bundle is a directory with `image.toml` and the files that it names, all at the top level.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::embedded::{self, EmbeddedError};
use crate::ec2::metadata::ImdsSupport;
use crate::guest::check_user_name;
use crate::host::home::Home;
use crate::vmm::config::{BootProtocol, DiskFormat};

/// The manifest's file name.
pub const MANIFEST: &str = "image.toml";
/// Maximum size of a manifest in bytes.
pub(super) const MANIFEST_LIMIT: u64 = 256 << 10;

/// The manifest, `image.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The image's name.
    pub name: String,
    /// A one-sentence description.
    #[serde(default)]
    pub description: String,
    /// CPU architecture: `x86_64`.
    pub architecture: String,
    /// The user that runs commands.
    pub default_user: String,
    /// The image contains cloud-init, which applies a new instance's host name, SSH key and user data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cloud_init: bool,
    /// The only metadata service version that instances get, if the image restricts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imds_support: Option<ImdsSupport>,
    /// The kernel.
    pub kernel: KernelEntry,
    /// The initial RAM disk, if any.
    #[serde(default)]
    pub initrd: Option<FileEntry>,
    /// The root file system, if any.
    #[serde(default)]
    pub root: Option<RootEntry>,
    /// The software in the image.
    #[serde(default, rename = "component")]
    pub components: Vec<Component>,
}

/// A file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// The file name.
    pub file: String,
    /// The SHA-256, in hexadecimal.
    pub sha256: String,
}

/// The kernel's file and boot parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelEntry {
    /// The file name.
    pub file: String,
    /// The SHA-256, in hexadecimal.
    pub sha256: String,
    /// Options for the kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// The boot protocol.
    #[serde(default)]
    pub protocol: BootProtocol,
    /// The kernel supports `wisp.software_kvm`, which makes it avoid operations that KVM cannot emulate.
    #[serde(default)]
    pub software_kvm_aware: bool,
}

/// The root file system's file and format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootEntry {
    /// The file name.
    pub file: String,
    /// The SHA-256, in hexadecimal.
    pub sha256: String,
    /// The disk image format.
    pub format: DiskFormat,
    /// The file system's name in Linux.
    pub file_system: String,
}

/// A program in the image, with its version, license and source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// The name.
    pub name: String,
    /// The version.
    pub version: String,
    /// The SPDX license identifier.
    pub licence: String,
    /// The location of the source code.
    pub source: String,
}

/// Errors that make an image unusable.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The embedded image could not be unpacked.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// The directory has no readable manifest.
    #[error("{} is not an image bundle: its {MANIFEST} cannot be read: {source}", dir.display())]
    NoManifest {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The manifest is invalid.
    #[error("{}: {reason}", path.display())]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// A file that the manifest names does not exist.
    #[error("the bundle {} has no file {file}, which its {MANIFEST} names", dir.display())]
    MissingFile {
        /// The bundle.
        dir: PathBuf,
        /// The file.
        file: String,
    },
}

/// An image that can be launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The bundle's directory.
    pub dir: PathBuf,
    /// The manifest.
    pub manifest: Manifest,
}

impl Image {
    /// Resolves a reference that needs no registered image: the embedded image's name or ID, or a bundle's directory.
    /// Without a reference, returns the embedded image. Returns `None` if `reference` can only be a registered image.
    pub fn unregistered(home: &Home, reference: Option<&str>) -> Result<Option<Image>, ImageError> {
        let reference = reference.unwrap_or(embedded::NAME);
        if reference == embedded::NAME || reference == embedded::id().to_string() {
            return Image::open(&embedded::unpacked(home)?).map(Some);
        }
        if reference.contains('/') || Path::new(reference).join(MANIFEST).exists() {
            return Image::open(Path::new(reference)).map(Some);
        }
        Ok(None)
    }

    /// Opens the bundle in `directory` and checks that its files exist. Digests are not verified, since that means
    /// reading every file.
    pub fn open(dir: &Path) -> Result<Image, ImageError> {
        let unreadable = |source| ImageError::NoManifest { dir: dir.to_path_buf(), source };
        let path = dir.join(MANIFEST);
        if path.metadata().map_err(unreadable)?.len() > MANIFEST_LIMIT {
            let reason = format!("it is longer than {MANIFEST_LIMIT} bytes");
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
    /// Parses and validates a manifest. The error is a sentence.
    pub fn parse(text: &str) -> Result<Manifest, String> {
        let manifest: Manifest = toml::from_str(text).map_err(|error| error.to_string())?;
        if manifest.architecture != "x86_64" {
            return Err(format!("its architecture is {:?}; only x86_64 images run here", manifest.architecture));
        }
        check_user_name(&manifest.default_user).map_err(|error| format!("default_user: {error}"))?;
        if let Some(file) = manifest.files().find(|file| !is_plain_name(file)) {
            return Err(format!("{file:?} is not the name of a file directly in the bundle"));
        }
        let mut names: Vec<&str> = manifest.files().chain([MANIFEST]).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("{:?} is named for two things", pair[0]));
        }
        Ok(manifest)
    }

    /// Returns the names of the files in the bundle.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.digests().map(|(file, _)| file)
    }

    /// Returns the files with their SHA-256.
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
    fn a_whole_bundle_is_opened() {
        let dir = bundle(TEXT);
        let image = Image::open(dir.path()).unwrap();
        assert_eq!(image.manifest.digests().collect::<Vec<_>>(), [("vmlinux", "00"), ("root.ext4", "11")]);
        assert_eq!(image.manifest.kernel.protocol, BootProtocol::Linux64);
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let dir = bundle(TEXT);
        std::fs::remove_file(dir.path().join("root.ext4")).unwrap();
        let error = Image::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("no file root.ext4"), "{error}");
    }

    #[test]
    fn names_that_lead_out_of_the_bundle_are_refused() {
        for name in ["../vmlinux", "/etc/passwd", "..", ""] {
            let error = Manifest::parse(&TEXT.replace("\"vmlinux\"", &format!("{name:?}"))).unwrap_err();
            assert!(error.contains("directly in the bundle"), "{name}: {error}");
        }
    }

    #[test]
    fn default_user_that_ssh_would_take_for_an_option_is_refused() {
        for user in ["-oProxyCommand=touch x;", "a b", "", "a@b"] {
            let text = TEXT.replace("default_user = \"root\"", &format!("default_user = {user:?}"));
            let error = Manifest::parse(&text).unwrap_err();
            assert!(error.contains("default_user") && error.contains(&format!("{user:?}")), "{user}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_two_things_is_refused() {
        for name in ["vmlinux", MANIFEST] {
            let error = Manifest::parse(&TEXT.replace("root.ext4", name)).unwrap_err();
            assert!(error.contains("two things"), "{name}: {error}");
        }
    }

    #[test]
    fn other_architectures_and_unknown_keys_are_refused() {
        assert!(Manifest::parse(&TEXT.replace("x86_64", "arm64")).unwrap_err().contains("arm64"));
        assert!(Manifest::parse(&format!("imds_support = \"v1.0\"\n{TEXT}")).is_err());
        let manifest = Manifest::parse(&format!("imds_support = \"v2.0\"\n{TEXT}")).unwrap();
        assert_eq!(manifest.imds_support, Some(ImdsSupport::V2));
        assert!(Manifest::parse(&format!("colour = 1\n{TEXT}")).is_err());
    }
}
