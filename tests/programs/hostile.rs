//! A hostile kernel: it writes at random to virtio registers, rings and I/O ports, sometimes as a driver would.
//! Its command line has `rounds=N` and `seed=N`. Periodically, with all devices reset, it prints `hostile: N rounds`
//! on the serial port and waits for a key. After the last round it powers the machine off.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::ptr::{read_volatile, write_volatile};

// The VMM enters here, in long mode with the first GiB identity-mapped and the boot parameters in RSI. Compiled code
// may use SSE, which a kernel has to enable (CR4.OSFXSR).
global_asm!(
    ".globl _start",
    "_start:",
    "mov rsp, 0x1f00000",
    "mov rax, cr4",
    "or rax, 0x600",
    "mov cr4, rax",
    "mov rdi, rsi",
    "call hostile",
    "2: hlt",
    "jmp 2b",
);

const WINDOWS: u64 = 0xd000_0000;
const WINDOW: u64 = 0x1000;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// The VMM's page-directory-pointer table, and a page directory for the fourth GiB, which holds the device windows.
const POINTERS: u64 = 0xa000;
const DIRECTORY: u64 = 0x1e0_0000;
/// The part of guest memory for rings and buffers.
const AREA: u64 = 0x200_0000;
const AREA_SIZE: u64 = 0x100_0000;
/// The end of guest memory: 64 MiB.
const MEMORY: u64 = 0x400_0000;
const SERIAL: u16 = 0x3f8;
const ROUNDS_PER_REPORT: u64 = 64;
/// Ports that do not end the machine: serial, clock, ACPI events, boot timer, resume message, generation ID, unused.
const PORTS: [(u16, u16); 7] =
    [(0x3f8, 8), (0x70, 2), (0x600, 1), (0x6e0, 1), (0x700, 128), (0x780, 8), (0x1000, 0x1000)];

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        // The low bits of a xorshift are weak.
        (self.next() >> 16) % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Returns a random number, often a boundary value.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => self.next(),
            1 => self.below(256),
            2 => 1 << self.below(64),
            3 => (1_u64 << self.below(64)).wrapping_sub(1),
            4 => u64::MAX - self.below(8),
            _ => AREA + self.below(AREA_SIZE),
        }
    }
}

fn write<T>(address: u64, value: T) {
    // SAFETY: the program writes only to windows, ring area and page tables, which hold none of its own data.
    unsafe { write_volatile(address as *mut T, value) }
}

fn read<T>(address: u64) -> T {
    // SAFETY: as for writes; the types are integers.
    unsafe { read_volatile(address as *const T) }
}

fn out(port: u16, value: u8) {
    // SAFETY: I/O instructions do not access memory, and only this program runs on the machine.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}

fn input(port: u16) -> u8 {
    let value;
    // SAFETY: I/O instructions do not access memory, and only this program runs on the machine.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value) }
    value
}

fn out_any(port: u16, width: u64, value: u32) {
    // SAFETY: I/O instructions do not access memory, and only this program runs on the machine.
    unsafe {
        match width {
            0 => asm!("out dx, al", in("dx") port, in("al") value as u8),
            1 => asm!("out dx, ax", in("dx") port, in("ax") value as u16),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value),
        }
    }
}

fn in_any(port: u16, width: u64) {
    // SAFETY: I/O instructions do not access memory, and only this program runs on the machine.
    unsafe {
        match width {
            0 => asm!("in al, dx", in("dx") port, out("al") _),
            1 => asm!("in ax, dx", in("dx") port, out("ax") _),
            _ => asm!("in eax, dx", in("dx") port, out("eax") _),
        }
    }
}

fn print(text: &[u8]) {
    for byte in text {
        while input(SERIAL + 5) & 0x20 == 0 {}
        out(SERIAL, *byte);
    }
}

fn print_number(number: u64) {
    if number >= 10 {
        print_number(number / 10);
    }
    print(&[b'0' + (number % 10) as u8]);
}

/// Returns the number after `name` on the kernel command line, whose address is in the boot parameters.
fn option(parameters: u64, name: &[u8], otherwise: u64) -> u64 {
    let start = u64::from(read::<u32>(parameters + 0x228));
    let mut at = start;
    while read::<u8>(at) != 0 {
        if (0..name.len()).all(|index| read::<u8>(at + index as u64) == name[index]) {
            let (mut digits, mut number) = (at + name.len() as u64, 0_u64);
            while read::<u8>(digits).is_ascii_digit() {
                number = number.wrapping_mul(10).wrapping_add(u64::from(read::<u8>(digits) - b'0'));
                digits += 1;
            }
            return number;
        }
        at += 1;
    }
    otherwise
}

#[unsafe(no_mangle)]
extern "C" fn hostile(parameters: u64) {
    for index in 0..512_u64 {
        write(DIRECTORY + 8 * index, 0xc000_0000_u64 + (index << 21) | 0x93);
    }
    write(POINTERS + 8 * 3, DIRECTORY | 3);
    let rounds = option(parameters, b"rounds=", 256);
    let mut random = Random(option(parameters, b"seed=", 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut devices = 0;
    while devices < 16 && read::<u32>(WINDOWS + devices * WINDOW) == MAGIC {
        devices += 1;
    }
    report(0, devices);
    for round in 1..=rounds {
        let device = WINDOWS + random.below(devices) * WINDOW;
        match random.below(8) {
            0 => (0..32).for_each(|_| poke_register(&mut random, device)),
            1 => (0..32).for_each(|_| poke_port(&mut random)),
            _ => drive(&mut random, device),
        }
        if round % ROUNDS_PER_REPORT == 0 || round == rounds {
            (0..devices).for_each(|index| write(WINDOWS + index * WINDOW + 0x70, 0_u32));
            report(round, devices);
        }
    }
    print(b"hostile: done\n");
    // Soft off through ACPI's control register: sleep type 5 and the enable bit.
    out_any(0x604, 1, 5 << 10 | 1 << 13);
}

/// Reports the progress and waits for a key.
fn report(round: u64, devices: u64) {
    // Undo random writes to the serial port: no divisor, no interrupts, no loopback, empty FIFOs.
    for (register, value) in [(3, 3), (1, 0), (4, 0), (2, 7)] {
        out(SERIAL + register, value);
    }
    print(b"\nhostile: ");
    print_number(round);
    print(b" rounds, ");
    print_number(devices);
    print(b" devices\n");
    while input(SERIAL + 5) & 1 == 0 {}
    input(SERIAL);
}

fn poke_register(random: &mut Random, device: u64) {
    let (address, value) = (device + random.below(0x200), random.number());
    match random.below(8) {
        0 => drop(read::<u8>(address)),
        1 => drop(read::<u16>(address)),
        2 => drop(read::<u32>(address)),
        3 => drop(read::<u64>(address)),
        4 => write(address, value as u8),
        5 => write(address, value as u16),
        6 => write(address & !3, value as u32),
        _ => write(address, value),
    }
}

fn poke_port(random: &mut Random) {
    let (first, count) = PORTS[random.below(PORTS.len() as u64) as usize % PORTS.len()];
    let port = first + random.below(u64::from(count)) as u16;
    let width = random.below(3);
    if random.one_in(2) {
        in_any(port, width);
    } else {
        out_any(port, width, random.number() as u32);
    }
}

/// Initializes a device, correctly most of the time, and fills its rings with random data.
fn drive(random: &mut Random, device: u64) {
    let set = |offset: u64, value: u32| write(device + offset, value);
    let kind = read::<u32>(device + 8);
    set(0x70, 0);
    for status in [1, 3] {
        set(0x70, status);
    }
    for half in 0..2 {
        set(0x14, half);
        let offered = read::<u32>(device + 0x10);
        set(0x24, half);
        let taken = if half == 0 { offered & random.next() as u32 } else { offered };
        set(0x20, if random.one_in(16) { random.next() as u32 } else { taken });
    }
    set(0x70, 11);
    for queue in 0..4 {
        set(0x30, queue);
        let most = read::<u32>(device + 0x34);
        if most == 0 && !random.one_in(16) {
            continue;
        }
        let sound = !random.one_in(16);
        set(0x38, if sound { most.min(16 << random.below(3)) } else { random.number() as u32 });
        let rings = AREA + u64::from(queue) * 0x4000;
        for (register, place) in [(0x80, rings), (0x90, rings + 0x1000), (0xa0, rings + 0x2000)] {
            let place = if random.one_in(48) { random.number() } else { place };
            set(register, place as u32);
            set(register + 4, (place >> 32) as u32);
        }
        fill(random, device, kind, queue);
        set(0x44, 1);
    }
    set(0x70, 15);
    for _ in 0..4 {
        for queue in 0..4 {
            let rings = AREA + queue * 0x4000;
            if random.one_in(4) {
                fill(random, device, kind, queue as u32);
            }
            // Advance the available index by a few chains or, rarely, by a random number.
            let index = read::<u16>(rings + 0x1002);
            let more = if random.one_in(24) { random.next() as u16 } else { random.below(12) as u16 };
            write(rings + 0x1002, index.wrapping_add(more));
            set(0x50, if random.one_in(16) { random.number() as u32 } else { queue as u32 });
        }
        if random.one_in(4) {
            poke_register(random, device);
        }
    }
}

fn fill(random: &mut Random, device: u64, kind: u32, queue: u32) {
    let rings = AREA + u64::from(queue) * 0x4000;
    for index in 0..16_u64 {
        let at = rings + 16 * index;
        let buffer = AREA + 0x10_0000 + random.below(64) * 0x1000;
        let address = match random.below(24) {
            0 => random.number(),
            1 => MEMORY - random.below(64),
            2 => rings + random.below(0x3000),
            _ => buffer,
        };
        let length = match random.below(16) {
            0 => random.number() as u32,
            1 => 0,
            2 => 1,
            _ => [16, 44, 60, 512, 1600, 4096][random.below(6) as usize % 6],
        };
        // The balloon may release all memory but that of this program, which is below the area.
        let (address, length) = match (kind, queue) {
            (5, 3) => (address | AREA, length),
            (5, _) => (buffer, length.min(64)),
            _ => (address, length),
        };
        // Buffers of receive queues, and free pages that are reported to the balloon, must be device-writable.
        let is_receive = queue == 0 && matches!(kind, 1 | 19) || kind == 4 || kind == 5 && queue == 3;
        let mut flags = if is_receive { 2 } else { 0 };
        if kind == 2 {
            flags = [1, 3, 2][(index % 3) as usize];
        }
        if random.one_in(12) {
            flags = random.next() as u16 & 7;
        }
        let next = if random.one_in(24) { random.next() as u16 } else { (index as u16 + 1) % 16 };
        write(at, address);
        write(at + 8, length);
        write(at + 12, flags);
        write(at + 14, next);
        if !is_receive {
            content(random, device, buffer, kind);
        }
        let head = if kind == 2 { index * 3 % 15 } else { index };
        write(rings + 0x1004 + 2 * index, if random.one_in(24) { random.next() as u16 } else { head as u16 });
    }
}

/// Writes data that is valid, or nearly valid, for a device of this kind.
fn content(random: &mut Random, device: u64, at: u64, kind: u32) {
    match kind {
        // A header and a frame for the netstack: ARP, or IPv4 with the ports of DHCP or HTTP.
        1 => {
            (0..8).for_each(|word| write(at + 8 * word, 0_u64));
            write(at + 12, [0xff_u8; 6]);
            (0..6).for_each(|byte| write(at + 18 + byte, read::<u8>(device + 0x100 + byte)));
            if random.one_in(4) {
                write(at + 24, 0x0608_u16);
                write(at + 26, [0_u8, 1, 8, 0, 6, 4, 0, random.below(3) as u8]);
            } else {
                write(at + 24, 0x0008_u16);
                write(at + 26, [0x45_u8, 0, random.below(3) as u8, random.next() as u8]);
                write(at + 34, [64_u8, [1, 6, 17, 17][random.below(4) as usize % 4]]);
                write(at + 42, if random.one_in(2) { [255_u8; 4] } else { [169, 254, 169, 254] });
                write(at + 46, [0_u8, 68, 0, if random.one_in(2) { 67 } else { 80 }, 1, 44, 0, 0]);
            }
        }
        // A block request: type, sector.
        2 => {
            write(at, [0_u32, 1, 4, 8, 11, 13, random.next() as u32][random.below(7) as usize % 7]);
            write(at + 8, if random.one_in(4) { random.number() } else { random.below(128) });
        }
        // Page numbers for the balloon.
        5 => {
            let page = |random: &mut Random| (AREA >> 12) as u32 + random.below(1 << 20) as u32;
            return (0..16).for_each(|index| write(at + 4 * index, page(random)));
        }
        // A vsock packet: context ids, ports, length, type and operation, credit.
        19 => {
            write(at, 3_u64);
            write(at + 8, 2_u64);
            write(at + 16, random.below(8) as u32);
            write(at + 20, [1025_u32, 1026, 1024, 9, 1 << 30][random.below(5) as usize % 5]);
            write(at + 24, if random.one_in(8) { random.number() as u32 } else { 0 });
            write(at + 28, 1_u16);
            write(at + 30, if random.one_in(2) { 1 } else { random.below(9) as u16 });
            write(at + 32, random.next() as u32 & 3);
            write(at + 36, random.number() as u32);
            write(at + 40, random.number() as u32);
        }
        _ => {}
    }
    // Change the data only slightly: it then passes more of the VMM's checks than random data would.
    if random.one_in(3) {
        write(at + random.below(64), random.next());
    }
}

/// The compiler calls this and `memcpy` for large values. There is no C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: as the caller promises.
    unsafe { asm!("rep stosb", inout("rdi") to => _, inout("rcx") count => _, in("al") value as u8) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: as the caller promises.
    unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _) }
    to
}

/// Compiled parts of Rust's core library reference this symbol, although nothing unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
