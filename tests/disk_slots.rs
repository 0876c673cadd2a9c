//! Attaching, detaching, resizing and switching a disk that a driver is using loses none of the driver's writes.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::slots::{Bench, CONFIG_CHANGE, FLUSH, IN, IO_ERROR, MIB, OK, OUT, bench, check};
use disk::disk_image;
use disk::{BlockError, Disk};
use machine::config::{BackingFile, DiskAccess, DiskConfig, DiskFormat};
use proptest::prelude::*;
use vm_memory::VolatileSlice;
use vmm::bus::BusDevice;
use vmm::disk_slots::SlotError;
use vmm::virtio::register;

#[test]
fn attached_disk_detaches_after_driver_unbinds() {
    let bench = bench(2);
    let mut driver = bench.driver(0);
    assert_eq!(driver.read(register::DEVICE_ID), 0);
    assert!(!driver.bind(), "the driver bound an empty slot");

    let disk = bench.disk("first", DiskFormat::Raw, MIB);
    assert_eq!(bench.slots.attach(&disk).unwrap(), 0);
    assert_eq!(bench.slots.slot_of("first").unwrap(), 0);
    assert_eq!((driver.read(register::DEVICE_ID), driver.sectors()), (2, 2048));
    assert!(driver.bind());
    assert_eq!(driver.request(OUT, 2047, &mut [0xab; 512]), OK);

    assert!(matches!(bench.slots.detach("first", false), Err(SlotError::InUse(_))));
    driver.unbind();
    bench.slots.detach("first", false).unwrap();
    assert_eq!((driver.read(register::DEVICE_ID), driver.sectors()), (0, 0));
    assert!(!driver.bind(), "the driver bound an empty slot");
    assert_eq!(fs::read(bench.path("first")).unwrap()[MIB as usize - 512..], [0xab; 512]);
    // The file is no longer locked.
    disk_image::grow(&bench.path("first"), DiskFormat::Raw, &[], 2 * MIB).unwrap();
    assert!(matches!(bench.slots.detach("first", true), Err(SlotError::Unknown(_))));
}

#[test]
fn attach_fills_slots_in_order_and_refuses_duplicate_ids() {
    let bench = bench(2);
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        assert_eq!(bench.slots.attach(&bench.disk(name, DiskFormat::Qcow2, MIB)).unwrap(), index);
    }
    let third = bench.disk("c", DiskFormat::Raw, MIB);
    assert!(matches!(bench.slots.attach(&third), Err(SlotError::Full(2))));
    assert!(matches!(bench.slots.attach(&DiskConfig { id: "a".into(), ..third.clone() }), Err(SlotError::Taken(_))));
    let long = DiskConfig { id: "x".repeat(21), ..third.clone() };
    assert!(matches!(bench.slots.attach(&long), Err(SlotError::Config(_))));
    bench.slots.detach("a", false).unwrap();
    let absent = DiskConfig { path: bench.path("absent"), ..third.clone() };
    assert!(matches!(bench.slots.attach(&absent), Err(SlotError::Disk(BlockError::Open { .. }))));
    assert_eq!(bench.slots.attach(&third).unwrap(), 0);
}

#[test]
fn forced_detach_fails_requests_until_driver_unbinds() {
    let bench = bench(1);
    let mut driver = bench.driver(0);
    bench.slots.attach(&bench.disk("first", DiskFormat::Qcow2, MIB)).unwrap();
    assert!(driver.bind());
    assert_eq!(driver.request(OUT, 0, &mut [1; 4096]), OK);
    bench.slots.detach("first", true).unwrap();
    check(&bench.path("first"));
    for kind in [IN, OUT, FLUSH] {
        assert_eq!(driver.request(kind, 0, &mut [0; 512]), IO_ERROR);
    }
    let second = bench.disk("second", DiskFormat::Raw, MIB);
    assert!(matches!(bench.slots.attach(&second), Err(SlotError::Full(1))));
    driver.unbind();
    bench.slots.attach(&second).unwrap();
    assert!(driver.bind());
    let mut data = [9; 512];
    assert_eq!((driver.request(IN, 0, &mut data), data), (OK, [0; 512]));
}

#[test]
fn resize_notifies_driver_of_new_capacity() {
    let bench = bench(1);
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let name = format!("{format:?}");
        bench.slots.attach(&bench.disk(&name, format, MIB)).unwrap();
        let mut driver = bench.driver(0);
        assert!(driver.bind());
        assert_eq!(driver.request(OUT, 2048, &mut [7; 512]), IO_ERROR);
        let generation = driver.read(register::CONFIG_GENERATION);
        bench.slots.resize(&name, 2 * MIB).unwrap();
        driver.wait_for_interrupt();
        assert_eq!(driver.read(register::INTERRUPT_STATUS), CONFIG_CHANGE);
        assert_ne!(driver.read(register::CONFIG_GENERATION), generation);
        assert_eq!(driver.sectors(), 4096);
        assert_eq!(driver.request(OUT, 4095, &mut [7; 512]), OK);
        for (size, what) in [(MIB, "shrink"), (2 * MIB + 1, "partial sector")] {
            assert!(matches!(bench.slots.resize(&name, size), Err(SlotError::Disk(_))), "{what}");
        }
        driver.unbind();
        bench.slots.detach(&name, false).unwrap();
        assert_eq!(disk_image::information(&bench.path(&name), format).unwrap().virtual_size, 2 * MIB);
    }
}

#[test]
fn switch_to_overlays_loses_no_write() {
    const BLOCKS: u64 = 256;
    const LAYERS: usize = 12;
    const BETWEEN: usize = 20;
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let bench = bench(1);
        bench.slots.attach(&bench.disk("layer0", format, 64 * MIB)).unwrap();
        let mut driver = bench.driver(0);
        assert!(driver.bind());
        let stop = AtomicBool::new(false);
        let (done, progress) = std::sync::mpsc::channel();
        let mut frozen: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        let (mut driver, written) = std::thread::scope(|scope| {
            let stop = &stop;
            let writer = scope.spawn(move || {
                let mut written = vec![0_u64; BLOCKS as usize];
                let mut count = 0_u64;
                // Blocks are spread over many clusters. Each contains the number of its last write.
                while !stop.load(Ordering::Acquire) {
                    count += 1;
                    let block = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS;
                    let mut data = count.to_le_bytes().repeat(512);
                    assert_eq!(driver.request(OUT, block * 512, &mut data), OK);
                    written[block as usize] = count;
                    let other = count.wrapping_mul(0xd134_2543_de82_ef95) % BLOCKS;
                    assert_eq!(driver.request(IN, other * 512, &mut data), OK);
                    assert_eq!(data, written[other as usize].to_le_bytes().repeat(512), "block {other}");
                    done.send(()).unwrap();
                }
                (driver, written)
            });
            let mut present = (bench.path("layer0"), format);
            for number in 1..=LAYERS {
                // Wait until the driver has written some blocks since the last switch.
                assert_eq!(progress.iter().take(BETWEEN).count(), BETWEEN);
                let layer = bench.path(&format!("layer{number}"));
                disk_image::create_layer(&layer, &present.0, present.1, None).unwrap();
                bench.slots.switch("layer0", &layer).unwrap();
                frozen.push((present.0.clone(), fs::read(&present.0).unwrap()));
                present = (layer, DiskFormat::Qcow2);
            }
            stop.store(true, Ordering::Release);
            writer.join().unwrap()
        });
        for (block, number) in (0..).zip(&written) {
            let mut data = [0; 4096];
            assert_eq!(driver.request(IN, block * 512, &mut data), OK);
            assert_eq!(data[..], number.to_le_bytes().repeat(512), "block {block}");
        }
        driver.unbind();
        bench.slots.detach("layer0", false).unwrap();
        for (path, bytes) in &frozen {
            assert!(fs::read(path).unwrap() == *bytes, "{} was changed after the switch", path.display());
        }
        let top = bench.path(&format!("layer{LAYERS}"));
        (1..=LAYERS).for_each(|number| check(&bench.path(&format!("layer{number}"))));
        let flat = bench.path("flat");
        let backing: Vec<BackingFile> = (0..LAYERS).rev().map(|number| overlay(&bench, number, format)).collect();
        disk_image::convert(&top, DiskFormat::Qcow2, &backing, &flat, DiskFormat::Raw).unwrap();
        let flat = fs::read(flat).unwrap();
        for (block, number) in written.iter().enumerate() {
            assert_eq!(flat[block * 512 * 512..][..4096], number.to_le_bytes().repeat(512), "block {block}");
        }
    }
}

fn overlay(bench: &Bench, number: usize, format: DiskFormat) -> BackingFile {
    let format = if number == 0 { format } else { DiskFormat::Qcow2 };
    BackingFile { path: bench.path(&format!("layer{number}")), format }
}

/// Changes the backing file's name in the header of a qcow2 image, as a compromised VMM can.
fn forge_backing(image: &Path, name: &str) {
    let file = fs::File::options().read(true).write(true).open(image).unwrap();
    let mut place = [0; 12];
    file.read_exact_at(&mut place, 8).unwrap();
    let offset = u64::from_be_bytes(place[..8].try_into().unwrap());
    assert!(offset > 0, "{} has no backing file", image.display());
    file.write_all_at(name.as_bytes(), offset).unwrap();
    file.write_all_at(&(name.len() as u32).to_be_bytes(), 16).unwrap();
}

#[test]
fn forged_backing_file_name_is_refused() {
    let bench = bench(1);
    let [base, layer, next] = ["base", "layer", "next"].map(|name| bench.path(name));
    disk_image::create(&base, DiskFormat::Raw, MIB).unwrap();
    disk_image::create_layer(&layer, &base, DiskFormat::Raw, None).unwrap();
    let disk = DiskConfig {
        id: "disk".into(),
        path: layer.clone(),
        format: DiskFormat::Qcow2,
        backing: vec![BackingFile { path: base, format: DiskFormat::Raw }],
        access: DiskAccess::ReadWrite,
        root: false,
        was: None,
        limits: None,
    };
    bench.slots.attach(&disk).unwrap();
    let mut driver = bench.driver(0);
    assert!(driver.bind());
    // Opening a FIFO would block forever.
    rustix::fs::mkfifoat(rustix::fs::CWD, bench.path("fifo"), rustix::fs::Mode::RUSR).unwrap();
    forge_backing(&layer, "fifo");
    disk_image::create_layer(&next, &layer, DiskFormat::Qcow2, None).unwrap();
    let switched = bench.slots.switch("disk", &next);
    assert!(matches!(switched, Err(SlotError::Disk(BlockError::OtherBacking { .. }))), "{switched:?}");
    assert_eq!(driver.request(OUT, 8, &mut [8; 512]), OK);
    driver.unbind();
    bench.slots.detach("disk", false).unwrap();
    let attached = bench.slots.attach(&disk);
    assert!(matches!(attached, Err(SlotError::Disk(BlockError::OtherBacking { .. }))), "{attached:?}");
}

#[test]
fn failed_switch_leaves_disk_unchanged() {
    let bench = bench(1);
    bench.slots.attach(&bench.disk("disk", DiskFormat::Raw, MIB)).unwrap();
    let mut driver = bench.driver(0);
    assert!(driver.bind());
    disk_image::create(&bench.path("other"), DiskFormat::Raw, MIB).unwrap();
    disk_image::create_layer(&bench.path("over-other"), &bench.path("other"), DiskFormat::Raw, None).unwrap();
    disk_image::create(&bench.path("alone"), DiskFormat::Qcow2, MIB).unwrap();
    for layer in ["over-other", "alone", "other", "absent"] {
        assert!(matches!(bench.slots.switch("disk", &bench.path(layer)), Err(SlotError::Disk(_))), "{layer}");
        assert_eq!(driver.request(OUT, 8, &mut [8; 512]), OK);
        let grown = disk_image::grow(&bench.path("disk"), DiskFormat::Raw, &[], 2 * MIB);
        assert!(grown.is_err(), "the disk's file is no longer locked");
    }
    // A repeated switch succeeds: a client repeats the request if it was killed before the response.
    bench.slots.switch("disk", &bench.path("disk")).unwrap();
    driver.unbind();
    bench.slots.detach("disk", false).unwrap();
    assert_eq!(fs::read(bench.path("disk")).unwrap()[4096..4608], [8; 512]);
}

#[test]
fn backing_file_after_switch_is_readable_but_not_writable() {
    let bench = bench(1);
    bench.slots.attach(&bench.disk("disk", DiskFormat::Raw, MIB)).unwrap();
    let layer = bench.path("layer");
    disk_image::create_layer(&layer, &bench.path("disk"), DiskFormat::Raw, Some(2 * MIB)).unwrap();
    bench.slots.switch("disk", &layer).unwrap();
    assert_eq!(bench.driver(0).sectors(), 4096);
    disk_image::convert(&bench.path("disk"), DiskFormat::Raw, &[], &bench.path("copy"), DiskFormat::Raw).unwrap();
    let base = BackingFile { path: bench.path("disk"), format: DiskFormat::Raw };
    for (path, format, backing) in [("disk", DiskFormat::Raw, &[][..]), ("layer", DiskFormat::Qcow2, &[base])] {
        let grown = disk_image::grow(&bench.path(path), format, backing, 4 * MIB);
        assert!(matches!(grown, Err(disk_image::ImageError::Image(BlockError::InUse(_)))), "{path}");
    }
}

#[test]
fn read_only_and_ephemeral_disks_refuse_switch() {
    let bench = bench(1);
    for access in [DiskAccess::ReadOnly, DiskAccess::Ephemeral] {
        let name = format!("{access:?}");
        let disk = DiskConfig { access, ..bench.disk(&name, DiskFormat::Raw, MIB) };
        bench.slots.attach(&disk).unwrap();
        disk_image::create_layer(&bench.path("layer"), &disk.path, DiskFormat::Raw, None).unwrap();
        let switched = bench.slots.switch(&name, &bench.path("layer"));
        assert!(matches!(switched, Err(SlotError::Disk(BlockError::NotWritten(..)))));
        let grown = bench.slots.resize(&name, 2 * MIB).is_ok();
        assert_eq!(grown, access == DiskAccess::Ephemeral);
        bench.slots.detach(&name, false).unwrap();
        fs::remove_file(bench.path("layer")).unwrap();
        assert_eq!(fs::metadata(&disk.path).unwrap().len(), MIB);
    }
}

#[test]
fn disk_record_counts_requests_and_bytes() {
    let bench = bench(2);
    bench.slots.attach(&bench.disk("disk", DiskFormat::Raw, MIB)).unwrap();
    let mut driver = bench.driver(0);
    assert!(driver.bind());
    driver.request(OUT, 0, &mut [1; 4096]);
    driver.request(IN, 0, &mut [0; 512]);
    driver.request(IN, 1, &mut [0; 512]);
    let records = bench.slots.records();
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!((record.id.as_str(), record.reads, record.writes), ("disk", 2, 1));
    assert_eq!((record.read_bytes, record.written_bytes, record.errors), (1024, 4096, 0));
    assert_eq!(record.last_error, None);
}

/// A copy of the file represents the state after a kill, because the page cache outlives the process.
#[test]
fn killed_vmm_loses_no_flushed_block() {
    const SIZE: u64 = 64 << 30;
    let dir = tempfile::tempdir().unwrap();
    let path = |round: u64| dir.path().join(format!("round{round}"));
    disk_image::create(&path(0), DiskFormat::Qcow2, SIZE).unwrap();
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 24
    };
    let mut flushed: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..12 {
        let (access, format) = (DiskAccess::ReadWrite, DiskFormat::Qcow2);
        let config = DiskConfig::new("disk", path(round), format, access);
        let disk = Disk::open(&config, dir.path()).unwrap();
        for (block, number) in &flushed {
            let mut data = vec![0; 4096];
            disk.read(&[VolatileSlice::from(data.as_mut_slice())], block * 4096).unwrap();
            assert_eq!(data, number.to_le_bytes().repeat(512), "round {round}, block {block}");
        }
        let mut write = |flushed: Option<&mut BTreeMap<u64, u64>>, count: u64| {
            let mut written = BTreeMap::new();
            for number in 0..count {
                let block = random() % (SIZE / 4096);
                let mut data = (round << 32 | number).to_le_bytes().repeat(512);
                disk.write(&[VolatileSlice::from(data.as_mut_slice())], block * 4096).unwrap();
                written.insert(block, round << 32 | number);
            }
            flushed.into_iter().for_each(|flushed| flushed.append(&mut written.clone()));
            written
        };
        write(Some(&mut flushed), 40);
        disk.flush().unwrap();
        // Unflushed blocks may be lost.
        let lost = write(None, 40);
        flushed.retain(|block, _| !lost.contains_key(block));
        fs::copy(path(round), path(round + 1)).unwrap();
    }
    let (path, format, access) = (path(12), DiskFormat::Qcow2, DiskAccess::ReadWrite);
    let config = DiskConfig::new("disk", path.clone(), format, access);
    drop(Disk::open(&config, dir.path()).unwrap());
    let output = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output().unwrap();
    // Exit code 3 means only leaked clusters.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&output.stdout));
}

#[derive(Debug, Clone)]
enum Step {
    Read(u64, usize),
    Write(u64, usize, u64),
    Bind,
    ControlRequest(u32, u64, usize),
    Attach(bool),
    Detach(bool),
    Resize(u64),
    Switch,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_u64..0x140, 1_usize..=8).prop_map(|(offset, width)| Step::Read(offset, width)),
        (0_u64..0x140, 1_usize..=8, any::<u64>()).prop_map(|(offset, width, value)| Step::Write(offset, width, value)),
        (0_u64..0x50, 0_u64..0x100).prop_map(|(offset, value)| Step::Write(offset * 4, 4, value)),
        Just(Step::Bind),
        (0_u32..14, 0_u64..5000, 0_usize..4).prop_map(|(kind, sector, count)| Step::ControlRequest(
            kind,
            sector,
            count * 512
        )),
        any::<bool>().prop_map(Step::Attach),
        any::<bool>().prop_map(Step::Detach),
        (1_u64..8).prop_map(|sectors| Step::Resize(sectors * MIB / 2)),
        Just(Step::Switch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_guest_and_host_steps_keep_slot_consistent(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let bench = bench(1);
        let mut driver = bench.driver(0);
        let mut present = None;
        let mut files = 0;
        for step in steps {
            match step {
                Step::Read(offset, width) => driver.transport.lock().unwrap().read(offset, &mut [0; 8][..width]),
                Step::Write(offset, width, value) => {
                    driver.transport.lock().unwrap().write(offset, &value.to_le_bytes()[..width]);
                }
                Step::Bind => {
                    prop_assert_eq!(driver.bind(), present.is_some());
                }
                Step::ControlRequest(kind, sector, length) => {
                    // After arbitrary register writes, only a freshly initialized device answers.
                    if driver.bind() {
                        driver.request(kind, sector, &mut vec![0; length.max(512)]);
                    }
                }
                Step::Attach(raw) => {
                    files += 1;
                    let format = if raw { DiskFormat::Raw } else { DiskFormat::Qcow2 };
                    let mut disk = bench.disk(&format!("file{files}"), format, MIB);
                    disk.id = "disk".into();
                    if bench.slots.attach(&disk).is_ok() {
                        present = Some((disk.path, format));
                    }
                }
                Step::Detach(force) => {
                    if bench.slots.detach("disk", force).is_ok() {
                        present = None;
                    }
                    prop_assert!(!force || present.is_none());
                }
                Step::Resize(size) => {
                    let before = present.as_ref().map(|(path, format)| {
                        disk_image::information(path, *format).unwrap().virtual_size
                    });
                    let resized = bench.slots.resize("disk", size).is_ok();
                    prop_assert_eq!(resized, before.is_some_and(|before| before <= size));
                }
                Step::Switch => {
                    let Some((path, format)) = present.take() else { continue };
                    files += 1;
                    let layer = bench.path(&format!("file{files}"));
                    disk_image::create_layer(&layer, &path, format, None).unwrap();
                    bench.slots.switch("disk", &layer).unwrap();
                    present = Some((layer, DiskFormat::Qcow2));
                }
            }
        }
        if let Some((path, format)) = present {
            bench.slots.detach("disk", true).unwrap();
            if format == DiskFormat::Qcow2 {
                check(&path);
            }
        }
    }
}
