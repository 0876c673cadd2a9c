//! Fuzzing entry points for imports: manifests, bundles, and archives of root file systems.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::archive::TarFile;
use super::content::{Content, detect};
use super::ext4::{self, Shape};
use super::tree::{MEMORY_LIMIT, Tree};
use crate::bundle;
use crate::image::Manifest;
use disk::space::FreeSpace;

/// Maximum disk usage in bytes. A header can claim far more than the archive contains.
const LARGEST: u64 = 64 << 20;

/// Parses `data` as a manifest and checks that its file names survive a round trip.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(manifest) = Manifest::parse(text) {
        assert!(manifest.files().all(|file| !file.contains('/') && file != ".."), "files are directly in the bundle");
        let again = Manifest::parse(&super::render(&manifest)).expect("a rendered manifest can be parsed");
        assert_eq!(again.files().collect::<Vec<_>>(), manifest.files().collect::<Vec<_>>());
    }
}

/// Imports `data` as a bundle and as a root file system, and checks that nothing is left outside the destination.
pub fn archive(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let (source, into) = (dir.path().join("source"), dir.path().join("into"));
    fs::write(&source, data).expect("a file");
    fs::create_dir(&into).expect("a directory");
    let _ = bundle::is_one(&source);
    if bundle::import_bundle(&source, &into, "", &()).is_err() {
        assert!(fs::read_dir(&into).expect("a directory").next().is_none(), "a failed import leaves no files");
    }
    let names: Vec<_> =
        fs::read_dir(dir.path()).expect("a directory").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names.len(), 2, "an import writes nothing outside its directory: {names:?}");
    let Ok(file) = File::open(&source) else { return };
    if let Ok(Content::Archive(compression)) = detect(&file) {
        root(&TarFile { path: source, file, compression }, dir.path());
    }
}

fn root(archive: &TarFile, dir: &Path) {
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
    let _ = plan.write(archive, &file.expect("a file"), &path, &FreeSpace::unwatched(), &());
}
