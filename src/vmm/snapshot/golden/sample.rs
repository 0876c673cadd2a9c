//! The state in the golden files: a machine with two vCPUs, three disk slots (one of them empty) and a network, with a
//! distinct value in each field.

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_pit_channel_state, kvm_pit_state2, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcr,
    kvm_xcrs, kvm_xsave,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::memory::PageRun;
use crate::snapshot::MachineState;
use crate::snapshot::origin::Differences;
use crate::snapshot::processor::CpuIdentity;
use machine::config::CpuConfig;

pub fn state() -> MachineState {
    MachineState {
        identity: CpuIdentity {
            processor: of(json!({"brand": "Golden CPU", "leaves": leaves(), "microcode": 0x2b00_0590})),
            tsc_khz: Some(2_400_000),
            cpuid: vec![cpuid(0), cpuid(1)],
        },
        counter: 0x0123_4567_89ab_cdef,
        cpus: CpuConfig { count: 2, threads_per_core: 2 },
        memory_mib: 4096,
        memory_written: Some((1_767_225_600, 123_456_789)),
        differences: Some(Differences {
            base_written: (1_767_225_000, 987_654_321),
            runs: vec![PageRun { first: 1, count: 2 }, PageRun { first: 0xc0000, count: 0x40000 }],
        }),
        vcpus: vec![of(vcpu(0)), of(vcpu(1))],
        interrupt_controllers: (0..3).map(interrupt_controller).collect(),
        timer: timer(),
        clock: kvm_clock_data { clock: 0x1122_3344_5566, flags: 2, realtime: 3, host_tsc: 4, ..Default::default() },
        serial: of(json!({
            "divisor": [12, 1], "interrupts": [5, 2], "line": [3, 0x60], "modem": [8, 0xb0], "scratch": 0x5a,
            "received": [b'l', b's'], "waiting": [b'\n'],
        })),
        i8042: of(json!({
            "control": 0x45, "output_port": 2, "status": 0x14, "output": [0xfa, 0xaa], "pending": 0x60,
        })),
        rtc: of(json!({"index": 0x0b})),
        acpi_pm: of(json!({"enable": [0x20, 1], "control": [1, 0x3c]})),
        generation: Some(0x9_f000),
        disks: vec![Some("root".into()), None, Some("vol-0123456789abcdef0".into())],
        virtio: (1..=6).map(|device| of(virtio(device))).collect(),
    }
}

/// Builds a state whose fields are private.
fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the sample names the state's fields")
}

fn leaves() -> Vec<[u32; 4]> {
    (0..12).map(|leaf| [0x11, 0x22, 0x33, 0x44].map(|register| leaf << 24 | register)).collect()
}

fn cpuid(vcpu: u32) -> Vec<kvm_cpuid_entry2> {
    let entry = |function, flags, ebx| kvm_cpuid_entry2 {
        function,
        index: function & 1,
        flags,
        eax: 0xa,
        ebx,
        ecx: 0xc,
        edx: 0xd,
        ..Default::default()
    };
    vec![entry(1, 0, vcpu << 24), entry(0xb, 1, 2)]
}

fn vcpu(id: u64) -> Value {
    json!({
        "mp_state": kvm_mp_state { mp_state: id as u32 },
        "regs": kvm_regs {
            rax: 1, rbx: 2, rcx: 3, rdx: 4, rsi: 5, rdi: 6, rsp: 7, rbp: 8, r8: 9, r9: 10, r10: 11, r11: 12, r12: 13,
            r13: 14, r14: 15, r15: 16, rip: 0xffff_ffff_8100_0000 + id, rflags: 0x202,
        },
        "sregs": sregs(),
        "xcrs": xcrs(),
        "xsave": xsave(),
        "debug_registers": kvm_debugregs {
            db: [1, 2, 3, 4], dr6: 0xffff_0ff0, dr7: 0x400, flags: 5, ..Default::default()
        },
        "local_apic": local_apic(id),
        "msrs": [
            kvm_msr_entry { index: 0x10, data: 0xabcd, ..Default::default() },
            kvm_msr_entry { index: 0xc000_0080, data: 0xd01, ..Default::default() },
        ],
        "events": kvm_vcpu_events { sipi_vector: 0x9a, flags: 0xd, ..Default::default() },
    })
}

fn sregs() -> kvm_sregs {
    let segment = |number: u16| kvm_segment {
        base: number.into(),
        limit: 0xffff,
        selector: 8 * number,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let table = |limit| kvm_dtable { base: 0xfffe_0000_0000, limit, ..Default::default() };
    kvm_sregs {
        cs: segment(1),
        ds: segment(2),
        es: segment(3),
        fs: segment(4),
        gs: segment(5),
        ss: segment(6),
        tr: segment(7),
        ldt: segment(8),
        gdt: table(0x7f),
        idt: table(0xfff),
        cr0: 0x8005_0033,
        cr2: 0x7fff_0000,
        cr3: 0x1000,
        cr4: 0x6f0,
        cr8: 1,
        efer: 0xd01,
        apic_base: 0xfee0_0900,
        interrupt_bitmap: [1, 2, 4, 8],
    }
}

fn xcrs() -> kvm_xcrs {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, flags: 0, ..Default::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: 7, ..Default::default() };
    xcrs
}

fn xsave() -> kvm_xsave {
    let mut xsave = kvm_xsave::default();
    (0..).zip(&mut xsave.region).for_each(|(place, word): (u32, _)| *word = place << 16 | 0x5a);
    xsave
}

fn local_apic(id: u64) -> kvm_lapic_state {
    let mut state = kvm_lapic_state::default();
    state.regs[0x23] = id as i8;
    state.regs[0x30..0x34].copy_from_slice(&[0x14, 0, 5, 0]);
    state
}

fn interrupt_controller(chip_id: u32) -> kvm_irqchip {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    chip.chip.dummy = std::array::from_fn(|place| if place < 16 { (place as u8 + chip_id as u8) as _ } else { 0 });
    chip
}

fn timer() -> kvm_pit_state2 {
    let channel = |count| kvm_pit_channel_state { count, latched_count: 7, mode: 2, gate: 1, ..Default::default() };
    let mut timer = kvm_pit_state2 { flags: 1, ..Default::default() };
    timer.channels = [channel(0x1_0000), channel(0x12), channel(0x34)];
    timer
}

fn virtio(device: u64) -> Value {
    let queue = |number: u64| {
        let place = device << 20 | number << 16;
        json!({
            "max_size": 256, "next_avail": 100 + number, "next_used": 90 + number, "event_idx_enabled": number == 0,
            "size": 128, "ready": true, "desc_table": place, "avail_ring": place + 0x800, "used_ring": place + 0x1000,
        })
    };
    json!({
        "device_type": device, "device_features_select": 1, "driver_features_select": 0,
        "driver_features": 0x1_3000_0000_u64 + device, "queue_select": 1, "activated": device != 5,
        "interrupt_status": 1, "device_status": 0xf, "config_generation": 10 + device,
        "queues": [queue(0), queue(1)],
    })
}
