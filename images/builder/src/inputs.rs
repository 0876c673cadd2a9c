//! Computes a digest of everything in the repository that the embedded image is built from.
//!
//! The builder writes it next to the bundle, and a test compares it with the repository. A change to the agent, the
//! kernel's configuration or patches, or the recipe fails that test until the bundle is rebuilt.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Input files and directories, relative to the repository's root.
const INPUTS: [&str; 9] = [
    "images/agent/Cargo.toml",
    "images/agent/src",
    "images/builder/Cargo.toml",
    "images/builder/src",
    "images/dropbear",
    "images/kernel/build",
    "images/kernel/config",
    "images/kernel/patches",
    "images/tiny/files",
];

/// Returns the SHA-256, in hexadecimal, of the names and contents of all inputs in `repository`.
pub fn digest(repository: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    for input in INPUTS {
        let mut files = Vec::new();
        collect(&repository.join(input), &mut files)?;
        files.sort();
        for file in files {
            let name = file.strip_prefix(repository).map_err(io::Error::other)?;
            let content = fs::read(&file)?;
            hasher.update(format!("{}\0{}\0", name.display(), content.len()));
            hasher.update(&content);
        }
    }
    Ok(hex(&hasher.finalize()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
