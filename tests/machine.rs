//! A machine outlives its watcher, answers on its sockets, and records its end.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use common::machines::{Machine, config};
use common::{DEADLINE, Wisp};
use disk::disk_image;
use machine::config::{BackingFile, CpuConfig, DiskAccess, DiskConfig, DiskFormat};
use machine::control::{ControlClient, ControlRequest, Message};
use machine::end::End;
use machine::end_record::EndRecord;

const MIB: u64 = 1 << 20;

#[test]
fn disk_attach_switch_resize_and_detach_reach_guest() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let config = config(&wisp);
    let mut machine = Machine::start(&wisp, dir, &config);
    machine.wait_until_ready();
    assert_eq!(machine.shell("ls /sys/block | grep vd"), "vda\n");

    let data = machine.path("data");
    disk_image::create(&data, DiskFormat::Raw, 2 * MIB).unwrap();
    let disk = DiskConfig::new("vol-1", data.clone(), DiskFormat::Raw, DiskAccess::ReadWrite);
    let attached = machine.ask(&ControlRequest::AttachDisk { disk });
    let Message::Attached { slot: 1, bus_device, .. } = &attached else { panic!("{attached:?}") };
    let driver = "/sys/bus/platform/drivers/virtio-mmio";
    let seen = machine
        .shell(&format!("echo {bus_device} > {driver}/bind; cat /sys/block/vdb/serial; echo; cat /sys/block/vdb/size"));
    assert_eq!(seen, "vol-1\n4096\n");
    assert_eq!(machine.ask(&ControlRequest::DiskSlot { id: "vol-1".into() }), attached);

    let layer = machine.path("layer");
    disk_image::create_layer(&layer, &data, DiskFormat::Raw, None).unwrap();
    // Write the bytes of a program, because generating random bytes takes long under software KVM.
    let before = machine.shell(
        "dd if=/proc/self/exe of=/dev/vdb bs=64k count=4 conv=fsync 2>/dev/null
        dd if=/proc/self/exe bs=64k count=4 2>/dev/null | sha256sum | cut -d' ' -f1",
    );
    let backing = vec![BackingFile { path: data.clone(), format: DiskFormat::Raw }];
    let switched =
        machine.ask(&ControlRequest::SwitchDisk { id: "vol-1".into(), layer: layer.clone(), backing: backing.clone() });
    assert_eq!(switched, Message::Done);
    let snapshot = fs::read(&data).unwrap();
    assert_eq!(common::sha256(&snapshot[..256 << 10]), before.trim(), "the snapshot is not what was written");
    let now = machine.shell(
        "dd if=/dev/zero of=/dev/vdb bs=64k count=1 conv=fsync 2>/dev/null
        echo 3 > /proc/sys/vm/drop_caches; sha256sum /dev/vdb | cut -d' ' -f1",
    );

    let resized = machine.ask(&ControlRequest::ResizeDisk { id: "vol-1".into(), size: 3 * MIB });
    assert_eq!(resized, Message::Done);
    machine.shell(
        "while [ $(cat /sys/block/vdb/size) != 6144 ]; do :; done
        dd if=/dev/zero of=/dev/vdb bs=64k seek=47 count=1 conv=fsync 2>/dev/null",
    );

    let refused = machine.ask(&ControlRequest::DetachDisk { id: "vol-1".into(), force: false });
    assert!(matches!(&refused, Message::Failed { why } if why.contains("driver")), "{refused:?}");
    machine.shell(&format!("echo {bus_device} > {driver}/unbind; [ ! -e /sys/block/vdb ]"));
    assert_eq!(machine.ask(&ControlRequest::DetachDisk { id: "vol-1".into(), force: false }), Message::Done);
    assert_eq!(fs::read(&data).unwrap(), snapshot, "the snapshot was changed");
    disk_image::convert(&layer, DiskFormat::Qcow2, &backing, &machine.path("flat"), DiskFormat::Raw).unwrap();
    let flat = fs::read(machine.path("flat")).unwrap();
    assert_eq!(common::sha256(&flat[..2 * MIB as usize]), now.trim(), "the layer is not what the guest saw");

    let disk = DiskConfig {
        id: "vol-2".into(),
        path: layer,
        format: DiskFormat::Qcow2,
        access: DiskAccess::ReadOnly,
        root: false,
        backing,
        was: None,
        limits: None,
    };
    assert_eq!(machine.ask(&ControlRequest::AttachDisk { disk }), attached);
    let seen = machine
        .shell(&format!("echo {bus_device} > {driver}/bind; cat /sys/block/vdb/serial; echo; cat /sys/block/vdb/ro"));
    assert_eq!(seen, "vol-2\n1\n");
    let status = machine.status();
    assert!(status.cpu_time_ns > 0);
    let ids: Vec<&str> = status.disks.iter().map(|disk| disk.id.as_str()).collect();
    assert_eq!(ids, ["root", "vol-2"]);
    assert!(status.disks.iter().all(|disk| disk.reads > 0 && disk.errors == 0), "{:?}", status.disks);
}

#[test]
fn machine_outlives_watcher_and_records_its_end() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&wisp);
    config.kernel.cmdline = String::new();
    // Files left by a killed VMM.
    let own = dir.path().join("vmm");
    fs::create_dir(&own).unwrap();
    for name in ["vmm/control.sock", "vmm/console.sock", "vmm/vsock.sock"] {
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(name)).unwrap());
    }
    EndRecord::Failed { why: "long ago".into() }.write(&own).unwrap();
    let mut machine = Machine::start(&wisp, dir, &config);
    machine.wait_until_ready();
    assert_eq!(EndRecord::read(&own).unwrap(), None);

    machine.control = ControlClient::connect(&machine.path("vmm/control.sock")).unwrap();
    machine.status();

    let terminal = UnixStream::connect(machine.path("vmm/console.sock")).unwrap();
    terminal.set_read_timeout(Some(DEADLINE)).unwrap();
    machine.status();
    let mut second = String::new();
    UnixStream::connect(machine.path("vmm/console.sock")).unwrap().read_to_string(&mut second).unwrap();
    assert!(second.contains("another terminal"), "{second}");
    machine.shell("echo hello from the guest > /dev/ttyS0");
    let mut line = String::new();
    let mut reader = BufReader::new(&terminal);
    while !line.contains("hello from the guest") {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the console was closed");
    }
    (&terminal).write_all(b"typed\n").unwrap();
    assert!(machine.shell("stty -F /dev/ttyS0 -echo 2>/dev/null; head -n1 < /dev/ttyS0").contains("typed"));

    assert_eq!(machine.ask(&ControlRequest::Subscribe), Message::Done);
    assert_eq!(machine.control.receive(Some(DEADLINE)).unwrap(), Message::Ready);
    machine.control.send(&ControlRequest::Kill { by: "the test".into() }).unwrap();
    let Message::Ended { end, .. } = machine.control.receive(Some(DEADLINE)).unwrap() else { panic!("no end") };
    assert_eq!(end, End::Killed { by: "the test".into() });
    // The record exists before any client is notified.
    let record = EndRecord::read(&own).unwrap();
    let Some(EndRecord::Ended { end: kept, status, ended_at: 1.. }) = record else { panic!("{record:?}") };
    assert_eq!(kept, end);
    assert!(status.cpu_time_ns > 0);
}

#[test]
fn restored_machine_resumes_where_it_was_saved() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("vmm/saved");
    fs::create_dir_all(&saved).unwrap();
    let mut config = config(&wisp);
    config.cpus = CpuConfig { count: 2, threads_per_core: 1 };
    config.disks[0].access = DiskAccess::ReadWrite;
    config.disks[0].path = dir.path().join("root.raw");
    fs::copy(wisp.bundle().join("root.ext4"), &config.disks[0].path).unwrap();
    let mut machine = Machine::start(&wisp, dir, &config);
    machine.wait_until_ready();
    machine
        .shell("(i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; done) > /dev/null 2>&1 & echo kept > /root/file");
    let boot = machine.shell("cat /proc/sys/kernel/random/boot_id");

    // The machine resumes after a snapshot for a fork.
    let began = std::time::Instant::now();
    let dir = || saved.clone();
    let Message::Saved { paused_ns } = machine.ask(&ControlRequest::Fork { dir: dir(), layers: Vec::new() }) else {
        panic!("{}", fs::read_to_string(machine.path("vmm.log")).unwrap());
    };
    println!("saved in {:?}, paused for {paused_ns} ns", began.elapsed());
    let count = |machine: &Machine| {
        machine.shell("until c=$(cat /tmp/count) && [ -n \"$c\" ]; do :; done; echo $c").trim().parse::<u64>().unwrap()
    };
    let before = count(&machine);
    while count(&machine) == before {}

    machine.control.send(&ControlRequest::Save { dir: dir() }).unwrap();
    let Message::Ended { end: End::Saved, .. } = machine.control.receive(Some(DEADLINE)).unwrap() else {
        panic!("{}", fs::read_to_string(machine.path("vmm.log")).unwrap());
    };
    machine.vmm.wait().unwrap();
    let dir = std::mem::replace(&mut machine.dir, tempfile::tempdir().unwrap());

    let began = std::time::Instant::now();
    let mut machine = Machine::start_or_restore(&wisp, dir, &config, Some(&saved));
    let status = machine.status();
    println!("restored in {:?}: {status:?}", began.elapsed());
    machine.wait_until_ready();
    println!("ready in {:?}", began.elapsed());
    assert_eq!(machine.shell("cat /proc/sys/kernel/random/boot_id"), boot);
    println!("answered in {:?}", began.elapsed());
    assert!(count(&machine) >= before);
    let before = count(&machine);
    while count(&machine) == before {}
    assert_eq!(machine.shell("cat /root/file; sync; nproc"), "kept\n2\n");
}
