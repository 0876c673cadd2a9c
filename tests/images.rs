//! Imported and exported images.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Wisp;
use mkext4::reader::Fs;

/// Creates a root file system without Wisp's agent. It has only busybox, which is also its init.
fn bare_root(wisp: &Wisp, dir: &Path) -> PathBuf {
    let embedded = Fs::open(File::open(wisp.bundle().join("root.ext4")).unwrap()).unwrap();
    let busybox = embedded.read_file(embedded.resolve("/bin/busybox").unwrap()).unwrap();
    let path = dir.join("root.tar.gz");
    let encoder = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(encoder);
    let mut add = |name: &str, kind: tar::EntryType, content: &[u8], target: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        match target {
            "" => archive.append_data(&mut header, name, content).unwrap(),
            target => archive.append_link(&mut header, name, target).unwrap(),
        }
    };
    for dir in ["dev/", "etc/", "proc/", "sys/", "root/", "tmp/"] {
        add(dir, tar::EntryType::Directory, b"", "");
    }
    add("bin/busybox", tar::EntryType::Regular, &busybox, "");
    for name in ["bin/sh", "bin/cat", "bin/reboot", "bin/poweroff", "sbin/init"] {
        add(name, tar::EntryType::Symlink, b"", "/bin/busybox");
    }
    add("etc/passwd", tar::EntryType::Regular, b"root:x:0:0:root:/root:/bin/sh\n", "");
    add(".dockerenv", tar::EntryType::Regular, b"", "");
    add("etc/inittab", tar::EntryType::Regular, b"::respawn:/bin/cat\n::ctrlaltdel:/bin/reboot\n", "");
    archive.into_inner().unwrap().finish().unwrap();
    path
}

/// Prints the guest's address from the metadata service and its name server, then `no mark` if Docker's marker file is
/// gone.
const NETWORK: &str = "echo address $(busybox wget -q -O - http://169.254.169.254/latest/meta-data/local-ipv4); \
    busybox grep nameserver /etc/resolv.conf; [ -e /.dockerenv ] || echo no mark";

#[test]
fn imported_root_keeps_its_init_and_gets_agent() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let root = bare_root(&wisp, dir.path());
    let import = ["image", "import", root.to_str().unwrap(), "--name", "bare", "--description", "busybox, alone"];
    wisp.run(&import).expect_code(0);
    let script = format!(
        "cat /proc/1/comm; cat /proc/cmdline >&2; cat /proc/mounts | while read a b c; do echo $b; done; {NETWORK}"
    );
    let script = script.as_str();
    let outcome = wisp.run(&["run", "bare", "--", "sh", "-c", script]).expect_code(0);
    let text = outcome.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "init", "{}", outcome.stderr);
    for mounted in ["/", "/dev", "/proc", "/sys", "/run"] {
        assert!(lines[1..].contains(&mounted), "{mounted} of {lines:?}");
    }
    assert!(outcome.stderr.contains("rootfstype=ext4"), "{}", outcome.stderr);
    // The guest's init configures no network, and the image has no resolver configuration.
    assert!(text.ends_with("address 172.31.0.4\nnameserver 172.31.0.2\nno mark\n"), "{text}");

    // Without an agent, Ctrl-Alt-Del stops the guest: its init reboots, which counts as a shutdown.
    wisp.run(&["launch", "bare", "--name", "box"]).expect_code(0);
    wisp.run(&["exec", "box", "--", "sh", "-c", "kill -9 $PPID"]);
    wisp.run(&["stop", "box"]).expect_code(0);
    let shown = wisp.run(&["show", "box", "--output", "json"]).expect_code(0).text();
    assert!(shown.contains("\"stopped\"") && shown.contains("Client.UserInitiatedShutdown"), "{shown}");

    // A guest that also ignores Ctrl-Alt-Del is stopped by force.
    wisp.run(&["start", "box"]).expect_code(0);
    wisp.run(&["exec", "box", "--", "sh", "-c", "echo > /etc/inittab; kill -HUP 1; kill -9 $PPID"]);
    wisp.run(&["stop", "box"]).expect_code(0);
    let log = std::fs::read_to_string(wisp.instances()[0].join("vmm.log")).unwrap();
    assert!(log.contains("the machine was stopped by wisp"), "{log}");
    wisp.run(&["terminate", "box"]).expect_code(0);
}

#[test]
fn read_only_root_gets_overlay_in_memory() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let (files, root) = (dir.path().join("files"), dir.path().join("root.squashfs"));
    std::fs::create_dir(&files).unwrap();
    let archive = flate2::read::GzDecoder::new(File::open(bare_root(&wisp, dir.path())).unwrap());
    tar::Archive::new(archive).unpack(&files).unwrap();
    // Like a container image, the root file system has no init.
    std::fs::remove_file(files.join("sbin/init")).unwrap();
    std::fs::write(files.join("etc/resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
    assert!(files.join(".dockerenv").exists());
    // Uncompressed: under software KVM, decompression takes most of a minute.
    let made = Command::new("mksquashfs")
        .args([&files, &root])
        .args(["-quiet", "-no-progress", "-all-root", "-noI", "-noD", "-noF"])
        .status();
    assert!(made.unwrap().success());
    wisp.run(&["image", "import", root.to_str().unwrap(), "--name", "fixed"]).expect_code(0);
    let script = format!(
        "echo new > /etc/motd; cat /etc/motd; while read a b c; do echo $b $c; done < /proc/mounts; {NETWORK}; cat /proc/1/comm"
    );
    let text = wisp.run(&["run", "fixed", "--", "sh", "-c", &script]).expect_code(0).text();
    assert!(text.starts_with("new\n") && text.contains("\n/ overlay rw"), "{text}");
    assert!(text.ends_with("address 172.31.0.4\nnameserver 192.0.2.1\nno mark\ninit\n"), "{text}");
}

#[test]
fn bundle_is_exported_imported_modified_and_removed() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    wisp.run(&["image", "export", "tiny", &path("tiny.tar.zst")]).expect_code(0);
    assert_eq!(
        wisp.run(&["image", "export", "tiny", &path("tiny.tar.zst")]).code,
        Some(1),
        "an existing file was overwritten"
    );

    let taken = wisp.run(&["image", "import", &path("tiny.tar.zst")]).expect_code(1);
    assert!(taken.stderr.contains("InvalidAMIName.Duplicate"), "{}", taken.stderr);
    wisp.run(&["image", "import", &path("tiny.tar.zst"), "--name", "other"]).expect_code(0);
    wisp.run(&["image", "import", wisp.bundle().to_str().unwrap(), "--name", "third", "--public"]).expect_code(0);
    wisp.run(&["image", "verify", "other"]).expect_code(0);

    wisp.run(&["image", "modify", "other", "--visibility", "public", "--description", "mine"]).expect_code(0);
    wisp.run(&["tag", "other", "stage=test"]).expect_code(0);
    let shown = wisp.run(&["image", "show", "other", "--output", "json"]).expect_code(0);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let image = &shown["Images"][0];
    assert_eq!(
        (&image["Public"], &image["Description"], &image["Tags"][0]["Key"]),
        (&true.into(), &"mine".into(), &"stage".into())
    );

    let id = image["ImageId"].as_str().unwrap();
    let kernel = wisp.home().join("images").join(id).join("vmlinux");
    std::fs::write(&kernel, "something else").unwrap();
    let damaged = wisp.run(&["image", "verify", "other"]).expect_code(1);
    assert!(damaged.stderr.contains("vmlinux") && damaged.text().contains("root.ext4"), "{}", damaged.stderr);
    let refused = wisp.run(&["image", "import", kernel.parent().unwrap().to_str().unwrap(), "--name", "fourth"]);
    assert!(refused.expect_code(1).stderr.contains("vmlinux"), "the damaged file is named");

    wisp.run(&["image", "rm", "other", "third"]).expect_code(0);
    assert!(!kernel.exists(), "an unused image's files remain");
    let list = wisp.run(&["image", "ls"]).expect_code(0).text();
    assert!(list.contains("tiny") && !list.contains("third"), "{list}");
}
