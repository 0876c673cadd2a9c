//! Writes the bundle of `image.toml`, kernel and root file system: a tar archive, compressed with zstd.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::EPOCH;
use crate::inputs::hex;

/// Slow but small: a bundle is compressed once and read often.
const COMPRESSION_LEVEL: i32 = 19;
/// zstd's window as a power of two: 128 MiB, which all decoders accept by default.
const WINDOW_LOG: u32 = 27;

#[derive(Debug)]
pub struct Component<'a> {
    pub name: &'a str,
    pub version: &'a str,
    /// SPDX license identifier.
    pub license: &'a str,
    pub source: &'a str,
}

pub fn manifest(kernel: &Path, root: &Path, components: &[Component]) -> anyhow::Result<String> {
    let (kernel, root) = (sha256(kernel)?, sha256(root)?);
    let mut text = format!(
        r#"name = "tiny"
description = "Minimal Linux with busybox and the Wisp agent"
architecture = "x86_64"
default_user = "root"

[kernel]
file = "vmlinux"
sha256 = "{kernel}"
# no_prefetch_block_bitmaps: without it, a thread that reads all block groups keeps running in every restored guest.
# numdummies=0: do not create a dummy network interface.
cmdline = "quiet init=/sbin/wisp-init rootflags=no_prefetch_block_bitmaps dummy.numdummies=0"
# The 64-bit boot protocol passes a seed for the random number generator. PVH cannot.
protocol = "linux64"
software_kvm_aware = true

[root]
file = "root.ext4"
sha256 = "{root}"
format = "raw"
file_system = "ext4"
"#
    );
    for Component { name, version, license, source } in components {
        text.push_str(&format!(
            "\n[[component]]\nname = {name:?}\nversion = {version:?}\nlicense = {license:?}\nsource = {source:?}\n"
        ));
    }
    Ok(text)
}

/// Writes the archive and, next to it, its SHA-256. Returns the archive's size in bytes.
pub fn archive(output: &Path, manifest: &str, kernel: &Path, root: &Path) -> anyhow::Result<u64> {
    let file = File::create(output).with_context(|| output.display().to_string())?;
    let mut encoder = zstd::Encoder::new(file, COMPRESSION_LEVEL)?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.long_distance_matching(true)?;
    let mut archive = tar::Builder::new(encoder);
    append(&mut archive, "image.toml", manifest.len() as u64, manifest.as_bytes())?;
    for (name, path) in [("vmlinux", kernel), ("root.ext4", root)] {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        append(&mut archive, name, file.metadata()?.len(), file)?;
    }
    archive.into_inner()?.finish()?;
    fs::write(output.with_file_name("tiny.sha256"), format!("{}\n", sha256(output)?))?;
    Ok(fs::metadata(output)?.len())
}

fn append<W: io::Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    size: u64,
    content: impl Read,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o600);
    header.set_mtime(EPOCH as u64);
    header.set_cksum();
    Ok(archive.append(&header, content)?)
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hex(&hasher.finalize())),
            count => hasher.update(&block[..count]),
        }
    }
}
