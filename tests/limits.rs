//! CPU, disk and network limits: their effect on real guests, and the limits of instance types and volumes.

mod common;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use base64::prelude::*;
use common::machines::{Machine, config};
use common::{DEADLINE, Wisp, instances};
use machine::config::{DiskAccess, DiskConfig, DiskFormat, NetConfig};
use machine::control::{ControlClient, ControlRequest, DiskRecord, Message, VmmStatus};
use machine::limits::{CpuBalance, CpuBudgetConfig, DiskLimits, NetLimits, Rate};
use machine::network::{MacAddress, MetadataConfig, NetstackConfig};
use serde_json::json;
use test_support::Steps;

const SECOND: u64 = 1_000_000_000;
/// The share of one CPU that the vCPU earns. Without a limit, the vCPU would get more, even on a busy host.
const SHARE: f64 = 0.2;
/// A loop of less than a second. It is user code, which runs natively even under software KVM.
const BUSY: &str = "i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done";

/// Runs [`BUSY`] in the guest. Returns the vCPU's CPU time and the elapsed time.
fn be_busy(machine: &mut Machine) -> (Duration, Duration) {
    let (before, began) = (machine.status().cpu_time_ns, Instant::now());
    machine.shell(BUSY);
    let used = machine.status().cpu_time_ns - before;
    (Duration::from_nanos(used), began.elapsed())
}

#[test]
fn vcpu_without_surplus_credits_is_throttled_to_earned_share() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&wisp);
    config.cpu_budget = Some(CpuBudgetConfig {
        earned_ppm: (SHARE * 1e6) as u64,
        cap_ns: 60 * SECOND,
        can_owe: true,
        owed_cap_ns: 3600 * SECOND,
        balance: CpuBalance::default(),
    });
    let mut machine = Machine::start(&wisp, dir, &config);
    machine.wait_until_ready();
    let record = machine.status().cpu_budget.unwrap();
    assert!(record.throttled_ns == 0 && record.used_ns > 0, "{record:?}");
    println!("boot: {record:?}");
    let (used, took) = be_busy(&mut machine);
    println!("unlimited: {used:?} of CPU time in {took:?}");

    assert_eq!(machine.ask(&ControlRequest::SetCanOwe { can_owe: false }), Message::Done);
    let before = machine.status().cpu_budget.unwrap();
    // The surplus was charged, and at most one slice has been used since then.
    let CpuBalance { owed_ns, overdrawn_ns, .. } = before.budget.balance;
    assert!(owed_ns == 0 && overdrawn_ns < 100_000_000, "{before:?}");
    let (used, took) = be_busy(&mut machine);
    let after = machine.status().cpu_budget.unwrap();
    println!("limited: {used:?} of CPU time in {took:?}: {after:?}");
    // In addition to its share, the vCPU can use the saved credits, and exceed the limit by its last slices.
    let most = took.as_secs_f64() * SHARE + before.budget.balance.saved_ns as f64 / 1e9 + 0.1;
    assert!(used.as_secs_f64() <= most, "{used:?} in {took:?} is more than {most}");
    // The vCPU was throttled no longer than necessary: it used the earned credits.
    assert!(after.throttled_ns > 0 && after.budget.balance.saved_ns < 100_000_000, "{after:?}");

    // Device threads are charged, too.
    assert_eq!(machine.ask(&ControlRequest::SetCanOwe { can_owe: true }), Message::Done);
    let pid = machine.status().sandbox.pid;
    let (least, deadline) = (Duration::from_millis(30), Instant::now() + DEADLINE);
    while thread_cpu_time(pid, "block0") < least {
        assert!(Instant::now() < deadline, "the disk's thread used {:?} of CPU time", thread_cpu_time(pid, "block0"));
        machine.shell("dd if=/dev/vda of=/dev/null bs=4k count=2000 iflag=direct 2>/dev/null");
    }
    let status = machine.status();
    let devices = status.cpu_budget.as_ref().unwrap().used_ns.saturating_sub(status.cpu_time_ns);
    assert!(devices >= least.as_nanos() as u64 / 2, "{devices} ns were charged for devices");
    assert_eq!(machine.ask(&ControlRequest::SetCanOwe { can_owe: false }), Message::Done);

    // A pause, snapshot or end does not wait for the throttle, which can stop an overdrawn vCPU for seconds.
    machine.shell(&format!("({BUSY}; {BUSY}; {BUSY}; {BUSY}) > /dev/null 2>&1 &"));
    let saved = machine.path("vmm/saved");
    std::fs::create_dir(&saved).unwrap();
    let request = ControlRequest::Fork { dir: saved, layers: Vec::new() };
    let Message::Saved { paused_ns } = machine.ask(&request) else { panic!("the machine was not saved") };
    println!("saved while throttled: paused for {paused_ns} ns");
    assert_eq!(machine.ask(&ControlRequest::SetCanOwe { can_owe: true }), Message::Done);
    let held = machine.status().cpu_budget.unwrap().throttled_ns;
    machine.shell(BUSY);
    let record = machine.status().cpu_budget.unwrap();
    assert_eq!((record.budget.balance.overdrawn_ns, record.throttled_ns), (0, held), "{record:?}");
}

/// Rates per second, which the guest would exceed without limits, even on a busy host.
const DISK_BYTES: u64 = 50_000;
const OPERATIONS: u64 = 10;
const NET_BYTES: u64 = 20_000;
const USER_DATA_BYTES: usize = 150_000;
const BLOCK: u64 = 4096;
const MTU: u16 = 1500;

/// Asserts that `act` stays within the rate, plus a burst of 50 ms and one operation of at most `largest`.
fn expect_within(
    machine: &mut Machine,
    rate: u64,
    largest: u64,
    count: fn(&VmmStatus) -> u64,
    act: impl FnOnce(&mut Machine),
) {
    let began = Instant::now();
    let before = count(&machine.status());
    act(machine);
    let passed = count(&machine.status()) - before;
    let took = began.elapsed();
    println!("{passed} in {took:?}, with a limit of {rate} per second");
    let most = rate / 20 + largest + 1 + (took.as_secs_f64() * rate as f64) as u64;
    assert!(passed > 0 && passed <= most, "{passed} in {took:?} is more than {most}");
}

fn thread_cpu_time(pid: u32, name: &str) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap().path());
    let is_one = |task: &std::path::PathBuf| std::fs::read_to_string(task.join("comm")).unwrap().trim() == name;
    let thread = tasks.into_iter().find(is_one).unwrap_or_else(|| panic!("there is no thread {name}"));
    let stat = std::fs::read_to_string(thread.join("stat")).unwrap();
    // The fields after the name in parentheses start with the state: 11 and 12 are utime and stime (proc(5)).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// Returns a machine with a netstack interface and three disks: byte rate, IOPS rate, no limits.
fn with_limits(wisp: &Wisp, dir: &std::path::Path) -> machine::MachineConfig {
    let mut config = config(wisp);
    let bytes = DiskLimits { bytes: Some(Rate::constant(DISK_BYTES)), operations: None, operation_bytes: 0 };
    let operations =
        DiskLimits { bytes: None, operations: Some(Rate::constant(OPERATIONS)), operation_bytes: 256 << 10 };
    for (id, limits) in [("bytes", Some(bytes)), ("operations", Some(operations)), ("free", None)] {
        let path = dir.join(id);
        std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let (format, access) = (DiskFormat::Raw, DiskAccess::ReadWrite);
        config.disks.push(DiskConfig {
            id: id.into(),
            path,
            format,
            access,
            root: false,
            backing: Vec::new(),
            was: None,
            limits,
        });
    }
    let link = NetstackConfig {
        address: "172.31.0.9".parse().unwrap(),
        prefix_length: 20,
        router: "172.31.0.1".parse().unwrap(),
        dns: Vec::new(),
        mtu: MTU,
        hostname: "ip-172-31-0-9".into(),
        domain: "ec2.internal".into(),
        forwards: Vec::new(),
        filter: None,
        metadata: Some(MetadataConfig {
            enabled: true,
            tokens_required: false,
            hop_limit: 1,
            tree: [].into(),
            identity_document: "{}".into(),
            user_data: Some(BASE64_STANDARD.encode(vec![b'x'; USER_DATA_BYTES])),
        }),
    };
    let (mac, path) = (MacAddress([6, 0, 0, 0, 0, 9]), dir.join("link.json"));
    std::fs::write(&path, serde_json::to_vec(&link).unwrap()).unwrap();
    config.kernel.cmdline.push_str(&format!(" {}", link.network(mac).to_option()));
    let limits = Some(NetLimits { bytes: Rate::constant(NET_BYTES) });
    config.net = Some(NetConfig { mac, mtu: MTU, link: Some(path), limits });
    config
}

#[test]
fn disk_and_network_rates_throttle_without_cpu_use() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let config = with_limits(&wisp, dir.path());
    // A network backend that discards all packets and sends none.
    let (network, mut far) = UnixStream::pair().unwrap();
    std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
    let mut machine = Machine::start_connected(&wisp, dir, &config, network);
    machine.wait_until_ready();
    let direct =
        |from: &str, count: u64| format!("dd if=/dev/{from} of=/dev/null bs=4k count={count} iflag=direct 2>/dev/null");
    let write =
        |to: &str, count: u64| format!("dd if=/dev/zero of=/dev/{to} bs=4k count={count} oflag=direct 2>/dev/null");

    fn moved(disk: &DiskRecord) -> u64 {
        disk.read_bytes + disk.written_bytes
    }
    let mut steps = Steps::new();
    steps.run("the byte rate limits a disk", || {
        expect_within(
            &mut machine,
            DISK_BYTES,
            BLOCK,
            |status| moved(&status.disks[1]),
            |machine| {
                machine.shell(&format!("{}; {}", direct("vdb", 40), write("vdb", 20)));
            },
        );
    });
    steps.run("the IOPS rate limits a disk", || {
        expect_within(
            &mut machine,
            OPERATIONS,
            1,
            |status| status.disks[2].reads + status.disks[2].writes,
            |machine| {
                machine.shell(&format!("{}; {}", direct("vdc", 30), write("vdc", 20)));
            },
        );
    });
    steps.run("only limited disks are throttled", || {
        machine.shell(&format!("{}; {}", direct("vdd", 200), write("vdd", 200)));
        let disks = machine.status().disks;
        assert!(disks[1].throttled_ns > 0 && disks[2].throttled_ns > 0, "{disks:?}");
        assert_eq!((disks[0].throttled_ns, disks[3].throttled_ns, disks[3].reads >= 200), (0, 0, true), "{disks:?}");
    });

    // A large operation counts once per 256 KiB.
    steps.run("a large operation counts once per 256 KiB", || {
        expect_within(
            &mut machine,
            OPERATIONS,
            4,
            |status| (status.disks[2].read_bytes).div_ceil(256 << 10),
            |machine| {
                machine.shell("dd if=/dev/vdc of=/dev/null bs=512k count=16 iflag=direct 2>/dev/null");
            },
        );
    });

    let frame = u64::from(MTU) + 14;
    let net = |status: &VmmStatus| status.net.unwrap();
    steps.run("received data is limited", || {
        expect_within(
            &mut machine,
            NET_BYTES,
            frame,
            |status| status.net.unwrap().received_bytes,
            |machine| {
                let got = machine.shell("wget -q -O - http://169.254.169.254/latest/user-data | wc -c");
                assert_eq!(got.trim(), USER_DATA_BYTES.to_string());
            },
        );
        assert!(
            net(&machine.status()).received_bytes as usize > USER_DATA_BYTES && net(&machine.status()).throttled_ns > 0
        );
    });
    steps.run("sent data is limited", || {
        expect_within(
            &mut machine,
            NET_BYTES,
            frame,
            |status| status.net.unwrap().sent_bytes,
            |machine| {
                // No host answers. The device sends throttled packets later.
                machine.shell("ping -q -c 100 -i 0.02 -s 1400 -W 1 -w 120 172.31.0.77 > /dev/null || true");
                let deadline = Instant::now() + DEADLINE;
                while machine.status().net.unwrap().sent_bytes < 100_000 {
                    assert!(Instant::now() < deadline, "throttled packets do not arrive");
                }
            },
        );
    });

    // A throttled thread sleeps: in several seconds it uses almost no CPU time.
    steps.run("a throttled thread sleeps", || {
        machine.shell(&format!("({}) > /dev/null 2>&1 &", direct("vdb", 200)));
        machine.shell("wget -q -O - http://169.254.169.254/latest/user-data > /dev/null 2>&1 &");
        let pid = machine.status().sandbox.pid;
        let threads = ["block1", "net"].map(|name| (name, thread_cpu_time(pid, name)));
        let held = |status: &VmmStatus| [status.disks[1].throttled_ns, status.net.unwrap().throttled_ns];
        let (before, deadline) = (held(&machine.status()), Instant::now() + DEADLINE);
        let least = Duration::from_secs(3);
        while held(&machine.status()).iter().zip(before).any(|(now, before)| now - before < least.as_nanos() as u64) {
            assert!(Instant::now() < deadline, "nothing is throttled");
        }
        for (name, before) in threads {
            let had = thread_cpu_time(pid, name) - before;
            println!("{name} used {had:?} of CPU time while throttled for {least:?} or more");
            assert!(had < least / 4, "{name} used {had:?} of CPU time");
        }
    });
}

fn ask(dir: &std::path::Path, request: &ControlRequest) -> Message {
    let mut control = ControlClient::connect(&dir.join("vmm/control.sock")).unwrap();
    control.send(request).unwrap();
    control.receive(Some(DEADLINE)).unwrap()
}

#[test]
fn volume_iops_limit_applies_unless_instance_has_no_limits() {
    const IOPS: u64 = 100;
    const READS: u64 = 60;
    let wisp = Wisp::warm();
    // 100 IOPS is the minimum of io1, which has no burst credits.
    let volume = ["--network", "none", "--overcommit", "--volume", "size=4,type=io1,iops=100"];
    let script = format!("dd if=/dev/vdb of=/dev/null bs=4k count={READS} iflag=direct 2>/dev/null");
    for (name, more, is_limited) in [("limited", &[][..], true), ("free", &["--no-limits"], false)] {
        instances::launch(&wisp, &[&["--name", name][..], &volume[..], more].concat()).expect_code(0);
        let dir = instances::dir(&wisp, name);
        let disk = || match ask(&dir, &ControlRequest::Status) {
            Message::Status(status) => status.disks[1].clone(),
            other => panic!("not a status: {other:?}"),
        };
        // Asserts the limit, if any, and returns the throttled time in nanoseconds.
        let held_to = |iops: Option<u64>| {
            let (began, before) = (Instant::now(), disk());
            instances::exec(&wisp, name, &script);
            let (after, took) = (disk(), began.elapsed());
            let reads = after.reads - before.reads;
            println!(
                "{name}: {reads} reads in {took:?} at {iops:?}, throttled for {} ns",
                after.throttled_ns - before.throttled_ns
            );
            assert!(reads >= READS);
            if let Some(iops) = iops {
                let most = iops / 20 + 2 + (took.as_secs_f64() * iops as f64) as u64;
                assert!(reads <= most, "{reads} in {took:?} is more than {most}");
            }
            after.throttled_ns - before.throttled_ns
        };
        let limits = &instances::json(&wisp, &["show", name])["Limits"];
        assert_eq!((&limits["Limited"], limits["Volumes"][1]["Iops"].is_null()), (&json!(is_limited), !is_limited));
        if !is_limited {
            assert_eq!(held_to(None), 0);
            continue;
        }
        held_to(Some(IOPS));
        // A guest under software KVM may not reach 100 IOPS, so set a limit below EC2's minimum.
        let operations = Some(Rate::constant(OPERATIONS));
        let limits = Some(DiskLimits { bytes: None, operations, operation_bytes: 256 << 10 });
        assert_eq!(ask(&dir, &ControlRequest::SetDiskLimits { id: disk().id, limits }), Message::Done);
        assert!(held_to(Some(OPERATIONS)) > 0);
        let text = wisp.run(&["show", name, "--all"]).expect_code(0).text();
        assert!(text.contains(&format!("{OPERATIONS} IOPS; throttled for")), "{text}");
    }
    wisp.run(&["terminate", "limited", "free"]).expect_code(0);
}

#[test]
fn instance_type_and_volume_limits_are_shown_and_modified() {
    let wisp = Wisp::new();
    let refused = wisp.run(&["launch", "--type", "m5.large", "--overcommit", "--cpu-credits", "standard"]);
    assert!(refused.expect_code(1).stderr.contains("InvalidParameterCombination"));

    let launch = ["launch", "--network", "none", "--no-wait", "--overcommit", "--type", "t3.nano"];
    wisp.run(&[&launch[..], &["--name", "a", "--volume", "size=1,type=gp2"]].concat()).expect_code(0);
    let shown = instances::json(&wisp, &["show", "a"]);
    let (instance, limits) = (&shown["Reservations"][0]["Instances"][0], &shown["Limits"]);
    assert_eq!(shown["InstanceCreditSpecifications"][0]["CpuCredits"], "unlimited");
    assert!(limits["CPUCreditBalance"].is_number() && limits["CPUSurplusCreditBalance"].is_number(), "{limits}");
    assert_eq!(limits["Network"]["BytesPerSecond"]["Baseline"], 4_000_000);
    assert!(limits["Ebs"]["Iops"]["Peak"].as_u64() > limits["Ebs"]["Iops"]["Baseline"].as_u64(), "{limits}");
    assert_eq!(limits["Volumes"][0]["Iops"], json!({"Baseline": 3000, "Peak": 3000}));
    assert_eq!(limits["Volumes"][1]["Iops"], json!({"Baseline": 100, "Peak": 3000}));
    assert_eq!(limits["Volumes"][1]["BurstBalance"], 100);
    let text = wisp.run(&["show", "a", "--all"]).expect_code(0).text();
    assert!(text.contains(" of 144") && text.contains("100 IOPS (burst 3000 IOPS)"), "{text}");

    wisp.run(&["modify", "a", "--cpu-credits", "standard"]).expect_code(0);
    let volume = instance["BlockDeviceMappings"][1]["Ebs"]["VolumeId"].as_str().unwrap();
    wisp.run(&["volume", "modify", volume, "--type", "gp3"]).expect_code(0);
    let shown = instances::json(&wisp, &["show", "a"]);
    assert_eq!(shown["InstanceCreditSpecifications"][0]["CpuCredits"], "standard");
    assert_eq!(shown["Limits"]["CPUSurplusCreditBalance"], 0.0);
    assert_eq!(shown["Limits"]["Volumes"][1]["Iops"], json!({"Baseline": 3000, "Peak": 3000}));

    // The balances are kept across a stop.
    wisp.run(&["stop", "--force", "a"]).expect_code(0);
    let limits = &instances::json(&wisp, &["show", "a"])["Limits"];
    assert!(limits["CPUCreditBalance"].is_number() && limits["Volumes"].is_null(), "{limits}");

    wisp.run(&[&launch[..], &["--name", "b", "--no-limits"]].concat()).expect_code(0);
    let limits = &instances::json(&wisp, &["show", "b"])["Limits"];
    assert_eq!(
        (&limits["Limited"], &limits["Ebs"], &limits["CPUCreditBalance"]),
        (&json!(false), &json!(null), &json!(null))
    );
    assert_eq!(limits["Volumes"][0]["Iops"], json!(null));
}
