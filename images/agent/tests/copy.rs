//! Copies in both directions, over the agent's protocol.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use support::Host;
use wisp_agent::protocol::{Bytes, ToGuest, ToHost};
use wisp_agent::tree::{self, Attributes, CopyRequest, Holes, Links, Summary, TreeEntry, TreeWriter};

fn write(source: &Path, destination: &Path) -> Result<Summary, String> {
    let mut host = Host::connect();
    host.send(&ToGuest::Write { destination: destination.into() });
    let writer = &mut host.connection.writer;
    tree::send(source, Links::Follow, Holes::Keep, &mut |entry| Ok(writer.send(&ToGuest::Tree(entry))?))
        .expect("readable");
    match host.receive() {
        ToHost::Copied(summary) => Ok(summary),
        ToHost::Failed(message) => Err(message),
        other => panic!("{other:?}"),
    }
}

fn read(source: &Path, destination: &Path) -> Result<Summary, String> {
    let mut host = Host::connect();
    host.send(&ToGuest::ReadSparse { source: source.into() });
    let mut tree = TreeWriter::untrusted(destination, CopyRequest::new(source.as_os_str(), 0o022));
    while !tree.is_complete() {
        match host.receive() {
            ToHost::Tree(entry) => tree.accept(entry).expect("writable"),
            ToHost::Failed(message) => return Err(message),
            other => panic!("{other:?}"),
        }
    }
    Ok(tree.summary())
}

/// Creates a directory `name` with one file of each kind.
fn make_tree(home: &Path, name: &str) {
    let root = home.join(name);
    fs::create_dir_all(root.join("inner/empty")).expect("made");
    fs::write(root.join("large"), vec![b'z'; 300_000]).expect("written");
    fs::write(root.join("inner/script"), "#!/bin/sh\n").expect("written");
    fs::set_permissions(root.join("inner/script"), fs::Permissions::from_mode(0o751)).expect("set");
    symlink("../large", root.join("inner/link")).expect("linked");
    symlink("/no/such", root.join("broken")).expect("linked");
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), 0o600.into()).expect("made");
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for path in ["large", "inner"] {
        fs::File::open(root.join(path)).and_then(|file| file.set_modified(then)).expect("set");
    }
    fs::set_permissions(root.join("inner"), fs::Permissions::from_mode(0o750)).expect("set");
}

fn assert_same(root: &Path) {
    assert_eq!(fs::read(root.join("large")).expect("there"), vec![b'z'; 300_000]);
    assert_eq!(fs::read_link(root.join("inner/link")).expect("a link"), Path::new("../large"));
    assert_eq!(fs::read_link(root.join("broken")).expect("a link"), Path::new("/no/such"));
    assert!(fs::metadata(root.join("inner/empty")).expect("there").is_dir());
    assert!(!root.join("pipe").exists());
    let mode = |path: &str| fs::metadata(root.join(path)).expect("there").permissions().mode() & 0o7777;
    assert_eq!((mode("inner/script"), mode("inner")), (0o751, 0o750));
    for path in ["large", "inner"] {
        let metadata = fs::metadata(root.join(path)).expect("there");
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_000_000_000, 123_456_789), "{path}");
    }
}

const WHOLE: Summary = Summary { files: 2, directories: 3, symlinks: 2, skipped: 1, bytes: 300_010 };

#[test]
fn directory_is_copied_both_ways_unchanged() {
    let home = tempfile::tempdir().expect("a directory");
    make_tree(home.path(), "first");
    assert_eq!(write(&home.path().join("first"), &home.path().join("second")), Ok(WHOLE));
    assert_same(&home.path().join("second"));
    let without_pipe = Summary { skipped: 0, ..WHOLE };
    assert_eq!(read(&home.path().join("second"), &home.path().join("third")), Ok(without_pipe));
    assert_same(&home.path().join("third"));
}

#[test]
fn copy_into_existing_directory_merges() {
    let home = tempfile::tempdir().expect("a directory");
    make_tree(home.path(), "tree");
    let place = home.path().join("place");
    fs::create_dir(&place).expect("made");
    assert_eq!(write(&home.path().join("tree"), &place), Ok(WHOLE));
    assert_same(&place.join("tree"));
    fs::write(place.join("tree/inner/other"), "kept").expect("written");
    fs::set_permissions(place.join("tree"), fs::Permissions::from_mode(0o711)).expect("set");

    assert_eq!(write(&home.path().join("tree"), &place), Ok(WHOLE));

    assert_eq!(fs::read_to_string(place.join("tree/inner/other")).expect("there"), "kept");
    assert_eq!(fs::metadata(place.join("tree")).expect("there").permissions().mode() & 0o7777, 0o711);
}

#[test]
fn file_replaces_existing_file() {
    let home = tempfile::tempdir().expect("a directory");
    let (from, to) = (home.path().join("from"), home.path().join("to"));
    fs::write(&from, "new").expect("written");
    fs::write(&to, "old").expect("written");
    write(&from, &to).expect("copied");
    assert_eq!(fs::read_to_string(&to).expect("there"), "new");
    assert_eq!(fs::read_dir(home.path()).expect("listed").count(), 2, "a temporary file was left behind");
}

#[test]
fn write_error_names_path_despite_pending_data() {
    let home = tempfile::tempdir().expect("a directory");
    make_tree(home.path(), "tree");
    let message = write(&home.path().join("tree"), &home.path().join("no/such/place")).expect_err("no parent");
    assert!(message.ends_with("/no: cannot open: No such file or directory"), "{message}");
    let message = write(&home.path().join("tree"), &home.path().join("tree/large")).expect_err("a file");
    assert!(message.ends_with("/tree/large: cannot open: Not a directory"), "{message}");
}

#[test]
fn read_error_names_path() {
    let home = tempfile::tempdir().expect("a directory");
    let message = read(Path::new("/no/such/file"), home.path()).expect_err("not there");
    assert_eq!(message, "/no/such/file: cannot read: No such file or directory");
    let message = read(Path::new("/dev/null"), home.path()).expect_err("a device");
    assert_eq!(message, "/dev/null is neither a regular file nor a directory");
}

#[test]
fn name_outside_destination_is_refused() {
    let home = tempfile::tempdir().expect("a directory");
    let attributes = Attributes { mode: 0o755, modified: 0, nanoseconds: 0 };
    let mut host = Host::connect();
    host.send(&ToGuest::Write { destination: home.path().into() });
    host.send(&ToGuest::Tree(TreeEntry::Directory { name: "d".into(), attributes }));
    host.send(&ToGuest::Tree(TreeEntry::File { name: "../../escaped".into(), attributes }));
    assert!(matches!(host.receive(), ToHost::Failed(message) if message.contains("../../escaped")));
}

#[test]
fn disconnect_leaves_no_partial_file() {
    let home = tempfile::tempdir().expect("a directory");
    let attributes = Attributes { mode: 0o644, modified: 0, nanoseconds: 0 };
    let mut host = Host::connect();
    host.send(&ToGuest::Write { destination: home.path().join("file").into() });
    host.send(&ToGuest::Tree(TreeEntry::File { name: "file".into(), attributes }));
    host.send(&ToGuest::Tree(TreeEntry::Data(Bytes(b"half"))));
    assert!(host.leave().is_err());
    assert_eq!(fs::read_dir(home.path()).expect("listed").count(), 0);
}
