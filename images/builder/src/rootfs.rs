//! Root file system of `tiny`: ext4 with a journal. Contains busybox, dropbear, wisp-init and some configuration files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use mkext4::sink::FileSink;
use mkext4::{FsBuilder, InodeHandle, Meta, Options, ROOT};

use crate::EPOCH;

/// UUID of the file system, fixed so that the build is reproducible.
const UUID: [u8; 16] = *b"wisp-tiny-rootfs";
/// Journal size in blocks of 4 KiB, the minimum for ext4.
const JOURNAL_BLOCKS: u32 = 1024;

/// Contents of the file system. All executables are static.
#[derive(Debug)]
pub struct Rootfs {
    pub busybox: PathBuf,
    pub dropbear: PathBuf,
    pub dropbear_license: PathBuf,
    pub init: PathBuf,
    /// Directory of files to copy into the root, such as `etc/passwd`.
    pub files: PathBuf,
    /// Size of the file system. Unused space takes no disk space.
    pub size_mib: u64,
}

const DIRECTORIES: [&str; 12] =
    ["/dev", "/proc", "/sys", "/run", "/mnt", "/opt", "/srv", "/home", "/var", "/var/log", "/var/lib", "/usr"];

impl Rootfs {
    pub fn write(&self, image: &Path) -> anyhow::Result<()> {
        let mut options = Options::new(self.size_mib << 20, UUID, EPOCH);
        options.label = Some("tiny".into());
        options.journal_blocks = Some(JOURNAL_BLOCKS);
        options.reserved_percent = 0;
        let mut tree = Tree { builder: FsBuilder::new(options)?, directories: vec![("/".into(), ROOT)], files: vec![] };
        for path in DIRECTORIES {
            tree.directory(path, 0o755)?;
        }
        for (path, mode) in [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/root", 0o700)] {
            tree.directory(path, mode)?;
        }
        tree.file("/bin/busybox", 0o755, &self.busybox)?;
        tree.file("/usr/sbin/dropbear", 0o755, &self.dropbear)?;
        tree.file("/usr/share/licenses/dropbear", 0o644, &self.dropbear_license)?;
        tree.file("/sbin/wisp-init", 0o755, &self.init)?;
        for applet in applets(&self.busybox)? {
            tree.symlink(&format!("/{applet}"), "/bin/busybox")?;
        }
        tree.symlink("/sbin/init", "/sbin/wisp-init")?;
        // wisp-init writes the file for the guest's network.
        tree.symlink("/etc/resolv.conf", "/run/resolv.conf")?;
        tree.copy_directory(&self.files)?;
        tree.seal(image)
    }
}

/// Returns the paths of busybox's applets, except its init.
fn applets(busybox: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(busybox).arg("--list-full").output().context("busybox --list-full")?;
    let mut applets: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_string).collect();
    // This image's init is wisp-init, not busybox's.
    applets.retain(|path| !matches!(path.as_str(), "bin/busybox" | "sbin/init" | "linuxrc" | "init"));
    applets.sort();
    if applets.len() < 100 {
        bail!("{} lists only {} applets: specify a complete busybox binary", busybox.display(), applets.len());
    }
    Ok(applets)
}

struct Tree {
    builder: FsBuilder,
    directories: Vec<(String, InodeHandle)>,
    files: Vec<(InodeHandle, PathBuf)>,
}

impl Tree {
    fn meta(mode: u16) -> Meta {
        Meta::new(mode, 0, 0, (EPOCH, 0))
    }

    /// Returns the directory. Creates it and its parents if necessary.
    fn directory(&mut self, path: &str, mode: u16) -> anyhow::Result<InodeHandle> {
        if let Some((_, handle)) = self.directories.iter().find(|(known, _)| known == path) {
            return Ok(*handle);
        }
        let (parent, name) = self.parent(path)?;
        let handle = self.builder.mkdir(parent, name, Self::meta(mode))?;
        self.directories.push((path.to_string(), handle));
        Ok(handle)
    }

    fn parent<'a>(&mut self, path: &'a str) -> anyhow::Result<(InodeHandle, &'a str)> {
        let (parent, name) = path.rsplit_once('/').context("the path must begin with a slash")?;
        let parent = if parent.is_empty() { "/" } else { parent };
        Ok((self.directory(parent, 0o755)?, name))
    }

    fn file(&mut self, path: &str, mode: u16, source: &Path) -> anyhow::Result<()> {
        let size = fs::metadata(source).with_context(|| source.display().to_string())?.len();
        let (parent, name) = self.parent(path)?;
        let handle = self.builder.file(parent, name, Self::meta(mode), size)?;
        self.files.push((handle, source.to_path_buf()));
        Ok(())
    }

    fn symlink(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        let (parent, name) = self.parent(path)?;
        self.builder.symlink(parent, name, target, Self::meta(0o777))?;
        Ok(())
    }

    fn copy_directory(&mut self, dir: &Path) -> anyhow::Result<()> {
        let mut pending = vec![dir.to_path_buf()];
        let mut files = Vec::new();
        while let Some(current) = pending.pop() {
            for entry in fs::read_dir(&current).with_context(|| current.display().to_string())? {
                let path = entry?.path();
                if path.is_dir() { pending.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        for source in files {
            let path = format!("/{}", source.strip_prefix(dir)?.display());
            self.file(&path, 0o644, &source)?;
        }
        Ok(())
    }

    fn seal(self, image: &Path) -> anyhow::Result<()> {
        let layout = self.builder.seal()?;
        let mut sink = FileSink::create(image, layout.image_len())?;
        let mut writer = layout.writer(&mut sink)?;
        for (handle, source) in self.files {
            writer.fill(handle, &mut io::BufReader::new(File::open(&source)?))?;
        }
        writer.finish()?;
        Ok(())
    }
}
