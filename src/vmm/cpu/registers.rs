//! The initial state of a vCPU: what the boot protocol requires, and settings that firmware would have made.

use kvm_bindings::{kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::msrs::set_each;
use crate::boot::{BootState, EntryPoint};
use crate::error::Error;
use crate::memory::GuestMemory;

/// Page tables for the 64-bit entry point, which identity-map the first GiB with 2 MiB pages.
const PML4: GuestAddress = GuestAddress(0x9000);
const PDPT: GuestAddress = GuestAddress(0xa000);
const PAGE_DIRECTORY: GuestAddress = GuestAddress(0xb000);
const PAGE_PRESENT_WRITABLE: u64 = 0x3;
const PAGE_HUGE: u64 = 0x80;
/// The global descriptor table, followed by an empty interrupt descriptor table.
const GDT: GuestAddress = GuestAddress(0x500);
const IDT: GuestAddress = GuestAddress(0x520);
/// The stack that the kernel's first instructions use, until the kernel sets up its own.
const BOOT_STACK: u64 = 0x8ff0;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS_RESERVED: u64 = 2;

const MSR_IA32_SYSENTER_CS: u32 = 0x174;
const MSR_IA32_SYSENTER_ESP: u32 = 0x175;
const MSR_IA32_SYSENTER_EIP: u32 = 0x176;
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SYSCALL_MASK: u32 = 0xc000_0084;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
const MSR_IA32_TSC: u32 = 0x10;
/// Fast strings are enabled. Branch trace store (11) and processor event based sampling (12) are marked as unavailable,
/// because guests have no PMU.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;
/// MTRRs are enabled, and memory is write-back by default.
const MTRR_ENABLE_WRITE_BACK: u64 = (1 << 11) | 6;

/// The local APIC's registers for its two interrupt pins (Intel SDM volume 3A, table 11-1), and delivery modes.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_NMI: u32 = 0x400;
const DELIVERY_EXTINT: u32 = 0x700;

/// Sets the state that all vCPUs need, including those that the guest starts later.
pub fn set_common(vcpu: &VcpuFd) -> Result<(), Error> {
    set_msrs(vcpu)?;
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(Error::kvm("set a vCPU's floating-point state"))?;
    set_local_interrupts(vcpu)
}

/// Sets the registers that the boot protocol requires on the vCPU that boots the machine.
pub fn set_boot(vcpu: &VcpuFd, memory: &GuestMemory, boot: &BootState) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("read a vCPU's system registers"))?;
    let mut regs = kvm_regs { rflags: RFLAGS_RESERVED, ..Default::default() };
    match boot.entry {
        EntryPoint::Linux64(entry) => {
            regs.rip = entry.0;
            regs.rsi = boot.params.0;
            regs.rsp = BOOT_STACK;
            regs.rbp = BOOT_STACK;
            set_long_mode(&mut sregs, memory)?;
        }
        EntryPoint::Pvh(entry) => {
            regs.rip = entry.0;
            regs.rbx = boot.params.0;
            set_protected_mode(&mut sregs, memory)?;
        }
    }
    vcpu.set_sregs(&sregs).map_err(Error::kvm("set a vCPU's system registers"))?;
    vcpu.set_regs(&regs).map_err(Error::kvm("set a vCPU's registers"))
}

pub fn describe(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    format!(
        "rip={:016x} rsp={:016x} rflags={:08x} cs={:04x}\n\
         rax={:016x} rbx={:016x} rcx={:016x} rdx={:016x}\n\
         rsi={:016x} rdi={:016x} rbp={:016x} r8 ={:016x}\n\
         r9 ={:016x} r10={:016x} r11={:016x} r12={:016x}\n\
         r13={:016x} r14={:016x} r15={:016x}\n\
         cr0={:08x} cr2={:016x} cr3={:016x} cr4={:08x} efer={:04x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        sregs.cs.selector,
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer,
    )
}

/// A flat segment, for KVM and as a descriptor (Intel SDM volume 3A, section 3.4.5).
#[derive(Clone, Copy)]
struct FlatSegment {
    selector: u16,
    /// The type field of the descriptor: code, data or TSS.
    kind: u8,
    long: bool,
    code_or_data: bool,
}

const SELECTOR_CODE: u16 = 0x10;
const SELECTOR_DATA: u16 = 0x18;
const SELECTOR_TSS: u16 = 0x20;
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_BUSY_TSS: u8 = 0xb;

impl FlatSegment {
    fn kvm(self) -> kvm_segment {
        kvm_segment {
            base: 0,
            limit: if self.code_or_data { 0xffff_ffff } else { 0x67 },
            selector: self.selector,
            type_: self.kind,
            present: 1,
            dpl: 0,
            db: u8::from(self.code_or_data && !self.long),
            s: u8::from(self.code_or_data),
            l: u8::from(self.long),
            g: u8::from(self.code_or_data),
            ..Default::default()
        }
    }

    fn descriptor(self) -> u64 {
        let segment = self.kvm();
        let limit = if segment.g == 1 { 0xf_ffff } else { u64::from(segment.limit) };
        let access = u64::from(segment.type_) | u64::from(segment.s) << 4 | u64::from(segment.present) << 7;
        let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
        (limit & 0xffff) | access << 40 | (limit >> 16) << 48 | flags << 52
    }
}

fn set_segments(sregs: &mut kvm_sregs, memory: &GuestMemory, long: bool) -> Result<(), Error> {
    let code = FlatSegment { selector: SELECTOR_CODE, kind: TYPE_CODE, long, code_or_data: true };
    let data = FlatSegment { selector: SELECTOR_DATA, kind: TYPE_DATA, long: false, code_or_data: true };
    let tss = FlatSegment { selector: SELECTOR_TSS, kind: TYPE_BUSY_TSS, long: false, code_or_data: false };
    let table = [0, 0, code.descriptor(), data.descriptor(), tss.descriptor(), 0];
    for (index, descriptor) in table.iter().enumerate() {
        memory.write_obj(*descriptor, GuestAddress(GDT.0 + 8 * index as u64)).map_err(no_room("descriptor table"))?;
    }
    sregs.cs = code.kvm();
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data.kvm();
    }
    sregs.tr = tss.kvm();
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = (size_of_val(&table) - 1) as u16;
    sregs.idt.base = IDT.0 + 0x20;
    sregs.idt.limit = 7;
    Ok(())
}

fn set_long_mode(sregs: &mut kvm_sregs, memory: &GuestMemory) -> Result<(), Error> {
    set_segments(sregs, memory, true)?;
    let write =
        |value: u64, address: u64| memory.write_obj(value, GuestAddress(address)).map_err(no_room("page tables"));
    write(PDPT.0 | PAGE_PRESENT_WRITABLE, PML4.0)?;
    write(PAGE_DIRECTORY.0 | PAGE_PRESENT_WRITABLE, PDPT.0)?;
    for index in 0..512 {
        write((index << 21) | PAGE_PRESENT_WRITABLE | PAGE_HUGE, PAGE_DIRECTORY.0 + 8 * index)?;
    }
    sregs.cr3 = PML4.0;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_PG | CR0_ET;
    sregs.efer |= EFER_LME | EFER_LMA;
    Ok(())
}

fn set_protected_mode(sregs: &mut kvm_sregs, memory: &GuestMemory) -> Result<(), Error> {
    set_segments(sregs, memory, false)?;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    Ok(())
}

fn no_room(what: &'static str) -> impl FnOnce(vm_memory::GuestMemoryError) -> Error {
    move |_| Error::Boot(crate::boot::BootError::Table(what))
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [
        entry(MSR_IA32_SYSENTER_CS, 0),
        entry(MSR_IA32_SYSENTER_ESP, 0),
        entry(MSR_IA32_SYSENTER_EIP, 0),
        entry(MSR_STAR, 0),
        entry(MSR_CSTAR, 0),
        entry(MSR_LSTAR, 0),
        entry(MSR_KERNEL_GS_BASE, 0),
        entry(MSR_SYSCALL_MASK, 0),
        entry(MSR_IA32_TSC, 0),
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ];
    let refused = set_each(&entries, |msrs| vcpu.set_msrs(msrs)).map_err(Error::kvm("set a vCPU's MSRs"))?;
    if let [first, others @ ..] = refused.as_slice() {
        let (index, more) = (first.index, others.len());
        log::warn!("KVM rejected MSR {index:#x} and {more} more; the guest boots without them");
    }
    Ok(())
}

/// Connects the local APIC's pin 0 to the 8259 and its pin 1 to NMIs, as the MP table says.
fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), Error> {
    let mut apic = vcpu.get_lapic().map_err(Error::kvm("read a local APIC"))?;
    for (offset, mode) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        let mut register = 0_u32;
        for (shift, byte) in apic.regs[offset..offset + 4].iter().enumerate() {
            register |= u32::from(*byte as u8) << (8 * shift);
        }
        register = (register & !0x700) | mode;
        for (byte, value) in apic.regs[offset..offset + 4].iter_mut().zip(register.to_le_bytes()) {
            *byte = value as _;
        }
    }
    vcpu.set_lapic(&apic).map_err(Error::kvm("set a local APIC"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn misc_enable_keeps_sampling_and_branch_tracing_unavailable() {
        assert_eq!(MISC_ENABLE, 0x1801);
    }

    #[test]
    fn segment_descriptors_match_intel_sdm() {
        let code = FlatSegment { selector: SELECTOR_CODE, kind: TYPE_CODE, long: true, code_or_data: true };
        let data = FlatSegment { selector: SELECTOR_DATA, kind: TYPE_DATA, long: false, code_or_data: true };
        assert_eq!(code.descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(data.descriptor(), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn long_mode_identity_maps_first_gib() {
        let memory = memory::allocate(64).unwrap();
        let mut sregs = kvm_sregs::default();
        set_long_mode(&mut sregs, &memory).unwrap();
        assert_eq!(sregs.cr3, PML4.0);
        let last: u64 = memory.read_obj(GuestAddress(PAGE_DIRECTORY.0 + 8 * 511)).unwrap();
        assert_eq!(last, (511 << 21) | 0x83);
    }
}
