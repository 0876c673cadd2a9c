//! Import of root file systems: a tar archive of files, a file system image, or a qcow2 image of a file system.
//!
//! The image gets the embedded image's kernel, and an initramfs with the agent. The agent mounts the root, arranges to
//! be started there (as a service under systemd), and then runs the root's own init as process 1. The root itself is
//! not modified.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::archive::{ArchiveEntry, TarFile};
use super::content::{self, Content, FileSystem};
use super::ext4::{self, Shape};
use super::tree::{self, AddError, Tree};
use super::{ImportError, ImportProgress, LARGEST_FILE, Landing, newc, open_regular, render};
use crate::image::{FileEntry, Image, KernelEntry, MANIFEST, Manifest, RootEntry};
use disk::{disk_image, sparse};
use machine::config::{BootProtocol, DiskFormat};
use mkext4::reader::Fs;

const KERNEL: &str = "vmlinux";
const INITRD: &str = "agent.cpio";
/// The agent's name in the initramfs.
const AGENT: &str = "init";
const EMBEDDED_AGENT: &str = "/sbin/wisp-init";
/// Path of cloud-init, and the file that disables it (cloud-init documentation, "How to disable cloud-init").
const CLOUD_INIT: &str = "/usr/bin/cloud-init";
const CLOUD_INIT_OFF: &str = "/etc/cloud/cloud-init.disabled";
/// File system images are padded to a multiple of this size in bytes.
const PAGE: u64 = 4 << 10;

/// Content bytes between two checks of the free space.
const SPACE_STEP: u64 = 64 << 20;

#[derive(Debug, Clone)]
pub struct RootOptions {
    pub name: String,
    /// Should be one sentence.
    pub description: String,
    pub default_user: String,
    pub cmdline: String,
    /// Size in bytes of a file system that is created from an archive. The default is the size of its files plus the
    /// larger of a quarter and [`ext4::HEADROOM`], and at least [`ext4::SMALLEST`].
    pub size: Option<u64>,
    /// Declares that the root contains cloud-init. The import finds it only in archives and ext4 file systems.
    pub cloud_init: bool,
}

/// Creates an image from the root file system in `source`, whose type is detected, in the empty directory `into`.
/// `embedded` provides the kernel, and `agent` is the agent's executable.
pub fn import_root(
    source: &Path,
    options: &RootOptions,
    embedded: &Image,
    agent: &[u8],
    into: &Path,
    progress: &dyn ImportProgress,
) -> Result<Manifest, ImportError> {
    let limit = tree::MEMORY_LIMIT;
    import_into(Landing::new(into)?, limit, source, options, embedded, agent, progress)
}

/// Works like [`import_root`], with a limit in bytes for the memory of an archive's names and attributes.
fn import_into(
    landing: Landing,
    memory_limit: u64,
    source: &Path,
    options: &RootOptions,
    embedded: &Image,
    agent: &[u8],
    progress: &dyn ImportProgress,
) -> Result<Manifest, ImportError> {
    let file = open_regular(source, true)?;
    let import = Import { source, options, agent, landing: &landing, memory_limit, progress };
    let found = match content::detect(&file).map_err(ImportError::read(source))? {
        Content::Archive(compression) => import.archive(&TarFile { path: source.to_path_buf(), file, compression })?,
        Content::FileSystem(kind) => import.file_system(&file, kind)?,
        Content::Qcow2 => import.qcow2()?,
        Content::Other(reason) => return Err(ImportError::unusable(source, reason)),
    };
    let manifest = import.manifest(embedded, found)?;
    landing.keep(&render(&manifest))?;
    Ok(manifest)
}

struct Found {
    file_system: FileSystem,
    sha256: String,
    cloud_init: bool,
}

pub fn agent_of(embedded: &Image) -> Result<Vec<u8>, ImportError> {
    let damaged = |reason: String| ImportError::Agent(reason);
    let root =
        embedded.manifest.root.as_ref().ok_or_else(|| damaged("the embedded image has no root file system".into()))?;
    let file = open_regular(&embedded.dir.join(&root.file), false)?;
    let root = Fs::open(file).map_err(|error| damaged(error.to_string()))?;
    let inode = root.resolve(EMBEDDED_AGENT).map_err(|error| damaged(error.to_string()))?;
    root.read_file(inode).map_err(|error| damaged(error.to_string()))
}

struct Import<'a> {
    source: &'a Path,
    options: &'a RootOptions,
    agent: &'a [u8],
    landing: &'a Landing<'a>,
    memory_limit: u64,
    progress: &'a dyn ImportProgress,
}

impl Import<'_> {
    /// Creates an ext4 file system from an archive. The first pass reads the headers, the second one the contents.
    fn archive(&self, archive: &TarFile) -> Result<Found, ImportError> {
        let length = archive.file.metadata().map_err(ImportError::read(self.source))?.len();
        self.progress.begin("reading the archive", length);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = i64::from(u32::try_from(now).unwrap_or(u32::MAX));
        let mut tree = Tree::with_limit(now, self.memory_limit);
        let (mut stored, mut checked) = (0u64, 0u64);
        archive.entries(self.progress, &mut |entry| {
            if is_docker_mark(&entry.name) {
                return Ok(());
            }
            // Before anything is written, the first header that claims too much space stops a decompression bomb.
            stored = stored.saturating_add(entry.stored);
            if stored > checked {
                self.landing.check_space(stored)?;
                checked = stored.saturating_add(SPACE_STEP);
            }
            tree.add(entry).map_err(|error| self.add_error(entry, error))
        })?;
        self.check_tree(&mut tree)?;
        let cloud_init = runs_cloud_init(|path| {
            let path: Vec<&str> = path.split('/').skip(1).collect();
            tree.find(&path).is_ok_and(|found| found.is_some())
        });
        let unusable = |reason: String| ImportError::FileSystem { path: self.source.to_path_buf(), reason };
        let (bytes, _) = ext4::usage(&tree);
        if stored > LARGEST_FILE || bytes > LARGEST_FILE {
            return Err(unusable(format!("its files take more than {LARGEST_FILE} bytes")));
        }
        self.landing.check_space(bytes)?;
        let mut uuid = [0; 16];
        rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| unusable(std::io::Error::from(errno).to_string()))?;
        // Marks the UUID as random (RFC 9562, version 4).
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let plan = ext4::plan(tree, &Shape { uuid, made: now, size: self.options.size }).map_err(unusable)?;
        let name = root_name(FileSystem::Ext4);
        let file = self.landing.create(&name)?;
        self.progress.begin("writing the file system", length);
        plan.write(archive, &file, &self.landing.path(&name), &self.landing.space, self.progress)?;
        let sha256 = self.digest(&file, &name)?;
        Ok(Found { file_system: FileSystem::Ext4, sha256, cloud_init })
    }

    fn add_error(&self, entry: &ArchiveEntry, error: AddError) -> ImportError {
        match error {
            AddError::ArchiveEntry(reason) => entry.error(self.source, reason),
            AddError::Memory { limit } => ImportError::Limit {
                path: self.source.to_path_buf(),
                exceeded: format!(
                    "the names and attributes of its files, up to {:?}, take more than {} MiB of memory",
                    String::from_utf8_lossy(&entry.name),
                    limit >> 20
                ),
                advice: "Remove files or attributes, or import a file system image (mkfs.ext4 -d DIRECTORY) instead",
            },
        }
    }

    fn check_tree(&self, tree: &mut Tree) -> Result<(), ImportError> {
        let mut has = |path: &[&str]| tree.find(path).is_ok_and(|found| found.is_some());
        let reason = if has(&[MANIFEST]) {
            "it is an archive of an image bundle, not of a root file system"
        } else if has(&["oci-layout"]) || has(&["manifest.json"]) && !has(&["etc"]) {
            "it is a container image, not a root file system. Create a container from it and import the container's \
             files: `docker export CONTAINER > root.tar`"
        } else if !["bin", "sbin", "usr", "etc", "init"].iter().any(|name| has(&[name])) {
            "it is not an archive of a root file system: it contains none of /bin, /sbin, /usr, /etc and /init"
        } else {
            return Ok(());
        };
        Err(ImportError::unusable(self.source, reason))
    }

    fn file_system(&self, source: &File, kind: FileSystem) -> Result<Found, ImportError> {
        let length = source.metadata().map_err(ImportError::read(self.source))?.len();
        if length > LARGEST_FILE {
            return Err(ImportError::unusable(self.source, format!("it is larger than {LARGEST_FILE} bytes")));
        }
        let name = root_name(kind);
        let file = self.landing.create(&name)?;
        self.progress.begin("copying the file system", length);
        let advance = |count| self.progress.advance(count);
        let sha256 = sparse::copy(source, &file, length.next_multiple_of(PAGE), &self.landing.space, &advance)
            .map_err(ImportError::write(&self.landing.path(&name)))?;
        Ok(Found { file_system: kind, sha256, cloud_init: self.finds_cloud_init(&name) })
    }

    /// Converts a qcow2 image to raw, so that VMs never parse its tables, which are untrusted.
    fn qcow2(&self) -> Result<Found, ImportError> {
        let image = disk_image::open_alone(self.source)?;
        if image.size() > LARGEST_FILE {
            return Err(ImportError::unusable(self.source, format!("its disk is larger than {LARGEST_FILE} bytes")));
        }
        let mut head = vec![0; image.size().min(content::HEAD as u64) as usize];
        image.read(head.as_mut_slice(), 0).map_err(ImportError::read(self.source))?;
        let file_system = match content::of(&head, image.size()) {
            Content::FileSystem(kind) => kind,
            Content::Other(reason) if reason.contains("partition table") => {
                let first = "First convert it with `qemu-img convert -O raw FILE disk.raw`, then do this with disk.raw";
                return Err(ImportError::unusable(self.source, format!("{reason}. {first}")));
            }
            Content::Other(reason) => {
                return Err(ImportError::unusable(self.source, format!("cannot use its disk: {reason}")));
            }
            Content::Archive(_) | Content::Qcow2 => {
                let reason = "its disk contains another image or an archive, not a file system";
                return Err(ImportError::unusable(self.source, reason));
            }
        };
        drop(image);
        let name = root_name(file_system);
        let path = self.landing.path(&name);
        self.progress.begin("unpacking the qcow2 image", 0);
        disk_image::convert_alone(self.source, &path, &self.landing.space)?;
        let file = File::open(&path).map_err(ImportError::read(&path))?;
        let sha256 = self.digest(&file, &name)?;
        Ok(Found { file_system, sha256, cloud_init: self.finds_cloud_init(&name) })
    }

    /// Returns true if cloud-init is installed and enabled. Returns false if the file system cannot be read.
    fn finds_cloud_init(&self, name: &str) -> bool {
        let root = open_regular(&self.landing.path(name), false).ok().and_then(|file| Fs::open(file).ok());
        root.is_some_and(|root| runs_cloud_init(|path| root.resolve(path).is_ok()))
    }

    fn digest(&self, file: &File, name: &str) -> Result<String, ImportError> {
        let path = self.landing.path(name);
        self.progress.begin("computing the digest", file.metadata().map_err(ImportError::read(&path))?.len());
        sparse::sha256(file, &|count| self.progress.advance(count)).map_err(ImportError::read(&path))
    }

    /// Adds the kernel and the agent's initramfs, and returns the manifest.
    fn manifest(&self, embedded: &Image, found: Found) -> Result<Manifest, ImportError> {
        let kernel = &embedded.manifest.kernel;
        let path = embedded.dir.join(&kernel.file);
        let source = open_regular(&path, false)?;
        let length = source.metadata().map_err(ImportError::read(&path))?.len();
        // A copy instead of a hard link, so that damage to one image does not affect another.
        let copied = sparse::copy(&source, &self.landing.create(KERNEL)?, length, &self.landing.space, &|_| {});
        let sha256 = copied.map_err(ImportError::write(&self.landing.path(KERNEL)))?;
        if sha256 != kernel.sha256 {
            let (bundle, file) = (embedded.dir.clone(), kernel.file.clone());
            return Err(ImportError::Damaged { bundle, file, expected: kernel.sha256.clone(), found: sha256 });
        }
        let cmdline = format!("{} rootfstype={}", self.options.cmdline.trim(), found.file_system.name());
        if found.file_system.is_read_only() {
            self.progress.note(&format!(
                "{} is read-only: a guest of this image keeps changes to its root file system in memory and loses \
                 them when it stops.",
                found.file_system.name()
            ));
        }
        Ok(Manifest {
            name: self.options.name.clone(),
            description: self.options.description.clone(),
            architecture: "x86_64".into(),
            default_user: self.options.default_user.clone(),
            cloud_init: found.cloud_init || self.options.cloud_init,
            imds_support: None,
            kernel: KernelEntry {
                file: KERNEL.into(),
                sha256,
                cmdline: cmdline.trim().to_string(),
                protocol: BootProtocol::Linux64,
                software_kvm_aware: kernel.software_kvm_aware,
            },
            initrd: Some(self.initrd()?),
            root: Some(RootEntry {
                file: root_name(found.file_system),
                sha256: found.sha256,
                format: DiskFormat::Raw,
                file_system: found.file_system.name().into(),
            }),
            components: embedded.manifest.components.clone(),
        })
    }

    fn initrd(&self) -> Result<FileEntry, ImportError> {
        let path = self.landing.path(INITRD);
        let mut file = self.landing.create(INITRD)?;
        file.write_all(&newc::of_program(AGENT, self.agent)).map_err(ImportError::write(&path))?;
        let sha256 = sparse::sha256(&file, &|_| {}).map_err(ImportError::read(&path))?;
        Ok(FileEntry { file: INITRD.into(), sha256 })
    }
}

/// Returns true for the marker file that Docker adds to each container. With it, programs in a VM would assume that
/// they run in a container.
fn is_docker_mark(name: &[u8]) -> bool {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    name.strip_prefix(b"/").unwrap_or(name) == b".dockerenv"
}

/// Returns true if cloud-init is installed and enabled. `has` returns true if a path exists.
fn runs_cloud_init(mut has: impl FnMut(&str) -> bool) -> bool {
    has(CLOUD_INIT) && !has(CLOUD_INIT_OFF)
}

fn root_name(kind: FileSystem) -> String {
    format!("root.{}", kind.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::testing::run;
    use disk::space::{FreeSpace, RESERVE};
    use std::fs;
    use std::io::Read;
    use std::path::PathBuf;

    struct Fixture {
        dir: tempfile::TempDir,
    }

    /// In bytes. Enough for the 65,000 names in one of the tests.
    const MEMORY_LIMIT: u64 = 32 << 20;

    enum TestEntry<'a> {
        Directory,
        File(&'a [u8]),
        Link(&'a str),
        Hard(&'a str),
        Device(char, u32, u32),
    }
    use TestEntry::{Device, Directory, File as Regular, Hard, Link};

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            let embedded = dir.path().join("embedded");
            fs::create_dir(&embedded).unwrap();
            fs::write(embedded.join("vmlinux"), "kernel").unwrap();
            let sha256 = sparse::sha256(&File::open(embedded.join("vmlinux")).unwrap(), &|_| {}).unwrap();
            let manifest = format!(
                "name = \"tiny\"\narchitecture = \"x86_64\"\ndefault_user = \"root\"\n[kernel]\nfile = \"vmlinux\"\n\
                 sha256 = \"{sha256}\"\nsoftware_kvm_aware = true\n[[component]]\nname = \"Linux\"\nversion = \"6\"\n\
                 license = \"GPL-2.0-only\"\nsource = \"Debian\"\n"
            );
            fs::write(embedded.join(MANIFEST), manifest).unwrap();
            Fixture { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn import(&self, source: &Path) -> Result<(Manifest, PathBuf), String> {
            self.import_sized(source, None)
        }

        fn import_sized(&self, source: &Path, size: Option<u64>) -> Result<(Manifest, PathBuf), String> {
            self.import_with(source, size, FreeSpace::unwatched())
        }

        /// Imports `source`. Checks that a success creates a valid bundle and that a failure leaves no files.
        fn import_with(
            &self,
            source: &Path,
            size: Option<u64>,
            space: FreeSpace,
        ) -> Result<(Manifest, PathBuf), String> {
            let into = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
            let options = RootOptions {
                name: "mine".into(),
                description: "Made by a test".into(),
                default_user: "admin".into(),
                cmdline: "quiet".into(),
                size,
                cloud_init: false,
            };
            let embedded = Image::open(&self.path("embedded")).unwrap();
            let landing = Landing::with_space(&into, space).unwrap();
            match import_into(landing, MEMORY_LIMIT, source, &options, &embedded, b"agent", &()) {
                Ok(manifest) => {
                    assert_eq!(Image::open(&into).unwrap().manifest, manifest);
                    for verified in crate::bundle::verify(&into, &()).unwrap() {
                        verified.result.unwrap();
                    }
                    Ok((manifest, into))
                }
                Err(error) => {
                    assert_eq!(fs::read_dir(&into).unwrap().count(), 0, "{error}");
                    Err(error.to_string())
                }
            }
        }

        fn archive(&self, entries: &[(&str, TestEntry)]) -> PathBuf {
            let path = self.path("root.tar");
            let mut builder = tar::Builder::new(File::create(&path).unwrap());
            for (name, thing) in entries {
                let mut header = tar::Header::new_gnu();
                let mut content: &[u8] = b"";
                header.set_mode(0o755);
                header.set_mtime(1_000_000_000);
                match thing {
                    Directory => header.set_entry_type(tar::EntryType::Directory),
                    Regular(bytes) => content = bytes,
                    Link(target) => {
                        header.set_entry_type(tar::EntryType::Symlink);
                        header.set_link_name_literal(target).unwrap();
                    }
                    Hard(target) => {
                        header.set_entry_type(tar::EntryType::Link);
                        header.set_link_name_literal(target).unwrap();
                    }
                    Device(kind, major, minor) => {
                        header.set_entry_type(tar::EntryType::new(*kind as u8));
                        header.set_device_major(*major).unwrap();
                        header.set_device_minor(*minor).unwrap();
                    }
                }
                header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
                header.set_uid(7);
                header.set_gid(8);
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content).unwrap();
            }
            builder.finish().unwrap();
            path
        }
    }

    fn systemd() -> Vec<(&'static str, TestEntry<'static>)> {
        vec![
            ("./", Directory),
            ("usr/lib/systemd/systemd", Regular(b"systemd")),
            ("lib", Link("usr/lib")),
            ("usr/sbin/init", Link("/lib/systemd/systemd")),
            ("sbin", Link("usr/sbin")),
        ]
    }

    fn read(fs: &Fs<File>, path: &str) -> Vec<u8> {
        fs.read_file(fs.resolve(path).unwrap()).unwrap()
    }

    #[test]
    fn archive_import_creates_sound_ext4() {
        let fixture = Fixture::new();
        let mut entries = systemd();
        let big = vec![9; 3 << 20];
        entries.extend([
            ("etc/big", Regular(&big)),
            ("etc/same", Hard("etc/big")),
            ("dev/ttyS0", Device('3', 4, 64)),
            ("run/pipe", Device('6', 0, 0)),
            ("lost+found", Directory),
            ("etc/empty", Regular(b"")),
            (".dockerenv", Regular(b"")),
        ]);
        let (manifest, dir) = fixture.import(&fixture.archive(&entries)).unwrap();
        let path = dir.join("root.ext4");
        run("e2fsck", &["-fn", path.to_str().unwrap()]);
        let fs = Fs::open(File::open(&path).unwrap()).unwrap();
        assert_eq!(read(&fs, "/etc/big"), big);
        assert!(fs.resolve("/.dockerenv").is_err(), "programs would mistake the VM for a container");
        let inode = fs.inode(fs.resolve("/etc/same").unwrap()).unwrap();
        assert_eq!((inode.links_count, inode.uid, inode.gid, inode.mode), (2, 7, 8, 0o100_755));
        let device = run("debugfs", &["-R", "stat /dev/ttyS0", path.to_str().unwrap()]);
        assert!(device.contains("character special") && device.contains("04:64"), "{device}");
        assert_eq!(path.metadata().unwrap().len(), ext4::SMALLEST);
        assert_eq!((manifest.name.as_str(), manifest.default_user.as_str()), ("mine", "admin"));
        assert_eq!(manifest.root.unwrap().file_system, "ext4");
        assert_eq!(manifest.components.len(), 1);
    }

    #[test]
    fn agent_is_initrd_and_root_is_unchanged() {
        let fixture = Fixture::new();
        let entries = [("bin/busybox", Regular(b"busybox")), ("sbin/init", Link("/bin/busybox"))];
        let (manifest, dir) = fixture.import(&fixture.archive(&entries)).unwrap();
        assert_eq!(manifest.initrd.unwrap().file, INITRD);
        assert_eq!(manifest.kernel.cmdline, "quiet rootfstype=ext4");
        assert_eq!(fs::read(dir.join(INITRD)).unwrap(), newc::of_program("init", b"agent"));
        let fs = Fs::open(File::open(dir.join("root.ext4")).unwrap()).unwrap();
        assert_eq!(fs.symlink_target(fs.resolve("/sbin/init").unwrap()).unwrap(), b"/bin/busybox");
    }

    #[test]
    fn cloud_init_is_found_unless_disabled() {
        let fixture = Fixture::new();
        assert!(!fixture.import(&fixture.archive(&systemd())).unwrap().0.cloud_init);
        let mut entries = systemd();
        entries.push(("usr/bin/cloud-init", Regular(b"#!/usr/bin/python3")));
        let (manifest, dir) = fixture.import(&fixture.archive(&entries)).unwrap();
        assert!(manifest.cloud_init);
        assert!(fixture.import(&dir.join("root.ext4")).unwrap().0.cloud_init);
        entries.push(("etc/cloud/cloud-init.disabled", Regular(b"")));
        assert!(!fixture.import(&fixture.archive(&entries)).unwrap().0.cloud_init);
    }

    #[test]
    fn archive_import_keeps_attributes_and_times() {
        let fixture = Fixture::new();
        let path = fixture.path("pax.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let extensions: [(&str, &[u8]); 3] = [
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.com.apple.quarantine", b"x"),
            ("mtime", b"1234567890.5"),
        ];
        builder.append_pax_extensions(extensions).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(4);
        header.set_mode(0o4755);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, "bin/ping", &b"ping"[..]).unwrap();
        builder.finish().unwrap();
        let (_, dir) = fixture.import(&path).unwrap();
        let fs = Fs::open(File::open(dir.join("root.ext4")).unwrap()).unwrap();
        let id = fs.resolve("/bin/ping").unwrap();
        let attributes = fs.xattrs(id).unwrap();
        assert_eq!(attributes.len(), 1);
        assert_eq!(
            (attributes[0].full_name(), attributes[0].value.clone()),
            (Some(b"security.capability".to_vec()), capability.to_vec())
        );
        let stat = run("debugfs", &["-R", "stat /bin/ping", dir.join("root.ext4").to_str().unwrap()]);
        assert!(stat.contains("Mode:  04755") && stat.contains("mtime: 0x499602d2"), "{stat}");
    }

    #[test]
    fn size_is_applied_and_refused_if_too_small() {
        let fixture = Fixture::new();
        let big = vec![1; 100 << 20];
        let path = fixture.archive(&[("bin/big", Regular(&big))]);
        let (_, dir) = fixture.import_sized(&path, Some(2 << 30)).unwrap();
        assert_eq!(dir.join("root.ext4").metadata().unwrap().len(), 2 << 30);
        let error = fixture.import_sized(&path, Some(64 << 20)).unwrap_err();
        assert!(error.contains("requested size of 64 MiB"), "{error}");
    }

    #[test]
    fn hostile_archive_entries_are_refused() {
        let fixture = Fixture::new();
        let cases: [(&[(&str, TestEntry)], &str); 6] = [
            (&[("bin/../../etc/passwd", Regular(b"x"))], "name contains \"..\""),
            (&[("bin/a", Hard("nowhere"))], "a hard link to \"nowhere\""),
            (&[("bin", Regular(b"x")), ("bin/a", Regular(b"x"))], "not a directory"),
            (&[("bin/tty", Device('3', 5000, 0))], "device number"),
            (&[("a", Link("b")), ("b", Link("a")), ("a/c", Regular(b""))], "symbolic links"),
            (&[("bin/x", Device('Z', 0, 0))], "unsupported entry type"),
        ];
        for (entries, part) in cases {
            let error = fixture.import(&fixture.archive(entries)).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn file_with_too_many_hard_links_is_refused() {
        let fixture = Fixture::new();
        let path = fixture.archive(&[("bin/busybox", Regular(b"busybox"))]);
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(1024);
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Link);
        link.set_link_name("bin/busybox").unwrap();
        for number in 1..=65_000 {
            let name = format!("bin/{number}");
            link.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            link.set_cksum();
            bytes.extend(link.as_bytes());
            if number == 64_999 {
                fs::write(&path, [&bytes[..], &[0; 1024]].concat()).unwrap();
                let (_, dir) = fixture.import(&path).unwrap();
                let fs = Fs::open(File::open(dir.join("root.ext4")).unwrap()).unwrap();
                assert_eq!(fs.inode(fs.resolve("/bin/1").unwrap()).unwrap().links_count, 65_000);
            }
        }
        fs::write(&path, [&bytes[..], &[0; 1024]].concat()).unwrap();
        let error = fixture.import(&path).unwrap_err();
        assert!(error.contains("has more than 65000 hard links") && error.contains("\"bin/"), "{error}");
    }

    #[test]
    fn names_in_errors_are_escaped() {
        let fixture = Fixture::new();
        for entries in [
            [("bin/\x1b[2J", Regular(b"x")), ("bin/\x1b[2J/a", Regular(b"x"))],
            [("bin/a", Hard("\x1b[2J")), ("bin", Directory)],
            [("bin/\x1b[2J", Device('Z', 0, 0)), ("bin", Directory)],
        ] {
            let error = fixture.import(&fixture.archive(&entries)).unwrap_err();
            assert!(error.contains("\\u{1b}[2J") && !error.contains('\x1b'), "{error:?}");
        }
    }

    #[test]
    fn import_over_free_space_is_refused() {
        let fixture = Fixture::new();
        let room = || FreeSpace::measured_by(Path::new("/data"), |written| Ok(RESERVE + (4 << 20) - written));
        let (files, tar, raw, squashfs, qcow2) = (
            fixture.path("files"),
            fixture.path("root.tar"),
            fixture.path("raw"),
            fixture.path("squashfs"),
            fixture.path("qcow2"),
        );
        fs::create_dir_all(files.join("bin")).unwrap();
        let noise: Vec<u8> = (0..1_500_000u32).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_be_bytes()).collect();
        fs::write(files.join("bin/noise"), noise).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_string();
        run("tar", &["-cf", &text(&tar), "-C", &text(&files), "."]);
        run("mke2fs", &["-q", "-t", "ext4", "-d", &text(&files), &text(&raw), "32M"]);
        run("mksquashfs", &[&text(&files), &text(&squashfs), "-quiet"]);
        disk_image::convert(&raw, DiskFormat::Raw, &[], &qcow2, DiskFormat::Qcow2).unwrap();
        let error = fixture.import_with(&tar, None, room()).unwrap_err();
        assert!(error.contains("132 MiB are free, 128 MiB must stay free") && error.contains("takes 6 MiB"), "{error}");
        for source in [&raw, &squashfs, &qcow2] {
            let error = fixture.import_with(source, None, room()).unwrap_err();
            assert!(error.contains("/data has 128 MiB free, but 128 MiB are reserved"), "{error}");
            assert!(error.contains("WISP_HOME"), "{error}");
            fixture.import(source).unwrap();
        }
        // The sizes in the headers of a compressed archive are checked before any content is written.
        let bomb = fixture.path("bomb.tar.zst");
        let mut archive = tar::Builder::new(zstd::Encoder::new(File::create(&bomb).unwrap(), 1).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(8 << 40);
        archive.append_data(&mut header, "bin/zeroes", std::io::repeat(0).take(64 << 20)).unwrap();
        archive.into_inner().unwrap().finish().unwrap();
        let error = fixture.import_with(&bomb, None, room()).unwrap_err();
        assert!(error.contains("takes 8388608 MiB"), "{error}");
    }

    #[test]
    fn archive_over_memory_limit_is_refused() {
        let fixture = Fixture::new();
        let path = fixture.path("many.tar.zst");
        let mut writer = zstd::Encoder::new(File::create(&path).unwrap(), 1).unwrap();
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::GNULongLink);
        link.set_size(4000);
        link.set_cksum();
        let mut symlink = tar::Header::new_gnu();
        symlink.set_entry_type(tar::EntryType::Symlink);
        symlink.as_old_mut().name[..5].copy_from_slice(b"bin/a");
        symlink.set_cksum();
        let mut entry = [link.as_bytes(), &[b'x'; 4000][..]].concat();
        entry.resize(512 + 4096, 0);
        entry.extend(symlink.as_bytes());
        for _ in 0..5000 {
            writer.write_all(&entry).unwrap();
        }
        writer.finish().unwrap();
        let error = fixture.import(&path).unwrap_err();
        assert!(error.contains("up to \"bin/a\", take more than 32 MiB of memory"), "{error}");
    }

    #[test]
    fn other_archives_are_refused_with_reason() {
        let fixture = Fixture::new();
        for (name, part) in [("image.toml", "bundle"), ("oci-layout", "docker export"), ("holiday.jpg", "none of /bin")]
        {
            let error = fixture.import(&fixture.archive(&[(name, Regular(b"x"))])).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn truncated_archive_is_refused() {
        let fixture = Fixture::new();
        let path = fixture.archive(&systemd());
        let whole = fs::read(&path).unwrap();
        for length in [1500, 2048, whole.len() - 1024] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(fixture.import(&path).unwrap_err().contains("truncated"), "{length}");
        }
    }

    #[test]
    fn file_system_images_are_copied_unchanged_with_agent() {
        let fixture = Fixture::new();
        fs::create_dir(fixture.path("files")).unwrap();
        fs::write(fixture.path("files/a"), "a").unwrap();
        let (files, squashfs, ext4) = (fixture.path("files"), fixture.path("any"), fixture.path("name"));
        run("mksquashfs", &[files.to_str().unwrap(), squashfs.to_str().unwrap(), "-comp", "zstd", "-quiet"]);
        run("mke2fs", &["-q", "-t", "ext4", ext4.to_str().unwrap(), "8M"]);
        let (manifest, dir) = fixture.import(&squashfs).unwrap();
        assert_eq!(manifest.kernel.cmdline, "quiet rootfstype=squashfs");
        assert_eq!(fs::read(dir.join("root.squashfs")).unwrap(), fs::read(&squashfs).unwrap());
        assert!(manifest.initrd.is_some());
        let (manifest, dir) = fixture.import(&ext4).unwrap();
        assert_eq!(manifest.kernel.cmdline, "quiet rootfstype=ext4");
        assert_eq!(fs::read(dir.join("root.ext4")).unwrap(), fs::read(&ext4).unwrap());
    }

    #[test]
    fn qcow2_image_is_converted_unless_it_has_other_files() {
        let fixture = Fixture::new();
        let (raw, qcow2, layer) = (fixture.path("raw"), fixture.path("qcow2"), fixture.path("layer"));
        run("mke2fs", &["-q", "-t", "ext4", raw.to_str().unwrap(), "8M"]);
        disk_image::convert(&raw, DiskFormat::Raw, &[], &qcow2, DiskFormat::Qcow2).unwrap();
        let (manifest, dir) = fixture.import(&qcow2).unwrap();
        assert_eq!(manifest.root.unwrap().format, DiskFormat::Raw);
        assert_eq!(fs::read(dir.join("root.ext4")).unwrap(), fs::read(&raw).unwrap());

        disk_image::create_layer(&layer, &qcow2, DiskFormat::Qcow2, None).unwrap();
        let error = fixture.import(&layer).unwrap_err();
        assert!(error.contains("\"qcow2\"") && error.contains("standalone"), "{error}");

        let external = fixture.path("external");
        let data = format!("data_file={}", fixture.path("data").display());
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &data, external.to_str().unwrap(), "8M"]);
        assert!(fixture.import(&external).unwrap_err().contains("external file"));
    }

    #[test]
    fn partitioned_disk_is_refused_with_fix() {
        let fixture = Fixture::new();
        let (raw, qcow2) = (fixture.path("raw"), fixture.path("qcow2"));
        let mut disk = vec![0; 1 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(&raw, disk).unwrap();
        assert!(fixture.import(&raw).unwrap_err().contains("dd if="));
        disk_image::convert(&raw, DiskFormat::Raw, &[], &qcow2, DiskFormat::Qcow2).unwrap();
        let error = fixture.import(&qcow2).unwrap_err();
        assert!(error.contains("dd if=") && error.contains("qemu-img convert"), "{error}");
    }

    #[test]
    fn damaged_embedded_kernel_is_refused() {
        let fixture = Fixture::new();
        fs::write(fixture.path("embedded/vmlinux"), "other").unwrap();
        let error = fixture.import(&fixture.archive(&systemd())).unwrap_err();
        assert!(error.contains("vmlinux") && error.contains("damaged"), "{error}");
    }
}
