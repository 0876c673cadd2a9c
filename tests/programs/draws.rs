//! Draws random numbers until /run/draws.stop exists. Prints a line for each: the time before the draw, and the number.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    let mut source = File::open("/dev/urandom").unwrap();
    let mut output = std::io::stdout();
    while !Path::new("/run/draws.stop").exists() {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let mut bytes = [0; 16];
        source.read_exact(&mut bytes).unwrap();
        writeln!(output, "{time} {:032x}", u128::from_le_bytes(bytes)).unwrap();
    }
}
