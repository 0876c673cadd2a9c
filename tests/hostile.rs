//! A guest with a hostile kernel: its VMM neither dies nor grows, and another guest is not affected.
//! `scripts/fuzz hostile` sets WISP_HOSTILE_ROUNDS and WISP_HOSTILE_SEED for longer runs.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use common::{Running, Wisp, vmm_pid};

const ROUNDS: u64 = 256;
/// Must match the value in `tests/programs/hostile.rs`.
const ROUNDS_PER_REPORT: u64 = 64;
/// Guest memory, all of which the guest may touch, and the limit of the VMM's own memory.
const MEMORY_KIB: u64 = 64 << 10;
const VMM_KIB: u64 = 48 << 10;
/// The limit for additional descriptors. In longer runs, a leak of one descriptor per report exceeds the limit.
const DESCRIPTORS: usize = 4;
/// The limit for the VMM's log. Each device counts its driver's faults, and logs them at increasing intervals.
const LOG_BYTES: u64 = 1 << 20;

#[test]
fn hostile_kernel_harms_neither_vmm_nor_other_guest() {
    let wisp = Wisp::new();
    let mut neighbor = wisp.start_guest();
    let others = wisp.runs();
    let kernel = kernel(wisp.home());
    let disk = wisp.home().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let (rounds, seed) = (number("WISP_HOSTILE_ROUNDS", ROUNDS), number("WISP_HOSTILE_SEED", 1));
    let options = format!("rounds={rounds} seed={seed}");
    let (kernel, disk) = (kernel.to_str().unwrap(), disk.to_str().unwrap());
    let mut hostile = wisp.start(&[
        "run",
        "--kernel",
        kernel,
        "--protocol",
        "linux64",
        "--disk",
        disk,
        "--cmdline",
        &options,
        "--memory",
        "64M",
        "--vcpus",
        "1",
        "--overcommit",
        "--network",
        "none",
        "--console",
    ]);
    hostile.wait_for("hostile: 0 rounds, 5 devices");
    let dir = wisp.runs().into_iter().find(|dir| !others.contains(dir)).expect("a second machine");
    let pid = vmm_pid(&dir);
    let before = descriptors(pid);
    let lines = (1..=rounds / ROUNDS_PER_REPORT).map(|line| line * ROUNDS_PER_REPORT);
    for round in lines.chain((rounds % ROUNDS_PER_REPORT != 0).then_some(rounds)) {
        press_a_key(&mut hostile);
        hostile.wait_for(&format!("hostile: {round} rounds"));
        let (memory, now) = (resident_kib(pid), descriptors(pid));
        assert!(memory < MEMORY_KIB + VMM_KIB, "seed {seed}, round {round}: the VMM has {memory} KiB");
        assert!(now <= before + DESCRIPTORS, "seed {seed}, round {round}: {now} descriptors, up from {before}");
        let log = fs::metadata(dir.join("vmm.log")).unwrap().len();
        assert!(log < LOG_BYTES, "seed {seed}, round {round}: {log} bytes of log");
    }
    let log = fs::read_to_string(dir.join("vmm.log")).unwrap();
    assert!(!log.contains("panicked"), "seed {seed}: {log}");
    press_a_key(&mut hostile);
    hostile.wait_for("hostile: done");
    hostile.wait().expect_code(0);
    neighbor.stdin.as_mut().unwrap().write_all(b"still here\n").unwrap();
    neighbor.wait_for("still here");
    neighbor.wait().expect_code(0);
}

fn number(name: &str, otherwise: u64) -> u64 {
    let parse = |text: String| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number"));
    std::env::var(name).map_or(otherwise, parse)
}

/// Builds the hostile kernel, as a freestanding program that is linked at 16 MiB.
fn kernel(dir: &Path) -> std::path::PathBuf {
    let (source, built) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/hostile.rs"), dir.join("hostile"));
    let code = ["panic=abort", "relocation-model=static", "no-vectorize-loops", "no-vectorize-slp"];
    let link = ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--image-base=0x1000000,--build-id=none"];
    let options =
        code.map(|option| format!("-C{option}")).into_iter().chain(link.map(|option| format!("-Clink-arg={option}")));
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "-O"]).args(options).arg("-o").arg(&built).arg(source);
    let outcome = rustc.output().unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    built
}

fn press_a_key(guest: &mut Running) {
    guest.stdin.as_mut().unwrap().write_all(b"x").unwrap();
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
