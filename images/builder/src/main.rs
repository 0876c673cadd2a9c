//! Builds the embedded image from a kernel and static programs. `scripts/rebuild-images` calls it.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use wisp_image_builder::bundle::{self, Component};
use wisp_image_builder::inputs;
use wisp_image_builder::rootfs::Rootfs;

/// Build the embedded image (images/tiny).
#[derive(Debug, Parser)]
struct Args {
    /// Repository directory.
    #[arg(long, default_value = ".")]
    repository: PathBuf,
    /// Kernel (ELF vmlinux).
    #[arg(long)]
    kernel: PathBuf,
    /// Kernel release and source package version.
    #[arg(long)]
    kernel_version: String,
    /// Static busybox binary.
    #[arg(long)]
    busybox: PathBuf,
    /// Version of the busybox package.
    #[arg(long)]
    busybox_version: String,
    /// Static dropbear binary.
    #[arg(long)]
    dropbear: PathBuf,
    /// License text of dropbear, to include in the image.
    #[arg(long)]
    dropbear_license: PathBuf,
    /// Version of dropbear's source package.
    #[arg(long)]
    dropbear_version: String,
    /// Static wisp-init binary.
    #[arg(long)]
    init: PathBuf,
}

/// Size of the root file system, with space for experiments. Unused space takes no disk space.
const ROOT_MIB: u64 = 256;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let tiny = args.repository.join("images/tiny");
    let scratch = tiny.join("scratch");
    fs::create_dir_all(&scratch)?;
    let root = scratch.join("root.ext4");
    let rootfs = Rootfs {
        busybox: args.busybox,
        dropbear: args.dropbear,
        dropbear_license: args.dropbear_license,
        init: args.init,
        files: tiny.join("files"),
        size_mib: ROOT_MIB,
    };
    rootfs.write(&root).context("cannot build the root file system")?;
    let components = [
        Component {
            name: "Linux",
            version: &args.kernel_version,
            license: "GPL-2.0-only",
            source: "Debian package linux-source-6.12, with the configuration and patches in images/kernel",
        },
        Component {
            name: "busybox",
            version: &args.busybox_version,
            license: "GPL-2.0-only",
            source: "Debian package busybox-static, source package busybox",
        },
        Component {
            name: "dropbear",
            version: &args.dropbear_version,
            license: "MIT",
            source: "Debian source package dropbear, with the options in images/dropbear; its license is in the image",
        },
        Component {
            name: "wisp-init",
            version: env!("CARGO_PKG_VERSION"),
            license: "Apache-2.0",
            source: "images/agent in Wisp's repository; linked with the GNU C library (LGPL-2.1-or-later)",
        },
    ];
    let manifest = bundle::manifest(&args.kernel, &root, &components)?;
    let size = bundle::archive(&tiny.join("tiny.tar.zst"), &manifest, &args.kernel, &root)?;
    fs::write(tiny.join("inputs.sha256"), format!("{}\n", inputs::digest(&args.repository)?))?;
    fs::remove_dir_all(&scratch)?;
    println!("images/tiny/tiny.tar.zst: {size} bytes");
    Ok(())
}
