//! Checks the vector registers in a guest: three processes hold patterns across context switches and a signal handler
//! that overwrites the registers. Prints the tested registers and the number of lost patterns.

use std::arch::asm;
use std::process::{Command, Stdio, exit};

const PROCESSES: u64 = 3;
const ROUNDS: u64 = 20;
/// Iterations of an empty loop, during which timer interrupts and context switches happen.
const TURNS: u64 = 40_000_000;
const ALARM_US: i64 = 20_000;
const SIGALRM: i32 = 14;

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn setitimer(which: i32, new: *const [i64; 4], old: *mut [i64; 4]) -> i32;
    fn sched_yield() -> i32;
}

fn main() {
    let wide = is_x86_feature_detected!("avx512f");
    let registers = match (wide, is_x86_feature_detected!("avx")) {
        (true, _) => "zmm",
        (false, true) => "ymm",
        (false, false) => "xmm",
    };
    if let Some(number) = std::env::args().nth(1) {
        exit(hold(number.parse().unwrap(), registers));
    }
    let program = std::env::current_exe().unwrap();
    let start = |number: u64| Command::new(&program).arg(number.to_string()).stdin(Stdio::null()).spawn().unwrap();
    let children: Vec<_> = (1..=PROCESSES).map(start).collect();
    let lost: i32 = children.into_iter().map(|mut child| child.wait().unwrap().code().expect("no signal")).sum();
    println!("{registers}: {lost} lost");
}

fn hold(number: u64, registers: &str) -> i32 {
    let handler: extern "C" fn(i32) = match registers {
        "zmm" => overwrite_zmm,
        "ymm" => overwrite_ymm,
        _ => overwrite_xmm,
    };
    // SAFETY: the handler has the required signature and touches only registers.
    unsafe {
        signal(SIGALRM, handler as usize);
        setitimer(0, &[0, ALARM_US, 0, ALARM_US], std::ptr::null_mut());
    }
    let mut lost = 0;
    for round in 0..ROUNDS {
        let pattern = [0x1111_1111_1111_1111 * number + round; 8];
        let mut found = [0; 8];
        // SAFETY: the features were detected; the arrays are as long as the registers.
        let count = match registers {
            "zmm" => unsafe { through_zmm(&pattern, &mut found) },
            "ymm" => unsafe { through_ymm(&pattern, &mut found) },
            _ => unsafe { through_xmm(&pattern, &mut found) },
        };
        lost += i32::from(pattern[..count] != found[..count]);
        // SAFETY: a call without arguments.
        unsafe { sched_yield() };
    }
    lost
}

/// Uses a register and a mask that only AVX-512 has. A lost mask counts as a lost word.
#[target_feature(enable = "avx512f")]
unsafe fn through_zmm(pattern: &[u64; 8], found: &mut [u64; 8]) -> usize {
    let mask: u32;
    // SAFETY: the pointers are to 64 bytes each.
    unsafe {
        asm!("vmovdqu64 zmm17, [{from}]", "kmovw k1, {word:e}", "2:", "dec {turns}", "jnz 2b",
            "vmovdqu64 [{to}], zmm17", "kmovw {mask:e}, k1",
            from = in(reg) pattern, to = in(reg) found.as_mut_ptr(), word = in(reg) pattern[0],
            turns = inout(reg) TURNS => _, mask = out(reg) mask, out("zmm17") _, out("k1") _);
    }
    if mask != pattern[0] as u32 & 0xffff {
        found[0] = !pattern[0];
    }
    8
}

#[target_feature(enable = "avx")]
unsafe fn through_ymm(pattern: &[u64; 8], found: &mut [u64; 8]) -> usize {
    // SAFETY: the pointers are to 64 bytes each.
    unsafe {
        asm!("vmovdqu ymm5, [{from}]", "2:", "dec {turns}", "jnz 2b", "vmovdqu [{to}], ymm5",
            from = in(reg) pattern, to = in(reg) found.as_mut_ptr(), turns = inout(reg) TURNS => _, out("ymm5") _);
    }
    4
}

unsafe fn through_xmm(pattern: &[u64; 8], found: &mut [u64; 8]) -> usize {
    // SAFETY: the pointers are to 64 bytes each.
    unsafe {
        asm!("movdqu xmm5, [{from}]", "2:", "dec {turns}", "jnz 2b", "movdqu [{to}], xmm5",
            from = in(reg) pattern, to = in(reg) found.as_mut_ptr(), turns = inout(reg) TURNS => _, out("xmm5") _);
    }
    2
}

extern "C" fn overwrite_zmm(_: i32) {
    #[target_feature(enable = "avx512f")]
    fn overwrite() {
        // SAFETY: the overwritten registers are declared.
        unsafe {
            asm!("vpxorq zmm17, zmm17, zmm17", "kxorw k1, k1, k1", out("zmm17") _, out("k1") _);
        }
    }
    // SAFETY: this handler is only for processors with the feature.
    unsafe { overwrite() }
}

extern "C" fn overwrite_ymm(_: i32) {
    #[target_feature(enable = "avx")]
    fn overwrite() {
        // SAFETY: the overwritten register is declared.
        unsafe {
            asm!("vxorps ymm5, ymm5, ymm5", out("ymm5") _);
        }
    }
    // SAFETY: this handler is only for processors with the feature.
    unsafe { overwrite() }
}

extern "C" fn overwrite_xmm(_: i32) {
    // SAFETY: the overwritten register is declared.
    unsafe {
        asm!("xorps xmm5, xmm5", out("xmm5") _);
    }
}
