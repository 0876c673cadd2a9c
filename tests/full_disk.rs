//! A full host disk: the guest's writes fail, everything else works, and writes succeed again once space is freed.
//! A file size limit simulates the full disk. The limit applies to the process, so this file has only one test.

mod common;

use common::slots::{Bench, FLUSH, IN, IO_ERROR, MIB, OK, OUT, bench, check};
use disk::disk_image;
use machine::config::{BackingFile, DiskAccess, DiskConfig, DiskFormat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const BLOCK: usize = 64 << 10;
const BLOCKS: u64 = 512;

fn limit_files(bytes: Option<u64>) {
    let limit = Rlimit { current: bytes, ..getrlimit(Resource::Fsize) };
    setrlimit(Resource::Fsize, limit).unwrap();
}

/// Returns the content of a block. It differs between blocks and is never zero.
fn content(block: u64) -> Vec<u8> {
    (block + 1).to_le_bytes().repeat(BLOCK / 8)
}

fn layer(bench: &Bench) -> DiskConfig {
    disk_image::create(&bench.path("base"), DiskFormat::Raw, BLOCKS * BLOCK as u64).unwrap();
    disk_image::create_layer(&bench.path("layer"), &bench.path("base"), DiskFormat::Raw, None).unwrap();
    let (path, format, access) = (bench.path("layer"), DiskFormat::Qcow2, DiskAccess::ReadWrite);
    let backing = vec![BackingFile { path: bench.path("base"), format: DiskFormat::Raw }];
    DiskConfig { id: "layer".into(), path, format, access, root: false, backing, was: None, limits: None }
}

#[test]
fn full_disk_fails_only_writes() {
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    for name in ["raw", "qcow2", "layer"] {
        let bench = bench(1);
        let disk = match name {
            "raw" => bench.disk(name, DiskFormat::Raw, BLOCKS * BLOCK as u64),
            "qcow2" => bench.disk(name, DiskFormat::Qcow2, BLOCKS * BLOCK as u64),
            _ => layer(&bench),
        };
        let path = disk.path.clone();
        bench.slots.attach(&disk).unwrap();
        let mut driver = bench.driver(0);
        assert!(driver.bind());

        limit_files(Some(8 * MIB));
        let answers: Vec<u8> = (0..BLOCKS).map(|block| driver.request(OUT, block * 128, &mut content(block))).collect();
        let written = answers.iter().filter(|answer| **answer == OK).count();
        assert!((64..=128).contains(&written), "{name}: {written} blocks were written");
        assert!(answers.iter().all(|answer| matches!(*answer, OK | IO_ERROR)), "{name}");
        let record = bench.slots.records().remove(0);
        assert!(record.errors >= BLOCKS - written as u64, "{name}: {record:?}");
        assert!(record.last_error.is_some_and(|error| error.contains("File too large")), "{name}");
        for (block, answer) in (0..).zip(&answers) {
            let mut data = vec![0; BLOCK];
            assert_eq!(driver.request(IN, block * 128, &mut data), OK, "{name}: block {block}");
            assert!(*answer != OK || data == content(block), "{name}: block {block} is not what was written");
        }
        // The flush may fail, but must leave the image in a consistent state.
        driver.request(FLUSH, 0, &mut []);

        limit_files(None);
        for (block, _) in (0..).zip(&answers).filter(|(_, answer)| **answer != OK) {
            assert_eq!(driver.request(OUT, block * 128, &mut content(block)), OK, "{name}: block {block}");
        }
        assert_eq!(driver.request(FLUSH, 0, &mut []), OK, "{name}");
        driver.unbind();
        bench.slots.detach(name, false).unwrap();
        if disk.format == DiskFormat::Qcow2 {
            check(&path);
        }
        let flat = bench.path("flat");
        disk_image::convert(&path, disk.format, &disk.backing, &flat, DiskFormat::Raw).unwrap();
        let flat = std::fs::read(flat).unwrap();
        for (block, bytes) in (0..).zip(flat.chunks(BLOCK)) {
            assert!(bytes == content(block), "{name}: block {block} is not what was written");
        }
    }
}
