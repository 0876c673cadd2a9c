//! The image `tiny`, which is embedded in the program: a kernel and a root file system, unpacked on first use.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::bundle;
use super::image::MANIFEST;
use super::import::ImportError;
use crate::home::{Home, HomeError, private_file};
use disk::space::FreeSpace;
use disk::sparse;
use ec2::id::ImageId;

pub const NAME: &str = "tiny";

/// The bundle as stored in `images/tiny` (a tar archive compressed with zstd), and its SHA-256.
const ARCHIVE: &[u8] = include_bytes!("../../images/tiny/tiny.tar.zst");
const ARCHIVE_SHA256: &str = include_str!("../../images/tiny/tiny.sha256");

/// Name prefix of temporary directories for unpacking.
pub(super) const UNFINISHED: &str = ".unpacking-";

#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("cannot unpack the embedded image to {}: {source}", dir.display())]
    Unpack { dir: PathBuf, source: io::Error },
    #[error("the embedded image is damaged ({0}): rebuild or reinstall wisp")]
    Damaged(String),
}

/// Returns the image's ID. It is derived from the archive's SHA-256, so a changed image has a new ID.
pub fn id() -> ImageId {
    let digits = &ARCHIVE_SHA256.trim()[..17];
    format!("ami-{digits}").parse().expect("the first 17 digits of a SHA-256 form an ID")
}

/// Unpacks the image unless that has been done, and returns its directory. Several processes may call this at once.
pub fn unpacked(home: &Home) -> Result<PathBuf, EmbeddedError> {
    let dir = home.images().join(id().to_string());
    if dir.join(MANIFEST).is_file() {
        return Ok(dir);
    }
    // One process unpacks the image while the others wait for the lock.
    let _lock = home.lock(&home.images())?;
    if !dir.join(MANIFEST).is_file() {
        unpack(&home.images(), &dir)?;
    }
    Ok(dir)
}

fn unpack(images: &Path, dir: &Path) -> Result<(), EmbeddedError> {
    let failed = |source| EmbeddedError::Unpack { dir: dir.to_path_buf(), source };
    remove_unfinished(images).map_err(failed)?;
    let private = fs::Permissions::from_mode(0o700);
    let scratch =
        tempfile::Builder::new().prefix(UNFINISHED).permissions(private).tempdir_in(images).map_err(failed)?;
    unpack_archive(ARCHIVE, scratch.path()).map_err(failed)?;
    verify(scratch.path())?;
    // A rename is atomic, so the final name never refers to an incomplete image.
    fs::rename(scratch.path(), dir).map_err(failed)?;
    // The directory has been moved, so `TempDir` must not remove it.
    let _ = scratch.keep();
    Ok(())
}

/// Removes directories that killed processes left behind. The caller holds the lock, so none of them is in use.
pub(super) fn remove_unfinished(images: &Path) -> io::Result<()> {
    for entry in fs::read_dir(images)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn unpack_archive(archive: &[u8], dir: &Path) -> io::Result<()> {
    let mut entries = tar::Archive::new(zstd::Decoder::new(archive)?);
    for entry in entries.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let name = path.file_name().filter(|_| path.components().count() == 1);
        let name = name.ok_or_else(|| io::Error::other(format!("{} is not a plain file name", path.display())))?;
        let file = private_file(&dir.join(name))?;
        sparse::write_stream(&mut entry, &file, u64::MAX, &FreeSpace::unwatched())?;
    }
    Ok(())
}

fn verify(dir: &Path) -> Result<(), EmbeddedError> {
    let damaged = |error: ImportError| EmbeddedError::Damaged(error.to_string());
    for verified in bundle::verify(dir, &()).map_err(damaged)? {
        verified.result.map_err(damaged)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn archive_matches_digest_in_image_id() {
        assert_eq!(sparse::hex(&Sha256::digest(ARCHIVE)), ARCHIVE_SHA256.trim());
    }

    #[test]
    fn concurrent_unpacks_all_find_complete_image() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| verify(&unpacked(&home).unwrap()).unwrap());
            }
        });
        let left: Vec<_> = fs::read_dir(home.images()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "the image and the lock, not {left:?}");
    }

    #[test]
    fn unfinished_directory_of_killed_process_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        let left = home.images().join(format!("{UNFINISHED}abc"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("vmlinux"), "half").unwrap();
        unpacked(&home).unwrap();
        assert!(!left.exists());
    }
}
