//! Asks the host for the instance's seed over vsock and prints the result. The optional argument is the source port.

use std::ffi::{c_int, c_void};

const AF_VSOCK: c_int = 40;
const SOCK_STREAM: c_int = 1;
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;
const SEED_PORT: u32 = 1025;

/// `struct sockaddr_vm` (vsock(7)).
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    rest: [u8; 4],
}

impl Address {
    fn new(cid: u32, port: u32) -> Address {
        Address { family: AF_VSOCK as u16, reserved: 0, port, cid, rest: [0; 4] }
    }
}

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, address: *const Address, length: u32) -> c_int;
    fn connect(fd: c_int, address: *const Address, length: u32) -> c_int;
    fn read(fd: c_int, buffer: *mut c_void, length: usize) -> isize;
}

fn main() {
    let port = std::env::args().nth(1).map(|word| word.parse::<u32>().unwrap());
    let length = size_of::<Address>() as u32;
    let mut buffer = [0u8; 65536];
    // SAFETY: each call gets a whole address or buffer, and its length.
    let (step, outcome) = unsafe {
        let fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        let bound = port.map_or(0, |port| bind(fd, &Address::new(ANY, port), length));
        if bound != 0 {
            ("bind", -1)
        } else if connect(fd, &Address::new(HOST, SEED_PORT), length) != 0 {
            ("connect", -1)
        } else {
            ("read", read(fd, buffer.as_mut_ptr().cast(), buffer.len()))
        }
    };
    match outcome {
        -1 => println!("{step}: {:?}", std::io::Error::last_os_error().kind()),
        _ => println!("{step}: {}", if outcome > 0 { "a seed" } else { "nothing" }),
    }
}
