//! Creates, inspects and copies raw and qcow2 disk images that no VMM has open.
//!
//! When a call returns, the new image is either complete and durable, or does not exist. Its mode is 0600. An overlay
//! names its backing file relative to its own directory, so that both can be moved together.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping, Storage};
use tempfile::NamedTempFile;

use super::space::FreeSpace;
use super::sparse;
use super::{Backing, BlockError, Disk, ImageFile, MAX_LAYERS, SECTOR};
use machine::config::{BackingFile, DiskAccess, DiskConfig, DiskFormat};

/// Bytes copied at a time, a multiple of both units below.
const CHUNK: usize = 1 << 20;
/// Granularity at which a raw copy omits zeros: a page.
const RAW_UNIT: usize = 4 << 10;
/// Granularity at which a qcow2 copy omits zeros: a cluster, which is always allocated whole.
const QCOW2_UNIT: usize = 64 << 10;
/// Offsets of two fields in a qcow2 header: the backing file name's offset (8 bytes) and its length (4 bytes).
const BACKING_NAME_OFFSET: u64 = 8;
const BACKING_NAME_LENGTH: u64 = 16;

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{} already exists", .0.display())]
    Exists(PathBuf),
    /// The image or a backing file is damaged or unsupported.
    #[error(transparent)]
    Image(#[from] BlockError),
    #[error("cannot write the disk image {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read the disk image {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the path of the backing file {} is not UTF-8 or is too long for a qcow2 header", .0.display())]
    Name(PathBuf),
    #[error("an overlay of {size} bytes is smaller than its backing file {} ({backing} bytes)", path.display())]
    SmallLayer {
        path: PathBuf,
        /// Size of the backing file in bytes.
        backing: u64,
        /// Size of the overlay in bytes.
        size: u64,
    },
    #[error(
        "the disk image {} has the backing file {name:?}, which wisp opens only if you specify it: add backing=FILE",
        path.display()
    )]
    UnnamedBacking {
        path: PathBuf,
        /// Backing file in the header.
        name: String,
    },
    #[error(
        "{} is not the backing file of {} (backing file in the image's header: {})", given.display(), path.display(),
        found.as_ref().map_or("none".into(), |name| format!("{name:?}"))
    )]
    WrongBacking {
        path: PathBuf,
        given: PathBuf,
        /// Backing file in the header.
        found: Option<String>,
    },
    /// Zero, or not a multiple of the sector size.
    #[error("invalid disk size of {0} bytes: it must be a positive multiple of {SECTOR}")]
    Size(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Information {
    /// Disk size in bytes.
    pub virtual_size: u64,
    /// Allocated size of the file in bytes, excluding its backing files.
    pub allocated: u64,
    pub backing: Option<Backing>,
}

/// Creates a sparse image of `size` zero bytes.
pub fn create(path: &Path, format: DiskFormat, size: u64) -> Result<(), ImageError> {
    check_size(size)?;
    let file = new_file(path)?;
    let made = match format {
        DiskFormat::Raw => file.as_file().set_len(size),
        DiskFormat::Qcow2 => format_qcow2(&file, size, None),
    };
    made.map_err(|source| ImageError::Write { path: path.to_path_buf(), source })?;
    persist(file, path)
}

/// Creates a qcow2 overlay at least as large as `backing`. A VMM may write to `backing` until it switches to the
/// overlay.
pub fn create_layer(
    path: &Path,
    backing: &Path,
    backing_format: DiskFormat,
    size: Option<u64>,
) -> Result<(), ImageError> {
    let backing_size = crate::virtual_size(backing, backing_format)?;
    let size = size.unwrap_or(backing_size.next_multiple_of(SECTOR));
    check_size(size)?;
    if size < backing_size {
        return Err(ImageError::SmallLayer { path: backing.to_path_buf(), backing: backing_size, size });
    }
    let name = relative(path, backing)?;
    let file = new_file(path)?;
    format_qcow2(&file, size, Some((name, format_name(backing_format))))
        .map_err(|source| ImageError::Write { path: path.to_path_buf(), source })?;
    persist(file, path)
}

/// Changes the header of `copy`, a copy of the overlay `original`, to name the same backing file from the copy's
/// directory. That directory must not be deeper than the original's, because the header has no space for a longer name.
pub fn rename_backing(copy: &Path, original: &Path) -> Result<(), ImageError> {
    let Some(backing) = crate::backing(original)? else { return Ok(()) };
    let name = relative(copy, &backing.path)?;
    if name.len() > backing.name.len() {
        return Err(ImageError::Name(backing.path));
    }
    let failed = |source| ImageError::Write { path: copy.to_path_buf(), source };
    let file = File::options().read(true).write(true).open(copy).map_err(failed)?;
    let mut offset = [0; 8];
    file.read_exact_at(&mut offset, BACKING_NAME_OFFSET).map_err(failed)?;
    file.write_all_at(name.as_bytes(), u64::from_be_bytes(offset)).map_err(failed)?;
    // `relative` limits the length to that of a qcow2 header.
    let length = name.len() as u32;
    file.write_all_at(&length.to_be_bytes(), BACKING_NAME_LENGTH).map_err(failed)
}

/// Resolves the backing files of a user's image. The user must name all of them, topmost first, and the headers must
/// name the same files. The format of each backing file is taken from the header of the image above it.
pub fn resolve_backing(path: &Path, format: DiskFormat, named: &[PathBuf]) -> Result<Vec<BackingFile>, ImageError> {
    let mut backing: Vec<BackingFile> = Vec::new();
    let (mut path, mut format) = (path.to_path_buf(), format);
    for given in named.iter().map(Some).chain([None]) {
        let found = match format {
            DiskFormat::Raw => None,
            DiskFormat::Qcow2 => crate::backing(&path)?,
        };
        let next = match (given, found) {
            (None, None) => break,
            (None, Some(found)) => return Err(ImageError::UnnamedBacking { path, name: found.name }),
            (Some(given), Some(found)) if is_same(given, &found.path) => found,
            (Some(given), found) => {
                let found = found.map(|found| found.name);
                return Err(ImageError::WrongBacking { path, given: given.clone(), found });
            }
        };
        (path, format) = (next.path.clone(), next.format);
        backing.push(BackingFile { path: next.path, format });
        if backing.len() > MAX_LAYERS {
            return Err(BlockError::TooManyLayers(path).into());
        }
    }
    Ok(backing)
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// Grows an image with zeros to `size`. No VMM may have it open. `backing` lists its backing files, topmost first.
pub fn grow(path: &Path, format: DiskFormat, backing: &[BackingFile], size: u64) -> Result<(), ImageError> {
    check_size(size)?;
    let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let config = DiskConfig {
        id,
        path: path.to_path_buf(),
        format,
        access: DiskAccess::ReadWrite,
        root: false,
        backing: backing.to_vec(),
        was: None,
        limits: None,
    };
    Ok(Disk::open(&config, parent_directory(path))?.grow(size)?)
}

/// Reads the size and the backing file of an image, which a VMM may have open.
pub fn information(path: &Path, format: DiskFormat) -> Result<Information, ImageError> {
    let virtual_size = crate::virtual_size(path, format)?;
    let failed = |source| ImageError::Read { path: path.to_path_buf(), source };
    let allocated = path.metadata().map_err(failed)?.blocks() * 512;
    let backing = match format {
        DiskFormat::Raw => None,
        DiskFormat::Qcow2 => crate::backing(path)?,
    };
    Ok(Information { virtual_size, allocated, backing })
}

/// Copies a disk to a new image without backing files. `backing` lists the source's backing files, topmost first.
pub fn convert(
    source: &Path,
    format: DiskFormat,
    backing: &[BackingFile],
    destination: &Path,
    destination_format: DiskFormat,
) -> Result<(), ImageError> {
    convert_image(&crate::open_to_read(source, format, backing)?, source, destination, destination_format, None)
}

/// Opens an untrusted qcow2 image for reading. Refuses an image that refers to another file.
pub fn open_alone(path: &Path) -> Result<FormatAccess<ImageFile>, ImageError> {
    Ok(crate::open_alone(path)?)
}

/// Copies an untrusted qcow2 image to a raw file within `space`. Refuses an image that refers to another file.
pub fn convert_alone(source: &Path, destination: &Path, space: &FreeSpace) -> Result<(), ImageError> {
    convert_image(&crate::open_alone(source)?, source, destination, DiskFormat::Raw, Some(space))
}

fn convert_image(
    image: &FormatAccess<ImageFile>,
    source: &Path,
    destination: &Path,
    format: DiskFormat,
    space: Option<&FreeSpace>,
) -> Result<(), ImageError> {
    let size = image.size().next_multiple_of(SECTOR);
    check_size(size)?;
    let file = new_file(destination)?;
    let failed = |source| ImageError::Write { path: destination.to_path_buf(), source };
    let target = match format {
        DiskFormat::Raw => {
            file.as_file().set_len(size).map_err(failed)?;
            Target::Raw(file.as_file(), space)
        }
        DiskFormat::Qcow2 => Target::Qcow2(new_qcow2(&file, size, None).map_err(failed)?),
    };
    copy(image, source, &target, destination)?;
    target.flush().map_err(failed)?;
    persist(file, destination)
}

enum Target<'a> {
    /// Raw file, with the free space to check, if any.
    Raw(&'a File, Option<&'a FreeSpace>),
    Qcow2(FormatAccess<ImageFile>),
}

impl Target<'_> {
    fn unit(&self) -> usize {
        match self {
            Target::Raw(..) => RAW_UNIT,
            Target::Qcow2(_) => QCOW2_UNIT,
        }
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Target::Raw(file, space) => {
                space.map_or(Ok(()), |space| space.take(bytes.len() as u64))?;
                file.write_all_at(bytes, offset)
            }
            Target::Qcow2(image) => image.write(bytes, offset),
        }
    }

    fn flush(&self) -> io::Result<()> {
        match self {
            Target::Raw(..) => Ok(()),
            Target::Qcow2(image) => image.flush(),
        }
    }
}

/// Copies all units that are not zero.
fn copy(image: &FormatAccess<ImageFile>, source: &Path, target: &Target, destination: &Path) -> Result<(), ImageError> {
    let cannot_read = |error| ImageError::Read { path: source.to_path_buf(), source: error };
    let cannot_write = |error| ImageError::Write { path: destination.to_path_buf(), source: error };
    let mut holes = Holes::default();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while offset < image.size() {
        let empty = holes.empty_bytes(image, offset).map_err(cannot_read)?;
        // Skip only whole units, so that no unit is examined twice.
        offset += empty - empty % target.unit() as u64;
        let length = (image.size() - offset).min(CHUNK as u64) as usize;
        let chunk = &mut buffer[..length];
        image.read(&mut *chunk, offset).map_err(cannot_read)?;
        for (index, unit) in chunk.chunks(target.unit()).enumerate() {
            if unit.iter().any(|byte| *byte != 0) {
                target.write(unit, offset + (index * target.unit()) as u64).map_err(cannot_write)?;
            }
        }
        offset += length as u64;
    }
    Ok(())
}

/// Finds zeros without reading data: in the image's tables and in the files' holes.
#[derive(Default)]
struct Holes {
    files: HashMap<PathBuf, File>,
}

impl Holes {
    /// Returns the number of bytes from `offset` that are known to be zero. More zeros may follow.
    fn empty_bytes(&mut self, image: &FormatAccess<ImageFile>, offset: u64) -> io::Result<u64> {
        let mut empty = 0;
        while offset + empty < image.size() {
            let (mapping, length) = image.get_mapping(offset + empty, image.size() - offset - empty)?;
            let zero = match mapping {
                Mapping::Zero { .. } => length,
                Mapping::Raw { storage, offset, .. } => match storage.get_filename() {
                    Some(path) => self.hole(path, offset, length)?,
                    None => 0,
                },
                _ => 0,
            };
            empty += zero;
            if zero < length || length == 0 {
                break;
            }
        }
        Ok(empty)
    }

    /// Returns the number of bytes from `offset` to the file's next data, but at most `length`.
    fn hole(&mut self, path: PathBuf, offset: u64, length: u64) -> io::Result<u64> {
        let file = match self.files.entry(path) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let file = File::open(entry.key())?;
                entry.insert(file)
            }
        };
        Ok(sparse::data_start(file, offset, offset.saturating_add(length)) - offset)
    }
}

fn check_size(size: u64) -> Result<(), ImageError> {
    if size == 0 || !size.is_multiple_of(SECTOR) { Err(ImageError::Size(size)) } else { Ok(()) }
}

fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

fn parent_directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

/// Creates a temporary file that becomes `path` when it is complete.
fn new_file(path: &Path) -> Result<NamedTempFile, ImageError> {
    let failed = |source| ImageError::Write { path: path.to_path_buf(), source };
    if path.symlink_metadata().is_ok() {
        return Err(ImageError::Exists(path.to_path_buf()));
    }
    NamedTempFile::new_in(parent_directory(path)).map_err(failed)
}

/// Renames a complete file to its final name, durably.
fn persist(file: NamedTempFile, path: &Path) -> Result<(), ImageError> {
    let failed = |source| ImageError::Write { path: path.to_path_buf(), source };
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(path).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => ImageError::Exists(path.to_path_buf()),
        _ => failed(error.error),
    })?;
    File::open(parent_directory(path)).and_then(|dir| dir.sync_all()).map_err(failed)
}

fn format_qcow2(file: &NamedTempFile, size: u64, backing: Option<(String, &str)>) -> io::Result<()> {
    new_qcow2(file, size, backing)?.flush()
}

/// Creates an empty qcow2 image and opens it without its backing file.
fn new_qcow2(file: &NamedTempFile, size: u64, backing: Option<(String, &str)>) -> io::Result<FormatAccess<ImageFile>> {
    let mut builder = Qcow2::<ImageFile>::create_builder(ImageFile::try_from(file.as_file().try_clone()?)?).size(size);
    if let Some((name, format)) = backing {
        builder = builder.backing(name, format.to_string());
    }
    let image = builder.create_open(DenyImplicitOpenGate::default(), |image| {
        Ok(Qcow2::<ImageFile>::builder(image).backing(None).write(true))
    })?;
    Ok(FormatAccess::new(image))
}

/// Returns the path of `backing` relative to the directory of `layer`.
fn relative(layer: &Path, backing: &Path) -> Result<String, ImageError> {
    let absolute =
        |path: &Path| fs::canonicalize(path).map_err(|source| ImageError::Read { path: path.to_path_buf(), source });
    let (dir, file) = (absolute(parent_directory(layer))?, absolute(backing)?);
    let common = dir.components().zip(file.components()).take_while(|(left, right)| left == right).count();
    let mut name = PathBuf::new();
    dir.components().skip(common).for_each(|_| name.push(Component::ParentDir));
    name.extend(file.components().skip(common));
    // Other programs interpret the part before a colon as a protocol, unless a slash precedes the colon.
    let protocol = name.to_string_lossy().split('/').next().is_some_and(|first| first.contains(':'));
    let name = if protocol { Path::new(".").join(name) } else { name };
    match name.to_str() {
        Some(name) if name.len() <= 1023 => Ok(name.to_string()),
        _ => Err(ImageError::Name(backing.to_path_buf())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    const MIB: u64 = 1 << 20;

    /// Returns the output of `qemu-img info`. Runs `qemu-img check` on a qcow2 image first.
    fn qemu_img(path: &Path, format: &str) -> serde_json::Value {
        if format == "qcow2" {
            run(&["check", "-q", "-f", format, path.to_str().unwrap()]);
        }
        serde_json::from_slice(&run(&["info", "--output=json", "-f", format, path.to_str().unwrap()])).unwrap()
    }

    fn run(args: &[&str]) -> Vec<u8> {
        let output = Command::new("qemu-img").args(args).output().unwrap_or_else(|error| {
            panic!("cannot run qemu-img, which checks the images (Debian package: qemu-utils): {error}")
        });
        assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn qcow2(path: &Path) -> BackingFile {
        BackingFile { path: path.into(), format: DiskFormat::Qcow2 }
    }

    fn raw(path: &Path) -> BackingFile {
        BackingFile { path: path.into(), format: DiskFormat::Raw }
    }

    fn read(path: &Path, format: DiskFormat, backing: &[BackingFile]) -> Vec<u8> {
        let image = crate::open_to_read(path, format, backing).unwrap();
        let mut bytes = vec![0; image.size() as usize];
        image.read(bytes.as_mut_slice(), 0).unwrap();
        bytes
    }

    fn write(path: &Path, format: DiskFormat, backing: &[BackingFile], offset: u64, bytes: &mut [u8]) {
        let config = DiskConfig {
            id: "test".into(),
            path: path.into(),
            format,
            access: DiskAccess::ReadWrite,
            root: false,
            backing: backing.to_vec(),
            was: None,
            limits: None,
        };
        let disk = Disk::open(&config, Path::new(".")).unwrap();
        disk.write(&[vm_memory::VolatileSlice::from(bytes)], offset).unwrap();
        disk.flush().unwrap();
    }

    #[test]
    fn copy_of_overlay_in_shallower_directory_names_same_backing_file() {
        let dir = tempfile::tempdir().unwrap();
        let [base, original, copy] = ["base", "a/b/overlay", "a/copy"].map(|name| dir.path().join(name));
        fs::create_dir_all(original.parent().unwrap()).unwrap();
        create(&base, DiskFormat::Raw, MIB).unwrap();
        create_layer(&original, &base, DiskFormat::Raw, None).unwrap();
        write(&original, DiskFormat::Qcow2, &[raw(&base)], 0, &mut [7; 512]);
        fs::copy(&original, &copy).unwrap();
        rename_backing(&copy, &original).unwrap();
        assert_eq!(crate::backing(&copy).unwrap().unwrap().name, "../base");
        assert_eq!(read(&copy, DiskFormat::Qcow2, &[raw(&base)])[..512], [7; 512]);
        qemu_img(&copy, "qcow2");
        assert!(matches!(rename_backing(&original, &copy), Err(ImageError::Name(_))));
    }

    #[test]
    fn new_image_is_empty_private_and_valid() {
        let dir = tempfile::tempdir().unwrap();
        for (format, name) in [(DiskFormat::Raw, "raw"), (DiskFormat::Qcow2, "qcow2")] {
            let path = dir.path().join(name);
            create(&path, format, 64 * MIB).unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(qemu_img(&path, name)["virtual-size"], 64 * MIB);
            let information = information(&path, format).unwrap();
            assert_eq!((information.virtual_size, information.backing), (64 * MIB, None));
            assert!(information.allocated < MIB, "{}", information.allocated);
            assert!(matches!(create(&path, format, MIB), Err(ImageError::Exists(_))));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn invalid_size_is_refused_and_creates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 513] {
            assert!(matches!(create(&dir.path().join("disk"), DiskFormat::Raw, size), Err(ImageError::Size(_))));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn overlay_and_backing_file_can_be_moved_together() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir_all(home.join("images")).unwrap();
        fs::create_dir_all(home.join("volumes")).unwrap();
        let (base, first, second) = (home.join("images/base"), home.join("volumes/first"), home.join("volumes/second"));
        fs::write(&base, vec![7; MIB as usize]).unwrap();
        create_layer(&first, &base, DiskFormat::Raw, None).unwrap();
        write(&first, DiskFormat::Qcow2, &[raw(&base)], 4096, &mut [8; 512]);
        create_layer(&second, &first, DiskFormat::Qcow2, Some(2 * MIB)).unwrap();
        write(&second, DiskFormat::Qcow2, &[qcow2(&first), raw(&base)], 8192, &mut [9; 512]);
        let information = information(&second, DiskFormat::Qcow2).unwrap();
        assert_eq!(information.virtual_size, 2 * MIB);
        assert_eq!(information.backing.unwrap().name, "first");

        let moved = dir.path().join("moved");
        fs::rename(&home, &moved).unwrap();
        let (first, second) = (moved.join("volumes/first"), moved.join("volumes/second"));
        let base = moved.join("images/base");
        let info = qemu_img(&first, "qcow2");
        assert_eq!(
            (&info["backing-filename"], &info["backing-filename-format"]),
            (&"../images/base".into(), &"raw".into())
        );
        let bytes = read(&second, DiskFormat::Qcow2, &[qcow2(&first), raw(&base)]);
        assert_eq!((bytes[0], bytes[4096], bytes[8192], bytes[8704]), (7, 8, 9, 7));
        assert!(bytes[MIB as usize..].iter().all(|byte| *byte == 0));
        qemu_img(&second, "qcow2");
    }

    #[test]
    fn overlay_smaller_than_backing_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (base, layer) = (dir.path().join("base"), dir.path().join("layer"));
        create(&base, DiskFormat::Raw, MIB).unwrap();
        let refused = create_layer(&layer, &base, DiskFormat::Raw, Some(MIB / 2));
        assert!(matches!(refused, Err(ImageError::SmallLayer { .. })));
        assert!(matches!(
            create_layer(&layer, &dir.path().join("none"), DiskFormat::Raw, None),
            Err(ImageError::Image(BlockError::Open { .. }))
        ));
        assert!(!layer.exists());
    }

    #[test]
    fn image_grows_and_shrinking_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (format, name) in [(DiskFormat::Raw, "raw"), (DiskFormat::Qcow2, "qcow2")] {
            let path = dir.path().join(name);
            create(&path, format, MIB).unwrap();
            write(&path, format, &[], MIB - 512, &mut [5; 512]);
            grow(&path, format, &[], 3 * MIB).unwrap();
            assert_eq!(qemu_img(&path, name)["virtual-size"], 3 * MIB);
            let bytes = read(&path, format, &[]);
            assert_eq!((bytes[MIB as usize - 1], bytes[MIB as usize], bytes.len() as u64), (5, 0, 3 * MIB));
            assert!(matches!(grow(&path, format, &[], MIB), Err(ImageError::Image(BlockError::Shrink { .. }))));
        }
    }

    #[test]
    fn copy_is_flat_equal_and_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let (base, layer) = (dir.path().join("base"), dir.path().join("layer"));
        create(&base, DiskFormat::Raw, 64 * MIB).unwrap();
        write(&base, DiskFormat::Raw, &[], 10 * MIB, &mut vec![7; MIB as usize]);
        create_layer(&layer, &base, DiskFormat::Raw, Some(80 * MIB)).unwrap();
        write(&layer, DiskFormat::Qcow2, &[raw(&base)], 10 * MIB + 4096, &mut [8; 512]);
        write(&layer, DiskFormat::Qcow2, &[raw(&base)], 80 * MIB - 512, &mut [9; 512]);
        for (format, name) in [(DiskFormat::Raw, "raw"), (DiskFormat::Qcow2, "qcow2")] {
            let copy = dir.path().join(name);
            convert(&layer, DiskFormat::Qcow2, &[raw(&base)], &copy, format).unwrap();
            let information = information(&copy, format).unwrap();
            assert_eq!((information.virtual_size, information.backing), (80 * MIB, None));
            assert!(information.allocated < 3 * MIB, "{}", information.allocated);
            run(&["compare", "-q", "-f", "qcow2", "-F", name, layer.to_str().unwrap(), copy.to_str().unwrap()]);
            qemu_img(&copy, name);
        }
    }

    #[test]
    fn copy_reads_only_named_backing_files() {
        let dir = tempfile::tempdir().unwrap();
        let [base, secret, layer, copy] = ["base", "secret", "layer", "copy"].map(|name| dir.path().join(name));
        for path in [&base, &secret] {
            fs::write(path, vec![7; MIB as usize]).unwrap();
        }
        create_layer(&layer, &base, DiskFormat::Raw, None).unwrap();
        // A compromised VMM may write another name into its volume's header.
        run(&["rebase", "-u", "-f", "qcow2", "-b", secret.to_str().unwrap(), "-F", "raw", layer.to_str().unwrap()]);
        for backing in [vec![raw(&base)], vec![]] {
            let copied = convert(&layer, DiskFormat::Qcow2, &backing, &copy, DiskFormat::Raw);
            assert!(matches!(copied, Err(ImageError::Image(BlockError::OtherBacking { .. }))), "{copied:?}");
            assert!(!copy.exists());
            let grown = grow(&layer, DiskFormat::Qcow2, &backing, 2 * MIB);
            assert!(matches!(grown, Err(ImageError::Image(BlockError::OtherBacking { .. }))), "{grown:?}");
        }
    }

    #[test]
    fn partial_sector_is_rounded_up_in_copies_and_overlays() {
        let dir = tempfile::tempdir().unwrap();
        let [path, copy, layer] = ["disk", "copy", "layer"].map(|name| dir.path().join(name));
        fs::write(&path, [7; 1100]).unwrap();
        let whole = [vec![7; 1100], vec![0; 436]].concat();
        convert(&path, DiskFormat::Raw, &[], &copy, DiskFormat::Raw).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), whole);
        create_layer(&layer, &path, DiskFormat::Raw, None).unwrap();
        assert_eq!(read(&layer, DiskFormat::Qcow2, &[raw(&path)]), whole);
    }

    #[test]
    fn disk_in_use_is_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create(&path, DiskFormat::Raw, MIB).unwrap();
        let config = DiskConfig::new("test", path.clone(), DiskFormat::Raw, DiskAccess::ReadWrite);
        let _disk = Disk::open(&config, dir.path()).unwrap();
        let copied = convert(&path, DiskFormat::Raw, &[], &dir.path().join("copy"), DiskFormat::Raw);
        assert!(matches!(copied, Err(ImageError::Image(BlockError::InUse(_)))));
        assert!(information(&path, DiskFormat::Raw).is_ok());
    }
}
