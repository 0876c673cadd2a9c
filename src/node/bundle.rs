//! Import, verification and export of image bundles.
//!
//! A bundle is a directory with `image.toml`, and at its top level the files that `image.toml` names. A bundle archive
//! is a tar archive of these files, plain or compressed with gzip or zstd.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use super::image::{Image, ImageError, MANIFEST, MANIFEST_LIMIT, Manifest};
use super::import::{
    ArchiveEntry, Content, HEAD, ImportError, ImportProgress, LARGEST_FILE, Landing, TarFile, detect, open_regular,
    unsupported,
};
use disk::{disk_image, sparse};
use machine::config::DiskFormat;

/// Maximum size of a kernel or an initramfs in bytes. The limit for a root file system is [`LARGEST_FILE`].
const LARGEST_BOOT_FILE: u64 = 4 << 30;
/// zstd's default, which is faster than most disks.
const COMPRESSION_LEVEL: i32 = 3;

#[derive(Debug)]
pub struct Verified {
    pub file: String,
    /// The error describes the mismatch.
    pub result: Result<(), ImportError>,
}

/// Returns true for a bundle: a directory, or an archive whose manifest precedes any entry that a bundle cannot
/// contain. If `source` is neither a bundle nor a root file system, the import reports what it is.
pub fn is_one(source: &Path) -> Result<bool, ImportError> {
    if source.metadata().map_err(ImportError::read(source))?.is_dir() {
        return Ok(true);
    }
    let file = open_regular(source, true)?;
    let Content::Archive(compression) = detect(&file).map_err(ImportError::read(source))? else { return Ok(false) };
    let mut found = false;
    let archive = TarFile { path: source.to_path_buf(), file, compression };
    // The visitor returns an error to stop at the first decisive entry. Other errors are left for the import to report.
    let _ = archive.entries(&(), &mut |entry| match file_name(entry) {
        Ok(name) if name.as_deref() != Some(MANIFEST) => Ok(()),
        result => {
            found = result.is_ok();
            Err(entry.error(source, "which determines the archive's type"))
        }
    });
    Ok(found)
}

/// Copies the bundle in `source`, a directory or an archive, into the empty directory `into`, and checks its digests.
///
/// If the bundle's kernel is the embedded one (SHA-256 `embedded_kernel`), refuses a root file system that this kernel
/// cannot mount. For other kernels, it is unknown which file systems they can mount.
pub fn import_bundle(
    source: &Path,
    into: &Path,
    embedded_kernel: &str,
    progress: &dyn ImportProgress,
) -> Result<Manifest, ImportError> {
    import_into(Landing::new(into)?, source, embedded_kernel, progress)
}

fn import_into(
    landing: Landing,
    source: &Path,
    embedded_kernel: &str,
    progress: &dyn ImportProgress,
) -> Result<Manifest, ImportError> {
    let kind = source.metadata().map_err(ImportError::read(source))?;
    let (text, manifest) = if kind.is_dir() {
        copy_directory(source, &landing, progress)?
    } else {
        let file = open_regular(source, true)?;
        match detect(&file).map_err(ImportError::read(source))? {
            Content::Archive(compression) => {
                let archive = TarFile { path: source.to_path_buf(), file, compression };
                unpack(&archive, &landing, progress)?
            }
            Content::Other(reason) => return Err(ImportError::unusable(source, reason)),
            Content::FileSystem(_) | Content::Qcow2 => {
                let reason = "it is a root file system, not a bundle: it has no kernel and no manifest";
                return Err(ImportError::unusable(source, reason));
            }
        }
    };
    if let Some(root) = &manifest.root {
        let path = landing.path(&root.file);
        let mut head = vec![0; HEAD];
        let failed = ImportError::read(&path);
        let count = match root.format {
            // `open_alone` refuses an image with a backing file, because that could be any file on the host.
            DiskFormat::Qcow2 => {
                let image = disk_image::open_alone(&path)?;
                let count = image.size().min(HEAD as u64) as usize;
                image.read(&mut head[..count], 0).map_err(failed)?;
                count
            }
            DiskFormat::Raw => sparse::read_full(&mut open_regular(&path, false)?, &mut head).map_err(failed)?,
        };
        if manifest.kernel.sha256.eq_ignore_ascii_case(embedded_kernel)
            && let Some(reason) = unsupported(&head[..count])
        {
            return Err(ImportError::unusable(&source.join(&root.file), reason));
        }
    }
    landing.keep(&text)?;
    Ok(manifest)
}

pub fn verify(dir: &Path, progress: &dyn ImportProgress) -> Result<Vec<Verified>, ImportError> {
    let manifest = parse_manifest(dir, &read_manifest(dir)?)?;
    let check = |file: &str, expected: &str| {
        let path = dir.join(file);
        let content = open_regular(&path, false)?;
        progress.begin(file, content.metadata().map_err(ImportError::read(&path))?.len());
        let found = sparse::sha256(&content, &|count| progress.advance(count)).map_err(ImportError::read(&path))?;
        compare(dir, file, expected, found)
    };
    let files = manifest.digests();
    Ok(files.map(|(file, expected)| Verified { file: file.into(), result: check(file, expected) }).collect())
}

/// Writes the bundle to the new `.tar` or `.tar.zst` file `destination` with mode 0600. On success the archive is
/// durable; a failed export leaves no file. Fails if a file in the bundle does not match its digest.
pub fn export(dir: &Path, destination: &Path, progress: &dyn ImportProgress) -> Result<(), ImportError> {
    let name = destination.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let compressed = name.ends_with(".tar.zst");
    if !compressed && !name.ends_with(".tar") {
        return Err(ImportError::unusable(destination, "the file name must end with .tar or .tar.zst"));
    }
    if destination.symlink_metadata().is_ok() {
        return Err(ImportError::Exists(destination.to_path_buf()));
    }
    for verified in verify(dir, progress)? {
        verified.result?;
    }
    let parent = destination.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let failed = ImportError::write(destination);
    let scratch = NamedTempFile::new_in(parent).map_err(&failed)?;
    let manifest = Image::open(dir)?.manifest;
    let files: Vec<&str> = std::iter::once(MANIFEST).chain(manifest.files()).collect();
    if compressed {
        let mut encoder = zstd::Encoder::new(scratch.as_file(), COMPRESSION_LEVEL).map_err(&failed)?;
        write_archive(&mut encoder, dir, &files, progress)?;
        encoder.finish().map_err(&failed)?;
    } else {
        write_archive(&mut scratch.as_file(), dir, &files, progress)?;
    }
    scratch.as_file().sync_all().map_err(&failed)?;
    scratch.persist_noclobber(destination).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => ImportError::Exists(destination.to_path_buf()),
        _ => failed(error.error),
    })?;
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(&failed)
}

fn write_archive(
    output: &mut dyn Write,
    dir: &Path,
    files: &[&str],
    progress: &dyn ImportProgress,
) -> Result<(), ImportError> {
    let mut archive = tar::Builder::new(output);
    // Leaves out the files' owners and times on this host.
    archive.mode(tar::HeaderMode::Deterministic);
    for file in files {
        let path = dir.join(file);
        let mut content = open_regular(&path, false)?;
        let length = content.metadata().map_err(ImportError::read(&path))?.len();
        progress.begin(file, length);
        archive.append_file(file, &mut content).map_err(ImportError::read(&path))?;
        progress.advance(length);
    }
    archive.finish().map_err(ImportError::read(dir))
}

fn copy_directory(
    source: &Path,
    landing: &Landing,
    progress: &dyn ImportProgress,
) -> Result<(String, Manifest), ImportError> {
    let text = read_manifest(source)?;
    let manifest = parse_manifest(source, &text)?;
    for (file, expected) in manifest.digests() {
        let path = source.join(file);
        let content = open_regular(&path, false).map_err(|error| match error {
            ImportError::Read { source: cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
                ImageError::MissingFile { dir: source.to_path_buf(), file: file.into() }.into()
            }
            other => other,
        })?;
        let length = content.metadata().map_err(ImportError::read(&path))?.len();
        if length > largest(&manifest, file) {
            return Err(ImportError::unusable(&path, format!("it is larger than {} bytes", largest(&manifest, file))));
        }
        progress.begin(file, length);
        let copied =
            sparse::copy(&content, &landing.create(file)?, length, &landing.space, &|count| progress.advance(count));
        compare(source, file, expected, copied.map_err(ImportError::write(&landing.path(file)))?)?;
    }
    Ok((text, manifest))
}

fn unpack(
    archive: &TarFile,
    landing: &Landing,
    progress: &dyn ImportProgress,
) -> Result<(String, Manifest), ImportError> {
    let length = archive.file.metadata().map_err(ImportError::read(&archive.path))?.len();
    progress.begin("unpacking the bundle", length);
    let mut manifest: Option<(String, Manifest)> = None;
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    archive.entries(progress, &mut |entry| {
        let Some(name) = file_name(entry).map_err(|reason| entry.error(&archive.path, reason))? else { return Ok(()) };
        if name == MANIFEST {
            if manifest.is_some() {
                return Err(entry.error(&archive.path, "which appears twice"));
            }
            let text = manifest_text(&archive.path, entry)?;
            manifest = Some((text.clone(), parse_manifest(&archive.path, &text)?));
            return Ok(());
        }
        let limit = match &manifest {
            Some((_, manifest)) if !manifest.files().any(|file| file == name) => {
                return Err(entry.error(&archive.path, format!("which is not listed in {MANIFEST}")));
            }
            Some((_, manifest)) => largest(manifest, &name),
            // Limits the files that are unpacked before the manifest is known. A manifest names at most three files.
            None if found.len() >= 8 => {
                let reason = format!("which follows eight other files but is before its {MANIFEST}");
                return Err(entry.error(&archive.path, reason));
            }
            None => LARGEST_FILE,
        };
        if entry.size > limit {
            return Err(entry.error(&archive.path, format!("which is larger than {limit} bytes")));
        }
        if found.contains_key(&name) {
            return Err(entry.error(&archive.path, "which appears twice"));
        }
        let file = landing.create(&name)?;
        let written = sparse::write_stream(&mut entry.content(), &file, limit, &landing.space);
        found.insert(name.clone(), written.map_err(|error| stream_error(error, archive, landing, &name))?);
        Ok(())
    })?;
    let missing = || io::Error::new(io::ErrorKind::NotFound, "it is not in the archive");
    let (text, manifest) =
        manifest.ok_or_else(|| ImageError::NoManifest { dir: archive.path.clone(), source: missing() })?;
    for (file, expected) in manifest.digests() {
        let missing = || ImageError::MissingFile { dir: archive.path.clone(), file: file.into() };
        compare(&archive.path, file, expected, found.remove(file).ok_or_else(missing)?)?;
    }
    if let Some((name, _)) = found.pop_first() {
        let reason = format!("which is not listed in {MANIFEST}");
        return Err(ImportError::Entry { path: archive.path.clone(), entry: name, reason });
    }
    Ok((text, manifest))
}

/// Attributes a copy error to the destination if its file system is full, and to the archive otherwise.
fn stream_error(error: io::Error, archive: &TarFile, landing: &Landing, name: &str) -> ImportError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ImportError::write(&landing.path(name))(error),
        _ => ImportError::BadArchive { path: archive.path.clone(), reason: format!("{name:?}: {error}") },
    }
}

/// Returns the name of a top-level regular file, or `None` for the bundle's directory. The error is a relative clause,
/// such as "which is not a regular file".
fn file_name(entry: &ArchiveEntry) -> Result<Option<String>, String> {
    use tar::EntryType::{Continuous, Directory, GNUSparse, Regular};
    let name = std::str::from_utf8(&entry.name).map_err(|_| "whose name is not valid UTF-8")?;
    let plain = name.strip_prefix("./").unwrap_or(name);
    match entry.kind {
        Directory if plain.is_empty() || plain == "." => Ok(None),
        Regular | Continuous | GNUSparse => {
            if plain.is_empty() || plain.contains(['/', '\0']) || plain == "." || plain == ".." {
                return Err("which is not at the top level: create the archive with `tar -C BUNDLE -cf FILE .`".into());
            }
            Ok(Some(plain.to_string()))
        }
        _ => Err("which is not a regular file: a bundle can contain only regular files".into()),
    }
}

fn largest(manifest: &Manifest, file: &str) -> u64 {
    if manifest.root.as_ref().is_some_and(|root| root.file == file) { LARGEST_FILE } else { LARGEST_BOOT_FILE }
}

fn read_manifest(dir: &Path) -> Result<String, ImportError> {
    let path = dir.join(MANIFEST);
    let file = open_regular(&path, false).map_err(|error| match error {
        ImportError::Read { source, .. } => ImageError::NoManifest { dir: dir.to_path_buf(), source }.into(),
        other => other,
    })?;
    let mut text = String::new();
    file.take(MANIFEST_LIMIT + 1).read_to_string(&mut text).map_err(ImportError::read(&path))?;
    Ok(text)
}

fn manifest_text(archive: &Path, entry: &mut ArchiveEntry) -> Result<String, ImportError> {
    if entry.size > MANIFEST_LIMIT {
        return Err(entry.error(archive, format!("which is larger than {MANIFEST_LIMIT} bytes")));
    }
    let mut text = String::new();
    entry.content().read_to_string(&mut text).map_err(ImportError::read(archive))?;
    Ok(text)
}

fn parse_manifest(source: &Path, text: &str) -> Result<Manifest, ImportError> {
    let bad = |reason| ImageError::BadManifest { path: source.join(MANIFEST), reason };
    if text.len() as u64 > MANIFEST_LIMIT {
        return Err(bad(format!("it is larger than {MANIFEST_LIMIT} bytes")).into());
    }
    Ok(Manifest::parse(text).map_err(bad)?)
}

fn compare(bundle: &Path, file: &str, expected: &str, found: String) -> Result<(), ImportError> {
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    let (bundle, file, expected) = (bundle.to_path_buf(), file.to_string(), expected.to_string());
    Err(ImportError::Damaged { bundle, file, expected, found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::testing::run;
    use disk::space::{FreeSpace, RESERVE};
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    const ROOT_SIZE: usize = 3 << 20;

    /// A bundle with a kernel and a root file system that consists mostly of holes.
    struct Bundle {
        dir: tempfile::TempDir,
    }

    fn sha256(bytes: &[u8]) -> String {
        sparse::write_stream(&mut &*bytes, &tempfile::tempfile().unwrap(), u64::MAX, &FreeSpace::unwatched()).unwrap()
    }

    fn root() -> Vec<u8> {
        let mut root = vec![0; ROOT_SIZE];
        root[2 << 20..][..5000].fill(7);
        root
    }

    fn manifest() -> String {
        let (kernel, root) = (sha256(b"kernel"), sha256(&root()));
        format!(
            "# A comment that stays.\nname = \"test\"\narchitecture = \"x86_64\"\ndefault_user = \"root\"\n\
             [kernel]\nfile = \"vmlinux\"\nsha256 = \"{kernel}\"\n\
             [root]\nfile = \"root.ext4\"\nsha256 = \"{root}\"\nformat = \"raw\"\nfile_system = \"ext4\"\n"
        )
    }

    fn bundle() -> Bundle {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MANIFEST), manifest()).unwrap();
        fs::write(dir.path().join("vmlinux"), "kernel").unwrap();
        let file = File::create(dir.path().join("root.ext4")).unwrap();
        sparse::write_stream(&mut root().as_slice(), &file, u64::MAX, &FreeSpace::unwatched()).unwrap();
        Bundle { dir }
    }

    impl Bundle {
        fn path(&self) -> &Path {
            self.dir.path()
        }
    }

    fn archive(entries: &[(&str, tar::EntryType, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut builder = tar::Builder::new(file.as_file());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.finish().unwrap();
        drop(builder);
        file
    }

    /// Imports a bundle. If that fails, checks that the destination is empty.
    fn import(source: &Path) -> Result<(Manifest, tempfile::TempDir), String> {
        let into = tempfile::tempdir().unwrap();
        match import_bundle(source, into.path(), "", &()) {
            Ok(manifest) => Ok((manifest, into)),
            Err(error) => {
                assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0, "{error}");
                Err(error.to_string())
            }
        }
    }

    fn refused(entries: &[(&str, tar::EntryType, &[u8])]) -> String {
        import(archive(entries).path()).unwrap_err()
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;

    #[test]
    fn directory_import_is_complete_sparse_and_private() {
        let bundle = bundle();
        fs::write(bundle.path().join("README"), "not of the bundle").unwrap();
        let (imported, into) = import(bundle.path()).unwrap();
        assert_eq!(imported.name, "test");
        assert_eq!(fs::read_to_string(into.path().join(MANIFEST)).unwrap(), manifest());
        assert_eq!(fs::read(into.path().join("root.ext4")).unwrap(), root());
        assert!(into.path().join("root.ext4").metadata().unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 3);
        for entry in fs::read_dir(into.path()).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn export_and_import_round_trip_in_every_compression() {
        let bundle = bundle();
        let out = tempfile::tempdir().unwrap();
        for name in ["image.tar", "image.tar.zst"] {
            let path = out.path().join(name);
            export(bundle.path(), &path, &()).unwrap();
            let metadata = path.metadata().unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            assert!(metadata.len() < 100 << 10, "holes take {} bytes", metadata.len());
            let (_, into) = import(&path).unwrap();
            assert_eq!(fs::read(into.path().join("root.ext4")).unwrap(), root());
            assert!(matches!(export(bundle.path(), &path, &()), Err(ImportError::Exists(_))));
        }
        let gzip = out.path().join("any name");
        let mut encoder = flate2::write::GzEncoder::new(File::create(&gzip).unwrap(), flate2::Compression::fast());
        encoder.write_all(&fs::read(out.path().join("image.tar")).unwrap()).unwrap();
        encoder.finish().unwrap();
        import(&gzip).unwrap();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 3, "nothing half written");
    }

    #[test]
    fn archive_files_are_accepted_in_any_order() {
        let file = archive(&[
            ("./", tar::EntryType::Directory, b""),
            ("./vmlinux", FILE, b"kernel"),
            ("root.ext4", FILE, &root()),
            (MANIFEST, FILE, manifest().as_bytes()),
        ]);
        import(file.path()).unwrap();
    }

    #[test]
    fn damaged_file_is_refused_with_both_digests() {
        let bundle = bundle();
        fs::write(bundle.path().join("vmlinux"), "kernal").unwrap();
        let error = import(bundle.path()).unwrap_err();
        for part in ["vmlinux", &sha256(b"kernel"), &sha256(b"kernal")] {
            assert!(error.contains(part), "{error}");
        }
        let results: Vec<_> =
            verify(bundle.path(), &()).unwrap().into_iter().map(|file| (file.file, file.result.is_ok())).collect();
        assert_eq!(results, [("vmlinux".to_string(), false), ("root.ext4".to_string(), true)]);
        let out = bundle.path().join("out.tar");
        assert!(matches!(export(bundle.path(), &out, &()), Err(ImportError::Damaged { .. })));
        assert!(!out.exists());
    }

    #[test]
    fn archive_paths_outside_bundle_are_refused() {
        for name in ["../vmlinux", "/etc/passwd", "a/vmlinux", "..", "./../x"] {
            let error = refused(&[(MANIFEST, FILE, manifest().as_bytes()), (name, FILE, b"kernel")]);
            assert!(error.contains("not at the top level"), "{name}: {error}");
        }
    }

    #[test]
    fn links_devices_and_directories_are_refused() {
        use tar::EntryType;
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Fifo, EntryType::Directory] {
            let error = refused(&[("vmlinux", kind, b"")]);
            assert!(error.contains("not a regular file"), "{kind:?}: {error}");
        }
        let bundle = bundle();
        let kernel = bundle.path().join("vmlinux");
        fs::rename(&kernel, bundle.path().join("other")).unwrap();
        symlink("other", &kernel).unwrap();
        assert!(import(bundle.path()).unwrap_err().contains("symbolic link"));
    }

    #[test]
    fn missing_and_extra_files_are_refused() {
        let text = manifest();
        let whole = (MANIFEST, FILE, text.as_bytes());
        assert!(refused(&[whole, ("vmlinux", FILE, b"kernel")]).contains("no file root.ext4"));
        assert!(refused(&[("vmlinux", FILE, b"kernel")]).contains(MANIFEST));
        assert!(refused(&[whole, ("extra", FILE, b"")]).contains("\"extra\", which is not listed in image.toml"));
        assert!(refused(&[("vmlinux", FILE, b"kernel"), ("vmlinux", FILE, b"x")]).contains("twice"));
        let many: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), FILE, b"".as_slice())).collect();
        assert!(refused(&many).contains("before its image.toml"));
        let bundle = bundle();
        fs::remove_file(bundle.path().join("root.ext4")).unwrap();
        assert!(import(bundle.path()).unwrap_err().contains("no file root.ext4"));
    }

    #[test]
    fn oversized_files_are_refused() {
        let text = manifest();
        let file = archive(&[(MANIFEST, FILE, text.as_bytes())]);
        let mut header = tar::Header::new_gnu();
        header.set_path("vmlinux").unwrap();
        header.set_size(LARGEST_BOOT_FILE + 1);
        header.set_cksum();
        let mut bytes = fs::read(file.path()).unwrap();
        let end = bytes.len() - 1024;
        bytes[end..end + 512].copy_from_slice(header.as_bytes());
        fs::write(file.path(), bytes).unwrap();
        assert!(import(file.path()).unwrap_err().contains("larger than 4294967296 bytes"));
        let long = "#".repeat(MANIFEST_LIMIT as usize + 1);
        assert!(refused(&[(MANIFEST, FILE, long.as_bytes())]).contains("larger than 262144 bytes"));
        let bundle = bundle();
        File::options().write(true).open(bundle.path().join("vmlinux")).unwrap().set_len(5 << 30).unwrap();
        assert!(import(bundle.path()).unwrap_err().contains("larger than 4294967296 bytes"));
    }

    #[test]
    fn truncated_archives_are_refused() {
        let bundle = bundle();
        let path: PathBuf = bundle.path().join("image.tar");
        export(bundle.path(), &path, &()).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in (1..whole.len() - 1024).step_by(1111) {
            fs::write(&path, &whole[..length]).unwrap();
            import(&path).unwrap_err();
        }
        let zstd = zstd::encode_all(whole.as_slice(), 1).unwrap();
        fs::write(&path, &zstd[..zstd.len() - 3]).unwrap();
        assert!(import(&path).unwrap_err().contains("truncated"));
    }

    #[test]
    fn bundle_over_free_space_is_refused() {
        let bundle = bundle();
        let noise: Vec<u8> = (0..500_000u32).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_be_bytes()).collect();
        fs::write(bundle.path().join("root.ext4"), &noise).unwrap();
        let text = manifest().replace(&sha256(&root()), &sha256(&noise));
        fs::write(bundle.path().join(MANIFEST), text).unwrap();
        let archive = bundle.path().join("image.tar.zst");
        export(bundle.path(), &archive, &()).unwrap();
        for source in [bundle.path(), &archive] {
            let into = tempfile::tempdir().unwrap();
            let space = FreeSpace::measured_by(Path::new("/data"), |written| Ok(RESERVE + (1 << 20) - written));
            let landing = Landing::with_space(into.path(), space).unwrap();
            let error = import_into(landing, source, "", &()).unwrap_err();
            assert!(matches!(error, ImportError::SpaceExhausted(_)), "{error}");
            assert!(error.to_string().contains("/data has 128 MiB free, but 128 MiB are reserved"), "{error}");
            assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0);
            import(source).unwrap();
        }
    }

    #[test]
    fn qcow2_root_with_backing_file_is_refused() {
        let bundle = bundle();
        let root = bundle.path().join("root.ext4");
        let base = bundle.path().join("base");
        fs::rename(&root, &base).unwrap();
        disk_image::create_layer(&root, &base, DiskFormat::Raw, None).unwrap();
        let digest = sha256(&fs::read(&root).unwrap());
        let text = fs::read_to_string(bundle.path().join(MANIFEST)).unwrap();
        let text = text.replace(&sha256(&super::tests::root()), &digest).replace("\"raw\"", "\"qcow2\"");
        fs::write(bundle.path().join(MANIFEST), text).unwrap();
        let error = import(bundle.path()).unwrap_err();
        assert!(error.contains("\"base\""), "{error}");
    }

    #[test]
    fn root_features_are_checked_for_embedded_kernel_only() {
        let bundle = bundle();
        let root = bundle.path().join("root.ext4");
        run("mke2fs", &["-q", "-F", "-t", "ext4", "-O", "quota", root.to_str().unwrap(), "8M"]);
        let text = manifest().replace(&sha256(&super::tests::root()), &sha256(&fs::read(&root).unwrap()));
        fs::write(bundle.path().join(MANIFEST), text).unwrap();
        import(bundle.path()).unwrap();
        let into = tempfile::tempdir().unwrap();
        let error = import_bundle(bundle.path(), into.path(), &sha256(b"kernel"), &()).unwrap_err().to_string();
        assert!(error.contains("root.ext4: ") && error.contains("tune2fs -O ^quota FILE"), "{error}");
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0);
    }

    #[test]
    fn non_bundle_source_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(import(dir.path()).unwrap_err().contains("not an image bundle"));
        let file = dir.path().join("file");
        fs::write(&file, "hello").unwrap();
        assert!(import(&file).unwrap_err().contains("neither a tar archive"));
        assert!(import(&dir.path().join("nothing")).unwrap_err().contains("cannot read"));
    }
}
