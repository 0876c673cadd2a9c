//! Software KVM: on a host without VMX and SVM, guest user code runs natively, and KVM emulates kernel code in part.
//!
//! This module helps with two instructions: it injects #BP for `int3` in the kernel (the kernel's self-test, and jump
//! labels that are being patched), and skips `fwait`. Any other unsupported instruction ends the machine with a message
//! that names the instruction.

use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction};
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::exit::EmulationFailure;
use crate::memory::GuestMemory;

const INT3: u8 = 0xcc;
const FWAIT: u8 = 0x9b;
const BREAKPOINT_VECTOR: u8 = 3;
const INSTRUCTION_MAX: usize = 15;

/// Returns true if this host's CPU has neither VMX nor SVM. If KVM works on such a host, it emulates guest kernels.
pub fn is_software_kvm() -> bool {
    use std::arch::x86_64::__cpuid;
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    let vmx = __cpuid(1).ecx & VMX != 0;
    let svm = __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & SVM != 0;
    !vmx && !svm
}

/// Emulates `int3` and `fwait` for KVM, then returns true. Returns false for any other instruction.
pub fn assist(vcpu: &VcpuFd, memory: &GuestMemory, failure: &EmulationFailure) -> Result<bool, kvm_ioctls::Error> {
    let mut regs = vcpu.get_regs()?;
    let bytes = instruction_bytes(vcpu, memory, &regs, failure);
    match bytes.first() {
        Some(&FWAIT) => {
            regs.rip += 1;
            vcpu.set_regs(&regs)?;
            Ok(true)
        }
        Some(&INT3) => {
            regs.rip += 1;
            vcpu.set_regs(&regs)?;
            let mut events = vcpu.get_vcpu_events()?;
            events.exception.injected = 1;
            events.exception.nr = BREAKPOINT_VECTOR;
            events.exception.has_error_code = 0;
            vcpu.set_vcpu_events(&events)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Returns up to 15 bytes at the instruction pointer: KVM's, or else those read through the guest's page tables.
pub fn instruction_bytes(vcpu: &VcpuFd, memory: &GuestMemory, regs: &kvm_regs, failure: &EmulationFailure) -> Vec<u8> {
    if !failure.instruction_bytes.is_empty() {
        return failure.instruction_bytes.clone();
    }
    let mut bytes = Vec::with_capacity(INSTRUCTION_MAX);
    for offset in 0..INSTRUCTION_MAX as u64 {
        let byte = vcpu
            .translate_gva(regs.rip.wrapping_add(offset))
            .ok()
            .filter(|translation| translation.valid != 0)
            .and_then(|translation| memory.read_obj::<u8>(GuestAddress(translation.physical_address)).ok());
        match byte {
            Some(byte) => bytes.push(byte),
            None => break,
        }
    }
    bytes
}

pub fn describe(rip: u64, bytes: &[u8], software_kvm: bool) -> String {
    let instruction =
        disassemble(rip, bytes).map_or_else(|| "an unreadable instruction".to_string(), |text| format!("`{text}`"));
    let advice = if software_kvm {
        "This host has software KVM (no VMX or SVM), which does not support this instruction in a guest kernel. Use \
         the embedded kernel (omit --kernel), a kernel built with the same configuration, or a host with hardware KVM"
    } else {
        "The guest accessed device memory with an unsupported instruction, or its instruction pointer is corrupt"
    };
    format!("KVM could not emulate {instruction} at {rip:#x}. {advice}")
}

/// Disassembles the first instruction in Intel syntax.
fn disassemble(rip: u64, bytes: &[u8]) -> Option<String> {
    let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
    if instruction.is_invalid() {
        return None;
    }
    let mut text = String::new();
    FastFormatter::new().format(&instruction, &mut text);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_instruction_and_address() {
        let sentence = describe(0xffff_ffff_8100_0000, &[0x0f, 0x01, 0xca, 0x90], true);
        assert!(sentence.contains("`clac` at 0xffffffff81000000"), "{sentence}");
        assert!(sentence.contains("hardware KVM"), "{sentence}");
    }

    #[test]
    fn message_without_bytes_says_unreadable() {
        let sentence = describe(0x10, &[], false);
        assert!(sentence.contains("an unreadable instruction at 0x10"), "{sentence}");
    }
}
