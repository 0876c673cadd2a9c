//! Guests of `wisp run`: their commands and the ways they end.

mod common;

use common::{Wisp, noise, sha256};

#[test]
fn run_returns_stdout_stderr_and_exit_code() {
    let wisp = Wisp::new();
    let script = "echo to-output; echo to-errors >&2; uname -sm; nproc; grep MemTotal /proc/meminfo; \
        cat /sys/class/misc/hw_random/rng_current; head -c 8 /dev/hwrng | wc -c; exit 7";
    let outcome = wisp.run(&["run", "--type", "t2.nano", "--", "sh", "-c", script]).expect_code(7);
    let lines: Vec<String> = outcome.text().lines().map(str::to_string).collect();
    assert_eq!(lines[..3], ["to-output", "Linux x86_64", "1"]);
    assert_memory(&lines[3], 512);
    assert_eq!(lines[4..], ["virtio_rng.0", "8"], "the entropy device");
    assert_eq!(outcome.stderr, "to-errors\n");
    assert!(wisp.runs().is_empty(), "a run directory is left");
}

#[test]
fn guest_sees_requested_vcpus_and_memory() {
    let script = "nproc; grep MemTotal /proc/meminfo; cat /sys/devices/system/cpu/cpu1/topology/thread_siblings_list";
    let args = ["run", "--vcpus", "2", "--memory", "1G", "--overcommit", "--", "sh", "-c", script];
    let outcome = Wisp::new().run(&args).expect_code(0);
    let lines: Vec<String> = outcome.text().lines().map(str::to_string).collect();
    assert_eq!((lines[0].as_str(), lines[2].as_str()), ("2", "1"), "one thread per core");
    assert_memory(&lines[1], 1024);
}

#[test]
fn guest_with_64_mib_runs() {
    let outcome =
        Wisp::new().run(&["run", "--memory", "64M", "--", "grep", "MemTotal", "/proc/meminfo"]).expect_code(0);
    let kib = mem_total_kib(&outcome.text());
    assert!((44 << 10..64 << 10).contains(&kib), "{kib} KiB of 64 MiB");
}

/// Asserts that `MemTotal` is within 3% of `mib`. The kernel uses the rest.
fn assert_memory(line: &str, mib: u64) {
    let kib = mem_total_kib(line);
    assert!(kib <= mib << 10 && kib * 100 >= (mib << 10) * 97, "{kib} KiB of {mib} MiB");
}

fn mem_total_kib(line: &str) -> u64 {
    line.split_whitespace().nth(1).unwrap_or_else(|| panic!("{line:?} is not a MemTotal line")).parse().unwrap()
}

#[test]
fn vsock_carries_8_mib_unchanged_both_ways() {
    let data = noise(8 << 20);
    let script = "cat > /tmp/data; sha256sum /tmp/data >&2; cat /tmp/data";
    let outcome = Wisp::warm().run_with_input(&["run", "--", "sh", "-c", script], &data).expect_code(0);
    assert_eq!(outcome.stderr.split_whitespace().next(), Some(sha256(&data).as_str()), "input was corrupted");
    assert_eq!(sha256(&outcome.stdout), sha256(&data), "output was corrupted");
}

#[test]
fn vector_registers_survive_context_switches() {
    let registers = match (is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("avx")) {
        (true, _) => "zmm",
        (false, true) => "ymm",
        (false, false) => "xmm",
    };
    let script = "cat > /run/vectors; chmod +x /run/vectors; /run/vectors";
    let outcome =
        Wisp::warm().run_with_input(&["run", "--", "sh", "-c", script], &common::program("vectors")).expect_code(0);
    assert_eq!(outcome.text(), format!("{registers}: 0 lost\n"));
}

#[test]
fn signal_reaches_guest_command() {
    let wisp = Wisp::warm();
    let script = "trap 'echo trapped; exit 3' TERM; echo waiting; while :; do read -t 600 nothing; done";
    let mut running = wisp.start(&["run", "--", "sh", "-c", script]);
    running.wait_for("waiting");
    running.signal(libc::SIGTERM);
    let outcome = running.wait();
    assert_eq!((outcome.code, outcome.text().as_str()), (Some(3), "waiting\ntrapped\n"), "{}", outcome.stderr);
}

#[test]
fn missing_command_exits_with_127() {
    let outcome = Wisp::warm().run(&["run", "--", "no-such-command"]).expect_code(127);
    assert!(outcome.stderr.contains("no-such-command"), "{}", outcome.stderr);
}

#[test]
fn kernel_panic_is_reported_with_console_output() {
    let outcome = Wisp::warm().run(&["run", "--", "sh", "-c", "echo c > /proc/sysrq-trigger"]).expect_code(125);
    assert!(outcome.stderr.contains("the guest kernel panicked"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("sysrq triggered crash"), "{}", outcome.stderr);
}

#[test]
fn guest_reboot_ends_run_and_is_reported() {
    let outcome = Wisp::warm().run(&["run", "--", "reboot", "-f"]).expect_code(0);
    assert!(outcome.stderr.contains("the guest requested a reboot"), "{}", outcome.stderr);
}

#[test]
fn serial_console_works_both_ways_and_poweroff_ends_run() {
    let wisp = Wisp::new();
    let bundle = wisp.bundle();
    let (kernel, root) = (bundle.join("vmlinux"), format!("{},ro", bundle.join("root.ext4").display()));
    let options = "quiet init=/sbin/wisp-init wisp.console=shell";
    let args = ["run", "--kernel", kernel.to_str().unwrap(), "--disk", &root, "--cmdline", options, "--console"];
    let mut running = wisp.start(&args);
    running.wait_for("wisp-init: ready");
    let mut stdin = running.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"echo from-$((6 * 7)); poweroff\n").unwrap();
    running.wait_for("from-42");
    let outcome = running.wait().expect_code(0);
    assert!(outcome.stderr.contains("the guest powered off"), "{}", outcome.stderr);
}

#[test]
fn pvh_kernel_boots() {
    let wisp = Wisp::new();
    let bundle = wisp.bundle();
    let (kernel, root) = (bundle.join("vmlinux"), format!("{},ro", bundle.join("root.ext4").display()));
    let kernel = kernel.to_str().unwrap();
    let options = "quiet init=/sbin/wisp-init";
    let args = ["run", "--kernel", kernel, "--protocol", "pvh", "--disk", &root, "--cmdline", options, "--", "uname"];
    assert_eq!(wisp.run(&args).expect_code(0).text(), "Linux\n");
}

#[test]
fn run_of_bundle_directory_records_timeline() {
    let wisp = Wisp::new();
    let bundle = wisp.bundle();
    wisp.run(&["run", bundle.to_str().unwrap(), "--", "true"]).expect_code(0);
    let outcome = wisp.run(&["timeline", "--output", "json"]).expect_code(0);
    let timeline: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let marks = timeline["Marks"].as_array().unwrap();
    let reached: Vec<&str> = marks.iter().map(|mark| mark["Mark"].as_str().unwrap()).collect();
    for mark in ["process-start", "memory-ready", "kernel-loaded", "first-instruction", "init-started", "agent-ready"] {
        assert!(reached.contains(&mark), "{mark} is not among {reached:?}");
    }
    let at: Vec<u64> = ["process-start", "kernel-loaded", "first-instruction", "init-started", "agent-ready"]
        .iter()
        .map(|name| marks.iter().find(|mark| mark["Mark"] == *name).unwrap()["AtNs"].as_u64().unwrap())
        .collect();
    assert!(at.is_sorted(), "{at:?}");
    assert!(timeline["Exits"].as_array().unwrap().iter().any(|exit| exit["Count"].as_u64() > Some(0)));
}
