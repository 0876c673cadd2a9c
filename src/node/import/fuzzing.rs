//! Fuzzing entry point for archives of root file systems.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::archive::TarFile;
use super::content::{Content, detect};
use super::ext4::{self, Shape};
use super::tree::{MEMORY_LIMIT, Tree};
use disk::space::FreeSpace;

/// Maximum disk usage in bytes. A header can claim far more than the archive contains.
const LARGEST: u64 = 64 << 20;

/// Imports `source` as an archive of a root file system, into a file in `dir`.
pub fn root(source: PathBuf, dir: &Path) {
    let Ok(file) = File::open(&source) else { return };
    let Ok(Content::Archive(compression)) = detect(&file) else { return };
    let archive = TarFile { path: source, file, compression };
    let mut tree = Tree::with_limit(0, MEMORY_LIMIT);
    let read = archive.entries(&(), &mut |entry| {
        let _ = entry.content().read(&mut [0; 64]);
        tree.add(entry).map_err(|error| entry.error(&archive.path, format!("{error:?}")))
    });
    if read.is_err() || ext4::usage(&tree).0 > LARGEST {
        return;
    }
    let Ok(plan) = ext4::plan(tree, &Shape { uuid: [1; 16], made: 0, size: None }) else { return };
    let path = dir.join("root");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
    let _ = plan.write(&archive, &file.expect("a file"), &path, &FreeSpace::unwatched(), &());
}
