//! Disks: what the guest writes is on the host, what it may not write it cannot, and it sees what is there.

mod common;

use std::fs;

use common::{Wisp, noise, sha256};

const MIB: usize = 1 << 20;

#[test]
fn what_the_guest_writes_and_flushes_is_in_the_file() {
    let wisp = Wisp::new();
    let folder = tempfile::tempdir().unwrap();
    let (writable, read_only) = (folder.path().join("writable"), folder.path().join("read-only"));
    let original = noise(2 * MIB);
    fs::write(&writable, vec![0; 2 * MIB]).unwrap();
    fs::write(&read_only, &original).unwrap();
    let script = "
        cat /sys/block/vdb/serial; echo; cat /sys/block/vdc/ro
        dd if=/dev/vdc of=/dev/vdb bs=64k conv=fsync 2>/dev/null
        sha256sum /dev/vdb | cut -d' ' -f1
        dd if=/dev/zero of=/dev/vdc bs=4k count=1 conv=fsync 2>/dev/null && echo 'a read-only disk was written'
        blkdiscard -o 1048576 -l 65536 /dev/vdb || echo 'no discard'
        dd if=/dev/vdb bs=4k count=1 skip=512 2>/dev/null | wc -c
        exit 0";
    let read_only_arg = format!("{}:ro", read_only.display());
    let args = ["run", "--disk", writable.to_str().unwrap(), "--disk", &read_only_arg, "--", "sh", "-c", script];
    let outcome = wisp.run(&args).expect_code(0);
    let lines: Vec<String> = outcome.text().lines().map(str::to_string).collect();
    assert_eq!(lines, ["disk0", "1", &sha256(&original), "0"], "{}", outcome.stderr);
    let written = fs::read(&writable).unwrap();
    assert!(written[..MIB] == original[..MIB], "the disk's beginning differs");
    assert!(written[MIB + 65_536..] == original[MIB + 65_536..], "the disk's end differs");
    assert!(fs::read(&read_only).unwrap() == original, "the read-only disk's file was changed");
}

#[test]
fn the_root_file_system_s_image_is_never_written() {
    let wisp = Wisp::new();
    let root = wisp.bundle().join("root.ext4");
    let before = sha256(&fs::read(&root).unwrap());
    let script = "echo precious > /root/file && sync && cat /root/file";
    let outcome = wisp.run(&["run", "--", "sh", "-c", script]).expect_code(0);
    assert_eq!(outcome.text(), "precious\n");
    assert_eq!(sha256(&fs::read(&root).unwrap()), before);
}
