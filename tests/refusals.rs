//! Inputs that are refused before any guest runs, and their messages.

mod common;

use std::fs;

use common::Wisp;

#[track_caller]
fn refuses(args: &[&str], words: &[&str]) {
    let wisp = Wisp::new();
    let outcome = wisp.run(args).expect_code(125);
    for word in words {
        assert!(outcome.stderr.contains(word), "{word:?} is not in: {}", outcome.stderr);
    }
    assert_eq!(outcome.text(), "");
    assert!(wisp.runs().is_empty());
}

#[test]
fn invalid_kernels_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = Wisp::new();
    let vmlinux = fs::read(bundle.bundle().join("vmlinux")).unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_string()
    };
    let script = file("script", b"#!/bin/sh\necho I am no kernel\n");
    refuses(&["run", "--kernel", &script], &["script is not a kernel", "ELF"]);
    let short = file("short", &vmlinux[..vmlinux.len() / 2]);
    refuses(&["run", "--kernel", &short], &["short as an ELF kernel", "it is truncated"]);
    let mut high = vmlinux[..4096].to_vec();
    // The first segment's physical address: far above 256 MiB.
    high[64 + 24..64 + 32].copy_from_slice(&0x9000_0000_u64.to_le_bytes());
    high.resize(vmlinux.len(), 0);
    let high = file("high", &high);
    refuses(&["run", "--kernel", &high], &["high needs guest memory from 0x90000000", "256 MiB"]);
    let missing = dir.path().join("missing");
    refuses(&["run", "--kernel", missing.to_str().unwrap()], &["cannot open", "missing: No such file"]);
}

#[test]
fn oversized_initrd_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let initrd = dir.path().join("initrd");
    fs::File::create(&initrd).unwrap().set_len(1 << 30).unwrap();
    let kernel = Wisp::new();
    let kernel_path = kernel.bundle().join("vmlinux");
    let args = ["run", "--kernel", kernel_path.to_str().unwrap(), "--initrd", initrd.to_str().unwrap()];
    refuses(&args, &["the initrd", "1073741824 bytes", "256 MiB"]);
}

#[test]
fn long_kernel_command_line_is_refused() {
    refuses(&["run", "--cmdline", &"x".repeat(3000), "--", "true"], &["kernel command line", "2047"]);
}

#[test]
fn unsupported_types_and_sizes_are_refused() {
    refuses(&["run", "--type", "c5.metal"], &["Unsupported", "c5.metal", "metal"]);
    refuses(&["run", "--type", "t3.mciro"], &["InvalidParameterValue", "t3.mciro", "t3.micro"]);
    refuses(&["run", "--memory", "100000G"], &["InsufficientInstanceCapacity", "largest"]);
    refuses(&["run", "--vcpus", "65"], &["InvalidParameterValue", "65"]);
}

#[test]
fn missing_images_are_refused() {
    refuses(&["run", "ami-00000000000000000"], &["InvalidAMIID.NotFound", "ami-00000000000000000"]);
    refuses(&["run", "/nonexistent"], &["/nonexistent is not an image bundle"]);
}

#[test]
fn usage_errors_exit_with_2() {
    let wisp = Wisp::without_kvm();
    for args in [&["frobnicate"][..], &["types", "--what"], &["launch", "--memory", "12Q"]] {
        assert_eq!(wisp.run(args).code, Some(2), "{args:?}");
    }
}

/// Exit code 2 would be ambiguous, because the command in the guest can also return it.
#[test]
fn usage_errors_of_commands_in_guests_exit_with_125() {
    let wisp = Wisp::without_kvm();
    for args in [&["run", "--memory", "-5"][..], &["--output", "json", "exec"], &["ssh", "--what"]] {
        assert_eq!(wisp.run(args).code, Some(125), "{args:?}");
    }
}

/// A load from an unmapped address: a triple fault, because there is no interrupt table.
const UNMAPPED_LOAD: [u8; 10] = [0x48, 0xa1, 0x00, 0x00, 0xff, 0xff, 0xff, 0x7f, 0x00, 0x00];
/// `popcnt eax, ecx`, which software KVM does not emulate.
const POPCNT: [u8; 4] = [0xf3, 0x0f, 0xb8, 0xc1];

#[test]
fn triple_fault_is_reported() {
    let outcome = run_code(&UNMAPPED_LOAD);
    assert!(outcome.stderr.contains("triple fault"), "{}", outcome.stderr);
}

#[test]
fn unemulated_instruction_is_named() {
    let outcome = run_code(&[&POPCNT[..], &UNMAPPED_LOAD].concat());
    if vmm::cpu::emulation::is_software_kvm() {
        for word in ["could not emulate `popcnt eax,ecx` at 0x1000000", "the embedded kernel", "hardware KVM"] {
            assert!(outcome.stderr.contains(word), "{word:?} is not in {}", outcome.stderr);
        }
    } else {
        // Hardware executes the instruction, and the load after it faults.
        assert!(outcome.stderr.contains("triple fault"), "{}", outcome.stderr);
    }
}

fn run_code(code: &[u8]) -> common::Outcome {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    fs::write(&kernel, common::kernel_of(code)).unwrap();
    let wisp = Wisp::new();
    let outcome = wisp.run(&["run", "--kernel", kernel.to_str().unwrap(), "--", "true"]).expect_code(125);
    assert!(wisp.runs().is_empty());
    outcome
}
