//! The `--disk` option: `FILE[,format=raw|qcow2][,ro][,backing=FILE]`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::output;
use cloud::run::ExtraDisk;
use disk::SECTOR;
use disk::disk_image;
use machine::config::DiskFormat;

/// The syntax of the option.
pub const SYNTAX: &str = "FILE[,format=raw|qcow2][,ro][,backing=FILE]";
/// The first bytes of a qcow2 image.
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// The parsed option.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    file: PathBuf,
    format: Option<DiskFormat>,
    read_only: bool,
    backing: Vec<PathBuf>,
}

/// Parses the option and finds the disk's files. Without `format=`, the format is qcow2 if the name ends in `.qcow2`,
/// else raw. It is never detected from the content, because a guest can write any header to its disk.
pub fn parse(text: &OsStr) -> anyhow::Result<ExtraDisk> {
    let written = read(text)?;
    let by_name = match written.file.extension() {
        Some(extension) if extension == "qcow2" => DiskFormat::Qcow2,
        _ => DiskFormat::Raw,
    };
    let format = written.format.unwrap_or(by_name);
    ensure!(
        written.backing.is_empty() || format == DiskFormat::Qcow2,
        "--disk {text:?}: backing= requires a qcow2 image; if the file is one, add format=qcow2"
    );
    let path = find(&written.file)?;
    let named = written.backing.iter().map(|file| find(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let backing = disk_image::resolve_backing(&path, format, &named)?;
    let disk = ExtraDisk { path, format, backing, read_only: written.read_only };
    notes(&disk, written.format.is_some())?.iter().for_each(|note| output::say(note));
    Ok(disk)
}

/// Splits the option at its commas. A double comma stands for a comma in a file name.
fn read(text: &OsStr) -> anyhow::Result<Written> {
    let mut fields = fields(text.as_bytes()).into_iter();
    let file = PathBuf::from(fields.next().unwrap_or_default());
    ensure!(!file.as_os_str().is_empty(), "--disk {text:?}: the file name is missing; the syntax is {SYNTAX}");
    let mut written = Written { file, format: None, read_only: false, backing: Vec::new() };
    for field in fields {
        match field.as_bytes() {
            b"ro" => written.read_only = true,
            b"format=raw" if written.format.is_none() => written.format = Some(DiskFormat::Raw),
            b"format=qcow2" if written.format.is_none() => written.format = Some(DiskFormat::Qcow2),
            bytes if bytes.len() > b"backing=".len() && bytes.starts_with(b"backing=") => {
                written.backing.push(PathBuf::from(OsStr::from_bytes(&bytes[b"backing=".len()..])));
            }
            _ => {
                bail!("--disk {text:?}: unexpected {field:?}; the syntax is {SYNTAX}. Double each comma in a file name")
            }
        }
    }
    Ok(written)
}

fn fields(text: &[u8]) -> Vec<OsString> {
    let mut fields = vec![Vec::new()];
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&b',').is_none() {
            fields.push(Vec::new());
        } else if let Some(field) = fields.last_mut() {
            field.push(byte);
        }
    }
    fields.into_iter().map(OsString::from_vec).collect()
}

fn find(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize().with_context(|| {
        let hint = match path.as_os_str().as_bytes() {
            bytes if bytes.ends_with(b":ro") => "; for a read-only disk, write FILE,ro",
            _ => "",
        };
        format!("cannot open the disk image {path:?}{hint}")
    })
}

/// Returns notes about properties of the disk that a user may not expect.
fn notes(disk: &ExtraDisk, format_is_given: bool) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    let path = &disk.path;
    let failed = || format!("cannot read the disk image {path:?}");
    let file = File::open(path).with_context(failed)?;
    let metadata = file.metadata().with_context(failed)?;
    if disk.format != DiskFormat::Raw || metadata.file_type().is_block_device() {
        return Ok(notes);
    }
    let size = metadata.len();
    if disk.read_only && !size.is_multiple_of(SECTOR) {
        notes.push(format!(
            "Note: the size of {path:?} ({size} bytes) is not a multiple of the sector size ({SECTOR} bytes). The \
             guest sees {} zero bytes at the end.",
            SECTOR - size % SECTOR
        ));
    }
    let mut magic = Vec::new();
    file.take(QCOW2_MAGIC.len() as u64).read_to_end(&mut magic).with_context(failed)?;
    if !format_is_given && magic == QCOW2_MAGIC {
        notes.push(format!(
            "Note: {path:?} is used as a raw disk, but has a qcow2 header. If you created it as a qcow2 image, stop \
             the guest and add format=qcow2. If a guest wrote the header, add format=raw to silence this note."
        ));
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    fn written(text: &str) -> anyhow::Result<Written> {
        read(OsStr::new(text))
    }

    fn qemu_img(arguments: &[&str], dir: &Path) {
        let output = Command::new("qemu-img").args(arguments).current_dir(dir).output().unwrap_or_else(|error| {
            panic!("cannot run qemu-img (Debian package qemu-utils), which creates the test images: {error}")
        });
        assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn option_has_a_file_and_settings() {
        let all = written("a/b.img,ro,format=qcow2,backing=c,backing=d").unwrap();
        assert_eq!(
            all,
            Written {
                file: "a/b.img".into(),
                format: Some(DiskFormat::Qcow2),
                read_only: true,
                backing: vec!["c".into(), "d".into()],
            }
        );
        let plain = written("disk").unwrap();
        assert_eq!((plain.format, plain.read_only, plain.backing.len()), (None, false, 0));
        let commas = written("a,,b,,ro,backing=c,,d,ro").unwrap();
        assert_eq!((commas.file, commas.backing, commas.read_only), ("a,b,ro".into(), vec!["c,d".into()], true));
        assert_eq!(written("a,,,ro").unwrap().file, PathBuf::from("a,"));
    }

    #[test]
    fn unknown_setting_is_refused_and_named() {
        for text in ["a,b", "a,rw", "a,format=vmdk", "a,format=raw,format=qcow2", "a,backing=", "a,", "", ",ro"] {
            let error = written(text).unwrap_err().to_string();
            assert!(error.contains(SYNTAX), "{text}: {error}");
        }
    }

    #[test]
    fn format_comes_from_the_option_or_the_name_and_never_from_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        qemu_img(&["create", "-q", "-f", "qcow2", "real.qcow2", "1M"], dir.path());
        fs::copy(at("real.qcow2"), at("disk.img")).unwrap();
        let format = |text: String| parse(OsStr::new(&text)).unwrap().format;
        let disk = at("disk.img").display().to_string();
        assert_eq!(format(disk.clone()), DiskFormat::Raw);
        assert_eq!(format(format!("{disk},format=qcow2")), DiskFormat::Qcow2);
        assert_eq!(format(at("real.qcow2").display().to_string()), DiskFormat::Qcow2);
        assert_eq!(format(format!("{},format=raw", at("real.qcow2").display())), DiskFormat::Raw);
        let noted = notes(&parse(OsStr::new(&disk)).unwrap(), false).unwrap();
        assert!(matches!(&noted[..], [note] if note.contains("has a qcow2 header")), "{noted:?}");
        assert_eq!(notes(&parse(OsStr::new(&disk)).unwrap(), true).unwrap(), [] as [String; 0]);
    }

    #[test]
    fn backing_files_are_those_that_the_user_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("base"), vec![0; 1 << 20]).unwrap();
        fs::write(at("other"), vec![0; 1 << 20]).unwrap();
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "middle.qcow2"], dir.path());
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2"], dir.path());
        let [top, middle, base, other] = ["top.qcow2", "middle.qcow2", "base", "other"].map(at);
        let parse = |text: String| parse(OsStr::new(&text));
        let disk = parse(format!("{top},backing={middle},backing={base}")).unwrap();
        let backing: Vec<_> =
            disk.backing.iter().map(|file| (file.path.file_name().unwrap().to_str().unwrap(), file.format)).collect();
        assert_eq!(backing, [("middle.qcow2", DiskFormat::Qcow2), ("base", DiskFormat::Raw)]);
        for (text, expected) in [
            (top.clone(), "backing=FILE"),
            (format!("{top},backing={middle}"), "backing=FILE"),
            (format!("{top},backing={other}"), "not the backing file"),
            (format!("{top},backing={middle},backing={base},backing={other}"), "not the backing file"),
            (format!("{base},backing={other}"), "format=qcow2"),
            (format!("{top},backing={other}-not-there"), "cannot open"),
        ] {
            let error = format!("{:#}", parse(text.clone()).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn read_only_disk_that_ends_within_a_sector_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, [7; 700]).unwrap();
        let disk = parse(OsStr::new(&format!("{},ro", path.display()))).unwrap();
        let noted = notes(&disk, false).unwrap();
        assert!(matches!(&noted[..], [note] if note.contains("sees 324 zero bytes")), "{noted:?}");
    }

    #[test]
    fn old_read_only_syntax_error_names_new_syntax() {
        let error = format!("{:#}", parse(OsStr::new("/not/there:ro")).unwrap_err());
        assert!(error.contains("FILE,ro"), "{error}");
    }
}
