//! Fuzzing entry points for imports: manifests, bundles, and archives of root file systems.

use std::fs;

use super::image::Manifest;
use super::{bundle, import};

/// Parses `data` as a manifest and checks that its file names survive a round trip.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(manifest) = Manifest::parse(text) {
        assert!(manifest.files().all(|file| !file.contains('/') && file != ".."), "files are directly in the bundle");
        let again = Manifest::parse(&import::render(&manifest)).expect("a rendered manifest can be parsed");
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
    import::fuzzing::root(source, dir.path());
}
