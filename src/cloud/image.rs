//! Images (AMIs): bundles of a kernel, a root file system and what there is to know about them.
//!
//! A bundle is a directory with `image.toml` and the files that it names, all of them directly in it.

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
/// The longest manifest that is read, in bytes.
pub(super) const MANIFEST_LIMIT: u64 = 256 << 10;

/// `image.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The image's name.
    pub name: String,
    /// What it is, in a sentence.
    #[serde(default)]
    pub description: String,
    /// The processor that it runs on: `x86_64`.
    pub architecture: String,
    /// Who commands run as.
    pub default_user: String,
    /// Whether cloud-init is in it, which does what a new instance is told: its name, its key, its user data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cloud_init: bool,
    /// The version of the metadata service that its programs ask, if instances are to have no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imds_support: Option<ImdsSupport>,
    /// The kernel.
    pub kernel: KernelEntry,
    /// The initial RAM disk, if there is one.
    #[serde(default)]
    pub initrd: Option<FileEntry>,
    /// The root file system, if there is one.
    #[serde(default)]
    pub root: Option<RootEntry>,
    /// What it is made of.
    #[serde(default, rename = "component")]
    pub components: Vec<Component>,
}

/// A file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name in the bundle.
    pub file: String,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// The kernel's file and how it boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelEntry {
    /// Its name in the bundle.
    pub file: String,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Options for its command line.
    #[serde(default)]
    pub cmdline: String,
    /// How it is entered.
    #[serde(default)]
    pub protocol: BootProtocol,
    /// Whether it knows `wisp.software_kvm`, with which it does without what KVM cannot emulate.
    #[serde(default)]
    pub software_kvm_aware: bool,
}

/// The root file system's file and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootEntry {
    /// Its name in the bundle.
    pub file: String,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// The disk image's format.
    pub format: DiskFormat,
    /// The file system on it, as Linux names it.
    pub file_system: String,
}

/// A program in the image: its version, its licence, and where its source is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence, as SPDX names it.
    pub licence: String,
    /// Where its source is.
    pub source: String,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The embedded image could not be unpacked.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// A directory without a manifest.
    #[error("{} is not an image bundle: its {MANIFEST} cannot be read: {source}", folder.display())]
    NoManifest {
        /// The directory.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A manifest that is not one.
    #[error("{}: {reason}", path.display())]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that the manifest names is not there.
    #[error("the bundle {} has no file {file}, which its {MANIFEST} names", folder.display())]
    MissingFile {
        /// The bundle.
        folder: PathBuf,
        /// The file.
        file: String,
    },
}

/// An image that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its bundle.
    pub folder: PathBuf,
    /// What it is.
    pub manifest: Manifest,
}

impl Image {
    /// The image that a user means who calls it by the name or id of the embedded one (which is also meant when nothing
    /// is said), or by a bundle's directory; nothing if it can only be a registered one.
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

    /// Opens the bundle in `folder` and checks that it is whole. Digests are not computed: that takes the time of
    /// reading every file.
    pub fn open(folder: &Path) -> Result<Image, ImageError> {
        let unreadable = |source| ImageError::NoManifest { folder: folder.to_path_buf(), source };
        let path = folder.join(MANIFEST);
        if path.metadata().map_err(unreadable)?.len() > MANIFEST_LIMIT {
            let reason = format!("it is longer than {MANIFEST_LIMIT} bytes");
            return Err(ImageError::BadManifest { path, reason });
        }
        let text = std::fs::read_to_string(&path).map_err(unreadable)?;
        let manifest = Manifest::parse(&text).map_err(|reason| ImageError::BadManifest { path, reason })?;
        let folder = folder.canonicalize().map_err(unreadable)?;
        for file in manifest.files() {
            if !folder.join(file).is_file() {
                return Err(ImageError::MissingFile { folder, file: file.into() });
            }
        }
        Ok(Image { folder, manifest })
    }
}

impl Manifest {
    /// Reads a manifest; the error is a sentence.
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

    /// The names of the files that it speaks of.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.digests().map(|(file, _)| file)
    }

    /// The files with their SHA-256.
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
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [(MANIFEST, text), ("vmlinux", "k"), ("root.ext4", "r")] {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    #[test]
    fn a_whole_bundle_is_opened() {
        let folder = bundle(TEXT);
        let image = Image::open(folder.path()).unwrap();
        assert_eq!(image.manifest.digests().collect::<Vec<_>>(), [("vmlinux", "00"), ("root.ext4", "11")]);
        assert_eq!(image.manifest.kernel.protocol, BootProtocol::Linux64);
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let folder = bundle(TEXT);
        std::fs::remove_file(folder.path().join("root.ext4")).unwrap();
        let error = Image::open(folder.path()).unwrap_err().to_string();
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
